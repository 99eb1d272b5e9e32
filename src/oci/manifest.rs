//! Image manifests (OCI image-spec, manifest.md), as kit, modctl, docker and ramalama write them.
//!
//! Lenient where producers differ (modelkit-spec 1.1): `mediaType` and `artifactType` may be
//! missing, `layers`, `annotations` and the value of an annotation may be `null`, unknown fields
//! are ignored. Strict where a wrong guess would cost: schema version, digests, sizes and counts.

use std::collections::BTreeMap;

use super::document::WireDocument;
use super::{Descriptor, Document};

/// The most layers a manifest may have. Kits have one layer per file at most, and the largest
/// models some hundred shards. Each layer costs a cache entry and a request at mount, so a mistake
/// or an attack begins at ten times that.
const LAYERS_LIMIT: usize = 4096;
/// The most bytes that all blobs of a manifest have together: 16 TiB, the largest file of ext4. The
/// largest kits have 1 or 2 TiB. A mount keeps more of a layer in memory the larger it is.
const BYTES_LIMIT: u64 = 16 << 40;

/// An image manifest with one config and any number of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// `artifactType`, where the producer wrote one.
    pub artifact_type: Option<String>,
    /// The config blob: for a ModelKit, the Kitfile as JSON.
    pub config: Descriptor,
    /// The layers in manifest order; empty for `"layers": null`. Two may have the same digest.
    pub layers: Vec<Descriptor>,
    /// Annotations, empty when the manifest has none.
    pub annotations: BTreeMap<String, String>,
}

/// The error for bytes that are no manifest which can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// A Docker manifest, another version, or an index: its kind, and the advice.
    #[error("the manifest is {0}")]
    Unsupported(String),
}

impl Manifest {
    /// Decodes the JSON of an image manifest; sizes and counts are bounded.
    ///
    /// # Errors
    /// As for [`Document::decode`], and [`ManifestError::Unsupported`] for an image index.
    pub fn decode(json: &[u8]) -> Result<Self, ManifestError> {
        match Document::decode(json)? {
            Document::Manifest(manifest) => Ok(*manifest),
            Document::Index(_) => Err(ManifestError::Unsupported(
                "an image index, where a single manifest is wanted".to_owned(),
            )),
        }
    }
}

impl TryFrom<WireDocument> for Manifest {
    type Error = ManifestError;

