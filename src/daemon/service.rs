//! The work itself, for the control socket or for a command in the same process.
//!
//! One service owns one cache folder: its fetcher, its connections, the kits it has open and the
//! mounts it serves. Pure parts, and parts with a table of their own, lie in files of their own; here they
//! are put together.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::api::{
    CacheReport, CacheRequest, CatalogueRequest, DaemonStatus, Failure, FailureKind, Info,
    KitRequest, ListRequest, Listing, MountRequest, MountStatus, OpenProgress, PassProgress,
    ReadRequest, TagInfo, TagsRequest, UnmountReport, WarmEvent, WarmReport, WarmRequest,
};
use super::backend::ByteStream;
use super::failure::panicked;
use super::hydrate::Hydration;
use super::keeping::{Announced, Keeping, TreeMark};
use super::kits::{Kits, pinned_reference};
use super::lifecycle::DaemonConfig;
use super::mounts::{Background, Mounts, stopping};
use super::networks::Networks;
use super::own_paths::own_paths;
use super::replay::{self, Replay};
use super::socket::{Address, FolderSocket};
use super::{describing, fitting, listing, reading, recording, tags, upkeep, waiting, warming};
use crate::cache::Cache;
use crate::fetch::{FetchConfig, Fetcher};
use crate::fs::{self, FsConfig, Line, LoadRequest, LoadedKit};
use crate::fuse::{
    Attached, Mount, MountError, MountOptions, Mountpoint, Sessions, mount_warnings,
};
use crate::kit::Filters;
use crate::oci::{Digest, LabelSelector, Origin};
use crate::process::limits::{ChildLimits, MORE_PROCESSES};
use crate::process::running_time;
use crate::process::view::own_view;

mod taking_over;

/// The version that commands and daemon compare.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long a daemon that ends may take to sync its cache: well below the time that `daemon stop` and
/// systemd's units wait for its end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The sockets of a daemon.
pub(super) struct At {
    /// In its cache folder.
    pub(super) socket: Arc<FolderSocket>,
    /// As its mounts tell it.
    pub(super) address: Address,
}

/// The work that a process does for its commands; see the module.
pub(super) struct Service {
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    networks: Networks,
    child_limits: ChildLimits,
    /// The address for commands; nothing for a command that does the work itself.
    at: Option<At>,
    keeping: Arc<Keeping>,
    kits: Arc<Kits>,
    mounts: Arc<Mounts>,
    /// Started with the first mount: most commands make none.
    sessions: Mutex<Option<Arc<Sessions>>>,
    hydration: Arc<Hydration>,
    started_at: i64,
    stopping: CancellationToken,
    /// Set when [`Self::end_mounts`] is done.
    ended: watch::Sender<Option<UnmountReport>>,
    /// Set when the mounts of the process before are served, or had their time.
    has_taken_over: watch::Sender<bool>,
    /// The tasks that go on with the mounts of the process before.
    taking_over: TaskTracker,
    /// Set before `stopping` where another process goes on with the mounts.
    is_to_be_replaced: AtomicBool,
    draining: CancellationToken,
}

impl Service {
    /// A service over `cache`; programs that it starts get `child_limits`.
    pub(super) fn new(
        cache: Arc<Cache>,
        config: &DaemonConfig,
        child_limits: ChildLimits,
        at: Option<At>,
        keeping: Arc<Keeping>,
    ) -> Arc<Self> {
        tracing::debug!(?config, "the cache is open");
        let fetch_config = FetchConfig { memory_bytes: config.memory_bytes };
        let fetcher = Fetcher::new(cache.clone(), fetch_config);
        Arc::new(Self {
            hydration: Hydration::new(cache.clone(), fetcher.clone()),
            fetcher,
            cache,
            networks: Networks::new(child_limits),
            child_limits,
            at,
            has_taken_over: watch::Sender::new(!keeping.is_kept()),
            taking_over: TaskTracker::new(),
            keeping,
            kits: Arc::default(),
            mounts: Arc::default(),
            sessions: Mutex::default(),
            started_at: now(),
            stopping: CancellationToken::new(),
            ended: watch::Sender::default(),
            is_to_be_replaced: AtomicBool::new(false),
            draining: CancellationToken::new(),
        })
    }

