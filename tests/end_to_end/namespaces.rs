//! Commands that see another file tree than the daemon: in a container that shares the cache folder, after
//! `unshare --mount`.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::counted::{Counted, big_files, expected_content};
use crate::support::kitfs::{DROP_OTHERS, Kitfs, Outcome, is_mounted, wait_until};
use crate::support::tree::sha256;
use crate::support::{golden, golden_reference};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// Runs a command in a mount namespace of its own, after `before`.
fn in_namespace(kitfs: &Kitfs, propagation: &str, before: &str, arguments: &[&str]) -> Outcome {
    let script = format!(
        "unshare --mount --propagation {propagation} sh -c '{DROP_OTHERS} {before}\nexec \"$@\"' sh \"$@\"\nexit $?"
    );
    Kitfs::run_command(kitfs.command_after(&script, arguments))
}

#[test]
fn a_command_mounts_in_its_own_namespace_through_a_daemon_outside() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let place = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    for propagation in ["private", "slave"] {
        let script = format!(
            "unshare --mount --propagation {propagation} sh -ec '{DROP_OTHERS} \"$0\" \"$@\"; cat {0}/Kitfile; \"$0\" status; \
             \"$0\" umount {0}; \"$0\" mount {1} {0}; ls {0}' \"$@\"; exit $?",
            text(&place),
            reference
        );
        let outcome =
            Kitfs::run_command(kitfs.command_after(&script, &["mount", &reference, text(&place)]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let said = String::from_utf8(outcome.stdout).unwrap();
        assert!(said.contains("manifestVersion"), "{said}");
        // The command that asks sees the mountpoint, so nothing is to be said about it.
        assert!(!said.contains("another namespace"), "{said}");
        assert!(!is_mounted(&place), "it is mounted outside, too");
        // The kernel ends the mount with its namespace.
        wait_until("the end of the mount", || {
            kitfs.json(&["daemon", "status", "--json"])["mounts"] == serde_json::json!([])
        });
    }
}

#[test]
fn the_end_of_a_daemon_takes_mounts_out_of_other_namespaces() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let place = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    let script = format!(
        "unshare --mount --propagation private sh -ec '{DROP_OTHERS} \"$0\" \"$@\"; touch {1}; \
         for i in $(seq 300); do grep -q \" {0} fuse.kitfs\" /proc/mounts || exit 0; sleep 0.1; done; exit 9' \
         \"$@\"; exit $?",
        text(&place),
        text(&kitfs.folder().join("made"))
    );
    let command = kitfs.command_after(&script, &["mount", &reference, text(&place)]);
    let inside = std::thread::spawn(move || Kitfs::run_command(command));
    wait_until("the mount", || kitfs.folder().join("made").exists());
    let status = kitfs.succeed(&["status"]);
    assert!(status.contains("(in another namespace)"), "{status}");
    kitfs.succeed(&["daemon", "stop"]);
    let outcome = inside.join().unwrap();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
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

/// Two containers that share the folder of the cache: each has its own processes, network and mounts.
#[test]
fn containers_share_a_daemon_outside_or_in_another_container_and_fetch_a_byte_once() {
    const CONTAINER: &str = "unshare --mount --propagation private --pid --fork --mount-proc";
    for is_daemon_outside in [true, false] {
        let counted = Counted::new(&big_files());
        let kitfs = &counted.kitfs;
        let place = kitfs.mountpoint("mnt");
        let over = kitfs.folder().join("over");
        // The daemon's container lives until its cache is no longer needed.
        let daemon = match is_daemon_outside {
            true => {
                kitfs.succeed(&["daemon", "start"]);
                None
            }
            false => {
                let script = format!("{CONTAINER} \"$@\"; exit $?");
                let mut daemon = kitfs.command_after(&script, &["daemon", "run"]);
                Some(daemon.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
            }
        };
        wait_until("the daemon", || kitfs.run(&["daemon", "status"]).code == Some(0));
        let mut mounted = Vec::new();
        for name in ["one", "two"] {
            let made = kitfs.folder().join(name);
            // Another network: the daemon is not found by its abstract address from there.
            let network = if name == "two" { "--net" } else { "" };
            let script = format!(
                "{CONTAINER} {network} sh -ec '{DROP_OTHERS} \"$0\" \"$@\"; sha256sum {0}/weights/* >{1}.part; \
                 mv {1}.part {1}; until test -e {2}; do sleep 0.1; done; \"$0\" umount {0}' \"$@\"; \
                 exit $?",
                text(&place),
                text(&made),
                text(&over)
            );
            let arguments = ["mount", &counted.reference, text(&place)];
            let command = kitfs.command_after(&script, &arguments);
            mounted.push((made, std::thread::spawn(move || Kitfs::run_command(command))));
        }
        let sums: Vec<String> = mounted
            .iter()
            .map(|(made, _)| {
                wait_until("the sums", || made.exists());
                fs::read_to_string(made).unwrap()
            })
            .collect();
        let status = kitfs.json(&["status", "--json"]);
        // Other tests' dead mounts are listed, too.
        let own = status.as_array().unwrap().iter();
        let own = own.filter(|mount| mount["mountpoint"] == text(&place));
        assert_eq!(own.count(), 2, "{status}");
        fs::write(&over, "").unwrap();
        for (_, thread) in mounted {
            let outcome = thread.join().unwrap();
            assert_eq!(outcome.code, Some(0), "{}{}", outcome.stderr, kitfs.log());
        }
        assert_eq!(sums[0], sums[1]);
        for index in 0..3 {
            assert!(sums[0].contains(&sha256(&expected_content(&counted, index))), "{sums:?}");
        }
        // Both containers may have fetched the config at the same time.
        let config = fs::metadata(counted.written.blob(&counted.written.config)).unwrap().len();
        let (fetched, everything) = (counted.fetched(), counted.everything());
        assert!(fetched <= everything + config, "{fetched} of {everything}");
        assert!(!is_mounted(&place));
        kitfs.succeed(&["daemon", "stop"]);
        daemon.into_iter().for_each(|mut daemon| _ = daemon.wait());
    }
}
