//! Real mounts. Each test's name is a sentence of docs/semantics.md.
//!
//! The tests need /dev/fuse, and fail without it. Tests that need root have `as_root` in their names;
//! `scripts/test.sh` leaves them out for other users, and says so.
#![allow(unsafe_code, reason = "mapping a file into memory")]

mod as_root;
#[path = "../engine/mod.rs"]
mod engine;
mod healing;
#[path = "passthrough.rs"]
mod passthrough_as_root;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use kitfs::fs::FsConfig;
use kitfs::fuse::{Mount, MountError, MountOptions, Mountpoint, PassthroughStatus, Sessions};
use kitfs::layer::layout::CHUNK_BYTES;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::pipe::SpliceFlags;
use support::Random;
use support::kit_builder::{Kit, Layer, Written};
use support::tar_stream::{self, Stream};

/// The time limit for things that should happen at once: generous, for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mounted kit, and the engine that serves it. Dropping the value unmounts the kit.
struct Mounted {
    mount: Option<Mount>,
    sessions: Arc<Sessions>,
    engine: Engine,
    written: Written,
    root: PathBuf,
    folder: tempfile::TempDir,
}

/// The options of a test's mount.
#[derive(Clone, Copy)]
struct How {
    umask: u32,
    allow_other: bool,
    noexec: bool,
    passthrough: bool,
    config: FsConfig,
    cache_bytes: Option<u64>,
}

impl Default for How {
    fn default() -> Self {
        let config = FsConfig::default();
        Self {
            umask: 0o022,
            allow_other: false,
            noexec: false,
            passthrough: true,
            config,
            cache_bytes: None,
        }
    }
}

impl Mounted {
    fn new(kit: Kit) -> Self {
        Self::with(kit, How::default())
    }

