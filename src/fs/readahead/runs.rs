//! Expected lengths of streams, learnt from earlier streams.
//!
//! A stream from the head of a file often reads a header only; a stream from elsewhere reads a record
//! or a tensor. So a table keeps runs by kind of [`Start`]. Each file has a table. The mount has one
//! too, for files without runs of their own.
//!
//! A run that has ended shows an end. A run that goes on shows only a least length. The estimate of
//! Kaplan and Meier uses both: of the streams as long as this one, it tells the part that goes on to
//! a certain length. A stream is expected to run to the length at which one in four will have ended:
//!
//! ```text
//! streams that go on
//! 1    |------.
//! 3/4  |------|--- . - - - - - - - -
//!      |      '----|---.
//!      |               '------       bytes from the start
//!         ^ this stream
//!                  ^ expected
//! ```
//!
//! The clock is the number of the mount's reads, so that a program may pause for any time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::layer::layout::CHUNK_BYTES;

/// The runs kept of each kind. With eight, one odd stream changes little, and all are soon replaced
/// when a program begins to read in another way.
const MOST_RUNS: usize = 8;
/// The last starts of each kind that count for "a second read followed".
const MOST_STARTS: u32 = 8;

/// The largest difference between runs that count as equally long. The kernel reads up to a chunk
/// around a touched page. So a run may begin before and end after the program's own reads.
pub(super) const TOLERANCE_BYTES: u64 = CHUNK_BYTES;

/// A run has ended after this many of its usual pauses plus this many reads of the mount. A stream
/// that is read in turns with others pauses for as many reads as there are others.
const ENDED_PAUSES: u64 = 4;
const ENDED_READS: u64 = 8;

/// The place in a file where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// In the first chunk.
    Head,
    /// Anywhere else.
    Inside,
}

impl Start {
    pub(super) fn of(read: &Range<u64>) -> Self {
        if read.start < CHUNK_BYTES { Self::Head } else { Self::Inside }
    }
}

/// The part of a stream's state that the tables share.
#[derive(Debug, Default)]
pub(super) struct Run {
    bytes: AtomicU64,
    last_read: AtomicU64,
    /// The reads of the mount from one read of the stream to the next: a running mean, in sixteenths.
    pause: AtomicU64,
    is_backward: AtomicBool,
    is_closed: AtomicBool,
    is_cut_short: AtomicBool,
}

impl Run {
    /// A stream whose first read is the mount's read number `now`.
    pub(super) fn begin(now: u64) -> Arc<Self> {
        let run = Self::default();
        run.last_read.store(now, Ordering::Relaxed);
        Arc::new(run)
    }

    /// Notes the stream's new length at the mount's read number `now`.
    pub(super) fn note(&self, bytes: u64, now: u64) {
        let pause = now.saturating_sub(self.last_read.swap(now, Ordering::Relaxed)) * 16;
        let mean = self.pause.load(Ordering::Relaxed);
        self.pause.store(mean.max(16) / 4 * 3 + pause / 4, Ordering::Relaxed);
        self.bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    /// The number of streams that are read in turns with this one, including it; in sixteenths.
    pub(super) fn streams(&self) -> u64 {
        self.pause.load(Ordering::Relaxed).max(16)
    }

    /// Sets the stream's direction.
    pub(super) fn turn(&self, is_backward: bool) {
        self.is_backward.store(is_backward, Ordering::Relaxed);
    }

    /// Sets whether the stream has come to an earlier single read, where it ends.
    pub(super) fn close(&self, is_closed: bool) {
        self.is_closed.store(is_closed, Ordering::Relaxed);
    }

    /// Notes that the stream has come to the end of its file. In a longer file it might have gone on.
    pub(super) fn cut_short(&self) {
        self.is_cut_short.store(true, Ordering::Relaxed);
    }

    /// `true` if the stream has ended, and not because its file ended.
    fn has_ended(&self, now: u64) -> bool {
        if self.is_cut_short.load(Ordering::Relaxed) {
            return false;
        }
        let idle = now.saturating_sub(self.last_read.load(Ordering::Relaxed));
        let pause = self.pause.load(Ordering::Relaxed).div_ceil(16);
        self.is_closed.load(Ordering::Relaxed) || idle > ENDED_READS + ENDED_PAUSES * pause
    }
}

/// The streams of one kind of start.
#[derive(Debug, Default)]
struct Kind {
    /// The last streams that had a second read; the newest is at the end.
    runs: VecDeque<Arc<Run>>,
    /// A bit for each of the last starts; the newest is the lowest bit. 1: a second read followed.
    went_on: u64,
    starts: u64,
}

/// The earlier streams of a file or of a mount.
#[derive(Debug, Default)]
pub(super) struct RunTable {
    kinds: [Kind; 2],
}

/// The expected length of a stream, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// The length that two others had, if none was shorter; else 0.
    pub(super) certain_bytes: u64,
    /// The length that three streams in four reach.
    pub(super) bytes: u64,
    /// `true` if streams were seen to end there; `false` if the length is only the longest known one.
    pub(super) is_end: bool,
}

