//! Writable views (`kitfs mount --overlay`): as root, in a user namespace, and as an ordinary user through
//! fuse-overlayfs. A scenario is a shell script, because a user namespace ends with its last process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::counted::Counted;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{DROP_OTHERS, Kitfs, is_mounted};
use crate::support::{Random, golden_reference};

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
            k run --overlay {reference} -- sh -c 'echo run >"$KITFS_MOUNT/data/three"'
            test -z "$(ls home/.local/share/kitfs/overlays)"
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
            until grep -q -- "-> $PWD/mnt " out; do
                kill -0 $serving || {{ cat out >&2; exit 1; }}
                sleep 0.05
            done
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

#[test]
fn changes_are_listed_and_taken_back() {
    for way in WAYS {
        let kitfs = Kitfs::new();
        let reference = kit(&kitfs, way, "kit", "one\n");
        let said = scenario(
            &kitfs,
            way,
            &format!(
                r#"
            changed() {{ if k overlay diff "$@"; then echo "no changes" >&2; exit 1; else test $? = 1; fi; }}
            k mount --overlay {reference} mnt >/dev/null
            k overlay diff mnt
            echo more >>mnt/data/closed/one; rm mnt/data/three; mkdir mnt/data/new; echo 4 >mnt/data/new/four
            chmod 600 mnt/data/sub/deep/two
            changed mnt; echo --
            test "$(changed mnt data/new | wc -l)" = 2
            k overlay diff mnt data/nothing
            refused diff mnt {reference} >view; grep -q "kitfs overlay diff" view
            # Below a mount, nothing is taken back.
            refused overlay reset mnt >mounted; grep -q "kitfs umount" mounted
            k overlay ls | grep " mounted " | grep -q "$PWD/mnt"
            k status --wide | grep -q "writable: .* in "
            k umount mnt
            k overlay ls | grep "not mounted" | grep -q "{reference}"
            changed mnt; echo --
            k overlay reset mnt data/three data/new 2>warned
            test ! -s warned
            changed mnt; echo --
            # A path without a change is named, and the others are taken back all the same.
            k overlay reset mnt data/three data/nothing 2>warned
            grep -q "data/three has no change in this view" warned
            grep -q "data/nothing has no change in this view" warned
            for bad in ../x /etc data/.. ''; do refused overlay reset mnt "$bad" >/dev/null; done
            k mount --overlay {reference} mnt >/dev/null
            cat mnt/data/three mnt/data/closed/one
            test ! -e mnt/data/new
            k umount mnt
            k overlay reset mnt
            test -z "$(ls home/.local/share/kitfs/overlays)"
            if k overlay diff mnt 2>words; then exit 1; else test $? = 2; fi; grep -q "kitfs overlay ls" words
            "#
            ),
        );
        // Without metacopy, a change of mode copies the file.
        let mode = if way == Way::Root { 'M' } else { 'C' };
        let one = format!(
            "C data/closed/one\nA data/new/\nA data/new/four\n{mode} data/sub/deep/two\nD data/three\n--\n"
        );
        let rest = format!("C data/closed/one\n{mode} data/sub/deep/two\n--\nthree\none\nmore\n");
        assert_eq!(said, format!("{one}{one}{rest}"), "{way:?}");
    }
}

