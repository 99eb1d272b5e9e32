//! One stream through a file: its position, and the window to fetch ahead of it.
//!
//! ```text
//! forward    |  start =====read=====> next ----asked----> .        |
//! backward   |        . <----asked---- next <=====read===== start  |
//! ```
//!
//! The cursor of a backward stream counts offsets from the end of the file. All else is as for a
//! forward stream. glibc's memmove copies a block of a mapped file backward when the target lies
//! behind the source.

use std::ops::Range;
use std::sync::Arc;

use super::ledger::{LEAST_HEAD_START_BYTES, Predictor};
use super::runs::{Expected, Run, Start};
use super::{HostRate, Situation};
use crate::layer::layout::CHUNK_BYTES;

/// The largest window: half a second at 1 Gbit/s. A larger one would take disk space and save no time.
pub const MOST_WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// The window of a long run is the run divided by this. The ledger allows a lone stream the same
/// part.
const RUN_SHARE: u64 = 10;
/// Windows end at multiples of this, so that requests are few and large.
const ALIGNMENT_BYTES: u64 = 4 * CHUNK_BYTES;

/// The largest distance between the end of a stream and a read that belongs to it. The kernel's
/// readahead sends requests of up to 1 MiB on several threads, so requests arrive out of order.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;
/// The same for a stream of a single read: one request of the kernel's readahead
/// (`fuse::readahead`), or two of 128 KiB.
const FIRST_SLACK_BYTES: u64 = CHUNK_BYTES;
/// The first reads of a stream, in which its direction may still change.
const YOUNG_READS: u64 = 3;

/// One stream. The offsets of a backward stream count from the end of the file.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub(super) is_backward: bool,
    /// The end of the furthest read.
    pub(super) next: u64,
    /// The end of the bytes that were read or asked for.
    pub(super) asked: u64,
    /// The position at which the next window is computed.
    ask_at: u64,
    /// The bytes from the start of the stream to `next`.
    pub(super) run_bytes: u64,
    /// The number of the stream's reads.
    pub(super) reads: u64,
    /// The number of its last read, counted in reads of the file.
    pub(super) used: u64,
    /// The ledger refused this predictor the bytes from [`Self::asked`] to this offset.
    refused: Option<(Predictor, u64)>,
    /// The far end of an earlier single read, at which this backward stream ends.
    pub(super) closed_at: Option<u64>,
    /// The block that is expected to be copied after the stream's only read.
    pub(super) announced: Option<Range<u64>>,
    /// The kind of its start, as the tables of runs count it.
    pub(super) start: Start,
    pub(super) numbers: Numbers,
    pub(super) run: Arc<Run>,
}

/// The numbers of a stream in the tables of runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) of_file: u64,
    pub(super) of_mount: u64,
}

/// The window that a stream would ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The end of the window, as the stream counts.
    pub(super) end: u64,
    /// The least bytes that are worth a request. The rest of a file may be shorter.
    pub(super) least_bytes: u64,
    /// Other streams ran as far as this window ([`Expected::bytes`]).
    pub(super) is_expected: bool,
    /// Two other streams ran as far, and none was shorter ([`Expected::certain_bytes`]).
    pub(super) is_certain: bool,
}

impl Cursor {
    /// A stream of one read, the file's read number `used`.
    pub(super) fn begin(
        range: &Range<u64>,
        start: Start,
        numbers: Numbers,
        run: Arc<Run>,
        used: u64,
    ) -> Self {
        Self {
            is_backward: false,
            next: range.end,
            asked: range.end,
            ask_at: 0,
            run_bytes: range.end - range.start,
            reads: 1,
            used,
            refused: None,
            closed_at: None,
            announced: None,
            start,
            numbers,
            run,
        }
    }

    /// Turns a stream of one read backward. `asked`, the range below its start, was asked for.
    pub(super) fn begin_backward(&mut self, range: &Range<u64>, asked: &Range<u64>, size: u64) {
        self.is_backward = true;
        self.run.turn(true);
        self.next = size - range.start;
        self.asked = self.next.max(size - asked.start);
        self.ask_at = self.next;
    }

    /// The range that a forward stream has read, holes included; empty for a backward stream.
    pub(super) fn run(&self) -> Range<u64> {
        if self.is_backward { 0..0 } else { self.next - self.run_bytes..self.next }
    }

