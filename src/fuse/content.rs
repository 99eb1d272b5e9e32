//! The content of a mount: one kit, or kits by path.

use std::sync::Arc;

use super::MountOptions;
use super::opens::OpenRecords;
use crate::fs::browse::{Browse, BrowseConfig, KitSource};
use crate::fs::{FileSystem, FsConfig, LoadedKit, Nodes, Owner};

/// The content of a mount.
pub enum Content {
    /// One kit.
    Kit(Arc<LoadedKit>),
    /// Kits by path.
    ByPath(ByPath),
}

/// The kits by path of a mount.
pub struct ByPath {
    /// Finds tags, and loads kits.
    pub source: Box<dyn KitSource>,
    /// The settings, but for the owner and the settings of each kit, which are those of the mount.
    pub config: BrowseConfig,
}

impl From<Arc<LoadedKit>> for Content {
    fn from(kit: Arc<LoadedKit>) -> Self {
        Self::Kit(kit)
    }
}

impl Content {
    /// The nodes of the mount. Those of kits by path have their numbers in the records of open files.
    pub(super) fn nodes(
        self,
        opens: &OpenRecords,
        options: &MountOptions,
        fs: FsConfig,
    ) -> std::io::Result<Nodes> {
        let owner = options.files_owner.unwrap_or_else(owner);
        match self {
            Self::Kit(kit) => Ok(Arc::new(FileSystem::new(kit, owner, fs)).into()),
            Self::ByPath(ByPath { source, config }) => {
                let (records, base) = opens.places()?;
                let config = BrowseConfig { owner, fs, ..config };
                Ok(Browse::new(source, config, records, base)?.into())
            }
        }
    }
}

/// The user of this process, who owns the files of its mounts.
fn owner() -> Owner {
    Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() }
}