    fn with(kit: Kit, how: How) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), kit, how)
    }

    fn in_folder(folder: tempfile::TempDir, kit: Kit, how: How) -> Self {
        // Other users must be able to reach the mountpoint.
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let written = kit.write(&folder.path().join("kit"), "v1");
        let root = folder.path().join("mount");
        fs::create_dir(&root).unwrap();
        let engine = Engine::new(&folder.path().join("cache"), how.cache_bytes);
        let sessions = Sessions::start(Default::default()).unwrap();
        let mut mounted = Self { mount: None, sessions, engine, written, root, folder };
        mounted.mount = Some(mounted.mount_again(how).unwrap());
        mounted
    }

    fn mount_again(&self, how: How) -> Result<Mount, MountError> {
        let kit = self.engine.load_with_umask(&self.written.reference, how.umask).unwrap();
        let options = MountOptions {
            allow_other: how.allow_other,
            noexec: how.noexec,
            passthrough: how.passthrough,
            ..MountOptions::at(self.root.clone())
        };
        let _inside = self.engine.runtime.enter();
        let mountpoint = Mountpoint::prepare(&options)?;
        Mount::new(Arc::new(kit), mountpoint, &options, how.config, self.sessions.clone())
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    fn path(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.root.join(OsStr::from_bytes(path.as_ref()))
    }

    fn open(&self, path: &str) -> File {
        File::open(self.path(path)).unwrap()
    }

    /// Unmounts. Closed files may stay open for a moment: a program that another test starts has
    /// copies of all descriptors until it runs.
    fn unmount(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.mount().unmount(false) {
            let is_busy = matches!(error, MountError::Busy(_));
            assert!(is_busy && Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn has_ended(&self) -> bool {
        let mount = self.mount();
        let ended = async { tokio::time::timeout(PATIENCE, mount.ended()).await.is_ok() };
        self.engine.runtime.block_on(ended)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A stalled source must not delay the end of the test.
        self.engine.faults.stall(false);
        drop(self.mount.take());
    }
}

/// A mapped file, for reading. Dropping the value unmaps the file.
struct Mapped {
    address: *mut std::ffi::c_void,
    length: usize,
}

impl Mapped {
    fn new(file: &File, length: usize, kind: MapFlags) -> Self {
        let no_address = std::ptr::null_mut();
        // SAFETY: a fresh mapping of a read-only file.
        let address =
            unsafe { rustix::mm::mmap(no_address, length, ProtFlags::READ, kind, file, 0) };
        Self { address: address.unwrap(), length }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.address.cast::<u8>(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: `bytes` borrows from `self`, so no reader is left.
        unsafe { rustix::mm::munmap(self.address, self.length) }.unwrap();
    }
}

fn run(program: &str, arguments: &[&OsStr]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

fn errno(result: io::Result<impl Sized>) -> i32 {
    result.err().expect("an error").raw_os_error().expect("from the kernel")
}

#[test]
fn reads_give_the_bytes_of_the_layer_at_any_offset() {
    let content = Random::new(1).bytes(3_000_000);
    let layer = Layer::tar("model", "model").file("model/weights.bin", 0o644, &content);
    let layer = layer.file("model/small.json", 0o644, b"{}").file("model/empty", 0o644, b"");
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    let file = mounted.open("model/weights.bin");
    let mut random = Random::new(2);
    for _ in 0..100 {
        let offset = random.below(content.len() as u64 + 100);
        let mut buffer = vec![0; random.below(300_000) as usize];
        let read = file.read_at(&mut buffer, offset).unwrap();
        let expected = &content[(offset as usize).min(content.len())..];
        assert_eq!(read, expected.len().min(buffer.len()));
        assert!(buffer[..read] == expected[..read], "wrong bytes at {offset}");
    }
    assert!(fs::read(mounted.path("model/weights.bin")).unwrap() == content);
    assert_eq!(fs::read(mounted.path("model/small.json")).unwrap(), b"{}");
    assert_eq!(fs::read(mounted.path("model/empty")).unwrap(), b"");
}

#[test]
fn compressed_and_raw_layers_read_like_uncompressed_tars() {
    let content = Random::new(3).bytes(1_500_000);
    let kit = Kit::modelkit()
        .with(Layer::tar("model", "gzip").file("gzip", 0o644, &content).gzip())
        .with(Layer::tar("dataset", "zstd").file("zstd", 0o644, &content).zstd())
        .with(Layer::raw("dataset", "raw", 0o644, &content));
    let mounted = Mounted::new(kit);
    for name in ["gzip", "zstd", "raw"] {
        assert!(fs::read(mounted.path(name)).unwrap() == content, "{name} is wrong");
    }
}

#[test]
fn a_mapped_file_has_the_bytes_of_the_layer() {
    let content = Random::new(4).bytes(2_000_003);
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
    let mounted = Mounted::new(kit);
    let file = mounted.open("weights.bin");
    for kind in [MapFlags::PRIVATE, MapFlags::SHARED] {
        let mapped = Mapped::new(&file, content.len(), kind);
        assert_eq!(mapped.bytes()[1_999_999], content[1_999_999], "a fault in the middle");
        assert!(mapped.bytes() == content);
    }
}

#[test]
fn sendfile_and_splice_give_the_same_bytes_as_read() {
    let content = Random::new(5).bytes(700_000);
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
    let mounted = Mounted::new(kit);

    let mut copy = tempfile::tempfile().unwrap();
    let source = mounted.open("weights.bin");
    let mut left = content.len();
    while left > 0 {
        left -= rustix::fs::sendfile(&copy, &source, None, left).unwrap();
    }
    copy.seek(SeekFrom::Start(0)).unwrap();
    let mut sent = Vec::new();
    copy.read_to_end(&mut sent).unwrap();
    assert!(sent == content, "sendfile");

    let source = mounted.open("weights.bin");
    let (output, input) = rustix::pipe::pipe().unwrap();
    let mut spliced = Vec::new();
    loop {
        let flags = SpliceFlags::empty();
        let moved = rustix::pipe::splice(&source, None, &input, None, 65_536, flags).unwrap();
        if moved == 0 {
            break;
        }
        let mut piece = vec![0; moved];
        File::from(output.as_fd().try_clone_to_owned().unwrap()).read_exact(&mut piece).unwrap();
        spliced.extend_from_slice(&piece);
    }
    assert!(spliced == content, "splice");
}

#[test]
fn offsets_beyond_4_gib_are_read_without_the_bytes_before_them() {
    const AT: u64 = (5 << 30) + 12_345;
    const SIZE: u64 = 6 << 30;
    let mut stream = Stream::default();
    tar_stream::push_member(&mut stream, b"weights.bin", b'0', 0o644, SIZE, b"");
    stream.push_zeros(AT);
    stream.push(b"far away");
    stream.push_zeros(SIZE - AT - 8);
    tar_stream::push_member(&mut stream, b"after", b'0', 0o644, 5, b"");
    tar_stream::push_padded(&mut stream, b"after");
    tar_stream::push_end(&mut stream);
    let mounted = Mounted::new(Kit::modelkit().with(Layer::of_stream("model", ".", stream)));
    assert_eq!(fs::metadata(mounted.path("weights.bin")).unwrap().size(), SIZE);
    let mut buffer = [0; 10];
    mounted.open("weights.bin").read_exact_at(&mut buffer, AT - 1).unwrap();
    assert_eq!(&buffer, b"\0far away\0");
    assert_eq!(fs::read(mounted.path("after")).unwrap(), b"after");
    let resident = mounted.engine.cache().resident_bytes();
    assert!(resident < 64 << 20, "{resident} bytes were fetched");
}

#[test]
fn a_directory_lists_itself_its_parent_and_every_name_once() {
    let names: BTreeSet<String> = (0..3000).map(|n| format!("file-{n:05}-{:->60}", "")).collect();
    let mut layer = Layer::tar("dataset", "many");
    for name in &names {
        layer = layer.file(format!("many/{name}"), 0o644, b"");
    }
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    let mut listed = BTreeMap::new();
    for entry in rustix::fs::Dir::read_from(mounted.open("many")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        assert_eq!(listed.insert(name.clone(), entry.ino()), None, "{name} is listed twice");
    }
    let inode = |path: &str| fs::metadata(mounted.path(path)).unwrap().ino();
    assert_eq!(listed.remove("."), Some(inode("many")));
    assert_eq!(listed.remove(".."), Some(inode("")));
    assert!(listed.keys().eq(names.iter()));
    let one = names.first().unwrap();
    assert_eq!(listed[one], inode(&format!("many/{one}")));
}

#[test]
fn a_directory_has_two_links_and_one_for_each_subdirectory() {
    let layer = Layer::tar("code", "a").file("a/b/file", 0o644, b"").file("a/c/d/file", 0o644, b"");
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    let links = |path: &str| fs::metadata(mounted.path(path)).unwrap().nlink();
    assert_eq!([links(""), links("a"), links("a/b"), links("a/c")], [3, 4, 2, 3]);
    assert_eq!(links("a/b/file"), 1);
}

#[test]
fn statfs_tells_the_bytes_of_all_files_the_number_of_inodes_and_no_free_space() {
    let kit = Kit::modelkit()
        .with(Layer::raw("model", "weights.bin", 0o644, &[7; 100_000]))
        .with(Layer::raw("docs", "docs/README.md", 0o644, &[7; 1000]));
    let mounted = Mounted::new(kit);
    let totals = rustix::fs::statvfs(&mounted.root).unwrap();
    let kitfile = fs::metadata(mounted.path("Kitfile")).unwrap().size();
    assert_eq!(totals.f_blocks * totals.f_frsize, (101_000 + kitfile).div_ceil(512) * 512);
    assert_eq!(totals.f_bsize, totals.f_frsize);
    // The root, docs, and three files.
    assert_eq!(totals.f_files, 5);
    assert_eq!((totals.f_bfree, totals.f_bavail, totals.f_ffree), (0, 0, 0));
    assert_eq!(totals.f_namemax, 255);
    let blocks = fs::metadata(mounted.path("weights.bin")).unwrap().blocks();
    assert_eq!(blocks, 100_000u64.div_ceil(512));
}

#[test]
fn extended_attributes_tell_the_kit_the_layer_and_how_far_it_can_be_trusted() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, b"weights"));
    let mounted = Mounted::new(kit);
    let value = |path: &str, name: &str| -> Result<String, Errno> {
        let mut buffer = [0; 512];
        let length = rustix::fs::getxattr(mounted.path(path), name, &mut buffer[..])?;
        Ok(String::from_utf8(buffer[..length].to_vec()).unwrap())
    };
    assert_eq!(value("", "user.kitfs.reference").unwrap(), mounted.written.reference);
    assert_eq!(value("", "user.kitfs.digest").unwrap(), mounted.written.digest);
    assert_eq!(value("weights.bin", "user.kitfs.layer").unwrap(), mounted.written.layers[0].0);
    let media_type = "application/vnd.kitops.modelkit.model.v1.raw";
    assert_eq!(value("weights.bin", "user.kitfs.media_type").unwrap(), media_type);
    assert_eq!(value("weights.bin", "user.kitfs.state").unwrap(), "unconfirmed");
    assert_eq!(value("Kitfile", "user.kitfs.layer"), Err(Errno::NODATA));
    assert_eq!(value("weights.bin", "user.other"), Err(Errno::NODATA));
    let mut short = [0; 3];
    let result = rustix::fs::getxattr(mounted.path(""), "user.kitfs.digest", &mut short[..]);
    assert_eq!(result, Err(Errno::RANGE));

    // The digest is computed once the last byte has arrived.
    fs::read(mounted.path("weights.bin")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while value("weights.bin", "user.kitfs.state").unwrap() != "confirmed" {
        assert!(Instant::now() < deadline, "the layer is never confirmed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(value("", "user.kitfs.state").unwrap(), "confirmed");
}

#[test]
fn every_write_fails_with_erofs() {
    let layer = Layer::tar("code", "code").file("code/main.py", 0o777, b"print()");
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    let (file, directory) = (mounted.path("code/main.py"), mounted.path("code"));
    let new = mounted.path("code/new");
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    let here = rustix::fs::CWD;
    let calls: Vec<(&str, io::Result<()>)> = vec![
        ("open for writing", OpenOptions::new().write(true).open(&file).map(drop)),
        ("open for appending", OpenOptions::new().append(true).open(&file).map(drop)),
        ("open for both", OpenOptions::new().read(true).write(true).open(&file).map(drop)),
        ("truncate", OpenOptions::new().write(true).truncate(true).open(&file).map(drop)),
        ("create", File::create(&new).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("unlink", fs::remove_file(&file)),
        ("rmdir", fs::remove_dir(&directory)),
        ("symlink", symlink("target", &new)),
        ("link", fs::hard_link(&file, &new)),
        ("rename", fs::rename(&file, &new)),
        ("chmod", fs::set_permissions(&file, PermissionsExt::from_mode(0o600))),
        ("chown", std::os::unix::fs::chown(&file, Some(1), Some(1))),
        (
            "utimensat",
            rustix::fs::utimensat(here, &file, &times, rustix::fs::AtFlags::empty())
                .map_err(Into::into),
        ),
        (
            "mknod",
            rustix::fs::mknodat(here, &new, rustix::fs::FileType::Fifo, 0o644.into(), 0)
                .map_err(Into::into),
        ),
        (
            "setxattr",
            rustix::fs::setxattr(&file, "user.a", b"b", XattrFlags::empty()).map_err(Into::into),
        ),
        ("removexattr", rustix::fs::removexattr(&file, "user.kitfs.state").map_err(Into::into)),
        (
            "access for writing",
            rustix::fs::access(&file, rustix::fs::Access::WRITE_OK).map_err(Into::into),
        ),
    ];
    for (call, result) in calls {
        assert_eq!(errno(result), Errno::ROFS.raw_os_error(), "{call}");
    }
    rustix::fs::access(&file, rustix::fs::Access::EXEC_OK).unwrap();
}

#[test]
fn names_need_not_be_utf_8() {
    let name = b"caf\xe9/\xff\xfe weights.bin";
    let layer = Layer::tar("model", ".").file(name, 0o644, b"weights");
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    assert_eq!(fs::read(mounted.path(name)).unwrap(), b"weights");
    let mut listed = fs::read_dir(mounted.path(b"caf\xe9")).unwrap();
    assert_eq!(listed.next().unwrap().unwrap().file_name().as_bytes(), b"\xff\xfe weights.bin");
}

#[test]
fn missing_names_paths_through_files_and_names_too_long_have_their_errno() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, b"weights"));
    let mounted = Mounted::new(kit);
    for _ in 0..2 {
        let missing = errno(fs::metadata(mounted.path("missing")));
        assert_eq!(missing, Errno::NOENT.raw_os_error());
    }
    let below = errno(fs::metadata(mounted.path("weights.bin/below")));
    assert_eq!(below, Errno::NOTDIR.raw_os_error());
    let listed = fs::read_dir(mounted.path("weights.bin"));
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::NotADirectory);
    let longest = mounted.path(vec![b'a'; 256]);
    assert_eq!(errno(fs::metadata(longest)), Errno::NAMETOOLONG.raw_os_error());
}

#[test]
fn deep_paths_long_names_and_empty_directories_are_all_there() {
    let deep = ["d"; 600].join("/");
    let name = "n".repeat(255);
    let layer = Layer::tar("dataset", "data")
        .file(format!("{deep}/file"), 0o644, b"deep")
        .file(format!("data/{name}"), 0o644, b"long")
        .directory("data/empty", 0o750);
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    assert_eq!(fs::read(mounted.path(format!("{deep}/file"))).unwrap(), b"deep");
    assert_eq!(fs::read(mounted.path(format!("data/{name}"))).unwrap(), b"long");
    let empty = mounted.path("data/empty");
    assert_eq!(fs::metadata(&empty).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    let inodes = rustix::fs::statvfs(&mounted.root).unwrap().f_files;
    // The inodes: the root, the Kitfile, `data` with two entries, and the deep file.
    assert_eq!(inodes, 600 + 6);
}

#[test]
fn a_kit_without_layers_is_its_kitfile() {
    let mounted = Mounted::new(Kit::modelkit());
    let manifest = String::from_utf8_lossy(&mounted.written.manifest).into_owned();
    assert!(manifest.contains(r#""layers":null"#), "{manifest}");
    let names: Vec<_> =
        fs::read_dir(&mounted.root).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names, ["Kitfile"]);
    assert!(fs::read(mounted.path("Kitfile")).unwrap().starts_with(b"manifestVersion: 1.0.0\n"));
}

#[test]
fn a_symbolic_link_is_followed_by_the_kernel() {
    let layer = Layer::tar("code", "code")
        .file("code/main.py", 0o644, b"print()")
        .symlink("code/link", b"main.py")
        .symlink("code/dangling", b"nowhere");
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    assert_eq!(fs::read_link(mounted.path("code/link")).unwrap(), Path::new("main.py"));
    assert_eq!(fs::read(mounted.path("code/link")).unwrap(), b"print()");
    let metadata = fs::symlink_metadata(mounted.path("code/link")).unwrap();
    assert_eq!((metadata.is_symlink(), metadata.size()), (true, 7));
    let dangling = fs::metadata(mounted.path("code/dangling"));
    assert_eq!(dangling.unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn extended_attributes_are_not_listed_so_no_copy_carries_them_away() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, b"weights"));
    let mounted = Mounted::new(kit);
    for path in ["", "weights.bin", "Kitfile"] {
        let mut buffer = [0; 512];
        let length = rustix::fs::listxattr(mounted.path(path), &mut buffer[..]).unwrap();
        assert_eq!(length, 0, "{path}");
    }
    let copy = mounted.folder.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(mounted.path("weights.bin")).arg(&copy).status();
    assert!(copied.unwrap().success());
    let state = rustix::fs::getxattr(&copy, "user.kitfs.state", &mut [0; 99][..]);
    assert!(matches!(state, Err(Errno::NODATA | Errno::OPNOTSUPP)), "{state:?}");
}

#[test]
fn all_three_times_are_the_modification_time_with_its_nanoseconds() {
    let mounted = Mounted::new(Kit::modelkit().with(Layer::raw("model", "w.bin", 0o644, b"w")));
    let metadata = fs::metadata(mounted.path("w.bin")).unwrap();
    // The metadata of the kit builder's raw layers.
    let time = (1_717_000_000, 250_000_000);
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), time);
    assert_eq!((metadata.ctime(), metadata.ctime_nsec()), time);
    assert_eq!((metadata.atime(), metadata.atime_nsec()), time);
    for path in ["", "Kitfile"] {
        let metadata = fs::metadata(mounted.path(path)).unwrap();
        assert!(metadata.mtime() > 1_700_000_000, "{path}: {}", metadata.mtime());
    }
}

#[test]
fn holes_of_a_sparse_file_are_zeros_that_no_one_fetches_and_that_tools_find() {
    const GIB: u64 = 1 << 30;
    // GNU's format 1.0 (PAX): 4 KiB of data in the middle of 8 GiB, and some at the end.
    let data = [vec![7; 4096], b"end".to_vec()].concat();
    let size = 8 * GIB + 3;
    let map = format!("2\n{}\n4096\n{}\n3\n", 4 * GIB, 8 * GIB);
    let mut stream = Stream::default();
    tar_stream::push_sparse_parts(&mut stream, b"image", 0o644, size, &map, &data);
    tar_stream::push_end(&mut stream);
    let mounted = Mounted::new(Kit::modelkit().with(Layer::of_stream("dataset", ".", stream)));
    let path = mounted.path("image");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.size(), metadata.blocks()), (size, (data.len() as u64).div_ceil(512)));
    let mut file = File::open(&path).unwrap();
    let mut buffer = [1; 8];
    file.read_exact_at(&mut buffer, 4 * GIB - 4).unwrap();
    assert_eq!(buffer, [0, 0, 0, 0, 7, 7, 7, 7]);
    file.read_exact_at(&mut buffer, 4 * GIB + 4092).unwrap();
    assert_eq!(buffer, [7, 7, 7, 7, 0, 0, 0, 0]);
    let seek = |offset, hole| {
        let whence = |offset| match hole {
            true => rustix::fs::SeekFrom::Hole(offset),
            false => rustix::fs::SeekFrom::Data(offset),
        };
        rustix::fs::seek(&file, whence(offset))
    };
    assert_eq!(seek(0, false), Ok(4 * GIB));
    assert_eq!(seek(4 * GIB + 7, false), Ok(4 * GIB + 7));
    assert_eq!(seek(4 * GIB + 7, true), Ok(4 * GIB + 4096));
    assert_eq!(seek(8 * GIB, true), Ok(size));
    assert_eq!(seek(size, false), Err(Errno::NXIO));
    // A tool that looks for holes copies 8 GiB in a moment, and the copy has the same holes.
    let copy = mounted.folder.path().join("copy");
    let copied = Command::new("cp").arg("--sparse=auto").arg(&path).arg(&copy).status().unwrap();
    assert!(copied.success());
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < 1 << 20);
    let mut end = String::new();
    file.seek(SeekFrom::Start(8 * GIB)).unwrap();
    file.read_to_string(&mut end).unwrap();
    assert_eq!(end, "end");
}

