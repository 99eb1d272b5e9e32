//! Objects of S3 stores as layers: their digest in the cache, and the record of an object.
//!
//! The name of a registry's blob is its sha256. An object has no such name. So the cache keeps it under the sha256
//! of its *identity*: store, bucket, key, version, ETag and size, as JSON. An object with another ETag is thus
//! another layer. Every answer of the store is compared with the ETag. No digest ever confirms the bytes, so such a
//! layer stays unconfirmed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::waiting::with_cache;
use crate::cache::Cache;
use crate::oci::{BlobId, Digest};
use crate::source::admission::UserId;
use crate::source::{BlobSource, ObjectHead, ObjectId, Objects, SourceError};

/// The largest object that is read: the largest file of ext4, as for a kit's blobs.
const OBJECT_LIMIT_BYTES: u64 = 16 << 40;

/// An object whose size is known.
pub(super) struct KnownObject {
    /// The name of its layer, and its size.
    pub(super) blob: BlobId,
    pub(super) modified_seconds: Option<i64>,
    pub(super) source: Arc<dyn BlobSource>,
}

/// The identity of an object.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    store: String,
    bucket: String,
    key: String,
    version: Option<String>,
    etag: String,
    size: u64,
}

/// The document that the cache keeps of an object.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    identity: Identity,
    modified_seconds: Option<i64>,
}

impl Identity {
    fn new(store: String, object: &ObjectId, size: u64) -> Self {
        let location = &object.location;
        Self {
            store,
            bucket: location.bucket().to_owned(),
            key: location.key().to_owned(),
            version: location.version().map(str::to_owned),
            etag: object.etag.clone(),
            size,
        }
    }

    fn digest(&self) -> Digest {
        Digest::of(&json(self))
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers are JSON")
}

/// Finds an object's size. The cache has it from an earlier request, because an object with an ETag never changes.
/// Else it makes a request to the store.
///
/// In a cache of several users it makes a request each time, with the credentials of `user`, because the bytes may
/// be here for another user only. While the store is unreachable, its last answer to this user counts.
pub(super) async fn find(
    cache: &Arc<Cache>,
    objects: &dyn Objects,
    object: &ObjectId,
    user: Option<UserId>,
) -> Result<KnownObject, SourceError> {
    let store = objects.store().await?;
    let mut name = format!("{} at {store} with ETag {}", object.location, object.etag);
    if let Some(UserId(user)) = user {
        name = format!("{name} for user {user}");
    }
    let kept = {
        let (name, store, object) = (name.clone(), store.clone(), object.clone());
        with_cache(cache, move |cache| recalled(cache, &name, &store, &object)).await
    };
    let record = match kept {
        Some(record) if user.is_none() => record,
        kept => match (objects.head(object).await, kept) {
            (Err(error), Some(record)) if error.is_retryable() => record,
            (head, _) => {
                let ObjectHead { size, modified_seconds } = head?;
                let identity = Identity::new(store, object, size);
                let record = Record { identity, modified_seconds };
                with_cache(cache, move |cache| {
                    remember(cache, &name, &record);
                    record
                })
                .await
            }
        },
    };
    let size = record.identity.size;
    if size > OBJECT_LIMIT_BYTES {
        return Err(SourceError::Protocol {
            place: object.location.to_string(),
            detail: format!("it has {size} bytes, and kitfs reads at most 16 TiB"),
        });
    }
    let blob = BlobId { digest: record.identity.digest(), size };
    let source = objects.source(object, blob);
    Ok(KnownObject { blob, modified_seconds: record.modified_seconds, source })
}

fn recalled(cache: &Arc<Cache>, name: &str, store: &str, object: &ObjectId) -> Option<Record> {
    let record: Record = serde_json::from_slice(&cache.document(cache.recall(name)?)?).ok()?;
    let expected = Identity::new(store.to_owned(), object, record.identity.size);
    (record.identity == expected).then_some(record)
}

/// Keeps the answer of a store. Without it, the next load makes the request again.
fn remember(cache: &Arc<Cache>, name: &str, record: &Record) {
    let document = json(record);
    let digest = Digest::of(&document);
    let kept = cache.put_document(digest, &document).and_then(|()| cache.remember(name, digest));
    if let Err(error) = kept {
        tracing::warn!(%error, object = name, "the size of an object is not kept in the cache");
    }
}
