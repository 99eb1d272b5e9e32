//! Loads kits in this process, from OCI layouts behind sources that fail or stall on request.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use kitfs::cache::{Cache, CacheConfig};
use kitfs::fetch::{FetchConfig, Fetcher};
use kitfs::fs::{self, FileSystem, FsError, Ino, LoadError, LoadRequest, LoadedKit, Read};
use kitfs::oci::{BlobId, BlobOffset, Digest, Origin, Selector};
use kitfs::source::oci_layout::OciLayout;
use kitfs::source::{BlobSource, BlobStream, Repositories, Repository, SourceError, Urgency};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The time limit for closing a cache.
const CLOSE_PATIENCE: Duration = Duration::from_secs(20);

/// The faults of the sources.
pub struct Faults {
    /// The number of next requests that break off half-way.
    broken: AtomicU64,
    /// The number of broken requests whose errors no reader has seen.
    pub fired: AtomicU64,
    /// `true` while requests wait.
    stalled: watch::Sender<bool>,
    /// The byte that comes wrong.
    flip: Mutex<Option<Flip>>,
    /// `true` while requests for the byte that came wrong wait.
    held: watch::Sender<bool>,
}

/// A byte of a blob of this size that comes wrong.
struct Flip {
    blob_bytes: u64,
    at: u64,
    /// How often it comes wrong from now on.
    times: u32,
}

impl Default for Faults {
    fn default() -> Self {
        let (broken, fired) = (AtomicU64::new(0), AtomicU64::new(0));
        let (stalled, held) = (watch::Sender::new(false), watch::Sender::new(false));
        Self { broken, fired, stalled, flip: Mutex::default(), held }
    }
}

impl Faults {
    /// Makes the next `requests` requests break off half-way.
    pub fn break_off(&self, requests: u64) {
        self.broken.store(requests, Ordering::SeqCst);
    }

    /// Makes requests wait until a call with `false`.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }

    /// Changes the byte `at` of the blob of `blob_bytes` bytes the next `times` times that it comes. A
    /// request for it that comes later waits for [`Self::release`].
    pub fn flip(&self, blob_bytes: u64, at: u64, times: u32) {
        *self.flip.lock() = Some(Flip { blob_bytes, at, times });
        self.held.send_replace(true);
    }

    /// Lets requests for the byte that came wrong go on.
    pub fn release(&self) {
        self.held.send_replace(false);
    }

    /// The byte that is to be changed in an answer.
    async fn next_flip(&self, blob: BlobId, range: &Range<BlobOffset>) -> Option<BlobOffset> {
        let flip = {
            let mut flip = self.flip.lock();
            let flip = flip
                .as_mut()
                .filter(|it| it.blob_bytes == blob.size && range.contains(&BlobOffset(it.at)))?;
            let is_left = flip.times > 0;
            flip.times = flip.times.saturating_sub(1);
            is_left.then_some(BlobOffset(flip.at))
        };
        if flip.is_none() {
            let mut held = self.held.subscribe();
            held.wait_for(|held| !held).await.expect("the sender lives in self");
        }
        flip
    }

    fn is_next_broken(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        let is_broken = self.broken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        if is_broken {
            self.fired.fetch_add(1, Ordering::SeqCst);
        }
        is_broken
    }
}

/// Opens repositories of OCI layouts, with faults.
struct Layouts(Arc<Faults>);

impl Repositories for Layouts {
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError> {
        let Origin::OciLayout { folder, .. } = origin else {
            panic!("these tests read OCI layouts only");
        };
        Ok(Arc::new(Faulty { inner: Arc::new(OciLayout::open(folder)?), faults: self.0.clone() }))
    }
}

struct Faulty {
    inner: Arc<OciLayout>,
    faults: Arc<Faults>,
}

