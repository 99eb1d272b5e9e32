//! The document under a tag of a registry or layout: a manifest, or an index of manifests.

use serde::Deserialize;

use super::descriptor::{WireAnnotations, WireDescriptor};
use super::index::{Index, WireEntry};
use super::{Manifest, ManifestError};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The byte order mark in UTF-8, which some editors write at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A manifest, or an index of manifests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An image manifest: a config and layers.
    Manifest(Box<Manifest>),
    /// An image index. Docker's manifest list is one too.
    Index(Index),
}

/// A document as it is on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
pub(super) struct WireDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) config: Option<WireDescriptor>,
    pub(super) layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireEntry>>,
    pub(super) annotations: Option<WireAnnotations>,
}

impl Document {
    /// Decodes the JSON of a manifest or index; sizes and counts are bounded.
    ///
    /// # Errors
    /// [`ManifestError::Unsupported`] for Docker's manifests and other schema versions, with what
    /// to do; [`ManifestError::Malformed`] for anything else.
    pub fn decode(json: &[u8]) -> Result<Self, ManifestError> {
        let wire: WireDocument =
            serde_json::from_slice(json).map_err(|error| not_json(json, &error))?;
        let is_index = wire.is_index();
        wire.refuse_other_formats(is_index)?;
        match is_index {
            true => Ok(Self::Index(Index {
                artifact_type: wire.artifact_type.filter(|given| !given.is_empty()),
                entries: wire.manifests.unwrap_or_default().into_iter().map(Into::into).collect(),
            })),
            false => Ok(Self::Manifest(Box::new(wire.try_into()?))),
        }
    }
}

impl Index {
    /// Decodes the JSON of an index whatever else it says: the `index.json` of a layout need not
    /// have a media type or a schema version.
    ///
    /// # Errors
    /// [`ManifestError::Malformed`] where it is not JSON, or a digest is malformed.
    pub fn decode(json: &[u8]) -> Result<Self, ManifestError> {
        let wire: WireDocument =
            serde_json::from_slice(json).map_err(|error| not_json(json, &error))?;
        Ok(Self {
            artifact_type: wire.artifact_type.filter(|given| !given.is_empty()),
            entries: wire.manifests.unwrap_or_default().into_iter().map(Into::into).collect(),
        })
    }
}

impl WireDocument {
    fn is_index(&self) -> bool {
        let media_type = self.media_type.as_deref().unwrap_or_default();
        media_type == DOCKER_LIST || media_type == OCI_INDEX || self.manifests.is_some()
    }

    fn refuse_other_formats(&self, is_index: bool) -> Result<(), ManifestError> {
        let is_docker = self.media_type.as_deref() == Some(DOCKER_MANIFEST);
        if is_docker || self.schema_version == Some(1) {
            return Err(ManifestError::Unsupported(
                "a Docker image manifest, not an OCI one, so this is a container image or a \
                 converted copy: push the kit again with `kit push`, or copy it with `skopeo copy \
                 --format oci`"
                    .to_owned(),
            ));
        }
        match self.schema_version {
            Some(2) => Ok(()),
            Some(other) => Err(ManifestError::Unsupported(format!(
                "of schema version {other}, and kitfs reads version 2: a newer kitfs may know it"
            ))),
            None if is_index => Ok(()),
            None => Err(ManifestError::Malformed("`schemaVersion` is missing".to_owned())),
        }
    }
}

/// The error for bytes that are no JSON; it names the usual reasons.
fn not_json(json: &[u8], error: &serde_json::Error) -> ManifestError {
    let first = json.iter().find(|byte| !byte.is_ascii_whitespace());
    let reason = if first.is_none() {
        "it is empty".to_owned()
    } else if first == Some(&b'<') {
        "it is a web page, as a login page or a proxy sends it; is this the address of a registry?"
            .to_owned()
    } else if json.starts_with(BYTE_ORDER_MARK) {
        "it begins with a byte order mark, which JSON must not: push the kit again".to_owned()
    } else {
        error.to_string()
    };
    ManifestError::Malformed(reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::oci::Digest;

    fn manifest() -> Value {
        let config = json!({"mediaType": "a/b", "digest": Digest::of(b""), "size": 0});
        json!({"schemaVersion": 2, "config": config, "layers": []})
    }

    fn decode(value: &Value) -> Result<Document, ManifestError> {
        Document::decode(value.to_string().as_bytes())
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        assert!(matches!(decode(&manifest()), Ok(Document::Manifest(_))));
        for (field, value) in [
            ("manifests", json!([])),
            ("mediaType", json!(OCI_INDEX)),
            ("mediaType", json!(DOCKER_LIST)),
        ] {
            let mut wire = manifest();
            wire[field] = value;
            assert!(matches!(decode(&wire), Ok(Document::Index(_))), "{wire}");
            let error = Manifest::decode(wire.to_string().as_bytes()).unwrap_err();
            assert!(error.to_string().contains("image index"), "{error}");
        }
    }

    #[test]
    fn other_formats_are_refused_with_advice() {
        for (field, value, words) in [
            ("mediaType", json!(DOCKER_MANIFEST), "skopeo copy"),
            ("schemaVersion", json!(1), "Docker"),
            ("schemaVersion", json!(3), "version 3"),
        ] {
            let mut wire = manifest();
            wire[field] = value;
            let error = decode(&wire).unwrap_err();
            assert!(
                matches!(&error, ManifestError::Unsupported(text) if text.contains(words)),
                "{error}"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_json_are_named() {
        let with_mark = [BYTE_ORDER_MARK, manifest().to_string().as_bytes()].concat();
        for (bytes, words) in [
            (b"\r\n<!DOCTYPE html><html>".as_slice(), "web page"),
            (&with_mark, "byte order mark"),
            (b"{", "EOF"),
            (b" \n", "it is empty"),
            (b"null", "null, expected an object"),
            (br#"{"layers":[7]}"#, "`7`, expected a descriptor"),
            (br#"{"manifests":["x"]}"#, "expected a descriptor"),
        ] {
            for error in [Document::decode(bytes).err(), Index::decode(bytes).err()] {
                let error = error.unwrap().to_string();
                assert!(error.contains(words), "{error}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(json in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::decode(&json);
            let _ = Index::decode(&json);
        }
    }
}
