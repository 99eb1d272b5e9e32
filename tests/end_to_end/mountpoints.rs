//! Mountpoints, and the ends of mounts.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rstest::rstest;
use tempfile::TempDir;

use crate::support::golden_reference;
use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{Kitfs, is_mounted, wait_until};
use crate::support::tree::Tree;

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// Runs a program that must succeed. Commands of other tests look at every mount of the machine, which is
/// busy for that moment: umount(8) and fusermount3 do not try again by themselves.
#[track_caller]
fn run(program: &str, arguments: &[&str]) {
    let mut words = String::new();
    let mut succeeds = || {
        let output = Command::new(program).args(arguments).output().unwrap();
        words = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success()
    };
    let has_succeeded = (0..100).any(|_| {
        let is_done = succeeds();
        if !is_done {
            std::thread::sleep(Duration::from_millis(20));
        }
        is_done
    });
    assert!(has_succeeded, "{program} {arguments:?}: {words}");
}

/// A process that is killed when this value is dropped.
struct Running(Child);

impl Running {
    fn new(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mountpoint_that_is_missing_is_made_and_removed_at_the_end() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let place = kitfs.folder().join("made");
    for lazily in [false, true] {
        kitfs.succeed(&["mount", &reference, text(&place)]);
        Tree::read(&place).assert_equals(&Tree::golden("article"), "in a folder that was made");
        match lazily {
            true => kitfs.succeed(&["umount", "--lazy", text(&place)]),
            false => kitfs.succeed(&["umount", text(&place)]),
        };
        assert!(!place.exists(), "lazily: {lazily}");
    }
    kitfs.succeed(&["mount", &reference, text(&place)]);
    run("umount", &[text(&place)]);
    wait_until("its end after umount(8)", || !place.exists());
    kitfs.succeed(&["mount", &reference, text(&place)]);
    kitfs.succeed(&["daemon", "stop"]);
    assert!(!place.exists(), "after the daemon's end");
}

#[test]
fn a_mount_that_fails_leaves_no_folder_behind() {
    let kitfs = Kitfs::new();
    let place = kitfs.folder().join("made");
    let missing = format!("oci:{}:v9", crate::support::golden("article").display());
    kitfs.fail(3, &["mount", &missing, text(&place)]);
    assert!(!place.exists());
    let deep = kitfs.folder().join("no/such");
    let said = kitfs.fail(7, &["mount", &golden_reference("article"), text(&deep)]);
    assert!(said.contains(&format!("mkdir -p {}", deep.display())), "{said}");
}

#[test]
fn a_folder_that_was_there_stays() {
    let kitfs = Kitfs::new();
    let place = kitfs.mount(&golden_reference("article"), &[]);
    kitfs.unmount(&place);
    assert!(place.is_dir());
}

/// A mount over its own cache would wait for itself. `place` leads to a folder `home` by another path.
fn assert_holder_of_the_cache_is_refused(place: impl Fn(&Path, &Path) -> std::path::PathBuf) {
    let kitfs = Kitfs::new();
    let (home, other) = (kitfs.folder().join("user"), TempDir::new().unwrap());
    fs::create_dir_all(home.join(".cache")).unwrap();
    fs::write(home.join("mine"), "text").unwrap();
    let cache = home.join(".cache/kitfs");
    let place = place(&home, other.path());
    let reference = golden_reference("article");
    let mount = ["mount", "--nonempty", "--cache-dir", text(&cache), &reference];
    let said = kitfs.fail(7, &[&mount[..], &[text(&place)]].concat());
    assert!(said.contains("holds the cache folder"), "{said}");
    // And in the cache folder.
    let inside = cache.join("mnt");
    let said = kitfs.fail(7, &[&mount[..], &[text(&inside)]].concat());
    assert!(said.contains("lies in the cache folder"), "{said}");
    assert!(!inside.exists());
    assert_eq!(fs::read_to_string(home.join("mine")).unwrap(), "text");
    kitfs.succeed(&["daemon", "stop", "--cache-dir", text(&cache)]);
}

#[test]
fn a_mountpoint_that_holds_the_cache_is_refused_by_its_path() {
    assert_holder_of_the_cache_is_refused(|home, _| home.to_owned());
}

#[test]
fn a_mountpoint_that_holds_the_cache_is_refused_through_a_symlink() {
    assert_holder_of_the_cache_is_refused(|home, other| {
        symlink(home, other.join("link")).unwrap();
        other.join("link")
    });
}

#[rstest]
#[case::kits_own_folder("--config", "kit's own folder")]
#[case::mirrors("--registries-dir", "the folder of mirrors")]
#[case::certificates("--ca-file", "a certificate authority")]
#[case::a_client_certificate("--cert", "the client certificate")]
#[case::a_trace("--trace", "the access trace")]
fn a_mountpoint_that_holds_files_which_the_mount_needs_is_refused(
    #[case] option: &str,
    #[case] what: &str,
) {
    let kitfs = Kitfs::new();
    let holder = kitfs.folder().join("holder");
    let needed = holder.join("below/needed");
    fs::create_dir_all(needed.parent().unwrap()).unwrap();
    match option {
        "--config" | "--registries-dir" => fs::create_dir(&needed).unwrap(),
        _ => fs::write(&needed, "").unwrap(),
    }
    let mut arguments = vec!["mount", "--nonempty", option, text(&needed)];
    if option == "--cert" {
        arguments.extend(["--key", text(&needed)]);
    }
    let reference = golden_reference("article");
    let said = kitfs.fail(7, &[&arguments[..], &[&reference, text(&holder)]].concat());
    assert!(said.contains(&format!("holds {what}")), "{said}");
}

#[test]
fn a_mountpoint_that_holds_the_kits_own_folder_is_refused() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let kit = Kit::modelkit().with(Layer::raw("docs", "README.md", 0o644, b"read me"));
    let written = kit.write(&folder.path().join("kits/one"), "v1");
    let holder = folder.path().join("kits");
    let said = kitfs.fail(7, &["mount", "--nonempty", &written.reference, text(&holder)]);
    assert!(said.contains("the folder that the kit is read from"), "{said}");
    // A folder beside it is no problem.
    let beside = folder.path().join("mnt");
    kitfs.succeed(&["mount", &written.reference, text(&beside)]);
    assert_eq!(fs::read(beside.join("README.md")).unwrap(), b"read me");
    kitfs.unmount(&beside);
}

