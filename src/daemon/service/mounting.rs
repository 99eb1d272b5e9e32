//! Serves mounts.
//!
//! ```text
//! command: Mountpoint::prepare, open, mount(2) --MountRequest, the device--> serve
//! this process, for `--foreground`:      the same three, then                serve
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

use super::super::failure::{cache_failure, panicked};
use super::super::following::Following;
use super::super::hydrate::Hydrating;
use super::super::kits::{pinned_reference, pinned_request};
use super::super::mounts::{Background, MountKey, Terms};
use super::super::overlaying::attach_below;
use super::super::own_paths::own_paths;
use super::super::record::{Announced, TreeMark};
use super::super::replay::{self, Replay};
use super::super::{browsing, fitting, mounting};
use super::{Service, now, stopping};
use crate::control::Peer;
use crate::control::api::{
    BROWSE_REFERENCE, Failure, FailureKind, MountDescription, MountStatus, OpenProgress,
};
use crate::fs::{FsConfig, LoadedKit, Owner};
use crate::fuse::{
    Attached, Content, DeviceNumber, Mount, MountError, MountOptions, Mountpoint, Sessions,
    mount_warnings,
};
use crate::process::limits::MORE_PROCESSES;
use crate::process::pidfd::Pidfd;

/// A mount that is to be served.
pub(in crate::daemon) struct ToServe {
    /// `None` for kits by path.
    pub(in crate::daemon) kit: Option<Arc<LoadedKit>>,
    pub(in crate::daemon) description: MountDescription,
    pub(in crate::daemon) attached: Attached,
    /// The device number of the mount whose place it will take.
    pub(in crate::daemon) replaces: Option<DeviceNumber>,
    /// The process whose end ends it.
    pub(in crate::daemon) owner: Option<Pidfd>,
}

/// A mount that is to be made and served.
pub(super) struct Wanted {
    /// `None` for kits by path.
    pub(super) kit: Option<Arc<LoadedKit>>,
    pub(super) description: MountDescription,
    pub(super) mountpoint: Mountpoint,
    pub(super) options: MountOptions,
}

impl Service {
    /// Mounts a kit in the tree that this process sees, and serves it.
    pub(in crate::daemon) async fn mount(
        self: &Arc<Self>,
        description: MountDescription,
        tell: &(dyn Fn(OpenProgress) + Send + Sync),
    ) -> Result<MountStatus, Failure> {
        let mut options = mounting::options(self.cache.folder(), &description);
        options.child_limits = self.child_limits;
        let mountpoint = mounting::prepare(&options).await?;
        let replaced = mountpoint.warnings();
        let kit = match description.browse {
            Some(_) => None,
            None => tokio::select! {
                kit = self.open(&description.kit, tell) => Some(kit?),
                () = self.stopping.cancelled() => return Err(stopping()),
            },
        };
        let wanted = Wanted { kit, description, mountpoint, options };
        let mut status = self.attach_and_serve(wanted, true).await?;
        status.warnings.extend(replaced);
        Ok(status)
    }

    /// Mounts an open kit, and serves it. `waits` for the mounts of the process before to be taken over.
    pub(super) async fn attach_and_serve(
        self: &Arc<Self>,
        wanted: Wanted,
        waits: bool,
    ) -> Result<MountStatus, Failure> {
        let Wanted { kit, description, mountpoint, options } = wanted;
        let reference = description.kit.reference.clone();
        let (attached, cover) = match (&description.overlay, &kit) {
            (None, _) | (_, None) => {
                (mounting::attach(&reference, mountpoint, options).await?, None)
            }
            (Some(_), Some(kit)) => {
                let pinned = pinned_reference(&kit.origin, kit.manifest);
                let below = attach_below(&description, &pinned, mountpoint, options).await?;
                (below.0, Some(below.1))
            }
        };
        let key = self.mount_key(attached.place().view(), description.mountpoint.clone());
        let wanted = ToServe { kit, description, attached, replaces: None, owner: None };
        let status = match waits {
            true => self.serve(wanted).await?,
            false => self.serve_now(wanted).await?,
        };
        if let Some(cover) = cover {
            let covered = spawn_blocking(move || cover.put_in_place()).await.map_err(panicked)?;
            if let Err(error) = covered {
                // Without the overlay, the mount is nowhere.
                let _ = self.mounts.unmount(&key, None, true).await;
                return Err(error.into());
            }
        }
        Ok(status)
    }

