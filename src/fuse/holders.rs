//! Finds the programs that use a mount, as far as /proc shows them, for the message of a failed unmount.
//!
//! | use | where /proc shows it |
//! |---|---|
//! | a working folder, a root, a program, an open file | /proc/PID/{cwd,root,exe,fd} leads to the mount's device |
//! | a mapped file | /proc/PID/maps has the mount's device |
//! | another mount namespace, as of a container | /proc/PID/mountinfo has the mount's device |
//! | a bind mount, something mounted below it, an overlay | /proc/self/mountinfo |
//!
//! This module never asks the file system itself; the kernel has all device numbers in memory. Only root
//! sees the processes of other users. The search has a time limit, because it is only for a message.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::process::mount_table::{Device, Entry, MountTable};
use crate::process::running_time::Stopwatch;

/// The number of processes to name. A message with more is hard to read.
const MOST_NAMED: usize = 5;
/// The time limit of the search: enough for some thousand processes.
const LONGEST_LOOK: Duration = Duration::from_secs(2);
/// The number of digits of a container's id to show: as many as container tools show.
const CONTAINER_DIGITS: usize = 12;

/// The users of a mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Holders {
    processes: Vec<Process>,
    /// One process of each other namespace that has the mount.
    namespaces: Vec<Process>,
    /// Other mounts below this one, bind mounts of it, and overlays over it.
    mounts: Vec<String>,
    /// Whether /proc hides some processes.
    is_partial: bool,
}

/// A process, and how it uses the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    name: String,
    container: Option<String>,
    /// `its working folder`, `an open file`, …
    what: &'static str,
}

impl Holders {
    /// Finds the users of the mount with this device number, which is or was at `mountpoint`.
    pub(super) fn of(device: Device, mountpoint: &Path) -> Self {
        let own_table = MountTable::read();
        let own_table = own_table.as_ref().map(MountTable::entries).unwrap_or_default();
        let mut holders =
            Self { mounts: mounts_on(own_table, device, mountpoint), ..Self::default() };
        let own_namespace = namespace("self");
        // Whether a namespace has the mount.
        let mut known: HashMap<OsString, bool> =
            own_namespace.iter().map(|own| (own.clone(), false)).collect();
        let mut watch = Stopwatch::start();
        for pid in processes() {
            if watch.look() >= LONGEST_LOOK {
                holders.is_partial = true;
                break;
            }
            let folder = PathBuf::from(format!("/proc/{pid}"));
            match use_of(&folder, device) {
                Ok(Some(what)) => holders.processes.push(Process::read(pid, &folder, what)),
                Ok(None) => {}
                Err(_) => holders.is_partial |= folder.exists(),
            }
            let Some(namespace) = namespace(&pid.to_string()) else { continue };
            let is_new = !known.contains_key(&namespace);
            if is_new {
                let table = MountTable::of_process(&pid.to_string());
                let has_it = table
                    .is_ok_and(|table| table.entries().iter().any(|entry| entry.device == device));
                known.insert(namespace, has_it);
                if has_it {
                    holders.namespaces.push(Process::read(pid, &folder, "another mount namespace"));
                }
            }
        }
        holders
    }

    /// Whether another mount namespace has the mount, as far as /proc shows.
    pub(super) fn is_mounted_elsewhere(&self) -> bool {
        !self.namespaces.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.processes.is_empty() && self.namespaces.is_empty() && self.mounts.is_empty()
    }
}

/// Lists the users, as the end of a sentence.
impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            let more = if self.is_partial { "; root sees the processes of all users" } else { "" };
            return write!(f, "something that /proc does not show{more}");
        }
        let all = self.processes.iter().chain(&self.namespaces).map(Process::to_string);
        let all: Vec<String> = self.mounts.iter().cloned().chain(all).collect();
        let (named, others) = all.split_at(all.len().min(MOST_NAMED));
        f.write_str(&named.join(", "))?;
        match others.len() {
            0 => Ok(()),
            count => write!(f, " and {count} more"),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, name, container, what } = self;
        write!(f, "process {pid} ({name}")?;
        if let Some(container) = container {
            write!(f, ", container {container}")?;
        }
        write!(f, ": {what})")
    }
}

impl Process {
    fn read(pid: u32, folder: &Path, what: &'static str) -> Self {
        let text = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let name: String = text("comm").trim().chars().filter(|c| !c.is_control()).collect();
        Self { pid, name, container: container(&text("cgroup")), what }
    }
}

/// The processes in /proc.
pub(super) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The mount namespace of a process; `None` without the right to see it.
pub(super) fn namespace(pid: &str) -> Option<OsString> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok().map(PathBuf::into_os_string)
}

/// How a process uses a mount; `None` if it does not.
fn use_of(process: &Path, device: Device) -> std::io::Result<Option<&'static str>> {
    let leads_there = |link: &Path| device_of(link) == Some(device);
    for (link, what) in
        [("cwd", "its working folder"), ("root", "its root"), ("exe", "its program")]
    {
        if leads_there(&process.join(link)) {
            return Ok(Some(what));
        }
    }
    let files = fs::read_dir(process.join("fd"))?;
    if files.flatten().any(|file| leads_there(&file.path())) {
        return Ok(Some("an open file"));
    }
    let maps = fs::read(process.join("maps"))?;
    Ok(has_map_of(&maps, device).then_some("a mapped file"))
}

/// The device of a link's target in /proc. Asks the kernel, not the target's file system.
fn device_of(link: &Path) -> Option<Device> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, link, flags, StatxFlags::TYPE).ok()?;
    Some(Device(found.stx_dev_major, found.stx_dev_minor))
}

