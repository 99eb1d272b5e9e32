//! The place of a mount, for other processes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mount_table::Device;

/// The place of a mount in the tree that its command sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlace {
    /// The canonical mountpoint. Nobody can look it up while the mount is not served.
    pub(super) path: PathBuf,
    /// The device number of the mount. It is the same in every mount namespace.
    pub(super) device: Option<(u32, u32)>,
    /// The device and inode of the mountpoint, if kitfs has made it.
    pub(super) made: Option<(u64, u64)>,
    /// The part of the file tree that the command sees ([`crate::process::view`]).
    #[serde(default)]
    pub(super) view: Option<String>,
}

impl MountPlace {
    /// The part of the file tree in which the mountpoint lies, if it is known.
    pub fn view(&self) -> Option<&str> {
        self.view.as_deref()
    }

    pub(super) fn device(&self) -> Option<Device> {
        self.device.map(|(major, minor)| Device(major, minor))
    }
}
