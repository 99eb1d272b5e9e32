//! A layer that can be read: resident bytes from the cache, others from its sources.
//!
//! Invariants:
//! - A chunk has at most one transfer in the process (`claims`), so nothing is fetched twice.
//! - Only bytes that are in the cache are handed out; a transfer never bypasses it.
//! - A source that ignores ranges turns the first transfer into one stream over the whole layer
//!   (`Claims::whole`), which takes over the chunks of all that have not begun to write.
//! - A compressed layer has no ranges: any miss (after an eviction) is such a whole stream.

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::plan::{self, ChunkStatus, TRANSFER_CHUNKS};
use super::transfer::{EndOnDrop, Transfer, Wait};
use super::{FetchError, LayerSpec};
use crate::cache::{Cache, Contents, LayerKey, LayerState, LayerStore, Lookup};
use crate::layer::{ChunkId, StreamOffset};
use crate::oci::Compression;
use crate::source::{BlobSource, Priority};

/// Sources remembered for one layer: mounts of several repositories may share it, and any of
/// them may lose its credentials first.
const MOST_SOURCES: usize = 4;
/// How often in a row a reader plans again without getting any further, because what it waited
/// for was evicted before it could read it.
const MOST_PLANS: usize = 16;
/// What may be missing of a layer for it to be fetched although nobody reads it: padding and end
/// marker belong to no file, and without them the layer's digest is never computed. Python's tars
/// end with up to 10 KiB of zeros; headers behind members of some 100 KiB come to a few more.
const SMALL_REST_BYTES: u64 = 64 * 1024;

/// An open layer. When it is dropped and its last read is done, running transfers are given up.
pub struct Layer {
    inner: Arc<Inner>,
    /// Held by running reads too.
    open: Arc<DropGuard>,
}

pub(super) struct Inner {
    pub(super) spec: LayerSpec,
    pub(super) store: Arc<LayerStore>,
    pub(super) contents: Arc<Contents>,
    pub(super) cache: Arc<Cache>,
    /// Transfers of all layers together; each needs a permit while it runs.
    pub(super) permits: Arc<Semaphore>,
    pub(super) sources: RwLock<Vec<Arc<dyn BlobSource>>>,
    /// Transfers are started from threads of the kernel's requests too, which have no runtime.
    runtime: Handle,
    claims: Mutex<Claims>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Claims {
    chunks: HashMap<u32, Arc<Transfer>>,
    whole: Option<Arc<Transfer>>,
    is_confirming: bool,
    has_asked_for_rest: bool,
}

/// What a transfer may do with the stream that its source opened.
#[derive(Debug)]
pub(super) enum Admission {
    /// Write it to the chunks that the transfer claimed.
    Write,
    /// The source ignores ranges: write all of it, from the layer's start on.
    WriteWhole,
    /// Nothing: another transfer took the chunks over.
    TakenOver,
    /// Nothing: another one streams the whole layer, and has passed what is missing here.
    After(Arc<Transfer>),
}

impl Layer {
    pub(super) fn new(
        spec: LayerSpec,
        store: Arc<LayerStore>,
        contents: Arc<Contents>,
        source: Arc<dyn BlobSource>,
        cache: Arc<Cache>,
        permits: Arc<Semaphore>,
    ) -> Arc<Self> {
        let closed = CancellationToken::new();
        let inner = Arc::new(Inner {
            spec,
            store,
            contents,
            cache,
            runtime: Handle::current(),
            sources: RwLock::new(vec![source]),
            claims: Mutex::default(),
            permits,
            closed: closed.clone(),
        });
        inner.confirm_when_complete();
        Arc::new(Self { inner, open: Arc::new(closed.drop_guard()) })
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
        let (inner, open) = (self.inner.clone(), self.open.clone());
        async move {
            let result = inner.read(range).await;
            drop(open);
            result
        }
    }

    /// Starts to fetch what is missing of `range`, and returns at once. What lies beyond the
    /// stream's end is left out.
    pub fn prefetch(&self, range: Range<StreamOffset>, priority: Priority) {
        let _ = priority;
        if self.inner.contents.layout.chunks_of(range.clone()).is_empty() {
            return;
        }
        self.inner.plan(&range);
    }

    /// Brings a range of the stream to the cache, and returns when all of it has been there: for
    /// those who want no bytes (warm, hydrate, traces). Takes no memory for them.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn bring(
        &self,
        range: Range<StreamOffset>,
        priority: Priority,
    ) -> impl Future<Output = Result<(), FetchError>> + Send + use<> {
        let _ = priority;
        let read = self.read(range);
        async move { read.await.map(drop) }
    }

    /// Whether every byte of `range` is in the cache.
    pub fn is_resident(&self, range: Range<StreamOffset>) -> bool {
        let chunks = self.inner.contents.layout.chunks_of(range);
        chunks
            .into_iter()
            .all(|chunk| self.inner.status(ChunkId(chunk), false) == ChunkStatus::Resident)
    }

    /// Whether the blob comes from another host, rather than from this machine's own disk.
    pub fn is_remote(&self) -> bool {
        self.inner.sources.read().iter().any(|source| source.is_remote())
    }

    /// Waits until the digest of a layer all of whose bytes are in has been computed, and says
    /// what came of it; at once for one that is not complete.
    pub async fn confirmed(&self) -> LayerState {
        self.state()
    }
}

impl Inner {
    fn read_resident(&self, start: StreamOffset, buffer: &mut [u8]) -> Result<bool, FetchError> {
        if let LayerState::Poisoned { got } = self.store.state() {
            return Err(FetchError::Poisoned { expected: self.spec.blob.digest, got });
        }
        Ok(self.store.read(start, buffer)? == Lookup::Hit)
    }

