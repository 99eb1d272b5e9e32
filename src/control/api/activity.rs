//! The work of a daemon since its worker started, and in the last ten minutes.

use serde::{Deserialize, Serialize};

use crate::control::{NoEvent, Operation};
use crate::observe::reads::{LATENCY_CLASSES, LatencyCounts};

/// Asks for counts, queues and the last ten minutes. Reads memory, and waits for no transfer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ActivityRequest {}

impl Operation for ActivityRequest {
    const NAME: &'static str = "activity";
    const IS_QUICK: bool = true;
    type Event = NoEvent;
    type Answer = ActivityReport;
}

/// The answer to an [`ActivityRequest`]. Counts begin with the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActivityReport {
    /// Reads from mounts whose bytes were in the cache.
    pub hits: ReadActivity,
    /// Reads from mounts that waited for bytes.
    pub misses: ReadActivity,
    /// Reads from mounts that failed.
    pub failed_reads: u64,
    /// These reads by reason.
    #[serde(default)]
    pub failures: Vec<FailedReads>,
    /// Bytes of layers that came, by cause.
    pub fetched: FetchedBytes,
    /// Requests for ranges of layers, by host and outcome.
    pub sources: Vec<SourceActivity>,
    /// Requests of all kinds, by host.
    pub hosts: Vec<HostActivity>,
    /// Transfers that wait for memory or a thread.
    pub waiting_transfers: u64,
    /// Bytes that were evicted to make room.
    pub evicted_bytes: u64,
    /// The seconds that a sample stands for.
    pub sample_seconds: u64,
    /// The last ten minutes, the oldest sample first. Fewer after a start.
    pub samples: Vec<ActivitySample>,
}

/// Reads by the time that they took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReadActivity {
    /// The number of reads in each class of [`crate::observe::reads::LATENCY_BOUNDS_US`]; the last one has no bound.
    pub classes: Vec<u64>,
    /// The sum of their times, in microseconds.
    pub sum_us: u64,
    /// The sum of their bytes.
    pub bytes: u64,
}

/// Reads that failed for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FailedReads {
    /// `source`: the registry or folder did not give the bytes. `cache`: the disk of the cache. `content`: a wrong digest
    /// or a malformed layer. `deadline`: the bytes came too late. `other`.
    pub reason: String,
    /// The number of reads.
    pub reads: u64,
}

/// Bytes of layers by the reason for their request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FetchedBytes {
    /// A reader waits, or a command that opens a kit.
    pub on_demand: u64,
    /// A reader's pattern says that it reads them next.
    pub readahead: u64,
    /// Asked for beforehand, by tensors and traces.
    pub prefetch: u64,
    /// `kitfs warm`, and commands that copy whole layers.
    pub warm: u64,
    /// The rest of a kit, in the background.
    pub hydrate: u64,
}

/// Requests to a host with the same outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SourceActivity {
    /// `HOST[:PORT]`, `local` for folders of this machine, `other` for hosts beyond the first 64.
    pub host: String,
    /// `ok`, or the word for the failure.
    pub outcome: String,
    /// How many.
    pub requests: u64,
}

/// The requests to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HostActivity {
    /// `HOST[:PORT]`.
    pub host: String,
    /// Requests at once that it gets now.
    pub limit: u64,
    /// Requests under way.
    pub running: u64,
    /// Requests that wait for a slot.
    pub waiting: u64,
    /// Requests so far.
    pub requests: u64,
    /// Bytes of answers so far.
    pub body_bytes: u64,
    /// Answers so far that asked for fewer requests.
    pub refusals: u64,
    /// The milliseconds for which the host wants no requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
}

/// A few seconds of a daemon's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActivitySample {
    /// Bytes that programs have read from mounts.
    pub read_bytes: u64,
    /// Bytes of layers that came.
    pub fetched_bytes: u64,
    /// Reads whose bytes were in the cache.
    pub hits: u64,
    /// Reads that waited for bytes.
    pub misses: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// The time that half of the reads did not exceed, in microseconds; `None` without a read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_us: Option<u64>,
    /// The time that 99 of 100 reads did not exceed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

impl FetchedBytes {
    /// The sum.
    pub fn sum(&self) -> u64 {
        self.on_demand + self.readahead + self.prefetch + self.warm + self.hydrate
    }
}

impl From<LatencyCounts> for ReadActivity {
    fn from(counts: LatencyCounts) -> Self {
        Self { classes: counts.classes.to_vec(), sum_us: counts.sum_us, bytes: counts.bytes }
    }
}

impl From<&ReadActivity> for LatencyCounts {
    /// Classes that another version has beyond these count for the last one.
    fn from(reads: &ReadActivity) -> Self {
        let mut classes = [0; LATENCY_CLASSES];
        for (class, count) in reads.classes.iter().enumerate() {
            classes[class.min(LATENCY_CLASSES - 1)] += count;
        }
        Self { classes, sum_us: reads.sum_us, bytes: reads.bytes }
    }
}
