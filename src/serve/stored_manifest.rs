//! The fields of a manifest that a registry needs in order to serve it. Pure.
//!
//! This type accepts more than [`crate::oci::Manifest`]: a registry also serves manifests that kitfs
//! cannot mount, such as container images.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::oci::Digest;

/// The media type of an image manifest, and of any manifest that names none.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an image index.
pub(super) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The longest media type (RFC 6838, section 4.2: two names of at most 127 characters).
const MEDIA_TYPE_LIMIT_BYTES: usize = 255;

/// A manifest or image index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredManifest {
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<WireConfig>,
    manifests: Option<serde::de::IgnoredAny>,
    subject: Option<WireSubject>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireConfig {
    media_type: Option<String>,
}

#[derive(Deserialize)]
struct WireSubject {
    digest: Digest,
}

impl StoredManifest {
    /// Decodes a manifest or index; `None` for other content, such as a layer or a config.
    pub(super) fn decode(json: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(json).ok()?;
        (read.config.is_some() || read.manifests.is_some()).then_some(read)
    }

    /// The value for `Content-Type`: the written media type, or one that follows from the content.
    pub(super) fn media_type(&self) -> &str {
        let is_index = self.config.is_none();
        let default = if is_index { INDEX_TYPE } else { MANIFEST_TYPE };
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&byte);
        self.media_type
            .as_deref()
            .filter(|given| given.len() <= MEDIA_TYPE_LIMIT_BYTES && given.bytes().all(is_token))
            .unwrap_or(default)
    }

    /// `artifactType`, or the config's media type (distribution-spec, "Listing Referrers").
    pub(super) fn artifact_type(&self) -> Option<&str> {
        let config = || self.config.as_ref()?.media_type.as_deref();
        self.artifact_type.as_deref().filter(|given| !given.is_empty()).or_else(config)
    }

    /// The digest of the manifest that this one refers to.
    pub(super) fn subject(&self) -> Option<Digest> {
        self.subject.as_ref().map(|subject| subject.digest)
    }

    /// The descriptor of this manifest in a list of referrers.
    pub(super) fn descriptor(&self, digest: Digest, size: usize) -> Value {
        let mut descriptor =
            json!({"mediaType": self.media_type(), "digest": digest, "size": size});
        if let Some(artifact_type) = self.artifact_type() {
            descriptor["artifactType"] = artifact_type.into();
        }
        if let Some(annotations) = &self.annotations {
            descriptor["annotations"] = Value::Object(annotations.clone());
        }
        descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_is_the_written_one_or_follows_from_the_content() {
        for (json, expected) in [
            (r#"{"config":{},"layers":null}"#, Some(MANIFEST_TYPE)),
            (r#"{"manifests":[]}"#, Some(INDEX_TYPE)),
            (r#"{"config":{},"mediaType":"a/b+json"}"#, Some("a/b+json")),
            (r#"{"config":{},"mediaType":"a/b\r\nx: y"}"#, Some(MANIFEST_TYPE)),
            (r#"{"manifestVersion":"1.0.0"}"#, None),
            ("\0\0\0", None),
        ] {
            let read = StoredManifest::decode(json.as_bytes());
            assert_eq!(read.as_ref().map(|read| read.media_type()), expected, "{json}");
        }
    }
}
