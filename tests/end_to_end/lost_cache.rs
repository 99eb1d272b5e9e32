//! A cache folder that somebody removes or replaces under a running daemon.

use std::fs;
use std::path::Path;

use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, is_mounted, wait_until};
use crate::support::tree::Tree;

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

#[test]
fn a_daemon_whose_cache_folder_is_gone_is_found_by_its_mounts() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let (first, second) = (kitfs.mount(&reference, &[]), kitfs.mount(&reference, &[]));
    let pid = kitfs.daemon_pid();
    fs::remove_dir_all(kitfs.cache()).unwrap();
    let outcome = kitfs.run(&["status"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(String::from_utf8_lossy(&outcome.stdout).contains(text(&first)));
    assert!(outcome.stderr.contains("was removed or replaced"), "{}", outcome.stderr);
    let status = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(status["pid"], pid);
    assert_eq!(status["cache_folder_is_lost"], true);
    kitfs.unmount(&first);
    assert!(!is_mounted(&first) && is_mounted(&second));
    kitfs.succeed(&["daemon", "stop"]);
    assert!(!is_mounted(&second));
    wait_until("its end", || !Path::new(&format!("/proc/{pid}/exe")).exists());
}

#[test]
fn the_next_daemon_of_a_folder_never_loses_its_socket_to_the_last_one() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let old = kitfs.mount(&reference, &[]);
    let first = kitfs.daemon_pid();
    fs::remove_dir_all(kitfs.cache()).unwrap();
    let new = kitfs.mount(&reference, &[]);
    let second = kitfs.daemon_pid();
    assert_ne!(first, second);
    Tree::read(&new).assert_equals(&Tree::golden("article"), "by the next daemon");
    // The first daemon ends with its last mount: nothing else could find it.
    kitfs.unmount(&old);
    wait_until("the end of the first daemon", || {
        !Path::new(&format!("/proc/{first}/exe")).exists()
    });
    assert_eq!(kitfs.daemon_pid(), second);
    let status = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(status["cache_folder_is_lost"], false);
    assert!(kitfs.succeed(&["status"]).contains(text(&new)));
    kitfs.unmount(&new);
}

#[test]
fn stopping_ends_all_daemons_that_had_the_folder() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let old = kitfs.mount(&reference, &[]);
    // Its content, and not the folder itself.
    for entry in fs::read_dir(kitfs.cache()).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    let new = kitfs.mount(&reference, &[]);
    kitfs.succeed(&["daemon", "stop"]);
    assert!(!is_mounted(&old) && !is_mounted(&new));
}
