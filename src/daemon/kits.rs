//! Kits that were loaded a moment ago, so that `ls` and then `cat` load once.
//!
//! A kit is found again by its manifest's digest, never by its tag: the caller resolves the tag
//! first, so a tag that moved is seen. What a mount serves is found too, without being kept for
//! it. An open kit keeps its layers in the cache, so [`Kits::let_go`] comes before an eviction by
//! hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::KitRequest;
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
    /// Whether a task closes kept kits; one task is enough for all. Changed under the lock of `kits`.
    is_expiring: AtomicBool,
}

struct Known {
    pinned: KitRequest,
    kit: Weak<LoadedKit>,
    /// Keeps the kit open, for a while after its last use.
    kept: Option<(Arc<LoadedKit>, Instant)>,
}

impl Kits {
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
