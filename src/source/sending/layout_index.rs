//! A manifest in the `index.json` of an OCI layout (image-spec, image-layout.md). Pure: JSON in, JSON out.
//!
//! Entries and fields of other tools stay unchanged. As with skopeo, a name has one manifest. The earlier manifest
//! of the name stays in the index, without this name.

use serde_json::{Map, Value, json};

use super::SentManifest;
use crate::source::image_index::{CONTAINERD_NAME, REF_NAME, RefName};

/// `index.json` with an entry for `manifest`, under `name` where one is given. `None` for text that is no
/// image index.
pub(super) fn with_manifest(
    index: Option<&[u8]>,
    manifest: &SentManifest,
    name: Option<&str>,
) -> Option<Vec<u8>> {
    let mut index: Map<String, Value> = match index {
        Some(json) => serde_json::from_slice(json).ok()?,
        None => Map::from_iter([
            ("schemaVersion".to_owned(), json!(2)),
            ("mediaType".to_owned(), json!("application/vnd.oci.image.index.v1+json")),
        ]),
    };
    let entries = index.entry("manifests").or_insert(Value::Null);
    if entries.is_null() {
        *entries = json!([]);
    }
    let entries = entries.as_array_mut()?;
    if let Some(name) = name {
        entries.iter_mut().for_each(|entry| without_name(entry, name));
    }
    let digest = manifest.digest.to_string();
    let is_it = |entry: &Value| entry["digest"] == *digest;
    let entry = match entries.iter().position(|entry| is_it(entry) && is_unnamed(entry)) {
        Some(unnamed) => &mut entries[unnamed],
        None if name.is_none() && entries.iter().any(is_it) => return to_json(&index),
        None => {
            entries.push(json!({
                "mediaType": manifest.media_type, "digest": digest, "size": manifest.bytes.len(),
            }));
            entries.last_mut()?
        }
    };
    if let Some(name) = name {
        let annotations = entry.as_object_mut()?.entry("annotations").or_insert(Value::Null);
        if annotations.is_null() {
            *annotations = json!({});
        }
        annotations.as_object_mut()?.insert(REF_NAME.to_owned(), json!(name));
    }
    to_json(&index)
}

fn to_json(index: &Map<String, Value>) -> Option<Vec<u8>> {
    serde_json::to_vec(index).ok()
}

/// Whether an entry has no name in any form.
fn is_unnamed(entry: &Value) -> bool {
    [REF_NAME, CONTAINERD_NAME].iter().all(|key| entry["annotations"].get(key).is_none())
}

/// Removes a name from an entry, in each form.
fn without_name(entry: &mut Value, name: &str) {
    let wanted = RefName::parse(name);
    let Some(annotations) = entry.get_mut("annotations").and_then(Value::as_object_mut) else {
        return;
    };
    let means_it = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| text == name || RefName::parse(text) == wanted && wanted.is_some())
    };
    // containerd writes the tag beside the whole reference. Both are removed, because the tag alone would be a new
    // name.
    let whole = annotations.get(CONTAINERD_NAME).is_some_and(means_it);
    if whole
        || !annotations.contains_key(CONTAINERD_NAME)
            && annotations.get(REF_NAME).is_some_and(means_it)
    {
        annotations.shift_remove(CONTAINERD_NAME);
        annotations.shift_remove(REF_NAME);
    }
    if annotations.is_empty()
        && let Some(entry) = entry.as_object_mut()
    {
        entry.shift_remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::source::image_index::ImageIndex;

    fn manifest(content: u8) -> SentManifest {
        let json = format!(r#"{{"schemaVersion":2,"config":null,"layers":[{content}]}}"#);
        let bytes = Bytes::from(json);
        let digest = crate::oci::Digest::of(&bytes);
        SentManifest { digest, bytes, media_type: "a/b".to_owned() }
    }

    #[test]
    fn entries_and_members_of_other_tools_stay() {
        let before = json!({"schemaVersion": 2, "x": [1], "manifests": [
            {"digest": manifest(1).digest, "size": 1, "y": {"z": null}},
            {"digest": manifest(2).digest, "size": 1, "annotations": {REF_NAME: "v1", "a": "b"}},
            {"digest": manifest(3).digest, "size": 1,
                "annotations": {REF_NAME: "v1", CONTAINERD_NAME: "ghcr.io/x:v1"}},
        ]});
        let after = with_manifest(Some(before.to_string().as_bytes()), &manifest(4), Some("v1"));
        let after: Value = serde_json::from_slice(&after.unwrap()).unwrap();
        assert_eq!(after["x"], before["x"]);
        assert_eq!(after["manifests"][0], before["manifests"][0]);
        assert_eq!(after["manifests"][1]["annotations"], json!({"a": "b"}));
        assert_eq!(after["manifests"][2], before["manifests"][2]);
        assert_eq!(after["manifests"][3]["annotations"][REF_NAME], "v1");
        assert_eq!(after["manifests"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn text_that_is_no_index_is_not_replaced() {
        for text in ["", "[]", "{", r#"{"manifests":{}}"#, r#"{"manifests":"x"}"#] {
            assert_eq!(
                with_manifest(Some(text.as_bytes()), &manifest(1), Some("v1")),
                None,
                "{text}"
            );
        }
    }

    proptest! {
        /// After any puts in any order, each name leads to the manifest that was last put under it. No manifest is
        /// lost.
        #[test]
        fn a_name_leads_to_the_manifest_that_was_put_last(
            puts in prop::collection::vec((0u8..4, prop::option::of("([ab]\\.io/[xy]:)?v[12]")), 1..12)
        ) {
            let mut index = None;
            for (content, name) in &puts {
                index = with_manifest(index.as_deref(), &manifest(*content), name.as_deref());
                prop_assert!(index.is_some());
            }
            let read = ImageIndex::decode(&index.unwrap(), "x").unwrap();
            for (content, name) in &puts {
                prop_assert!(read.entries.iter().any(|entry| entry.digest == manifest(*content).digest));
                if let Some(text) = name {
                    let last = puts.iter().rfind(|(_, other)| other.as_deref() == Some(text));
                    let name = RefName::parse(text).unwrap();
                    let found = read.entries.iter().filter(|entry| entry.names.contains(&name));
                    let found: Vec<_> = found.map(|entry| entry.digest).collect();
                    prop_assert_eq!(found, vec![manifest(last.unwrap().0).digest]);
                }
            }
        }

        #[test]
        fn any_text_is_survived(text in any::<Vec<u8>>(), json in "[{}\\[\\]\":,a-z0-9]{0,60}") {
            let _ = with_manifest(Some(&text), &manifest(1), Some("v1"));
            let _ = with_manifest(Some(json.as_bytes()), &manifest(1), Some("v1"));
        }
    }
}
