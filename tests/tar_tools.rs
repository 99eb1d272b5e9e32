//! Archives of GNU tar and bsdtar, compared with the files that these tools extract.
//!
//! A tool packs a random tree with random options, and extracts the archive to a folder. The tests
//! compare kitfs's table of contents and tree with that folder: paths, kinds, modes, bytes, link
//! targets, dates.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use kitfs::kit::tree::TreeLayer;
use kitfs::kit::{Content, NodeId, NodeKind, Placement, Tree};
use kitfs::layer::tar::Scanner;
use kitfs::layer::{Mtime, StreamOffset, Toc};
use kitfs::oci::Digest;
use proptest::prelude::*;
use support::tar_stream::{self, Stream};

/// The node at a path. Times are compared with the whole second, and with nanoseconds where both have
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    kind: Kind,
    mode: u32,
    seconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
}

type Paths = BTreeMap<Vec<u8>, Shown>;

/// An entry of a tree to pack.
#[derive(Clone, Debug)]
enum Made {
    Directory,
    /// Lengths of data and holes in turns, in bytes.
    File(Vec<(bool, usize)>),
    Symlink(String),
    /// A hard link to an earlier file, counted back from the last one.
    HardLink(usize),
}

#[derive(Clone, Debug)]
struct Entry {
    path: Vec<u8>,
    made: Made,
    mode: u32,
    mtime: Duration,
}

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-c]{1,2}".prop_map(String::into_bytes),
        2 => "[a-z .é日]{1,12}x".prop_map(String::into_bytes),
        1 => "[a-z]{90,120}".prop_map(String::into_bytes),
        1 => prop::collection::vec(prop::sample::select(b"a\xff\n\\".to_vec()), 1..4),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let part = prop_oneof![3 => 0..600usize, 2 => 4096..4097usize, 1 => 10_000..40_000usize];
    let made = prop_oneof![
        2 => Just(Made::Directory),
        4 => prop::collection::vec((any::<bool>(), part), 0..6).prop_map(Made::File),
        1 => "[a-z/.]{1,120}".prop_map(Made::Symlink),
        1 => (0..4usize).prop_map(Made::HardLink),
    ];
    let mtime = (315_532_800..4_000_000_000u64, 0..1_000_000_000u32)
        .prop_map(|(seconds, nanoseconds)| Duration::new(seconds, nanoseconds));
    let path = prop::collection::vec(component(), 1..4).prop_map(|parts| parts.join(&b'/'));
    (path, made, 0..=0o777u32, mtime).prop_map(|(path, made, mode, mtime)| Entry {
        path,
        made,
        mode: mode | 0o400,
        mtime,
    })
}

/// Makes the entries on disk. Leaves out an entry if an earlier one is in its way.
fn make(root: &Path, entries: &[Entry]) {
    fs::create_dir(root).unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = root.join(OsStr::from_bytes(&entry.path));
        if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        match &entry.made {
            Made::Directory => fs::create_dir(&path).unwrap(),
            Made::Symlink(target) => {
                symlink(target, &path).unwrap();
                continue;
            }
            Made::HardLink(back) => {
                let Some(file) = files.iter().rev().nth(*back) else { continue };
                fs::hard_link(file, &path).unwrap();
                continue;
            }
            Made::File(parts) => {
                let file = File::create(&path).unwrap();
                let mut at = 0;
                for (index, &(is_data, bytes)) in parts.iter().enumerate() {
                    if is_data {
                        file.write_all_at(&vec![b'a' + (index % 26) as u8; bytes], at).unwrap();
                    }
                    at += bytes as u64;
                }
                file.set_len(at).unwrap();
                files.push(path.clone());
            }
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode | 0o700)).unwrap();
        if let Ok(file) = File::open(&path) {
            file.set_modified(SystemTime::UNIX_EPOCH + entry.mtime).unwrap();
        }
    }
}

/// Runs a tool. The exit code does not matter: a file that was not packed is not in the archive.
fn run(tool: &str, folder: &Path, arguments: &[&OsStr]) {
    let mut command = Command::new(tool);
    command.current_dir(folder).env("LC_ALL", "C.UTF-8").env("TZ", "UTC").args(arguments);
    let output = command.output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    if !output.status.success() {
        eprintln!("{tool}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn words(text: &str) -> Vec<&OsStr> {
    text.split_whitespace().map(OsStr::new).collect()
}

/// The nodes of a folder.
fn extracted(root: &Path) -> Paths {
    let mut paths = Paths::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let kind = if metadata.is_dir() {
                open.push(path.clone());
                Kind::Directory
            } else if metadata.is_symlink() {
                Kind::Symlink(fs::read_link(&path).unwrap().into_os_string().into_vec())
            } else {
                Kind::File(fs::read(&path).unwrap())
            };
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            let (mode, seconds) = (metadata.mode() & 0o777, metadata.mtime());
            paths.insert(name, Shown { kind, mode, seconds });
        }
    }
    paths
}

