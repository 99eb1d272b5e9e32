//! Open kits.
//!
//! - A command that has opened a kit names it by a handle, until the command ends ([`Kits::lend`]).
//! - A kit stays open for a moment afterwards, so that `ls` and then `cat` load once ([`Kits::keep`]). It is
//!   found again by its manifest's digest, never by its tag: a tag may move.
//! - The kit of a mount is found as long as the mount has it open ([`Kits::share`]).
//!
//! An open kit keeps its layers in the cache, so [`Kits::let_go`] comes before an eviction by hand.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::control::api::{Failure, FailureKind, KitHandle, KitRequest};
use crate::fs::LoadedKit;
use crate::oci::{Digest, Origin, Selector};

/// How long a kit is kept after its last use: as long as a person takes for the next command.
const KEEP: Duration = Duration::from_secs(60);
/// Kits kept open without a mount; each holds its tree in memory.
const MOST_KEPT: usize = 8;

/// Loaded kits by pinned request.
#[derive(Default)]
pub(super) struct Kits {
    kits: Mutex<Vec<Known>>,
    lent: Mutex<HashMap<u64, Lent>>,
    /// Whether a task closes kept kits; one task is enough for all. Changed under the lock of `kits`.
    is_expiring: AtomicBool,
}

/// A kit that a command of this user has open.
struct Lent {
    uid: u32,
    kit: Arc<LoadedKit>,
}

/// Keeps a handle valid. Dropping it closes the kit.
pub(super) struct Loan {
    kits: Arc<Kits>,
    number: u64,
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.kits.lent.lock().remove(&self.number);
    }
}

struct Known {
    pinned: KitRequest,
    kit: Weak<LoadedKit>,
    /// Keeps the kit open, for a while after its last use.
    kept: Option<(Arc<LoadedKit>, Instant)>,
}

impl Kits {
    /// Lends a kit to a command of the user `uid`.
    pub(super) fn lend(self: &Arc<Self>, kit: Arc<LoadedKit>, uid: u32) -> (KitHandle, Loan) {
        let mut lent = self.lent.lock();
        // Keyed by the system's random numbers. They do not repeat in the life of a process.
        let number = loop {
            let number = RandomState::new().build_hasher().finish();
            if !lent.contains_key(&number) {
                break number;
            }
        };
        lent.insert(number, Lent { uid, kit });
        (KitHandle(number), Loan { kits: self.clone(), number })
    }

    /// The kit that a command of the user `uid` has open.
    ///
    /// # Errors
    /// `Stale` when there is none: another process of the daemon has lent it.
    pub(super) fn lent(&self, handle: KitHandle, uid: u32) -> Result<Arc<LoadedKit>, Failure> {
        let lent = self.lent.lock();
        let lent = lent.get(&handle.0).filter(|lent| lent.uid == uid);
        lent.map(|lent| lent.kit.clone()).ok_or_else(|| {
            let message = "the daemon was replaced meanwhile: try again";
            Failure::new(FailureKind::Stale, message)
        })
    }

    /// Whether no kit is known, so that looking for one is in vain.
    pub(super) fn is_empty(&self) -> bool {
        self.kits.lock().is_empty()
    }

    /// The kit of a request whose reference is pinned to a digest.
    pub(super) fn find(self: &Arc<Self>, pinned: &KitRequest) -> Option<Arc<LoadedKit>> {
        let mut kits = self.kits.lock();
        let known = kits.iter_mut().find(|known| known.pinned == *pinned)?;
        let kit = known.kit.upgrade()?;
        if let Some((_, used)) = &mut known.kept {
            *used = Instant::now();
        }
        Some(kit)
    }

    /// Keeps a kit that a command has loaded.
    pub(super) fn keep(self: &Arc<Self>, pinned: KitRequest, kit: &Arc<LoadedKit>) {
        let kept = Some((kit.clone(), Instant::now()));
        self.insert(Known { pinned, kit: Arc::downgrade(kit), kept });
        if self.is_expiring.swap(true, Ordering::Relaxed) {
            return;
        }
        let kits = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(next) = kits.upgrade().and_then(|kits| kits.expire(Instant::now())) {
                tokio::time::sleep_until(next.into()).await;
            }
        });
    }

    /// Knows a kit as long as somebody else, a mount, has it open.
    pub(super) fn share(&self, pinned: KitRequest, kit: &Arc<LoadedKit>) {
        self.insert(Known { pinned, kit: Arc::downgrade(kit), kept: None });
    }

    /// Closes what no mount has open.
    pub(super) fn let_go(&self) {
        self.kits.lock().iter_mut().for_each(|known| known.kept = None);
    }

    fn insert(&self, new: Known) {
        let mut kits = self.kits.lock();
        kits.retain(|known| known.kit.strong_count() > 0 && known.pinned != new.pinned);
        let kept = kits.iter().filter(|known| known.kept.is_some()).count();
        if kept >= MOST_KEPT {
            let last_used = |known: &&mut Known| known.kept.as_ref().map(|(_, used)| *used);
            let oldest = kits.iter_mut().filter(|known| known.kept.is_some()).min_by_key(last_used);
            oldest.expect("at least one is kept").kept = None;
        }
        kits.push(new);
    }

    /// Closes the kits that were last used [`KEEP`] before `now`; returns when the next one is due.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut kits = self.kits.lock();
        for known in kits.iter_mut() {
            known.kept.take_if(|(_, used)| now.saturating_duration_since(*used) >= KEEP);
        }
        kits.retain(|known| known.kit.strong_count() > 0);
        let ends =
            kits.iter().filter_map(|known| known.kept.as_ref()).map(|(_, used)| *used + KEEP);
        let next = ends.min();
        self.is_expiring.store(next.is_some(), Ordering::Relaxed);
        next
    }
}

/// The reference that names the same kit for ever: `origin`'s repository at `manifest`.
pub(super) fn pinned_reference(origin: &Origin, manifest: Digest) -> String {
    origin.with_selector(Selector::Digest(manifest)).to_string()
}

/// The request that names the same kit for ever: its labels have chosen the manifest.
pub(super) fn pinned_request(request: &KitRequest, pinned: String) -> KitRequest {
    KitRequest { reference: pinned, labels: Vec::new(), ..request.clone() }
}
