//! Goes on with the mounts of a process that is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, spawn_blocking};

use super::super::api::{Failure, FailureKind, KitRequest, MountRequest};
use super::super::failure::panicked;
use super::super::keeping::{Announced, Kept, Record, TreeMark};
use super::super::mounts::{Background, Reservation};
use super::Service;
use crate::fs::{FsConfig, LoadedKit};
use crate::fuse::{Mount, unmount_other};
use crate::keeper::Held;
use crate::process::running_time;

/// How long mounts may take before this process counts as one that serves. A registry that is away holds up
/// a mount for longer, and is no fault of the process.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// How long to wait before a kit is loaded again: the first pause, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Service {
    /// Goes on with mounts, and tells the keeper when that is done. Each mount waits for its own kit only.
    pub(in crate::daemon) async fn take_over(self: &Arc<Self>, mounts: Vec<Held>) {
        let mut tasks = JoinSet::new();
        for held in mounts {
            let (kept, record) = self.keeping.taken_over(held);
            match record {
                Ok(Record { request, announced: Some(announced) }) => {
                    let this = self.clone();
                    tasks.spawn(async move { this.go_on(kept, request, announced).await });
                }
                Ok(Record { request, announced: None }) => {
                    // Its command was told that there is no mount.
                    tasks.spawn(async move { give_up(kept, &request, "it was being made").await });
                }
                Err(error) => {
                    tracing::error!(%error, "a mount ends: its record cannot be read");
                }
            }
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        let _ = running_time::timeout(SETTLED_AFTER, all).await;
        self.has_taken_over.send_replace(true);
        self.keeping.note_serving();
        tasks.detach_all();
    }

    /// Waits until the mounts of the process before are served, or had their time.
    pub(super) async fn taken_over(&self) {
        let mut has_taken_over = self.has_taken_over.subscribe();
        // An error says that the service is gone.
        let _ = has_taken_over.wait_for(|is_over| *is_over).await;
    }

    async fn go_on(&self, kept: Kept, request: MountRequest, announced: Announced) {
        let place = request.mountpoint.display().to_string();
        let reservation = match self.mounts.reserve(&request.mountpoint).await {
            Ok(reservation) => reservation,
            Err(failure) => {
                tracing::error!(mountpoint = place, %failure, "a mount ends");
                return give_up(kept, &request, &failure.to_string()).await;
            }
        };
        if let Err((kept, failure)) = self.serve_again(reservation, kept, &request, announced).await
        {
            give_up(kept, &request, &failure.to_string()).await;
        }
    }

    async fn serve_again(
        &self,
        reservation: Reservation,
        kept: Kept,
        request: &MountRequest,
        announced: Announced,
    ) -> Result<(), (Kept, Failure)> {
        let Announced { pinned, tree, state, mounted_at } = announced;
        let mut kit_request = request.kit.clone();
        // The labels have chosen the manifest that the pinned reference names.
        kit_request.labels.clear();
        kit_request.reference = pinned;
        let kit = match self.load_patiently(&kit_request).await {
            Ok(kit) => kit,
            Err(failure) => return Err((kept, failure)),
        };
        if TreeMark::of(&kit) != tree {
            let message = "its remote data sets have changed: mount the kit again";
            return Err((kept, Failure::new(FailureKind::NotFound, message)));
        }
        if !kit.has_missing() {
            self.kits.share(kit_request, &kit);
        }
        let options = self.mount_options(request);
        let config = FsConfig { tensor_prefetch: request.tensor_prefetch, ..FsConfig::default() };
        let mount = async {
            let copied = kept.descriptors().map_err(|error| {
                let message = format!("its descriptors cannot be copied: {error}");
                Failure::new(FailureKind::Internal, message)
            });
            let (descriptors, sessions) = (copied?, self.sessions()?);
            let served = kit.clone();
            let mount =
                move || Mount::take_over(descriptors, &state, served, &options, config, sessions);
            Ok::<_, Failure>(spawn_blocking(mount).await.map_err(panicked)??)
        };
        let mount = match mount.await {
            Ok(mount) => mount,
            Err(failure) => return Err((kept, failure)),
        };
        let quiet = Duration::from_secs(request.hydrate_after_seconds);
        let background = Background {
            hydrating: self.hydration.begin(mount.file_system(), request.hydrate, quiet),
            _replay: None,
        };
        let reference = request.kit.reference.clone();
        let mountpoint = request.mountpoint.display();
        match reservation.fulfil(mount, kit, reference, mounted_at, background, Some(kept)) {
            Ok(_) => tracing::info!(%mountpoint, "the mount goes on"),
            // The daemon stops, and the mount has ended with its reservation.
            Err(failure) => tracing::debug!(%mountpoint, %failure, "not taken over"),
        }
        Ok(())
    }

    /// Loads a kit, and tries again for as long as its registry is away: readers wait for it.
    async fn load_patiently(&self, request: &KitRequest) -> Result<Arc<LoadedKit>, Failure> {
        let mut pause = FIRST_PAUSE;
        loop {
            let failure = match self.load(request, &|_, _| {}).await {
                Ok(kit) => return Ok(Arc::new(kit)),
                Err(failure) => failure,
            };
            if !matches!(failure.kind, FailureKind::Unavailable | FailureKind::Unauthorized) {
                return Err(failure);
            }
            tracing::warn!(reference = request.reference, %failure, "a mount waits for its kit");
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                () = self.stopping.cancelled() => return Err(super::stopping()),
            }
        }
    }
}

/// Ends a mount that this process cannot serve: its readers get an error, and do not wait for ever.
async fn give_up(kept: Kept, request: &MountRequest, why: &str) {
    let mountpoint = request.mountpoint.clone();
    tracing::error!(mountpoint = %mountpoint.display(), why, "a mount ends with the daemon that served it");
    // Without its descriptors the kernel answers every request of the mount with an error.
    drop(kept);
    let unmounted = spawn_blocking(move || unmount_other(&mountpoint, true)).await;
    if let Ok(Err(error)) = unmounted {
        tracing::debug!(%error, "nothing to unmount");
    }
}
