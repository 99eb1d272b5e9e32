//! Starting, running and ending a daemon.
//!
//! ```text
//! command --socket answers?--> use it
//!    '--no--> spawn `kitfs daemon keep`, wait for its "ready" line --> use it
//!                  |  its worker, `kitfs daemon run`:
//!                  lock cache --> listen --> serve --signal or stop--> unmount --> close --> unlock
//! ```
//!
//! A daemon is a fresh process of this binary (never a fork of a running one): it makes itself
//! the leader of a session of its own, writes its log to `daemon.log` in the cache folder, and
//! says `ready` on its standard output when it listens.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::{JoinSet, spawn_blocking};
use url::Url;

use super::backend::Backend;
use super::descriptors;
use super::failure::cache_failure;
use super::held_mounts::Keeping;
use super::idle::end_when_idle;
use super::keeper_process;
use super::listening::{self, ListenConfig};
use super::log::{self, Log};
use super::machine;
use super::mounts::MountKey;
use super::service::{At, Service};
use super::signals::{self, Place, Signals, Told};
#[cfg(feature = "otlp")]
use super::traces::Traces;
use super::watchdog::{self, Watchdog};
use crate::cache::{Cache, CacheConfig};
use crate::control;
use crate::control::api::{DaemonStatus, Failure, FailureKind, MountDescription, MountStatus};
use crate::control::socket::{Address, FolderSocket, SocketPath};
use crate::http::{self, HttpConfig};
use crate::keeper::Order;
use crate::observe::LogFormat;
use crate::process::limits::ChildLimits;
use crate::process::running_time::{self, Stopwatch};

/// The settings of a daemon, or of a command that takes the cache itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonConfig {
    /// The cache folder; made when it is missing.
    pub cache_folder: PathBuf,
    /// The most bytes of content on disk; `None` is unlimited.
    pub cache_capacity_bytes: Option<u64>,
    /// Free space to leave on the cache folder's file system, in bytes.
    pub keep_free_bytes: u64,
    /// Memory for bytes under way, in bytes.
    pub memory_bytes: u64,
    /// The time without mounts and commands after which a daemon ends; `None` for never.
    pub idle_exit: Option<Duration>,
    /// Set for a daemon of several users.
    pub system: Option<SystemConfig>,
    /// Set for a daemon with an HTTP interface.
    pub listen: Option<ListenConfig>,
    /// The collector of traces: its base URL. Only with the feature `otlp`.
    pub otlp: Option<Url>,
    /// The format of the log.
    pub log_format: LogFormat,
}

/// The settings of a daemon that runs as root for several users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemConfig {
    /// The folder of the socket for the users; made when it is missing.
    pub runtime_folder: PathBuf,
    /// The group whose members may connect; `None` for root alone.
    pub group: Option<u32>,
}

impl DaemonConfig {
    /// Makes the cache folder where it is missing. Other users cannot look into it.
    pub(super) fn make_cache_folder(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.cache_folder)
    }

    pub(super) fn open_cache(&self) -> Result<Arc<Cache>, Failure> {
        let config = CacheConfig {
            folder: self.cache_folder.clone(),
            capacity_bytes: self.cache_capacity_bytes,
            keep_free_bytes: self.keep_free_bytes,
            open_files: machine::cache_files(),
            boot: machine::boot_id(),
        };
        Cache::open(config).map_err(|error| cache_failure(&error))
    }
}

