//! A mount's place in the tree of folders.
//!
//! A mount is taken out of the tree by path, and only while the mount table says that what lies there
//! is this mount: another program may have unmounted it and mounted something else.

use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::device::{self, UnmountFailure};
use super::holders::Holders;
use super::mount_table::{Device, Entry, FILE_SYSTEM, MountTable};
use crate::process::limits::ChildLimits;

/// The place of a mount in the tree. Dropping it unmounts lazily.
pub(super) struct Attachment {
    path: PathBuf,
    /// The mount's device number; `None` when the mount table could not be read.
    device: Option<Device>,
    ended: watch::Receiver<bool>,
    child_limits: ChildLimits,
}

/// Why a mount stays in the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DetachFailure {
    /// Programs use the mount.
    Busy,
    /// Another mount lies over this one.
    Covered,
    Other(String),
}

/// The position of a mount among the mounts at its path, according to the mount table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Topmost,
    Covered,
    Gone,
    /// The mount table cannot be read, or could not be read when the mount was made.
    Unknown,
}

impl Attachment {
    /// The place of a new mount at `path`, which is canonical.
    pub(super) fn new(
        path: PathBuf,
        ended: watch::Receiver<bool>,
        child_limits: ChildLimits,
    ) -> Self {
        Self { path, device: None, ended, child_limits }
    }

    /// Finds the device number in the mount table. Call it when requests are answered: /proc may lie below
    /// the mount.
    pub(super) fn find_device(&mut self) {
        let table = MountTable::read();
        self.device = table.ok().and_then(|table| Some(table.at(&self.path).last()?.device));
    }

    /// Knows the device number from the process that has made the mount.
    pub(super) fn set_device(&mut self, device: Option<Device>) {
        self.device = device;
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn device(&self) -> Option<Device> {
        self.device
    }

    /// Whether the kernel has closed the connection.
    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Waits until the kernel has closed the connection.
    pub(super) async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error says that the session is gone.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Whether the mount is in the tree. Another mount may cover it.
    pub(super) fn is_attached(&self, table: &MountTable) -> bool {
        !self.has_ended() && self.position(table.at(&self.path)) != Position::Gone
    }

    /// The users of the mount.
    pub(super) fn holders(&self) -> Option<Holders> {
        self.device.map(|device| Holders::of(device, &self.path))
    }

    /// The position of the mount among the mounts at its path, the topmost last.
    fn position<'a>(&self, at_path: impl Iterator<Item = &'a Entry>) -> Position {
        let Some(ours) = self.device else { return Position::Unknown };
        let mut position = Position::Gone;
        for entry in at_path {
            position = match position {
                // The kernel may give the number to the next mount before this process hears of the end.
                _ if entry.device == ours && entry.file_system == FILE_SYSTEM => Position::Topmost,
                Position::Topmost => Position::Covered,
                position => position,
            };
        }
        position
    }

    /// Removes the mount from the tree if it is still there, with `lazy` also while programs use it.
    ///
    /// When the session has ended, the mount is gone, and the kernel may have given its device number to
    /// another mount. While the session runs, the number belongs to this mount.
    pub(super) fn detach(&self, lazy: bool) -> Result<(), DetachFailure> {
        if self.has_ended() {
            return Ok(());
        }
        let table = MountTable::read();
        let position = table.map_or(Position::Unknown, |table| self.position(table.at(&self.path)));
        match position {
            Position::Gone => return Ok(()),
            Position::Covered => return Err(DetachFailure::Covered),
            Position::Topmost | Position::Unknown => {}
        }
        match device::unmount_patiently(&self.path, lazy, self.child_limits) {
            Ok(()) | Err(UnmountFailure::NotMounted) => Ok(()),
            Err(UnmountFailure::Busy) => Err(DetachFailure::Busy),
            Err(UnmountFailure::Other(words)) => Err(DetachFailure::Other(words)),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(DetachFailure::Other(words)) = self.detach(true) {
            tracing::warn!(mountpoint = %self.path.display(), words, "cannot unmount");
        }
    }
}
