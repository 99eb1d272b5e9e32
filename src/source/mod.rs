//! Bytes far away: one narrow trait for ranges of blobs, and who implements it.
//!
//! Behaviour (limits, counting, faults, resuming) comes from decorators over [`BlobSource`].
//! This room never sees the cache.

pub mod error;

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::oci::{BlobId, Digest, Selector};

pub use error::SourceError;

/// A source of blob bytes.
pub trait BlobSource: Send + Sync + 'static {
    /// Opens a stream over the bytes `range` (blob offsets, half-open, not empty, within
    /// `blob.size`) of `blob`.
    ///
    /// The stream's own [`BlobStream::range`] says what it will yield: it contains `range`, and is
    /// the whole blob where the other side does not serve ranges. It yields exactly that many
    /// bytes or ends with an error. Nothing is verified.
    fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>>;
}

/// Bytes of a blob as they arrive.
pub struct BlobStream {
    /// The bytes of the blob that `bytes` yields, in order, without a gap.
    pub range: Range<u64>,
    /// The bytes; pieces are never empty.
    pub bytes: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// A repository: manifests and tags beside the blobs.
pub trait Repository: BlobSource {
    /// Fetches a manifest: the digest of its bytes (computed from them, and equal to the selector
    /// where that is a digest) and the bytes, at most [`MANIFEST_LIMIT_BYTES`].
    ///
    /// `None` asks an OCI layout for its only manifest, and others for the tag `latest`.
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>>;

    /// Every tag, sorted.
    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>>;

    /// The repository as messages name it: `ghcr.io/org/model`, `oci:/srv/kits`.
    fn name(&self) -> String;
}

/// The largest manifest that is read. Registries refuse more than 4 MiB (distribution-spec,
/// "Pushing manifests").
pub const MANIFEST_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
