//! A push scanner for tar archives: finds the members from the headers alone (docs/format/tar.md).
//!
//! Sans-IO, and it never needs a member's content: whoever feeds it jumps from header to header
//! over an uncompressed layer, or shows it the whole stream of a compressed one.
//!
//! ```text
//!            records (x g L K) complete              two zero blocks
//!           .------------------------.             .----------------> Finished
//!           v                        |             |
//! start -> Header ---x g L K---> Records       Header
//!           |  ^
//!           '--' any other entry: on to the header behind its content
//! ```
//!
//! Reads what Go's `archive/tar` reads (kit writes and unpacks with it), and beyond that hard links,
//! symlinks and contiguous files; it is stricter where lenience would hide a damaged archive: a
//! wrong checksum, a lone zero block, records without their entry.

mod entry;
mod header;
mod links;
mod records;
#[cfg(test)]
mod tests;

use self::entry::{Entry, EntryKind};
use self::header::{BLOCK_BYTES, Header};
use self::links::Targets;
use self::records::Records;
use super::member_path::shown;
use super::{Member, MemberKind, MemberPath, StreamOffset, Toc};

/// The largest extended header or long name. Paths have 4 KiB at most, and 1 MiB is what Go's
/// `archive/tar` allows.
const RECORDS_LIMIT_BYTES: u64 = 1024 * 1024;
/// The most members of an archive: all 14 million images of ImageNet in one layer fit, in about
/// 1.5 GB of memory.
pub const MEMBERS_LIMIT: usize = 16 * 1024 * 1024;
/// The most bytes of names together: 64 for each of [`MEMBERS_LIMIT`]. Without it, a compressed
/// layer of a few megabytes could ask for 64 GB.
pub const NAMES_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;
/// How far a stream may reach: file offsets are signed 64-bit numbers.
const STREAM_LIMIT_BYTES: u64 = i64::MAX as u64;
/// Warnings kept of one archive: enough to see what kind of thing was passed over.
const WARNINGS_LIMIT: usize = 16;

/// What is wrong with an archive; names the entry and the stream offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TarError(String);

/// Finds the members of an archive whose bytes it is shown in order, member content left out at will.
pub struct Scanner {
    state: State,
    /// Where `buffer` starts: at a header, or at the content of records.
    at: StreamOffset,
    /// What is there of the header or records so far.
    buffer: Vec<u8>,
    last: Last,
    /// What the records since the last entry say about the next.
    pending: Option<Records>,
    /// What global records say about every entry to come.
    global: Records,
    targets: Targets,
    names_bytes: u64,
    members: Vec<Member>,
    warnings: Vec<String>,
    passed_over: usize,
}

/// What the scanner waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A header.
    Header { is_behind_zero_block: bool },
    /// This many bytes of records of this type.
    Records { kind: u8, bytes: usize },
    /// Nothing: the end marker was seen.
    Finished,
}

/// The last entry, for the message when the stream ends inside it.
struct Last {
    name: Vec<u8>,
    content_end: StreamOffset,
}

const AT_HEADER: State = State::Header { is_behind_zero_block: false };

impl Scanner {
    /// A scanner at the start of an archive.
    pub fn new() -> Self {
        Self {
            state: AT_HEADER,
            at: StreamOffset(0),
            buffer: Vec::with_capacity(BLOCK_BYTES),
            last: Last { name: Vec::new(), content_end: StreamOffset(0) },
            pending: None,
            global: Records::default(),
            targets: Targets::default(),
            names_bytes: 0,
            members: Vec::new(),
            warnings: Vec::new(),
            passed_over: 0,
        }
    }

    /// Shows bytes of the stream that start at `at`, which is at most [`Self::next_offset`]. What
    /// lies before `next_offset` is passed over, so overlaps and member content do no harm.
    ///
    /// # Errors
    /// When the archive is malformed or hostile. The scanner is of no use afterwards.
    pub fn feed(&mut self, at: StreamOffset, bytes: &[u8]) -> Result<(), TarError> {
        assert!(at <= self.next_offset(), "bytes are shown without a gap at a header");
        while let Some(wanted_bytes) = self.wanted_bytes() {
            let skipped = usize::try_from(self.next_offset() - at).unwrap_or(usize::MAX);
            let Some(rest) = bytes.get(skipped..).filter(|rest| !rest.is_empty()) else { break };
            let missing = wanted_bytes - self.buffer.len();
            self.buffer.extend_from_slice(&rest[..missing.min(rest.len())]);
            if self.buffer.len() == wanted_bytes {
                self.step()?;
            }
        }
        Ok(())
    }

