//! The manifest and config of a kit, as kit 1.11 writes them (modelkit-spec 1.1 to 1.4). Pure.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::{Options, PackedLayer};
use crate::kit::packing::{FolderEntry, PackPlan};
use crate::kit::{AuthoredKitfile, FILE_DIGESTS, LayerDigests, Role};
use crate::oci::{BlobId, Digest};

/// A manifest's facts about its making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The time in `org.opencontainers.image.created`.
    pub created: jiff::Timestamp,
    /// The packer and its version.
    pub packer: String,
}

/// The bytes that all lists of files have together, as the manifest holds them. Registries refuse a manifest of
/// more than 4 MiB, and the rest of it needs room too.
const FILE_LISTS_LIMIT_BYTES: usize = 2 * 1024 * 1024;

/// The documents of a kit.
pub(super) struct Encoded {
    pub config: Vec<u8>,
    pub json: Vec<u8>,
}

/// Encodes config and manifest.
pub(super) fn encode(
    kitfile: &AuthoredKitfile,
    plan: &PackPlan,
    layers: &[PackedLayer],
    options: Options,
    stamp: &Stamp,
) -> Encoded {
    let mut digests = vec![None; kitfile.entry_count()];
    for (planned, packed) in plan.layers.iter().zip(layers) {
        let PackedLayer { blob, diff_id, .. } = packed;
        digests[planned.entry] = Some(LayerDigests { digest: blob.digest, diff_id: *diff_id });
    }
    let kitfile_json = kitfile.config(&digests);
    let created = stamp.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut annotations = BTreeMap::from([
        ("ml.kitops.modelkit.cli-version".to_owned(), stamp.packer.clone()),
        ("org.opencontainers.image.created".to_owned(), created.clone()),
    ]);
    let config = match options.is_model_pack {
        false => kitfile_json,
        true => {
            // The config of a ModelPack has no room for a Kitfile.
            let text = String::from_utf8(kitfile_json).expect("the config is a text");
            annotations.insert("ml.kitops.modelkit.kitfile".to_owned(), text);
            let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.0).collect();
            kitfile.model_pack_config(&created, &diff_ids)
        }
    };
    let (artifact_type, config_type) = match options.is_model_pack {
        false => (
            "application/vnd.kitops.modelkit.manifest.v1+json",
            "application/vnd.kitops.modelkit.config.v1+json",
        ),
        true => (
            "application/vnd.cncf.model.manifest.v1+json",
            "application/vnd.cncf.model.config.v1+json",
        ),
    };
    let lists = file_lists(layers);
    let descriptors: Vec<_> = plan
        .layers
        .iter()
        .zip(layers)
        .zip(lists)
        .map(|((planned, packed), list)| {
            let mut annotations =
                BTreeMap::from([("org.cncf.model.filepath", planned.path.clone())]);
            if let Some(metadata) = &packed.metadata {
                annotations.insert("org.cncf.model.file.metadata+json", metadata.clone());
            }
            if planned.role == Role::Prompt {
                annotations.insert("ml.kitops.modelkit.layer-subtype", "prompt".to_owned());
            }
            if let Some(list) = list {
                annotations.insert(FILE_DIGESTS, list);
            }
            let mut descriptor = descriptor(&planned.media_type, packed.blob);
            descriptor["annotations"] = json!(annotations);
            descriptor
        })
        .collect();
    let config_blob = BlobId { digest: Digest::of(&config), size: config.len() as u64 };
    let manifest = json!({
        "schemaVersion": 2,
        "artifactType": artifact_type,
        "config": descriptor(config_type, config_blob),
        // kit writes null in the place of an empty list.
        "layers": (!descriptors.is_empty()).then_some(descriptors),
        "annotations": annotations,
    });
    Encoded { config, json: manifest.to_string().into_bytes() }
}

fn descriptor(media_type: &str, blob: BlobId) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

/// The lists of files for the layers' annotations; the longest ones are left out first where all
/// together are too long.
fn file_lists(layers: &[PackedLayer]) -> Vec<Option<String>> {
    let mut lists: Vec<_> = layers.iter().map(|layer| layer.file_list.clone()).collect();
    // Half as much again is more than the escapes of the quotes need.
    let bytes = |list: &Option<String>| list.as_ref().map_or(0, |list| list.len() * 3 / 2);
    while lists.iter().map(bytes).sum::<usize>() > FILE_LISTS_LIMIT_BYTES {
        let longest = lists.iter_mut().max_by_key(|list| bytes(list));
        *longest.expect("a sum above zero has a list") = None;
    }
    lists
}

/// The annotation of a raw layer's file.
pub(super) fn raw_metadata(entry: &FolderEntry, size: u64, found: &Metadata) -> String {
    let path = entry.path.as_bytes();
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let mtime = jiff::Timestamp::new(found.mtime(), found.mtime_nsec() as i32);
    json!({
        "name": String::from_utf8_lossy(name),
        "mode": entry.mode & 0o777,
        "uid": 0,
        "gid": 0,
        "size": size,
        "mtime": mtime.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string(),
        "typeflag": b'0',
    })
    .to_string()
}
