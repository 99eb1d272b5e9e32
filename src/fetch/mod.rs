//! The only place where a source meets the cache.
//!
//! ```text
//! Layer::read(range) --resident?--> cache
//!        |  '--missing--> plan (pure) --> claims (single flight) --> Transfer --> cache
//!        |                                     source::admission: which transfer runs next
//!        '<------------------- woken as bytes reach the cache ----------'
//! ```
//!
//! - [`plan`]: which chunks become which requests; pure. `pace`: how large requests should be, and
//!   how many.
//! - [`layer`]: a layer that can be read. `claims`: its chunks in flight. A chunk has one transfer at a time in the
//!   whole process.
//! - `turns`: memory for replies, and turns for digests of whole layers.
//! - `transfer`: a run of chunks on its way to the cache, and its waiters.
//! - `download`, `writer`: the two sides of a transfer, network and disk.
//! - `outage`: how long a reader waits for a source that fails. `stall`: when a stream that brings too
//!   little is given up.
//! - `scan`: finds the table of contents of an uncompressed tar by its headers alone.
//! - `pass`: the one sequential pass that a compressed layer takes.
//! - `passing`: bytes in memory that the cache could not keep. `retry`: readers that lost such bytes. `follower`:
//!   how far a stream over such a layer may run ahead of its reader.
//! - `history`: why bytes were fetched, and how long each step took. `residency`: which parts of a layer are in the
//!   cache, for `kitfs map` and `kitfs explain`.
//! - `sharing`: which users of a shared cache may have a layer.
//! - `confirm`: the digest of a whole layer, once its last byte is resident. `completing`: fetches bytes that no
//!   reader asks for, and fetches a layer again whose digest was wrong.
//!
//! It decides nothing about files, kits or mounts, and speaks no HTTP.

mod claims;
mod completing;
mod confirm;
mod download;
mod error;
mod follower;
mod history;
mod keeping;
pub mod layer;
mod outage;
mod pace;
mod pass;
mod passing;
pub mod plan;
mod reading;
mod residency;
mod retry;
mod scan;
mod sharing;
mod staging;
mod stall;
mod transfer;
mod turns;
mod writer;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cache::{Cache, Contents, LayerKey, LayerState, LayerStore};
use crate::layer::decode::Windows;
use crate::layer::{RangeSet, Toc};
use crate::oci::{BlobId, Format};
use crate::source::admission::{Admission, AdmissionConfig, UserId, Whose};
use crate::source::decorators::{Counted, Counts};
use crate::source::{BlobSource, Urgency};

pub use error::FetchError;
pub use history::{Cause, Outcome, Past, PastTransfer, WaitedRead};
pub use layer::Layer;
pub use outage::GaveUp;
pub use residency::{Coming, Presence};

use layer::{RatedSource, WeakLayer};
use pace::HostPace;
use passing::Passing;
use turns::Turns;

/// The memory that a scan of headers takes. 1 MiB: a few pieces, because they are written as they come.
const SCAN_MEMORY_BYTES: u64 = 1024 * 1024;

/// Bounds of a [`Fetcher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchConfig {
    /// Memory for bytes in flight, in bytes; reserved before it is used (`--memory`).
    pub memory_bytes: u64,
    /// Whether the cache has several users, who may read different things (`sharing`).
    pub has_users: bool,
}

impl Default for FetchConfig {
    /// 512 MiB.
    fn default() -> Self {
        Self { memory_bytes: 512 * 1024 * 1024, has_users: false }
    }
}

/// The present work of a [`Fetcher`], and its work since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchUsage {
    /// Memory that is reserved now, in bytes; 0 when nothing is under way.
    pub reserved_bytes: u64,
    /// The most memory that may be reserved, in bytes.
    pub memory_bytes: u64,
    /// The number of requests to sources.
    pub requests: u64,
    /// The bytes of blobs that arrived.
    pub fetched_bytes: u64,
}

/// The user for whom a layer is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opener {
    /// The user.
    pub user: UserId,
    /// Whether other users reach the same host by this name. With an unchecked certificate, or a proxy for plain
    /// http, a user may reach a host of the user's own.
    pub is_vouched: bool,
}

impl From<UserId> for Opener {
    fn from(user: UserId) -> Self {
        Self { user, is_vouched: true }
    }
}

/// Which layer to open, and what its manifest says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The blob as the manifest names it.
    pub blob: BlobId,
    /// How the blob holds the bytes of files.
    pub encoding: crate::oci::Encoding,
}

impl LayerSpec {
    fn key(&self) -> LayerKey {
        LayerKey { digest: self.blob.digest, encoding: self.encoding }
    }
}

