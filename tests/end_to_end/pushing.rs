//! `kitfs push`, `copy` and `tag`, with a real registry and with the tools of others that read the outcome.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use kitfs::oci::Digest;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kit_index::KitIndex;
use crate::support::kit_storage::KitHome;
use crate::support::kitfs::{Kitfs, signal, wait_until};
use crate::support::registry_double::{Fault, Options, RegistryDouble, Rule, Writing};
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
fn a_kit_in_a_real_registry_was_pushed_is_mounted_and_is_read_by_others() {
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
fn a_copy_from_a_real_registry_to_another_or_to_a_folder_has_the_same_digest() {
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
    assert_eq!(cached, json!([]));
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
    KitIndex::of_modelkits().with(&written, "v1", json!({})).write(&written, "all");
    let index = format!("oci:{}:all", written.folder.display());
    let said = kitfs.fail(2, &["copy", &index, "localhost/all:v1", "--config", home.path()]);
    assert!(said.contains("this is an index"), "{said}");
    let full = kitfs.folder().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("precious"), "x").unwrap();
    let target = format!("oci:{}:v1", full.display());
    let said = kitfs.fail(2, &["copy", "localhost/model:v1", &target, "--config", home.path()]);
    assert!(said.contains("no OCI layout"), "{said}");
    assert_eq!(full.read_dir().unwrap().count(), 1);
}

#[test]
fn a_kit_of_kits_storage_gets_another_name_there_and_is_pushed_under_it() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = write(&kitfs, "layout", &kit(b"one"));
    home.store("localhost/model", Some("v1"), &written);
    let with_home = |arguments: &[&str]| {
        let all = [arguments, &["--config", home.path()]].concat();
        kitfs.succeed(&all)
    };
    with_home(&["tag", "localhost/model:v1", "latest"]);
    let again = with_home(&["tag", "localhost/model:v1", "latest"]);
    assert!(again.contains("nothing to send"), "{again}");
    let name = registry.reference("team/model", "v7");
    with_home(&["tag", "localhost/model:latest", &name]);
    with_home(&["push", &name]);
    assert_eq!(registry.tagged("team/model", "v7").unwrap().0.to_string(), written.digest);
    // And back, without the registry's name.
    with_home(&["copy", &name, "localhost/back:v7"]);
    let listed: Value = serde_json::from_str(&with_home(&["list", "--json"])).unwrap();
    let has = |repository: &str, tag: &str| {
        let mut all = listed.as_array().unwrap().iter();
        all.any(|kit| kit["repository"] == repository && kit["tag"] == tag)
    };
    let registrys = format!("{}/team/model", registry.host());
    for (repository, tag) in [("model", "latest"), (&*registrys, "v7"), ("back", "v7")] {
        assert!(has(repository, tag), "{repository}:{tag} in {listed}");
    }
}

#[test]
fn a_destination_without_a_tag_gets_the_tag_of_the_kit() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = write(&kitfs, "layout", &Kit::modelkit());
    home.store("localhost/model", Some("v3"), &written);
    let bare = |repository: &str| format!("{}/{repository}", registry.host());
    let tagged = |repository: &str, tag: &str| {
        registry.tagged(repository, tag).map(|(digest, _)| digest.to_string())
    };
    let push = |from: &str, to: &str| {
        kitfs.succeed(&["push", from, to, "--config", home.path()]);
    };
    push("localhost/model:v3", &bare("team/pushed"));
    assert_eq!(tagged("team/pushed", "v3").as_ref(), Some(&written.digest));
    assert_eq!(tagged("team/pushed", "latest"), None);
    // A tag of the destination wins.
    push("localhost/model:v3", &registry.reference("team/pushed", "v4"));
    assert_eq!(tagged("team/pushed", "v4").as_ref(), Some(&written.digest));
    let layout = format!("oci:{}:v1", written.folder.display());
    push(&layout, &bare("team/of-folder"));
    assert_eq!(tagged("team/of-folder", "v1").as_ref(), Some(&written.digest));
    kitfs.succeed(&["copy", &registry.reference("team/pushed", "v4"), &bare("team/copied")]);
    assert_eq!(tagged("team/copied", "v4").as_ref(), Some(&written.digest));
}

/// A kit of kit's storage whose large layer is in another repository.
fn with_origin(kitfs: &Kitfs, home: &KitHome, origin: &str) -> Written {
    let written = write(kitfs, "origin-layout", &kit(b"two"));
    home.store("localhost/model", Some("v2"), &written);
    let (large, _) = written.layers.iter().max_by_key(|(_, size)| *size).unwrap();
    let storage = Path::new(home.path()).join("storage");
    let hex = large.trim_start_matches("sha256:");
    fs::remove_file(storage.join("blobs/sha256").join(hex)).unwrap();
    let origins = json!({"version": 1, "origins": {large: [origin]}});
    let name = URL_SAFE.encode("localhost/model");
    fs::write(storage.join(format!("{name}-origins.json")), origins.to_string()).unwrap();
    written
}

