//! Opens kits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::kits::{pinned_reference, pinned_request};
use super::super::near_tags::with_near_tags;
use super::super::waiting;
use super::Service;
use crate::control::api::{Failure, KitRequest, OpenProgress, PassProgress};
use crate::fs::{self, Description, LoadRequest, LoadedKit};
use crate::kit::Filters;
use crate::oci::{Digest, LabelSelector, Origin};
use crate::source::admission::UserId;

/// The time before the log tells how a kit is opened: a person at a terminal begins to wonder.
const UNTOLD: Duration = Duration::from_secs(3);

impl Service {
    /// Opens a kit, or finds it open. Calls `tell` meanwhile. The caller keeps it open.
    pub(in crate::daemon) async fn open(
        &self,
        request: &KitRequest,
        tell: &(dyn Fn(OpenProgress) + Send + Sync),
    ) -> Result<Arc<LoadedKit>, Failure> {
        let on_pass = |passed_bytes, total_bytes| {
            tell(OpenProgress::Passing(PassProgress { passed_bytes, total_bytes }));
        };
        let on_wait = |waiting| tell(OpenProgress::Waiting(waiting));
        let kit = async {
            match self.known(request).await? {
                Some(kit) => Ok(kit),
                None => self.load(request, &on_pass).await.map(Arc::new),
            }
        };
        let opened = waiting::told(&self.networks, &request.network, &on_wait, kit).await;
        let kit = match opened {
            Ok(kit) => kit,
            Err(failure) => {
                let origin = Origin::parse(&request.reference)?;
                let sources = self.networks.sources(&request.network)?;
                return Err(with_near_tags(&sources, &origin, failure).await);
            }
        };
        self.mounts.note_tag(&request.reference, kit.manifest);
        Ok(kit)
    }

    /// A kit that is open. A tag is resolved again: it may have moved.
    pub(super) async fn known(
        &self,
        request: &KitRequest,
    ) -> Result<Option<Arc<LoadedKit>>, Failure> {
        if self.kits.is_empty() {
            return Ok(None);
        }
        if let Some(kit) = self.kits.find(request) {
            return Ok(Some(kit));
        }
        let origin = Origin::parse(&request.reference)?;
        let description = self.describe(request, &origin).await?;
        let pinned = pinned_reference(&origin, description.digest);
        let known = self.kits.find(&pinned_request(request, pinned));
        if let Some(kit) = &known {
            kit.resolved_again(description.warning);
        }
        Ok(known)
    }

    /// The manifest that a request names at the moment. `origin` is that of the request.
    pub(in crate::daemon) async fn resolve(
        &self,
        request: &KitRequest,
        origin: &Origin,
    ) -> Result<Digest, Failure> {
        Ok(self.describe(request, origin).await?.digest)
    }

    async fn describe(
        &self,
        request: &KitRequest,
        origin: &Origin,
    ) -> Result<Description, Failure> {
        let sources = self.networks.sources(&request.network)?;
        let labels = LabelSelector::parse(&request.labels)?;
        Ok(fs::describe(&self.fetcher, &*sources, origin, &labels).await?)
    }

    /// Loads a kit. Calls `progress` with the compressed bytes that were read, and their sum.
    pub(in crate::daemon) async fn load(
        &self,
        request: &KitRequest,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<LoadedKit, Failure> {
        let sources = self.networks.sources(&request.network)?;
        let user = request.network.user;
        let is_vouched = request.network.is_vouched();
        let request = LoadRequest {
            origin: Origin::parse(&request.reference)?,
            labels: LabelSelector::parse(&request.labels)?,
            filters: Filters::parse(&request.filters)?,
            allow_empty: request.allow_empty,
            remote: !request.no_remote,
            umask: request.umask & 0o777,
            user: user.map_or_else(UserId::of_process, UserId),
            is_vouched,
        };
        // The log of a mount in the foreground is all that its user sees.
        let (logged_tenths, began) = (AtomicU64::new(0), Instant::now());
        let on_pass = |passed_bytes: u64, total_bytes: u64| {
            progress(passed_bytes, total_bytes);
            let tenths = passed_bytes / (total_bytes / 10).max(1);
            if logged_tenths.fetch_max(tenths, Ordering::Relaxed) < tenths {
                // Most kits are open before.
                if began.elapsed() >= UNTOLD {
                    tracing::info!(origin = %request.origin, passed_bytes, total_bytes, "reading headers");
                }
            }
        };
        Ok(fs::load(&self.fetcher, &*sources, &request, &on_pass).await?)
    }
}
