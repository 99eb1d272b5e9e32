//! Files that the kernel reads by itself. Each test's name is a sentence of docs/semantics.md.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kitfs::fuse::PassthroughStatus;
use rustix::mm::MapFlags;
use rustix::mount::{MountFlags, UnmountFlags};

use super::engine::Engine;
use super::support::Random;
use super::support::kit_builder::{Kit, Layer};
use super::{How, Mapped, Mounted, PATIENCE};

/// Waits until a background task has made a condition true.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn weights(seed: u64, length: usize) -> (Kit, Vec<u8>) {
    let content = Random::new(seed).bytes(length);
    (Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content)), content)
}

impl Mounted {
    /// Waits until a layer is confirmed and the kernel has reported every close.
    #[track_caller]
    fn settle(&self, path: &str) {
        wait_until("the layer is confirmed", || self.is_confirmed(path));
        wait_until("every file is released", || self.mount().open_files() == 0);
    }

    fn is_confirmed(&self, path: &str) -> bool {
        let mut state = [0; 32];
        let length = rustix::fs::getxattr(self.path(path), "user.kitfs.state", &mut state[..]);
        &state[..length.unwrap()] == b"confirmed"
    }

    /// The number of files that are passed through now.
    fn passed(&self) -> u64 {
        match self.mount().passthrough() {
            PassthroughStatus::On { open_files, .. } => open_files,
            PassthroughStatus::Off { reason } => panic!("off: {reason}"),
        }
    }

    fn reason(&self) -> String {
        match self.mount().passthrough() {
            PassthroughStatus::On { .. } => panic!("it is on"),
            PassthroughStatus::Off { reason } => reason,
        }
    }

    /// Ends the mount and the engine, and starts both again over the same cache.
    fn restart(&mut self, between: impl FnOnce(&Path)) {
        self.unmount();
        drop(self.mount.take());
        let nowhere = tempfile::tempdir().unwrap();
        let stand_in = Engine::new(&nowhere.path().join("cache"), None);
        let engine = std::mem::replace(&mut self.engine, stand_in);
        between(self.folder.path());
        self.engine = engine.restart();
        self.mount = Some(self.mount_again(How::default()).unwrap());
    }
}

/// Compares `read` and a map of a file with its content.
#[track_caller]
fn assert_bytes(file: &File, content: &[u8]) {
    let mut read = vec![0; content.len() + 1];
    let mut at = 0;
    loop {
        match file.read_at(&mut read[at..], at as u64).unwrap() {
            0 => break,
            bytes => at += bytes,
        }
    }
    assert!(read[..at] == *content, "read");
    for kind in [MapFlags::PRIVATE, MapFlags::SHARED] {
        assert!(Mapped::new(file, content.len(), kind).bytes() == content, "map");
    }
}

#[test]
fn a_complete_confirmed_file_is_read_by_the_kernel_itself() {
    let (raw, in_a_tar) = (Random::new(1).bytes(3_000_007), Random::new(2).bytes(1_500_000));
    let layer = Layer::tar("dataset", "data").file("data/before", 0o644, b"small");
    let kit = Kit::modelkit()
        .with(Layer::raw("model", "raw.bin", 0o644, &raw))
        .with(layer.file("data/tar.bin", 0o644, &in_a_tar).gzip());
    let mounted = Mounted::new(kit);
    for (path, content) in [("raw.bin", &raw), ("data/tar.bin", &in_a_tar)] {
        fs::read(mounted.path(path)).unwrap();
        mounted.settle(path);
        let reads = mounted.mount().reads();
        let file = mounted.open(path);
        assert_eq!(mounted.passed(), 1, "{path}");
        assert_bytes(&file, content);
        assert_eq!(mounted.mount().reads(), reads, "the daemon was asked");
        assert_eq!(file.metadata().unwrap().len(), content.len() as u64);
        drop(file);
        wait_until("the file is released", || mounted.passed() == 0);
    }
    // A small file has no file of its own in the cache, so reads of it go through the daemon.
    assert_eq!(fs::read(mounted.path("data/before")).unwrap(), b"small");
    assert_eq!(mounted.mount().open_files(), 0);
    let opened = PassthroughStatus::On { open_files: 0, opened_files: 2 };
    assert_eq!(mounted.mount().passthrough(), opened);
}

