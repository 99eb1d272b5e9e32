//! Which bytes the readers of a mount want next.
//!
//! ```text
//! a read --> FileReads (its stream, by cursors) --guess--> Ledger --grant--> Guess --> fetched
//!               '-- RunTable: how far streams run                       '--> Unread <--'
//! later reads --> Unread --right or wrong--> Ledger
//! ```
//!
//! Told of reads, it answers with ranges, and does no I/O. Each guess belongs to a [`Predictor`]:
//!
//! | predictor | guesses |
//! | --- | --- |
//! | `stream` | a stream of two reads or more goes on: as far as it has come, until the host has enough to do; then a tenth of its run |
//! | `run`, `habit` | a stream runs as far as those before it, in its file or in others; from its first read on where most first reads were followed by a second one |
//! | `backward`, `block` | a stream goes backward, or a block is copied from its end (`file`) |
//! | `stride` | reads follow each other at equal distances |
//! | `tensor`, `header`, `next_shard` | what the headers of model files say ([`super::tensors`]) |
//!
//! Everything else, random reads above all, lets guess nothing. No rule here says how much a wrong
//! guess may cost. That is the [`ledger`]'s: its limits hold whatever the readers do.

mod cursor;
mod file;
pub mod ledger;
mod runs;
#[cfg(test)]
mod simulation;
mod strides;
#[cfg(test)]
mod tests;
mod unread;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use crate::layer::layout::CHUNK_BYTES;
pub use cursor::MOST_WINDOW_BYTES;
use file::FileReads;
use ledger::{Ledger, Predictor};
use runs::RunTable;
use unread::Cause;

/// Tables of files, so that readers of different files do not meet at one lock.
const SHARDS: usize = 16;
/// Files remembered in each table, the least recently read one forgotten first. A training job has
/// some hundred shards open.
const MOST_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// The least that is asked for at a time of a stream that goes backward.
const LEAST_PIECE_BYTES: u64 = 4 * CHUNK_BYTES;

/// What is known of the host that a file comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRate {
    /// The bytes that one request should ask for.
    pub request_bytes: u64,
    /// The bytes that the host brings in [`ledger::HEAD_START`]; 0 while that is not known.
    pub head_start_bytes: u64,
    /// The bytes that the host brings between a request and the first byte of its answer.
    pub round_trip_bytes: u64,
}

/// Bytes that a stream wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// As many as this.
    pub bytes: u64,
    /// Bytes of the same stream that are under way already.
    pub ahead_bytes: u64,
    /// How many streams read side by side, in sixteenths.
    pub streams: u64,
    /// Fewer than this are not worth a request.
    pub least_bytes: u64,
    /// Whether nothing speaks against it that they will be read.
    pub is_certain: bool,
}

impl Wanted {
    /// Bytes of which any part is welcome.
    pub fn some(bytes: u64) -> Self {
        Self { bytes, ahead_bytes: 0, streams: 16, least_bytes: 0, is_certain: false }
    }

    /// Bytes of a stream that has `ahead_bytes` under way. Where the ledger limits a window, a little
    /// becomes free with each read, and each grant is a request.
    pub fn more(bytes: u64, ahead_bytes: u64, streams: u64, rate: HostRate) -> Self {
        let least_bytes = rate.request_bytes.min(ahead_bytes / 2);
        Self { bytes, ahead_bytes, streams, least_bytes, is_certain: false }
    }
}

/// Bytes to fetch before a reader asks for them. A guess is told its outcome by
/// [`Readahead::started`], also where nothing had to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The rule that it follows.
    pub predictor: Predictor,
    /// Ranges of the file in the order in which they are wanted: not empty, not beyond its end.
    pub ranges: Vec<Range<u64>>,
    /// The bytes that the ledger has reserved for it.
    granted: u64,
}

/// What follows from a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What to fetch beyond it.
    pub guess: Option<Guess>,
    /// The bytes that the read's own stream has read, holes included; empty for a read that says
    /// nothing new. Where they start names the stream.
    pub run: Range<u64>,
}

/// What a guess depends on beside the file's reads.
struct Situation<'a> {
    /// The number of the read in the mount.
    now: u64,
    /// The size of the file.
    size: u64,
    rate: HostRate,
    ledger: &'a Ledger,
    habits: &'a Mutex<RunTable>,
}

/// The readers of a mount. All methods may be called from any thread.
#[derive(Debug, Default)]
pub struct Readahead {
    reads: AtomicU64,
    ledger: Ledger,
    habits: Mutex<RunTable>,
    files: Shards,
}

#[derive(Debug)]
struct Shards([Mutex<LruCache<u32, FileReads>>; SHARDS]);

impl Default for Shards {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(LruCache::new(MOST_FILES))))
    }
}

