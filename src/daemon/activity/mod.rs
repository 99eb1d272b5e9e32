//! The work of the daemon: counts since the start of the process, and the last ten minutes.
//!
//! ```text
//! reads (fuse) ----.                        every 5 s
//! bytes (fetch) ---+--> counters --------------------------> History (ring) --> ActivityReport
//! queues (source) -'         '------------------------------------------------------^
//! ```
//!
//! The counters are atomics that the data path adds to. This module only reads them.

mod history;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use self::history::{History, Totals};
use crate::cache::Cache;
use crate::control::api::{
    ActivityReport, FailedReads, FetchedBytes, HostActivity, SourceActivity,
};
use crate::fetch::Fetcher;
use crate::observe::reads::{ReadFailure, Reads};
use crate::source::Traffic;
use crate::source::admission::HostUsage;

/// The time between two samples: short enough to see a stall, long enough that a look costs nothing.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// The most hosts of a report. The table of hosts is longer, against a registry that redirects to ever new ones.
const MOST_HOSTS: usize = 64;

/// The counters of a process, and their last ten minutes.
pub(super) struct Observed {
    reads: Arc<Reads>,
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    history: Mutex<History>,
}

impl Observed {
    pub(super) fn new(fetcher: Arc<Fetcher>, cache: Arc<Cache>) -> Self {
        Self { reads: Arc::default(), fetcher, cache, history: Mutex::default() }
    }

    /// The counts of reads from mounts.
    pub(super) fn reads(&self) -> &Arc<Reads> {
        &self.reads
    }

    /// Takes samples. Never done.
    pub(super) async fn sample(&self) -> Infallible {
        loop {
            self.history.lock().note(self.totals());
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }

    fn totals(&self) -> Totals {
        Totals { reads: self.reads.counts(), fetched_bytes: self.fetcher.usage().fetched_bytes }
    }

    /// The counts now, and the last ten minutes.
    pub(super) fn report(&self) -> ActivityReport {
        let reads = self.reads.counts();
        let counts = self.fetcher.counts();
        let sources = counts.outcomes().into_iter().map(|count| SourceActivity {
            host: count.host.to_string(),
            outcome: count.outcome.to_owned(),
            requests: count.requests,
        });
        let admission = self.fetcher.admission();
        let mut hosts: Vec<_> = admission.snapshot().into_iter().map(host_activity).collect();
        hosts.sort_by_key(|host| std::cmp::Reverse(host.requests));
        hosts.truncate(MOST_HOSTS);
        hosts.sort_by(|one, other| one.host.cmp(&other.host));
        ActivityReport {
            hits: reads.hit.into(),
            misses: reads.miss.into(),
            failed_reads: reads.all_failed(),
            failures: ReadFailure::ALL
                .iter()
                .zip(reads.failed)
                .map(|(reason, reads)| FailedReads { reason: reason.as_str().to_owned(), reads })
                .collect(),
            fetched: FetchedBytes {
                on_demand: counts.bytes_of(Traffic::OnDemand),
                readahead: counts.bytes_of(Traffic::Readahead),
                prefetch: counts.bytes_of(Traffic::Prefetch),
                warm: counts.bytes_of(Traffic::Warm),
                hydrate: counts.bytes_of(Traffic::Hydrate),
            },
            sources: sources.collect(),
            hosts,
            waiting_transfers: admission.waiting_transfers() as u64,
            evicted_bytes: self.cache.evicted_bytes(),
            sample_seconds: SAMPLE_INTERVAL.as_secs(),
            samples: self.history.lock().samples(),
        }
    }
}

fn host_activity(usage: HostUsage) -> HostActivity {
    let paused_ms =
        usage.paused_for.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
    HostActivity {
        host: usage.host,
        limit: usage.limit as u64,
        running: usage.running as u64,
        waiting: usage.waiting as u64,
        requests: usage.requests,
        body_bytes: usage.body_bytes,
        refusals: usage.refusals,
        paused_ms,
    }
}
