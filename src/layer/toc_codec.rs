//! The table of contents as a file (docs/format/toc.md).
//!
//! ```text
//! | header 32 | record 40 | record 40 | ... | details ... | warnings ... | crc32c 4 |
//! ```
//!
//! Records have a fixed size, so a count is checked against the length of the file before anything
//! is allocated. The details follow in the order of the records: a member's path, then a symlink's
//! target or a sparse file's map. The encoding is canonical: a file of this version that decodes
//! has the bytes that its table encodes to.
//!
//! Version 1 is read too, so that a layer stays in the cache when kitfs is updated.

use std::ops::Range;

use super::{Extents, Member, MemberKind, MemberPath, Mtime, StreamOffset, Toc, replaced};

const MAGIC: &[u8; 8] = b"kitfstoc";
/// Raised when the layout changes.
const VERSION: u32 = 2;
/// Has no sparse files and no nanoseconds, and does not say which members are replaced.
const VERSION_1: u32 = 1;
const HEADER_BYTES: usize = 32;
const RECORD_BYTES: usize = 40;
const CHECKSUM_BYTES: usize = 4;
/// The longest target of a symbolic link, as the tar scanner has it.
const TARGET_LIMIT_BYTES: usize = 4095;

const KIND_FILE: u8 = 0;
const KIND_DIRECTORY: u8 = 1;
const KIND_SYMLINK: u8 = 2;
const KIND_SPARSE_FILE: u8 = 3;

const FLAG_REPLACED: u8 = 1;

/// The error for a file that is no table of contents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a usable table of contents: {0}")]
pub struct TocCodecError(String);

/// The bytes of a toc file: magic, version, lengths, checksum.
pub fn encode(toc: &Toc) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + toc.members.len() * (RECORD_BYTES + 32));
    bytes.extend_from_slice(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(toc.stream_bytes.to_le_bytes());
    bytes.extend(length(toc.members.len()));
    bytes.extend(length(toc.warnings.len()));
    for member in &toc.members {
        encode_record(&mut bytes, member);
    }
    for member in &toc.members {
        bytes.extend_from_slice(member.path.as_ref().map_or(b"", MemberPath::as_bytes));
        match &member.kind {
            MemberKind::File(extents) if !extents.is_contiguous() => {
                encode_map(&mut bytes, extents);
            }
            MemberKind::Symlink(target) => bytes.extend_from_slice(target),
            MemberKind::File(_) | MemberKind::Directory => {}
        }
    }
    for warning in &toc.warnings {
        bytes.extend(length(warning.len()));
        bytes.extend_from_slice(warning.as_bytes());
    }
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_le_bytes());
    bytes
}

fn encode_record(bytes: &mut Vec<u8>, member: &Member) {
    let nowhere = StreamOffset(0)..StreamOffset(0);
    let (kind, detail, stored) = match &member.kind {
        MemberKind::File(extents) if extents.is_contiguous() => (KIND_FILE, 0, extents.stored()),
        MemberKind::File(extents) => (KIND_SPARSE_FILE, extents.mapped_runs(), extents.stored()),
        MemberKind::Directory => (KIND_DIRECTORY, 0, nowhere),
        MemberKind::Symlink(target) => (KIND_SYMLINK, target.len(), nowhere),
    };
    bytes.extend([kind, if member.is_replaced { FLAG_REPLACED } else { 0 }]);
    bytes.extend(((member.mode & 0o777) as u16).to_le_bytes());
    bytes.extend(length(member.path.as_ref().map_or(0, |path| path.as_bytes().len())));
    bytes.extend(length(detail));
    bytes.extend(member.mtime.map_or(0, Mtime::nanoseconds).to_le_bytes());
    bytes.extend(member.mtime.map_or(0, |mtime| u64::from(mtime.seconds())).to_le_bytes());
    bytes.extend(stored.start.get().to_le_bytes());
    bytes.extend((stored.end - stored.start).to_le_bytes());
}

fn encode_map(bytes: &mut Vec<u8>, extents: &Extents) {
    bytes.extend(extents.bytes().to_le_bytes());
    for run in extents.data(0..extents.bytes()) {
        bytes.extend(run.file.start.to_le_bytes());
        bytes.extend((run.file.end - run.file.start).to_le_bytes());
    }
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count)
        .expect("members, names, runs and warnings are bounded far below 2^32")
        .to_le_bytes()
}

/// The table of contents in the bytes of a toc file; every length and offset is checked.
///
/// # Errors
/// Fails if the checksum or the version is wrong, or [`encode`] would not write a value. The caller
/// makes the table again from the layer.
pub fn decode(bytes: &[u8]) -> Result<Toc, TocCodecError> {
    decode_checked(bytes).map_err(|reason| TocCodecError(reason.to_owned()))
}

/// The values of a record, before its details are read.
struct Record {
    kind: u8,
    is_replaced: bool,
    mode: u32,
    path_bytes: usize,
    /// The length of a symlink's target, or the number of runs in a sparse file's map.
    detail: usize,
    mtime: Option<Mtime>,
    stored: Range<StreamOffset>,
}