fn scanned(archive: &[u8]) -> Toc {
    let mut scanner = Scanner::new();
    let mut at = 0;
    // Jumps from header to header, as for a layer in a registry.
    while at < archive.len() && !scanner.is_finished() {
        let piece = &archive[at..archive.len().min(at + 1000)];
        scanner.feed(StreamOffset(at as u64), piece).unwrap();
        at = scanner.next_offset().get() as usize;
    }
    scanner.finish(archive.len() as u64).unwrap()
}

/// The nodes that kitfs shows of an archive.
fn mounted(archive: &[u8], toc: &Toc) -> Paths {
    let layer = TreeLayer {
        index: 0,
        digest: Digest::of(archive),
        name: "the archive",
        placement: &Placement::Tar { below: None },
        toc,
        mtime: toc.constant_mtime().unwrap_or(Mtime::EARLIEST),
    };
    let tree = Tree::merge(&[layer], None, Mtime::EARLIEST, 0).unwrap();
    let mut paths = Paths::new();
    for node in (1..tree.len()).map(NodeId) {
        let kind = match tree.kind(node) {
            NodeKind::Directory => Kind::Directory,
            NodeKind::Symlink(target) => Kind::Symlink(target.to_vec()),
            NodeKind::File(Content::Inline(_)) => unreachable!("there is no Kitfile"),
            NodeKind::File(Content::Stored { extents, .. }) => {
                let mut bytes = vec![0; extents.bytes() as usize];
                for run in extents.data(0..extents.bytes()) {
                    let place = run.file.start as usize..run.file.end as usize;
                    let stored = &archive[run.stream.get() as usize..][..place.len()];
                    bytes[place].copy_from_slice(stored);
                }
                Kind::File(bytes)
            }
        };
        let (mode, seconds) = (tree.mode(node), tree.mtime(node).seconds().into());
        paths.insert(tree.path(node), Shown { kind, mode, seconds });
    }
    paths
}

/// Compares the trees, except for dates that the archive does not have: dates of extracted symlinks,
/// and of directories without an entry.
fn assert_same(mounted: &Paths, extracted: &Paths, toc: &Toc) {
    let dated: Vec<&[u8]> = toc
        .shown()
        .filter_map(|it| it.mtime.and(it.path.as_ref()))
        .map(|it| it.as_bytes())
        .collect();
    let names = |paths: &Paths| {
        paths.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(mounted), names(extracted));
    for (path, shown) in mounted {
        let expected = &extracted[path];
        let name = String::from_utf8_lossy(path);
        assert!(shown.kind == expected.kind, "{name}: {:?} is not {:?}", shown.kind, expected.kind);
        if shown.kind == Kind::Directory && !dated.contains(&path.as_slice()) {
            continue;
        }
        if !matches!(shown.kind, Kind::Symlink(_)) {
            assert_eq!(shown.mode, expected.mode, "{name}");
        }
        if dated.contains(&path.as_slice()) && !matches!(shown.kind, Kind::Symlink(_)) {
            // An entry that has no date in its folder gets the moment at which it is made or extracted.
            let now =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
            let is_of_now = (now - expected.seconds).abs() < 60;
            let apart = (shown.seconds - expected.seconds).abs();
            assert!(apart == 0 || is_of_now && apart == 1, "{name}: {apart} s apart");
        }
    }
}

/// Packs a tree, extracts the archive, and compares; returns the archive's table of contents.
fn check(
    packer: &str,
    options: &str,
    unpacker: &str,
    unpack_options: &str,
    entries: &[Entry],
    by_names: bool,
) -> Toc {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make(&source, entries);
    let names: Vec<_> = match by_names {
        true => fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().file_name()).collect(),
        false => vec![".".into()],
    };
    let mut arguments = words("-cf ../archive.tar");
    arguments.extend(words(options));
    arguments.push(OsStr::new("--"));
    arguments.extend(names.iter().map(|name| name.as_os_str()));
    run(packer, &source, &arguments);
    compare(folder.path(), unpacker, unpack_options)
}