/// Runs work that waits for the disk, on a thread outside the runtime.
async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("the cache does not panic, and the runtime outlives its tasks")
}

/// Opens layers, each once in the process.
pub struct Fetcher {
    cache: Arc<Cache>,
    layers: Mutex<HashMap<LayerKey, Slot>>,
    admission: Arc<Admission>,
    turns: Arc<Turns>,
    passing: Arc<Passing>,
    /// The rates by host: a few for each registry that was ever mounted from.
    host_paces: Mutex<HashMap<Arc<str>, Arc<HostPace>>>,
    /// Requests to all sources, and the bytes that came.
    counts: Arc<Counts>,
    config: FetchConfig,
}

/// One layer's entry in the table. The async mutex is held while the layer is opened. So a second caller waits for
/// the first scan instead of starting another.
type Slot = Arc<tokio::sync::Mutex<WeakLayer>>;

/// A layer whose contents the cache does not know.
#[derive(Clone, Copy)]
struct Finding<'a> {
    spec: LayerSpec,
    store: &'a Arc<LayerStore>,
    source: &'a Arc<dyn BlobSource>,
    /// The user who waits.
    user: UserId,
    /// Called with the number of blob bytes that were passed so far.
    progress: &'a (dyn Fn(u64) + Send + Sync),
}

impl Fetcher {
    /// A fetcher over `cache`.
    pub fn new(cache: Arc<Cache>, config: FetchConfig) -> Arc<Self> {
        let reply_bytes = config.memory_bytes / 4;
        let transfer_memory_bytes = config.memory_bytes - reply_bytes;
        let admission =
            Admission::new(AdmissionConfig { transfer_memory_bytes, ..AdmissionConfig::default() });
        let (turns, counts) = (Turns::new(reply_bytes), Arc::default());
        let (layers, host_paces) = <(Mutex<HashMap<_, _>>, Mutex<HashMap<_, _>>)>::default();
        let passing = Passing::new(admission.clone());
        Arc::new(Self { cache, layers, admission, turns, passing, host_paces, counts, config })
    }

    /// Its present work, for `kitfs status`.
    pub fn usage(&self) -> FetchUsage {
        FetchUsage {
            reserved_bytes: self.admission.reserved_bytes() + self.turns.reserved_bytes(),
            memory_bytes: self.config.memory_bytes,
            requests: self.counts.requests(),
            fetched_bytes: self.counts.yielded_bytes(),
        }
    }

    /// Requests to all sources, and the bytes that came.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Decides which transfer and which request runs next: to be shared with the sources.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// The time since a reader last waited for bytes. Background work waits for a quiet moment.
    pub fn quiet_for(&self) -> Duration {
        self.admission.quiet_for()
    }

