//! The ranges to fetch of the tensors that a file's streams are in.
//!
//! ```text
//! file      |  tensor 1      |  tensor 2                    |  tensor 3  |
//! stream                     [ read  ]
//!                            ^start  ^next
//!                                    |===== asked =====>
//! ```
//!
//! A stream is expected to read the rest of a tensor in three cases:
//! - The stream began at the tensor's start, or up to 128 KiB before: from its first read on.
//! - The stream came through the tensor before: once it has read more of this one than the kernel
//!   reads ahead. By readahead alone, a stream that ends where a tensor ends has read that much of
//!   the next one. The header counts as a tensor: a program that opens all shards of a model reads
//!   only the header of most of them.
//! - The stream began in the tensor's first 1 MiB: once it has read a chunk. The kernel may have had
//!   the pages before.
//!
//! Then this module wants the rest of the tensor, at most 64 MiB ahead, as far as the mount's ledger allows. A read
//! in the middle of a tensor leads to no fetch here. Its stream may want any part of the tensor, so the stream's
//! cursor decides. The cursor decides for the bytes after a tensor too.

use std::ops::Range;

use super::TensorMap;
use crate::fs::readahead::MOST_WINDOW_BYTES;
use crate::layer::layout::CHUNK_BYTES;

const MIB: u64 = 1024 * 1024;

/// The most streams of a file: as many as a file has cursors.
const MOST_STREAMS: usize = 32;

/// The largest window of a stream in a tensor: the largest window of a cursor.
const MOST_BYTES: u64 = MOST_WINDOW_BYTES;
/// Windows end at multiples of this, a quarter of the largest, so that requests are few and large.
const STEP_BYTES: u64 = MOST_BYTES / 4;

/// A stream that begins at most this far before a tensor means the tensor. A page fault makes the
/// kernel read up to 128 KiB around the page, and a program reads whole pages.
const LEAD_BYTES: u64 = 128 * 1024;

/// The start of a tensor: more than any kernel reads ahead in one request. A stream that comes from
/// the tensor before wants this tensor once it has read so much of it.
const START_BYTES: u64 = MIB;

/// A stream this near to the end of its file will soon want the next file: half a second at 1 Gbit/s.
const NEAR_END_BYTES: u64 = 64 * MIB;

/// The percentage of a file that readers must have read before the start of the next file is fetched.
/// The second one applies when the last read was near the end of the file.
const MOST_PERCENT: u64 = 75;
const MOST_PERCENT_NEAR_END: u64 = 50;

#[derive(Clone, Debug)]
struct Stream {
    /// The offset of its first byte, which identifies the stream.
    start: u64,
    /// The end of its furthest read.
    next: u64,
    /// The end of the bytes that were read or asked for.
    asked: u64,
    /// The number of its last read, counted in reads of the file.
    used: u64,
}

/// The streams of a file with tensors.
#[derive(Debug, Default)]
pub struct Reading {
    tensors: TensorMap,
    next_file: Option<u32>,
    streams: Vec<Stream>,
    reads: u64,
    read_bytes: u64,
    /// The length of a header that is parsed once a reader has read so many bytes from the start.
    header_bytes: Option<u64>,
    /// The end of the last read.
    last: u64,
    file_bytes: u64,
}

/// The fetches that follow from a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A range of the tensor that the stream is in.
    pub tensor: Option<Range<u64>>,
    /// The file that a program is expected to read next; returned once.
    pub next_file: Option<u32>,
    /// A reader has read the header for which [`Reading::wait_for_header`] waits; returned once.
    pub has_header: bool,
}

/// `grant(wanted, ahead)` returns how many of `wanted` bytes may be fetched now. `ahead` bytes of the
/// same stream are on their way.
pub type Grant<'a> = &'a dyn Fn(u64, u64) -> u64;

impl Reading {
    /// Notes a read of a stream in a file of `file_bytes`. `run`, not empty, is the range that the
    /// stream has read so far.
    pub fn observe(&mut self, run: &Range<u64>, file_bytes: u64, grant: Grant) -> Wanted {
        self.reads += 1;
        (self.last, self.file_bytes) = (run.end, file_bytes);
        let at = self.stream_at(run);
        let tensor = self.streams[at].ask(&self.tensors, grant);
        let header = self.header_bytes.take_if(|needed| run.start == 0 && run.end >= *needed);
        Wanted { tensor, next_file: self.successor(), has_header: header.is_some() }
    }

