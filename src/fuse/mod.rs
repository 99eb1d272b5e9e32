//! The kernel: mounting, requests and answers, errno.
//!
//! ```text
//! Mount::check --> Mount::new: mount (direct, or fusermount3) --> INIT --> Sessions
//!                                                        requests --> adapter --> fs
//! Mount::unmount, `umount`, a drop --> the kernel closes the connection --> Mount::ended
//! ```
//!
//! - [`mount`](Mount): the life of a mount.
//! - `mountpoint`: what a mountpoint must be, before anything is fetched.
//! - `device`: gets the kernel's end of a mount, as root or through fusermount3.
//! - `mount_table`: what is mounted where, asked without touching any file system.
//! - [`orphans`], [`unmount_orphan`]: finds and ends mounts that no session of this process serves.
//! - [`Sessions`]: the threads that answer requests, for all mounts of a process.
//! - `wire`: the kernel's protocol; pure.
//! - `connection`: reads requests and sends answers.
//! - `adapter`: requests to [`crate::fs::FileSystem`] and back.
//! - `passthrough`: which open files the kernel reads by itself.
//! - `checks`: checks cached files in the background, so that they can be passed through.
//! - `failure_log`: how many failed reads are logged.
//! - `errno`: the one table from errors to errno.
//!
//! Only this room speaks the FUSE protocol. Why it does so itself: docs/design/010.

mod adapter;
mod checks;
mod connection;
mod device;
mod errno;
mod failure_log;
mod mount;
mod mount_table;
mod mountpoint;
mod orphan;
mod passthrough;
mod readahead;
mod sessions;
mod wire;

use std::path::PathBuf;

use crate::process::limits::ChildLimits;

pub use mount::Mount;
pub use orphan::{Orphan, orphans, unmount_orphan};
pub use passthrough::PassthroughStatus;
pub use sessions::Sessions;

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
    /// What fusermount3 gets of this process's limits.
    pub child_limits: ChildLimits,
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
