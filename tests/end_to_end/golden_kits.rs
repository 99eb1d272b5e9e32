//! Real artifacts, mounted and compared entry by entry with the output of the real `kit unpack`.

use std::fs;

use rstest::rstest;

use crate::support::kitfs::Kitfs;
use crate::support::registry_process::RegistryProcess;
use crate::support::tree::{Kind, Tree};
use crate::support::{golden, golden_reference, map_registry};

/// The host in the golden kits' references to parents.
const PARENTS_HOST: &str = "127.0.0.1:5555";

#[rstest]
#[case("article")]
#[case("comp-none")]
#[case("comp-gzip")]
#[case("comp-gzip-fastest")]
#[case("grandparent")]
#[case("small5k")]
#[case("empty")]
#[case("yaml")]
#[case("legacy-article")]
#[case("modelpack-raw")]
#[case("modelpack-tar")]
fn a_golden_kit_in_a_layout_folder_is_what_kit_unpacks(#[case] name: &str) {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference(name), &[]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden(name), name);
}

#[rstest]
#[case("article")]
#[case("comp-none")]
#[case("comp-gzip")]
#[case("comp-gzip-fastest")]
#[case("small5k")]
#[case("empty")]
#[case("yaml")]
#[case("legacy-article")]
#[case("modelpack-raw")]
#[case("modelpack-tar")]
fn a_golden_kit_in_a_real_registry_is_what_kit_unpacks(#[case] name: &str) {
    let registry = RegistryProcess::start();
    let reference = registry.push(&golden(name), "v1", &format!("golden/{name}"));
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&reference, &["--plain-http"]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden(name), name);
}

#[rstest]
#[case("grandparent")]
#[case("parent")]
#[case("child")]
fn a_kit_with_parents_is_merged_from_a_real_registry_under_another_address(#[case] name: &str) {
    let registry = RegistryProcess::start();
    for kit in ["grandparent", "parent", "child"] {
        registry.push(&golden(kit), "v1", &format!("golden/{kit}"));
    }
    let kitfs = Kitfs::new();
    let registries = kitfs.folder().join("registries");
    map_registry(&registries, PARENTS_HOST, &registry.host());
    let registries = registries.to_str().expect("a plain path");

    let options = ["--registries-dir", registries];
    let from_registry = kitfs.mount(&format!("{PARENTS_HOST}/golden/{name}:v1"), &options);
    Tree::read(&from_registry).assert_equals(&Tree::golden(name), name);
    let from_layout = kitfs.mount(&golden_reference(name), &options);
    Tree::read(&from_layout).assert_equals(&Tree::golden(name), name);
}

#[test]
fn the_kitfile_is_byte_for_byte_that_of_kit() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("yaml"), &[]);
    let written = fs::read_to_string(golden("yaml").with_file_name("yaml.Kitfile")).unwrap();
    assert_eq!(fs::read_to_string(mountpoint.join("Kitfile")).unwrap(), written);
}

#[test]
fn a_directory_that_no_archive_has_is_made() {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&golden_reference("noparent"), &[]);
    let tree = Tree::read(&mountpoint);
    for directory in ["code", "code/dir"] {
        let entry = &tree.0[directory.as_bytes()];
        assert_eq!((entry.mode, &entry.kind), (0o755, &Kind::Directory), "{directory}");
    }
    assert!(matches!(tree.0[b"code/dir/keep.txt".as_slice()].kind, Kind::File { .. }));
}

#[test]
fn info_describes_a_modelpack_by_a_kitfile_that_the_mount_does_not_have() {
    let kitfs = Kitfs::new();
    let info = kitfs.json(&["info", "--json", &golden_reference("modelpack-raw")]);
    let kitfile = info["kitfile"].as_str().unwrap();
    let model =
        "model:\n  path: model-00001-of-00002.safetensors\n  parts:\n    - path: config.json\n";
    assert!(
        kitfile.starts_with("manifestVersion: 1.0.0\n") && kitfile.contains(model),
        "{kitfile}"
    );
    assert!(!kitfs.mount(&golden_reference("modelpack-raw"), &[]).join("Kitfile").exists());
}
