//! Finds the daemon that owns a cache folder, or does its work in this process.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::failure::panicked;
use super::held_mounts::Keeping;
use super::lifecycle::{self, DaemonConfig};
use super::service::Service;
use super::{mounting, other_view};
use crate::control::VERSION;
use crate::control::api::{
    CloneRequest, Cloned, DaemonStatus, Failure, FailureKind, FilePart, FileStat, KitHandle,
    KitRequest, ListRequest, Listing, MountDescription, MountRequest, MountStatus, OpenProgress,
    OpenRequest, RawPath, ReadRequest, ReplaceRequest, StatRequest, StatusRequest, StopRequest,
    Subject, UnmountReport, UpgradeRequest, WarmEvent, WarmReport, WarmRequest,
};
use crate::control::socket::{Address, SocketPath};
use crate::control::{self, ByteStream, Client, Connection, Handle, Lease, Liveness, Operation};
use crate::fuse::{Answer, Attached, DeviceNumber, OtherMount, daemon_of, other_mounts};
use crate::process::pidfd::Pidfd;
use crate::process::running_time::{self, Stopwatch};

/// How long the daemons of other cache folders may take to tell their status, all together. Two seconds: they answer
/// within milliseconds, and a list of mounts can do without one that hangs.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(2);

/// A running daemon, or a service in this process.
#[derive(Clone)]
pub struct Backend {
    cache_folder: PathBuf,
    connection: Arc<Connection<Service>>,
}

/// A kit that the backend has open. It stays open as long as this value lives.
pub struct OpenKit {
    backend: Backend,
    /// Names this very kit, also to the next process of the daemon.
    pinned: KitRequest,
    open: Mutex<(KitHandle, Lease)>,
}

/// The daemon that serves a mount.
pub enum Server {
    /// A daemon of this user.
    Daemon(Backend),
    /// It hangs, or is another user's.
    Silent,
    /// It is gone, or cannot be reached.
    Gone,
    /// No kit is mounted there, as far as this process sees.
    NoMount,
}

impl Backend {
    /// Connects to the daemon of the cache folder. When none runs, this process owns the cache for as
    /// long as the value lives.
    ///
    /// # Errors
    /// When the cache folder is not usable, or another command owns it.
    pub async fn open(config: &DaemonConfig) -> Result<Self, Failure> {
        if let Some(daemon) = Self::running(config).await? {
            return Ok(daemon);
        }
        match lifecycle::open_cache(config).await? {
            Some((cache, child_limits)) => {
                let service = Service::new(cache, config, child_limits, None, Keeping::none());
                let connection = Arc::new(Connection::InProcess(service));
                Ok(Self { cache_folder: config.cache_folder.clone(), connection })
            }
            None => Self::daemon(config).await,
        }
    }

    /// Connects to the daemon of the cache folder, and starts it when it does not run.
    ///
    /// # Errors
    /// When no daemon runs and kitfs cannot start one.
    pub async fn daemon(config: &DaemonConfig) -> Result<Self, Failure> {
        if let Some(daemon) = Self::running(config).await? {
            return Ok(daemon);
        }
        lifecycle::start(config).await?;
        Self::running(config).await?.ok_or_else(|| {
            let message =
                "the daemon ended right after it was started; see daemon.log in the cache folder";
            Failure::new(FailureKind::Daemon, message)
        })
    }

    /// Connects to the daemon of the cache folder; `None` when none runs. Waits for a daemon whose process
    /// is being replaced.
    ///
    /// # Errors
    /// When the daemon hangs, or the folder is another user's.
    pub async fn running(config: &DaemonConfig) -> Result<Option<Self>, Failure> {
        let mut watch = Stopwatch::start();
        loop {
            match Self::answering(config).await? {
                None if lifecycle::is_being_replaced(config, watch.look())? => {
                    tokio::time::sleep(lifecycle::POLL_INTERVAL).await;
                }
                daemon => return Ok(daemon),
            }
        }
    }

    /// Connects to the system daemon that listens in a runtime folder; `None` when none runs, or this user may
    /// not connect.
    ///
    /// # Errors
    /// When the daemon hangs, or speaks another protocol.
    pub async fn of_system(runtime_folder: &Path) -> Result<Option<Self>, Failure> {
        let Ok(socket) = SocketPath::new(runtime_folder) else { return Ok(None) };
        if !socket.is_answered_by_trusted_user().await {
            return Ok(None);
        }
        let client = Client::new(socket);
        match client.liveness().await {
            Liveness::Answers => Ok(Some(Self::over(runtime_folder.to_owned(), client))),
            Liveness::Foreign(failure) => Err(failure),
            Liveness::Ends => Ok(None),
            Liveness::Silent => {
                let pid = client.socket().listener().await.unwrap_or_default();
                Err(silent(runtime_folder, pid))
            }
        }
    }

