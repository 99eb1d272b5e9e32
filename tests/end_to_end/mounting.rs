//! The life of mounts, of the daemon and of the cache, and the messages of failures.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rstest::rstest;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kitfs::{Kitfs, is_mounted, mount_type, wait_until};
use crate::support::registry_process::RegistryProcess;
use crate::support::tree::Tree;
use crate::support::{Random, golden, golden_reference};

const MIB: u64 = 1 << 20;

/// Eight files of 2 MiB in one layer.
fn written(folder: &Path) -> Written {
    let mut random = Random::new(3);
    let mut layer = Layer::tar("model", "m").directory("m", 0o755);
    for index in 0..8 {
        layer = layer.file(format!("m/{index}"), 0o644, &random.bytes(2 << 20));
    }
    Kit::modelkit().with(layer).write(folder, "v1")
}

fn arguments<'a>(reference: &'a str, mountpoint: &'a Path, more: &'a [&'a str]) -> Vec<&'a OsStr> {
    let mut arguments = vec![OsStr::new("mount"), reference.as_ref(), mountpoint.as_os_str()];
    arguments.extend(more.iter().map(OsStr::new));
    arguments
}

#[test]
fn a_mount_is_of_type_kitfs_and_names_its_reference() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let mountpoint = kitfs.mount(&reference, &[]);
    assert_eq!(mount_type(&mountpoint).as_deref(), Some("fuse.kitfs"));
    let status = kitfs.status_of(&mountpoint);
    assert_eq!(status["reference"], reference.as_str());
    assert!(kitfs.succeed(&["status"]).contains(mountpoint.to_str().unwrap()));
    kitfs.unmount(&mountpoint);
    assert!(!is_mounted(&mountpoint));
    assert!(!kitfs.succeed(&["status"]).contains(mountpoint.to_str().unwrap()));
}

#[test]
fn a_mount_is_described_as_json() {
    let kitfs = Kitfs::new();
    let (reference, mountpoint) = (golden_reference("article"), kitfs.mountpoint("mnt"));
    let mounted = kitfs.json(&arguments(&reference, &mountpoint, &["--json"]));
    assert_eq!(mounted["reference"], reference.as_str());
    assert_eq!(mounted["digest"], kitfs.status_of(&mountpoint)["digest"]);
    let refused = kitfs.run(&arguments(&reference, &mountpoint, &["--json", "--foreground"]));
    assert_eq!(refused.code, Some(2));
}

#[test]
fn a_missing_mountpoint_is_named() {
    let kitfs = Kitfs::new();
    let missing = kitfs.folder().join("missing/too");
    let reference = golden_reference("article");
    let said = kitfs.fail(7, &arguments(&reference, &missing, &[]));
    assert!(said.contains(missing.to_str().unwrap()), "{said}");
}

#[test]
fn a_mountpoint_that_is_a_file_is_refused() {
    let kitfs = Kitfs::new();
    let file = kitfs.folder().join("file");
    fs::write(&file, "text").unwrap();
    let reference = golden_reference("article");
    let said = kitfs.fail(7, &arguments(&reference, &file, &[]));
    assert!(said.contains(file.to_str().unwrap()), "{said}");
}

#[test]
fn a_folder_that_is_not_empty_needs_nonempty() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    fs::write(mountpoint.join("mine"), "text").unwrap();
    let reference = golden_reference("article");
    let said = kitfs.fail(7, &arguments(&reference, &mountpoint, &[]));
    assert!(said.contains("--nonempty"), "does not say what to do: {said}");
    kitfs.succeed(&arguments(&reference, &mountpoint, &["--nonempty"]));
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "over a folder");
    kitfs.unmount(&mountpoint);
    assert_eq!(fs::read_to_string(mountpoint.join("mine")).unwrap(), "text");
}

#[test]
fn a_mountpoint_that_is_taken_is_refused() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let mountpoint = kitfs.mount(&reference, &[]);
    let other = golden_reference("yaml");
    let said = kitfs.fail(7, &arguments(&other, &mountpoint, &[]));
    assert!(said.contains(mountpoint.to_str().unwrap()), "{said}");
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "the first mount");
}

#[test]
fn of_two_mounts_at_one_place_one_wins() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    let both = std::thread::scope(|scope| {
        let start = || {
            let mut command = kitfs.command(&arguments(&reference, &mountpoint, &[]));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let both = [start(), start()];
        both.map(|mut child| scope.spawn(move || child.wait().unwrap().code())).map(|it| it.join())
    });
    let mut codes = both.map(|code| code.unwrap());
    codes.sort();
    assert_eq!(codes, [Some(0), Some(7)]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "the winner");
}

