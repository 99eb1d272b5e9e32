//! `/metrics`: the text form of Prometheus. Pure.
//!
//! The number of series is bounded: hosts by the daemon, mounts by [`MOST_MOUNTS`]. Each set of labels comes once.

use std::borrow::Cow;
use std::collections::BTreeMap;

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
    // Mounts of one kit at one mountpoint in several mount namespaces share their series.
    let mut series: BTreeMap<(Cow<'_, str>, &str), Vec<&MountStatus>> = BTreeMap::new();
    for mount in shown {
        let labels = (mount.mountpoint.to_string_lossy(), &*mount.reference);
        series.entry(labels).or_default().push(mount);
    }
    let mut of_mounts = |metric: &Metric, value: fn(&MountStatus) -> u64| {
        let each = series.iter().map(|((place, reference), mounts)| {
            let value = mounts.iter().map(|mount| value(mount)).max();
            (vec![&**place, *reference], value.unwrap_or_default())
        });
        text.add(metric, each);
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
            (vec!["warm"], fetched.warm),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::examples::{activity, status};

    /// Mounts in containers of one image have the same mountpoint.
    #[test]
    fn mounts_of_a_kit_at_one_mountpoint_in_several_namespaces_share_their_series() {
        let mount = |state: &str, resident_bytes: u64| {
            json!({
                "mountpoint": "/models", "reference": "r", "digest": "d", "entries": 1, "total_bytes": 10,
                "resident_bytes": resident_bytes, "state": state, "mounted_at": 0, "warnings": [],
                "passthrough": {"off": {"reason": ""}}, "hydrate": "off",
                "readahead": {"read_bytes": 0, "unread_bytes": 0, "predictors": []},
            })
        };
        let mounts = json!([mount("unconfirmed", 3), mount("poisoned", 2)]);
        let text = render(&status(mounts), &activity());
        for line in [
            "kitfs_mounts 2",
            "kitfs_mount_resident_bytes{mountpoint=\"/models\",reference=\"r\"} 3",
            "kitfs_mount_poisoned{mountpoint=\"/models\",reference=\"r\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        let series = text.lines().filter(|it| it.starts_with("kitfs_mount_"));
        assert_eq!(series.count(), 4, "{text}");
    }
}
