//! The work of a daemon, or of a command that does the work itself.
//!
//! One service owns one cache folder: its fetcher, its connections, the kits that it has open and the
//! mounts that it serves.
//!
//! - `operations`: the work of each operation of the control plane.
//! - `files`: operations of the HTTP interface. `opening`: opens kits. `mounting`: serves mounts. `taking_over`: goes on with the mounts of a process
//!   that is gone. `restoring`: makes mounts again that died with their daemon. `users`: what the users of a
//!   system daemon may do.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::Observed;
use super::held_mounts::Keeping;
use super::hydrate::Hydration;
use super::kits::Kits;
use super::lifecycle::DaemonConfig;
use super::listening::ListenConfig;
use super::mounts::{MountKey, Mounts, stopping};
use super::networks::Networks;
use super::{describing, successor};
use crate::cache::Cache;
use crate::control::VERSION;
use crate::control::api::{DaemonStatus, Failure, FailureKind, UnmountReport};
use crate::control::socket::{Address, FolderSocket};
use crate::fetch::{FetchConfig, Fetcher};
use crate::fuse::{Look, Observers, ReadTracer, Sessions};
use crate::process::limits::ChildLimits;
use crate::process::running_time;
use crate::process::view::own_view;

mod files;
mod looking;
mod mounting;
mod opening;
mod operations;
mod restoring;
mod taking_over;
mod users;

pub(super) use mounting::ToServe;

/// How long a daemon that ends may take to sync its cache: well below the time that `daemon stop` and
/// systemd's units wait for its end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The sockets of a daemon.
pub(super) struct At {
    /// In its cache folder.
    pub(super) socket: Arc<FolderSocket>,
    /// As its mounts tell it.
    pub(super) address: Address,
    /// Of the HTTP interface.
    pub(super) http: Option<SocketAddr>,
}