    async fn answering(config: &DaemonConfig) -> Result<Option<Self>, Failure> {
        let folder = config.cache_folder.display();
        let not_ours = || {
            let message = format!(
                "the cache folder {folder} is closed to this user: choose another one with --cache-dir"
            );
            Failure::new(FailureKind::Cache, message)
        };
        let socket = match SocketPath::new(&config.cache_folder) {
            Ok(socket) => socket,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(not_ours()),
            Err(_) => return Ok(None),
        };
        let pid = match socket.listener().await {
            Ok(pid) => pid,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(not_ours()),
            Err(_) => return Ok(None),
        };
        let client = Client::new(socket);
        match client.liveness().await {
            Liveness::Answers => Ok(Some(Self::over(config.cache_folder.clone(), client))),
            Liveness::Foreign(failure) => Err(failure),
            // The next one may start.
            Liveness::Ends if lifecycle::falls_silent(client.socket()).await => Ok(None),
            Liveness::Ends | Liveness::Silent => Err(silent(&config.cache_folder, pid)),
        }
    }

    fn over(cache_folder: PathBuf, client: Client) -> Self {
        Self { cache_folder, connection: Arc::new(Connection::Daemon(client)) }
    }

    /// Looks for the daemon of the mount at a canonical mountpoint, whatever its cache folder.
    pub async fn of_mount(mountpoint: &Path) -> Result<Server, Failure> {
        let mountpoint = mountpoint.to_owned();
        let answer = spawn_blocking(move || daemon_of(&mountpoint)).await.map_err(panicked)?;
        Ok(match answer {
            None => Server::NoMount,
            Some(Answer::Daemon(told)) => {
                Self::told(&told).await?.map_or(Server::Gone, Server::Daemon)
            }
            Some(Answer::Silent) => Server::Silent,
            Some(Answer::Dead) => Server::Gone,
        })
    }

    /// Connects to daemons that had this cache folder when somebody removed or replaced it. Their mounts
    /// lead to them.
    pub async fn lost(config: &DaemonConfig) -> Result<Vec<Self>, Failure> {
        let mounts = spawn_blocking(|| other_mounts(&[])).await.map_err(panicked)?;
        let mut daemons = Vec::new();
        let mut known = HashSet::new();
        // Without the list of mounts this function finds no daemon, which is no error.
        for mount in mounts.unwrap_or_default() {
            let Answer::Daemon(told) = mount.answer else { continue };
            let is_ours = |address: Address| {
                address.cache_folder == config.cache_folder && known.insert(told.clone())
            };
            if Address::parse(&told).is_some_and(is_ours)
                && let Some(daemon) = Self::told(&told).await?
                && daemon.status().await?.cache_folder_is_lost
            {
                daemons.push(daemon);
            }
        }
        Ok(daemons)
    }

    /// The daemons of this user that serve other mounts. A daemon that does not answer at once is left out.
    pub async fn statuses_of(mounts: &[OtherMount]) -> Vec<DaemonStatus> {
        let addresses: HashSet<&str> = mounts
            .iter()
            .filter_map(|mount| match &mount.answer {
                Answer::Daemon(told) => Some(told.as_str()),
                Answer::Dead | Answer::Silent => None,
            })
            .collect();
        let asked = addresses.into_iter().map(|told| async move {
            let status = async { Self::told(told).await.ok()??.status().await.ok() };
            running_time::timeout(OTHERS_TIMEOUT, status).await.ok().flatten()
        });
        let mut statuses: Vec<DaemonStatus> = join_all(asked).await.into_iter().flatten().collect();
        statuses.sort_by(|one, other| one.cache_folder.cmp(&other.cache_folder));
        statuses
    }

    /// Connects to the daemon at the address that a mount has answered.
    async fn told(told: &str) -> Result<Option<Self>, Failure> {
        let Some(address) = Address::parse(told) else { return Ok(None) };
        for socket in address.sockets() {
            if socket.is_answered_by_own_user().await {
                return Ok(Some(Self::over(address.cache_folder.clone(), Client::new(socket))));
            }
        }
        Ok(None)
    }

