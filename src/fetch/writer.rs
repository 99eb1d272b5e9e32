//! The blocking side of a transfer: decodes, hashes and writes batches of pieces as they come.

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
    /// Everything before this can be read.
    readable: StreamOffset,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, transfer: Arc<Transfer>, at: StreamOffset) -> Self {
        let appender = inner.store.appender();
        Self { inner, transfer, appender, at, readable: at }
    }

    /// Takes everything that comes. Blocking.
    pub(super) fn drain(mut self, mut incoming: mpsc::Receiver<Batch>) -> Result<(), FetchError> {
        let compression = self.inner.spec.encoding.compression;
        if compression == Compression::None {
            while let Some(batch) = incoming.blocking_recv() {
                for piece in batch {
                    self.append(&piece)?;
                }
                self.transfer.reached(self.readable);
            }
            return Ok(());
        }
        let mut decoder = Decoder::new(compression);
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(batch) = incoming.blocking_recv() {
            for piece in batch {
                self.decode(&mut decoder, &piece, &mut buffer)?;
            }
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
                .map_err(|error| FetchError::malformed(self.inner.spec.blob, error))?;
            if decoded == 0 && compressed.is_empty() {
                return Ok(());
            }
            self.append(&buffer[..decoded])?;
            self.transfer.reached(self.readable);
        }
    }

    /// Appends bytes of the stream to their chunks. Those that are complete already, or whose
    /// first bytes are, take only what they miss.
    fn append(&mut self, mut bytes: &[u8]) -> Result<(), FetchError> {
        let layout = &self.inner.contents.layout;
        self.inner.cache.make_room(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let chunks = layout.chunks_of(self.at.range(1));
            if chunks.is_empty() {
                let detail = "it is longer than when its contents were found out";
                return Err(FetchError::malformed(self.inner.spec.blob, detail));
            }
            let span = layout.chunk(ChunkId(chunks.start)).stream;
            let length = bytes.len().min((span.end - self.at) as usize);
            let (piece, rest) = bytes.split_at(length);
            let offset = (self.at - span.start) as u32;
            let readable = self.appender.append(ChunkId(chunks.start), offset, piece)?;
            self.at = self.at + length as u64;
            bytes = rest;
            self.readable = self.at.min(span.start + u64::from(readable));
        }
        Ok(())
    }
}
