//! Access traces: the ranges of files that readers read, in order (docs/format/trace.md).
//!
//! ```text
//! FileSystem::read --AccessLog (bounded)--> Merger --Line--> a file
//! a file --Trace::parse--> ranges in order --> fetched ahead of the next reader
//! ```
//!
//! Without a recorder, a read costs one relaxed load more. A recorder that is too slow loses reads;
//! the trace tells the number of lost reads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::percent::percent_decoded;
use crate::kit::NodeId;

/// The most reads that wait for a recorder: about 2.5 MiB, a second of a fast reader.
const QUEUE: usize = 65_536;
/// The longest range of joined reads. A long stream becomes several trace entries. So a replay keeps the order of
/// files that were read side by side.
const MOST_LINE_BYTES: u64 = 8 * 1024 * 1024;
/// The most ranges that are held back, to be joined with later reads: as many as the streams that a
/// usual program reads side by side.
const MOST_OPEN_RANGES: usize = 16;
/// The version of the format.
const VERSION: u32 = 1;
/// The longest line that the parser accepts: room for a percent-encoded path of 16 KiB.
const LINE_LIMIT_BYTES: usize = 64 * 1024;
/// The most lines of a trace, the header included: 10 TB in the largest ranges.
pub const TRACE_LINES: usize = 1_250_000;

/// One read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRead {
    /// The file.
    pub node: NodeId,
    /// The offset of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
    /// The time of the read.
    pub at: Instant,
}

/// The queue from a file system to its recorder.
#[derive(Default)]
pub(super) struct AccessLog {
    is_on: AtomicBool,
    queue: Mutex<Option<mpsc::Sender<FileRead>>>,
    lost: AtomicU64,
}

impl AccessLog {
    /// Begins to record; `None` while another recorder runs.
    pub(super) fn start(&self) -> Option<mpsc::Receiver<FileRead>> {
        let mut queue = self.queue.lock();
        if queue.as_ref().is_some_and(|queue| !queue.is_closed()) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        *queue = Some(sender);
        self.lost.store(0, Ordering::Relaxed);
        self.is_on.store(true, Ordering::Relaxed);
        Some(receiver)
    }

    /// Queues a read for the recorder, or counts it as lost if the queue is full.
    pub(super) fn note(&self, node: NodeId, offset: u64, length: u64) {
        if !self.is_on.load(Ordering::Relaxed) || length == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        let Some(sender) = queue.as_ref() else { return };
        match sender.try_send(FileRead { node, offset, length, at: Instant::now() }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                *queue = None;
                self.is_on.store(false, Ordering::Relaxed);
            }
        }
    }

    /// The number of reads that were lost since the last call.
    pub(super) fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}

/// A line of a trace file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Line {
    /// The first line: the kit that was recorded.
    Header {
        /// The version of the format, 1.
        kitfs_trace: u32,
        /// The reference that was mounted.
        reference: String,
        /// The digest of the kit's manifest.
        digest: String,
        /// The start of the recording, in seconds since 1970.
        started_at: i64,
    },
    /// A trace entry: a range that was read.
    Range {
        /// Milliseconds since the start of the recording.
        at_ms: u64,
        /// The path from the kit's root, percent-encoded where it is not plain text.
        path: String,
        /// The offset of the first byte.
        offset: u64,
        /// The number of bytes.
        length: u64,
    },
    /// Reads that came faster than the recorder could take them.
    Lost {
        /// The number of reads.
        lost: u64,
    },
}

impl Line {
    /// The first line of a trace.
    pub fn header(reference: String, digest: String, started_at: i64) -> Self {
        Self::Header { kitfs_trace: VERSION, reference, digest, started_at }
    }
}

/// Joins reads of a file that touch one another. Pure.
///
/// The kernel reads ahead of a program on several threads, so reads of a stream arrive out of order.
/// The ranges that come out are in the order of their first reads. They cover exactly the bytes that
/// went in.
#[derive(Debug, Default)]
pub struct Merger {
    open: Vec<FileRead>,
}

impl Merger {
    /// Takes a read. Returns the oldest range when too many are open; no later read joins it.
    pub fn push(&mut self, access: FileRead) -> Option<FileRead> {
        let join = |(at, open): (usize, &FileRead)| Some((at, joined(open, &access)?));
        let Some((at, range)) = self.open.iter().enumerate().find_map(join) else {
            self.open.push(access);
            return (self.open.len() > MOST_OPEN_RANGES).then(|| self.open.remove(0));
        };
        self.open[at] = range;
        // The read may have closed the gap to another open range. The older of the two stays.
        let other = self.open.iter().enumerate().filter(|(other, _)| *other != at);
        let gap = other.into_iter().find_map(|(other, open)| {
            let (first, second) = if other < at { (open, &range) } else { (&range, open) };
            Some((other, joined(first, second)?))
        });
        if let Some((other, range)) = gap {
            self.open[at.min(other)] = range;
            self.open.remove(at.max(other));
        }
        None
    }

    /// The ranges that are still open.
    pub fn finish(self) -> Vec<FileRead> {
        self.open
    }
}