    /// Converts a range from the file's offsets to this cursor's, or back.
    pub(super) fn own(&self, range: &Range<u64>, size: u64) -> Range<u64> {
        match self.is_backward {
            true => size.saturating_sub(range.end)..size.saturating_sub(range.start),
            false => range.clone(),
        }
    }

    /// The distance from the end of this stream to a read; `None` if the read does not belong to it.
    pub(super) fn distance(&self, range: &Range<u64>, size: u64) -> Option<u64> {
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

    /// Turns a young stream around if a read lies before its start. Returns `true` if it turned.
    pub(super) fn turn(&mut self, range: &Range<u64>, size: u64) -> bool {
        let (own, start) = (self.own(range, size), self.next - self.run_bytes);
        if self.reads > YOUNG_READS || own.start >= start || own.end > self.next {
            return false;
        }
        self.is_backward = !self.is_backward;
        self.run.turn(self.is_backward);
        // `closed_at` counts in the old direction, and the stream has passed that place.
        self.closed_at = None;
        self.run.close(false);
        self.next = size - start;
        self.asked = self.next;
        self.ask_at = self.next;
        true
    }

    /// Moves the stream on to `end`. Returns the new bytes as a range of the file; `None` if the stream
    /// has come as far before.
    pub(super) fn advance(&mut self, end: u64, situation: &Situation) -> Option<Range<u64>> {
        let &Situation { size, now, ledger, .. } = situation;
        if end <= self.next {
            return None;
        }
        let passed = self.own(&(self.next..end), size);
        if let Some((predictor, refused)) = self.refused {
            let missed = end.min(refused).saturating_sub(self.next.max(self.asked));
            ledger.would_have_been_right(predictor, missed);
        }
        self.run_bytes += end - self.next;
        self.next = end;
        self.run.note(self.run_bytes, now);
        if end == size {
            self.run.cut_short();
        }
        Some(passed)
    }

    /// `true` if it is time to compute the next window.
    pub(super) fn is_due(&self) -> bool {
        self.next >= self.ask_at
    }

    /// The next window, at most to `stop`. `expected` is the expected length of the stream.
    pub(super) fn wish(
        &self,
        expected: Option<Expected>,
        stop: u64,
        rate: HostRate,
    ) -> Option<Wish> {
        let left = |to: fn(Expected) -> u64| {
            expected.map_or(0, |expected| to(expected).saturating_sub(self.run_bytes))
        };
        let (certain, likely) = (left(|it| it.certain_bytes), left(|it| it.bytes));
        if self.reads == 1 && likely == 0 {
            return None;
        }
        // The bytes of 1.5 round trips, at least the least head start, keep the host busy. The next request is made
        // before the host has sent these bytes.
        let needed = self.run_bytes.min(3 * rate.round_trip_bytes / 2).max(LEAST_HEAD_START_BYTES);
        let needed = needed.max(self.run_bytes / RUN_SHARE);
        let is_bounded = self.reads == 1 || expected.is_some_and(|expected| expected.is_end);
        let window = match is_bounded {
            true => likely.min(needed),
            // A near host gets larger requests, so that they are few. The limit is a quarter of the
            // run, because the window is lost when the stream stops.
            false => needed.max((self.run_bytes / 4).min(2 * rate.request_bytes)),
        };
        let window = window.max(certain).min(MOST_WINDOW_BYTES);
        let mut end = self.next.saturating_add(window).min(stop);
        if window > likely && window >= ALIGNMENT_BYTES && end < stop {
            end -= end % ALIGNMENT_BYTES;
        }
        // Large requests cost the server less time. But a request that is made too late makes the
        // reader wait for a part of a round trip.
        let least_bytes = rate.request_bytes.clamp(window / 4, window / 2);
        let is_late = window - least_bytes < 2 * rate.round_trip_bytes;
        let least_bytes = if is_late { window / 4 } else { least_bytes };
        let is_expected = likely > 0 && end <= self.next.saturating_add(likely);
        let is_certain = end <= self.next.saturating_add(certain);
        (end > self.asked).then_some(Wish { end, least_bytes, is_expected, is_certain })
    }

    /// Notes that the ledger granted a predictor `granted` of `wanted` bytes.
    pub(super) fn ask(&mut self, predictor: Predictor, wanted: u64, granted: u64) {
        self.refused = (granted < wanted).then(|| (predictor, self.asked + wanted));
        self.asked += granted;
    }

    /// Computes no window before the stream has moved on by `bytes`.
    pub(super) fn wait(&mut self, bytes: u64) {
        self.ask_at = self.next.saturating_add(bytes.max(1));
    }
}