    /// The first byte of the stream that the scanner needs to go on: behind what it has
    /// buffered of a header, or the next header behind a member's content.
    pub fn next_offset(&self) -> StreamOffset {
        self.at + self.buffer.len() as u64
    }

    /// The members found so far; only ever grows.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether the end marker was seen: nothing more is needed.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// The table of contents of an archive whose stream has `stream_bytes` bytes.
    ///
    /// An archive may end with two zero blocks, with one, or just behind its last entry.
    ///
    /// # Errors
    /// When the archive ends inside a header or a member's content, or was not shown to its end.
    pub fn finish(mut self, stream_bytes: u64) -> Result<Toc, TarError> {
        let next = self.next_offset().get();
        let ends_inside = |what: String, missing: u64| {
            Err(TarError(format!("the archive ends inside {what}: {missing} bytes are missing")))
        };
        if self.last.content_end.get() > stream_bytes {
            let missing = self.last.content_end.get() - stream_bytes;
            return ends_inside(format!("the content of `{}`", shown(&self.last.name)), missing);
        }
        if self.state != State::Finished && next < stream_bytes {
            return Err(TarError(format!(
                "the archive was read to byte {next} of {stream_bytes} only"
            )));
        }
        if let Some(wanted_bytes) = self.wanted_bytes()
            && (!self.buffer.is_empty() || matches!(self.state, State::Records { .. }))
        {
            let missing = wanted_bytes - self.buffer.len();
            return ends_inside(format!("the header at byte {}", self.at.get()), missing as u64);
        }
        if self.pending.is_some() {
            return Err(TarError(format!(
                "the archive ends at byte {} behind a long name or PAX records, and their entry \
                 is missing",
                self.at.get()
            )));
        }
        if self.passed_over > WARNINGS_LIMIT {
            let more = self.passed_over - WARNINGS_LIMIT;
            self.warnings.push(format!("{more} more entries were passed over"));
        }
        Ok(Toc { members: self.members, stream_bytes, warnings: self.warnings })
    }

    /// How many bytes from `at` on the state needs; `None` when it needs no more.
    fn wanted_bytes(&self) -> Option<usize> {
        match self.state {
            State::Header { .. } => Some(BLOCK_BYTES),
            State::Records { bytes, .. } => Some(bytes),
            State::Finished => None,
        }
    }

    /// Takes in a complete header or records.
    fn step(&mut self) -> Result<(), TarError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        match self.state {
            State::Header { is_behind_zero_block } => {
                let block = buffer.as_slice().try_into().expect("a header is one block");
                self.header(block, is_behind_zero_block)?;
            }
            State::Records { kind, .. } => self.records(kind, &buffer)?,
            State::Finished => unreachable!("nothing is buffered behind the end marker"),
        }
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    fn header(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        is_behind_zero_block: bool,
    ) -> Result<(), TarError> {
        let start = self.at;
        let fault =
            |reason: String| TarError(format!("the header at byte {}: {reason}", start.get()));
        if block.iter().all(|&byte| byte == 0) {
            self.at = start + BLOCK_BYTES as u64;
            self.state = match is_behind_zero_block {
                true => State::Finished,
                false => State::Header { is_behind_zero_block: true },
            };
            return Ok(());
        }
        if is_behind_zero_block {
            return Err(fault(
                "there is a single zero block before it, which ends no archive".into(),
            ));
        }
        let header = Header::decode(block).map_err(fault)?;
        let content = start + BLOCK_BYTES as u64;
        if !matches!(header.kind, b'x' | b'g' | b'L' | b'K') {
            return self.entry(header, start);
        }
        if header.size > RECORDS_LIMIT_BYTES {
            return Err(fault(format!(
                "its PAX records or long name have {} bytes, and {RECORDS_LIMIT_BYTES} are the limit",
                header.size
            )));
        }
        self.state = State::Records { kind: header.kind, bytes: header.size as usize };
        self.at = content;
        match header.size {
            0 => self.records(header.kind, &[]),
            _ => Ok(()),
        }
    }