#[test]
fn a_mount_in_use_is_unmounted_lazily_only() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    let file = File::open(mountpoint.join("models/model.h5")).unwrap();
    let said = kitfs.fail(7, &[OsStr::new("umount"), mountpoint.as_os_str()]);
    assert!(said.contains("--lazy"), "does not say what to do: {said}");
    kitfs.succeed(&[OsStr::new("umount"), OsStr::new("--lazy"), mountpoint.as_os_str()]);
    assert!(!is_mounted(&mountpoint));
    // A program that has a file open may read it to its end.
    let mut buffer = vec![0; 60008];
    file.read_exact_at(&mut buffer, 0).unwrap();
}

#[test]
fn a_folder_without_a_mount_cannot_be_unmounted() {
    let kitfs = Kitfs::new();
    let folder = kitfs.mountpoint("mnt");
    let said = kitfs.fail(7, &[OsStr::new("umount"), folder.as_os_str()]);
    assert!(said.contains(folder.to_str().unwrap()), "{said}");
}

#[test]
fn stopping_the_daemon_unmounts_everything() {
    let kitfs = Kitfs::new();
    let first = kitfs.mount(&golden_reference("article"), &[]);
    let second = kitfs.mount(&golden_reference("yaml"), &[]);
    kitfs.succeed(&["daemon", "stop"]);
    assert!(!is_mounted(&first) && !is_mounted(&second));
    let again = kitfs.mount(&golden_reference("article"), &[]);
    Tree::read(&again).assert_equals(&Tree::golden("article"), "by the next daemon");
}

#[test]
fn mounting_starts_one_daemon() {
    let kitfs = Kitfs::new();
    kitfs.mount(&golden_reference("article"), &[]);
    let pid = kitfs.daemon_pid();
    kitfs.mount(&golden_reference("yaml"), &[]);
    assert_eq!(kitfs.daemon_pid(), pid);
}

/// A shell's locks and pipes must end with the shell.
#[test]
fn a_daemon_keeps_no_file_of_the_program_that_started_it() {
    let kitfs = Kitfs::new();
    let lock = File::create(kitfs.folder().join("lock")).unwrap();
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).unwrap();
    kitfs.succeed(&["daemon", "start"]);
    let open = fs::read_dir(format!("/proc/{}/fd", kitfs.worker_pid())).unwrap();
    let open = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let open: Vec<_> = open.collect();
    assert!(open.contains(&kitfs.cache().join("lock")), "the cache's own lock: {open:?}");
    assert!(!open.contains(&kitfs.folder().join("lock")), "{open:?}");
}

#[test]
fn the_mount_of_a_dead_daemon_can_be_unmounted() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    kitfs.kill_daemon();
    kitfs.unmount(&mountpoint);
    assert!(!is_mounted(&mountpoint));
    kitfs.succeed(&arguments(&golden_reference("article"), &mountpoint, &[]));
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "by the next daemon");
}

#[test]
fn status_lists_the_mounts_of_a_dead_daemon_until_they_are_unmounted() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let dead = kitfs.mount(&reference, &[]);
    kitfs.kill_daemon();
    // Without its journal no daemon makes it again.
    fs::remove_dir_all(kitfs.cache().join("mounts")).unwrap();
    let place = dead.to_str().unwrap();
    let is_told = || {
        let status = kitfs.status_of(&dead);
        assert_eq!(
            (&status["state"], &status["reference"]),
            (&"dead".into(), &(*reference).into())
        );
        let outcome = kitfs.run(&["status"]);
        let table = String::from_utf8(outcome.stdout).unwrap();
        let row = table.lines().find(|line| line.contains(place)).expect("a row");
        assert!(row.contains("DEAD") && row.contains(&reference), "{table}");
        assert!(outcome.stderr.contains(&format!("kitfs umount {place}")), "{}", outcome.stderr);
    };
    is_told();
    // Neither mounts of the next daemon nor mounts of another cache folder are leftovers.
    let alive = kitfs.mount(&reference, &[]);
    let elsewhere = Kitfs::new();
    let other = elsewhere.mount(&reference, &[]);
    is_told();
    assert_ne!(kitfs.status_of(&alive)["state"], "dead");
    assert_eq!(kitfs.status_of(&other)["state"], elsewhere.status_of(&other)["state"]);
    kitfs.unmount(&dead);
    assert!(!kitfs.succeed(&["status"]).contains(place));
    assert!(!is_mounted(&dead) && is_mounted(&alive) && is_mounted(&other));
}

