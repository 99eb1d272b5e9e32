//! Loads kits in this process, from OCI layouts behind sources that fail or stall on request.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use kitfs::cache::{Cache, CacheConfig};
use kitfs::fetch::{FetchConfig, Fetcher};
use kitfs::fs::{self, FileSystem, FsError, Ino, LoadError, LoadRequest, LoadedKit, Read};
use kitfs::oci::{BlobId, Digest, Origin, Selector};
use kitfs::source::oci_layout::OciLayout;
use kitfs::source::{BlobSource, BlobStream, Repositories, Repository, SourceError, Urgency};
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
}

impl Default for Faults {
    fn default() -> Self {
        let (broken, fired) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { broken, fired, stalled: watch::Sender::new(false) }
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
        range: Range<u64>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        async move {
            let mut stalled = self.faults.stalled.subscribe();
            stalled.wait_for(|stalled| !stalled).await.expect("the sender lives in self");
            let is_broken = self.faults.is_next_broken();
            let stream = self.inner.open(blob, range, urgency).await?;
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
            Read::Pending(read) => Ok(self.runtime.block_on(read.finish())?.to_vec()),
        }
    }
}
