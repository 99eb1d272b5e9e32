//! The one table from errors to errno.

use fuser::Errno;

use crate::fetch::FetchError;
use crate::fs::FsError;

/// What a program sees for an error. Exhaustive on purpose: a new error needs a decision here.
pub(super) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NoSuchInode(_) => Errno::ESTALE,
        FsError::NotFound => Errno::ENOENT,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NotASymlink | FsError::NotAFile => Errno::EINVAL,
        FsError::NoSuchOffset => Errno::ENXIO,
        FsError::NoSuchAttribute => Errno::NO_XATTR,
        FsError::Denied => Errno::EACCES,
        FsError::ReadOnly => Errno::EROFS,
        FsError::TimedOut(_) | FsError::Missing(_) => Errno::EIO,
        // Programs know EIO from a read and handle it; EACCES or ENOSPC from one they do not. The
        // reason is in the log.
        FsError::Fetch(
            FetchError::Source(_)
            | FetchError::Cache(_)
            | FetchError::Poisoned { .. }
            | FetchError::Malformed { .. }
            | FetchError::LargeWindow(_)
            | FetchError::Thrashing(_),
        ) => Errno::EIO,
    }
}
