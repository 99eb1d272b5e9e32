//! Descriptors: the entries of blobs in a manifest or an index (OCI image-spec, descriptor.md).
//!
//! Lenient where producers differ: annotations and the `data` field may be `null`, and `data` that
//! is not the blob is ignored. Strict where a wrong guess would cost: digests and sizes.

use std::collections::BTreeMap;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{BlobOffset, Digest, ManifestError};

/// The content of the empty config (image-spec, manifest.md, "Guidance for an Empty Descriptor").
const EMPTY_JSON: &[u8] = b"{}";

/// The entry of one blob in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written; [`super::media_type`] gives it a meaning.
    pub media_type: String,
    /// The digest of the blob as stored.
    pub digest: Digest,
    /// The size of the blob as stored, in bytes.
    pub size: u64,
    /// Annotations, empty when the manifest has none.
    pub annotations: BTreeMap<String, String>,
    /// The whole blob, where the descriptor carries it. Its size and digest were checked.
    pub data: Option<Bytes>,
}

impl Descriptor {
    /// The blob this descriptor names.
    pub fn blob(&self) -> BlobId {
        BlobId { digest: self.digest, size: self.size }
    }

    /// The whole blob, if no request is needed: the descriptor carries the bytes, or names the empty JSON object,
    /// which registries often do not store.
    pub fn content(&self) -> Option<Bytes> {
        self.data.clone().or_else(|| {
            let empty = BlobId { digest: Digest::of(EMPTY_JSON), size: EMPTY_JSON.len() as u64 };
            (self.blob() == empty).then(|| Bytes::from_static(EMPTY_JSON))
        })
    }
}

/// A blob to fetch: its digest, and the size that bounds what a registry may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlobId {
    /// The digest of the blob as stored.
    pub digest: Digest,
    /// The size of the blob as stored, in bytes.
    pub size: u64,
}

impl BlobId {
    /// The range of the whole blob.
    pub fn whole(self) -> Range<BlobOffset> {
        BlobOffset(0)..self.end()
    }

    /// The offset behind the last byte.
    pub fn end(self) -> BlobOffset {
        BlobOffset(self.size)
    }
}

/// A descriptor as it is on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "a descriptor")]
pub(super) struct WireDescriptor {
    media_type: Option<String>,
    digest: String,
    size: Option<i64>,
    annotations: Option<WireAnnotations>,
    data: Option<Value>,
}

impl WireDescriptor {
    /// Checks the descriptor. `place` names it in messages: `config`, `layer 3`.
    pub(super) fn checked(self, place: &str) -> Result<Descriptor, ManifestError> {
        let malformed = |reason: String| ManifestError::Malformed(format!("{place}: {reason}"));
        let digest = Digest::parse(&self.digest).map_err(|error| malformed(error.to_string()))?;
        let size = match self.size {
            None => return Err(malformed("its size is missing".to_owned())),
            Some(size) => u64::try_from(size)
                .map_err(|_| malformed(format!("its size is negative: {size}")))?,
        };
        let blob = BlobId { digest, size };
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest,
            size,
            annotations: self.annotations.unwrap_or_default().0,
            data: carried(self.data.as_ref(), blob),
        })
    }
}

/// The bytes that a `data` field carries, if they are `blob`.
pub(super) fn carried(data: Option<&Value>, blob: BlobId) -> Option<Bytes> {
    let bytes = STANDARD.decode(data?.as_str()?).ok()?;
    let is_blob = bytes.len() as u64 == blob.size && Digest::of(&bytes) == blob.digest;
    is_blob.then(|| bytes.into())
}

/// Annotations as they are on the wire. A value that is `null` counts as missing, as for Go's
/// tools; any other value that is no text is an error which names the annotation.
#[derive(Default)]
pub(super) struct WireAnnotations(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WireAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = BTreeMap::<String, Value>::deserialize(deserializer)?;
        let mut annotations = BTreeMap::new();
        for (key, value) in wire {
            match value {
                Value::Null => {}
                Value::String(text) => drop(annotations.insert(key, text)),
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    let message = format!("the value of the annotation `{key}` is not a text");
                    return Err(serde::de::Error::custom(message));
                }
            }
        }
        Ok(Self(annotations))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decode(value: &Value) -> Result<Descriptor, ManifestError> {
        let wire: WireDescriptor = serde_json::from_value(value.clone())
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        wire.checked("layer 0")
    }

    fn descriptor(content: &[u8]) -> Value {
        json!({ "mediaType": "a/b", "digest": Digest::of(content), "size": content.len() })
    }

    #[test]
    fn a_null_annotation_is_a_missing_one_and_other_values_are_named() {
        let mut wire = descriptor(b"x");
        wire["annotations"] = json!({"a": null, "b": "c"});
        let annotations = decode(&wire).unwrap().annotations;
        assert_eq!(annotations, BTreeMap::from([("b".to_owned(), "c".to_owned())]));
        for value in [json!(1), json!(true), json!([]), json!({})] {
            wire["annotations"] = json!({"a": value});
            let error = decode(&wire).unwrap_err().to_string();
            assert!(error.contains("annotation `a`"), "{error}");
        }
    }

    #[test]
    fn the_empty_object_is_known_without_a_request() {
        assert_eq!(decode(&descriptor(b"{}")).unwrap().content(), Some(Bytes::from_static(b"{}")));
        let mut other_size = descriptor(b"{}");
        other_size["size"] = json!(3);
        assert_eq!(decode(&other_size).unwrap().content(), None);
        assert_eq!(decode(&descriptor(b"{ }")).unwrap().content(), None);
    }

    #[test]
    fn data_of_another_type_is_ignored() {
        for data in [json!(null), json!(7), json!([1]), json!({"a": 1}), json!("%")] {
            let mut wire = descriptor(b"x");
            wire["data"] = data;
            assert_eq!(decode(&wire).unwrap().data, None);
        }
    }

    proptest! {
        #[test]
        fn data_is_taken_if_and_only_if_it_is_the_blob(
            content in prop::collection::vec(any::<u8>(), 0..64),
            data in prop::collection::vec(any::<u8>(), 0..64),
            is_same in any::<bool>(), size_error in 0u64..2,
        ) {
            let data = if is_same { content.clone() } else { data };
            let mut wire = descriptor(&content);
            wire["size"] = json!(content.len() as u64 + size_error);
            wire["data"] = json!(STANDARD.encode(&data));
            let fits = data == content && size_error == 0;
            let taken = decode(&wire).unwrap().data;
            prop_assert_eq!(taken, fits.then(|| Bytes::from(content)));
        }
    }
}