#[test]
fn several_mounts_end_with_one_command_and_a_failure_leaves_the_others_to_end() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let places: Vec<_> = (0..3).map(|_| kitfs.mount(&reference, &[])).collect();
    let nothing = kitfs.mountpoint("nothing");
    let arguments =
        [OsStr::new("umount"), places[0].as_ref(), nothing.as_ref(), places[1].as_ref()];
    let said = kitfs.fail(7, &arguments);
    assert!(said.contains(text(&nothing)) && said.matches("kitfs: ").count() == 1, "{said}");
    assert!(!is_mounted(&places[0]) && !is_mounted(&places[1]) && is_mounted(&places[2]));
    // `--all` ends the mounts of the named cache folder only.
    let elsewhere = Kitfs::new();
    let other = elsewhere.mount(&reference, &[]);
    kitfs.succeed(&["umount", "--all"]);
    assert!(!is_mounted(&places[2]) && is_mounted(&other));
    kitfs.succeed(&["umount", "-a"]);
}

#[test]
fn a_mount_ends_whichever_cache_folder_is_named() {
    let (kitfs, other) = (Kitfs::new(), Kitfs::new());
    let place = kitfs.folder().join("made");
    kitfs.succeed(&["mount", &golden_reference("article"), text(&place)]);
    // The daemon of the other cache folder does not know this mount.
    other.succeed(&["daemon", "start"]);
    other.succeed(&["umount", text(&place)]);
    assert!(!place.exists(), "its daemon has removed the folder that it had made");
    let status = kitfs.json(&["status", "--json"]);
    assert!(!status.to_string().contains(text(&place)), "{status}");
}

/// A new mount at the same place succeeds at once after the end of a mount, however it ended.
#[test]
fn the_end_of_a_mount_is_its_end() {
    let kitfs = Kitfs::new();
    let references = [golden_reference("article"), golden_reference("yaml")];
    let place = kitfs.mountpoint("mnt");
    kitfs.succeed(&["daemon", "start"]);
    for round in 0..200 {
        kitfs.succeed(&["mount", &references[round % 2], text(&place)]);
        match round % 4 {
            0 => kitfs.unmount(&place),
            1 => run("umount", &[text(&place)]),
            2 => run("umount", &["-l", text(&place)]),
            _ => run("fusermount3", &["-u", text(&place)]),
        }
    }
    let daemon = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(daemon["mounts"].as_array().unwrap().len(), 0, "{daemon}");
}