/// The expected direction of a stream of a single read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    /// Forward: most starts had a second read.
    Forward,
    /// Backward.
    Backward,
    /// Backward, to end at an earlier single read. This first read may be that single read.
    Closed,
    /// No second read is expected.
    Unknown,
}

impl RunTable {
    /// Adds the start of a stream; returns the number that identifies the stream.
    pub(super) fn begin(&mut self, start: Start) -> u64 {
        let kind = &mut self.kinds[start as usize];
        kind.went_on <<= 1;
        kind.starts += 1;
        kind.starts
    }

    /// Notes the second read of the stream with this number.
    pub(super) fn go_on(&mut self, start: Start, number: u64, run: &Arc<Run>) {
        let kind = &mut self.kinds[start as usize];
        let age = kind.starts.saturating_sub(number);
        kind.went_on |= 1u64.checked_shl(age as u32).unwrap_or(0);
        if kind.runs.len() == MOST_RUNS {
            kind.runs.pop_front();
        }
        kind.runs.push_back(run.clone());
    }

    /// `true` if the table has a run of this kind other than `own`.
    pub(super) fn has_others(&self, start: Start, own: Option<&Arc<Run>>) -> bool {
        self.others(start, own).next().is_some()
    }

    fn others<'a>(
        &'a self,
        start: Start,
        own: Option<&'a Arc<Run>>,
    ) -> impl Iterator<Item = &'a Arc<Run>> {
        let runs = self.kinds[start as usize].runs.iter();
        runs.filter(move |run| own.is_none_or(|own| !Arc::ptr_eq(own, run)))
    }

    /// The expected direction of a stream that had one read, and that was added last.
    pub(super) fn begins(&self, start: Start) -> Begins {
        let kind = &self.kinds[start as usize];
        let count = |is: fn(&Run) -> bool| kind.runs.iter().filter(|run| is(run)).count();
        let is_most = |count: usize| count * 2 > kind.runs.len();
        let backward = count(|run| run.is_backward.load(Ordering::Relaxed));
        if is_most(backward) {
            let closed = count(|run| run.is_closed.load(Ordering::Relaxed));
            return if is_most(closed) { Begins::Closed } else { Begins::Backward };
        }
        // Leaves out the lowest bit, which belongs to this start.
        let known = kind.starts.saturating_sub(1).min(u64::from(MOST_STARTS)) as u32;
        let went_on = (kind.went_on >> 1 & ((1 << MOST_STARTS) - 1)).count_ones();
        if known > 0 && went_on * 4 >= known * 3 { Begins::Forward } else { Begins::Unknown }
    }

    /// The expected length of a stream that has run `bytes`; `None` if no other stream ran as far.
    /// `own` is the stream's own run.
    pub(super) fn expect(
        &self,
        start: Start,
        own: Option<&Arc<Run>>,
        bytes: u64,
        is_backward: bool,
        now: u64,
    ) -> Option<Expected> {
        let others = self.others(start, own);
        let alike = others.filter(|run| run.is_backward.load(Ordering::Relaxed) == is_backward);
        let lengths = alike.map(|run| (run.bytes.load(Ordering::Relaxed), run.has_ended(now)));
        let mut lengths: Vec<_> =
            lengths.filter(|(length, _)| length + TOLERANCE_BYTES >= bytes).collect();
        lengths.sort_unstable();
        expected(&lengths)
    }
}

