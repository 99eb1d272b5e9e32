//! A cache folder that somebody removes or replaces under a running daemon.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::counted::{Counted, big_files};
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

/// Only root may mount another folder over the cache.
mod as_root {
    use super::*;

    /// A mount of another folder at the same place, gone with this value.
    struct Covered(PathBuf);

    impl Drop for Covered {
        fn drop(&mut self) {
            let _ = unmount(&self.0, UnmountFlags::DETACH);
        }
    }

    /// Each way in which a path may lead to another folder while the daemon has the first one open.
    #[test]
    fn a_cache_folder_that_another_one_replaces_is_noticed_and_reads_go_on() {
        for way in ["moved", "covered", "emptied"] {
            let counted = Counted::new(&big_files());
            let kitfs = &counted.kitfs;
            let mountpoint = kitfs.mount(&counted.reference, &["--no-hydrate"]);
            fs::read(mountpoint.join("weights/shard-0")).unwrap();
            let (cache, other) = (kitfs.cache(), kitfs.folder().join("other"));
            let mut covered = None;
            match way {
                "moved" => {
                    fs::rename(&cache, &other).unwrap();
                    fs::create_dir(&cache).unwrap();
                }
                "covered" => {
                    fs::create_dir(&other).unwrap();
                    mount_bind(&other, &cache).expect("only root may mount");
                    covered = Some(Covered(cache.clone()));
                }
                _ => {
                    // The daemon may make a file in a folder that was just emptied.
                    wait_until("it is removed", || {
                        let _ = fs::remove_dir_all(&cache);
                        !cache.exists()
                    });
                    fs::create_dir(&cache).unwrap();
                }
            }
            wait_until("it is noticed", || {
                kitfs.json(&["daemon", "status", "--json"])["cache_folder_is_lost"] == true
            });
            let what = format!("the cache folder was {way}");
            Tree::read(&mountpoint).without_kitfile().assert_equals(&counted.written.tree, &what);
            assert!(!cache.join("layers").exists(), "{way}: the new folder is another's");
            kitfs.unmount(&mountpoint);
            drop(covered);
        }
    }
}
