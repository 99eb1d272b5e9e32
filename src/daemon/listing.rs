//! The entries of a kit's tree, as `kitfs ls` and `kitfs cp` ask for them.

use std::sync::Arc;

use super::paths::{self, LastLink};
use crate::control::api::{Entry, EntryKind, Failure, ListRequest, Listing, RawPath};
use crate::fs::LoadedKit;
use crate::kit::{Content, NodeId, NodeKind, Tree};

/// Answers a [`ListRequest`] about a loaded kit.
pub(super) fn list(kit: &Arc<LoadedKit>, request: &ListRequest) -> Result<Listing, Failure> {
    let tree = &kit.tree;
    let node = paths::find(kit, &request.path, LastLink::Keep)?;
    if matches!(tree.kind(node), NodeKind::Directory) {
        paths::check_is_there(tree, node)?;
    }
    let below = match request.recursive {
        true => descendants(tree, node),
        false => tree.children(node).map(NodeId).collect(),
    };
    Ok(Listing {
        entry: entry(tree, node),
        below: below.into_iter().map(|node| entry(tree, node)).collect(),
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

fn entry(tree: &Tree, node: NodeId) -> Entry {
    let (kind, size) = match tree.kind(node) {
        NodeKind::Directory => (EntryKind::Directory, 0),
        NodeKind::File(_) => (EntryKind::File, tree.size(node)),
        NodeKind::Symlink(target) => (EntryKind::Symlink(RawPath(target.to_vec())), 0),
    };
    let layer = match tree.kind(node) {
        NodeKind::File(Content::Stored { layer, .. }) => Some(*layer),
        NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
    };
    Entry {
        path: RawPath(tree.path(node)),
        kind,
        mode: tree.mode(node),
        size,
        mtime_seconds: tree.mtime(node).seconds().into(),
        layer,
        missing: tree.missing(node).map(str::to_owned),
    }
}