#[test]
fn a_foreground_mount_ends_with_its_process() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    let mut command = kitfs.command(&arguments(&reference, &mountpoint, &["--foreground"]));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the mount", || is_mounted(&mountpoint) && mountpoint.join("Kitfile").exists());
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "in the foreground");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_reference_that_is_none_is_a_usage_error() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let said = kitfs.fail(2, &arguments("example.com/UPPER:v1", &mountpoint, &[]));
    assert!(said.contains("example.com/UPPER:v1"), "{said}");
}

#[test]
fn a_tag_that_a_folder_does_not_have_is_not_found() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = format!("oci:{}:v2", golden("article").display());
    let said = kitfs.fail(3, &arguments(&reference, &mountpoint, &[]));
    assert!(said.contains("v2") && said.contains("v1"), "names no tags: {said}");
}

#[test]
fn a_repository_that_a_real_registry_does_not_have_is_not_found() {
    let registry = RegistryProcess::start();
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = format!("{}/no/such:v1", registry.host());
    let said = kitfs.fail(3, &arguments(&reference, &mountpoint, &[]));
    assert!(said.contains(&reference), "{said}");
}

#[test]
fn a_registry_that_does_not_answer_is_unavailable() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    // Port 1 of the loopback is reserved, and no program listens there.
    let once = ["--retries", "0"];
    let said = kitfs.fail(5, &arguments("127.0.0.1:1/org/kit:v1", &mountpoint, &once));
    assert!(said.contains("127.0.0.1:1"), "names no host: {said}");
}

#[test]
fn an_image_is_not_a_kit() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let written = written(folder.path());
    let image = String::from_utf8(written.manifest.clone()).unwrap();
    let image = image.replace("kitops.modelkit.config", "oci.image.config");
    let digest = crate::support::tree::sha256(image.as_bytes());
    fs::write(folder.path().join("blobs/sha256").join(&digest), image).unwrap();
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = format!("oci:{}@sha256:{digest}", folder.path().display());
    let said = kitfs.fail(6, &arguments(&reference, &mountpoint, &[]));
    assert!(said.contains("not a"), "{said}");
}

#[test]
fn a_cache_folder_that_is_held_is_named() {
    let kitfs = Kitfs::new();
    fs::create_dir_all(kitfs.cache()).unwrap();
    let lock = File::options().create(true).append(true).open(kitfs.cache().join("lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let mountpoint = kitfs.mountpoint("mnt");
    let said = kitfs.fail(8, &arguments(&golden_reference("article"), &mountpoint, &[]));
    assert!(said.contains(kitfs.cache().to_str().unwrap()), "{said}");
}

#[test]
fn a_cache_folder_that_cannot_be_made_is_named() {
    let kitfs = Kitfs::new();
    fs::write(kitfs.folder().join("file"), "text").unwrap();
    let folder = kitfs.folder().join("file/cache");
    let mountpoint = kitfs.mountpoint("mnt");
    let folder = folder.to_str().unwrap();
    let reference = golden_reference("article");
    let said = kitfs.fail(8, &arguments(&reference, &mountpoint, &["--cache-dir", folder]));
    assert!(said.contains(folder), "{said}");
}

#[test]
fn a_kit_of_a_real_registry_mounts_again_without_it() {
    let registry = RegistryProcess::start();
    let reference = registry.push(&golden("article"), "v1", "golden/article");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&reference, &[]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "with the registry");
    kitfs.succeed(&["daemon", "stop"]);
    registry.stop();
    let mountpoint = kitfs.mount(&reference, &["--retries", "1"]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "without the registry");
}

#[test]
fn a_complete_layer_is_confirmed() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let mountpoint = kitfs.mount(&written(folder.path()).reference, &[]);
    assert_eq!(kitfs.status_of(&mountpoint)["state"], "unconfirmed");
    Tree::read(&mountpoint);
    wait_until("the digest", || kitfs.status_of(&mountpoint)["state"] == "confirmed");
}

