//! A mount that is served, and its status.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::super::following::Following;
use super::super::held_mounts::Kept;
use super::super::hydrate::{Hydrating, is_here};
use super::super::upkeep::kit_state;
use super::MountKey;
use crate::control::api::{
    BrowseStatus, BrowsedKit, Failure, FailureKind, HydrateMode, HydrateState, MountStatus,
    PassthroughState, PredictorStatus, ReadaheadStatus, ReplacedStatus,
};
use crate::fs::browse::Browse;
use crate::fs::readahead::ledger::LedgerState;
use crate::fs::{FileSystem, LoadedKit, State};
use crate::fuse::{
    DeviceNumber, Mount, MountPlace, PassthroughStatus, ReplacedRange, ReplacedRanges,
};
use crate::oci::{LabelSelector, Origin, Selector};
use crate::process::pidfd::Pidfd;

/// A mount, and its kit.
pub(in crate::daemon) struct Served {
    pub(super) key: MountKey,
    pub(super) mount: Mount,
    /// `None` for kits by path.
    pub(super) kit: Option<Arc<LoadedKit>>,
    /// The reference and the labels of the command.
    pub(super) reference: String,
    pub(super) labels: LabelSelector,
    pub(super) mounted_at: i64,
    /// The process whose end ends the mount.
    pub(super) owner: Option<Pidfd>,
    /// Nothing once the mount is out of the tree.
    pub(super) background: Mutex<Option<Background>>,
    /// Ends the recording that runs.
    pub(super) recording: Mutex<Option<CancellationToken>>,
    /// The keeper's hold on the mount, while the mount has open files too.
    pub(super) kept: Option<Kept>,
    /// Cancelled when all of the above is gone: the fields of a struct are dropped in order.
    pub(super) _release: DropGuard,
    pub(super) released: CancellationToken,
}

/// Work that goes on beside a mount, and ends with it.
pub(in crate::daemon) struct Background {
    /// Fetches the missing bytes of the kit.
    pub(in crate::daemon) hydrating: Option<Hydrating>,
    /// Fetches the ranges of an access trace.
    pub(in crate::daemon) _replay: Option<AbortOnDropHandle<()>>,
    /// Looks whether the tag has moved.
    pub(in crate::daemon) following: Option<Following>,
}

impl Served {
    /// The place of the mount.
    pub(in crate::daemon) fn place(&self) -> MountPlace {
        self.mount.place()
    }

    pub(super) fn device(&self) -> Option<DeviceNumber> {
        self.mount.place().device_number()
    }

    /// Leaves the removal of the mountpoint to another mount there.
    pub(in crate::daemon) fn leave_directory(&self) {
        self.mount.leave_directory();
    }

    /// The file system of the one kit.
    ///
    /// # Errors
    /// `Mountpoint` for kits by path: `what` takes one kit.
    pub(in crate::daemon) fn file_system(&self, what: &str) -> Result<&Arc<FileSystem>, Failure> {
        self.mount.nodes().single().ok_or_else(|| {
            let place = self.mount.mountpoint().display();
            let message = format!(
                "{place} has kits by path, and {what} takes one kit: mount that kit with `kitfs mount`"
            );
            Failure::new(FailureKind::Mountpoint, message)
        })
    }

    /// The kits by path, where the mount has several.
    pub(in crate::daemon) fn by_path(&self) -> Option<&Arc<Browse>> {
        self.mount.nodes().by_path()
    }

    /// The kits in memory.
    pub(in crate::daemon) fn kits(&self) -> Vec<Arc<LoadedKit>> {
        let kits = self.mount.nodes().kits().into_iter();
        kits.map(|kit| kit.file_system().kit().clone()).collect()
    }

    /// The one kit, if the mount has it by `origin`, or `origin` names its version. With labels, a reference names
    /// several kits.
    pub(super) fn kit_of(&self, origin: &Origin) -> Option<Arc<LoadedKit>> {
        let kit = self.kit.as_ref()?;
        let own = Origin::parse(&self.reference).ok()?;
        let is_version = || own.with_selector(Selector::Digest(kit.manifest)) == *origin;
        let is_mounted = (self.labels.is_empty() && own == *origin) || is_version();
        is_mounted.then(|| kit.clone())
    }

    pub(in crate::daemon) fn reference(&self) -> &str {
        &self.reference
    }

    /// Cancelled when the mount and everything that it held are gone.
    pub(in crate::daemon) fn released(&self) -> CancellationToken {
        self.released.clone()
    }

    /// A token that ends the recording; the next call is for the next recording.
    pub(in crate::daemon) fn new_recording(&self) -> CancellationToken {
        let stop = CancellationToken::new();
        *self.recording.lock() = Some(stop.clone());
        stop
    }

    /// Ends a recording after its last reads.
    pub(in crate::daemon) fn stop_recording(&self) {
        if let Some(stop) = self.recording.lock().take() {
            stop.cancel();
        }
    }

    /// Ends the background work of a mount that is out of the tree: programs that still have files of
    /// it open are served, and no more.
    pub(super) fn end_background(&self) {
        drop(self.background.lock().take());
        self.stop_recording();
    }

    /// Files that are opened while somebody records are read through this process.
    pub(in crate::daemon) fn set_recording(&self, is_recording: bool) {
        self.mount.set_passthrough(!is_recording);
    }

    /// A warning about the programs that use the mount when the daemon ends.
    pub(super) fn last_users(&self) -> Option<String> {
        let (place, users) = (self.mount.mountpoint().display(), self.mount.users()?);
        Some(format!("{place} was still in use by {users}: reads there fail from now on"))
    }

