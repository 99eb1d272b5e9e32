//! Bytes far away: one narrow trait for ranges of blobs, and its implementations.
//!
//! Limits, counting and faults are decorators over [`BlobSource`].
//! This room never sees the cache.

pub mod admission;
mod blob_folder;
pub mod credentials;
pub mod decorators;
pub mod error;
pub mod image_index;
#[cfg(test)]
pub(crate) mod in_memory;
pub mod inline;
pub mod kit_storage;
pub mod mirrors;
pub mod objects;
pub mod oci_layout;
pub mod registry;
pub mod registry_rules;
pub mod s3;
pub mod sending;
pub mod sources;
pub mod urgency;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::oci::{BlobId, BlobOffset, Digest, Origin, Selector};

use admission::UserId;

pub use error::SourceError;
pub use objects::{ObjectHead, ObjectId, Objects};
pub use sources::Sources;
pub use urgency::{Priority, Traffic, Trail, Urgency};

/// A source of blob bytes.
pub trait BlobSource: Send + Sync + 'static {
    /// Opens a stream over the bytes `range` of `blob`: half-open, not empty, within
    /// `blob.size`.
    ///
    /// The stream yields [`BlobStream::range`], which contains `range`; without ranges at the other side, it is the
    /// whole blob. The stream yields exactly that many bytes, or ends with an error. The bytes are not verified. In
    /// a queue, more urgent requests come first.
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>>;

    /// Whether the bytes come over a network. Then a copy in the cache is worth its disk space.
    fn is_remote(&self) -> bool {
        true
    }

    /// The host of the requests; `None` for a source of this machine. A host that does not answer must not hold up
    /// requests to others.
    fn host(&self) -> Option<Arc<str>> {
        None
    }

    /// A name for the place and the options of a source. A layer needs one source of each name. `None` where no
    /// other source can be the same.
    fn place(&self) -> Option<String> {
        None
    }

    /// Notes that the last bytes were wrong. The source uses another address next, if it has several.
    fn distrust(&self) {}
}

/// Bytes of a blob as they arrive.
pub struct BlobStream {
    /// The bytes of the blob that `bytes` yields, in order, without a gap.
    pub range: Range<BlobOffset>,
    /// The bytes; pieces are never empty.
    pub bytes: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// A repository: manifests and tags beside the blobs.
pub trait Repository: BlobSource {
    /// Fetches a manifest or image index of at most [`MANIFEST_LIMIT_BYTES`]. Returns its computed digest and its
    /// bytes. The digest is equal to a selector that is a digest.
    ///
    /// `None` means the only manifest of an OCI layout, and the tag `latest` of other repositories.
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>>;

    /// Every tag, sorted.
    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>>;

    /// The repository as messages name it: `ghcr.io/org/model`, `oci:/srv/kits`.
    fn name(&self) -> String;
}

impl<S: BlobSource + ?Sized> BlobSource for Arc<S> {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        (**self).open(blob, range, urgency)
    }

    fn is_remote(&self) -> bool {
        (**self).is_remote()
    }

    fn host(&self) -> Option<Arc<str>> {
        (**self).host()
    }

    fn place(&self) -> Option<String> {
        (**self).place()
    }

    fn distrust(&self) {
        (**self).distrust();
    }
}

impl<S: Repository + ?Sized> Repository for Arc<S> {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        (**self).manifest(selector)
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        (**self).tags()
    }

    fn name(&self) -> String {
        (**self).name()
    }
}

/// The largest manifest that is read. Registries refuse more than 4 MiB (distribution-spec,
/// "Pushing manifests").
pub const MANIFEST_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// The copy of a registry's repository that kit itself has pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The storage.
    pub storage: kit_storage::KitStorage,
    /// Whether the storage comes before the registry.
    pub is_preferred: bool,
}

/// Opens the repository that an origin names. No I/O to the network happens yet.
pub trait Repositories: Send + Sync + 'static {
    /// The repository of `origin`.
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError>;

    /// The copy of a registry's repository that kit itself has pulled, if there is one.
    fn pulled(&self, _origin: &Origin) -> Option<Pulled> {
        None
    }

    /// The S3 store of objects, if there is one.
    fn objects(&self) -> Option<&dyn Objects> {
        None
    }

    /// The user whose credentials are used, if the cache has several users. A user gets a kit of the cache only
    /// with the registry's permission.
    fn user(&self) -> Option<UserId> {
        None
    }
}

/// Fetches all of a small blob, and checks its digest.
///
/// # Errors
/// Fails if the source fails, the blob is larger than `limit_bytes`, or its digest is wrong.
pub async fn read_blob(
    source: &dyn BlobSource,
    blob: BlobId,
    limit_bytes: u64,
    what: &str,
    place: &str,
) -> Result<Bytes, SourceError> {
    use futures_util::StreamExt;
    let protocol = |detail: String| SourceError::Protocol { place: place.to_owned(), detail };
    if blob.size > limit_bytes {
        let detail = format!("{what} has {} bytes, and {limit_bytes} are the limit", blob.size);
        return Err(protocol(detail));
    }
    let mut bytes = bytes::BytesMut::with_capacity(blob.size as usize);
    if blob.size > 0 {
        let mut stream = source.open(blob, blob.whole(), Urgency::opening()).await?;
        while let Some(piece) = stream.bytes.next().await {
            bytes.extend_from_slice(&piece?);
            if bytes.len() as u64 > blob.size {
                return Err(protocol(format!("{what} has more than its {} bytes", blob.size)));
            }
        }
    }
    let got = Digest::of(&bytes);
    if got != blob.digest {
        return Err(SourceError::DigestMismatch {
            what: what.to_owned(),
            place: place.to_owned(),
            expected: blob.digest,
            got,
        });
    }
    Ok(bytes.freeze())
}
