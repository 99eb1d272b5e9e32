//! The blocking side of a transfer: decodes, hashes and writes batches of pieces as they come.

use std::io::IoSlice;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::FetchError;
use super::download::Batch;
use super::layer::Inner;
use super::transfer::Transfer;
use crate::cache::Appender;
use crate::layer::decode::Decoder;
use crate::layer::{ChunkId, StreamOffset};
use crate::oci::Compression;

/// What is decoded at a time: one chunk.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes the bytes of one transfer, in order, from some offset of the stream on.
pub(super) struct Writer {
    inner: Arc<Inner>,
    transfer: Arc<Transfer>,
    appender: Appender,
    at: StreamOffset,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, transfer: Arc<Transfer>, at: StreamOffset) -> Self {
        let appender = inner.store.appender();
        Self { inner, transfer, appender, at }
    }

    /// Takes everything that comes. Blocking.
    pub(super) fn drain(mut self, mut incoming: mpsc::Receiver<Batch>) -> Result<(), FetchError> {
        let compression = self.inner.spec.encoding.compression;
        if compression == Compression::None {
            while let Some(batch) = incoming.blocking_recv() {
                self.append(&batch.iter().map(|piece| &piece[..]).collect::<Vec<_>>())?;
            }
            // The feeder counts the bytes of a layer that is stored as it is.
            return Ok(());
        }
        let mut decoder = Decoder::new(compression, self.inner.windows());
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(batch) = incoming.blocking_recv() {
            for piece in batch {
                self.decode(&mut decoder, &piece, &mut buffer)?;
            }
        }
        let malformed = |why| FetchError::malformed(self.inner.spec.blob, why);
        decoder.finish().map_err(|error| malformed(error.to_string()))?;
        if self.at.get() < self.inner.contents.layout.stream_bytes() {
            let detail = "it is shorter than when its contents were found out";
            return Err(malformed(detail.to_owned()));
        }
        Ok(())
    }

    fn decode(
        &mut self,
        decoder: &mut Decoder,
        mut compressed: &[u8],
        buffer: &mut [u8],
    ) -> Result<(), FetchError> {
        loop {
            let decoded = decoder
                .decode(&mut compressed, buffer)
                .map_err(|error| FetchError::undecodable(self.inner.spec.blob, error))?;
            if decoded == 0 && compressed.is_empty() {
                return Ok(());
            }
            self.append(&[&buffer[..decoded]])?;
        }
    }

    /// Appends bytes of the stream to their chunks, and tells who waits for them. Chunks that are
    /// complete already, or whose first bytes are, take only what they miss.
    fn append(&mut self, pieces: &[&[u8]]) -> Result<(), FetchError> {
        let layout = &self.inner.contents.layout;
        let mut left: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if left == 0 {
            // Only the end of a gzip member came.
            return Ok(());
        }
        self.inner.cache.make_room(left)?;
        let mut pieces = Cut { pieces: pieces.iter(), rest: &[] };
        let mut readable = self.at;
        while left > 0 {
            let chunks = layout.chunks_of(self.at.range(1));
            if chunks.is_empty() {
                let detail = "it is longer than when its contents were found out";
                return Err(FetchError::malformed(self.inner.spec.blob, detail));
            }
            let span = layout.chunk(ChunkId(chunks.start)).stream;
            let length = left.min(span.end - self.at);
            let offset = (self.at - span.start) as u32;
            let slices = pieces.take(length as usize);
            let filled = self.appender.append(ChunkId(chunks.start), offset, &slices)?;
            self.at = self.at + length;
            left -= length;
            readable = self.at.min(span.start + u64::from(filled));
        }
        self.transfer.reached(readable);
        Ok(())
    }
}

/// Pieces that are handed out in other lengths than they came in.
struct Cut<'a> {
    pieces: std::slice::Iter<'a, &'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Cut<'a> {
    /// The next `length` bytes, of which there must be as many.
    fn take(&mut self, mut length: usize) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::new();
        while length > 0 {
            if self.rest.is_empty() {
                let Some(next) = self.pieces.next() else { break };
                self.rest = next;
            }
            let (slice, rest) = self.rest.split_at(length.min(self.rest.len()));
            slices.push(IoSlice::new(slice));
            length -= slice.len();
            self.rest = rest;
        }
        slices
    }
}