    /// Serves a mount that is in the tree, or will be once it replaces another one. Dropping the future, or an error,
    /// leaves nothing mounted.
    pub(in crate::daemon) async fn serve(
        self: &Arc<Self>,
        wanted: ToServe,
    ) -> Result<MountStatus, Failure> {
        self.taken_over().await;
        self.serve_now(wanted).await
    }

    /// As [`Self::serve`], while mounts of the process before may be missing from the table.
    pub(super) async fn serve_now(
        self: &Arc<Self>,
        wanted: ToServe,
    ) -> Result<MountStatus, Failure> {
        let ToServe { kit, description, attached, replaces, owner } = wanted;
        let place = attached.place();
        let key = self.mount_key(place.view(), description.mountpoint.clone());
        let reservation = self.mounts.reserve(key.clone(), replaces).await?;
        let options = self.mount_options(&description);
        let pinned = match &kit {
            Some(kit) => pinned_reference(&kit.origin, kit.manifest),
            None => BROWSE_REFERENCE.to_owned(),
        };
        let mut trace = None;
        if let Some(kit) = &kit {
            if !kit.has_missing() {
                self.kits.share(pinned_request(&description.kit, pinned.clone()), kit);
            }
            if description.recheck {
                recheck(kit.clone()).await?;
            }
            if let Some(file) = description.trace.clone() {
                trace = Some(self.load_replay(kit, file).await?);
            }
        }
        let mounted_at = now();
        let content = self.content(&kit, &description)?;
        let (served, sessions, keeping) = (kit.clone(), self.sessions()?, self.keeping.clone());
        let (wanted, config) = (description.clone(), fs_config(&description));
        let mount = move || {
            let unkept = |error: std::io::Error| {
                MountError::Io(format!("the mount cannot be handed to the keeper: {error}"))
            };
            let kept = keeping.hold(&attached, &wanted, owner.as_ref()).map_err(unkept)?;
            let mut unnoted = None;
            let (tree, nodes) = marks(served.as_deref());
            let mount = Mount::serve(attached, content, &options, config, sessions)?;
            if let Some(kept) = &kept {
                let state = mount.state();
                let announced = Announced { pinned, tree, nodes, state, mounted_at };
                unnoted = kept.announce(&wanted, &announced).map_err(unkept)?;
            }
            Ok::<_, MountError>((mount, kept, unnoted, owner))
        };
        let (mount, kept, unnoted, owner) = spawn_blocking(mount).await.map_err(panicked)??;
        let warnings = trace.as_ref().map(Replay::warnings).unwrap_or_default();
        let background = self.background(&mount, &description, kit.as_deref(), trace);
        let no_room = match &kit {
            Some(kit) => self.no_room(kit).await,
            None => None,
        };
        let terms = Terms { request: &description.kit, mounted_at, owner };
        let mut status = reservation.fulfil(mount, kit, terms, background, kept)?;
        status.warnings.extend(warnings);
        status.warnings.extend(mount_warnings());
        status.warnings.extend(no_room);
        status.warnings.extend(unnoted);
        tracing::info!(reference = status.reference, digest = status.digest,
            mountpoint = %status.mountpoint.display(), "mounted");
        Ok(status)
    }

    /// Names a mount in the table. `view` is the part of the file tree that its command sees.
    pub(in crate::daemon) fn mount_key(&self, view: Option<&str>, mountpoint: PathBuf) -> MountKey {
        let view = view.filter(|view| Some(*view) != self.view.as_deref());
        MountKey { elsewhere: view.map(str::to_owned), mountpoint }
    }