/// Random operations on a view and on a copy of the kit give the same files. The list of changes leads from the kit to
/// the view, and a file that it does not name has the bytes of the kit.
#[test]
fn the_list_of_changes_is_the_difference_whatever_was_done() {
    const PLACES: [&str; 10] = [
        "data",
        "data/closed",
        "data/closed/one",
        "data/sub",
        "data/sub/deep",
        "data/sub/deep/two",
        "data/three",
        "new",
        "data/new",
        "data/sub/new",
    ];
    let mut random = Random::new(14);
    for way in WAYS {
        for _ in 0..4 {
            let kitfs = Kitfs::new();
            let reference = kit(&kitfs, way, "kit", "one\n");
            let mut operations = String::new();
            for number in 0..16 {
                let mut place = || PLACES[random.below(PLACES.len() as u64) as usize];
                let (one, two) = (place(), place());
                operations += &match random.below(6) {
                    0 => format!("echo {number} >{one}\n"),
                    1 => format!("rm -rf {one}\n"),
                    2 | 3 => format!("mv -T {one} {two}\n"),
                    4 => format!("mkdir {one}\n"),
                    _ => format!("chmod 700 {one}\n"),
                };
            }
            let script = format!(
                r#"
                state() {{ (cd $1; find . -mindepth 1 -printf '%y %P\n' | sort; find . -type f -exec sha256sum {{}} + | sort -k2); }}
                operate() {{ (cd $1; set +e; {operations} true) >/dev/null 2>&1; }}
                k mount --overlay {reference} mnt >/dev/null
                cp -r mnt plain
                state mnt >before
                operate mnt; operate plain
                state mnt >after; state plain >expected
                diff expected after >&2
                k umount mnt
                k overlay diff mnt --json >changes || test $? = 1
                k mount --overlay {reference} mnt >/dev/null
                state mnt >again; diff after again >&2
                k umount mnt
                "#
            );
            scenario(&kitfs, way, &script);
            let read = |name: &str| fs::read_to_string(kitfs.folder().join(name)).unwrap();
            let (before, after) = (State::parse(&read("before")), State::parse(&read("after")));
            check_changes(&before, &after, &read("changes"), &operations);
        }
    }
}

/// The entries of a tree, and the sums of its files.
struct State {
    names: BTreeSet<PathBuf>,
    sums: BTreeMap<PathBuf, String>,
}

impl State {
    fn parse(text: &str) -> Self {
        let (mut names, mut sums) = (BTreeSet::new(), BTreeMap::new());
        for line in text.lines() {
            match line.split_once("  ./") {
                Some((sum, path)) => _ = sums.insert(PathBuf::from(path), sum.to_owned()),
                None => _ = names.insert(PathBuf::from(&line[2..])),
            }
        }
        Self { names, sums }
    }
}

#[track_caller]
fn check_changes(before: &State, after: &State, changes: &str, operations: &str) {
    let changes: Vec<Value> = serde_json::from_str(changes).unwrap();
    let path = |change: &Value, key: &str| PathBuf::from(change[key].as_str().unwrap());
    let is = |change: &Value, what: &str| change["change"] == what;
    let (mut expected, mut sums) = (BTreeSet::new(), BTreeMap::new());
    for entry in &before.names {
        let is_replaced = |it: &Value| is(it, "changed") && path(it, "path") == *entry;
        if changes.iter().any(is_replaced) {
            continue;
        }
        // The nearest change decides.
        let place = entry.ancestors().find_map(|above| {
            changes.iter().find_map(|it| match () {
                () if is(it, "renamed") && path(it, "from") == above => {
                    let rest = entry.strip_prefix(above).unwrap();
                    Some(Some(path(it, "path").join(rest).components().collect::<PathBuf>()))
                }
                () if is(it, "removed") && path(it, "path") == above => Some(None),
                () => None,
            })
        });
        let Some(place) = place.unwrap_or_else(|| Some(entry.clone())) else { continue };
        if let Some(sum) = before.sums.get(entry) {
            sums.insert(place.clone(), sum.clone());
        }
        expected.insert(place);
    }
    let named = changes.iter().filter(|change| !is(change, "removed"));
    expected.extend(named.map(|change| path(change, "path")));
    assert_eq!(expected, after.names, "{changes:#?}\n{operations}");
    let named: BTreeSet<_> = changes.iter().map(|change| path(change, "path")).collect();
    for (file, sum) in after.sums.iter().filter(|(file, _)| !named.contains(*file)) {
        assert_eq!(sums.get(file), Some(sum), "{file:?} is not named: {changes:#?}\n{operations}");
    }
}

