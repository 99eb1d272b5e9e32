//! Another kit in the place of a mounted one.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{DROP_OTHERS, Kitfs, is_mounted, wait_until};
use crate::support::registry_double::{Options, RegistryDouble};

const FILES: usize = 40;

/// A layout whose tag can be moved from one version to the next.
struct Versions {
    folder: tempfile::TempDir,
}

impl Versions {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        this.tag("1");
        this
    }

    /// Lets the tag name a kit whose files have `version` as their content.
    fn tag(&self, version: &str) -> String {
        let layer = Layer::tar("dataset", "data");
        let layer = (0..FILES).fold(layer, |layer, file| {
            layer.file(format!("data/{file}"), 0o644, &content(version))
        });
        let kit = Kit::modelkit().with(layer);
        kit.write(&self.layout(), "v").digest
    }

    fn layout(&self) -> std::path::PathBuf {
        self.folder.path().join("kit")
    }

    fn reference(&self) -> String {
        format!("oci:{}:v", self.layout().display())
    }

    fn pinned(&self, digest: &str) -> String {
        format!("oci:{}@{digest}", self.layout().display())
    }
}

fn content(version: &str) -> Vec<u8> {
    version.repeat(5000).into_bytes()
}

/// The digests of the mounts at a place. Other tests may leave dead mounts elsewhere.
fn mounts_at(kitfs: &Kitfs, place: &Path) -> Vec<String> {
    let status = kitfs.json(&["status", "--json"]);
    let here =
        status.as_array().unwrap().iter().filter(|mount| mount["mountpoint"] == *text(place));
    here.map(|mount| mount["digest"].as_str().unwrap_or("dead").to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

#[test]
fn a_mount_follows_its_tag() {
    let (versions, kitfs) = (Versions::new(), Kitfs::new());
    let place = kitfs.folder().join("made");
    kitfs.succeed(&["mount", "--follow=1s", &versions.reference(), text(&place)]);
    for version in ["2", "3"] {
        let digest = versions.tag(version);
        wait_until("the next version", || {
            fs::read(place.join("data/7")).unwrap() == content(version)
        });
        wait_until("one mount", || mounts_at(&kitfs, &place) == [digest.as_str()]);
    }
    // The directory that the first mount made goes with the last one.
    kitfs.succeed(&["umount", text(&place)]);
    wait_until("the end of the directory", || !place.exists());
}

#[test]
fn where_no_kit_is_mounted_replace_makes_an_ordinary_mount() {
    let (versions, kitfs) = (Versions::new(), Kitfs::new());
    let place = kitfs.mountpoint("mnt");
    kitfs.succeed(&["mount", "--replace", &versions.reference(), text(&place)]);
    assert_eq!(fs::read(place.join("data/7")).unwrap(), content("1"));
    // A kit that cannot be had leaves the one that is there.
    kitfs.fail(3, &["mount", "--replace", "oci:missing:v1", text(&place)]);
    assert_eq!(fs::read(place.join("data/7")).unwrap(), content("1"));
    // The mount of a dead daemon is replaced, too.
    kitfs.kill_daemon();
    let digest = versions.tag("2");
    kitfs.succeed(&["mount", "--replace", &versions.pinned(&digest), text(&place)]);
    assert_eq!(fs::read(place.join("data/7")).unwrap(), content("2"));
}

#[test]
fn the_way_back_needs_no_network() {
    let (versions, kitfs) = (Versions::new(), Kitfs::new());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let first = versions.tag("1");
    registry.push_layout("org/kit", &versions.layout());
    let reference = registry.reference("org/kit", "v");
    let place = kitfs.mountpoint("mnt");
    kitfs.succeed(&["mount", "--hydrate", "all", &reference, text(&place)]);
    let read_all = |version: &str| {
        for file in 0..FILES {
            let bytes = fs::read(place.join(format!("data/{file}"))).unwrap();
            assert_eq!(bytes, content(version));
        }
    };
    read_all("1");
    versions.tag("2");
    registry.push_layout("org/kit", &versions.layout());
    kitfs.succeed(&["mount", "--replace", &reference, text(&place)]);
    read_all("2");
    // The registry is gone.
    drop(registry);
    drop(runtime);
    let pinned = format!("{}@{first}", reference.rsplit_once(':').unwrap().0);
    kitfs.succeed(&["mount", "--replace", &pinned, text(&place)]);
    read_all("1");
    assert_eq!(kitfs.status_of(&place)["digest"], *first);
}

#[test]
fn a_mount_in_the_place_of_another_one_keeps_its_owner() {
    let (versions, kitfs) = (Versions::new(), Kitfs::new());
    let place = kitfs.mountpoint("mnt");
    let mut owner = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = owner.id().to_string();
    kitfs.succeed(&["mount", "--while-pid", &pid, &versions.reference(), text(&place)]);
    versions.tag("2");
    kitfs.succeed(&["mount", "--replace", &versions.reference(), text(&place)]);
    assert_eq!(fs::read(place.join("data/7")).unwrap(), content("2"));
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait_until("the end of the mount", || !is_mounted(&place));
}

#[test]
fn status_tells_that_a_tag_has_moved() {
    let (versions, kitfs) = (Versions::new(), Kitfs::new());
    let place = kitfs.mountpoint("mnt");
    kitfs.succeed(&["mount", &versions.reference(), text(&place)]);
    let digest = versions.tag("2");
    // Any command that resolves the tag tells the daemon.
    kitfs.succeed(&["ls", &versions.reference()]);
    wait_until("the note", || kitfs.status_of(&place)["moved_to"] == *digest);
    let said = kitfs.run(&["status"]).stderr;
    assert!(said.contains(&digest) && said.contains("kitfs mount --replace"), "{said}");
}

mod as_root {
    use super::*;

    #[test]
    fn no_open_fails_while_versions_are_swapped() {
        let (versions, kitfs) = (Versions::new(), Kitfs::new());
        let first = versions.tag("1");
        let place = kitfs.mountpoint("mnt");
        kitfs.succeed(&["mount", &versions.reference(), text(&place)]);
        let held = File::open(place.join("data/0")).unwrap();
        let (is_over, opens) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for reader in 0..8 {
                let (place, is_over, opens) = (&place, &is_over, &opens);
                scope.spawn(move || {
                    let mut file = reader;
                    while !is_over.load(Ordering::Relaxed) {
                        file = (file + 1) % FILES;
                        let mut bytes = Vec::new();
                        let mut open = File::open(place.join(format!("data/{file}"))).unwrap();
                        open.read_to_end(&mut bytes).unwrap();
                        let is_whole =
                            ["1", "2", "3"].iter().any(|version| bytes == content(version));
                        assert!(is_whole, "bytes of two versions, or none: {}", bytes.len());
                        assert!(fs::read_dir(place).unwrap().count() > 0);
                        opens.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for version in ["2", "3"] {
                let before = opens.load(Ordering::Relaxed);
                wait_until("some reads", || opens.load(Ordering::Relaxed) > before + 50);
                versions.tag(version);
                kitfs.succeed(&["mount", "--replace", &versions.reference(), text(&place)]);
                assert_eq!(fs::read(place.join("data/1")).unwrap(), content(version));
            }
            // Back, by digest.
            kitfs.succeed(&["mount", "--replace", &versions.pinned(&first), text(&place)]);
            assert_eq!(fs::read(place.join("data/1")).unwrap(), content("1"));
            is_over.store(true, Ordering::Relaxed);
        });
        // An open file stays with its version, also over a restart of the daemon.
        kitfs.succeed(&["daemon", "restart"]);
        let mut bytes = Vec::new();
        (&held).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, content("1"));
        drop(held);
        assert_eq!(mounts_at(&kitfs, &place), [first.as_str()]);
        kitfs.unmount(&place);
        assert!(!is_mounted(&place));
        wait_until("the end of all", || {
            kitfs.json(&["daemon", "status", "--json"])["mounts"] == serde_json::json!([])
        });
    }

    #[test]
    fn a_mount_in_another_namespace_follows_its_tag() {
        let (versions, kitfs) = (Versions::new(), Kitfs::new());
        kitfs.succeed(&["daemon", "start"]);
        let place = kitfs.mountpoint("mnt");
        let (made, over) = (kitfs.folder().join("made"), kitfs.folder().join("over"));
        let script = format!(
            "unshare --mount --propagation private sh -ec '{DROP_OTHERS} \"$0\" \"$@\"; touch {made}; \
             for i in $(seq 600); do grep -q 222 {place}/data/3 && break; sleep 0.1; done; \
             grep -q 222 {place}/data/3; touch {over}; \"$0\" mount --replace {reference} {place}; \
             cat {place}/data/3 >/dev/null; \"$0\" umount {place}' \"$@\"; exit $?",
            made = text(&made),
            over = text(&over),
            place = text(&place),
            reference = versions.reference(),
        );
        let arguments = ["mount", "--follow=1s", &versions.reference(), text(&place)];
        let command = kitfs.command_after(&script, &arguments);
        let inside = std::thread::spawn(move || Kitfs::run_command(command));
        wait_until("the mount", || made.exists());
        versions.tag("2");
        let outcome = inside.join().unwrap();
        assert_eq!(outcome.code, Some(0), "{}{}", outcome.stderr, kitfs.log());
        assert!(over.exists() && !is_mounted(&place));
        wait_until("the end of all", || {
            kitfs.json(&["daemon", "status", "--json"])["mounts"] == serde_json::json!([])
        });
    }

    #[test]
    fn mounts_of_an_ordinary_user_are_replaced_and_follow_their_tag() {
        /// A user that every Debian has: fusermount3 looks for the name.
        const USER: u32 = 1;
        let (versions, kitfs) = (Versions::new(), Kitfs::new());
        let place = kitfs.mountpoint("mnt");
        let as_user = |mut command: Command| {
            command.uid(USER).gid(USER);
            let outcome = Kitfs::run_command(command);
            (outcome.code, String::from_utf8(outcome.stdout).unwrap(), outcome.stderr)
        };
        let run = |arguments: &[&str]| {
            let (code, words, complaint) = as_user(kitfs.command(arguments));
            assert_eq!(code, Some(0), "{arguments:?}: {complaint}");
            words
        };
        // Makes the home.
        let _ = kitfs.command(&["--version"]);
        for folder in [kitfs.folder(), &kitfs.folder().join("home"), &place] {
            chown(folder, Some(USER), Some(USER)).unwrap();
        }
        fs::set_permissions(versions.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let is_there = |version: &str| {
            // Root may not look into a mount of another user.
            let mut command = Command::new("cat");
            command.arg(place.join("data/7"));
            as_user(command).1.into_bytes() == content(version)
        };
        run(&["mount", &versions.reference(), text(&place)]);
        versions.tag("2");
        run(&["mount", "--replace", "--follow=1s", &versions.reference(), text(&place)]);
        assert!(is_there("2"));
        for version in ["3", "4"] {
            versions.tag(version);
            wait_until("the next version", || is_there(version));
            // A status looks for mounts that are out of the tree, and finds the one before.
            let status: serde_json::Value =
                serde_json::from_str(&run(&["status", "--json"])).unwrap();
            let is_here = |mount: &&serde_json::Value| mount["mountpoint"] == *text(&place);
            let here = status.as_array().unwrap().iter().filter(is_here).count();
            assert_eq!(here, 1, "{status}");
        }
        run(&["umount", text(&place)]);
        run(&["daemon", "stop"]);
        assert!(!is_mounted(&place));
    }
}
