//! The table of mounts.
//!
//! ```text
//!            reserve             fulfil              unmount, or ended by itself
//! (no entry) -------> BeingMade ---------> Served ---------------------------------> (no entry)
//!     ^                   '--dropped: the mount failed--.
//!     '--------------------------------------------------'
//! ```
//!
//! A mountpoint has one entry from the first command that wants it. Of two commands that mount at the
//! same place at once, one wins and the other fails. A closed table takes no entry: a mount that comes too
//! late is taken out of the tree again.

mod served;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::failure::panicked;
use super::held_mounts::Kept;
use super::memory::Memory;
use crate::cache::LayerKey;
use crate::control::api::{Failure, FailureKind, KitRequest, MountStatus};
use crate::fs::LoadedKit;
use crate::fuse::{DeviceNumber, Mount, MountError};
use crate::oci::{Digest, LabelSelector, Origin};
use crate::process::mount_table::MountTable;
use crate::process::pidfd::Pidfd;
use crate::process::running_time::{self, Stopwatch};

pub(super) use served::{Background, Served};

/// How long programs that use a mount may delay a daemon that stops. Shorter than the 10 s after
/// which container runtimes kill.
const BUSY_GRACE: Duration = Duration::from_secs(5);
/// The time for which an unmount waits until the kit is released. That takes milliseconds, unless
/// another mount namespace still holds the mount.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of mounts in use that a daemon names when it ends. Finding the users of one takes up to
/// two seconds, and the command waits for all of them.
const MOST_TOLD: usize = 3;
/// The interval between two tries to unmount a busy mount.
const BUSY_INTERVAL: Duration = Duration::from_millis(100);

/// The place of a mount, as the table names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MountKey {
    /// The mountpoint.
    pub(super) mountpoint: PathBuf,
    /// The part of the file tree in which it lies, where this process sees another one.
    pub(super) elsewhere: Option<String>,
}

/// The mounts of a process, by place.
#[derive(Default)]
pub(super) struct Mounts {
    table: Mutex<Table>,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<MountKey, Entry>,
    /// Mounts whose place another one in `entries` is about to take, or has just taken.
    replaced: Vec<Arc<Served>>,
    /// Mounts that are out of the tree, and may still be served: for open files, or for another mount
    /// namespace.
    leaving: Vec<Weak<Served>>,
    is_closed: bool,
}

enum Entry {
    BeingMade,
    Served(Arc<Served>),
}

/// The wishes of the command that has mounted.
pub(super) struct Terms<'a> {
    pub(super) request: &'a KitRequest,
    /// Seconds since 1970.
    pub(super) mounted_at: i64,
    /// The process whose end ends the mount, if there is one.
    pub(super) owner: Option<Pidfd>,
}

/// A mountpoint that is kept for the mount being made. Dropping it gives it up.
pub(super) struct Reservation {
    mounts: Arc<Mounts>,
    key: MountKey,
    /// Another mount has the place, and this one is to take it.
    replaces: bool,
    is_fulfilled: bool,
}

