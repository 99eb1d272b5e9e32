//! Which bytes the readers of a file want next. It is told of reads and answers with ranges, and does
//! no I/O.
//!
//! ```text
//! file      |···························································|
//! reads       [  ][  ][  ]                    [  ][  ]
//!              cursor 1  ^next      window     cursor 2 ^next
//!                        |------------------|
//!                               ^asked for before
//! ```
//!
//! A file has up to [`MOST_CURSORS`] cursors, one for each stream that reads through it, whichever
//! process or handle the stream comes from: the kernel's own readahead names neither. A read that
//! goes on where a cursor stands moves it; any other begins a cursor, in the place of the one that
//! was used least recently. So streams do not disturb each other, and neither does a seek.
//!
//! A stream may go backward: copies out of a mapped file do (glibc's memmove, where the target lies
//! behind the source). Such a cursor counts from the end of the file, and is a cursor like others.
//!
//! How far ahead to ask:
//! - A stream that nothing is known of: some MiB from its second read on, and in the long run a fifth
//!   of what it has read. A stream that stops has then fetched at most a fifth for nothing. On a
//!   fast line at least two requests, once it has run as far: what they cost is little time.
//! - A stream in a file whose earlier streams ran equally far (blocks of a mapped file in any
//!   order, tensors of one size): what is left to that length, from its first read on, and no
//!   more; once it runs further, as above.
//! - Reads at equal distances: those at the next few distances.
//! - A first read in a file whose streams usually go backward: two chunks below it.
//! - The same where such a stream usually ends at a read that came before its first one (memmove loads
//!   both ends of what it copies): what the stream that will end here reads first.
//! - The first stream of a file, where those of the files before it were all long: as much as the
//!   shortest of them. Shards are read alike.
//! - Anything else, random reads above all: nothing.
//!
//! Time is counted in reads of the file.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

/// Streams recognised in one file. 32: twice the data-loader workers of a usual machine; a cursor
/// is some 50 bytes, and looking through all of them takes tens of nanoseconds.
pub const MOST_CURSORS: usize = 32;
/// Files remembered at once. A training job has some tens of shards open.
const MOST_FILES: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// The largest window: half a second at 1 Gbit/s, so that a line with many round trips under way
/// and several requests at once does not run dry.
pub const MOST_WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// The window of a stream of two reads: eight chunks.
const FIRST_WINDOW_BYTES: u64 = 2 * 1024 * 1024;
/// The window until a fifth of the run is more: what 1 Gbit/s brings in 33 ms, a usual round trip
/// and the time to ask for more.
const USUAL_WINDOW_BYTES: u64 = 4 * 1024 * 1024;
/// What a request brings on a fast line, some 2 Gbit/s and more. There a stream that stops has cost as
/// little time with windows of two requests as with the usual one elsewhere; and a server pays for
/// each request (docker-registry some 8 ms of processor time).
const FAST_REQUEST_BYTES: u64 = 8 * 1024 * 1024;
/// What a window is of the bytes that its stream has read.
const RUN_SHARE: u64 = 5;
/// The most that is asked for on the first read of a stream, by what others did: as many requests,
/// a quarter of a second of the line, and not more than a fast one brings in that time.
const EXPECTED_REQUESTS: u64 = 8;
const MOST_EXPECTED_BYTES: u64 = 32 * 1024 * 1024;
/// The same of a stream that goes backward. What it reads first comes last.
const MOST_EXPECTED_BACKWARD_BYTES: u64 = 16 * 1024 * 1024;
/// How far equally long runs may differ. A fault of a mapped page brings the kernel's whole
/// readahead window around it, so a block's run begins and ends up to half of that outside of it.
const RUN_TOLERANCE_BYTES: u64 = 256 * 1024;
/// What is asked for below the first read of a stream where others of the file went backward: as
/// much as lets its second read, which tells, come without waiting. Four times as much gained
/// nothing.
const FIRST_BACKWARD_BYTES: u64 = 512 * 1024;
/// The least that is asked for at a time of a stream that goes backward.
const LEAST_PIECE_BYTES: u64 = 1024 * 1024;
/// Shorter runs than this say nothing: they may be single reads.
const TELLING_RUN_BYTES: u64 = 512 * 1024;
/// Windows end at multiples of this, so that requests are few and large.
const ALIGNMENT_BYTES: u64 = 1024 * 1024;

