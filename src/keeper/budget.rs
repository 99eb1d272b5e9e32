//! How often a worker is started again.

use std::time::Duration;

/// How many workers in a row may die before they serve. Each of them may have been killed by somebody, but
/// not so many.
const MOST_FAILURES: u32 = 12;

/// The pause before the second start after a failed one. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause. Readers wait meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Counts workers that died before they served.
#[derive(Debug, Default)]
pub(super) struct Budget {
    failures: u32,
}

impl Budget {
    /// A worker serves.
    pub(super) fn note_serving(&mut self) {
        self.failures = 0;
    }

    /// A worker died. Returns the pause before the next start, or `None` when the keeper should give up.
    pub(super) fn note_death(&mut self, has_served: bool) -> Option<Duration> {
        if has_served {
            return Some(Duration::ZERO);
        }
        self.failures += 1;
        match self.failures {
            1 => Some(Duration::ZERO),
            failures if failures > MOST_FAILURES => None,
            failures => Some((FIRST_PAUSE * 2u32.pow(failures - 2)).min(LONGEST_PAUSE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_served_is_replaced_at_once_and_for_ever() {
        let mut budget = Budget::default();
        for _ in 0..10_000 {
            budget.note_serving();
            assert_eq!(budget.note_death(true), Some(Duration::ZERO));
        }
    }

    #[test]
    fn workers_that_never_serve_are_given_up_with_growing_pauses() {
        let mut budget = Budget::default();
        let pauses: Vec<_> = std::iter::from_fn(|| budget.note_death(false)).collect();
        assert_eq!(pauses.len(), MOST_FAILURES as usize);
        assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_PAUSE), "{pauses:?}");
        budget.note_serving();
        assert_eq!(budget.note_death(false), Some(Duration::ZERO));
    }
}