    /// Keeps the places of the tensors. Returns the ranges that the file's streams want of them.
    pub fn learn(&mut self, tensors: TensorMap, grant: Grant) -> Vec<Range<u64>> {
        self.tensors = tensors;
        self.streams.iter_mut().filter_map(|stream| stream.ask(&self.tensors, grant)).collect()
    }

    /// Waits until readers have read the first `bytes` of the file, because the ledger did not pay
    /// for them. [`Wanted::has_header`] tells when that has happened. Returns `false`, and does not wait,
    /// if it has happened already.
    pub fn wait_for_header(&mut self, bytes: u64) -> bool {
        let is_early = self.head_bytes() < bytes;
        self.header_bytes = is_early.then_some(bytes);
        is_early
    }

    /// The bytes that a reader has asked for from the start of the file on. Some of them may still be on
    /// their way.
    pub fn head_bytes(&self) -> u64 {
        let head = self.streams.iter().filter(|stream| stream.start == 0);
        head.map(|stream| stream.next).max().unwrap_or_default()
    }

    /// Keeps the file that follows this one; returns that file if it is wanted already.
    pub fn learn_next(&mut self, file: u32) -> Option<u32> {
        self.next_file = Some(file);
        self.successor()
    }

    /// Finds or makes the stream that has read `run`, updates it, and returns its index.
    fn stream_at(&mut self, run: &Range<u64>) -> usize {
        let found = self.streams.iter().position(|stream| stream.start == run.start);
        let at = match found {
            Some(at) => {
                let stream = &mut self.streams[at];
                self.read_bytes += run.end.saturating_sub(stream.next);
                at
            }
            None => {
                self.read_bytes += run.end - run.start;
                let stream = Stream { start: run.start, next: run.end, asked: run.end, used: 0 };
                if self.streams.len() < MOST_STREAMS {
                    self.streams.push(stream);
                    self.streams.len() - 1
                } else {
                    let streams = self.streams.iter().enumerate();
                    let oldest = streams.min_by_key(|(_, stream)| stream.used);
                    let at = oldest.map(|(at, _)| at).expect("there are as many as there may be");
                    self.streams[at] = stream;
                    at
                }
            }
        };
        let stream = &mut self.streams[at];
        stream.used = self.reads;
        stream.next = stream.next.max(run.end);
        at
    }

    fn successor(&mut self) -> Option<u32> {
        self.next_file?;
        let percent = self.read_bytes.saturating_mul(100) / self.file_bytes.max(1);
        let is_near_end = self.file_bytes.saturating_sub(self.last) <= NEAR_END_BYTES;
        let needed = if is_near_end { MOST_PERCENT_NEAR_END } else { MOST_PERCENT };
        if percent >= needed { self.next_file.take() } else { None }
    }
}

impl Stream {
    /// The range to fetch of the tensor that the stream is in.
    fn ask(&mut self, tensors: &TensorMap, grant: Grant) -> Option<Range<u64>> {
        self.asked = self.asked.max(self.next);
        let tensor = tensors.at(self.next.checked_sub(1)?)?;
        if self.asked >= tensor.end || self.start > tensor.start + START_BYTES {
            return None;
        }
        let depth = self.next - self.start.max(tensor.start);
        let needed = if self.start > tensor.start {
            CHUNK_BYTES
        } else if self.start == 0 || self.start + LEAD_BYTES < tensor.start {
            START_BYTES
        } else {
            0
        };
        if depth < needed {
            return None;
        }
        let goal = self.next.saturating_add(MOST_BYTES);
        let goal = if goal >= tensor.end { tensor.end } else { goal - goal % STEP_BYTES };
        let wanted = goal.saturating_sub(self.asked);
        let granted = if wanted > 0 { grant(wanted, self.asked - self.next) } else { 0 };
        let range = self.asked..self.asked + granted;
        self.asked = range.end;
        (granted > 0).then_some(range)
    }
}
