//! Image indexes of kits in an OCI layout, as `kit index`, BuildKit and other tools write them.

use std::fs;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::kit_builder::{Written, write_index};

/// An index to write.
#[derive(Clone, Debug)]
pub struct KitIndex {
    artifact_type: Option<&'static str>,
    entries: Vec<Value>,
}

impl KitIndex {
    /// A ModelKit index (kit 1.17).
    pub fn of_modelkits() -> Self {
        let artifact_type = Some("application/vnd.kitops.modelkit.index.v1+json");
        Self { artifact_type, entries: Vec::new() }
    }

    /// An index without an artifact type, as image tools write it.
    pub fn plain() -> Self {
        Self { artifact_type: None, entries: Vec::new() }
    }

    /// Adds a kit with its tag and its labels.
    pub fn with(self, kit: &Written, tag: &str, labels: Value) -> Self {
        let annotations = json!({"ml.kitops.modelkit.original-tag": tag});
        self.with_fields(kit, json!({"annotations": annotations, "modelMetadata": labels}))
    }

    /// Adds a kit with further fields of its descriptor.
    pub fn with_fields(mut self, kit: &Written, fields: Value) -> Self {
        let mut entry = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": kit.digest, "size": kit.manifest.len(),
        });
        for (key, value) in fields.as_object().expect("an object") {
            entry[key] = value.clone();
        }
        self.entries.push(entry);
        self
    }

    /// Writes the index under `tag` into the layout of the kits; returns the index's digest.
    pub fn write(&self, beside: &Written, tag: &str) -> String {
        let mut index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.entries,
        });
        if let Some(artifact_type) = self.artifact_type {
            index["artifactType"] = artifact_type.into();
        }
        let bytes = index.to_string().into_bytes();
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hex}");
        fs::write(beside.blob(&digest), &bytes).expect("the layout can be written");
        write_index(&beside.folder, tag, &digest, bytes.len());
        digest
    }
}
