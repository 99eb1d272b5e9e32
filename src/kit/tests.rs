//! Kits of every family, understood from manifests made here and from golden ones.

use std::collections::BTreeMap;
use std::path::Path;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::oci::{Compression, Descriptor, Digest, Format};

const KITOPS: &str = "application/vnd.kitops.modelkit.config.v1+json";
const CNCF: &str = "application/vnd.cncf.model.manifest.v1+json";
const FILEPATH: &str = "org.cncf.model.filepath";
const METADATA: &str = "org.cncf.model.file.metadata+json";

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn layer(name: &str, kind: &str, annotations: &[(&str, &str)]) -> Descriptor {
    let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    let media_type = format!("application/vnd.{kind}");
    Descriptor {
        media_type,
        digest: digest(name),
        size: 10,
        annotations: annotations.collect(),
        data: None,
    }
}

fn kit_layer(name: &str, kind: &str) -> Descriptor {
    layer(name, &format!("kitops.modelkit.{kind}"), &[])
}

fn manifest(config: &str, artifact: Option<&str>, layers: Vec<Descriptor>) -> Manifest {
    let config = Descriptor {
        media_type: config.to_owned(),
        digest: digest("config"),
        size: 1,
        annotations: BTreeMap::new(),
        data: None,
    };
    let artifact_type = artifact.map(str::to_owned);
    Manifest { artifact_type, config, layers, annotations: BTreeMap::new() }
}

fn modelkit(layers: Vec<Descriptor>, config: Value) -> Result<Kit, KitError> {
    Kit::decode(&manifest(KITOPS, None, layers), &serde_json::to_vec(&config).unwrap())
}

fn modelpack(layers: Vec<Descriptor>) -> Result<Kit, KitError> {
    let config = "application/vnd.cncf.model.config.v1+json";
    Kit::decode(&manifest(config, Some(CNCF), layers), b"{}")
}

fn names(kit: &Kit) -> Vec<(Role, Option<&str>, Option<&str>)> {
    let layers = kit.layers.iter();
    layers
        .map(|layer| (layer.role, layer.entry_name.as_deref(), layer.entry_path.as_deref()))
        .collect()
}

#[test]
fn entries_are_matched_to_layers_by_digest_whatever_the_order() {
    let layers = vec![
        kit_layer("c", "code.v1.tar+gzip"),
        kit_layer("m", "model.v1.tar"),
        kit_layer("d", "docs.v1.tar"),
    ];
    let config = json!({
        "model": {"name": "base", "path": "./m", "digest": digest("m")},
        "code": [{"path": "src/", "digest": digest("c")}],
        "docs": [{"path": "README", "digest": digest("d")}],
    });
    let kit = modelkit(layers, config).unwrap();
    assert_eq!(kit.family, Family::ModelKit);
    assert_eq!(
        names(&kit),
        [
            (Role::Code, None, Some("src/")),
            (Role::Model, Some("base"), Some("./m")),
            (Role::Docs, None, Some("README")),
        ]
    );
    assert_eq!(
        kit.layers[0].encoding,
        Encoding { format: Format::Tar, compression: Compression::Gzip }
    );
    assert!(kit.layers.iter().all(|layer| layer.placement == Placement::Tar { below: None }));
    assert!(kit.warnings.is_empty(), "{:?}", kit.warnings);
    assert!(kit.kitfile_yaml.unwrap().starts_with(b"manifestVersion"));
}

#[test]
fn equal_digests_are_told_apart_by_path_and_shared_when_there_is_one_layer() {
    let raw = |path| layer("same", "kitops.modelkit.docs.v1.raw", &[(FILEPATH, path)]);
    let entry = |path| json!({"path": path, "digest": digest("same")});
    let config = json!({"docs": [entry("./b"), entry("a"), entry("c")]});
    let kit = modelkit(vec![raw("a"), raw("b"), raw("x")], config.clone()).unwrap();
    let paths: Vec<_> =
        kit.layers.iter().map(|layer| layer.entry_path.as_deref().unwrap()).collect();
    assert_eq!(paths, ["a", "./b", "c"]);
    let kit = modelkit(vec![kit_layer("same", "docs.v1.tar")], config).unwrap();
    assert_eq!(kit.layers.len(), 3);
}

