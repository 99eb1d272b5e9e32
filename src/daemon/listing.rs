//! The entries of a kit's tree, as `kitfs ls` and `kitfs cp` ask for them.

use std::sync::Arc;

use super::paths::{self, LastLink};
use super::upkeep::encoding_name;
use crate::control::api::{Entry, EntryKind, Failure, ListRequest, ListedLayer, Listing, RawPath};
use crate::fs::LoadedKit;
use crate::kit::compare::{LayerFiles, Version};
use crate::kit::{Content, NodeId, NodeKind, Tree};

/// Answers a [`ListRequest`] about a loaded kit. With `files`, the entries have the digests that are known.
pub(super) fn list(
    kit: &Arc<LoadedKit>,
    request: &ListRequest,
    files: Option<&[LayerFiles]>,
) -> Result<Listing, Failure> {
    let tree = &kit.tree;
    let node = paths::find(kit, &request.path, LastLink::Keep)?;
    if matches!(tree.kind(node), NodeKind::Directory) {
        paths::check_is_there(tree, node)?;
    }
    let below = match request.recursive {
        true => descendants(tree, node),
        false => tree.children(node).map(NodeId).collect(),
    };
    let layers = kit.layers.iter().map(|layer| ListedLayer {
        digest: layer.key().digest.to_string(),
        encoding: encoding_name(layer.key().encoding).to_owned(),
        stream_bytes: layer.contents().layout.stream_bytes(),
    });
    Ok(Listing {
        entry: entry(tree, node, files),
        below: below.into_iter().map(|node| entry(tree, node, files)).collect(),
        layers: layers.collect(),
        warnings: kit.all_warnings(),
    })
}

/// Everything below `root`, parents before children, siblings by name.
fn descendants(tree: &Tree, root: NodeId) -> Vec<NodeId> {
    let mut found = Vec::new();
    let mut pending: Vec<u32> = tree.children(root).rev().collect();
    while let Some(node) = pending.pop() {
        found.push(NodeId(node));
        pending.extend(tree.children(NodeId(node)).rev());
    }
    found
}

fn entry(tree: &Tree, node: NodeId, files: Option<&[LayerFiles]>) -> Entry {
    let (kind, size) = match tree.kind(node) {
        NodeKind::Directory => (EntryKind::Directory, 0),
        NodeKind::File(_) => (EntryKind::File, tree.size(node)),
        NodeKind::Symlink(target) => (EntryKind::Symlink(RawPath(target.to_vec())), 0),
    };
    let layer = match tree.kind(node) {
        NodeKind::File(Content::Stored { layer, .. }) => Some(*layer),
        NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
    };
    let digest = files.and_then(|layers| Version { tree, layers }.digest(node));
    Entry {
        path: RawPath(tree.path(node)),
        kind,
        mode: tree.mode(node),
        size,
        mtime_seconds: tree.mtime(node).seconds().into(),
        layer,
        digest: digest.map(|known| known.digest.to_string()),
        digest_claimed: digest.is_some_and(|known| known.is_claimed),
        missing: tree.missing(node).map(str::to_owned),
    }
}
