//! What can go wrong with the cache.

use std::path::{Path, PathBuf};

use crate::oci::Digest;

/// What can go wrong with the cache. Messages name the folder or file and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process holds the folder.
    #[error("the cache folder {} is in use by process {pid}, which serves nobody else: wait for its end, or choose another folder with --cache-dir; with `kitfs daemon start` beforehand, commands share a folder", folder.display())]
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
    /// The cache is full and nothing can be evicted.
    #[error(
        "the cache is full: {capacity_bytes} bytes are allowed and all are in use: raise --cache-size"
    )]
    Full {
        /// The limit in bytes.
        capacity_bytes: u64,
    },
    /// Too little space is left on the cache's file system.
    #[error("the file system of {} is full: {available_bytes} bytes are left and --keep-free is {keep_free_bytes}", folder.display())]
    DiskFull {
        /// The cache folder.
        folder: PathBuf,
        /// What is left.
        available_bytes: u64,
        /// What is to be left.
        keep_free_bytes: u64,
    },
    /// The layer cannot be removed now.
    #[error("layer {0} is in use")]
    InUse(Digest),
    /// The bytes of the layer are not what its digest says; none of them is kept or served.
    #[error(
        "layer {layer} is poisoned: its bytes have digest {got}; repair the registry, then run \
         `kitfs cache rm {layer}`"
    )]
    Poisoned {
        /// The digest in the manifest.
        layer: Digest,
        /// The digest of the bytes that came.
        got: Digest,
    },
    /// A chunk of a confirmed layer was fetched again, and other bytes came than those confirmed.
    #[error(
        "layer {layer} was confirmed, but chunk {chunk} now arrives with other bytes: the registry \
         or something on the way changed them"
    )]
    Changed {
        /// The digest in the manifest.
        layer: Digest,
        /// The number of the chunk.
        chunk: u32,
    },
    /// The contents do not fit the layer.
    #[error(transparent)]
    Layout(#[from] crate::layer::layout::LayoutError),
}

impl CacheError {
    /// Whether a file or folder is not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound)
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