#[test]
fn a_layer_that_was_taken_by_digest_is_mounted_or_comes_from_its_registry() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let start = || runtime.block_on(RegistryDouble::start(Options::default()));
    let (registry, other) = (start(), start());
    let base = write(&kitfs, "base", &kit(b"one"));
    registry.push_layout("team/base", &base.folder);
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = with_origin(&kitfs, &home, &registry.reference("team/base", "v1"));
    let push = |to: &str| {
        kitfs.json(&["push", "localhost/model:v2", to, "--json", "--config", home.path()])
    };
    let sent = push(&registry.reference("team/model", "v2"));
    assert!(sent["sent_bytes"].as_u64().unwrap() < 64 * 1024, "{sent}");
    assert!(sent["mounted_bytes"].as_u64().unwrap() > 16 << 20, "{sent}");
    assert_eq!(registry.bytes_served(), 0);
    let sent = push(&other.reference("team/model", "v2"));
    assert!(sent["sent_bytes"].as_u64().unwrap() > 16 << 20, "{sent}");
    for registry in [&registry, &other] {
        assert_eq!(registry.tagged("team/model", "v2").unwrap().0.to_string(), written.digest);
    }
    // Another name in the storage knows the place of the layer, too.
    kitfs.succeed(&["tag", "localhost/model:v2", "localhost/more:v2", "--config", home.path()]);
    let third = other.reference("team/more", "v2");
    kitfs.succeed(&["push", "localhost/more:v2", &third, "--config", home.path()]);

    // A layer that nobody has.
    registry.lose_blob("team/base", Digest::parse(&written.layers[1].0).unwrap());
    let fresh = start();
    let to = fresh.reference("team/model", "v2");
    let push = ["push", "localhost/model:v2", &to, "--config", home.path()];
    let said = kitfs.fail(3, &push);
    assert!(said.contains("team/base"), "{said}");
    assert!(fresh.tagged("team/model", "v2").is_none());
}

/// Starts a command that waits for the double, and ends it with a signal.
fn interrupt(
    kitfs: &Kitfs,
    registry: &RegistryDouble,
    arguments: &[&str],
    sent: Signal,
) -> ExitStatus {
    let held = registry.held();
    let mut child = kitfs.command(arguments).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a request that is held", || registry.held() > held);
    signal(child.id(), sent);
    child.wait().unwrap()
}

#[test]
fn a_push_that_is_interrupted_or_killed_shows_nothing_and_the_next_one_goes_on() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let written = write(&kitfs, "layout", &kit(b"one"));
    let from = format!("oci:{}:v1", written.folder.display());
    let to = registry.reference("org/model", "v1");
    registry.script(Rule::on("").method(Method::PATCH).then(Fault::Hold));
    let push = ["push", &*from, &*to, "--json"];
    let status = interrupt(&kitfs, &registry, &push, Signal::INT);
    assert_eq!(status.code(), Some(130));
    let status = interrupt(&kitfs, &registry, &push, Signal::KILL);
    assert_eq!(status.code(), None);
    assert!(registry.tagged("org/model", "v1").is_none());
    registry.heal();
    let sent = kitfs.json(&push);
    // The small blobs had arrived.
    assert_eq!(sent["sent_blobs"], 1, "{sent}");
    assert_eq!(registry.tagged("org/model", "v1").unwrap().0.to_string(), written.digest);
}

#[test]
fn a_copy_to_a_folder_that_is_killed_leaves_a_layout_that_the_next_one_completes() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let written = write(&kitfs, "layout", &kit(b"one"));
    registry.push_layout("org/model", &written.folder);
    let folder = kitfs.folder().join("copied");
    let (from, to) = (registry.reference("org/model", "v1"), format!("oci:{}", folder.display()));
    let large = written.layers.iter().max_by_key(|(_, size)| *size).unwrap().0.clone();
    // Half of the layer is there, and then nothing comes.
    let stall = Fault::Stall { after_bytes: 8 << 20 };
    registry.script(Rule::on(&large).method(Method::GET).then(stall));
    let mut child = kitfs.command(&["copy", &from, &to]).stderr(Stdio::null()).spawn().unwrap();
    let parts = || {
        let files = folder.read_dir().into_iter().flatten().flatten();
        let sizes = files.filter(|file| file.file_name().to_string_lossy().ends_with(".part"));
        sizes.map(|file| file.metadata().map_or(0, |file| file.len())).collect::<Vec<_>>()
    };
    wait_until("half a layer", || parts().iter().any(|size| *size > 1 << 20));
    signal(child.id(), Signal::KILL);
    child.wait().unwrap();
    assert!(!parts().is_empty(), "nothing was left over");
    kitfs.fail(3, &["info", &format!("{to}:v1")]);
    registry.heal();
    kitfs.succeed(&["copy", &from, &to]);
    assert!(parts().is_empty());
    let mountpoint = kitfs.mount(&format!("{to}:v1"), &[]);
    Tree::read(&mountpoint).without_kitfile().assert_equals(&written.tree, "copied");
}

