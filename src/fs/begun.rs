//! The files of a kit that readers have begun, and the ranges that complete them.
//!
//! ```text
//! FileSystem::read --chunks--> ReadChunks --> begun_ranges (pure) --> ranges to fetch in the background
//! ```
//!
//! - A file is begun when readers have read half of its chunks or more. Then the rest of the file is
//!   wanted. So completing the file at most doubles the bytes that were read.
//! - Small files share chunks with their neighbours. A shared chunk of which any byte was read is
//!   wanted as a whole.
//! - When all files of a layer are wanted, the bytes between them (headers, padding) are wanted too:
//!   only a complete layer can be compared with its digest.
//!
//! The unit is the chunk, because a read fetches whole chunks. One bit for each chunk is the only
//! state.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::kit::LoadedKit;
use crate::kit::{Content, NodeId, NodeKind};
use crate::layer::layout::Layout;
use crate::layer::{CacheFile, ChunkId, RangeSet, StreamOffset};

/// Bits in a word of [`Bits`].
const WORD_BITS: u32 = u64::BITS;

/// The chunks of each layer of a mount that readers have read.
pub(super) struct ReadChunks {
    layers: Vec<OnceLock<Bits>>,
    /// Notified when a chunk is read for the first time.
    changed: Notify,
}

/// A bit for each chunk of a layer.
struct Bits(Box<[AtomicU64]>);

impl ReadChunks {
    /// An empty set for each of `layers` layers.
    pub(super) fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| OnceLock::new()).collect(), changed: Notify::new() }
    }

    /// Marks the chunks of a range of a layer as read.
    pub(super) fn note(&self, layer: u32, layout: &Layout, stored: Range<StreamOffset>) {
        let bits = self.layers[layer as usize].get_or_init(|| Bits::new(layout.chunks()));
        let mut is_new = false;
        for chunk in layout.chunks_of(stored) {
            is_new |= bits.set(chunk);
        }
        if is_new {
            self.changed.notify_one();
        }
    }

    /// Waits until a chunk is read for the first time. Returns at once if that happened since the
    /// last call. For one waiting task.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whether readers have read bytes of a chunk.
    pub(super) fn has(&self, layer: u32, chunk: u32) -> bool {
        self.layers[layer as usize].get().is_some_and(|bits| bits.is_set(chunk))
    }

    /// The bytes that readers have read, by layer.
    pub(super) fn read(&self, kit: &LoadedKit) -> Vec<(u32, RangeSet)> {
        let read = self.layers.iter().enumerate().filter_map(|(at, bits)| Some((at, bits.get()?)));
        let ranges = read.map(|(at, bits)| {
            let layout = &kit.layers[at].contents().layout;
            let mut ranges = RangeSet::new();
            for chunk in (0..layout.chunks()).filter(|&chunk| bits.is_set(chunk)) {
                let range = layout.chunk_range(chunk..chunk + 1);
                ranges.insert(range.start.get()..range.end.get());
            }
            (at as u32, ranges)
        });
        ranges.collect()
    }

    /// The ranges that complete the begun files, by layer. Layers without such ranges are left out.
    pub(super) fn begun(&self, kit: &LoadedKit) -> Vec<(u32, Vec<Range<StreamOffset>>)> {
        let mut files: Vec<Vec<Range<StreamOffset>>> = vec![Vec::new(); self.layers.len()];
        for node in (0..kit.tree.len()).map(NodeId) {
            if let NodeKind::File(Content::Stored { layer, extents }) = kit.tree.kind(node)
                && self.layers[*layer as usize].get().is_some()
            {
                files[*layer as usize].push(extents.stored());
            }
        }
        let read = self.layers.iter().enumerate().filter_map(|(at, bits)| Some((at, bits.get()?)));
        let wanted = read.map(|(at, bits)| {
            let layout = &kit.layers[at].contents().layout;
            (at as u32, begun_ranges(layout, &files[at], |chunk| bits.is_set(chunk)))
        });
        wanted.filter(|(_, ranges)| !ranges.is_empty()).collect()
    }
}