fn decode_checked(bytes: &[u8]) -> Result<Toc, &'static str> {
    let (version, mut rest) = verified(bytes)?;
    let header = take(&mut rest, HEADER_BYTES)?;
    if read::<4>(header, 12) != [0; 4] {
        return Err("reserved bytes are set");
    }
    let stream_bytes = u64::from_le_bytes(read(header, 16));
    let members = u32::from_le_bytes(read(header, 24)) as usize;
    let warnings = u32::from_le_bytes(read(header, 28)) as usize;
    let records_bytes = members.checked_mul(RECORD_BYTES).ok_or("it counts too many members")?;
    let records = take(&mut rest, records_bytes)?;
    let records = records
        .chunks_exact(RECORD_BYTES)
        .map(|record| decode_record(record, version, stream_bytes));
    let mut members = records
        .map(|record| decode_member(record?, &mut rest))
        .collect::<Result<Vec<Member>, _>>()?;
    if members.len() > 1 && members.iter().any(|member| member.path.is_none()) {
        return Err("only the one file of a raw layer has no path");
    }
    let mut warnings =
        (0..warnings).map(|_| decode_warning(&mut rest)).collect::<Result<Vec<String>, _>>()?;
    if version == VERSION_1 {
        warnings.extend(replaced::mark(&mut members));
    }
    match rest.is_empty() {
        true => Ok(Toc { members, stream_bytes, warnings }),
        false => Err("bytes are left over at its end"),
    }
}

/// Checks the checksum; returns the version, and the bytes before the checksum.
fn verified(bytes: &[u8]) -> Result<(u32, &[u8]), &'static str> {
    if !bytes.starts_with(MAGIC) {
        return Err("it does not start as one");
    }
    if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES {
        return Err("it is too short");
    }
    let version = u32::from_le_bytes(read(bytes, MAGIC.len()));
    if !matches!(version, VERSION_1 | VERSION) {
        return Err("another version of kitfs wrote it");
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    match crc32c::crc32c(content) == u32::from_le_bytes(read(checksum, 0)) {
        true => Ok((version, content)),
        false => Err("its checksum is wrong"),
    }
}

fn decode_record(record: &[u8], version: u32, stream_bytes: u64) -> Result<Record, &'static str> {
    let start = u64::from_le_bytes(read(record, 24));
    let end = start.checked_add(u64::from_le_bytes(read(record, 32)));
    let end = end.filter(|&end| end <= stream_bytes).ok_or("a member lies outside the stream")?;
    let mode = u16::from_le_bytes(read(record, 2));
    let (flags, nanoseconds) = (record[1], u32::from_le_bytes(read(record, 12)));
    let has_reserved = match version {
        VERSION_1 => flags != 0 || nanoseconds != 0 || record[0] == KIND_SPARSE_FILE,
        _ => flags & !FLAG_REPLACED != 0,
    };
    if has_reserved || mode > 0o777 {
        return Err("a member has impossible permission bits or reserved bytes");
    }
    if !matches!(record[0], KIND_FILE | KIND_SPARSE_FILE) && (start, end) != (0, 0) {
        return Err("a member without content has a range");
    }
    let seconds = i64::from_le_bytes(read(record, 16));
    let mtime = Mtime::new(seconds, nanoseconds);
    if version != VERSION_1 && mtime.is_none() && (seconds, nanoseconds) != (0, 0) {
        return Err("a member has an impossible time");
    }
    Ok(Record {
        kind: record[0],
        is_replaced: flags & FLAG_REPLACED != 0,
        mode: u32::from(mode),
        path_bytes: u32::from_le_bytes(read(record, 4)) as usize,
        detail: u32::from_le_bytes(read(record, 8)) as usize,
        mtime,
        stored: StreamOffset(start)..StreamOffset(end),
    })
}

fn decode_member(record: Record, rest: &mut &[u8]) -> Result<Member, &'static str> {
    let name = take(rest, record.path_bytes)?;
    let path = match name {
        b"" => None,
        name => Some(
            MemberPath::parse(name)
                .ok()
                .filter(|path| path.as_bytes() == name)
                .ok_or("a member's path is not a clean one")?,
        ),
    };
    let kind = match (record.kind, record.detail) {
        (KIND_FILE, 0) => MemberKind::File(Extents::contiguous(record.stored)),
        (KIND_SPARSE_FILE, runs) => MemberKind::File(decode_map(record.stored, runs, rest)?),
        (KIND_DIRECTORY, 0) => MemberKind::Directory,
        (KIND_SYMLINK, target_bytes @ 1..=TARGET_LIMIT_BYTES) => {
            let target = take(rest, target_bytes)?;
            if target.contains(&0) {
                return Err("the target of a link holds a NUL byte");
            }
            MemberKind::Symlink(target.into())
        }
        _ => return Err("a member is of an unknown kind, or its link target is impossible"),
    };
    let Record { mode, mtime, is_replaced, .. } = record;
    Ok(Member { path, kind, mode, mtime, is_replaced })
}

fn decode_map(
    stored: Range<StreamOffset>,
    runs: usize,
    rest: &mut &[u8],
) -> Result<Extents, &'static str> {
    let file_bytes = u64::from_le_bytes(read(take(rest, 8)?, 0));
    let map = take(rest, runs.checked_mul(16).ok_or("it counts too many runs")?)?;
    let ranges = map.chunks_exact(16).map(|run| {
        let start = u64::from_le_bytes(read(run, 0));
        start..start.saturating_add(u64::from_le_bytes(read(run, 8)))
    });
    Extents::sparse(stored, file_bytes, ranges)
        .ok()
        .filter(|extents| !extents.is_contiguous() && extents.mapped_runs() == runs)
        .ok_or("the map of a sparse file is impossible")
}

fn decode_warning(rest: &mut &[u8]) -> Result<String, &'static str> {
    let bytes = u32::from_le_bytes(read(take(rest, 4)?, 0)) as usize;
    let text = std::str::from_utf8(take(rest, bytes)?).map_err(|_| "a warning is not UTF-8")?;
    Ok(text.to_owned())
}

/// Takes `count` bytes from the front.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], &'static str> {
    let (taken, left) = rest.split_at_checked(count).ok_or("it ends too early")?;
    *rest = left;
    Ok(taken)
}

/// The `N` bytes at `at` of a slice whose length was checked.
fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

#[cfg(test)]
mod tests;
