//! Who does the work of a command: the daemon that owns the cache folder, or this process.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::api::{
    CacheReport, CacheRequest, DaemonStatus, Failure, FailureKind, Info, KitRequest, ListRequest,
    Listing, MountRequest, MountStatus, OpenProgress, ReadRequest, RecordRequest, TagInfo,
    TagsRequest, UnmountReport, WarmEvent, WarmReport, WarmRequest,
};
use super::client::Client;
use super::failure::panicked;
use super::lifecycle::{self, DaemonConfig};
use super::service::Service;
use super::socket::{Address, SocketPath};
use crate::fuse::{Answer, daemon_of, other_mounts};

/// Bytes of files as they arrive.
pub type ByteStream = BoxStream<'static, Result<Bytes, Failure>>;

/// A running daemon, or a service in this process.
pub struct Backend {
    cache_folder: PathBuf,
    kind: Kind,
}

enum Kind {
    Daemon(Client),
    Local(Arc<Service>),
}

impl Backend {
    /// Talks to the daemon of the cache folder when one runs; else takes the cache in this
    /// process, for as long as the value lives.
    ///
    /// # Errors
    /// When the cache folder is unusable, or held by a process that is no daemon.
    pub async fn open(config: &DaemonConfig) -> Result<Self, Failure> {
        if let Some(daemon) = Self::running(config).await? {
            return Ok(daemon);
        }
        match lifecycle::open_cache(config).await? {
            Some((cache, child_limits)) => {
                let service = Service::new(cache, config, child_limits, None);
                Ok(Self { cache_folder: config.cache_folder.clone(), kind: Kind::Local(service) })
            }
            None => Self::daemon(config).await,
        }
    }

    /// Talks to the daemon of the cache folder; starts one when none runs.
    ///
    /// # Errors
    /// When no daemon runs and none can be started.
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

    /// Talks to the daemon of the cache folder when one runs.
    ///
    /// # Errors
    /// When no client for its socket can be made. A socket where nobody answers is no daemon.
    pub async fn running(config: &DaemonConfig) -> Result<Option<Self>, Failure> {
        let Ok(socket) = SocketPath::new(&config.cache_folder) else { return Ok(None) };
        if !socket.is_answered().await {
            return Ok(None);
        }
        let kind = Kind::Daemon(Client::new(socket)?);
        Ok(Some(Self { cache_folder: config.cache_folder.clone(), kind }))
    }

    /// Talks to the daemon that serves the mount at a canonical mountpoint, whatever its cache folder;
    /// `None` where no daemon of this user answers for it.
    pub async fn of_mount(mountpoint: &Path) -> Result<Option<Self>, Failure> {
        let mountpoint = mountpoint.to_owned();
        let answer = spawn_blocking(move || daemon_of(&mountpoint)).await.map_err(panicked)?;
        match answer {
            Some(Answer::Daemon(told)) => Self::told(&told).await,
            Some(Answer::Dead | Answer::Silent) | None => Ok(None),
        }
    }