#[test]
fn modes_are_those_of_the_layer_less_the_umask_and_files_belong_to_the_mounting_user() {
    let layer = Layer::tar("code", "code")
        .directory("code", 0o777)
        .file("code/run.sh", 0o4777, b"")
        .file("code/private", 0o600, b"");
    let kit = Kit::modelkit().with(layer);
    let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    for (umask, modes) in [(0o022, [0o755, 0o755, 0o600]), (0o077, [0o700, 0o700, 0o600])] {
        let mounted = Mounted::with(kit.clone(), How { umask, ..How::default() });
        for (path, mode) in ["code", "code/run.sh", "code/private"].iter().zip(modes) {
            let metadata = fs::metadata(mounted.path(path)).unwrap();
            assert_eq!(metadata.mode() & 0o7777, mode, "{path} with umask {umask:o}");
            assert_eq!((metadata.uid(), metadata.gid()), own);
        }
    }
}

#[test]
fn a_mount_is_read_only_nosuid_nodev_and_named_after_its_reference() {
    let layer = Layer::tar("code", "run.sh").file("run.sh", 0o755, b"#!/bin/sh\necho ran\n");
    let kit = Kit::modelkit().with(layer);
    for noexec in [false, true] {
        let mounted = Mounted::with(kit.clone(), How { noexec, ..How::default() });
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = format!(" {} ", mounted.root.display());
        let line = table.lines().find(|line| line.contains(&place)).unwrap();
        let options: Vec<_> = line.split(' ').nth(5).unwrap().split(',').collect();
        for option in ["ro", "nosuid", "nodev"] {
            assert!(options.contains(&option), "{option} is missing: {line}");
        }
        assert_eq!(options.contains(&"noexec"), noexec);
        let described = format!(" - fuse.kitfs {} ", mounted.written.reference);
        assert!(line.contains(&described), "{line}");
        let ran = Command::new(mounted.path("run.sh")).output();
        assert_eq!(ran.is_ok_and(|output| output.stdout == b"ran\n"), !noexec);
    }
}

