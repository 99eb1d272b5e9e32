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
fn a_kit_that_its_registry_lacks_and_this_machine_has_is_named_and_the_advice_works() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let written = write(&kitfs, "layout", &kit(b"packed"));
    let place = kitfs.mountpoint("refused");
    let here = format!("oci:{}:v1", written.folder.display());
    // Every command that reads a kit says the same.
    let refused = |reference: &str| {
        let place = place.to_str().unwrap();
        let config = ["--config", home.path()];
        let mount = kitfs.fail(3, &[&["mount", reference, place][..], &config].concat());
        for command in ["info", "ls", "warm", "map"] {
            assert_eq!(kitfs.fail(3, &[&[command, reference][..], &config].concat()), mount);
        }
        for mode in [&["diff"][..], &["diff", "--kitfile"]] {
            let both = [mode, &[&here, reference], &config].concat();
            assert_eq!(kitfs.fail(2, &both), mount, "{mode:?}");
        }
        mount
    };
    let mounts = |reference: &str, options: &[&str]| {
        let mountpoint = kitfs.mount(reference, &[&["--config", home.path()], options].concat());
        let mounted = Tree::read(&mountpoint).without_kitfile();
        mounted.assert_equals(&written.tree, reference);
        kitfs.unmount(&mountpoint);
    };

    // Packed under the whole name of the repository, and under its last part.
    for (local, repository) in [("team/model", "team/model"), ("short", "team/short")] {
        let local = format!("localhost/{local}");
        let reference = registry.reference(repository, "v1");
        assert!(!refused(&reference).contains("this machine has"));
        home.store(&local, Some("v1"), &written);
        let said = refused(&reference);
        let push = format!("kitfs push {local}:v1 {reference}");
        assert!(said.contains(&format!("this machine has {local}:v1")), "{said}");
        assert!(said.contains(&push), "{said}");
        mounts(&format!("{local}:v1"), &[]);
        kitfs.succeed(&["push", &format!("{local}:v1"), &reference, "--config", home.path()]);
        mounts(&reference, &[]);
    }

    // Packed under the name of the registry.
    let reference = registry.reference("team/named", "v1");
    home.store(&format!("{}/team/named", registry.host()), Some("v1"), &written);
    let said = refused(&reference);
    assert!(said.contains(&format!("kitfs push {reference}")), "{said}");
    assert!(said.contains("--prefer-local"), "{said}");
    mounts(&reference, &["--prefer-local"]);
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