/// The line with which a daemon says that it listens.
pub const READY_LINE: &str = "ready";
/// How long a daemon may take until it listens. Opening a cache takes a few file reads; the rest
/// is for a machine that is short of memory.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a daemon may take to end its mounts and its process.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long open control connections may hold up a daemon that ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a folder that is held may take until its holder answers or lets go: a daemon that
/// starts or ends, or a command that is nearly done. A long-running holder is an error.
pub(super) const HELD_PATIENCE: Duration = Duration::from_secs(1);
/// The interval between two looks whether the cache folder is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a process that goes on with mounts may take for all of them before a command says so.
const SUCCESSOR_PATIENCE: Duration = Duration::from_secs(10);
/// How long a command waits for a daemon whose process is being replaced.
const REPLACEMENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait between two starts of a keeper: at first, and at most.
const KEEPER_INTERVAL: Duration = Duration::from_millis(500);
const LONGEST_KEEPER_INTERVAL: Duration = Duration::from_secs(30);
/// The interval between two looks at a condition outside this process.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The variables by which systemd asks a service to report (sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)).
const SUPERVISOR_VARIABLES: [&str; 5] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"];

/// Runs a daemon in this process until a signal, `kitfs daemon stop` or the end of `mount`.
///
/// `mount` is made first, and `ready` is called once the socket listens and the mount is made. With
/// `is_kept`, the standard input leads to a keeper, which hands over the mounts of an earlier process. `watchdog` gets
/// pings from then on.
///
/// # Errors
/// When the cache folder is held or unusable, or the mount cannot be made.
pub async fn run(
    config: DaemonConfig,
    mount: Option<MountDescription>,
    is_kept: bool,
    watchdog: Option<Watchdog>,
    ready: impl FnOnce(Option<&MountStatus>) + Send,
) -> Result<(), Failure> {
    // First of all: the keeper hands over three descriptors for each mount.
    let child_limits = prepare();
    let (keeping, held) = match is_kept {
        true => Keeping::from_keeper().map_err(|error| keeper_failure(&error))?,
        false => (Keeping::none(), Vec::new()),
    };
    if !is_kept && keeper_process::is_kept(&config.cache_folder) {
        return Err(used_by_daemon(&config));
    }
    let cache = config.open_cache()?;
    keeping.open_journal(&config.cache_folder);
    let (socket, listener) = FolderSocket::listen(&config.cache_folder)
        .map_err(|error| socket_failure(&config, &error))?;
    let mut address = Address::new(&config.cache_folder);
    let by_name = address.listen().unwrap_or_else(|error| {
        tracing::warn!(%error, "mounts cannot tell how their daemon is reached");
        None
    });
    if by_name.is_none() {
        address.control = None;
    }
    let for_users = config.system.as_ref().map(|system| {
        FolderSocket::listen_for(&system.runtime_folder, system.group).map_err(|error| {
            let folder = system.runtime_folder.display();
            let message =
                format!("cannot listen for the users of the machine in {folder}: {error}");
            Failure::new(FailureKind::Daemon, message)
        })
    });
    let (socket_for_users, for_users) = for_users.transpose()?.unzip();
    let listening = config.listen.as_ref().map(listening::listen).transpose()?.flatten();
    let http = listening.as_ref().map(|listener| open_http(listener, &config)).transpose()?;
    let address_of_http = http.as_ref().map(|(_, config)| config.address);
    let for_keeper = for_next_keeper(&config, address_of_http);
    let at = At { socket: Arc::new(socket), address, http: address_of_http };
    let service = Service::new(cache, &config, child_limits, Some(at), keeping.clone());
    #[cfg(feature = "otlp")]
    let traces = config.otlp.as_ref().map(Traces::start).transpose()?;
    #[cfg(feature = "otlp")]
    traces.iter().for_each(|traces| service.trace_reads(traces.tracer()));
    let listeners = [Some(listener), by_name].into_iter().flatten();
    let activity = Arc::new(control::Activity::default());
    let admits: control::Admission = Arc::new(is_owner);
    let mut servers: JoinSet<()> = listeners
        .map(|listener| {
            let (service, activity) = (service.clone(), activity.clone());
            let draining = service.draining();
            control::serve(listener, service, admits.clone(), activity, draining)
        })
        .collect();
    if let Some(listener) = for_users {
        // The mode of the socket has let them connect.
        let admits: control::Admission = Arc::new(|_| true);
        let draining = service.draining();
        servers.spawn(control::serve(
            listener,
            service.clone(),
            admits,
            activity.clone(),
            draining,
        ));
    }

    if let Some((listener, config)) = http {
        let (activity, draining) = (activity.clone(), service.draining());
        servers.spawn(http::serve(listener, service.clone(), config, activity, draining));
    }

    let taking_over = tokio::spawn({
        let service = service.clone();
        async move { service.take_over(held).await }
    });
    let log = Log::of_this_process(&config.cache_folder);
    let keep_short = async {
        match &log {
            Some(log) => log.keep_short().await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = serve_until_told(&service, &keeping, mount, ready, log.as_ref()) => outcome,
        never = keep_short => match never {},
        never = watch_folder(&service) => match never {},
        never = watchdog::ping(watchdog, &service, &config.cache_folder) => match never {},
        never = service.observed().sample() => match never {},
        never = end_when_idle(&service, &activity, config.idle_exit) => match never {},
        never = keep_keeper(&for_keeper, &keeping, child_limits, listening.as_ref()) => match never {},
    };
    if service.is_to_be_replaced() {
        // The next process goes on with every mount, so none may be released from here on.
        keeping.note_end(Order::Replace);
        service.settle().await;
        #[cfg(feature = "otlp")]
        finish(traces).await;
        service.drain();
        let drained = async { while servers.join_next().await.is_some() {} };
        let _ = running_time::timeout(DRAIN_TIMEOUT, drained).await;
        // At once: to drop a mount would unmount it, and to drop a task would answer its read with EIO. The
        // kernel repeats both to the next process.
        std::process::exit(0);
    }
    keeping.note_end(Order::End);
    service.end_mounts().await;
    // Mounts that were not taken over yet end, too.
    let given_up = async {
        let _ = taking_over.await;
        service.all_taken_over().await;
    };
    let is_given_up = running_time::timeout(STOP_TIMEOUT, given_up).await.is_ok();
    if is_given_up {
        keeping.note_ended();
    }
    service.settle().await;
    #[cfg(feature = "otlp")]
    finish(traces).await;
    service.drain();
    let drained = async { while servers.join_next().await.is_some() {} };
    // Connections that are left end with the process.
    let _ = running_time::timeout(DRAIN_TIMEOUT, drained).await;
    service.remove_socket();
    socket_for_users.iter().for_each(FolderSocket::remove);
    outcome
}

#[cfg(feature = "otlp")]
async fn finish(traces: Option<Traces>) {
    if let Some(traces) = traces {
        traces.finish().await;
    }
}

/// The listener of the HTTP interface, and its settings.
fn open_http(
    listener: &std::net::TcpListener,
    config: &DaemonConfig,
) -> Result<(tokio::net::TcpListener, HttpConfig), Failure> {
    let failed = |error: io::Error| Failure::new(FailureKind::Internal, error.to_string());
    // The next keeper gets a copy of the listener.
    let listener = listener.try_clone().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (is_public, kit) = match &config.listen {
        Some(listen) => (listen.is_public, listen.kit.clone()),
        None => (false, None),
    };
    tracing::info!(%address, is_public, "HTTP is served");
    Ok((listener, HttpConfig { address, is_public, kit }))
}

/// The settings of a keeper that this process starts: it gets the listener as its standard output.
fn for_next_keeper(config: &DaemonConfig, http: Option<SocketAddr>) -> DaemonConfig {
    let listen = config.listen.clone().map(|listen| match http {
        Some(address) => ListenConfig { address, socket: Some(listening::OUTPUT), ..listen },
        None => ListenConfig { socket: None, ..listen },
    });
    DaemonConfig { listen, ..config.clone() }
}

/// The user of the daemon, and root, may send requests.
fn is_owner(peer: control::Peer) -> bool {
    peer.uid == rustix::process::geteuid().as_raw() || peer.uid == 0
}

/// Starts another keeper whenever the keeper is gone. Never done.
async fn keep_keeper(
    config: &DaemonConfig,
    keeping: &Arc<Keeping>,
    child_limits: ChildLimits,
    listener: Option<&std::net::TcpListener>,
) -> std::convert::Infallible {
    let mut pause = KEEPER_INTERVAL;
    loop {
        let began = Instant::now();
        keeping.lost().await;
        if began.elapsed() > LONGEST_KEEPER_INTERVAL {
            pause = KEEPER_INTERVAL;
        }
        tracing::warn!("the keeper is gone: starting another one");
        let (config, keeping) = (config.clone(), keeping.clone());
        let listener = listener.and_then(|listener| listener.try_clone().ok());
        let start = move || keeping.start_keeper(&config, child_limits, listener.map(Into::into));
        let started =
            spawn_blocking(start).await.unwrap_or_else(|error| Err(io::Error::other(error)));
        if let Err(error) = started {
            tracing::error!(%error, "no keeper: until there is one, mounts end with this process");
        }
        // A keeper that ends at once must fill neither the processor nor the log.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_KEEPER_INTERVAL);
    }
}

/// Notices that the cache folder was removed or replaced. A daemon that commands no longer find ends when
/// it has no mounts. Never done.
async fn watch_folder(service: &Service) -> std::convert::Infallible {
    let mut has_told = false;
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        if service.is_reachable() {
            continue;
        }
        if !std::mem::replace(&mut has_told, true) {
            tracing::error!(
                "the cache folder was removed or replaced: mounts go on with what is open, and the daemon \
                 ends with the last of them"
            );
        }
        if service.has_no_mounts() {
            service.request_stop();
        }
    }
}