#[test]
fn a_file_that_was_opened_before_it_was_complete_stays_with_the_daemon_until_its_last_close() {
    let (kit, content) = weights(3, 2_500_000);
    let mounted = Mounted::new(kit);
    let first = mounted.open("weights.bin");
    let mapped = Mapped::new(&first, content.len(), MapFlags::SHARED);
    assert!(fs::read(mounted.path("weights.bin")).unwrap() == content);
    wait_until("the layer is confirmed", || mounted.is_confirmed("weights.bin"));
    let second = mounted.open("weights.bin");
    assert_bytes(&second, &content);
    drop((first, second));
    let third = mounted.open("weights.bin");
    assert_bytes(&third, &content);
    assert_eq!(mounted.passed(), 0, "a map of it is left");
    drop(third);
    assert!(mapped.bytes() == content);
    drop(mapped);
    mounted.settle("weights.bin");
    let file = mounted.open("weights.bin");
    assert_eq!(mounted.passed(), 1);
    assert_bytes(&file, &content);
}

#[test]
fn all_opens_of_a_file_share_one_backing_file() {
    let (kit, content) = weights(4, 2_000_000);
    let mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    mounted.settle("weights.bin");
    let first = mounted.open("weights.bin");
    let ids = mounted.mount().backing_ids();
    assert_eq!(ids.len(), 1);
    let second = mounted.open("weights.bin");
    drop(first);
    let third = mounted.open("weights.bin");
    drop(second);
    assert_eq!(mounted.mount().backing_ids(), ids);
    assert_bytes(&third, &content);
    drop(third);
    wait_until("the file is released", || mounted.mount().backing_ids().is_empty());
}

#[test]
fn many_opens_and_closes_leave_nothing_behind() {
    let (kit, content) = weights(5, 1_200_000);
    let mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    mounted.settle("weights.bin");
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (path, content) = (mounted.path("weights.bin"), &content);
            scope.spawn(move || {
                let mut byte = [0];
                for round in 0..25_000 {
                    let at = (reader * 300_000 + round) % content.len();
                    File::open(&path).unwrap().read_exact_at(&mut byte, at as u64).unwrap();
                    assert_eq!(byte[0], content[at]);
                }
            });
        }
    });
    mounted.settle("weights.bin");
    assert_eq!(mounted.mount().backing_ids(), []);
}

#[test]
fn a_file_that_programs_have_open_by_passthrough_is_not_evicted() {
    let (held, others) = (Random::new(6).bytes(4_000_000), Random::new(7).bytes(9_000_000));
    let kit = Kit::modelkit()
        .with(Layer::raw("model", "held.bin", 0o644, &held))
        .with(Layer::raw("dataset", "first.bin", 0o644, &others))
        .with(Layer::raw("docs", "second.bin", 0o644, &others[1..]));
    let mounted = Mounted::with(kit, How { cache_bytes: Some(8_000_000), ..How::default() });
    fs::read(mounted.path("held.bin")).unwrap();
    mounted.settle("held.bin");
    let file = mounted.open("held.bin");
    assert_eq!(mounted.passed(), 1);
    let mapped = Mapped::new(&file, held.len(), MapFlags::SHARED);
    assert!(fs::read(mounted.path("first.bin")).unwrap() == others);
    assert_bytes(&file, &held);
    // Only the map holds the file now: the kernel reports the close although the map lives.
    drop(file);
    wait_until("the file is released", || mounted.passed() == 0);
    assert!(fs::read(mounted.path("second.bin")).unwrap() == others[1..]);
    assert!(mapped.bytes() == held);
    let resident = mounted.engine.cache().resident_bytes();
    assert!(resident < 9_000_000, "{resident} bytes are resident");
    assert_bytes(&mounted.open("held.bin"), &held);
}

/// Waits until the layer's sync has left a record of its checked files.
fn wait_until_trusted(folder: &Path) {
    wait_until("the layer is synced", || trusted_file(folder).exists());
}

#[test]
fn after_a_restart_a_file_is_read_by_the_kernel_itself_at_its_first_open() {
    let (kit, content) = weights(8, 3_000_000);
    let mut mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    mounted.settle("weights.bin");
    wait_until_trusted(mounted.folder.path());
    for _ in 0..2 {
        mounted.restart(|_| {});
        let file = mounted.open("weights.bin");
        assert_eq!(mounted.passed(), 1);
        assert_bytes(&file, &content);
        assert_eq!(mounted.mount().reads(), 0, "the daemon was asked");
        drop(file);
        wait_until("the file is released", || mounted.mount().open_files() == 0);
    }
}

