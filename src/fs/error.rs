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
    /// The content is a remote data set that was not available when the kit was loaded.
    #[error("{0}; mount the kit again once that is mended")]
    Missing(String),
    /// A kit by path cannot be opened.
    #[error("{message}")]
    Unopened {
        /// The kind of the failure.
        why: Unopened,
        /// The kit and the reason.
        message: String,
    },
    /// The kernel knows too many kits and folders of a browse mount, or there is no memory for one more record.
    #[error("too many kits and folders are in use below this mount")]
    TooManyPlaces,
    /// The bytes did not come by the deadline, or cannot come at all.
    #[error(transparent)]
    GaveUp(#[from] GaveUp),
    /// The bytes in the cache cannot be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Why a kit by path cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// The registry has no such tag, digest or repository, or the name leads to no single kit.
    NotThere,
    /// The registry refuses this user.
    Refused,
    /// The registry cannot be reached, or fails.
    Unreachable,
    /// The registry did not answer by the deadline of reads.
    Late,
    /// The kit's tree is another one than before, because a remote data set has moved.
    Changed,
    /// The manifest is not one of a kit, or bytes are wrong.
    Bad,
}

impl Unopened {
    /// The error with this message.
    pub fn error(self, message: String) -> FsError {
        FsError::Unopened { why: self, message }
    }
}
