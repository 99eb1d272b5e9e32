//! The nodes of a mount: those of one kit, or of many kits by path.
//!
//! ```text
//! number of a node --find--> a node of a kit in memory    --> FileSystem answers
//!                            a node of a kit that sleeps  --wake--> FileSystem answers
//!                            a place of a browse mount    --> Browse answers
//! ```

use std::sync::Arc;

use super::attributes::{Attributes, Ino, Totals};
use super::browse::{Browse, Place, Wake};
use super::error::FsError;
use super::file_system::{DirectoryEntry, FileSystem};

/// The bits of a number that name a node in its kit.
const NODE_BITS: u32 = 32;

/// The nodes of a mount.
#[derive(Clone)]
pub enum Nodes {
    /// One kit is mounted.
    Kit(KitNodes),
    /// Kits are reached by path.
    ByPath(Arc<Browse>),
}

/// The nodes of one kit, by the numbers that they have in the mount.
#[derive(Clone)]
pub struct KitNodes {
    file_system: Arc<FileSystem>,
    within: Option<Within>,
}

/// The surroundings of a kit in a browse mount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Within {
    /// The number of the kit's root.
    pub(super) root: Attributes,
    /// The number of the folder above the root, for requests for the root.
    pub(super) parent: Ino,
}

/// The thing that a number stands for.
pub enum Found {
    /// A node of a kit in memory, with its number in the kit.
    Kit(KitNodes, Ino),
    /// A node of a kit that is not in memory.
    Asleep {
        /// Loads the kit.
        wake: Wake,
        /// The number of the node in the kit.
        ino: Ino,
        /// The attributes of the kit's root, if that is the node. They are known without the kit.
        root: Option<Attributes>,
    },
    /// A place of a browse mount.
    Place(Place),
    /// No node or place has the number.
    Gone,
}

impl From<Arc<FileSystem>> for Nodes {
    fn from(file_system: Arc<FileSystem>) -> Self {
        Self::Kit(KitNodes { file_system, within: None })
    }
}

impl From<Arc<Browse>> for Nodes {
    fn from(browse: Arc<Browse>) -> Self {
        Self::ByPath(browse)
    }
}

impl Nodes {
    /// The thing that a number stands for.
    pub fn find(&self, ino: Ino) -> Found {
        match self {
            Self::Kit(kit) => Found::Kit(kit.clone(), ino),
            Self::ByPath(browse) => browse.find(ino),
        }
    }

    /// The file system of the one kit.
    pub fn single(&self) -> Option<&Arc<FileSystem>> {
        match self {
            Self::Kit(kit) => Some(&kit.file_system),
            Self::ByPath(_) => None,
        }
    }

    /// The kits by path.
    pub fn by_path(&self) -> Option<&Arc<Browse>> {
        match self {
            Self::Kit(_) => None,
            Self::ByPath(browse) => Some(browse),
        }
    }

    /// The name of the mount in messages.
    pub fn name(&self) -> String {
        match self {
            Self::Kit(kit) => kit.file_system.kit().origin.to_string(),
            Self::ByPath(_) => "kits by path".to_owned(),
        }
    }

    /// The path of a node from the root, for messages.
    pub fn path(&self, ino: Ino) -> String {
        match self {
            Self::Kit(kit) => kit.file_system.path(ino),
            Self::ByPath(browse) => browse.path(ino),
        }
    }

    /// The totals for `statfs`.
    pub fn totals(&self) -> Totals {
        match self {
            Self::Kit(kit) => kit.file_system.totals(),
            Self::ByPath(browse) => browse.totals(),
        }
    }

    /// The kits in memory.
    pub fn kits(&self) -> Vec<KitNodes> {
        match self {
            Self::Kit(kit) => vec![kit.clone()],
            Self::ByPath(browse) => browse.kits(),
        }
    }

    /// Counts `lookups` that the kernel has made of a kit's node, or of a place. Only a browse mount counts.
    pub fn count(&self, ino: Ino, lookups: u64) {
        if let Self::ByPath(browse) = self {
            browse.count(ino, lookups);
        }
    }

    /// The kernel has dropped nodes from memory.
    pub fn forget(&self, forgotten: impl Iterator<Item = (Ino, u64)>) {
        if let Self::ByPath(browse) = self {
            browse.forget(forgotten);
        }
    }
}

impl KitNodes {
    pub(super) fn within(file_system: Arc<FileSystem>, within: Within) -> Self {
        Self { file_system, within: Some(within) }
    }

    /// The file system, whose numbers are those in the kit.
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.file_system
    }

    /// The number in the mount of a node of the kit.
    pub fn outer(&self, ino: Ino) -> Ino {
        match &self.within {
            None => ino,
            Some(within) => Ino(within.root.ino.0 + (ino.0 - 1)),
        }
    }

    fn seen(&self, attributes: Attributes) -> Attributes {
        match &self.within {
            Some(within) if attributes.ino == Ino::ROOT => within.root,
            _ => Attributes { ino: self.outer(attributes.ino), ..attributes },
        }
    }

    /// As [`FileSystem::lookup`]; `parent` is the number in the kit.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attributes, FsError> {
        Ok(self.seen(self.file_system.lookup(parent, name)?))
    }

    /// As [`FileSystem::attributes`]; `ino` is the number in the kit.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, FsError> {
        Ok(self.seen(self.file_system.attributes(ino)?))
    }

    /// As [`FileSystem::entries`]; `ino` is the number in the kit. The attributes of `.` and `..` are those of
    /// directories of the kit.
    pub fn entries(
        &self,
        ino: Ino,
        offset: u64,
    ) -> Result<impl Iterator<Item = (DirectoryEntry<'_>, Attributes)>, FsError> {
        let entries = self.file_system.entries(ino, offset)?;
        let entries = entries.map(move |entry| {
            let attributes = self.attributes(entry.ino)?;
            let around = self.within.filter(|_| ino == Ino::ROOT && entry.name == b"..");
            let seen = around.map_or(attributes.ino, |within| within.parent);
            Ok((DirectoryEntry { ino: seen, ..entry }, attributes))
        });
        Ok(entries.map_while(Result::<_, FsError>::ok))
    }
}

/// The number of a kit's first node, or of a place.
pub(super) fn number_of_slot(slot: u32) -> Ino {
    Ino(u64::from(slot) << NODE_BITS)
}

/// The slot of a number, and the number of the node in the kit.
pub(super) fn split(ino: Ino) -> (u32, Ino) {
    let node = ino.0 & u64::from(u32::MAX);
    ((ino.0 >> NODE_BITS) as u32, Ino(node + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_names_one_slot_and_one_node(slot in 1u32..65_536, node: u32) {
            let ino = Ino(number_of_slot(slot).0 + u64::from(node));
            prop_assert_eq!(split(ino), (slot, Ino(u64::from(node) + 1)));
            prop_assert_ne!(ino, Ino::ROOT);
        }
    }
}