#[test]
fn a_layer_that_is_not_what_its_digest_says_is_poisoned() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let written = written(folder.path());
    let blob = File::options().write(true).open(written.blob(&written.layers[0].0)).unwrap();
    blob.write_all_at(b"flipped", 3 * MIB).unwrap();

    let mountpoint = kitfs.mount(&written.reference, &[]);
    for index in 0..8 {
        let _ = fs::read(mountpoint.join(format!("m/{index}")));
    }
    wait_until("the digest", || kitfs.status_of(&mountpoint)["state"] == "poisoned");
    // The kernel has no pages of a mount that was never read.
    let other = kitfs.mount(&written.reference, &[]);
    let error = fs::read(other.join("m/7")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    let status = kitfs.status_of(&other);
    assert_eq!(status["state"], "poisoned");
    let failure = status["last_failure"].as_str().expect("a read failed");
    assert!(failure.starts_with("m/7: ") && failure.contains("is poisoned"), "{failure}");
}

/// The command has written the bytes out before their digest turns out to be wrong. The command must
/// fail.
#[rstest]
#[case::by_this_process(false)]
#[case::by_the_daemon(true)]
fn copying_wrong_bytes_fails(#[case] has_daemon: bool) {
    for command in ["cp", "cat"] {
        let kitfs = Kitfs::new();
        if has_daemon {
            kitfs.succeed(&["daemon", "start"]);
        }
        let folder = TempDir::new().unwrap();
        let written = written(folder.path());
        let blob = File::options().write(true).open(written.blob(&written.layers[0].0)).unwrap();
        blob.write_all_at(b"flipped", 3 * MIB).unwrap();
        let files: Vec<_> = (0..8).map(|file| format!("{}/m/{file}", written.reference)).collect();
        let target = folder.path().join("copy");
        let said = match command {
            "cp" => kitfs.fail(6, &["cp", "-r", &written.reference, target.to_str().unwrap()]),
            _ => kitfs.fail(
                6,
                &[&[command][..], &files.iter().map(|it| &**it).collect::<Vec<_>>()].concat(),
            ),
        };
        assert!(said.contains("is poisoned") && said.contains("cache rm"), "{said}");
    }
}

#[test]
fn a_mount_that_cannot_cache_anything_says_so() {
    let kitfs = Kitfs::with_options(&["--keep-free", "8000TiB"]);
    let folder = TempDir::new().unwrap();
    let mountpoint = kitfs.mountpoint("mnt");
    let written = written(folder.path());
    let outcome = kitfs.run(&arguments(&written.reference, &mountpoint, &[]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the cache has room for 0 B"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("beside --keep-free"), "{}", outcome.stderr);
    Tree::read(&mountpoint).without_kitfile().assert_equals(&written.tree, "without a cache");
}

#[test]
fn a_kit_with_a_poisoned_layer_is_mounted_again_once_that_is_removed() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let written = written(folder.path());
    let path = written.blob(&written.layers[0].0);
    let right = fs::read(&path).unwrap();
    let blob = File::options().write(true).open(&path).unwrap();
    blob.write_all_at(b"flipped", 3 * MIB).unwrap();
    kitfs.fail(6, &["warm", &written.reference]);

    blob.write_all_at(&right, 0).unwrap();
    let mountpoint = kitfs.mountpoint("mnt");
    let said = kitfs.fail(6, &arguments(&written.reference, &mountpoint, &[]));
    let remedy = format!("kitfs cache rm {}", written.layers[0].0);
    assert!(said.contains(&remedy), "does not say what to do: {said}");
    kitfs.succeed(&remedy.split(' ').skip(1).collect::<Vec<_>>());
    kitfs.succeed(&arguments(&written.reference, &mountpoint, &[]));
    Tree::read(&mountpoint).without_kitfile().assert_equals(&written.tree, "after the repair");
}

/// The bytes of the folder on disk.
fn disk_bytes(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).unwrap() {
        // A file that is being removed at this moment counts no more.
        let Ok(entry) = entry else { continue };
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            bytes += disk_bytes(&entry.path());
        }
    }
    bytes
}

