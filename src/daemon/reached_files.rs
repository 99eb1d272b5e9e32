//! The file that the download of a layer has reached, for progress bars.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::fetch::Layer;
use crate::fs::LoadedKit;
use crate::kit::{Content, NodeId, NodeKind, Tree};
use crate::layer::StreamOffset;

/// The most files of a kit that progress names. 65,536: the names of more files pass too fast to be read, and the table
/// of so many takes 1 MiB.
const MOST_FILES: usize = 1 << 16;

/// The files of a kit by layer and by the place of their bytes.
pub(super) struct ReachedFiles<'a> {
    kit: &'a LoadedKit,
    by_layer: BTreeMap<u32, Vec<(StreamOffset, NodeId)>>,
}

impl<'a> ReachedFiles<'a> {
    /// Empty for a kit of too many files.
    pub(super) fn of(kit: &'a LoadedKit) -> Self {
        Self { kit, by_layer: by_layer(&kit.tree) }
    }

    /// The path of the file with the byte at `at` of a layer, or of the file before it.
    pub(super) fn name(&self, layer: &Layer, at: StreamOffset) -> Option<Vec<u8>> {
        let index = self.kit.layers.iter().position(|it| it.key() == layer.key())?;
        let files = self.by_layer.get(&u32::try_from(index).ok()?)?;
        last_before(files, at).map(|node| self.kit.tree.path(node))
    }
}

fn by_layer(tree: &Tree) -> BTreeMap<u32, Vec<(StreamOffset, NodeId)>> {
    let mut found: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    let (mut count, mut open) = (0, vec![Tree::ROOT]);
    while let Some(node) = open.pop() {
        match tree.kind(node) {
            NodeKind::Directory => open.extend(tree.children(node).map(NodeId)),
            NodeKind::File(Content::Stored { layer, extents }) if extents.stored_bytes() > 0 => {
                count += 1;
                if count > MOST_FILES {
                    return BTreeMap::new();
                }
                found.entry(*layer).or_default().push((extents.stored().start, node));
            }
            NodeKind::File(_) | NodeKind::Symlink(_) => {}
        }
    }
    found.values_mut().for_each(|files| files.sort_unstable_by_key(|(start, _)| *start));
    found
}

/// The last file that begins at or before `at`; the first file for a byte before all of them.
fn last_before(files: &[(StreamOffset, NodeId)], at: StreamOffset) -> Option<NodeId> {
    let after = files.partition_point(|(start, _)| *start <= at);
    files.get(after.saturating_sub(1)).map(|(_, node)| *node)
}

/// The place of the byte that comes after `done_bytes` bytes of these ranges, which come in order.
pub(super) fn place_after(ranges: &[Range<StreamOffset>], done_bytes: u64) -> StreamOffset {
    let mut left = done_bytes;
    for range in ranges {
        let bytes = range.end - range.start;
        if left < bytes {
            return range.start + left;
        }
        left -= bytes;
    }
    ranges.last().map_or(StreamOffset(0), |range| range.end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_place_is_that_of_the_next_wanted_byte(
            gaps in proptest::collection::vec((0..20u64, 1..20u64), 1..8),
            done in 0..200u64,
        ) {
            let (mut at, mut ranges, mut wanted) = (0, Vec::new(), Vec::new());
            for (gap, bytes) in gaps {
                at += gap;
                ranges.push(StreamOffset(at)..StreamOffset(at + bytes));
                wanted.extend(at..at + bytes);
                at += bytes;
            }
            let expected = wanted.get(usize::try_from(done).unwrap()).copied().unwrap_or(at);
            prop_assert_eq!(place_after(&ranges, done), StreamOffset(expected));
        }

        #[test]
        fn the_file_is_the_last_that_begins_before_the_place(
            sizes in proptest::collection::vec(1..20u64, 1..8),
            head in 0..5u64,
            at in 0..200u64,
        ) {
            // A header lies before each file.
            let (mut start, mut files) = (head, Vec::new());
            for (number, bytes) in sizes.iter().enumerate() {
                files.push((StreamOffset(start), NodeId(u32::try_from(number).unwrap())));
                start += bytes + head;
            }
            let found = last_before(&files, StreamOffset(at)).unwrap();
            let expected = files.iter().filter(|(start, _)| start.get() <= at).count().max(1) - 1;
            prop_assert_eq!(found, files[expected].1);
            prop_assert_eq!(last_before(&[], StreamOffset(at)), None);
        }
    }
}
