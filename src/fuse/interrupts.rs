//! Ends a read that waits for the network when its program is killed.
//!
//! A program that gets SIGKILL, or another signal that ends it, sleeps on until the reply comes: no signal
//! ends the wait for a request that was read from the device.
//!
//! - The kernel sends an interrupt when a signal comes to a thread that waits for one request. It sends one
//!   for each request, and a later signal may be the one that kills.
//! - It sends none for O_DIRECT, where a thread waits for several requests.
//!
//! So the state of a waiting thread is looked at now and then, and at once when an interrupt comes:
//!
//! ```text
//! waits --interrupt, or a moment has passed--> is being killed? --yes--> answered with EINTR
//!   ^                                               |no
//!   '-----------------------------------------------'
//! ```
//!
//! Other signals end no read, as on a local disk: programs do not expect EINTR from a file, and a
//! mapped page would become SIGBUS.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::process::threads::status_of;

/// The time between two looks at a thread that waits. 500 ms: a thousand waiting readers cost 2,000 looks a
/// second, each a file of /proc, which is a few percent of a core.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The time between two looks after a signal. 100 ms: a person who presses Ctrl-C twice does not notice.
const LOOK_AGAIN_SOON: Duration = Duration::from_millis(100);

/// The interrupts that are remembered of requests that do not wait: most were answered meanwhile, and a few
/// are about to wait on another thread of ours. 256: the latter are as many as our threads.
const MOST_EARLY: usize = 256;

/// SIGKILL in the masks of proc_pid_status(5). The kernel adds it to each thread of a process that a signal
/// ends, whichever signal that is.
const SIGKILL_BIT: u64 = 1 << (9 - 1);

/// The reads of a mount that wait, by the numbers of their requests.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<u64, Arc<Notify>>,
    early: VecDeque<u64>,
}

/// A read that waits; no longer when the value is dropped.
pub(super) struct Waiting {
    interrupts: Arc<Interrupts>,
    unique: u64,
    thread: u32,
    interrupted: Arc<Notify>,
}

impl Interrupts {
    /// A read of `thread` begins to wait.
    pub(super) fn begin(self: &Arc<Self>, unique: u64, thread: u32) -> Waiting {
        let interrupted = Arc::new(Notify::new());
        let mut table = self.0.lock();
        table.waiting.insert(unique, interrupted.clone());
        if table.early.contains(&unique) {
            interrupted.notify_one();
        }
        drop(table);
        Waiting { interrupts: self.clone(), unique, thread, interrupted }
    }

    /// The kernel interrupts the request `unique`.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut table = self.0.lock();
        match table.waiting.get(&unique) {
            Some(interrupted) => interrupted.notify_one(),
            None => {
                table.early.truncate(MOST_EARLY - 1);
                table.early.push_front(unique);
            }
        }
    }
}

impl Waiting {
    /// Waits until the program is being killed.
    pub(super) async fn killed(&self) {
        let mut look_again = LOOK_AGAIN;
        loop {
            tokio::select! {
                () = self.interrupted.notified() => look_again = LOOK_AGAIN_SOON,
                () = tokio::time::sleep(look_again) => {}
            }
            if is_being_killed(self.thread) {
                return;
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.interrupts.0.lock().waiting.remove(&self.unique);
    }
}

/// Whether a signal is about to end the thread's process. A thread of another PID namespace cannot be
/// seen, and is taken to live.
fn is_being_killed(thread: u32) -> bool {
    has_sigkill(&status_of(thread))
}

/// Whether SIGKILL is pending, by proc_pid_status(5).
fn has_sigkill(status: &str) -> bool {
    let masks = status.lines().filter_map(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    masks.fold(0, |all, mask| all | mask) & SIGKILL_BIT != 0
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_pending_sigkill_is_seen_in_either_mask() {
        for (status, is_killed) in [
            ("Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true),
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000102\n", true),
            ("SigPnd:\t0000000000000002\nShdPnd:\t0000000000004000\n", false),
            ("SigBlk:\t0000000000000100\nSigPnd:\tnone\n", false),
            ("", false),
        ] {
            assert_eq!(has_sigkill(status), is_killed, "{status}");
        }
        assert!(!is_being_killed(std::process::id()));
    }

    #[tokio::test]
    async fn an_interrupt_finds_its_read_whichever_comes_first() {
        let interrupts = Arc::<Interrupts>::default();
        for is_early in [false, true] {
            if is_early {
                interrupts.interrupt(7);
            }
            let (waiting, other) = (interrupts.begin(7, 0), interrupts.begin(8, 0));
            if !is_early {
                interrupts.interrupt(7);
            }
            assert!(waiting.interrupted.notified().now_or_never().is_some());
            assert!(other.interrupted.notified().now_or_never().is_none());
        }
        assert!(interrupts.0.lock().waiting.is_empty());
    }

    #[test]
    fn interrupts_of_answered_requests_take_little_memory() {
        let interrupts = Interrupts::default();
        (0..10_000).for_each(|unique| interrupts.interrupt(unique));
        assert_eq!(interrupts.0.lock().early.len(), MOST_EARLY);
        assert_eq!(interrupts.0.lock().early.front(), Some(&9_999));
    }
}
