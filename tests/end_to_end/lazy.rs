//! Amounts that are fetched, counted in bytes by the registry that sends them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use serde_json::Value;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::Random;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::registry_double::{At, Fault, Rule};
use crate::support::tree::Tree;

/// The cache's unit: ranges are rounded to it.
const CHUNK_BYTES: u64 = 256 << 10;
const MIB: u64 = 1 << 20;
/// The number of programs that read at once.
const READERS: usize = 16;

#[test]
fn mounting_and_listing_big_files_fetches_less_than_a_hundredth() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let listed = fs::read_dir(mountpoint.join("weights")).unwrap();
    let sizes: Vec<_> = listed.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(sizes, [16 * MIB; 3]);
    let (fetched, all) = (counted.fetched(), counted.everything());
    assert!(fetched < all / 100, "{fetched} of {all} bytes were fetched for a listing");
}

#[test]
fn mounting_a_raw_kit_fetches_nothing_of_its_layers() {
    let content = Random::new(8).bytes(8 << 20);
    let counted = Counted::new(&Kit::modelkit().with(Layer::raw("model", "m", 0o644, &content)));
    let mountpoint = counted.mount();
    assert_eq!(fs::metadata(mountpoint.join("m")).unwrap().len(), 8 * MIB);
    let config = counted.everything() - counted.written.layer_bytes();
    assert_eq!(counted.fetched(), config);
}

#[test]
fn a_range_is_fetched_and_no_more_than_its_chunks() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let file = File::open(mountpoint.join("weights/shard-1")).unwrap();
    // Random access switches the kernel's readahead off, so that only the test's reads count.
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let expected = expected_content(&counted, 1);
    // Ranges within a chunk, across two chunks, and at the end of the file.
    for (start, length, chunks) in
        [(5 * MIB + 1000, 4096, 1), (9 * MIB - 2000, 4000, 2), (16 * MIB - 100, 100, 1)]
    {
        let before = counted.fetched();
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, start).unwrap();
        let start = start as usize;
        assert!(buffer == expected[start..start + length], "wrong bytes at {start}");
        let fetched = counted.fetched() - before;
        let least = length as u64;
        let most = chunks * CHUNK_BYTES;
        assert!((least..=most).contains(&fetched), "{fetched} bytes for {length} at {start}");
    }
}

#[test]
fn many_readers_at_once_fetch_every_byte_once() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let again = counted.mount();
    let expected = counted.written.tree.clone();
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            // Two mounts of the same kit share the fetched bytes.
            let root = if reader % 2 == 0 { &mountpoint } else { &again };
            let expected = &expected;
            scope.spawn(move || {
                let read = Tree::read(root).without_kitfile();
                read.assert_equals(expected, "a reader");
            });
        }
    });
    let (fetched, all) = (counted.fetched(), counted.everything());
    assert!(fetched <= all, "{fetched} bytes were fetched and there are {all}");
}

#[test]
fn a_restarted_daemon_fetches_nothing_again() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let expected = expected_content(&counted, 0);
    assert!(fs::read(mountpoint.join("weights/shard-0")).unwrap() == expected);
    counted.kitfs.succeed(&["daemon", "stop"]);
    let before = counted.fetched();
    let mountpoint = counted.mount();
    assert!(fs::read(mountpoint.join("weights/shard-0")).unwrap() == expected);
    assert_eq!(counted.fetched() - before, 0, "bytes were fetched again");
}

#[test]
fn a_killed_daemon_has_fetched_nothing_in_vain() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let expected = expected_content(&counted, 0);
    assert!(fs::read(mountpoint.join("weights/shard-0")).unwrap() == expected);
    counted.kitfs.kill_daemon();
    counted.kitfs.unmount(&mountpoint);
    let before = counted.fetched();
    let mountpoint = counted.mount();
    assert!(fs::read(mountpoint.join("weights/shard-0")).unwrap() == expected);
    assert_eq!(counted.fetched() - before, 0, "bytes were fetched again");
}

