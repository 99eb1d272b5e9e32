//! Registries that are away or silent, and the ends of mounts whose readers wait for them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;
use rustix::process::Signal;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::kitfs::{is_mounted, signal, wait_until};
use crate::support::registry_double::{Fault, Rule};

/// The bound for the end of a mount with waiting readers. Without it they would wait for the read deadline,
/// which is minutes. A loaded machine takes some of this time.
const SOON: Duration = Duration::from_secs(60);
const READERS: usize = 100;

/// dd(1) at `READERS` places of a file.
fn readers(file: &Path) -> Vec<Child> {
    let reader = |index: usize| {
        // One of them in ten reads past the kernel's pages.
        let flags = if index.is_multiple_of(10) { "iflag=direct" } else { "iflag=fullblock" };
        Command::new("dd")
            .arg(format!("if={}", file.display()))
            .args(["of=/dev/null", "bs=128K", "count=1", flags, &format!("skip={index}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    (0..READERS).map(reader).collect()
}

fn wait_until_blocked(readers: &[Child]) {
    wait_until("all readers wait", || {
        readers.iter().all(|reader| {
            let wchan = std::fs::read_to_string(format!("/proc/{}/wchan", reader.id()));
            wchan.is_ok_and(|wchan| {
                ["fuse", "request_wait", "folio"].iter().any(|place| wchan.contains(place))
            })
        })
    });
}

fn wait_until_ended(readers: &mut [Child]) {
    wait_until("the end of all readers", || {
        readers.iter_mut().all(|reader| reader.try_wait().unwrap().is_some())
    });
}

/// A mounted kit whose registry has fallen silent, and readers that wait for it.
fn blocked(options: &[&str]) -> (Counted, std::path::PathBuf, Vec<Child>) {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, options);
    counted.registry.script(Rule::on("/blobs/").then(Fault::Hold));
    let readers = readers(&mountpoint.join("weights/shard-0"));
    wait_until_blocked(&readers);
    (counted, mountpoint, readers)
}

#[rstest]
#[case::stop(None)]
#[case::sigterm(Some(Signal::TERM))]
fn a_daemon_ends_soon_though_many_readers_wait_for_a_silent_registry(#[case] by: Option<Signal>) {
    let (counted, mountpoint, mut readers) = blocked(&[]);
    let started = Instant::now();
    match by {
        None => drop(counted.kitfs.run(&["daemon", "stop"])),
        Some(by) => signal(counted.kitfs.daemon_pid(), by),
    }
    wait_until("the end of the mount", || !is_mounted(&mountpoint));
    wait_until_ended(&mut readers);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    let status = counted.kitfs.json(&["status", "--json"]);
    let mut mounts = status.as_array().unwrap().iter();
    assert!(mounts.all(|mount| mount["mountpoint"] != mountpoint.to_str().unwrap()), "{status}");
}

#[test]
fn an_unmount_with_waiting_readers_says_busy_and_a_lazy_one_leaves_nobody_beyond_the_deadline() {
    let (counted, mountpoint, mut readers) = blocked(&["--read-deadline", "12s"]);
    let place = mountpoint.to_str().unwrap();
    let started = Instant::now();
    let busy = counted.kitfs.run(&["umount", place]);
    assert_ne!(busy.code, Some(0));
    assert!(busy.stderr.contains("--lazy"), "{}", busy.stderr);
    assert_eq!(counted.kitfs.status_of(&mountpoint)["mountpoint"], place);
    counted.kitfs.succeed(&["umount", "--lazy", place]);
    assert!(!is_mounted(&mountpoint) && started.elapsed() < SOON, "{:?}", started.elapsed());
    wait_until_ended(&mut readers);
    assert!(readers.iter_mut().all(|reader| !reader.wait().unwrap().success()));
}

#[test]
fn a_forced_unmount_by_another_program_ends_waiting_readers() {
    let (counted, mountpoint, mut readers) = blocked(&[]);
    let started = Instant::now();
    // umount(8) tells the kernel to give up all requests. Programs may still have files open then.
    wait_until("the end of the mount", || {
        let forced =
            Command::new("umount").arg("-f").arg(&mountpoint).stderr(Stdio::null()).status();
        assert!(forced.is_ok());
        !is_mounted(&mountpoint)
    });
    wait_until_ended(&mut readers);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    wait_until("a true status", || {
        let status = counted.kitfs.json(&["status", "--json"]);
        // Mounts of other tests are listed too.
        let mounts = status.as_array().unwrap();
        mounts.iter().all(|mount| mount["mountpoint"] != mountpoint.to_str().unwrap())
    });
}

#[test]
fn a_registry_that_is_away_for_a_while_costs_time_and_no_read() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--retries", "0"]);
    counted.registry.script(Rule::on("/blobs/").then(Fault::Status(503)));
    let requests = || counted.registry.requests().len();
    let before = requests();
    let reading = std::thread::spawn({
        let file = mountpoint.join("weights/shard-1");
        move || std::fs::read(file)
    });
    // Each refusal would end the read, if the read did not wait for the registry.
    wait_until("a few refusals", || requests() >= before + 4);
    assert!(!reading.is_finished());
    counted.registry.heal();
    assert!(reading.join().unwrap().unwrap() == expected_content(&counted, 1));
    assert!(counted.kitfs.status_of(&mountpoint)["last_failure"].is_null());
}

#[test]
fn a_registry_that_is_back_is_no_longer_reported_as_away() {
    let counted = Counted::new(&big_files());
    counted.kitfs.succeed(&["daemon", "start"]);
    counted.kitfs.succeed(&["ls", &counted.reference]);
    counted.registry.script(Rule::on("/manifests/").then(Fault::Status(503)));
    let words = "is read as it was last resolved";
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--retries", "0"]);
    let told = |arguments: &[&str]| counted.kitfs.run(arguments).stderr.contains(words);
    let warned = || counted.kitfs.status_of(&mountpoint)["warnings"].to_string().contains(words);
    assert!(told(&["ls", "--retries", "0", &counted.reference]) && warned());
    counted.registry.heal();
    for command in ["ls", "warm"] {
        let outcome = counted.kitfs.run(&[command, "--retries", "0", &counted.reference]);
        assert_eq!((outcome.code, outcome.stderr.contains(words)), (Some(0), false), "{command}");
    }
    assert!(!warned());
}
