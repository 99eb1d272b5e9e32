//! A push scanner for tar archives: finds the members from the headers alone (docs/format/tar.md).
//!
//! Sans-IO. The scanner never needs a member's content: the caller reads an uncompressed layer from
//! header to header, or shows the whole stream of a compressed one.
//!
//! ```text
//!            records (x g L K X) complete
//!           .--------------------------.
//!           v                          |        map complete
//! start -> Header ---x g L K X---> Records   .----------------.
//!           |  ^ |                           v                |
//!           |  | '--sparse file with more of its map---> SparseMap
//!           |  '-- any other entry, a zero block
//!           '--> Finished: no header behind zero blocks, or too many zero blocks
//! ```
//!
//! The tree is the one that GNU tar extracts, with `--ignore-zeros` where that brings more. Where
//! lenience would hide a damaged archive the scanner is stricter: a wrong checksum, records without
//! their entry.

mod end;
mod entry;
mod header;
mod links;
mod members;
mod records;
mod sparse;
mod sparse_file;
#[cfg(test)]
mod tests;
mod warnings;
pub mod write;

use std::ops::Range;

use self::end::End;
use self::entry::{Entry, EntryKind};
use self::header::{BLOCK_BYTES, Header};
use self::members::Members;
use self::records::Records;
use self::sparse_file::SparseFile;
use self::warnings::Warnings;
use super::decode::compression_of;
use super::member_path::shown;
use super::{Extents, Member, MemberKind, StreamOffset, Toc, replaced};

pub use self::members::{MEMBERS_LIMIT, NAMES_LIMIT_BYTES};

/// The largest extended header or long name. GNU tar's older sparse formats keep a file's map in
/// one: 16 MiB hold some 300,000 runs of data. Only one is in memory at a time.
const RECORDS_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// The longest stream: file offsets are signed 64-bit numbers.
const STREAM_LIMIT_BYTES: u64 = i64::MAX as u64;
/// The fault of an archive, with the entry and the stream offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TarError(String);

/// Finds the members of an archive. The caller shows its bytes in order, and may leave out the
/// content of members.
pub struct Scanner {
    state: State,
    /// The offset of `buffer`: of a header, of the content of records, or of a block of a sparse
    /// map.
    at: StreamOffset,
    /// The bytes of the header, records or block so far.
    buffer: Vec<u8>,
    last: Last,
    /// The records since the last entry, which are about the next one.
    pending: Option<Records>,
    /// The global records, which are about every later entry.
    global: Records,
    /// The sparse file whose map is incomplete.
    sparse: Option<SparseFile>,
    /// The end of the last entry's content, where it is doubtful whether the entry has any.
    doubtful_end: Option<StreamOffset>,
    end: End,
    members: Members,
    warnings: Warnings,
}

/// The bytes that the scanner waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A header.
    Header,
    /// This many bytes of records of this type.
    Records { kind: u8, bytes: usize },
    /// A block of the map of [`Scanner::sparse`].
    SparseMap,
    /// Nothing.
    Finished,
}

/// The last entry, for the message when the stream ends inside it.
struct Last {
    name: Vec<u8>,
    content_end: StreamOffset,
}

