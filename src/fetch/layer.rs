//! A layer that can be read: resident bytes from the cache, others from its sources.
//!
//! Invariants:
//! - A chunk has at most one transfer in the process (`claims`). So mounts and handles never fetch the same bytes
//!   side by side.
//! - Bytes are handed out from the cache, or from memory where the cache could not keep them (`passing`).
//! - A compressed layer has no ranges: any miss (after an eviction) is a stream over the whole layer.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::claims::Claims;
use super::completing::Completing;
use super::confirm::Confirming;
use super::download::TRANSFER_MEMORY_BYTES;
use super::follower::Follower;
use super::history::{Cause, History};
use super::off_the_runtime;
use super::outage::Outage;
use super::pace::HostPace;
use super::passing::Passing;
use super::plan::ChunkStatus;
use super::retry::Retries;
use super::transfer::Waited;
use super::turns::Turns;
use super::{FetchError, LayerSpec};
use crate::cache::{Cache, Contents, LayerKey, LayerState, LayerStore, Lookup, page_aligned};
use crate::layer::decode::Windows;
use crate::layer::layout::CHUNK_BYTES;
use crate::layer::{ChunkId, StreamOffset};
use crate::process::running_time;
use crate::source::admission::{Admission, UserId, Whose};
use crate::source::{BlobSource, Priority};

/// Sources remembered for one layer: mounts of several repositories may share it, and any of
/// them may lose its credentials first.
const MOST_SOURCES: usize = 4;
/// The times in a row that a reader plans again without progress, because its bytes were evicted before it read
/// them. After 16 the cache is too small for its readers, and the read fails.
const MOST_PLANS: usize = 16;

/// The longest wait of `confirmed` for bytes that belong to no file. 5 s: one request brings them, and a command
/// that has read all files should not hang on a registry that is gone.
const LONGEST_WAIT_FOR_REST: Duration = Duration::from_secs(5);

/// An open layer. Transfers are given up when the last value for the layer is dropped and its last read is done.
pub struct Layer {
    pub(super) inner: Arc<Inner>,
    /// Held by running reads too.
    open: Arc<DropGuard>,
    /// The user for whom this value reads.
    user: UserId,
}

/// A layer that others may have open, for any user.
#[derive(Default)]
pub(super) struct WeakLayer {
    inner: Weak<Inner>,
    open: Weak<DropGuard>,
}

impl WeakLayer {
    /// The layer, for `user`; `None` if nobody has it open any more.
    pub(super) fn upgrade(&self, user: UserId) -> Option<Arc<Layer>> {
        let (inner, open) = (self.inner.upgrade()?, self.open.upgrade()?);
        Some(Arc::new(Layer { inner, open, user }))
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.strong_count() > 0
    }
}

/// A source of a layer, and the measured rate of its host.
#[derive(Clone)]
pub(super) struct RatedSource {
    pub(super) source: Arc<dyn BlobSource>,
    pub(super) host_pace: Arc<HostPace>,
}

/// How a layer was opened.
pub(super) struct Opened {
    /// The user who waits for it.
    pub(super) user: UserId,
    /// The chunks that the scan for the contents has filled, each with its bytes.
    pub(super) scanned: Vec<(u32, u32)>,
}

/// The parts that all layers share.
pub(super) struct Shared {
    pub(super) cache: Arc<Cache>,
    pub(super) admission: Arc<Admission>,
    pub(super) turns: Arc<Turns>,
    pub(super) passing: Arc<Passing>,
}

pub(super) struct Inner {
    pub(super) spec: LayerSpec,
    pub(super) store: Arc<LayerStore>,
    pub(super) contents: Arc<Contents>,
    pub(super) cache: Arc<Cache>,
    pub(super) admission: Arc<Admission>,
    pub(super) turns: Arc<Turns>,
    pub(super) passing: Arc<Passing>,
    pub(super) history: History,
    /// The chunks that the scan for the contents has filled, in order, each with its bytes.
    pub(super) scanned: Vec<(u32, u32)>,
    pub(super) follower: Arc<Follower>,
    pub(super) retries: Retries,
    pub(super) outage: Outage,
    /// The sources in the order of use; at least one.
    pub(super) sources: RwLock<Vec<RatedSource>>,
    /// Whether the layer has zstd frames with windows beyond the usual.
    pub(super) has_large_windows: AtomicBool,
    /// The threads of FUSE requests start transfers too, and have no runtime.
    pub(super) runtime: Handle,
    pub(super) claims: Mutex<Claims>,
    pub(super) confirming: watch::Sender<Confirming>,
    pub(super) completing: Mutex<Completing>,
    pub(super) closed: CancellationToken,
}

