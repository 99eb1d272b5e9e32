//! Image manifests (OCI image-spec, manifest.md), as kit and modctl write them.

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