    fn records(&mut self, kind: u8, content: &[u8]) -> Result<(), TarError> {
        let start = self.at;
        let records = match kind {
            b'g' => &mut self.global,
            _ => self.pending.get_or_insert_default(),
        };
        match kind {
            b'L' => records.set_long_name(content),
            b'K' => records.set_long_link_name(content),
            _ => records.decode_pax(content).map_err(|reason| {
                TarError(format!("the extended header at byte {}: {reason}", start.get()))
            })?,
        }
        self.state = AT_HEADER;
        self.at = start + (content.len() as u64).next_multiple_of(BLOCK_BYTES as u64);
        Ok(())
    }

    fn entry(&mut self, header: Header, start: StreamOffset) -> Result<(), TarError> {
        let mut records = self.pending.take().unwrap_or_default().over(&self.global);
        let name = records.take_path().unwrap_or_else(|| header.name.clone());
        let fault = |reason: String| {
            TarError(format!("entry `{}` (header at byte {}): {reason}", shown(&name), start.get()))
        };
        let entry = Entry::new(&header, &name, records).map_err(fault)?;
        let content = start + BLOCK_BYTES as u64;
        let padded = entry.content_bytes.checked_next_multiple_of(BLOCK_BYTES as u64);
        let next = padded
            .and_then(|padded| content.get().checked_add(padded))
            .filter(|&next| next <= STREAM_LIMIT_BYTES)
            .ok_or_else(|| fault(format!("its size is impossible: {}", entry.content_bytes)))?;
        let content_end = content + entry.content_bytes;
        self.take(entry, &name, content..content_end).map_err(fault)?;
        self.state = AT_HEADER;
        self.at = StreamOffset(next);
        self.last = Last { name, content_end };
        Ok(())
    }

    /// Makes the entry a member, or passes it over.
    fn take(
        &mut self,
        entry: Entry,
        name: &[u8],
        content: std::ops::Range<StreamOffset>,
    ) -> Result<(), String> {
        let Entry { kind, mode, mtime_seconds, .. } = entry;
        match kind {
            EntryKind::File(path) => {
                self.push(path, MemberKind::File(content), mode, mtime_seconds)
            }
            EntryKind::Directory(None) => Ok(()),
            EntryKind::Directory(Some(path)) => {
                self.push(path, MemberKind::Directory, mode, mtime_seconds)
            }
            EntryKind::Symlink(path, target) => {
                self.push(path, MemberKind::Symlink(target), mode, mtime_seconds)
            }
            EntryKind::HardLink { path, target } => {
                // A hard link is the same inode: what the target is, so is the link.
                let target = self.targets.find(&self.members, &target).ok_or_else(|| {
                    format!("it is a hard link to `{target}`, and no earlier file has that name")
                })?;
                let Member { kind, mode, mtime_seconds, .. } = target.clone();
                self.push(path, kind, mode, mtime_seconds)
            }
            EntryKind::Other(what) => {
                self.passed_over += 1;
                if self.passed_over <= WARNINGS_LIMIT {
                    self.warnings.push(format!("`{}` is {what}: passed over", shown(name)));
                }
                Ok(())
            }
        }
    }

    fn push(
        &mut self,
        path: MemberPath,
        kind: MemberKind,
        mode: u32,
        mtime_seconds: i64,
    ) -> Result<(), String> {
        let member = Member { path: Some(path), kind, mode, mtime_seconds };
        self.names_bytes += member.names_bytes();
        if self.members.len() == MEMBERS_LIMIT || self.names_bytes > NAMES_LIMIT_BYTES {
            return Err(format!(
                "the archive has more than {MEMBERS_LIMIT} members, or {NAMES_LIMIT_BYTES} bytes \
                 of names"
            ));
        }
        self.members.push(member);
        Ok(())
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}
