//! Time that this process ran: deadlines that stand still while it is stopped.
//!
//! A process may be frozen for hours: SIGSTOP, `docker pause`, a debugger. The clock goes on meanwhile.
//! A deadline by the clock would have passed when the process runs again, and every reader would fail at
//! once, though no server had a chance to answer. No clock of the kernel leaves such times out, so this
//! module looks at the clock at least once a second. The time between two looks counts for one second at
//! most.
//!
//! ```text
//! clock   |--1 s--|--1 s--|--1 s--| . . . . frozen for an hour . . . . |--1 s--|
//! counted     1       2       3                                    4       5
//! ```
//!
//! `tests/architecture.rs` forbids `tokio::time::timeout` elsewhere.

use std::time::Duration;

use tokio::time::Instant;

/// The longest time between two looks that counts in full, and so the most that a freeze counts for.
/// Short against deadlines, which have tens of seconds, and long enough that a thousand waiting readers
/// cost nothing.
const STEP: Duration = Duration::from_secs(1);

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Counts the time that this process runs. Counts in full only if it is looked at every second.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    ran: Duration,
    looked: Instant,
}

impl Stopwatch {
    /// Starts at zero.
    pub fn start() -> Self {
        Self { ran: Duration::ZERO, looked: Instant::now() }
    }

    /// The time that this process ran since the start.
    pub fn look(&mut self) -> Duration {
        self.look_at(Instant::now())
    }

    /// Waits until this process ran for `limit` since the start. May be dropped and called again.
    pub async fn reach(&mut self, limit: Duration) {
        loop {
            let left = limit.saturating_sub(self.look());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(STEP)).await;
        }
    }

    fn look_at(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.looked).min(STEP);
        self.looked = now;
        self.ran = self.ran.saturating_add(passed);
        self.ran
    }
}

/// Waits until this process ran for `duration`.
pub async fn sleep(duration: Duration) {
    Stopwatch::start().reach(duration).await;
}

/// The value of `future`, unless this process runs for `duration` first.
///
/// # Errors
/// [`Elapsed`] at the deadline; a future that is ready then wins.
pub async fn timeout<T>(duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    tokio::select! {
        biased;
        value = future => Ok(value),
        () = sleep(duration) => Err(Elapsed),
    }
}

/// The value of `future`, and the time that this process ran meanwhile.
pub async fn timed<T>(future: impl Future<Output = T>) -> (T, Duration) {
    let mut watch = Stopwatch::start();
    let value = tokio::select! {
        biased;
        value = future => Some(value),
        () = watch.reach(Duration::MAX) => None,
    };
    let value = value.expect("no process runs for ever");
    (value, watch.look())
}

/// Receives a value, unless this process runs for `limit` first. Blocks.
///
/// # Errors
/// [`Elapsed`] at the deadline, and when no sender is left.
pub fn receive<T>(receiver: &std::sync::mpsc::Receiver<T>, limit: Duration) -> Result<T, Elapsed> {
    use std::sync::mpsc::RecvTimeoutError;
    let mut watch = Stopwatch::start();
    loop {
        let left = limit.saturating_sub(watch.look());
        match receiver.recv_timeout(left.min(STEP)) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Err(Elapsed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A freeze ends a wait at the next look, however long it was.
        #[test]
        fn a_freeze_counts_for_one_step_at_most(
            waits_ms in prop::collection::vec((0..=1000u64, any::<bool>(), 0..10_000_000u64), 0..200),
        ) {
            let mut now = Instant::now();
            let (mut watch, mut ran, mut freezes) = (Stopwatch { ran: Duration::ZERO, looked: now }, 0, 0);
            for (wait_ms, is_frozen, frozen_ms) in waits_ms {
                let frozen_ms = if is_frozen { frozen_ms } else { 0 };
                now += Duration::from_millis(wait_ms + frozen_ms);
                ran += wait_ms;
                freezes += u32::from(is_frozen);
                let counted = watch.look_at(now);
                prop_assert!(counted >= Duration::from_millis(ran));
                prop_assert!(counted <= Duration::from_millis(ran) + STEP * freezes);
            }
        }
    }

    /// A runtime whose only thread sleeps does not run, like a frozen process.
    #[tokio::test(flavor = "current_thread")]
    async fn a_deadline_stands_still_while_the_process_is_frozen() {
        let deadline = 2 * STEP;
        let waiting = tokio::spawn(timeout(deadline, std::future::pending::<()>()));
        let counting = tokio::spawn(timed(sleep(deadline)));
        // The tasks start their clocks.
        tokio::task::yield_now().await;
        std::thread::sleep(deadline + STEP / 2);
        // The timers fire, and both tasks look at the clock.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!waiting.is_finished() && !counting.is_finished());
        assert_eq!(waiting.await.unwrap(), Err(Elapsed));
        let ((), counted) = counting.await.unwrap();
        assert!(counted >= deadline && counted < deadline + 2 * STEP, "{counted:?}");
    }

    #[tokio::test]
    async fn what_is_ready_at_the_deadline_wins() {
        assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7));
        let moment = Duration::from_millis(5);
        let start = std::time::Instant::now();
        assert_eq!(timeout(moment, std::future::pending::<()>()).await, Err(Elapsed));
        assert!(start.elapsed() >= moment);
    }

    #[test]
    fn a_value_is_received_in_time_or_not_at_all() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let moment = Duration::from_millis(5);
        assert_eq!(receive(&receiver, moment), Err(Elapsed));
        sender.send(7).unwrap();
        assert_eq!(receive(&receiver, Duration::ZERO), Ok(7));
        drop(sender);
        assert_eq!(receive(&receiver, moment * 1000), Err(Elapsed));
    }
}
