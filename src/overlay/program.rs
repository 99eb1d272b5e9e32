//! Overlays by the program fuse-overlayfs, for users who may not use the kernel's.
//!
//! kitfs makes the FUSE mount, so that the mount table has UPPER as its source, and gives its device to the program. The
//! program keeps the base open: the mount of the base needs no place afterwards.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use super::{Folder, Marks, OverlayError};
use crate::process::limits::ChildLimits;

const PROGRAM: &str = "fuse-overlayfs";

/// The advice where the program is missing.
pub const INSTALL: &str = "install fuse-overlayfs (`apt install fuse-overlayfs`), or run as root";

/// Moves the device and the lock, which come as standard input and output, to numbers that the program keeps:
/// it opens /dev/null in the place of its first three descriptors.
const START: &str = "exec 3<&0 4>&1 </dev/null >/dev/null; exec \"$0\" \"$@\" /dev/fd/3";

/// The number of the lock in the program.
const LOCK: &str = "4";

/// The longest message of the program to read.
const MESSAGE_BYTES: u64 = 4096;

/// Whether the program can be run.
pub fn is_installed() -> bool {
    let mut command = Command::new(PROGRAM);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

/// Whether the daemon of a view's base is dead: the program has the base's root open, and a request there fails.
/// Looks at the processes of this user; `false` if none of them has UPPER locked.
pub fn is_base_dead(upper: &Path) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    let descriptors = processes.flatten().map(|process| process.path().join("fd"));
    let has_lock = |folder: &PathBuf| fs::read_link(folder.join(LOCK)).is_ok_and(|to| to == upper);
    let Some(folder) = descriptors.into_iter().find(has_lock) else { return false };
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    fs::read_dir(folder).into_iter().flatten().flatten().any(|descriptor| {
        rustix::fs::statx(CWD, descriptor.path(), flags, StatxFlags::MODE).is_err_and(|error| {
            // CONNABORTED comes while the connection is being aborted.
            matches!(error, Errno::NOTCONN | Errno::CONNABORTED)
        })
    })
}

/// Starts the program for a FUSE mount. The base must be mounted at [`Folder::lower`]. Returns once the program
/// serves the mount.
///
/// # Errors
/// When the program is missing, or ends with an error.
pub fn serve(
    folder: &mut Folder,
    device: OwnedFd,
    limits: ChildLimits,
) -> Result<(), OverlayError> {
    folder.keep_marks(Marks::FuseOverlayfs)?;
    let failed =
        |words: &str| OverlayError::Refused(format!("{PROGRAM} makes no writable view: {words}"));
    let lock: File = folder.lock().try_clone().map_err(|error| failed(&error.to_string()))?;
    let mut command = Command::new("/bin/sh");
    // Names relative to UPPER have no comma and no colon, which the program would take for separators.
    command.current_dir(folder.path()).arg("-c").arg(START).arg(PROGRAM);
    command.arg("-o").arg("lowerdir=lower,upperdir=upper,workdir=work");
    command.stdin(device).stdout(lock).stderr(Stdio::piped());
    limits.give_back(&mut command);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => failed(&format!("/bin/sh is missing; {INSTALL}")),
        _ => failed(&error.to_string()),
    })?;
    // `command` still has the device. The program must be the only process with the device.
    drop(command);
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MESSAGE_BYTES).read_to_end(&mut words);
    }
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let words = String::from_utf8_lossy(&words);
            let first = words.lines().next().map(str::to_owned);
            Err(failed(&first.unwrap_or_else(|| status.to_string())))
        }
        Err(error) => Err(failed(&error.to_string())),
    }
}