#[test]
fn an_entry_whose_digest_is_no_layer_is_an_error_that_names_it() {
    let config = json!({"code": [{"path": "src", "digest": digest("x")}]});
    let error = modelkit(vec![kit_layer("c", "code.v1.tar")], config).unwrap_err().to_string();
    assert!(error.contains("code `src`") && error.contains(&digest("x").short()), "{error}");
}

#[test]
fn a_kitfile_with_some_digests_is_an_error() {
    let config = json!({"code": [{"path": "src", "digest": digest("c")}, {"path": "lib"}]});
    let error = modelkit(vec![kit_layer("c", "code.v1.tar")], config).unwrap_err().to_string();
    assert!(error.contains("code `lib` has no digest"), "{error}");
}

#[test]
fn unknown_layers_are_left_out_with_a_warning() {
    let layers = vec![kit_layer("t", "tokenizer.v1.tar"), kit_layer("c", "code.v1.tar")];
    let config = json!({"code": [{"path": "c", "digest": digest("c")}, {"path": "t", "digest": digest("t")}]});
    let kit = modelkit(layers, config).unwrap();
    assert_eq!(kit.layers.len(), 1);
    assert!(kit.warnings[0].contains("tokenizer.v1.tar"), "{:?}", kit.warnings);
    assert!(kit.warnings[0].contains(&digest("t").short()), "{:?}", kit.warnings);
}

#[test]
fn a_legacy_kit_is_matched_by_order_and_placed_below_the_parent_of_each_path() {
    let layers = vec![
        kit_layer("m", "model.v1.tar"),
        kit_layer("c1", "code.v1.tar"),
        kit_layer("c2", "code.v1.tar"),
        kit_layer("d", "dataset.v1.tar"),
    ];
    let config = json!({
        "model": {"path": "models/deep/m.h5"},
        "code": [{"path": "src/"}, {"path": "."}],
        "datasets": [{"path": "./data/../d/x.csv"}],
    });
    let kit = modelkit(layers, config).unwrap();
    assert_eq!(kit.family, Family::LegacyModelKit);
    let below = kit.layers.iter().map(|layer| match &layer.placement {
        Placement::Tar { below } => below.as_ref().map(|path| path.as_bytes().to_vec()),
        Placement::Raw { .. } => panic!("no raw layer is here"),
    });
    assert_eq!(
        below.collect::<Vec<_>>(),
        [Some(b"models/deep".to_vec()), None, None, Some(b"d".to_vec())]
    );
}

#[rstest]
#[case(json!({"code": [{"path": "../x"}]}), "leaves the kit's root")]
#[case(json!({"docs": [{"path": "x"}]}), "no entry in the Kitfile")]
fn a_legacy_kit_that_does_not_say_where_files_go_is_refused(
    #[case] config: Value,
    #[case] reason: &str,
) {
    let error = modelkit(vec![kit_layer("c", "code.v1.tar")], config).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

#[rstest]
#[case("registry.example/org/base:v1", true)]
#[case("models/a:b", true)]
#[case(
    "registry.example/org/base@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    true
)]
#[case("models/base", false)]
#[case("Models/A:b", false)]
fn a_model_path_that_is_a_reference_is_the_parent(#[case] path: &str, #[case] is_parent: bool) {
    let layers = match is_parent {
        true => vec![],
        false => vec![kit_layer("m", "model.v1.tar")],
    };
    let kit = modelkit(layers, json!({"model": {"path": path}})).unwrap();
    assert_eq!(kit.parent.as_deref(), is_parent.then_some(path));
    assert_eq!(kit.layers.len(), usize::from(!is_parent));
}