/// The length at which one stream in four has ended. `lengths` has each stream's length and whether
/// the stream has ended, in the order of lengths.
fn expected(lengths: &[(u64, bool)]) -> Option<Expected> {
    let last = lengths.last()?.0;
    let certain_bytes = match lengths {
        [(first, _), (second, _), ..] if second - first <= TOLERANCE_BYTES => *first,
        _ => 0,
    };
    let mut going_on = 1.0;
    for (index, &(bytes, has_ended)) in lengths.iter().enumerate() {
        let others = (lengths.len() - index - 1) as f64;
        if has_ended {
            going_on *= others / (others + 1.0);
        }
        if going_on < 0.75 {
            return Some(Expected { certain_bytes, bytes, is_end: true });
        }
    }
    Some(Expected { certain_bytes, bytes: last, is_end: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn ended(bytes: u64) -> (u64, bool) {
        (bytes, true)
    }

    #[test]
    fn a_stream_runs_to_where_one_in_four_ends() {
        let end = |bytes| Some((bytes, true));
        let expect = |lengths: &[(u64, bool)]| expected(lengths).map(|it| (it.bytes, it.is_end));
        assert_eq!(expect(&[]), None);
        assert_eq!(expect(&[ended(8)]), end(8));
        assert_eq!(expect(&[ended(8), ended(40)]), end(8));
        assert_eq!(expect(&[8, 10, 12, 14].map(ended)), end(10));
        assert_eq!(expect(&[1, 2, 3, 4, 5, 6, 7, 8].map(ended)), end(3));
        // A stream that goes on shows a least length.
        let at_least = |bytes| Some((bytes, false));
        assert_eq!(expect(&[(8, false)]), at_least(8));
        assert_eq!(expect(&[(4, false), (8, false)]), at_least(8));
        assert_eq!(expect(&[(4, false), (8, true)]), end(8));
    }

    #[test]
    fn a_length_is_certain_when_two_streams_had_it() {
        let certain = |lengths: &[(u64, bool)]| expected(lengths).unwrap().certain_bytes;
        assert_eq!(certain(&[ended(8 * MIB)]), 0);
        assert_eq!(certain(&[ended(8 * MIB), ended(9 * MIB)]), 0);
        assert_eq!(certain(&[ended(8 * MIB), ended(8 * MIB + TOLERANCE_BYTES)]), 8 * MIB);
    }

    /// Runs a stream of `bytes`. `now` counts the reads of the mount.
    fn run(table: &mut RunTable, start: Start, bytes: u64, now: &mut u64) {
        let number = table.begin(start);
        let run = Run::begin(*now);
        for at in 1..=bytes / (128 * 1024) {
            *now += 1;
            run.note(at * 128 * 1024, *now);
            if at == 2 {
                table.go_on(start, number, &run);
            }
        }
    }

    #[test]
    fn streams_from_the_head_and_from_inside_have_lengths_of_their_own() {
        let (mut table, mut now) = (RunTable::default(), 0);
        for _ in 0..4 {
            run(&mut table, Start::Head, MIB / 4, &mut now);
            run(&mut table, Start::Inside, 8 * MIB, &mut now);
        }
        now += 100;
        let expect = |start, bytes| table.expect(start, None, bytes, false, now);
        let end = |bytes| Some(Expected { certain_bytes: bytes, bytes, is_end: true });
        assert_eq!(expect(Start::Head, MIB / 8), end(MIB / 4));
        assert_eq!(expect(Start::Inside, MIB / 8), end(8 * MIB));
        assert_eq!(expect(Start::Head, MIB), None, "none of them ran as far");
        assert_eq!(expect(Start::Inside, 9 * MIB), None);
    }

    #[test]
    fn a_run_ends_when_it_pauses_much_longer_than_usual() {
        let run = Run::begin(0);
        (1..100).for_each(|read| run.note(read, read * 16));
        assert!(!run.has_ended(99 * 16 + 48));
        assert!(run.has_ended(99 * 16 + 100));
        let alone = Run::begin(0);
        (1..100).for_each(|read| alone.note(read, read));
        assert!(alone.has_ended(99 + 13));
    }

    #[test]
    fn a_first_read_begins_a_stream_where_most_first_reads_did() {
        let (mut table, mut now) = (RunTable::default(), 0);
        table.begin(Start::Inside);
        assert_eq!(table.begins(Start::Inside), Begins::Unknown, "it is the first");
        for _ in 0..8 {
            run(&mut table, Start::Inside, MIB, &mut now);
        }
        table.begin(Start::Inside);
        assert_eq!(table.begins(Start::Inside), Begins::Forward);
        assert_eq!(table.begins(Start::Head), Begins::Unknown);
        (0..3).for_each(|_| _ = table.begin(Start::Inside));
        assert_eq!(table.begins(Start::Inside), Begins::Unknown, "three were single reads");
    }
}
