//! The table of contents as a file (docs/format/toc.md).
//!
//! ```text
//! | header 32 | record 40 | record 40 | ... | names ... | warnings ... | crc32c 4 |
//! ```
//!
//! The records have a fixed size, so that a count is checked against the length of the file before
//! anything is allocated; names follow in the order of the records. The encoding is canonical: a
//! file that decodes is the one that its table encodes to.

use std::ops::Range;

use super::{Member, MemberKind, MemberPath, StreamOffset, Toc};

const MAGIC: &[u8; 8] = b"kitfstoc";
/// Raised when the layout changes; older files are then made again from the layer.
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const RECORD_BYTES: usize = 40;
const CHECKSUM_BYTES: usize = 4;
/// The longest target of a symbolic link, as the tar scanner has it.
const TARGET_LIMIT_BYTES: usize = 4095;

const KIND_FILE: u8 = 0;
const KIND_DIRECTORY: u8 = 1;
const KIND_SYMLINK: u8 = 2;

/// Why a file is not a table of contents.
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
        bytes.extend_from_slice(target_of(member));
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
    let (kind, range) = match &member.kind {
        MemberKind::File(range) => (KIND_FILE, range.clone()),
        MemberKind::Directory => (KIND_DIRECTORY, nowhere),
        MemberKind::Symlink(_) => (KIND_SYMLINK, nowhere),
    };
    bytes.extend([kind, 0]);
    bytes.extend(((member.mode & 0o777) as u16).to_le_bytes());
    bytes.extend(length(member.path.as_ref().map_or(0, |path| path.as_bytes().len())));
    bytes.extend(length(target_of(member).len()));
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(member.mtime_seconds.to_le_bytes());
    bytes.extend(range.start.get().to_le_bytes());
    bytes.extend((range.end - range.start).to_le_bytes());
}

fn length(count: usize) -> [u8; 4] {
    u32::try_from(count)
        .expect("members, names and warnings are bounded far below 2^32")
        .to_le_bytes()
}

fn target_of(member: &Member) -> &[u8] {
    match &member.kind {
        MemberKind::Symlink(target) => target,
        MemberKind::File(_) | MemberKind::Directory => b"",
    }
}

/// The table of contents in the bytes of a toc file; every length and offset is checked.
///
/// # Errors
/// When the checksum or the version is wrong, or a value is not one that [`encode`] writes. The
/// file is then of no use, and the table is to be made again from the layer.
pub fn decode(bytes: &[u8]) -> Result<Toc, TocCodecError> {
    decode_checked(bytes).map_err(|reason| TocCodecError(reason.to_owned()))
}

/// A record's values, before its names are read.
struct Record {
    kind: u8,
    mode: u32,
    path_bytes: usize,
    target_bytes: usize,
    mtime_seconds: i64,
    range: Range<StreamOffset>,
}

fn decode_checked(bytes: &[u8]) -> Result<Toc, &'static str> {
    let mut rest = verified(bytes)?;
    let header = take(&mut rest, HEADER_BYTES)?;
    if read::<4>(header, 12) != [0; 4] {
        return Err("reserved bytes are set");
    }
    let stream_bytes = u64::from_le_bytes(read(header, 16));
    let members = u32::from_le_bytes(read(header, 24)) as usize;
    let warnings = u32::from_le_bytes(read(header, 28)) as usize;
    let records_bytes = members.checked_mul(RECORD_BYTES).ok_or("it counts too many members")?;
    let records = take(&mut rest, records_bytes)?;
    let records =
        records.chunks_exact(RECORD_BYTES).map(|record| decode_record(record, stream_bytes));
    let members = records
        .map(|record| decode_member(record?, &mut rest))
        .collect::<Result<Vec<Member>, _>>()?;
    if members.len() > 1 && members.iter().any(|member| member.path.is_none()) {
        return Err("only the one file of a raw layer has no path");
    }
    let warnings =
        (0..warnings).map(|_| decode_warning(&mut rest)).collect::<Result<Vec<String>, _>>()?;
    match rest.is_empty() {
        true => Ok(Toc { members, stream_bytes, warnings }),
        false => Err("bytes are left over at its end"),
    }
}

/// The bytes without their checksum, once that is known to be right.
fn verified(bytes: &[u8]) -> Result<&[u8], &'static str> {
    if !bytes.starts_with(MAGIC) {
        return Err("it does not start as one");
    }
    if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES {
        return Err("it is too short");
    }
    if u32::from_le_bytes(read(bytes, MAGIC.len())) != VERSION {
        return Err("another version of kitfs wrote it");
    }
    let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    match crc32c::crc32c(content) == u32::from_le_bytes(read(checksum, 0)) {
        true => Ok(content),
        false => Err("its checksum is wrong"),
    }
}

