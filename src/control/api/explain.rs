//! Why bytes of a file were fetched, and how long it took: `kitfs explain`.

use serde::{Deserialize, Serialize};

use super::{RawPath, ResidencyTotal, Subject};
use crate::control::{NoEvent, Operation};

/// Asks what happened to a file since its layers are open. Fetches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The kit.
    pub subject: Subject,
    /// The file, from the kit's root. Symlinks are followed.
    pub path: RawPath,
}

impl Operation for ExplainRequest {
    const NAME: &'static str = "explain";
    const IS_QUICK: bool = true;
    type Event = NoEvent;
    type Answer = Explanation;
}

/// The answer to an [`ExplainRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explanation {
    /// The reference of the kit, with the digest of its manifest.
    pub reference: String,
    /// The path of the file from the kit's root, percent-encoded; symlinks are followed.
    pub path: RawPath,
    /// Its sums now.
    pub total: ResidencyTotal,
    /// The layer that has its bytes; none for the Kitfile, which comes with the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Whether the layer comes as a whole: it is compressed, so its parts cannot be fetched.
    pub comes_as_a_whole: bool,
    /// The newest transfers that brought bytes of the file, the oldest first.
    pub transfers: Vec<ExplainedTransfer>,
    /// The newest reads that had to wait for bytes of the file, the oldest first.
    pub waits: Vec<ExplainedWait>,
    /// The number of older transfers and waits of the layer that the daemon has forgotten; some of them may have been
    /// about this file.
    pub forgotten: u64,
}

/// A transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExplainedTransfer {
    /// The first byte of the file that it was to bring.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
    /// The bytes of the layer that it was to bring: those of other files too.
    pub layer_bytes: u64,
    /// Why it began: `read`, `readahead`, `tensor`, `prefetch`, `trace`, `warm`, `hydrate` or `rest`.
    pub cause: String,
    /// The predictor that asked for it, as in `readahead.predictors` of `kitfs status --json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictor: Option<String>,
    /// Whether a reader began to wait for it later.
    pub is_raised: bool,
    /// The processes that waited for its bytes, by their commands; at most eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<Reader>,
    /// Its start, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// The time until memory and a thread were free for it.
    pub queued_ms: u64,
    /// The time that its requests waited for slots of their hosts.
    pub slot_ms: u64,
    /// The time from there to the head of the answer: connection, login and the host's own time.
    pub answer_ms: u64,
    /// The time from there to the last byte, or until now.
    pub body_ms: u64,
    /// The host that sent the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The requests that were sent again.
    pub retries: u32,
    /// How it ended.
    pub outcome: TransferOutcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TransferOutcome {
    /// It has not.
    UnderWay,
    /// Its bytes came.
    Done,
    /// Another transfer brings its bytes, or its layer was closed.
    GivenUp,
    /// It failed.
    Failed,
}

/// A process that reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reader {
    /// Its number in the daemon's namespace; 0 where that is unknown.
    pub pid: u32,
    /// The name of its command.
    pub command: String,
}

/// A read that had to wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExplainedWait {
    /// The first byte that it wanted.
    pub start: u64,
    /// The byte behind the last one.
    pub end: u64,
    /// The process.
    pub reader: Reader,
    /// Its start, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// The time until the bytes came, or the error.
    pub waited_ms: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
