//! The kernel: mounting, requests and answers, errno.
//!
//! ```text
//! Mountpoint::prepare --> Mount::new: mount (direct, or fusermount3) --> INIT --> Sessions
//!                                                              requests --> adapter --> fs
//! Mount::unmount, `umount`, a drop --> the kernel closes the connection --> Mount::ended
//! ```
//!
//! - [`mount`](Mount): the life of a mount.
//! - [`Mountpoint`]: what a mountpoint must be, before anything is fetched; made where it is missing.
//! - `hidden`: what a mount must not hide from kitfs itself.
//! - `device`: gets the kernel's end of a mount, as root or through fusermount3.
//! - `mount_table`: what is mounted where, asked without touching any file system.
//! - [`other_mounts`], [`daemon_of`], [`unmount_other`]: finds, asks and ends mounts of other processes.
//! - `attachment`: a mount's place in the tree. `holders`: who still uses a mount.
//! - [`Sessions`]: the threads that answer requests, for all mounts of a process.
//! - `handshake`, `wire`: how a connection begins, and the kernel's protocol; the latter is pure.
//! - `connection`: reads requests and sends answers.
//! - `adapter`: requests to [`crate::fs::FileSystem`] and back.
//! - `passthrough`: which open files the kernel reads by itself.
//! - `checks`: checks cached files in the background, so that they can be passed through.
//! - `failure_log`: how many failed reads are logged.
//! - `errno`: the one table from errors to errno.
//!
//! Only this room speaks the FUSE protocol. Why it does so itself: docs/design/010.

mod adapter;
mod attachment;
mod checks;
mod connection;
mod device;
mod errno;
mod failure_log;
mod handshake;
mod hidden;
mod holders;
mod mount;
mod mount_table;
mod mountpoint;
mod others;
mod passthrough;
mod readahead;
mod sessions;
mod wire;

use std::path::PathBuf;

use crate::process::limits::ChildLimits;

pub use hidden::OwnPath;
pub use mount::Mount;
pub use mount_table::MountTable;
pub use mountpoint::{Mountpoint, mount_warnings};
pub use others::{Answer, DAEMON_ATTRIBUTE, OtherMount, daemon_of, other_mounts, unmount_other};
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
    /// What the mount must not hide.
    pub own_paths: Vec<OwnPath>,
    /// What the root's [`DAEMON_ATTRIBUTE`] tells; empty where it tells nothing.
    pub daemon: String,
}

impl MountOptions {
    /// The usual options for a mount at `mountpoint`.
    pub fn at(mountpoint: PathBuf) -> Self {
        Self {
            mountpoint,
            allow_other: false,
            nonempty: false,
            noexec: false,
            passthrough: true,
            child_limits: ChildLimits::default(),
            own_paths: Vec::new(),
            daemon: String::new(),
        }
    }
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
