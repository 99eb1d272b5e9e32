//! What a mountpoint must be: told before anything is fetched.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use super::device::{self, FUSERMOUNT};
use super::mount_table::{self, FILE_SYSTEM};
use super::{MountError, MountOptions};

/// Where fusermount3 looks for what ordinary users may do.
const FUSE_CONF: &str = "/etc/fuse.conf";

/// Checks the mountpoint, and whether this user can mount at all.
pub(super) fn check(options: &MountOptions) -> Result<(), MountError> {
    check_folder(&options.mountpoint, options.nonempty).map_err(MountError::Mountpoint)?;
    device::open_device()?;
    if !rustix::process::geteuid().is_root() {
        check_fusermount(options.allow_other)?;
    }
    Ok(())
}

fn check_folder(mountpoint: &Path, nonempty: bool) -> Result<(), String> {
    let place = mountpoint.display();
    if !mountpoint.is_absolute() {
        return Err(format!("the mountpoint {place} is not an absolute path"));
    }
    let is_ours = is_mounted(mountpoint);
    let metadata = std::fs::metadata(mountpoint).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            format!("the mountpoint {place} does not exist: make it with `mkdir -p {place}`")
        }
        ErrorKind::NotConnected => format!(
            "{place} is what is left of a mount whose daemon is gone (transport endpoint is not \
             connected): take it away with `kitfs umount {place}`"
        ),
        _ => format!("the mountpoint {place} cannot be used: {error}"),
    })?;
    if is_ours {
        return Err(format!(
            "a kit is mounted on {place} already, or was when its daemon ended: take that away with `kitfs umount {place}`"
        ));
    }
    if !metadata.is_dir() {
        return Err(format!("the mountpoint {place} is not a directory"));
    }
    let mut entries = std::fs::read_dir(mountpoint)
        .map_err(|error| format!("the mountpoint {place} cannot be listed: {error}"))?;
    if !nonempty && entries.next().is_some() {
        return Err(format!(
            "the mountpoint {place} is not empty: choose an empty folder, or hide what is in it \
             with --nonempty"
        ));
    }
    Ok(())
}

/// Whether the topmost mount at `mountpoint` is a kit. Only its parent is touched: the mount
/// itself may be one that no longer answers.
fn is_mounted(mountpoint: &Path) -> bool {
    let canonical = match (mountpoint.parent(), mountpoint.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|parent| parent.join(name)),
        _ => mountpoint.canonicalize(),
    };
    let entries = canonical.and_then(|path| mount_table::at(&path)).unwrap_or_default();
    entries.last().is_some_and(|entry| entry.file_system == FILE_SYSTEM)
}

fn check_fusermount(allow_other: bool) -> Result<(), MountError> {
    Command::new(FUSERMOUNT)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| device::missing(&error))?;
    let conf = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
    if allow_other && !allows_other(&conf) {
        return Err(MountError::Unavailable(format!(
            "--allow-other is root's to grant: add the line `user_allow_other` to {FUSE_CONF}, or \
             mount as root"
        )));
    }
    Ok(())
}

/// Whether fuse.conf has the line `user_allow_other`.
fn allows_other(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mountpoint_says_how_to_make_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = check_folder(&folder.path().join("kit"), false).unwrap_err();
        assert!(error.contains("does not exist: make it with `mkdir -p"), "{error}");
    }

    #[test]
    fn a_file_is_no_mountpoint() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(check_folder(&file, true).unwrap_err().contains("not a directory"));
    }

    #[test]
    fn a_folder_that_is_not_empty_needs_the_option() {
        let folder = tempfile::tempdir().unwrap();
        check_folder(folder.path(), false).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(check_folder(folder.path(), false).unwrap_err().contains("--nonempty"));
        check_folder(folder.path(), true).unwrap();
    }

    #[test]
    fn a_relative_mountpoint_is_refused() {
        assert!(check_folder(Path::new("kit"), false).unwrap_err().contains("absolute"));
    }

    #[test]
    fn only_the_line_itself_allows_other_users() {
        assert!(allows_other("# comment\n  user_allow_other \n"));
        assert!(!allows_other("#user_allow_other\nmount_max = 1000\n"));
    }
}
