//! `kitfs explain`: why bytes were fetched, and how long reads waited.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::counted::{Counted, big_files};
use crate::support::registry_double::{Fault, Rule};

const MIB: u64 = 1 << 20;

fn entries<'a>(explanation: &'a Value, which: &str) -> &'a [Value] {
    explanation[which].as_array().unwrap()
}

#[test]
fn a_read_is_explained_by_its_process_its_steps_and_its_host() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let path = mountpoint.join("weights/shard-1");
    let path = path.to_str().unwrap();
    let before = counted.kitfs.json(&["explain", "--json", path]);
    assert!(
        entries(&before, "transfers").is_empty() && entries(&before, "waits").is_empty(),
        "{before}"
    );
    let said = counted.kitfs.succeed(&["explain", path]);
    assert!(said.contains("in the cache, layer sha256:"), "{said}");

    let read = Command::new("cat").arg(path).output().unwrap();
    assert_eq!(read.stdout.len() as u64, 16 * MIB);
    let explained = counted.kitfs.json(&["explain", "--json", path]);
    let transfers = entries(&explained, "transfers");
    let is_whole = |transfer: &Value| {
        transfer["outcome"] == "done" && transfer["host"] == counted.registry.host().as_str()
    };
    assert!(!transfers.is_empty() && transfers.iter().all(is_whole), "{explained}");
    let of_cat = |transfer: &&Value| transfer["readers"][0]["command"] == "cat";
    assert!(transfers.iter().any(|transfer| of_cat(&transfer)), "{explained}");
    let causes: Vec<_> = transfers.iter().map(|it| it["cause"].as_str().unwrap()).collect();
    assert!(causes.iter().all(|cause| ["read", "readahead"].contains(cause)), "{causes:?}");
    assert!(causes.contains(&"readahead"), "{causes:?}");
    let brought: u64 = transfers
        .iter()
        .map(|it| it["end"].as_u64().unwrap() - it["start"].as_u64().unwrap())
        .sum();
    // The first KiB came with the header of the archive.
    assert!((15 * MIB..=16 * MIB).contains(&brought), "{brought}");
    let waits = entries(&explained, "waits");
    assert!(
        waits.iter().all(|wait| wait["reader"]["command"] == "cat" && wait["error"].is_null()),
        "{explained}"
    );

    // A neighbour in another layer has a history of its own.
    let other = mountpoint.join("weights/shard-2");
    let other = counted.kitfs.json(&["explain", "--json", other.to_str().unwrap()]);
    assert!(entries(&other, "transfers").is_empty(), "{other}");
    let said = counted.kitfs.succeed(&["explain", path]);
    assert!(said.contains(" for cat ") && said.contains(&counted.registry.host()), "{said}");
    counted.kitfs.fail(2, &["explain", mountpoint.to_str().unwrap()]);
}

#[test]
fn the_last_failure_of_a_file_is_explained() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--read-deadline", "1"]);
    counted.registry.script(Rule::on("/blobs/").then(Fault::Status(503)));
    let path = mountpoint.join("weights/shard-0");
    assert!(fs::read(&path).is_err());
    let path = path.to_str().unwrap();
    let explained = counted.kitfs.json(&["explain", "--json", path]);
    let failed = entries(&explained, "waits").iter().filter(|wait| wait["error"].is_string());
    assert!(failed.count() > 0, "{explained}");
    let retries = |it: &Value| it["retries"].as_u64().unwrap();
    assert!(entries(&explained, "transfers").iter().map(retries).sum::<u64>() > 0, "{explained}");
    let said = counted.kitfs.succeed(&["explain", path]);
    assert!(said.contains("\nThe last read that failed: no answer within 1 s"), "{said}");
}

#[test]
fn a_warmed_file_is_explained_by_the_warm() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    counted.kitfs.succeed(&["warm", &counted.reference, "weights/shard-2"]);
    let path = mountpoint.join("weights/shard-2");
    let explained = counted.kitfs.json(&["explain", "--json", path.to_str().unwrap()]);
    let causes: Vec<_> =
        entries(&explained, "transfers").iter().map(|it| it["cause"].as_str().unwrap()).collect();
    assert!(causes.contains(&"warm"), "{explained}");
    assert!(causes.iter().all(|cause| ["warm", "rest"].contains(cause)), "{explained}");
}
