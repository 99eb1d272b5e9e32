//! Mounts in parts of the file tree that this process does not see: another mount namespace, another root.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::device::{UnmountFailure, unmount_patiently};
use super::holders::{namespace, processes};
use super::mount_table::{Device, FILE_SYSTEM, MountTable};
use crate::process::limits::ChildLimits;

/// Takes a mount out of the tree wherever it is mounted, as far as this process may. Root enters the mount
/// namespace of a process that sees the mount.
///
/// # Errors
/// `Other` when it stays somewhere.
pub(super) fn unmount(
    device: Device,
    lazy: bool,
    child_limits: ChildLimits,
) -> Result<(), UnmountFailure> {
    // A mount below another root may lie in this namespace.
    let table = MountTable::read();
    for path in table.iter().flat_map(|table| paths(table, device)) {
        unmount_patiently(&path, lazy, child_limits)?;
    }
    let mut known: HashSet<_> = namespace("self").into_iter().collect();
    for pid in processes().map(|pid| pid.to_string()) {
        let Some(namespace) = namespace(&pid) else { continue };
        if known.contains(&namespace) {
            continue;
        }
        // Below another root the table has other paths. Another process may have the root of the namespace.
        if fs::read_link(format!("/proc/{pid}/root")).ok().as_deref() != Some(Path::new("/")) {
            continue;
        }
        known.insert(namespace);
        let Ok(table) = MountTable::of_process(&pid) else { continue };
        let paths: Vec<PathBuf> = paths(&table, device).collect();
        if !paths.is_empty() {
            unmount_in_namespace_of(&pid, paths, lazy)?;
        }
    }
    Ok(())
}

fn paths(table: &MountTable, device: Device) -> impl Iterator<Item = PathBuf> {
    let entries = table.entries().iter();
    let ours =
        entries.filter(move |entry| entry.device == device && entry.file_system == FILE_SYSTEM);
    ours.map(|entry| entry.mountpoint.clone()).rev()
}

/// A thread of its own enters the namespace: a thread cannot leave it again without more rights.
fn unmount_in_namespace_of(
    pid: &str,
    paths: Vec<PathBuf>,
    lazy: bool,
) -> Result<(), UnmountFailure> {
    let failed = |error: std::io::Error| UnmountFailure::Other(error.to_string());
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).map_err(failed)?;
    let unmount = move || -> Result<(), UnmountFailure> {
        enter(&namespace).map_err(|error| failed(error.into()))?;
        let mut flags = UnmountFlags::NOFOLLOW;
        if lazy {
            flags |= UnmountFlags::DETACH;
        }
        for path in paths {
            match rustix::mount::unmount(&path, flags) {
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(Errno::BUSY) => return Err(UnmountFailure::Busy),
                Err(error) => return Err(failed(error.into())),
            }
        }
        Ok(())
    };
    let thread = std::thread::Builder::new().name("kitfs-elsewhere".to_owned()).spawn(unmount);
    let outcome = thread.map_err(failed)?.join();
    outcome.unwrap_or_else(|_| Err(UnmountFailure::Other("a thread failed".to_owned())))
}

#[allow(unsafe_code, reason = "unshare(2), which changes this thread only")]
fn enter(namespace: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: CLONE_FS gives this thread a root and a working folder of its own. No other thread changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}
