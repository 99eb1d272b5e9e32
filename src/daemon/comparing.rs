//! Compares two versions of a kit: the answer of `kitfs diff`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;

use super::failure::panicked;
use super::paths::{self, LastLink};
use super::reading;
use crate::cache::{Cache, LayerKey};
use crate::control::ByteStream;
use crate::control::api::{
    ComparedFile, ComparedVersion, Comparison, EntryKind, Failure, FailureKind, FileChange,
    FileChangeKind, LayerChange, LayerChangeKind, PassProgress, RawPath, Switch,
};
use crate::fetch::Layer;
use crate::fs::{LoadedKit, layer_files};
use crate::kit::compare::{self, Change, ChangeKind, LayerFiles, Version};
use crate::kit::{NodeId, NodeKind};

/// Files whose bytes are compared at once. Each takes two buffers of 4 MiB for each version.
const FILES_AT_ONCE: usize = 4;

/// The bytes of each layer that the cache has.
pub(super) struct Resident(HashMap<LayerKey, u64>);

/// A kit to compare.
pub(super) struct Side {
    pub(super) kit: Arc<LoadedKit>,
    /// The reference as the user typed it.
    pub(super) reference: String,
    layers: Vec<LayerFiles>,
}

impl Resident {
    /// Notes the bytes that the cache has at this moment.
    ///
    /// # Errors
    /// When the cache folder cannot be read.
    pub(super) async fn now(cache: &Arc<Cache>) -> Result<Self, Failure> {
        let cache = cache.clone();
        let layers = spawn_blocking(move || cache.layers()).await.map_err(panicked)??;
        Ok(Self(layers.into_iter().map(|layer| (layer.key, layer.resident_bytes)).collect()))
    }

    /// The bytes that a reader of all of a layer would fetch.
    fn missing_bytes(&self, layer: &Layer) -> u64 {
        let resident_bytes = self.0.get(&layer.key()).copied().unwrap_or(0);
        let stream_bytes = layer.contents().layout.stream_bytes();
        match layer.key().encoding.is_compressed() {
            // A compressed layer comes as a whole.
            true if resident_bytes < stream_bytes => layer.blob_bytes(),
            true => 0,
            false => stream_bytes.saturating_sub(resident_bytes),
        }
    }
}

impl Side {
    /// Looks up the known digests of the kit's files. Returns warnings too.
    pub(super) async fn new(
        cache: &Arc<Cache>,
        kit: Arc<LoadedKit>,
        reference: String,
    ) -> Result<(Self, Vec<String>), Failure> {
        let (cache, its) = (cache.clone(), kit.clone());
        let known = spawn_blocking(move || layer_files(&cache, &its)).await.map_err(panicked)?;
        let mut warnings = kit.all_warnings();
        warnings.extend(known.1);
        let warnings = warnings.into_iter().map(|warning| format!("{reference}: {warning}"));
        let warnings = warnings.collect();
        Ok((Self { kit, reference, layers: known.0 }, warnings))
    }