impl Layer {
    pub(super) fn new(
        spec: LayerSpec,
        store: Arc<LayerStore>,
        contents: Arc<Contents>,
        rated: RatedSource,
        shared: Shared,
        opened: Opened,
    ) -> Arc<Self> {
        let Opened { user, scanned } = opened;
        let Shared { cache, admission, turns, passing } = shared;
        let closed = CancellationToken::new();
        let inner = Arc::new(Inner {
            spec,
            store,
            contents,
            cache,
            admission,
            turns,
            passing,
            history: History::default(),
            scanned,
            follower: Arc::default(),
            retries: Retries::default(),
            outage: Outage::default(),
            sources: RwLock::new(vec![rated]),
            has_large_windows: AtomicBool::new(false),
            runtime: Handle::current(),
            claims: Mutex::default(),
            confirming: watch::Sender::default(),
            completing: Mutex::default(),
            closed: closed.clone(),
        });
        inner.confirm_when_complete();
        inner.complete_quietly(None);
        Arc::new(Self { inner, open: Arc::new(closed.drop_guard()), user })
    }

    pub(super) fn downgrade(&self) -> WeakLayer {
        WeakLayer { inner: Arc::downgrade(&self.inner), open: Arc::downgrade(&self.open) }
    }

    /// The same layer, for the reads of another user.
    pub fn for_user(&self, user: UserId) -> Arc<Self> {
        Arc::new(Self { inner: self.inner.clone(), open: self.open.clone(), user })
    }

    pub(super) fn add_source(&self, source: Arc<dyn BlobSource>, host_pace: Arc<HostPace>) {
        let mut sources = self.inner.sources.write();
        // Two sources of one place would only wait twice where the place does not answer.
        let place = source.place();
        sources.retain(|known| place.is_none() || known.source.place() != place);
        sources.insert(0, RatedSource { source, host_pace });
        sources.truncate(MOST_SOURCES);
    }

