//! Closes the open files of a command that a daemon must not keep.
//!
//! A shell's lock (`exec 9>lock; flock 9`), a pipe that somebody reads to its end, a file on a mount that
//! is to be unmounted: the kernel closes each of them only when the last process has closed it.

#![allow(unsafe_code, reason = "close_range(2), which rustix does not have")]

use std::io::{Error, Result};

/// The first descriptor that is not a standard one.
const FIRST: libc::c_uint = 3;

/// Has all descriptors but the standard ones closed in the programs that this process starts from now
/// on. Those of this process stay open (close_range(2), Linux 5.11).
pub(super) fn close_on_exec() -> Result<()> {
    // SAFETY: it takes numbers, and closes nothing here.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == -1 { Err(Error::last_os_error()) } else { Ok(()) }
}