/// How far from the expected place a read may lie and still belong to a stream: the kernel's
/// readahead sends requests of up to 1 MiB on several threads, so they arrive out of order.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;
/// The same for a stream of a single read: a request of the kernel's readahead (`fuse::readahead`), or
/// two where it is 128 KiB.
const FIRST_SLACK_BYTES: u64 = 256 * 1024;

/// Reads of the file after which a cursor that was not used has ended. Streams that are read in
/// turns are each used more often.
const ENDED_READS: u64 = 64;
/// Ended streams that say how far one usually runs.
const TELLING_STREAMS: usize = 2;
/// The last files of which it is remembered how far they were read in one piece: one that is read
/// otherwise was expected to be like them once, and the next three are not.
const MOST_HABITS: usize = 4;

/// How often in a row a first read may ask for what a stream reads first that will end at it, and no
/// such stream comes: those were single reads.
const MOST_UNANSWERED: u32 = 2;

/// Reads within which a stream may still show which way it goes.
const YOUNG_READS: u64 = 3;

/// Equal distances in a row after which the next ones are expected.
const TELLING_STRIDES: u32 = 2;
/// How many distances ahead, and how many bytes of all of them, are asked for.
const MOST_STRIDES: u64 = 8;
const MOST_STRIDE_BYTES: u64 = 8 * 1024 * 1024;

/// What to fetch beyond a read: never empty ranges, never past the end of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// What follows in the read's own stream.
    pub window: Option<Range<u64>>,
    /// What a stream reads first, downward, that will end at this read.
    pub block: Option<Range<u64>>,
    /// Reads at equal distances.
    pub strides: Option<Strides>,
    /// What the read's own stream has read, holes included; empty for a read that says nothing
    /// new. Where it starts names the stream.
    pub run: Range<u64>,
}

/// Ranges of equal length at equal distances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strides {
    first: Range<u64>,
    distance: u64,
    count: u64,
}

impl Strides {
    /// The ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let Self { first, distance, count } = self.clone();
        (0..count).map(move |index| {
            let by = index * distance;
            first.start + by..first.end + by
        })
    }
}

/// The pieces of a window below a read that starts at `read_start`, in the order in which its
/// stream wants them, downward. The bytes of a piece come upward, so who reads down waits for all of
/// it: pieces are small near the reader, and grow with their distance.
pub(super) fn downward(
    window: Range<u64>,
    read_start: u64,
) -> impl Iterator<Item = Range<u64>> + use<> {
    let mut end = window.end;
    std::iter::from_fn(move || {
        let piece = (read_start.saturating_sub(end) / 2).max(LEAST_PIECE_BYTES);
        let start = window.start.max(end.saturating_sub(piece));
        let range = start..std::mem::replace(&mut end, start);
        (!range.is_empty()).then_some(range)
    })
}

/// One stream through a file. Offsets are counted from the end where it goes backward.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    is_backward: bool,
    /// The end of the furthest read.
    next: u64,
    /// Everything before this was read or asked for.
    asked: u64,
    /// The bytes it has come forward.
    run_bytes: u64,
    /// How many reads belong to it.
    reads: u64,
    /// When it was last used.
    used: u64,
    /// The far end of a read that came before its first one, as far as which it went backward. It
    /// ends there.
    closed_at: Option<u64>,
    /// Whether its first read had asked for what a stream reads first that will end at it.
    announces: bool,
}

/// Reads that began streams, as far as they lie at equal distances.
#[derive(Clone, Copy, Debug, Default)]
struct Pattern {
    last: Option<u64>,
    distance: u64,
    /// How many distances in a row were equal.
    repeats: u32,
    /// How many reads ahead of the last one were asked for.
    ahead: u64,
}

/// The cursors of one file.
#[derive(Debug, Default)]
struct FileCursors {
    cursors: Vec<Cursor>,
    reads: u64,
    pattern: Pattern,
    /// First reads that asked for what a stream was to read that has not come to them, in a row.
    unanswered: u32,
    /// How far its longest stream has come.
    longest_run: Arc<AtomicU64>,
    /// What its first stream may be expected to run, by those of other files.
    usual_run_bytes: Option<u64>,
}

