//! Kitfiles of every shape, the golden configs, and hostile files.

use proptest::prelude::*;

use super::super::{GoYaml, Kitfile};
use super::*;

fn parse(yaml: &str) -> Result<AuthoredKitfile, KitfileError> {
    AuthoredKitfile::parse(yaml.as_bytes())
}

fn config(yaml: &str) -> String {
    let kitfile = parse(yaml).unwrap();
    let none = vec![None; kitfile.entries().len()];
    String::from_utf8(kitfile.config(&none)).unwrap()
}

#[test]
fn the_config_has_gos_fields_and_order() {
    let yaml = "\
model: {parts: [{type: lora, path: p}], parameters: {b: 1, a: [0x10, 1.5]}, path: m, name: <m>}
manifestVersion: 1.0
docs: [{description: d}]
code: [{path: c, license: MIT}]
package: {authors: [a, null], version: 1.10}
datasets:
";
    assert_eq!(
        config(yaml),
        r#"{"manifestVersion":"1.0","package":{"version":"1.10","authors":["a",""]},"#.to_owned()
            + r#""model":{"name":"\u003cm\u003e","path":"m","parts":[{"path":"p","type":"lora"}],"#
            + r#""parameters":{"a":[16,1.5],"b":1}},"code":[{"path":"c","license":"MIT"}],"#
            + r#""docs":[{"path":"","description":"d"}]}"#
    );
    assert_eq!(config("package:"), r#"{"manifestVersion":"","package":{}}"#);
    assert_eq!(config("model: {}"), r#"{"manifestVersion":"","package":{},"model":{}}"#);
    assert_eq!(config("model:"), r#"{"manifestVersion":"","package":{}}"#);
}

#[test]
fn digests_stand_behind_the_fields() {
    let kitfile = parse("model: {path: m, parameters: {}}").unwrap();
    let digest = Digest::of(b"");
    let layer = LayerDigests { digest, diff_id: DiffId(digest) };
    let json = String::from_utf8(kitfile.config(&[Some(layer)])).unwrap();
    let end = format!(r#""parameters":{{}},"digest":"{digest}","diffId":"{digest}"}}}}"#);
    assert!(json.ends_with(&end), "{json}");
}

/// The config of each golden kit, from the YAML that `kit unpack` made of it.
#[test]
fn golden_configs_come_back_byte_for_byte() {
    for kit in ["article", "child", "parent", "grandparent", "comp-none", "small5k", "empty"] {
        let root = std::path::Path::new("tests/golden").join(kit);
        let blob =
            |digest: &str| std::fs::read(root.join("blobs/sha256").join(&digest[7..])).unwrap();
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(root.join("index.json")).unwrap()).unwrap();
        let manifest = blob(index["manifests"][0]["digest"].as_str().unwrap());
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let golden = blob(manifest["config"]["digest"].as_str().unwrap());
        let decoded = Kitfile::decode(&golden).unwrap();
        let authored = AuthoredKitfile::parse(&decoded.to_yaml(GoYaml::Older)).unwrap();
        let layers: Vec<_> = decoded
            .entries()
            .map(|entry| {
                let digest = entry.digest()?;
                Some(LayerDigests { digest, diff_id: DiffId(digest) })
            })
            .collect();
        let config = authored.config(&layers);
        assert_eq!(String::from_utf8(config), String::from_utf8(golden), "{kit}");
    }
}

#[test]
fn faults_are_named_with_their_line() {
    for (yaml, expected) in [
        ("", "it is empty"),
        ("# only a comment\n", "it is empty"),
        (
            "package: {}\nfoo: 1",
            "line 2: the Kitfile has no field `foo`; the fields are manifestVersion",
        ),
        ("code:\n  - path: a\n    name: x", "line 3: an entry of `code` has no field `name`"),
        ("code:\n  - path: a\n    digest: sha256:0", "no field `digest`"),
        ("package: [a]", "`package` is a list, and fields are expected"),
        ("package: {name: [a]}", "a list stands where a text is expected"),
        ("code: a", "a single value stands where a list is expected"),
        ("package: {name: a, name: b}", "`name` is already set on line 1"),
        ("model: {parameters: {1: a}}", "the key `1` is not a text"),
        ("model: {parameters: .inf}", "JSON has no number"),
        ("a: [", "line"),
        ("a: *b", "anchor"),
        ("code: [{path: ../x}]", "line 1: code `../x`: its path leaves the folder"),
        ("code: [{path: a/../../x}]", "its path leaves the folder"),
        ("code: [{path: ..}]", "its path leaves the folder"),
        ("docs: [{path: /etc/passwd}]", "its path is absolute"),
        ("code: [{path: \"https://a.b/c\"}]", "its path is a URL"),
        ("code: [{path: \"ghcr.io/a/b:v1\"}]", "only `model.path` may be one"),
        (
            "code: [{path: a}]\ndocs: [{path: ./a/}]",
            "line 2: docs `./a/`: code `a` on line 1 has the same",
        ),
        ("model: {parts: [{path: p, type: a b}]}", "its type `a b`"),
        ("mcpServers: [{path: a.mcpb}]", "needs a name"),
        ("mcpServers: [{name: a, path: a.zip}]", "`.mcpb`"),
        ("datasets: [{path: a, remoteHash: x}]", "remoteHash needs"),
        ("datasets: [{path: a, remotePath: \"s3://a/b\"}]", "needs its remoteHash"),
    ] {
        let error = parse(yaml).unwrap_err().to_string();
        assert!(error.contains(expected), "{yaml:?}: {error}");
    }
}

#[test]
fn merges_and_aliases_are_resolved_as_go_yaml_does() {
    let yaml = "\
model:
  parameters:
    base: &base {a: 1, b: 2}
    other: &other {b: 3, c: 4}
    one: {<<: *base, b: 9}
    both: {<<: [*base, *other]}
    quoted: {\"<<\": x}
";
    let json = config(yaml);
    for part in [
        r#""one":{"a":1,"b":9}"#,
        r#""both":{"a":1,"b":2,"c":4}"#,
        r#""quoted":{"\u003c\u003c":"x"}"#,
    ] {
        assert!(json.contains(part), "{part}: {json}");
    }
}

#[test]
fn hostile_files_end_at_a_bound() {
    let mut laughs = "model:\n  parameters:\n    a0: &a0 [x, x]\n".to_owned();
    for level in 1..30 {
        let last = level - 1;
        laughs.push_str(&format!("    a{level}: &a{level} [*a{last}, *a{last}]\n"));
    }
    assert!(parse(&laughs).unwrap_err().to_string().contains("aliases"));
    let mut merges = "model:\n  parameters:\n    a0: &a0 {x: 1}\n".to_owned();
    for level in 1..30 {
        let last = level - 1;
        merges.push_str(&format!("    a{level}: &a{level} {{<<: [*a{last}, *a{last}]}}\n"));
    }
    assert!(parse(&merges).is_err());
    assert!(parse(&"[".repeat(200_000)).is_err());
    assert!(
        parse(&format!("model: {{parameters: {}{}}}", "[".repeat(100), "]".repeat(100))).is_err()
    );
    assert!(parse(&"- ".repeat(200_000)).is_err());
    assert!(AuthoredKitfile::parse(&vec![b' '; KITFILE_LIMIT_BYTES + 1]).is_err());
    assert!(AuthoredKitfile::parse(b"package: {name: \xff}").is_err());
    assert!(parse("&a [*a]").is_err());
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(
        text in "(package|model|code|path|parameters|[\\[\\]{}:,&*!|>'\"#<\\-? \n]|[a-z0-9.]){0,40}",
    ) {
        let _ = parse(&text);
    }

    /// A Kitfile that kit unpacked reads back as the config that it came from.
    #[test]
    fn an_unpacked_kitfile_makes_the_same_config(
        name in ".{0,8}", paths in prop::collection::btree_set("[a-z]{1,4}(/[a-z. ]{1,4}z)?", 0..5),
        text in "\\PC{0,8}", number in any::<i32>(), float in -1e5f64..1e5,
    ) {
        let entries: Vec<_> = paths.iter().map(|path| serde_json::json!({"path": path})).collect();
        let json = serde_json::json!({
            "manifestVersion": "1.0.0", "package": {"name": name},
            "model": {"parameters": {"t": text, "n": number, "f": float, "l": [null, true]}},
            "code": entries,
        });
        let decoded = Kitfile::decode(json.to_string().as_bytes()).unwrap();
        let yaml = decoded.to_yaml(GoYaml::Newer);
        let authored = AuthoredKitfile::parse(&yaml);
        prop_assert!(authored.is_ok(), "{:?}\n{}", authored, String::from_utf8_lossy(&yaml));
        let authored = authored.unwrap();
        let config = authored.config(&vec![None; authored.entries().len()]);
        prop_assert_eq!(Kitfile::decode(&config).unwrap(), decoded);
    }
}
