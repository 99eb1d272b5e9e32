//! The bytes of a file in the stream of its layer: offsets of the one in offsets of the other.

use std::ops::Range;

use crate::fetch::Layer;
use crate::layer::StreamOffset;
use crate::source::Priority;

/// A file of a layer.
#[derive(Clone, Copy)]
pub(super) struct FileExtent<'a> {
    pub(super) layer: &'a Layer,
    /// Where in the stream the file begins.
    pub(super) start: StreamOffset,
    /// Its length in bytes.
    pub(super) bytes: u64,
}

impl FileExtent<'_> {
    /// Starts to fetch what is missing of a range of the file. Returns the bytes of the file that
    /// nobody fetched before, in order: with the rest of their chunks, as far as it is the file's.
    pub(super) fn prefetch(&self, range: Range<u64>, priority: Priority) -> Vec<Range<u64>> {
        let end = range.end.min(self.bytes);
        let started = self.layer.prefetch(self.start + range.start..self.start + end, priority);
        started.into_iter().map(|range| self.own(range)).filter(|range| !range.is_empty()).collect()
    }

    /// The chunks that hold any byte of `range`, as far as they are the file's.
    pub(super) fn chunks(&self, range: &Range<u64>) -> Range<u64> {
        let layout = &self.layer.contents().layout;
        let chunks = layout.chunks_of(self.start + range.start..self.start + range.end);
        if chunks.is_empty() { 0..0 } else { self.own(layout.chunk_range(chunks)) }
    }

    fn own(&self, stream: Range<StreamOffset>) -> Range<u64> {
        let offset = |at: StreamOffset| at.get().saturating_sub(self.start.get()).min(self.bytes);
        offset(stream.start)..offset(stream.end)
    }
}