/// How far the longest streams of the files that were begun last have come. Shared by all files of
/// a mount; looked at once for each.
#[derive(Debug, Default)]
pub struct Habits {
    longest_runs: Mutex<VecDeque<Arc<AtomicU64>>>,
}

impl Habits {
    /// Takes a new file in, and says how far all of the files before it were read in one piece.
    fn begin(&self, longest_run: &Arc<AtomicU64>) -> Option<u64> {
        let mut runs = self.longest_runs.lock();
        let shortest = runs.iter().map(|run| run.load(Ordering::Relaxed)).min();
        let usual = shortest.filter(|&run_bytes| run_bytes >= TELLING_RUN_BYTES);
        if runs.len() == MOST_HABITS {
            runs.pop_front();
        }
        runs.push_back(longest_run.clone());
        usual
    }
}

/// The cursors of the files of a mount, the least recently read file forgotten first.
#[derive(Debug)]
pub struct Cursors {
    files: LruCache<u32, FileCursors>,
    habits: Arc<Habits>,
}

impl Cursors {
    /// No cursors yet; `habits` are shared with the other tables of the mount.
    pub fn new(habits: Arc<Habits>) -> Self {
        Self { files: LruCache::new(MOST_FILES), habits }
    }

    /// Takes note of a read of `range` of a file of `size` bytes, and says what to fetch beyond it.
    ///
    /// `request_bytes` is what one request should bring at the rate of the line.
    pub fn observe(
        &mut self,
        file: u32,
        range: Range<u64>,
        size: u64,
        request_bytes: u64,
    ) -> Ahead {
        let habits = &self.habits;
        let file = self.files.get_or_insert_mut(file, || {
            let longest_run = Arc::default();
            let usual_run_bytes = habits.begin(&longest_run);
            FileCursors { longest_run, usual_run_bytes, ..FileCursors::default() }
        });
        file.observe(range, size, request_bytes)
    }
}

impl FileCursors {
    fn observe(&mut self, range: Range<u64>, size: u64, request_bytes: u64) -> Ahead {
        self.reads += 1;
        match self.cursor_at(&range, size) {
            Some(index) => {
                let expected = self.expected().or_else(|| self.usual(1));
                let cursor = &mut self.cursors[index];
                cursor.used = self.reads;
                cursor.reads += 1;
                let has_turned = cursor.turn(&range, size);
                let own = cursor.own(&range, size);
                if own.end <= cursor.next {
                    return Ahead::default();
                }
                let passed = cursor.own(&(cursor.next..own.end), size);
                cursor.run_bytes += own.end - cursor.next;
                cursor.next = own.end;
                // Reads that came in the wrong order look like a turn: the next one tells, where
                // streams do not usually go backward.
                let is_doubtful = has_turned && !expected.is_some_and(|it| it.is_backward);
                let window =
                    if is_doubtful { None } else { cursor.window(expected, size, request_bytes) };
                let run = cursor.run();
                self.longest_run.fetch_max(cursor.run_bytes, Ordering::Relaxed);
                self.absorb(index, &passed, size);
                Ahead { window, run, ..Ahead::default() }
            }
            None => {
                let strides = self.pattern.observe(&range, size);
                let expected = self.expected().or_else(|| self.usual(0));
                let bytes = range.end - range.start;
                let mut cursor = Cursor {
                    is_backward: false,
                    next: range.end,
                    asked: range.end,
                    run_bytes: bytes,
                    reads: 1,
                    used: self.reads,
                    closed_at: None,
                    announces: false,
                };
                let (mut window, mut block) = (None, None);
                match expected {
                    // Strides say exactly what comes, and it is not what follows here.
                    _ if strides.is_some() => {}
                    Some(it) if it.is_backward => match self.announced(&range, it, size) {
                        Some(first) => {
                            cursor.is_backward = true;
                            cursor.next = size - range.start;
                            cursor.asked = cursor.next.max(size - first.start);
                        }
                        None if it.is_closed && self.unanswered < MOST_UNANSWERED => {
                            let first = it.read_first(range.end, size);
                            block = (!first.is_empty()).then_some(first);
                            cursor.announces = block.is_some();
                            self.unanswered += u32::from(cursor.announces);
                        }
                        None => {
                            let start = range.start.saturating_sub(FIRST_BACKWARD_BYTES);
                            window = (start < range.start).then_some(start..range.start);
                        }
                    },
                    _ => window = cursor.window(expected, size, request_bytes),
                }
                self.longest_run.fetch_max(bytes, Ordering::Relaxed);
                self.insert(cursor);
                Ahead { window, block, strides, run: cursor.run() }
            }
        }
    }

