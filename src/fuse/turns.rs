//! Whether the threads that answer the kernel make progress.
//!
//! Each thread has a counter. The counter is odd while the thread answers a request, and even while the thread
//! waits for one. So two looks show a thread that answers the same request at both, and need no clock.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counter of one thread. It has a cache line of its own, because its thread writes to it for each request.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Turns(AtomicU64);

impl Turns {
    /// Notes that the thread begins or ends to answer a request.
    pub(super) fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of all threads, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look(pub(super) Vec<u64>);

impl Look {
    /// Whether no thread is left for further requests: since `before`, each has answered the same request.
    pub fn is_stuck_since(&self, before: &Self) -> bool {
        let is_busy = |count: &u64| count % 2 == 1;
        !self.0.is_empty() && self == before && self.0.iter().all(is_busy)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A thread, as the test sees it: its counter, and what it does between two looks.
    #[derive(Clone, Copy, Debug)]
    struct Thread {
        begun: u64,
        steps: u64,
    }

    fn threads() -> impl Strategy<Value = Vec<Thread>> {
        let thread = (0..6u64, 0..3u64).prop_map(|(begun, steps)| Thread { begun, steps });
        prop::collection::vec(thread, 0..6)
    }

    proptest! {
        #[test]
        fn threads_are_stuck_when_each_answers_one_request_at_both_looks(threads in threads()) {
            let counters: Vec<Turns> = threads.iter().map(|_| Turns::default()).collect();
            let advance = |steps: fn(&Thread) -> u64| {
                for (counter, thread) in counters.iter().zip(&threads) {
                    (0..steps(thread)).for_each(|_| counter.note());
                }
                Look(counters.iter().map(Turns::count).collect())
            };
            let before = advance(|thread| thread.begun);
            let now = advance(|thread| thread.steps);
            let is_stuck = |thread: &Thread| thread.begun % 2 == 1 && thread.steps == 0;
            let expected = !threads.is_empty() && threads.iter().all(is_stuck);
            prop_assert_eq!(now.is_stuck_since(&before), expected);
        }
    }
}
