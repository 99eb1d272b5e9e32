//! Tags that move under a mount.
//!
//! A mount of a tag learns which manifest the tag names: by a look at the registry now and then, and from each
//! command that opens the tag. `kitfs status` names another manifest. With `--follow` the kit of that manifest takes
//! the place of the mounted one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

use super::failure::panicked;
use super::kits::{pinned_reference, pinned_request};
use super::service::{Service, ToServe};
use crate::control::api::{Failure, FailureKind, MountDescription};
use crate::fs::LoadedKit;
use crate::fuse::{Attached, Before, MountPlace, Mountpoint, unmount_other};
use crate::oci::{Digest, Origin, Selector};

/// The interval between two looks without `--follow`: one small request, for a note in `kitfs status`.
const LOOK_INTERVAL: Duration = Duration::from_secs(600);

/// The shortest interval between two looks. A request with less would take a processor, and ask the registry
/// without a pause.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// The look at the tag of one mount. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Following {
    manifest: Digest,
    state: Arc<Mutex<State>>,
    _task: Option<AbortOnDropHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    moved_to: Option<Digest>,
    failure: Option<String>,
}

/// A mount, and the tag that it was made from.
struct Followed {
    service: Arc<Service>,
    description: MountDescription,
    place: MountPlace,
    origin: Origin,
    manifest: Digest,
    state: Arc<Mutex<State>>,
}

impl Following {
    /// Begins to look at the tag of a mount. A digest does not move.
    pub(super) fn begin(
        service: &Arc<Service>,
        description: &MountDescription,
        place: &MountPlace,
        manifest: Digest,
    ) -> Self {
        let state = Arc::<Mutex<State>>::default();
        let origin = Origin::parse(&description.kit.reference).ok();
        let origin = origin.filter(|it| !matches!(it.selector(), Some(Selector::Digest(_))));
        let task = origin.map(|origin| {
            let (description, place) = (description.clone(), place.clone());
            let (service, state) = (service.clone(), state.clone());
            let followed = Followed { service, description, place, origin, manifest, state };
            AbortOnDropHandle::new(tokio::spawn(Arc::new(followed).follow()))
        });
        Self { manifest, state, _task: task }
    }

    /// Notes the manifest that the tag names by now.
    pub(super) fn note(&self, named: Digest) {
        self.state.lock().moved_to = Some(named).filter(|named| *named != self.manifest);
    }

    /// The manifest that the tag names by now, if it is another one, and why its kit could not take the place
    /// of the mounted one.
    pub(super) fn state(&self) -> (Option<Digest>, Option<String>) {
        let state = self.state.lock();
        (state.moved_to, state.failure.clone())
    }
}

impl Followed {
    async fn follow(self: Arc<Self>) {
        let follow = self.description.follow_seconds.map(Duration::from_secs);
        let follow = follow.map(|interval| interval.max(SHORTEST_INTERVAL));
        loop {
            tokio::time::sleep(follow.unwrap_or(LOOK_INTERVAL)).await;
            let kit = &self.description.kit;
            let named = match self.service.resolve(kit, &self.origin).await {
                Ok(named) => named,
                Err(failure) => {
                    tracing::debug!(reference = kit.reference, %failure, "no look at the tag");
                    continue;
                }
            };
            self.state.lock().moved_to = Some(named).filter(|named| *named != self.manifest);
            if named == self.manifest || follow.is_none() {
                continue;
            }
            match self.swap(named).await {
                Ok(()) => return,
                Err(failure) => {
                    let place = self.description.mountpoint.display();
                    tracing::warn!(%place, %named, %failure, "the tag has moved, and the mount stays");
                    self.state.lock().failure = Some(failure.message);
                }
            }
        }
    }

    /// Puts the kit of another manifest in the place of this one.
    async fn swap(self: &Arc<Self>, manifest: Digest) -> Result<(), Failure> {
        let pinned = pinned_reference(&self.origin, manifest);
        let pinned = pinned_request(&self.description.kit, pinned);
        let kit = self.service.open(&pinned, &|_| {}).await?;
        let this = self.clone();
        // A task of its own. The mount before ends its background work, `follow` too, when it is out of the tree.
        // The new mount must not end with that.
        let put = tokio::spawn(async move { this.put_in_place(kit).await });
        put.await.map_err(panicked)?
    }

    async fn put_in_place(&self, kit: Arc<LoadedKit>) -> Result<(), Failure> {
        let Self { service, description, place, origin, .. } = self;
        let Some(before) = Before::of(place) else {
            let message = "the device number of the mount is not known";
            return Err(Failure::new(FailureKind::Internal, message));
        };
        let manifest = kit.manifest;
        let options = service.mount_options(description);
        let (name, seen) = (origin.to_string(), before.clone());
        let attach = move || Attached::outside(&name, &seen, &options);
        let attached = spawn_blocking(attach).await.map_err(panicked)??;
        let key = service.mount_key(place.view(), description.mountpoint.clone());
        let mounts = service.mounts().clone();
        // A mount that was ended meanwhile gets no successor.
        let served = mounts.with_device(&key, before.device())?;
        let owner = served.owner()?;
        let successor = match attached {
            Some(attached) => {
                let mut attached = attached.with_place(place);
                let (swap, successor) = (attached.swap(), attached.place().device_number());
                let (description, replaces) = (description.clone(), Some(before.device()));
                service
                    .serve(ToServe { kit: Some(kit), description, attached, replaces, owner })
                    .await?;
                spawn_blocking(move || swap.put_in_place(&before)).await.map_err(panicked)??;
                successor
            }
            None if key.elsewhere.is_some() => {
                let message =
                    "only root can mount in another namespace: use `kitfs mount --replace`";
                return Err(Failure::new(FailureKind::Mountpoint, message));
            }
            None => {
                let (options, name) = (service.mount_options(description), origin.to_string());
                let place = place.clone();
                let attach = move || {
                    before.check_is_topmost()?;
                    unmount_other(before.path(), true)?;
                    let mut mountpoint = Mountpoint::prepare(&options)?;
                    mountpoint.was_made_by(&place);
                    Attached::new(&name, mountpoint, &options)
                };
                let attached = spawn_blocking(attach).await.map_err(panicked)??;
                let successor = attached.place().device_number();
                let (description, replaces) = (description.clone(), None);
                service
                    .serve(ToServe { kit: Some(kit), description, attached, replaces, owner })
                    .await?;
                successor
            }
        };
        served.leave_directory();
        tracing::info!(place = %key.mountpoint.display(), %manifest, "the mount follows its tag");
        mounts.end_replaced(&served, successor).await;
        Ok(())
    }
}
