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

    /// The parts of `range` that are in the set, in order.
    pub fn intersections(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let first =
            self.0.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        let runs = self.0.range(first..range.end.max(first));
        let parts = runs.map(move |(&start, &end)| start.max(range.start)..end.min(range.end));
        parts.filter(|part| !part.is_empty())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn intersections_are_the_positions_that_both_have(
            ranges in prop::collection::vec((0..100u64, 0..20u64), 0..12), start in 0..110u64,
            length in 0..60u64,
        ) {
            let mut set = RangeSet::new();
            ranges.iter().for_each(|&(start, length)| set.insert(start..start + length));
            let has = |at| ranges.iter().any(|&(start, length)| (start..start + length).contains(&at));
            let expected: Vec<u64> = (start..start + length).filter(|&at| has(at)).collect();
            let parts: Vec<_> = set.intersections(start..start + length).collect();
            prop_assert!(parts.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>(), expected);
        }
    }
}