    fn try_from(wire: WireDocument) -> Result<Self, ManifestError> {
        let config = wire
            .config
            .ok_or_else(|| ManifestError::Malformed("`config` is missing".to_owned()))?;
        let layers = wire.layers.unwrap_or_default();
        if layers.len() > LAYERS_LIMIT {
            return Err(ManifestError::Malformed(format!(
                "it has {} layers, and {LAYERS_LIMIT} are the limit",
                layers.len()
            )));
        }
        let manifest = Self {
            artifact_type: wire.artifact_type.filter(|artifact_type| !artifact_type.is_empty()),
            config: config.checked("config")?,
            layers: layers
                .into_iter()
                .enumerate()
                .map(|(index, layer)| layer.checked(&format!("layer {index}")))
                .collect::<Result<_, _>>()?,
            annotations: wire.annotations.unwrap_or_default().0,
        };
        let mut blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
        match blobs.try_fold(0, |total: u64, blob| {
            total.checked_add(blob.size).filter(|&total| total <= BYTES_LIMIT)
        }) {
            Some(_) => Ok(manifest),
            None => Err(ManifestError::Malformed(
                "its blobs have more than 16 TiB together, which is the most kitfs reads"
                    .to_owned(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::Digest;

    fn descriptor(size: impl Into<Value>) -> Value {
        json!({ "mediaType": "a/b", "digest": Digest::of(b"").to_string(), "size": size.into() })
    }

    fn manifest(layers: Value) -> Value {
        json!({ "schemaVersion": 2, "config": descriptor(2), "layers": layers })
    }

    fn decode(value: &Value) -> Result<Manifest, ManifestError> {
        Manifest::decode(value.to_string().as_bytes())
    }

    /// The value with a field set; `null` included.
    fn with(mut value: Value, field: &str, to: Value) -> Value {
        value[field] = to;
        value
    }

    #[test]
    fn fields_that_producers_leave_out_may_be_missing() {
        let bare = decode(&json!({ "schemaVersion": 2, "config": descriptor(2) })).unwrap();
        assert_eq!(bare.layers, []);
        assert_eq!(bare.artifact_type, None);
        let null = with(manifest(Value::Null), "annotations", Value::Null);
        assert_eq!(decode(&with(null, "unknown", json!([1]))), Ok(bare));
    }

    #[test]
    fn layers_keep_their_order_annotations_and_repetitions() {
        let layer = with(descriptor(7), "annotations", json!({ "k": "v" }));
        let decoded = decode(&manifest(json!([layer, descriptor(0), descriptor(0)]))).unwrap();
        assert_eq!(decoded.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [7, 0, 0]);
        assert_eq!(decoded.layers[0].annotations["k"], "v");
        assert_eq!(decoded.layers[1].annotations, BTreeMap::new());
    }

    #[test]
    fn wrong_values_are_named() {
        let bad_digest = with(descriptor(1), "digest", json!("sha256:12"));
        for (value, words) in [
            (manifest(json!([descriptor(1), descriptor(-1)])), "layer 1: its size is negative"),
            (manifest(json!([descriptor(1u64 << 63)])), "9223372036854775808"),
            (manifest(json!([descriptor(i64::MAX), descriptor(i64::MAX)])), "16 TiB together"),
            (manifest(json!([descriptor(BYTES_LIMIT - 2), descriptor(1)])), "16 TiB together"),
            (manifest(json!([descriptor(1.5)])), "1.5"),
            (manifest(json!([bad_digest])), "layer 0: `sha256:12`"),
            (manifest(json!(vec![descriptor(1); LAYERS_LIMIT + 1])), "4097 layers"),
            (json!({ "schemaVersion": 2 }), "`config` is missing"),
            (json!({ "config": descriptor(1) }), "`schemaVersion` is missing"),
        ] {
            let error = decode(&value).unwrap_err();
            assert!(
                matches!(&error, ManifestError::Malformed(text) if text.contains(words)),
                "{error}"
            );
        }
        assert!(decode(&manifest(json!(vec![descriptor(1); LAYERS_LIMIT]))).is_ok());
        assert!(decode(&manifest(json!([descriptor(BYTES_LIMIT - 2)]))).is_ok());
        assert!(Manifest::decode(br#"{"schemaVersion":2,"schemaVersion":2}"#).is_err());
        assert!(Manifest::decode(b"").is_err());
        assert!(Manifest::decode(&b"[".repeat(200_000)).is_err());
    }

    #[test]
    fn golden_manifests_decode() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut seen = 0;
        for entry in std::fs::read_dir(&golden).unwrap() {
            let index = entry.unwrap().path().join("index.json");
            let Ok(index) = std::fs::read(&index).map(|json| (index, json)) else { continue };
            let (path, json) = index;
            let index: Value = serde_json::from_slice(&json).unwrap();
            let digest = index["manifests"][0]["digest"].as_str().unwrap();
            let hex = Digest::parse(digest).unwrap().hex();
            let bytes = std::fs::read(path.with_file_name("blobs/sha256").join(hex)).unwrap();
            let wire: Value = serde_json::from_slice(&bytes).unwrap();
            let layers = wire["layers"].as_array().map_or(0, Vec::len);
            assert_eq!(Manifest::decode(&bytes).unwrap().layers.len(), layers, "{path:?}");
            let Document::Index(index) = Document::decode(&json).unwrap() else {
                panic!("{path:?}")
            };
            assert_eq!(index.candidates().len(), 1, "{path:?}");
            seen += 1;
        }
        assert!(seen >= 10, "{seen} golden kits");
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::decode(&json);
        }
    }
}
