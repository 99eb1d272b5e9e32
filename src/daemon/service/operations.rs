//! The work of each operation.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::task::spawn_blocking;

use super::super::comparing::{Resident, Side};
use super::super::failure::panicked;
use super::super::kits::{pinned_reference, pinned_request};
use super::super::warming::WarmedParts;
use super::super::{
    cloning, comparing, describing, listing, reading, recording, tags, upkeep, waiting, warming,
};
use super::mounting::ToServe;
use super::{Service, now, stopping};
use crate::control::api::{
    AliveRequest, AwaitEndRequest, CacheReport, CacheRequest, CatalogueRequest, CloneRequest,
    Cloned, CompareEvent, CompareRequest, Comparison, DaemonStatus, Failure, FailureKind, Info,
    InfoRequest, ListRequest, Listing, MountRequest, MountStatus, OpenRequest, Opened,
    PassProgress, ReadRequest, RecordRequest, ReplaceRequest, RestoreReport, RestoreRequest,
    StatusRequest, StopRecordingRequest, StopRequest, TagInfo, TagsRequest, UnmountReport,
    UnmountRequest, UpgradeRequest, WarmEvent, WarmReport, WarmRequest,
};
use crate::control::{Caller, Handle};
use crate::fs::{self, Described, Line};
use crate::fuse::Attached;
use crate::kit::Filters;
use crate::oci::{LabelSelector, Origin};
use crate::process::pidfd::Pidfd;

impl Handle<AliveRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: AliveRequest,
        _: &Caller<AliveRequest>,
    ) -> Result<(), Failure> {
        Ok(())
    }
}

impl Handle<StatusRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: StatusRequest,
        caller: &Caller<StatusRequest>,
    ) -> Result<DaemonStatus, Failure> {
        let mut status = self.status().await;
        status.mounts = self.seen_by(caller.peer(), status.mounts);
        Ok(status)
    }
}

impl Handle<StopRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: StopRequest,
        caller: &Caller<StopRequest>,
    ) -> Result<UnmountReport, Failure> {
        self.for_root(caller.peer(), "end the process")?;
        Ok(self.stop().await)
    }
}

impl Handle<ReplaceRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: ReplaceRequest,
        caller: &Caller<ReplaceRequest>,
    ) -> Result<(), Failure> {
        self.for_root(caller.peer(), "replace the process")?;
        self.request_replacement(None).await
    }
}

impl Handle<UpgradeRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: UpgradeRequest,
        caller: &Caller<UpgradeRequest>,
    ) -> Result<(), Failure> {
        // The daemon runs the program with its own rights.
        self.for_root(caller.peer(), "replace the process")?;
        self.request_replacement(Some(request.program)).await
    }
}

impl Handle<RestoreRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        _: RestoreRequest,
        caller: &Caller<RestoreRequest>,
    ) -> Result<RestoreReport, Failure> {
        self.for_root(caller.peer(), "restore the mounts")?;
        self.taken_over().await;
        // A task of its own: when the command is interrupted, a mount that is being made must not lose its entry.
        let this = self.clone();
        tokio::spawn(async move { this.restore(true).await }).await.map_err(panicked)
    }
}

impl Handle<OpenRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        mut request: OpenRequest,
        caller: &Caller<OpenRequest>,
    ) -> Result<Opened, Failure> {
        self.admit(&mut request.kit, caller.peer())?;
        let kit = self.open(&request.kit, &|progress| caller.tell(progress)).await?;
        let pinned = pinned_request(&request.kit, pinned_reference(&kit.origin, kit.manifest));
        // The next command looks anew for data that could not be had.
        if !kit.has_missing() {
            self.kits.keep(pinned.clone(), &kit);
        }
        let (handle, lease) = self.kits.lend(kit, caller.peer().uid);
        caller.keep(lease);
        Ok(Opened { kit: handle, pinned })
    }
}

impl Handle<ListRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: ListRequest,
        caller: &Caller<ListRequest>,
    ) -> Result<Listing, Failure> {
        let kit = self.kits.lent(request.kit, caller.peer().uid)?;
        if !request.digests {
            return listing::list(&kit, &request, None);
        }
        let cache = self.cache.clone();
        let work = spawn_blocking(move || {
            let (files, warnings) = fs::layer_files(&cache, &kit);
            let mut listing = listing::list(&kit, &request, Some(&files))?;
            listing.warnings.extend(warnings);
            Ok(listing)
        });
        work.await.map_err(panicked)?
    }
}

impl Handle<ReadRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: ReadRequest,
        caller: &Caller<ReadRequest>,
    ) -> Result<(), Failure> {
        let kit = self.kits.lent(request.kit, caller.peer().uid)?;
        let mut bytes = match (request.part, &request.paths[..]) {
            (None, paths) => reading::open(kit, paths)?,
            (Some(part), [path]) => reading::open_part(kit, path, part)?,
            (Some(_), _) => {
                let message = "a part is one of a single file";
                return Err(Failure::new(FailureKind::Usage, message));
            }
        };
        while let Some(piece) = bytes.next().await {
            caller.send(piece?).await?;
        }
        Ok(())
    }
}