fn remote(datasets: Value) -> (Vec<RemoteData>, Vec<String>) {
    let config = json!({"datasets": datasets, "docs": [{"path": "r", "digest": digest("r")}]});
    let kit = modelkit(vec![kit_layer("r", "docs.v1.tar")], config).unwrap();
    assert_eq!(kit.layers.len(), 1, "a remote data set has no layer");
    (kit.remote, kit.warnings)
}

#[test]
fn data_sets_that_lie_elsewhere_are_told_with_their_place() {
    let (found, warnings) = remote(json!([
        {"name": "object", "path": "d/big.bin", "remotePath": "s3://bucket/k", "remoteHash": "\"e-2\""},
        {"path": "./kits/", "remotePath": "ghcr.io/org/data:v1"},
        {"path": ".", "remotePath": "ghcr.io/org/root:v1"},
    ]));
    assert_eq!(warnings, [""; 0]);
    let path = |text: &str| Some(crate::layer::MemberPath::parse(text.as_bytes()).unwrap());
    let RemoteTarget::Object { location, etag } = &found[0].target else { panic!("{found:?}") };
    assert_eq!((location.bucket(), location.key(), etag.as_str()), ("bucket", "k", "e-2"));
    assert_eq!(found[0].path, path("d/big.bin"));
    assert_eq!(found[0].entry_name.as_deref(), Some("object"));
    assert_eq!(found[1].target.to_string(), "ghcr.io/org/data:v1");
    assert_eq!((&found[1].path, found[1].entry_path.as_str()), (&path("kits"), "./kits/"));
    assert_eq!(found[2].path, None);
}

#[test]
fn a_remote_data_set_that_cannot_be_used_is_left_out_with_the_reason() {
    for (entry, words) in [
        (json!({"path": "d", "remotePath": "s3://bucket/k"}), "no remoteHash"),
        (
            json!({"path": "d", "remotePath": "s3://bucket/k", "remoteHash": "a\r\nb: c"}),
            "not an ETag",
        ),
        (json!({"path": "d", "remotePath": "s3://b/k", "remoteHash": "e"}), "a bucket has"),
        (json!({"path": ".", "remotePath": "s3://bucket/k", "remoteHash": "e"}), "the kit's root"),
        (json!({"path": "../x", "remotePath": "ghcr.io/a/b:v1"}), "leaves the kit's root"),
        (json!({"path": "/x", "remotePath": "ghcr.io/a/b:v1"}), "absolute"),
        (json!({"path": "d", "remotePath": "https://example.com/x"}), "neither s3://"),
        (json!({"path": "d", "remotePath": "just-a-name"}), "neither s3://"),
        (json!({"path": "d", "remotePath": "ghcr.io/Upper:v1"}), "neither s3://"),
    ] {
        let (found, warnings) = remote(json!([entry]));
        assert_eq!((found.len(), warnings.len()), (0, 1), "{entry}");
        assert!(
            warnings[0].starts_with("datasets `") && warnings[0].contains(words),
            "{warnings:?}"
        );
    }
}

#[test]
fn filters_take_remote_data_sets_by_section_name_and_path() {
    let (found, _) = remote(json!([{"name": "n", "path": "d/", "remotePath": "ghcr.io/a/b:v1"}]));
    for (filter, is_taken) in [
        ("datasets", true),
        ("datasets:n", true),
        ("datasets:d/", true),
        ("datasets:d", false),
        ("model", false),
        ("model,datasets:x", false),
    ] {
        assert_eq!(found[0].is_taken_by(&Filters::parse(&[filter]).unwrap()), is_taken, "{filter}");
    }
    assert!(found[0].is_taken_by(&Filters::default()));
}

