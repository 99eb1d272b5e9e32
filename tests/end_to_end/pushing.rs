//! `kitfs push`, `copy` and `tag`, with a real registry and with the tools of others that read the outcome.

use std::fs;
use std::path::Path;
use std::process::Command;

use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kit_storage::KitHome;
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Options, RegistryDouble};
use crate::support::registry_process::RegistryProcess;
use crate::support::tree::Tree;

/// A kit whose second layer is larger than what goes out in one request.
fn kit(content: &[u8]) -> Kit {
    let large: Vec<u8> = (0..17 * 1024 * 1024u32).map(|at| (at / 7) as u8 ^ at as u8).collect();
    Kit::modelkit()
        .with(Layer::tar("code", "code").file("code/a.py", 0o644, content))
        .with(Layer::tar("model", "model").file("model/m.bin", 0o644, &large))
}

fn write(kitfs: &Kitfs, name: &str, kit: &Kit) -> Written {
    kit.write(&kitfs.folder().join(name), "v1")
}

/// Runs skopeo; returns its output.
fn skopeo(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").args(arguments);
    command.env("HOME", folder).env("XDG_RUNTIME_DIR", folder);
    let output = command.output().expect("skopeo is installed");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {arguments:?}: {words}");
    output.stdout
}

/// Whether skopeo copies the same manifest and the same blobs from `from` to a folder.
fn assert_skopeo_reads(kitfs: &Kitfs, from: &str, written: &Written) {
    let home = kitfs.folder().join("home");
    fs::create_dir_all(&home).unwrap();
    let tls: &[&str] = if from.starts_with("docker:") { &["--tls-verify=false"] } else { &[] };
    let raw = skopeo(&home, &[&["inspect", "--raw"], tls, &[from]].concat());
    assert!(raw == written.manifest, "another manifest at {from}");
    let folder = tempfile::tempdir_in(kitfs.folder()).unwrap();
    let to = format!("dir:{}", folder.path().display());
    let tls: &[&str] = if from.starts_with("docker:") { &["--src-tls-verify=false"] } else { &[] };
    skopeo(&home, &[&["copy", "--quiet", "--preserve-digests"], tls, &[from, &to]].concat());
    for blob in written.folder.join("blobs/sha256").read_dir().unwrap() {
        let blob = blob.unwrap();
        let copied = folder.path().join(blob.file_name());
        if *blob.file_name() != *written.digest.trim_start_matches("sha256:") {
            assert!(fs::read(copied).unwrap() == fs::read(blob.path()).unwrap(), "{blob:?}");
        }
    }
}

#[test]
fn a_kit_is_pushed_mounted_and_read_by_others() {
    let registry = RegistryProcess::start();
    let kitfs = Kitfs::new();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = write(&kitfs, "layout", &kit(b"one"));
    home.store("localhost/team/model", Some("v1"), &written);
    let reference = format!("{}/team/model:v1", registry.host());
    let push = ["push", "localhost/team/model:v1", &reference, "--config", home.path(), "--json"];
    let sent = kitfs.json(&push);
    assert_eq!(sent["digest"], *written.digest);
    assert_eq!(sent["sent_blobs"], 3);
    assert_eq!(sent["skipped_bytes"], 0);
    assert_skopeo_reads(&kitfs, &format!("docker://{reference}"), &written);
    let mountpoint = kitfs.mount(&reference, &[]);
    Tree::read(&mountpoint).without_kitfile().assert_equals(&written.tree, "pushed");

    let again = kitfs.succeed(&push[..5]);
    assert!(again.contains("nothing to send"), "{again}");

    // Another version sends what has changed.
    let other = write(&kitfs, "other", &kit(b"two"));
    home.store(&format!("{}/team/model", registry.host()), Some("v2"), &other);
    let v2 = format!("{}/team/model:v2", registry.host());
    let sent = kitfs.json(&["push", &v2, "--config", home.path(), "--json"]);
    assert!(sent["sent_bytes"].as_u64().unwrap() < 64 * 1024, "{sent}");
    assert!(sent["skipped_bytes"].as_u64().unwrap() > 16 << 20, "{sent}");

    // A tag of another kit.
    let push = ["push", &v2, &reference, "--config", home.path()];
    let said = kitfs.fail(2, &push);
    assert!(said.contains("--force") && said.contains("`v1`"), "{said}");
    kitfs.succeed(&[&push[..], &["--force"]].concat());
    assert_eq!(kitfs.json(&["info", "--json", &reference])["digest"], *other.digest);
}