impl Handle<CloneRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: CloneRequest,
        caller: &Caller<CloneRequest>,
    ) -> Result<Option<Cloned>, Failure> {
        // A write to another user's file could block for ever, and its quota would be that of this process.
        if self.has_users {
            return Ok(None);
        }
        let kit = self.kits.lent(request.kit, caller.peer().uid)?;
        let Some(target) = caller.take_descriptors().into_iter().next() else {
            let message = "the descriptor of the file to write is missing";
            return Err(Failure::new(FailureKind::Usage, message));
        };
        cloning::clone(kit, &request.path, target).await
    }
}

impl Handle<InfoRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: InfoRequest,
        caller: &Caller<InfoRequest>,
    ) -> Result<Info, Failure> {
        let mut kit = request.kit;
        self.admit(&mut kit, caller.peer())?;
        let origin = Origin::parse(&kit.reference)?;
        let labels = LabelSelector::parse(&kit.labels)?;
        let sources = self.networks.sources(&kit.network)?;
        let described = fs::look(&self.fetcher, &*sources, &origin, &labels).await?;
        let mut info = describing::info(&kit.reference, &described);
        if let (Info::Kit(info), Described::Kit(description), true) =
            (&mut info, &described, request.facts)
        {
            info.facts = describing::facts(&description.kit)?;
        }
        Ok(info)
    }
}

impl Handle<TagsRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: TagsRequest,
        _: &Caller<TagsRequest>,
    ) -> Result<Vec<TagInfo>, Failure> {
        self.refuse_lists()?;
        let sources = self.networks.sources(&request.network)?;
        tags::tags(&self.fetcher, &sources, &request).await
    }
}

impl Handle<CatalogueRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: CatalogueRequest,
        _: &Caller<CatalogueRequest>,
    ) -> Result<Vec<String>, Failure> {
        self.refuse_lists()?;
        let sources = self.networks.sources(&request.network)?;
        Ok(sources.catalogue(&request.host).await?)
    }
}

impl Handle<CompareRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        mut request: CompareRequest,
        caller: &Caller<CompareRequest>,
    ) -> Result<Comparison, Failure> {
        self.admit(&mut request.before, caller.peer())?;
        self.admit(&mut request.after, caller.peer())?;
        let work = async {
            let resident = Resident::now(&self.cache).await?;
            let tell = |progress| caller.tell(CompareEvent::Opening(progress));
            let (before, after) = tokio::try_join!(
                self.open(&request.before, &tell),
                self.open(&request.after, &tell)
            )?;
            let CompareRequest { before: old, after: new, path, content } = request;
            let (before, mut warnings) = Side::new(&self.cache, before, old.reference).await?;
            let (after, more) = Side::new(&self.cache, after, new.reference).await?;
            warnings.extend(more);
            let progress = |progress| caller.tell(CompareEvent::Comparing(progress));
            let compared =
                comparing::compare(&before, &after, &path, content, &resident, &progress).await?;
            Ok(Comparison { warnings, ..compared })
        };
        tokio::select! {
            compared = work => compared,
            () = self.stopping.cancelled() => Err(stopping()),
        }
    }
}

impl Handle<WarmRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        mut request: WarmRequest,
        caller: &Caller<WarmRequest>,
    ) -> Result<WarmReport, Failure> {
        self.admit(&mut request.kit, caller.peer())?;
        self.refuse_paths(request.trace.is_some())?;
        let on_pass = |passed_bytes, total_bytes| {
            caller.tell(WarmEvent::Passing(PassProgress { passed_bytes, total_bytes }));
        };
        let on_wait = |waiting| caller.tell(WarmEvent::Waiting(waiting));
        let progress = |layers| caller.tell(WarmEvent::Layers(layers));
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
                    let (paths, layers) = (&request.paths, &request.layers);
                    let parts = WarmedParts { paths, layers, filters: filters.as_ref() };
                    warming::warm(&self.cache, &kit, parts, &progress).await
                }
            }
        };
        tokio::select! {
            report = waiting::told(&self.networks, &network, &on_wait, work) => report,
            () = self.stopping.cancelled() => Err(stopping()),
        }
    }
}

