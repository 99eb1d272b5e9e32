//! Descriptors: what a manifest says of a blob (OCI image-spec, descriptor.md).

use std::collections::BTreeMap;

use super::Digest;

/// What a manifest says of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written; [`super::media_type`] gives it a meaning.
    pub media_type: String,
    /// The digest of the blob as stored.
    pub digest: Digest,
    /// The size of the blob as stored, in bytes.
    pub size: u64,
    /// Annotations, empty when the manifest has none.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The blob this descriptor names.
    pub fn blob(&self) -> BlobId {
        BlobId { digest: self.digest, size: self.size }
    }
}

/// A blob to fetch: its digest, and the size that bounds what a registry may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlobId {
    /// The digest of the blob as stored.
    pub digest: Digest,
    /// The size of the blob as stored, in bytes.
    pub size: u64,
}
