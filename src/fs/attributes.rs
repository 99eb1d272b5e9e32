//! The results of `stat` and `statfs`.

use crate::kit::NodeId;
use crate::layer::Mtime;

/// The number of an inode: the node's position in the tree, counted from 1.
///
/// The root has number 1, as FUSE requires. Every process that loads the kit gives the same numbers.
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
    /// The kind.
    pub kind: FileKind,
    /// The bytes of a file or of a link's target; 0 for a directory.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// The number of links: 1, or 2 + subdirectories for a directory.
    pub links: u32,
    /// The modification time. Access and change time are the same, because nothing ever changes.
    pub mtime: Mtime,
    /// The bytes of the file without the holes of a sparse file.
    pub stored_bytes: u64,
    /// The owner.
    pub owner: Owner,
}

impl Attributes {
    /// The unit of `st_blocks`.
    pub const BLOCK_BYTES: u32 = 512;

    /// The best size of a read (`st_blksize`): one FUSE request. `cp`, `cat` and Python use it.
    pub const PREFERRED_READ_BYTES: u32 = 1024 * 1024;

    /// The blocks of [`Self::BLOCK_BYTES`] that a copy needs, in the cache or not.
    ///
    /// A hole of a sparse file needs none. `cp` and `tar` compare this number with the size to find
    /// out whether a file has holes.
    pub fn blocks(&self) -> u64 {
        self.stored_bytes.div_ceil(u64::from(Self::BLOCK_BYTES))
    }
}

/// The result of `statfs` for a kit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// The sum of all file sizes in bytes, without holes.
    pub file_bytes: u64,
    /// The number of files, directories and links.
    pub inodes: u64,
}

impl Totals {
    /// The longest name (`NAME_MAX`). Loading refuses a kit with a longer one.
    pub const NAME_BYTES: u32 = 255;

    /// The blocks of [`Attributes::BLOCK_BYTES`] of all files together.
    pub fn blocks(&self) -> u64 {
        self.file_bytes.div_ceil(u64::from(Attributes::BLOCK_BYTES))
    }
}
