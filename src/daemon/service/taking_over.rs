//! Goes on with the mounts of a process that is gone.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::super::failure::panicked;
use super::super::held_mounts::Kept;
use super::super::kits::pinned_request;
use super::super::mounts::{Reservation, Terms};
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

/// How long a mount whose owner has ended waits for its kit. With the kit, programs that still have files open
/// are served to the end.
const OWNERLESS_PATIENCE: Duration = Duration::from_secs(5);

/// The longest turn of a kit: several times what a tree of 100,000 files takes. The kit is loaded on beside the
/// next ones.
const TURN: Duration = Duration::from_millis(250);

/// The interval between two looks whether a program waits for a mount that has not had its turn.
const URGENT_INTERVAL: Duration = Duration::from_millis(2);

/// A mount whose process is gone.
struct Interrupted {
    kept: Kept,
    request: MountDescription,
    announced: Announced,
}

/// The mounts that wait for their turn.
#[derive(Default)]
struct Turns {
    kits: Vec<Waiting>,
    /// Turns that are under way of mounts whose programs wait.
    urgent: usize,
}

/// The mounts of one kit.
struct Waiting {
    kit: KitRequest,
    mounts: Vec<Interrupted>,
}

impl Waiting {
    /// Whether a program waits for one of them.
    fn is_urgent(&self) -> bool {
        self.mounts.iter().any(Interrupted::is_urgent)
    }

    fn nodes(&self) -> u32 {
        self.mounts.first().map_or(0, |mount| mount.announced.nodes)
    }
}

impl Interrupted {
    fn is_urgent(&self) -> bool {
        fuse::has_requests(self.kept.device())
    }
}

/// The mounts that a lane takes. Each processor has a lane, and there are two at least: one works through all
/// mounts, and the others are free for the mounts whose programs begin to wait meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Every mount; those whose programs wait first.
    Any,
    /// Mounts whose programs wait.
    Urgent,
}

enum Turn {
    Take {
        mounts: Vec<Interrupted>,
        is_urgent: bool,
    },
    /// Nothing for this lane at the moment.
    Wait,
    /// No mount is left.
    Over,
}

impl Turns {
    fn add(&mut self, mount: Interrupted) {
        let kit = pinned_request(&mount.request.kit, mount.announced.pinned.clone());
        match self.kits.iter_mut().find(|waiting| waiting.kit == kit) {
            Some(waiting) => waiting.mounts.push(mount),
            None => self.kits.push(Waiting { kit, mounts: vec![mount] }),
        }
    }

    /// The next turn: of a kit that programs wait for, and of these the smallest. The others have the
    /// processors when nobody waits.
    fn next(&mut self, wanted: Wanted) -> Turn {
        let rank = |(_, waiting): &(usize, &Waiting)| (!waiting.is_urgent(), waiting.nodes());
        let Some((at, first)) = self.kits.iter().enumerate().min_by_key(rank) else {
            return Turn::Over;
        };
        let is_urgent = first.is_urgent();
        if !is_urgent && (wanted == Wanted::Urgent || self.urgent > 0) {
            return Turn::Wait;
        }
        self.urgent += usize::from(is_urgent);
        let mut mounts = self.kits.remove(at).mounts;
        mounts.sort_by_key(|mount| !mount.is_urgent());
        Turn::Take { mounts, is_urgent }
    }

    fn end(&mut self, is_urgent: bool) {
        self.urgent -= usize::from(is_urgent);
    }
}

