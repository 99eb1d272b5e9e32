//! The streams through one file, and what each read of it lets guess.
//!
//! A file has up to [`MOST_CURSORS`] cursors, one for each stream, from whichever process or handle
//! the stream comes: the kernel's own readahead names neither. A read near the place where a cursor
//! stands moves that cursor; any other read begins one, in the place of the cursor that was used
//! least recently. So streams do not disturb each other, and neither does a seek.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use super::cursor::{Cursor, MOST_WINDOW_BYTES, Numbers};
use super::ledger::Predictor;
use super::runs::{Begins, Expected, Run, RunTable, Start, TOLERANCE_BYTES};
use super::strides::{NextStrides, Strides};
use super::unread::Unread;
use super::{Guess, Observed, Situation, Wanted};
use crate::layer::layout::CHUNK_BYTES;

/// Streams recognised in one file. 32: twice the data-loader workers of a usual machine. A cursor
/// has some 150 bytes, and looking through all of them takes tens of nanoseconds.
pub(super) const MOST_CURSORS: usize = 32;

/// The bytes below a first read that are asked for where streams go backward: enough for the
/// second read, which tells, to come without waiting.
const FIRST_BACKWARD_BYTES: u64 = 2 * CHUNK_BYTES;

/// What is known of one file.
#[derive(Debug, Default)]
pub(super) struct FileReads {
    pub(super) cursors: Vec<Cursor>,
    reads: u64,
    strides: Strides,
    runs: RunTable,
    pub(super) unread: Unread,
}

impl FileReads {
    /// Takes note of a read, and says what to fetch beyond it.
    pub(super) fn observe(&mut self, range: &Range<u64>, situation: &Situation) -> Observed {
        self.reads += 1;
        match self.cursor_at(range, situation.size) {
            Some(index) => self.go_on(index, range, situation),
            None => self.begin(range, situation),
        }
    }

    /// A read that belongs to a known stream.
    fn go_on(&mut self, index: usize, range: &Range<u64>, situation: &Situation) -> Observed {
        let size = situation.size;
        let cursor = &mut self.cursors[index];
        cursor.used = self.reads;
        cursor.reads += 1;
        if cursor.reads == 2 {
            let mut habits = situation.habits.lock();
            let Numbers { of_file, of_mount } = cursor.numbers;
            for (table, number) in [(&mut self.runs, of_file), (&mut *habits, of_mount)] {
                table.go_on(cursor.start, number, &cursor.run);
            }
        }
        let has_turned = cursor.turn(range, size);
        let own = cursor.own(range, size);
        let Some(passed) = cursor.advance(own.end, situation) else {
            return Observed::default();
        };
        let run = cursor.run();
        let is_due = cursor.is_due();
        // Reads that came in the wrong order look like a turn. The next read tells, unless streams
        // usually go backward.
        let is_doubtful = has_turned && !self.is_backward_usual(self.cursors[index].start);
        let guess =
            (is_due && !is_doubtful).then(|| self.window(index, range, situation)).flatten();
        // Last: it changes the places of cursors.
        self.absorb(index, &passed, size);
        Observed { guess, run }
    }

    /// A read that begins a stream.
    fn begin(&mut self, range: &Range<u64>, situation: &Situation) -> Observed {
        let size = situation.size;
        let start = Start::of(range);
        let (begins, numbers) = {
            let mut habits = situation.habits.lock();
            let (of_file, of_mount) = (self.runs.begin(start), habits.begin(start));
            let is_known = self.runs.has_others(start, None);
            let begins = if is_known { self.runs.begins(start) } else { habits.begins(start) };
            (begins, Numbers { of_file, of_mount })
        };
        let announced = if begins == Begins::Closed { self.announced(range) } else { None };
        let run = Run::begin(situation.now);
        let mut cursor = Cursor::begin(range, start, numbers, run, self.reads);
        let next_strides = self.strides.observe(range, size);
        if let Some(block) = &announced {
            cursor.begin_backward(range, block, size);
        }
        let index = self.insert(cursor);
        let guess = match begins {
            // Strides say exactly what comes, and the bytes that follow here are not part of it.
            _ if next_strides.is_some() => {
                next_strides.and_then(|next| self.stride(&next, situation))
            }
            Begins::Closed if announced.is_some() => None,
            Begins::Closed => self.block(index, range, situation),
            Begins::Backward => {
                let granted = situation.grant(
                    Predictor::Backward,
                    Wanted::some(range.start.min(FIRST_BACKWARD_BYTES)),
                );
                Guess::downward(Predictor::Backward, range.start - granted..range.start, range)
            }
            Begins::Forward => self.window(index, range, situation),
            Begins::Unknown => None,
        };
        Observed { guess, run: self.cursors[index].run() }
    }

    /// The next reads at equal distances.
    fn stride(&mut self, next: &NextStrides, situation: &Situation) -> Option<Guess> {
        let each_bytes = next.chunk_bytes();
        let granted = situation.grant(Predictor::Stride, Wanted::some(next.count * each_bytes));
        let count = granted / each_bytes;
        self.strides.asked(count);
        let ranges: Vec<_> = next.ranges(count).collect();
        Some(Guess { predictor: Predictor::Stride, ranges, granted })
    }

