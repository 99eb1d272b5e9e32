//! Errors between a wanted range and its bytes.

use std::sync::Arc;

use crate::cache::{CacheError, why_poisoned};
use crate::layer::decode::DecodeError;
use crate::oci::{BlobId, Digest};
use crate::source::SourceError;

/// Why a range of a layer could not be read. Cloned to every waiter of one transfer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The source could not give the bytes.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The cache could not take or give the bytes.
    #[error(transparent)]
    Cache(Arc<CacheError>),
    /// All bytes of the blob arrived, and their digest is not the one in the manifest.
    #[error(
        "layer {} is poisoned: {}, and nothing of it is served. Repair it where it came from, run `kitfs \
         cache rm {expected}`, and try again", expected.short(), why_poisoned(*expected, *got)
    )]
    Poisoned {
        /// The digest in the manifest.
        expected: Digest,
        /// The digest of the bytes that arrived.
        got: Digest,
    },
    /// The content of a layer is not what its media type says.
    #[error("layer {} cannot be read: {detail}", layer.short())]
    Malformed {
        /// The blob's digest.
        layer: Digest,
        /// The fault, with entry and offset.
        detail: String,
    },
    /// A zstd frame needs more memory than was reserved. The caller tries again with more, if there is more.
    #[error(
        "a zstd frame of layer {} needs up to 128 MiB, more than there is: raise --memory to 256MiB",
        .0.short()
    )]
    LargeWindow(Digest),
    /// Bytes were fetched to be kept in the cache, which cannot keep them.
    #[error("layer {} cannot be kept in the cache: {why}", layer.short())]
    NotKept {
        /// The blob's digest.
        layer: Digest,
        /// Why not.
        why: String,
    },
    /// Bytes were evicted before they could be read, many times in a row.
    #[error(
        "layer {} kept losing the bytes it fetched: the cache is too small for its readers",
        .0.short()
    )]
    Thrashing(Digest),
}

impl FetchError {
    /// An error about the content of `blob`.
    pub(super) fn malformed(blob: BlobId, error: impl std::fmt::Display) -> Self {
        Self::Malformed { layer: blob.digest, detail: error.to_string() }
    }

    /// A decoder's error as one about `blob`.
    pub(super) fn undecodable(blob: BlobId, error: DecodeError) -> Self {
        match error {
            DecodeError::LargeWindow { .. } => Self::LargeWindow(blob.digest),
            error => Self::malformed(blob, error),
        }
    }

    /// Whether a source sent bytes that differ from those of a confirmed layer. Another source may have the right
    /// bytes.
    pub(super) fn is_about_other_bytes(&self) -> bool {
        matches!(self, Self::Cache(error) if matches!(**error, CacheError::Changed { .. }))
    }

    /// Whether the same read may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Source(error) => error.is_retryable(),
            Self::Thrashing(_) => true,
            Self::Cache(_)
            | Self::Poisoned { .. }
            | Self::Malformed { .. }
            | Self::NotKept { .. }
            | Self::LargeWindow(_) => false,
        }
    }
}

impl From<CacheError> for FetchError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Poisoned { layer, got } => Self::Poisoned { expected: layer, got },
            error => Self::Cache(Arc::new(error)),
        }
    }
}
