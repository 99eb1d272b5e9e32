//! The kits of a browse mount: finds tags and loads kits for `fs/browse`, with the options of the mount.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::kits::{pinned_reference, pinned_request};
use super::service::Service;
use crate::control::api::{BrowseDescription, Failure, FailureKind, KitRequest, MountDescription};
use crate::fs::browse::{BrowseConfig, Hosts, KitSource};
use crate::fs::{FsConfig, FsError, LoadedKit, Owner, Unopened};
use crate::fuse::ByPath;
use crate::oci::{Digest, Origin};
use crate::source::{Repositories as _, Repository as _};

/// The most tags of a repository that a folder lists. A listing of more is of no use to anybody, and each takes
/// some 100 bytes.
const MOST_TAGS: usize = 100_000;

/// The permission bits of a directory before the umask.
const DIRECTORY_MODE: u32 = 0o755;

/// The kits that the options of a mount lead to.
struct Kits {
    service: Weak<Service>,
    /// The options of each kit; its reference has no meaning.
    options: KitRequest,
}

/// The content of a browse mount.
pub(super) fn by_path(
    service: &Arc<Service>,
    description: &MountDescription,
    browse: &BrowseDescription,
) -> ByPath {
    let options = description.kit.clone();
    let config = BrowseConfig {
        hosts: Hosts::new(browse.registries.iter().cloned()),
        tag_ttl: Duration::from_millis(browse.tag_ttl_ms),
        most_awake: browse.most_kits as usize,
        idle_after: Duration::from_millis(browse.idle_ms),
        // `fuse` knows both.
        fs: FsConfig::default(),
        owner: Owner { uid: 0, gid: 0 },
        folder_mode: DIRECTORY_MODE & !options.umask,
    };
    ByPath { source: Box::new(Kits { service: Arc::downgrade(service), options }), config }
}

impl Kits {
    fn work<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Arc<Service>, KitRequest) -> F + Send + 'static,
    ) -> BoxFuture<'static, Result<T, FsError>>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let (service, options) = (self.service.upgrade(), self.options.clone());
        async move {
            let Some(service) = service else {
                return Err(Unopened::Bad.error("the daemon is stopping".to_owned()));
            };
            work(service, options).await.map_err(unopened)
        }
        .boxed()
    }
}

impl KitSource for Kits {
    fn resolve(&self, origin: Origin) -> BoxFuture<'static, Result<Digest, FsError>> {
        self.work(async move |service, options| {
            let request = KitRequest { reference: origin.to_string(), ..options };
            service.resolve(&request, &origin).await
        })
    }

    fn open(&self, origin: Origin) -> BoxFuture<'static, Result<Arc<LoadedKit>, FsError>> {
        self.work(async move |service, options| {
            let request = pinned_request(&options, origin.to_string());
            service.open_pinned(&request).await
        })
    }

    fn tags(&self, origin: Origin) -> BoxFuture<'static, Result<Vec<String>, FsError>> {
        self.work(async move |service, options| service.tags(&options, &origin).await)
    }
}

impl Service {
    /// The kit of a request that names a digest. Asks no registry for a kit that is in the cache.
    async fn open_pinned(self: &Arc<Self>, pinned: &KitRequest) -> Result<Arc<LoadedKit>, Failure> {
        if let Some(kit) = self.kits().find(pinned) {
            return Ok(kit);
        }
        let kit = Arc::new(self.load(pinned, &|_, _| {}).await?);
        if !kit.has_missing() {
            let reference = pinned_reference(&kit.origin, kit.manifest);
            self.kits().share(pinned_request(pinned, reference), &kit);
        }
        Ok(kit)
    }

    /// The tags of a repository.
    async fn tags(&self, options: &KitRequest, origin: &Origin) -> Result<Vec<String>, Failure> {
        let sources = self.networks().sources(&options.network)?;
        let mut tags = sources.open(origin)?.tags().await?;
        if tags.len() > MOST_TAGS {
            tracing::warn!(%origin, tags = tags.len(), "only the first {MOST_TAGS} tags are listed");
            tags.truncate(MOST_TAGS);
        }
        Ok(tags)
    }
}

/// The meaning of a failure to a program that has only an errno. The words go to the log.
fn unopened(failure: Failure) -> FsError {
    let why = match failure.kind {
        FailureKind::NotFound => Unopened::NotThere,
        // A path cannot choose from an index by labels.
        FailureKind::Usage => {
            tracing::warn!(%failure, "a path names no single kit: mount it with --label");
            Unopened::NotThere
        }
        FailureKind::Unauthorized => Unopened::Refused,
        FailureKind::Unavailable | FailureKind::Daemon | FailureKind::Stale => {
            Unopened::Unreachable
        }
        FailureKind::BadContent
        | FailureKind::Cache
        | FailureKind::Mountpoint
        | FailureKind::Internal => Unopened::Bad,
    };
    why.error(failure.message)
}
