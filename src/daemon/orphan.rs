//! Mounts whose daemon is gone, or is another cache folder's: found in the kernel's own table.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::UnmountFlags;

use super::api::{Failure, FailureKind};

/// The type under which the kernel lists mounts of kitfs.
const FILE_SYSTEM: &str = "fuse.kitfs";

/// Takes a mount of kitfs out of the tree, whichever daemon serves or served it. Blocking.
///
/// # Errors
/// [`FailureKind::Mountpoint`] when it is no mount of kitfs, or programs use it.
pub fn unmount_orphan(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let place = mountpoint.display();
    let failed = |message: String| Failure::new(FailureKind::Mountpoint, message);
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| failed(format!("cannot read /proc/self/mountinfo: {error}")))?;
    if !is_kitfs_mount(&table, mountpoint) {
        return Err(failed(format!("{place} is not a mount of kitfs; see `kitfs status`")));
    }
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let error = match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::PERM) => return unmount_as_user(mountpoint, lazy),
        Err(error) => error,
    };
    Err(failed(match error {
        rustix::io::Errno::BUSY => format!(
            "{place} is in use by a program (`fuser -vm {place}` names it); \
             `kitfs umount --lazy {place}` takes it out of the tree all the same"
        ),
        error => format!("cannot unmount {place}: {error}"),
    }))
}

/// Not being root, one needs the help of fusermount3.
fn unmount_as_user(mountpoint: &Path, lazy: bool) -> Result<(), Failure> {
    let failed = |detail: &dyn std::fmt::Display| {
        let message = format!("cannot unmount {}: {detail}", mountpoint.display());
        Failure::new(FailureKind::Mountpoint, message)
    };
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let output = command.output().map_err(|error| failed(&format!("fusermount3: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(&String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Whether the last mount at `mountpoint` in a mountinfo table (proc_pid_mountinfo(5)) is one of
/// kitfs.
fn is_kitfs_mount(table: &[u8], mountpoint: &Path) -> bool {
    let mut mounts = table.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let place = unescape(fields.nth(4)?);
        let file_system = fields.skip_while(|field| *field != b"-").nth(1)?;
        (place == mountpoint).then_some(file_system)
    });
    mounts.next_back() == Some(FILE_SYSTEM.as_bytes())
}

/// Undoes the `\ooo` by which the kernel writes blanks, newlines and backslashes.
fn unescape(field: &[u8]) -> OsString {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                text.push(byte);
                rest = &tail[3..];
            }
            _ => {
                text.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(text)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 22 0:50 / /mnt/a\\040b\\134c ro,nosuid,nodev - fuse.kitfs kitfs ro,user_id=0
91 22 0:51 / /mnt/other rw shared:9 master:1 - fuse.sshfs host: rw
92 22 0:52 / /mnt/over ro - fuse.kitfs kitfs ro
93 92 0:53 / /mnt/over rw - tmpfs tmpfs rw
";

    #[test]
    fn only_the_topmost_mount_counts_and_only_if_it_is_ours() {
        let is_ours = |path: &str| is_kitfs_mount(TABLE.as_bytes(), Path::new(path));
        assert!(is_ours("/mnt/a b\\c"));
        assert!(!is_ours("/mnt/other"));
        assert!(!is_ours("/mnt/over"));
        assert!(!is_ours("/"));
        assert!(!is_ours("/mnt"));
    }

    #[test]
    fn a_folder_that_is_no_mount_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let failure = unmount_orphan(folder.path(), true).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Mountpoint);
        assert!(failure.message.contains("is not a mount of kitfs"), "{failure}");
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\04"), OsStr::from_bytes(b"a\\04"));
        assert_eq!(unescape(b"\\011"), OsStr::from_bytes(b"\t"));
    }
}
