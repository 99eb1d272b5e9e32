//! The entries of a kit's tree, as `kitfs ls` and `kitfs cp` ask for them.

use std::sync::Arc;

use super::paths::{self, LastLink};
use super::upkeep::encoding_name;
use crate::cache::LayerKey;
use crate::control::api::{
    Entry, EntryKind, Failure, FileStat, ListRequest, ListedLayer, Listing, RawPath,
};
use crate::fs::LoadedKit;
use crate::kit::compare::{LayerFiles, Version};
use crate::kit::{Content, NodeId, NodeKind, Tree};
use crate::layer::{Extents, Toc};
use crate::oci::{Digest, Format};

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
        files: Some(files_in(&layer.contents().toc)),
    });
    Ok(Listing {
        entry: entry(tree, node, files),
        below: below.into_iter().map(|node| entry(tree, node, files)).collect(),
        layers: layers.collect(),
        warnings: kit.all_warnings(),
    })
}

/// Looks at a file or directory; `None` for a symlink.
pub(super) fn stat(kit: &LoadedKit, node: NodeId) -> Option<FileStat> {
    let tree = &kit.tree;
    let entry = entry(tree, node, None);
    let (content_id, replacements) = match tree.kind(node) {
        NodeKind::Symlink(_) => return None,
        NodeKind::Directory => (None, 0),
        NodeKind::File(Content::Inline(bytes)) => (Some(Digest::of(bytes).to_string()), 0),
        NodeKind::File(Content::Stored { layer, extents }) => {
            let layer = &kit.layers[*layer as usize];
            let id = content_id(layer.key(), layer.contents().layout.stream_bytes(), extents);
            (Some(id), layer.store().replacements())
        }
    };
    Some(FileStat { entry, content_id, replacements })
}

/// The digest of a file that is a whole layer, else the place of the file in its layer.
///
/// The digests that packers list stay out: nobody has compared them with the bytes, and two files with the same text must
/// have the same bytes.
fn content_id(key: LayerKey, stream_bytes: u64, extents: &Extents) -> String {
    let LayerKey { digest, encoding } = key;
    let (start, bytes) = (extents.stored().start.get(), extents.bytes());
    let is_plain = encoding.format == Format::Raw && !encoding.is_compressed();
    match is_plain && start == 0 && bytes == stream_bytes {
        true => digest.to_string(),
        false => format!("{digest}.{}.{start}.{bytes}", encoding_name(encoding)),
    }
}

/// The files of an archive.
fn files_in(toc: &Toc) -> u64 {
    toc.shown().filter(|member| member.kind.extents().is_some()).count() as u64
}

/// Everything below `root`, parents before children, siblings by name.
pub(super) fn descendants(tree: &Tree, root: NodeId) -> Vec<NodeId> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::StreamOffset;
    use crate::oci::{Compression, Encoding};

    #[test]
    fn the_digest_stands_for_a_file_that_is_a_whole_layer_and_else_its_place() {
        let digest = Digest::of(b"layer");
        let id = |format, compression, range: std::ops::Range<u64>| {
            let key = LayerKey { digest, encoding: Encoding { format, compression } };
            let place = StreamOffset(range.start)..StreamOffset(range.end);
            content_id(key, 10, &Extents::contiguous(place))
        };
        assert_eq!(id(Format::Raw, Compression::None, 0..10), digest.to_string());
        // The digest is that of the compressed bytes; the "digest" of an object is that of its ETag.
        assert_eq!(id(Format::Raw, Compression::Gzip, 0..10), format!("{digest}.raw+gzip.0.10"));
        assert_eq!(id(Format::Object, Compression::None, 0..10), format!("{digest}.object.0.10"));
        assert_eq!(id(Format::Tar, Compression::None, 0..10), format!("{digest}.tar.0.10"));
        assert_eq!(id(Format::Tar, Compression::None, 4..10), format!("{digest}.tar.4.6"));
    }
}
