//! New versions of a kit that is mounted: layers without changes are taken by digest.

use std::fs;

use tokio::runtime::Runtime;

use super::*;
use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::registry_double::{Options, RegistryDouble};
use crate::support::tree::Tree;

/// A registry with a kit of two layers, one of them large.
struct Published {
    workshop: Workshop,
    registry: RegistryDouble,
    base: Written,
    _runtime: Runtime,
}

const REPOSITORY: &str = "team/base";

fn published() -> Published {
    let workshop = Workshop::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let kit = Kit::modelkit()
        .with(Layer::tar("model", "weights").file("weights/w.bin", 0o644, &[9; 3_000_000]))
        .with(Layer::tar("code", "src").file("src/a.py", 0o644, b"print(1)").file(
            "src/b.py",
            0o600,
            b"print(2)",
        ));
    let base = kit.write(&workshop.kitfs.folder().join("layout"), "v1");
    registry.push_layout(REPOSITORY, &base.folder);
    Published { workshop, registry, base, _runtime: runtime }
}

impl Published {
    fn reference(&self) -> String {
        self.registry.reference(REPOSITORY, "v1")
    }

    fn pack(&self, folder: &Path, more: &[&str]) -> Value {
        let home = self.workshop.home().display().to_string();
        let folder = folder.display().to_string();
        let arguments = ["pack", &folder, "--config", &home, "--json"];
        self.workshop.kitfs.json(&[&arguments[..], more].concat())
    }

    fn has(&self, layer: usize) -> bool {
        crate::blob(&self.workshop.home(), &self.base.layers[layer].0).exists()
    }
}

fn states(packed: &Value) -> Vec<&str> {
    packed["layers"].as_array().unwrap().iter().map(|it| it["state"].as_str().unwrap()).collect()
}

fn digests(packed: &Value) -> Vec<&str> {
    packed["layers"].as_array().unwrap().iter().map(|it| it["digest"].as_str().unwrap()).collect()
}

#[test]
fn a_mount_is_packed_by_digest_and_nothing_of_it_is_read() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let mountpoint = kitfs.mount(&published.reference(), &[]);
    let kitfile = kitfs.folder().join("Kitfile.new");
    let text = fs::read_to_string(mountpoint.join("Kitfile")).unwrap();
    let better = text.replacen("package:\n", "package:\n  description: better\n", 1);
    assert_ne!(better, text);
    fs::write(&kitfile, better).unwrap();
    let kitfile = kitfile.display().to_string();
    let packed = published.pack(&mountpoint, &["-f", &kitfile, "-t", "demo:v2"]);
    assert_eq!(states(&packed), ["kept", "kept"]);
    let base: Vec<_> = published.base.layers.iter().map(|(digest, _)| digest.as_str()).collect();
    assert_eq!(digests(&packed), base);
    assert!(!published.has(0) && !published.has(1));
    let status = kitfs.status_of(&mountpoint);
    assert!(status["resident_bytes"].as_u64().unwrap_or(0) < 1_000_000, "{status}");
}

#[test]
fn a_kit_with_layers_elsewhere_is_read_through_kits_storage() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let mountpoint = kitfs.mount(&published.reference(), &[]);
    published.pack(&mountpoint, &["-t", "demo:v2"]);
    let expected = Tree::read(&mountpoint).without_kitfile();
    kitfs.unmount(&mountpoint);
    kitfs.succeed(&["daemon", "stop"]);
    kitfs.succeed(&["cache", "clear"]);
    let home = published.workshop.home().display().to_string();
    let again = kitfs.mount("demo:v2", &["--config", &home]);
    Tree::read(&again).without_kitfile().assert_equals(&expected, "demo:v2");
    let printed = kitfs.succeed(&["cat", "localhost/demo:v2/src/a.py", "--config", &home]);
    assert_eq!(printed, "print(1)");
}

#[test]
fn complete_downloads_what_is_missing() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let mountpoint = kitfs.mount(&published.reference(), &[]);
    published.pack(&mountpoint, &["-t", "demo:v2", "--complete"]);
    assert!(published.has(0) && published.has(1));
    assert!(!published.workshop.side_files().iter().any(|name| name.contains("origins")));
}