fn decode_record(record: &[u8], stream_bytes: u64) -> Result<Record, &'static str> {
    let start = u64::from_le_bytes(read(record, 24));
    let end = start.checked_add(u64::from_le_bytes(read(record, 32)));
    let end = end.filter(|&end| end <= stream_bytes).ok_or("a member lies outside the stream")?;
    let mode = u16::from_le_bytes(read(record, 2));
    if record[1] != 0 || mode > 0o777 || read::<4>(record, 12) != [0; 4] {
        return Err("a member has impossible permission bits or reserved bytes");
    }
    if record[0] != KIND_FILE && (start, end) != (0, 0) {
        return Err("a member without content has a range");
    }
    Ok(Record {
        kind: record[0],
        mode: u32::from(mode),
        path_bytes: u32::from_le_bytes(read(record, 4)) as usize,
        target_bytes: u32::from_le_bytes(read(record, 8)) as usize,
        mtime_seconds: i64::from_le_bytes(read(record, 16)),
        range: StreamOffset(start)..StreamOffset(end),
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
    let target = take(rest, record.target_bytes)?;
    let kind = match (record.kind, target.len()) {
        (KIND_FILE, 0) => MemberKind::File(record.range),
        (KIND_DIRECTORY, 0) => MemberKind::Directory,
        (KIND_SYMLINK, 1..=TARGET_LIMIT_BYTES) if !target.contains(&0) => {
            MemberKind::Symlink(target.into())
        }
        _ => return Err("a member is of an unknown kind, or its link target is impossible"),
    };
    Ok(Member { path, kind, mode: record.mode, mtime_seconds: record.mtime_seconds })
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member() -> impl Strategy<Value = Member> {
        let path = prop::collection::vec(prop::sample::select(b"ab./\xff".to_vec()), 1..20)
            .prop_filter_map("a path in a kit", |name| MemberPath::parse(&name).ok());
        let kind = prop_oneof![
            (0..1000u64, 0..1000u64)
                .prop_map(|(start, bytes)| { MemberKind::File(StreamOffset(start).range(bytes)) }),
            Just(MemberKind::Directory),
            prop::collection::vec(1..=255u8, 1..9)
                .prop_map(|target| MemberKind::Symlink(target.into())),
        ];
        (path, kind, 0..=0o777u32, any::<i64>()).prop_map(|(path, kind, mode, mtime_seconds)| {
            Member { path: Some(path), kind, mode, mtime_seconds }
        })
    }

    fn toc() -> impl Strategy<Value = Toc> {
        (
            prop::collection::vec(member(), 0..6),
            2000..=u64::MAX,
            prop::collection::vec("\\PC{0,9}", 0..3),
        )
            .prop_map(|(members, stream_bytes, warnings)| Toc {
                members,
                stream_bytes,
                warnings,
            })
    }

    /// The bytes with a right checksum behind them, so that what it covers is looked at.
    fn sealed(content: &[u8]) -> Vec<u8> {
        [content, &crc32c::crc32c(content).to_le_bytes()].concat()
    }

    proptest! {
        #[test]
        fn tables_come_back(toc in toc()) {
            prop_assert_eq!(decode(&encode(&toc)), Ok(toc));
        }

        #[test]
        fn a_changed_byte_is_noticed(toc in toc(), place in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mut bytes = encode(&toc);
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn a_cut_is_noticed(toc in toc(), cut in any::<prop::sample::Index>()) {
            let bytes = encode(&toc);
            prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn hostile_values_are_refused_or_canonical(
            toc in toc(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        ) {
            let mut content = encode(&toc);
            content.truncate(content.len() - CHECKSUM_BYTES);
            for (place, byte) in damage {
                let place = place.index(content.len());
                content[place] = byte;
            }
            let bytes = sealed(&content);
            if let Ok(toc) = decode(&bytes) {
                prop_assert_eq!(encode(&toc), bytes);
            }
        }
    }

    #[test]
    fn the_one_file_of_a_raw_layer_has_no_path() {
        let toc = Toc::raw(1 << 40);
        assert_eq!(decode(&encode(&toc)), Ok(toc.clone()));
        let two = Toc { members: [toc.members.clone(), toc.members].concat(), ..Toc::raw(1 << 40) };
        assert!(decode(&encode(&two)).unwrap_err().to_string().contains("raw layer"));
    }

    #[test]
    fn counts_are_checked_before_anything_is_allocated() {
        let mut content = encode(&Toc::raw(7));
        content.truncate(content.len() - CHECKSUM_BYTES);
        for field in [24, 28, HEADER_BYTES + 4, HEADER_BYTES + 8] {
            let mut hostile = content.clone();
            hostile[field..field + 4].fill(0xff);
            assert!(decode(&sealed(&hostile)).is_err(), "field at {field}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode(&Toc::raw(7));
        bytes[8] = 2;
        assert!(decode(&bytes).unwrap_err().to_string().contains("another version"));
    }

    /// The bytes that docs/format/toc.md shows. When this test fails, raise [`VERSION`].
    #[test]
    fn the_bytes_of_version_1_stay_as_they_are() {
        let path = |name: &[u8]| MemberPath::parse(name).ok();
        let file = MemberKind::File(StreamOffset(512)..StreamOffset(515));
        let link = MemberKind::Symlink(b"a".as_slice().into());
        let toc = Toc {
            members: vec![
                Member { path: path(b"a"), kind: file, mode: 0o644, mtime_seconds: -1 },
                Member { path: path(b"b/c"), kind: link, mode: 0o777, mtime_seconds: 0 },
            ],
            stream_bytes: 2048,
            warnings: vec!["w".to_owned()],
        };
        let bytes = encode(&toc);
        let expected: [&[u8]; 8] = [
            b"kitfstoc\x01\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\x02\0\0\0\x01\0\0\0",
            b"\0\0\xa4\x01\x01\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\0\x02\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
            b"\x02\0\xff\x01\x03\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"ab/ca",
            b"\x01\0\0\0w",
            b"\x9a\xf9\x5c\x96",
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(decode(&bytes), Ok(toc));
    }
}
