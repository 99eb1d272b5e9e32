//! Mounts that died with both processes of their daemon, or with the machine, are made again.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, is_mounted, kill_and_wait, signal, wait_until};
use crate::support::registry_double::{Fault, Rule};
use crate::support::tree::{Tree, sha256};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// The files of the journal.
fn entries(kitfs: &Kitfs) -> Vec<PathBuf> {
    let files = fs::read_dir(kitfs.cache().join("mounts")).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// Kits at places of their own, whose daemon was killed.
fn dead(kitfs: &Kitfs) -> [(PathBuf, &'static str); 2] {
    let mounts = ["article", "yaml"].map(|name| (kitfs.mount(&golden_reference(name), &[]), name));
    kitfs.kill_daemon();
    for (mountpoint, _) in &mounts {
        assert!(fs::read_dir(mountpoint).is_err(), "nobody serves it");
    }
    mounts
}

fn assert_served(mounts: &[(PathBuf, &str)]) {
    for (mountpoint, name) in mounts {
        Tree::read(mountpoint).assert_equals(&Tree::golden(name), "mounted again");
    }
}

fn ends_by_signal(kitfs: &Kitfs) {
    let keeper = kitfs.daemon_pid();
    signal(keeper, Signal::TERM);
    wait_until("the end of the keeper", || !Path::new(&format!("/proc/{keeper}/exe")).exists());
}

/// Makes the entries of the journal those of another boot.
fn reboot(kitfs: &Kitfs) {
    for file in entries(kitfs) {
        let text = fs::read_to_string(&file).unwrap();
        let (head, rest) = text.split_once("\"boot\":\"").unwrap();
        let body = format!("{head}\"boot\":\"{}{}", "0".repeat(32), &rest[32..]);
        let end = body.trim_end().rfind('\n').unwrap() + 1;
        let digest = sha256(&body.as_bytes()[..end]);
        fs::write(&file, format!("{}sha256:{digest}\n", &body[..end])).unwrap();
    }
}

#[test]
fn status_makes_mounts_again_that_died_with_their_daemon() {
    let kitfs = Kitfs::new();
    let mounts = dead(&kitfs);
    for (mountpoint, name) in &mounts {
        assert_eq!(kitfs.status_of(mountpoint)["reference"], golden_reference(name).as_str());
    }
    assert_served(&mounts);
    // They are the mounts of a daemon like any others.
    kill_and_wait(kitfs.worker_pid());
    assert_served(&mounts);
    kitfs.succeed(&["umount", text(&mounts[0].0)]);
    kitfs.kill_daemon();
    kitfs.succeed(&["daemon", "start"]);
    assert_served(&mounts[1..]);
    assert!(!is_mounted(&mounts[0].0));
}

#[test]
fn a_mount_beside_dead_mounts_makes_them_again() {
    let kitfs = Kitfs::new();
    let mounts = dead(&kitfs);
    // One of them is replaced by another kit, the other is made again.
    kitfs.succeed(&["mount", &golden_reference("yaml"), text(&mounts[0].0)]);
    Tree::read(&mounts[0].0).assert_equals(&Tree::golden("yaml"), "another kit");
    kitfs.succeed(&["status"]);
    assert_served(&mounts[1..]);
    assert_eq!(entries(&kitfs).len(), 2);
}

#[test]
fn a_dead_mount_that_was_unmounted_is_not_made_again() {
    let kitfs = Kitfs::new();
    let [first, second] = dead(&kitfs);
    kitfs.succeed(&["umount", text(&first.0)]);
    assert_eq!(entries(&kitfs).len(), 1);
    let status = std::process::Command::new("umount").arg(&second.0).status().unwrap();
    assert!(status.success());
    kitfs.succeed(&["daemon", "start", "--restore"]);
    assert!(!is_mounted(&first.0) && !is_mounted(&second.0));
    assert!(entries(&kitfs).is_empty());
}

#[test]
fn mounts_of_an_earlier_boot_come_back_with_restore_only() {
    let kitfs = Kitfs::new();
    let mounts = dead(&kitfs);
    for (mountpoint, _) in &mounts {
        std::process::Command::new("umount").arg(mountpoint).status().unwrap();
    }
    reboot(&kitfs);
    kitfs.succeed(&["daemon", "start"]);
    kitfs.succeed(&["status"]);
    assert!(mounts.iter().all(|(mountpoint, _)| !is_mounted(mountpoint)));
    // Something else lies at one of the places.
    fs::write(mounts[0].0.join("mine"), "").unwrap();
    let outcome = kitfs.run(&["daemon", "start", "--restore"]);
    assert_eq!(outcome.code, Some(0));
    assert!(outcome.stderr.contains("not empty"), "{}", outcome.stderr);
    assert_served(&mounts[1..]);
    fs::remove_file(mounts[0].0.join("mine")).unwrap();
    let said = kitfs.succeed(&["daemon", "start", "--restore"]);
    assert!(said.contains(text(&mounts[0].0)), "{said}");
    assert_served(&mounts);
    kitfs.succeed(&["daemon", "stop"]);
    assert!(entries(&kitfs).is_empty());
}

#[test]
fn mounts_that_a_signal_has_ended_come_back_with_restore() {
    let kitfs = Kitfs::new();
    let mounts = ["article", "yaml"].map(|name| (kitfs.mount(&golden_reference(name), &[]), name));
    ends_by_signal(&kitfs);
    assert!(mounts.iter().all(|(mountpoint, _)| !is_mounted(mountpoint)));
    kitfs.succeed(&["status"]);
    assert!(mounts.iter().all(|(mountpoint, _)| !is_mounted(mountpoint)));
    kitfs.succeed(&["daemon", "start", "--restore"]);
    assert_served(&mounts);
    kitfs.succeed(&["daemon", "stop"]);
    kitfs.succeed(&["daemon", "start", "--restore"]);
    assert!(mounts.iter().all(|(mountpoint, _)| !is_mounted(mountpoint)), "a command ended them");
}

#[test]
fn a_mount_that_is_made_again_is_of_the_version_that_was_mounted() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--hydrate", "none"]);
    let digest = counted.kitfs.status_of(&mountpoint)["digest"].clone();
    counted.kitfs.kill_daemon();
    // The tag moves, and the kit that is in the cache is mounted without asking.
    counted.registry.script(Rule::on("/manifests/").then(Fault::Hold));
    counted.kitfs.succeed(&["status"]);
    assert_eq!(counted.kitfs.status_of(&mountpoint)["digest"], digest);
    assert_eq!(counted.kitfs.status_of(&mountpoint)["reference"], counted.reference.as_str());
    counted.registry.release();
    let path = mountpoint.join("weights/shard-1");
    assert!(fs::read(path).unwrap() == expected_content(&counted, 1));
}

#[test]
fn a_directory_that_mount_had_made_is_removed_with_the_mount_that_is_made_again() {
    let kitfs = Kitfs::new();
    let place = kitfs.mountpoint("made");
    fs::remove_dir(&place).unwrap();
    kitfs.succeed(&["mount", &golden_reference("article"), text(&place)]);
    kitfs.kill_daemon();
    kitfs.succeed(&["status"]);
    Tree::read(&place).assert_equals(&Tree::golden("article"), "mounted again");
    kitfs.unmount(&place);
    assert!(!place.exists());
}

#[test]
fn damaged_entries_are_reported_and_removed() {
    let kitfs = Kitfs::new();
    let mounts = dead(&kitfs);
    let files = entries(&kitfs);
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[100] ^= 1;
    fs::write(&files[0], bytes).unwrap();
    kitfs.succeed(&["daemon", "start"]);
    kitfs.succeed(&["status"]);
    let served = mounts.iter().filter(|(mountpoint, _)| fs::read_dir(mountpoint).is_ok());
    assert_eq!(served.count(), 1);
    assert!(kitfs.log().contains("damaged"), "{}", kitfs.log());
    assert_eq!(entries(&kitfs).len(), 1);
}

#[test]
fn a_registry_that_is_away_holds_up_nobody_and_the_mount_comes_with_it() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--hydrate", "none"]);
    counted.kitfs.kill_daemon();
    fs::remove_dir_all(counted.kitfs.cache().join("kits")).unwrap();
    counted.registry.script(Rule::on("/v2/").then(Fault::Hold));
    counted.kitfs.succeed(&["daemon", "start"]);
    counted.kitfs.succeed(&["status"]);
    assert!(fs::read_dir(&mountpoint).is_err(), "an empty folder would be taken for the kit");
    counted.registry.release();
    let path = mountpoint.join("weights/shard-1");
    let expected = expected_content(&counted, 1);
    wait_until("the mount", || fs::read(&path).is_ok_and(|read| read == expected));
}
