//! The scanner against the `tar` crate's reader, golden archives and hand-made hostile ones.

use std::ops::Range;
use std::path::PathBuf;

use proptest::prelude::*;
use rstest::rstest;

use super::end::ZEROS_LIMIT_BYTES;
use super::warnings::WARNINGS_LIMIT;
use super::*;
use crate::layer::decode::{Decoder, Windows};
use crate::layer::{MemberPath, Mtime};
use crate::oci::Compression;

mod ends;
mod kinds;
mod sparse_files;

/// Scans an archive. The scanner gets at most `piece_bytes` at a time; with `jumps`, it gets no content of members.
fn scan(archive: &[u8], piece_bytes: usize, jumps: bool) -> Result<Toc, TarError> {
    let mut scanner = Scanner::new();
    let mut at = 0;
    while at < archive.len() && !scanner.is_finished() {
        let piece = &archive[at..archive.len().min(at + piece_bytes)];
        let known = scanner.members().len();
        scanner.feed(StreamOffset(at as u64), piece)?;
        assert!(scanner.members().len() >= known);
        at += piece.len();
        if jumps {
            at = usize::try_from(scanner.next_offset().get()).unwrap();
        }
    }
    scanner.finish(archive.len() as u64)
}

/// A header with a right checksum, whose fields `change` has set.
fn block(kind: u8, name: &[u8], size: u64, change: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkflag = [kind];
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    change(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    content.resize(content.len().next_multiple_of(BLOCK_BYTES), 0);
    content
}

/// A header and its content.
fn entry(kind: u8, name: &[u8], content: &[u8]) -> Vec<u8> {
    [block(kind, name, content.len() as u64, |_| {}), padded(content)].concat()
}

fn link(kind: u8, name: &[u8], target: &[u8]) -> Vec<u8> {
    block(kind, name, 0, |header| {
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    })
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [format!(" {key}=").as_bytes(), value, b"\n"].concat();
    let digits = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
    [(rest.len() + digits).to_string().as_bytes(), &rest].concat()
}

fn one(archive: &[&[u8]]) -> Member {
    let toc = scan(&archive.concat(), 512, false).unwrap();
    assert_eq!(toc.members.len(), 1, "{toc:?}");
    toc.members.into_iter().next().unwrap()
}

fn fault(archive: &[&[u8]]) -> String {
    scan(&archive.concat(), 512, false).unwrap_err().to_string()
}

fn path_of(member: &Member) -> &[u8] {
    member.path.as_ref().unwrap().as_bytes()
}

fn file(start: u64, bytes: u64) -> MemberKind {
    MemberKind::File(Extents::contiguous(StreamOffset(start).range(bytes)))
}

fn stored(member: &Member) -> Range<usize> {
    let stored = member.kind.extents().expect("it is a file").stored();
    stored.start.get() as usize..stored.end.get() as usize
}

/// The bytes of a file of an archive, its holes filled.
fn content(archive: &[u8], member: &Member) -> Vec<u8> {
    let extents = member.kind.extents().expect("it is a file");
    let mut content = vec![0; extents.bytes() as usize];
    for run in extents.data(0..extents.bytes()) {
        let bytes = (run.file.end - run.file.start) as usize;
        let place = run.file.start as usize..run.file.end as usize;
        content[place].copy_from_slice(&archive[run.stream.get() as usize..][..bytes]);
    }
    content
}

/// An entry of a random archive.
#[derive(Clone, Debug)]
struct Made {
    path: Vec<u8>,
    kind: u8,
    content: Vec<u8>,
    mode: u32,
    mtime: u64,
    style: u8,
}

fn made() -> impl Strategy<Value = Made> {
    let short = prop::collection::vec("[a-z0-9 .\u{e9}]{1,12}x", 1..5).prop_map(|c| c.join("/"));
    let long = prop::collection::vec("[a-zA-Z_\n]{90,120}", 1..4).prop_map(|c| c.join("/"));
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    (prop_oneof![4 => short, 1 => long], 0..4u8, content, 0..0o1000u32, 0..1u64 << 32, 0..3u8)
        .prop_map(|(path, kind, content, mode, mtime, style)| Made {
            path: path.into_bytes(),
            kind: b"0052"[kind as usize],
            content: if kind < 2 { content } else { Vec::new() },
            mode,
            mtime,
            style,
        })
}

fn write(archive: &mut Vec<u8>, made: &Made) {
    let name = std::str::from_utf8(&made.path).unwrap();
    let mut header = match made.style {
        0 => tar::Header::new_gnu(),
        _ => tar::Header::new_ustar(),
    };
    header.as_old_mut().linkflag = [made.kind];
    header.set_mode(made.mode | 0o7000);
    header.set_mtime(made.mtime);
    header.set_size(made.content.len() as u64);
    if made.kind == b'2' {
        header.set_link_name("../target").unwrap();
    }
    let mut builder = tar::Builder::new(Vec::new());
    if made.style == 0 || (made.style == 1 && header.set_path(name).is_ok()) {
        builder.append_data(&mut header, name, &made.content[..]).unwrap();
    } else {
        // As Go writes it: the records count, and the header's own fields are worthless.
        header.as_old_mut().name[..5].copy_from_slice(b"wrong");
        header.set_size(0);
        header.set_mtime(0);
        header.set_cksum();
        let records = [
            pax("mtime", format!("{}.25", made.mtime).as_bytes()),
            pax("path", &made.path),
            pax("size", made.content.len().to_string().as_bytes()),
        ];
        archive.extend(entry(b'x', b"PaxHeaders.0/wrong", &records.concat()));
        archive.extend_from_slice(header.as_bytes());
        archive.extend(padded(&made.content));
        return;
    }
    let written = builder.into_inner().unwrap();
    archive.extend_from_slice(&written[..written.len() - 1024]);
}

/// The `tar` crate's own listing: path, content position and size. That reader fails at a record
/// whose value holds a newline, so it is asked about archives without one.
fn by_the_tar_crate(archive: &[u8]) -> Vec<(Vec<u8>, u64, u64)> {
    let mut reader = tar::Archive::new(archive);
    let entries = reader.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let path = entry.path_bytes().to_vec();
        (path, entry.raw_file_position(), entry.size())
    });
    entries.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_archives_are_read_as_they_were_made(
        entries in prop::collection::vec(made(), 0..8), piece_bytes in 1..2000usize, end_blocks in 0..3usize,
    ) {
        let mut archive = Vec::new();
        for entry in &entries {
            write(&mut archive, entry);
        }
        archive.resize(archive.len() + end_blocks * BLOCK_BYTES, 0);
        let toc = scan(&archive, piece_bytes, false).unwrap();
        prop_assert_eq!(&scan(&archive, piece_bytes, true).unwrap(), &toc);
        prop_assert_eq!(&scan(&archive, usize::MAX / 2, false).unwrap(), &toc);
        prop_assert_eq!(toc.members.len(), entries.len());
        for (member, made) in toc.members.iter().zip(&entries) {
            prop_assert_eq!(&member.path, &MemberPath::parse(&made.path).ok());
            prop_assert_eq!(member.mode, made.mode);
            // Records say a quarter of a second more.
            let mtimes = [0, 250_000_000].map(|part| Mtime::new(made.mtime as i64, part));
            prop_assert!(mtimes.contains(&member.mtime), "{:?}", member.mtime);
            match &member.kind {
                MemberKind::File(_) => {
                    prop_assert_eq!(&archive[stored(member)], &made.content);
                }
                MemberKind::Directory => prop_assert_eq!(made.kind, b'5'),
                MemberKind::Symlink(target) => prop_assert_eq!(&**target, b"../target".as_slice()),
            }
        }
        if end_blocks == 2 && entries.iter().all(|entry| !entry.path.contains(&b'\n')) {
            let theirs = by_the_tar_crate(&archive);
            prop_assert_eq!(theirs.len(), toc.members.len());
            for ((path, position, size), member) in theirs.iter().zip(&toc.members) {
                prop_assert_eq!(&MemberPath::parse(path).ok(), &member.path);
                if member.kind.extents().is_some() {
                    let stored = stored(member);
                    prop_assert_eq!((stored.start as u64, stored.len() as u64), (*position, *size));
                }
            }
        }
    }

    #[test]
    fn a_truncated_archive_is_an_error_or_ends_at_a_header(
        entries in prop::collection::vec(made(), 1..4), cut in any::<prop::sample::Index>(),
    ) {
        let mut archive = Vec::new();
        let mut borders = vec![0];
        for entry in &entries {
            write(&mut archive, entry);
            borders.push(archive.len());
        }
        let cut = cut.index(archive.len());
        let Ok(toc) = scan(&archive[..cut], 700, true) else { return Ok(()) };
        // Only the padding of the last content may be missing.
        let whole = scan(&archive, 700, true).unwrap();
        for (member, whole) in toc.members.iter().zip(&whole.members) {
            // A member that was cut off may have replaced an earlier one.
            prop_assert_eq!((&member.path, &member.kind), (&whole.path, &whole.kind));
        }
        let next_border = borders.iter().find(|&&border| border >= cut).unwrap();
        prop_assert!(next_border - cut < BLOCK_BYTES, "cut at {}", cut);
        prop_assert_eq!(toc.members.len(), borders.iter().position(|b| b == next_border).unwrap());
    }

    #[test]
    fn damaged_archives_never_panic(
        entries in prop::collection::vec(made(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        piece_bytes in 1..2000usize,
    ) {
        let mut archive = Vec::new();
        for entry in &entries {
            write(&mut archive, entry);
        }
        for (place, byte) in damage {
            let place = place.index(archive.len());
            archive[place] = byte;
        }
        if let Ok(toc) = scan(&archive, piece_bytes, false) {
            for member in toc.members.iter().filter(|member| member.kind.extents().is_some()) {
                prop_assert!(stored(member).end <= archive.len());
            }
        }
    }
}

#[rstest]
#[case("8GiB-1.hdr", (8 << 30) - 1)]
#[case("8GiB.hdr", 8 << 30)]
#[case("9GiB.hdr", 9 << 30)]
fn sizes_of_8_gib_and_more_come_from_pax(#[case] name: &str, #[case] size: u64) {
    let header = std::fs::read(golden().join("headers").join(name)).unwrap();
    let mut scanner = Scanner::new();
    scanner.feed(StreamOffset(0), &header).unwrap();
    let start = header.len() as u64;
    assert_eq!(scanner.next_offset().get(), start + size.next_multiple_of(512));
    assert_eq!(scanner.members()[0].kind, file(start, size));
    let error = scanner.finish(start + 7).unwrap_err().to_string();
    assert!(error.contains(&format!("{} bytes are missing", size - 7)), "{error}");
}

#[test]
fn golden_headers_give_the_names_go_meant() {
    let found = |name: &str| {
        let header = std::fs::read(golden().join("headers").join(name)).unwrap();
        let mut scanner = Scanner::new();
        scanner.feed(StreamOffset(0), &header).unwrap();
        scanner.members()[0].clone()
    };
    for (name, path) in [
        ("invalid-utf8.hdr", b"a\xff.txt".to_vec()),
        ("invalid-utf8-long.hdr", [&[b'b'; 120][..], b"\xff.txt"].concat()),
        ("unicode.hdr", "\u{e9}.txt".into()),
        ("name101-1comp.hdr", vec![b'a'; 101]),
        ("name-prefixgt155.hdr", [&[b'd'; 156][..], b"/f"].concat()),
        ("name-split.hdr", [&[b'd'; 100][..], b"/", &[b'f'; 90]].concat()),
    ] {
        let member = found(name);
        assert_eq!(path_of(&member), path, "{name}");
        assert!(stored(&member).is_empty(), "{name}");
        assert_eq!((member.mode, member.mtime), (0o644, None));
    }
    let directory = found("dir-noslash.hdr");
    assert_eq!(
        (path_of(&directory), directory.kind.clone()),
        (&b"models"[..], MemberKind::Directory)
    );
    assert_eq!(directory.mode, 0o755);
}

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Compares every tar layer of the golden kits with Python's listing of it.
#[test]
fn golden_layers_have_the_members_python_found() {
    let mut layers = 0;
    for file in std::fs::read_dir(golden()).unwrap() {
        let file = file.unwrap().path();
        let Some((kit, packing)) = file.to_str().unwrap().split_once(".layers.json") else {
            continue;
        };
        let listing = unpacked(&std::fs::read(&file).unwrap(), packing == ".gz");
        let listing: serde_json::Value = serde_json::from_slice(&listing).unwrap();
        for layer in listing["layers"].as_array().unwrap() {
            let media_type = layer["mediaType"].as_str().unwrap();
            if !media_type.contains(".tar") {
                continue;
            }
            let hex = &layer["digest"].as_str().unwrap()["sha256:".len()..];
            let blob = std::fs::read(PathBuf::from(kit).join("blobs/sha256").join(hex)).unwrap();
            let stream = unpacked(&blob, media_type.ends_with("+gzip"));
            let toc = scan(&stream, 333, true).unwrap();
            assert_eq!(scan(&stream, 4096, false), Ok(toc.clone()));
            let expected: Vec<Member> =
                layer["entries"].as_array().unwrap().iter().map(listed).collect();
            assert_eq!(toc.members, expected, "{kit}");
            layers += 1;
        }
    }
    assert!(layers >= 36, "{layers} layers");
}

fn unpacked(bytes: &[u8], is_gzip: bool) -> Vec<u8> {
    let compression = if is_gzip { Compression::Gzip } else { Compression::None };
    let mut decoder = Decoder::new(compression, Windows::Usual);
    let (mut rest, mut room, mut unpacked) = (bytes, vec![0; 1 << 16], Vec::new());
    loop {
        let written = decoder.decode(&mut rest, &mut room).unwrap();
        unpacked.extend_from_slice(&room[..written]);
        if written == 0 && rest.is_empty() {
            decoder.finish().unwrap();
            return unpacked;
        }
    }
}

fn listed(entry: &serde_json::Value) -> Member {
    let text = |key: &str| entry[key].as_str().unwrap();
    let number = |key: &str| entry[key].as_u64().unwrap();
    let kind = match text("type") {
        "5" => MemberKind::Directory,
        _ => file(number("dataOffset"), number("size")),
    };
    let mode = u32::from_str_radix(text("mode"), 8).unwrap() & 0o777;
    let path = Some(MemberPath::parse(text("name").as_bytes()).unwrap());
    let mtime = Mtime::new(entry["mtime"].as_f64().unwrap() as i64, 0);
    Member { path, kind, mode, mtime, is_replaced: false }
}
