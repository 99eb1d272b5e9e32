//! The metrics of a daemon: every name, type, help text and label, and the text form of Prometheus.
//!
//! Names follow Prometheus' conventions: base units, `_total` for counters. No other file spells a name. `docs/metrics.md`
//! lists them, and a test compares the two.

use std::fmt::Write as _;

use super::reads::{LATENCY_BOUNDS_US, LatencyCounts};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sum that only grows, until the worker is replaced.
    Counter,
    /// A value of the moment.
    Gauge,
    /// A distribution of times.
    Histogram,
}

impl Kind {
    /// The word for it in the text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// Its meaning.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal $kind:ident [$($label:literal),*] $help:literal;)+) => {
        $(#[doc = $help]
        pub const $constant: Metric = Metric {
            name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help,
        };)+

        /// All metrics, in the order of the text form.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    BUILD_INFO = "kitfs_build_info" Gauge ["version"] "The version of the daemon; always 1.";
    WORKER_START = "kitfs_worker_start_time_seconds" Gauge [] "When the worker started, in seconds since 1970. It changes when the worker is replaced; counters then start at 0.";
    MOUNTS = "kitfs_mounts" Gauge [] "Mounts that the daemon serves.";
    MOUNT_CONTENT = "kitfs_mount_content_bytes" Gauge ["mountpoint", "reference"] "Bytes of the layers of the mounted kit.";
    MOUNT_RESIDENT = "kitfs_mount_resident_bytes" Gauge ["mountpoint", "reference"] "Bytes of them in the cache.";
    MOUNT_POISONED = "kitfs_mount_poisoned" Gauge ["mountpoint", "reference"] "1 if a layer of the kit has a wrong digest, and reads of it fail.";
    MOUNT_FAILING = "kitfs_mount_read_failing" Gauge ["mountpoint", "reference"] "1 if a read failed, and no later read of the same bytes was good.";
    READ_DURATION = "kitfs_read_duration_seconds" Histogram ["result"] "Time of reads from mounts: hit if the bytes were in the cache, miss if the read waited for them. Reads that the kernel does by itself (passthrough, page cache) are not counted.";
    READ_BYTES = "kitfs_read_bytes_total" Counter ["result"] "Bytes of these reads.";
    READ_FAILURES = "kitfs_read_failures_total" Counter ["reason"] "Reads from mounts that failed: source (the registry or folder did not give the bytes), cache (its disk), content (a wrong digest, a malformed layer), deadline, other.";
    FETCHED = "kitfs_fetched_bytes_total" Counter ["cause"] "Bytes of layers that came from sources: on_demand (a reader or an opening command waits), readahead, prefetch (tensors, traces), warm (kitfs warm, copies of whole layers), hydrate.";
    SOURCE_REQUESTS = "kitfs_source_requests_total" Counter ["host", "outcome"] "Requests for ranges of layers, by their outcome after retries. The host is `local` for folders of this machine.";
    HOST_RECEIVED = "kitfs_host_received_bytes_total" Counter ["host"] "Bytes of answers of all kinds.";
    HOST_REFUSALS = "kitfs_host_refusals_total" Counter ["host"] "Answers that ask for fewer requests: 429, and 503 with Retry-After.";
    HOST_RUNNING = "kitfs_host_requests_running" Gauge ["host"] "Requests under way.";
    HOST_WAITING = "kitfs_host_requests_waiting" Gauge ["host"] "Requests that wait for a slot of the host.";
    HOST_LIMIT = "kitfs_host_requests_limit" Gauge ["host"] "The most requests at once that kitfs sends to the host now.";
    TRANSFERS_WAITING = "kitfs_transfers_waiting" Gauge [] "Transfers that wait for memory or a thread.";
    MEMORY_RESERVED = "kitfs_memory_reserved_bytes" Gauge [] "Memory that is reserved for bytes under way.";
    MEMORY_LIMIT = "kitfs_memory_limit_bytes" Gauge [] "The limit of that memory (--memory).";
    CACHE_RESIDENT = "kitfs_cache_resident_bytes" Gauge [] "Bytes of content in the cache.";
    CACHE_CAPACITY = "kitfs_cache_capacity_bytes" Gauge [] "The limit of the cache (--cache-size). Missing where there is none.";
    CACHE_EVICTED = "kitfs_cache_evicted_bytes_total" Counter [] "Bytes that were evicted to make room.";
    CACHE_TROUBLE = "kitfs_cache_trouble" Gauge [] "1 if the cache keeps no bytes at the moment, and reads go through without it.";
}