impl Mounts {
    /// Keeps a place for the caller. The new mount may replace the one with the device number `before`.
    ///
    /// # Errors
    /// When the place is taken, or the daemon is stopping.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        key: MountKey,
        before: Option<DeviceNumber>,
    ) -> Result<Reservation, Failure> {
        if self.has(&key) {
            self.forget_detached().await;
        }
        let mut table = self.table.lock();
        let place = key.mountpoint.display();
        if table.is_closed {
            return Err(stopping());
        }
        let reservation = |replaces| Reservation {
            mounts: self.clone(),
            key: key.clone(),
            replaces,
            is_fulfilled: false,
        };
        match table.entries.get(&key) {
            Some(Entry::Served(served)) if before.is_some() && served.device() == before => {
                return Ok(reservation(true));
            }
            // The command has mounted there, so the earlier mount is out of its tree.
            None | Some(Entry::Served(_)) if key.elsewhere.is_some() => {}
            None => {}
            Some(Entry::BeingMade) => {
                let message = format!("{place} is being mounted by another command");
                return Err(Failure::new(FailureKind::Mountpoint, message));
            }
            Some(Entry::Served(served)) => {
                let message = format!(
                    "{} is mounted at {place} already; end that with `kitfs umount {place}`",
                    served.reference
                );
                return Err(Failure::new(FailureKind::Mountpoint, message));
            }
        }
        if let Some(Entry::Served(before)) = table.entries.insert(key.clone(), Entry::BeingMade) {
            table.leaving.push(Arc::downgrade(&before));
        }
        Ok(reservation(false))
    }

    /// Every mount, by mountpoint.
    pub(super) async fn statuses(&self) -> Vec<MountStatus> {
        self.forget_detached().await;
        self.served().iter().map(|served| served.status()).collect()
    }

    /// The kits in memory of every mount, by mountpoint.
    pub(super) fn kits(&self) -> Vec<(PathBuf, Vec<Arc<LoadedKit>>)> {
        let served = self.served();
        let each =
            served.iter().map(|served| (served.mount.mountpoint().to_owned(), served.kits()));
        each.collect()
    }

    /// Whether nothing is mounted, and nothing is being mounted.
    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().entries.is_empty()
    }

    /// Whether a mount is there, is being made, or has open files.
    pub(super) fn is_used(&self) -> bool {
        let table = self.table.lock();
        !table.entries.is_empty() || table.leaving.iter().any(|left| left.strong_count() > 0)
    }

    fn has(&self, key: &MountKey) -> bool {
        self.table.lock().entries.contains_key(key)
    }

    /// Forgets mounts that other programs have taken out of the tree: umount(8), fusermount3. Of those that
    /// they took out lazily, open files are served to their end.
    async fn forget_detached(&self) {
        let served = self.served();
        if served.is_empty() {
            return;
        }
        let detached = tokio::task::spawn_blocking(move || {
            // Without the kernel's table, nothing is forgotten.
            let Ok(table) = MountTable::read() else { return Vec::new() };
            served.into_iter().filter(|served| !served.mount.is_attached(&table)).collect()
        });
        for served in detached.await.unwrap_or_default() {
            served.end_background();
            self.forget(&served).await;
        }
    }

    /// A mountpoint of a kit with this layer.
    pub(super) fn mountpoint_of(&self, key: LayerKey) -> Option<PathBuf> {
        let has_layer = |served: &&Arc<Served>| {
            served.kits().iter().any(|kit| kit.layers.iter().any(|layer| layer.key() == key))
        };
        let served = self.served();
        served.iter().find(has_layer).map(|served| served.mount.mountpoint().to_owned())
    }

    /// Ends the mount at `key`, or the one with this device number there. Returns warnings about programs that
    /// still use it elsewhere.
    ///
    /// # Errors
    /// `NotFound` when none is there, `Mountpoint` when programs use it.
    pub(super) async fn unmount(
        &self,
        key: &MountKey,
        device: Option<DeviceNumber>,
        lazy: bool,
    ) -> Result<Vec<String>, Failure> {
        let served = match device {
            None => self.at(key)?,
            Some(device) => self.with_device(key, device)?,
        };
        let warnings = unmount(&served, lazy).await?;
        served.end_background();
        self.forget(&served).await;
        let released = served.released.clone();
        drop(served);
        if !lazy && warnings.is_empty() {
            // The next command may remove the layers, and must find that nothing has them open.
            let _ = running_time::timeout(RELEASE_TIMEOUT, released.cancelled()).await;
        }
        Ok(warnings)
    }

    /// Ends a mount that another one has replaced. Its open files are served on. `successor` is the device number
    /// of the other one.
    pub(super) async fn end_replaced(&self, served: &Arc<Served>, successor: Option<DeviceNumber>) {
        // The mount is out of the tree, except for copies in other mount namespaces. The kernel may have given its
        // device number to the other mount, which must stay.
        if served.device() != successor
            && let Err(failure) = unmount(served, true).await
        {
            tracing::debug!(%failure, "the mount before has ended already");
        }
        served.end_background();
        self.forget(served).await;
    }

    /// The mount at `key`.
    ///
    /// # Errors
    /// `NotFound` when none is there, `Mountpoint` while it is being made.
    pub(super) fn at(&self, key: &MountKey) -> Result<Arc<Served>, Failure> {
        let place = key.mountpoint.display();
        match self.table.lock().entries.get(key) {
            Some(Entry::Served(served)) => Ok(served.clone()),
            Some(Entry::BeingMade) => {
                let message = format!("{place} is being mounted: try again in a moment");
                Err(Failure::new(FailureKind::Mountpoint, message))
            }
            None => Err(no_mount(key)),
        }
    }

    /// The mount with a device number, which another mount may have replaced.
    pub(super) fn with_device(
        &self,
        key: &MountKey,
        device: DeviceNumber,
    ) -> Result<Arc<Served>, Failure> {
        let is_it = |served: &&Arc<Served>| served.key == *key && served.device() == Some(device);
        let served = self.served();
        served.iter().find(is_it).cloned().ok_or_else(|| no_mount(key))
    }

    /// Closes the table, and ends every mount: gently at first, and lazily once the grace is over. Returns
    /// a warning for each mount that programs still use: their reads fail when this process ends.
    pub(super) async fn end_all(&self) -> Vec<String> {
        self.table.lock().is_closed = true;
        join_all(self.served().into_iter().map(|served| async move {
            end(&served).await;
            self.forget(&served).await;
        }))
        .await;
        let leaving = std::mem::take(&mut self.table.lock().leaving);
        let leaving: Vec<_> = leaving.iter().filter_map(Weak::upgrade).collect();
        let warnings = tokio::task::spawn_blocking(move || {
            leaving.iter().filter_map(|served| served.last_users()).take(MOST_TOLD).collect()
        });
        warnings.await.unwrap_or_default()
    }

    /// Done when nothing is mounted at `key` by this process.
    pub(super) async fn ended(&self, key: &MountKey) {
        let served = match self.table.lock().entries.get(key) {
            Some(Entry::Served(served)) => served.clone(),
            Some(Entry::BeingMade) | None => return,
        };
        served.mount.ended().await;
    }

    /// Tells the mounts of a reference which manifest it names by now.
    pub(super) fn note_tag(&self, reference: &str, manifest: Digest) {
        for served in self.served().iter().filter(|served| served.reference == reference) {
            // With labels, a reference names several kits.
            if served.labels.is_empty()
                && let Some(Background { following: Some(following), .. }) =
                    &*served.background.lock()
            {
                following.note(manifest);
            }
        }
    }

    /// The kit that is mounted by `origin`, or as the version that `origin` names by its digest. Of several mounts
    /// the newest counts.
    pub(super) fn kit_of(&self, origin: &Origin) -> Option<Arc<LoadedKit>> {
        let mut served = self.served();
        served.sort_by_key(|served| std::cmp::Reverse(served.mounted_at));
        served.iter().find_map(|served| served.kit_of(origin))
    }

    fn served(&self) -> Vec<Arc<Served>> {
        let table = self.table.lock();
        let served = table.entries.values().filter_map(|entry| match entry {
            Entry::Served(served) => Some(served.clone()),
            Entry::BeingMade => None,
        });
        served.chain(table.replaced.iter().cloned()).collect()
    }

    /// Takes `served` out of the table, unless another mount has its place by now. If `served` was to replace a
    /// mount that is still there, that one keeps its place.
    async fn forget(&self, served: &Arc<Served>) {
        self.take_out(served);
        if served.kept.is_some() {
            // The journal syncs the disk. The work goes on if the caller does not wait for its end.
            let served = served.clone();
            let strike = move || served.kept.iter().for_each(Kept::strike);
            let _ = tokio::task::spawn_blocking(strike).await;
        }
    }

    fn take_out(&self, served: &Arc<Served>) {
        let mut table = self.table.lock();
        table.leaving.retain(|leaving| leaving.strong_count() > 0);
        table.leaving.push(Arc::downgrade(served));
        table.replaced.retain(|replaced| !Arc::ptr_eq(replaced, served));
        if let Some(Entry::Served(there)) = table.entries.get(&served.key)
            && Arc::ptr_eq(there, served)
        {
            table.entries.remove(&served.key);
            let before = table.replaced.iter().rposition(|replaced| replaced.key == served.key);
            if let Some(before) = before {
                let before = table.replaced.remove(before);
                table.entries.insert(served.key.clone(), Entry::Served(before));
            }
        }
    }
}

