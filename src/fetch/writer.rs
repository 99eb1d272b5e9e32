//! The blocking side of a transfer: decodes, hashes and writes batches of pieces as they come.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::FetchError;
use super::download::Batch;
use super::follower::Leash;
use super::layer::Inner;
use super::passing::{Front, Key, Need};
use super::transfer::Transfer;
use crate::cache::{Appended, Appender, Lookup, page_aligned};
use crate::layer::decode::Decoder;
use crate::layer::{ChunkId, StreamOffset};
use crate::oci::Compression;
use crate::source::Priority;

/// The bytes that are decoded at a time: one chunk.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes the bytes of one transfer, in order, from some offset of the stream on.
pub(super) struct Writer {
    inner: Arc<Inner>,
    transfer: Arc<Transfer>,
    appender: Appender,
    at: StreamOffset,
    /// The leash of a stream over the whole layer, where the cache cannot hold the layer.
    leash: Option<Leash>,
}

/// The outcome of a transfer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// All bytes have come.
    All,
    /// There is no room for the rest, and no reader waits for it.
    Stopped,
}

impl Writer {
    /// A writer of the stream from `at` on. `is_whole`: the stream goes over the whole layer.
    pub(super) fn new(
        inner: Arc<Inner>,
        transfer: Arc<Transfer>,
        at: StreamOffset,
        is_whole: bool,
    ) -> Self {
        let appender = inner.store.appender();
        let leash = if is_whole { inner.leash() } else { None };
        Self { inner, transfer, appender, at, leash }
    }

    /// Writes all batches from the channel. Blocking.
    pub(super) fn drain(
        mut self,
        mut incoming: mpsc::Receiver<Batch>,
    ) -> Result<Written, FetchError> {
        let compression = self.inner.spec.encoding.compression;
        if compression == Compression::None {
            while let Some(batch) = incoming.blocking_recv() {
                let pieces: Vec<&[u8]> = batch.iter().map(|piece| &piece[..]).collect();
                if self.append(&pieces)? == Written::Stopped {
                    return Ok(Written::Stopped);
                }
            }
            // The feeder counts the bytes of a layer that is stored as it is.
            return Ok(Written::All);
        }
        let mut decoder = Decoder::new(compression, self.inner.windows());
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Some(batch) = incoming.blocking_recv() {
            for piece in batch {
                if self.decode(&mut decoder, &piece, &mut buffer)? == Written::Stopped {
                    return Ok(Written::Stopped);
                }
            }
        }
        let malformed = |why| FetchError::malformed(self.inner.spec.blob, why);
        decoder.finish().map_err(|error| malformed(error.to_string()))?;
        if self.at.get() < self.inner.contents.layout.stream_bytes() {
            let detail = "it is shorter than when its contents were found out";
            return Err(malformed(detail.to_owned()));
        }
        Ok(Written::All)
    }

    fn decode(
        &mut self,
        decoder: &mut Decoder,
        mut compressed: &[u8],
        buffer: &mut [u8],
    ) -> Result<Written, FetchError> {
        loop {
            let decoded = decoder
                .decode(&mut compressed, buffer)
                .map_err(|error| FetchError::undecodable(self.inner.spec.blob, error))?;
            if decoded == 0 && compressed.is_empty() {
                return Ok(Written::All);
            }
            if self.append(&[&buffer[..decoded]])? == Written::Stopped {
                return Ok(Written::Stopped);
            }
        }
    }

