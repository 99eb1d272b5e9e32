//! Objects of S3 stores, which a kit names by their place and ETag.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{BlobSource, SourceError};
use crate::oci::{BlobId, ObjectLocation};

/// An object as a kit names it: its place, and its ETag when the kit was packed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// Its place.
    pub location: ObjectLocation,
    /// Its ETag, without quotes. An object with another ETag is another object.
    pub etag: String,
}

/// The facts about an object that a store sends without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectHead {
    /// Its size in bytes.
    pub size: u64,
    /// Its last modification, in seconds since 1970, if the store sends it.
    pub modified_seconds: Option<i64>,
}

/// An S3 store.
pub trait Objects: Send + Sync {
    /// The store's name. Store, place and ETag together identify bytes. So stores whose buckets may differ have
    /// different names.
    fn store(&self) -> BoxFuture<'_, Result<String, SourceError>>;

    /// Requests an object's size, and compares its ETag.
    ///
    /// # Errors
    /// [`SourceError::Changed`] where the object has another ETag.
    fn head<'a>(&'a self, object: &'a ObjectId) -> BoxFuture<'a, Result<ObjectHead, SourceError>>;

    /// A source of the object's bytes under the name `blob`. No I/O happens yet. Each of its streams is of the
    /// object with this ETag, or fails.
    fn source(&self, object: &ObjectId, blob: BlobId) -> Arc<dyn BlobSource>;
}
