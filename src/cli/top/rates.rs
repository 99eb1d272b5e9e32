//! From samples to rates, and what keys change. Pure.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use ratatui::crossterm::event::KeyCode;

use crate::control::api::{ActivityReport, DaemonStatus, HostActivity, MountStatus, WorkReport};
use crate::observe::reads::LatencyCounts;

/// The rates that are kept for the chart. 512: more than a wide terminal has columns.
const MOST_RATES: usize = 512;

/// The answers of a daemon at one moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) status: DaemonStatus,
    pub(super) work: WorkReport,
    /// `None` if the user may not see it.
    pub(super) activity: Option<ActivityReport>,
}

/// A column of the table of mounts that sorts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Mount,
    Reference,
    Total,
    Resident,
    Growth,
}

impl Column {
    pub(super) const ALL: [Self; 5] =
        [Self::Mount, Self::Reference, Self::Total, Self::Resident, Self::Growth];

    /// The column `steps` further to the right, around the end.
    fn moved(self, steps: isize) -> Self {
        let count = Self::ALL.len() as isize;
        let at = Self::ALL.iter().position(|column| *column == self).unwrap_or(0) as isize;
        Self::ALL[(at + steps).rem_euclid(count) as usize]
    }
}

/// The state of the display.
pub(super) struct Model {
    pub(super) is_ascii: bool,
    pub(super) is_paused: bool,
    pub(super) sort: Column,
    pub(super) is_reversed: bool,
    /// The first mount that is shown.
    pub(super) first: usize,
    pub(super) sample: Option<Sample>,
    /// Why the last sample failed.
    pub(super) failure: Option<String>,
    pub(super) rates: Rates,
    /// The bytes fetched in each second, the newest last.
    pub(super) fetched: VecDeque<u64>,
}

/// The changes between two samples, for each second.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// Bytes of layers that came.
    pub(super) fetched_bytes: f64,
    /// Requests for ranges.
    pub(super) requests: f64,
    /// Bytes of reads from mounts.
    pub(super) read_bytes: f64,
    /// Reads whose bytes were in the cache.
    pub(super) hits: f64,
    /// Reads that had to wait.
    pub(super) misses: f64,
    /// Reads that failed.
    pub(super) failed_reads: f64,
    /// Bytes of the answers of each host.
    pub(super) host_bytes: HashMap<String, f64>,
    /// Requests to each host.
    pub(super) host_requests: HashMap<String, f64>,
    /// Growth of the resident bytes of each mount.
    pub(super) growth: HashMap<std::path::PathBuf, f64>,
}

impl Rates {
    /// The rates from one sample to the next. A counter that fell is that of a new process: it counts as no change.
    pub(super) fn between(before: &Sample, now: &Sample) -> Self {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64().max(0.001);
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        let (old, new) = (before.activity.as_ref(), now.activity.as_ref());
        let activity = |of: fn(&ActivityReport) -> u64| {
            let none = (0, 0);
            let (before, now) = old.zip(new).map_or(none, |(old, new)| (of(old), of(new)));
            rate(before, now)
        };
        let host = |name: &str| old?.hosts.iter().find(|host| host.host == name);
        let resident = |mount: &MountStatus| {
            let mut mounts = before.status.mounts.iter();
            mounts.find(|old| old.mountpoint == mount.mountpoint).map(|old| old.resident_bytes)
        };
        let hosts = |of: fn(&HostActivity) -> u64| {
            let each = new.into_iter().flat_map(|new| &new.hosts).map(|now| {
                // All counts of a new host are since the last sample.
                let before = host(&now.host).map_or(0, of);
                (now.host.clone(), rate(before, of(now)))
            });
            each.collect()
        };
        Self {
            fetched_bytes: rate(before.status.fetch.fetched_bytes, now.status.fetch.fetched_bytes),
            requests: rate(before.status.fetch.requests, now.status.fetch.requests),
            read_bytes: activity(|it| it.hits.bytes.saturating_add(it.misses.bytes)),
            hits: activity(|it| LatencyCounts::from(&it.hits).reads()),
            misses: activity(|it| LatencyCounts::from(&it.misses).reads()),
            failed_reads: activity(|it| it.failed_reads),
            host_bytes: hosts(|host| host.body_bytes),
            host_requests: hosts(|host| host.requests),
            growth: now
                .status
                .mounts
                .iter()
                .filter_map(|mount| {
                    let before = resident(mount)?;
                    Some((mount.mountpoint.clone(), rate(before, mount.resident_bytes)))
                })
                .collect(),
        }
    }
}

