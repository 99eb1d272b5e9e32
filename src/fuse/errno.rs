//! The only table from errors to errno.

use rustix::io::Errno;

use crate::fetch::{FetchError, GaveUp};
use crate::fs::{FsError, Unopened};
use crate::observe::reads::ReadFailure;

/// The errno of an error. The match is exhaustive, so a new error needs a decision here.
pub(super) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NoSuchInode(_) => Errno::STALE,
        FsError::NotFound => Errno::NOENT,
        FsError::NameTooLong => Errno::NAMETOOLONG,
        FsError::NotADirectory => Errno::NOTDIR,
        FsError::IsADirectory => Errno::ISDIR,
        FsError::NotASymlink | FsError::NotAFile => Errno::INVAL,
        FsError::NoSuchOffset => Errno::NXIO,
        FsError::NoSuchAttribute => Errno::NODATA,
        FsError::Denied => Errno::ACCESS,
        FsError::ReadOnly => Errno::ROFS,
        FsError::Unopened { why, .. } => match why {
            Unopened::NotThere => Errno::NOENT,
            Unopened::Refused => Errno::ACCESS,
            Unopened::Late => Errno::TIMEDOUT,
            Unopened::Changed => Errno::STALE,
            Unopened::Unreachable | Unopened::Bad => Errno::IO,
        },
        FsError::TooManyPlaces => Errno::NFILE,
        FsError::GaveUp(GaveUp::Deadline { .. }) | FsError::Missing(_) => Errno::IO,
        FsError::Fetch(error) | FsError::GaveUp(GaveUp::Failed(error)) => errno_of_fetch(error),
    }
}

/// The reason of a failed read, for the metrics.
pub(super) fn read_failure(error: &FsError) -> ReadFailure {
    match error {
        FsError::GaveUp(GaveUp::Deadline { .. }) => ReadFailure::Deadline,
        FsError::Fetch(error) | FsError::GaveUp(GaveUp::Failed(error)) => match error {
            FetchError::Source(_) => ReadFailure::Source,
            FetchError::Cache(_) | FetchError::NotKept { .. } | FetchError::Thrashing(_) => {
                ReadFailure::Cache
            }
            FetchError::Poisoned { .. }
            | FetchError::Malformed { .. }
            | FetchError::LargeWindow(_) => ReadFailure::Content,
        },
        FsError::Missing(_) | FsError::Unopened { .. } => ReadFailure::Source,
        _ => ReadFailure::Other,
    }
}

/// Programs expect EIO from a read, but not EACCES or ENOSPC. The log has the reason.
fn errno_of_fetch(error: &FetchError) -> Errno {
    match error {
        FetchError::Source(_)
        | FetchError::Cache(_)
        | FetchError::Poisoned { .. }
        | FetchError::Malformed { .. }
        | FetchError::NotKept { .. }
        | FetchError::LargeWindow(_)
        | FetchError::Thrashing(_) => Errno::IO,
    }
}
