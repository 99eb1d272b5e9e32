//! A layer that can be read: resident bytes from the cache, others from its sources.
//!
//! Invariants:
//! - A chunk has at most one transfer in the process (`claims`), so nothing is fetched twice.
//! - Only bytes that are in the cache are handed out; a transfer never bypasses it.
//! - A source that ignores ranges turns the first transfer into one stream over the whole layer
//!   (`Claims::whole`); other transfers then drop theirs and wait for it.
//! - A compressed layer has no ranges: any miss (after an eviction) is such a whole stream.

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::plan::{self, ChunkStatus, TRANSFER_CHUNKS};
use super::transfer::{EndOnDrop, Transfer, Wait};
use super::{FetchError, LayerSpec};
use crate::cache::{Appender, Cache, Contents, LayerKey, LayerState, LayerStore, Lookup};
use crate::layer::decode::Decoder;
use crate::layer::{ChunkId, StreamOffset};
use crate::oci::Compression;
use crate::source::{BlobSource, BlobStream, SourceError};

/// Sources remembered for one layer: mounts of several repositories may share it, and any of
/// them may lose its credentials first.
const MOST_SOURCES: usize = 4;
/// Pieces between the network and the writer of a transfer: about 1 MiB.
const PIECES: usize = 32;
/// How often a reader plans again when what it waited for was evicted before it could read it.
const MOST_PLANS: usize = 16;

/// An open layer. Dropping the last handle gives up the transfers nobody waits for any more.
pub struct Layer {
    inner: Arc<Inner>,
}

struct Inner {
    spec: LayerSpec,
    store: Arc<LayerStore>,
    contents: Arc<Contents>,
    cache: Arc<Cache>,
    /// Transfers are started from threads of the kernel's requests too, which have no runtime.
    runtime: Handle,
    sources: RwLock<Vec<Arc<dyn BlobSource>>>,
    claims: Mutex<Claims>,
    is_closed: AtomicBool,
}

