//! Goes on with the mounts of a process that is gone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::super::failure::panicked;
use super::super::keeping::Kept;
use super::super::mounts::Reservation;
use super::super::record::{Announced, Record, TreeMark, Unreadable};
use super::mounting::fs_config;
use super::{Service, stopping};
use crate::control::api::{Failure, FailureKind, KitRequest, MountDescription};
use crate::fs::LoadedKit;
use crate::fuse::{self, Mount, MountState};
use crate::keeper::Held;
use crate::process::running_time;

/// How long mounts may take before this process counts as one that serves. A registry that is away holds up
/// a mount for longer, and is no fault of the process.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// How long to wait before a kit is loaded again: the first pause, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The interval between two looks whether a mount that waits for its kit was unmounted.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

impl Service {
    /// Goes on with mounts, and tells the keeper when that is done. Each mount waits for its own kit only.
    pub(in crate::daemon) async fn take_over(self: &Arc<Self>, mounts: Vec<Held>) {
        for held in mounts {
            let (kept, record) = self.keeping.taken_over(held);
            match record {
                Ok(record) => {
                    let this = self.clone();
                    self.taking_over.spawn(async move { this.go_on(kept, record).await });
                }
                Err(Unreadable { mountpoint: Some(mountpoint), why }) => {
                    let this = self.clone();
                    self.taking_over
                        .spawn(async move { this.give_up(kept, &mountpoint, None, &why).await });
                }
                Err(Unreadable { mountpoint: None, why }) => {
                    tracing::error!(
                        why,
                        "a mount ends, and stays in the tree: `kitfs status` lists it"
                    );
                }
            }
        }
        self.taking_over.close();
        let _ = running_time::timeout(SETTLED_AFTER, self.all_taken_over()).await;
        self.has_taken_over.send_replace(true);
        self.keeping.note_serving();
        self.restore_dead().await;
    }

    /// Waits until every mount of the process before is served or given up.
    pub(in crate::daemon) async fn all_taken_over(&self) {
        self.taking_over.wait().await;
    }

    /// Waits until the mounts of the process before are served, or had their time.
    pub(super) async fn taken_over(&self) {
        let mut has_taken_over = self.has_taken_over.subscribe();
        // An error says that the service is gone.
        let _ = has_taken_over.wait_for(|is_over| *is_over).await;
    }

    async fn go_on(self: &Arc<Self>, kept: Kept, record: Record) {
        let Record { request, announced } = record;
        let Some(announced) = announced else {
            // Its command was told that there is no mount.
            return self.give_up(kept, &request.mountpoint, None, "it was being made").await;
        };
        let state = announced.state.clone();
        let served = match fuse::resend(kept.device()) {
            Ok(()) => self.serve_again(kept, &request, announced).await,
            Err(error) => {
                let message =
                    format!("the kernel does not repeat requests ({error}); Linux 6.9 does");
                Err((kept, Failure::new(FailureKind::Internal, message)))
            }
        };
        if let Err((kept, failure)) = served {
            self.give_up(kept, &request.mountpoint, Some(state), &failure.to_string()).await;
        }
    }

    async fn serve_again(
        self: &Arc<Self>,
        kept: Kept,
        request: &MountDescription,
        announced: Announced,
    ) -> Result<(), (Kept, Failure)> {
        let Announced { pinned, tree, state, mounted_at } = announced;
        let mut kit_request = request.kit.clone();
        // The labels have chosen the manifest that the pinned reference names.
        kit_request.labels.clear();
        kit_request.reference = pinned;
        let ready = async {
            let key = self.mount_key(state.place().view(), request.mountpoint.clone());
            let reservation = self.mounts.reserve(key, None).await?;
            let kit = self.load_patiently(&kit_request, &kept).await?;
            Ok((reservation, kit))
        };
        let (reservation, kit): (Reservation, _) = match ready.await {
            Ok(ready) => ready,
            Err(failure) => return Err((kept, failure)),
        };
        let options = self.mount_options(request);
        let config = fs_config(request);
        let mount = async {
            let (served, sessions) = (kit.clone(), self.sessions()?);
            let descriptors = kept.descriptors().map_err(|error| {
                let message = format!("its descriptors cannot be copied: {error}");
                Failure::new(FailureKind::Internal, message)
            })?;
            let mount = move || {
                if TreeMark::of(&served) != tree {
                    let message = "its files are not those that were mounted: mount the kit again";
                    return Err(Failure::new(FailureKind::NotFound, message));
                }
                Ok(Mount::take_over(descriptors, &state, served, &options, config, sessions)?)
            };
            spawn_blocking(mount).await.map_err(panicked)?
        };
        let mount = match mount.await {
            Ok(mount) => mount,
            Err(failure) => return Err((kept, failure)),
        };
        if !kit.has_missing() {
            self.kits.share(kit_request, &kit);
        }
        let background = self.background(&mount, request, &kit, None);
        let mountpoint = request.mountpoint.display();
        match reservation.fulfil(mount, kit, &request.kit, mounted_at, background, Some(kept)) {
            Ok(_) => tracing::info!(%mountpoint, "the mount goes on"),
            // The daemon stops, and the mount has ended with its reservation.
            Err(failure) => tracing::debug!(%mountpoint, %failure, "not taken over"),
        }
        Ok(())
    }

    /// Loads a kit, and tries again for as long as its registry is away: readers wait for it.
    async fn load_patiently(
        &self,
        request: &KitRequest,
        kept: &Kept,
    ) -> Result<Arc<LoadedKit>, Failure> {
        let load = async {
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
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        let unmounted = async {
            while !fuse::has_ended(kept.device()) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            kit = load => kit,
            () = unmounted => Err(Failure::new(FailureKind::NotFound, "it was unmounted meanwhile")),
            () = self.told_to_stop() => Err(stopping()),
        }
    }

    /// Waits until this process should end its mounts. A process that is replaced leaves them as they are.
    async fn told_to_stop(&self) {
        self.stop_requested().await;
        if self.is_to_be_replaced() {
            std::future::pending().await
        }
    }

    /// Ends a mount that this process cannot serve: its readers get an error, and do not wait for ever.
    async fn give_up(&self, kept: Kept, mountpoint: &Path, state: Option<MountState>, why: &str) {
        tracing::error!(mountpoint = %mountpoint.display(), why, "a mount ends with the daemon that served it");
        let (place, child_limits) = (mountpoint.to_owned(), self.child_limits);
        let end = move || {
            Mount::give_up(kept.device(), state.as_ref(), &place, child_limits);
            // Without its descriptors the kernel answers every request of the mount with an error.
            drop(kept);
        };
        if let Err(error) = spawn_blocking(end).await {
            tracing::error!(mountpoint = %mountpoint.display(), %error, "ending a mount failed");
        }
    }
}
