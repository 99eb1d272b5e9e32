//! What mounts cost that nobody reads.

use std::fs;
use std::process::{Command, Stdio};

use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, wait_until};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Enough to tell what one mount takes from what the daemon takes.
const MOUNTS: u64 = 60;

/// The bound for a mount: 200 of them are to fit in 100 MiB.
const MOST_BYTES_OF_A_MOUNT: u64 = 512 * KIB;

/// Threads that were started for one piece of work and have not ended yet.
const PASSING_THREADS: u64 = 16;

/// A field of /proc/PID/status: `VmRSS` in bytes, `Threads`.
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
    let pid = kitfs.daemon_pid();
    let measured = || (field(pid, "VmRSS"), field(pid, "Threads"));
    let (one_bytes, one_threads) = measured();
    mountpoints.extend((1..MOUNTS).map(|_| kitfs.mount(&reference, &[])));
    let (bytes, threads) = measured();
    let most_bytes = one_bytes + MOUNTS * MOST_BYTES_OF_A_MOUNT;
    assert!(bytes <= most_bytes, "{MOUNTS} mounts take {bytes} bytes, one {one_bytes}");
    assert!(threads <= one_threads + PASSING_THREADS, "{threads} threads, one mount {one_threads}");
    // By another program: what this one opens, a child that it is just starting has open, too.
    let files = mountpoints.iter().map(|mountpoint| mountpoint.join("Kitfile"));
    assert!(Command::new("cat").args(files).stdout(Stdio::null()).status().unwrap().success());
    mountpoints.iter().for_each(|mountpoint| kitfs.unmount(mountpoint));
    let most_bytes = one_bytes + 8 * MIB;
    wait_until("the memory is given back", || field(pid, "VmRSS") <= most_bytes);
}