    pub(super) async fn status(&self) -> DaemonStatus {
        self.taken_over().await;
        let mounts = self.mounts.statuses().await;
        DaemonStatus {
            pid: self.keeping.keeper().unwrap_or_else(std::process::id),
            worker_pid: std::process::id(),
            version: VERSION.to_owned(),
            cache_folder: self.cache.folder().to_owned(),
            cache_folder_is_lost: !self.is_reachable(),
            view: own_view().ok(),
            cache_resident_bytes: self.cache.resident_bytes(),
            cache_capacity_bytes: self.cache.capacity_bytes(),
            cache_keep_free_bytes: self.cache.keep_free_bytes(),
            cache_trouble: self.cache.trouble(),
            fetch: describing::fetch_status(self.fetcher.usage()),
            started_at: self.started_at,
            mounts,
        }
    }

    /// Mounts a kit. Dropping the future before its end leaves nothing mounted.
    pub(super) async fn mount(
        &self,
        request: MountRequest,
        progress: &(dyn Fn(OpenProgress) + Send + Sync),
    ) -> Result<MountStatus, Failure> {
        if !request.mountpoint.is_absolute() {
            let message =
                format!("the mountpoint {} is not absolute", request.mountpoint.display());
            return Err(Failure::new(FailureKind::Usage, message));
        }
        self.taken_over().await;
        let reservation = self.mounts.reserve(&request.mountpoint).await?;
        let options = self.mount_options(&request);
        let config = fs_config(&request);
        let checked = options.clone();
        let mountpoint =
            spawn_blocking(move || Mountpoint::prepare(&checked)).await.map_err(panicked)??;
        let replaced = mountpoint.warnings();
        let on_pass = |passed_bytes, total_bytes| {
            progress(OpenProgress::Passing(PassProgress { passed_bytes, total_bytes }));
        };
        let on_wait = |waiting| progress(OpenProgress::Waiting(waiting));
        let kit = self.load(&request.kit, &on_pass);
        let kit = tokio::select! {
            kit = waiting::told(&self.networks, &request.kit.network, &on_wait, kit) => {
                Arc::new(kit?)
            }
            () = self.stopping.cancelled() => return Err(stopping()),
        };
        if !kit.has_missing() {
            self.kits.share(pinned_request(&request.kit, &kit.origin, kit.manifest), &kit);
        }
        let trace = match request.trace.clone() {
            Some(file) => Some(self.load_replay(&kit, file).await?),
            None => None,
        };
        let mounted_at = now();
        let (served, sessions, keeping) = (kit.clone(), self.sessions()?, self.keeping.clone());
        let wanted = request.clone();
        let mount = move || {
            let attached = Attached::new(&served.origin.to_string(), mountpoint, &options)?;
            let unkept = |error: std::io::Error| {
                MountError::Io(format!("the mount cannot be handed to the keeper: {error}"))
            };
            let kept = keeping.hold(&attached, &wanted).map_err(unkept)?;
            let tree = TreeMark::of(&served);
            let pinned = pinned_reference(&served.origin, served.manifest);
            let mount = Mount::serve(attached, served, &options, config, sessions)?;
            if let Some(kept) = &kept {
                let announced = Announced { pinned, tree, state: mount.state(), mounted_at };
                kept.announce(&announced).map_err(unkept)?;
            }
            Ok::<_, MountError>((mount, kept))
        };
        let (mount, kept) = spawn_blocking(mount).await.map_err(panicked)??;
        let warnings = trace.as_ref().map(Replay::warnings).unwrap_or_default();
        let background = self.background(&mount, &request, trace);
        let reference = request.kit.reference;
        let no_room = self.no_room(&kit).await;
        let mut status = reservation.fulfil(mount, kit, reference, mounted_at, background, kept)?;
        status.warnings.extend(replaced);
        status.warnings.extend(warnings);
        status.warnings.extend(mount_warnings());
        status.warnings.extend(no_room);
        tracing::info!(reference = status.reference, digest = status.digest,
            mountpoint = %status.mountpoint.display(), "mounted");
        Ok(status)
    }

    fn mount_options(&self, request: &MountRequest) -> MountOptions {
        MountOptions {
            mountpoint: request.mountpoint.clone(),
            allow_other: request.allow_other,
            nonempty: request.nonempty,
            noexec: request.noexec,
            passthrough: !request.no_passthrough,
            child_limits: self.child_limits,
            own_paths: own_paths(self.cache.folder(), request),
            daemon: self.at.as_ref().map(|at| at.address.to_text()).unwrap_or_default(),
        }
    }

