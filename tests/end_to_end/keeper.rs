//! The keeper, and the ways in which keeper and worker can die.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, is_mounted, kill_and_wait, signal, wait_until};
use crate::support::tree::Tree;

/// The most memory of a keeper that waits, in KiB. A build without optimisation has 2 MiB of addresses that the
/// loader writes when the program starts (`.got`, `.data.rel.ro`), and they grow with the program.
const MOST_KIB: u64 = if cfg!(debug_assertions) { 6 * 1024 } else { 4 * 1024 };

/// `VmRSS` of a process, in KiB.
fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_ascii_whitespace().next().unwrap().parse().unwrap()
}

fn is_there(process: u32) -> bool {
    Path::new(&format!("/proc/{process}/exe")).exists()
}

#[test]
fn a_keeper_takes_four_mebibytes_at_most() {
    let kitfs = Kitfs::new();
    for _ in 0..20 {
        kitfs.mount(&golden_reference("article"), &[]);
    }
    let keeper = kitfs.daemon_pid();
    wait_until("a small keeper", || resident_kib(keeper) <= MOST_KIB);
    // Also after work, and for the keeper that a worker starts.
    kill_and_wait(kitfs.worker_pid());
    kitfs.succeed(&["status"]);
    wait_until("a small keeper again", || resident_kib(keeper) <= MOST_KIB);
    kill_and_wait(keeper);
    wait_until("another keeper", || kitfs.daemon_pid() != keeper);
    let keeper = kitfs.daemon_pid();
    wait_until("another small keeper", || resident_kib(keeper) <= MOST_KIB);
    kitfs.succeed(&["daemon", "stop"]);
}

#[test]
fn a_daemon_that_is_killed_while_it_stops_ends_its_mounts_all_the_same() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    let other = kitfs.mount(&golden_reference("yaml"), &[]);
    let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
    // A mount in use holds up the end of its daemon for some seconds.
    let open = File::open(&mountpoint).unwrap();
    signal(keeper, Signal::TERM);
    wait_until("the end of a mount", || !is_mounted(&other));
    kill_and_wait(worker);
    wait_until("the end of the keeper", || !is_there(keeper));
    assert!(!is_mounted(&mountpoint), "{}", kitfs.log());
    drop(open);
}

#[test]
fn a_stopped_keeper_is_named() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
    signal(keeper, Signal::STOP);
    // The worker serves without its keeper.
    kitfs.succeed(&["status"]);
    kill_and_wait(worker);
    let said = kitfs.fail(9, &["daemon", "status"]);
    assert!(said.contains(&format!("kill -CONT {keeper}")), "{said}");
    signal(keeper, Signal::CONT);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "after a pause");
    kitfs.unmount(&mountpoint);
}

#[test]
fn a_worker_that_dies_while_its_next_keeper_starts_leaves_no_mount_that_hangs() {
    let kitfs = Kitfs::new();
    for round in 0..6 {
        let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
        let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
        kill_and_wait(keeper);
        // The next keeper starts after half a second at most.
        thread::sleep(Duration::from_millis(10 * round));
        kill_and_wait(worker);
        // The mount goes on, or it is dead and can be made again.
        let arguments = ["mount", &golden_reference("article"), mountpoint.to_str().unwrap()];
        wait_until("a mount", || {
            is_mounted(&mountpoint) && fs::read_dir(&mountpoint).is_ok()
                || kitfs.run(&arguments).code == Some(0)
        });
        Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "after two kills");
        kitfs.succeed(&["daemon", "stop"]);
    }
}