    /// Adds a source behind the known ones, unless it is one of them.
    pub(super) fn add_fallback(&self, source: Arc<dyn BlobSource>, host_pace: Arc<HostPace>) {
        let mut sources = self.inner.sources.write();
        let place = source.place();
        let is_known = sources.iter().any(|known| known.source.place() == place);
        if sources.len() < MOST_SOURCES && (place.is_none() || !is_known) {
            sources.push(RatedSource { source, host_pace });
        }
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

    /// Its place in the cache.
    pub fn store(&self) -> &Arc<LayerStore> {
        &self.inner.store
    }

    /// The trust in the layer's bytes.
    pub fn state(&self) -> LayerState {
        self.inner.store.state()
    }

    /// The time at which this cache first saw the layer, in seconds since 1970. Stable: kept with the layer.
    pub fn first_seen_seconds(&self) -> i64 {
        self.inner.store.first_seen_seconds()
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
    /// When the sources fail, the layer is poisoned or the cache cannot take the bytes. A reader of a
    /// mount wants more: [`Self::persist`] asks again until its deadline.
    pub fn read(
        &self,
        range: Range<StreamOffset>,
    ) -> impl Future<Output = Result<Bytes, FetchError>> + Send + use<> {
        let (inner, open, user) = (self.inner.clone(), self.open.clone(), self.user);
        async move {
            let result = inner.read(range, user).await;
            drop(open);
            result
        }
    }

    /// Starts to fetch what is missing of `range`, and returns at once. Transfers that run already become at least
    /// as urgent. The part beyond the stream's end is left out.
    ///
    /// Returns the ranges that no transfer was bringing before, in order. They are whole chunks, so they may begin
    /// before `range` and end behind it.
    pub fn prefetch(
        &self,
        range: Range<StreamOffset>,
        cause: impl Into<Cause>,
    ) -> Vec<Range<StreamOffset>> {
        let layout = &self.inner.contents.layout;
        if layout.chunks_of(range.clone()).is_empty() {
            return Vec::new();
        }
        let started = self.inner.plan(&range, cause.into(), self.user).started;
        started.into_iter().map(|run| layout.chunk_range(run)).collect()
    }

    /// Whether the layer can be fetched in parts. A compressed layer comes as a whole or not at all.
    pub fn has_ranges(&self) -> bool {
        !self.inner.is_compressed()
    }

    /// Fetches a range of the stream into the cache, and returns when all of it has been resident. For callers that
    /// want no bytes yet: it takes no memory for a reply.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn bring<C: Into<Cause>>(
        &self,
        range: Range<StreamOffset>,
        cause: C,
    ) -> impl Future<Output = Result<(), FetchError>> + Send + use<C> {
        let (inner, open, user) = (self.inner.clone(), self.open.clone(), self.user);
        let cause = cause.into();
        async move {
            let is_awaited = cause.priority() == Priority::OnDemand;
            let _reader = is_awaited.then(|| inner.admission.reader());
            let result = inner.clone().bring(range, cause, user).await;
            drop(open);
            result
        }
    }

    /// Reserves memory for a reply of `bytes`, until the reservation is dropped. Call it when the bytes are
    /// resident, because a read that waits for the network should hold no memory.
    pub fn reserve_reply(
        &self,
        bytes: u64,
    ) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let turns = self.inner.turns.clone();
        async move { turns.reserve_reply(bytes).await }
    }

    /// Whether every byte of `range` is in the cache.
    pub fn is_resident(&self, range: Range<StreamOffset>) -> bool {
        let mut chunks = self.inner.contents.layout.chunks_of(range);
        chunks.all(|chunk| self.inner.status(ChunkId(chunk), false) == ChunkStatus::Resident)
    }

    /// The size of a request that suits the rate at which bytes come, in bytes.
    pub fn request_bytes(&self) -> u64 {
        // This runs at each read, so it clones nothing.
        let sources = self.inner.sources.read();
        u64::from(sources[0].host_pace.request_chunks()) * CHUNK_BYTES
    }

    /// The bytes that come from the layer's source in `time`; 0 before the rate is known.
    pub fn bytes_in(&self, time: Duration) -> u64 {
        let sources = self.inner.sources.read();
        sources[0].host_pace.bytes_in(time)
    }

    /// The time between a request and the first byte of its answer; zero before it is known.
    pub fn round_trip(&self) -> Duration {
        let sources = self.inner.sources.read();
        sources[0].host_pace.round_trip()
    }

    /// Whether the blob comes from another host, rather than from this machine's own disk.
    pub fn is_remote(&self) -> bool {
        self.inner.sources.read().iter().any(|rated| rated.source.is_remote())
    }

    /// Waits for the digest of a complete layer, and returns the outcome. Returns at once for a layer that is not
    /// complete. Where only bytes of no file are missing, it fetches them first, for a few seconds at most. Where
    /// the digest was wrong once, it waits for the second copy, as long as the sources have one.
    pub async fn confirmed(&self) -> LayerState {
        let inner = self.inner.clone();
        if self.state() == LayerState::Unconfirmed && inner.lacks_small_rest() {
            let stream = inner.contents.layout.stream();
            let rest = inner.clone().bring(stream, Cause::Read, self.user);
            let brought = running_time::timeout(LONGEST_WAIT_FOR_REST, rest).await;
            if !matches!(brought, Ok(Ok(()))) {
                tracing::debug!(layer = %inner.spec.blob.digest, "the rest of a layer does not come");
            }
        }
        let mut confirming = inner.confirming.subscribe();
        for _ in 0..MOST_PLANS {
            inner.confirm_when_complete();
            let ended = confirming.wait_for(|confirming| !confirming.goes_on()).await;
            let ended = *ended.expect("the sender lives in inner");
            // A chunk may have been evicted and fetched again meanwhile.
            if ended == Confirming::Failed
                || self.state() != LayerState::Unconfirmed
                || !inner.store.is_complete()
            {
                break;
            }
        }
        self.state()
    }
}

