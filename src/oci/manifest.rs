//! Image manifests (OCI image-spec, manifest.md), as kit and modctl write them.
#![allow(unused_variables, dead_code)]

use std::collections::BTreeMap;

use super::Descriptor;

/// An image manifest with one config and any number of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// `artifactType`, where the producer wrote one.
    pub artifact_type: Option<String>,
    /// The config blob: for a ModelKit, the Kitfile as JSON.
    pub config: Descriptor,
    /// The layers in manifest order; empty for `"layers": null`.
    pub layers: Vec<Descriptor>,
    /// Annotations, empty when the manifest has none.
    pub annotations: BTreeMap<String, String>,
}

/// Why bytes are not a manifest that can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("the manifest is malformed: {0}")]
    Malformed(String),
    /// An image index or a Docker manifest: what it is, and what to do.
    #[error("the manifest is {0}")]
    Unsupported(String),
}

impl Manifest {
    /// Decodes the JSON of an image manifest; sizes and counts are bounded.
    pub fn decode(json: &[u8]) -> Result<Self, ManifestError> {
        todo!()
    }
}
