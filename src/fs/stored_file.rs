//! A file whose bytes lie in a layer. Only this module turns offsets in a file into offsets in a
//! stream.
//!
//! Readers, cursors and tensors count bytes of the file; layers count bytes of their stream. Any
//! range of a file, with holes or without, needs at most one range of the stream
//! ([`Extents::stored_of`]). A range inside a hole needs none.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::kit::LoadedKit;
use crate::cache::page_aligned;
use crate::fetch::{Cause, FetchError, Layer};
use crate::kit::{Content, NodeId, NodeKind};
use crate::layer::Extents;

/// A file whose bytes lie in a layer.
#[derive(Clone, Copy)]
pub struct StoredFile<'a> {
    /// The layer.
    pub layer: &'a Arc<Layer>,
    /// The places of the bytes in the layer's stream.
    pub extents: &'a Extents,
}

impl<'a> StoredFile<'a> {
    /// The file at a node; `None` for the Kitfile, directories and links.
    pub fn of(kit: &'a LoadedKit, node: NodeId) -> Option<Self> {
        match kit.tree.kind(node) {
            NodeKind::File(Content::Stored { layer, extents }) => {
                Some(Self { layer: &kit.layers[*layer as usize], extents })
            }
            NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
        }
    }

    /// Fills `buffer`, which is as long as `range`, with that range of the file. Never waits for the
    /// network.
    ///
    /// Returns `false` when some byte is not in the cache; the content of `buffer` is then
    /// unspecified.
    ///
    /// # Errors
    /// As [`Layer::read_resident`].
    pub fn read_resident(self, range: Range<u64>, buffer: &mut [u8]) -> Result<bool, FetchError> {
        if self.extents.is_contiguous() {
            return self.layer.read_resident(self.extents.stored_of(range).start, buffer);
        }
        buffer.fill(0);
        for run in self.extents.data(range.clone()) {
            let place =
                (run.file.start - range.start) as usize..(run.file.end - range.start) as usize;
            if !self.layer.read_resident(run.stream, &mut buffer[place])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a range of the file, and fetches the missing bytes.
    ///
    /// # Errors
    /// As [`Layer::read`].
    pub fn read(
        self,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Bytes, FetchError>> + Send + use<> {
        let stored = self.extents.stored_of(range.clone());
        let reading = self.layer.read(stored.clone());
        let extents = self.extents.clone();
        async move {
            let bytes = reading.await?;
            if extents.is_contiguous() {
                return Ok(bytes);
            }
            let mut whole = zeros((range.end - range.start) as usize);
            for run in extents.data(range.clone()) {
                let from = (run.stream - stored.start) as usize;
                let place =
                    (run.file.start - range.start) as usize..(run.file.end - range.start) as usize;
                let run_bytes = place.len();
                whole[place].copy_from_slice(&bytes[from..from + run_bytes]);
            }
            Ok(whole.freeze())
        }
    }

    /// Starts to fetch the missing bytes of a range of the file.
    ///
    /// Returns the ranges of the file for which a fetch starts with this call, in order. They are
    /// rounded to chunks, cut to the file, and include the holes between the bytes.
    pub fn prefetch(self, range: Range<u64>, cause: impl Into<Cause>) -> Vec<Range<u64>> {
        let started = self.layer.prefetch(self.extents.stored_of(range), cause);
        let started = started.into_iter().map(|stream| self.extents.file_of(stream));
        started.filter(|range| !range.is_empty()).collect()
    }

    /// The range of the file that the chunks with bytes of `range` cover.
    pub fn chunks(self, range: &Range<u64>) -> Range<u64> {
        let layout = &self.layer.contents().layout;
        let chunks = layout.chunks_of(self.extents.stored_of(range.clone()));
        if chunks.is_empty() { 0..0 } else { self.extents.file_of(layout.chunk_range(chunks)) }
    }

    /// `true` if all data of a range of the file is in the cache.
    pub fn is_resident(self, range: Range<u64>) -> bool {
        self.layer.is_resident(self.extents.stored_of(range))
    }

    /// Brings a range of the file to the cache; see [`Layer::bring`].
    ///
    /// # Errors
    /// As [`Layer::bring`].
    pub fn bring<C: Into<Cause>>(
        self,
        range: Range<u64>,
        cause: C,
    ) -> impl Future<Output = Result<(), FetchError>> + Send + use<C> {
        self.layer.bring(self.extents.stored_of(range), cause)
    }
}

fn zeros(bytes: usize) -> BytesMut {
    let mut zeros = page_aligned(bytes);
    zeros.fill(0);
    zeros
}
