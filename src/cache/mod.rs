//! Bytes kept near: layers on disk in chunks, verified, bounded, shared by all mounts.
//!
//! Signatures first: the bodies are being written.
#![allow(unused_variables, dead_code, missing_docs)]

use std::ops::Range;
use std::path::{Path, PathBuf};
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

/// What can go wrong with the cache. Messages name the folder or file and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process holds the folder.
    #[error("the cache folder {} is in use by process {pid}: stop it, or choose another folder with --cache-dir", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// The process, as it wrote itself into the lock file; 0 where that cannot be read.
        pid: u32,
    },
    /// A file of the cache cannot be read or written.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// `read`, `write`, `create`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        error: std::io::Error,
    },
    /// The cache is full and nothing can be evicted.
    #[error(
        "the cache is full: {capacity_bytes} bytes are allowed and all are in use: raise --cache-size"
    )]
    Full {
        /// The limit in bytes.
        capacity_bytes: u64,
    },
    /// Too little space is left on the cache's file system.
    #[error("the file system of {} is full: {available_bytes} bytes are left and --keep-free is {keep_free_bytes}", folder.display())]
    DiskFull {
        /// The cache folder.
        folder: PathBuf,
        /// What is left.
        available_bytes: u64,
        /// What is to be left.
        keep_free_bytes: u64,
    },
    /// The layer cannot be removed now.
    #[error("layer {0} is in use")]
    InUse(Digest),
    /// The contents do not fit the layer.
    #[error(transparent)]
    Layout(#[from] crate::layer::layout::LayoutError),
}

/// A layer on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUsage {
    /// Which layer.
    pub key: LayerKey,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The size of the uncompressed stream, once the contents are known.
    pub stream_bytes: Option<u64>,
    /// Bytes of content on disk.
    pub resident_bytes: u64,
    /// How far it can be trusted.
    pub state: LayerState,
    /// Origins of the kits that use it.
    pub origins: Vec<String>,
    /// Seconds since 1970.
    pub last_used: i64,
    /// Whether a [`LayerStore`] of it is alive.
    pub is_open: bool,
}

/// What a verification found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Bytes that were read and checked.
    pub checked_bytes: u64,
    /// Chunks that were wrong and are no longer resident.
    pub dropped_chunks: u64,
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
    /// Whether some process holds the lock of `folder`; false for a folder that is not there.
    pub fn is_held(folder: &Path) -> bool {
        todo!()
    }
    /// The folder, absolute.
    pub fn folder(&self) -> &Path {
        todo!()
    }
    /// Bytes of content on disk.
    pub fn resident_bytes(&self) -> u64 {
        todo!()
    }
    /// The most bytes of content on disk.
    pub fn capacity_bytes(&self) -> Option<u64> {
        todo!()
    }
    /// Keeps a manifest or config (`kits/`); its digest was verified by the caller.
    pub fn put_document(&self, digest: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        todo!()
    }
    /// A manifest or config that was kept; checked against its digest, `None` when it is not
    /// there or no longer what its digest says.
    pub fn document(&self, digest: Digest) -> Option<Bytes> {
        todo!()
    }
    /// Remembers which manifest an origin (as its `Display` writes it) was resolved to.
    pub fn remember(&self, origin: &str, manifest: Digest) -> Result<(), CacheError> {
        todo!()
    }
    /// What an origin was last resolved to, for mounting without the network.
    pub fn recall(&self, origin: &str) -> Option<Digest> {
        todo!()
    }
    /// Records that a kit uses these layers, for `cache ls` and `cache rm REFERENCE`.
    pub fn record_kit(
        &self,
        origin: &str,
        manifest: Digest,
        layers: &[LayerKey],
    ) -> Result<(), CacheError> {
        todo!()
    }
    /// Every layer in the folder.
    pub fn layers(&self) -> Result<Vec<LayerUsage>, CacheError> {
        todo!()
    }
    /// The layers that a recorded kit uses: by origin, or by its manifest's digest.
    pub fn layers_of_kit(&self, kit: &str) -> Vec<LayerKey> {
        todo!()
    }
    /// Removes a layer, poisoned ones too; returns the bytes of content that were freed.
    ///
    /// # Errors
    /// [`CacheError::InUse`] while a [`LayerStore`] of it is alive.
    pub fn remove_layer(&self, key: LayerKey) -> Result<u64, CacheError> {
        todo!()
    }
    /// Re-checks every resident byte of a layer against the recorded chunk digests and drops
    /// what is wrong. Blocking.
    pub fn verify_layer(self: &Arc<Self>, key: LayerKey) -> Result<Verification, CacheError> {
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
    pub fn append(&self, chunk: ChunkId, offset: u32, bytes: &[u8]) -> Result<(), CacheError> {
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
