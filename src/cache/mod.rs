//! Bytes kept near: layers on disk in chunks, verified, bounded, shared by all mounts.
//!
//! Signatures first: the bodies are being written.
#![allow(unused_variables, dead_code, missing_docs)]

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::layer::{CacheFile, ChunkId, Layout, RangeSet, StreamOffset, Toc};
use crate::oci::{Digest, Encoding};

/// Where the cache lies and how much it may hold.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    pub folder: PathBuf,
    /// The most bytes of content on disk; `None` is unlimited.
    pub capacity_bytes: Option<u64>,
    /// Evict rather than let the file system's free space fall below this.
    pub keep_free_bytes: u64,
}

/// One cache folder, held by this process (flock).
pub struct Cache {}

/// Which layer: the same blob read as tar and as raw are two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerKey {
    pub digest: Digest,
    pub encoding: Encoding,
}

/// How far the bytes of a layer can be trusted (design.md 6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Bytes came over an authenticated channel; the blob's digest is not yet computed.
    Unconfirmed,
    /// The digest was computed over all bytes, and matches.
    Confirmed,
    /// The digest does not match: reads fail.
    Poisoned { got: Digest },
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("cache")]
    Todo,
}

/// A layer's place in the cache.
pub struct LayerStore {}

/// What a read of resident bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Every byte was resident and is in the buffer.
    Hit,
    /// Some byte is not resident; the buffer's content is unspecified.
    Miss,
}

impl Cache {
    /// Opens or creates the folder and takes its lock; `Held{pid,..}` when another process has it.
    pub fn open(config: CacheConfig) -> Result<Arc<Self>, CacheError> {
        todo!()
    }
    /// The one store of this layer in this process (same `Arc` for the same key).
    pub fn layer(
        self: &Arc<Self>,
        key: LayerKey,
        blob_bytes: u64,
    ) -> Result<Arc<LayerStore>, CacheError> {
        todo!()
    }
    /// Makes room for `bytes` more (evicting the least recently used) before they are written.
    pub fn make_room(&self, bytes: u64) -> Result<(), CacheError> {
        todo!()
    }
}

impl LayerStore {
    /// The table of contents and layout, once known (persisted: survives restarts).
    pub fn contents(&self) -> Option<Arc<Contents>> {
        todo!()
    }
    pub fn state(&self) -> LayerState {
        todo!()
    }
    /// Starts to collect the bytes of a layer whose contents are not known yet.
    pub fn stage(self: &Arc<Self>) -> Result<Stage, CacheError> {
        todo!()
    }
    /// Reads resident bytes into `buffer` (its length is the range's); re-checks the digest of
    /// chunks that this process has neither written nor checked yet, and drops those that fail.
    pub fn read(&self, start: StreamOffset, buffer: &mut [u8]) -> Result<Lookup, CacheError> {
        todo!()
    }
    /// How many bytes from its start a chunk has.
    pub fn filled(&self, chunk: ChunkId) -> u32 {
        todo!()
    }
    /// Appends to a chunk: `bytes` go behind the `filled` ones (never past the chunk's end).
    /// The single-flight table of fetch/ guarantees one writer a chunk.
    pub fn append(&self, chunk: ChunkId, bytes: &[u8]) -> Result<(), CacheError> {
        todo!()
    }
    /// Whether every chunk is complete.
    pub fn is_complete(&self) -> bool {
        todo!()
    }
    pub fn resident_bytes(&self) -> u64 {
        todo!()
    }
    /// Computes the blob's digest over all chunks of a complete, uncompressed layer, and moves the
    /// state to confirmed or poisoned. Chunks the local disk has changed are dropped instead.
    /// Blocking, about 0.6 s per GiB.
    pub fn confirm(&self) -> Result<LayerState, CacheError> {
        todo!()
    }
}

/// The contents of a layer and how they lie in the cache.
pub struct Contents {
    pub toc: Toc,
    pub layout: Layout,
}

/// Collects the bytes of a layer while its table of contents is being found out.
pub struct Stage {}

impl Stage {
    /// Writes bytes of the stream to the file where the final layout will have them.
    pub fn write(
        &mut self,
        file: CacheFile,
        file_offset: u64,
        bytes: &[u8],
    ) -> Result<(), CacheError> {
        todo!()
    }
    /// Bytes of the compressed blob kept by an interrupted pass, from the blob's start.
    pub fn spool_bytes(&self) -> u64 {
        todo!()
    }
    pub fn spool_read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, CacheError> {
        todo!()
    }
    pub fn spool_append(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        todo!()
    }
    /// Forgets everything staged, the spool too.
    pub fn restart(&mut self) -> Result<(), CacheError> {
        todo!()
    }
    /// Makes the layer's contents final: writes the toc, marks chunks (or their first bytes) that
    /// `covered` has as resident. `blob_digest`: the digest computed over the compressed blob.
    pub fn finish(
        self,
        toc: Toc,
        covered: &RangeSet,
        blob_digest: Option<Digest>,
    ) -> Result<Arc<Contents>, CacheError> {
        todo!()
    }
}

#[allow(unused)]
type Keep = (Range<u64>, Bytes);
