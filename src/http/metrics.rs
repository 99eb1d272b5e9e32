//! `/metrics`: the text form of Prometheus. Pure.
//!
//! The number of series is bounded: hosts by the daemon, mounts by [`MOST_MOUNTS`].

use crate::control::api::{ActivityReport, DaemonStatus, KitState, MountStatus};
use crate::observe::metrics::{self, Exposition, Metric};

/// The most mounts with series of their own. The metric of their number counts all mounts.
const MOST_MOUNTS: usize = 256;

/// The metrics of a daemon.
pub(super) fn render(status: &DaemonStatus, activity: &ActivityReport) -> String {
    let mut text = Exposition::default();
    text.add(&metrics::BUILD_INFO, [(vec![&*status.version], 1)]);
    text.add_one(&metrics::WORKER_START, u64::try_from(status.started_at).unwrap_or(0));
    text.add_one(&metrics::MOUNTS, status.mounts.len() as u64);
    let shown = status.mounts.iter().take(MOST_MOUNTS);
    let shown: Vec<_> = shown.map(|mount| (mount.mountpoint.to_string_lossy(), mount)).collect();
    let mut of_mounts = |metric: &Metric, value: fn(&MountStatus) -> u64| {
        let each = shown.iter();
        text.add(metric, each.map(|(place, it)| (vec![&**place, &*it.reference], value(it))));
    };
    of_mounts(&metrics::MOUNT_CONTENT, |mount| mount.total_bytes);
    of_mounts(&metrics::MOUNT_RESIDENT, |mount| mount.resident_bytes);
    of_mounts(&metrics::MOUNT_POISONED, |mount| (mount.state == KitState::Poisoned).into());
    of_mounts(&metrics::MOUNT_FAILING, |mount| mount.last_failure.is_some().into());
    text.add_latencies(
        &metrics::READ_DURATION,
        [(vec!["hit"], (&activity.hits).into()), (vec!["miss"], (&activity.misses).into())],
    );
    let read = [(vec!["hit"], activity.hits.bytes), (vec!["miss"], activity.misses.bytes)];
    text.add(&metrics::READ_BYTES, read);
    let failures = activity.failures.iter();
    text.add(&metrics::READ_FAILURES, failures.map(|it| (vec![&*it.reason], it.reads)));
    let fetched = &activity.fetched;
    text.add(
        &metrics::FETCHED,
        [
            (vec!["on_demand"], fetched.on_demand),
            (vec!["readahead"], fetched.readahead),
            (vec!["prefetch"], fetched.prefetch),
            (vec!["hydrate"], fetched.hydrate),
        ],
    );
    let sources = activity.sources.iter();
    text.add(
        &metrics::SOURCE_REQUESTS,
        sources.map(|it| (vec![&*it.host, &*it.outcome], it.requests)),
    );
    let hosts = || activity.hosts.iter();
    text.add(&metrics::HOST_RECEIVED, hosts().map(|it| (vec![&*it.host], it.body_bytes)));
    text.add(&metrics::HOST_REFUSALS, hosts().map(|it| (vec![&*it.host], it.refusals)));
    text.add(&metrics::HOST_RUNNING, hosts().map(|it| (vec![&*it.host], it.running)));
    text.add(&metrics::HOST_WAITING, hosts().map(|it| (vec![&*it.host], it.waiting)));
    text.add(&metrics::HOST_LIMIT, hosts().map(|it| (vec![&*it.host], it.limit)));
    text.add_one(&metrics::TRANSFERS_WAITING, activity.waiting_transfers);
    text.add_one(&metrics::MEMORY_RESERVED, status.fetch.reserved_bytes);
    text.add_one(&metrics::MEMORY_LIMIT, status.fetch.memory_bytes);
    text.add_one(&metrics::CACHE_RESIDENT, status.cache_resident_bytes);
    text.add(
        &metrics::CACHE_CAPACITY,
        status.cache_capacity_bytes.map(|bytes| (Vec::new(), bytes)),
    );
    text.add_one(&metrics::CACHE_EVICTED, activity.evicted_bytes);
    text.add_one(&metrics::CACHE_TROUBLE, status.cache_trouble.is_some().into());
    text.finish()
}