impl BlobSource for Faulty {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        async move {
            let mut stalled = self.faults.stalled.subscribe();
            stalled.wait_for(|stalled| !stalled).await.expect("the sender lives in self");
            let is_broken = self.faults.is_next_broken();
            let flip = self.faults.next_flip(blob, &range).await;
            let mut stream = self.inner.open(blob, range, urgency).await?;
            if let Some(at) = flip {
                stream.bytes = flipped(stream.bytes, stream.range.start, at);
            }
            if !is_broken {
                return Ok(stream);
            }
            let half = (stream.range.end - stream.range.start) / 2;
            let mut sent = 0;
            let cut = stream.bytes.map(move |piece| {
                let piece = piece?;
                sent += piece.len() as u64;
                let detail = "a fault of the test".to_owned();
                let broken = SourceError::Unavailable { place: "here".to_owned(), detail };
                if sent > half { Err(broken) } else { Ok(piece) }
            });
            Ok(BlobStream { range: stream.range, bytes: cut.boxed() })
        }
        .boxed()
    }
}

/// The bytes of a stream that starts at `start`, with one of them changed.
fn flipped(
    bytes: BoxStream<'static, Result<Bytes, SourceError>>,
    mut start: BlobOffset,
    at: BlobOffset,
) -> BoxStream<'static, Result<Bytes, SourceError>> {
    let change = move |piece: Result<Bytes, SourceError>| {
        let piece = piece?;
        let within = (start..start + piece.len() as u64).contains(&at).then(|| at - start);
        start += piece.len() as u64;
        let mut changed = piece.to_vec();
        if let Some(within) = within {
            changed[within as usize] ^= 1;
        }
        Ok(changed.into())
    };
    bytes.map(change).boxed()
}

impl Repository for Faulty {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        self.inner.manifest(selector)
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        self.inner.tags()
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

/// The parts of a daemon without a daemon: a runtime, a cache, a fetcher and sources.
pub struct Engine {
    pub runtime: Runtime,
    pub faults: Arc<Faults>,
    fetcher: Arc<Fetcher>,
    config: CacheConfig,
}

impl Engine {
    /// An engine over the cache in `folder`.
    pub fn new(folder: &Path, capacity_bytes: Option<u64>) -> Self {
        let folder: PathBuf = folder.to_owned();
        Self::start(CacheConfig { capacity_bytes, ..CacheConfig::new(folder) }, Arc::default())
    }

    fn start(config: CacheConfig, faults: Arc<Faults>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let cache = Cache::open(config.clone()).expect("the cache can be opened");
        Self { runtime, faults, fetcher: Fetcher::new(cache, FetchConfig::default()), config }
    }

    /// Ends this engine and starts another one over the same cache, as a new daemon would.
    pub fn restart(self) -> Self {
        let Self { runtime, faults, fetcher, config } = self;
        // Running transfers hold the cache. They end with their runtime.
        drop(runtime);
        drop(fetcher);
        // An ending thread of a check or a mount may hold the cache a moment longer.
        let deadline = Instant::now() + CLOSE_PATIENCE;
        while Cache::is_held(&config.folder) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self::start(config, faults)
    }

    /// The cache.
    pub fn cache(&self) -> &Arc<Cache> {
        self.fetcher.cache()
    }

    /// Loads a kit with the umask 022.
    pub fn load(&self, reference: &str) -> Result<LoadedKit, LoadError> {
        self.load_with_umask(reference, 0o022)
    }

    /// Loads a kit.
    pub fn load_with_umask(&self, reference: &str, umask: u32) -> Result<LoadedKit, LoadError> {
        let origin = Origin::parse(reference).expect("a reference");
        let request = LoadRequest { umask, ..LoadRequest::all_of(origin) };
        let layouts = Layouts(self.faults.clone());
        self.runtime.block_on(fs::load(&self.fetcher, &layouts, &request, &|_, _| ()))
    }

    /// Reads from a file system, and waits for bytes that are not resident.
    pub fn read(
        &self,
        file_system: &FileSystem,
        ino: Ino,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, FsError> {
        let mut buffer = BytesMut::new();
        match file_system.read(ino, offset, size, &mut buffer)? {
            Read::Resident(bytes) => Ok(bytes.to_vec()),
            Read::Pending(read) => {
                Ok(self.runtime.block_on(read.finish(std::process::id()))?.to_vec())
            }
        }
    }
}