async fn serve_until_told(
    service: &Arc<Service>,
    keeping: &Keeping,
    mount: Option<MountDescription>,
    ready: impl FnOnce(Option<&MountStatus>) + Send,
    log: Option<&Log>,
) -> Result<(), Failure> {
    let internal = |error: io::Error| Failure::new(FailureKind::Internal, error.to_string());
    let place = if mount.is_some() { Place::Foreground } else { Place::Background };
    let mut signals = Signals::listen(place).map_err(internal)?;
    let told = async {
        loop {
            tokio::select! {
                told = signals.next() => match told {
                    Told::End(signal) => {
                        // The machine may go down: `daemon start --restore` makes them again.
                        keeping.journal().iter().for_each(|journal| journal.park());
                        return signal;
                    }
                    Told::ReopenLog => log.into_iter().for_each(Log::reopen),
                },
                () = service.stop_requested() => return "a stop request",
            }
        }
    };
    tokio::pin!(told);
    let only_mount: Option<MountKey> =
        mount.as_ref().map(|mount| service.mount_key(None, mount.mountpoint.clone()));
    let status = match mount {
        None => None,
        Some(mount) => tokio::select! {
            reason = &mut told => {
                tracing::info!(reason, "stopped before the mount was made");
                return Ok(());
            }
            status = service.mount(mount, &|_| {}) => Some(status?),
        },
    };
    ready(status.as_ref());
    let reason = match only_mount {
        None => told.await,
        Some(key) => tokio::select! {
            reason = told => reason,
            () = service.ended(&key) => "the mount ended",
        },
    };
    tracing::info!(reason, "stopping");
    Ok(())
}