impl Reservation {
    /// Puts a mount in its reserved place, and watches for its end.
    ///
    /// # Errors
    /// When the daemon began to stop meanwhile; the mount is ended then.
    pub(super) fn fulfil(
        mut self,
        mount: Mount,
        kit: Option<Arc<LoadedKit>>,
        terms: Terms<'_>,
        background: Background,
        kept: Option<Kept>,
    ) -> Result<MountStatus, Failure> {
        let Terms { request, mounted_at, owner } = terms;
        let labels = LabelSelector::parse(&request.labels)?;
        let released = CancellationToken::new();
        let release = released.clone().drop_guard();
        let served = Arc::new(Served {
            key: self.key.clone(),
            mount,
            kit,
            reference: request.reference.clone(),
            labels,
            mounted_at,
            owner,
            background: Mutex::new(Some(background)),
            recording: Mutex::default(),
            kept,
            _release: release,
            released,
        });
        {
            let mut table = self.mounts.table.lock();
            if table.is_closed {
                return Err(stopping());
            }
            let before = table.entries.insert(self.key.clone(), Entry::Served(served.clone()));
            if let Some(Entry::Served(before)) = before {
                table.replaced.push(before);
            }
        }
        self.is_fulfilled = true;
        let status = served.status();
        let mounts = self.mounts.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = served.mount.ended() => {}
                owner = served.owner_ended() => {
                    tracing::info!(mountpoint = %served.mount.mountpoint().display(), owner,
                        "ending a mount: its owner has ended");
                    end(&served).await;
                    served.end_background();
                    mounts.forget(&served).await;
                    // Programs may still have files open.
                    served.mount.ended().await;
                }
            }
            mounts.forget(&served).await;
            tracing::info!(mountpoint = %served.mount.mountpoint().display(), "the mount ended");
            // A tree of a million entries takes a while to drop.
            let _ = tokio::task::spawn_blocking(move || drop(served)).await;
            mounts.memory.give_back_soon();
        });
        Ok(status)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_fulfilled && !self.replaces {
            self.mounts.table.lock().entries.remove(&self.key);
        }
    }
}

