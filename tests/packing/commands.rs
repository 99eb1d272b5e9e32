//! The storage, the output and the messages of the command.

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::support::tree::Tree;

const KITFILE: &str = "\
manifestVersion: 1.0.0
package: {name: demo, authors: [me]}
model: {path: model.bin}
code: [{path: src}]
prompts: [{path: hello.prompt}]
";

fn workshop() -> Workshop {
    let workshop = Workshop::new();
    workshop.write("Kitfile", KITFILE);
    workshop.write("model.bin", vec![7; 3000]);
    workshop.write("src/a.py", "print()");
    workshop.write("src/b/c.py", "");
    workshop.write("hello.prompt", "Hello");
    workshop.write("notes.txt", "private");
    workshop
}

fn states(packed: &Value) -> Vec<&str> {
    packed["layers"].as_array().unwrap().iter().map(|it| it["state"].as_str().unwrap()).collect()
}

#[test]
fn a_packed_kit_is_listed_described_and_mounted() {
    let workshop = workshop();
    let packed = workshop.pack(&["-t", "team/demo:v1,latest"]);
    assert_eq!(packed["repository"], "localhost/team/demo");
    assert_eq!(packed["tags"], json!(["v1", "latest"]));
    assert_eq!(states(&packed), ["new", "new", "new"]);
    let home = workshop.home().display().to_string();
    let config = ["--config", home.as_str()];
    let kits = workshop.kitfs.json(&[&["list", "--json"][..], &config].concat());
    let tags: Vec<_> = kits.as_array().unwrap().iter().map(|kit| &kit["tag"]).collect();
    assert_eq!(tags, ["latest", "v1"]);
    assert_eq!(kits[0]["digest"], packed["digest"]);
    assert_eq!(kits[0]["name"], "demo");
    let mountpoint = workshop.kitfs.mount("team/demo:v1", &config);
    let mounted = Tree::read(&mountpoint);
    fs::remove_file(workshop.folder().join("notes.txt")).unwrap();
    mounted
        .without_kitfile()
        .assert_equals(&Tree::read(&workshop.folder()).without_kitfile(), "v1");
}

#[test]
fn a_second_pack_writes_no_blob_again_and_moves_the_tag() {
    let workshop = workshop();
    let first = workshop.pack(&["-t", "demo:v1"]);
    workshop.write("src/a.py", "print(2)");
    let outcome = workshop.kitfs.run(&workshop.arguments(&["-t", "demo:v1", "--json"]));
    let second: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!(states(&second), ["present", "new", "present"]);
    let old = first["digest"].as_str().unwrap();
    assert!(
        outcome.stderr.contains(&format!("localhost/demo:v1 named {old}")),
        "{}",
        outcome.stderr
    );
    let lines = workshop.kitfs.succeed(&workshop.arguments(&["-t", "demo:v2"]));
    assert!(lines.contains("packed localhost/demo:v2 as sha256:"), "{lines}");
    // kit's own files, and the lock.
    let names = workshop.side_files();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
fn the_manifest_has_the_annotations_of_kit() {
    let workshop = workshop();
    let mut command = workshop.kitfs.command(&workshop.arguments(&["-t", "demo:v1", "--json"]));
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    let outcome = Kitfs::run_command(command);
    let packed: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let manifest = workshop.manifest(&packed);
    let created = "2023-11-14T22:13:20Z";
    assert_eq!(manifest["annotations"]["org.opencontainers.image.created"], created);
    assert_eq!(manifest["artifactType"], "application/vnd.kitops.modelkit.manifest.v1+json");
    let layers = manifest["layers"].as_array().unwrap();
    let paths: Vec<_> =
        layers.iter().map(|it| &it["annotations"]["org.cncf.model.filepath"]).collect();
    assert_eq!(paths, ["model.bin", "src", "hello.prompt"]);
    assert_eq!(layers[2]["annotations"]["ml.kitops.modelkit.layer-subtype"], "prompt");
    let files: Value =
        serde_json::from_str(layers[1]["annotations"]["dev.kitfs.layer.files"].as_str().unwrap())
            .unwrap();
    assert_eq!(files["files"][0][0], "src/a.py");
    assert_eq!(files["files"][0][1], 7);
    assert_eq!(files["files"][1][0], "src/b/c.py");
    let mut again = workshop.kitfs.command(&workshop.arguments(&["-t", "demo:v1", "--json"]));
    again.env("SOURCE_DATE_EPOCH", "1700000000");
    let again: Value = serde_json::from_slice(&Kitfs::run_command(again).stdout).unwrap();
    assert_eq!(again["digest"], packed["digest"]);
}

#[test]
fn raw_layers_and_compressed_ones_are_mounted_with_the_same_files() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "model: {path: a/model.bin}\ndocs: [{path: README}]");
    workshop.write("a/model.bin", vec![1; 70_000]);
    workshop.write("README", "read me");
    let home = workshop.home().display().to_string();
    for (index, form) in [
        &["--layer-format", "raw"][..],
        &["--layer-format", "raw", "--compression", "zstd"],
        &["--compression", "gzip"],
        &["--compression", "gzip-fastest"],
        &["--compression", "zstd"],
        &["--model-pack"],
        &["--use-model-pack", "--layer-format", "raw"],
    ]
    .iter()
    .enumerate()
    {
        let tag = format!("demo:v{index}");
        let packed = workshop.pack(&[&["-t", tag.as_str()][..], form].concat());
        let mountpoint = workshop.kitfs.mount(&tag, &["--config", &home]);
        assert_eq!(fs::read(mountpoint.join("a/model.bin")).unwrap(), vec![1; 70_000], "{form:?}");
        assert_eq!(fs::read(mountpoint.join("README")).unwrap(), b"read me", "{form:?}");
        let manifest = workshop.manifest(&packed);
        let annotations = &manifest["layers"][0]["annotations"];
        let metadata = annotations["org.cncf.model.file.metadata+json"].as_str();
        assert_eq!(metadata.is_some(), form.contains(&"raw"), "{form:?}");
        if form.contains(&"--model-pack") {
            let config = workshop.blob(manifest["config"]["digest"].as_str().unwrap());
            let config: Value = serde_json::from_slice(&config).unwrap();
            assert_eq!(config["modelfs"]["diffIds"][0], manifest["layers"][0]["digest"]);
            assert!(manifest["annotations"]["ml.kitops.modelkit.kitfile"].is_string());
        }
    }
}