    fn version(&self) -> Version<'_> {
        Version { tree: &self.kit.tree, layers: &self.layers }
    }

    /// The node at a path, if the kit has it.
    fn find(&self, path: &RawPath) -> Result<Option<NodeId>, Failure> {
        match paths::resolve(&self.kit.tree, path, LastLink::Keep) {
            Ok(node) => Ok(Some(node)),
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn path(&self, node: NodeId) -> RawPath {
        RawPath(self.kit.tree.path(node))
    }

    fn named(&self) -> ComparedVersion {
        let (reference, digest) = (self.reference.clone(), self.kit.manifest.to_string());
        ComparedVersion { reference, digest }
    }

    fn file(&self, node: NodeId) -> ComparedFile {
        let tree = &self.kit.tree;
        let kind = match tree.kind(node) {
            NodeKind::Directory => EntryKind::Directory,
            NodeKind::File(_) => EntryKind::File,
            NodeKind::Symlink(target) => EntryKind::Symlink(RawPath(target.to_vec())),
        };
        let size = if kind == EntryKind::File { tree.size(node) } else { 0 };
        let digest = self.version().digest(node);
        ComparedFile {
            kind,
            size,
            mode: tree.mode(node),
            mtime_seconds: tree.mtime(node).seconds().into(),
            digest: digest.map(|known| known.digest.to_string()),
            digest_claimed: digest.is_some_and(|known| known.is_claimed),
        }
    }
}

/// Compares the files at and below `path`, and all layers. With `content`, the bytes of files decide where
/// nothing else does; `progress` is called for each of them. `resident` is the state before the kits were opened.
///
/// # Errors
/// When neither kit has the path, or bytes of a file cannot be fetched.
pub(super) async fn compare(
    before: &Side,
    after: &Side,
    path: &RawPath,
    content: bool,
    resident: &Resident,
    progress: &(dyn Fn(PassProgress) + Send + Sync),
) -> Result<Comparison, Failure> {
    let at = (before.find(path)?, after.find(path)?);
    if at == (None, None) {
        let shown = String::from_utf8_lossy(&path.0);
        let message = format!("`{shown}` is in neither of the kits; `kitfs ls` shows what is");
        return Err(Failure::new(FailureKind::NotFound, message));
    }
    let mut compared = compare::compare(before.version(), after.version(), at);
    let missing = missing(before, after, &compared.changes);
    if content {
        let same = settle(before, after, &mut compared.changes, progress).await?;
        compared.same += same;
    }
    let changes = compared.changes.iter().map(|change| file_change(before, after, change));
    Ok(Comparison {
        before: before.named(),
        after: after.named(),
        changes: changes.collect(),
        same_files: compared.same,
        claimed_same_files: compared.claimed_same,
        layers: layers(&before.kit, &after.kit, resident),
        switch: switch(&before.kit, &after.kit, resident),
        warnings: Vec::new(),
        missing,
    })
}

/// The paths that a data set has in one of the kits without its content.
fn missing(before: &Side, after: &Side, changes: &[Change]) -> Vec<RawPath> {
    let missing = changes.iter().filter_map(|change| {
        let of = |side: &Side, node: Option<NodeId>| {
            let node = node.filter(|&node| side.kit.tree.missing(node).is_some())?;
            Some(side.path(node))
        };
        of(after, change.after).or_else(|| of(before, change.before))
    });
    missing.collect()
}

fn file_change(before: &Side, after: &Side, change: &Change) -> FileChange {
    let (old, new) = (change.before, change.after);
    let kind = match change.kind {
        ChangeKind::Added => FileChangeKind::Added,
        ChangeKind::Removed => FileChangeKind::Removed,
        ChangeKind::Changed => FileChangeKind::Changed,
        ChangeKind::Renamed => FileChangeKind::Renamed,
        ChangeKind::Mode => FileChangeKind::Mode,
        ChangeKind::Maybe => FileChangeKind::Maybe,
    };
    let from = old.map(|node| before.path(node));
    let path = new.map(|node| after.path(node)).or_else(|| from.clone()).unwrap_or_default();
    FileChange {
        kind,
        path,
        from: from.filter(|_| kind == FileChangeKind::Renamed),
        before: old.map(|node| before.file(node)),
        after: new.map(|node| after.file(node)),
        claimed: change.is_claimed,
    }
}

/// Decides about files by their bytes. Returns the number of those that are the same.
async fn settle(
    before: &Side,
    after: &Side,
    changes: &mut Vec<Change>,
    progress: &(dyn Fn(PassProgress) + Send + Sync),
) -> Result<u64, Failure> {
    let open = |change: &Change| match (change.kind, change.before, change.after) {
        (ChangeKind::Maybe, Some(old), Some(new)) => {
            let is_there =
                before.kit.tree.missing(old).is_none() && after.kit.tree.missing(new).is_none();
            is_there.then_some((old, new))
        }
        _ => None,
    };
    let pairs: Vec<(NodeId, NodeId)> = changes.iter().filter_map(open).collect();
    let sizes = pairs.iter().map(|(_, new)| after.kit.tree.size(*new));
    let total_bytes = sizes.fold(0, u64::saturating_add);
    let passed = AtomicU64::new(0);
    let tell = |bytes| {
        let passed_bytes = passed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        progress(PassProgress { passed_bytes, total_bytes });
    };
    let verdicts: Vec<_> = pairs
        .iter()
        .map(|&(old, new)| {
            let (tell, one, other) = (&tell, before.kit.clone(), after.kit.clone());
            async move {
                let one = reading::open(one, &[before.path(old)])?;
                let other = reading::open(other, &[after.path(new)])?;
                Ok::<_, Failure>(((old, new), is_equal(one, other, tell).await?))
            }
        })
        .collect();
    let verdicts = stream::iter(verdicts).buffer_unordered(FILES_AT_ONCE);
    let verdicts: HashMap<(NodeId, NodeId), bool> = verdicts.try_collect().await?;
    let mut same = 0;
    changes.retain_mut(|change| {
        let Some(pair) = open(change) else { return true };
        let has_mode = before.kit.tree.mode(pair.0) == after.kit.tree.mode(pair.1);
        match verdicts.get(&pair) {
            Some(true) if has_mode => {
                same += 1;
                false
            }
            Some(true) => {
                change.kind = ChangeKind::Mode;
                true
            }
            Some(false) => {
                change.kind = ChangeKind::Changed;
                true
            }
            None => true,
        }
    });
    Ok(same)
}

/// Whether two streams have the same bytes. Reads equal streams to their ends, where wrong digests show.
async fn is_equal(
    mut one: ByteStream,
    mut other: ByteStream,
    tell: &(dyn Fn(u64) + Send + Sync),
) -> Result<bool, Failure> {
    let (mut left, mut right) = (Bytes::new(), Bytes::new());
    loop {
        if left.is_empty() {
            left = one.next().await.transpose()?.unwrap_or_default();
        }
        if right.is_empty() {
            right = other.next().await.transpose()?.unwrap_or_default();
        }
        let length = left.len().min(right.len());
        if length == 0 || left[..length] != right[..length] {
            return Ok(left.is_empty() && right.is_empty());
        }
        left.advance(length);
        right.advance(length);
        tell(length as u64);
    }
}

fn layers(before: &LoadedKit, after: &LoadedKit, resident: &Resident) -> Vec<LayerChange> {
    let keys = |kit: &LoadedKit| kit.layers.iter().map(|layer| layer.key()).collect::<HashSet<_>>();
    let (old, new) = (keys(before), keys(after));
    let change = |kind, layer: &Layer, name: &String| LayerChange {
        kind,
        digest: layer.key().digest.to_string(),
        name: name.clone(),
        blob_bytes: layer.blob_bytes(),
        missing_bytes: match kind {
            LayerChangeKind::Removed => 0,
            LayerChangeKind::Same | LayerChangeKind::Added => resident.missing_bytes(layer),
        },
    };
    let mut layers = Vec::new();
    for (layer, name) in after.layers.iter().zip(&after.titles) {
        let kind = match old.contains(&layer.key()) {
            true => LayerChangeKind::Same,
            false => LayerChangeKind::Added,
        };
        layers.push(change(kind, layer, name));
    }
    for (layer, name) in before.layers.iter().zip(&before.titles) {
        if !new.contains(&layer.key()) {
            layers.push(change(LayerChangeKind::Removed, layer, name));
        }
    }
    layers
}

fn switch(before: &LoadedKit, after: &LoadedKit, resident: &Resident) -> Switch {
    let old: HashSet<LayerKey> = before.layers.iter().map(|layer| layer.key()).collect();
    let sum = |bytes: &dyn Fn(&Layer) -> u64| {
        after.layers.iter().map(|layer| bytes(layer)).fold(0, u64::saturating_add)
    };
    let now = Resident(after.layers.iter().map(|it| (it.key(), it.resident_bytes())).collect());
    let missing_bytes = sum(&|layer| resident.missing_bytes(layer));
    Switch {
        new_bytes: sum(&|layer| match old.contains(&layer.key()) {
            true => 0,
            false => layer.blob_bytes(),
        }),
        missing_bytes,
        fetched_bytes: missing_bytes.saturating_sub(sum(&|layer| now.missing_bytes(layer))),
    }
}
