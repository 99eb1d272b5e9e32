//! Image indexes (OCI image-spec, image-index.md; kit 1.17): the choice of a kit from an index.

use std::fs;

use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kit_index::KitIndex;
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Options, RegistryDouble};

const REPOSITORY: &str = "org/model";

/// Two kits of one repository, in an OCI layout.
struct Pair {
    folder: TempDir,
    small: Written,
    large: Written,
}

fn kit(content: &[u8]) -> Kit {
    Kit::modelkit().with(Layer::raw("model", "model.bin", 0o644, content))
}

impl Pair {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let small = kit(b"small").write(folder.path(), "small");
        let large = kit(b"large").write(folder.path(), "large");
        Self { folder, small, large }
    }

    /// With a ModelKit index under the tag `all`.
    fn labelled() -> Self {
        let pair = Self::new();
        KitIndex::of_modelkits()
            .with(&pair.small, "small", json!({"size": "small", "archs": ["a", "b"], "vram": 6}))
            .with(&pair.large, "large", json!({"size": "large", "vram": 6}))
            .write(&pair.small, "all");
        pair
    }

    fn layout(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.folder.path().display())
    }
}

#[test]
fn every_command_chooses_a_kit_by_label() {
    let pair = Pair::labelled();
    let all = pair.layout("all");
    let kitfs = Kitfs::new();
    for (label, content) in [("size=small", "small"), ("size=large", "large")] {
        let file = format!("{all}/model.bin");
        assert_eq!(kitfs.succeed(&["cat", "-l", label, &file]), content);
        assert_eq!(kitfs.succeed(&["ls", "--label", label, &all]), "Kitfile\nmodel.bin\n");
        let copy = kitfs.folder().join(content);
        kitfs.succeed(&["cp", "-l", label, &file, copy.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(copy).unwrap(), content);
        kitfs.succeed(&["warm", "-l", label, &all]);
        let mountpoint = kitfs.mount(&all, &["-l", label, "-l", "vram=6"]);
        assert_eq!(fs::read_to_string(mountpoint.join("model.bin")).unwrap(), content);
        let status = kitfs.status_of(&mountpoint);
        assert_eq!(status["labels"], json!([label, "vram=6"]));
        kitfs.succeed(&["daemon", "restart"]);
        assert_eq!(kitfs.status_of(&mountpoint)["labels"], json!([label, "vram=6"]));
        let digest = if content == "small" { &pair.small.digest } else { &pair.large.digest };
        assert_eq!(status["digest"], **digest);
        assert!(kitfs.succeed(&["status"]).contains(&format!("-l {label}")));
    }
    // A label's value is compared in the form that kit shows.
    let info = kitfs.json(&["info", "--json", "-l", r#"archs=["a","b"]"#, &all]);
    assert_eq!(info["digest"], *pair.small.digest);
}

#[test]
fn an_index_that_leaves_a_choice_lists_what_there_is() {
    let pair = Pair::labelled();
    let all = pair.layout("all");
    let kitfs = Kitfs::new();
    for (code, labels) in
        [(2, vec![]), (2, vec!["--label", "vram=6"]), (3, vec!["--label", "size=tiny"])]
    {
        let mut arguments = vec!["ls", &all];
        arguments.extend(&labels);
        let said = kitfs.fail(code, &arguments);
        for word in [&pair.large.digest, "size=large", "size=small"] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    kitfs.fail(2, &["ls", &all, "--label", "size"]);
    let said = kitfs.fail(2, &["ls", &pair.layout("small"), "--label", "size=small"]);
    assert!(said.contains("leave --label out"), "{said}");
    // The digests in the message can be pasted.
    let pasted = format!("oci:{}@{}", pair.folder.path().display(), pair.large.digest);
    assert_eq!(kitfs.succeed(&["cat", &format!("{pasted}/model.bin")]), "large");
}

#[test]
fn info_shows_an_index_and_list_marks_it() {
    let pair = Pair::labelled();
    let all = pair.layout("all");
    let kitfs = Kitfs::new();
    let table = kitfs.succeed(&["info", &all]);
    assert!(table.starts_with("ModelKit index  sha256:"), "{table}");
    let line = table.lines().find(|line| line.starts_with("small ")).expect("a line");
    assert!(line.contains(&pair.small.digest), "{line}");
    assert!(line.ends_with(r#"archs=["a","b"]  size=small  vram=6"#), "{line}");
    let info = kitfs.json(&["info", "--json", &all]);
    let entries = info["entries"].as_array().unwrap();
    assert_eq!(entries[1]["original_tag"], "large");
    assert_eq!(entries[1]["labels"], json!({"size": "large", "vram": "6"}));
    let layout = format!("oci:{}", pair.folder.path().display());
    let tags = kitfs.json(&["list", "--json", &layout]);
    assert_eq!(tags[0]["tag"], "all");
    assert_eq!(tags[0]["index_entries"], 2);
    assert!(kitfs.succeed(&["list", &layout]).contains("index of 2 kits"));
}

#[test]
fn an_index_with_one_kit_is_followed_everywhere() {
    let pair = Pair::new();
    let statement = json!({"platform": {"os": "unknown", "architecture": "unknown"}});
    let runtime = Runtime::new().unwrap();
    for (tag, index) in [
        ("plain", KitIndex::plain().with_fields(&pair.small, json!({}))),
        ("labelled", KitIndex::of_modelkits().with(&pair.small, "small", json!({"a": 1}))),
        (
            "attested",
            KitIndex::plain()
                .with_fields(&pair.small, json!({}))
                .with_fields(&pair.large, statement),
        ),
    ] {
        let digest = index.write(&pair.small, tag);
        let registry = runtime.block_on(RegistryDouble::start(Options::default()));
        registry.push_layout(REPOSITORY, pair.folder.path());
        let host = registry.host();
        let by_digest = format!("{host}/{REPOSITORY}@{digest}");
        let kitfs = Kitfs::new();
        for reference in [registry.reference(REPOSITORY, tag), by_digest, pair.layout(tag)] {
            let file = format!("{reference}/model.bin");
            assert_eq!(kitfs.succeed(&["cat", &file]), "small", "{reference}");
        }
    }
}

#[test]
fn other_indexes_name_digests_and_platforms() {
    let pair = Pair::new();
    let platform =
        |architecture| json!({"platform": {"os": "linux", "architecture": architecture}});
    KitIndex::plain()
        .with_fields(&pair.small, platform("amd64"))
        .with_fields(&pair.large, platform("arm64"))
        .write(&pair.small, "both");
    let kitfs = Kitfs::new();
    let said = kitfs.fail(2, &["ls", &pair.layout("both")]);
    assert!(said.contains(&format!("{}  linux/arm64", pair.large.digest)), "{said}");
    assert!(said.contains("by its digest") && !said.contains("--label"), "{said}");
    kitfs.fail(2, &["ls", "--label", "a=b", &pair.layout("both")]);
    let table = kitfs.succeed(&["info", &pair.layout("both")]);
    assert!(table.contains("PLATFORM") && table.contains("linux/arm64"), "{table}");
}

#[test]
fn a_kit_chosen_by_labels_mounts_again_without_the_network() {
    let pair = Pair::labelled();
    let runtime = Runtime::new().unwrap();
    let registry = runtime.block_on(RegistryDouble::start(Options::default()));
    registry.push_layout(REPOSITORY, pair.folder.path());
    let all = registry.reference(REPOSITORY, "all");
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mount(&all, &["-l", "size=large"]);
    assert_eq!(fs::read_to_string(mountpoint.join("model.bin")).unwrap(), "large");
    kitfs.unmount(&mountpoint);
    kitfs.succeed(&["daemon", "stop"]);
    drop(runtime);
    let mountpoint = kitfs.mount(&all, &["-l", "size=large", "--retries", "0"]);
    assert_eq!(fs::read_to_string(mountpoint.join("model.bin")).unwrap(), "large");
    assert_eq!(kitfs.status_of(&mountpoint)["digest"], *pair.large.digest);
}

#[test]
fn manifests_of_a_layout_are_found_by_tag_and_by_whole_reference() {
    let pair = Pair::new();
    let index = pair.folder.path().join("index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    // The annotations of docker save and BuildKit, and those of skopeo.
    json["manifests"][0]["annotations"] = json!({
        "io.containerd.image.name": "ghcr.io/org/one:v1",
        "org.opencontainers.image.ref.name": "v1",
    });
    json["manifests"][1]["annotations"] =
        json!({"org.opencontainers.image.ref.name": "ghcr.io/org/two:v2"});
    fs::write(&index, json.to_string()).unwrap();
    let kitfs = Kitfs::new();
    for (name, content) in [
        ("v1", "small"),
        ("ghcr.io/org/one:v1", "small"),
        ("v2", "large"),
        ("ghcr.io/org/two:v2", "large"),
    ] {
        let reference = pair.layout(name);
        assert_eq!(kitfs.succeed(&["cat", &format!("{reference}/model.bin")]), content, "{name}");
        let mountpoint = kitfs.mount(&reference, &[]);
        assert_eq!(fs::read_to_string(mountpoint.join("model.bin")).unwrap(), content, "{name}");
    }
    let said = kitfs.fail(3, &["ls", &pair.layout("ghcr.io/org/three:v1")]);
    assert!(
        said.contains("`ghcr.io/org/three:v1`") && said.contains("ghcr.io/org/two:v2"),
        "{said}"
    );
}