    /// Takes bytes as they arrive, so that a range larger than what the cache can hold at a time
    /// is read all the same.
    async fn read(self: Arc<Self>, range: Range<StreamOffset>) -> Result<Bytes, FetchError> {
        let stream_bytes = self.contents.layout.stream_bytes();
        if range.end.get() > stream_bytes || range.start > range.end {
            let detail = format!("{range:?} is no range of its {stream_bytes} bytes");
            return Err(FetchError::malformed(self.spec.blob, detail));
        }
        let mut buffer = BytesMut::zeroed((range.end - range.start) as usize);
        let mut at = range.start;
        let mut plans_in_vain = 0;
        while plans_in_vain < MOST_PLANS {
            if self.read_resident(at, &mut buffer[(at - range.start) as usize..])? {
                return Ok(buffer.freeze());
            }
            let before = at;
            let mut failed = None;
            for (transfer, end) in self.plan(&(at..range.end)) {
                failed = transfer.wait(end).await.err().or(failed);
                let end = end.min(range.end);
                let piece = (at - range.start) as usize..(end - range.start) as usize;
                // A transfer may have failed behind what this reader wants.
                if self.read_resident(at, &mut buffer[piece])? {
                    at = end;
                }
            }
            if let Some(error) = failed {
                let is_here = self.read_resident(at, &mut buffer[(at - range.start) as usize..])?;
                return if is_here { Ok(buffer.freeze()) } else { Err(error) };
            }
            plans_in_vain = if at > before { 0 } else { plans_in_vain + 1 };
        }
        Err(FetchError::Thrashing(self.spec.blob.digest))
    }

    /// Starts the transfers that `range` needs, and says what to wait for.
    fn plan(self: &Arc<Self>, range: &Range<StreamOffset>) -> Vec<Wait> {
        let layout = &self.contents.layout;
        let wanted = layout.chunks_of(range.clone());
        let mut claims = self.claims.lock();
        let runs = plan::transfers(wanted.clone(), TRANSFER_CHUNKS, |chunk| {
            let is_claimed = self.is_coming(&claims, chunk);
            self.status(ChunkId(chunk), is_claimed)
        });
        if !runs.is_empty() && self.is_compressed() {
            if let Some(whole) = &claims.whole {
                // It has passed what is missing: the next pass starts when this one is done.
                return vec![(whole.clone(), StreamOffset(u64::MAX))];
            }
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

    /// Whether a transfer will still bring a chunk. One that has passed it will not: what it
    /// brought was evicted.
    fn is_coming(&self, claims: &Claims, chunk: u32) -> bool {
        let end = self.contents.layout.chunk(ChunkId(chunk)).stream.end;
        claims.chunks.get(&chunk).is_some_and(|transfer| !transfer.has_passed(end))
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

    pub(super) fn is_compressed(&self) -> bool {
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
            if self.status(ChunkId(chunk), false) != ChunkStatus::Resident
                && !self.is_coming(claims, chunk)
            {
                claims.chunks.insert(chunk, transfer.clone());
            }
        }
    }

    fn spawn(self: &Arc<Self>, transfer: Arc<Transfer>, range: Range<StreamOffset>) {
        let inner = self.clone();
        let guard =
            EndOnDrop { transfer: transfer.clone(), place: self.spec.blob.digest.to_string() };
        self.runtime.spawn(async move {
            let result = tokio::select! {
                result = inner.fetch(&transfer, range) => Some(result),
                () = inner.closed.cancelled() => None,
            };
            inner.release(&transfer);
            let is_done = matches!(result, Some(Ok(())));
            if let Some(result) = result {
                transfer.end(result);
            }
            drop(guard);
            inner.confirm_when_complete();
            if is_done {
                inner.fetch_small_rest();
            }
        });
    }

    fn release(&self, transfer: &Arc<Transfer>) {
        let mut claims = self.claims.lock();
        claims.chunks.retain(|_, claimed| !Arc::ptr_eq(claimed, transfer));
        claims.whole.take_if(|whole| Arc::ptr_eq(whole, transfer));
    }

    /// What `transfer` may do with the stream it has opened; `is_whole` where that is not the
    /// range asked for but the whole blob.
    pub(super) fn admit(&self, transfer: &Arc<Transfer>, is_whole: bool) -> Admission {
        let mut claims = self.claims.lock();
        if transfer.has_ended() {
            return Admission::TakenOver;
        }
        match &claims.whole {
            Some(other) if is_whole && !Arc::ptr_eq(other, transfer) => {
                return Admission::After(other.clone());
            }
            None if is_whole => {}
            _ => {
                transfer.begin_to_write();
                return Admission::Write;
            }
        }
        transfer.begin_to_write();
        transfer.rewind();
        claims.chunks.retain(|_, claimed| {
            let keeps = claimed.is_writing();
            if !keeps {
                // Who waits for it plans again, and waits for the whole stream.
                claimed.end(Ok(()));
            }
            keeps
        });
        self.claim_rest(&mut claims, transfer);
        Admission::WriteWhole
    }

    /// Fetches what no reader will ask for, once all else is in. One time: what fails or is
    /// evicted again is not worth a second.
    fn fetch_small_rest(self: &Arc<Self>) {
        let stream_bytes = self.contents.layout.stream_bytes();
        let missing = stream_bytes.saturating_sub(self.store.resident_bytes());
        if self.is_compressed() || missing == 0 || missing > SMALL_REST_BYTES {
            return;
        }
        if !std::mem::replace(&mut self.claims.lock().has_asked_for_rest, true) {
            self.plan(&(StreamOffset(0)..StreamOffset(stream_bytes)));
        }
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
            match inner.store.confirm(&|| !inner.closed.is_cancelled()) {
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
