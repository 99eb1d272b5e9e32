//! Reads at equal distances: every hundredth row of a table, one tensor of each layer of a model.

use std::ops::Range;

use crate::layer::layout::CHUNK_BYTES;

/// The number of equal distances in a row after which further ones are expected.
const TELLING_STRIDES: u32 = 2;
/// The most reads that are asked for ahead: as many as a host answers side by side.
const MOST_AHEAD: u64 = 8;

/// The distances between the reads that began streams.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Strides {
    last: Option<u64>,
    distance: u64,
    /// The number of equal distances in a row.
    repeats: u32,
    /// The number of reads after the last one that were asked for.
    ahead: u64,
}

/// Ranges of equal length at equal distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NextStrides {
    pub(super) first: Range<u64>,
    pub(super) distance: u64,
    pub(super) count: u64,
}

impl NextStrides {
    /// The most bytes that one of the ranges fetches, in whole chunks.
    pub(super) fn chunk_bytes(&self) -> u64 {
        ((self.first.end - self.first.start).div_ceil(CHUNK_BYTES) + 1) * CHUNK_BYTES
    }

    /// The first `count` ranges, in order.
    pub(super) fn ranges(&self, count: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let Self { first, distance, .. } = self.clone();
        (0..count).map(move |index| {
            let by = index * distance;
            first.start + by..first.end + by
        })
    }
}

impl Strides {
    /// Notes a read that began a stream. Returns the reads that are expected next, if there are any.
    pub(super) fn observe(&mut self, range: &Range<u64>, size: u64) -> Option<NextStrides> {
        let distance = self.last.and_then(|last| range.start.checked_sub(last)).unwrap_or(0);
        self.last = Some(range.start);
        if distance == 0 || distance != self.distance {
            (self.distance, self.repeats, self.ahead) = (distance, 1, 0);
            return None;
        }
        self.repeats = self.repeats.saturating_add(1);
        self.ahead = self.ahead.saturating_sub(1);
        if self.repeats < TELLING_STRIDES {
            return None;
        }
        // No further than to the end of the file.
        let fitting = size.saturating_sub(range.end) / distance;
        let count = MOST_AHEAD.min(fitting).saturating_sub(self.ahead);
        if count == 0 {
            return None;
        }
        let by = (self.ahead + 1) * distance;
        Some(NextStrides { first: range.start + by..range.end + by, distance, count })
    }

    /// Notes that the next `count` reads were asked for.
    pub(super) fn asked(&mut self, count: u64) {
        self.ahead += count;
    }
}
