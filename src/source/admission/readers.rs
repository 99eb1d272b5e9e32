//! Readers that wait for bytes, and the background work that gives way to them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Admission;
use crate::source::{Priority, Urgency};

/// The pause of a prefetch after each batch of bytes while a reader waits. 20 ms: a reader's chunk passes in this
/// time at 100 Mbit/s, and no server cuts so short a pause off.
const PREFETCH_PAUSE: Duration = Duration::from_millis(20);
/// The same for hydration.
const HYDRATE_PAUSE: Duration = Duration::from_secs(1);

/// The readers that wait now.
pub(super) struct Readers {
    waiting: AtomicUsize,
    all_left: Notify,
    began: Instant,
    /// The time at which a reader last began or ended to wait, in milliseconds since `began`.
    last_ms: AtomicU64,
}

/// A waiting reader. It waits as long as the value lives.
pub(crate) struct Reader<'a>(&'a Admission);

impl Readers {
    pub(super) fn new() -> Self {
        Self {
            waiting: AtomicUsize::new(0),
            all_left: Notify::new(),
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    /// Whether a reader waits.
    pub(super) fn wait(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn note(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        self.last_ms.store(now, Ordering::Relaxed);
    }
}

impl Admission {
    /// Notes that a reader waits, until the value is dropped.
    pub(crate) fn reader(&self) -> Reader<'_> {
        self.readers.waiting.fetch_add(1, Ordering::Relaxed);
        self.readers.note();
        Reader(self)
    }

    /// The time in which no reader has waited.
    pub(crate) fn quiet_for(&self) -> Duration {
        if self.readers.wait() {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.readers.last_ms.load(Ordering::Relaxed));
        self.readers.began.elapsed().saturating_sub(last)
    }

    /// Whether a transfer is in the background, and a reader waits.
    pub(crate) fn must_give_way(&self, urgency: &Urgency) -> bool {
        urgency.get() < Priority::Readahead && self.readers.wait()
    }

    /// Pauses between two batches of bytes of a background transfer while a reader waits.
    pub(crate) async fn give_way(&self, urgency: &Urgency) {
        let priority = urgency.get();
        let pause = match priority {
            Priority::OnDemand | Priority::Readahead => return,
            Priority::Prefetch => PREFETCH_PAUSE,
            Priority::Hydrate => HYDRATE_PAUSE,
        };
        let left = self.readers.all_left.notified();
        if self.readers.wait() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = left => {}
                // A reader waits for this very transfer, or for its place at the host.
                () = urgency.hurried(priority) => {}
            }
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let Self(admission) = self;
        admission.readers.note();
        if admission.readers.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            admission.readers.all_left.notify_waiters();
            admission.reconsider();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_transfer_that_pauses_goes_on_when_a_reader_wants_it() {
        let admission = Admission::new(Default::default());
        let _reader = admission.reader();
        let urgency = Urgency::new(Priority::Hydrate);
        let mut pause = Box::pin(admission.give_way(&urgency));
        assert!(pause.as_mut().now_or_never().is_none());
        urgency.raise(Priority::OnDemand);
        assert!(pause.now_or_never().is_some());
        let holder = Urgency::new(Priority::Hydrate);
        let mut pause = Box::pin(admission.give_way(&holder));
        assert!(pause.as_mut().now_or_never().is_none());
        holder.stands_in_the_way(true);
        assert!(pause.now_or_never().is_some(), "it holds what a reader waits for");
        assert!(admission.give_way(&holder).now_or_never().is_some());
    }
}
