//! Writable views (`kitfs mount --overlay`): as root, in a user namespace, and as an ordinary user through
//! fuse-overlayfs. A scenario is a shell script, because a user namespace ends with its last process.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::golden_reference;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{DROP_OTHERS, Kitfs, is_mounted};

/// A user that every Debian has: fusermount3 looks for the name.
const USER: u32 = 1;

/// How a view is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Root,
    Namespace,
    Program,
}

const WAYS: [Way; 3] = [Way::Root, Way::Namespace, Way::Program];

/// Functions for scripts: `k` runs kitfs, `die` kills both processes of the daemon.
const PRELUDE: &str = r#"set -eu
k() { "$KITFS" "$@"; }
refused() { if k "$@" >words 2>&1; then echo "not refused: $*" >&2; exit 1; fi; cat words; }
pids() { k daemon status --json | grep -oE '"(worker_)?pid": ?[0-9]+' | grep -oE '[0-9]+$'; }
gone() { for pid in "$@"; do while kill -0 $pid 2>/dev/null && ! grep -q '^State:.Z' /proc/$pid/status; do sleep 0.05; done; done; }
die() { all=$(pids); kill -STOP $all; kill -KILL $all; gone $all; }
worker() { k daemon status --json | grep -oE '"worker_pid": ?[0-9]+' | grep -oE '[0-9]+$'; }
"#;

/// Runs a script that must succeed; returns its output.
#[track_caller]
fn scenario(kitfs: &Kitfs, way: Way, script: &str) -> String {
    let outcome = Kitfs::run_command(command(kitfs, way, script));
    assert_eq!(outcome.code, Some(0), "{way:?}: {}{}", outcome.stderr, kitfs.log());
    String::from_utf8(outcome.stdout).expect("the output is text")
}

fn command(kitfs: &Kitfs, way: Way, script: &str) -> Command {
    let inner = kitfs.command(&["--version"]);
    let script =
        format!("{PRELUDE}{}{script}", if way == Way::Namespace { DROP_OTHERS } else { "" });
    let mut command = match way {
        Way::Root | Way::Program => Command::new("sh"),
        Way::Namespace => {
            let mut command = Command::new("unshare");
            command.args([
                "--user",
                "--map-root-user",
                "--mount",
                "--propagation",
                "private",
                "sh",
            ]);
            command
        }
    };
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("KITFS", inner.get_program()).current_dir(kitfs.folder());
    command.arg("-c").arg(script);
    if way == Way::Program {
        for folder in [kitfs.folder(), &kitfs.folder().join("home")] {
            chown(folder, Some(USER), Some(USER)).unwrap();
        }
        command.uid(USER).gid(USER);
    }
    command
}

/// A kit with files in folders, some of which nobody may write.
fn kit(kitfs: &Kitfs, way: Way, name: &str, content: &str) -> String {
    let folder = kitfs.folder().join(name);
    let layer = Layer::tar("dataset", "data")
        .directory("data", 0o755)
        .directory("data/closed", 0o555)
        .file("data/closed/one", 0o444, content.as_bytes())
        .directory("data/sub", 0o755)
        .directory("data/sub/deep", 0o755)
        .file("data/sub/deep/two", 0o644, b"two\n")
        .file("data/three", 0o644, b"three\n");
    Kit::modelkit().with(layer).write(&folder, "v1");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    if way == Way::Program {
        assert!(
            Command::new("chown")
                .arg("-R")
                .arg(USER.to_string())
                .arg(&folder)
                .status()
                .unwrap()
                .success()
        );
    }
    format!("oci:{}:v1", folder.display())
}

#[test]
fn everything_in_a_view_can_be_edited_renamed_and_deleted() {
    for way in WAYS {
        let kitfs = Kitfs::new();
        let reference = kit(&kitfs, way, "kit", "one\n");
        let said = scenario(
            &kitfs,
            way,
            &format!(
                r#"
            k mount --overlay {reference} mnt >/dev/null
            test "$(stat -c %u mnt/data/closed/one)" = "$(id -u)"
            echo more >>mnt/data/closed/one
            mv mnt/data/sub mnt/data/renamed
            rm mnt/data/three
            mkdir mnt/data/new; echo four >mnt/data/new/four
            chmod 600 mnt/data/renamed/deep/two
            cat mnt/data/closed/one mnt/data/renamed/deep/two mnt/data/new/four
            ls mnt/data | tr '\n' ' '
            k umount mnt
            test ! -e mnt
            # Another mount with the same folder has the changes.
            k mount --overlay {reference} mnt >/dev/null
            cat mnt/data/closed/one; stat -c %a mnt/data/renamed/deep/two; ls mnt/data | tr '\n' ' '
            k umount mnt
            "#
            ),
        );
        let expected =
            "one\nmore\ntwo\nfour\nclosed new renamed one\nmore\n600\nclosed new renamed ";
        assert_eq!(said, expected, "{way:?}");
    }
}