#[test]
fn the_cache_holds_no_more_than_it_may_and_evicted_bytes_come_back() {
    // Bytes on their way may come on top: a piece for each transfer (cache/eviction.rs).
    let limit = 6 * MIB + MIB;
    let kitfs = Kitfs::with_options(&["--cache-size", "6MiB"]);
    let folder = TempDir::new().unwrap();
    let written = written(folder.path());
    // Two mounts: the kernel's pages of the first mount do not serve the second.
    for _ in 0..2 {
        let mountpoint = kitfs.mount(&written.reference, &[]);
        for index in 0..8 {
            let name = format!("m/{index}");
            let (_, sha256) = crate::support::tree::hash_file(&mountpoint.join(&name));
            let expected = &written.tree.0[name.as_bytes()].kind;
            assert!(format!("{expected:?}").contains(&sha256), "{name} is wrong");
            let status = kitfs.json(&["daemon", "status", "--json"]);
            let resident = status["cache_resident_bytes"].as_u64().unwrap();
            assert!(resident <= limit, "{resident} bytes are resident");
        }
        // The limit counts content; the tables are small.
        let on_disk = disk_bytes(&kitfs.cache().join("layers"));
        assert!(on_disk <= limit + MIB, "{on_disk} bytes are on disk");
    }
}

/// A cache with one kit in it, read completely, and its mount.
fn filled() -> (Kitfs, TempDir, Written, PathBuf) {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let written = written(folder.path());
    let mountpoint = kitfs.mount(&written.reference, &[]);
    Tree::read(&mountpoint).without_kitfile().assert_equals(&written.tree, "at first");
    (kitfs, folder, written, mountpoint)
}

fn layers(report: &Value) -> Vec<(&str, u64)> {
    let layers = report.as_array().or_else(|| report["layers"].as_array()).unwrap();
    let of = |layer: &'_ Value| layer["resident_bytes"].as_u64().unwrap();
    layers.iter().map(|layer| (layer["digest"].as_str().unwrap(), of(layer))).collect()
}

#[test]
fn cache_ls_shows_each_layer_and_the_kits_that_use_it() {
    let (kitfs, _folder, written, _) = filled();
    let report = kitfs.json(&["cache", "ls", "--json"]);
    assert_eq!(layers(&report), [(written.layers[0].0.as_str(), written.layers[0].1)]);
    assert!(report.to_string().contains(&written.reference), "{report}");
    let digest = &written.layers[0].0["sha256:".len()..][..12];
    assert!(kitfs.succeed(&["cache", "ls"]).contains(digest));
}

#[rstest]
#[case::by_reference(|written: &Written| written.reference.clone())]
#[case::by_manifest(|written: &Written| written.digest.clone())]
#[case::by_layer(|written: &Written| written.layers[0].0.clone())]
#[case::by_a_layers_first_digits(|written: &Written| written.layers[0].0[..19].to_owned())]
fn cache_rm_removes_an_unmounted_kit(#[case] what: fn(&Written) -> String) {
    let (kitfs, _folder, written, mountpoint) = filled();
    let what = what(&written);
    let said = kitfs.fail(8, &["cache", "rm", &what]);
    assert!(said.contains(&format!("kitfs umount {}", mountpoint.display())), "{said}");
    let report = kitfs.json(&["cache", "ls", "--json"]);
    assert_eq!(layers(&report).len(), 1, "what is mounted was removed");
    kitfs.unmount(&mountpoint);
    kitfs.succeed(&["cache", "rm", &what]);
    assert_eq!(layers(&kitfs.json(&["cache", "ls", "--json"])), []);
    let again = kitfs.mount(&written.reference, &[]);
    Tree::read(&again).without_kitfile().assert_equals(&written.tree, "fetched anew");
}

#[test]
fn cache_rm_of_a_missing_kit_is_not_found() {
    let (kitfs, ..) = filled();
    kitfs.fail(3, &["cache", "rm", "sha256:0123456789ab"]);
    kitfs.fail(3, &["cache", "rm", "example.com/never/seen:v1"]);
}

#[test]
fn cache_clear_leaves_mounted_kits() {
    let (kitfs, _folder, written, mountpoint) = filled();
    kitfs.succeed(&["cache", "clear"]);
    assert_eq!(layers(&kitfs.json(&["cache", "ls", "--json"])).len(), 1);
    let documents = || fs::read_dir(kitfs.cache().join("kits/sha256")).unwrap().count();
    assert_eq!(documents(), 2, "manifest and config of a mounted kit stay");
    kitfs.unmount(&mountpoint);
    let said = kitfs.succeed(&["cache", "clear"]);
    assert!(said.contains("removed 1 layer and 2 documents"), "{said}");
    assert_eq!(documents(), 0);
    assert_eq!(layers(&kitfs.json(&["cache", "ls", "--json"])), []);
    assert!(disk_bytes(&kitfs.cache().join("layers")) < MIB);
    let again = kitfs.mount(&written.reference, &[]);
    Tree::read(&again).without_kitfile().assert_equals(&written.tree, "fetched anew");
}

