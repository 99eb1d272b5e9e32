//! Decides whether and when a worker is started again.

use std::time::Duration;

/// The most workers in a row that die before they serve. A person may have killed one of them, but not so
/// many.
const MOST_FAILURES: u32 = 12;

/// The pause before the second start after a failed one. It doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause after a worker that never served. Readers wait meanwhile.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A worker that served for so long has not died of the requests that the kernel repeats at its start.
const LONG_SERVICE: Duration = Duration::from_secs(5);

/// The most workers in a row that are replaced at once after a short service. A person or a script may kill
/// that many.
const MOST_QUICK_DEATHS: u32 = 30;

/// The longest pause after a worker that served. A request may kill every worker that reads it, and must not
/// take a whole processor.
const LONGEST_SERVING_PAUSE: Duration = Duration::from_secs(1);

/// Counts workers that died soon.
#[derive(Debug, Default)]
pub(super) struct Budget {
    /// Workers in a row that never served.
    failures: u32,
    /// Workers in a row that served for a short time.
    quick_deaths: u32,
}

impl Budget {
    /// A worker died that served for `served_for`, if at all. Returns the pause before the next start, or
    /// `None` when the keeper should give up.
    pub(super) fn note_death(&mut self, served_for: Option<Duration>) -> Option<Duration> {
        let Some(served_for) = served_for else {
            self.failures += 1;
            return (self.failures <= MOST_FAILURES)
                .then(|| doubling(self.failures - 1).min(LONGEST_PAUSE));
        };
        self.failures = 0;
        self.quick_deaths = match served_for < LONG_SERVICE {
            true => self.quick_deaths.saturating_add(1),
            false => 0,
        };
        let beyond = self.quick_deaths.saturating_sub(MOST_QUICK_DEATHS);
        Some(doubling(beyond).min(LONGEST_SERVING_PAUSE))
    }
}

/// No pause for the start number zero, then [`FIRST_PAUSE`], and twice as much each time.
fn doubling(number: u32) -> Duration {
    match number {
        0 => Duration::ZERO,
        // Far above every limit from there on.
        number => FIRST_PAUSE * 2u32.pow((number - 1).min(16)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_served_for_long_is_replaced_at_once_and_for_ever() {
        let mut budget = Budget::default();
        for _ in 0..10_000 {
            assert_eq!(budget.note_death(Some(LONG_SERVICE)), Some(Duration::ZERO));
        }
    }

    #[test]
    fn workers_that_die_of_their_requests_are_replaced_with_pauses_and_for_ever() {
        let mut budget = Budget::default();
        let pauses: Vec<_> =
            (0..1000).map(|_| budget.note_death(Some(Duration::from_millis(1))).unwrap()).collect();
        let at_once = pauses.iter().take_while(|pause| pause.is_zero()).count();
        assert_eq!(at_once, MOST_QUICK_DEATHS as usize);
        assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_SERVING_PAUSE), "{pauses:?}");
        assert_eq!(budget.note_death(Some(LONG_SERVICE)), Some(Duration::ZERO));
    }

    #[test]
    fn workers_that_never_serve_are_given_up_with_growing_pauses() {
        let mut budget = Budget::default();
        let pauses: Vec<_> = std::iter::from_fn(|| budget.note_death(None)).collect();
        assert_eq!(pauses.len(), MOST_FAILURES as usize);
        assert!(pauses.is_sorted() && pauses.last() == Some(&LONGEST_PAUSE), "{pauses:?}");
        budget.note_death(Some(Duration::ZERO));
        assert_eq!(budget.note_death(None), Some(Duration::ZERO));
    }
}
