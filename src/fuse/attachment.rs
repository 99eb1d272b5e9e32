//! A mount's place in the tree of folders.
//!
//! A mount is taken out of the tree by its path, and only while the mount table has this mount there:
//! another program may have unmounted it and mounted something else. In a part of the tree that this process
//! does not see, the mount is found by its device number.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::device::{self, UnmountFailure};
use super::holders::Holders;
use super::other_namespaces;
use super::place::{Mark, MountPlace};
use crate::process::limits::ChildLimits;
use crate::process::mount_table::{Device, Entry, MountTable};
use crate::process::view::own_view;

/// The place of a mount in the tree. Dropping it unmounts lazily.
pub(super) struct Attachment {
    path: PathBuf,
    /// The mount's device number; `None` when the mount table could not be read.
    device: Option<Device>,
    /// The UPPER folder of the overlay above the mount. Then the overlay is at `path`.
    overlay: Option<PathBuf>,
    /// The part of the file tree in which `path` lies, and whether this process sees another one.
    view: Option<String>,
    is_elsewhere: bool,
    /// Whether the mount was in the tree. A mount that is to replace another one comes there later.
    was_there: AtomicBool,
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
        let view = own_view().ok();
        let was_there = AtomicBool::new(true);
        let (device, overlay, is_elsewhere) = (None, None, false);
        Self { path, device, overlay, view, is_elsewhere, was_there, ended, child_limits }
    }

    /// The place of a mount that another process has made.
    pub(super) fn at(
        place: &MountPlace,
        ended: watch::Receiver<bool>,
        child_limits: ChildLimits,
    ) -> Self {
        let (path, view) = (place.path.clone(), place.view.clone());
        let is_elsewhere = place.is_elsewhere();
        let was_there = AtomicBool::new(true);
        let (device, overlay) = (place.device(), place.overlay.clone());
        Self { path, device, overlay, view, is_elsewhere, was_there, ended, child_limits }
    }

    /// The same mount at another place, to which it comes later.
    pub(super) fn moved_to(self, place: &MountPlace) -> Self {
        Self::at(place, self.ended.clone(), self.child_limits).awaited()
    }

    /// The same place, for a mount that comes there later.
    pub(super) fn awaited(self) -> Self {
        self.was_there.store(false, Ordering::Relaxed);
        self
    }

    /// The same place, where an overlay is above the mount.
    pub(super) fn below(mut self, overlay: PathBuf) -> Self {
        self.overlay = Some(overlay);
        self
    }

    /// The UPPER folder of the overlay above the mount.
    pub(super) fn overlay(&self) -> Option<&PathBuf> {
        self.overlay.as_ref()
    }

    /// How the mount table shows the mount.
    fn mark(&self) -> Option<Mark> {
        match &self.overlay {
            Some(upper) => Some(Mark::Overlay(upper.clone())),
            None => self.device.map(Mark::Kit),
        }
    }

    /// The mark of a mount to take out of other parts of the tree. `None` for the place that another user names
    /// ([`MountPlace::of_other_user`]): it has no device number, and could name any folder as that of an overlay.
    fn mark_elsewhere(&self) -> Option<Mark> {
        self.device.and_then(|_| self.mark())
    }

    /// Knows the device number.
    pub(super) fn set_device(&mut self, device: Option<Device>) {
        self.device = device;
    }

    /// Finds the device number in the mount table.
    pub(super) fn find_device(&mut self) {
        let table = MountTable::read();
        self.device = table.ok().and_then(|table| Some(table.at(&self.path).last()?.device));
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn view(&self) -> Option<&String> {
        self.view.as_ref()
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

    /// Whether the mount is in the tree, or still to come there. Another mount may cover it.
    pub(super) fn is_attached(&self, table: &MountTable) -> bool {
        let is_there = self.position(table.at(&self.path)) != Position::Gone;
        let was_there = self.was_there.fetch_or(is_there, Ordering::Relaxed);
        !self.has_ended() && (self.is_elsewhere || is_there || !was_there)
    }

    /// The users of the mount.
    pub(super) fn holders(&self) -> Option<Holders> {
        let device = match &self.mark()? {
            Mark::Kit(device) => *device,
            overlay => {
                let table = MountTable::read().ok()?;
                table.at(&self.path).find(|entry| overlay.is(entry))?.device
            }
        };
        Some(Holders::of(device, &self.path))
    }

    /// The position of the mount among the mounts at its path, the topmost last.
    fn position<'a>(&self, at_path: impl Iterator<Item = &'a Entry>) -> Position {
        let Some(ours) = self.mark() else { return Position::Unknown };
        let mut position = Position::Gone;
        for entry in at_path {
            position = match position {
                _ if ours.is(entry) => Position::Topmost,
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
        if self.is_elsewhere {
            let Some(mark) = self.mark_elsewhere() else { return Ok(()) };
            return detached(other_namespaces::unmount(&mark, lazy, self.child_limits));
        }
        let table = MountTable::read();
        let position = table.map_or(Position::Unknown, |table| self.position(table.at(&self.path)));
        match position {
            Position::Gone => return Ok(()),
            Position::Covered => return Err(DetachFailure::Covered),
            Position::Topmost | Position::Unknown => {}
        }
        detached(device::unmount_patiently(&self.path, lazy, self.child_limits))
    }
}

fn detached(unmounted: Result<(), UnmountFailure>) -> Result<(), DetachFailure> {
    match unmounted {
        Ok(()) | Err(UnmountFailure::NotMounted) => Ok(()),
        Err(UnmountFailure::Busy) => Err(DetachFailure::Busy),
        Err(UnmountFailure::Other(words)) => Err(DetachFailure::Other(words)),
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(DetachFailure::Other(words)) = self.detach(true) {
            tracing::warn!(mountpoint = %self.path.display(), words, "cannot unmount");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user could name the folder of any overlay, such as the root of a container.
    #[test]
    fn another_users_place_leads_to_no_unmount_elsewhere_and_that_of_root_does() {
        let place = MountPlace {
            path: PathBuf::from("/srv/view"),
            device: Some((0, 57)),
            made: Some((1, 2)),
            view: Some("another".to_owned()),
            overlay: Some(PathBuf::from("/var/lib/containers/upper")),
        };
        let at = |place: MountPlace| {
            // It has ended, so that its drop unmounts nothing.
            let (_end, ended) = watch::channel(true);
            Attachment::at(&place, ended, ChildLimits::default())
        };
        let users = at(place.clone().of_other_user("another of user 1".to_owned()));
        assert!(users.is_elsewhere);
        assert_eq!(users.mark_elsewhere(), None);
        let roots = at(place.clone().of_root("another of user 0".to_owned()));
        assert!(roots.is_elsewhere);
        assert_eq!(roots.mark_elsewhere(), place.overlay.clone().map(Mark::Overlay));
        let kit = at(MountPlace { overlay: None, ..place }.of_root("another".to_owned()));
        assert_eq!(kit.mark_elsewhere(), Some(Mark::Kit(Device(0, 57))));
    }
}