#[test]
fn a_dry_run_shows_every_file_and_writes_nothing() {
    let workshop = workshop();
    let text = workshop.kitfs.succeed(&workshop.arguments(&["-t", "demo:v1", "--dry-run"]));
    for line in ["code src (2 files, 7 B)", "  src/b/c.py", "  notes.txt: no path of the Kitfile"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(!workshop.home().exists());
    let plan = workshop.pack(&["--dry-run"]);
    assert_eq!(plan["layers"][1]["members"], json!(["src", "src/a.py", "src/b", "src/b/c.py"]));
    assert_eq!(plan["left_out"][0]["path"], "Kitfile");
    assert_eq!(plan["digest"], Value::Null);
}

#[test]
fn a_kitfile_may_come_from_elsewhere() {
    let workshop = workshop();
    let other = workshop.kitfs.folder().join("other");
    fs::write(&other, "code: [{path: src/a.py}]").unwrap();
    let packed = workshop.pack(&["-f", other.to_str().unwrap(), "-t", "demo:v1"]);
    assert_eq!(packed["layers"][0]["path"], "src/a.py");
    // kit's habit: without a name the kit is found by its digest.
    let packed = workshop.pack(&[]);
    let home = workshop.home().display().to_string();
    let digest = packed["digest"].as_str().unwrap();
    let listed = workshop.kitfs.succeed(&["ls", digest, "--config", &home]);
    assert!(listed.contains("model.bin"), "{listed}");
}

#[test]
fn a_kit_is_filed_under_the_host_that_its_name_has() {
    let workshop = workshop();
    workshop.pack(&["-t", "ghcr.io/org/demo:v1"]);
    let home = workshop.home().display().to_string();
    let kits = workshop.kitfs.json(&["list", "--json", "--config", &home]);
    assert_eq!(kits[0]["repository"], "ghcr.io/org/demo");
}

#[test]
fn a_model_in_another_kit_is_not_packed_again() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "model: {path: weights}\ncode: [{path: lib}]");
    workshop.write("weights", "w");
    workshop.write("lib/x", "x");
    workshop.pack(&["-t", "base:v1"]);
    workshop.write("Kitfile", "model: {path: 'localhost/base:v1'}\ncode: [{path: .}]");
    workshop.write("own", "own");
    let packed = workshop.pack(&["-t", "child:v1"]);
    assert_eq!(packed["layers"].as_array().unwrap().len(), 1);
    assert_eq!(packed["layers"][0]["files"], 1);
    let home = workshop.home().display().to_string();
    let mountpoint = workshop.kitfs.mount("child:v1", &["--config", &home]);
    assert_eq!(fs::read(mountpoint.join("weights")).unwrap(), b"w");
    assert_eq!(fs::read(mountpoint.join("own")).unwrap(), b"own");
}