/// Extracts `archive.tar` in a folder, and compares.
fn compare(folder: &Path, unpacker: &str, unpack_options: &str) -> Toc {
    let archive = fs::read(folder.join("archive.tar")).unwrap_or_default();
    let toc = scanned(&archive);
    let target = folder.join(format!("by-{unpacker}"));
    fs::create_dir(&target).unwrap();
    let mut arguments = words("-xpf ../archive.tar");
    arguments.extend(words(unpack_options));
    run(unpacker, &target, &arguments);
    assert_same(&mounted(&archive, &toc), &extracted(&target), &toc);
    toc
}

fn tree() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec(entry(), 0..14)
}

proptest! {
    // Each case starts some processes, so cases are few. A failure becomes a test of the scanner.
    #![proptest_config(ProptestConfig {
        cases: 40, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn archives_of_gnu_tar_are_read_as_it_extracts_them(
        entries in tree(),
        format in prop::sample::select(vec!["v7", "oldgnu", "gnu", "ustar", "posix"]),
        sparse in prop::sample::select(vec!["", "--sparse-version=0.0 -S", "--sparse-version=0.1 -S", "-S"]),
        blocking in prop::sample::select(vec!["", "-b1", "-b3", "-b128"]),
        more in prop::sample::select(vec!["", "--numeric-owner", "--hard-dereference", "-V label", "--acls --xattrs"]),
        by_names in any::<bool>(),
    ) {
        let sparse = if matches!(format, "v7" | "ustar") { "" } else { sparse };
        let more = if format == "v7" && more != "--numeric-owner" { "" } else { more };
        let options = format!("--format={format} {sparse} --hole-detection=raw {blocking} {more}");
        check("tar", &options, "tar", "--delay-directory-restore", &entries, by_names);
    }

    #[test]
    fn archives_of_bsdtar_are_read_as_bsdtar_and_gnu_tar_extract_them(
        entries in tree(),
        format in prop::sample::select(vec!["v7", "ustar", "gnutar", "pax"]),
        sparse in prop::sample::select(vec!["", "--read-sparse", "--no-read-sparse"]),
        unpacker in prop::sample::select(vec!["bsdtar", "tar"]),
        by_names in any::<bool>(),
    ) {
        // bsdtar takes leading backslashes off names that it is given. Two folders may then have one name,
        // and bsdtar dates such a folder by its first entry, GNU tar and kitfs by its last.
        let by_names = by_names && !entries.iter().any(|entry| entry.path.starts_with(b"\\"));
        let options = format!("--format {format} {sparse}");
        check("bsdtar", &options, unpacker, "", &entries, by_names);
    }

    /// The pieces are extracted one after the other. A folder that a file replaces is removed first,
    /// as GNU tar does only with `--recursive-unlink`.
    #[test]
    fn in_a_history_of_appended_pieces_the_last_entry_of_a_path_counts(
        history in prop::collection::vec(("[ab](/[ab]){0,2}", any::<bool>()), 1..10),
        is_concatenated in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("archive.tar");
        fs::write(&archive, b"").unwrap();
        let unpacked = folder.path().join("unpacked");
        fs::create_dir(&unpacked).unwrap();
        for (number, (path, is_directory)) in history.iter().enumerate() {
            let source = folder.path().join(format!("source-{number}"));
            let target = source.join(path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            match is_directory {
                true => fs::create_dir(&target).unwrap(),
                false => fs::write(&target, format!("{number}")).unwrap(),
            }
            // Parent folders have entries too: without one, GNU tar does not replace a file by a folder.
            let mut names: Vec<&str> =
                path.match_indices('/').map(|(slash, _)| &path[..slash]).collect();
            names.push(path);
            let mut arguments = words("--no-recursion --format=gnu -cf ../piece.tar --");
            arguments.extend(names.iter().map(OsStr::new));
            run("tar", &source, &arguments);
            if !is_directory {
                let _ = fs::remove_dir_all(unpacked.join(path));
            }
            run("tar", &unpacked, &words("-xpf ../piece.tar"));
            let piece = fs::read(folder.path().join("piece.tar")).unwrap();
            let mut all = fs::read(&archive).unwrap();
            if is_concatenated || all.is_empty() {
                all.extend(piece);
                fs::write(&archive, all).unwrap();
            } else {
                run("tar", folder.path(), &words("-Af archive.tar piece.tar"));
            }
        }
        let archive = fs::read(&archive).unwrap();
        let toc = scanned(&archive);
        let mut paths = (mounted(&archive, &toc), extracted(&unpacked));
        // Removing a file changes the date of its folder. No entry has that date.
        for shown in paths.0.values_mut().chain(paths.1.values_mut()) {
            shown.seconds = 0;
        }
        assert_same(&paths.0, &paths.1, &toc);
        let says = |words: &str| toc.warnings.iter().any(|warning| warning.contains(words));
        prop_assert_eq!(says("--ignore-zeros"), is_concatenated && history.len() > 1, "{:?}", toc.warnings);
    }
}

/// A tree with holes, links and long names.
fn some_tree() -> Vec<Entry> {
    let entry = |path: &str, made| Entry {
        path: path.into(),
        made,
        mode: 0o640,
        mtime: Duration::new(1_700_000_000, 123_456_789),
    };
    vec![
        entry("folder", Made::Directory),
        entry("folder/plain", Made::File(vec![(true, 700)])),
        entry("folder/link", Made::HardLink(0)),
        entry("sparse", Made::File(vec![(false, 1 << 20), (true, 4096), (false, 1 << 20)])),
        entry("symlink", Made::Symlink("folder/plain".into())),
        entry(&format!("{}/{}", "d".repeat(150), "f".repeat(200)), Made::File(vec![(true, 1)])),
    ]
}

#[test]
fn holes_in_all_four_forms_of_gnu_tar_are_found() {
    let many: Vec<(bool, usize)> = (0..200).map(|index| (index % 2 == 1, 4096)).collect();
    let mut entries = some_tree();
    entries.push(Entry { path: b"many".to_vec(), made: Made::File(many), ..entries[3].clone() });
    for options in [
        "--format=oldgnu",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
        "--format=posix --sparse-version=1.0",
    ] {
        let options = format!("-S --hole-detection=raw {options}");
        let toc = check("tar", &options, "tar", "", &entries, true);
        let sparse = toc.members.iter().filter_map(|member| member.kind.extents());
        let runs: Vec<_> =
            sparse.map(|extents| extents.mapped_runs()).filter(|it| *it > 0).collect();
        assert_eq!(runs.iter().sum::<usize>(), 101, "{options}");
        assert!(toc.warnings.is_empty(), "{:?}", toc.warnings);
    }
}

/// The fields beyond the size decide how much to skip, and where the next file begins.
#[test]
fn a_sparse_file_of_more_than_8_gib_is_followed_by_the_next_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make(&source, &some_tree());
    let large = File::create(source.join("large")).unwrap();
    large.set_len(9 << 30).unwrap();
    large.write_all_at(b"middle", 8 << 30).unwrap();
    for format in ["gnu", "posix"] {
        let options = format!("-S --format={format} -cf ../archive.tar large sparse");
        run("tar", &source, &words(&options));
        let archive = fs::read(folder.path().join("archive.tar")).unwrap();
        let toc = scanned(&archive);
        let extents = toc.members[0].kind.extents().unwrap();
        assert_eq!(extents.bytes(), 9 << 30);
        let at = extents.data(8 << 30..9 << 30).next().unwrap();
        let stored = &archive[at.stream.get() as usize..][..6];
        assert_eq!((at.file.start, stored), (8 << 30, b"middle".as_slice()));
        assert_eq!(toc.members[1].kind.extents().unwrap().bytes(), (2 << 20) + 4096);
    }
}

