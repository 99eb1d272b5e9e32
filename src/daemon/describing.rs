//! Descriptions for users: a kit without a look into its layers (`kitfs info`), and the fetched bytes.

use crate::control::api::{
    Fact, Failure, FailureKind, FetchStatus, IndexEntryInfo, IndexInfo, Info, KitInfo, LayerInfo,
    RemoteInfo,
};
use crate::fetch::FetchUsage;
use crate::fs::{Described, Description, IndexDescription};
use crate::kit::{Family, GoYaml, Kit, KitLayer, RemoteData, RemoteTarget, Role};
use crate::oci::Descriptor;

/// The answer of `kitfs info`.
pub(super) fn info(reference: &str, described: &Described) -> Info {
    match described {
        Described::Kit(description) => Info::Kit(kit_info(reference, description)),
        Described::Index(description) => Info::Index(index_info(reference, description)),
    }
}

fn index_info(reference: &str, description: &IndexDescription) -> IndexInfo {
    let IndexDescription { digest, index, warning } = description;
    let entries = index.candidates().into_iter().map(|entry| IndexEntryInfo {
        digest: entry.descriptor.digest.to_string(),
        original_tag: entry.original_tag().map(str::to_owned),
        platform: entry.platform.clone(),
        labels: entry.labels.iter().map(|(key, value)| (key.into(), value.into())).collect(),
    });
    IndexInfo {
        reference: reference.to_owned(),
        digest: digest.to_string(),
        family: if index.is_of_modelkits() { "ModelKit index" } else { "image index" }.to_owned(),
        entries: entries.collect(),
        warnings: warning.iter().cloned().collect(),
    }
}

fn kit_info(reference: &str, description: &Description) -> KitInfo {
    let kit = &description.kit;
    KitInfo {
        reference: reference.to_owned(),
        digest: description.digest.to_string(),
        family: family_name(kit.family).to_owned(),
        facts: Vec::new(),
        layers: kit_layers(description),
        remote: kit.remote.iter().map(remote_info).collect(),
        kitfile: Some(kitfile_text(kit)),
        warnings: description.warning.iter().chain(&kit.warnings).cloned().collect(),
    }
}

/// The layers of a kit; none of an index.
pub(super) fn layers(described: &Described) -> Vec<LayerInfo> {
    match described {
        Described::Kit(description) => kit_layers(description),
        Described::Index(_) => Vec::new(),
    }
}

fn kit_layers(description: &Description) -> Vec<LayerInfo> {
    let mut known = description.kit.layers.iter().peekable();
    let layers = description.manifest.layers.iter().map(|descriptor| {
        let layer = known.next_if(|layer| is_about(layer, descriptor));
        layer_info(descriptor, layer)
    });
    layers.collect()
}

/// The Kitfile as a list of facts.
///
/// # Errors
/// When the Kitfile is nested so that its facts take too much memory.
pub(super) fn facts(kit: &Kit) -> Result<Vec<Fact>, Failure> {
    let facts = kit.kitfile.facts().map_err(|error| {
        Failure::new(FailureKind::BadContent, format!("the Kitfile cannot be shown: {error}"))
    })?;
    Ok(facts.into_iter().map(|(key, value)| Fact { key, value }).collect())
}

/// Whether a layer of the kit comes from this descriptor; layers keep the manifest's order.
fn is_about(layer: &KitLayer, descriptor: &Descriptor) -> bool {
    layer.blob == descriptor.blob() && layer.media_type == descriptor.media_type
}

fn layer_info(descriptor: &Descriptor, layer: Option<&KitLayer>) -> LayerInfo {
    LayerInfo {
        role: match layer {
            Some(layer) => role_name(layer.role).to_owned(),
            None => descriptor.media_type.clone(),
        },
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        blob_bytes: descriptor.size,
        path: layer.and_then(|layer| layer.entry_path.clone()),
    }
}

fn remote_info(data: &RemoteData) -> RemoteInfo {
    let etag = match &data.target {
        RemoteTarget::Object { etag, .. } => Some(etag.clone()),
        RemoteTarget::Kit(_) => None,
    };
    let (name, path) = (data.entry_name.clone(), data.entry_path.clone());
    RemoteInfo { name, path, place: data.target.to_string(), etag }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::ModelKit => "ModelKit",
        Family::LegacyModelKit => "ModelKit (legacy)",
        Family::ModelPack => "ModelPack",
    }
}

/// The role in the words of kit's media types (modelkit-spec 1.2).
fn role_name(role: Role) -> &'static str {
    match role {
        Role::Model => "model",
        Role::ModelPart => "modelpart",
        Role::Code => "code",
        Role::Dataset => "dataset",
        Role::Docs => "docs",
        Role::Prompt => "prompt",
        Role::McpServer => "mcpb",
    }
}

/// The part of `kitfs daemon status` about the fetcher.
pub(super) fn fetch_status(usage: FetchUsage) -> FetchStatus {
    let FetchUsage { reserved_bytes, memory_bytes, requests, fetched_bytes } = usage;
    FetchStatus { requests, fetched_bytes, reserved_bytes, memory_bytes }
}

/// The Kitfile as the mounted file has it, or as kit would write it where there is no such file.
fn kitfile_text(kit: &Kit) -> String {
    match &kit.kitfile_yaml {
        Some(yaml) => String::from_utf8_lossy(yaml).into_owned(),
        None => String::from_utf8_lossy(&kit.kitfile.to_yaml(GoYaml::default())).into_owned(),
    }
}