    /// The cache that the layers lie in.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Opens a layer: afterwards its table of contents is known.
    ///
    /// Where the cache does not know the contents, they are read from `source`: the headers of an uncompressed tar,
    /// or all of a compressed layer. `progress` is called with the blob bytes that were passed so far. A layer that
    /// is open already is shared, and gets `source` as a further source. The returned layer reads for the user of
    /// `opener`.
    ///
    /// # Errors
    /// When the source fails, the content is malformed, or the layer is poisoned.
    pub async fn open(
        &self,
        spec: LayerSpec,
        source: Arc<dyn BlobSource>,
        opener: impl Into<Opener>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Arc<Layer>, FetchError> {
        let opener = opener.into();
        let user = opener.user;
        let source: Arc<dyn BlobSource> = Arc::new(Counted::with(source, self.counts.clone()));
        let slot = self.layers.lock().entry(spec.key()).or_default().clone();
        let mut open = slot.lock().await;
        if let Some(layer) = open.upgrade(user) {
            self.admit(spec, layer.store(), &source, opener).await?;
            let host_pace = self.host_pace_of(&source);
            layer.add_source(source, host_pace);
            return Ok(layer);
        }
        let store = self.open_store(spec).await?;
        self.admit(spec, &store, &source, opener).await?;
        if let LayerState::Poisoned { got } = store.state() {
            return Err(FetchError::Poisoned { expected: spec.blob.digest, got });
        }
        let known = store.contents();
        let is_scanned = known.is_none() && !spec.encoding.is_compressed();
        let contents = match known {
            Some(contents) => contents,
            None => {
                let finding = Finding { spec, store: &store, source: &source, user, progress };
                match self.find_contents_or_again(finding).await {
                    Ok(contents) => contents,
                    // An earlier pass, whose command was gone, may have ended while this call waited for it.
                    Err(error) => store.contents().ok_or(error)?,
                }
            }
        };
        let host_pace = self.host_pace_of(&source);
        let shared = layer::Shared {
            cache: self.cache.clone(),
            admission: self.admission.clone(),
            turns: self.turns.clone(),
            passing: self.passing.clone(),
        };
        let scanned = if is_scanned { residency::filled(&store, &contents) } else { Vec::new() };
        let opened = layer::Opened { user, scanned };
        let layer =
            Layer::new(spec, store, contents, RatedSource { source, host_pace }, shared, opened);
        *open = layer.downgrade();
        drop(open);
        self.forget_closed();
        Ok(layer)
    }

    async fn admit(
        &self,
        spec: LayerSpec,
        store: &Arc<LayerStore>,
        source: &Arc<dyn BlobSource>,
        opener: Opener,
    ) -> Result<(), FetchError> {
        if !self.config.has_users {
            return Ok(());
        }
        sharing::admit(&self.cache, spec, store, source, opener).await
    }

    /// Adds a source that a layer's bytes come from when all earlier sources fail.
    pub fn add_fallback(&self, layer: &Layer, source: Arc<dyn BlobSource>) {
        let source: Arc<dyn BlobSource> = Arc::new(Counted::with(source, self.counts.clone()));
        let host_pace = self.host_pace_of(&source);
        layer.add_fallback(source, host_pace);
    }

    /// The measured rate of a source's host. A source without a host gets a rate of its own.
    fn host_pace_of(&self, source: &Arc<dyn BlobSource>) -> Arc<HostPace> {
        match source.host() {
            Some(host) => self.host_paces.lock().entry(host).or_insert_with(HostPace::new).clone(),
            None => HostPace::new(),
        }
    }

    /// Opens the store of a layer on a thread of its own, because a table of contents of a million members takes
    /// long to read.
    async fn open_store(&self, spec: LayerSpec) -> Result<Arc<LayerStore>, FetchError> {
        let cache = self.cache.clone();
        Ok(off_the_runtime(move || cache.layer(spec.key(), spec.blob.size)).await?)
    }

    /// Finds the contents. Tries once more where the bytes may have been wrong. A compressed layer with the right
    /// digest that cannot be decoded is not tried again.
    async fn find_contents_or_again(
        &self,
        finding: Finding<'_>,
    ) -> Result<Arc<Contents>, FetchError> {
        let (spec, store) = (finding.spec, finding.store);
        let may_differ = |error: &FetchError| match error {
            FetchError::Poisoned { .. } => true,
            FetchError::Malformed { .. } => !spec.encoding.is_compressed(),
            _ => false,
        };
        match self.find_contents(finding).await {
            Err(error) if may_differ(&error) && store.contents().is_none() => {
                tracing::warn!(layer = %spec.blob.digest, %error, "a layer came wrong: it is opened once more");
                self.find_contents(finding).await
            }
            found => found,
        }
    }

    async fn find_contents(&self, finding: Finding<'_>) -> Result<Arc<Contents>, FetchError> {
        let Finding { spec, store, source, user, progress } = finding;
        let whose = || Whose { layer: 0, host: source.host() };
        let permit =
            |bytes| self.admission.transfer(whose(), bytes, Urgency::on_demand().of_user(user));
        // The command that opens a kit waits, so background work makes room as for a reader.
        let _reader = self.admission.reader();
        if spec.encoding.is_compressed() {
            let pass = async |windows| {
                let bytes = pass::memory_bytes(spec.encoding.compression, windows);
                let _permit = permit(bytes).await;
                pass::run(spec, windows, store, source, user, progress).await
            };
            let large_bytes = pass::memory_bytes(spec.encoding.compression, Windows::Large);
            return match pass(Windows::Usual).await {
                Err(FetchError::LargeWindow(_)) if self.admission.can_hold(large_bytes) => {
                    pass(Windows::Large).await
                }
                result => result,
            };
        }
        let _permit = permit(SCAN_MEMORY_BYTES).await;
        match spec.encoding.format {
            Format::Tar => scan::run(spec.blob, store, source, user, progress).await,
            Format::Raw | Format::Object => {
                let toc = Toc::raw(spec.blob.size);
                staging::finish(staging::begin(store).await?, toc, RangeSet::new()).await
            }
        }
    }

    /// Drops the entries of layers that are no longer open.
    fn forget_closed(&self) {
        self.layers.lock().retain(|_, slot| match slot.try_lock() {
            Ok(layer) => layer.is_open(),
            Err(_) => true,
        });
    }
}