#[test]
fn absolute_names_lose_their_slash_as_in_gnu_tar() {
    let folder = tempfile::tempdir().unwrap();
    make(&folder.path().join("source"), &some_tree());
    let source = folder.path().join("source");
    let arguments = [words("-P -cf ../archive.tar"), vec![source.as_os_str()]].concat();
    run("tar", &source, &arguments);
    let toc = compare(folder.path(), "tar", "");
    assert!(toc.warnings.iter().any(|it| it.contains("leading `/`")), "{:?}", toc.warnings);
}

#[test]
fn incremental_archives_are_read_as_gnu_tar_extracts_them() {
    let folder = tempfile::tempdir().unwrap();
    make(&folder.path().join("source"), &some_tree());
    let source = folder.path().join("source");
    for format in ["gnu", "posix"] {
        let options = format!("--format={format} -g ../snapshot-{format} -cf ../archive.tar .");
        run("tar", &source, &words(&options));
        let toc = compare(folder.path(), "tar", "");
        assert_eq!(toc.warnings, [""; 0]);
        fs::remove_dir_all(folder.path().join("by-tar")).unwrap();
    }
}

#[test]
fn a_file_that_is_packed_twice_is_there_once() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    make(&source, &some_tree());
    run("tar", &source, &words("-cf ../archive.tar folder/plain folder/plain folder"));
    assert_eq!(compare(folder.path(), "tar", "").warnings, [""; 0]);
}