/// Only a daemon with the right to set readahead differs from the kernel's default.
#[test]
fn the_kernel_reads_ahead_by_a_chunk() {
    let layer = Layer::raw("model", "model.bin", 0o644, &[7; 1000]);
    let mounted = Mounted::new(Kit::modelkit().with(layer));
    let device = fs::metadata(&mounted.root).unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let file = Path::new("/sys/class/bdi").join(device).join("read_ahead_kb");
    let may_write = OpenOptions::new().write(true).open(&file).is_ok();
    let expected = if may_write { CHUNK_BYTES / 1024 } else { 128 };
    let told = fs::read_to_string(&file).unwrap();
    assert_eq!(told.trim(), expected.to_string());
}

#[test]
fn many_readers_of_one_file_all_get_its_bytes() {
    let content = Random::new(6).bytes(6_000_000);
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
    let mounted = Mounted::new(kit);
    std::thread::scope(|scope| {
        for reader in 0..16 {
            let (content, path) = (&content, mounted.path("weights.bin"));
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut random = Random::new(reader);
                let mut buffer = vec![0; 100_000];
                for _ in 0..40 {
                    let offset = random.below(content.len() as u64 - 100_000);
                    file.read_exact_at(&mut buffer, offset).unwrap();
                    assert!(buffer == content[offset as usize..][..100_000]);
                }
            });
        }
    });
}

