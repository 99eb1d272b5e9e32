//! Mounts in parts of the file tree that this process does not see: another mount namespace, another root.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::device::{UnmountFailure, unmount_patiently};
use super::holders::{namespace, processes};
use super::place::Mark;
use crate::process::limits::ChildLimits;
use crate::process::mount_table::{Device, MountTable};

/// Takes a mount out of the tree wherever it is mounted, as far as this process may. Root enters the mount
/// namespace of a process that sees the mount.
///
/// # Errors
/// `Other` when it stays somewhere.
pub(super) fn unmount(
    mark: &Mark,
    lazy: bool,
    child_limits: ChildLimits,
) -> Result<(), UnmountFailure> {
    // A mount below another root may lie in this namespace.
    let table = MountTable::read();
    for path in table.iter().flat_map(|table| paths(table, mark)) {
        unmount_patiently(&path, lazy, child_limits)?;
    }
    for (pid, paths) in namespaces_with(mark.clone()) {
        let failed = |error: io::Error| UnmountFailure::Other(error.to_string());
        in_namespace_of(&pid, move || unmount_all(&paths, lazy)).map_err(failed)??;
    }
    Ok(())
}

/// Runs `work` in a mount namespace that has a mount with this device number.
///
/// # Errors
/// When this process sees no such namespace, or may not enter it, and those of `work`.
pub(super) fn within<T: Send + 'static>(
    device: Device,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let found = namespaces_with(Mark::Kit(device)).next();
    let (pid, _) = found
        .ok_or_else(|| io::Error::other("no process of its mount namespace is seen from here"))?;
    in_namespace_of(&pid, work)?
}

fn unmount_all(paths: &[PathBuf], lazy: bool) -> Result<(), UnmountFailure> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    for path in paths {
        match rustix::mount::unmount(path, flags) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => return Err(UnmountFailure::Busy),
            Err(error) => return Err(UnmountFailure::Other(io::Error::from(error).to_string())),
        }
    }
    Ok(())
}

/// A process of each other mount namespace that has the mount, and the mountpoints there.
fn namespaces_with(mark: Mark) -> impl Iterator<Item = (String, Vec<PathBuf>)> {
    let mut known: HashSet<_> = namespace("self").into_iter().collect();
    processes().filter_map(move |pid| {
        let pid = pid.to_string();
        let namespace = namespace(&pid)?;
        // Below another root the table has other paths. Another process may have the root of the namespace.
        let has_its_root =
            || fs::read_link(format!("/proc/{pid}/root")).ok().as_deref() == Some(Path::new("/"));
        if known.contains(&namespace) || !has_its_root() {
            return None;
        }
        known.insert(namespace);
        let table = MountTable::of_process(&pid).ok()?;
        let paths: Vec<PathBuf> = paths(&table, &mark).collect();
        (!paths.is_empty()).then_some((pid, paths))
    })
}

fn paths<'a>(table: &'a MountTable, mark: &'a Mark) -> impl Iterator<Item = PathBuf> + 'a {
    let entries = table.entries().iter();
    let ours = entries.filter(move |entry| mark.is(entry));
    ours.map(|entry| entry.mountpoint.clone()).rev()
}

/// Runs `work` in the mount namespace of a process. A thread of its own enters the namespace: a thread cannot
/// leave it again without more rights.
fn in_namespace_of<T: Send + 'static>(
    pid: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
    let thread = std::thread::Builder::new().name("kitfs-elsewhere".to_owned());
    let thread = thread.spawn(move || {
        enter(&namespace)?;
        Ok(work())
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread failed")))
}

#[allow(unsafe_code, reason = "unshare(2), which changes this thread only")]
fn enter(namespace: impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: CLONE_FS gives this thread a root and a working folder of its own. No other thread changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
}