impl Service {
    /// Goes on with mounts, and tells the keeper when that is done. The mounts whose programs wait go first.
    pub(in crate::daemon) async fn take_over(self: &Arc<Self>, mounts: Vec<Held>) {
        let mut turns = Turns::default();
        for held in mounts {
            let (kept, record) = self.keeping.taken_over(held);
            let Record { request, announced } = match record {
                Ok(record) => record,
                Err(Unreadable { mountpoint: Some(mountpoint), why }) => {
                    let this = self.clone();
                    self.taking_over
                        .spawn(async move { this.give_up(kept, &mountpoint, None, &why).await });
                    continue;
                }
                Err(Unreadable { mountpoint: None, why }) => {
                    tracing::error!(
                        why,
                        "a mount ends, and stays in the tree: `kitfs status` lists it"
                    );
                    continue;
                }
            };
            // Before anything is loaded: the requests that come again tell which programs wait.
            let resent = announced.is_some().then(|| fuse::resend(kept.device()));
            match (announced, resent) {
                (Some(announced), Some(Ok(()))) => {
                    turns.add(Interrupted { kept, request, announced });
                }
                (announced, resent) => {
                    let why = match resent {
                        Some(Err(error)) => {
                            format!("the kernel does not repeat requests ({error}); Linux 6.9 does")
                        }
                        // Its command got an error: there is no such mount.
                        _ => "it was being made".to_owned(),
                    };
                    let (this, state) = (self.clone(), announced.map(|announced| announced.state));
                    let give_up =
                        async move { this.give_up(kept, &request.mountpoint, state, &why).await };
                    self.taking_over.spawn(give_up);
                }
            }
        }
        let turns = Arc::new(Mutex::new(turns));
        let lanes = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for lane in 0..lanes.max(2) {
            let (this, turns) = (self.clone(), turns.clone());
            let wanted = if lane == 0 { Wanted::Any } else { Wanted::Urgent };
            self.taking_over.spawn(async move { this.take_turns(&turns, wanted).await });
        }
        self.taking_over.close();
        let _ = running_time::timeout(SETTLED_AFTER, self.all_taken_over()).await;
        self.has_taken_over.send_replace(true);
        self.keeping.note_serving();
        self.restore_dead().await;
    }

    /// Goes on with one mount after the other, until none is left.
    async fn take_turns(self: &Arc<Self>, turns: &Mutex<Turns>, wanted: Wanted) {
        loop {
            let turn = turns.lock().next(wanted);
            match turn {
                Turn::Take { mounts, is_urgent } => {
                    self.take_turn(mounts).await;
                    turns.lock().end(is_urgent);
                }
                Turn::Wait => tokio::time::sleep(URGENT_INTERVAL).await,
                Turn::Over => return,
            }
        }
    }

