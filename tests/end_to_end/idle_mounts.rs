//! The cost of mounts that nobody reads.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, wait_until};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const MOUNTS: u64 = 200;

/// The bounds for all of them together.
const MOST_BYTES: u64 = 100 * MIB;
const MOST_THREADS: u64 = 300;

/// The threads of one mount and of 200 differ by those that work for a moment: opening kits in parallel.
const PASSING_THREADS: u64 = 24;

/// The field `VmRSS`, in bytes, or `Threads` of /proc/PID/status.
fn field(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).expect("the field");
    let value: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    if line.ends_with("kB") { value * KIB } else { value }
}

#[test]
fn idle_mounts_take_little_memory_and_no_threads_and_give_both_back() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let mut mountpoints = vec![kitfs.mount(&reference, &[])];
    let pid = kitfs.worker_pid();
    let measured = || (field(pid, "VmRSS"), field(pid, "Threads"));
    let (one_bytes, one_threads) = measured();
    mountpoints.extend((1..MOUNTS).map(|_| kitfs.mount(&reference, &[])));
    let (bytes, threads) = measured();
    assert!(bytes <= MOST_BYTES, "{MOUNTS} mounts take {bytes} bytes, one {one_bytes}");
    assert!(threads <= MOST_THREADS, "{threads} threads");
    assert!(threads <= one_threads + PASSING_THREADS, "{threads} threads, one mount {one_threads}");
    // Another program reads: a child that another test starts has copies of this process's files.
    let files = mountpoints.iter().map(|mountpoint| mountpoint.join("Kitfile"));
    assert!(Command::new("cat").args(files).stdout(Stdio::null()).status().unwrap().success());
    kitfs.succeed(&["umount", "--all"]);
    let most_bytes = one_bytes + 8 * MIB;
    wait_until("the memory is given back", || field(pid, "VmRSS") <= most_bytes);
}
