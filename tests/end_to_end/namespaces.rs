//! Commands that see another file tree than the daemon: in a container that shares the cache folder, after
//! `unshare --mount`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::kitfs::{Kitfs, Outcome, is_mounted};
use crate::support::{golden, golden_reference};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// Runs a command in a mount namespace of its own, after `before`.
fn in_namespace(kitfs: &Kitfs, propagation: &str, before: &str, arguments: &[&str]) -> Outcome {
    let script = format!(
        "unshare --mount --propagation {propagation} sh -c '{before}\nexec \"$@\"' sh \"$@\"\nexit $?"
    );
    Kitfs::run_command(kitfs.command_after(&script, arguments))
}

#[test]
fn a_mount_that_the_command_cannot_see_is_removed_again_with_the_reason() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let place = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    let outcome = in_namespace(&kitfs, "private", "", &["mount", &reference, text(&place)]);
    assert_eq!(outcome.code, Some(7), "{}", outcome.stderr);
    for words in ["another mount namespace", "--cache-dir", &kitfs.daemon_pid().to_string()] {
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    assert!(!is_mounted(&place), "it is still mounted outside");
    // In the foreground the command serves the mount itself.
    let own = kitfs.folder().join("own");
    let foreground = ["mount", "--foreground", "--cache-dir", text(&own), &reference, text(&place)];
    let seen = kitfs.folder().join("seen");
    let before = format!(
        "(until ls {0}/Kitfile; do sleep 0.1; done; ls {0} >{1}; umount {0}) 2>/dev/null &",
        text(&place),
        text(&seen)
    );
    let outcome = in_namespace(&kitfs, "private", &before, &foreground);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(fs::read_to_string(&seen).unwrap().contains("Kitfile"));
}

#[test]
fn a_mount_that_propagates_to_the_command_is_a_mount() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let shared = kitfs.mountpoint("shared");
    for arguments in
        [["--bind", text(&shared), text(&shared)], ["--make-shared", text(&shared), ""]]
    {
        let arguments = arguments.iter().filter(|argument| !argument.is_empty());
        assert!(Command::new("mount").args(arguments).status().unwrap().success());
    }
    let place = shared.join("mnt");
    let reference = golden_reference("article");
    let outcome = in_namespace(&kitfs, "slave", "", &["mount", &reference, text(&place)]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(place.join("Kitfile").exists());
    kitfs.unmount(&place);
    assert!(Command::new("umount").arg(&shared).status().unwrap().success());
}

#[test]
fn a_folder_that_the_daemon_cannot_see_is_explained() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let place = kitfs.folder().join("hidden");
    fs::create_dir(&place).unwrap();
    let before = format!(
        "mount -t tmpfs none {0} && cp -r {1} {0}/kit",
        text(&place),
        golden("article").display()
    );
    let reference = format!("oci:{}/kit:v1", text(&place));
    for command in ["ls", "info"] {
        let outcome = in_namespace(&kitfs, "private", &before, &[command, &reference]);
        assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("another mount namespace"), "{}", outcome.stderr);
    }
    // A daemon that sees the same tree has nothing to explain.
    let said = kitfs.fail(3, &["ls", &reference]);
    assert!(!said.contains("namespace"), "{said}");
}
