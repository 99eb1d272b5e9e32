//! What is told: what kits are, without a look into their layers (`kitfs info`, `kitfs list`), and what
//! was fetched.

use std::sync::Arc;

use futures_util::{StreamExt, stream};

use super::api::{Failure, FetchStatus, KitInfo, LayerInfo, TagInfo};
use crate::fetch::{FetchUsage, Fetcher};
use crate::fs::{self, Description};
use crate::kit::{Family, KitLayer, Role};
use crate::oci::{Descriptor, Origin};
use crate::source::Repositories;

/// Tags described at once; the limit for each registry host holds as well.
const TAGS_AT_ONCE: usize = 8;

/// What `kitfs info` shows.
pub(super) fn kit_info(reference: &str, description: &Description) -> KitInfo {
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
        kitfile: Some(String::from_utf8_lossy(&kit.kitfile.to_yaml()).into_owned()),
        warnings: kit.warnings.clone(),
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
        match describe_tag(fetcher, repositories, origin, &tag).await {
            Ok(description) => tag_info(tag, &description),
            Err(failure) => TagInfo {
                tag,
                digest: String::new(),
                blob_bytes: 0,
                name: None,
                author: None,
                problem: Some(failure.message),
            },
        }
    });
    Ok(described.buffered(TAGS_AT_ONCE).collect().await)
}

async fn describe_tag(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
    tag: &str,
) -> Result<Description, Failure> {
    let tagged = match origin {
        Origin::Registry(reference) | Origin::KitStorage(reference) => {
            format!("{}/{}:{tag}", reference.registry(), reference.repository())
        }
        Origin::OciLayout { folder, .. } => format!("oci:{}:{tag}", folder.display()),
    };
    Ok(fs::describe(fetcher, repositories, &Origin::parse(&tagged)?).await?)
}

fn tag_info(tag: String, description: &Description) -> TagInfo {
    let kitfile = &description.kit.kitfile;
    let sizes = description.manifest.layers.iter().map(|layer| layer.size);
    TagInfo {
        tag,
        digest: description.digest.to_string(),
        blob_bytes: sizes.fold(0, u64::saturating_add),
        name: kitfile.package_name().map(str::to_owned),
        author: kitfile.first_author().map(str::to_owned),
        problem: None,
    }
}

/// What `kitfs daemon status` shows of the fetcher.
pub(super) fn fetch_status(usage: FetchUsage) -> FetchStatus {
    let FetchUsage { reserved_bytes, memory_bytes, requests, fetched_bytes } = usage;
    FetchStatus { requests, fetched_bytes, reserved_bytes, memory_bytes }
}
