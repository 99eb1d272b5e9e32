//! Reads at equal distances: every hundredth row of a table, one tensor of each layer of a model.

use std::ops::Range;

use crate::layer::layout::CHUNK_BYTES;

/// Equal distances in a row after which the next ones are expected.
const TELLING_STRIDES: u32 = 2;
/// How many reads are asked for ahead at most: as many as a host answers side by side.
const MOST_AHEAD: u64 = 8;

/// Reads that began streams, as far as they lie at equal distances.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Strides {
    last: Option<u64>,
    distance: u64,
    /// How many distances in a row were equal.
    repeats: u32,
    /// How many reads ahead of the last one were asked for.
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
    /// The bytes that one of them fetches at most: whole chunks.
    pub(super) fn chunk_bytes(&self) -> u64 {
        ((self.first.end - self.first.start).div_ceil(CHUNK_BYTES) + 1) * CHUNK_BYTES
    }

    /// The first `count` of them, in order.
    pub(super) fn ranges(&self, count: u64) -> impl Iterator<Item = Range<u64>> + use<> {
        let Self { first, distance, .. } = self.clone();
        (0..count).map(move |index| {
            let by = index * distance;
            first.start + by..first.end + by
        })
    }
}

impl Strides {
    /// Takes note of a read that began a stream, and says which reads are to come.
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
        // As many as end before the end of the file.
        let fitting = size.saturating_sub(range.end) / distance;
        let count = MOST_AHEAD.min(fitting).saturating_sub(self.ahead);
        if count == 0 {
            return None;
        }
        let by = (self.ahead + 1) * distance;
        Some(NextStrides { first: range.start + by..range.end + by, distance, count })
    }

    /// The next `count` reads are asked for.
    pub(super) fn asked(&mut self, count: u64) {
        self.ahead += count;
    }
}
