//! Runs the work of a command: in the daemon that owns the cache folder, or in this process.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::api::{
    CacheReport, CacheRequest, CatalogueRequest, DaemonStatus, Failure, FailureKind, Info,
    KitRequest, ListRequest, Listing, MountRequest, MountStatus, OpenProgress, ReadRequest,
    RecordRequest, TagInfo, TagsRequest, UnmountReport, WarmEvent, WarmReport, WarmRequest,
};
use super::client::{Client, Liveness, silence};
use super::failure::panicked;
use super::keeping::Keeping;
use super::lifecycle::{self, DaemonConfig};
use super::seen;
use super::service::Service;
use super::socket::{Address, SocketPath};
use crate::fuse::{Answer, daemon_of, other_mounts};
use crate::process::running_time::Stopwatch;

/// The bytes of files, as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, Failure>>;

/// A running daemon, or a service in this process.
pub struct Backend {
    cache_folder: PathBuf,
    kind: Kind,
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

enum Kind {
    Daemon(Client),
    Local(Arc<Service>),
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
                Ok(Self { cache_folder: config.cache_folder.clone(), kind: Kind::Local(service) })
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
                None if lifecycle::is_being_replaced(config, watch.look()) => {
                    tokio::time::sleep(lifecycle::POLL_INTERVAL).await;
                }
                daemon => return Ok(daemon),
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
        let client = Client::new(socket)?;
        match client.liveness().await {
            Liveness::Answers => {
                let kind = Kind::Daemon(client);
                Ok(Some(Self { cache_folder: config.cache_folder.clone(), kind }))
            }
            // The next one may start.
            Liveness::Ends if lifecycle::falls_silent(client.socket()).await => Ok(None),
            Liveness::Ends | Liveness::Silent => {
                let message = format!(
                    "the daemon of {folder}, process {pid}, does not answer ({}): it is stopped, or the \
                     machine is overloaded. `kill -CONT {pid}` continues a stopped process, \
                     `kill -KILL {pid}` ends it",
                    silence()
                );
                Err(Failure::new(FailureKind::Daemon, message))
            }
        }
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

    /// Connects to the daemon at the address that a mount has answered.
    async fn told(told: &str) -> Result<Option<Self>, Failure> {
        let Some(address) = Address::parse(told) else { return Ok(None) };
        for socket in address.sockets() {
            if socket.is_answered_by_own_user().await {
                let kind = Kind::Daemon(Client::new(socket)?);
                return Ok(Some(Self { cache_folder: address.cache_folder.clone(), kind }));
            }
        }
        Ok(None)
    }

    /// Whether the daemon has ended, or ends within a moment. For a request that failed without an
    /// answer.
    pub async fn has_ended(&self) -> bool {
        match &self.kind {
            Kind::Daemon(client) => lifecycle::falls_silent(client.socket()).await,
            Kind::Local(_) => false,
        }
    }

