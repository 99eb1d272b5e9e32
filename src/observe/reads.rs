//! Counts of the reads from mounts, and how long they took.
//!
//! A read costs a few relaxed atomics here, and two looks at the clock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper bounds of the classes of latency, in microseconds: from a copy out of memory to a read that waits for
/// its deadline. Two or three for each power of ten: enough to tell a local disk, a near registry and a far
/// registry apart.
pub const LATENCY_BOUNDS_US: [u64; 22] = [
    10,
    25,
    50,
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// The number of classes: the last one has no bound.
pub const LATENCY_CLASSES: usize = LATENCY_BOUNDS_US.len() + 1;

/// The reads of all mounts since the start of the process, without those that the kernel does by itself.
#[derive(Debug, Default)]
pub struct Reads {
    hit: Latencies,
    miss: Latencies,
    failed: [AtomicU64; ReadFailure::ALL.len()],
}

/// The reason why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// The registry or folder did not give the bytes.
    Source,
    /// The disk of the cache failed, or has no room.
    Cache,
    /// The bytes are not those of the digest, or the layer is malformed.
    Content,
    /// The bytes did not come before the deadline of the read.
    Deadline,
    /// Any other reason, such as a file that is gone.
    Other,
}

impl ReadFailure {
    /// Every reason.
    pub const ALL: [Self; 5] =
        [Self::Source, Self::Cache, Self::Content, Self::Deadline, Self::Other];

    /// The word for metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Cache => "cache",
            Self::Content => "content",
            Self::Deadline => "deadline",
            Self::Other => "other",
        }
    }
}

#[derive(Debug, Default)]
struct Latencies {
    classes: [AtomicU64; LATENCY_CLASSES],
    sum_us: AtomicU64,
    bytes: AtomicU64,
}

/// The counts at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Reads whose bytes were in the cache.
    pub hit: LatencyCounts,
    /// Reads that waited for bytes.
    pub miss: LatencyCounts,
    /// Reads that failed, by reason in the order of [`ReadFailure::ALL`].
    pub failed: [u64; ReadFailure::ALL.len()],
}

/// Reads by the time that they took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyCounts {
    /// The number of reads in each class ([`LATENCY_BOUNDS_US`]).
    pub classes: [u64; LATENCY_CLASSES],
    /// The sum of their times, in microseconds.
    pub sum_us: u64,
    /// The sum of their bytes.
    pub bytes: u64,
}

impl Default for LatencyCounts {
    fn default() -> Self {
        Self { classes: [0; LATENCY_CLASSES], sum_us: 0, bytes: 0 }
    }
}

impl Reads {
    /// Notes a read whose bytes were in the cache.
    pub fn hit(&self, took: Duration, bytes: usize) {
        self.hit.note(took, bytes);
    }

    /// Notes a read that waited for bytes.
    pub fn miss(&self, took: Duration, bytes: usize) {
        self.miss.note(took, bytes);
    }

    /// Notes a read that failed.
    pub fn failed(&self, why: ReadFailure) {
        self.failed[why as usize].fetch_add(1, Relaxed);
    }

    /// The present counts. A read that ends meanwhile may be in some of them only.
    pub fn counts(&self) -> ReadCounts {
        ReadCounts {
            hit: self.hit.counts(),
            miss: self.miss.counts(),
            failed: std::array::from_fn(|reason| self.failed[reason].load(Relaxed)),
        }
    }
}

impl ReadCounts {
    /// Reads that failed for any reason.
    pub fn all_failed(&self) -> u64 {
        self.failed.iter().sum()
    }
}

impl Latencies {
    fn note(&self, took: Duration, bytes: usize) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.classes[class_of(took_us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(took_us, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn counts(&self) -> LatencyCounts {
        LatencyCounts {
            classes: std::array::from_fn(|class| self.classes[class].load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
        }
    }
}

impl LatencyCounts {
    /// The number of reads.
    pub fn reads(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// The reads since an earlier moment of the same process.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            classes: std::array::from_fn(|class| {
                self.classes[class].saturating_sub(earlier.classes[class])
            }),
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }

    /// The sum of two counts.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            classes: std::array::from_fn(|class| self.classes[class] + other.classes[class]),
            sum_us: self.sum_us.saturating_add(other.sum_us),
            bytes: self.bytes + other.bytes,
        }
    }

    /// The time in microseconds that a share (0 to 1) of the reads did not exceed, as the bound of its class.
    /// `None` without a read. A time beyond the last bound counts as that bound.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let reads = self.reads();
        if reads == 0 {
            return None;
        }
        let wanted = ((reads as f64 * share).ceil() as u64).clamp(1, reads);
        let mut seen = 0;
        let class = self.classes.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(LATENCY_BOUNDS_US[class.min(LATENCY_BOUNDS_US.len() - 1)])
    }
}

fn class_of(took_us: u64) -> usize {
    LATENCY_BOUNDS_US.partition_point(|bound| *bound < took_us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bound_belongs_to_its_class() {
        assert_eq!(class_of(0), 0);
        assert_eq!(class_of(10), 0);
        assert_eq!(class_of(11), 1);
        assert_eq!(class_of(300_000_000), LATENCY_CLASSES - 2);
        assert_eq!(class_of(u64::MAX), LATENCY_CLASSES - 1);
        assert!(LATENCY_BOUNDS_US.is_sorted());
    }

    proptest! {
        #[test]
        fn a_quantile_is_no_less_than_the_exact_one(mut times in prop::collection::vec(0u64..400_000_000, 1..60), share in 0.0f64..=1.0) {
            let reads = Reads::default();
            times.iter().for_each(|time| reads.miss(Duration::from_micros(*time), 1));
            let counts = reads.counts().miss;
            prop_assert_eq!(counts.reads(), times.len() as u64);
            prop_assert_eq!(counts.sum_us, times.iter().sum::<u64>());
            times.sort_unstable();
            let rank = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len());
            let exact = times[rank - 1];
            let last = *LATENCY_BOUNDS_US.last().unwrap();
            let quantile = counts.quantile_us(share).unwrap();
            prop_assert!(quantile >= exact.min(last), "{quantile} < {exact}");
            prop_assert!(LATENCY_BOUNDS_US.contains(&quantile));
        }
    }

    #[test]
    fn counts_of_a_time_are_a_difference() {
        let reads = Reads::default();
        reads.hit(Duration::from_micros(5), 100);
        let before = reads.counts();
        reads.hit(Duration::from_millis(3), 50);
        reads.failed(ReadFailure::Deadline);
        let counts = reads.counts();
        let since = counts.hit.since(&before.hit);
        assert_eq!((since.reads(), since.bytes, since.sum_us), (1, 50, 3000));
        assert_eq!(since.quantile_us(0.5), Some(5000));
        assert_eq!(counts.miss.quantile_us(0.5), None);
        assert_eq!(counts.failed, [0, 0, 0, 1, 0]);
        assert_eq!((counts.all_failed(), since.plus(&before.hit)), (1, counts.hit));
    }
}