#[test]
fn a_view_outlives_the_processes_of_its_daemon() {
    for way in WAYS {
        let kitfs = Kitfs::new();
        let reference = kit(&kitfs, way, "kit", "one\n");
        let said = scenario(
            &kitfs,
            way,
            &format!(
                r#"
            k mount --overlay {reference} mnt >/dev/null
            echo changed >mnt/data/three
            kill -KILL $(worker)
            cat mnt/data/closed/one
            die
            k status >status
            grep -q "$PWD/mnt" status
            cat mnt/data/sub/deep/two mnt/data/three
            k umount mnt
            "#
            ),
        );
        assert_eq!(said, "one\ntwo\nchanged\n", "{way:?}");
    }
}

#[test]
fn a_view_whose_daemon_is_dead_is_mounted_again_by_its_command() {
    for way in WAYS {
        let kitfs = Kitfs::new();
        let reference = kit(&kitfs, way, "kit", "one\n");
        let said = scenario(
            &kitfs,
            way,
            &format!(
                r#"
            k mount --overlay {reference} mnt >/dev/null
            echo changed >mnt/data/three
            die
            k mount --overlay {reference} mnt >/dev/null 2>&1
            cat mnt/data/sub/deep/two mnt/data/three
            k umount mnt
            "#
            ),
        );
        assert_eq!(said, "two\nchanged\n", "{way:?}");
    }
}

#[test]
fn changes_go_with_their_kit_only() {
    for way in WAYS {
        let kitfs = Kitfs::new();
        let reference = kit(&kitfs, way, "kit", "one\n");
        let other = kit(&kitfs, way, "other", "another\n");
        let said = scenario(
            &kitfs,
            way,
            &format!(
                r#"
            k mount --overlay=changes {reference} mnt >/dev/null
            stat -c %a changes
            refused mount --overlay=changes {reference} mnt2
            k umount mnt
            refused mount --overlay=changes {other} mnt
            # The tag moves.
            rm -r kit/*; cp -r other/* kit/
            refused mount --overlay=changes {reference} mnt
            test ! -e mnt
            mkdir full; echo mine >full/file
            refused mount --overlay=full {other} mnt
            refused mount --overlay=full/file {other} mnt
            refused mount --overlay=mnt/inside {other} mnt
            refused mount --overlay=changes {other} changes/upper
            mkdir broken; echo '{{"version": 9}}' >broken/overlay.json
            refused mount --overlay=broken {other} mnt
            "#
            ),
        );
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("700"), "{way:?}: {said}");
        let digest = "sha256:";
        for words in [
            &["in use", "--overlay=UPPER"][..],
            &["belong to", "not to", digest, "other:v1"],
            &["by now", digest, "kit@sha256:", "kitfs overlay diff"],
            &["no folder of changes", "empty folder"],
            &["no folder"],
            &["holds the folder of its changes"],
            &["lies in the folder of its changes"],
            &["version 9", "upper"],
        ] {
            let line = lines.next().unwrap_or_default();
            assert!(words.iter().all(|part| line.contains(part)), "{way:?}: {words:?} in {line}");
        }
    }
}

#[test]
fn a_view_ends_with_its_owner() {
    for way in WAYS {
        let kitfs = Kitfs::new();
        let reference = kit(&kitfs, way, "kit", "one\n");
        scenario(
            &kitfs,
            way,
            &format!(
                r#"
            gone_from() {{ while grep -q " $PWD/$1 " /proc/self/mounts; do sleep 0.05; done; }}
            k run --overlay=changes {reference} mnt -- sh -c 'echo run >mnt/data/three'
            gone_from mnt
            test "$(cat changes/upper/data/three)" = run
            sleep 1000 & owner=$!
            k mount --overlay=changes --while-pid $owner {reference} mnt >/dev/null
            test "$(cat mnt/data/three)" = run
            kill -KILL $owner
            gone_from mnt
            k mount --overlay=changes {reference} mnt >/dev/null
            k daemon stop >/dev/null
            gone_from mnt
            "$KITFS" mount --overlay=changes --foreground {reference} mnt >out 2>&1 & serving=$!
            until grep -q "mnt" out; do sleep 0.05; done
            test "$(cat mnt/data/three)" = run
            kill -TERM $serving; wait $serving || true
            gone_from mnt
            "#
            ),
        );
    }
}

#[test]
fn without_root_and_fuse_overlayfs_the_words_say_what_to_install() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let place = kitfs.mountpoint("mnt");
    let programs = kitfs.folder().join("programs");
    fs::create_dir(&programs).unwrap();
    let found = ["/usr/bin", "/bin"].map(|folder| format!("{folder}/fusermount3"));
    let found = found.into_iter().find(|path| fs::exists(path).unwrap()).unwrap();
    std::os::unix::fs::symlink(found, programs.join("fusermount3")).unwrap();
    for folder in [kitfs.folder(), place.as_path()] {
        chown(folder, Some(USER), Some(USER)).unwrap();
    }
    let arguments = ["mount", "--overlay", &reference, place.to_str().unwrap()];
    let mut command = kitfs.command(&arguments);
    chown(kitfs.folder().join("home"), Some(USER), Some(USER)).unwrap();
    command.env("PATH", &programs).uid(USER).gid(USER);
    let outcome = Kitfs::run_command(command);
    assert_ne!(outcome.code, Some(0));
    assert!(outcome.stderr.contains("apt install fuse-overlayfs"), "{}", outcome.stderr);
    assert!(!is_mounted(&place));
}
