//! The places of a layer's bytes while its table of contents is still growing.
//!
//! The final layout depends on the whole table. But the place of a byte is known as soon as the header before it:
//! big members have files of their own, and all other bytes are in `stream`. So bytes are written once, at their
//! final place.

use std::ops::Range;
use std::sync::Arc;

use super::{FetchError, off_the_runtime};
use crate::cache::{CacheError, Contents, LayerStore, Stage};
use crate::layer::layout::BIG_MEMBER_BYTES;
use crate::layer::{CacheFile, Extents, Member, RangeSet, StreamOffset, Toc};

/// Begins to stage a layer. It runs off the runtime's threads, because it may wait until an abandoned pass releases
/// the stage.
pub(super) async fn begin(store: &Arc<LayerStore>) -> Result<Stage, FetchError> {
    let store = store.clone();
    Ok(off_the_runtime(move || store.stage()).await?)
}

/// Makes the contents of an uncompressed layer final. It runs off the runtime's threads, because it syncs files.
pub(super) async fn finish(
    stage: Stage,
    toc: Toc,
    covered: RangeSet,
) -> Result<Arc<Contents>, FetchError> {
    Ok(off_the_runtime(move || stage.finish(toc, &covered, None)).await?)
}

/// A [`Stage`] that knows the big members so far, and which bytes it keeps.
///
/// A raw layer has no header with the length of its file, and the place of the bytes depends on the length. So
/// `head` holds the first bytes (less than [`BIG_MEMBER_BYTES`]) until the file is complete or known to be big.
pub(super) struct Staging {
    stage: Stage,
    big: Vec<(Range<StreamOffset>, u32)>,
    members_seen: usize,
    covered: RangeSet,
    head: Option<Vec<u8>>,
}

impl Staging {
    pub(super) fn new(stage: Stage) -> Self {
        Self { stage, big: Vec::new(), members_seen: 0, covered: RangeSet::new(), head: None }
    }

    /// For a raw layer. Its bytes must be written in order, from the first to the last.
    pub(super) fn raw(stage: Stage) -> Self {
        Self { head: Some(Vec::new()), ..Self::new(stage) }
    }

    /// Adds members that were found since the last call.
    pub(super) fn learn(&mut self, members: &[Member]) {
        for (index, member) in members.iter().enumerate().skip(self.members_seen) {
            let Some(range) = member.kind.extents().map(Extents::stored) else { continue };
            let is_new = self.big.last().is_none_or(|(last, _)| range.start >= last.end);
            if is_new && range.end - range.start >= BIG_MEMBER_BYTES {
                self.big.push((range, index as u32));
            }
        }
        self.members_seen = members.len();
    }

    /// Writes bytes of the stream to their files, as far as the cache can keep them. All headers before
    /// `at + bytes.len()` that are complete must have been learnt.
    pub(super) fn write(&mut self, at: StreamOffset, bytes: &[u8]) -> Result<(), CacheError> {
        let Some(mut head) = self.head.take() else { return self.place_all(at, bytes) };
        debug_assert_eq!(at.get(), head.len() as u64, "a raw layer is written in order");
        head.extend_from_slice(bytes);
        if (head.len() as u64) < BIG_MEMBER_BYTES {
            self.head = Some(head);
            return Ok(());
        }
        self.big.push((StreamOffset(0)..StreamOffset(u64::MAX), 0));
        self.place_all(StreamOffset(0), &head)
    }

    fn place_all(&mut self, at: StreamOffset, bytes: &[u8]) -> Result<(), CacheError> {
        let end = at + bytes.len() as u64;
        let mut from = at;
        while from < end {
            let (file, file_offset, to) = self.place(from, end);
            let piece = &bytes[(from - at) as usize..(to - at) as usize];
            if self.stage.write(file, file_offset, piece)? {
                self.covered.insert(from.get()..to.get());
            }
            from = to;
        }
        Ok(())
    }

    /// The file for the byte at `from`, its offset there, and where the next file starts.
    fn place(&self, from: StreamOffset, end: StreamOffset) -> (CacheFile, u64, StreamOffset) {
        let next = self.big.partition_point(|(range, _)| range.end <= from);
        match self.big.get(next) {
            Some((range, index)) if range.start <= from => {
                (CacheFile::Member(*index), from - range.start, end.min(range.end))
            }
            Some((range, _)) => (CacheFile::Stream, from.get(), end.min(range.start)),
            None => (CacheFile::Stream, from.get(), end),
        }
    }

    /// Drops all staged bytes, the compressed ones too.
    pub(super) fn restart(&mut self) -> Result<(), CacheError> {
        self.stage.restart()?;
        self.big.clear();
        self.members_seen = 0;
        self.covered = RangeSet::new();
        self.head = self.head.take().map(|_| Vec::new());
        Ok(())
    }

    pub(super) fn stage(&mut self) -> &mut Stage {
        &mut self.stage
    }

    /// The stage and the bytes that it keeps, after the last byte.
    pub(super) fn into_parts(mut self) -> Result<(Stage, RangeSet), CacheError> {
        if let Some(head) = self.head.take() {
            self.place_all(StreamOffset(0), &head)?;
        }
        Ok((self.stage, self.covered))
    }
}