impl Bits {
    fn new(chunks: u32) -> Self {
        Self((0..chunks.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Sets a bit; returns `true` if the bit was clear.
    fn set(&self, chunk: u32) -> bool {
        let (word, bit) = (&self.0[(chunk / WORD_BITS) as usize], 1 << (chunk % WORD_BITS));
        // Most reads are of chunks that were read before. A load does not take the cache line from
        // other cores, as a write would.
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn is_set(&self, chunk: u32) -> bool {
        let word = self.0[(chunk / WORD_BITS) as usize].load(Ordering::Relaxed);
        word & 1 << (chunk % WORD_BITS) != 0
    }
}

/// The ranges that complete the begun files of a layer: in order, and apart from one another.
///
/// `files` are the stored ranges of the layer's files, in any order. Several files may share a range.
fn begun_ranges(
    layout: &Layout,
    files: &[Range<StreamOffset>],
    is_read: impl Fn(u32) -> bool,
) -> Vec<Range<StreamOffset>> {
    let mut wanted = RangeSet::new();
    let mut are_all_wanted = true;
    let mut is_any_read = false;
    for file in files.iter().filter(|file| !file.is_empty()) {
        let chunks = layout.chunks_of(file.clone());
        let read = chunks.clone().filter(|&chunk| is_read(chunk)).count();
        is_any_read |= read > 0;
        if 2 * read >= chunks.len() {
            wanted.insert(chunks.start.into()..chunks.end.into());
            continue;
        }
        are_all_wanted = false;
        for chunk in chunks.filter(|&chunk| is_read(chunk) && is_shared(layout, chunk)) {
            wanted.insert(chunk.into()..u64::from(chunk) + 1);
        }
    }
    if are_all_wanted && is_any_read {
        return vec![layout.stream()];
    }
    // Chunk numbers come from the layout, so they are 32 bits long.
    wanted.iter().map(|chunks| layout.chunk_range(chunks.start as u32..chunks.end as u32)).collect()
}

/// `true` if a chunk may hold bytes of several files.
fn is_shared(layout: &Layout, chunk: u32) -> bool {
    layout.chunk(ChunkId(chunk)).file == CacheFile::Stream
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::layer::layout::{BIG_MEMBER_BYTES, CHUNK_BYTES};
    use crate::layer::{Extents, Member, MemberKind, Toc};

    /// A layer of files of these sizes, as kit packs them, and the files' ranges.
    fn layer(sizes: &[u64]) -> (Layout, Vec<Range<StreamOffset>>) {
        let (mut at, mut members, mut files) = (StreamOffset(0), Vec::new(), Vec::new());
        for &size in sizes {
            let stored = at + 512..at + 512 + size;
            at = StreamOffset((at + 512 + size).get().next_multiple_of(512));
            let kind = MemberKind::File(Extents::contiguous(stored.clone()));
            members.push(Member { path: None, kind, mode: 0o644, mtime: None, is_replaced: false });
            files.push(stored);
        }
        let toc = Toc { members, stream_bytes: at.get() + 1024, warnings: Vec::new() };
        (Layout::new(&toc).unwrap(), files)
    }

    /// The chunks that are wanted after a reader has read some bytes of some files.
    fn wanted(
        layout: &Layout,
        files: &[Range<StreamOffset>],
        read: &BTreeSet<u32>,
    ) -> BTreeSet<u32> {
        let ranges = begun_ranges(layout, files, |chunk| read.contains(&chunk));
        ranges.into_iter().flat_map(|range| layout.chunks_of(range)).collect()
    }

    #[test]
    fn a_look_at_the_head_of_large_files_wants_nothing_more() {
        let (layout, files) = layer(&[40 << 20, 3000, 40 << 20, 5000]);
        // `head` of both large files, and both small ones.
        let mut read = BTreeSet::new();
        for file in &files {
            read.extend(layout.chunks_of(file.start..file.start + 3000));
        }
        let wanted = wanted(&layout, &files, &read);
        assert!(wanted.is_subset(&read), "{wanted:?} {read:?}");
    }

    #[test]
    fn a_file_of_which_half_was_read_is_wanted_and_its_neighbour_is_not() {
        let (layout, files) = layer(&[40 << 20, 40 << 20]);
        let part = |share: u64| {
            layout.chunks_of(files[0].start..files[0].start + (40 << 20) / 100 * share)
        };
        assert!(wanted(&layout, &files, &part(40).collect()).is_empty());
        let whole: BTreeSet<u32> = layout.chunks_of(files[0].clone()).collect();
        assert_eq!(wanted(&layout, &files, &part(51).collect()), whole);
    }

    #[test]
    fn a_layer_all_of_whose_files_are_wanted_is_wanted_with_what_lies_between() {
        let (layout, files) = layer(&[3 << 20, 100, 3 << 20]);
        let mut read: BTreeSet<u32> =
            files.iter().flat_map(|file| layout.chunks_of(file.clone())).collect();
        assert_eq!(begun_ranges(&layout, &files, |chunk| read.contains(&chunk)), [layout.stream()]);
        read.clear();
        assert!(begun_ranges(&layout, &files, |chunk| read.contains(&chunk)).is_empty());
        let none = begun_ranges(&layout, &[], |_| true);
        assert!(none.is_empty(), "a layer without files");
    }

    proptest! {
        #[test]
        fn wanted_ranges_follow_from_the_chunks_that_were_read(
            sizes in prop::collection::vec(prop_oneof![0..3000u64, 0..4_000_000u64], 1..12),
            reads in prop::collection::vec((0..12usize, 0.0..1.0f64, 0.0..1.0f64), 0..16),
        ) {
            let (layout, files) = layer(&sizes);
            let mut read = BTreeSet::new();
            let mut before = BTreeSet::new();
            for (file, from, length) in reads {
                let file = &files[file % files.len()];
                let size = file.end - file.start;
                let from = (size as f64 * from) as u64;
                let end = from + ((size - from) as f64 * length) as u64;
                read.extend(layout.chunks_of(file.start + from..file.start + end));
                let ranges = begun_ranges(&layout, &files, |chunk| read.contains(&chunk));
                prop_assert!(ranges.is_sorted_by(|one, other| one.end < other.start));
                let now = wanted(&layout, &files, &read);
                prop_assert!(before.is_subset(&now), "more reads want more");
                before = now;
            }
            let wanted = before;
            let is_whole = wanted.len() == layout.chunks() as usize;
            if read.is_empty() {
                prop_assert!(wanted.is_empty());
            } else if !is_whole {
                // A chunk counts for the file that ends in it and for the file that begins in it.
                // Each of the two files is at most doubled.
                prop_assert!(wanted.len() <= 3 * read.len(), "{wanted:?} of {read:?}");
            }
            for (file, size) in files.iter().zip(&sizes) {
                let chunks: Vec<u32> = layout.chunks_of(file.clone()).collect();
                let count = chunks.iter().filter(|chunk| read.contains(chunk)).count();
                if count > 0 && 2 * count >= chunks.len() {
                    prop_assert!(chunks.iter().all(|chunk| wanted.contains(chunk)));
                } else if *size >= BIG_MEMBER_BYTES && !is_whole {
                    prop_assert!(!chunks.iter().any(|chunk| wanted.contains(chunk)), "{size}");
                }
            }
            prop_assert!(u64::from(layout.chunks()) * CHUNK_BYTES >= layout.stream_bytes());
        }

        #[test]
        fn bits_are_set_once(chunks in prop::collection::vec(0..200u32, 0..300)) {
            let (bits, mut seen) = (Bits::new(200), BTreeSet::new());
            for chunk in chunks {
                prop_assert_eq!(bits.set(chunk), seen.insert(chunk));
            }
            prop_assert!((0..200).all(|chunk| bits.is_set(chunk) == seen.contains(&chunk)));
        }
    }
}