/// Whether a table of maps (proc_pid_maps(5)) has a file of a device.
fn has_map_of(maps: &[u8], device: Device) -> bool {
    maps.split(|&byte| byte == b'\n').any(|line| {
        let field = line.split(|&byte| byte == b' ').nth(3);
        field.and_then(|field| Device::parse(field, 16)) == Some(device)
    })
}

/// The container of a process. Container tools put the container's id, 64 hexadecimal digits, into the
/// names of its control groups (proc_pid_cgroup(5)).
fn container(cgroups: &str) -> Option<String> {
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let mut words = cgroups.split(|c: char| !is_digit(c));
    let name = words.find(|word| word.len() == 64)?;
    Some(name[..CONTAINER_DIGITS].to_owned())
}

/// The mounts of this namespace that keep a mount busy, as phrases.
fn mounts_on(table: &[Entry], device: Device, mountpoint: &Path) -> Vec<String> {
    let ours = table.iter().find(|it| it.device == device && it.mountpoint == mountpoint);
    let mut found = Vec::new();
    for entry in table {
        let place = entry.mountpoint.display();
        if ours.is_some_and(|ours| entry.parent == ours.id) {
            found.push(format!("the mount at {place}, which lies on it"));
        } else if entry.device == device && entry.mountpoint != mountpoint {
            found.push(format!("its bind mount at {place}"));
        } else if entry.file_system == "overlay" && is_layer(&entry.options, mountpoint) {
            found.push(format!("the overlay at {place}"));
        }
    }
    found
}

/// Whether the options of an overlay name a folder of `mountpoint`.
fn is_layer(options: &str, mountpoint: &Path) -> bool {
    options.split(',').any(|option| {
        let folders = ["lowerdir=", "lowerdir+=", "datadir+="].iter();
        let mut folders = folders.filter_map(|name| option.strip_prefix(name));
        folders.next().is_some_and(|folders| {
            let mut folders =
                folders.split(':').map(|it| Path::new(OsStr::from_bytes(it.as_bytes())));
            folders.any(|folder| folder.starts_with(mountpoint))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_its_control_group() {
        let name = "0123456789abcdef".repeat(4);
        for cgroups in [
            format!("0::/system.slice/docker-{name}.scope\n"),
            format!("12:pids:/docker/{name}\n11:cpu:/docker/{name}\n"),
            format!("0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{name}.scope\n"),
        ] {
            assert_eq!(container(&cgroups).as_deref(), Some("0123456789ab"), "{cgroups}");
        }
        for none in ["", "0::/\n", "0::/user.slice/user-1000.slice/session-2.scope\n"] {
            assert_eq!(container(none), None, "{none}");
        }
        assert_eq!(container(&format!("0::/{name}0\n")), None, "too long for a container's name");
    }

    #[test]
    fn maps_of_a_device_are_seen() {
        let maps = b"7f00-7f01 r--p 00000000 00:39 12    /mnt/kit/weights.bin\n\
            7f02-7f03 r-xp 00000000 08:01 99    /usr/bin/cat\nffff-ffff --xp 0 00:00 0 [vsyscall]\n";
        assert!(has_map_of(maps, Device(0, 0x39)));
        assert!(!has_map_of(maps, Device(0, 39)));
        assert!(!has_map_of(b"", Device(0, 0)));
    }

    #[test]
    fn mounts_that_keep_a_mount_are_named() {
        let entry = |id, parent, minor, place: &str, file_system: &str, options: &str| Entry {
            id,
            parent,
            device: Device(0, minor),
            mountpoint: place.into(),
            file_system: file_system.to_owned(),
            source: String::new(),
            options: options.to_owned(),
        };
        let table = [
            entry(1, 0, 1, "/", "ext4", ""),
            entry(2, 1, 57, "/models", crate::process::mount_table::FILE_SYSTEM, ""),
            entry(3, 2, 58, "/models/sub", "tmpfs", ""),
            entry(4, 1, 57, "/srv/models", crate::process::mount_table::FILE_SYSTEM, ""),
            entry(5, 1, 59, "/merged", "overlay", "rw,lowerdir=/a:/models/x,upperdir=/u"),
            entry(6, 1, 60, "/other", "overlay", "rw,lowerdir=/models2,upperdir=/models"),
        ];
        let found = mounts_on(&table, Device(0, 57), Path::new("/models"));
        let expected = [
            "the mount at /models/sub, which lies on it",
            "its bind mount at /srv/models",
            "the overlay at /merged",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn few_are_named_and_the_others_counted() {
        let process = |pid| Process {
            pid,
            name: "python3".to_owned(),
            container: (pid == 1).then(|| "0123456789ab".to_owned()),
            what: "an open file",
        };
        let one = Holders { processes: vec![process(1)], ..Holders::default() };
        assert_eq!(one.to_string(), "process 1 (python3, container 0123456789ab: an open file)");
        let many = Holders { processes: (2..10).map(process).collect(), ..Holders::default() };
        let words = many.to_string();
        assert!(words.ends_with("process 6 (python3: an open file) and 3 more"), "{words}");
        assert!(Holders::default().to_string().contains("/proc does not show"));
    }

    #[test]
    fn this_process_holds_its_own_working_folder() {
        let folder = std::env::current_dir().unwrap();
        let device = device_of(&folder).unwrap();
        let holders = Holders::of(device, &folder);
        let own = holders.processes.iter().find(|it| it.pid == std::process::id()).unwrap();
        assert_eq!(own.what, "its working folder");
    }
}