/// Joins `second` to `first`, the earlier range; `None` where the two do not touch or would be too
/// long for a trace entry.
fn joined(first: &FileRead, second: &FileRead) -> Option<FileRead> {
    let (first_end, second_end) = (first.offset + first.length, second.offset + second.length);
    let offset = first.offset.min(second.offset);
    let length = first_end.max(second_end) - offset;
    let touch = second.offset <= first_end && first.offset <= second_end;
    // A single read may be longer than an entry. A read inside such a range does not make it longer.
    let fits = length <= MOST_LINE_BYTES || length == first.length;
    (first.node == second.node && touch && fits).then_some(FileRead { offset, length, ..*first })
}

/// A range of a file to be fetched beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRange {
    /// The time of its first read, in milliseconds since the start of the recording.
    pub at_ms: u64,
    /// The path from the kit's root, as bytes.
    pub path: Vec<u8>,
    /// The offset of the first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

/// A parsed trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The reference of the recorded kit.
    pub reference: String,
    /// The digest of the recorded kit's manifest.
    pub digest: String,
    /// The start of the recording, in seconds since 1970.
    pub started_at: i64,
    /// The ranges, in order.
    pub ranges: Vec<TraceRange>,
    /// The number of reads that the recorder lost.
    pub lost: u64,
}

/// The reason why a trace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct TraceError {
    /// The line, from 1.
    pub line: usize,
    /// The fault.
    pub why: String,
}

