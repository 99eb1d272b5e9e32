//! One stream through a file: where it stands, and how far ahead of it to fetch.
//!
//! ```text
//! forward    |  start =====read=====> next ----asked----> .        |
//! backward   |        . <----asked---- next <=====read===== start  |
//! ```
//!
//! A stream that goes backward counts offsets from the end of the file, and is a stream like others
//! in all else. Copies out of a mapped file go backward where the target lies behind the source
//! (glibc's memmove).

use std::ops::Range;
use std::sync::Arc;

use super::ledger::{LEAST_HEAD_START_BYTES, Predictor};
use super::runs::{Expected, Run, Start};
use super::{HostRate, Situation};
use crate::layer::layout::CHUNK_BYTES;

/// The largest window: half a second at 1 Gbit/s. More would only hold memory and disk.
pub const MOST_WINDOW_BYTES: u64 = 64 * 1024 * 1024;
/// The part of its run that a window is where the run is long: as much as the ledger gives a
/// stream that is alone.
const RUN_SHARE: u64 = 10;
/// Windows end at multiples of this, so that requests are few and large.
const ALIGNMENT_BYTES: u64 = 4 * CHUNK_BYTES;

/// How far from the expected place a read may lie and still belong to a stream: the kernel's
/// readahead sends requests of up to 1 MiB on several threads, so they arrive out of order.
const SLACK_BYTES: u64 = 2 * 1024 * 1024;
/// The same for a stream of a single read: a request of the kernel's readahead (`fuse::readahead`),
/// or two where it is 128 KiB.
const FIRST_SLACK_BYTES: u64 = CHUNK_BYTES;
/// Reads within which a stream may still show which way it goes.
const YOUNG_READS: u64 = 3;

/// One stream. Offsets are counted from the end of the file where it goes backward.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub(super) is_backward: bool,
    /// The end of the furthest read.
    pub(super) next: u64,
    /// Everything before this was read or asked for.
    pub(super) asked: u64,
    /// The next question is due when the stream has come this far.
    ask_at: u64,
    /// The bytes that the stream has come forward.
    pub(super) run_bytes: u64,
    /// How many reads belong to it.
    pub(super) reads: u64,
    /// The read of the file that was its last.
    pub(super) used: u64,
    /// The ledger has refused to this predictor what lies between [`Self::asked`] and this offset.
    refused: Option<(Predictor, u64)>,
    /// The far end of a read that was there before the stream. A backward stream ends at it.
    pub(super) closed_at: Option<u64>,
    /// The block that its first read let expect.
    pub(super) announced: Option<Range<u64>>,
    /// Its place in the tables of runs.
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

/// What a stream would have asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// To this offset, as the stream counts.
    pub(super) end: u64,
    /// Fewer bytes than this are not worth a request, unless they are all that is left.
    pub(super) least_bytes: u64,
    /// Whether other streams let expect that the stream comes as far.
    pub(super) is_expected: bool,
    /// Whether two others have come as far, and none had ended before.
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

    /// A stream of one read goes backward, and `asked` was asked for below its start.
    pub(super) fn begin_backward(&mut self, range: &Range<u64>, asked: &Range<u64>, size: u64) {
        self.is_backward = true;
        self.run.turn(true);
        self.next = size - range.start;
        self.asked = self.next.max(size - asked.start);
        self.ask_at = self.next;
    }

    /// The bytes it has read, holes included, where it goes forward; nothing otherwise.
    pub(super) fn run(&self) -> Range<u64> {
        if self.is_backward { 0..0 } else { self.next - self.run_bytes..self.next }
    }

    /// A range as this cursor counts; its own inverse.
    pub(super) fn own(&self, range: &Range<u64>, size: u64) -> Range<u64> {
        match self.is_backward {
            true => size.saturating_sub(range.end)..size.saturating_sub(range.start),
            false => range.clone(),
        }
    }

    /// How far a read lies from where this stream goes on; `None` where it is out of reach.
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

    /// Turns a young stream whose read lies on the other side of what it has read; says whether.
    pub(super) fn turn(&mut self, range: &Range<u64>, size: u64) -> bool {
        let (own, start) = (self.own(range, size), self.next - self.run_bytes);
        if self.reads > YOUNG_READS || own.start >= start || own.end > self.next {
            return false;
        }
        self.is_backward = !self.is_backward;
        self.run.turn(self.is_backward);
        // The stop was counted the other way, and the stream has left its own start behind.
        self.closed_at = None;
        self.run.close(false);
        self.next = size - start;
        self.asked = self.next;
        self.ask_at = self.next;
        true
    }

    /// Goes on to `end`; says by which range the stream has moved, or nothing where the bytes were
    /// read before.
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

    /// Whether it is time to look how far ahead to fetch.
    pub(super) fn is_due(&self) -> bool {
        self.next >= self.ask_at
    }

    /// How far ahead to fetch, by what is `expected` of streams like this one; not beyond `stop`.
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
        // The host has enough to do for two round trips: one until the first byte of an answer, and
        // one until the reader's next request is made.
        let needed = self.run_bytes.min(3 * rate.round_trip_bytes / 2).max(LEAST_HEAD_START_BYTES);
        let needed = needed.max(self.run_bytes / RUN_SHARE);
        let is_bounded = self.reads == 1 || expected.is_some_and(|expected| expected.is_end);
        let window = match is_bounded {
            true => likely.min(needed),
            // A host near by is asked for more, which saves it requests; but for no more than a
            // quarter of the run, which is lost when the stream stops.
            false => needed.max((self.run_bytes / 4).min(2 * rate.request_bytes)),
        };
        let window = window.max(certain).min(MOST_WINDOW_BYTES);
        let mut end = self.next.saturating_add(window).min(stop);
        if window > likely && window >= ALIGNMENT_BYTES && end < stop {
            end -= end % ALIGNMENT_BYTES;
        }
        // Each request costs the server time, so requests are large; but one that is made too late
        // costs the reader a part of a round trip.
        let least_bytes = rate.request_bytes.clamp(window / 4, window / 2);
        let is_late = window - least_bytes < 2 * rate.round_trip_bytes;
        let least_bytes = if is_late { window / 4 } else { least_bytes };
        let is_expected = likely > 0 && end <= self.next.saturating_add(likely);
        let is_certain = end <= self.next.saturating_add(certain);
        (end > self.asked).then_some(Wish { end, least_bytes, is_expected, is_certain })
    }

    /// Of `wanted` bytes the ledger has granted `granted` to a predictor.
    pub(super) fn ask(&mut self, predictor: Predictor, wanted: u64, granted: u64) {
        self.refused = (granted < wanted).then(|| (predictor, self.asked + wanted));
        self.asked += granted;
    }

    /// Asks for nothing before the stream has come `bytes` further.
    pub(super) fn wait(&mut self, bytes: u64) {
        self.ask_at = self.next.saturating_add(bytes.max(1));
    }
}