    /// Starts the work beside a mount.
    fn background(
        &self,
        mount: &Mount,
        request: &MountRequest,
        trace: Option<Replay>,
    ) -> Background {
        let quiet = Duration::from_secs(request.hydrate_after_seconds);
        Background {
            hydrating: self.hydration.begin(mount.file_system(), request.hydrate, quiet),
            _replay: trace.map(|trace| AbortOnDropHandle::new(tokio::spawn(replay_quietly(trace)))),
        }
    }

    /// The threads that answer the kernel.
    fn sessions(&self) -> Result<Arc<Sessions>, Failure> {
        let mut sessions = self.sessions.lock();
        if let Some(sessions) = &*sessions {
            return Ok(sessions.clone());
        }
        let started = Sessions::start().map_err(|error| {
            let message =
                format!("no thread can be started to serve mounts ({error}): {MORE_PROCESSES}");
            Failure::new(FailureKind::Internal, message)
        })?;
        Ok(sessions.insert(started).clone())
    }

    /// A warning about a kit that does not fit the cache.
    async fn no_room(&self, kit: &Arc<LoadedKit>) -> Option<String> {
        let (cache, kit) = (self.cache.clone(), kit.clone());
        // A file system that does not answer must not hold up others.
        spawn_blocking(move || fitting::warning(&cache, &kit)).await.ok().flatten()
    }

    async fn load_replay(&self, kit: &Arc<LoadedKit>, file: PathBuf) -> Result<Replay, Failure> {
        let kit = kit.clone();
        spawn_blocking(move || replay::load(&kit, &file)).await.map_err(panicked)?
    }

    /// Brings a kit, files of it, or what a trace says to the cache.
    pub(super) async fn warm(
        &self,
        request: WarmRequest,
        report: &(dyn Fn(WarmEvent) + Send + Sync),
    ) -> Result<WarmReport, Failure> {
        let on_pass = |passed_bytes, total_bytes| {
            report(WarmEvent::Passing(PassProgress { passed_bytes, total_bytes }));
        };
        let on_wait = |waiting| report(WarmEvent::Waiting(waiting));
        let progress = |layers| report(WarmEvent::Layers(layers));
        let network = request.kit.network.clone();
        let work = async {
            let kit = match self.known(&request.kit).await? {
                Some(kit) => kit,
                // Not kept: when the command is gone, its requests end.
                None => Arc::new(self.load(&request.kit, &on_pass).await?),
            };
            match request.trace {
                Some(file) => {
                    let replay = self.load_replay(&kit, file).await?;
                    warming::replay(&self.cache, &kit, replay, &progress).await
                }
                None => {
                    let filters = match request.kit.filters.is_empty() {
                        true => None,
                        false => Some(Filters::parse(&request.kit.filters)?),
                    };
                    let (paths, filters) = (&request.paths, filters.as_ref());
                    warming::warm(&self.cache, &kit, paths, filters, &progress).await
                }
            }
        };
        tokio::select! {
            report = waiting::told(&self.networks, &network, &on_wait, work) => report,
            () = self.stopping.cancelled() => Err(stopping()),
        }
    }