#[test]
fn a_kit_is_copied_between_registries_and_folders_with_its_digest() {
    let (first, second) = (RegistryProcess::start(), RegistryProcess::start());
    let kitfs = Kitfs::new();
    let written = write(&kitfs, "layout", &kit(b"one"));
    let layout = format!("oci:{}:v1", written.folder.display());
    let at = |registry: &RegistryProcess, name: &str| format!("{}/{name}", registry.host());
    let from = at(&first, "org/model:v1");
    kitfs.succeed(&["copy", &layout, &from]);
    let to = at(&second, "mirror/model:v1");
    let copied = kitfs.json(&["copy", &from, &to, "--json"]);
    assert_eq!(copied["digest"], *written.digest);
    assert_skopeo_reads(&kitfs, &format!("docker://{to}"), &written);

    // Within a registry no byte is sent.
    let copied = kitfs.json(&["copy", &to, &at(&second, "other/model:v1"), "--json"]);
    assert_eq!(copied["sent_bytes"], 0, "{copied}");
    assert!(copied["mounted_bytes"].as_u64().unwrap() > 16 << 20, "{copied}");

    // Into a new folder, and under a second name.
    let folder = kitfs.folder().join("copied");
    let target = format!("oci:{}", folder.display());
    kitfs.succeed(&["copy", &to, &target]);
    assert_skopeo_reads(&kitfs, &format!("{target}:v1"), &written);
    kitfs.succeed(&["tag", &format!("{target}:v1"), "latest"]);
    kitfs.succeed(&["copy", &to, &format!("{target}:ghcr.io/org/model:v1")]);
    assert_skopeo_reads(&kitfs, &format!("{target}:latest"), &written);
    assert_skopeo_reads(&kitfs, &format!("{target}:ghcr.io/org/model:v1"), &written);
    let listed = kitfs.json(&["list", &target, "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 3, "{listed}");

    // Nothing is kept in the cache.
    let cached = kitfs.json(&["cache", "ls", "--json"]);
    assert_eq!(cached, serde_json::json!([]));
}

#[test]
fn a_tag_is_made_where_the_kit_is() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let [one, two] = [b"one", b"two"].map(|content| {
        Kit::modelkit().with(Layer::tar("code", "code").file("code/a.py", 0o644, content))
    });
    let (one, two) = (write(&kitfs, "one", &one), two.write(&kitfs.folder().join("two"), "v2"));
    registry.push_layout("org/model", &one.folder);
    registry.push_layout("org/model", &two.folder);
    let reference = |tag: &str| registry.reference("org/model", tag);
    let tagged =
        |tag: &str| registry.tagged("org/model", tag).map(|(digest, _)| digest.to_string());
    kitfs.succeed(&["tag", &reference("v1"), "production"]);
    assert_eq!(tagged("production").as_deref(), Some(&*one.digest));
    assert_eq!(registry.bytes_received(), 0);
    let said = kitfs.fail(2, &["tag", &reference("v2"), "production"]);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(tagged("production").as_deref(), Some(&*one.digest));
    kitfs.succeed(&["tag", "--force", &reference("v2"), &reference("production")]);
    assert_eq!(tagged("production").as_deref(), Some(&*two.digest));
    kitfs.fail(2, &["tag", &reference("v2"), "not a tag"]);
    kitfs.fail(3, &["tag", &reference("v3"), "v4"]);
}

#[test]
fn a_push_that_cannot_begin_says_what_to_do() {
    let kitfs = Kitfs::new();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = write(&kitfs, "layout", &Kit::modelkit());
    home.store("localhost/model", Some("v1"), &written);
    let said = kitfs.fail(2, &["push", "localhost/model:v1", "--config", home.path()]);
    assert!(said.contains("HOST/REPOSITORY"), "{said}");
    let said = kitfs.fail(3, &["push", "ghcr.io/org/model:v1", "--config", home.path()]);
    assert!(said.contains("kitfs copy"), "{said}");
    let to_storage = ["copy", "localhost/model:v1", "localhost/other:v1", "--config", home.path()];
    let said = kitfs.fail(2, &to_storage);
    assert!(said.contains("local storage"), "{said}");
    let full = kitfs.folder().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    let target = format!("oci:{}:v1", full.display());
    let said = kitfs.fail(2, &["copy", "localhost/model:v1", &target, "--config", home.path()]);
    assert!(said.contains("no OCI layout"), "{said}");
    assert_eq!(full.read_dir().unwrap().count(), 1);
}
