//! Tables come back, damage is noticed, and the bytes of both versions are those of the format page.

use proptest::prelude::*;

use super::*;

fn extents() -> impl Strategy<Value = Extents> {
    let contiguous = (0..1000u64, 0..1000u64)
        .prop_map(|(start, bytes)| Extents::contiguous(StreamOffset(start).range(bytes)));
    let sparse = (0..1000u64, prop::collection::vec((1..100u64, 1..100u64), 0..5), 1..100u64)
        .prop_map(|(start, runs, tail)| {
            let mut end = 0;
            let mut stored = 0;
            let mut ranges = Vec::new();
            for (hole, data) in runs {
                ranges.push(end + hole..end + hole + data);
                end += hole + data;
                stored += data;
            }
            Extents::sparse(StreamOffset(start).range(stored), end + tail, ranges).unwrap()
        });
    prop_oneof![contiguous, sparse]
}

fn member() -> impl Strategy<Value = Member> {
    let path = prop::collection::vec(prop::sample::select(b"ab./\xff".to_vec()), 1..20)
        .prop_filter_map("a path in a kit", |name| MemberPath::parse(&name).ok());
    let kind = prop_oneof![
        extents().prop_map(MemberKind::File),
        Just(MemberKind::Directory),
        prop::collection::vec(1..=255u8, 1..9)
            .prop_map(|target| MemberKind::Symlink(target.into())),
    ];
    let mtime = (any::<u32>(), 0..1_000_000_000u32)
        .prop_map(|(seconds, nanoseconds)| Mtime::new(seconds.into(), nanoseconds));
    (path, kind, 0..=0o777u32, mtime, any::<bool>()).prop_map(
        |(path, kind, mode, mtime, is_replaced)| Member {
            path: Some(path),
            kind,
            mode,
            mtime,
            is_replaced,
        },
    )
}

fn toc() -> impl Strategy<Value = Toc> {
    (
        prop::collection::vec(member(), 0..6),
        2000..=u64::MAX,
        prop::collection::vec("\\PC{0,9}", 0..3),
    )
        .prop_map(|(members, stream_bytes, warnings)| Toc { members, stream_bytes, warnings })
}

