//! Sets of half-open ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64` positions kept as disjoint, non-adjacent, non-empty half-open ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds every position of `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut merged = range;
        if let Some((&start, &end)) = self.0.range(..=merged.start).next_back()
            && end >= merged.start
        {
            merged = start..end.max(merged.end);
        }
        while let Some((&start, &end)) = self.0.range(merged.start..=merged.end).next() {
            merged.end = merged.end.max(end);
            self.0.remove(&start);
        }
        self.0.insert(merged.start, merged.end);
    }

    /// The end of the run of positions that starts at `position`; `position` itself where the set
    /// lacks it.
    pub fn run_end(&self, position: u64) -> u64 {
        match self.0.range(..=position).next_back() {
            Some((_, &end)) if end > position => end,
            _ => position,
        }
    }

    /// Whether every position of `range` is in the set.
    pub fn covers(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.run_end(range.start) >= range.end
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// The number of positions in the set.
    pub fn total(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }
}