#[test]
fn a_file_that_was_changed_on_the_disk_is_checked_before_the_kernel_reads_it_by_itself() {
    let (kit, content) = weights(8, 3_000_000);
    let mut mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    mounted.settle("weights.bin");
    wait_until_trusted(mounted.folder.path());
    mounted.restart(|folder| {
        let file = File::options().write(true).open(member_file(folder)).unwrap();
        file.write_all_at(b"a bad sector", 1_700_000).unwrap();
    });
    let first = mounted.open("weights.bin");
    assert_eq!(mounted.passed(), 0, "nothing of it is checked");
    assert_bytes(&first, &content);
    drop(first);
    wait_until("it is passed through", || {
        let file = mounted.open("weights.bin");
        assert_bytes(&file, &content);
        mounted.passed() == 1
    });
}

fn trusted_file(folder: &Path) -> PathBuf {
    member_file(folder).ancestors().nth(2).unwrap().join("trusted")
}

fn member_file(folder: &Path) -> PathBuf {
    let layers = folder.join("cache/layers/sha256");
    let layer = fs::read_dir(layers).unwrap().next().unwrap().unwrap().path();
    layer.join("members/0")
}

#[test]
fn a_file_that_was_only_opened_after_a_restart_is_checked_in_the_background() {
    let (kit, content) = weights(9, 3_000_000);
    let mut mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    mounted.settle("weights.bin");
    wait_until_trusted(mounted.folder.path());
    mounted.restart(|folder| fs::remove_file(trusted_file(folder)).unwrap());
    wait_until("it is passed through", || {
        let _file = mounted.open("weights.bin");
        mounted.passed() == 1
    });
    assert_eq!(mounted.mount().reads(), 0, "nobody read it");
    assert!(fs::read(mounted.path("weights.bin")).unwrap() == content);
}

#[test]
fn passthrough_can_be_forbidden_for_a_mount_and_for_a_while() {
    let (kit, content) = weights(10, 2_000_000);
    let mounted = Mounted::with(kit.clone(), How { passthrough: false, ..How::default() });
    assert!(mounted.reason().contains("--no-passthrough"));
    fs::read(mounted.path("weights.bin")).unwrap();
    wait_until("the layer is confirmed", || mounted.is_confirmed("weights.bin"));
    assert_bytes(&mounted.open("weights.bin"), &content);
    assert_eq!(mounted.mount().open_files(), 0);

    let mounted = Mounted::new(kit);
    fs::read(mounted.path("weights.bin")).unwrap();
    mounted.settle("weights.bin");
    mounted.mount().set_passthrough(false);
    assert!(mounted.reason().contains("recorded"));
    let file = mounted.open("weights.bin");
    mounted.mount().set_passthrough(true);
    let second = mounted.open("weights.bin");
    assert_bytes(&second, &content);
    assert_eq!(mounted.passed(), 0, "it stays as it was opened");
    drop((file, second));
    mounted.settle("weights.bin");
    let _file = mounted.open("weights.bin");
    assert_eq!(mounted.passed(), 1);
}

#[test]
fn a_kit_without_a_big_file_has_no_passthrough() {
    let kit = Kit::modelkit().with(Layer::raw("model", "small.bin", 0o644, &[7; 1000]));
    let mounted = Mounted::new(kit);
    assert_eq!(fs::read(mounted.path("small.bin")).unwrap(), [7; 1000]);
    assert!(mounted.reason().contains("1 MiB"));
}

#[test]
fn a_cache_on_an_overlay_is_read_through_the_daemon() {
    let (below, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["lower", "upper", "work"] {
        fs::create_dir(below.path().join(name)).unwrap();
    }
    let place = below.path().display();
    let options = format!("lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work");
    let options = std::ffi::CString::new(options).unwrap();
    let overlay = folder.path().to_owned();
    rustix::mount::mount("overlay", &overlay, "overlay", MountFlags::empty(), &*options).unwrap();
    let (kit, content) = weights(11, 2_000_000);
    let mounted = Mounted::in_folder(folder, kit, How::default());
    fs::read(mounted.path("weights.bin")).unwrap();
    wait_until("the layer is confirmed", || mounted.is_confirmed("weights.bin"));
    let file = mounted.open("weights.bin");
    let reason = mounted.reason();
    assert_bytes(&file, &content);
    drop((file, mounted));
    rustix::mount::unmount(&overlay, UnmountFlags::DETACH).unwrap();
    fs::remove_dir(&overlay).unwrap();
    assert!(reason.contains("overlay"), "{reason}");
}
