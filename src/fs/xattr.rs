//! Extended attributes: where bytes come from, and how far they can be trusted.
//!
//! | name | root | file | other |
//! |---|---|---|---|
//! | `user.kitfs.reference`  | the reference as typed | | |
//! | `user.kitfs.digest`     | the manifest's digest | | |
//! | `user.kitfs.layer`      | | the layer's digest | |
//! | `user.kitfs.media_type` | | the layer's media type | |
//! | `user.kitfs.state`      | the worst of all layers | of its layer | |
//!
//! The Kitfile lies in no layer and has none of them. The state is read anew each time: it moves
//! from `unconfirmed` to `confirmed` while a mount is used.

use super::kit::{LoadedKit, State};
use crate::kit::{Content, NodeId, NodeKind, Tree};

const REFERENCE: &str = "user.kitfs.reference";
const DIGEST: &str = "user.kitfs.digest";
const LAYER: &str = "user.kitfs.layer";
const MEDIA_TYPE: &str = "user.kitfs.media_type";
const STATE: &str = "user.kitfs.state";

/// The names of a node's attributes.
pub(super) fn names(kit: &LoadedKit, node: NodeId) -> &'static [&'static str] {
    match layer_of(kit, node) {
        Some(_) => &[LAYER, MEDIA_TYPE, STATE],
        None if node == Tree::ROOT => &[REFERENCE, DIGEST, STATE],
        None => &[],
    }
}

/// The value of one attribute; `None` where the node does not have it.
pub(super) fn value(kit: &LoadedKit, node: NodeId, name: &[u8]) -> Option<String> {
    let name = names(kit, node).iter().find(|known| known.as_bytes() == name)?;
    let layer = layer_of(kit, node);
    let value = match (*name, layer) {
        (REFERENCE, _) => kit.origin.to_string(),
        (DIGEST, _) => kit.manifest.to_string(),
        (LAYER, Some(layer)) => kit.layers[layer].key().digest.to_string(),
        (MEDIA_TYPE, Some(layer)) => kit.media_types[layer].clone(),
        (STATE, Some(layer)) => State::from(kit.layers[layer].state()).as_str().to_owned(),
        (STATE, None) => kit.state().as_str().to_owned(),
        _ => return None,
    };
    Some(value)
}

fn layer_of(kit: &LoadedKit, node: NodeId) -> Option<usize> {
    match kit.tree.kind(node) {
        NodeKind::File(Content::Extent { layer, .. }) => Some(*layer as usize),
        NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
    }
}