impl Trace {
    /// Parses a trace. Ignores a last line without a newline: the recorder was killed while it wrote
    /// the line.
    ///
    /// # Errors
    /// [`TraceError`] for a line that is malformed, out of place or beyond a limit.
    pub fn parse(text: &[u8]) -> Result<Self, TraceError> {
        let mut trace: Option<Self> = None;
        let complete = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for (index, bytes) in text[..complete].split(|&byte| byte == b'\n').enumerate() {
            let fail = |why: String| TraceError { line: index + 1, why };
            if bytes.is_empty() {
                continue;
            }
            if bytes.len() > LINE_LIMIT_BYTES {
                return Err(fail(format!("it is longer than {LINE_LIMIT_BYTES} bytes")));
            }
            if index >= TRACE_LINES {
                return Err(fail(format!("more than {TRACE_LINES} lines")));
            }
            let line = serde_json::from_slice(bytes)
                .map_err(|_| fail("not a line of an access trace".to_owned()))?;
            match (line, &mut trace) {
                (Line::Header { kitfs_trace, reference, digest, started_at }, None) => {
                    if kitfs_trace != VERSION {
                        return Err(fail(format!(
                            "version {kitfs_trace} of the format is not known: this kitfs knows {VERSION}"
                        )));
                    }
                    let ranges = Vec::new();
                    trace = Some(Self { reference, digest, started_at, ranges, lost: 0 });
                }
                (_, None) => return Err(fail("the first line must be the header".to_owned())),
                (Line::Header { .. }, Some(_)) => return Err(fail("a second header".to_owned())),
                (Line::Range { at_ms, path, offset, length }, Some(trace)) => {
                    let path = percent_decoded(&path).ok_or_else(|| {
                        fail("a % in the path needs two hexadecimal digits".to_owned())
                    })?;
                    if offset.checked_add(length).is_none() {
                        return Err(fail("offset + length is larger than any file".to_owned()));
                    }
                    trace.ranges.push(TraceRange { at_ms, path, offset, length });
                }
                (Line::Lost { lost }, Some(trace)) => trace.lost = trace.lost.saturating_add(lost),
            }
        }
        trace.ok_or_else(|| TraceError { line: 1, why: "it holds no access trace".to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::percent::percent_encoded;
    use super::*;

    const HEADER: &str =
        r#"{"kitfs_trace":1,"reference":"r/m:v1","digest":"sha256:0","started_at":7}"#;

    fn access(node: u32, offset: u64, length: u64) -> FileRead {
        FileRead { node: NodeId(node), offset, length, at: Instant::now() }
    }

    #[test]
    fn a_written_trace_is_read_back() {
        let lines = [
            Line::header("r/m:v1".into(), "sha256:0".into(), 7),
            Line::Range { at_ms: 3, path: percent_encoded(b"a%\xff\n"), offset: 1, length: 2 },
            Line::Lost { lost: 9 },
        ];
        let text: String =
            lines.iter().map(|line| serde_json::to_string(line).unwrap() + "\n").collect();
        assert!(text.starts_with(HEADER), "{text}");
        let trace = Trace::parse((text + "{\"at_ms\":").as_bytes()).unwrap();
        let range = TraceRange { at_ms: 3, path: b"a%\xff\n".to_vec(), offset: 1, length: 2 };
        assert_eq!((trace.ranges, trace.lost, trace.started_at), (vec![range], 9, 7));
    }

    #[test]
    fn a_malformed_trace_is_refused_with_the_number_of_its_line() {
        let range = r#"{"at_ms":0,"path":"a","offset":0,"length":1}"#;
        for (text, line) in [
            (String::new(), 1),
            (format!("{range}\n"), 1),
            (format!("{HEADER}\n{HEADER}\n"), 2),
            (format!("{HEADER}\n{range}\nnonsense\n"), 3),
            (HEADER.replace("trace\":1", "trace\":2") + "\n", 1),
            (format!("{HEADER}\n{}\n", range.replace("\"a\"", "\"%zz\"")), 2),
            (format!("{HEADER}\n{}\n", range.replace(":0,\"le", ":18446744073709551615,\"le")), 2),
            (format!("{HEADER}\n{{\"lost\":1,\"x\":2}}\n"), 2),
            (format!("{HEADER}\n{}\n", " ".repeat(LINE_LIMIT_BYTES + 1)), 2),
        ] {
            assert_eq!(Trace::parse(text.as_bytes()).unwrap_err().line, line, "{text:.200}");
        }
    }

    #[test]
    fn a_trace_has_as_many_lines_as_a_recorder_writes_and_no_more() {
        // Empty lines count as lines. They keep the test fast.
        let text = |empty| format!("{HEADER}{}\n{{\"lost\":1}}\n", "\n".repeat(empty));
        assert_eq!(Trace::parse(text(TRACE_LINES - 2).as_bytes()).unwrap().lost, 1);
        let error = Trace::parse(text(TRACE_LINES - 1).as_bytes()).unwrap_err();
        assert_eq!(error.line, TRACE_LINES + 1);
        assert!(error.to_string().contains("more than 1250000 lines"), "{error}");
    }

    #[test]
    fn a_range_may_end_at_the_last_offset_of_64_bits() {
        let range =
            r#"{"at_ms":18446744073709551615,"path":"a","offset":1,"length":18446744073709551614}"#;
        let lost = r#"{"lost":18446744073709551615}"#;
        let text = format!("{HEADER}\n{range}\n{lost}\n{lost}\n");
        let trace = Trace::parse(text.as_bytes()).unwrap();
        assert_eq!((trace.ranges[0].length, trace.lost), (u64::MAX - 1, u64::MAX));
        for hostile in ["-1", "1.5", "1e3", "18446744073709551616", "\"1\"", "null"] {
            let range = range.replace("18446744073709551614", hostile);
            let error = Trace::parse(format!("{HEADER}\n{range}\n").as_bytes()).unwrap_err();
            assert_eq!(error.line, 2, "{hostile}");
        }
    }

    #[test]
    fn a_slow_recorder_loses_reads_and_gets_their_number() {
        let log = AccessLog::default();
        log.note(NodeId(1), 0, 1);
        let mut queue = log.start().unwrap();
        assert!(log.start().is_none(), "one at a time");
        (0..QUEUE as u64 + 5).for_each(|offset| log.note(NodeId(1), offset, 1));
        assert_eq!(queue.try_recv().unwrap().offset, 0, "no read from before the recording");
        assert_eq!(log.take_lost(), 5);
        drop(queue);
        log.note(NodeId(1), 0, 1);
        assert!(!log.is_on.load(Ordering::Relaxed));
        assert!(log.start().is_some());
    }

    #[test]
    fn a_sequential_reader_makes_one_entry_in_any_order_of_its_requests() {
        const BLOCK: u64 = 128 * 1024;
        let merged = |blocks: &[u64]| {
            let mut merger = Merger::default();
            let mut lines = Vec::new();
            for block in blocks {
                lines.extend(merger.push(access(1, block * BLOCK, BLOCK)));
            }
            lines.extend(merger.finish());
            lines.iter().map(|line| (line.offset / BLOCK, line.length / BLOCK)).collect::<Vec<_>>()
        };
        assert_eq!(merged(&[1, 0, 3, 2, 5, 4]), [(0, 6)]);
        assert_eq!(merged(&[0, 4, 2, 1, 3]), [(0, 5)]);
        assert_eq!(merged(&[0, 0, 1, 0]), [(0, 2)]);
        let long: Vec<_> = (0..100).collect();
        assert_eq!(merged(&long), [(0, 64), (64, 36)], "of at most 8 MiB");
    }

    proptest! {
        #[test]
        fn merged_ranges_cover_the_bytes_read_in_the_order_of_their_first_reads(
            reads in prop::collection::vec((0..4u32, 0..12u64, 1..4u64), 0..80),
        ) {
            let mut merger = Merger::default();
            let mut merged = Vec::new();
            for &(node, offset, length) in &reads {
                merged.extend(merger.push(access(node, offset, length)));
            }
            merged.extend(merger.finish());
            let bytes = |node, offset, length| (offset..offset + length).map(move |at| (node, at));
            let mut wanted: Vec<_> =
                reads.iter().flat_map(|&(node, offset, length)| bytes(node, offset, length)).collect();
            let mut got: Vec<_> =
                merged.iter().flat_map(|a| bytes(a.node.0, a.offset, a.length)).collect();
            for bytes in [&mut wanted, &mut got] {
                bytes.sort_unstable();
                bytes.dedup();
            }
            prop_assert_eq!(wanted, got);
            prop_assert!(merged.is_sorted_by_key(|access| access.at));
        }

        #[test]
        fn arbitrary_text_does_no_harm(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Trace::parse(&text);
        }

    }
}
