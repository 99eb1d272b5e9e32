//! Eviction: the least recently used bytes go first, and bytes that `warm` brought go last.
//!
//! ```text
//! order:          layers that were only read, then layers that `warm` brought
//! within these:   open layers by groups of 16 chunks, each by the stamp of its last read or write;
//!                 closed layers as a whole, by the stamp of their last use (after a restart, by
//!                 their last opening)
//! ```
//!
//! - Room is made for bytes that are about to be written (`room`), and never by looking at the cache. A
//!   smaller limit than that of the last run takes effect with the next write.
//! - Groups of a layer whose last uses are a few writes apart count as used at the same time, and the lower group
//!   goes first. A stream runs forward: chunks behind its reader must go before chunks that were just written for
//!   it, in a small cache too.
//! - Chunks of a group go one by one until there is room. Chunks that are being
//!   filled or pinned stay, and so do the spools of running passes.
//! - A fully evicted layer keeps its table of contents: it can be listed without the network, and costs
//!   no bytes of content.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::known::{Known, Purpose, Shared, Storing};
use super::{CacheError, LayerStore};

/// The writes that count as one moment. Between a write and the eviction that makes room for it, its reader may use
/// its group, and so may readers of a few other streams.
const RECENT_TICKS: u64 = 4;

/// Something that can be evicted. The lowest in order goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Whether `warm` brought it.
    is_warmed: bool,
    stamp: u64,
    /// Position in the list of layers.
    layer: usize,
    /// A group of an open layer's chunks; `None` is a closed layer.
    group: Option<u32>,
}

impl Shared {
    /// Evicts at least `wanted` bytes, if that many can be; returns how many went, as far as that is
    /// known of layers that fail. [`Shared::evicting`] is held.
    pub(super) fn evict(self: &Arc<Self>, wanted: u64) -> u64 {
        self.count_all(&|| true);
        let layers: Vec<(Arc<Known>, Option<Arc<LayerStore>>)> = self
            .all_known()
            .into_iter()
            .filter(|known| known.resident_bytes() > 0)
            .map(|known| (known.clone(), known.open_store()))
            .collect();
        let mut candidates = candidates(&layers);
        candidates.sort_unstable();
        let mut freed = 0;
        let mut failed = HashSet::new();
        for Candidate { layer, group, .. } in candidates {
            if freed >= wanted {
                break;
            }
            if failed.contains(&layer) {
                continue;
            }
            let (known, store) = &layers[layer];
            let evicted = match (store, group) {
                (Some(store), Some(group)) => store.evict_group(group, wanted - freed),
                _ => self.evict_closed(known, wanted - freed),
            };
            match evicted {
                Ok(bytes) => freed += bytes,
                Err(error) => {
                    // Other layers can still make room.
                    tracing::warn!(layer = %known.key.digest, %error, "nothing can be evicted of a layer");
                    failed.insert(layer);
                }
            }
        }
        self.evicted_bytes.fetch_add(freed, Ordering::Relaxed);
        freed
    }

    fn evict_closed(self: &Arc<Self>, known: &Known, wanted: u64) -> Result<u64, CacheError> {
        let Some(blob_bytes) = known.meta.read().as_ref().map(|meta| meta.blob_bytes) else {
            return Ok(0);
        };
        let store =
            self.open_layer(known.key, blob_bytes, Purpose::Maintenance, Storing::OnDisk)?;
        let mut freed = 0;
        for (group, _) in store.resident_groups() {
            if freed >= wanted {
                break;
            }
            freed += store.evict_group(group, wanted - freed)?;
        }
        Ok(freed)
    }
}

fn candidates(layers: &[(Arc<Known>, Option<Arc<LayerStore>>)]) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (layer, (known, store)) in layers.iter().enumerate() {
        let is_warmed = known.is_warmed();
        let candidate = |stamp, group| Candidate { is_warmed, stamp, layer, group };
        match store {
            Some(store) => {
                let groups: Vec<(u32, u64)> = store.resident_groups().collect();
                let latest = groups.iter().map(|(_, stamp)| *stamp).max().unwrap_or(0);
                let moment = |stamp| if latest - stamp <= RECENT_TICKS { latest } else { stamp };
                candidates
                    .extend(groups.iter().map(|&(group, it)| candidate(moment(it), Some(group))));
            }
            None => candidates.push(candidate(known.stamp.load(Ordering::Relaxed), None)),
        }
    }
    candidates
}
