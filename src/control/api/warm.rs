//! Warming: downloads into the cache.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Failure, KitRequest, KitState, PassProgress, RawPath, Waiting};
use crate::control::Operation;

/// Fetches a kit, or files of it, into the cache. The answer has the outcome of each layer. After a failure
/// nothing was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    /// The kit.
    pub kit: KitRequest,
    /// Files and directories from the kit's root; all of the kit where there are none.
    #[serde(default)]
    pub paths: Vec<RawPath>,
    /// Whole layers, by their digests, instead of paths. The caller copies them at once, so they are not kept
    /// for longer than bytes that were read.
    #[serde(default)]
    pub layers: Vec<String>,
    /// An access trace whose ranges are wanted, in its order, absolute.
    #[serde(default)]
    pub trace: Option<PathBuf>,
}

impl Operation for WarmRequest {
    const NAME: &'static str = "warm";
    type Event = WarmEvent;
    type Answer = WarmReport;

    fn has_paths(&self) -> bool {
        self.kit.has_paths() || self.trace.is_some()
    }
}

/// The progress of a warm.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmEvent {
    /// A compressed layer is being passed over, which fetches it.
    Passing(PassProgress),
    /// A host is silent.
    Waiting(Waiting),
    /// The progress of each layer.
    Layers(Vec<LayerProgress>),
}

/// The progress of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayerProgress {
    /// The digest of the layer; `trace` for a trace.
    pub name: String,
    /// The name of the layer for people: its path in the Kitfile, and the digest's first digits.
    #[serde(default)]
    pub title: String,
    /// The file that the download has reached, in the order of the layer. `None` for a layer that is complete, and
    /// in a kit of very many files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<RawPath>,
    /// Bytes that are in the cache, of those that are wanted.
    pub done_bytes: u64,
    /// Bytes that are wanted.
    pub total_bytes: u64,
}

/// The outcome of a warm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WarmReport {
    /// The layers with wanted bytes.
    pub layers: Vec<WarmedLayer>,
    /// Warnings about the kit, or about the trace if one was replayed.
    pub warnings: Vec<String>,
    /// Files and directories in the request whose content cannot be had, because their data sets
    /// lie elsewhere; the warnings say why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<RawPath>,
}

/// A layer after a warm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WarmedLayer {
    /// The layer's digest.
    pub digest: String,
    /// Bytes of it that were wanted.
    pub wanted_bytes: u64,
    /// Bytes of it that are in the cache.
    pub resident_bytes: u64,
    /// The number of them that came shortly before the machine went down, and were not checked since.
    #[serde(default)]
    pub unchecked_bytes: u64,
    /// Whether all of it is; only then can its digest be known.
    pub is_complete: bool,
    /// The trust that its bytes have.
    pub state: KitState,
    /// Why bytes are missing, or the digest could not be computed.
    pub failure: Option<Failure>,
}
