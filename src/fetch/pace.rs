//! How large requests should be, from how fast bytes come. Pure.
//!
//! A request of the right size takes some tens of milliseconds: long enough to hide the round trip
//! of the next one on its connection, short enough for a reader that lands in its tail, or for a
//! more urgent transfer that waits for its turn.

use std::time::Duration;

use crate::layer::layout::CHUNK_BYTES;

/// What a request should take when the line is its own: two to three usual round trips.
const TARGET: Duration = Duration::from_millis(33);
/// What it should take on a line of [`FAST_RATE`]: there a server pays more for a request than the
/// line does (docker-registry fills a buffer of 4 MiB for each, however little of it is asked for),
/// and a reader that lands in its tail still waits less than a tenth of a second.
const FAST_TARGET: Duration = Duration::from_millis(100);
/// Bytes per second that only machines nearby bring: 2 Gbit/s.
const FAST_RATE: f64 = 250e6;
/// The smallest request of several chunks: below, heads and turns cost more than they save.
const LEAST_BYTES: u64 = 1024 * 1024;
/// The largest request: half of a stream's largest window, so that there are always two. On
/// loopback, requests of 16 MiB took a fifth to a third more of the registry's processor time than
/// these, and larger ones gained nothing more.
const MOST_BYTES: u64 = 32 * 1024 * 1024;
/// Until something was measured: right for 1 Gbit/s.
const FIRST_BYTES: u64 = 4 * 1024 * 1024;
/// Transfers below this say more about round trips than about rates.
const TELLING_BYTES: u64 = 512 * 1024;

/// The rate at which bytes of one layer come, and what follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pace {
    /// Bytes per second of all transfers together; a running mean.
    rate: Option<f64>,
}

impl Pace {
    /// Takes note of a transfer of `bytes` that took `elapsed`, with `running` transfers sharing
    /// the line (itself included).
    pub(super) fn note(&mut self, bytes: u64, elapsed: Duration, running: usize) {
        if bytes < TELLING_BYTES || elapsed.is_zero() {
            return;
        }
        let sample = bytes as f64 / elapsed.as_secs_f64() * running.max(1) as f64;
        self.rate = Some(match self.rate {
            Some(rate) => rate * 0.75 + sample * 0.25,
            None => sample,
        });
    }

    /// The most chunks that one request should ask for.
    pub(super) fn chunks(&self) -> u32 {
        let bytes = match self.rate {
            Some(rate) if rate >= FAST_RATE => (rate * FAST_TARGET.as_secs_f64()) as u64,
            Some(rate) => (rate * TARGET.as_secs_f64()) as u64,
            None => FIRST_BYTES,
        };
        (bytes.clamp(LEAST_BYTES, MOST_BYTES) / CHUNK_BYTES) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunks_at(bytes_per_second: u64) -> u64 {
        let mut pace = Pace::default();
        for _ in 0..20 {
            pace.note(bytes_per_second, Duration::from_secs(1), 1);
        }
        u64::from(pace.chunks()) * CHUNK_BYTES
    }

    #[test]
    fn requests_grow_with_the_rate() {
        assert_eq!(chunks_at(10_000_000), LEAST_BYTES);
        assert_eq!(chunks_at(125_000_000), 15 * CHUNK_BYTES);
        assert_eq!(chunks_at(240_000_000), 30 * CHUNK_BYTES);
        assert_eq!(chunks_at(260_000_000), 99 * CHUNK_BYTES);
        assert_eq!(chunks_at(2_000_000_000), MOST_BYTES);
    }

    #[test]
    fn small_transfers_say_nothing() {
        let mut pace = Pace::default();
        pace.note(CHUNK_BYTES, Duration::from_millis(20), 1);
        assert_eq!(pace, Pace::default());
    }

    proptest! {
        #[test]
        fn requests_are_always_within_their_bounds(
            notes in prop::collection::vec((any::<u64>(), any::<u64>(), any::<usize>()), 0..20),
        ) {
            let mut pace = Pace::default();
            for (bytes, nanoseconds, running) in notes {
                pace.note(bytes, Duration::from_nanos(nanoseconds), running);
                let bytes = u64::from(pace.chunks()) * CHUNK_BYTES;
                prop_assert!((LEAST_BYTES..=MOST_BYTES).contains(&bytes));
            }
        }
    }
}
