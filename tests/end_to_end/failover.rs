//! Mounts outlive the process that serves them: readers see a pause, and no error.

#![allow(unsafe_code, reason = "mmap(2) of a mounted file")]

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::Signal;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, is_mounted, kill_and_wait, signal, wait_until};
use crate::support::registry_double::{Fault, Rule};
use crate::support::tree::Tree;

/// How long the workers are killed under readers. The soak script runs for longer.
const KILLING: Duration = Duration::from_secs(8);
/// The longest pause between two kills. Some of them hit a worker that does not serve yet.
const LONGEST_PAUSE_MS: u64 = 400;
/// A reader that waits longer has been forgotten.
const LONGEST_READ: Duration = Duration::from_secs(120);

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// Reads files of a mount in different ways until it is told to end, and compares every byte.
pub struct Readers {
    is_over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<u64>>,
}

impl Readers {
    pub fn start(mountpoint: &Path, contents: &[Vec<u8>]) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let contents: Arc<Vec<Vec<u8>>> = Arc::new(contents.to_vec());
        let reads: [fn(&Path, &[u8]); 4] = [read_all, read_directly, read_mapped, list];
        let threads = reads.into_iter().enumerate().map(|(index, read)| {
            let (is_over, contents) = (is_over.clone(), contents.clone());
            let mountpoint = mountpoint.to_owned();
            thread::spawn(move || {
                let mut rounds = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let shard = (index + rounds as usize) % contents.len();
                    let path = mountpoint.join(format!("weights/shard-{shard}"));
                    let began = Instant::now();
                    read(&path, &contents[shard]);
                    assert!(began.elapsed() < LONGEST_READ, "{path:?} took {:?}", began.elapsed());
                    rounds += 1;
                }
                rounds
            })
        });
        let threads = threads.collect();
        Self { is_over, threads }
    }

    /// Ends the readers, and returns how often each has read.
    pub fn end(self) -> Vec<u64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a reader failed")).collect()
    }
}

fn read_all(path: &Path, expected: &[u8]) {
    assert!(fs::read(path).unwrap() == expected, "wrong bytes in {path:?}");
    drop_pages(path);
}

fn read_directly(path: &Path, expected: &[u8]) {
    const PAGE: usize = 4096;
    const PIECE: usize = 1 << 20;
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(direct).open(path).unwrap();
    let mut memory = vec![0; PIECE + PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let memory = &mut memory[start..start + PIECE];
    for at in (0..expected.len()).step_by(PIECE * 3) {
        let read = file.read_at(memory, at as u64).unwrap();
        assert!(memory[..read] == expected[at..at + read], "wrong bytes in {path:?} at {at}");
    }
}

fn read_mapped(path: &Path, expected: &[u8]) {
    let file = File::open(path).unwrap();
    // SAFETY: a read-only mapping of a file that never changes, unmapped below.
    unsafe {
        let start =
            mmap(std::ptr::null_mut(), expected.len(), ProtFlags::READ, MapFlags::SHARED, &file, 0)
                .unwrap();
        let mapped = std::slice::from_raw_parts(start.cast::<u8>(), expected.len());
        assert!(mapped == expected, "wrong bytes in the map of {path:?}");
        munmap(start, expected.len()).unwrap();
    }
    drop_pages(path);
}

fn list(path: &Path, expected: &[u8]) {
    let folder = path.parent().unwrap();
    let names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3);
    assert_eq!(fs::metadata(path).unwrap().len(), expected.len() as u64);
    thread::sleep(Duration::from_millis(5));
}

/// Has the kernel forget a file's pages, so that the next read comes to the daemon.
fn drop_pages(path: &Path) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn contents(counted: &Counted) -> Vec<Vec<u8>> {
    (0..3).map(|index| expected_content(counted, index)).collect()
}

fn mount(counted: &Counted, options: &[&str]) -> PathBuf {
    counted.kitfs.mount(&counted.reference, options)
}

/// Kills workers, and now and then the keeper, at random moments under readers.
fn kill_under_readers(counted: &Counted, mountpoint: &Path, with_keepers: bool) {
    let readers = Readers::start(mountpoint, &contents(counted));
    let mut random = crate::support::Random::new(u64::from(std::process::id()));
    let (began, mut kills) = (Instant::now(), 0);
    while began.elapsed() < KILLING || kills <= 3 {
        let pause = u64::from(random.bytes(1)[0]) * LONGEST_PAUSE_MS / 255;
        thread::sleep(Duration::from_millis(pause));
        let is_keeper = with_keepers && kills % 4 == 3;
        let process = match is_keeper {
            true => counted.kitfs.daemon_pid(),
            false => counted.kitfs.worker_pid(),
        };
        kill_and_wait(process);
        kills += 1;
        if is_keeper {
            wait_until("another keeper", || counted.kitfs.daemon_pid() != process);
        }
    }
    let rounds = readers.end();
    assert!(rounds.iter().all(|&rounds| rounds > 0), "{rounds:?} rounds, {kills} kills");
    assert!(is_mounted(mountpoint));
    counted.kitfs.unmount(mountpoint);
}

