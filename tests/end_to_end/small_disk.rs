//! A cache on a small disk, or on a disk that others fill: reads go on.
//!
//! These tests mount a tmpfs of their own, for which only root has the right; `scripts/test.sh` says
//! where they are left out.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Advice;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::counted::{Counted, big_files, expected_content};
use crate::support::Random;
use crate::support::kit_builder::{Compression, Kit, Layer};
use crate::support::kitfs::{Kitfs, wait_until};
use crate::support::tree::Tree;

const MIB: u64 = 1 << 20;

/// A tmpfs on the cache folder of a kitfs.
struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    fn below(kitfs: &Kitfs, mebibytes: u64) -> Self {
        let place = kitfs.cache();
        fs::create_dir_all(&place).unwrap();
        let options = std::ffi::CString::new(format!("size={mebibytes}m")).unwrap();
        mount("tmpfs", &place, "tmpfs", MountFlags::empty(), options.as_c_str())
            .expect("only root may mount a tmpfs");
        Self { place }
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.place).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Another program takes all but so many bytes.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.place.join("of another program");
        let mut file = File::create(&path).unwrap();
        let block = vec![7; 1 << 16];
        while self.free_bytes() > left {
            if file.write_all(&block).is_err() {
                break;
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.place, UnmountFlags::DETACH);
    }
}

/// The fields are in this order so that the daemon ends before its disk is unmounted.
struct Run {
    counted: Counted,
    disk: SmallDisk,
}

impl Run {
    fn new(kit: &Kit, mebibytes: u64, options: &[&str]) -> Self {
        let counted = Counted::with(kit, Kitfs::with_options(options));
        let disk = SmallDisk::below(&counted.kitfs, mebibytes);
        Self { counted, disk }
    }

    fn mount(&self) -> PathBuf {
        self.counted.kitfs.mount(&self.counted.reference, &["--no-hydrate"])
    }

    fn assert_right(&self, mountpoint: &Path) {
        let what = "read through a small disk";
        Tree::read(mountpoint).without_kitfile().assert_equals(&self.counted.written.tree, what);
    }
}

/// Reads a file from the daemon, not from the kernel's pages.
fn read_anew(path: &Path) {
    let mut file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    std::io::copy(&mut file, &mut std::io::sink()).unwrap();
}

#[test]
fn a_small_disk_is_filled_up_to_the_space_that_is_kept_free() {
    let run = Run::new(&big_files(), 60, &["--keep-free", "30MiB"]);
    let mountpoint = run.mount();
    for _ in 0..2 {
        run.assert_right(&mountpoint);
        let free = run.disk.free_bytes();
        assert!(free >= 29 * MIB, "{free} bytes are free");
    }
    let resident = run.counted.kitfs.status_of(&mountpoint)["resident_bytes"].as_u64().unwrap();
    assert!((16 * MIB..=30 * MIB).contains(&resident), "{resident} bytes are kept");
}

/// Warmed bytes may be evicted. ENOSPC is the signal that they must be.
#[test]
fn others_that_fill_a_small_disk_take_the_caches_room_and_no_read_fails() {
    for keep_free in ["0", "1MiB"] {
        let run = Run::new(&big_files(), 80, &["--keep-free", keep_free]);
        let kitfs = &run.counted.kitfs;
        kitfs.succeed(&["warm", &run.counted.reference, "weights/shard-0", "weights/shard-1"]);
        let mountpoint = run.mount();
        let other = run.disk.fill(0);
        run.assert_right(&mountpoint);
        run.assert_right(&mountpoint);
        // Finding room again takes little time.
        fs::remove_file(other).unwrap();
        run.assert_right(&mountpoint);
        wait_until("bytes are kept again", || {
            read_anew(&mountpoint.join("weights/shard-2"));
            kitfs.json(&["daemon", "status", "--json"])["cache_trouble"].is_null()
        });
    }
}

