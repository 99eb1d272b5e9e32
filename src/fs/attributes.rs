//! The results of `stat` and `statfs`.

use crate::kit::NodeId;
use crate::layer::Mtime;

/// The number of an inode: the node's position in the tree, counted from 1. So the root has the
/// number that FUSE wants (1), and every process that loads the kit gives the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory.
    pub const ROOT: Self = Self(1);

    pub(super) fn of(node: NodeId) -> Self {
        Self(u64::from(node.0) + 1)
    }
}

/// The owner of every file of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// The kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// The result of `stat` for an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The number.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Bytes of a file, of a link's target; 0 for directories.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Links: 1, and for a directory 2 + its subdirectories.
    pub links: u32,
    /// The modification time, and the access and change time too: nothing ever changes.
    pub mtime: Mtime,
    /// Bytes that are stored, and not holes of a sparse file.
    pub stored_bytes: u64,
    /// Its owner.
    pub owner: Owner,
}

impl Attributes {
    /// The unit of `st_blocks`.
    pub const BLOCK_BYTES: u32 = 512;

    /// The best size of a read: one FUSE request. `cp`, `cat` and Python read in this unit.
    pub const PREFERRED_READ_BYTES: u32 = 1024 * 1024;

    /// Blocks of [`Self::BLOCK_BYTES`] that a copy needs, whether or not the bytes are in the
    /// cache. Holes of a sparse file need none: `cp` and `tar` find out by this number that a file
    /// has holes.
    pub fn blocks(&self) -> u64 {
        self.stored_bytes.div_ceil(u64::from(Self::BLOCK_BYTES))
    }
}

/// The result of `statfs` for a kit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The sum of all file sizes in bytes, holes left out.
    pub file_bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

impl Totals {
    /// The longest name (`NAME_MAX`); longer ones are refused when a kit is loaded.
    pub const NAME_BYTES: u32 = 255;

    /// Blocks of [`Attributes::BLOCK_BYTES`] that all files have together.
    pub fn blocks(&self) -> u64 {
        self.file_bytes.div_ceil(u64::from(Attributes::BLOCK_BYTES))
    }
}