/// The text form of metrics, version 0.0.4.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// The type of the text for HTTP.
    pub const MEDIA_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Adds a counter or gauge, with a value for each set of labels. A metric without a value is left out.
    pub fn add<'a>(
        &mut self,
        metric: &Metric,
        values: impl IntoIterator<Item = (Vec<&'a str>, u64)>,
    ) {
        assert!(metric.kind != Kind::Histogram, "{} is a histogram", metric.name);
        for (at, (labels, value)) in values.into_iter().enumerate() {
            if at == 0 {
                self.describe(metric);
            }
            let labels = label_text(metric, &labels, None);
            self.line(metric.name, "", &labels, &value.to_string());
        }
    }

    /// Adds a metric without labels.
    pub fn add_one(&mut self, metric: &Metric, value: u64) {
        self.add(metric, [(Vec::new(), value)]);
    }

    /// Adds a histogram of latencies, with counts for each set of labels.
    pub fn add_latencies<'a>(
        &mut self,
        metric: &Metric,
        all: impl IntoIterator<Item = (Vec<&'a str>, LatencyCounts)>,
    ) {
        assert!(metric.kind == Kind::Histogram, "{} is no histogram", metric.name);
        self.describe(metric);
        for (labels, counts) in all {
            let mut sum = 0;
            for (class, count) in counts.classes.iter().enumerate() {
                sum += count;
                let bound = LATENCY_BOUNDS_US.get(class).map(|bound| seconds(*bound));
                let bound = bound.unwrap_or("+Inf".to_owned());
                let labels = label_text(metric, &labels, Some(&bound));
                self.line(metric.name, "_bucket", &labels, &sum.to_string());
            }
            let labels = label_text(metric, &labels, None);
            self.line(metric.name, "_sum", &labels, &seconds(counts.sum_us));
            self.line(metric.name, "_count", &labels, &sum.to_string());
        }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }

    fn describe(&mut self, metric: &Metric) {
        let Metric { name, kind, help, .. } = metric;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &str, value: &str) {
        let _ = writeln!(self.text, "{name}{suffix}{labels} {value}");
    }
}

