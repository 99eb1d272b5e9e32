//! Extended attributes: the origin of a file's bytes, and their state of verification.
//!
//! | name | root | file | other |
//! |---|---|---|---|
//! | `user.kitfs.reference`  | the reference as typed | | |
//! | `user.kitfs.digest`     | the manifest's digest | | |
//! | `user.kitfs.layer`      | | the layer's digest | |
//! | `user.kitfs.media_type` | | the layer's media type | |
//! | `user.kitfs.state`      | the worst of all layers | of its layer | |
//!
//! The Kitfile lies in no layer and has no attributes. The state is read anew each time, because a
//! layer moves from `unconfirmed` to `confirmed` while a mount is used.
//!
//! Programs get attributes by name; `listxattr` lists none. `cp -a`, `rsync -X` and an overlay's
//! copy-up copy every listed attribute. A changed copy would then still say `confirmed`.

use super::kit::{LoadedKit, State};
use crate::kit::{Content, NodeId, NodeKind, Tree};

const REFERENCE: &[u8] = b"user.kitfs.reference";
const DIGEST: &[u8] = b"user.kitfs.digest";
const LAYER: &[u8] = b"user.kitfs.layer";
const MEDIA_TYPE: &[u8] = b"user.kitfs.media_type";
const STATE: &[u8] = b"user.kitfs.state";

/// The value of one attribute; `None` where the node does not have it.
pub(super) fn value(kit: &LoadedKit, node: NodeId, name: &[u8]) -> Option<String> {
    let layer = match kit.tree.kind(node) {
        NodeKind::File(Content::Stored { layer, .. }) => Some(*layer as usize),
        NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
    };
    let value = match (name, layer) {
        (LAYER, Some(layer)) => kit.layers[layer].key().digest.to_string(),
        (MEDIA_TYPE, Some(layer)) => kit.media_types[layer].clone(),
        (STATE, Some(layer)) => State::from(kit.layers[layer].state()).as_str().to_owned(),
        (REFERENCE, None) if node == Tree::ROOT => kit.origin.to_string(),
        (DIGEST, None) if node == Tree::ROOT => kit.manifest.to_string(),
        (STATE, None) if node == Tree::ROOT => kit.state().as_str().to_owned(),
        _ => return None,
    };
    Some(value)
}