/// A supervisor starts a service again that was killed (systemd's Restart=always, a container).
#[test]
fn the_mount_of_a_dead_daemon_gives_way_to_a_new_one() {
    let kitfs = Kitfs::new();
    let place = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    for _ in 0..3 {
        kitfs.succeed(&["mount", &reference, text(&place)]);
        kitfs.kill_daemon();
    }
    let outcome = kitfs.run(&["mount", &golden_reference("yaml"), text(&place)]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("whose daemon was gone"), "{}", outcome.stderr);
    Tree::read(&place).assert_equals(&Tree::golden("yaml"), "at the place of a dead mount");
    kitfs.unmount(&place);
    assert!(!is_mounted(&place), "a dead mount was left below");
}

#[test]
fn the_end_of_a_daemon_names_programs_that_still_use_its_mounts() {
    let kitfs = Kitfs::new();
    let place = kitfs.mount(&golden_reference("article"), &[]);
    let mut inside = Command::new("sleep");
    let inside = Running::new(inside.arg("120").current_dir(&place));
    let outcome = kitfs.run(&["daemon", "stop"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let named = format!("process {} (sleep: its working folder)", inside.0.id());
    assert!(outcome.stderr.contains(&named), "{}", outcome.stderr);
    assert!(!is_mounted(&place));
    // Nothing uses this one.
    kitfs.mount(&golden_reference("article"), &[]);
    assert_eq!(kitfs.run(&["daemon", "stop"]).stderr, "");
}

/// Only root can mount anything else, and make namespaces.
mod as_root {
    use super::*;

    #[test]
    fn a_mountpoint_that_holds_the_cache_is_refused_through_a_bind_mount() {
        let bound = TempDir::new().unwrap();
        assert_holder_of_the_cache_is_refused(|home, _| {
            run("mount", &["--bind", text(home), text(bound.path())]);
            bound.path().to_owned()
        });
        run("umount", &[text(bound.path())]);
    }

    #[test]
    fn programs_that_use_a_mount_are_named() {
        let kitfs = Kitfs::new();
        let place = kitfs.mount(&golden_reference("article"), &[]);
        let mut inside = Command::new("sleep");
        let inside = Running::new(inside.arg("60").current_dir(&place));
        let said = kitfs.fail(7, &["umount", text(&place)]);
        let named = format!("process {} (sleep: its working folder)", inside.0.id());
        assert!(said.contains(&named) && said.contains("--lazy"), "{said}");
        drop(inside);

        // A process of its own reads: a child that another test starts has copies of this process's files.
        let file = place.join("models/model.h5");
        let mut reading = Command::new("sh");
        let reading = Running::new(reading.args(["-c", "exec 3<\"$0\"; read line", text(&file)]));
        let mut said = String::new();
        wait_until("the open file", || {
            let outcome = kitfs.run(&["umount", text(&place)]);
            said = outcome.stderr;
            assert_eq!(outcome.code, Some(7), "it was unmounted: {said}");
            said.contains("(sh: an open file)")
        });
        assert!(said.contains(&format!("process {} ", reading.0.id())), "{said}");
        drop(reading);

        let below = place.join("models");
        run("mount", &["-t", "tmpfs", "none", text(&below)]);
        let said = kitfs.fail(7, &["umount", text(&place)]);
        assert!(
            said.contains(&format!("the mount at {}, which lies on it", below.display())),
            "{said}"
        );
        run("umount", &[text(&below)]);
        kitfs.unmount(&place);
    }

    #[test]
    fn a_mount_that_another_namespace_keeps_is_unmounted_here_and_a_message_says_so() {
        let kitfs = Kitfs::new();
        let place = kitfs.mount(&golden_reference("article"), &[]);
        let mut command = Command::new("unshare");
        let script = "echo ready >\"$0\"; read line";
        let ready = kitfs.folder().join("ready");
        command.args(["-m", "--propagation", "private", "sh", "-c", script, text(&ready)]);
        let holder = Running::new(&mut command);
        wait_until("the namespace", || ready.exists());
        let outcome = kitfs.run(&["umount", text(&place)]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("another mount namespace"), "{}", outcome.stderr);
        assert!(
            outcome.stderr.contains(&format!("process {} ", holder.0.id())),
            "{}",
            outcome.stderr
        );
        assert!(!is_mounted(&place));
        // The mountpoint is free, although the first session goes on.
        kitfs.succeed(&["mount", &golden_reference("yaml"), text(&place)]);
        Tree::read(&place).assert_equals(&Tree::golden("yaml"), "at the same place");
    }
}