#[test]
fn a_stalled_source_holds_up_only_the_reads_that_need_it() {
    let content = Random::new(7).bytes(6_000_000);
    let kit = Kit::modelkit()
        .with(Layer::raw("model", "cold.bin", 0o644, &content))
        .with(Layer::raw("dataset", "warm.bin", 0o644, b"resident"));
    let mounted = Mounted::new(kit);
    fs::read(mounted.path("warm.bin")).unwrap();
    mounted.engine.faults.stall(true);
    std::thread::scope(|scope| {
        // More readers than threads that serve the kernel.
        let readers: Vec<_> = (0..12)
            .map(|reader| {
                let file = mounted.open("cold.bin");
                let offset = reader * 500_000;
                scope.spawn(move || {
                    let mut buffer = vec![0; 1000];
                    file.read_exact_at(&mut buffer, offset).unwrap();
                    (offset as usize, buffer)
                })
            })
            .collect();
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
            .open(mounted.path("warm.bin"));
        let mut buffer = [0; 8];
        direct.unwrap().read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!(&buffer, b"resident");
        assert_eq!(fs::read_dir(&mounted.root).unwrap().count(), 3);
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        mounted.engine.faults.stall(false);
        for reader in readers {
            let (offset, bytes) = reader.join().unwrap();
            assert!(bytes == content[offset..][..1000]);
        }
    });
}