/// The bytes with a right checksum behind them, so that decoding goes beyond the checksum.
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
        if let Ok(toc) = decode(&bytes)
            && content[8] == VERSION as u8
        {
            prop_assert_eq!(encode(&toc), bytes);
        }
    }

    /// Version 1 knew neither nanoseconds nor sparse files; its times were any seconds.
    #[test]
    fn a_table_of_version_1_is_taken_over(toc in toc(), seconds in any::<i64>()) {
        let mut old = Toc { warnings: toc.warnings.clone(), ..toc };
        for (number, member) in (0u8..).zip(&mut old.members) {
            let path = [member.path.as_ref().unwrap().as_bytes(), &[b'0' + number]].concat();
            member.path = MemberPath::parse(&path).ok();
            member.is_replaced = false;
            member.mtime = member.mtime.and_then(|mtime| Mtime::new(mtime.seconds().into(), 0));
            if member.kind.extents().is_some_and(|extents| !extents.is_contiguous()) {
                member.kind = MemberKind::Directory;
            }
        }
        let mut content = encode(&old);
        content.truncate(content.len() - CHECKSUM_BYTES);
        content[8] = 1;
        prop_assert_eq!(decode(&sealed(&content)).map(|toc| toc.stream_bytes), Ok(old.stream_bytes));
        let shown = decode(&sealed(&content)).unwrap();
        for (member, old) in shown.members.iter().zip(&old.members) {
            let shown = Member { is_replaced: false, ..member.clone() };
            prop_assert_eq!(&shown, old);
        }
        if let Some(member) = old.members.first_mut() {
            content[HEADER_BYTES + 16..HEADER_BYTES + 24].copy_from_slice(&seconds.to_le_bytes());
            member.mtime = Mtime::new(seconds, 0);
            prop_assert_eq!(decode(&sealed(&content)).unwrap().members[0].mtime, member.mtime);
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
    for kind in [KIND_FILE, KIND_SYMLINK, KIND_SPARSE_FILE] {
        for field in [24, 28, HEADER_BYTES + 4, HEADER_BYTES + 8] {
            let mut hostile = content.clone();
            hostile[HEADER_BYTES] = kind;
            hostile[field..field + 4].fill(0xff);
            assert!(decode(&sealed(&hostile)).is_err(), "field at {field}");
        }
    }
}

#[test]
fn a_map_that_is_not_in_its_one_form_is_refused() {
    let sparse = |file_bytes, runs: &[Range<u64>]| {
        let stored = runs.iter().map(|run| run.end - run.start).sum();
        let extents =
            Extents::sparse(StreamOffset(0).range(stored), file_bytes, runs.iter().cloned());
        let kind = MemberKind::File(extents.unwrap());
        let members = vec![Member { kind, ..Toc::raw(0).members[0].clone() }];
        let mut content = encode(&Toc { members, stream_bytes: 99, warnings: Vec::new() });
        content.truncate(content.len() - CHECKSUM_BYTES);
        content
    };
    let content = sparse(50, &[0..5, 10..15]);
    assert!(decode(&sealed(&content)).is_ok());
    let map = HEADER_BYTES + RECORD_BYTES;
    for (at, value) in [(map + 24, 5), (map + 24, 3), (map + 24, 90), (map, 14), (map + 16, 6)] {
        let mut hostile = content.clone();
        hostile[at] = value;
        let error = decode(&sealed(&hostile)).unwrap_err().to_string();
        assert!(error.contains("map of a sparse file"), "{at}: {error}");
    }
    // Without a hole it would be a plain file.
    let mut whole = content;
    whole[map] = 10;
    whole[map + 24] = 5;
    assert!(decode(&sealed(&whole)).is_err());
}

#[test]
fn another_version_is_named() {
    let mut bytes = encode(&Toc::raw(7));
    bytes[8] = 3;
    assert!(decode(&bytes).unwrap_err().to_string().contains("another version"));
}

fn path(name: &[u8]) -> Option<MemberPath> {
    MemberPath::parse(name).ok()
}

fn link(mtime: Option<Mtime>) -> Member {
    let kind = MemberKind::Symlink(b"a".as_slice().into());
    Member { path: path(b"b/c"), kind, mode: 0o777, mtime, is_replaced: false }
}

/// The bytes that docs/format/toc.md shows. When this test fails, raise [`VERSION`].
#[test]
fn the_bytes_of_version_2_stay_as_they_are() {
    let replaced = Member {
        path: path(b"a"),
        kind: MemberKind::File(Extents::contiguous(StreamOffset(512)..StreamOffset(515))),
        mode: 0o644,
        mtime: None,
        is_replaced: true,
    };
    let extents = Extents::sparse(StreamOffset(1536)..StreamOffset(1540), 9, [2..4, 6..8]);
    let sparse = MemberKind::File(extents.unwrap());
    let members = vec![
        replaced.clone(),
        link(Mtime::new(0x6000_0000, 5)),
        Member { kind: sparse, is_replaced: false, ..replaced },
    ];
    let toc = Toc { members, stream_bytes: 2048, warnings: vec!["w".to_owned()] };
    let bytes = encode(&toc);
    let expected: [&[u8]; 10] = [
        b"kitfstoc\x02\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\x03\0\0\0\x01\0\0\0",
        b"\0\x01\xa4\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
        b"\x02\0\xff\x01\x03\0\0\0\x01\0\0\0\x05\0\0\0\0\0\0\x60\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x03\0\xa4\x01\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\x04\0\0\0\0\0\0\0",
        b"ab/caa",
        b"\x09\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
        b"\x06\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
        b"\x01\0\0\0w",
        &crc32c::crc32c(&bytes[..bytes.len() - 4]).to_le_bytes(),
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(bytes[bytes.len() - 4..], *b"\x36\xf8\x1d\xdb");
    assert_eq!(decode(&bytes), Ok(toc));
}

/// The bytes that docs/format/toc.md showed for version 1.
#[test]
fn the_bytes_of_version_1_are_read() {
    let bytes: [&[u8]; 8] = [
        b"kitfstoc\x01\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\x02\0\0\0\x01\0\0\0",
        b"\0\0\xa4\x01\x01\0\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\x02\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
        b"\x02\0\xff\x01\x03\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"ab/ca",
        b"\x01\0\0\0w",
        b"\x9a\xf9\x5c\x96",
    ];
    let file = MemberKind::File(Extents::contiguous(StreamOffset(512)..StreamOffset(515)));
    let file =
        Member { path: path(b"a"), kind: file, mode: 0o644, mtime: None, is_replaced: false };
    let toc =
        Toc { members: vec![file, link(None)], stream_bytes: 2048, warnings: vec!["w".to_owned()] };
    assert_eq!(decode(&bytes.concat()), Ok(toc));
}