#[test]
fn an_index_is_copied_with_its_kits() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let kit = |content: &[u8]| {
        Kit::modelkit().with(Layer::tar("code", "code").file("code/a.py", 0o644, content))
    };
    let one = write(&kitfs, "kits", &kit(b"one"));
    let two = kit(b"two").write(&kitfs.folder().join("kits"), "v2");
    let index = KitIndex::of_modelkits().with(&one, "v1", json!({"size": "small"})).with(
        &two,
        "v2",
        json!({"size": "large"}),
    );
    index.write(&one, "all");
    let from = format!("oci:{}:all", one.folder.display());
    let to = registry.reference("org/model", "all");
    kitfs.succeed(&["copy", &from, &to]);
    assert_eq!(registry.manifests("org/model").len(), 3);
    let file = format!("{to}/code/a.py");
    assert_eq!(kitfs.succeed(&["cat", "--label", "size=large", &file]), "two");
}

#[test]
fn a_tag_in_kits_storage_that_may_name_a_parent_is_not_pushed() {
    let kitfs = Kitfs::new();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let parent = write(&kitfs, "parent", &Kit::modelkit());
    let child = write(&kitfs, "child", &Kit::modelkit().with_parent("127.0.0.1:1/team/base:v1"));
    // The storage after `kit pull 127.0.0.1:1/team/model:v1`.
    home.store("127.0.0.1:1/team/model", Some("v1"), &child);
    home.store("127.0.0.1:1/team/model", Some("v1"), &parent);
    let said = kitfs.fail(6, &["push", "127.0.0.1:1/team/model:v1", "--config", home.path()]);
    assert!(said.contains("may name a parent") && said.contains(&parent.digest), "{said}");
}

#[test]
fn a_push_without_rights_ends_with_the_code_for_that() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let writing = Writing { is_denied: true, ..Writing::default() };
    let options = Options { writing, ..Options::default() };
    let registry = runtime.block_on(RegistryDouble::start(options));
    let written = write(&kitfs, "layout", &Kit::modelkit());
    let from = format!("oci:{}:v1", written.folder.display());
    let to = registry.reference("org/model", "v1");
    let said = kitfs.fail(4, &["push", &from, &to]);
    for part in ["org/model", "no credentials", "config.json", "credentials.json", "docker login"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

/// Runs the program that a variable names, with a home of its own.
fn run_named(variable: &str, home: &Path, arguments: &[&str]) {
    let program =
        std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} names no program"));
    let output = Command::new(program).args(arguments).env("HOME", home).output();
    let output = output.unwrap_or_else(|error| panic!("{variable} cannot be run: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {words}");
}

/// A kit that kitfs has pushed to a real registry.
fn pushed(kitfs: &Kitfs, registry: &RegistryProcess) -> (Written, String) {
    let written = write(kitfs, "layout", &kit(b"one"));
    let reference = format!("{}/team/model:v1", registry.host());
    let from = format!("oci:{}:v1", written.folder.display());
    kitfs.succeed(&["push", &from, &reference]);
    (written, reference)
}

#[test]
fn by_kit_a_pushed_kit_is_unpacked_from_a_real_registry() {
    let (kitfs, registry) = (Kitfs::new(), RegistryProcess::start());
    let (written, reference) = pushed(&kitfs, &registry);
    let unpacked = kitfs.folder().join("unpacked");
    let to = unpacked.to_str().unwrap();
    run_named("KITFS_TEST_KIT", kitfs.folder(), &["unpack", "--plain-http", &reference, "-d", to]);
    Tree::read(&unpacked).without_kitfile().assert_equals(&written.tree, "unpacked by kit");
}

#[test]
fn by_oras_a_pushed_kit_is_copied_from_a_real_registry() {
    let (kitfs, registry) = (Kitfs::new(), RegistryProcess::start());
    let (written, reference) = pushed(&kitfs, &registry);
    let layout = kitfs.folder().join("by-oras");
    let to = format!("{}:v1", layout.display());
    let copy = ["copy", "--from-plain-http", "--to-oci-layout", &reference, &to];
    run_named("KITFS_TEST_ORAS", kitfs.folder(), &copy);
    let copied = kitfs.json(&["info", "--json", &format!("oci:{to}")]);
    assert_eq!(copied["digest"], *written.digest);
}
