//! kit's own storage on this machine: `kit pack` under `localhost/`, `kit pull` under the
//! registry's name.

use std::fs;

use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kit_storage::KitHome;
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Options, RegistryDouble};
use crate::support::tree::Tree;

const REPOSITORY: &str = "team/model";

fn kit(content: &[u8]) -> Kit {
    Kit::modelkit().with(Layer::tar("model", "model").file("model/m.bin", 0o644, content))
}

fn write(kitfs: &Kitfs, name: &str, kit: &Kit) -> Written {
    kit.write(&kitfs.folder().join(name), "v1")
}

#[test]
fn a_kit_in_kits_own_storage_is_mounted_without_a_network() {
    let kitfs = Kitfs::new();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = write(&kitfs, "layout", &kit(b"packed"));
    home.store("localhost/team/model", Some("v1"), &written);
    for reference in ["localhost/team/model:v1", "team/model:v1"] {
        let mountpoint = kitfs.mount(reference, &["--config", home.path()]);
        let mounted = Tree::read(&mountpoint).without_kitfile();
        mounted.assert_equals(&written.tree, reference);
    }
}

#[test]
fn a_pulled_kit_is_read_when_its_registry_does_not_answer_or_where_it_is_preferred() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let host = registry.host();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let pulled = write(&kitfs, "pulled", &kit(b"pulled"));
    let newer = write(&kitfs, "newer", &kit(b"newer"));
    home.store(&format!("{host}/{REPOSITORY}"), Some("v1"), &pulled);
    registry.push_layout(REPOSITORY, &newer.folder);
    let reference = registry.reference(REPOSITORY, "v1");
    let file = format!("{reference}/model/m.bin");
    let local = ["--config", home.path(), "--prefer-local"];
    let mut preferred = vec!["cat", &file];
    preferred.extend(local);
    assert_eq!(kitfs.succeed(&preferred), "pulled");
    assert!(registry.requests().is_empty());
    assert_eq!(kitfs.succeed(&["cat", &file, "--config", home.path()]), "newer");

    // Another user has never asked the registry.
    drop((registry, runtime));
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let mount = ["mount", &reference, mountpoint.to_str().unwrap(), "--config", home.path()];
    let outcome = kitfs.run(&mount);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("is read from kit's storage"), "{}", outcome.stderr);
    assert_eq!(fs::read(mountpoint.join("model/m.bin")).unwrap(), b"pulled");
    assert_eq!(kitfs.status_of(&mountpoint)["digest"], *pulled.digest);
}

#[test]
fn a_tag_under_which_kit_may_have_filed_a_parent_is_refused() {
    let kitfs = Kitfs::new();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let parent = write(&kitfs, "parent", &kit(b"parent"));
    let child = Kit::modelkit().with_parent("127.0.0.1:1/team/base:v1");
    let child = write(&kitfs, "child", &child);
    // The storage after `kit pull 127.0.0.1:1/team/model:v1`.
    home.store("127.0.0.1:1/team/model", Some("v1"), &child);
    home.store("127.0.0.1:1/team/model", Some("v1"), &parent);
    for option in ["--prefer-local", "--retries=0"] {
        let arguments = ["ls", "127.0.0.1:1/team/model:v1", "--config", home.path(), option];
        let said = kitfs.fail(5, &arguments);
        assert!(said.contains("may name a parent") && said.contains(&parent.digest), "{said}");
    }
    let pasted = format!("127.0.0.1:1/team/model@{}/model/m.bin", parent.digest);
    let arguments = ["cat", &pasted, "--config", home.path(), "--prefer-local"];
    assert_eq!(kitfs.succeed(&arguments), "parent");
}
