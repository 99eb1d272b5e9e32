//! The place of a mount, for other processes.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mount_table::Device;
use crate::process::view::own_view;

/// The number of a mount's device, major and minor.
pub type DeviceNumber = (u32, u32);

/// The place of a mount in the tree that its command sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPlace {
    /// The canonical mountpoint. Nobody can look it up while the mount is not served.
    pub(super) path: PathBuf,
    /// The device number of the mount. It is the same in every mount namespace.
    pub(super) device: Option<DeviceNumber>,
    /// The device and inode of the mountpoint, if kitfs has made it.
    pub(super) made: Option<(u64, u64)>,
    /// The part of the file tree that the command sees ([`crate::process::view`]).
    #[serde(default)]
    pub(super) view: Option<String>,
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

    /// The same place, with the directory that kitfs has made for the mount before.
    pub fn takes_directory_of(mut self, before: &Self) -> Self {
        self.made = before.made;
        self
    }

    /// Whether this process sees another part of the file tree, so that the path may be another one for it.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.view.is_some() && own_view().ok() != self.view
    }

    /// The number of the mount's connection in `/sys/fs/fuse/connections`: its device number. The major number
    /// of a file system without a disk is zero.
    pub fn connection(&self) -> Option<NonZeroU32> {
        self.device.filter(|&(major, _)| major == 0).and_then(|(_, minor)| NonZeroU32::new(minor))
    }

    /// The same place, where this process unmounts nothing and removes no directory: the place is told by
    /// another user, who could name anything. `view` names the part of the file tree for this process.
    pub fn of_other_user(self, view: String) -> Self {
        Self { device: None, made: None, view: Some(view), ..self }
    }

    pub(super) fn device(&self) -> Option<Device> {
        self.device.map(|(major, minor)| Device(major, minor))
    }
}
