//! The only room that imports fuser: adapter, errno table, session.
#![allow(unused_variables, dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::LoadedKit;

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

/// A mount that is being served. Dropping it takes it out of the tree lazily.
pub struct Mount {}

impl Mount {
    /// Checks the mountpoint without mounting, so that a mistake is told before anything is fetched.
    pub fn check(options: &MountOptions) -> Result<(), MountError> {
        todo!()
    }

    /// Mounts; when it returns, the tree can be listed. Blocking.
    pub fn new(kit: Arc<LoadedKit>, options: &MountOptions) -> Result<Self, MountError> {
        todo!()
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> &Path {
        todo!()
    }

    /// Ends the mount; `lazy` even while programs use it. Blocking, bounded. May be called again
    /// after an error.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        todo!()
    }

    /// Waits until the mount has ended, whoever ended it (`umount` too).
    pub async fn ended(&self) {
        todo!()
    }
}
