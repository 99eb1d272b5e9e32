//! A daemon that was frozen for longer than its deadlines: SIGSTOP, `docker pause`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::counted::Counted;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{Kitfs, is_mounted, wait_until};
use crate::support::registry_double::{Fault, Rule};

/// Longer than the deadline of the tests, with room for a loaded machine.
const FREEZE: Duration = Duration::from_secs(10);
/// The deadline. A freeze counts for a second.
const DEADLINE_SECONDS: &str = "8";

fn held() -> Counted {
    let layer = Layer::tar("model", "model.bin");
    let counted = Counted::new(&Kit::modelkit().with(layer.file("model.bin", 0o644, b"weights")));
    counted.kitfs.succeed(&["daemon", "start"]);
    counted.registry.script(Rule::on("/blobs/").then(Fault::Hold));
    counted
}

/// Freezes the daemon once the registry holds a request, and lets the registry answer afterwards.
fn freeze_and_release(counted: &Counted) {
    wait_until("a request that the registry holds", || counted.registry.peak() > 0);
    let pid = Pid::from_raw(counted.kitfs.worker_pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(FREEZE);
    kill_process(pid, Signal::CONT).unwrap();
    // The daemon looks at its deadlines before the answer comes.
    std::thread::sleep(Duration::from_millis(300));
    counted.registry.release();
}

#[test]
fn a_frozen_daemon_counts_its_deadlines_in_time_that_it_ran() {
    let counted = held();
    let arguments = ["warm", "--open-timeout", DEADLINE_SECONDS, &counted.reference];
    let command = counted.kitfs.command(&arguments);
    let warming = std::thread::spawn(move || Kitfs::run_command(command));
    freeze_and_release(&counted);
    let outcome = warming.join().unwrap();
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.stderr, counted.kitfs.log());
}

#[test]
fn a_mount_goes_on_after_a_freeze() {
    let counted = held();
    counted.registry.release();
    let mountpoint = counted.mount();
    let pid = Pid::from_raw(counted.kitfs.worker_pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let file: PathBuf = mountpoint.join("model.bin");
    let reading = std::thread::spawn(move || fs::read(file));
    std::thread::sleep(Duration::from_millis(300));
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(reading.join().unwrap().unwrap(), b"weights");
    counted.kitfs.unmount(Path::new(&mountpoint));
}

#[test]
fn no_command_waits_for_ever_for_a_frozen_daemon() {
    let counted = held();
    counted.registry.release();
    let mountpoints = [counted.mount(), counted.mount()];
    let daemon = counted.kitfs.worker_pid();
    let pid = Pid::from_raw(daemon.cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let asking = counted.kitfs.command(&["status"]);
    let asking = std::thread::spawn(move || Kitfs::run_command(asking));
    let places = mountpoints.each_ref().map(|place| place.to_str().unwrap());
    let said = counted.kitfs.fail(7, &["umount", places[0]]);
    assert!(said.contains("its daemon is stopped or hangs") && said.contains("--lazy"), "{said}");
    // This needs no daemon.
    counted.kitfs.succeed(&["umount", "--lazy", places[0], places[1]]);
    let outcome = asking.join().unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(outcome.code, Some(9), "{}", outcome.stderr);
    for words in [format!("process {daemon}"), format!("kill -CONT {daemon}")] {
        assert!(outcome.stderr.contains(&words), "{}", outcome.stderr);
    }
    assert!(!mountpoints.iter().any(|place| is_mounted(place)));
    // The daemon has noticed.
    wait_until("the end of both mounts", || {
        let status = counted.kitfs.json(&["daemon", "status", "--json"]);
        status["mounts"].as_array().unwrap().is_empty()
    });
}