impl Rates {
    /// The percentage of reads whose bytes were in the cache; `None` without a read.
    pub(super) fn hit_percent(&self) -> Option<f64> {
        let reads = self.hits + self.misses;
        (reads > 0.0).then(|| self.hits / reads * 100.0)
    }
}

impl Model {
    pub(super) fn new(is_ascii: bool) -> Self {
        Self {
            is_ascii,
            is_paused: false,
            sort: Column::Mount,
            is_reversed: false,
            first: 0,
            sample: None,
            failure: None,
            rates: Rates::default(),
            fetched: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        if let Some(before) = &self.sample {
            self.rates = Rates::between(before, &sample);
            if self.fetched.len() == MOST_RATES {
                self.fetched.pop_front();
            }
            self.fetched.push_back(self.rates.fetched_bytes as u64);
        }
        self.sample = Some(sample);
        self.failure = None;
        self.stay_in_table();
    }

    /// The mounts in the order of the table.
    pub(super) fn mounts(&self) -> Vec<&MountStatus> {
        let mut mounts: Vec<_> = self.sample.iter().flat_map(|it| &it.status.mounts).collect();
        let growth =
            |mount: &MountStatus| self.rates.growth.get(&mount.mountpoint).copied().unwrap_or(0.0);
        mounts.sort_by(|one, other| {
            let by = match self.sort {
                Column::Mount => Ordering::Equal,
                Column::Reference => one.reference.cmp(&other.reference),
                // The largest first.
                Column::Total => other.total_bytes.cmp(&one.total_bytes),
                Column::Resident => other.resident_bytes.cmp(&one.resident_bytes),
                Column::Growth => growth(other).total_cmp(&growth(one)),
            };
            by.then_with(|| one.mountpoint.cmp(&other.mountpoint))
        });
        if self.is_reversed {
            mounts.reverse();
        }
        mounts
    }

    /// Takes a key; returns whether the program ends.
    pub(super) fn press(&mut self, key: KeyCode) -> bool {
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('s') | KeyCode::Right => self.sort = self.sort.moved(1),
            KeyCode::Left => self.sort = self.sort.moved(-1),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Down => self.first += 1,
            KeyCode::Up => self.first = self.first.saturating_sub(1),
            KeyCode::Home => self.first = 0,
            KeyCode::End => self.first = usize::MAX,
            _ => {}
        }
        self.stay_in_table();
        false
    }