    /// Goes on with the mounts of one kit. A kit that is not loaded soon waits for a source, and holds up no
    /// other one.
    async fn take_turn(self: &Arc<Self>, mounts: Vec<Interrupted>) {
        let go_on = |mount| {
            let this = self.clone();
            self.taking_over.spawn(async move { this.go_on(mount).await })
        };
        let mut mounts = mounts.into_iter();
        // The first one loads the kit, and the others find it.
        if let Some(first) = mounts.next() {
            let _ = running_time::timeout(TURN, go_on(first)).await;
        }
        let _ = running_time::timeout(TURN, join_all(mounts.map(go_on))).await;
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

    async fn go_on(self: &Arc<Self>, mount: Interrupted) {
        let Interrupted { kept, request, announced } = mount;
        let state = announced.state.clone();
        if let Err((kept, failure)) = self.serve_again(kept, &request, announced).await {
            self.give_up(kept, &request.mountpoint, Some(state), &failure.to_string()).await;
        }
    }

    async fn serve_again(
        self: &Arc<Self>,
        kept: Kept,
        request: &MountDescription,
        announced: Announced,
    ) -> Result<(), (Kept, Failure)> {
        let Announced { pinned, tree, state, mounted_at, nodes: _ } = announced;
        let kit_request = pinned_request(&request.kit, pinned);
        let ready = async {
            let key = self.mount_key(state.place().view(), request.mountpoint.clone());
            let reservation = self.mounts.reserve(key, None).await?;
            if request.browse.is_some() {
                return Ok((reservation, None));
            }
            let kit = match self.kits.find(&kit_request) {
                Some(kit) => kit,
                None => self.load_patiently(&kit_request, &kept).await?,
            };
            Ok((reservation, Some(kit)))
        };
        let (reservation, kit): (Reservation, _) = match ready.await {
            Ok(ready) => ready,
            Err(failure) => return Err((kept, failure)),
        };
        let options = self.mount_options(request);
        let config = fs_config(request);
        let mount = async {
            let (served, sessions) = (kit.clone(), self.sessions()?);
            let content = self.content(&kit, request)?;
            let descriptors = kept.descriptors().map_err(|error| {
                let message = format!("its descriptors cannot be copied: {error}");
                Failure::new(FailureKind::Internal, message)
            })?;
            let mount = move || {
                if served.is_some_and(|served| TreeMark::of(&served) != tree) {
                    let message = "its files are not those that were mounted: mount the kit again";
                    return Err(Failure::new(FailureKind::NotFound, message));
                }
                Ok(Mount::take_over(descriptors, &state, content, &options, config, sessions)?)
            };
            spawn_blocking(mount).await.map_err(panicked)?
        };
        let mount = match mount.await {
            Ok(mount) => mount,
            Err(failure) => return Err((kept, failure)),
        };
        if let Some(kit) = kit.as_ref().filter(|kit| !kit.has_missing()) {
            self.kits.share(kit_request, kit);
        }
        let background = self.background(&mount, request, kit.as_deref(), None);
        let mountpoint = request.mountpoint.display();
        let owner = kept.owner().unwrap_or_else(|error| {
            tracing::error!(%mountpoint, %error, "the owner of a mount cannot be watched");
            None
        });
        let terms = Terms { request: &request.kit, mounted_at, owner };
        match reservation.fulfil(mount, kit, terms, background, Some(kept)) {
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
        let abandoned = async {
            match kept.owner() {
                Ok(Some(owner)) if owner.ended().await.is_ok() => {
                    running_time::sleep(OWNERLESS_PATIENCE).await;
                }
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            kit = load => kit,
            () = abandoned => Err(Failure::new(FailureKind::NotFound, "its owner has ended")),
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
        // A mountpoint that a user of a system daemon names may be anything, so nothing is unmounted there.
        let is_known = state.is_some() || !self.has_users;
        let end = move || {
            if is_known {
                Mount::give_up(kept.device(), state.as_ref(), &place, child_limits);
            }
            // Without its descriptors the kernel answers every request of the mount with an error.
            drop(kept);
        };
        if let Err(error) = spawn_blocking(end).await {
            tracing::error!(mountpoint = %mountpoint.display(), %error, "ending a mount failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use rustix::fs::MemfdFlags;
    use serde_json::json;

    use super::super::super::held_mounts::Keeping;
    use super::*;

    /// A mount of a kit with so many nodes, and the kernel's end of its device.
    fn interrupted(keeping: &Arc<Keeping>, kit: &str, nodes: u32) -> (Interrupted, UnixStream) {
        let (device, kernel) = UnixStream::pair().unwrap();
        let memory = || rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        let (record, opens) = (memory(), memory());
        let held = Held {
            number: 1,
            connection: None,
            device: device.into(),
            record: record.into(),
            opens,
            owner: None,
        };
        let (kept, _) = keeping.taken_over(held);
        let request = serde_json::from_value(json!({
            "kit": {"reference": kit, "umask": 18}, "mountpoint": "/a", "tensor_prefetch": true,
            "hydrate": "begun", "hydrate_after_seconds": 30,
        }));
        let announced = serde_json::from_value(json!({
            "pinned": format!("{kit}@sha256:00"), "mounted_at": 7, "nodes": nodes,
            "tree": {"manifest": "sha256:00", "layers": ["sha256:01"], "nodes": "sha256:02"},
            "state": {
                "place": {"path": "/a", "device": [0, 44], "made": null, "view": null}, "features": 5,
            },
        }));
        (Interrupted { kept, request: request.unwrap(), announced: announced.unwrap() }, kernel)
    }

    /// The numbers of nodes of the mounts that have their turn.
    fn taken(turn: Turn) -> Option<(Vec<u32>, bool)> {
        match turn {
            Turn::Take { mounts, is_urgent } => {
                Some((mounts.iter().map(|mount| mount.announced.nodes).collect(), is_urgent))
            }
            Turn::Wait | Turn::Over => None,
        }
    }

    #[test]
    fn mounts_whose_programs_wait_go_first_and_small_ones_before_large_ones() {
        let keeping = Keeping::none();
        let mut turns = Turns::default();
        let mut kernels = Vec::new();
        let kits = [("a", 900), ("b", 10), ("c", 500), ("d", 50), ("a", 900)];
        for (kit, nodes) in kits {
            let (mount, kernel) = interrupted(&keeping, kit, nodes);
            turns.add(mount);
            kernels.push(kernel);
        }
        assert!(matches!(turns.next(Wanted::Urgent), Turn::Wait), "nobody waits");
        assert_eq!(taken(turns.next(Wanted::Any)), Some((vec![10], false)));
        // Requests for `c`, and for the second mount of `a`.
        kernels[2].write_all(b"request").unwrap();
        kernels[4].write_all(b"request").unwrap();
        assert_eq!(taken(turns.next(Wanted::Any)), Some((vec![500], true)));
        assert_eq!(taken(turns.next(Wanted::Urgent)), Some((vec![900, 900], true)));
        for _ in 0..2 {
            assert!(matches!(turns.next(Wanted::Any), Turn::Wait), "the others wait for these");
            turns.end(true);
        }
        assert_eq!(taken(turns.next(Wanted::Any)), Some((vec![50], false)));
        assert!(matches!(turns.next(Wanted::Any), Turn::Over));
        assert!(matches!(turns.next(Wanted::Urgent), Turn::Over));
    }
}
