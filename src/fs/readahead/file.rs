//! The streams through one file, and the guess that follows from each read.
//!
//! A file has up to [`MOST_CURSORS`] cursors, one for each stream. Process and file handle play no
//! part: the kernel's readahead names neither. A read near the end of a stream moves that cursor. Any
//! other read begins a cursor, which replaces the least recently used one when there are too many. So
//! streams do not disturb each other, and a seek does not end a stream.

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

/// The most streams of one file: twice the data-loader workers of a usual machine. A cursor has some
/// 150 bytes, and a search through all of them takes tens of nanoseconds.
pub(super) const MOST_CURSORS: usize = 32;

/// The bytes to fetch below a first read where streams usually go backward. They are enough for the
/// second read, which shows the direction, to find its bytes in the cache.
const FIRST_BACKWARD_BYTES: u64 = 2 * CHUNK_BYTES;

/// The reads of one file so far.
#[derive(Debug, Default)]
pub(super) struct FileReads {
    pub(super) cursors: Vec<Cursor>,
    reads: u64,
    strides: Strides,
    runs: RunTable,
    pub(super) unread: Unread,
}

impl FileReads {
    /// Notes a read, and returns the bytes to fetch beyond it.
    pub(super) fn observe(&mut self, range: &Range<u64>, situation: &Situation) -> Observed {
        self.reads += 1;
        match self.cursor_at(range, situation.size) {
            Some(index) => self.go_on(index, range, situation),
            None => self.begin(range, situation),
        }
    }

    /// Handles a read that belongs to a known stream.
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
        // Two reads in the wrong order look like a turn. Where streams rarely go backward, the guess
        // waits for the next read, which shows the direction.
        let is_doubtful = has_turned && !self.is_backward_usual(self.cursors[index].start);
        let guess =
            (is_due && !is_doubtful).then(|| self.window(index, range, situation)).flatten();
        // The last step, because it changes the indexes of cursors.
        self.absorb(index, &passed, size);
        Observed { guess, run }
    }

    /// Handles a read that begins a stream.
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
            // Strides predict the exact ranges of the next reads. The bytes after this read are not
            // among them.
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

    /// Guesses the next reads at equal distances.
    fn stride(&mut self, next: &NextStrides, situation: &Situation) -> Option<Guess> {
        let each_bytes = next.chunk_bytes();
        let granted = situation.grant(Predictor::Stride, Wanted::some(next.count * each_bytes));
        let count = granted / each_bytes;
        self.strides.asked(count);
        let ranges: Vec<_> = next.ranges(count).collect();
        Some(Guess { predictor: Predictor::Stride, ranges, granted })
    }

    /// Guesses the window ahead of a stream.
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

    /// The furthest end of a window, as the stream counts: the end of the file, or a single read in
    /// the way of a backward stream. Copies of blocks end at such a read ([`Self::absorb`]).
    fn stop(&self, index: usize, size: u64) -> u64 {
        let stream = &self.cursors[index];
        if !stream.is_backward {
            return size;
        }
        let single = self.cursors.iter().filter(|it| it.reads == 1 && !it.is_backward);
        let ahead = single.filter(|it| size.saturating_sub(it.next) >= stream.next);
        ahead.map(|it| size - (it.next - it.run_bytes)).min().unwrap_or(size)
    }

    /// Guesses the last bytes of a block whose first bytes were read. A copy from the block's end
    /// reads them first.
    fn block(&mut self, index: usize, touch: &Range<u64>, situation: &Situation) -> Option<Guess> {
        let start = self.cursors[index].start;
        let (expected, _) = self.expect(start, None, 0, true, situation)?;
        let end = touch.end.saturating_add(expected.bytes).min(situation.size);
        let wanted = end.saturating_sub(touch.end).min(MOST_WINDOW_BYTES);
        let block = end - situation.grant(Predictor::Block, Wanted::some(wanted))..end;
        self.cursors[index].announced = (!block.is_empty()).then(|| block.clone());
        Guess::downward(Predictor::Block, block, &(end..end))
    }

    /// The block that [`Self::block`] guessed after an earlier read, if this read begins to copy it.
    fn announced(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let announced =
            self.cursors.iter().filter(|it| it.reads == 1).filter_map(|it| it.announced.as_ref());
        let is_near = |block: &&Range<u64>| range.end.abs_diff(block.end) <= 2 * TOLERANCE_BYTES;
        let mut near = announced.filter(is_near);
        near.next().cloned()
    }

    /// The expected length of a stream, and the predictor that expects it.
    fn expected(&self, cursor: &Cursor, situation: &Situation) -> (Option<Expected>, Predictor) {
        let (own, bytes) = (Some(&cursor.run), cursor.run_bytes);
        match self.expect(cursor.start, own, bytes, cursor.is_backward, situation) {
            Some((expected, predictor)) => (Some(expected), predictor),
            None => (None, Predictor::Stream),
        }
    }

    /// The expected length by the file's own streams of this kind, or by the mount's if the file had
    /// none.
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

    /// The cursor that a read belongs to: the nearest one in reach. Of two that are equally near, the
    /// one with the longer run.
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

    /// Forgets the single reads that a stream has passed: they belong to the stream.
    ///
    /// A loader that copies a block from its end down has touched the block's first bytes before. The
    /// kernel keeps the pages around them and does not read them again. So the backward stream ends
    /// where that first read ends.
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
