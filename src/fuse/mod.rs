//! The only room that imports fuser: adapter, errno table, session.
//!
//! ```text
//! Mount::check --> Mount::new: mount (direct, or fusermount3) --> INIT --> session threads
//!                                                                 requests --> adapter --> fs
//! Mount::unmount, `umount`, a drop --> the kernel closes the session --> Mount::ended
//! ```
//!
//! - [`mount`](Mount): the life of a mount.
//! - `mountpoint`: what a mountpoint must be, before anything is fetched.
//! - `device`: gets the kernel's end of a mount, as root or through fusermount3.
//! - `mount_table`: what is mounted where, asked without touching any file system.
//! - [`orphans`], [`unmount_orphan`]: finds and ends mounts that no session of this process serves.
//! - `adapter`: kernel requests to [`crate::fs::FileSystem`] and back; no thread of it ever waits
//!   for the network.
//! - `passthrough`: which open files the kernel reads by itself.
//! - `checks`: checks cached files in the background, so that they can be passed through.
//! - `failure_log`: how many failed reads are logged.
//! - `errno`: the one table from errors to errno.
//!
//! Mounting and unmounting are done here and not by fuser, whose session would unmount by path
//! when it ends, even when somebody else has mounted there since. fuser gets the open device
//! ([`fuser::Session::from_fd`]); the same seam lets a supervisor hold that device later.

mod adapter;
mod checks;
mod device;
mod errno;
mod failure_log;
mod mount;
mod mount_table;
mod mountpoint;
mod orphan;
mod passthrough;
mod readahead;

use std::path::PathBuf;

pub use mount::Mount;
pub use orphan::{Orphan, orphans, unmount_orphan};
pub use passthrough::PassthroughStatus;

/// How a kit is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The mountpoint, absolute.
    pub mountpoint: PathBuf,
    /// Let other users read the mount.
    pub allow_other: bool,
    /// Mount over a folder that is not empty.
    pub nonempty: bool,
    /// Refuse to run programs from the mount.
    pub noexec: bool,
    /// Let the kernel read complete files from the cache by itself, where it can.
    pub passthrough: bool,
}

/// Why a mount cannot be made or ended. Messages name the mountpoint and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Missing, no directory, not empty, already a mount.
    #[error("{0}")]
    Mountpoint(String),
    /// No /dev/fuse, no fusermount3, not allowed.
    #[error("{0}")]
    Unavailable(String),
    /// Programs still use the mount.
    #[error("{0}")]
    Busy(String),
    /// Anything else the kernel says.
    #[error("{0}")]
    Io(String),
}
