//! The place of a mount, for other processes.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::overlay::upper_of;
use crate::process::mount_table::{Device, Entry, FILE_SYSTEM};
use crate::process::view::own_view;

/// The number of a mount's device, major and minor.
pub type DeviceNumber = (u32, u32);

/// The place of a mount in the tree that its command sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPlace {
    /// The canonical mountpoint. A lookup of it would hang while the mount is not served.
    pub(super) path: PathBuf,
    /// The device number of the mount. It is the same in every mount namespace.
    pub(super) device: Option<DeviceNumber>,
    /// The device and inode of the mountpoint, if kitfs has made it.
    pub(super) made: Option<(u64, u64)>,
    /// The part of the file tree that the command sees ([`crate::process::view`]).
    #[serde(default)]
    pub(super) view: Option<String>,
    /// The UPPER folder of the overlay that is at `path` in the place of the mount, which is below the overlay
    /// alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) overlay: Option<PathBuf>,
}

/// A mount in the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A kit, by its device number.
    Kit(Device),
    /// An overlay, by its UPPER folder. One mount uses that at a time.
    Overlay(PathBuf),
}

impl Mark {
    pub(super) fn is(&self, entry: &Entry) -> bool {
        match self {
            // The kernel may give the number to the next mount before this process notices the end.
            Self::Kit(device) => entry.device == *device && entry.file_system == FILE_SYSTEM,
            Self::Overlay(upper) => upper_of(entry) == Some(upper),
        }
    }
}

impl MountPlace {
    /// The canonical mountpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The part of the file tree in which the mountpoint lies, if it is known.
    pub fn view(&self) -> Option<&str> {
        self.view.as_deref()
    }

    /// The device number of the mount, if it is known.
    pub fn device_number(&self) -> Option<DeviceNumber> {
        self.device
    }

    /// The folder with the changes of the overlay that is there, if there is one.
    pub fn overlay(&self) -> Option<&Path> {
        self.overlay.as_deref()
    }

    /// The same place, with the directory that kitfs has made for the mount before.
    pub fn takes_directory_of(mut self, before: &Self) -> Self {
        self.made = before.made;
        self
    }

    /// Whether this process sees another part of the file tree, so that the path may be another one for it.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.view.is_some() && own_view().ok() != self.view
    }

    /// The same place under another name of its part of the file tree. Root names the place, so this process takes
    /// the mount out of that part when it ends.
    pub fn of_root(self, view: String) -> Self {
        Self { view: Some(view), ..self }
    }

    /// The number of the mount's connection in `/sys/fs/fuse/connections`: its device number. The major number
    /// of a file system without a disk is zero.
    pub fn connection(&self) -> Option<NonZeroU32> {
        self.device.filter(|&(major, _)| major == 0).and_then(|(_, minor)| NonZeroU32::new(minor))
    }

    /// The same place, where this process unmounts nothing and removes no directory: another user names the
    /// place, and could name any. `view` names the part of the file tree for this process.
    pub fn of_other_user(self, view: String) -> Self {
        Self { device: None, made: None, view: Some(view), ..self }
    }

    pub(super) fn device(&self) -> Option<Device> {
        self.device.map(|(major, minor)| Device(major, minor))
    }
}