fn label_text(metric: &Metric, values: &[&str], bound: Option<&str>) -> String {
    assert_eq!(metric.labels.len(), values.len(), "the labels of {}", metric.name);
    let named = metric.labels.iter().zip(values).map(|(name, value)| (*name, *value));
    let all = named.chain(bound.map(|bound| ("le", bound)));
    let each: Vec<_> = all.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    match each.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", each.join(",")),
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Microseconds as seconds, exact and without zeros at the end.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::super::reads::Reads;
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = HashSet::new();
        for metric in ALL {
            let Metric { name, kind, labels, help } = metric;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(
                name.starts_with("kitfs_")
                    && name.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'),
                "{name}"
            );
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(
                name.ends_with("_seconds"),
                help.contains("seconds since") || *kind == Kind::Histogram,
                "{name}"
            );
            assert!(help.ends_with('.') && !help.contains('\n') && !help.contains('\\'), "{name}");
            assert!(labels.iter().all(|label| *label != "le"), "{name}");
            for unit in ["_ms", "_us", "_kib", "_mib", "_megabytes", "_count", "_bucket", "_sum"] {
                assert!(!name.ends_with(unit), "{name}");
            }
        }
    }

    #[test]
    fn the_page_lists_the_metrics() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md"))
            .unwrap();
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `kitfs_")).collect();
        let expected: Vec<String> = ALL
            .iter()
            .map(|metric| {
                let labels: Vec<_> =
                    metric.labels.iter().map(|label| format!("`{label}`")).collect();
                format!(
                    "| `{}` | {} | {} | {} |",
                    metric.name,
                    metric.kind.as_str(),
                    labels.join(", "),
                    metric.help
                )
            })
            .collect();
        assert_eq!(rows, expected, "docs/metrics.md has other rows:\n{}", expected.join("\n"));
    }

    #[test]
    fn dashboard_and_alerts_name_metrics_that_there_are() {
        let known = |name: &str| {
            ALL.iter().any(|metric| match metric.kind {
                Kind::Histogram => ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(metric.name)),
                Kind::Counter | Kind::Gauge => name == metric.name,
            })
        };
        for file in ["deploy/grafana.json", "deploy/alerts.yml"] {
            let text =
                std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
            let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
            let names = text.split(|it| !is_name(it)).filter(|word| word.starts_with("kitfs_"));
            let mut count = 0;
            for name in names {
                count += 1;
                assert!(known(name), "{file}: {name}");
            }
            assert!(count > 8, "{file} names {count} metrics");
        }
    }

    /// The labels of a metric in a query: those of the metric, and those that Prometheus adds.
    fn has_label(metric: &str, label: &str) -> bool {
        let of = ALL.iter().find(|it| metric.starts_with(it.name));
        ["instance", "job", "le"].contains(&label)
            || of.is_some_and(|it| it.labels.contains(&label))
    }

    #[test]
    fn the_dashboard_and_the_alerts_use_labels_that_their_metrics_have() {
        let read = |file: &str| {
            std::fs::read_to_string(format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR")))
                .unwrap()
        };
        let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
        let mut count = 0;
        // A query such as `kitfs_read_bytes_total{result="hit"}`.
        for text in [read("grafana.json"), read("alerts.yml")] {
            for part in text.split("kitfs_").skip(1) {
                let (metric, behind) =
                    part.split_at(part.find(|it| !is_name(it)).unwrap_or(part.len()));
                let Some(labels) = behind.strip_prefix('{') else { continue };
                let labels = labels.split('}').next().unwrap_or_default().split(',');
                for label in labels.filter(|it| !it.is_empty()) {
                    let label = label.split(['=', '!']).next().unwrap_or_default().trim();
                    assert!(
                        has_label(&format!("kitfs_{metric}"), label),
                        "kitfs_{metric}: {label}"
                    );
                    count += 1;
                }
            }
        }
        assert!(count > 20, "{count} labels in queries");
        // A text of an alert such as `{{ $labels.host }}`.
        for alert in read("alerts.yml").split("- alert:").skip(1) {
            let metric = alert.split("kitfs_").nth(1).unwrap_or_default();
            let metric = metric.split(|it| !is_name(it)).next().unwrap_or_default();
            for label in alert.split("$labels.").skip(1) {
                let label = label.split(|it| !is_name(it)).next().unwrap_or_default();
                assert!(has_label(&format!("kitfs_{metric}"), label), "kitfs_{metric}: {label}");
            }
        }
    }

    #[test]
    fn the_text_form_escapes_labels_and_sums_buckets() {
        let mut text = Exposition::default();
        text.add(&MOUNT_POISONED, [(vec!["/a \"b\"\\\n", "r"], 1)]);
        text.add(&HOST_RUNNING, []);
        let reads = Reads::default();
        [5, 30, 7_000_000_000].iter().for_each(|us| reads.hit(Duration::from_micros(*us), 1));
        text.add_latencies(&READ_DURATION, [(vec!["hit"], reads.counts().hit)]);
        let text = text.finish();
        assert!(
            text.contains(
                "kitfs_mount_poisoned{mountpoint=\"/a \\\"b\\\"\\\\\\n\",reference=\"r\"} 1\n"
            ),
            "{text}"
        );
        assert!(!text.contains("kitfs_host"), "{text}");
        for line in [
            "# TYPE kitfs_read_duration_seconds histogram",
            "kitfs_read_duration_seconds_bucket{result=\"hit\",le=\"0.00001\"} 1",
            "kitfs_read_duration_seconds_bucket{result=\"hit\",le=\"0.00005\"} 2",
            "kitfs_read_duration_seconds_bucket{result=\"hit\",le=\"300\"} 2",
            "kitfs_read_duration_seconds_bucket{result=\"hit\",le=\"+Inf\"} 3",
            "kitfs_read_duration_seconds_sum{result=\"hit\"} 7000.000035",
            "kitfs_read_duration_seconds_count{result=\"hit\"} 3",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