/// The work that a process does for its commands; see the module.
pub struct Service {
    cache: Arc<Cache>,
    fetcher: Arc<Fetcher>,
    networks: Networks,
    child_limits: ChildLimits,
    /// The address for commands; nothing for a command that does the work itself.
    at: Option<At>,
    /// The part of the file tree that this process sees; `None` where it cannot tell.
    view: Option<String>,
    /// Whether it has several users: a system daemon.
    has_users: bool,
    keeping: Arc<Keeping>,
    kits: Arc<Kits>,
    mounts: Arc<Mounts>,
    /// Started with the first mount: most commands make none.
    sessions: Mutex<Option<Arc<Sessions>>>,
    hydration: Arc<Hydration>,
    observed: Observed,
    /// Set before the first mount, where reads are traced.
    tracer: OnceLock<Arc<dyn ReadTracer>>,
    started_at: i64,
    /// The setting of the daemon, for its status.
    idle_exit: Option<Duration>,
    /// The setting of the daemon, for its successor.
    listen: Option<ListenConfig>,
    stopping: CancellationToken,
    /// Set when [`Self::end_mounts`] is done.
    ended: watch::Sender<Option<UnmountReport>>,
    /// Set when the mounts of the process before are served, or had their time.
    has_taken_over: watch::Sender<bool>,
    /// Set when dead mounts of the journal are made again, or had their time.
    has_restored: watch::Sender<bool>,
    /// Held while mounts of the journal are made again.
    restoring: tokio::sync::Mutex<()>,
    /// The tasks that wait for the registries of such mounts.
    restoring_later: TaskTracker,
    /// Why each of them waits, by the name of the mount's file in the journal.
    waiting: Mutex<HashMap<String, String>>,
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
        let fetch_config =
            FetchConfig { memory_bytes: config.memory_bytes, has_users: config.system.is_some() };
        let fetcher = Fetcher::new(cache.clone(), fetch_config);
        Arc::new(Self {
            hydration: Hydration::new(cache.clone(), fetcher.clone()),
            observed: Observed::new(fetcher.clone(), cache.clone()),
            tracer: OnceLock::new(),
            networks: Networks::new(fetcher.admission().clone(), child_limits),
            fetcher,
            cache,
            child_limits,
            at,
            view: own_view().ok(),
            has_users: config.system.is_some(),
            has_taken_over: watch::Sender::new(!keeping.is_kept()),
            has_restored: watch::Sender::new(!keeping.is_kept()),
            restoring: tokio::sync::Mutex::default(),
            restoring_later: TaskTracker::new(),
            waiting: Mutex::default(),
            taking_over: TaskTracker::new(),
            keeping,
            kits: Arc::default(),
            mounts: Arc::default(),
            sessions: Mutex::default(),
            started_at: now(),
            idle_exit: config.idle_exit,
            listen: config.listen.clone(),
            stopping: CancellationToken::new(),
            ended: watch::Sender::default(),
            is_to_be_replaced: AtomicBool::new(false),
            draining: CancellationToken::new(),
        })
    }

    pub(super) async fn status(&self) -> DaemonStatus {
        self.taken_over().await;
        self.restored().await;
        let mounts = self.mounts.statuses().await;
        // Counts layers that nobody has counted since the start.
        let cache = self.cache.clone();
        let resident_bytes = spawn_blocking(move || cache.resident_bytes()).await;
        DaemonStatus {
            pid: self.keeping.keeper().unwrap_or_else(std::process::id),
            worker_pid: std::process::id(),
            idle_exit_seconds: self.idle_exit.map(|limit| limit.as_secs()),
            version: VERSION.to_owned(),
            cache_folder: self.cache.folder().to_owned(),
            cache_folder_is_lost: !self.is_reachable(),
            http: self
                .at
                .as_ref()
                .and_then(|at| at.http)
                .map(|address| format!("http://{address}")),
            log: self.at.as_ref().map(|_| super::log::place(self.cache.folder())),
            view: self.view.clone(),
            cache_resident_bytes: resident_bytes.unwrap_or_default(),
            cache_capacity_bytes: self.cache.capacity_bytes(),
            cache_keep_free_bytes: self.cache.keep_free_bytes(),
            cache_trouble: self.cache.trouble(),
            fetch: describing::fetch_status(self.fetcher.usage()),
            started_at: self.started_at,
            mounts,
        }
    }

    /// Whether commands find the daemon by its cache folder.
    pub(super) fn is_reachable(&self) -> bool {
        self.at.as_ref().is_none_or(|at| at.socket.is_reachable())
    }

    /// The progress of the threads that answer the kernel; `None` before the first mount.
    pub(super) fn look_at_threads(&self) -> Option<Look> {
        self.sessions.lock().as_ref().map(|sessions| sessions.look())
    }

    /// Removes the socket, so that commands do not wait for a daemon that has ended.
    pub(super) fn remove_socket(&self) {
        self.at.iter().for_each(|at| at.socket.remove());
    }

    /// The kits that are open.
    pub(super) fn kits(&self) -> &Arc<Kits> {
        &self.kits
    }

    /// The connections to registries.
    pub(super) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The work that the process has done.
    pub(super) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Gives each read that waits to `tracer`. To be called before the first mount.
    #[cfg(feature = "otlp")]
    pub(super) fn trace_reads(&self, tracer: Arc<dyn ReadTracer>) {
        let _ = self.tracer.set(tracer);
    }

    /// The observers of the reads of all mounts.
    fn observers(&self) -> Observers {
        Observers { reads: self.observed.reads().clone(), tracer: self.tracer.get().cloned() }
    }

    /// The table of mounts.
    pub(super) fn mounts(&self) -> &Arc<Mounts> {
        &self.mounts
    }

    /// Whether nothing is mounted, and nothing is being mounted.
    pub(super) fn has_no_mounts(&self) -> bool {
        self.mounts.is_empty()
    }

    /// Whether mounts are served, being made, taken over or waited for, or programs have files open of one that is out of
    /// the tree.
    pub(super) fn is_in_use(&self) -> bool {
        !*self.has_taken_over.borrow()
            || !*self.has_restored.borrow()
            || !self.taking_over.is_empty()
            || !self.restoring_later.is_empty()
            || self.mounts.is_used()
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

    /// Done when the mount at `key` has ended.
    pub(super) async fn ended(&self, key: &MountKey) {
        self.mounts.ended(key).await;
    }

    pub(super) fn request_stop(&self) {
        self.stopping.cancel();
    }

    /// Ends this process, and has the keeper start another one that goes on with the mounts. That is of
    /// `program`, else of the program that this one was started from, which may be a newer version by now.
    ///
    /// # Errors
    /// `Daemon` where this process has no keeper, or the program cannot go on with its mounts.
    pub(super) async fn request_replacement(
        &self,
        program: Option<PathBuf>,
    ) -> Result<(), Failure> {
        if !self.keeping.is_kept() {
            let message = "this daemon has no keeper that could start it again: it was started by \
                `kitfs mount --foreground` or `kitfs daemon run`";
            return Err(Failure::new(FailureKind::Daemon, message));
        }
        if let Some(program) =
            program.or_else(|| self.keeping.program_on_disk().map(Path::to_owned))
        {
            successor::ask(&program, self.listen.as_ref()).await?;
            self.keeping.set_successor(program);
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

    pub(super) fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