async fn unmount(served: &Arc<Served>, lazy: bool) -> Result<Vec<String>, Failure> {
    try_unmount(served, lazy).await?.map_err(Failure::from)
}

async fn try_unmount(
    served: &Arc<Served>,
    lazy: bool,
) -> Result<Result<Vec<String>, MountError>, Failure> {
    let served = served.clone();
    tokio::task::spawn_blocking(move || served.mount.unmount(lazy)).await.map_err(panicked)
}

async fn end(served: &Arc<Served>) {
    let mountpoint = served.mount.mountpoint().display();
    let mut watch = Stopwatch::start();
    loop {
        match try_unmount(served, false).await {
            Ok(Ok(_)) => return,
            Ok(Err(MountError::Busy(_))) if watch.look() < BUSY_GRACE => {
                tokio::time::sleep(BUSY_INTERVAL).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(%mountpoint, %error, "taking a mount out of the tree lazily");
                break;
            }
            Err(failure) => {
                tracing::error!(%mountpoint, %failure, "ending a mount failed");
                break;
            }
        }
    }
    if let Err(failure) = unmount(served, true).await {
        tracing::error!(%mountpoint, %failure, "a mount is left behind");
    }
}

fn no_mount(key: &MountKey) -> Failure {
    let place = key.mountpoint.display();
    let message = format!("no kit is mounted on {place}; `kitfs status` lists the mounts");
    Failure::new(FailureKind::NotFound, message)
}

pub(super) fn stopping() -> Failure {
    Failure::new(FailureKind::Daemon, "the daemon is stopping: try again in a moment")
}
