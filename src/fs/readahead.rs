//! Which bytes a sequential reader wants next. Pure: it is told of reads and answers with ranges.
//!
//! ```text
//! file      |···························································|
//! reads       [  ][  ][  ]
//!                        ^next       window
//!                        |------------------------|
//!                               ^prefetched        ^asked for now
//! ```
//!
//! One cursor per file. A read that goes on where the last one ended moves it and doubles its
//! window; a read elsewhere starts it anew without fetching anything, so random readers fetch
//! only what they ask for. The next window is asked for when half of the last one is used up.
//!
//! It deliberately has one cursor a file: several readers of one file at different places reset
//! each other, and then simply have no readahead.

use std::num::NonZeroUsize;
use std::ops::Range;

use lru::LruCache;

/// The first window: four chunks, about what a 20 ms round trip takes at 400 Mbit/s.
const FIRST_WINDOW_BYTES: u64 = 1024 * 1024;

/// The largest window: one transfer of fetch/. At 1 Gbit/s that is 64 ms, three usual round trips.
pub const MOST_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// How far a read may lie from the expected place and still go on with it. The kernel's own
/// readahead sends requests of up to 1 MiB on several threads, so they arrive out of order.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;

/// Files remembered at once. A training job has some tens of shards open; a cursor is 40 bytes.
const MOST_CURSORS: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

#[derive(Clone, Copy, Debug)]
struct Cursor {
    /// The end of the furthest read.
    next: u64,
    /// Everything before this was read or asked for.
    prefetched: u64,
    /// How far ahead of `next` to ask; 0 until two reads followed one another.
    window_bytes: u64,
}

/// The cursors of a mount, the least recently used one forgotten first.
#[derive(Debug)]
pub struct Readahead {
    cursors: LruCache<u32, Cursor>,
}

impl Default for Readahead {
    fn default() -> Self {
        Self { cursors: LruCache::new(MOST_CURSORS) }
    }
}

impl Readahead {
    /// Takes note of a read of `range` of a file of `size` bytes, and says what to fetch beyond
    /// it, if anything: never empty, never past the end, at most [`MOST_WINDOW_BYTES`].
    pub fn observe(&mut self, file: u32, range: Range<u64>, size: u64) -> Option<Range<u64>> {
        let fresh = Cursor { next: range.end, prefetched: range.end, window_bytes: 0 };
        let Some(cursor) = self.cursors.get_mut(&file) else {
            self.cursors.put(file, fresh);
            return None;
        };
        if range.start.abs_diff(cursor.next) > SLACK_BYTES {
            *cursor = fresh;
            return None;
        }
        if range.end <= cursor.next {
            return None;
        }
        cursor.next = range.end;
        cursor.prefetched = cursor.prefetched.max(range.end);
        if cursor.window_bytes > 0 && cursor.prefetched - cursor.next > cursor.window_bytes / 2 {
            return None;
        }
        let doubled = (cursor.window_bytes * 2).max(FIRST_WINDOW_BYTES);
        cursor.window_bytes = doubled.min(MOST_WINDOW_BYTES);
        let end = cursor.next.saturating_add(cursor.window_bytes).min(size);
        let ahead = cursor.prefetched..end;
        cursor.prefetched = cursor.prefetched.max(end);
        (!ahead.is_empty()).then_some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn a_single_read_fetches_nothing_beyond_itself() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.observe(1, 0..128 * KIB, u64::MAX), None);
        assert_eq!(readahead.observe(2, 0..128 * KIB, u64::MAX), None);
    }

    #[test]
    fn random_reads_fetch_nothing_beyond_themselves() {
        let mut readahead = Readahead::default();
        for start in [900_000, 7, 300_000, 100_000, 600_000].map(|page| page * 4 * KIB) {
            assert_eq!(readahead.observe(1, start..start + 4 * KIB, u64::MAX), None);
        }
    }

    #[test]
    fn reading_the_same_place_again_fetches_nothing() {
        let mut readahead = Readahead::default();
        readahead.observe(1, 0..4 * KIB, u64::MAX);
        assert_eq!(readahead.observe(1, 0..4 * KIB, u64::MAX), None);
    }

    #[test]
    fn the_window_of_a_sequential_reader_doubles_up_to_its_limit() {
        let mut readahead = Readahead::default();
        let mut widths = Vec::new();
        for read in 0..1000 {
            let start = read * 128 * KIB;
            if readahead.observe(1, start..start + 128 * KIB, u64::MAX).is_some() {
                widths.push(readahead.cursors.peek(&1).unwrap().window_bytes);
            }
        }
        assert_eq!(widths[..4], [1, 2, 4, 8].map(|mebibytes| mebibytes * 1024 * KIB));
        assert!(widths[4..].iter().all(|&window| window == MOST_WINDOW_BYTES));
    }

    #[test]
    fn requests_of_one_reader_may_arrive_out_of_order() {
        let mut readahead = Readahead::default();
        readahead.observe(1, 0..128 * KIB, u64::MAX);
        let ahead = readahead.observe(1, 256 * KIB..384 * KIB, u64::MAX).unwrap();
        assert_eq!(ahead.start, 384 * KIB);
        assert_eq!(readahead.observe(1, 128 * KIB..256 * KIB, u64::MAX), None);
        assert!(readahead.observe(1, 384 * KIB..1408 * KIB, u64::MAX).is_some());
    }

    #[test]
    fn the_number_of_cursors_is_bounded() {
        let mut readahead = Readahead::default();
        for file in 0..10_000 {
            readahead.observe(file, 0..1, 10);
        }
        assert_eq!(readahead.cursors.len(), MOST_CURSORS.get());
    }

    proptest! {
        #[test]
        fn ranges_lie_behind_the_read_within_the_file_and_never_overlap(
            size in 1..64 * 1024 * KIB,
            reads in prop::collection::vec((0..1u64 << 26, 1..1024 * KIB), 1..64),
        ) {
            let mut readahead = Readahead::default();
            for (start, bytes) in reads {
                let start = start % size;
                let range = start..(start + bytes).min(size);
                if let Some(ahead) = readahead.observe(1, range.clone(), size) {
                    prop_assert!(!ahead.is_empty() && ahead.end <= size);
                    prop_assert!(ahead.start >= range.end);
                    prop_assert!(ahead.end - ahead.start <= MOST_WINDOW_BYTES);
                }
            }
        }

        #[test]
        fn a_sequential_reader_is_told_every_byte_after_its_second_read_once(
            size in 1..64 * 1024 * KIB,
            step in 1..1024 * KIB,
        ) {
            let mut readahead = Readahead::default();
            let mut told = 0;
            let mut at = 0;
            while at < size {
                let end = (at + step).min(size);
                if let Some(ahead) = readahead.observe(1, at..end, size) {
                    prop_assert!(ahead.start == told.max(end));
                    told = ahead.end;
                }
                at = end;
            }
            prop_assert!(told == size || size <= 2 * step);
        }
    }
}