#[test]
fn a_compressed_layer_is_fetched_once() {
    let mut random = Random::new(9);
    let content = random.bytes(6 << 20);
    let text = "many words, many words ".repeat(100_000);
    let counted = Counted::new(
        &Kit::modelkit()
            .with(Layer::tar("model", "m").file("m/w", 0o644, &content).gzip())
            .with(Layer::tar("dataset", "d").file("d/t", 0o644, text.as_bytes()).zstd()),
    );
    for _ in 0..2 {
        let mountpoint = counted.mount();
        let read = Tree::read(&mountpoint).without_kitfile();
        read.assert_equals(&counted.written.tree, "a compressed kit");
    }
    let (fetched, all) = (counted.fetched(), counted.everything());
    assert!(fetched <= all, "{fetched} bytes were fetched and there are {all}");
}

#[test]
fn a_registry_without_ranges_is_read_once_by_whole_layers() {
    let counted = Counted::new(&big_files());
    counted.registry.script(Rule::on("/blobs/").at(At::Registry).then(Fault::IgnoreRange));
    let mountpoint = counted.mount();
    let after_mount = counted.registry.requests().len();
    let read = Tree::read(&mountpoint).without_kitfile();
    read.assert_equals(&counted.written.tree, "from whole blobs");
    let after_reading = counted.registry.requests().len();
    assert_eq!(after_reading, after_mount, "what came by with the headers was not kept");
}

#[test]
fn looking_without_mounting_shares_the_cache() {
    let counted = Counted::new(&big_files());
    let file = format!("{}/weights/shard-2", counted.reference);
    let expected = expected_content(&counted, 2);
    assert!(counted.kitfs.run(&["cat", &file]).stdout == expected);
    let before = counted.fetched();
    let mountpoint = counted.mount();
    assert!(fs::read(mountpoint.join("weights/shard-2")).unwrap() == expected);
    assert!(counted.kitfs.run(&["cat", &file]).stdout == expected, "through the daemon");
    assert_eq!(counted.fetched() - before, 0, "bytes were fetched again");
}

#[test]
fn cat_of_a_range_fetches_the_range_alone() {
    let counted = Counted::new(&big_files());
    let file = format!("{}/weights/shard-2", counted.reference);
    let expected = expected_content(&counted, 2);
    let cat = |options: &[&str]| {
        let output = counted.kitfs.run(&[&["cat"][..], options, &[file.as_str()]].concat());
        assert_eq!(output.code, Some(0), "{options:?}: {}", output.stderr);
        output.stdout
    };
    assert!(cat(&["--length", "10"]) == expected[..10]);
    let before = counted.fetched();
    assert!(cat(&["--offset", "15000000", "--length", "1000"]) == expected[15_000_000..15_001_000]);
    // The range lies in one chunk, or in two.
    assert!(counted.fetched() - before <= 512 * 1024, "{}", counted.fetched() - before);
    assert!(cat(&["--offset", "1234567"]) == expected[1_234_567..], "several parts");
    assert!(cat(&["--offset", "16777200", "--length", "1MiB"]) == expected[16_777_200..]);
    for behind in ["16777216", "20000000"] {
        assert!(cat(&["--offset", behind, "--length", "5"]).is_empty());
    }
    counted.kitfs.fail(2, &["cat", "--length", "1", &format!("{}/weights", counted.reference)]);
    counted.kitfs.fail(2, &["cat", "--length", "1", &file, &file]);
}

#[test]
fn status_counts_what_is_resident() {
    let counted = Counted::new(&big_files());
    let mountpoint = counted.mount();
    let resident = |status: &Value| status["resident_bytes"].as_u64().unwrap();
    let status = counted.kitfs.status_of(&mountpoint);
    assert!(resident(&status) < MIB, "{status}");
    fs::read(mountpoint.join("weights/shard-0")).unwrap();
    let status = counted.kitfs.status_of(&mountpoint);
    assert!((16 * MIB..18 * MIB).contains(&resident(&status)), "{status}");
    assert!(status["total_bytes"].as_u64().unwrap() >= 48 * MIB, "{status}");
    assert_eq!(status["digest"], counted.written.digest.as_str());
}
