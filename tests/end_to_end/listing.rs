//! `kitfs list`.

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kit_storage::KitHome;
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Fault, Options, RegistryDouble, Rule};

fn kit(kitfs: &Kitfs, name: &str) -> Written {
    let layer = Layer::raw("model", "model.bin", 0o644, name.as_bytes());
    Kit::modelkit().with(layer).write(&kitfs.folder().join("layouts").join(name), "v1")
}

/// Repository, tag and digest of each line.
fn lines(listed: &Value) -> Vec<(Option<&str>, Option<&str>, &str)> {
    let kits = listed.as_array().unwrap().iter();
    kits.map(|kit| {
        (kit["repository"].as_str(), kit["tag"].as_str(), kit["digest"].as_str().unwrap())
    })
    .collect()
}

#[test]
fn without_an_argument_kits_storage_is_listed_as_kit_does() {
    let kitfs = Kitfs::new();
    let home = KitHome::new(&kitfs.folder().join("kitops"));
    let local = ["--config", home.path()];
    let empty = kitfs.run(&["list", local[0], local[1]]);
    assert_eq!(empty.code, Some(0), "{}", empty.stderr);
    assert!(empty.stderr.contains("keeps no kits"), "{}", empty.stderr);

    let (a, b, c) = (kit(&kitfs, "a"), kit(&kitfs, "b"), kit(&kitfs, "c"));
    home.store("localhost/team/model", Some("v1"), &a);
    home.store("localhost/team/model", Some("v2"), &b);
    home.store("ghcr.io/org/model", Some("v1"), &c);
    home.store("ghcr.io/org/model", None, &a);
    let listed = kitfs.json(&["list", "--json", local[0], local[1]]);
    let expected = [
        (Some("ghcr.io/org/model"), Some("v1"), &*c.digest),
        (Some("ghcr.io/org/model"), None, &*a.digest),
        (Some("team/model"), Some("v1"), &*a.digest),
        (Some("team/model"), Some("v2"), &*b.digest),
    ];
    assert_eq!(lines(&listed), expected);
    let table = kitfs.succeed(&["list", local[0], local[1]]);
    let (heading, rows) = table.split_once('\n').unwrap();
    assert!(heading.starts_with("REPOSITORY") && heading.ends_with("DIGEST"), "{table}");
    assert!(rows.contains("<none>") && rows.contains("team/model  "), "{table}");

    // The output can be pasted.
    let pasted = format!("team/model@{}/model.bin", b.digest);
    assert_eq!(kitfs.succeed(&["cat", &pasted, local[0], local[1]]), "b");
    let one = kitfs.json(&["list", "--json", "team/model:v2", local[0], local[1]]);
    assert_eq!(lines(&one), [(None, Some("v2"), &*b.digest)]);
    let tags = kitfs.json(&["list", "--json", "team/model", local[0], local[1]]);
    assert_eq!(lines(&tags).len(), 2);
}

#[test]
fn a_registry_is_listed_by_repositories_tags_and_one_tag() {
    let kitfs = Kitfs::new();
    let runtime = Runtime::new().unwrap();
    let options = Options { tags_per_page: Some(1), ..Options::default() };
    let registry = runtime.block_on(RegistryDouble::start(options));
    let (a, b) = (kit(&kitfs, "a"), kit(&kitfs, "b"));
    registry.push_layout("org/a", &a.folder);
    registry.push_layout("org/b", &b.folder);
    registry.push_manifest("org/b", "v2", b.manifest.clone());
    registry.push_manifest("org/b", "broken", "{}");
    let host = registry.host();
    assert_eq!(kitfs.succeed(&["list", &host]), "REPOSITORY\norg/a\norg/b\n");
    assert_eq!(kitfs.json(&["list", "--json", &host]), json!(["org/a", "org/b"]));

    let outcome = kitfs.run(&["list", &format!("{host}/org/b")]);
    assert!(outcome.stderr.contains("broken: "), "{}", outcome.stderr);
    let table = String::from_utf8(outcome.stdout).unwrap();
    assert!(table.contains("v1 ") && table.contains("v2 ") && table.contains(&b.digest), "{table}");
    // Both tags point to one manifest.
    assert!(table.starts_with("TAG") && table.contains("SAME AS"), "{table}");
    let other = kitfs.succeed(&["list", &format!("{host}/org/a")]);
    assert!(!other.contains("SAME AS"), "{other}");
    let one = kitfs.json(&["list", "--json", &format!("{host}/org/b:v2")]);
    assert_eq!(lines(&one), [(None, Some("v2"), &*b.digest)]);
    let digest = kitfs.json(&["list", "--json", &format!("{host}/org/b@{}", b.digest)]);
    assert_eq!(lines(&digest), [(None, None, &*b.digest)]);
    kitfs.fail(3, &["list", &format!("{host}/org/b:absent")]);
    let said = kitfs.fail(3, &["ls", &format!("{host}/org/b:v22")]);
    assert!(said.contains("near tags: v2"), "{said}");
    let said = kitfs.fail(3, &["ls", &format!("{host}/org/b:absent")]);
    assert!(!said.contains("near tags"), "{said}");
    kitfs.fail(6, &["list", &format!("{host}/org/b:broken")]);

    registry.script(Rule::on("_catalog").then(Fault::Status(404)));
    let said = kitfs.fail(3, &["list", &host]);
    assert!(said.contains("HOST/REPOSITORY"), "{said}");
}

#[test]
fn a_folder_with_kits_of_several_repositories_is_listed_by_them() {
    let kitfs = Kitfs::new();
    let folder = kitfs.folder().join("kits");
    let content = |text: &str| Layer::raw("model", "model.bin", 0o644, text.as_bytes());
    let one = Kit::modelkit().with(content("one")).write(&folder, "ghcr.io/org/one:v1");
    let two = Kit::modelkit().with(content("two")).write(&folder, "ghcr.io/org/two:v1");
    let reference = format!("oci:{}", folder.display());
    let listed = kitfs.json(&["list", "--json", &reference]);
    let expected = [
        (Some("ghcr.io/org/one"), Some("v1"), &*one.digest),
        (Some("ghcr.io/org/two"), Some("v1"), &*two.digest),
    ];
    assert_eq!(lines(&listed), expected);
    let pasted = format!("{reference}:ghcr.io/org/two:v1");
    assert_eq!(kitfs.succeed(&["cat", &format!("{pasted}/model.bin")]), "two");
    let listed = kitfs.json(&["list", "--json", &pasted]);
    assert_eq!(lines(&listed), [(None, Some("v1"), &*two.digest)]);
}
