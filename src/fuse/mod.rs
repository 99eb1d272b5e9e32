//! Mounts kits and answers the kernel's requests.
//!
//! ```text
//! Mountpoint::prepare --> Attached: mount (direct, or fusermount3) --> Mount::serve: INIT --> Sessions
//! the descriptors of a process that is gone ----> Mount::take_over: requests again ----> Sessions
//!                                                              requests --> adapter --> fs
//! Mount::unmount, `umount`, a drop --> the kernel closes the connection --> Mount::ended
//! ```
//!
//! - [`mount`](Mount): the life of a mount.
//! - [`Mountpoint`]: checks the mountpoint before anything is downloaded, and makes a missing one.
//! - `shadowing`: refuses mountpoints that would hide kitfs's own files.
//! - `device`: mounts and unmounts, as root or through fusermount3.
//! - [`other_mounts`], [`daemon_of`], [`unmount_other`]: mounts of other processes.
//! - [`MountPlace`]: the place of a mount, for another process. `other_namespaces`: mounts in other namespaces.
//! - `swap`: a mount in the place of another one. [`OverlayMount`]: an overlay over a mount.
//! - [`Attached`]: a mount whose requests wait in the kernel. [`Content`]: the kit or the kits by path behind it.
//! - `attachment`: a mount in the tree. `holders`: the programs that use a mount.
//! - `failures`: failed reads, for the log and `status`. `interrupts`: ends the reads of killed programs.
//! - [`Sessions`]: the threads that answer requests, for all mounts of a process. [`Look`]: whether they make progress.
//! - `handshake`: the first request. `wire`: the kernel's protocol, pure.
//! - `connection`: reads requests and sends answers. [`resend`], [`has_ended`],
//!   [`has_requests`]: of another process's mount.
//! - `adapter`: answers requests from [`crate::fs::FileSystem`].
//! - `passthrough`: the open files that the kernel reads by itself. `opens`: where they are noted for a
//!   process that takes the mount over.
//! - `stale_pages`: drops pages of the kernel whose bytes turned out to be wrong.
//! - `checks`: checks cached files in the background for passthrough.
//! - `failure_log`: limits the log of failed reads.
//! - `errno`: the only table from errors to errno.
//!
//! Only this room knows the FUSE protocol. docs/design/010 says why it uses no library.

mod adapter;
mod attached;
mod attachment;
mod checks;
mod connection;
mod content;
mod device;
mod errno;
mod failure_log;
mod failures;
mod handshake;
mod holders;
mod interrupts;
mod mount;
mod other_namespaces;
mod overlay_mount;
mod shadowing;

mod mountpoint;
mod opens;
mod others;
mod passthrough;
mod place;
mod readahead;
mod sessions;
mod stale_pages;
mod swap;
mod turns;
mod watched;
mod wire;

use std::path::PathBuf;

use crate::fs::Owner;
use crate::process::limits::ChildLimits;

pub use attached::Attached;
pub use connection::{has_ended, has_requests, resend};
pub use content::{ByPath, Content};
pub use mount::{Mount, MountState};
pub use mountpoint::{Mountpoint, canonical, mount_warnings};
pub use others::{
    Answer, DAEMON_ATTRIBUTE, Occupant, OtherMount, daemon_of, mount_above, occupant, other_mounts,
    unmount_other,
};
pub use overlay_mount::OverlayMount;
pub use passthrough::PassthroughStatus;
pub use place::{DeviceNumber, MountPlace};
pub use sessions::Sessions;
pub use shadowing::OwnPath;
pub use stale_pages::{ReplacedRange, ReplacedRanges};
pub use swap::{Before, Swap};
pub use turns::Look;
pub use watched::{EndedRead, Observers, ReadTracer};

/// How to mount a kit.
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
    /// Another user has made the mount, and may have kept a copy of the FUSE device. Such a user can answer an open
    /// for writing with a backing id, and the kernel then opens the file of the cache with the rights of this
    /// process. So the mount gets no backing ids.
    pub is_of_other_user: bool,
    /// The limits for fusermount3.
    pub child_limits: ChildLimits,
    /// The paths that the mount must not hide.
    pub own_paths: Vec<OwnPath>,
    /// The value of the root's [`DAEMON_ATTRIBUTE`]; empty for none.
    pub daemon: String,
    /// The user and the group of the files; those of this process where it is missing.
    pub files_owner: Option<Owner>,
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
            is_of_other_user: false,
            child_limits: ChildLimits::default(),
            own_paths: Vec::new(),
            daemon: String::new(),
            files_owner: None,
        }
    }
}

/// Why a mount cannot be made or ended. Messages name the mountpoint and the next step.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint is missing, not empty, no directory, or a mount.
    #[error("{0}")]
    Mountpoint(String),
    /// No /dev/fuse, no fusermount3, not allowed.
    #[error("{0}")]
    Unavailable(String),
    /// Programs still use the mount.
    #[error("{0}")]
    Busy(String),
    /// Another error of the kernel.
    #[error("{0}")]
    Io(String),
}
