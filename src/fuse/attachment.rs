//! A mount's place in the tree of folders.
//!
//! A mount is taken out of the tree by path, and only while the mount table says that what lies there
//! is this mount: another program may have unmounted it and mounted something else.

use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::device::{self, UnmountFailure};
use super::holders::Holders;
use super::mount_table::{Device, Entry, MountTable};
use crate::process::limits::ChildLimits;

/// A mount's place in the tree. Dropping it detaches the mount lazily.
pub(super) struct Attachment {
    path: PathBuf,
    /// The mount's device number, where the table could be read.
    device: Option<Device>,
    ended: watch::Receiver<bool>,
    child_limits: ChildLimits,
}

/// Why a mount stays in the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DetachFailure {
    /// Something uses it.
    Busy,
    /// Another mount lies over this one.
    Covered,
    Other(String),
}

/// Where a mount is, as the mount table tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Topmost,
    Covered,
    Gone,
    /// The table cannot be read, or could not be when the mount was made.
    Unknown,
}

impl Attachment {
    /// The place of a mount that was just made at `path`, which is canonical.
    pub(super) fn new(
        path: PathBuf,
        ended: watch::Receiver<bool>,
        child_limits: ChildLimits,
    ) -> Self {
        Self { path, device: None, ended, child_limits }
    }

    /// Looks the mount up in the mount table. Requests must be answered by now: the table may lie
    /// below the mount.
    pub(super) fn find_device(&mut self) {
        let table = MountTable::read();
        self.device = table.ok().and_then(|table| Some(table.at(&self.path).last()?.device));
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

    /// Whether the mount is in the tree; it may be covered by another one.
    pub(super) fn is_attached(&self, table: &MountTable) -> bool {
        !self.has_ended() && self.position(table.at(&self.path)) != Position::Gone
    }

    /// Who uses the mount.
    pub(super) fn holders(&self) -> Option<Holders> {
        self.device.map(|device| Holders::of(device, &self.path))
    }

    /// Where the mount is among those at its path, the topmost last.
    fn position<'a>(&self, at_path: impl Iterator<Item = &'a Entry>) -> Position {
        let Some(ours) = self.device else { return Position::Unknown };
        let mut position = Position::Gone;
        for entry in at_path {
            position = match position {
                _ if entry.device == ours => Position::Topmost,
                Position::Topmost => Position::Covered,
                position => position,
            };
        }
        position
    }

    /// Takes the mount out of the tree, if it is still there; `lazy` even while programs use it.
    ///
    /// A mount whose session has ended is not there: the kernel may have given its device number to
    /// the next mount. While the session runs, the number is taken.
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
