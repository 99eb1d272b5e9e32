//! The bytes of real kits, awkward texts, and reading back.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::oci::Digest;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The config blob of a golden kit.
fn config(kit: &str) -> Vec<u8> {
    let folder = golden().join(kit);
    let blob = |digest: &serde_json::Value| {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        folder.join("blobs/sha256").join(hex)
    };
    let index = json(&folder.join("index.json"));
    let manifest = json(&blob(&index["manifests"][0]["digest"]));
    std::fs::read(blob(&manifest["config"]["digest"])).unwrap()
}

#[rstest]
#[case("article")]
#[case("child")]
#[case("comp-gzip")]
#[case("comp-gzip-fastest")]
#[case("comp-none")]
#[case("empty")]
#[case("grandparent")]
#[case("legacy-article")]
#[case("parent")]
#[case("small5k")]
#[case("yaml")]
fn a_golden_kits_kitfile_has_the_bytes_that_kit_wrote(#[case] kit: &str) {
    let yaml = Kitfile::decode(&config(kit)).unwrap().to_yaml(GoYaml::Older);
    let tree = json(&golden().join(format!("{kit}.tree.json")));
    let entry = tree.as_array().unwrap().iter().find(|entry| entry["path"] == "Kitfile").unwrap();
    let shown = String::from_utf8_lossy(&yaml);
    assert_eq!(yaml.len() as u64, entry["size"].as_u64().unwrap(), "{shown}");
    assert_eq!(Digest::of(&yaml).hex(), entry["sha256"].as_str().unwrap(), "{shown}");
}

#[test]
fn awkward_scalars_are_written_as_kit_wrote_them() {
    let yaml = Kitfile::decode(&config("yaml")).unwrap().to_yaml(GoYaml::Older);
    let expected = std::fs::read_to_string(golden().join("yaml.Kitfile")).unwrap();
    assert_eq!(String::from_utf8(yaml).unwrap(), expected);
}

#[test]
fn sections_and_fields_come_in_kits_order_and_empty_ones_are_left_out() {
    let json = br#"{"mcpServers":[{"description":"d","path":"s.mcpb","name":"s"}],
        "prompts":[{"path":"p.md","name":""}],"docs":[{}],"code":[{}],
        "datasets":[{"license":"l","remoteHash":"h","remotePath":"s3://b/k","path":"d","name":"x",
            "parameters":{},"digest":""}],
        "model":{"parameters":"","parts":[{"type":"lora","name":"x"}]},"package":{"authors":[]}}"#;
    let yaml = Kitfile::decode(json).unwrap().to_yaml(GoYaml::default());
    let expected = "manifestVersion: \"\"\nmodel:\n  parts:\n    - name: x\n      type: lora\n  \
        parameters: \"\"\ncode:\n  - {}\ndatasets:\n  - name: x\n    path: d\n    remotePath: s3://b/k\n    \
        remoteHash: h\n    license: l\n    parameters: {}\ndocs:\n  - path: \"\"\nprompts:\n  - path: p.md\n\
        mcpServers:\n  - name: s\n    path: s.mcpb\n    description: d\n";
    assert_eq!(String::from_utf8(yaml).unwrap(), expected);
    assert_eq!(
        Kitfile::decode(br#"{"model":{}}"#).unwrap().to_yaml(GoYaml::default()),
        b"manifestVersion: \"\"\nmodel: {}\n"
    );
}