#[test]
fn a_writable_view_packs_only_the_layers_that_changed() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let view = kitfs.mount(&published.reference(), &["--overlay"]);
    fs::write(view.join("src/a.py"), "print(3)").unwrap();
    fs::write(view.join("src/new.py"), "").unwrap();
    let packed = published.pack(&view, &["-t", "demo:v2"]);
    assert_eq!(states(&packed), ["kept", "new"]);
    assert_eq!(packed["layers"][1]["files"], 3);
    assert!(!published.has(0));
    let expected = Tree::read(&view).without_kitfile();
    let home = published.workshop.home().display().to_string();
    let mountpoint = kitfs.mount("demo:v2", &["--config", &home]);
    let mounted = Tree::read(&mountpoint).without_kitfile();
    assert_eq!(mounted.0.keys().collect::<Vec<_>>(), expected.0.keys().collect::<Vec<_>>());
    assert_eq!(fs::read(mountpoint.join("src/a.py")).unwrap(), b"print(3)");
    // Back to the base: both layers are kept again.
    fs::remove_file(view.join("src/new.py")).unwrap();
    fs::write(view.join("weights/w.bin"), "other").unwrap();
    let packed = published.pack(&view, &["-t", "demo:v3"]);
    assert_eq!(states(&packed), ["new", "new"]);
}

#[test]
fn a_change_that_no_layer_holds_is_named() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let view = kitfs.mount(&published.reference(), &["--overlay"]);
    fs::write(view.join("README.md"), "new").unwrap();
    fs::write(view.join(".kitignore"), "*.tmp").unwrap();
    fs::write(view.join("src/x.tmp"), "").unwrap();
    fs::write(view.join("src/a.py"), "print(3)").unwrap();
    let home = published.workshop.home().display().to_string();
    let packed = kitfs.run(&["pack", view.to_str().unwrap(), "--config", &home, "-t", "demo:v2"]);
    let warnings: Vec<&str> =
        packed.stderr.lines().filter(|line| line.contains("is not packed")).collect();
    let named = "README.md is not packed: no path of the Kitfile leads to it";
    assert!(matches!(warnings[..], [one] if one.contains(named)), "{packed:?}");
}

#[test]
fn a_renamed_or_removed_file_of_a_view_packs_its_layer_anew() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let view = kitfs.mount(&published.reference(), &["--overlay"]);
    fs::remove_file(view.join("src/b.py")).unwrap();
    let packed = published.pack(&view, &["-t", "demo:v2"]);
    assert_eq!(states(&packed), ["kept", "new"]);
    assert_eq!(packed["layers"][1]["files"], 1);
    fs::rename(view.join("src/a.py"), view.join("src/b.py")).unwrap();
    let packed = published.pack(&view, &["-t", "demo:v3"]);
    assert_eq!(states(&packed), ["kept", "new"]);
    // A rule of the new version keeps a file out that the base's layer has.
    fs::write(view.join(".kitignore"), "weights/w.bin").unwrap();
    let packed = published.pack(&view, &["-t", "demo:v4"]);
    assert_eq!(states(&packed)[0], "new");
    assert_eq!(packed["layers"][0]["files"], 0);
}

#[test]
fn a_base_that_cannot_be_read_packs_every_layer_anew() {
    let published = published();
    let kitfs = &published.workshop.kitfs;
    let mountpoint = kitfs.mount(&published.reference(), &[]);
    fs::read(mountpoint.join("weights/w.bin")).unwrap();
    fs::read(mountpoint.join("src/a.py")).unwrap();
    fs::read(mountpoint.join("src/b.py")).unwrap();
    let manifest: Value = serde_json::from_slice(&published.base.manifest).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    published.registry.lose_blob(REPOSITORY, kitfs::oci::Digest::parse(config).unwrap());
    let home = published.workshop.home().display().to_string();
    let folder = mountpoint.display().to_string();
    let outcome = kitfs.run(&[
        "pack",
        &folder,
        "--config",
        &home,
        "-t",
        "demo:v2",
        "--json",
        "--retries",
        "0",
    ]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("every layer is packed anew"), "{}", outcome.stderr);
    let packed: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(states(&packed), ["new", "new"]);
}
