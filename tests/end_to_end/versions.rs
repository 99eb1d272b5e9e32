//! Versions of a kit: `kitfs diff`, `kitfs log`, and the digests of `kitfs ls`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rstest::rstest;
use serde_json::{Value, json};

use crate::counted::Counted;
use crate::filling::random_kit;
use crate::support::Random;
use crate::support::kit_builder::{Compression, Kit, Layer, Written};
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Options, RegistryDouble};
use crate::support::tree::{Kind, Tree};

/// A layout folder with versions of a kit.
struct Versions {
    kitfs: Kitfs,
    folder: PathBuf,
}

impl Versions {
    fn new() -> Self {
        let kitfs = Kitfs::new();
        let folder = kitfs.folder().join("kits");
        Self { kitfs, folder }
    }

    fn write(&self, kit: &Kit, tag: &str) -> Written {
        kit.write(&self.folder, tag)
    }

    fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.folder.display())
    }

    /// `kitfs diff --json` of two tags, and its exit code.
    #[track_caller]
    fn diff(&self, before: &str, after: &str, options: &[&str]) -> (Value, i32) {
        let (before, after) = (self.reference(before), self.reference(after));
        let mut arguments = vec!["diff", "--json", &before, &after];
        arguments.extend(options);
        let outcome = self.kitfs.run(&arguments);
        let text = String::from_utf8(outcome.stdout).unwrap();
        let said = outcome.stderr;
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}{said}"));
        (json, outcome.code.unwrap())
    }
}

/// Kind and path of each change.
fn changes(comparison: &Value) -> BTreeSet<(&str, &str)> {
    let changes = comparison["changes"].as_array().unwrap().iter();
    changes.map(|it| (it["kind"].as_str().unwrap(), it["path"].as_str().unwrap())).collect()
}

fn model(content: &[u8]) -> Layer {
    Layer::raw("model", "model.bin", 0o644, content)
}

/// A data set in an archive: some files change, some do not.
fn dataset(changed: &[u8], names: &[&str]) -> Layer {
    let mut layer = Layer::tar("dataset", "data").directory("data", 0o755);
    for name in names {
        layer = layer.file(format!("data/{name}"), 0o644, name.as_bytes());
    }
    layer.file("data/changed", 0o644, changed)
}