#[test]
fn prompts_and_mcp_bundles_have_their_roles() {
    let prompt = layer(
        "p",
        "kitops.modelkit.code.v1.tar",
        &[("ml.kitops.modelkit.layer-subtype", "prompt")],
    );
    let bundle = layer("b", "kitops.modelkit.mcpb.v1.raw", &[]);
    let config = json!({
        "prompts": [{"path": "p.md", "digest": digest("p")}],
        "mcpServers": [{"name": "s", "path": "./s.mcpb", "digest": digest("b")}],
    });
    let kit = modelkit(vec![prompt.clone(), bundle], config).unwrap();
    assert_eq!(
        names(&kit),
        [(Role::Prompt, None, Some("p.md")), (Role::McpServer, Some("s"), Some("./s.mcpb"))]
    );
    let Placement::Raw { path, mode, .. } = &kit.layers[1].placement else { panic!() };
    assert_eq!((path.as_bytes(), *mode), (b"s.mcpb".as_slice(), 0o644));
    let kit = modelkit(vec![prompt], json!({})).unwrap();
    assert_eq!(kit.layers[0].role, Role::Prompt);
}

#[test]
fn a_raw_layer_is_placed_by_its_annotations() {
    let metadata = r#"{"name":"f","mode":33261,"uid":0,"gid":0,"size":10,
        "mtime":"2024-05-29T18:26:40.25+02:00","typeflag":48}"#;
    let raw =
        layer("w", "cncf.model.weight.v1.raw", &[(FILEPATH, "./sub//f"), (METADATA, metadata)]);
    let old = layer(
        "c",
        "cnai.model.weight.config.v1.raw",
        &[
            ("org.cnai.model.filepath", "c.json"),
            ("org.cnai.model.file.metadata+json", r#"{"mode":384}"#),
        ],
    );
    let kit = modelpack(vec![raw, old]).unwrap();
    let Placement::Raw { path, mode, mtime, size } = &kit.layers[0].placement else { panic!() };
    assert_eq!((path.as_bytes(), *mode, *size), (b"sub/f".as_slice(), 0o755, Some(10)));
    assert_eq!(*mtime, Mtime::new(1_717_000_000, 250_000_000));
    let Placement::Raw { path, mode, mtime, size } = &kit.layers[1].placement else { panic!() };
    assert_eq!((path.as_bytes(), *mode, *mtime, *size), (&b"c.json"[..], 0o600, None, None));
    assert!(kit.warnings.is_empty());
    assert!(kit.kitfile_yaml.is_none(), "kit writes no file");
}

#[rstest]
#[case(r#"{"size":-1}"#, "negative size")]
#[case(r#"{"mtime":"yesterday"}"#, "yesterday")]
#[case(r#"{"mode":-1}"#, "ignored")]
#[case("not JSON", "ignored")]
fn metadata_that_makes_no_sense_is_ignored_with_the_reason(
    #[case] metadata: &str,
    #[case] reason: &str,
) {
    let raw = layer("w", "cncf.model.weight.v1.raw", &[(FILEPATH, "f"), (METADATA, metadata)]);
    let kit = modelpack(vec![raw]).unwrap();
    assert!(kit.warnings[0].contains(reason), "{:?}", kit.warnings);
    let Placement::Raw { mode: 0o644, mtime: None, size: None, .. } = kit.layers[0].placement
    else {
        panic!("{:?}", kit.layers[0].placement)
    };
}

#[rstest]
#[case(&[], "org.cncf.model.filepath")]
#[case(&[(FILEPATH, "/etc/passwd")], "absolute")]
#[case(&[(FILEPATH, "a/../../b")], "leaves the kit's root")]
#[case(&[(FILEPATH, ".")], "root")]
#[case(&[(FILEPATH, "f"), (METADATA, r#"{"size":11}"#)], "its metadata says 11")]
#[case(&[(FILEPATH, "f"), (METADATA, r#"{"typeflag":53}"#)], "something else")]
fn a_raw_layer_that_cannot_be_placed_is_refused(
    #[case] annotations: &[(&str, &str)],
    #[case] reason: &str,
) {
    let raw = layer("w", "cncf.model.weight.v1.raw", annotations);
    let error = modelpack(vec![raw]).unwrap_err().to_string();
    assert!(error.contains(reason) && error.contains(&digest("w").short()), "{error}");
}