#[test]
fn readers_outlive_workers_that_are_killed() {
    let counted = Counted::new(&big_files());
    let mountpoint = mount(&counted, &["--hydrate", "none"]);
    kill_under_readers(&counted, &mountpoint, false);
}

#[test]
fn readers_outlive_workers_and_keepers_that_are_killed_in_turns() {
    let counted = Counted::new(&big_files());
    let mountpoint = mount(&counted, &["--hydrate", "none", "--no-passthrough"]);
    kill_under_readers(&counted, &mountpoint, true);
}

#[test]
fn files_that_the_kernel_reads_itself_stay_open_over_a_restart() {
    let counted = Counted::new(&big_files());
    let expected = contents(&counted);
    counted.kitfs.succeed(&["warm", &counted.reference]);
    let mountpoint = mount(&counted, &[]);
    let path = |shard: usize| mountpoint.join(format!("weights/shard-{shard}"));
    // One that is passed through, if this user may; one that the daemon serves; one that is closed.
    let open = File::open(path(0)).unwrap();
    drop(File::open(path(2)).unwrap());
    let before = counted.kitfs.worker_pid();
    let said = counted.kitfs.succeed(&["daemon", "restart"]);
    assert!(said.contains("1 mount"), "{said}");
    assert_ne!(counted.kitfs.worker_pid(), before);
    // The next process checks nothing, and hands out what the process before has checked.
    let passed_through = |expected: u64| match &counted.kitfs.status_of(&mountpoint)["passthrough"]
    {
        status if status["on"].is_null() => assert!(!rustix::process::geteuid().is_root()),
        status => assert_eq!(status["on"]["open_files"], expected),
    };
    let newly_opened = File::open(path(1)).unwrap();
    passed_through(2);
    kill_and_wait(counted.kitfs.worker_pid());
    let another = File::open(path(2)).unwrap();
    passed_through(3);
    drop((newly_opened, another));
    for round in 0..2 {
        for (shard, expected) in expected.iter().enumerate() {
            assert!(fs::read(path(shard)).unwrap() == *expected, "round {round}, shard {shard}");
        }
        kill_and_wait(counted.kitfs.worker_pid());
    }
    let mut read = Vec::new();
    (&open).read_to_end(&mut read).unwrap();
    assert!(read == expected[0]);
    drop(open);
    assert_eq!(counted.kitfs.status_of(&mountpoint)["state"], "confirmed");
    counted.kitfs.unmount(&mountpoint);
}

#[test]
fn every_mount_of_a_daemon_goes_on() {
    let kitfs = Kitfs::new();
    let names = ["article", "yaml"];
    let mounts: Vec<_> =
        (0..20).map(|at| kitfs.mount(&golden_reference(names[at % 2]), &[])).collect();
    kill_and_wait(kitfs.worker_pid());
    for (at, mountpoint) in mounts.iter().enumerate() {
        Tree::read(mountpoint).assert_equals(&Tree::golden(names[at % 2]), "after a kill");
    }
    wait_until("all mounts are listed", || {
        kitfs.json(&["daemon", "status", "--json"])["mounts"].as_array().unwrap().len() == 20
    });
    // The end of a mount is its end for later workers, too.
    kitfs.unmount(&mounts[0]);
    kill_and_wait(kitfs.worker_pid());
    assert!(!is_mounted(&mounts[0]));
    Tree::read(&mounts[1]).assert_equals(&Tree::golden("yaml"), "after two kills");
    assert!(kitfs.succeed(&["status"]).lines().count() >= 20);
    kitfs.succeed(&["daemon", "stop"]);
    assert!(mounts.iter().all(|mountpoint| !is_mounted(mountpoint)));
}

#[test]
fn a_mount_that_was_being_made_by_a_killed_worker_is_not_left() {
    let kitfs = Kitfs::new();
    let first = kitfs.mount(&golden_reference("article"), &[]);
    let place = kitfs.mountpoint("second");
    for _ in 0..10 {
        let worker = kitfs.worker_pid();
        let killer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(15));
            kill_and_wait(worker);
        });
        let outcome = kitfs.run(&["mount", &golden_reference("yaml"), text(&place)]);
        killer.join().unwrap();
        // Mounted or not: what the command says is so, and the place can be used again.
        if outcome.code == Some(0) {
            Tree::read(&place).assert_equals(&Tree::golden("yaml"), "mounted under a kill");
            kitfs.unmount(&place);
        } else if is_mounted(&place) {
            // Killed between mount(2) and the keeper's hold: the mount is dead, and the next command
            // removes it.
            kitfs.succeed(&["umount", text(&place)]);
        }
        wait_until("the place is free", || !is_mounted(&place));
    }
    Tree::read(&first).assert_equals(&Tree::golden("article"), "beside it");
}