#[test]
fn a_key_that_is_not_simple_is_announced() {
    let long = "k".repeat(129);
    let json = format!(r#"{{"model":{{"parameters":{{"a\nb":[1],"{long}":"v"}}}}}}"#);
    let yaml = Kitfile::decode(json.as_bytes()).unwrap().to_yaml(GoYaml::default());
    let expected = format!(
        "manifestVersion: \"\"\nmodel:\n  parameters:\n    ? |-\n      a\n      b\n    : - 1\n    ? {long}\n    : v\n"
    );
    assert_eq!(String::from_utf8(yaml).unwrap(), expected);
}

/// The bytes that kit 1.11 writes (modelkit-spec 9.3), and those of its older encoder.
#[rstest]
#[case("\n x", "|2-\n\n     x\n", "|2-\n     x\n")]
#[case("\nx\n", "|2\n\n    x\n", "|2\n    x\n")]
#[case("\n\nx", "|2-\n\n\n    x\n", "|2-\n\n    x\n")]
#[case("\n", "|2+\n\n", "|2+\n")]
#[case("a\n", "|\n    a\n", "|\n    a\n")]
#[case("\u{feff}", "\"\\uFEFF\"\n", "\"\\uFEFF\"\n")]
#[case(
    "\u{feff}a \u{e9}\"\n🚀",
    "\"\\uFEFF\\x61\\x20\\xE9\\\"\\n\\U0001F680\"\n",
    "\"\\uFEFF\\x61\\x20\\xE9\\\"\\n\\U0001F680\"\n"
)]
#[case("a\u{feff}b", "\"a\\uFEFFb\"\n", "\"a\\uFEFFb\"\n")]
fn texts_that_begin_with_a_line_break_or_a_byte_order_mark(
    #[case] text: &str,
    #[case] newer: &str,
    #[case] older: &str,
) {
    let json = serde_json::json!({"package": {"name": text, "version": "v"}});
    let kitfile = Kitfile::decode(json.to_string().as_bytes()).unwrap();
    for (go_yaml, expected) in [(GoYaml::Newer, newer), (GoYaml::Older, older)] {
        let yaml = String::from_utf8(kitfile.to_yaml(go_yaml)).unwrap();
        let expected = format!("manifestVersion: \"\"\npackage:\n  name: {expected}  version: v\n");
        assert_eq!(yaml, expected, "{go_yaml:?}");
    }
}

#[test]
fn a_kitfile_is_written_as_by_the_kit_that_packed_it() {
    for older in ["0.4.0", "1.7.0-19-ga041892", "v1.10.2", "1.10.0"] {
        assert_eq!(GoYaml::of_kit(Some(older)), GoYaml::Older, "{older}");
    }
    for newer in [Some("1.11.0"), Some("v1.15.0"), Some("2.0.0"), Some("next"), Some(""), None] {
        assert_eq!(GoYaml::of_kit(newer), GoYaml::Newer, "{newer:?}");
    }
}

/// JSON of some depth. go-yaml itself cannot write and read back breaks other than `\n`, or the
/// merge key, which it writes without quotes. So the texts have neither.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let text = prop_oneof![
        "[ -~é\t🚀]{0,12}",
        "[a-z #:,'\"-]{0,6}(\n[a-z #:'\"-]{0,6}){0,3}",
        prop::sample::select(vec![
            "yes",
            "null",
            "~",
            "1",
            "1e3",
            "0x1F",
            "2024-01-02",
            "- a",
            "? b"
        ])
        .prop_map(str::to_owned),
    ]
    .prop_filter("a merge key", |text| text != "<<");
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        (-1e9..1e9f64).prop_map(serde_json::Value::from),
        text.clone().prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            prop::collection::btree_map(text.clone(), inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Numbers as floats, so that 1 and 1.0 are equal.
fn as_floats(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) => Value::from(number.as_f64().unwrap()),
        Value::Array(items) => items.iter().map(as_floats).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), as_floats(v))).collect(),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn the_yaml_reads_back_as_the_same_values(
        parameters in any_json().prop_filter("null is left out", |json| !json.is_null()),
        name in "[ -~é\t🚀]{1,12}",
        authors in prop::collection::vec("[ -~é\t🚀]{0,8}", 1..4),
    ) {
        let json = serde_json::json!({
            "manifestVersion": "1.0.0",
            "package": {"name": name, "authors": authors},
            "model": {"path": "m", "parameters": parameters},
        });
        let yaml = Kitfile::decode(&serde_json::to_vec(&json).unwrap()).unwrap().to_yaml(GoYaml::default());
        let yaml = String::from_utf8(yaml).unwrap();
        let read: serde_json::Value = serde_saphyr::from_str(&yaml)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{yaml}")))?;
        prop_assert_eq!(as_floats(&read), as_floats(&json), "{}", yaml);
    }

    #[test]
    fn any_text_is_written_without_a_panic(text in any::<String>()) {
        let json = serde_json::json!({"package": {"description": text, "authors": [text]}});
        let yaml = Kitfile::decode(&serde_json::to_vec(&json).unwrap()).unwrap().to_yaml(GoYaml::default());
        prop_assert!(yaml.ends_with(b"\n") || text.contains(scalar::is_break));
    }
}
