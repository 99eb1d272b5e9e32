//! Time that this process ran: deadlines that stand still while it is stopped.
//!
//! A process may be frozen for hours: SIGSTOP, `docker pause`, a debugger. The clock goes on meanwhile.
//! A deadline by the clock would have passed when the process runs again, and every reader would fail at
//! once, though no server had a chance to answer. No clock of the kernel leaves such times out, so a
//! deadline is counted in steps: each counts for its own length, however late the process wakes from it.
//!
//! ```text
//! clock   |--1 s--|--1 s--|--1 s--| . . . . frozen for an hour . . . . |--1 s--|
//! counted     1       2       3                                    4       5
//! ```
//!
//! A freeze is thus counted as at most one step.

use std::time::Duration;

/// The longest step: what a freeze may count for at most. Short against deadlines, which have tens of
/// seconds, and long enough that a thousand waiting readers cost nothing.
const STEP: Duration = Duration::from_secs(1);

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Waits until this process ran for `duration`.
pub async fn sleep(duration: Duration) {
    for step in steps(duration) {
        tokio::time::sleep(step).await;
    }
}

/// What `future` comes to, unless this process runs for `duration` first.
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

/// A duration in steps.
fn steps(duration: Duration) -> impl Iterator<Item = Duration> {
    let mut left = duration;
    std::iter::from_fn(move || {
        let step = left.min(STEP);
        left -= step;
        (!step.is_zero()).then_some(step)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How long a process runs until a wait of `duration` is over, where it is frozen when it has run
    /// for `after`, for `length`, for each of `freezes`. A step ends by the clock, or when the process
    /// is thawed.
    fn ran(duration: Duration, freezes: &[(Duration, Duration)]) -> Duration {
        let (mut ran, mut freezes) = (Duration::ZERO, freezes.iter().peekable());
        for step in steps(duration) {
            let mut left = step;
            while let Some((after, length)) = freezes.next_if(|(after, _)| *after < ran + left) {
                let before_freeze = after.saturating_sub(ran);
                ran += before_freeze;
                left = left.saturating_sub(before_freeze + *length);
            }
            ran += left;
        }
        ran
    }

    proptest! {
        #[test]
        fn a_freeze_counts_for_one_step_at_most(
            duration_ms in 0..300_000u64,
            mut freezes in prop::collection::vec((0..300_000u64, 0..10_000_000u64), 0..6),
        ) {
            freezes.sort_unstable();
            let freezes: Vec<_> = freezes
                .into_iter()
                .map(|(after, length)| (Duration::from_millis(after), Duration::from_millis(length)))
                .collect();
            let duration = Duration::from_millis(duration_ms);
            prop_assert_eq!(ran(duration, &[]), duration);
            let ran = ran(duration, &freezes);
            prop_assert!(ran <= duration && ran + STEP * freezes.len() as u32 >= duration, "{ran:?}");
        }
    }

    #[tokio::test]
    async fn what_is_ready_at_the_deadline_wins() {
        assert_eq!(timeout(Duration::ZERO, async { 7 }).await, Ok(7));
        let moment = Duration::from_millis(5);
        let start = std::time::Instant::now();
        assert_eq!(timeout(moment, std::future::pending::<()>()).await, Err(Elapsed));
        assert!(start.elapsed() >= moment);
    }
}
