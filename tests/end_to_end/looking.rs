//! `kitfs status`, `ps`, `inspect` and `restart`: what is mounted, and who uses it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::counted::{Counted, big_files};
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::Kitfs;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The row of a mount in the table of `kitfs status`.
fn row(kitfs: &Kitfs, mountpoint: &Path, options: &[&str]) -> String {
    let table = kitfs.succeed(&[&["status"], options].concat());
    let row = table.lines().find(|line| line.starts_with(text(mountpoint)));
    row.unwrap_or_else(|| panic!("no row of {}: {table}", mountpoint.display())).to_owned()
}

#[test]
fn before_anything_was_read_nothing_counts_as_resident() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let listed = fs::read_dir(mountpoint.join("weights")).unwrap().count();
    assert_eq!(listed, 3);
    let status = counted.kitfs.status_of(&mountpoint);
    assert_eq!(status["resident_bytes"], 0, "{status}");
    assert!(row(&counted.kitfs, &mountpoint, &[]).ends_with("0 B  fetching"));
    assert!(row(&counted.kitfs, &mountpoint, &["--wide"]).contains("  unconfirmed  "));

    fs::read(mountpoint.join("weights/shard-0")).unwrap();
    let read = counted.kitfs.status_of(&mountpoint)["resident_bytes"].as_u64().unwrap();
    assert!((16 << 20..17 << 20).contains(&read), "{read}");
    counted.kitfs.succeed(&["warm", &counted.reference]);
    let status = counted.kitfs.status_of(&mountpoint);
    assert_eq!(status["resident_bytes"], status["total_bytes"], "{status}");
    assert!(row(&counted.kitfs, &mountpoint, &[]).ends_with("  verified"));
    assert!(row(&counted.kitfs, &mountpoint, &["--wide"]).contains("  confirmed  "));
}

fn kit(kitfs: &Kitfs) -> String {
    let layer = Layer::tar("code", "src").file("src/main.py", 0o644, b"print()");
    let folder = kitfs.folder().join("layout");
    Kit::modelkit().with(layer).write(&folder, "v1");
    format!("oci:{}:v1", folder.display())
}

#[test]
fn mounts_of_other_cache_folders_are_listed() {
    let (one, other) = (Kitfs::new(), Kitfs::new());
    let reference = kit(&one);
    let (own, theirs) = (one.mount(&reference, &[]), other.mount(&reference, &[]));
    for kitfs in [&one, &other] {
        assert_eq!(kitfs.status_of(&own)["cache_folder"], text(&one.cache()));
        assert_eq!(kitfs.status_of(&theirs)["cache_folder"], text(&other.cache()));
    }
    assert!(row(&one, &theirs, &[]).contains(&reference));
}

#[test]
fn the_flag_cache_dir_lists_the_mounts_of_that_folder_only() {
    let (one, other) = (Kitfs::new(), Kitfs::new());
    let reference = kit(&one);
    let (own, theirs) = (one.mount(&reference, &[]), other.mount(&reference, &[]));
    for (asked, expected) in [(&one, &own), (&other, &theirs)] {
        let cache = asked.cache();
        // Each place of the flag counts, and the variable of `one` does not.
        for words in
            [["--cache-dir", text(&cache), "status"], ["status", "--cache-dir", text(&cache)]]
        {
            let table = one.succeed(&words);
            let rows: Vec<_> = table.lines().skip(1).collect();
            assert!(rows.len() == 1 && rows[0].starts_with(text(expected)), "{table}");
            let listed = one.json(&[&words[..], &["--json"]].concat());
            assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
            assert_eq!(listed[0]["cache_folder"], text(&cache));
        }
    }
    let empty = one.folder().join("empty");
    let listed = one.json(&["status", "--json", "--cache-dir", text(&empty)]);
    assert_eq!(listed, serde_json::json!([]));
}

#[test]
fn a_watched_status_comes_again_and_again() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&kit(&kitfs), &[]);
    let mut child = kitfs.command(&["status", "--watch=1"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let rows = lines.filter(|line| line.starts_with(text(&mountpoint)));
    assert_eq!(rows.take(2).count(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn processes_are_listed_with_the_files_that_they_use() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&kit(&kitfs), &[]);
    let users = |options: &[&str]| -> Vec<Value> {
        let listed = kitfs.json(&[&["ps", "--json", text(&mountpoint)], options].concat());
        listed.as_array().unwrap().clone()
    };
    assert!(users(&[]).is_empty());
    let file = File::open(mountpoint.join("src/main.py")).unwrap();
    let own = std::process::id();
    let found = users(&[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["pid"], own);
    assert_eq!(found[0]["files"], serde_json::json!(["src/main.py"]));
    let table = kitfs.succeed(&["ps", "--files", text(&mountpoint)]);
    assert!(table.contains(&own.to_string()) && table.contains("src/main.py"), "{table}");
    drop(file);
    kitfs.fail(3, &["ps", text(kitfs.folder())]);
}

#[test]
fn everything_known_about_a_mount_and_a_kit_is_json() {
    let kitfs = Kitfs::new();
    let reference = kit(&kitfs);
    let mountpoint = kitfs.mount(&reference, &[]);
    let mount = kitfs.json(&["inspect", text(&mountpoint)]);
    assert_eq!(mount["mount"]["mountpoint"], text(&mountpoint));
    assert_eq!(mount["daemon"]["cache_folder"], text(&kitfs.cache()));
    assert_eq!(mount["residency"]["files"], 2, "{mount}");
    let of_kit = kitfs.json(&["inspect", &reference]);
    assert_eq!(of_kit["info"]["digest"], mount["mount"]["digest"], "{of_kit}");
    assert_eq!(of_kit["reference"], mount["reference"]);
    assert_eq!(kitfs.json(&["inspect", text(&mountpoint.join("src"))])["residency"]["files"], 1);
}

#[test]
fn a_restart_keeps_the_mounts() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&kit(&kitfs), &[]);
    let before = kitfs.worker_pid();
    let outcome = kitfs.run(&["restart"]);
    // Where the kernel cannot hand a mount over, the command says so and changes nothing.
    assert_eq!(outcome.code == Some(0), kitfs.worker_pid() != before, "{}", outcome.stderr);
    assert_eq!(fs::read(mountpoint.join("src/main.py")).unwrap(), b"print()");
}