impl Inner {
    fn read_resident(&self, start: StreamOffset, buffer: &mut [u8]) -> Result<bool, FetchError> {
        if let LayerState::Poisoned { got } = self.store.state() {
            return Err(FetchError::Poisoned { expected: self.spec.blob.digest, got });
        }
        let read = |start, buffer: &mut [u8]| Ok(Some(self.store.read(start, buffer)?));
        Ok(self.read_here(start, buffer, &read)? == Some(Lookup::Hit))
    }

    /// Fills `part` of a buffer for `range` from resident bytes; `false` where some are missing. Bytes in the page
    /// cache are copied at once; bytes that have just come always are there. For other bytes, a thread outside the
    /// runtime waits for the disk.
    async fn fill(
        self: &Arc<Self>,
        buffer: &mut BytesMut,
        range: &Range<StreamOffset>,
        part: Range<StreamOffset>,
    ) -> Result<bool, FetchError> {
        let place = (part.start - range.start) as usize..(part.end - range.start) as usize;
        let cached = |start, buffer: &mut [u8]| self.store.read_cached(start, buffer);
        if let Some(lookup) = self.read_here(part.start, &mut buffer[place.clone()], &cached)? {
            return Ok(lookup == Lookup::Hit);
        }
        let (inner, mut taken) = (self.clone(), std::mem::take(buffer));
        let read = move || {
            let filled = inner.read_resident(part.start, &mut taken[place]);
            (taken, filled)
        };
        let filled;
        (*buffer, filled) = off_the_runtime(read).await;
        filled
    }

    /// The offsets at which a wait for the bytes `at..end` stops to take the bytes that have come.
    fn steps(&self, at: StreamOffset, end: StreamOffset, is_by_chunk: bool) -> Vec<StreamOffset> {
        let layout = &self.contents.layout;
        if !is_by_chunk || end.get() > layout.stream_bytes() {
            return vec![end];
        }
        let chunks = layout.chunks_of(at..end);
        chunks.map(|chunk| layout.chunk(ChunkId(chunk)).stream.end.min(end)).collect()
    }

    fn check_range(&self, range: &Range<StreamOffset>) -> Result<(), FetchError> {
        let stream_bytes = self.contents.layout.stream_bytes();
        if range.end.get() > stream_bytes || range.start > range.end {
            let detail = format!("{range:?} is no range of its {stream_bytes} bytes");
            return Err(FetchError::malformed(self.spec.blob, detail));
        }
        Ok(())
    }

    /// Takes bytes as they arrive. So a range may be larger than the cache.
    async fn read(
        self: Arc<Self>,
        range: Range<StreamOffset>,
        user: UserId,
    ) -> Result<Bytes, FetchError> {
        self.check_range(&range)?;
        let mut buffer = page_aligned((range.end - range.start) as usize);
        if self.fill(&mut buffer, &range, range.clone()).await? {
            return Ok(buffer.freeze());
        }
        let _reader = self.admission.reader();
        let mut at = range.start;
        let mut plans_in_vain = 0;
        let mut retry = None;
        while plans_in_vain < MOST_PLANS {
            if plans_in_vain > 0 && retry.is_none() {
                retry = Some(self.begin_retry(&range).await);
            }
            if retry.is_some() {
                // Each resident chunk is taken at once, because it may be evicted during the wait for another one.
                for end in self.steps(at, range.end, true) {
                    if !self.fill(&mut buffer, &range, at..end).await? {
                        break;
                    }
                    at = end;
                    plans_in_vain = 0;
                }
            }
            if self.fill(&mut buffer, &range, at..range.end).await? {
                return Ok(buffer.freeze());
            }
            let before = at;
            let mut failed = None;
            let has_lost = retry.is_some();
            let plan = self.plan(&(at..range.end), Cause::Read, user);
            for (transfer, end) in plan.waits {
                // Where bytes were evicted before all had come, they are taken chunk by chunk.
                for end in self.steps(at, end, has_lost) {
                    failed = match transfer.wait(end).await {
                        // The transfer was begun for the cache alone, and ended when this reader had just joined.
                        Err(FetchError::NotKept { .. }) | Ok(_) => failed,
                        Err(error) => Some(error),
                    };
                    let end = end.min(range.end);
                    // A transfer may have failed behind the bytes that this reader wants.
                    if at < end && self.fill(&mut buffer, &range, at..end).await? {
                        at = end;
                    }
                }
            }
            if let Some(error) = failed {
                let is_here = self.fill(&mut buffer, &range, at..range.end).await?;
                return if is_here { Ok(buffer.freeze()) } else { Err(error) };
            }
            plans_in_vain = if at > before { 0 } else { plans_in_vain + 1 };
        }
        Err(FetchError::Thrashing(self.spec.blob.digest))
    }

