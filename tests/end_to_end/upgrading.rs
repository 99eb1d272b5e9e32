//! A daemon goes on as another version of kitfs, and its readers see a pause.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::counted::{Counted, big_files, expected_content};
use crate::failover::Readers;
use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, Outcome, kill_and_wait};
use crate::support::tree::Tree;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A kitfs that says it is of another version.
struct OtherVersion {
    _folder: TempDir,
    path: PathBuf,
    version: String,
}

impl OtherVersion {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("kitfs");
        let mut version = VERSION.to_owned().into_bytes();
        *version.last_mut().unwrap() ^= 1;
        let mut program = fs::read(env!("CARGO_BIN_EXE_kitfs")).unwrap();
        let mut at = 0;
        while let Some(found) = find(&program[at..], VERSION.as_bytes()) {
            program[at + found..at + found + version.len()].copy_from_slice(&version);
            at += found + version.len();
        }
        fs::write(&path, program).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { _folder: folder, path, version: String::from_utf8(version).unwrap() }
    }

    /// Runs a command of this version for the cache folder of `kitfs`.
    fn run(&self, kitfs: &Kitfs, arguments: &[&str]) -> Outcome {
        let own = kitfs.command(arguments);
        let mut command = Command::new(&self.path);
        command.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(own.get_args());
        Kitfs::run_command(command)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn program_of(process: u32) -> PathBuf {
    fs::read_link(format!("/proc/{process}/exe")).unwrap()
}

fn version_of(kitfs: &Kitfs) -> String {
    kitfs.json(&["daemon", "status", "--json"])["version"].as_str().unwrap().to_owned()
}

#[test]
fn an_upgrade_replaces_keeper_and_worker_and_no_reader_notices() {
    let counted = Counted::new(&big_files());
    let kitfs = &counted.kitfs;
    let contents: Vec<_> = (0..3).map(|index| expected_content(&counted, index)).collect();
    let mountpoint = kitfs.mount(&counted.reference, &["--hydrate", "none"]);
    let readers = Readers::start(&mountpoint, &contents);
    let other = OtherVersion::new();
    let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
    let outcome = other.run(kitfs, &["daemon", "upgrade"]);
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.stderr, kitfs.log());
    assert!(String::from_utf8_lossy(&outcome.stdout).contains("1 mount"));
    // The keeper is the same process, and another program.
    assert_eq!((kitfs.daemon_pid(), program_of(keeper)), (keeper, other.path.clone()));
    assert_ne!(kitfs.worker_pid(), worker);
    assert_eq!(program_of(kitfs.worker_pid()), other.path);
    assert_eq!(version_of(kitfs), other.version);
    let refused = kitfs.fail(9, &["ls", &counted.reference]);
    assert!(refused.contains(&other.version), "{refused}");
    // It holds the mounts as the one before did.
    kill_and_wait(kitfs.worker_pid());
    kitfs.succeed(&["daemon", "upgrade"]);
    assert_eq!((version_of(kitfs), kitfs.daemon_pid()), (VERSION.to_owned(), keeper));
    assert!(readers.end().iter().all(|&rounds| rounds > 0));
    kitfs.unmount(&mountpoint);
}

#[test]
fn a_restart_runs_the_version_that_is_on_disk_by_then() {
    let kitfs = Kitfs::new();
    let other = OtherVersion::new();
    let installed = other.path.with_file_name("installed");
    fs::copy(env!("CARGO_BIN_EXE_kitfs"), &installed).unwrap();
    let of_installed = OtherVersion { path: installed.clone(), ..OtherVersion::new() };
    assert_eq!(of_installed.run(&kitfs, &["daemon", "start"]).code, Some(0));
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    let keeper = kitfs.daemon_pid();
    // A package manager puts the new file in the place of the old one.
    fs::rename(&other.path, &installed).unwrap();
    kitfs.succeed(&["daemon", "restart"]);
    assert_eq!((version_of(&kitfs), kitfs.daemon_pid()), (other.version.clone(), keeper));
    assert_eq!(program_of(keeper), installed);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "after a restart");
    // Without a file, the processes go on as they are.
    fs::remove_file(&installed).unwrap();
    kitfs.succeed(&["daemon", "restart"]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "without a file");
    kitfs.succeed(&["daemon", "upgrade"]);
    assert_eq!(version_of(&kitfs), VERSION);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "after an upgrade");
}

#[test]
fn a_version_that_cannot_go_on_leaves_the_old_one_running() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let installed = folder.path().join("kitfs");
    fs::copy(env!("CARGO_BIN_EXE_kitfs"), &installed).unwrap();
    let of_installed =
        OtherVersion { _folder: folder, path: installed.clone(), version: VERSION.to_owned() };
    assert_eq!(of_installed.run(&kitfs, &["daemon", "start"]).code, Some(0));
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    let before = (kitfs.daemon_pid(), kitfs.worker_pid());
    let is_refused = |program: &[u8], words: &str| {
        let next = installed.with_file_name("next");
        fs::write(&next, program).unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&next, &installed).unwrap();
        let said = kitfs.fail(9, &["daemon", "restart"]);
        assert!(said.contains(words) && said.contains(VERSION), "{said}");
        assert_eq!((kitfs.daemon_pid(), kitfs.worker_pid()), before);
        Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "as before");
    };
    is_refused(b"#!/bin/sh\necho 'kitfs: it speaks in tongues' >&2\nexit 9\n", "speaks in tongues");
    is_refused(b"#!/bin/sh\n", "no kitfs");
    is_refused(b"garbage", "cannot go on");
    kitfs.unmount(&mountpoint);
}

#[test]
fn a_program_answers_for_its_own_version_only() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "run", "--can-take-over", "1"]);
    let said = kitfs.fail(9, &["daemon", "run", "--can-take-over", "4000000000"]);
    assert!(said.contains("version 4000000000"), "{said}");
    assert!(!Path::new(&kitfs.cache()).exists());
}