    /// Returns the process, its cache and its mounts.
    pub async fn status(&self) -> Result<DaemonStatus, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.status().await,
            Kind::Local(service) => Ok(service.status().await),
        }
    }

    /// Mounts a kit, and returns when its files can be listed. Calls `on_progress` meanwhile.
    pub async fn mount(
        &self,
        request: MountRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<MountStatus, Failure> {
        match &self.kind {
            Kind::Daemon(client) => seen::mount(client, &request, on_progress).await,
            Kind::Local(service) => {
                let heard = Mutex::new(on_progress);
                service.mount(request, &|progress| heard.lock()(progress)).await
            }
        }
    }

    /// Opens a kit for [`Backend::list`] and [`Backend::read`]. Returns the request with the manifest's
    /// digest, which names the same kit when the tag moves. Calls `on_progress` meanwhile.
    pub async fn open_kit(
        &self,
        request: KitRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<KitRequest, Failure> {
        let reference = match &self.kind {
            Kind::Daemon(client) => {
                let opened = client.open_kit(&request, on_progress).await;
                seen::explained(client, &request.reference, opened).await?
            }
            Kind::Local(service) => {
                let heard = Mutex::new(on_progress);
                service.open_kit(&request, &|progress| heard.lock()(progress)).await?
            }
        };
        // The digest is that of the kit that the labels chose.
        Ok(KitRequest { reference, labels: Vec::new(), ..request })
    }

    /// Downloads a kit, files of it, or the ranges of a trace into the cache. Calls `on_event` meanwhile.
    pub async fn warm(
        &self,
        request: WarmRequest,
        on_event: &mut (dyn FnMut(WarmEvent) + Send),
    ) -> Result<WarmReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => {
                let warmed = client.warm(&request, on_event).await;
                seen::explained(client, &request.kit.reference, warmed).await
            }
            Kind::Local(service) => {
                let heard = Mutex::new(on_event);
                service.warm(request, &|event| heard.lock()(event)).await
            }
        }
    }

    /// Records the reads from a mount, as lines of an access trace, until [`Self::stop_recording`] or the
    /// end of the mount. Only a daemon has mounts.
    pub async fn record(&self, request: &RecordRequest) -> Result<ByteStream, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.record(request).await,
            Kind::Local(_) => Err(no_mounts(request)),
        }
    }

    /// Ends a recording. Its last lines are still to come.
    pub async fn stop_recording(&self, request: &RecordRequest) -> Result<(), Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.stop_recording(request).await,
            Kind::Local(_) => Err(no_mounts(request)),
        }
    }

    /// Ends a mount, with `lazy` also while programs use it. The report names other namespaces that
    /// still have the mount.
    pub async fn unmount(&self, mountpoint: &Path, lazy: bool) -> Result<UnmountReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.unmount(mountpoint, lazy).await,
            Kind::Local(service) => service.unmount(mountpoint, lazy).await,
        }
    }

    /// Ends the daemon and its mounts, and returns when the cache folder is free. The report names
    /// programs that still used a mount.
    pub async fn stop(&self) -> Result<UnmountReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => {
                // The folder of a lost daemon may have another daemon now.
                let is_lost = client.status().await.is_ok_and(|it| it.cache_folder_is_lost);
                let report = client.stop().await?;
                match is_lost {
                    true => lifecycle::wait_until_silent(client.socket()).await,
                    false => lifecycle::wait_until_gone(&self.cache_folder).await,
                }?;
                Ok(report)
            }
            Kind::Local(service) => {
                service.end_mounts().await;
                Ok(UnmountReport::default())
            }
        }
    }

    /// Has another process go on with the mounts of the daemon, and returns its status.
    ///
    /// # Errors
    /// When the daemon has no keeper, or the other process does not answer.
    pub async fn replace(&self, config: &DaemonConfig) -> Result<DaemonStatus, Failure> {
        let Kind::Daemon(client) = &self.kind else { return Err(no_daemon(config)) };
        let before = client.status().await?;
        client.replace().await?;
        lifecycle::wait_for_successor(config, &before).await
    }

    /// Describes a kit or an index. Reads no layer.
    pub async fn info(&self, request: KitRequest) -> Result<Info, Failure> {
        match &self.kind {
            Kind::Daemon(client) => {
                seen::explained(client, &request.reference, client.info(&request).await).await
            }
            Kind::Local(service) => service.info(&request).await,
        }
    }

    /// Lists the repositories of a registry.
    pub async fn catalogue(&self, request: CatalogueRequest) -> Result<Vec<String>, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.catalogue(&request).await,
            Kind::Local(service) => service.catalogue(&request).await,
        }
    }

    /// Lists the tags of a repository.
    pub async fn tags(&self, request: TagsRequest) -> Result<Vec<TagInfo>, Failure> {
        match &self.kind {
            Kind::Daemon(client) => {
                let reference = request.reference.clone().unwrap_or_default();
                seen::explained(client, &reference, client.tags(&request).await).await
            }
            Kind::Local(service) => service.tags(&request).await,
        }
    }

    /// Lists the entries of a kit's tree.
    pub async fn list(&self, request: ListRequest) -> Result<Listing, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.list(&request).await,
            Kind::Local(service) => service.list(&request).await,
        }
    }

    /// Reads files of a kit.
    pub async fn read(&self, request: ReadRequest) -> Result<ByteStream, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.read(&request).await,
            Kind::Local(service) => service.read(&request).await,
        }
    }

    /// Lists, removes or checks layers in the cache.
    pub async fn cache(&self, request: CacheRequest) -> Result<CacheReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.cache(&request).await,
            Kind::Local(service) => service.cache(request).await,
        }
    }
}

fn no_daemon(config: &DaemonConfig) -> Failure {
    let message = format!("no daemon runs for {}", config.cache_folder.display());
    Failure::new(FailureKind::Daemon, message)
}

fn no_mounts(request: &RecordRequest) -> Failure {
    let message = format!(
        "no daemon serves a mount on {}; `kitfs status` lists the mounts",
        request.mountpoint.display()
    );
    Failure::new(FailureKind::NotFound, message)
}