    /// Waits until every byte of `range` was in the cache at some time since the call.
    pub(super) async fn bring(
        self: Arc<Self>,
        range: Range<StreamOffset>,
        cause: Cause,
        user: UserId,
    ) -> Result<(), FetchError> {
        self.check_range(&range)?;
        let mut at = range.start;
        let mut plans_in_vain = 0;
        while plans_in_vain < MOST_PLANS {
            if let LayerState::Poisoned { got } = self.store.state() {
                return Err(FetchError::Poisoned { expected: self.spec.blob.digest, got });
            }
            let before = at;
            let mut is_taken_over = false;
            for (transfer, end) in self.plan(&(at..range.end), cause, user).waits {
                is_taken_over = transfer.wait(end).await? == Waited::TakenOver;
                if is_taken_over {
                    break;
                }
                at = end.min(range.end);
            }
            if !is_taken_over {
                return Ok(());
            }
            plans_in_vain = if at > before { 0 } else { plans_in_vain + 1 };
        }
        Err(FetchError::Thrashing(self.spec.blob.digest))
    }

    /// The host rate of the first source.
    pub(super) fn host_pace(&self) -> Arc<HostPace> {
        self.sources.read()[0].host_pace.clone()
    }

    /// Moves the first source to the end, and has it try another address first.
    pub(super) fn ask_next_source_first(&self) {
        let mut sources = self.sources.write();
        sources[0].source.distrust();
        sources.rotate_left(1);
    }

    /// Drops a source, if there is another one; returns whether there is.
    pub(super) fn leave(&self, source: &Arc<dyn BlobSource>) -> bool {
        let mut sources = self.sources.write();
        if sources.len() > 1 {
            sources.retain(|known| !Arc::ptr_eq(&known.source, source));
            return true;
        }
        // Another transfer may have dropped the source already.
        !Arc::ptr_eq(&sources[0].source, source)
    }

    /// Reserves memory for large windows from now on; `false` where there is not enough.
    pub(super) fn use_large_windows(&self) -> bool {
        self.has_large_windows.store(true, Ordering::Relaxed);
        self.admission.can_hold(self.transfer_memory_bytes())
    }

    /// A number that stands for the layer in the admission.
    pub(super) fn number(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    /// The layer and the host of a transfer. The host is that of the first source, though it may go on at another.
    pub(super) fn whose(&self) -> Whose {
        let host = self.sources.read().first().and_then(|rated| rated.source.host());
        Whose { layer: self.number(), host }
    }

    /// The memory that a transfer may take, in bytes.
    pub(super) fn transfer_memory_bytes(&self) -> u64 {
        TRANSFER_MEMORY_BYTES + self.windows().memory_bytes(self.spec.encoding.compression)
    }

    pub(super) fn windows(&self) -> Windows {
        match self.has_large_windows.load(Ordering::Relaxed) {
            true => Windows::Large,
            false => Windows::Usual,
        }
    }

    pub(super) fn is_compressed(&self) -> bool {
        self.spec.encoding.is_compressed()
    }
}