impl Handle<MountRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: MountRequest,
        caller: &Caller<MountRequest>,
    ) -> Result<MountStatus, Failure> {
        let MountRequest { kit, mut mount, place, replaces } = request;
        self.admit_mount(&mut mount, caller.peer())?;
        let mut place = self.place_of(place, caller.peer());
        let kit = kit.map(|kit| self.kits.lent(kit, caller.peer().uid)).transpose()?;
        let mut descriptors = caller.take_descriptors().into_iter();
        let Some(device) = descriptors.next() else {
            let message = "the FUSE device is missing: this request is for commands of kitfs";
            return Err(Failure::new(FailureKind::Usage, message));
        };
        let owner = descriptors.next().map(Pidfd::from_descriptor).transpose();
        let owner = owner.map_err(|error| {
            let message = format!("the second descriptor is not the owner of the mount: {error}");
            Failure::new(FailureKind::Usage, message)
        })?;
        let key = self.mount_key(place.view(), mount.mountpoint.clone());
        let before = replaces.and_then(|before| self.mounts.with_device(&key, before).ok());
        // The owner of the mount before owns the one in its place, unless the command names another one.
        let owner = match (owner, &before) {
            (None, Some(before)) => before.owner()?,
            (owner, _) => owner,
        };
        if let Some(before) = &before {
            place = place.takes_directory_of(&before.place());
        }
        let options = self.mount_options(&mount);
        let attached = Attached::from_command(device, &place, replaces.is_some(), &options)?;
        let wanted = ToServe { kit, description: mount, attached, replaces, owner };
        let status = tokio::select! {
            status = self.serve(wanted) => status?,
            () = self.stopping.cancelled() => return Err(stopping()),
        };
        before.iter().for_each(|before| before.leave_directory());
        Ok(status)
    }
}

impl Handle<UnmountRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: UnmountRequest,
        caller: &Caller<UnmountRequest>,
    ) -> Result<UnmountReport, Failure> {
        self.taken_over().await;
        let view = self.view_of(request.view, caller.peer());
        let key = self.mount_key(view.as_deref(), request.mountpoint);
        if key.elsewhere.is_some() {
            let place = key.mountpoint.display();
            let message =
                format!("the daemon does not see {place}: the command unmounts it itself");
            return Err(Failure::new(FailureKind::NotFound, message));
        }
        let warnings = self.mounts.unmount(&key, request.device, request.lazy).await?;
        // Without a mount no command finds this daemon again.
        if !self.is_reachable() && self.has_no_mounts() {
            self.request_stop();
        }
        Ok(UnmountReport { warnings })
    }
}

impl Handle<AwaitEndRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: AwaitEndRequest,
        caller: &Caller<AwaitEndRequest>,
    ) -> Result<(), Failure> {
        self.taken_over().await;
        let view = self.view_of(request.view, caller.peer());
        let key = self.mount_key(view.as_deref(), request.mountpoint);
        // Not the mount itself: it could not be released then.
        let released = self.mounts.at(&key)?.released();
        tokio::select! {
            () = released.cancelled() => Ok(()),
            // The next process may go on with the mount: the command asks that one.
            () = self.stopping.cancelled() => Err(stopping()),
        }
    }
}

impl Handle<RecordRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: RecordRequest,
        caller: &Caller<RecordRequest>,
    ) -> Result<(), Failure> {
        self.taken_over().await;
        let view = self.view_of(request.view, caller.peer());
        let key = self.mount_key(view.as_deref(), request.mountpoint);
        let served = self.mounts.at(&key)?;
        let file_system = served.file_system("a recording")?.clone();
        let Some(reads) = recording::begin(&file_system).await else {
            let place = key.mountpoint.display();
            let message = format!("reads from {place} are being recorded already");
            return Err(Failure::new(FailureKind::Mountpoint, message));
        };
        let stop = served.new_recording();
        let digest = file_system.kit().manifest.to_string();
        let header = Line::header(served.reference().to_owned(), digest, now());
        let mut lines = recording::lines(&served, file_system, reads, header, stop);
        // The recording ends with the mount.
        drop(served);
        while let Some(line) = lines.next().await {
            let mut line = serde_json::to_vec(&line)
                .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
            line.push(b'\n');
            caller.send(Bytes::from(line)).await?;
        }
        Ok(())
    }
}

impl Handle<StopRecordingRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: StopRecordingRequest,
        caller: &Caller<StopRecordingRequest>,
    ) -> Result<(), Failure> {
        let view = self.view_of(request.view, caller.peer());
        let key = self.mount_key(view.as_deref(), request.mountpoint);
        self.mounts.at(&key)?.stop_recording();
        Ok(())
    }
}

impl Handle<CacheRequest> for Service {
    async fn handle(
        self: &Arc<Self>,
        request: CacheRequest,
        caller: &Caller<CacheRequest>,
    ) -> Result<CacheReport, Failure> {
        self.for_root(caller.peer(), "look at the cache")?;
        if matches!(request, CacheRequest::Remove(_) | CacheRequest::Clear) {
            self.kits.let_go();
        }
        let (cache, mounts) = (self.cache.clone(), self.mounts.clone());
        spawn_blocking(move || upkeep::run(&cache, &mounts, &request)).await.map_err(panicked)?
    }
}