#[test]
fn a_small_disk_without_any_room_keeps_nothing_and_says_so_once() {
    let mut random = Random::new(3);
    let mut kit = big_files();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let path = format!("packed-{compression:?}");
        let content = random.bytes(3 << 20);
        let layer = Layer::tar("dataset", &path).file(&path, 0o644, &content);
        kit = kit.with(layer.compressed(compression));
    }
    let run = Run::new(&kit, 8, &["--keep-free", "0"]);
    let kitfs = &run.counted.kitfs;
    let other = run.disk.fill(0);
    let mountpoint = kitfs.mountpoint("full");
    let place = mountpoint.to_str().unwrap();
    let outcome = kitfs.run(&["mount", "--no-hydrate", &run.counted.reference, place]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the cache has room for"), "{}", outcome.stderr);
    run.assert_right(&mountpoint);
    read_in_other_ways(&run, &mountpoint);
    let said = kitfs.run(&["status"]).stderr;
    assert_eq!(said.matches("the cache cannot keep bytes").count(), 1, "{said}");
    let status = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(status["cache_resident_bytes"], 0, "{status}");
    fs::remove_file(other).unwrap();
    wait_until("bytes are kept", || {
        read_anew(&mountpoint.join("weights/shard-0"));
        let status = kitfs.json(&["daemon", "status", "--json"]);
        status["cache_resident_bytes"].as_u64().unwrap() > 0 && status["cache_trouble"].is_null()
    });
    assert!(
        fs::read(mountpoint.join("weights/shard-1")).unwrap() == expected_content(&run.counted, 1)
    );
}

/// Past the page cache, through a map, and by commands that read kits themselves. A kit is warmed for later,
/// so that alone fails.
#[allow(unsafe_code, reason = "maps a file")]
fn read_in_other_ways(run: &Run, mountpoint: &Path) {
    let (kitfs, shard) = (&run.counted.kitfs, mountpoint.join("weights/shard-1"));
    let expected = expected_content(&run.counted, 1);
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&shard).unwrap();
    let mut buffer = kitfs::cache::page_aligned(MIB as usize);
    for at in (0..expected.len()).step_by(MIB as usize) {
        direct.read_exact_at(&mut buffer, at as u64).unwrap();
        assert!(buffer == expected[at..at + MIB as usize], "O_DIRECT at {at}");
    }
    let file = File::open(&shard).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    // SAFETY: a fresh map of a file that nobody writes, not used after it is unmapped.
    unsafe {
        let (none, read) = (std::ptr::null_mut(), ProtFlags::READ);
        let map = mmap(none, expected.len(), read, MapFlags::SHARED, &file, 0).unwrap();
        let bytes = std::slice::from_raw_parts(map.cast::<u8>(), expected.len());
        assert!(bytes == expected, "through a map");
        munmap(map, expected.len()).unwrap();
    }
    let reference = &run.counted.reference;
    let outcome = kitfs.run(&["cat", &format!("{reference}/weights/shard-1")]);
    assert!(outcome.stdout == expected, "cat: {}", outcome.stderr);
    let target = kitfs.folder().join("copied");
    kitfs.succeed(&["cp", "-r", &format!("{reference}/weights"), target.to_str().unwrap()]);
    let copied = [target.join("shard-1"), target.join("weights/shard-1")];
    let copied = copied.iter().find_map(|path| fs::read(path).ok());
    assert!(copied.is_some_and(|bytes| bytes == expected), "cp");
    let outcome = kitfs.run(&["warm", reference]);
    assert_ne!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("has room for"), "{}", outcome.stderr);
}

/// `ulimit -f`, and file systems with small files: EFBIG, and SIGXFSZ that ends no daemon.
#[test]
fn files_that_may_not_grow_cost_no_read() {
    let counted = Counted::new(&big_files());
    let kitfs = &counted.kitfs;
    let mountpoint = kitfs.mount(&counted.reference, &["--no-hydrate"]);
    let pid = Pid::from_raw(kitfs.worker_pid().try_into().unwrap());
    let limit = |bytes| {
        let limits = Rlimit { current: bytes, maximum: None };
        prlimit(pid, Resource::Fsize, limits).unwrap();
    };
    limit(Some(MIB));
    Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, "EFBIG");
    let status = kitfs.json(&["daemon", "status", "--json"]);
    let trouble = status["cache_trouble"].as_str().unwrap_or_default();
    assert!(trouble.contains("File too large"), "{status}");
    limit(None);
    wait_until("bytes are kept again", || {
        read_anew(&mountpoint.join("weights/shard-2"));
        kitfs.json(&["daemon", "status", "--json"])["cache_trouble"].is_null()
    });
}

