//! Reads of present bytes of a layer: bytes in the cache, or in memory where the cache could not keep them.

use super::FetchError;
use super::layer::Inner;
use super::passing::Key;
use crate::cache::{CacheError, Lookup};
use crate::layer::{ChunkId, StreamOffset};

/// Reads from the cache; `None` where the read would have to wait for the disk.
type ReadCache<'a> = &'a dyn Fn(StreamOffset, &mut [u8]) -> Result<Option<Lookup>, CacheError>;

impl Inner {
    /// Fills `buffer` with present bytes; `read` reads those in the cache. `None` where `read` would have to wait.
    pub(super) fn read_here(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
        read: ReadCache<'_>,
    ) -> Result<Option<Lookup>, FetchError> {
        let mut lookup = read(start, buffer)?;
        if lookup == Some(Lookup::Miss) && !self.passing.is_empty() {
            lookup = self.read_by_chunk(start, buffer, read)?;
        }
        if lookup == Some(Lookup::Hit) {
            self.follower.note(start + buffer.len() as u64);
        }
        Ok(lookup)
    }

    /// The same chunk by chunk, where some bytes may be in memory: all of a chunk, or the bytes behind those in the
    /// cache.
    fn read_by_chunk(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
        read: ReadCache<'_>,
    ) -> Result<Option<Lookup>, FetchError> {
        let layout = &self.contents.layout;
        let end = start + buffer.len() as u64;
        if end.get() > layout.stream_bytes() {
            return Ok(Some(Lookup::Miss));
        }
        for chunk in layout.chunks_of(start..end) {
            let span = layout.chunk(ChunkId(chunk)).stream;
            let (from, to) = (start.max(span.start), end.min(span.end));
            let kept = span.start + u64::from(self.store.filled(ChunkId(chunk)));
            let middle = kept.clamp(from, to);
            let place = |at: StreamOffset| (at - start) as usize;
            if from < middle {
                match read(from, &mut buffer[place(from)..place(middle)])? {
                    Some(Lookup::Hit) => {}
                    other => return Ok(other),
                }
            }
            let rest = &mut buffer[place(middle)..place(to)];
            let key = Key { layer: self.number(), chunk };
            if middle < to && !self.passing.read(key, (middle - span.start) as u32, rest) {
                return Ok(Some(Lookup::Miss));
            }
        }
        Ok(Some(Lookup::Hit))
    }

    /// Whether all of a chunk is in the cache or in memory.
    pub(super) fn is_here(&self, chunk: ChunkId) -> bool {
        self.is_here_to(chunk, self.contents.layout.chunk(chunk).stream.end)
    }

    /// Whether a chunk is in the cache or in memory from its start to `end`.
    pub(super) fn is_here_to(&self, chunk: ChunkId, end: StreamOffset) -> bool {
        let span = self.contents.layout.chunk(chunk).stream;
        let (filled, length) = (self.store.filled(chunk), (end - span.start) as u32);
        let key = Key { layer: self.number(), chunk: chunk.0 };
        filled >= length || !self.passing.is_empty() && self.passing.has(key, filled, length)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The next layer may get this layer's number in the admission.
        self.passing.forget(self.number());
    }
}
