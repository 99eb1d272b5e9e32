//! The output of `kitfs pack`: the layers, the digest and the tags, or the plan.

use serde::Serialize;

use super::Name;
use crate::cli::error::CliError;
use crate::cli::output::{count_of, print_json, print_line, print_table, short_digest};
use crate::cli::sizes;
use crate::kit::packing::PlannedLayer;
use crate::pack::{BlobState, Packed, Prepared};

/// A packed or planned kit.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Report {
    /// The repository with its host.
    repository: String,
    tags: Vec<String>,
    /// The digest of the manifest; `None` for a plan.
    digest: Option<String>,
    layers: Vec<LayerReport>,
    /// The files that are in no layer; for a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_out: Option<Vec<LeftOutReport>>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LayerReport {
    role: &'static str,
    path: String,
    media_type: String,
    files: u64,
    /// The bytes of its files.
    file_bytes: u64,
    /// The digest and size of the blob; `None` for a plan.
    digest: Option<String>,
    blob_bytes: Option<u64>,
    /// `new`, `present` for a blob that the storage had, or `kept` for a blob of the base.
    state: Option<&'static str>,
    /// The paths of its files and directories; for a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    members: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LeftOutReport {
    path: String,
    reason: String,
}

impl Report {
    /// A kit that is in the storage.
    pub(super) fn packed(prepared: &Prepared, packed: &Packed, name: &Name) -> Self {
        let layers = prepared.plan().layers.iter().zip(&packed.layers);
        let layers = layers.map(|(planned, layer)| LayerReport {
            digest: Some(layer.blob.digest.to_string()),
            blob_bytes: Some(layer.blob.size),
            state: Some(match layer.state {
                BlobState::New => "new",
                BlobState::Present => "present",
                BlobState::Kept => "kept",
            }),
            ..LayerReport::new(prepared, planned)
        });
        let layers = layers.collect();
        let digest = Some(packed.manifest.digest.to_string());
        let Name { repository, tags } = name.clone();
        Self { repository, tags, digest, layers, left_out: None }
    }

    /// A kit that could be packed.
    pub(super) fn planned(prepared: &Prepared, name: &Name) -> Self {
        let path = |index: &usize| prepared.entry(*index).path.to_string();
        let plan = prepared.plan();
        let layers = plan.layers.iter().enumerate().map(|(index, planned)| LayerReport {
            state: prepared.is_kept(index).then_some("kept"),
            members: Some(planned.members.iter().map(path).collect()),
            ..LayerReport::new(prepared, planned)
        });
        let left_out = plan
            .left_out
            .iter()
            .map(|it| LeftOutReport { path: path(&it.index), reason: it.reason.to_string() });
        let Name { repository, tags } = name.clone();
        let (layers, left_out) = (layers.collect(), Some(left_out.collect()));
        Self { repository, tags, digest: None, layers, left_out }
    }

    /// Prints a packed kit.
    pub(super) fn print(self, is_json: bool) -> Result<(), CliError> {
        if is_json {
            return print_json(&self);
        }
        let digest = self.digest.clone().unwrap_or_default();
        let names: Vec<_> =
            self.tags.iter().map(|tag| format!("{}:{tag}", self.repository)).collect();
        let rows = self.layers.into_iter().map(|layer| {
            vec![
                layer.role.to_owned(),
                layer.path,
                layer.files.to_string(),
                sizes::show(layer.blob_bytes.unwrap_or_default()),
                short_digest(&layer.digest.unwrap_or_default()).to_owned(),
                layer.state.unwrap_or_default().to_owned(),
            ]
        });
        print_table(&["LAYER", "PATH", "FILES", "SIZE", "DIGEST", "STATE"], &[2, 3], rows)?;
        match names.is_empty() {
            true => print_line(format_args!("packed {digest}")),
            false => print_line(format_args!("packed {} as {digest}", names.join(", "))),
        }
    }

    /// Prints a plan.
    pub(super) fn print_plan(self, prepared: &Prepared, is_json: bool) -> Result<(), CliError> {
        if is_json {
            return print_json(&self);
        }
        for layer in &self.layers {
            let files = count_of(layer.files, "file", "files");
            let size = sizes::show(layer.file_bytes);
            let kept = if layer.state.is_some() { ", kept from the base" } else { "" };
            print_line(format_args!("{} {} ({files}, {size}{kept})", layer.role, layer.path))?;
            for member in layer.members.iter().flatten() {
                print_line(format_args!("  {member}"))?;
            }
        }
        let left_out = self.left_out.unwrap_or_default();
        if !left_out.is_empty() {
            print_line("in no layer")?;
        }
        for file in left_out {
            print_line(format_args!("  {}: {}", file.path, file.reason))?;
        }
        let (layers, bytes) = (self.layers.len() as u64, prepared.total_bytes());
        let layers = count_of(layers, "layer", "layers");
        print_line(format_args!("{layers} of {} together; nothing was written", sizes::show(bytes)))
    }
}

impl LayerReport {
    fn new(prepared: &Prepared, planned: &PlannedLayer) -> Self {
        let (files, file_bytes) = prepared.size(planned);
        Self {
            role: planned.role.as_str(),
            path: planned.path.clone(),
            media_type: planned.media_type.clone(),
            files,
            file_bytes,
            digest: None,
            blob_bytes: None,
            state: None,
            members: None,
        }
    }
}
