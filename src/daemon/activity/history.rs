//! The last ten minutes in samples. Pure.

use std::collections::VecDeque;

use crate::control::api::ActivitySample;
use crate::observe::reads::ReadCounts;

/// Ten minutes of 5 s: about 8 KiB.
const MOST_SAMPLES: usize = 120;

/// The sums at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) reads: ReadCounts,
    pub(super) fetched_bytes: u64,
}

/// A ring of samples.
#[derive(Debug, Default)]
pub(super) struct History {
    before: Option<Totals>,
    samples: VecDeque<ActivitySample>,
}

impl History {
    /// Adds what happened since the last call. The first call is the begin.
    pub(super) fn note(&mut self, now: Totals) {
        if let Some(before) = self.before.replace(now) {
            if self.samples.len() == MOST_SAMPLES {
                self.samples.pop_front();
            }
            self.samples.push_back(difference(&before, &now));
        }
    }

    /// The samples, the oldest first.
    pub(super) fn samples(&self) -> Vec<ActivitySample> {
        self.samples.iter().copied().collect()
    }
}

fn difference(before: &Totals, now: &Totals) -> ActivitySample {
    let hit = now.reads.hit.since(&before.reads.hit);
    let miss = now.reads.miss.since(&before.reads.miss);
    let all = hit.plus(&miss);
    ActivitySample {
        read_bytes: all.bytes,
        fetched_bytes: now.fetched_bytes.saturating_sub(before.fetched_bytes),
        hits: hit.reads(),
        misses: miss.reads(),
        failed_reads: now.reads.all_failed().saturating_sub(before.reads.all_failed()),
        median_us: all.quantile_us(0.5),
        p99_us: all.quantile_us(0.99),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::reads::Reads;

    #[test]
    fn a_sample_is_a_difference_and_the_ring_is_bounded() {
        let (reads, mut history) = (Reads::default(), History::default());
        let totals = |fetched_bytes| Totals { reads: reads.counts(), fetched_bytes };
        reads.hit(Duration::from_micros(1), 7);
        history.note(totals(5));
        assert!(history.samples().is_empty(), "nothing is known of the time before");
        reads.hit(Duration::from_micros(8), 100);
        reads.miss(Duration::from_millis(40), 50);
        reads.failed(crate::observe::reads::ReadFailure::Source);
        history.note(totals(90));
        let expected = ActivitySample {
            read_bytes: 150,
            fetched_bytes: 85,
            hits: 1,
            misses: 1,
            failed_reads: 1,
            median_us: Some(10),
            p99_us: Some(50_000),
        };
        assert_eq!(history.samples(), [expected]);
        (0..200).for_each(|_| history.note(totals(90)));
        assert_eq!(history.samples(), vec![ActivitySample::default(); MOST_SAMPLES]);
    }
}
