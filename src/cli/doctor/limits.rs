//! Checks of limits: open files, threads, memory, sizes of files.

use super::super::sizes;
use super::check::{Check, Subject};
use super::machine::Machine;

const GROUP: &str = "Limits";
const OPEN_FILES: Subject = Subject(GROUP, "open files");
const PROCESSES: Subject = Subject(GROUP, "threads");
const MEMORY: Subject = Subject(GROUP, "memory");
const FILE_SIZE: Subject = Subject(GROUP, "file size");
const LOCKED: Subject = Subject(GROUP, "locked memory");

/// The open files below which a daemon often closes and reopens files of the cache. A layer takes one, a connection
/// one, and a mount three.
const FEW_FILES: u64 = 4096;

/// The threads below which a daemon may fail to start some: 16 workers, 8 others, and some for each mount.
const FEW_THREADS: u64 = 64;

/// Memory that a daemon uses beside `--memory`: tables of kits, stacks, its program.
const BESIDE_BYTES: u64 = 128 << 20;

/// Checks with `memory_bytes`, the limit of a daemon's transfers (`--memory`).
pub(super) fn checks(machine: &Machine, memory_bytes: u64) -> Vec<Check> {
    vec![
        open_files(machine),
        threads(machine),
        memory(machine, memory_bytes),
        file_size(machine),
        LOCKED.ok(format!("{}; kitfs locks none", size(machine.limits.locked_bytes))),
    ]
}

fn size(limit: Option<u64>) -> String {
    limit.map_or_else(|| "no limit".to_owned(), sizes::show)
}

fn open_files(machine: &Machine) -> Check {
    match machine.limits.open_files {
        Some(limit) if limit < FEW_FILES => OPEN_FILES.warn(
            format!("a daemon may open {limit}"),
            format!("raise the hard limit to {FEW_FILES} or more (`ulimit -Hn`, LimitNOFILE= of a service)"),
        ),
        Some(limit) => OPEN_FILES.ok(format!("a daemon may open {limit}")),
        None => OPEN_FILES.ok("no limit"),
    }
}

fn threads(machine: &Machine) -> Check {
    let of_group = machine.number(&format!("{}/pids.max", group_folder(machine)));
    match machine.limits.processes.into_iter().chain(of_group).min() {
        Some(limit) if limit < FEW_THREADS => {
            PROCESSES.warn(format!("{limit} may run"), crate::process::limits::MORE_PROCESSES)
        }
        Some(limit) => PROCESSES.ok(format!("{limit} may run")),
        None => PROCESSES.ok("no limit"),
    }
}

fn memory(machine: &Machine, memory_bytes: u64) -> Check {
    let available = machine.read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        kib.checked_mul(1024)
    });
    let of_group = machine.number(&format!("{}/memory.max", group_folder(machine)));
    let address = machine.limits.address_bytes;
    let Some(least) = available.into_iter().chain(of_group).chain(address).min() else {
        return MEMORY.skip("/proc/meminfo cannot be read");
    };
    let wanted = memory_bytes.saturating_add(BESIDE_BYTES);
    let found = format!(
        "{} for a daemon, which uses up to {} (--memory {})",
        sizes::show(least),
        sizes::show(wanted),
        sizes::show(memory_bytes)
    );
    match least < wanted {
        true => MEMORY.warn(found, "start the daemon with a smaller --memory, or give it more"),
        false => MEMORY.ok(found),
    }
}

fn file_size(machine: &Machine) -> Check {
    match machine.limits.file_bytes {
        Some(limit) => FILE_SIZE.warn(
            format!(
                "files may have {}, and the cache has a file for each layer",
                sizes::show(limit)
            ),
            "start the daemon from a shell without `ulimit -f`",
        ),
        None => FILE_SIZE.ok("no limit"),
    }
}

/// The folder of this process's control group, version 2 (cgroups(7)).
fn group_folder(machine: &Machine) -> String {
    let groups = machine.read("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    format!("/sys/fs/cgroup{}", own.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::check::Outcome;
    use super::super::machine::Limits;
    use super::super::machine::tests::bare;
    use super::*;

    #[test]
    fn small_limits_are_warnings() {
        let folder = tempfile::tempdir().unwrap();
        let few = Limits {
            open_files: Some(256),
            processes: Some(10),
            file_bytes: Some(1 << 20),
            ..Limits::default()
        };
        let machine = Machine { limits: few, ..bare(folder.path()) };
        let outcomes = |machine: &Machine| {
            [open_files(machine), threads(machine), file_size(machine)].map(|check| check.outcome)
        };
        assert_eq!(outcomes(&machine), [Outcome::Warn; 3]);
        assert_eq!(outcomes(&bare(folder.path())), [Outcome::Ok; 3]);
    }

    #[test]
    fn the_least_of_machine_and_control_group_counts_as_memory() {
        let folder = tempfile::tempdir().unwrap();
        let machine = bare(folder.path());
        assert_eq!(memory(&machine, 1).outcome, Outcome::Skip);
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    8388608 kB\n");
        assert_eq!(memory(&machine, 512 << 20).outcome, Outcome::Ok);
        assert_eq!(memory(&machine, 8 << 30).outcome, Outcome::Warn);
        put("proc/self/cgroup", "0::/box\n");
        put("sys/fs/cgroup/box/memory.max", "max\n");
        assert_eq!(memory(&machine, 512 << 20).outcome, Outcome::Ok);
        put("sys/fs/cgroup/box/memory.max", "268435456\n");
        assert_eq!(memory(&machine, 512 << 20).outcome, Outcome::Warn);
        put("sys/fs/cgroup/box/pids.max", "20\n");
        assert_eq!(threads(&machine).outcome, Outcome::Warn);
    }
}