    /// Whether every byte is in the cache, and its digest is right.
    pub(super) fn is_here(&self) -> bool {
        let mut kits = self.kits().into_iter();
        kits.all(|kit| kit.layers.iter().all(|layer| is_here(layer)))
    }

    /// The process whose end ends the mount, for another mount with the same owner.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub(in crate::daemon) fn owner(&self) -> Result<Option<Pidfd>, Failure> {
        let owner = self.owner.as_ref().map(Pidfd::try_clone).transpose();
        owner.map_err(|error| {
            let message = format!("the owner of the mount cannot be watched: {error}");
            Failure::new(FailureKind::Internal, message)
        })
    }

    /// Waits for the end of the process that owns the mount, and returns its number. For ever without an owner.
    pub(super) async fn owner_ended(&self) -> Option<u32> {
        let Some(owner) = &self.owner else { return std::future::pending().await };
        let pid = owner.pid();
        if let Err(error) = owner.ended().await {
            tracing::error!(%error, "the owner of a mount cannot be watched");
            return std::future::pending().await;
        }
        pid
    }

    /// The bytes in the cache. Two paths to one kit count once.
    fn resident_bytes(&self) -> u64 {
        let mut seen = HashSet::new();
        let kits = self.mount.nodes().kits();
        let file_systems = kits.iter().map(|kit| kit.file_system());
        let each = file_systems.filter(|it| seen.insert(it.kit().manifest));
        each.map(|it| it.resident_bytes()).fold(0, u64::saturating_add)
    }

    /// The account of readahead: the sum over kits by path that are in memory.
    fn readahead(&self) -> ReadaheadStatus {
        let kits = self.mount.nodes().kits();
        let each = kits.iter().map(|kit| readahead_status(kit.file_system().ledger()));
        let empty = ReadaheadStatus { read_bytes: 0, unread_bytes: 0, predictors: Vec::new() };
        each.reduce(ReadaheadStatus::plus).unwrap_or(empty)
    }

    pub(super) fn status(&self) -> MountStatus {
        let ((moved_to, follow_failure), (hydrate_mode, hydrate)) = match &*self.background.lock() {
            Some(Background { following: Some(following), hydrating: Some(hydrating), .. }) => {
                let hydrate = match hydrating.state() {
                    // Readers may have fetched the missing bytes meanwhile.
                    HydrateState::Waiting if self.is_here() => HydrateState::Complete,
                    state => state,
                };
                (following.state(), (hydrating.mode(), hydrate))
            }
            Some(_) | None => ((None, None), (HydrateMode::None, HydrateState::Off)),
        };
        let kits = self.kits();
        let ReplacedRanges { named, others: replaced_others } = self.mount.replaced();
        let replaced = named.into_iter().map(|ReplacedRange { path, range }| ReplacedStatus {
            path,
            start: range.start,
            end: range.end,
        });
        MountStatus {
            mountpoint: self.mount.mountpoint().to_owned(),
            elsewhere: self.key.elsewhere.clone(),
            user: None,
            reference: self.reference.clone(),
            labels: self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
            overlay: self.mount.place().overlay().map(Path::to_owned),
            digest: self.kit.as_ref().map(|kit| kit.manifest.to_string()).unwrap_or_default(),
            browse: self.mount.nodes().by_path().map(|browse| browse_status(browse)),
            moved_to: moved_to.map(|digest| digest.to_string()),
            follow_failure,
            entries: kits.iter().map(|kit| u64::from(kit.tree.len()) - 1).sum(),
            total_bytes: sum_of(&kits, LoadedKit::total_bytes),
            resident_bytes: self.resident_bytes(),
            unchecked_bytes: sum_of(&kits, LoadedKit::unchecked_bytes),
            state: kit_state(kits.iter().map(|kit| kit.state()).max().unwrap_or(State::Confirmed)),
            mounted_at: self.mounted_at,
            owner: self.owner.as_ref().and_then(Pidfd::pid),
            warnings: self.kit.as_ref().map(|kit| kit.all_warnings()).unwrap_or_default(),
            last_failure: self.mount.last_failure(),
            replaced: replaced.collect(),
            replaced_others,
            passthrough: match self.mount.passthrough() {
                PassthroughStatus::On { open_files, opened_files } => {
                    PassthroughState::On { open_files, opened_files }
                }
                PassthroughStatus::Off { reason } => PassthroughState::Off { reason },
            },
            hydrate_mode,
            hydrate,
            readahead: self.readahead(),
        }
    }
}

/// The status of a browse mount.
fn browse_status(browse: &Browse) -> BrowseStatus {
    let kits = browse.in_use().into_iter().map(|kit| BrowsedKit {
        path: kit.path,
        digest: kit.digest.to_string(),
        is_in_memory: kit.is_awake,
    });
    let registries = browse.config().hosts.iter().map(str::to_owned).collect();
    BrowseStatus { registries, kits: kits.collect() }
}

/// A sum over kits. Two paths to one kit count it once.
fn sum_of(kits: &[Arc<LoadedKit>], bytes: fn(&LoadedKit) -> u64) -> u64 {
    let mut seen = HashSet::new();
    let each = kits.iter().filter(|kit| seen.insert(kit.manifest)).map(|kit| bytes(kit));
    each.fold(0, u64::saturating_add)
}

fn readahead_status(ledger: LedgerState) -> ReadaheadStatus {
    let predictors = ledger.accounts.into_iter().map(|account| PredictorStatus {
        name: account.predictor.name().to_owned(),
        asked_bytes: account.asked_bytes,
        read_bytes: account.read_bytes,
    });
    ReadaheadStatus {
        read_bytes: ledger.read_bytes,
        unread_bytes: ledger.unread_bytes,
        predictors: predictors.collect(),
    }
}
