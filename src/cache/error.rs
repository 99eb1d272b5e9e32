//! Errors of the cache.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::observe::shown_bytes;
use crate::oci::Digest;

/// An error of the cache. Messages name the folder or file and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process holds the folder.
    #[error(
        "process {pid} holds the cache folder {} and does not accept commands: wait for its end, or \
         choose another folder with --cache-dir; after `kitfs daemon start`, commands share a folder",
        folder.display()
    )]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The process, as it wrote itself into the lock file; 0 where that cannot be read.
        pid: u32,
    },
    /// A file of the cache cannot be read or written.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: std::io::Error,
    },
    /// The cache may not grow, and nothing of it can be evicted.
    #[error(
        "the cache may hold {} (--cache-size), and nothing of it can be evicted now",
        shown_bytes(*capacity_bytes)
    )]
    Full {
        /// The limit in bytes.
        capacity_bytes: u64,
    },
    /// Too little space is left on the cache's file system, and nothing of the cache can be evicted.
    #[error(
        "the file system of {} has {} left, and --keep-free is {}",
        folder.display(), shown_bytes(*available_bytes), shown_bytes(*keep_free_bytes)
    )]
    DiskFull {
        /// The cache folder.
        folder: PathBuf,
        /// Bytes that are left.
        available_bytes: u64,
        /// Bytes that are to be left.
        keep_free_bytes: u64,
    },
    /// The layer cannot be removed now, or its table of contents is being read.
    #[error("layer {0} is in use")]
    InUse(Digest),
    /// The bytes of the layer are not what its digest says; none of them is kept or served.
    #[error(
        "layer {} is poisoned: {}; repair it where it came from, then run `kitfs cache rm {layer}`",
        layer.short(), why_poisoned(*layer, *got)
    )]
    Poisoned {
        /// The digest in the manifest.
        layer: Digest,
        /// The digest of the bytes that came.
        got: Digest,
    },
    /// A chunk of a confirmed layer was fetched again, and does not match the confirmed bytes.
    #[error(
        "layer {} was confirmed, but chunk {chunk} now arrives with other bytes: the registry or \
         something on the way changed them", layer.short()
    )]
    Changed {
        /// The digest in the manifest.
        layer: Digest,
        /// The number of the chunk.
        chunk: u32,
    },
    /// Bytes were given to a chunk that do not follow the bytes before them. The caller's mistake.
    #[error(
        "bytes {start}..{end} do not follow the {written} that chunk {chunk} of layer {layer} has"
    )]
    Gap {
        /// The digest in the manifest.
        layer: Digest,
        /// The number of the chunk.
        chunk: u32,
        /// Bytes of the chunk that are there.
        written: u32,
        /// The offset of the new bytes in the chunk.
        start: u64,
        /// The offset of their end.
        end: u64,
    },
    /// The manifest gives a blob another size than the blob has.
    #[error("layer {} has {known} bytes, and the manifest says {said}", layer.short())]
    WrongSize {
        /// The digest in the manifest.
        layer: Digest,
        /// The size that the cache knows.
        known: u64,
        /// The size that the manifest gives.
        said: u64,
    },
    /// The contents do not fit the layer.
    #[error(transparent)]
    Layout(#[from] crate::layer::layout::LayoutError),
}

impl CacheError {
    /// Whether the cache cannot keep something, for want of room or because of its disk. The bytes themselves may
    /// be right.
    pub fn is_about_keeping(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Full { .. } | Self::DiskFull { .. } => true,
            Self::Held { .. }
            | Self::InUse(_)
            | Self::Poisoned { .. }
            | Self::Changed { .. }
            | Self::Gap { .. }
            | Self::WrongSize { .. }
            | Self::Layout(_) => false,
        }
    }

    /// Whether a file or folder is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == ErrorKind::NotFound)
    }

    /// Whether the file system has no room, or this user's quota is used up. Evicting may help.
    pub(super) fn is_out_of_room(&self) -> bool {
        let Self::Io { error, .. } = self else { return false };
        matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the disk as a whole fails, so that a pause is better than the next attempt.
    pub(super) fn is_about_the_disk(&self) -> bool {
        let Self::Io { error, .. } = self else { return false };
        let errno = Errno::from_io_error(error);
        let of_disk = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO, Errno::STALE];
        errno.is_some_and(|errno| of_disk.contains(&errno))
    }

    /// Whether a disk or file system says that it has lost what it was given. Once a hole is made there,
    /// the next bytes go to another place on it.
    pub(super) fn is_lost_on_disk(&self) -> bool {
        let Self::Io { error, .. } = self else { return false };
        matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::UCLEAN))
    }

    /// Whether this process or the machine lacks descriptors or memory: the file is fine.
    pub(super) fn is_about_the_process(&self) -> bool {
        let Self::Io { error, .. } = self else { return false };
        let errno = Errno::from_io_error(error);
        errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE, Errno::NOMEM].contains(&errno))
    }

    /// Turns the error of a system call on `path` into one that says what was tried.
    pub(super) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> CacheError {
        move |error| Self::Io { action, path: path.to_owned(), error }
    }

    /// An error of kitfs' own about a file.
    pub(super) fn other(action: &'static str, path: &Path, why: impl Into<String>) -> Self {
        Self::Io { action, path: path.to_owned(), error: std::io::Error::other(why.into()) }
    }
}

/// The fault of a poisoned layer, as a part of a sentence. `got` is the digest that its bytes have.
pub fn why_poisoned(layer: Digest, got: Digest) -> String {
    match got == layer {
        true => "its table of contents does not match its bytes, so unmount the kits that use it"
            .to_owned(),
        false => format!("its bytes have the digest {}", got.short()),
    }
}