/// By chance some of these mounts failed once.
#[test]
fn compressed_layers_are_mounted_and_read_in_a_cache_that_is_too_small_every_time() {
    let mut random = Random::new(5);
    let mut kit = Kit::modelkit();
    for (index, compression) in [Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let path = format!("packed-{index}");
        let layer = Layer::tar("dataset", &path).file(&path, 0o644, &random.bytes(6 << 20));
        kit = kit.with(layer.compressed(compression));
    }
    let counted = Counted::with(&kit, Kitfs::with_options(&["--cache-size", "4MiB"]));
    for round in 0..20 {
        let mountpoint = counted.kitfs.mountpoint(&format!("round{round}"));
        let place = mountpoint.to_str().unwrap();
        let outcome = counted.kitfs.run(&["mount", &counted.reference, place]);
        assert_eq!(outcome.code, Some(0), "{round}: {}", outcome.stderr);
        let said = "layers that came compressed are decoded from their start each time, and room for \
                    12.0 MiB avoids that";
        assert_eq!(outcome.stderr.matches(said).count(), 1, "{}", outcome.stderr);
        let what = format!("round {round}");
        Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, &what);
        counted.kitfs.unmount(&mountpoint);
        counted.kitfs.succeed(&["daemon", "stop"]);
        fs::remove_dir_all(counted.kitfs.cache().join("layers")).unwrap();
    }
}

/// `cache ls` without a daemon opens the cache itself, as a command.
#[test]
fn looking_at_a_cache_on_a_small_disk_takes_nothing_from_it() {
    let run = Run::new(&big_files(), 60, &[]);
    let kitfs = &run.counted.kitfs;
    kitfs.succeed(&["warm", "--keep-free", "0", &run.counted.reference]);
    let resident = |kitfs: &Kitfs| {
        let layers = kitfs.json(&["cache", "ls", "--json"]);
        let bytes = layers.as_array().unwrap().iter().map(|layer| layer["resident_bytes"].as_u64());
        bytes.map(Option::unwrap).sum::<u64>()
    };
    // The usual --keep-free is more than the whole disk.
    for command in [&["cache", "ls"][..], &["cache", "verify"], &["status"]] {
        kitfs.succeed(command);
        assert_eq!(resident(kitfs), run.counted.written.layer_bytes(), "{command:?}");
    }
    let mountpoint = kitfs.mountpoint("looked-at");
    let outcome =
        kitfs.run(&["mount", "--no-hydrate", &run.counted.reference, mountpoint.to_str().unwrap()]);
    assert_eq!(
        (outcome.code, outcome.stderr.contains("room for")),
        (Some(0), false),
        "all is here"
    );
    run.assert_right(&mountpoint);
    assert_eq!(resident(kitfs), run.counted.written.layer_bytes());
    let said = kitfs.run(&["info", &run.counted.reference]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(resident(kitfs), run.counted.written.layer_bytes());
}

/// The kit has more big files, each with a file of its own in the cache, than the daemon may open.
#[test]
fn a_process_without_descriptors_left_closes_files_of_the_cache() {
    let mut random = Random::new(9);
    let mut layer = Layer::tar("model", "many");
    for number in 0..60 {
        layer = layer.file(format!("many/{number}"), 0o644, &random.bytes((1 << 20) + number));
    }
    let counted = Counted::new(&Kit::modelkit().with(layer));
    let kitfs = &counted.kitfs;
    let mountpoint = kitfs.mount(&counted.reference, &["--no-hydrate"]);
    // Connections are there already, and stay open.
    fs::read(mountpoint.join("many/0")).unwrap();
    let number = kitfs.worker_pid();
    let open = || fs::read_dir(format!("/proc/{number}/fd")).unwrap().count() as u64;
    let pid = Pid::from_raw(number.try_into().unwrap());
    let most = open() + 25;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
    let what = format!("with {most} descriptors");
    Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, &what);
    assert!(open() <= most);
}

#[test]
fn a_full_disk_ends_a_pack_with_a_clear_word_and_leaves_nothing() {
    let kitfs = Kitfs::new();
    let _disk = SmallDisk::below(&kitfs, 8);
    let home = kitfs.cache().join("kitops");
    let source = kitfs.folder().join("src");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("Kitfile"), "manifestVersion: 1.0.0\nmodel: {path: m}\n").unwrap();
    fs::write(source.join("m"), vec![3; 16 * MIB as usize]).unwrap();
    let arguments = ["pack", "src", "--config", home.to_str().unwrap(), "-t", "demo:v1"];
    let words = kitfs.fail(8, &arguments);
    assert!(words.contains("cannot write") && words.contains("free space there"), "{words}");
    let storage = home.join("storage");
    assert_eq!(storage.join("blobs/sha256").read_dir().unwrap().count(), 0);
    assert!(!storage.join("index.json").exists());
    fs::write(source.join("m"), vec![3; MIB as usize]).unwrap();
    kitfs.succeed(&arguments);
}
