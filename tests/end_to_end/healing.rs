//! A byte that changes on its way from a registry, and the programs that read it.
#![allow(unsafe_code, reason = "mmap(2) of a mounted file")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde_json::Value;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::kitfs::wait_until;
use crate::support::registry_double::{Fault, Rule};

/// A file that a program maps and touches before its layer turns out to be wrong, and another that is read.
#[test]
fn a_mapped_file_shows_right_bytes_after_a_byte_came_wrong() {
    let counted = Counted::new(&big_files());
    // The cache knows the headers already, so the fault hits bytes of the file.
    counted.kitfs.succeed(&["ls", &counted.reference]);
    counted.registry.script(Rule::on(&counted.written.layers[0].0).times(1).then(Fault::Corrupt));
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--hydrate", "none"]);
    let (path, expected) = (mountpoint.join("weights/shard-0"), expected_content(&counted, 0));
    let file = File::open(&path).unwrap();
    // SAFETY: a read-only mapping of a file, unmapped below.
    let (start, mapped) = unsafe {
        let none = std::ptr::null_mut();
        let (read, length) = (ProtFlags::READ, expected.len());
        let start = mmap(none, length, read, MapFlags::SHARED, &file, 0).unwrap();
        (start, std::slice::from_raw_parts(start.cast::<u8>(), length))
    };
    // SAFETY: `at` lies within the map.
    let byte = |at: usize| unsafe { std::ptr::read_volatile(&raw const mapped[at]) };
    let wrong: Vec<usize> = (0..expected.len()).filter(|at| byte(*at) != expected[*at]).collect();
    wait_until("the digest", || layer_state(&counted) == "confirmed");
    wait_until("right bytes in the map", || wrong.iter().all(|at| byte(*at) == expected[*at]));
    assert!(mapped == expected);
    // SAFETY: nothing uses the map any more.
    unsafe { munmap(start, expected.len()).unwrap() };
    assert!(fs::read(&path).unwrap() == expected);

    let status = counted.kitfs.status_of(&mountpoint);
    let replaced = status["replaced"].as_array().expect("what came wrong is named");
    let holds = |at: &usize| {
        let number = |range: &Value, end: &str| range[end].as_u64().unwrap() as usize;
        replaced.iter().any(|range| (number(range, "start")..number(range, "end")).contains(at))
    };
    assert!(wrong.iter().all(holds), "{wrong:?}: {status}");
    assert!(replaced.iter().all(|range| range["path"] == "weights/shard-0"), "{status}");
    let said = counted.kitfs.run(&["status"]).stderr;
    assert!(said.contains("weights/shard-0 came with wrong bytes"), "{said}");
}

fn layer_state(counted: &Counted) -> String {
    let report = counted.kitfs.json(&["cache", "ls", "--json"]);
    let layers = report.as_array().or_else(|| report["layers"].as_array()).unwrap();
    let digest = &counted.written.layers[0].0;
    let layer = layers.iter().find(|layer| layer["digest"] == digest.as_str()).unwrap();
    layer["state"].as_str().unwrap().to_owned()
}

/// Both copies are wrong. The registry is repaired, and the layer removed under the mount.
#[test]
fn a_poisoned_layer_is_removed_while_it_is_mounted() {
    let counted = Counted::new(&big_files());
    counted.kitfs.succeed(&["ls", &counted.reference]);
    let digest = &counted.written.layers[0].0;
    let is_wrong = Rule::on(digest).then(Fault::Corrupt);
    counted.registry.script(is_wrong);
    let mountpoint = counted.kitfs.mount(&counted.reference, &["--hydrate", "none"]);
    let path = mountpoint.join("weights/shard-0");
    let _ = fs::read(&path);
    wait_until("the digest", || layer_state(&counted) == "poisoned");
    let file = File::open(&path).unwrap();
    wait_until("no page is left", || file.read_exact_at(&mut [0], 0).is_err());
    counted.registry.heal();
    counted.kitfs.succeed(&["cache", "rm", digest]);
    assert!(fs::read(&path).unwrap() == expected_content(&counted, 0));
    wait_until("the digest", || layer_state(&counted) == "confirmed");
}
