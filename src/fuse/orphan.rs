//! Mounts whose daemon is gone, or is another cache folder's: found in the kernel's own table.

use std::path::Path;

use super::MountError;
use super::device::{self, UnmountFailure};
use super::mount_table::{self, FILE_SYSTEM};

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
    device::unmount(mountpoint, lazy).map_err(|failure| match failure {
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
