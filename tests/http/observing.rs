//! Metrics, activity, and the page.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Served, golden_path};
use crate::support::Random;
use crate::support::golden_reference;
use crate::support::http_client::{ask, get};
use crate::support::kit_builder::{Kit, Layer};
use crate::support::registry_double::{Fault, Options, RegistryDouble, Rule};

/// The samples of an exposition by name and labels. Fails on a line that the format does not have.
#[track_caller]
fn parse(text: &str) -> HashMap<String, f64> {
    let (mut types, mut helped) = (HashMap::new(), Vec::new());
    let mut samples = HashMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped.push(help.split_once(' ').expect("a help text").0);
        } else if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').expect("a type");
            assert_eq!(helped.last(), Some(&name), "{line}");
            assert!(types.insert(name, kind).is_none(), "{name} is there twice");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let name = series.split('{').next().unwrap();
            let is_of = |known: &&str| {
                name == *known
                    || (types[known] == "histogram"
                        && ["_bucket", "_sum", "_count"]
                            .iter()
                            .any(|end| name.strip_suffix(end) == Some(known)))
            };
            // Samples come behind the description of their metric.
            assert!(helped.last().is_some_and(is_of), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                check_labels(labels);
            }
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "{series} is there twice");
        }
    }
    samples
}

#[track_caller]
fn check_labels(labels: &str) {
    let mut rest = labels.strip_prefix('{').and_then(|it| it.strip_suffix('}')).expect("braces");
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{labels}"));
        assert!(name.bytes().all(|it| it.is_ascii_lowercase() || it == b'_'), "{labels}");
        let (mut end, mut is_escaped) = (None, false);
        for (at, character) in value.char_indices() {
            match (is_escaped, character) {
                (true, '\\' | '"' | 'n') => is_escaped = false,
                (true, _) => panic!("{labels}"),
                (false, '\\') => is_escaped = true,
                (false, '"') => {
                    end = Some(at);
                    break;
                }
                (false, _) => {}
            }
        }
        rest = &value[end.unwrap_or_else(|| panic!("{labels}")) + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn metrics_count_what_programs_read_and_what_came() {
    let served = Served::with_options(&["--retries", "0"]);
    let content = Random::new(9).bytes(6 * 1024 * 1024);
    let layout = served.kitfs.folder().join("layout");
    let layer = Layer::tar("model", "model.bin").file("model.bin", 0o644, &content);
    Kit::modelkit().with(layer).write(&layout, "v1");
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    registry.push_layout("org/model", &layout);
    let reference = registry.reference("org/model", "v1");
    let before = parse(&get(served.server, "/metrics").text());
    assert_eq!(before["kitfs_mounts"], 0.0);
    assert_eq!(before["kitfs_read_bytes_total{result=\"miss\"}"], 0.0);

    let mountpoint = served.kitfs.mount(&reference, &["--no-passthrough", "--hydrate", "none"]);
    assert!(std::fs::read(mountpoint.join("model.bin")).unwrap() == content);
    let answer = get(served.server, "/metrics");
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let after = parse(&answer.text());
    let value =
        |series: &str| *after.get(series).unwrap_or_else(|| panic!("no {series}: {after:?}"));
    assert_eq!(value("kitfs_mounts"), 1.0);
    let read = value("kitfs_read_bytes_total{result=\"hit\"}")
        + value("kitfs_read_bytes_total{result=\"miss\"}");
    assert!(read >= content.len() as f64, "{read}");
    assert!(value("kitfs_read_duration_seconds_count{result=\"miss\"}") >= 1.0);
    for result in ["hit", "miss"] {
        let of = |what: &str| value(&format!("kitfs_read_duration_seconds_{what}"));
        let count = of(&format!("count{{result=\"{result}\"}}"));
        assert_eq!(of(&format!("bucket{{result=\"{result}\",le=\"+Inf\"}}")), count);
    }
    let causes = ["on_demand", "readahead", "prefetch", "warm", "hydrate"];
    let fetched: f64 = causes
        .iter()
        .map(|cause| value(&format!("kitfs_fetched_bytes_total{{cause=\"{cause}\"}}")))
        .sum();
    assert!(fetched >= content.len() as f64, "{fetched}");
    assert_eq!(value("kitfs_fetched_bytes_total{cause=\"warm\"}"), 0.0);
    let host = registry.host();
    assert!(
        value(&format!("kitfs_source_requests_total{{host=\"{host}\",outcome=\"ok\"}}")) >= 1.0
    );
    assert!(
        value(&format!("kitfs_host_received_bytes_total{{host=\"{host}\"}}"))
            >= content.len() as f64
    );
    let labels = format!("{{mountpoint=\"{}\",reference=\"{reference}\"}}", mountpoint.display());
    let resident = value(&format!("kitfs_mount_resident_bytes{labels}"));
    assert_eq!(resident, value(&format!("kitfs_mount_content_bytes{labels}")));
    assert!(value("kitfs_cache_resident_bytes") >= content.len() as f64);

    served.kitfs.unmount(&mountpoint);
    served.kitfs.succeed(&["cache", "clear"]);
    served.kitfs.succeed(&["warm", &reference]);
    let warmed = parse(&get(served.server, "/metrics").text());
    let warmed = warmed["kitfs_fetched_bytes_total{cause=\"warm\"}"];
    // The command that opened the kit has read the headers, on demand.
    assert!(warmed > 0.9 * content.len() as f64, "{warmed}");
    served.kitfs.succeed(&["cache", "clear"]);
    let file = format!("/v1/files/{reference}/model.bin");
    assert_eq!(ask(served.server, "HEAD", &file, &[]).status, 200);
    registry.script(Rule::on("/blobs/").then(Fault::Status(404)));
    assert_eq!(ask(served.server, "GET", &file, &["Range: bytes=4000000-4000009"]).status, 404);
    let last = parse(&get(served.server, "/metrics").text());
    let missing =
        &last[&format!("kitfs_source_requests_total{{host=\"{host}\",outcome=\"not_found\"}}")];
    assert!(*missing >= 1.0);
    let activity = get(served.server, "/v1/activity").json();
    assert_eq!(activity["sample_seconds"], 5);
    assert!(
        activity["hosts"].as_array().unwrap().iter().any(|it| it["host"] == host.as_str()),
        "{activity}"
    );
    runtime.shutdown_background();
}

#[test]
fn the_page_shows_mounts_and_their_files() {
    let served = Served::new();
    let empty = get(served.server, "/");
    assert!(empty.text().contains("Nothing is mounted."), "{empty:?}");
    let reference = golden_reference("article");
    let mountpoint = served.kitfs.mount(&reference, &[]);
    std::fs::read(mountpoint.join("Kitfile")).unwrap();
    let page = get(served.server, "/");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(
        page.header("content-security-policy").starts_with("default-src 'none'; style-src 'self'")
    );
    let text = page.text();
    let map = served.kitfs.json(&["map", "--json", mountpoint.to_str().unwrap()]);
    let largest = &map["rows"][0]["path"];
    for words in
        [mountpoint.file_name().unwrap().to_str().unwrap(), &reference, largest.as_str().unwrap()]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("<script") && !text.contains("style="), "{text}");
    let style = get(served.server, "/style.css");
    assert!(style.status == 200 && style.header("content-type").starts_with("text/css"));
    let got =
        get(served.server, &golden_path("residency", "article", "?rows=4096&ranges=0")).json();
    let rows = |map: &Value| -> Vec<Value> {
        map["rows"].as_array().unwrap().iter().map(|row| row["path"].clone()).collect()
    };
    let (mut here, mut there) = (rows(&got), rows(&map));
    here.sort_by_key(Value::to_string);
    there.sort_by_key(Value::to_string);
    assert_eq!(here, there);
    let wrong = get(served.server, &golden_path("residency", "article", "?rows=-1"));
    assert_eq!((wrong.status, &wrong.json()["error"]["kind"]), (400, &json!("usage")));
    assert_eq!(ask(served.server, "HEAD", "/", &[]).body.len(), 0);
}
