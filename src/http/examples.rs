//! Values of a daemon, for tests.

use serde_json::{Value, json};

use crate::control::api::{ActivityReport, DaemonStatus};

/// A daemon with these mounts.
pub(super) fn status(mounts: Value) -> DaemonStatus {
    serde_json::from_value(json!({
        "pid": 1, "worker_pid": 2, "version": "1", "cache_folder": "/c<d>", "cache_resident_bytes": 5,
        "cache_capacity_bytes": 10, "cache_keep_free_bytes": 0, "started_at": 0, "mounts": mounts,
        "fetch": {"requests": 0, "fetched_bytes": 0, "reserved_bytes": 0, "memory_bytes": 0},
    }))
    .unwrap()
}

/// A daemon that has done nothing.
pub(super) fn activity() -> ActivityReport {
    serde_json::from_value(json!({
        "hits": {"classes": [], "sum_us": 0, "bytes": 0}, "misses": {"classes": [], "sum_us": 0, "bytes": 0},
        "failed_reads": 0, "fetched": {"on_demand": 0, "readahead": 0, "prefetch": 0, "warm": 0, "hydrate": 0},
        "sources": [], "hosts": [], "waiting_transfers": 0, "evicted_bytes": 0, "sample_seconds": 5, "samples": [],
    }))
    .unwrap()
}
