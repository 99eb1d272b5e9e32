//! The layers in the cache: `kitfs cache`.

use serde::{Deserialize, Serialize};

use super::KitState;
use crate::control::{NoEvent, Operation};

impl Operation for CacheRequest {
    const NAME: &'static str = "cache";
    type Event = NoEvent;
    type Answer = CacheReport;
}

/// A layer in the cache, as `kitfs cache ls` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CachedLayer {
    /// The digest of the blob.
    pub digest: String,
    /// `tar`, `raw`, `tar+gzip`, …
    pub encoding: String,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The size of its content in bytes, once known.
    pub stream_bytes: Option<u64>,
    /// The part of the content that is in the cache.
    pub resident_bytes: u64,
    /// The part of those bytes that arrived shortly before the machine went down, and was not checked since.
    #[serde(default)]
    pub unchecked_bytes: u64,
    /// The trust that its bytes have.
    pub state: KitState,
    /// References of kits that use it.
    pub references: Vec<String>,
    /// Seconds since 1970.
    pub last_used: i64,
}

/// The request of a `kitfs cache` command. The answer is a [`CacheReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CacheRequest {
    /// Lists the layers.
    List,
    /// Removes the layers of a kit (its reference or manifest digest) or one layer (its digest).
    Remove(String),
    /// Removes everything that is not in use.
    Clear,
    /// Checks every resident byte against the recorded digests, and drops wrong bytes.
    Verify,
}

/// The outcome of a `kitfs cache` command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CacheReport {
    /// The layers: all for `List`, those touched for the others.
    pub layers: Vec<CachedLayer>,
    /// Manifests, indexes and configs that were removed (`Clear`).
    #[serde(default)]
    pub removed_documents: u64,
    /// Bytes that were removed.
    pub removed_bytes: u64,
    /// Chunks that were wrong and dropped (`Verify`).
    pub dropped_chunks: u64,
    /// Bytes that were checked (`Verify`).
    pub checked_bytes: u64,
    /// The layers that were left alone, and why: `sha256:… is mounted at /models`.
    pub kept: Vec<String>,
    /// The parts that failed, and why. The other parts succeeded.
    pub failed: Vec<String>,
}