    /// Records the reads from a mount. The stream ends when the mount ends, or when
    /// [`Service::stop_recording`] says so.
    pub(super) async fn record(
        &self,
        mountpoint: &Path,
    ) -> Result<BoxStream<'static, Line>, Failure> {
        self.taken_over().await;
        let served = self.mounts.at(mountpoint)?;
        let Some(reads) = recording::begin(&served).await else {
            let message = format!("reads from {} are being recorded already", mountpoint.display());
            return Err(Failure::new(FailureKind::Mountpoint, message));
        };
        let stop = served.new_recording();
        let digest = served.kit().manifest.to_string();
        let header = Line::header(served.reference().to_owned(), digest, now());
        Ok(recording::lines(&served, reads, header, stop))
    }

    /// Lets the recording of a mount come to its end.
    pub(super) fn stop_recording(&self, mountpoint: &Path) -> Result<(), Failure> {
        self.mounts.at(mountpoint)?.stop_recording();
        Ok(())
    }

    /// Ends a mount; returns warnings about programs that still use it elsewhere.
    pub(super) async fn unmount(
        &self,
        mountpoint: &Path,
        lazy: bool,
    ) -> Result<UnmountReport, Failure> {
        self.taken_over().await;
        let warnings = self.mounts.unmount(mountpoint, lazy).await?;
        // Without a mount no command finds this daemon again.
        if !self.is_reachable() && self.has_no_mounts() {
            self.request_stop();
        }
        Ok(UnmountReport { warnings })
    }

    /// Whether commands find the daemon by its cache folder.
    pub(super) fn is_reachable(&self) -> bool {
        self.at.as_ref().is_none_or(|at| at.socket.is_reachable())
    }

    /// Removes the socket, so that commands do not wait for a daemon that has ended.
    pub(super) fn remove_socket(&self) {
        self.at.iter().for_each(|at| at.socket.remove());
    }

    /// Whether nothing is mounted, and nothing is being mounted.
    pub(super) fn has_no_mounts(&self) -> bool {
        self.mounts.is_empty()
    }

    /// Ends every mount, those that are being made too; none can be made afterwards.
    pub(super) async fn end_mounts(&self) {
        self.stopping.cancel();
        let warnings = self.mounts.end_all().await;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.ended.send_replace(Some(UnmountReport { warnings }));
    }

    /// Ends every mount, then the daemon. Returns when the mounts have ended, with warnings about
    /// programs that still use one.
    pub(super) async fn stop(&self) -> UnmountReport {
        self.request_stop();
        let mut ended = self.ended.subscribe();
        let report = ended.wait_for(Option::is_some).await;
        report.ok().and_then(|report| report.clone()).unwrap_or_default()
    }

    /// Gets what the cache has onto the disk, as far as that comes to its end soon.
    pub(super) async fn settle(&self) {
        let (cache, deadline) = (self.cache.clone(), Instant::now() + SETTLE_TIMEOUT);
        let (done, settled) = tokio::sync::oneshot::channel::<()>();
        // A thread that the end of the process does not wait for: one file may take the disk longer.
        // Nothing is lost then: the next start counts and checks anew.
        let thread = std::thread::Builder::new().name("kitfs-settle".to_owned());
        let spawned = thread.spawn(move || {
            cache.settle(&|| Instant::now() < deadline);
            drop(done);
        });
        if spawned.is_ok() {
            let _ = running_time::timeout(SETTLE_TIMEOUT, settled).await;
        }
    }

    /// Done when the mount at `mountpoint` has ended.
    pub(super) async fn ended(&self, mountpoint: &Path) {
        self.mounts.ended(mountpoint).await;
    }

    pub(super) fn request_stop(&self) {
        self.stopping.cancel();
    }

    /// Ends this process, and has the keeper start another one that goes on with the mounts.
    ///
    /// # Errors
    /// `Daemon` where this process has no keeper.
    pub(super) fn request_replacement(&self) -> Result<(), Failure> {
        if !self.keeping.is_kept() {
            let message = "this daemon has no keeper that could start it again: it was started by \
                `kitfs mount --foreground` or `kitfs daemon run`";
            return Err(Failure::new(FailureKind::Daemon, message));
        }
        self.is_to_be_replaced.store(true, Ordering::SeqCst);
        self.stopping.cancel();
        Ok(())
    }

    /// Whether this process ends for another one.
    pub(super) fn is_to_be_replaced(&self) -> bool {
        self.is_to_be_replaced.load(Ordering::SeqCst)
    }

    pub(super) async fn stop_requested(&self) {
        self.stopping.cancelled().await;
    }

    /// Lets the control socket's server end.
    pub(super) fn drain(&self) {
        self.draining.cancel();
    }

    pub(super) fn drained(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.draining.clone().cancelled_owned()
    }

    pub(super) async fn info(&self, request: &KitRequest) -> Result<Info, Failure> {
        let origin = Origin::parse(&request.reference)?;
        let labels = LabelSelector::parse(&request.labels)?;
        let sources = self.networks.sources(&request.network)?;
        let described = fs::look(&self.fetcher, &*sources, &origin, &labels).await?;
        Ok(describing::info(&request.reference, &described))
    }

    pub(super) async fn tags(&self, request: &TagsRequest) -> Result<Vec<TagInfo>, Failure> {
        let sources = self.networks.sources(&request.network)?;
        tags::tags(&self.fetcher, &sources, request).await
    }

    pub(super) async fn catalogue(
        &self,
        request: &CatalogueRequest,
    ) -> Result<Vec<String>, Failure> {
        let sources = self.networks.sources(&request.network)?;
        Ok(sources.catalogue(&request.host).await?)
    }

    pub(super) async fn list(&self, request: &ListRequest) -> Result<Listing, Failure> {
        let kit = self.kit(&request.kit).await?;
        listing::list(&kit, request)
    }

    pub(super) async fn read(&self, request: &ReadRequest) -> Result<ByteStream, Failure> {
        let kit = self.kit(&request.kit).await?;
        reading::open(kit, &request.paths)
    }

    pub(super) async fn cache(&self, request: CacheRequest) -> Result<CacheReport, Failure> {
        if matches!(request, CacheRequest::Remove(_) | CacheRequest::Clear) {
            self.kits.let_go();
        }
        let (cache, mounts) = (self.cache.clone(), self.mounts.clone());
        spawn_blocking(move || upkeep::run(&cache, &mounts, &request)).await.map_err(panicked)?
    }

    /// Opens a kit for the requests that follow, which name it by the reference that this returns:
    /// it stands for the same kit for ever.
    pub(super) async fn open_kit(
        &self,
        request: &KitRequest,
        progress: &(dyn Fn(OpenProgress) + Send + Sync),
    ) -> Result<String, Failure> {
        let on_pass = |passed_bytes, total_bytes| {
            progress(OpenProgress::Passing(PassProgress { passed_bytes, total_bytes }));
        };
        let on_wait = |waiting| progress(OpenProgress::Waiting(waiting));
        let kit = async {
            match self.known(request).await? {
                Some(kit) => Ok(kit),
                None => self.load_and_keep(request, &on_pass).await,
            }
        };
        let kit = waiting::told(&self.networks, &request.network, &on_wait, kit).await?;
        Ok(pinned_reference(&kit.origin, kit.manifest))
    }

    /// A kit for reading, loaded unless it still is from a moment ago.
    async fn kit(&self, request: &KitRequest) -> Result<Arc<LoadedKit>, Failure> {
        match self.known(request).await? {
            Some(kit) => Ok(kit),
            None => self.load_and_keep(request, &|_, _| {}).await,
        }
    }

    /// A kit that still is open. A tag is looked up anew; what [`Self::open_kit`] has returned stands for
    /// one kit for ever, so a command that reads thousands of files resolves it once.
    async fn known(&self, request: &KitRequest) -> Result<Option<Arc<LoadedKit>>, Failure> {
        if self.kits.is_empty() {
            return Ok(None);
        }
        if let Some(kit) = self.kits.find(request) {
            return Ok(Some(kit));
        }
        let origin = Origin::parse(&request.reference)?;
        let sources = self.networks.sources(&request.network)?;
        let labels = LabelSelector::parse(&request.labels)?;
        let description = fs::describe(&self.fetcher, &*sources, &origin, &labels).await?;
        Ok(self.kits.find(&pinned_request(request, &origin, description.digest)))
    }

    async fn load_and_keep(
        &self,
        request: &KitRequest,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Arc<LoadedKit>, Failure> {
        let kit = Arc::new(self.load(request, progress).await?);
        // The next command looks anew for data that could not be had.
        if !kit.has_missing() {
            self.kits.keep(pinned_request(request, &kit.origin, kit.manifest), &kit);
        }
        Ok(kit)
    }

    async fn load(
        &self,
        request: &KitRequest,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<LoadedKit, Failure> {
        let sources = self.networks.sources(&request.network)?;
        let request = LoadRequest {
            origin: Origin::parse(&request.reference)?,
            labels: LabelSelector::parse(&request.labels)?,
            filters: Filters::parse(&request.filters)?,
            allow_empty: request.allow_empty,
            remote: !request.no_remote,
            umask: request.umask & 0o777,
        };
        // The log of a mount in the foreground is all that its user sees.
        let logged_tenths = AtomicU64::new(0);
        let on_pass = |passed_bytes: u64, total_bytes: u64| {
            progress(passed_bytes, total_bytes);
            let tenths = passed_bytes / (total_bytes / 10).max(1);
            if logged_tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
                tracing::info!(origin = %request.origin, passed_bytes, total_bytes,
                    "reading compressed layers");
            }
        };
        Ok(fs::load(&self.fetcher, &*sources, &request, &on_pass).await?)
    }
}

/// The request that names the same kit for ever; labels have done their work by then.
fn pinned_request(request: &KitRequest, origin: &Origin, manifest: Digest) -> KitRequest {
    let reference = pinned_reference(origin, manifest);
    KitRequest { reference, labels: Vec::new(), ..request.clone() }
}

fn fs_config(request: &MountRequest) -> FsConfig {
    FsConfig { tensor_prefetch: request.tensor_prefetch, ..FsConfig::default() }
}

/// Replays a trace beside a mount, whose readers hear of what fails by themselves.
async fn replay_quietly(replay: Replay) {
    if let Err(error) = replay.run(|_| {}).await {
        tracing::warn!(%error, "replaying an access trace ended early");
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
