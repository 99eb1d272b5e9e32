//! Readahead: guesses the bytes that the readers of a mount want next.
//!
//! ```text
//! a read --> FileReads (its stream, by cursors) --guess--> Ledger --grant--> Guess --> fetched
//!               '-- RunTable: how far streams run                       '--> Unread <--'
//! later reads --> Unread --right or wrong--> Ledger
//! ```
//!
//! The input is reads and the output is ranges. This room does no I/O. Each guess belongs to a
//! [`Predictor`]:
//!
//! | predictor | guess |
//! | --- | --- |
//! | `stream` | A stream of two reads or more goes on. The window is as long as the stream's run until the host is busy all the time; later it is a tenth of the run. |
//! | `run`, `habit` | A stream runs as far as earlier streams, of its file (`run`) or of the mount (`habit`). The guess begins with the first read where most first reads had a second one. |
//! | `backward`, `block` | A stream goes backward, or a block is copied from its end (`file`). |
//! | `stride` | Reads follow each other at equal distances. |
//! | `tensor`, `header`, `next_shard` | Readers follow the headers of model files ([`super::tensors`]). |
//!
//! Other reads, above all random ones, lead to no guess. The rules here do not bound the cost of wrong
//! guesses. The [`ledger`] does: its limits hold for any reads.

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

/// The number of tables of files. Each has a lock of its own, so that readers of different files
/// rarely meet at one.
const SHARDS: usize = 16;
/// The files in each table; the least recently read file is forgotten first. A training job has some
/// hundred shards open.
const MOST_FILES: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// The least request of a stream that goes backward, so that requests are few.
const LEAST_PIECE_BYTES: u64 = 4 * CHUNK_BYTES;

/// The rate of the host that a file comes from, as numbers of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostRate {
    /// The bytes that one request should ask for.
    pub request_bytes: u64,
    /// The bytes that the host sends in [`ledger::HEAD_START`]; 0 while the rate is not known.
    pub head_start_bytes: u64,
    /// The bytes that the host sends in one round trip.
    pub round_trip_bytes: u64,
}

/// The bytes that a predictor asks the ledger for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The number of bytes.
    pub bytes: u64,
    /// The bytes of the same stream that are on their way already.
    pub ahead_bytes: u64,
    /// The number of streams that are read side by side, in sixteenths.
    pub streams: u64,
    /// The least grant that is worth a request.
    pub least_bytes: u64,
    /// All earlier streams read these bytes (`runs`).
    pub is_certain: bool,
}

impl Wanted {
    /// Bytes of which any part is worth a request.
    pub fn some(bytes: u64) -> Self {
        Self { bytes, ahead_bytes: 0, streams: 16, least_bytes: 0, is_certain: false }
    }

    /// Bytes of a stream that has `ahead_bytes` on their way.
    ///
    /// Small grants are refused while much is on its way. Each grant becomes a request, and a ledger
    /// at its limit has a little more to grant after each read.
    pub fn more(bytes: u64, ahead_bytes: u64, streams: u64, rate: HostRate) -> Self {
        let least_bytes = rate.request_bytes.min(ahead_bytes / 2);
        Self { bytes, ahead_bytes, streams, least_bytes, is_certain: false }
    }
}

/// Bytes to fetch before a reader asks for them.
///
/// The caller ends each guess with a call of [`Readahead::started`], even if nothing had to be
/// fetched. That call gives the ledger back the bytes that it reserved in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The rule that the guess follows.
    pub predictor: Predictor,
    /// Ranges of the file, not empty and not beyond its end, in the order to fetch them.
    pub ranges: Vec<Range<u64>>,
    /// The bytes that the ledger has reserved for the guess.
    granted: u64,
}

/// The result of observing a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The bytes to fetch beyond the read.
    pub guess: Option<Guess>,
    /// The range that the read's stream has read so far, holes included. Its start identifies the
    /// stream. Empty for a backward stream, and for a read of bytes that the stream has read before.
    pub run: Range<u64>,
}

/// The input of a guess beside the file's reads.
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
    /// Notes a read of `range`, not empty, of a file of `size` bytes. Returns the bytes to fetch
    /// beyond the read.
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

    /// Notes ranges of a file whose fetch has started, and ends `guess`.
    ///
    /// `wanted` is the range of the read, and `chunks` is the range of the chunks that hold it. The
    /// other bytes of `started` belong to the guess.
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

    /// Forgets a file that the kernel reads by itself from now on. No later read will show which of
    /// its guesses were right, so all of them count as right.
    pub fn forget(&self, file: u32) {
        let Some(mut reads) = self.files.of(file).lock().pop(&file) else { return };
        for taken in reads.unread.take(&(0..u64::MAX)) {
            if let Cause::Guess(predictor) | Cause::Part(predictor) = taken.cause {
                self.ledger.guessed_right(predictor, taken.right_bytes);
            }
        }
    }

    /// The costs and gains of the mount's guesses.
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
    /// A guess of `range`, for which the ledger granted its length; `None` if it is empty.
    pub(super) fn upward(predictor: Predictor, range: Range<u64>) -> Option<Self> {
        let granted = bytes_of(&range);
        (granted > 0).then(|| Self { predictor, ranges: vec![range], granted })
    }

    /// Splits a range that is fetched: the first chunk, the bytes in between, the last chunk. The
    /// first and the last chunk are parts where they hold bytes outside of the guess.
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

    /// A guess of `window`, for which the ledger granted its length, for a backward stream that has
    /// come down to `read`.
    ///
    /// A backward reader needs the end of a request first, and that end arrives last. So the reader
    /// waits for a whole request: requests are small near the reader and grow with the distance.
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