    /// Talks to daemons that were started with the same cache folder, and are no longer found by it:
    /// somebody has removed or replaced the folder. They are known by their mounts.
    pub async fn lost(config: &DaemonConfig) -> Result<Vec<Self>, Failure> {
        let mounts = spawn_blocking(|| other_mounts(&[])).await.map_err(panicked)?;
        let mut daemons = Vec::new();
        let mut known = HashSet::new();
        // What cannot be listed is not found.
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

    /// Talks to the daemon that a mount tells of.
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

    /// Whether the daemon that broke a request off has ended, or is ending just now.
    pub async fn has_ended(&self) -> bool {
        match &self.kind {
            Kind::Daemon(client) => lifecycle::falls_silent(client.socket()).await,
            Kind::Local(_) => false,
        }
    }

    /// The process, its cache and its mounts.
    pub async fn status(&self) -> Result<DaemonStatus, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.status().await,
            Kind::Local(service) => Ok(service.status().await),
        }
    }

    /// Mounts a kit; returns when its tree can be listed. `on_progress` hears how that goes.
    pub async fn mount(
        &self,
        request: MountRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<MountStatus, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.mount(&request, on_progress).await,
            Kind::Local(service) => {
                let heard = Mutex::new(on_progress);
                service.mount(request, &|progress| heard.lock()(progress)).await
            }
        }
    }

    /// Opens a kit, and returns the request that names this very kit for ever: for listing and
    /// reading it. `on_progress` hears how that goes.
    pub async fn open_kit(
        &self,
        request: KitRequest,
        on_progress: &mut (dyn FnMut(OpenProgress) + Send),
    ) -> Result<KitRequest, Failure> {
        let reference = match &self.kind {
            Kind::Daemon(client) => client.open_kit(&request, on_progress).await?,
            Kind::Local(service) => {
                let heard = Mutex::new(on_progress);
                service.open_kit(&request, &|progress| heard.lock()(progress)).await?
            }
        };
        // Labels have chosen it by now.
        Ok(KitRequest { reference, labels: Vec::new(), ..request })
    }

    /// Brings a kit, files of it, or what a trace says to the cache. `on_event` hears how far it is.
    pub async fn warm(
        &self,
        request: WarmRequest,
        on_event: &mut (dyn FnMut(WarmEvent) + Send),
    ) -> Result<WarmReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.warm(&request, on_event).await,
            Kind::Local(service) => {
                let heard = Mutex::new(on_event);
                service.warm(request, &|event| heard.lock()(event)).await
            }
        }
    }

    /// Records what is read from a mount: lines of an access trace, until
    /// [`Self::stop_recording`] or the end of the mount. Only a daemon has mounts.
    pub async fn record(&self, request: &RecordRequest) -> Result<ByteStream, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.record(request).await,
            Kind::Local(_) => Err(no_mounts(request)),
        }
    }

    /// Lets a recording come to its end.
    pub async fn stop_recording(&self, request: &RecordRequest) -> Result<(), Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.stop_recording(request).await,
            Kind::Local(_) => Err(no_mounts(request)),
        }
    }

    /// Ends a mount; `lazy` takes it out of the tree even while programs use it. Says who still uses it
    /// elsewhere.
    pub async fn unmount(&self, mountpoint: &Path, lazy: bool) -> Result<UnmountReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.unmount(mountpoint, lazy).await,
            Kind::Local(service) => service.unmount(mountpoint, lazy).await,
        }
    }

    /// Ends the daemon and its mounts; returns when it has let go of the cache.
    pub async fn stop(&self) -> Result<(), Failure> {
        match &self.kind {
            Kind::Daemon(client) => {
                // The folder may have another daemon by now.
                let is_lost = client.status().await.is_ok_and(|it| it.cache_folder_is_lost);
                client.stop().await?;
                match is_lost {
                    true => lifecycle::wait_until_silent(client.socket()).await,
                    false => lifecycle::wait_until_gone(&self.cache_folder).await,
                }
            }
            Kind::Local(service) => {
                service.end_mounts().await;
                Ok(())
            }
        }
    }

    /// What a kit or an index is, without looking into layers.
    pub async fn info(&self, request: KitRequest) -> Result<Info, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.info(&request).await,
            Kind::Local(service) => service.info(&request).await,
        }
    }

    /// The tags of a repository.
    pub async fn tags(&self, request: TagsRequest) -> Result<Vec<TagInfo>, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.tags(&request).await,
            Kind::Local(service) => service.tags(&request).await,
        }
    }

    /// The entries of a kit's tree.
    pub async fn list(&self, request: ListRequest) -> Result<Listing, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.list(&request).await,
            Kind::Local(service) => service.list(&request).await,
        }
    }

    /// The bytes of files of a kit.
    pub async fn read(&self, request: ReadRequest) -> Result<ByteStream, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.read(&request).await,
            Kind::Local(service) => service.read(&request).await,
        }
    }

    /// What is in the cache, and its upkeep.
    pub async fn cache(&self, request: CacheRequest) -> Result<CacheReport, Failure> {
        match &self.kind {
            Kind::Daemon(client) => client.cache(&request).await,
            Kind::Local(service) => service.cache(request).await,
        }
    }
}

fn no_mounts(request: &RecordRequest) -> Failure {
    let message = format!("no daemon serves {}; see `kitfs status`", request.mountpoint.display());
    Failure::new(FailureKind::NotFound, message)
}