#[test]
fn a_modelpack_with_a_kitfile_shows_it_and_uses_its_names() {
    let raw = layer("w", "cncf.model.weight.v1.raw", &[(FILEPATH, "w.bin")]);
    let mut manifest = manifest("application/vnd.cncf.model.config.v1+json", Some(CNCF), vec![raw]);
    for entry in [
        json!({"name": "base", "path": "./w.bin", "digest": digest("w")}),
        json!({"name": "base", "path": "./w.bin"}),
    ] {
        let kitfile = json!({"manifestVersion": "1.0.0", "model": entry}).to_string();
        manifest.annotations.insert("ml.kitops.modelkit.kitfile".into(), kitfile);
        let kit = Kit::decode(&manifest, b"{}").unwrap();
        assert_eq!(kit.family, Family::ModelPack);
        assert_eq!(names(&kit), [(Role::Model, Some("base"), Some("./w.bin"))]);
        assert!(kit.kitfile_yaml.unwrap().ends_with(b"path: ./w.bin\n"));
    }
}

#[test]
fn further_weights_of_a_modelpack_are_parts() {
    let weight = |name: &str| layer(name, "cncf.model.weight.v1.raw", &[(FILEPATH, name)]);
    let kit = modelpack(vec![weight("a"), weight("b")]).unwrap();
    assert_eq!(names(&kit), [(Role::Model, None, Some("a")), (Role::ModelPart, None, Some("b"))]);
    let kitfile = String::from_utf8(kit.kitfile.to_yaml(GoYaml::default())).unwrap();
    assert!(kitfile.ends_with("model:\n  path: a\n  parts:\n    - path: b\n"), "{kitfile}");
}

#[test]
fn layers_of_any_type_are_files_where_the_config_is_the_oci_placeholder() {
    let mut file = layer("w", "x", &[(FILEPATH, "w.gguf")]);
    file.media_type = "application/octet-stream".into();
    let other = layer("x", "x", &[]);
    let manifest = manifest("application/vnd.oci.empty.v1+json", Some(CNCF), vec![file, other]);
    let kit = Kit::decode(&manifest, b"{}").unwrap();
    assert_eq!(names(&kit), [(Role::Model, None, Some("w.gguf"))]);
    assert_eq!(kit.layers[0].encoding, Encoding::RAW);
    assert_eq!(kit.warnings.len(), 1);
}

#[rstest]
#[case("application/vnd.docker.ai.model.config.v0.1+json", "Docker")]
#[case("application/vnd.oci.image.config.v1+json", "container image")]
#[case("application/vnd.cncf.helm.config.v1+json", "helm")]
fn an_artifact_that_is_no_kit_is_named(#[case] config: &str, #[case] expected: &str) {
    let error = Kit::decode(&manifest(config, None, vec![]), b"{}").unwrap_err();
    assert!(matches!(&error, KitError::NotAKit(reason) if reason.contains(expected)), "{error}");
}

#[rstest]
#[case("article", Family::ModelKit, 3)]
#[case("child", Family::ModelKit, 2)]
#[case("comp-gzip", Family::ModelKit, 4)]
#[case("empty", Family::ModelKit, 0)]
#[case("legacy-article", Family::LegacyModelKit, 3)]
#[case("modelpack-raw", Family::ModelPack, 7)]
#[case("modelpack-tar", Family::ModelPack, 7)]
#[case("noparent", Family::ModelKit, 1)]
#[case("yaml", Family::ModelKit, 2)]
fn golden_kits_are_understood(#[case] name: &str, #[case] family: Family, #[case] layers: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let read = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap();
        std::fs::read(folder.join("blobs/sha256").join(hex)).unwrap()
    };
    let index: Value =
        serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let manifest = read(index["manifests"][0]["digest"].as_str().unwrap());
    let manifest = Manifest::decode(&manifest).unwrap();
    let kit = Kit::decode(&manifest, &read(&manifest.config.digest.to_string())).unwrap();
    assert_eq!((kit.family, kit.layers.len()), (family, layers));
    assert!(kit.warnings.is_empty(), "{:?}", kit.warnings);
    assert_eq!(kit.kitfile_yaml.is_some(), family != Family::ModelPack);
}