impl Readahead {
    /// Takes note of a read of `range`, not empty, of a file of `size` bytes, and says what to fetch
    /// beyond it.
    pub fn observe(&self, file: u32, range: &Range<u64>, size: u64, rate: HostRate) -> Observed {
        let now = self.reads.fetch_add(1, Ordering::Relaxed);
        let (ledger, habits) = (&self.ledger, &self.habits);
        let mut files = self.files.of(file).lock();
        let reads = files.get_or_insert_mut(file, FileReads::default);
        for taken in reads.unread.take(range) {
            ledger.was_read(taken.read_bytes);
            if let Cause::Guess(predictor) | Cause::Part(predictor) = taken.cause {
                ledger.guessed_right(predictor, taken.right_bytes);
            }
        }
        reads.observe(range, &Situation { now, size, rate, ledger, habits })
    }

    /// Takes note of ranges of a file that are fetched from now on. Of those, `wanted` is what a
    /// reader has asked for, and `chunks` the chunks that hold it; the rest was guessed.
    pub fn started(
        &self,
        file: u32,
        started: &[Range<u64>],
        wanted: &Range<u64>,
        chunks: &Range<u64>,
        guess: Option<&Guess>,
    ) {
        let mut guessed_bytes = 0;
        let mut files = self.files.of(file).lock();
        let unread = &mut files.get_or_insert_mut(file, FileReads::default).unread;
        for range in started {
            self.ledger.was_read(bytes_of(&both(range, wanted)));
            for rest in [chunks.start..wanted.start, wanted.end..chunks.end] {
                unread.insert(both(range, &rest), Cause::Chunk);
            }
            let Some(guess) = guess else { continue };
            let (below, above) = (0..chunks.start, chunks.end..u64::MAX);
            for part in [both(range, &below), both(range, &above)] {
                guessed_bytes += bytes_of(&part);
                for (part, cause) in guess.causes(part) {
                    unread.insert(part, cause);
                }
            }
        }
        if let Some(guess) = guess {
            self.ledger.settle(guess.predictor, guess.granted, guessed_bytes);
        }
    }

    /// The kernel reads a file by itself from now on: nobody will tell what is read of it.
    pub fn forget(&self, file: u32) {
        let Some(mut reads) = self.files.of(file).lock().pop(&file) else { return };
        for taken in reads.unread.take(&(0..u64::MAX)) {
            if let Cause::Guess(predictor) | Cause::Part(predictor) = taken.cause {
                self.ledger.guessed_right(predictor, taken.right_bytes);
            }
        }
    }

    /// What the guesses of the mount cost and brought.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }
}

impl Shards {
    fn of(&self, file: u32) -> &Mutex<LruCache<u32, FileReads>> {
        &self.0[file as usize % SHARDS]
    }
}

impl Situation<'_> {
    fn grant(&self, predictor: Predictor, wanted: Wanted) -> u64 {
        self.ledger.grant(predictor, wanted, self.rate.head_start_bytes)
    }
}

impl Guess {
    /// All of `range`, for which its own length was granted.
    pub(super) fn upward(predictor: Predictor, range: Range<u64>) -> Option<Self> {
        let granted = bytes_of(&range);
        (granted > 0).then(|| Self { predictor, ranges: vec![range], granted })
    }

    /// What of a range that is fetched was guessed, and what comes with the first and the last chunk.
    fn causes(&self, range: Range<u64>) -> [(Range<u64>, Cause); 3] {
        let of_range = self.ranges.iter().filter(|guess| bytes_of(&both(guess, &range)) > 0);
        let hull = of_range
            .cloned()
            .reduce(|one, other| one.start.min(other.start)..one.end.max(other.end));
        let hull = hull.unwrap_or(range.end..range.end);
        let head = if hull.start > range.start { range.start + CHUNK_BYTES } else { range.start };
        let tail =
            if hull.end < range.end { range.end - CHUNK_BYTES.min(range.end) } else { range.end };
        let head = head.min(range.end);
        let tail = tail.max(head);
        [
            (range.start..head, Cause::Part(self.predictor)),
            (head..tail, Cause::Guess(self.predictor)),
            (tail..range.end, Cause::Part(self.predictor)),
        ]
    }

    /// All of `window`, for which its own length was granted, wanted from its end downward by a
    /// stream that has come down to `read`. The bytes of a request come upward, so the reader waits
    /// for all of one: requests are small near the reader, and grow with their distance.
    fn downward(predictor: Predictor, window: Range<u64>, read: &Range<u64>) -> Option<Self> {
        let granted = bytes_of(&window);
        let mut end = window.end;
        let ranges = std::iter::from_fn(|| {
            let piece = (read.start.saturating_sub(end) / 2).max(LEAST_PIECE_BYTES);
            let start = window.start.max(end.saturating_sub(piece));
            let range = start..std::mem::replace(&mut end, start);
            (!range.is_empty()).then_some(range)
        });
        let ranges = ranges.collect();
        (granted > 0).then_some(Self { predictor, ranges, granted })
    }
}

fn both(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

fn bytes_of(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}