    fn stay_in_table(&mut self) {
        let mounts = self.sample.as_ref().map_or(0, |sample| sample.status.mounts.len());
        self.first = self.first.min(mounts.saturating_sub(1));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A sample some seconds after a moment.
    pub(in crate::cli::top) fn sample(
        begin: Instant,
        seconds: u64,
        fetched_bytes: u64,
        resident: &[(&str, u64)],
    ) -> Sample {
        let mounts: Vec<_> = resident
            .iter()
            .map(|(name, resident_bytes)| {
                json!({
                    "mountpoint": format!("/{name}"), "reference": format!("registry.example/{name}:v1"), "digest": "",
                    "entries": 3, "total_bytes": 1_u64 << 30, "resident_bytes": resident_bytes,
                    "state": "unconfirmed", "mounted_at": 0, "warnings": [], "last_failure": null,
                    "passthrough": {"off": {"reason": "no"}}, "hydrate": "off",
                    "readahead": {"read_bytes": 0, "unread_bytes": 0, "predictors": []},
                })
            })
            .collect();
        let status = json!({
            "pid": 1, "version": "0.1.0", "cache_folder": "/cache", "cache_resident_bytes": 1 << 20,
            "cache_capacity_bytes": null, "cache_keep_free_bytes": 0, "started_at": 0, "mounts": mounts,
            "fetch": {"requests": seconds * 2, "fetched_bytes": fetched_bytes, "reserved_bytes": 0, "memory_bytes": 1},
        });
        let work = json!({
            "transfers": [{
                "mountpoint": "/a", "layer": "model", "bytes": 4 << 20, "cause": "stream", "age_ms": 250,
                "host": "registry.example", "retries": 1,
            }],
            "other_transfers": 0,
            "readers": [{
                "reader": {"pid": 42, "command": "python3"}, "mountpoint": "/a", "waits": 7, "longest_ms": 1500,
                "total_ms": 2000, "failed": 0,
            }],
        });
        let reads = |count: u64| json!({"classes": [count], "sum_us": 0, "bytes": count << 20});
        let activity = json!({
            "hits": reads(seconds * 15), "misses": reads(seconds * 5), "failed_reads": 0,
            "fetched": {"on_demand": fetched_bytes, "readahead": 0, "prefetch": 0, "warm": 0, "hydrate": 0},
            "sources": [], "waiting_transfers": 0, "evicted_bytes": 0, "sample_seconds": 5, "samples": [],
            "hosts": [{
                "host": "registry.example", "limit": 8, "running": 2, "waiting": 1, "requests": seconds * 3,
                "body_bytes": fetched_bytes, "refusals": 0,
            }],
        });
        Sample {
            at: begin + Duration::from_secs(seconds),
            status: serde_json::from_value(status).unwrap(),
            work: serde_json::from_value(work).unwrap(),
            activity: Some(serde_json::from_value(activity).unwrap()),
        }
    }

    #[test]
    fn rates_are_differences_for_each_second() {
        let begin = Instant::now();
        let before = sample(begin, 0, 1000, &[("a", 10)]);
        let now = sample(begin, 2, 5000, &[("a", 110), ("b", 5)]);
        let rates = Rates::between(&before, &now);
        assert_eq!((rates.fetched_bytes, rates.requests), (2000.0, 2.0));
        assert_eq!((rates.hits, rates.misses, rates.hit_percent()), (15.0, 5.0, Some(75.0)));
        assert_eq!(rates.read_bytes, f64::from(20 << 20));
        assert_eq!(rates.host_bytes["registry.example"], 2000.0);
        assert_eq!(rates.growth.len(), 1, "a new mount has no rate yet");
        assert_eq!(rates.growth[std::path::Path::new("/a")], 50.0);
        let idle = Rates::between(&now, &sample(begin, 2, 5000, &[]));
        assert_eq!((idle.misses, idle.fetched_bytes, idle.hit_percent()), (0.0, 0.0, None));
        // Another process of the daemon counts from 0.
        assert_eq!(Rates::between(&now, &sample(begin, 3, 100, &[("a", 0)])).fetched_bytes, 0.0);
    }

    #[test]
    fn keys_sort_move_and_end() {
        let mut model = Model::new(false);
        model.add(sample(Instant::now(), 0, 0, &[("b", 5), ("a", 1), ("c", 9)]));
        let order = |model: &Model| -> Vec<String> {
            let mounts = model.mounts().into_iter();
            mounts.map(|mount| mount.mountpoint.display().to_string()).collect()
        };
        assert_eq!(order(&model), ["/a", "/b", "/c"]);
        for _ in 0..3 {
            assert!(!model.press(KeyCode::Char('s')));
        }
        assert_eq!(order(&model), ["/c", "/b", "/a"], "by resident bytes");
        model.press(KeyCode::Char('r'));
        assert_eq!(order(&model), ["/a", "/b", "/c"]);
        (0..5).for_each(|_| _ = model.press(KeyCode::Down));
        assert_eq!(model.first, 2);
        model.press(KeyCode::End);
        assert_eq!(model.first, 2);
        model.add(sample(Instant::now(), 0, 0, &[]));
        assert_eq!(model.first, 0);
        model.press(KeyCode::Char('p'));
        assert!(model.is_paused);
        assert!(model.press(KeyCode::Char('q')) && model.press(KeyCode::Esc));
    }

    proptest! {
        #[test]
        fn sorting_goes_around(steps in -20..20isize) {
            prop_assert_eq!(Column::Mount.moved(steps).moved(-steps), Column::Mount);
        }
    }
}
