//! The files that contain given bytes of a layer.
//!
//! Several files may share bytes (hard links, a layer that is in the kit twice), and padding belongs to none.

use std::ops::Range;

use super::attributes::Ino;
use super::file_system::FileSystem;
use crate::cache::LayerKey;
use crate::kit::{Content, NodeId, NodeKind};
use crate::layer::{RangeSet, StreamOffset};

impl FileSystem {
    /// All files with bytes of a layer, and all of these bytes. Looks at every file of the kit.
    pub(super) fn all_files(&self) -> Vec<(Ino, Range<u64>)> {
        let tree = &self.kit().tree;
        let files = (0..tree.len()).map(NodeId).filter_map(|node| match tree.kind(node) {
            NodeKind::File(Content::Stored { extents, .. }) => {
                Some((Ino::of(node), 0..extents.bytes()))
            }
            NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
        });
        files.filter(|(_, bytes)| !bytes.is_empty()).collect()
    }

    /// The files with bytes of `ranges` of a layer's stream, and their parts with these bytes. Looks at
    /// every file of the kit.
    pub fn sharers(&self, layer: LayerKey, ranges: &RangeSet) -> Vec<(Ino, Range<u64>)> {
        let kit = self.kit();
        let is_meant: Vec<bool> = kit.layers.iter().map(|own| own.key() == layer).collect();
        let mut sharers = Vec::new();
        for node in (0..kit.tree.len()).map(NodeId) {
            let NodeKind::File(Content::Stored { layer, extents }) = kit.tree.kind(node) else {
                continue;
            };
            if !is_meant[*layer as usize] {
                continue;
            }
            let stored = extents.stored();
            let shared = ranges.intersections(stored.start.get()..stored.end.get());
            let parts = shared
                .map(|part| extents.file_of(StreamOffset(part.start)..StreamOffset(part.end)));
            let parts = parts.filter(|part| !part.is_empty());
            sharers.extend(parts.map(|part| (Ino::of(node), part)));
        }
        sharers
    }
}
