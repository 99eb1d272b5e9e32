//! The work of this moment: transfers under way, and readers that had to wait (`kitfs top`).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Reader;
use crate::control::{NoEvent, Operation};

/// Asks for the transfers under way and the slowest readers of the last minute. Waits for no transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkRequest {}

impl Operation for WorkRequest {
    const NAME: &'static str = "work";
    const IS_QUICK: bool = true;
    type Event = NoEvent;
    type Answer = WorkReport;
}

/// The answer to a [`WorkRequest`]: of the mounts that the user may see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkReport {
    /// The transfers under way, the oldest first; at most 64.
    pub transfers: Vec<TransferUnderWay>,
    /// The number of transfers under way that are not named.
    pub other_transfers: u64,
    /// The readers that had to wait, the one with the longest wait first; at most 64.
    pub readers: Vec<SlowReader>,
}

/// A transfer under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TransferUnderWay {
    /// A mount whose kit has the layer.
    pub mountpoint: PathBuf,
    /// The layer: its path in the Kitfile, and the first digits of its digest.
    pub layer: String,
    /// Bytes of the layer that it is to bring.
    pub bytes: u64,
    /// Why it began, as in `kitfs explain --json`.
    pub cause: String,
    /// The time since it began.
    pub age_ms: u64,
    /// The host that its last request went to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The requests that were sent again.
    pub retries: u32,
}

/// A process that had to wait in the last minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SlowReader {
    /// The process.
    pub reader: Reader,
    /// The mount.
    pub mountpoint: PathBuf,
    /// The reads that waited, as far as the daemon remembers.
    pub waits: u64,
    /// The longest of them.
    pub longest_ms: u64,
    /// The sum.
    pub total_ms: u64,
    /// How many failed.
    pub failed: u64,
}
