//! What is told: what kits are, without a look into their layers (`kitfs info`, `kitfs list`), and what
//! was fetched.

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::api::{
    Failure, FetchStatus, IndexEntryInfo, IndexInfo, Info, KitInfo, LayerInfo, RemoteInfo, TagInfo,
};
use crate::fetch::{FetchUsage, Fetcher};
use crate::fs::{self, Described, Description, IndexDescription};
use crate::kit::{Family, GoYaml, Kit, KitLayer, RemoteData, RemoteTarget, Role};
use crate::oci::{Descriptor, LabelSelector, Origin, Selector};
use crate::source::Repositories;

/// Tags described at once; the limit for each registry host holds as well.
const TAGS_AT_ONCE: usize = 8;

/// What `kitfs info` shows.
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
    let mut known = kit.layers.iter().peekable();
    let layers = description.manifest.layers.iter();
    let layers = layers.map(|descriptor| {
        let layer = known.next_if(|layer| is_about(layer, descriptor));
        layer_info(descriptor, layer)
    });
    KitInfo {
        reference: reference.to_owned(),
        digest: description.digest.to_string(),
        family: family_name(kit.family).to_owned(),
        layers: layers.collect(),
        remote: kit.remote.iter().map(remote_info).collect(),
        kitfile: Some(kitfile_text(kit)),
        warnings: description.warning.iter().chain(&kit.warnings).cloned().collect(),
    }
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

/// What `kitfs list` shows: every tag of the repository of `origin`. A tag that is no kit is
/// listed with its problem.
pub(super) async fn tags(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
) -> Result<Vec<TagInfo>, Failure> {
    let tags = repositories.open(origin)?.tags().await?;
    let described = stream::iter(tags).map(|tag| async move {
        match look_at_tag(fetcher, repositories, origin, &tag).await {
            Ok(described) => tag_info(tag, &described),
            Err(failure) => {
                let problem = Some(failure.message);
                TagInfo { problem, ..TagInfo::new(tag, String::new()) }
            }
        }
    });
    Ok(described.buffered(TAGS_AT_ONCE).collect().await)
}

async fn look_at_tag(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
    tag: &str,
) -> Result<Described, Failure> {
    let tagged = origin.with_selector(Selector::Tag(tag.to_owned()));
    Ok(fs::look(fetcher, repositories, &tagged, &LabelSelector::default()).await?)
}

fn tag_info(tag: String, described: &Described) -> TagInfo {
    let description = match described {
        Described::Kit(description) => description,
        Described::Index(IndexDescription { digest, index, .. }) => {
            let entries = Some(index.candidates().len() as u64);
            return TagInfo { index_entries: entries, ..TagInfo::new(tag, digest.to_string()) };
        }
    };
    let kitfile = &description.kit.kitfile;
    let sizes = description.manifest.layers.iter().map(|layer| layer.size);
    TagInfo {
        blob_bytes: sizes.fold(0, u64::saturating_add),
        name: kitfile.package_name().map(str::to_owned),
        author: kitfile.first_author().map(str::to_owned),
        ..TagInfo::new(tag, description.digest.to_string())
    }
}

/// What `kitfs daemon status` shows of the fetcher.
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