    /// What was asked for when an earlier read let expect that a stream begins with this one.
    fn announced(&self, range: &Range<u64>, expected: Expected, size: u64) -> Option<Range<u64>> {
        let touches = self.cursors.iter().filter(|it| it.announces && it.reads == 1);
        let mut announced = touches.map(|touch| expected.read_first(touch.next, size));
        announced.find(|first| range.end.abs_diff(first.end) <= 2 * RUN_TOLERANCE_BYTES)
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

    fn insert(&mut self, cursor: Cursor) {
        if self.cursors.len() < MOST_CURSORS {
            return self.cursors.push(cursor);
        }
        let oldest = self.cursors.iter_mut().min_by_key(|cursor| cursor.used);
        *oldest.expect("there are cursors") = cursor;
    }

    /// Forgets single reads in the way of a stream that has come by: they belong to it. A loader
    /// that copies a block from its end down has touched its first bytes before, and the pages
    /// around them are not read again: its stream ends where that read ends.
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
                self.unanswered = 0;
            }
        }
        self.cursors.retain(|cursor| !is_passed(cursor));
    }

    /// How far streams of this file usually run: the median of those that have ended.
    fn expected(&self) -> Option<Expected> {
        if self.reads < ENDED_READS {
            return None;
        }
        let mut runs = [0; MOST_CURSORS];
        let (mut count, mut backward, mut closed) = (0, 0, 0);
        for cursor in &self.cursors {
            if cursor.closed_at.is_some() || cursor.used + ENDED_READS < self.reads {
                runs[count] = cursor.run_bytes;
                count += 1;
                backward += usize::from(cursor.is_backward);
                closed += usize::from(cursor.closed_at.is_some());
            }
        }
        // One that came to where it was to end says as much as two that may go on.
        if count < TELLING_STREAMS && closed == 0 {
            return None;
        }
        runs[..count].sort_unstable();
        let bytes = runs[count / 2];
        let (is_backward, is_closed) = (backward * 2 > count, closed * 2 > count);
        (bytes >= TELLING_RUN_BYTES).then_some(Expected { bytes, is_backward, is_closed })
    }

    /// How far the first stream of this file may be expected to run, by those of other files; nothing
    /// where there are not as many `cursors` as before it, or with it.
    fn usual(&self, cursors: usize) -> Option<Expected> {
        let bytes = self.usual_run_bytes.filter(|_| self.cursors.len() == cursors)?;
        Some(Expected { bytes, is_backward: false, is_closed: false })
    }
}

/// How streams of a file usually run.
#[derive(Clone, Copy, Debug)]
struct Expected {
    bytes: u64,
    is_backward: bool,
    /// Whether they end at a read that came before their first one.
    is_closed: bool,
}

impl Expected {
    /// What a stream reads first, downward, that will end at `end`.
    fn read_first(&self, end: u64, size: u64) -> Range<u64> {
        let start = end.saturating_add(self.bytes).min(size);
        start.saturating_sub(MOST_EXPECTED_BACKWARD_BYTES).max(end)..start.max(end)
    }
}

impl Cursor {
    /// What it has read, where it goes forward; nothing otherwise.
    fn run(&self) -> Range<u64> {
        if self.is_backward { 0..0 } else { self.next - self.run_bytes..self.next }
    }

    /// A range as this cursor counts; its own inverse.
    fn own(&self, range: &Range<u64>, size: u64) -> Range<u64> {
        match self.is_backward {
            true => size.saturating_sub(range.end)..size.saturating_sub(range.start),
            false => range.clone(),
        }
    }