    /// Appends bytes of the stream to their chunks, and wakes the waiters. A chunk takes only the bytes that it
    /// lacks.
    fn append(&mut self, pieces: &[&[u8]]) -> Result<Written, FetchError> {
        let mut left: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if left == 0 {
            // The batch had only the end of a gzip member, and no content.
            return Ok(Written::All);
        }
        if let Some(leash) = &self.leash {
            self.inner.wait_for_reader(leash, self.at, &self.transfer);
        }
        let mut pieces = Cut { pieces: pieces.iter(), rest: &[] };
        let mut readable = self.at;
        while left > 0 {
            let layout = &self.inner.contents.layout;
            let chunks = layout.chunks_of(self.at.range(1));
            if chunks.is_empty() {
                let detail = "it is longer than when its contents were found out";
                return Err(FetchError::malformed(self.inner.spec.blob, detail));
            }
            let chunk = ChunkId(chunks.start);
            let span = layout.chunk(chunk).stream;
            let length = left.min(span.end - self.at);
            let offset = (self.at - span.start) as u32;
            let slices = pieces.take(length as usize);
            let appended = self.appender.append(chunk, offset, &slices)?;
            self.at += length;
            left -= length;
            match appended {
                Appended::Kept(filled) => {
                    readable = self.at.min(span.start + u64::from(filled));
                    if self.inner.is_retried(&(span.start..readable)) {
                        self.hold(chunk, span.start..readable);
                    }
                }
                Appended::Unkept { start, bytes } => {
                    if self.pass(chunk, start, bytes)? == Written::Stopped {
                        self.reached(readable);
                        return Ok(Written::Stopped);
                    }
                    readable = self.at;
                }
            }
        }
        self.reached(readable);
        Ok(Written::All)
    }

    /// Wakes the waiters. The stream follows a reader from the end of its bytes on.
    fn reached(&self, readable: StreamOffset) {
        self.transfer.reached(readable);
        if self.leash.is_some()
            && let Some(end) = self.transfer.take_wanted()
        {
            self.inner.follower.note(end);
        }
    }

    /// Holds bytes of the cache in memory, for a reader that lost them before it could take them.
    fn hold(&self, chunk: ChunkId, readable: Range<StreamOffset>) {
        let key = Key { layer: self.inner.number(), chunk: chunk.0 };
        let mut bytes = page_aligned((readable.end - readable.start) as usize);
        if matches!(self.inner.store.read(readable.start, &mut bytes), Ok(Lookup::Hit)) {
            let (bytes, runtime) = (bytes.freeze(), &self.inner.runtime);
            let front = self.front(readable.start);
            self.inner.passing.put(key, 0, bytes, Need::Retried, front, runtime);
        }
    }

    /// Hands on bytes that the cache could not keep.
    ///
    /// # Errors
    /// [`FetchError::NotKept`] where they were fetched for the cache alone.
    fn pass(&self, chunk: ChunkId, start: u32, bytes: Bytes) -> Result<Written, FetchError> {
        let span = self.inner.contents.layout.chunk(chunk).stream;
        let priority = self.transfer.urgency().get();
        if priority < Priority::Readahead {
            let why = self.inner.cache.trouble().unwrap_or_default();
            return Err(FetchError::NotKept { layer: self.inner.spec.blob.digest, why });
        }
        let key = Key { layer: self.inner.number(), chunk: chunk.0 };
        let is_begun = || start > 0 && self.inner.passing.has(key, start - 1, start);
        let need = match &self.leash {
            _ if self.inner.is_retried(&span) => Need::Retried,
            None if priority == Priority::OnDemand => Need::Awaited,
            None => Need::Ahead,
            Some(_) if self.transfer.wants(&span) => Need::Awaited,
            Some(leash) if leash.is_followed(span.start) || is_begun() => Need::Ahead,
            // A stream over the whole layer passes this chunk on its way to the wanted bytes.
            Some(_) => return Ok(Written::All),
        };
        let front = self.front(span.start);
        let is_held = self.inner.passing.put(key, start, bytes, need, front, &self.inner.runtime);
        Ok(if is_held || self.leash.is_some() { Written::All } else { Written::Stopped })
    }

    /// The place of a chunk in front of the reader that the stream waits for.
    fn front(&self, start: StreamOffset) -> Option<Front> {
        self.leash.clone().map(|leash| Front { leash, start })
    }
}

/// Pieces, handed out in other lengths than they came in.
struct Cut<'a> {
    pieces: std::slice::Iter<'a, &'a [u8]>,
    rest: &'a [u8],
}

impl<'a> Cut<'a> {
    /// The next `length` bytes. The pieces must have that many.
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
