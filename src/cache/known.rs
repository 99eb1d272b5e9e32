//! Every layer in the folder, open or not, and the state that all layers share.
//!
//! ```text
//! Cache --> Shared --> Known (one a layer: meta, bytes on disk, last use)
//!              ^          '--weak--> LayerStore (open layers only)
//!              '---------------------------'
//! ```
//!
//! Locks are taken in this order, and none of them is held while content is read or written:
//! the eviction lock, a layer's `store` slot, its `stock`, the table of layers, the locks of a layer's meta file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};

use super::budget::Budget;
use super::disk::{Durability, Place, Root};
use super::durable::Changes;
use super::mending::{self, CHUNKS, CHUNKS_COPY, META, TOC, TOC_COPY};
use super::meta::{BootId, META_BYTES, Meta};
use super::room::Trouble;
use super::stock::Stock;
use super::trust::TRUSTED;
use super::{CacheConfig, CacheError, LayerKey, LayerState, LayerStore};

/// The state that all layers of a cache folder share.
pub(super) struct Shared {
    pub(super) root: Arc<Root>,
    pub(super) boot: BootId,
    pub(super) budget: Budget,
    /// Held during an eviction or removal: one at a time.
    pub(super) evicting: Mutex<()>,
    /// Held while a member is checked in the background: one at a time.
    pub(super) checking: Mutex<()>,
    /// Held while documents are written or cleaned up.
    pub(super) keeping_documents: Mutex<()>,
    /// Whether every layer that the folder named was looked at, and stands in the account.
    is_seen: AtomicBool,
    /// Whether the account of every layer is exact.
    pub(super) is_counted: AtomicBool,
    pub(super) trouble: Trouble,
    /// Bytes that were evicted to make room, since the start of the process.
    pub(super) evicted_bytes: AtomicU64,
    layers: Mutex<HashMap<LayerKey, Arc<Known>>>,
    serials: AtomicU64,
}

/// A layer that the folder has or once had.
pub(super) struct Known {
    pub(super) key: LayerKey,
    /// The content of its meta file; `None` while the layer is not in the folder.
    pub(super) meta: RwLock<Option<Meta>>,
    pub(super) resident_bytes: AtomicU64,
    pub(super) spool_bytes: AtomicU64,
    /// The moment of its last use, by the cache's clock; of a layer that is not open.
    pub(super) stamp: AtomicU64,
    /// The time of its last opening or closing, in seconds since 1970.
    pub(super) last_used: AtomicI64,
    pub(super) changes: Changes,
    /// Whether the layer is open in memory alone, because the disk does not take its files.
    pub(super) is_unstored: AtomicBool,
    /// Held while the meta file is written, so that no change of it is lost.
    pub(super) writing_meta: Mutex<()>,
    /// Whether the folder was looked at: as `stock` says, for a look without its lock.
    pub(super) is_seen: AtomicBool,
    pub(super) stock: Mutex<Stock>,
    pub(super) store: Mutex<Weak<LayerStore>>,
}

/// Why a layer is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To read it, which counts as a use.
    Use,
    /// To evict from it or to check it.
    Maintenance,
}

/// The place of a layer's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storing {
    /// In the cache folder.
    OnDisk,
    /// Nowhere: the disk does not take them, and the layer is known while it is open.
    InMemory,
}

impl Known {
    fn new(key: LayerKey) -> Arc<Self> {
        Arc::new(Self {
            key,
            meta: RwLock::new(None),
            resident_bytes: AtomicU64::new(0),
            spool_bytes: AtomicU64::new(0),
            stamp: AtomicU64::new(0),
            last_used: AtomicI64::new(0),
            changes: Changes::new(),
            is_unstored: AtomicBool::new(false),
            writing_meta: Mutex::new(()),
            is_seen: AtomicBool::new(false),
            stock: Mutex::default(),
            store: Mutex::new(Weak::new()),
        })
    }

    /// The open store, if there is one.
    pub(super) fn open_store(&self) -> Option<Arc<LayerStore>> {
        self.store.lock().upgrade()
    }