#[test]
fn a_read_that_gets_no_answer_fails_with_eio_at_its_deadline() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &[7; 100_000]));
    let config =
        FsConfig { read_deadline: Some(Duration::from_millis(200)), ..FsConfig::default() };
    let mounted = Mounted::with(kit, How { config, ..How::default() });
    mounted.engine.faults.stall(true);
    let failed = errno(fs::read(mounted.path("weights.bin")));
    assert_eq!(failed, Errno::IO.raw_os_error());
    mounted.engine.faults.stall(false);
    assert_eq!(fs::read(mounted.path("weights.bin")).unwrap(), [7; 100_000]);
}

/// Runs dd(1) over a file of a mount whose source is silent, until the read waits.
fn waiting_reader(mounted: &Mounted, file: &str, flags: &[&str]) -> std::process::Child {
    let reader = std::process::Command::new("dd")
        .arg(format!("if={}", mounted.path(file).display()))
        .args(["of=/dev/null", "bs=4096", "count=1", "status=none"])
        .args(flags)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let wchan = format!("/proc/{}/wchan", reader.id());
    let deadline = Instant::now() + PATIENCE;
    let waits = |wchan: &str| {
        let place = fs::read_to_string(wchan).unwrap_or_default();
        place.contains("fuse") || place.contains("request_wait") || place.contains("folio")
    };
    while !waits(&wchan) {
        assert!(Instant::now() < deadline, "dd does not read: {:?}", fs::read_to_string(&wchan));
        std::thread::sleep(Duration::from_millis(5));
    }
    reader
}