    /// Whether the daemon has ended, or ends within a moment. For a request that failed without an
    /// answer.
    pub async fn has_ended(&self) -> bool {
        match &*self.connection {
            Connection::Daemon(client) => lifecycle::falls_silent(client.socket()).await,
            Connection::InProcess(_) => false,
        }
    }

    /// Sends a request, and waits for its answer.
    ///
    /// # Errors
    /// The failure of the operation, or that the daemon does not answer.
    pub async fn ask<O: Operation>(&self, request: O) -> Result<O::Answer, Failure>
    where
        Service: Handle<O>,
    {
        self.call(request, &mut |_| {}).await
    }

    /// Sends a request, and waits for its answer. Calls `on_event` meanwhile.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn call<O: Operation>(
        &self,
        request: O,
        on_event: &mut (dyn FnMut(O::Event) + Send),
    ) -> Result<O::Answer, Failure>
    where
        Service: Handle<O>,
    {
        self.call_and_keep(request, on_event).await.map(|(answer, _)| answer)
    }

    /// As [`Self::call`]. The lease keeps what the daemon keeps for this command.
    async fn call_and_keep<O: Operation>(
        &self,
        request: O,
        on_event: &mut (dyn FnMut(O::Event) + Send),
    ) -> Result<(O::Answer, Lease), Failure>
    where
        Service: Handle<O>,
    {
        self.send(request, &[], on_event).await
    }

    async fn send<O: Operation>(
        &self,
        request: O,
        descriptors: &[BorrowedFd<'_>],
        on_event: &mut (dyn FnMut(O::Event) + Send),
    ) -> Result<(O::Answer, Lease), Failure>
    where
        Service: Handle<O>,
    {
        let has_paths = request.has_paths();
        match (self.connection.call(request, descriptors, on_event).await, &*self.connection) {
            (Err(failure), Connection::Daemon(_)) if has_paths => {
                Err(other_view::explained(self, failure).await)
            }
            (answer, _) => answer,
        }
    }

    /// Sends a request whose answer is bytes. Returns when the first of them are there, or their end.
    ///
    /// # Errors
    /// The failure of the operation before its first bytes. A later one is an item of the stream.
    pub async fn stream<O: Operation>(&self, request: O) -> Result<ByteStream, Failure>
    where
        Service: Handle<O>,
    {
        self.connection.stream(request).await
    }

    /// The process, its cache and its mounts.
    pub async fn status(&self) -> Result<DaemonStatus, Failure> {
        // Not by `ask`, which asks for the status itself to explain a failure.
        let status = self.connection.call(StatusRequest {}, &[], &mut |event| match event {}).await;
        match (status, &*self.connection) {
            (Err(failure), Connection::Daemon(client)) if failure == control::silence() => {
                let pid = client.socket().listener().await.unwrap_or_default();
                Err(silent(&self.cache_folder, pid))
            }
            (status, _) => Ok(status?.0),
        }
    }

    /// The cache folder, as this command names it.
    pub(super) fn cache_folder(&self) -> &Path {
        &self.cache_folder
    }

    /// Mounts a kit in the part of the file tree that this process sees, and returns when its files can be
    /// listed. With `replace`, the mount takes the place of a mount of kitfs that is there. Calls
    /// `on_progress` meanwhile. The backend must be a daemon, which serves the mount, and ends it when the
    /// process `owner` has ended.
    ///
    /// # Errors
    /// When the mountpoint is not usable, the kit cannot be opened, or the kernel refuses. Nothing is mounted
    /// then.
    pub async fn mount(
        &self,
        description: MountDescription,
        replace: bool,
        owner: Option<&Pidfd>,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<MountStatus, Failure> {
        match replace {
            true => mounting::replace(self, description, owner, on_progress).await,
            false => mounting::mount(self, description, owner, on_progress).await,
        }
    }

    /// Mounts kits by path in the part of the file tree that this process sees. As [`Self::mount`], but no kit is
    /// opened: `description` has the registries that may be asked.
    ///
    /// # Errors
    /// As [`Self::mount`].
    pub async fn browse(
        &self,
        description: MountDescription,
        owner: Option<&Pidfd>,
    ) -> Result<MountStatus, Failure> {
        mounting::browse(self, description, owner).await
    }

    /// Has the daemon serve a mount of kits by path.
    pub(super) async fn serve_by_path(
        &self,
        attached: &Attached,
        mount: MountDescription,
        owner: Option<&Pidfd>,
    ) -> Result<MountStatus, Failure> {
        let request = MountRequest { kit: None, mount, place: attached.place(), replaces: None };
        let descriptors = std::iter::once(attached.device());
        let descriptors: Vec<_> = descriptors.chain(owner.map(AsFd::as_fd)).collect();
        self.send(request, &descriptors, &mut |_| {}).await.map(|(status, _)| status)
    }

    /// Opens a kit. Calls `on_progress` meanwhile.
    pub async fn open_kit(
        &self,
        kit: KitRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<OpenKit, Failure> {
        let (opened, lease) = self.call_and_keep(OpenRequest { kit }, on_progress).await?;
        let open = Mutex::new((opened.kit, lease));
        Ok(OpenKit { backend: self.clone(), pinned: opened.pinned, open })
    }

    /// Ends the daemon and its mounts, and returns when the cache folder is free. The report names
    /// programs that still used a mount.
    pub async fn stop(&self) -> Result<UnmountReport, Failure> {
        let Connection::Daemon(client) = &*self.connection else {
            return self.ask(StopRequest {}).await;
        };
        // The folder of a lost daemon may have another daemon now.
        let is_lost = self.status().await.is_ok_and(|it| it.cache_folder_is_lost);
        let report = self.ask(StopRequest {}).await?;
        match is_lost {
            true => lifecycle::wait_until_silent(client.socket()).await,
            false => lifecycle::wait_until_gone(&self.cache_folder).await,
        }?;
        Ok(report)
    }

    /// Has another process go on with the mounts of the daemon, and returns its status.
    ///
    /// # Errors
    /// When the daemon has no keeper, or the other process does not answer.
    pub async fn replace(&self, config: &DaemonConfig) -> Result<DaemonStatus, Failure> {
        let before = self.status().await?;
        self.ask(ReplaceRequest {}).await?;
        lifecycle::wait_for_successor(config, &before).await
    }

    /// Has keeper and worker of the daemon go on as the program of this command, and returns the status then.
    ///
    /// # Errors
    /// As [`Self::replace`], and when the daemon does not go on as this program.
    pub async fn upgrade(&self, config: &DaemonConfig) -> Result<DaemonStatus, Failure> {
        let daemon = |message: String| Failure::new(FailureKind::Daemon, message);
        let program = std::env::current_exe()
            .map_err(|error| daemon(format!("the path of this program is unknown: {error}")))?;
        let before = self.status().await?;
        self.ask(UpgradeRequest { program }).await?;
        let status = lifecycle::wait_for_successor(config, &before).await?;
        match status.version == VERSION {
            true => Ok(status),
            false => Err(daemon(format!(
                "the daemon goes on as kitfs {}, and not as {VERSION}: daemon.log in the cache folder says why",
                status.version
            ))),
        }
    }
}

/// The failure of a daemon that neither answers nor ends.
fn silent(cache_folder: &Path, pid: i32) -> Failure {
    let message = format!(
        "the daemon of {}, process {pid}, does not answer (no answer for {} s): it is stopped, or the machine \
         is overloaded. `kill -CONT {pid}` continues a stopped process, `kill -KILL {pid}` ends it",
        cache_folder.display(),
        control::ANSWER_TIMEOUT.as_secs()
    );
    Failure::new(FailureKind::Daemon, message)
}

impl OpenKit {
    /// The reference with the digest of the manifest.
    pub(super) fn pinned_reference(&self) -> &str {
        &self.pinned.reference
    }

    /// Lists entries of the kit's tree: those of a directory, or with `recursive` all below it.
    pub async fn list(&self, path: RawPath, recursive: bool) -> Result<Listing, Failure> {
        self.list_with(path, recursive, false).await
    }

    /// As [`Self::list`], with the digests of files where `digests` is set.
    pub async fn list_with(
        &self,
        path: RawPath,
        recursive: bool,
        digests: bool,
    ) -> Result<Listing, Failure> {
        let request = |kit| ListRequest { kit, path: path.clone(), recursive, digests };
        let kit = self.handle().await;
        match self.backend.ask(request(kit)).await {
            Err(failure) if failure.kind == FailureKind::Stale => {
                self.backend.ask(request(self.open_again(kit).await?)).await
            }
            listing => listing,
        }
    }

    /// Reads files of the kit, one behind the other.
    pub async fn read(&self, paths: Vec<RawPath>) -> Result<ByteStream, Failure> {
        self.stream(|kit| ReadRequest { kit, paths: paths.clone(), part: None }).await
    }

    /// Reads a part of one file of the kit.
    pub async fn read_part(&self, path: &RawPath, part: FilePart) -> Result<ByteStream, Failure> {
        self.stream(|kit| ReadRequest { kit, paths: vec![path.clone()], part: Some(part) }).await
    }

    /// Looks at one file or directory of the kit. Symlinks are followed.
    pub async fn stat(&self, path: &RawPath) -> Result<FileStat, Failure> {
        let request = |kit| StatRequest { kit, path: path.clone() };
        let kit = self.handle().await;
        match self.backend.ask(request(kit)).await {
            Err(failure) if failure.kind == FailureKind::Stale => {
                self.backend.ask(request(self.open_again(kit).await?)).await
            }
            stat => stat,
        }
    }

    async fn stream(
        &self,
        request: impl Fn(KitHandle) -> ReadRequest,
    ) -> Result<ByteStream, Failure> {
        let kit = self.handle().await;
        match self.backend.stream(request(kit)).await {
            Err(failure) if failure.kind == FailureKind::Stale => {
                self.backend.stream(request(self.open_again(kit).await?)).await
            }
            bytes => bytes,
        }
    }

    /// Has the daemon copy a file of the kit from its cache into an empty file. `None`: read it instead.
    pub async fn clone_into(
        &self,
        path: &RawPath,
        target: BorrowedFd<'_>,
    ) -> Result<Option<Cloned>, Failure> {
        let request = |kit| CloneRequest { kit, path: path.clone() };
        let kit = self.handle().await;
        let cloned = match self.backend.send(request(kit), &[target], &mut |_| {}).await {
            Err(failure) if failure.kind == FailureKind::Stale => {
                let request = request(self.open_again(kit).await?);
                self.backend.send(request, &[target], &mut |_| {}).await
            }
            cloned => cloned,
        };
        cloned.map(|(cloned, _)| cloned)
    }

    /// Brings whole layers of the kit to the cache, and waits for their digests. Calls `on_event` meanwhile.
    pub async fn warm_layers(
        &self,
        layers: Vec<String>,
        on_event: &mut (dyn FnMut(WarmEvent) + Send),
    ) -> Result<WarmReport, Failure> {
        let kit = self.pinned.clone();
        self.backend
            .call(WarmRequest { kit, paths: Vec::new(), layers, trace: None }, on_event)
            .await
    }

    /// The daemon or service that has the kit open.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Asks about the kit: `request` makes the request for a subject.
    pub async fn ask_about<O: Operation>(
        &self,
        request: impl Fn(Subject) -> O,
    ) -> Result<O::Answer, Failure>
    where
        Service: Handle<O>,
    {
        let kit = self.handle().await;
        match self.backend.ask(request(Subject::Kit(kit))).await {
            Err(failure) if failure.kind == FailureKind::Stale => {
                self.backend.ask(request(Subject::Kit(self.open_again(kit).await?))).await
            }
            answer => answer,
        }
    }

    /// The request that names this very kit.
    pub fn pinned(&self) -> &KitRequest {
        &self.pinned
    }

    /// Has the daemon serve a mount of the kit, which may be to replace another one.
    pub(super) async fn serve(
        &self,
        attached: &Attached,
        mount: MountDescription,
        replaces: Option<DeviceNumber>,
        owner: Option<&Pidfd>,
    ) -> Result<MountStatus, Failure> {
        let place = || attached.place();
        let request =
            |kit| MountRequest { kit: Some(kit), mount: mount.clone(), place: place(), replaces };
        let descriptors = std::iter::once(attached.device());
        let descriptors: Vec<_> = descriptors.chain(owner.map(AsFd::as_fd)).collect();
        let kit = self.handle().await;
        let status = match self.backend.send(request(kit), &descriptors, &mut |_| {}).await {
            Err(failure) if failure.kind == FailureKind::Stale => {
                let request = request(self.open_again(kit).await?);
                self.backend.send(request, &descriptors, &mut |_| {}).await
            }
            status => status,
        };
        status.map(|(status, _)| status)
    }

    async fn handle(&self) -> KitHandle {
        self.open.lock().await.0
    }

    /// Opens the kit again, because the process that had it open is gone.
    async fn open_again(&self, stale: KitHandle) -> Result<KitHandle, Failure> {
        let mut open = self.open.lock().await;
        // Another task may have been faster.
        if open.0 == stale {
            let request = OpenRequest { kit: self.pinned.clone() };
            let (opened, lease) = self.backend.call_and_keep(request, &mut |_| {}).await?;
            *open = (opened.kit, lease);
        }
        Ok(open.0)
    }
}
