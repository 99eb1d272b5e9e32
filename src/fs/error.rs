//! The errors of requests to a loaded kit.

use crate::fetch::{FetchError, GaveUp};

/// An error of a request to the file system. Each variant is one errno (`fuse/errno.rs`).
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// The inode number is not one of this kit.
    #[error("inode {0} is not in the kit")]
    NoSuchInode(u64),
    /// The directory has no entry of that name.
    #[error("no such file or directory")]
    NotFound,
    /// The name has more than 255 bytes.
    #[error("file name too long")]
    NameTooLong,
    /// A directory is needed.
    #[error("not a directory")]
    NotADirectory,
    /// A file is needed.
    #[error("it is a directory")]
    IsADirectory,
    /// A symbolic link is needed.
    #[error("not a symbolic link")]
    NotASymlink,
    /// A regular file is needed.
    #[error("not a regular file")]
    NotAFile,
    /// Only a hole follows, or the file ends (lseek(2)).
    #[error("no data or hole from there on")]
    NoSuchOffset,
    /// The inode has no extended attribute of that name.
    #[error("no such extended attribute")]
    NoSuchAttribute,
    /// The mode forbids the access.
    #[error("permission denied")]
    Denied,
    /// Kits are never written.
    #[error("kits are read-only")]
    ReadOnly,
    /// The content is a remote data set, which was not available when the kit was loaded.
    #[error("{0}; mount the kit again once that is mended")]
    Missing(String),
    /// The bytes did not come by the deadline, or cannot come at all.
    #[error(transparent)]
    GaveUp(#[from] GaveUp),
    /// The bytes in the cache cannot be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}