#[derive(Default)]
struct Claims {
    chunks: HashMap<u32, Arc<Transfer>>,
    whole: Option<Arc<Transfer>>,
    is_confirming: bool,
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.inner.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Layer {
    pub(super) fn new(
        spec: LayerSpec,
        store: Arc<LayerStore>,
        contents: Arc<Contents>,
        source: Arc<dyn BlobSource>,
        cache: Arc<Cache>,
    ) -> Arc<Self> {
        let inner = Arc::new(Inner {
            spec,
            store,
            contents,
            cache,
            runtime: Handle::current(),
            sources: RwLock::new(vec![source]),
            claims: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        inner.confirm_when_complete();
        Arc::new(Self { inner })
    }

    pub(super) fn add_source(&self, source: Arc<dyn BlobSource>) {
        let mut sources = self.inner.sources.write();
        sources.insert(0, source);
        sources.truncate(MOST_SOURCES);
    }

    /// Which layer this is.
    pub fn key(&self) -> LayerKey {
        self.inner.spec.key()
    }

    /// The size of the blob as stored, in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.inner.spec.blob.size
    }

    /// The table of contents, and how the layer lies in the cache.
    pub fn contents(&self) -> &Arc<Contents> {
        &self.inner.contents
    }

    /// How far the layer's bytes can be trusted.
    pub fn state(&self) -> LayerState {
        self.inner.store.state()
    }

    /// Bytes of the uncompressed stream that are in the cache.
    pub fn resident_bytes(&self) -> u64 {
        self.inner.store.resident_bytes()
    }

    /// Fills `buffer` from resident bytes; `false` (and an unspecified buffer) when some are
    /// missing. Never waits for the network.
    ///
    /// # Errors
    /// When the layer is poisoned or its cache files cannot be read.
    pub fn read_resident(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
    ) -> Result<bool, FetchError> {
        self.inner.read_resident(start, buffer)
    }

    /// Reads a range of the stream, fetching what is missing; yields exactly the range's bytes.
    ///
    /// # Errors
    /// When the sources fail, the layer is poisoned or the cache cannot take the bytes. There is
    /// no deadline here: who serves a reader sets one.
    pub fn read(
        &self,
        range: Range<StreamOffset>,
    ) -> impl Future<Output = Result<Bytes, FetchError>> + Send + use<> {
        let inner = self.inner.clone();
        async move { inner.read(range).await }
    }

    /// Starts to fetch what is missing of `range`, and returns at once.
    pub fn prefetch(&self, range: Range<StreamOffset>) {
        if self.inner.contents.layout.chunks_of(range.clone()).is_empty() {
            return;
        }
        self.inner.plan(&range);
    }
}

impl Inner {
    fn read_resident(&self, start: StreamOffset, buffer: &mut [u8]) -> Result<bool, FetchError> {
        if let LayerState::Poisoned { got } = self.store.state() {
            return Err(FetchError::Poisoned { expected: self.spec.blob.digest, got });
        }
        Ok(self.store.read(start, buffer)? == Lookup::Hit)
    }

    async fn read(self: Arc<Self>, range: Range<StreamOffset>) -> Result<Bytes, FetchError> {
        let mut buffer = BytesMut::zeroed((range.end - range.start) as usize);
        for _ in 0..MOST_PLANS {
            if self.read_resident(range.start, &mut buffer)? {
                return Ok(buffer.freeze());
            }
            let mut failed = None;
            for (transfer, end) in self.plan(&range) {
                if let Err(error) = transfer.wait(end).await {
                    failed = Some(error);
                }
            }
            if let Some(error) = failed {
                // The transfer may have failed behind what this reader wants.
                let is_here = self.read_resident(range.start, &mut buffer)?;
                return if is_here { Ok(buffer.freeze()) } else { Err(error) };
            }
        }
        Err(FetchError::Thrashing(self.spec.blob.digest))
    }

    /// Starts the transfers that `range` needs, and says what to wait for.
    fn plan(self: &Arc<Self>, range: &Range<StreamOffset>) -> Vec<Wait> {
        let layout = &self.contents.layout;
        let wanted = layout.chunks_of(range.clone());
        let mut claims = self.claims.lock();
        let runs = plan::transfers(wanted.clone(), TRANSFER_CHUNKS, |chunk| {
            let is_claimed = claims.chunks.contains_key(&chunk);
            self.status(ChunkId(chunk), is_claimed)
        });
        if !runs.is_empty() && self.is_compressed() {
            self.start_whole(&mut claims);
        } else {
            for run in runs {
                self.start(&mut claims, run);
            }
        }
        let mut waits: Vec<Wait> = Vec::new();
        for chunk in wanted {
            let Some(transfer) = claims.chunks.get(&chunk) else { continue };
            let end = layout.chunk(ChunkId(chunk)).stream.end.min(range.end);
            match waits.last_mut() {
                Some((last, last_end)) if Arc::ptr_eq(last, transfer) => *last_end = end,
                _ => waits.push((transfer.clone(), end)),
            }
        }
        waits
    }

    fn status(&self, chunk: ChunkId, is_claimed: bool) -> ChunkStatus {
        let bytes = self.contents.layout.chunk(chunk).stream;
        match u64::from(self.store.filled(chunk)) {
            filled if filled == bytes.end - bytes.start => ChunkStatus::Resident,
            _ if is_claimed => ChunkStatus::InFlight,
            0 => ChunkStatus::Missing,
            _ => ChunkStatus::Partial,
        }
    }

    fn is_compressed(&self) -> bool {
        self.spec.encoding.compression != Compression::None
    }

    fn start(self: &Arc<Self>, claims: &mut Claims, run: Range<u32>) {
        let layout = &self.contents.layout;
        let first = layout.chunk(ChunkId(run.start)).stream.start;
        let start = first + u64::from(self.store.filled(ChunkId(run.start)));
        let end = layout.chunk(ChunkId(run.end - 1)).stream.end;
        let transfer = Transfer::new(start);
        for chunk in run {
            claims.chunks.insert(chunk, transfer.clone());
        }
        self.spawn(transfer, start..end);
    }

    /// Claims every chunk that nobody brings yet, and starts one pass over all of the layer.
    fn start_whole(self: &Arc<Self>, claims: &mut Claims) {
        let transfer = Transfer::new(StreamOffset(0));
        self.claim_rest(claims, &transfer);
        self.spawn(transfer, StreamOffset(0)..StreamOffset(self.contents.layout.stream_bytes()));
    }

    fn claim_rest(&self, claims: &mut Claims, transfer: &Arc<Transfer>) {
        claims.whole = Some(transfer.clone());
        for chunk in 0..self.contents.layout.chunks() {
            if self.status(ChunkId(chunk), false) != ChunkStatus::Resident {
                claims.chunks.entry(chunk).or_insert_with(|| transfer.clone());
            }
        }
    }

    fn spawn(self: &Arc<Self>, transfer: Arc<Transfer>, range: Range<StreamOffset>) {
        let inner = self.clone();
        let guard =
            EndOnDrop { transfer: transfer.clone(), place: self.spec.blob.digest.to_string() };
        self.runtime.spawn(async move {
            let result = inner.fetch(&transfer, range).await;
            inner.release(&transfer);
            transfer.end(result);
            drop(guard);
            inner.confirm_when_complete();
        });
    }

    fn release(&self, transfer: &Arc<Transfer>) {
        let mut claims = self.claims.lock();
        claims.chunks.retain(|_, claimed| !Arc::ptr_eq(claimed, transfer));
        claims.whole.take_if(|whole| Arc::ptr_eq(whole, transfer));
    }

    async fn fetch(
        self: &Arc<Self>,
        transfer: &Arc<Transfer>,
        range: Range<StreamOffset>,
    ) -> Result<(), FetchError> {
        let blob = self.spec.blob;
        let asked = match self.is_compressed() {
            true => 0..blob.size,
            false => range.start.in_uncompressed_blob().get()..range.end.get(),
        };
        let stream = self.open(asked.clone()).await?;
        if stream.range != asked
            && let Some(other) = self.take_whole(transfer)
        {
            drop(stream);
            return other.wait(range.end).await;
        }
        self.write_stream(transfer, stream).await
    }

    /// Opens `range` at the first source that has it.
    async fn open(&self, range: Range<u64>) -> Result<BlobStream, FetchError> {
        let sources = self.sources.read().clone();
        let mut failed: Option<SourceError> = None;
        for source in sources {
            match source.open(self.spec.blob, range.clone()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("a layer is opened with a source").into())
    }

    /// Makes `transfer` the layer's whole stream, or names the one that already is.
    fn take_whole(&self, transfer: &Arc<Transfer>) -> Option<Arc<Transfer>> {
        let mut claims = self.claims.lock();
        match &claims.whole {
            Some(whole) if !Arc::ptr_eq(whole, transfer) => Some(whole.clone()),
            Some(_) => None,
            None => {
                self.claim_rest(&mut claims, transfer);
                None
            }
        }
    }

    async fn write_stream(
        self: &Arc<Self>,
        transfer: &Arc<Transfer>,
        mut stream: BlobStream,
    ) -> Result<(), FetchError> {
        let (pieces, incoming) = mpsc::channel::<Bytes>(PIECES);
        let writer = Writer {
            inner: self.clone(),
            transfer: transfer.clone(),
            appender: self.store.appender(),
            at: StreamOffset(stream.range.start),
        };
        let writer = tokio::task::spawn_blocking(move || writer.drain(incoming));
        let mut result = Ok(());
        while let Some(piece) = stream.bytes.next().await {
            match piece {
                Ok(_) if self.is_closed.load(Ordering::Relaxed) => break,
                Ok(piece) => {
                    if pieces.send(piece).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    result = Err(error.into());
                    break;
                }
            }
        }
        drop(pieces);
        let written = writer.await.map_err(|error| FetchError::malformed(self.spec.blob, error))?;
        written.and(result)
    }

    /// Computes the blob's digest once the last byte is in.
    fn confirm_when_complete(self: &Arc<Self>) {
        if self.is_compressed() || self.store.state() != LayerState::Unconfirmed {
            return;
        }
        {
            let mut claims = self.claims.lock();
            if claims.is_confirming || !self.store.is_complete() {
                return;
            }
            claims.is_confirming = true;
        }
        let inner = self.clone();
        self.runtime.spawn_blocking(move || {
            let digest = inner.spec.blob.digest;
            match inner.store.confirm() {
                Ok(LayerState::Poisoned { got }) => {
                    tracing::error!(layer = %digest, %got, "digest mismatch: the layer is poisoned, its reads fail");
                }
                Ok(state) => tracing::info!(layer = %digest, ?state, "layer complete"),
                Err(error) => tracing::warn!(layer = %digest, %error, "could not verify a complete layer"),
            }
            inner.claims.lock().is_confirming = false;
        });
    }
}

/// The blocking side of a transfer: decodes, hashes and writes pieces as they come.
struct Writer {
    inner: Arc<Inner>,
    transfer: Arc<Transfer>,
    appender: Appender,
    at: StreamOffset,
}

impl Writer {
    fn drain(mut self, mut incoming: mpsc::Receiver<Bytes>) -> Result<(), FetchError> {
        let compression = self.inner.spec.encoding.compression;
        if compression == Compression::None {
            while let Some(piece) = incoming.blocking_recv() {
                self.append(&piece)?;
            }
            return Ok(());
        }
        let mut decoder = Decoder::new(compression);
        let mut buffer = vec![0; 256 * 1024];
        while let Some(piece) = incoming.blocking_recv() {
            let mut compressed = &piece[..];
            loop {
                let decoded = decoder
                    .decode(&mut compressed, &mut buffer)
                    .map_err(|error| FetchError::malformed(self.inner.spec.blob, error))?;
                if decoded == 0 && compressed.is_empty() {
                    break;
                }
                self.append(&buffer[..decoded])?;
            }
        }
        Ok(())
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
            let chunk = ChunkId(chunks.start);
            let span = layout.chunk(chunk).stream;
            let length = bytes.len().min((span.end - self.at) as usize);
            let (piece, rest) = bytes.split_at(length);
            self.appender.append(chunk, (self.at - span.start) as u32, piece)?;
            self.at = self.at + length as u64;
            bytes = rest;
            self.transfer.reached(self.at);
        }
        Ok(())
    }
}
