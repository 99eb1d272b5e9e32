//! The bytes of a file that were fetched and that no reader has read so far.
//!
//! ```text
//! read        |####|                 |####|
//! came with  |=|    |=|             |=|                   (the chunks that reads touch)
//! guessed            |-------------|      |------------|
//! ```
//!
//! A read removes the ranges that it covers. The removed ranges show which guesses were right.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ledger::Predictor;

/// The most ranges of one file, some 50 KiB. A random read leaves two ranges. A forgotten range counts
/// as unread for ever.
const MOST_RANGES: usize = 1024;

/// The reason why bytes were fetched before a reader read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// They share a chunk with bytes that a reader asked for.
    Chunk,
    /// A predictor guessed all of them.
    Guess(Predictor),
    /// A predictor guessed a part of a chunk, and a chunk is fetched as a whole. The guess is right
    /// when any byte of the range is read.
    Part(Predictor),
}

/// The part of a range that a read has removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) cause: Cause,
    /// The number of bytes that were read.
    pub(super) read_bytes: u64,
    /// The number of bytes that count as guessed right.
    pub(super) right_bytes: u64,
}

/// Ranges that do not overlap: start -> (end, cause).
#[derive(Debug, Default)]
pub(super) struct Unread(BTreeMap<u64, (u64, Cause)>);

impl Unread {
    /// Adds bytes that are being fetched.
    pub(super) fn insert(&mut self, mut range: Range<u64>, cause: Cause) {
        if range.is_empty() {
            return;
        }
        // A known range is fetched again only after its eviction: the first fetch stays unread for ever.
        self.take(&range).for_each(drop);
        // Neighbours become one range. Parts of chunks do not: each of them is right by itself.
        let joins = |other: Cause| other == cause && !matches!(cause, Cause::Part(_));
        if let Some((&start, &(end, before))) = self.0.range(..range.start).next_back()
            && end == range.start
            && joins(before)
        {
            range.start = start;
        }
        if let Some(&(end, behind)) = self.0.get(&range.end)
            && joins(behind)
        {
            self.0.remove(&range.end);
            range.end = end;
        }
        self.0.insert(range.start, (range.end, cause));
        if self.0.len() > MOST_RANGES {
            self.0.pop_first();
        }
    }

    /// Removes `range`, and returns the removed parts.
    pub(super) fn take(&mut self, range: &Range<u64>) -> impl Iterator<Item = Taken> {
        let mut taken = Vec::new();
        if range.is_empty() {
            return taken.into_iter();
        }
        while let Some((&start, &(end, cause))) = self.0.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.0.remove(&start);
            let part = start.max(range.start)..end.min(range.end);
            let rest = if let Cause::Part(_) = cause { Cause::Chunk } else { cause };
            if part.end < end {
                self.0.insert(part.end, (end, rest));
            }
            if start < part.start {
                self.0.insert(start, (part.start, rest));
            }
            let read_bytes = part.end - part.start;
            let right_bytes = if rest == cause { read_bytes } else { end - start };
            taken.push(Taken { cause, read_bytes, right_bytes });
            if start <= range.start {
                break;
            }
        }
        taken.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_range() -> impl Strategy<Value = Range<u64>> {
        (0..200u64, 0..60u64).prop_map(|(start, length)| start..start + length)
    }

    proptest! {
        /// Compares with an array that has a cause for each byte.
        #[test]
        fn every_byte_is_taken_once_with_its_cause(
            steps in prop::collection::vec((any_range(), any::<bool>(), any::<bool>()), 1..80),
        ) {
            let (mut unread, mut model) = (Unread::default(), vec![None; 300]);
            for (range, is_read, is_chunk) in steps {
                let bytes = range.start as usize..range.end as usize;
                if is_read {
                    let mut taken = [0u64; 2];
                    for Taken { cause, read_bytes, right_bytes } in unread.take(&range) {
                        prop_assert_eq!(read_bytes, right_bytes);
                        taken[usize::from(cause == Cause::Chunk)] += read_bytes;
                    }
                    let count = |cause| {
                        model[bytes.clone()].iter().filter(|&&it| it == Some(cause)).count() as u64
                    };
                    let guess = Cause::Guess(Predictor::Run);
                    prop_assert_eq!(taken, [count(guess), count(Cause::Chunk)]);
                    model[bytes].fill(None);
                } else {
                    let cause = if is_chunk { Cause::Chunk } else { Cause::Guess(Predictor::Run) };
                    unread.insert(range, cause);
                    model[bytes].fill(Some(cause));
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_chunk_is_right_as_a_whole() {
        let mut unread = Unread::default();
        let cause = Cause::Part(Predictor::Stride);
        unread.insert(100..200, cause);
        unread.insert(200..300, cause);
        let taken: Vec<_> = unread.take(&(150..160)).collect();
        assert_eq!(taken, [Taken { cause, read_bytes: 10, right_bytes: 100 }]);
        let taken: Vec<_> = unread.take(&(0..300)).collect();
        let chunk = |bytes| Taken { cause: Cause::Chunk, read_bytes: bytes, right_bytes: bytes };
        assert_eq!(taken[1..], [chunk(40), chunk(50)]);
        assert_eq!(taken[0].right_bytes, 100, "its neighbour is right by itself");
    }

    #[test]
    fn the_number_of_ranges_is_bounded() {
        let mut unread = Unread::default();
        (0..10_000).for_each(|index| unread.insert(index * 10..index * 10 + 5, Cause::Chunk));
        assert_eq!(unread.0.len(), MOST_RANGES);
    }
}