    pub(super) fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn spool_bytes(&self) -> u64 {
        self.spool_bytes.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// The shared state of a cache folder, and what an interrupted process left in it. No layer is looked at yet
    /// (`stock`).
    pub(super) fn open(
        root: Arc<Root>,
        config: &CacheConfig,
    ) -> Result<(Arc<Self>, Vec<Place>), CacheError> {
        let shared = Self {
            root,
            boot: config.boot,
            budget: Budget::new(config),
            evicting: Mutex::new(()),
            checking: Mutex::new(()),
            keeping_documents: Mutex::new(()),
            is_seen: AtomicBool::new(false),
            is_counted: AtomicBool::new(false),
            trouble: Trouble::default(),
            evicted_bytes: AtomicU64::new(0),
            layers: Mutex::default(),
            serials: AtomicU64::new(0),
        };
        super::unless_full(shared.layers_folder().create_folder())?;
        let leftovers = shared.list()?;
        Ok((Arc::new(shared), leftovers))
    }

    pub(super) fn layers_folder(&self) -> Place {
        self.root.place("layers/sha256")
    }

    pub(super) fn layer_folder(&self, key: LayerKey) -> Place {
        self.layers_folder().join(key.folder_name())
    }

    /// A number for an open layer, never given twice.
    pub(super) fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    /// Every layer that is or was in the folder, each looked at.
    pub(super) fn all_known(&self) -> Vec<Arc<Known>> {
        let all = self.all_named();
        all.iter().for_each(|known| self.see(known));
        self.is_seen.store(true, Ordering::Release);
        all
    }

    /// Looks at every layer that nobody has looked at: a limit counts for all of them.
    pub(super) fn see_all(&self) {
        if !self.is_seen.load(Ordering::Acquire) {
            self.all_known();
        }
    }

    fn all_named(&self) -> Vec<Arc<Known>> {
        self.layers.lock().values().cloned().collect()
    }

    /// Every open layer.
    pub(super) fn open_stores(&self) -> Vec<Arc<LayerStore>> {
        self.all_named().iter().filter_map(|known| known.open_store()).collect()
    }

    /// Takes note of a layer that the folder names.
    pub(super) fn name(&self, key: LayerKey) {
        self.layers.lock().entry(key).or_insert_with(|| Known::new(key));
    }

    /// A layer, looked at.
    pub(super) fn known(&self, key: LayerKey) -> Arc<Known> {
        let known = self.layers.lock().entry(key).or_insert_with(|| Known::new(key)).clone();
        self.see(&known);
        known
    }

    /// A layer that is or was in the folder, looked at.
    pub(super) fn find(&self, key: LayerKey) -> Option<Arc<Known>> {
        let known = self.layers.lock().get(&key).cloned()?;
        self.see(&known);
        Some(known)
    }

    /// The one store of a layer in this process.
    pub(super) fn open_layer(
        self: &Arc<Self>,
        key: LayerKey,
        blob_bytes: u64,
        purpose: Purpose,
        storing: Storing,
    ) -> Result<Arc<LayerStore>, CacheError> {
        let known = self.known(key);
        let mut slot = known.store.lock();
        let store = match slot.upgrade() {
            Some(store) => {
                store.check_blob_bytes(blob_bytes)?;
                store
            }
            None => Arc::new(LayerStore::open(self.clone(), known.clone(), blob_bytes, storing)?),
        };
        *slot = Arc::downgrade(&store);
        if purpose == Purpose::Use && !store.is_used.swap(true, Ordering::Relaxed) {
            self.note_use(&known);
        }
        Ok(store)
    }

    /// Notes on disk that a layer is used now: the time of its meta file.
    pub(super) fn note_use(&self, known: &Known) {
        let now = SystemTime::now();
        known.last_used.store(seconds(now), Ordering::Relaxed);
        self.layer_folder(known.key).join(META).set_modified(now);
    }

    /// Removes a layer that is not open; one that is open and poisoned begins anew. Returns the bytes of
    /// content that were freed.
    pub(super) fn remove_layer(&self, key: LayerKey) -> Result<u64, CacheError> {
        let nobody_evicts = self.evicting.lock();
        let Some(known) = self.find(key) else { return Ok(0) };
        self.count(&known);
        let slot = known.store.lock();
        if let Some(store) = slot.upgrade() {
            // Beginning anew writes tables, whose room may need an eviction.
            drop((slot, nobody_evicts));
            return store.begin_anew().map(|()| 0);
        }
        // Rename first, so that a crash in the middle leaves no half of a layer.
        let folder = self.layer_folder(key);
        let doomed = folder.with_name(format!("{}.removed", key.folder_name()));
        doomed.remove_folder()?;
        if folder.exists() {
            folder.rename(&doomed)?;
            // After a power cut, a layer that says it is clean must not have lost some of its files.
            self.layers_folder().sync_folder()?;
        }
        doomed.remove_folder()?;
        *known.meta.write() = None;
        known.changes.end();
        let freed = known.resident_bytes.swap(0, Ordering::Relaxed)
            + known.spool_bytes.swap(0, Ordering::Relaxed);
        self.budget.subtract(freed);
        Ok(freed)
    }
}

/// Removes the files of a layer that are not its meta or spool.
pub(super) fn remove_content(folder: &Place) -> Result<(), CacheError> {
    // The toc first, and its copy before it: without both nothing of the rest is believed.
    for name in [TOC_COPY, TOC, CHUNKS_COPY, CHUNKS] {
        folder.join(name).remove_file()?;
    }
    folder.join(TRUSTED).remove_file()?;
    folder.join("stream").remove_file()?;
    folder.join("members").remove_folder()
}

/// Writes a layer's meta file, and remembers it. [`Known::writing_meta`] is held.
pub(super) fn put_meta(
    folder: &Place,
    known: &Known,
    meta: Meta,
    durability: Durability,
) -> Result<(), CacheError> {
    let place = folder.join(META);
    match place.open_if_there()? {
        // In place, one copy after the other: it takes no room on a full disk.
        Some(file) if file.length()? == META_BYTES as u64 => {
            for (at, record) in meta.encode_copies() {
                file.write_all_at(&record, at)?;
                if durability == Durability::Synced {
                    file.sync()?;
                }
            }
        }
        _ => place.write(&meta.encode(), durability)?,
    }
    mending::copy_meta(folder, &meta);
    *known.meta.write() = Some(meta);
    Ok(())
}

impl Known {
    /// The layer's state; `Unconfirmed` while it is not in the folder.
    pub(super) fn state(&self) -> LayerState {
        self.meta.read().as_ref().map_or(LayerState::Unconfirmed, |meta| meta.state.clone())
    }

    /// `true` if `warm` brought some of the layer, and promised to keep it over a power cut.
    pub(super) fn is_warmed(&self) -> bool {
        self.meta.read().as_ref().is_some_and(|meta| meta.warmed_seconds.is_some())
    }
}

pub(super) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