#[test]
fn bsdtar_pads_and_writes_pax_records_where_needed() {
    let toc = check("bsdtar", "--format pax -b 64", "bsdtar", "", &some_tree(), true);
    let mtimes: Vec<_> = toc.members.iter().filter_map(|member| member.mtime).collect();
    assert!(mtimes.contains(&Mtime::new(1_700_000_000, 123_456_789).unwrap()), "{mtimes:?}");
    let toc = check("bsdtar", "--format pax", "tar", "", &some_tree(), true);
    assert!(toc.warnings.is_empty(), "{:?}", toc.warnings);
}

/// A header and its content. `change` overwrites fields after the usual ones are set.
fn by_hand(kind: u8, name: &str, content: &[u8], change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let size = content.len() as u64;
    let mut block = tar_stream::header(name.as_bytes(), kind, 0o640, size, b"");
    change(&mut block);
    tar_stream::seal(&mut block);
    let mut stream = Stream::of(block.to_vec());
    tar_stream::push_padded(&mut stream, content);
    stream.to_bytes()
}

fn plain(name: &str) -> Vec<u8> {
    by_hand(b'0', name, name.as_bytes(), |_| ())
}

/// Kinds of entries that GNU tar reads and does not write.
#[test]
fn entries_of_other_tools_are_read_as_gnu_tar_extracts_them() {
    let star_sparse = by_hand(b'S', "star", b"datadata", |block| {
        block[345..512].fill(0);
        block[356..380].copy_from_slice(b"00000000100\x0000000000010\x00");
        block[380..404].copy_from_slice(b"00000001000\x0000000000000\x00");
        block[452..464].copy_from_slice(b"00000001000\x00");
        block[476..488].copy_from_slice(b"14130612002 ");
        block[488..500].copy_from_slice(b"14130612002 ");
        block[508..512].copy_from_slice(b"tar\0");
    });
    let old = |block: &mut [u8; 512]| block[257..].fill(0);
    let pax = tar_stream::pax_record(b"path", b"named");
    let global = tar_stream::pax_record(b"mtime", b"1700000000.25");
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("star's sparse files", vec![star_sparse]),
        ("a type of sparse files without a map", vec![by_hand(b'S', "file", b"data", |_| ())]),
        ("old types", vec![by_hand(0, "file", b"x", old), by_hand(0, "folder/", b"", old)]),
        ("a slash that makes a directory", vec![by_hand(b'0', "folder/", b"", |_| ())]),
        ("contiguous files", vec![by_hand(b'7', "file", b"x", |_| ())]),
        ("unknown types", vec![by_hand(b'Z', "file", b"x", |_| ())]),
        ("Solaris' records", vec![by_hand(b'X', "x", &pax, |_| ()), plain("cut")]),
        ("records for all", vec![by_hand(b'g', "g", &global, |_| ()), plain("a"), plain("b")]),
        ("a label", vec![by_hand(b'V', "label", b"", |_| ())]),
        ("a list of a folder", vec![by_hand(b'D', "folder/", b"Yname\0\0", |_| ())]),
        ("the rest of another volume", vec![by_hand(b'M', "part", b"the rest", |_| ())]),
        (
            "a hard link with a size and no content",
            vec![
                plain("a"),
                by_hand(b'1', "link", b"", |block| {
                    block[124..136].copy_from_slice(b"00000001000\0");
                    block[157] = b'a';
                }),
            ],
        ),
        ("a hard link to nothing", vec![by_hand(b'1', "link", b"", |block| block[157] = b'x')]),
        (
            "binary numbers",
            vec![by_hand(b'0', "file", b"xyz", |block| {
                block[124..136].copy_from_slice(b"\x80\0\0\0\0\0\0\0\0\0\0\x03");
                block[136..148].copy_from_slice(b"\x80\0\0\0\0\0\0\0\x65\x53\xf1\0");
            })],
        ),
        ("a file with the root's name", vec![by_hand(b'0', "./", b"", |_| ())]),
        ("odd paths", vec![plain("./a"), plain("b//c"), plain("d/./e"), plain("/f")]),
    ];
    for (what, entries) in cases {
        let folder = tempfile::tempdir().unwrap();
        let last = plain("last");
        let archive = [entries.concat(), last, vec![0; 1024]].concat();
        fs::write(folder.path().join("archive.tar"), archive).unwrap();
        eprintln!("{what}");
        let toc = compare(folder.path(), "tar", "");
        assert!(
            toc.members.iter().any(|it| it.path.as_ref().unwrap().as_bytes() == b"last"),
            "{what}"
        );
    }
}