fn signal(process: &std::process::Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(process);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn ended(process: &mut std::process::Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "the reader does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_reader_ends_at_once_and_other_signals_end_no_read() {
    use rustix::process::Signal;
    let kit = Kit::modelkit()
        .with(Layer::raw("model", "cached", 0o644, &[7; 100_000]))
        .with(Layer::raw("dataset", "direct", 0o644, &[8; 100_000]));
    let mounted = Mounted::new(kit);
    for (file, flags) in [("cached", &[][..]), ("direct", &["iflag=direct"])] {
        mounted.engine.faults.stall(true);
        // dd(1) has a handler for Ctrl-C, and none for these.
        for kill in [Signal::KILL, Signal::TERM, Signal::HUP] {
            let mut reader = waiting_reader(&mounted, file, flags);
            signal(&reader, kill);
            assert!(!ended(&mut reader).success(), "{flags:?} {kill:?}");
        }
        // dd(1) handles this one, and reads on. It is killed all the same afterwards.
        let [mut reading, mut killed] = [(); 2].map(|()| waiting_reader(&mounted, file, flags));
        [&reading, &killed].iter().for_each(|reader| signal(reader, Signal::USR1));
        std::thread::sleep(Duration::from_millis(300));
        assert!(reading.try_wait().unwrap().is_none() && killed.try_wait().unwrap().is_none());
        signal(&killed, Signal::KILL);
        assert!(!ended(&mut killed).success());
        mounted.engine.faults.stall(false);
        assert!(ended(&mut reading).success());
    }
}

#[test]
fn a_read_that_succeeds_at_last_reports_no_failure() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &[7; 100_000]));
    let config = FsConfig { read_deadline: Some(Duration::from_secs(3)), ..FsConfig::default() };
    let mounted = Mounted::with(kit, How { config, ..How::default() });
    mounted.engine.faults.stall(true);
    fs::read(mounted.path("weights.bin")).unwrap_err();
    let told = mounted.mount().last_failure().unwrap();
    assert!(told.starts_with("weights.bin: no answer within"), "{told}");
    mounted.engine.faults.stall(false);
    fs::read(mounted.path("weights.bin")).unwrap();
    assert_eq!(mounted.mount().last_failure(), None);
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_fails_with_eio_once_that_is_known() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &[7; 100_000]));
    let mounted = Mounted::new(kit);
    let blob = mounted.written.blob(&mounted.written.layers[0].0);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[50_000] ^= 1;
    fs::write(&blob, bytes).unwrap();
    // A read without the kernel's pages, which are from the time before the digest was known.
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
        .open(mounted.path("weights.bin"))
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 100_000];
    let error = loop {
        match direct.read_at(&mut buffer, 0) {
            Ok(_) => assert!(Instant::now() < deadline, "the layer is never poisoned"),
            Err(error) => break error,
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    let mut state = [0; 32];
    let path = mounted.path("weights.bin");
    let length = rustix::fs::getxattr(path, "user.kitfs.state", &mut state[..]).unwrap();
    assert_eq!(&state[..length], b"poisoned");
}

#[test]
fn a_kit_that_was_read_is_read_again_without_its_source() {
    let content = Random::new(8).bytes(2_000_000);
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
    let mut mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    let blob = mounted.written.blob(&mounted.written.layers[0].0);
    fs::remove_file(blob).unwrap();
    drop(mounted.mount.take());
    let deadline = Instant::now() + PATIENCE;
    let mount = loop {
        match mounted.mount_again(How::default()) {
            Ok(mount) => break mount,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    mounted.mount = Some(mount);
    assert!(fs::read(mounted.path("weights.bin")).unwrap() == content);
}

#[test]
fn a_busy_mount_is_not_unmounted_but_lazily() {
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &[7; 3_000_000]));
    let mounted = Mounted::new(kit);
    let file = mounted.open("weights.bin");
    let error = mounted.mount().unmount(false).unwrap_err();
    assert!(matches!(&error, MountError::Busy(words) if words.contains("--lazy")), "{error}");
    mounted.mount().unmount(true).unwrap();
    assert_eq!(fs::read_dir(&mounted.root).unwrap().count(), 0);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2_999_999).unwrap();
    assert_eq!(byte, [7], "an open file is served to its end");
    drop(file);
    assert!(mounted.has_ended());
    mounted.unmount();
}

#[test]
fn a_mount_ends_when_it_is_unmounted() {
    let mounted = Mounted::new(Kit::modelkit());
    assert_eq!(fs::read_dir(&mounted.root).unwrap().count(), 1);
    mounted.unmount();
    assert!(mounted.has_ended());
    assert_eq!(fs::read_dir(&mounted.root).unwrap().count(), 0);
}

#[test]
fn a_mount_ends_when_somebody_else_unmounts_it() {
    let mounted = Mounted::new(Kit::modelkit());
    let output = run("umount", &[mounted.root.as_os_str()]);
    assert!(output.status.success(), "{output:?}");
    assert!(mounted.has_ended());
    mounted.unmount();
}

#[test]
fn a_mountpoint_that_is_a_kit_already_is_refused() {
    let mounted = Mounted::new(Kit::modelkit());
    let error = mounted.mount_again(How::default()).err().unwrap();
    assert!(matches!(&error, MountError::Mountpoint(words) if words.contains("kitfs umount")));
}