#[test]
fn a_link_in_the_place_of_a_folder_of_upper_is_not_followed() {
    let kitfs = Kitfs::new();
    let reference = kit(&kitfs, Way::Root, "kit", "one\n");
    scenario(
        &kitfs,
        Way::Root,
        &format!(
            r#"
        k mount --overlay=changes {reference} mnt >/dev/null; k umount mnt
        mkdir prey; chmod 755 prey; before=$(stat -c "%u %g %a" prey)
        for name in upper work lower; do
            mv changes/$name aside; ln -s "$PWD/prey" changes/$name
            refused mount --overlay=changes --uid 4242 --allow-other {reference} mnt >/dev/null
            rm changes/$name; mv aside changes/$name
        done
        test "$(stat -c "%u %g %a" prey)" = "$before"
        chown 4242 changes
        refused mount --overlay=changes --uid 4343 {reference} mnt >other; grep -q "another user" other
        "#
        ),
    );
}

#[test]
fn a_full_disk_reaches_the_writer_and_nothing_hangs() {
    let kitfs = Kitfs::new();
    let reference = kit(&kitfs, Way::Root, "kit", "one\n");
    let small = kitfs.mountpoint("small");
    let script = format!(
        r#"
        mount -t tmpfs -o size=1m none small
        k mount --overlay=small/changes {reference} mnt >/dev/null
        if dd if=/dev/zero of=mnt/data/big bs=64k count=64 2>words; then exit 1; fi
        grep -q "No space left" words
        cat mnt/data/closed/one
        rm mnt/data/big
        echo fits >mnt/data/three; cat mnt/data/three
        k umount mnt
        umount small
        "#
    );
    assert_eq!(scenario(&kitfs, Way::Root, &script), "one\nfits\n");
    assert!(!is_mounted(&small));
}

#[test]
fn an_upper_on_a_file_system_that_overlayfs_refuses_goes_through_fuse_overlayfs_or_is_named() {
    let kitfs = Kitfs::new();
    let reference = kit(&kitfs, Way::Root, "kit", "one\n");
    let script = format!(
        r#"
        mkdir l u w over programs
        mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none over
        k mount --overlay=over/changes {reference} mnt >/dev/null
        grep -q "$PWD/mnt fuse.kitfs-overlay" /proc/self/mounts
        echo new >mnt/data/three; cat mnt/data/three
        k umount mnt
        ln -s "$(command -v fusermount3)" programs/
        (PATH=$PWD/programs; refused mount --overlay=over/other {reference} mnt) 2>&1 || true
        cat words
        umount over
        "#
    );
    let said = scenario(&kitfs, Way::Root, &script);
    assert!(said.starts_with("new\n"), "{said}");
    assert!(said.contains("lies on overlay") && said.contains("apt install"), "{said}");
}

/// A platform with many users over one data set: each has a view, and the bytes are fetched once.
#[test]
fn users_of_one_data_set_see_their_own_changes_and_fetch_each_byte_once() {
    const USERS: u32 = 12;
    let mut layer = Layer::tar("dataset", "data").directory("data", 0o755);
    for number in 0..200 {
        layer = layer.file(
            format!("data/{number}"),
            0o644,
            format!("{number}\n").repeat(200).as_bytes(),
        );
    }
    let counted = Counted::new(&Kit::modelkit().with(layer));
    let kitfs = &counted.kitfs;
    let script = format!(
        r#"
        chmod 755 "$PWD"
        for user in $(seq 1 {USERS}); do
            k mount --overlay=changes$user --uid $((2000 + user)) --gid $((2000 + user)) {0} mnt$user >/dev/null
            test $(du -sk changes$user | cut -f1) -le 100
        done
        for user in $(seq 1 {USERS}); do
            as="setpriv --reuid $((2000 + user)) --regid $((2000 + user)) --clear-groups"
            (cd mnt$user; $as sh -ec 'cat data/* >/dev/null; echo '$user' >data/7; rm data/8; echo mine >data/new')
        done
        for user in $(seq 1 {USERS}); do
            test "$(cat mnt$user/data/7)" = $user
            test $(ls mnt$user/data | wc -l) = 200
            as="setpriv --reuid $((3000 + user)) --regid 3000 --clear-groups"
            if $as ls mnt$user 2>/dev/null; then exit 1; fi
        done
        for user in $(seq 1 {USERS}); do k umount mnt$user; done
        "#,
        counted.reference
    );
    scenario(kitfs, Way::Root, &script);
    let fetched = counted.fetched();
    assert!(fetched <= counted.everything(), "{fetched} of {}", counted.everything());
}