    pub(in crate::daemon) fn mount_options(&self, description: &MountDescription) -> MountOptions {
        MountOptions {
            mountpoint: description.mountpoint.clone(),
            allow_other: description.allow_other,
            nonempty: description.nonempty,
            noexec: description.noexec,
            passthrough: !description.no_passthrough,
            is_of_other_user: self.is_of_other_user(description),
            child_limits: self.child_limits,
            own_paths: own_paths(self.cache.folder(), description),
            daemon: self.at.as_ref().map(|at| at.address.to_text()).unwrap_or_default(),
            files_owner: files_owner(description),
        }
    }

    /// The content of a mount: its kit, or kits by path.
    ///
    /// # Errors
    /// `Usage` for a request that names neither, or both.
    pub(super) fn content(
        self: &Arc<Self>,
        kit: &Option<Arc<LoadedKit>>,
        description: &MountDescription,
    ) -> Result<Content, Failure> {
        match (kit, &description.browse) {
            (Some(kit), None) => Ok(kit.clone().into()),
            (None, Some(browse)) => {
                Ok(Content::ByPath(browsing::by_path(self, description, browse)))
            }
            (None, None) | (Some(_), Some(_)) => {
                let message = "a mount is of one kit, or of kits by path: this request is for commands of kitfs";
                Err(Failure::new(FailureKind::Usage, message))
            }
        }
    }

    /// Starts the work beside a mount. Kits by path have none: they come when programs read them.
    pub(super) fn background(
        self: &Arc<Self>,
        mount: &Mount,
        description: &MountDescription,
        kit: Option<&LoadedKit>,
        trace: Option<Replay>,
    ) -> Background {
        let quiet = Duration::from_secs(description.hydrate_after_seconds);
        let hydrating: Option<Hydrating> = mount
            .nodes()
            .single()
            .map(|file_system| self.hydration.begin(file_system, description.hydrate, quiet));
        Background {
            hydrating,
            _replay: trace.map(|trace| AbortOnDropHandle::new(tokio::spawn(replay_quietly(trace)))),
            following: kit
                .map(|kit| Following::begin(self, description, &mount.place(), kit.manifest)),
        }
    }

    /// The threads that answer the kernel.
    pub(super) fn sessions(&self) -> Result<Arc<Sessions>, Failure> {
        let mut sessions = self.sessions.lock();
        if let Some(sessions) = &*sessions {
            return Ok(sessions.clone());
        }
        let started = Sessions::start(self.observers()).map_err(|error| {
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

    pub(super) async fn load_replay(
        &self,
        kit: &Arc<LoadedKit>,
        file: PathBuf,
    ) -> Result<Replay, Failure> {
        let kit = kit.clone();
        spawn_blocking(move || replay::load(&kit, &file)).await.map_err(panicked)?
    }
}

/// The mark and the number of nodes of a mount's tree.
fn marks(kit: Option<&LoadedKit>) -> (TreeMark, u32) {
    kit.map_or((TreeMark::by_path(), 0), |kit| (TreeMark::of(kit), kit.tree.len()))
}

/// Has files of a kit checked again that an earlier process has checked.
async fn recheck(kit: Arc<LoadedKit>) -> Result<(), Failure> {
    let end_trust = move || kit.layers.iter().try_for_each(|layer| layer.store().end_trust());
    spawn_blocking(end_trust).await.map_err(panicked)?.map_err(|error| cache_failure(&error))
}

/// The user and the group of the files, where the command has said so.
fn files_owner(description: &MountDescription) -> Option<Owner> {
    let own = Peer::own();
    let owner =
        Owner { uid: description.uid.unwrap_or(own.uid), gid: description.gid.unwrap_or(own.gid) };
    (description.uid.is_some() || description.gid.is_some()).then_some(owner)
}

pub(super) fn fs_config(description: &MountDescription) -> FsConfig {
    FsConfig {
        read_deadline: description.read_deadline_seconds.map(Duration::from_secs),
        tensor_prefetch: description.tensor_prefetch,
        owner_may_write: description.overlay.is_some(),
    }
}

/// Replays a trace beside a mount. A failure goes to the log only: readers fetch the same bytes themselves.
async fn replay_quietly(replay: Replay) {
    if let Err(error) = replay.run(|_| {}).await {
        tracing::warn!(%error, "replaying an access trace ended early");
    }
}