    /// How far a read lies from where this stream goes on; `None` where it is out of reach.
    fn distance(&self, range: &Range<u64>, size: u64) -> Option<u64> {
        let own = self.own(range, size);
        if self.closed_at.is_some_and(|end| own.end > end) {
            return None;
        }
        let mut distance = own.start.abs_diff(self.next);
        if self.reads == 1 {
            distance = distance.min(own.end.abs_diff(self.next - self.run_bytes));
        }
        let slack = if self.reads > 1 { SLACK_BYTES } else { FIRST_SLACK_BYTES };
        (distance <= slack).then_some(distance)
    }

    /// Turns a young stream whose read lies on the other side of what it has read.
    fn turn(&mut self, range: &Range<u64>, size: u64) -> bool {
        let (own, start) = (self.own(range, size), self.next - self.run_bytes);
        if self.reads > YOUNG_READS || own.start >= start || own.end > self.next {
            return false;
        }
        self.is_backward = !self.is_backward;
        // It was counted the other way, and this one has gone on past its own start.
        self.closed_at = None;
        self.next = size - start;
        self.asked = self.next;
        true
    }

    /// What to ask for now, so that the window in front of the stream is asked for; nothing while
    /// most of it was asked for before.
    fn window(
        &mut self,
        expected: Option<Expected>,
        size: u64,
        request_bytes: u64,
    ) -> Option<Range<u64>> {
        let left = expected.map_or(0, |expected| expected.bytes.saturating_sub(self.run_bytes));
        // A first read does not tell which way its stream goes.
        let is_unknown = expected.is_none_or(|it| left == 0 || it.is_backward);
        let is_fast = request_bytes >= FAST_REQUEST_BYTES;
        let window_bytes = match left {
            _ if self.reads == 1 && is_unknown => return None,
            0 if expected.is_some_and(|it| self.run_bytes <= it.bytes + RUN_TOLERANCE_BYTES) => {
                return None;
            }
            0 => {
                let usual = if is_fast { request_bytes * 2 } else { USUAL_WINDOW_BYTES };
                let first = self.run_bytes.clamp(FIRST_WINDOW_BYTES, usual);
                first.max(self.run_bytes / RUN_SHARE)
            }
            left => {
                let most = request_bytes.saturating_mul(EXPECTED_REQUESTS).min(MOST_EXPECTED_BYTES);
                left.min(most.max(self.run_bytes / RUN_SHARE))
            }
        };
        let window_bytes = window_bytes.min(MOST_WINDOW_BYTES);
        self.asked = self.asked.max(self.next);
        let mut end = self.next.saturating_add(window_bytes).min(size);
        if left == 0 && window_bytes >= ALIGNMENT_BYTES && end < size {
            end -= end % ALIGNMENT_BYTES;
        }
        let step_bytes = window_bytes
            / match left {
                // On a line that brings a window in no time, few requests are worth more than early
                // ones.
                _ if is_fast => 2,
                0 => 4,
                // All that is expected is asked for at once: what is left is small, and may come early.
                _ => 8,
            };
        let is_worth_asking = end == size || end >= self.asked + step_bytes;
        if end <= self.asked || !is_worth_asking {
            return None;
        }
        let ahead = self.own(&(self.asked..end), size);
        self.asked = end;
        Some(ahead)
    }
}

impl Pattern {
    /// Takes note of a read that began a stream.
    fn observe(&mut self, range: &Range<u64>, size: u64) -> Option<Strides> {
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
        let length = range.end - range.start;
        let wanted = (MOST_STRIDE_BYTES / length.max(1)).clamp(1, MOST_STRIDES);
        // As many as end before the end of the file.
        let fitting = size.saturating_sub(range.end) / distance;
        let count = wanted.min(fitting).saturating_sub(self.ahead);
        if count == 0 {
            return None;
        }
        let by = (self.ahead + 1) * distance;
        self.ahead += count;
        Some(Strides { first: range.start + by..range.end + by, distance, count })
    }
}

#[cfg(test)]
#[path = "cursors_tests.rs"]
mod tests;