#[rstest]
#[case::uncompressed(Compression::None)]
#[case::compressed(Compression::Gzip)]
fn files_whose_digests_are_listed_are_compared_by_them(#[case] compression: Compression) {
    let versions = Versions::new();
    let before = dataset(b"one", &["same", "moved", "gone"]).listed().compressed(compression);
    let after = dataset(b"two", &["same", "come"]).file("data/new/moved", 0o644, b"moved");
    let after = after.listed().compressed(compression);
    versions.write(&Kit::modelkit().with(model(b"1")).with(before), "v1");
    versions.write(&Kit::modelkit().with(model(b"1")).with(after), "v2");
    let (comparison, code) = versions.diff("v1", "v2", &[]);
    assert_eq!(code, 1);
    let expected = [
        ("added", "data/come"),
        ("removed", "data/gone"),
        ("changed", "data/changed"),
        ("renamed", "data/new/moved"),
        // The Kitfile has the digests of the layers, but the file `Kitfile` does not.
    ];
    assert_eq!(changes(&comparison), expected.into());
    let moved = comparison["changes"].as_array().unwrap().iter();
    let moved = moved.into_iter().find(|it| it["kind"] == "renamed").unwrap();
    assert_eq!((&moved["from"], &moved["claimed"]), (&json!("data/moved"), &json!(true)));
    assert_eq!(comparison["claimed_same_files"], 1);
    assert_eq!(comparison["same_files"], 3);

    let (same, code) = versions.diff("v1", "v1", &[]);
    assert_eq!((changes(&same).len(), code), (0, 0));
    let (v1, v2) = (versions.reference("v1"), versions.reference("v2"));
    assert_eq!(versions.kitfs.succeed(&["diff", &v1, &v1]), "");

    let outcome = versions.kitfs.run(&["diff", "--name-only", &v1, &v2, "data/new"]);
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"data/new/moved\n"[..], Some(1)));
    let table = versions.kitfs.run(&["diff", &v1, &v2]).stdout;
    let table = String::from_utf8(table).unwrap();
    for part in ["renamed*", "data/moved -> data/new/moved", "1 of 2 layers are new", "fetches"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn files_without_a_digest_are_maybe_changed_until_their_bytes_are_compared() {
    let versions = Versions::new();
    let names = ["same", "longer"];
    versions.write(&Kit::modelkit().with(dataset(b"one", &names)), "v1");
    let other = Layer::tar("dataset", "data").directory("data", 0o755);
    let other = other.file("data/changed", 0o644, b"two").file("data/longer", 0o644, b"longer!");
    versions.write(&Kit::modelkit().with(other.file("data/same", 0o755, b"same")), "v2");
    let (comparison, code) = versions.diff("v1", "v2", &[]);
    assert_eq!(code, 1);
    let expected = [("maybe", "data/changed"), ("changed", "data/longer"), ("maybe", "data/same")];
    assert_eq!(changes(&comparison), expected.into());
    let (comparison, _) = versions.diff("v1", "v2", &["--content"]);
    let expected = [("changed", "data/changed"), ("changed", "data/longer"), ("mode", "data/same")];
    assert_eq!(changes(&comparison), expected.into());
    let (comparison, _) = versions.diff("v1", "v2", &["data/same"]);
    assert_eq!(changes(&comparison), [("maybe", "data/same")].into());
}

#[test]
fn a_list_of_digests_that_is_hostile_is_ignored_with_a_warning() {
    let versions = Versions::new();
    let list = |files: Value| json!({"version": 1, "files": files}).to_string();
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let layer = || Layer::tar("dataset", "data").file("data", 0o644, b"one");
    versions.write(&Kit::modelkit().with(layer().listed()), "good");
    for (tag, annotation, words) in [
        ("size", list(json!([["data", 4, empty]])), "`data` has 3 bytes, and not 4"),
        ("name", list(json!([["other", 3, empty]])), "`data` is not listed"),
        ("more", list(json!([["data", 3, empty], ["e", 0, empty]])), "`e` is not in the layer"),
        ("path", list(json!([["../data", 3, empty]])), "malformed"),
        ("json", "{".to_owned(), "malformed"),
    ] {
        // Another layer with the same files.
        let other = layer().directory("d", 0o755).annotated("dev.kitfs.layer.files", &annotation);
        versions.write(&Kit::modelkit().with(other), tag);
        let (good, bad) = (versions.reference("good"), versions.reference(tag));
        let outcome = versions.kitfs.run(&["diff", "--json", &good, &bad]);
        assert!(outcome.stderr.contains(words), "{tag}: {}", outcome.stderr);
        let comparison: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert!(changes(&comparison).contains(&("maybe", "data")), "{comparison}");
    }
}

/// A model of 3 MiB that stays, and a data set of a tar layer that changes.
fn version(seed: u64, compression: Compression) -> Kit {
    let layer = Layer::tar("dataset", "data").directory("data", 0o755);
    let layer = layer.file("data/a", 0o644, &Random::new(seed).bytes(2 << 20));
    let layer = layer.file("data/b", 0o644, &Random::new(seed + 1).bytes(300_000));
    let model = model(&Random::new(1).bytes(3 << 20));
    Kit::modelkit().with(model).with(layer.compressed(compression))
}

#[rstest]
#[case::uncompressed(Compression::None)]
#[case::compressed(Compression::Gzip)]
fn a_switch_fetches_the_bytes_that_the_comparison_names(#[case] compression: Compression) {
    let counted = Counted::new(&version(2, compression));
    let kitfs = &counted.kitfs;
    kitfs.succeed(&["daemon", "start"]);
    let folder = kitfs.folder().join("v2");
    let written = version(7, compression).write(&folder, "v2");
    counted.registry.push_layout("org/kit", &folder);
    let after = counted.registry.reference("org/kit", "v2");
    kitfs.succeed(&["warm", &counted.reference]);
    let before = counted.fetched();
    let outcome = kitfs.run(&["diff", "--json", &counted.reference, &after]);
    let comparison: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let config = std::fs::metadata(written.blob(&written.config)).unwrap().len();
    let compared = counted.fetched() - before - config;
    let switch = &comparison["switch"];
    assert_eq!(switch["new_bytes"], written.layers[1].1, "{switch}");
    assert_eq!(switch["missing_bytes"], written.layers[1].1, "{switch}");
    // The scan of an archive asks for some headers twice.
    let is_about = |bytes: u64, expected: &Value| {
        let expected = expected.as_u64().unwrap();
        (expected..=expected + 16 * 1024).contains(&bytes)
    };
    assert!(is_about(compared, &switch["fetched_bytes"]), "{switch}, and {compared} came");
    let layers = comparison["layers"].as_array().unwrap();
    let kinds: Vec<_> = layers.iter().map(|layer| layer["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["same", "added", "removed"]);
    assert_eq!(layers[1]["missing_bytes"], switch["missing_bytes"]);
    kitfs.succeed(&["warm", &after]);
    let fetched = counted.fetched() - before - config;
    assert!(is_about(fetched, &switch["missing_bytes"]), "{switch}, and {fetched} came");
    // Now nothing is missing.
    let outcome = kitfs.run(&["diff", "--json", &counted.reference, &after]);
    let comparison: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(comparison["switch"]["missing_bytes"], 0);
}

#[test]
fn kitfiles_are_laid_side_by_side() {
    let versions = Versions::new();
    let config = |epochs: u32, extra: &str| {
        let json = json!({"package": {"name": "n", "version": "1"},
            "model": {"path": "model.bin", "parameters": {"epochs": epochs, extra: 0.5}}});
        json.to_string()
    };
    let kit = |epochs, extra| Kit::modelkit().with_config(config(epochs, extra).as_bytes());
    versions.write(&kit(1, "lr"), "v1");
    versions.write(&kit(20, "loss"), "v2");
    let (v1, v2) = (versions.reference("v1"), versions.reference("v2"));
    let (rows, code) = versions.diff("v1", "v2", &["--kitfile"]);
    let key = |name: &str| format!("model.parameters.{name}");
    let expected = json!([
        {"key": key("epochs"), "before": 1, "after": 20},
        {"key": key("lr"), "before": 0.5},
        {"key": key("loss"), "after": 0.5},
    ]);
    assert_eq!((rows, code), (expected, 1));
    let table = versions.kitfs.run(&["diff", "--kitfile", "--all", &v1, &v2]).stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.starts_with("KEY"), "{table}");
    assert!(table.contains("package.name") && table.contains("20"), "{table}");
    assert_eq!(versions.diff("v1", "v1", &["--kitfile"]), (json!([]), 0));
}

#[test]
fn trouble_has_the_exit_code_of_diff() {
    let versions = Versions::new();
    versions.write(&Kit::modelkit().with(model(b"1")), "v1");
    let (v1, absent) = (versions.reference("v1"), versions.reference("v9"));
    assert!(versions.kitfs.fail(2, &["diff", &v1, &absent]).contains("v9"));
    assert!(versions.kitfs.fail(2, &["diff", "--kitfile", &absent, &v1]).contains("v9"));
    let said = versions.kitfs.fail(2, &["diff", &v1, &v1, "nope"]);
    assert!(said.contains("`nope` is in neither of the kits"), "{said}");
    let said = versions.kitfs.fail(2, &["diff", &v1, &v1, "../x"]);
    assert!(said.contains("`..`"), "{said}");
}

#[test]
fn a_mounted_directory_stands_for_its_kit() {
    let versions = Versions::new();
    versions.write(&Kit::modelkit().with(model(b"1")), "v1");
    let mountpoint = versions.kitfs.mount(&versions.reference("v1"), &[]);
    // The tag moves, and the mount stays.
    versions.write(&Kit::modelkit().with(model(b"2")), "v1");
    let (mounted, v1) = (mountpoint.to_str().unwrap(), versions.reference("v1"));
    let outcome = versions.kitfs.run(&["diff", "--name-only", mounted, &v1]);
    assert_eq!((outcome.stdout.as_slice(), outcome.code), (&b"model.bin\n"[..], Some(1)));
    assert_eq!(versions.kitfs.succeed(&["diff", mounted, mounted]), "");
}

#[test]
fn versions_are_listed_by_date_with_what_changed_between_them() {
    let versions = Versions::new();
    let kit = |data: &[u8], time: &str| {
        let kit = Kit::modelkit().with(model(b"1")).with(dataset(data, &["same"]).listed());
        if time.is_empty() { kit } else { kit.created(time) }
    };
    let undated = kit(b"zero!", "");
    versions.write(&undated, "v1");
    let first = versions.write(&kit(b"one", "2026-01-01T00:00:00Z"), "v2");
    let second = versions.write(&kit(b"two", "2026-02-01T00:00:00Z"), "v10");
    versions.write(&kit(b"two", "2026-02-01T00:00:00Z"), "latest");
    let reference = format!("oci:{}", versions.folder.display());
    let kitfs = &versions.kitfs;
    let log = kitfs.json(&["log", "--json", "--files", &reference]);
    let tags: Vec<_> = log.as_array().unwrap().iter().map(|it| it["tags"].clone()).collect();
    assert_eq!(tags, [json!(["latest", "v10"]), json!(["v2"]), json!(["v1"])]);
    let changes = &log[0]["changes"];
    assert_eq!(
        (&log[0]["digest"], &changes["since"]),
        (&json!(second.digest), &json!(first.digest))
    );
    assert_eq!(changes["new_bytes"], second.layers[1].1);
    assert_eq!(changes["layers"][0]["kind"], "changed");
    assert_eq!(changes["files"]["changed"], 1);
    assert_eq!(log[2].get("changes"), None);
    let table = kitfs.succeed(&["log", &reference]);
    for words in ["2026-02-01 00:00  latest, v10", "no date", "the first", "layers: 1 changed"] {
        assert!(table.contains(words), "{words}: {table}");
    }

    // A registry gives the same, and only the last tags where a bound is set.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    registry.push_layout("org/kit", &versions.folder);
    let repository = format!("{}/org/kit", registry.host());
    let there = kitfs.json(&["log", "--json", "--files", &repository]);
    assert_eq!(there, log);
    let outcome = kitfs.run(&["log", "--json", "-n", "2", &repository]);
    assert!(outcome.stderr.contains("only 2 tags are looked at"), "{}", outcome.stderr);
    let last: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let tags: Vec<_> = last.as_array().unwrap().iter().map(|it| it["tags"].clone()).collect();
    assert_eq!(tags, [json!(["v10"]), json!(["v2"])]);
    let said = kitfs.fail(2, &["log", &format!("{repository}:v1")]);
    assert!(said.contains("leave the tag"), "{said}");
    kitfs.fail(3, &["log", &format!("{}/org/none", registry.host())]);
}

#[test]
fn ls_shows_the_digests_that_are_known() {
    let versions = Versions::new();
    let unlisted = Layer::tar("docs", "docs").file("docs/a", 0o644, b"a");
    let kit = Kit::modelkit().with(model(b"1")).with(dataset(b"x", &[]).listed()).with(unlisted);
    versions.write(&kit, "v1");
    let entries = versions.kitfs.json(&["ls", "-R", "--json", &versions.reference("v1")]);
    let of = |path: &str| {
        let mut entries = entries.as_array().unwrap().iter();
        let entry = entries.find(|entry| entry["path"] == path).unwrap();
        (entry["digest"].as_str().map(str::to_owned), entry.get("digest_claimed").is_some())
    };
    let sha256 = |content: &[u8]| Some(format!("sha256:{}", crate::support::tree::sha256(content)));
    assert_eq!(of("model.bin"), (sha256(b"1"), false));
    assert_eq!(of("data/changed"), (sha256(b"x"), true));
    assert_eq!(of("docs/a"), (None, false));
    assert!(of("Kitfile").0.is_some());
    let table = versions.kitfs.succeed(&["ls", "-R", "--digest", &versions.reference("v1")]);
    let line = format!("{}* data/changed", sha256(b"x").unwrap());
    assert!(table.contains(&line), "{table}");
}

/// The differences of two trees: paths that came, went, and changed in content or mode. Directories are left out.
fn expected(before: &Tree, after: &Tree) -> BTreeSet<(String, String)> {
    let files = |tree: &Tree| {
        let files = tree.0.iter().filter(|(_, entry)| entry.kind != Kind::Directory);
        let files =
            files.map(|(path, entry)| (String::from_utf8(path.clone()).unwrap(), entry.clone()));
        files.collect::<std::collections::BTreeMap<_, _>>()
    };
    let (old, new) = (files(before), files(after));
    let mut expected = BTreeSet::new();
    for path in old.keys().chain(new.keys()) {
        let kind = match (old.get(path), new.get(path)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(old), Some(new)) if old.kind == new.kind => "mode",
            (Some(_), Some(_)) => "changed",
            (Some(_), None) => "removed",
            _ => "added",
        };
        expected.insert((kind.to_owned(), path.clone()));
    }
    expected
}

#[test]
fn a_comparison_of_bytes_agrees_with_the_unpacked_trees() {
    let versions = Versions::new();
    versions.kitfs.succeed(&["daemon", "start"]);
    let mut random = Random::new(21);
    let mut before = versions.write(&random_kit(&mut random), "v0");
    for round in 1..25 {
        let after = versions.write(&random_kit(&mut random), &format!("v{round}"));
        let tags = (format!("v{}", round - 1), format!("v{round}"));
        let (comparison, code) = versions.diff(&tags.0, &tags.1, &["--content"]);
        let mut told = BTreeSet::new();
        for change in comparison["changes"].as_array().unwrap() {
            let text = |key: &str| change[key].as_str().unwrap().to_owned();
            let is_directory = |side: &str| change[side]["kind"] == "directory";
            if is_directory("before") || is_directory("after") {
                continue;
            }
            match text("kind").as_str() {
                "renamed" => {
                    told.insert(("removed".to_owned(), text("from")));
                    told.insert(("added".to_owned(), text("path")));
                }
                kind => _ = told.insert((kind.to_owned(), text("path"))),
            }
        }
        let expected = expected(&before.tree, &after.tree);
        assert_eq!(told, expected, "round {round}: {comparison}");
        assert_eq!(code, i32::from(!comparison["changes"].as_array().unwrap().is_empty()));
        before = after;
    }
}

/// Four data sets of which each version replaces some.
fn random_version(random: &mut Random, seeds: &mut [u64; 4]) -> Kit {
    let mut kit = Kit::modelkit();
    for (number, seed) in seeds.iter_mut().enumerate() {
        if random.below(2) == 0 {
            *seed = random.next();
        }
        let path = format!("data-{number}");
        let mut own = Random::new(*seed);
        let mut layer = Layer::tar("dataset", &path).directory(&path, 0o755);
        for name in 0..own.below(4) {
            let bytes = own.below(700_000) as usize;
            layer = layer.file(format!("{path}/{name}"), 0o644, &own.bytes(bytes));
        }
        kit = kit.with(if own.below(3) == 0 { layer.gzip() } else { layer });
    }
    kit
}

#[test]
fn switches_between_random_versions_fetch_what_the_comparison_names() {
    let mut random = Random::new(31);
    let mut seeds = [1, 2, 3, 4];
    let counted = Counted::new(&random_version(&mut random, &mut seeds));
    let kitfs = &counted.kitfs;
    kitfs.succeed(&["daemon", "start"]);
    kitfs.succeed(&["warm", &counted.reference]);
    let mut before = counted.reference.clone();
    for round in 2..8 {
        let (folder, tag) = (kitfs.folder().join(format!("v{round}")), format!("v{round}"));
        let written = random_version(&mut random, &mut seeds).write(&folder, &tag);
        counted.registry.push_layout("org/kit", &folder);
        let after = counted.registry.reference("org/kit", &tag);
        let config = std::fs::metadata(written.blob(&written.config)).unwrap().len();
        let fetched = counted.fetched();
        let outcome = kitfs.run(&["diff", "--json", &before, &after]);
        let comparison: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        kitfs.succeed(&["warm", &after]);
        let came = counted.fetched() - fetched;
        let named = comparison["switch"]["missing_bytes"].as_u64().unwrap();
        // The config, and the headers of archives that a scan asks for twice.
        let most = named + config + 4 * 16 * 1024;
        assert!((named..=most).contains(&came), "{came} bytes came, and {named} were named");
        assert_eq!(comparison["switch"]["new_bytes"], named, "all of the version before is here");
        before = after;
    }
}

#[test]
fn kits_that_kitfs_has_packed_are_compared_by_the_digests_of_their_files() {
    let kitfs = Kitfs::new();
    let folder = kitfs.folder().join("work");
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let kitfile =
        "manifestVersion: 1.0.0\npackage:\n  name: n\ndatasets:\n  - name: d\n    path: data\n";
    std::fs::write(folder.join("Kitfile"), kitfile).unwrap();
    for name in ["same", "moved", "changed"] {
        std::fs::write(folder.join("data").join(name), format!("the {name}")).unwrap();
    }
    let pack = |tag: &str| kitfs.succeed(&["pack", folder.to_str().unwrap(), "-t", tag]);
    pack("team/kit:v1");
    std::fs::rename(folder.join("data/moved"), folder.join("data/there")).unwrap();
    std::fs::write(folder.join("data/changed"), "THE CHANGED").unwrap();
    pack("team/kit:v2");
    let outcome = kitfs.run(&["diff", "--json", "team/kit:v1", "team/kit:v2"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let comparison: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let expected = [("changed", "data/changed"), ("renamed", "data/there")];
    assert_eq!(changes(&comparison), expected.into());
    assert_eq!(comparison["claimed_same_files"], 1);
}