    /// The window in front of a stream.
    fn window(&mut self, index: usize, read: &Range<u64>, situation: &Situation) -> Option<Guess> {
        let size = situation.size;
        let (expected, expecting) = self.expected(&self.cursors[index], situation);
        let stop = self.stop(index, size);
        let cursor = &mut self.cursors[index];
        cursor.asked = cursor.asked.max(cursor.next);
        let Some(wish) = cursor.wish(expected, stop, situation.rate) else {
            cursor.wait(CHUNK_BYTES);
            return None;
        };
        let wanted = wish.end - cursor.asked;
        if wanted < wish.least_bytes && wish.end < stop && !wish.is_expected {
            cursor.wait(wish.least_bytes - wanted);
            return None;
        }
        let predictor = if wish.is_expected { expecting } else { Predictor::Stream };
        let ahead = cursor.asked - cursor.next;
        let more = Wanted::more(wanted, ahead, cursor.run.streams(), situation.rate);
        let granted = situation.grant(predictor, Wanted { is_certain: wish.is_certain, ..more });
        let window = cursor.own(&(cursor.asked..cursor.asked + granted), size);
        cursor.ask(predictor, wanted, granted);
        cursor.wait(if granted == wanted { wish.least_bytes } else { CHUNK_BYTES });
        match cursor.is_backward {
            true => Guess::downward(predictor, window, read),
            false => Guess::upward(predictor, window),
        }
    }

    /// The end of the file, as the stream counts, or a read in the way of a backward stream: copies
    /// of blocks end at such a read ([`Self::absorb`]).
    fn stop(&self, index: usize, size: u64) -> u64 {
        let stream = &self.cursors[index];
        if !stream.is_backward {
            return size;
        }
        let single = self.cursors.iter().filter(|it| it.reads == 1 && !it.is_backward);
        let ahead = single.filter(|it| size.saturating_sub(it.next) >= stream.next);
        ahead.map(|it| size - (it.next - it.run_bytes)).min().unwrap_or(size)
    }

    /// The far end of the block whose first bytes were read: what a copy from its end reads first.
    fn block(&mut self, index: usize, touch: &Range<u64>, situation: &Situation) -> Option<Guess> {
        let start = self.cursors[index].start;
        let (expected, _) = self.expect(start, None, 0, true, situation)?;
        let end = touch.end.saturating_add(expected.bytes).min(situation.size);
        let wanted = end.saturating_sub(touch.end).min(MOST_WINDOW_BYTES);
        let block = end - situation.grant(Predictor::Block, Wanted::some(wanted))..end;
        self.cursors[index].announced = (!block.is_empty()).then(|| block.clone());
        Guess::downward(Predictor::Block, block, &(end..end))
    }

    /// The block that an earlier touch let expect, and that this read begins to copy.
    fn announced(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let announced =
            self.cursors.iter().filter(|it| it.reads == 1).filter_map(|it| it.announced.as_ref());
        let is_near = |block: &&Range<u64>| range.end.abs_diff(block.end) <= 2 * TOLERANCE_BYTES;
        let mut near = announced.filter(is_near);
        near.next().cloned()
    }

    /// How far streams like this one run, and who knows it.
    fn expected(&self, cursor: &Cursor, situation: &Situation) -> (Option<Expected>, Predictor) {
        let (own, bytes) = (Some(&cursor.run), cursor.run_bytes);
        match self.expect(cursor.start, own, bytes, cursor.is_backward, situation) {
            Some((expected, predictor)) => (Some(expected), predictor),
            None => (None, Predictor::Stream),
        }
    }

    /// From the file's own streams where there were any of this kind, else from those of the mount.
    fn expect(
        &self,
        start: Start,
        own: Option<&Arc<Run>>,
        bytes: u64,
        is_backward: bool,
        situation: &Situation,
    ) -> Option<(Expected, Predictor)> {
        let now = situation.now;
        if self.runs.has_others(start, own) {
            let expected = self.runs.expect(start, own, bytes, is_backward, now)?;
            return Some((expected, Predictor::Run));
        }
        let expected = situation.habits.lock().expect(start, own, bytes, is_backward, now)?;
        Some((expected, Predictor::Habit))
    }

    fn is_backward_usual(&self, start: Start) -> bool {
        matches!(self.runs.begins(start), Begins::Backward | Begins::Closed)
    }

    /// The cursor that a read goes on with: the nearest of those in reach that may go on, and of two
    /// that are equally near the one that has come further.
    fn cursor_at(&self, range: &Range<u64>, size: u64) -> Option<usize> {
        let in_reach = self.cursors.iter().enumerate().filter_map(|(index, cursor)| {
            let distance = cursor.distance(range, size)?;
            Some((distance, Reverse(cursor.run_bytes), index))
        });
        in_reach.min().map(|(.., index)| index)
    }

    fn insert(&mut self, cursor: Cursor) -> usize {
        if self.cursors.len() < MOST_CURSORS {
            self.cursors.push(cursor);
            return self.cursors.len() - 1;
        }
        let oldest = (0..MOST_CURSORS).min_by_key(|&index| self.cursors[index].used);
        let index = oldest.expect("there are cursors");
        self.cursors[index] = cursor;
        index
    }

    /// Forgets single reads in the way of a stream that has come by: they belong to the stream. A
    /// loader that copies a block from its end down has touched the block's first bytes before, and
    /// the pages around them are not read again: the stream ends where that read ends.
    fn absorb(&mut self, stream: usize, passed: &Range<u64>, size: u64) {
        let is_backward = self.cursors[stream].is_backward;
        let read = |it: &Cursor| it.own(&(it.next - it.run_bytes..it.next), size);
        let is_passed = |it: &Cursor| {
            let is_reached = |end| end > passed.start || is_backward && end == passed.start;
            it.reads == 1 && read(it).start < passed.end && is_reached(read(it).end)
        };
        if is_backward {
            let ends = self.cursors.iter().filter(|it| is_passed(it));
            let closed_at = ends.map(|it| size - read(it).start).max();
            let stream = &mut self.cursors[stream];
            stream.closed_at = stream.closed_at.max(closed_at);
            if closed_at.is_some() {
                stream.run.close(true);
            }
        }
        self.cursors.retain(|cursor| !is_passed(cursor));
    }
}