/// Overwrites bytes in the middle of the biggest file below `folder`.
fn damage(folder: &Path) {
    let mut open = vec![folder.to_owned()];
    let mut biggest = (0, PathBuf::new());
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            match metadata.is_dir() {
                true => open.push(entry.path()),
                false => biggest = biggest.max((metadata.len(), entry.path())),
            }
        }
    }
    let file = File::options().write(true).open(&biggest.1).unwrap();
    file.write_all_at(b"a bad sector", biggest.0 / 2).unwrap();
}

#[test]
fn cache_verify_drops_bytes_that_the_disk_has_changed() {
    let (kitfs, _folder, written, _) = filled();
    kitfs.succeed(&["daemon", "stop"]);
    damage(&kitfs.cache().join("layers"));
    let said = kitfs.run(&["cache", "verify"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned() + &said.stderr;
    assert!(said.contains('1'), "says nothing of the chunk: {said}");
    let resident = layers(&kitfs.json(&["cache", "ls", "--json"]))[0].1;
    assert!(resident < written.layers[0].1, "the chunk is still there");
    let again = kitfs.mount(&written.reference, &[]);
    Tree::read(&again).without_kitfile().assert_equals(&written.tree, "fetched anew");
}

#[test]
fn bytes_that_the_disk_has_changed_are_never_served() {
    let (kitfs, _folder, written, _) = filled();
    kitfs.succeed(&["daemon", "stop"]);
    damage(&kitfs.cache().join("layers"));
    let again = kitfs.mount(&written.reference, &[]);
    Tree::read(&again).without_kitfile().assert_equals(&written.tree, "from a damaged cache");
}

/// Only root has passthrough.
mod as_root {
    use super::*;

    #[test]
    fn a_passed_through_file_is_read_on_when_its_daemon_is_dead_and_another_one_evicts() {
        let kitfs = Kitfs::with_options(&["--cache-size", "8MiB"]);
        let folder = TempDir::new().unwrap();
        let content = Random::new(4).bytes(4 << 20);
        let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
        let reference = kit.write(&folder.path().join("kit"), "v1").reference;
        let mountpoint = kitfs.mount(&reference, &[]);
        let path = mountpoint.join("weights.bin");
        fs::read(&path).unwrap();
        wait_until("it is passed through", || {
            let _file = File::open(&path).unwrap();
            kitfs.status_of(&mountpoint)["passthrough"]["on"]["open_files"] == 1
        });
        let file = File::open(&path).unwrap();
        assert!(kitfs.succeed(&["status", "--wide"]).contains("on (1 open"));
        kitfs.kill_daemon();
        let mut read = vec![0; content.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == content, "without a daemon");
        // Reading 16 MiB through the rest of an 8 MiB cache forces evictions.
        let others = written(&folder.path().join("others"));
        let elsewhere = kitfs.mount(&others.reference, &[]);
        Tree::read(&elsewhere).without_kitfile().assert_equals(&others.tree, "by the next daemon");
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == content, "after evictions");
        drop(file);
        kitfs.succeed(&["umount", "--lazy", mountpoint.to_str().unwrap()]);
    }

    #[test]
    fn a_mount_that_rechecks_trusts_no_file_of_an_earlier_process() {
        let kitfs = Kitfs::new();
        let folder = TempDir::new().unwrap();
        let content = Random::new(4).bytes(4 << 20);
        let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
        let reference = kit.write(&folder.path().join("kit"), "v1").reference;
        kitfs.succeed(&["warm", &reference]);
        let mut is_on = Vec::new();
        for options in [&[][..], &["--recheck"], &[]] {
            kitfs.succeed(&["daemon", "stop"]);
            let mountpoint = kitfs.mount(&reference, options);
            let open = File::open(mountpoint.join("weights.bin")).unwrap();
            is_on.push(kitfs.status_of(&mountpoint)["passthrough"]["on"]["open_files"] == 1);
            let mut read = Vec::new();
            (&open).read_to_end(&mut read).unwrap();
            assert!(read == content);
            drop(open);
            wait_until("it is checked, and passed through", || {
                let _file = File::open(mountpoint.join("weights.bin")).unwrap();
                kitfs.status_of(&mountpoint)["passthrough"]["on"]["open_files"] == 1
            });
            kitfs.unmount(&mountpoint);
        }
        assert_eq!(is_on, [true, false, true]);
    }
}