#[test]
fn a_daemon_that_is_told_to_stop_is_not_started_again() {
    let kitfs = Kitfs::new();
    for told in ["stop", "TERM"] {
        let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
        let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
        match told {
            "stop" => _ = kitfs.succeed(&["daemon", "stop"]),
            _ => signal(keeper, Signal::TERM),
        }
        wait_until("the end of both", || {
            [keeper, worker].iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists())
        });
        assert!(!is_mounted(&mountpoint), "{told}");
        assert_ne!(kitfs.run(&["daemon", "status"]).code, Some(0));
    }
}

#[test]
fn more_mounts_go_on_than_the_first_limit_of_open_files_allows() {
    let kitfs = Kitfs::new();
    let start = kitfs.command_after("ulimit -Sn 64", &["daemon", "start"]);
    assert_eq!(Kitfs::run_command(start).code, Some(0));
    let mounts: Vec<_> = (0..30).map(|_| kitfs.mount(&golden_reference("article"), &[])).collect();
    kill_and_wait(kitfs.worker_pid());
    for mountpoint in &mounts {
        Tree::read(mountpoint).assert_equals(&Tree::golden("article"), "after a kill");
    }
    // Another keeper gives the next worker the first limit, too.
    let keeper = kitfs.daemon_pid();
    kill_and_wait(keeper);
    wait_until("another keeper", || kitfs.daemon_pid() != keeper);
    kill_and_wait(kitfs.worker_pid());
    Tree::read(&mounts[0]).assert_equals(&Tree::golden("article"), "after three kills");
    kitfs.succeed(&["daemon", "stop"]);
}

#[test]
fn a_read_that_waits_for_its_registry_outlives_a_restart() {
    let counted = Counted::new(&big_files());
    let mountpoint = mount(&counted, &["--hydrate", "none"]);
    counted.registry.script(Rule::on("/blobs/").then(Fault::Hold));
    let reader = thread::spawn(move || fs::read(mountpoint.join("weights/shard-0")));
    wait_until("a request", || counted.registry.held() > 0);
    counted.kitfs.succeed(&["daemon", "restart"]);
    counted.registry.release();
    assert!(reader.join().unwrap().unwrap() == expected_content(&counted, 0));
}

/// A mount whose worker was killed, and whose next worker waits for the kit's manifest.
fn waiting_for_its_kit() -> (Counted, PathBuf) {
    let counted = Counted::new(&big_files());
    let mountpoint = mount(&counted, &["--hydrate", "none"]);
    counted.registry.script(Rule::on("/v2/").then(Fault::Hold));
    let worker = counted.kitfs.worker_pid();
    fs::remove_dir_all(counted.kitfs.cache().join("kits")).unwrap();
    kill_and_wait(worker);
    wait_until("a request", || counted.registry.held() > 0);
    (counted, mountpoint)
}

#[test]
fn a_mount_that_waits_for_its_kit_outlives_a_restart() {
    let (counted, mountpoint) = waiting_for_its_kit();
    counted.kitfs.succeed(&["daemon", "restart"]);
    assert!(is_mounted(&mountpoint));
    counted.registry.release();
    let path = mountpoint.join("weights/shard-1");
    assert!(fs::read(path).unwrap() == expected_content(&counted, 1));
    counted.kitfs.unmount(&mountpoint);
}

#[test]
fn a_daemon_that_stops_ends_a_mount_that_waits_for_its_kit() {
    let (counted, mountpoint) = waiting_for_its_kit();
    counted.kitfs.succeed(&["daemon", "stop"]);
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_mount_that_waits_for_its_kit_can_be_unmounted_and_made_again() {
    let (counted, mountpoint) = waiting_for_its_kit();
    counted.kitfs.succeed(&["umount", "--lazy", text(&mountpoint)]);
    counted.registry.release();
    let arguments = ["mount", &counted.reference, text(&mountpoint)];
    wait_until("the place is free", || counted.kitfs.run(&arguments).code == Some(0));
    let path = mountpoint.join("weights/shard-2");
    assert!(fs::read(path).unwrap() == expected_content(&counted, 2));
}

#[test]
fn a_daemon_that_is_told_to_stop_between_two_workers_ends_its_mounts() {
    let kitfs = Kitfs::new();
    for _ in 0..5 {
        let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
        let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
        signal(worker, Signal::KILL);
        signal(keeper, Signal::TERM);
        wait_until("the end of the keeper", || !Path::new(&format!("/proc/{keeper}/exe")).exists());
        assert!(!is_mounted(&mountpoint), "{}", kitfs.log());
    }
}