/// Makes this process a daemon: the leader of a session of its own, without a terminal.
///
/// To be called before threads are started.
pub fn detach() {
    // Fails only for the leader of a process group, which has no terminal to lose.
    let _ = rustix::process::setsid();
}

/// Says that the daemon listens, and lets go of the standard output, which is a pipe to the
/// command that started it.
pub fn report_ready() {
    use io::Write as _;
    let mut output = io::stdout();
    let said = writeln!(output, "{READY_LINE}").and_then(|()| output.flush());
    if let Err(error) = said {
        tracing::debug!(%error, "the command that started this daemon is gone");
    }
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

/// Starts a daemon, unless one comes to answer meanwhile; returns when one does.
pub(super) async fn start(config: &DaemonConfig) -> Result<(), Failure> {
    let mut watch = Stopwatch::start();
    loop {
        let was_held = is_held(&config.cache_folder);
        match spawn(config).await {
            Ok(()) => return Ok(()),
            // Another command was faster, or a daemon is about to end. Other failures of the folder do
            // not pass.
            Err(failure)
                if failure.kind == FailureKind::Cache
                    && (was_held || is_held(&config.cache_folder))
                    && watch.look() < HELD_PATIENCE =>
            {
                tokio::time::sleep(POLL_INTERVAL).await;
                let socket = SocketPath::new(&config.cache_folder)
                    .map_err(|error| socket_failure(config, &error))?;
                if socket.is_answered().await {
                    return Ok(());
                }
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Makes this process fit to own a cache: many files open, and no end by the limit of file sizes.
/// Returns what programs that it starts are to get back.
fn prepare() -> ChildLimits {
    signals::survive_file_size_limit();
    ChildLimits::raise_own()
}

/// Opens the cache for a command, with the limits of its children; `None` when a daemon that was just starting has it.
///
/// # Errors
/// When the folder is unusable, or held by a process that neither answers nor ends soon.
pub(super) async fn open_cache(
    config: &DaemonConfig,
) -> Result<Option<(Arc<Cache>, ChildLimits)>, Failure> {
    let child_limits = prepare();
    let mut watch = Stopwatch::start();
    loop {
        // The folder of a worker that died is free for a moment, and belongs to the next worker.
        let opened = match keeper_process::is_kept(&config.cache_folder) {
            true => Err(starting(config)),
            false => config.open_cache(),
        };
        match opened {
            Ok(cache) => return Ok(Some((cache, child_limits))),
            Err(_) if is_held(&config.cache_folder) && watch.look() < HELD_PATIENCE => {
                let socket = SocketPath::new(&config.cache_folder)
                    .map_err(|error| socket_failure(config, &error))?;
                if socket.is_answered().await {
                    return Ok(None);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether a daemon, or a command, holds a cache folder.
fn is_held(folder: &Path) -> bool {
    keeper_process::is_kept(folder) || Cache::is_held(folder)
}

async fn spawn(config: &DaemonConfig) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let folder = config.cache_folder.display();
        Failure::new(FailureKind::Daemon, format!("cannot start the daemon for {folder}: {error}"))
    };
    let opened = config.make_cache_folder().and_then(|()| log::open(&config.cache_folder));
    let (mut log, log_path) = opened.map_err(|error| socket_failure(config, &error))?;
    let log_start = log.seek(SeekFrom::End(0)).map_err(failed)?;
    let mut command = Command::from(keeper_process::keeper_command(config).map_err(failed)?);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(log.try_clone().map_err(failed)?);
    // A service that mounts a kit speaks for itself: its supervisor must not take the daemon's words for the service's.
    SUPERVISOR_VARIABLES.iter().for_each(|name| _ = command.env_remove(name));
    // The daemon outlives the program that called this command, and would keep its files open.
    descriptors::close_on_exec().map_err(failed)?;
    let mut child = command.spawn().map_err(failed)?;
    let output = child.stdout.take().expect("the standard output is piped");
    let mut line = String::new();
    let mut output = BufReader::new(output);
    let read = running_time::timeout(START_TIMEOUT, output.read_line(&mut line)).await;
    if matches!(read, Ok(Ok(_))) && line.trim_end() == READY_LINE {
        return Ok(());
    }
    // A keeper whose first worker died ends with the exit code of that worker.
    if running_time::timeout(HELD_PATIENCE, child.wait()).await.is_err() {
        let _ = child.start_kill();
    }
    let code = child.wait().await.ok().and_then(|status| status.code());
    let mut words = String::new();
    let _ = log.seek(SeekFrom::Start(log_start)).and_then(|_| log.read_to_string(&mut words));
    let last_words = words.lines().rev().find_map(|line| line.strip_prefix("kitfs: "));
    let detail = last_words.or(words.lines().last()).unwrap_or("it said nothing");
    let kind = super::failure::kind_of_exit_code(code);
    let message = match kind {
        FailureKind::Cache => detail.to_owned(),
        _ => format!("the daemon did not start: {detail} (log: {})", log_path.display()),
    };
    Err(Failure::new(kind, message))
}

/// Waits until the daemon of `folder` has let go of its cache.
pub(super) async fn wait_until_gone(folder: &Path) -> Result<(), Failure> {
    let is_gone = async || !is_held(folder);
    wait_until(is_gone, &format!("the daemon of {}", folder.display())).await
}

/// Whether a daemon that does not answer for `silence` is worth waiting for: its keeper starts the next
/// process.
///
/// # Errors
/// When the keeper is stopped: it starts none.
pub(super) fn is_being_replaced(config: &DaemonConfig, silence: Duration) -> Result<bool, Failure> {
    let folder = &config.cache_folder;
    if !keeper_process::is_kept(folder) {
        return Ok(false);
    }
    match keeper_process::stopped_keeper(folder) {
        Some(words) if silence > HELD_PATIENCE => Err(Failure::new(FailureKind::Daemon, words)),
        _ => Ok(silence < REPLACEMENT_PATIENCE),
    }
}

/// Waits until a process other than that of `before` answers. Gives it some time to go on with all mounts.
pub(super) async fn wait_for_successor(
    config: &DaemonConfig,
    before: &DaemonStatus,
) -> Result<DaemonStatus, Failure> {
    let mut watch = Stopwatch::start();
    loop {
        let answer = async { Backend::running(config).await.ok().flatten()?.status().await.ok() };
        match answer.await {
            Some(status)
                if status.worker_pid != before.worker_pid
                    && (status.mounts.len() >= before.mounts.len()
                        || watch.look() > SUCCESSOR_PATIENCE) =>
            {
                return Ok(status);
            }
            _ if watch.look() > START_TIMEOUT => {
                let message =
                    "the next process does not answer; see daemon.log in the cache folder";
                return Err(Failure::new(FailureKind::Daemon, message));
            }
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Waits until nobody answers at a socket any more.
pub(super) async fn wait_until_silent(socket: &SocketPath) -> Result<(), Failure> {
    wait_until(async || !socket.is_answered().await, "the daemon").await
}

async fn wait_until(is_so: impl AsyncFn() -> bool, who: &str) -> Result<(), Failure> {
    let mut watch = Stopwatch::start();
    while !is_so().await {
        if watch.look() > STOP_TIMEOUT {
            let message = format!("{who} was told to stop and still runs; its log says why");
            return Err(Failure::new(FailureKind::Daemon, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Whether nobody answers at a socket, now or in a moment: a process that is killed lets go of its
/// connections before its socket, or after.
pub(super) async fn falls_silent(socket: &SocketPath) -> bool {
    let mut watch = Stopwatch::start();
    while socket.is_answered().await {
        if watch.look() > HELD_PATIENCE {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    true
}

fn starting(config: &DaemonConfig) -> Failure {
    Failure::new(FailureKind::Cache, keeper_process::held_by_keeper(&config.cache_folder))
}

fn used_by_daemon(config: &DaemonConfig) -> Failure {
    let folder = config.cache_folder.display();
    let message = format!(
        "a daemon uses the cache folder {folder}: end it with `kitfs daemon stop`, or give this mount a folder \
         of its own with --cache-dir"
    );
    Failure::new(FailureKind::Cache, message)
}

fn keeper_failure(error: &io::Error) -> Failure {
    let message = format!("--kept is for the keeper, which starts this process itself: {error}");
    Failure::new(FailureKind::Usage, message)
}

fn socket_failure(config: &DaemonConfig, error: &io::Error) -> Failure {
    keeper_process::unusable(&config.cache_folder, error)
}
