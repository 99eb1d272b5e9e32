//! Sends kits: blobs and manifests from one place to another.
//!
//! ```text
//! Repository (any source) --Sender--> plan: manifests, blobs --> Destination
//!                              |                                   - registry      (registry/upload)
//!                              '-- Content: read, hashed, again    - OCI layout    (layout)
//!                                                                  - kit's storage (storage)
//! ```
//!
//! Invariants:
//! - A manifest is put after its blobs, and after the manifests that it names. So an incomplete kit is never
//!   visible, even if the sender dies.
//! - A destination keeps a blob only after all bytes were compared with the digest.
//! - A blob is streamed. Memory is bounded by the number of blobs that are sent at once.
//! - A tag with another digest moves only when the caller says so.
//!
//! Design: docs/design/019-pushing.md.

mod content;
mod error;
mod layout;
mod layout_index;
mod manifest;
mod sender;
mod storage;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;

use crate::oci::{BlobId, Digest, Reference};
use crate::source::SourceError;
use crate::source::blob_folder::off_the_runtime;

pub use content::{Content, Progress};
pub use error::SendError;
pub use layout::OciLayoutWriter;
pub use manifest::SentManifest;
pub use sender::{Sender, Sent, tag};
pub use storage::KitStorageDestination;

/// A place that takes blobs and manifests: one repository of a registry or of kit's storage, or a folder.
pub trait Destination: Send + Sync + 'static {
    /// The destination as messages name it.
    fn name(&self) -> String;

    /// The manifest that a tag names now.
    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Digest>, SendError>>;

    /// Whether a manifest is there.
    fn has_manifest(&self, digest: Digest) -> BoxFuture<'_, Result<bool, SendError>>;

    /// Whether a blob is there, with its size.
    fn has_blob(&self, blob: BlobId) -> BoxFuture<'_, Result<bool, SendError>>;

    /// Puts a blob there. An incomplete blob is never visible.
    ///
    /// `others` are repositories that have the blob. A registry may take the blob from one of its own repositories,
    /// without a byte being sent.
    ///
    /// # Errors
    /// Also [`super::SourceError::DigestMismatch`] where the bytes of the source have another digest. The
    /// destination then has no part of the blob.
    fn put_blob<'a>(
        &'a self,
        content: &'a Arc<Content>,
        others: &'a [Reference],
    ) -> BoxFuture<'a, Result<Put, SendError>>;

    /// Puts a manifest there, and points a tag at it.
    ///
    /// # Errors
    /// [`SendError::TagExists`] where the tag now has a digest that `replaces` does not allow. Registries have no
    /// request for such a check, so they do not fail here.
    fn put_manifest<'a>(
        &'a self,
        manifest: &'a SentManifest,
        tag: Option<&'a str>,
        replaces: Replaces,
    ) -> BoxFuture<'a, Result<(), SendError>>;
}

/// How a blob got to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Its bytes were sent.
    Sent,
    /// The registry took it from another repository of its own.
    Mounted,
}

/// The digests that a tag may have before it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaces {
    /// Any.
    Anything,
    /// None, or the digest of the manifest itself.
    Nothing,
}

impl Replaces {
    /// Checks that a tag of `place` may move from the manifest `there` to `sent`.
    ///
    /// # Errors
    /// [`SendError::TagExists`] where it may not.
    fn check(
        self,
        place: &str,
        tag: &str,
        there: Option<Digest>,
        sent: Digest,
    ) -> Result<(), SendError> {
        match (self, there) {
            (Self::Nothing, Some(there)) if there != sent => {
                let (place, tag) = (place.to_owned(), tag.to_owned());
                Err(SendError::TagExists { place, tag, there, sent })
            }
            (Self::Nothing | Self::Anything, _) => Ok(()),
        }
    }
}

/// Whether a manifest is there, by the answer to a request for it. A damaged one counts as missing, so it is
/// replaced.
fn is_intact(found: Result<(Digest, Bytes), SourceError>) -> Result<bool, SendError> {
    match found {
        Ok(_) => Ok(true),
        Err(SourceError::NotFound { .. } | SourceError::DigestMismatch { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes a content piece by piece to a file of this machine.
async fn write<F: Send + 'static>(
    content: &Arc<Content>,
    mut file: F,
    write: fn(F, &[u8]) -> Result<F, SendError>,
) -> Result<F, SendError> {
    let mut bytes = content.read(content.blob().whole());
    while let Some(piece) = bytes.next().await {
        let piece = piece?;
        file = blocking(move || write(file, &piece)).await?;
    }
    Ok(file)
}

/// Runs blocking work outside the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SendError> + Send + 'static,
) -> Result<T, SendError> {
    off_the_runtime(move || Ok(work())).await?
}
