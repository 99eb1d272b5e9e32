//! Decides which layers of a base a new version keeps by digest, without reading a byte.
//!
//! The folder is the base's own tree with some changes: an overlay over a mount, or the mount itself. A layer
//! stays if a full pack of the unchanged tree would make it again:
//!
//! - the base has a layer of the same role, path and media type;
//! - that layer has exactly the files that the plan gives it, by path and size, and no file that the tree hides,
//!   such as a Kitfile in the archive: that file would come back under another Kitfile;
//! - no change touches one of its files, and no directory of it has another mode;
//! - the plan has each directory that the base's layer may hold. Else somebody removed one, or a rule or another
//!   entry keeps it out now.
//!
//! In doubt a layer is packed anew: that costs time, and never a wrong kit.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ignore::clean_path;
use super::{FolderEntry, FolderEntryKind, PackPlan, PlannedLayer, is_below};
use crate::kit::{Family, Kit, KitError, Role};
use crate::oci::{BlobId, Compression, DiffId, Digest, Manifest};

/// The bits of a mode that a writable view keeps: a mount takes rights from groups and others, and gives the
/// owner the right to write.
const KEPT_MODE: u32 = 0o555;

/// A kit on which a new version is based.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Its layers.
    pub layers: Vec<BaseLayer>,
    /// Its files: the size, and the layer with the bytes.
    pub files: BTreeMap<Vec<u8>, (u64, Digest)>,
    /// The number of files in each layer's archive, including files that the tree hides. A layer without a number
    /// is packed anew.
    pub archived: BTreeMap<Digest, u64>,
    /// Its directories: their modes.
    pub directories: BTreeMap<Vec<u8>, u32>,
    /// Its symbolic links. A packer writes none, so a layer that may hold one is packed anew.
    pub symlinks: Vec<Vec<u8>>,
}

/// A layer that can be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseLayer {
    /// The blob.
    pub blob: BlobId,
    /// The digest of the uncompressed stream.
    pub diff_id: DiffId,
    /// The annotations of its descriptor.
    pub annotations: BTreeMap<String, String>,
    role: Role,
    /// Cleaned.
    path: Vec<u8>,
    media_type: String,
}

/// The paths whose files may differ from the base's files at the same path. A path that is missing in the folder
/// needs no mention.
pub type Changed = BTreeSet<Vec<u8>>;

impl Base {
    /// The layers of a kit that can be kept. Its files and directories come later.
    ///
    /// # Errors
    /// Fails if the artifact is no kit.
    pub fn decode(manifest: &Manifest, config: &[u8]) -> Result<Self, KitError> {
        let kit = Kit::decode(manifest, config)?;
        let diff_ids = diff_ids(config);
        // The members of legacy layers have other paths.
        let layers = kit.layers.iter().filter(|_| kit.family != Family::LegacyModelKit);
        let layers = layers.filter_map(|layer| {
            let diff_id = match layer.encoding.compression {
                Compression::None => DiffId(layer.blob.digest),
                _ => DiffId(*diff_ids.get(&layer.blob.digest)?),
            };
            let descriptor = manifest.layers.iter().find(|it| it.blob() == layer.blob)?;
            Some(BaseLayer {
                blob: layer.blob,
                diff_id,
                annotations: descriptor.annotations.clone(),
                role: layer.role,
                path: clean_path(layer.entry_path.as_deref()?.as_bytes()),
                media_type: layer.media_type.clone(),
            })
        });
        Ok(Self { layers: layers.collect(), ..Self::default() })
    }
}

impl Base {
    /// Whether a layer may have a directory or link: it lies below the layer's path, and in no other entry.
    fn may_hold(&self, layer: &BaseLayer, directory: &[u8]) -> bool {
        let is_below = layer.path == b"." || is_below(directory, &layer.path);
        let is_others = |other: &BaseLayer| {
            !layer.path.starts_with(&other.path) && directory.starts_with(&other.path)
        };
        is_below && !self.layers.iter().any(is_others)
    }
}

/// The `diffId` of each entry of a ModelKit's config, by its `digest`.
fn diff_ids(config: &[u8]) -> BTreeMap<Digest, Digest> {
    let mut found = BTreeMap::new();
    let mut pending: Vec<serde_json::Value> = serde_json::from_slice(config).into_iter().collect();
    while let Some(value) = pending.pop() {
        match value {
            serde_json::Value::Array(items) => pending.extend(items),
            serde_json::Value::Object(mut fields) => {
                // Parameters are the author's, and may look like anything.
                fields.remove("parameters");
                let digest = |name: &str| Digest::parse(fields.get(name)?.as_str()?).ok();
                if let (Some(digest), Some(diff_id)) = (digest("digest"), digest("diffId")) {
                    found.insert(digest, diff_id);
                }
                pending.extend(fields.into_iter().map(|(_, value)| value));
            }
            _ => {}
        }
    }
    found
}

/// For each planned layer, the base's layer that can stand for it, if there is one.
pub fn kept_layers<'a>(
    plan: &PackPlan,
    entries: &[FolderEntry],
    base: &'a Base,
    changed: &Changed,
) -> Vec<Option<&'a BaseLayer>> {
    let mut files: BTreeMap<Digest, BTreeMap<&[u8], u64>> = BTreeMap::new();
    for (path, (size, layer)) in &base.files {
        files.entry(*layer).or_default().insert(path, *size);
    }
    let none = BTreeMap::new();
    let kept = |planned: &PlannedLayer| {
        let layer = base.layers.iter().find(|layer| {
            layer.role == planned.role
                && layer.path == planned.path.as_bytes()
                && layer.media_type == planned.media_type
        })?;
        if base.symlinks.iter().any(|link| base.may_hold(layer, link)) {
            return None;
        }
        let mut expected = files.get(&layer.blob.digest).unwrap_or(&none).clone();
        if base.archived.get(&layer.blob.digest) != Some(&(expected.len() as u64)) {
            return None;
        }
        for &member in &planned.members {
            let FolderEntry { path, kind, mode } = &entries[member];
            let path = path.as_bytes();
            let is_kept = match kind {
                FolderEntryKind::File(size) => {
                    expected.remove(path) == Some(*size) && !changed.contains(path)
                }
                _ => base.directories.get(path).is_some_and(|had| (had ^ mode) & KEPT_MODE == 0),
            };
            if !is_kept {
                return None;
            }
        }
        let members: BTreeSet<_> =
            planned.members.iter().map(|&member| entries[member].path.as_bytes()).collect();
        let had = base.directories.keys().filter(|path| base.may_hold(layer, path));
        (expected.is_empty() && had.into_iter().all(|path| members.contains(path.as_slice())))
            .then_some(layer)
    };
    plan.layers.iter().map(kept).collect()
}

#[cfg(test)]
mod tests;
