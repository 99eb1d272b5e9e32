//! A daemon that nobody needs ends by itself.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, wait_until};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

fn exists(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

fn idle_exit(kitfs: &Kitfs) -> Option<u64> {
    kitfs.json(&["daemon", "status", "--json"])["idle_exit_seconds"].as_u64()
}

#[test]
fn a_daemon_ends_with_its_keeper_when_it_was_idle_and_not_before() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("article"), &["--idle-exit", "1s"]);
    let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
    thread::sleep(Duration::from_millis(2500));
    assert!(mountpoint.join("Kitfile").exists() && exists(worker));
    kitfs.unmount(&mountpoint);
    wait_until("the end of the daemon", || !exists(worker) && !exists(keeper));
    assert!(kitfs.fail(9, &["daemon", "status"]).contains("no daemon runs"));
}

#[test]
fn a_program_that_has_a_file_open_of_a_mount_that_is_gone_keeps_the_daemon() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("article"), &["--idle-exit", "1s"]);
    let worker = kitfs.worker_pid();
    let mut file = std::fs::File::open(mountpoint.join("Kitfile")).unwrap();
    kitfs.succeed(&["umount", "--lazy", text(&mountpoint)]);
    thread::sleep(Duration::from_millis(2500));
    let mut content = String::new();
    std::io::Read::read_to_string(&mut file, &mut content).unwrap();
    assert!(content.contains("manifestVersion"));
    drop(file);
    wait_until("the end of the daemon", || !exists(worker));
}

#[test]
fn a_daemon_keeps_its_time_over_a_restart_and_a_started_one_stays() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    assert_eq!(idle_exit(&kitfs), None);
    kitfs.succeed(&["daemon", "stop"]);
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    assert_eq!(idle_exit(&kitfs), Some(600));
    let said = kitfs.run(&["daemon", "start"]).stderr;
    assert!(said.contains("ends after 10m without mounts"), "{said}");
    let said = kitfs.run(&["daemon", "start", "--idle-exit", "2h"]).stderr;
    assert!(said.contains("--idle-exit 2h has no effect"), "{said}");
    kitfs.unmount(&mountpoint);
    kitfs.succeed(&["daemon", "stop"]);
    kitfs.succeed(&["daemon", "start", "--idle-exit", "2h"]);
    crate::support::kitfs::kill_and_wait(kitfs.worker_pid());
    assert_eq!(idle_exit(&kitfs), Some(7200));
    kitfs.succeed(&["daemon", "restart"]);
    assert_eq!(idle_exit(&kitfs), Some(7200));
    let keeper = kitfs.daemon_pid();
    crate::support::kitfs::kill_and_wait(keeper);
    wait_until("another keeper", || kitfs.daemon_pid() != keeper);
    kitfs.succeed(&["daemon", "restart"]);
    assert_eq!(idle_exit(&kitfs), Some(7200));
}

/// Commands come around the moment at which the daemon ends.
#[test]
fn a_command_that_comes_while_an_idle_daemon_ends_does_not_fail() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let place = kitfs.mountpoint("mnt");
    let mut daemons = std::collections::BTreeSet::new();
    let mut turn = 0;
    // On a busy machine commands take long, and the moment of the end comes later.
    while turn < 8 || daemons.len() < 2 {
        assert!(turn < 60, "no daemon has ended");
        kitfs.succeed(&["mount", &reference, text(&place), "--idle-exit", "1s"]);
        daemons.insert(kitfs.daemon_pid());
        kitfs.unmount(&place);
        // The daemon looks every eighth of a second.
        thread::sleep(Duration::from_millis(900 + 35 * turn));
        match turn % 3 {
            0 => _ = kitfs.succeed(&["ls", &reference]),
            1 => _ = kitfs.succeed(&["status"]),
            _ => {}
        }
        turn += 1;
    }
}
