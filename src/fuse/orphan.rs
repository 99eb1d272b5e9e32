//! Mounts whose daemon is gone, or is another cache folder's: found in the kernel's own table.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use super::MountError;
use super::device::{self, UnmountFailure};
use super::mount_table::{self, FILE_SYSTEM};
use crate::process::limits::ChildLimits;

/// How long mounts may take to say that they live. A dead one is told by the kernel at once, so
/// this is only for those whose daemon is stuck or busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A mount that nobody serves any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Where it is.
    pub mountpoint: PathBuf,
    /// The reference that was mounted.
    pub reference: String,
}

/// The mounts of kitfs whose daemon is gone, whichever cache folder it had; `served` are left out.
/// Blocking, bounded: a mount that does not answer in time is taken for alive.
///
/// # Errors
/// When the mount table cannot be read, or no thread can be started.
pub fn orphans(served: &[PathBuf]) -> std::io::Result<Vec<Orphan>> {
    let mut entries = mount_table::all()?;
    // Of several at one place only the topmost can be reached.
    entries.reverse();
    let mut seen = HashSet::new();
    entries.retain(|entry| seen.insert(entry.mountpoint.clone()));
    entries.retain(|entry| entry.file_system == FILE_SYSTEM && !served.contains(&entry.mountpoint));
    let (sender, answers) = mpsc::channel();
    for entry in entries {
        let sender = sender.clone();
        // Not joined: one that is stuck ends with the process.
        std::thread::Builder::new().spawn(move || {
            if is_dead(&entry.mountpoint) {
                let orphan = Orphan { mountpoint: entry.mountpoint, reference: entry.source };
                // Too late for whoever asked.
                let _ = sender.send(orphan);
            }
        })?;
    }
    drop(sender);
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let next = || answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    let mut orphans: Vec<Orphan> = std::iter::from_fn(next).collect();
    orphans.sort_by(|one, other| one.mountpoint.cmp(&other.mountpoint));
    Ok(orphans)
}

/// Whether the kernel says that nobody serves the mount; attributes it remembers are no answer.
fn is_dead(mountpoint: &Path) -> bool {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, mountpoint, flags, StatxFlags::MODE).is_err_and(|error| {
        // The second while it is being aborted.
        matches!(error, Errno::NOTCONN | Errno::CONNABORTED)
    })
}

/// Takes a mount of kitfs out of the tree, whichever daemon serves or served it; `lazy` even while
/// programs use it. Blocking, bounded. The mountpoint is canonical, and is not touched: a mount
/// whose daemon is stuck would hold whoever looks.
///
/// # Errors
/// [`MountError::Mountpoint`] when it is no mount of kitfs, [`MountError::Busy`] when programs use
/// it.
pub fn unmount_orphan(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let place = mountpoint.display();
    let not_ours =
        || MountError::Mountpoint(format!("{place} is not a mount of kitfs; see `kitfs status`"));
    let entries = mount_table::at(mountpoint)
        .map_err(|error| MountError::Io(format!("cannot read the mount table: {error}")))?;
    // Only the topmost can be taken away.
    if entries.last().is_none_or(|entry| entry.file_system != FILE_SYSTEM) {
        return Err(not_ours());
    }
    device::unmount(mountpoint, lazy, ChildLimits::default()).map_err(|failure| match failure {
        UnmountFailure::Busy => MountError::Busy(format!(
            "{place} is in use by a program (`fuser -vm {place}` names it); \
             `kitfs umount --lazy {place}` takes it out of the tree all the same"
        )),
        UnmountFailure::NotMounted => not_ours(),
        UnmountFailure::Other(words) => MountError::Io(format!("cannot unmount {place}: {words}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mount_of_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/"), Path::new("/proc")] {
            let error = unmount_orphan(path, true).unwrap_err();
            assert!(matches!(error, MountError::Mountpoint(_)), "{error}");
            assert!(error.to_string().contains("is not a mount of kitfs"), "{error}");
        }
    }
}