impl Scanner {
    /// A scanner at the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            at: StreamOffset(0),
            buffer: Vec::with_capacity(BLOCK_BYTES),
            last: Last { name: Vec::new(), content_end: StreamOffset(0) },
            pending: None,
            global: Records::default(),
            sparse: None,
            doubtful_end: None,
            end: End::default(),
            members: Members::default(),
            warnings: Warnings::default(),
        }
    }

    /// Shows bytes of the stream that start at `at`, which is at most [`Self::next_offset`]. Bytes
    /// before `next_offset` are passed over, so overlaps and member content do no harm.
    ///
    /// # Errors
    /// Fails if the archive is malformed or hostile. The scanner is of no use afterwards.
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

    /// The first byte of the stream that the scanner needs next: the rest of a header that has
    /// begun, or the header behind a member's content.
    pub fn next_offset(&self) -> StreamOffset {
        self.at + self.buffer.len() as u64
    }

    /// The members found so far. The list only grows.
    pub fn members(&self) -> &[Member] {
        self.members.all()
    }

    /// Whether nothing more is needed, though the stream may go on.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// The table of contents of an archive whose stream has `stream_bytes` bytes.
    ///
    /// An archive may end with two zero blocks, with one, or just behind its last entry.
    ///
    /// # Errors
    /// Fails if the archive ends inside a header or a member's content, or was not shown to its end.
    pub fn finish(mut self, stream_bytes: u64) -> Result<Toc, TarError> {
        self.leave_out_rest();
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
            && (!self.buffer.is_empty() || self.state != State::Header)
        {
            let missing = (wanted_bytes - self.buffer.len()) as u64;
            if compression_of(&self.buffer).is_some() && self.at == StreamOffset(0) {
                return Err(not_a_header(self.at, &self.buffer, ""));
            }
            return match &self.sparse {
                Some(file) => {
                    let name = shown(&file.name);
                    ends_inside(format!("the sparse map of `{name}`"), missing)
                }
                None => ends_inside(format!("the header at byte {}", self.at.get()), missing),
            };
        }
        if self.pending.is_some() {
            return Err(self.missing_entry());
        }
        let mut warnings = self.warnings.finish();
        warnings.extend(self.end.warning(stream_bytes));
        let mut members = self.members.into_all();
        warnings.extend(replaced::mark(&mut members));
        Ok(Toc { members, stream_bytes, warnings })
    }

    /// Ends a stream that stops inside a block behind zero blocks: such a part is no header.
    fn leave_out_rest(&mut self) {
        if self.state != State::Header || !self.end.is_behind_zeros() {
            return;
        }
        if self.buffer.iter().any(|&byte| byte != 0) {
            self.end.garbage(self.at);
        }
        self.at = self.next_offset();
        self.buffer.clear();
    }

    fn missing_entry(&self) -> TarError {
        TarError(format!(
            "the archive ends at byte {} behind a long name or PAX records, and their entry is missing",
            self.at.get()
        ))
    }

    /// The bytes from `at` on that the state needs; `None` at the end.
    fn wanted_bytes(&self) -> Option<usize> {
        match self.state {
            State::Header | State::SparseMap => Some(BLOCK_BYTES),
            State::Records { bytes, .. } => Some(bytes),
            State::Finished => None,
        }
    }

    /// Takes in a complete header, block or records.
    fn step(&mut self) -> Result<(), TarError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let block = || buffer.as_slice().try_into().expect("one block is wanted in this state");
        match self.state {
            State::Header => self.block(block())?,
            State::SparseMap => self.sparse_map(block())?,
            State::Records { kind, .. } => self.records(kind, &buffer)?,
            State::Finished => unreachable!("nothing is buffered at the end"),
        }
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }

    /// Takes in a block where a header may be.
    fn block(&mut self, block: &[u8; BLOCK_BYTES]) -> Result<(), TarError> {
        let start = self.at;
        if block.iter().all(|&byte| byte == 0) {
            return self.zero_block();
        }
        match Header::decode(block) {
            Ok(header) => {
                self.doubtful_end = None;
                if self.end.header() {
                    // Global records are about the entries of one archive.
                    self.global = Records::default();
                }
                self.header(&header, block)
            }
            // The block is content, then.
            Err(_) if let Some(end) = self.doubtful_end.take() => {
                self.at = end;
                Ok(())
            }
            Err(_) if self.end.garbage(start) => {
                self.state = State::Finished;
                Ok(())
            }
            Err(reason) => Err(not_a_header(start, block, &reason)),
        }
    }

    fn zero_block(&mut self) -> Result<(), TarError> {
        if self.pending.is_some() {
            return Err(self.missing_entry());
        }
        self.doubtful_end = None;
        if self.end.zero_block(self.at) {
            self.state = State::Finished;
        }
        self.at += BLOCK_BYTES as u64;
        Ok(())
    }

    fn header(&mut self, header: &Header, block: &[u8; BLOCK_BYTES]) -> Result<(), TarError> {
        // Solaris writes `X` for `x`.
        if !matches!(header.kind, b'x' | b'g' | b'L' | b'K' | b'X') {
            return self.entry(header, block);
        }
        if header.size > RECORDS_LIMIT_BYTES {
            return Err(TarError(format!(
                "the header at byte {}: its PAX records or long name have {} bytes, and \
                 {RECORDS_LIMIT_BYTES} are the limit",
                self.at.get(),
                header.size
            )));
        }
        self.state = State::Records { kind: header.kind, bytes: header.size as usize };
        self.at += BLOCK_BYTES as u64;
        match header.size {
            0 => self.records(header.kind, &[]),
            _ => Ok(()),
        }
    }

    fn records(&mut self, kind: u8, content: &[u8]) -> Result<(), TarError> {
        let start = self.at;
        let most_runs = self.members.most_runs();
        let records = match kind {
            b'g' => &mut self.global,
            _ => self.pending.get_or_insert_default(),
        };
        match kind {
            b'L' => records.set_long_name(content),
            b'K' => records.set_long_link_name(content),
            _ => records.decode_pax(content, most_runs).map_err(|reason| {
                TarError(format!("the extended header at byte {}: {reason}", start.get()))
            })?,
        }
        self.state = State::Header;
        self.at = start + (content.len() as u64).next_multiple_of(BLOCK_BYTES as u64);
        Ok(())
    }

    fn entry(&mut self, header: &Header, block: &[u8; BLOCK_BYTES]) -> Result<(), TarError> {
        let start = self.at;
        let mut records = self.pending.take().unwrap_or_default().over(&self.global);
        self.global.end_continued();
        let name = records.take_path().unwrap_or_else(|| header.name.clone());
        let fault = |reason: String| {
            TarError(format!("entry `{}` (header at byte {}): {reason}", shown(&name), start.get()))
        };
        let entry = Entry::new(header, &name, records).map_err(fault)?;
        let content = start + BLOCK_BYTES as u64;
        let next = behind(content, entry.content_bytes).map_err(fault)?;
        if entry.had_slash {
            self.warnings.slash(&name);
        }
        self.state = State::Header;
        if entry.has_doubtful_content && entry.content_bytes > 0 {
            self.doubtful_end = Some(next);
            self.at = content;
            self.last = Last { name: name.clone(), content_end: content };
            return self.take(entry, &name, content..content, block).map_err(fault);
        }
        let content = content..content + entry.content_bytes;
        self.at = next;
        self.last = Last { name: name.clone(), content_end: content.end };
        self.take(entry, &name, content, block).map_err(fault)
    }

    /// Makes the entry a member, or passes it over.
    fn take(
        &mut self,
        entry: Entry,
        name: &[u8],
        content: Range<StreamOffset>,
        block: &[u8; BLOCK_BYTES],
    ) -> Result<(), String> {
        let Entry { kind, mode, mtime, .. } = entry;
        let (path, kind) = match kind {
            EntryKind::File(path) => (path, MemberKind::File(Extents::contiguous(content))),
            EntryKind::FileOfUnknownType(path, flag) => {
                self.warnings.unknown_type(name, flag);
                (path, MemberKind::File(Extents::contiguous(content)))
            }
            EntryKind::SparseFile(path, map) => {
                let most_runs = self.members.most_runs();
                let kind = MemberKind::File(Extents::contiguous(content));
                let member = Member { path: Some(path), kind, mode, mtime, is_replaced: false };
                return self.take_sparse(SparseFile::new(member, name, map, block, most_runs)?);
            }
            EntryKind::Directory(None) | EntryKind::Silent => return Ok(()),
            EntryKind::Directory(Some(path)) => (path, MemberKind::Directory),
            EntryKind::Symlink(path, target) => (path, MemberKind::Symlink(target)),
            EntryKind::HardLink { path, target } => {
                match self.members.find(&target) {
                    // A hard link is the same inode, so it has the target's content, mode and time.
                    Some(member) => {
                        let member = Member { path: Some(path), ..member.clone() };
                        return self.members.push(member);
                    }
                    None if !content.is_empty() => {
                        (path, MemberKind::File(Extents::contiguous(content)))
                    }
                    None => {
                        self.warnings.missing_target(name, &target.to_string());
                        return Ok(());
                    }
                }
            }
            EntryKind::PassedOver(what) => {
                self.warnings.passed_over(name, what);
                return Ok(());
            }
        };
        self.members.push(Member { path: Some(path), kind, mode, mtime, is_replaced: false })
    }

    /// Takes in a block of a sparse file's map.
    fn sparse_map(&mut self, block: &[u8; BLOCK_BYTES]) -> Result<(), TarError> {
        let mut file = self.sparse.take().expect("the state says that a map is incomplete");
        let (name, start) = (file.name.clone(), file.content.start);
        let fault = |reason: String| {
            let (name, at) = (shown(&name), start.get());
            TarError(format!("the sparse file `{name}` (data at byte {at}): {reason}"))
        };
        file.take_block(block, self.members.most_runs()).map_err(fault)?;
        self.take_sparse(file).map_err(fault)
    }

    /// Makes a sparse file a member, or waits for the rest of its map.
    fn take_sparse(&mut self, file: SparseFile) -> Result<(), String> {
        self.last = Last { name: file.name.clone(), content_end: file.content.end };
        if file.has_more {
            self.at = file.next_block;
            self.sparse = Some(file);
            self.state = State::SparseMap;
            return Ok(());
        }
        self.at = behind(file.content.start, file.content.end - file.content.start)?;
        self.state = State::Header;
        self.members.push(file.into_member()?)
    }
}

/// The error for bytes that are no header. At the start of a layer, a magic number may name the
/// tool that wrote them.
fn not_a_header(at: StreamOffset, bytes: &[u8], reason: &str) -> TarError {
    match compression_of(bytes).filter(|_| at == StreamOffset(0)) {
        Some(tool) => TarError(format!(
            "it is compressed with {tool}, and its media type says that it is not compressed"
        )),
        None => TarError(format!("the header at byte {}: {reason}", at.get())),
    }
}

/// The offset of the next header, behind that much content.
fn behind(content: StreamOffset, bytes: u64) -> Result<StreamOffset, String> {
    let padded = bytes.checked_next_multiple_of(BLOCK_BYTES as u64);
    padded
        .and_then(|padded| content.get().checked_add(padded))
        .filter(|&next| next <= STREAM_LIMIT_BYTES)
        .map(StreamOffset)
        .ok_or_else(|| format!("its size is impossible: {bytes}"))
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}
