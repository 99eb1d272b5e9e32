//! Bytes kept near: layers on disk in chunks, verified, bounded, shared by all mounts.
//!
//! ```text
//! <cache>/lock            flock: one process owns the folder         lock
//! <cache>/format          the version of all that follows            mod
//! <cache>/state.redb      origin -> manifest, kit -> layers           state
//! <cache>/kits/sha256/<hex>/document                                  documents
//! <cache>/layers/sha256/<hex>[.encoding]/                             stock, known, store
//!     meta                which blob, how far to trust it, its date   meta, mtimes
//!     toc                 its members                                 layer::toc_codec
//!     chunks              how much of each chunk is here, its check   chunk_table, records
//!     *.copy              each of these three once more               mending
//!     stream, members/<n> the bytes, sparse                           append, stage
//!     trusted             the member files that need no other check   trust
//!     spool               an interrupted pass over a compressed blob  stage
//! ```
//!
//! Promises of the room (docs/format/cache-folder.md, docs/design/002-cache.md):
//! - It never serves a byte that differs from the one that arrived. After any damage to
//!   the files, by a process, a crash or the disk, a read gives right bytes, a miss, or an error.
//! - Losing power costs fetched bytes, never correctness: content is written before the record
//!   that speaks of it, and checked again before this process first serves it.
//! - The limit holds, up to what is in flight (`eviction`).
//!
//! It fetches nothing, and does not know where bytes come from.

mod append;
mod backing;
mod budget;
mod chunk_states;
mod chunk_table;
mod disk;
mod documents;
mod durable;
mod emptying;
mod error;
mod eviction;
mod filling;
mod key;
mod kits;
mod known;
mod lease;
mod leftovers;
mod lock;
mod mending;
mod meta;
mod mtimes;
mod page_aligned;
mod reading;
mod records;
mod replaced;
mod room;
mod seal;
mod stage;
mod state;
mod stock;
mod store;
mod trust;
mod verify;

#[cfg(test)]
mod killed_tests;
#[cfg(test)]
mod power_cut_tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use disk::{Durability, Place, Root};
use known::{Purpose, Shared, Storing};
use lock::FolderLock;
use state::State;
use stock::StockTaker;

pub use append::{Appended, Appender};
pub use backing::{Backing, BackingLookup, UncheckedMember};
pub use documents::Cleared;
pub use emptying::MemberPin;
pub use error::{CacheError, why_poisoned};
pub use key::LayerKey;
pub use meta::BootId;
pub use mtimes::Dated;
pub use page_aligned::page_aligned;
pub use reading::Lookup;
pub use replaced::Listener;
pub use room::LEAST_BYTES;
pub use stage::Stage;
pub use store::{Contents, LayerStore};

use crate::layer::layout::CHUNK_BYTES;
use crate::oci::Digest;

/// The content of the `format` file, and of its copy. A later version that this one cannot use has
/// another number.
const FORMAT: &str = "kitfs cache 1\n";

/// The folder of a cache and its limits.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The cache folder; created where it is not there.
    pub folder: PathBuf,
    /// The most bytes of content on disk; `None` is unlimited.
    pub capacity_bytes: Option<u64>,
    /// Evict rather than let the file system's free space fall below this.
    pub keep_free_bytes: u64,
    /// The number of cache files that may be kept open for later reads. One descriptor each, beside those that
    /// are just in use.
    pub open_files: usize,
    /// The boot of the kernel that this process runs under: after another one, bytes that were written
    /// and not synced may be lost.
    pub boot: BootId,
}

/// A quarter of the usual limit of 1,024 descriptors for a process.
const OPEN_FILES: usize = 256;

impl CacheConfig {
    /// A cache in `folder` without bounds on its bytes, under an unknown boot.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            capacity_bytes: None,
            keep_free_bytes: 0,
            open_files: OPEN_FILES,
            boot: BootId::default(),
        }
    }
}

/// One cache folder, held by this process (flock).
pub struct Cache {
    shared: Arc<Shared>,
    state: Arc<State>,
    /// Held while layers are dated.
    dating: Mutex<()>,
    // Dropped in this order: the thread writes to the folder.
    _stock_taker: StockTaker,
    _lock: FolderLock,
}

/// The trust in a layer's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Bytes came over an authenticated channel; the blob's digest is not yet computed.
    Unconfirmed,
    /// The digest was computed over all bytes, and matches.
    Confirmed,
    /// The digest does not match: reads fail.
    Poisoned {
        /// The digest of the bytes that came. The layer's own, if only its table of contents came from other
        /// bytes.
        got: Digest,
    },
}

/// A layer on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUsage {
    /// The layer.
    pub key: LayerKey,
    /// The size of the blob in bytes.
    pub blob_bytes: u64,
    /// The size of the uncompressed stream, once the contents are known.
    pub stream_bytes: Option<u64>,
    /// Bytes of content on disk.
    pub resident_bytes: u64,
    /// The part of them that was written when the machine died, and was not checked since.
    pub unchecked_bytes: u64,
    /// Its state.
    pub state: LayerState,
    /// Origins of the kits that use it.
    pub origins: Vec<String>,
    /// The time of its last opening or closing, in seconds since 1970.
    pub last_used: i64,
    /// The time at which this cache first saw it, in seconds since 1970.
    pub first_seen_seconds: i64,
    /// The time at which `warm` last brought it or a part of it, in seconds since 1970.
    pub warmed_seconds: Option<i64>,
    /// Whether a [`LayerStore`] of it is alive.
    pub is_open: bool,
}

/// The result of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Bytes that were read and checked.
    pub checked_bytes: u64,
    /// Chunks that were wrong and are no longer resident.
    pub dropped_chunks: u64,
}

impl Cache {
    /// Opens or creates the folder and takes its lock. Costs a listing of the layers' names, whatever is in
    /// them: a thread looks at each layer afterwards, removes temporary files of an interrupted process,
    /// and counts resident bytes. Nothing is evicted: other bounds than those of the last run take effect
    /// with the next write.
    ///
    /// # Errors
    /// [`CacheError::Held`] when another process has the folder, [`CacheError::Io`] when it cannot
    /// be written or another version of kitfs made it.
    pub fn open(config: CacheConfig) -> Result<Arc<Self>, CacheError> {
        Self::open_at(Root::open(&config.folder, config.open_files)?, &config)
    }

    fn open_at(root: Arc<Root>, config: &CacheConfig) -> Result<Arc<Self>, CacheError> {
        let lock = FolderLock::take(&root)?;
        // A full disk must not stop the cache: bytes that cannot be kept pass through.
        unless_full(check_format(&root))?;
        unless_full(documents::prepare(&root))?;
        let is_new = !root.place("layers/sha256").exists();
        let state = Arc::new(State::new(&root));
        let (shared, leftovers) = Shared::open(root.clone(), config)?;
        if is_new {
            // The names of new folders. Later openings sync them once more, in the background.
            unless_full(root.place("layers").sync_folder())?;
            root.place("").sync_folder()?;
        }
        let stock_taker = StockTaker::start(shared.clone(), state.clone(), leftovers);
        let dating = Mutex::new(());
        Ok(Arc::new(Self { shared, state, dating, _stock_taker: stock_taker, _lock: lock }))
    }

    /// The one store of this layer in this process (same `Arc` for the same key). If the disk does not give or take
    /// the layer's files, the store keeps nothing, and reads pass through without the cache.
    ///
    /// # Errors
    /// [`CacheError::WrongSize`] when the layer is known with another size.
    pub fn layer(
        self: &Arc<Self>,
        key: LayerKey,
        blob_bytes: u64,
    ) -> Result<Arc<LayerStore>, CacheError> {
        let shared = &self.shared;
        let open = |storing| shared.open_layer(key, blob_bytes, Purpose::Use, storing);
        match shared.with_room(CHUNK_BYTES, || open(Storing::OnDisk)) {
            Err(error) if error.is_about_keeping() => {
                shared.note_trouble(&error);
                open(Storing::InMemory)
            }
            opened => opened,
        }
    }

    /// Whether the cache cannot keep bytes that are read at the moment. As cheap as a load.
    pub fn is_in_trouble(&self) -> bool {
        self.shared.is_in_trouble()
    }

    /// Why bytes that are read are not kept at the moment; `None` while they are.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// Whether some process holds the lock of `folder`; false for a folder that is not there.
    pub fn is_held(folder: &Path) -> bool {
        lock::is_held(folder)
    }

    /// The folder, absolute.
    pub fn folder(&self) -> &Path {
        self.shared.root.path()
    }

    /// Bytes of content on disk, those of running passes included. Blocking where layers that were in use
    /// are not counted yet.
    pub fn resident_bytes(&self) -> u64 {
        self.shared.count_all(&|| true);
        self.shared.budget.used_bytes()
    }

    /// The most bytes of content on disk.
    pub fn capacity_bytes(&self) -> Option<u64> {
        self.shared.budget.capacity_bytes()
    }

    /// Free bytes that stay on its file system.
    pub fn keep_free_bytes(&self) -> u64 {
        self.shared.budget.keep_free_bytes()
    }

    /// The bytes that can be written before something has to be evicted.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn free_bytes(&self) -> Result<u64, CacheError> {
        self.shared.see_all();
        self.shared.budget.free_bytes(&self.shared.root)
    }

    /// Bytes that were evicted to make room, since the start of this process.
    pub fn evicted_bytes(&self) -> u64 {
        self.shared.evicted_bytes.load(Ordering::Relaxed)
    }

    /// The most bytes that the cache can hold at this moment, if everything else in it went: 0 where
    /// others have filled the file system, or a bound leaves nothing of it.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn most_bytes(&self) -> Result<u64, CacheError> {
        self.shared.see_all();
        self.shared.budget.most_bytes(&self.shared.root)
    }

    /// Every layer in the folder, the least recently used first.
    pub fn layers(&self) -> Result<Vec<LayerUsage>, CacheError> {
        self.shared.count_all(&|| true);
        let kits = self.recorded_kits();
        let mut layers = Vec::new();
        for known in self.shared.all_known() {
            let Some(meta) = known.meta.read().clone() else { continue };
            let is_unstored = known.is_unstored.load(Ordering::SeqCst);
            if is_unstored && known.resident_bytes() == 0 {
                continue;
            }
            let users = kits.iter().filter(|kit| kit.layers.contains(&known.key));
            let mut origins: Vec<String> = users.map(|kit| kit.origin.clone()).collect();
            origins.dedup();
            layers.push(LayerUsage {
                key: known.key,
                first_seen_seconds: meta.first_seen_seconds,
                warmed_seconds: meta.warmed_seconds,
                blob_bytes: meta.blob_bytes,
                stream_bytes: meta.stream_bytes,
                resident_bytes: known.resident_bytes() + known.spool_bytes(),
                unchecked_bytes: known.changes.unchecked_bytes(),
                state: meta.state,
                origins,
                last_used: known.last_used.load(Ordering::Relaxed),
                is_open: known.open_store().is_some(),
            });
        }
        layers.sort_by_key(|layer| (layer.last_used, layer.key.digest));
        Ok(layers)
    }

    /// Removes a layer, poisoned ones too; returns the bytes of content that were freed. A poisoned layer
    /// that is open stays open: it is empty and unconfirmed from then on, and fetched again.
    ///
    /// # Errors
    /// [`CacheError::InUse`] while a [`LayerStore`] of it is alive. An open poisoned layer is refused only if its
    /// table of contents is wrong: its mounts show wrong names and sizes, and must end first.
    pub fn remove_layer(&self, key: LayerKey) -> Result<u64, CacheError> {
        self.shared.remove_layer(key)
    }

    /// Re-checks every resident byte of a layer against the records of its chunks and drops what
    /// is wrong. Blocking.
    pub fn verify_layer(self: &Arc<Self>, key: LayerKey) -> Result<Verification, CacheError> {
        let known = self.shared.find(key);
        let meta = known.and_then(|known| known.meta.read().clone());
        match meta {
            Some(meta) => {
                let (bytes, storing) = (meta.blob_bytes, Storing::OnDisk);
                self.shared.open_layer(key, bytes, Purpose::Maintenance, storing)?.verify()
            }
            None => Ok(Verification::default()),
        }
    }

    /// Syncs every layer that is in use, so that its residency is known after a power cut and the next start finds
    /// the layer clean. Blocks; ends early once `is_wanted` returns false.
    pub fn settle(&self, is_wanted: &dyn Fn() -> bool) {
        for known in self.shared.all_known() {
            if !is_wanted() {
                return;
            }
            let blob_bytes = known.meta.read().as_ref().map(|meta| meta.blob_bytes);
            let Some(blob_bytes) = blob_bytes.filter(|_| known.changes.is_in_use()) else {
                continue;
            };
            let (purpose, storing) = (Purpose::Maintenance, Storing::OnDisk);
            let store = self.shared.open_layer(known.key, blob_bytes, purpose, storing);
            if let Err(error) = store.and_then(|store| store.sync()) {
                // The next start counts again, and checks what the disk has.
                tracing::warn!(layer = %known.key.digest, %error, "a layer was not synced");
            }
        }
    }

    /// Returns when the thread has looked at everything in the folder.
    #[cfg(test)]
    fn wait_for_stock(&self) {
        while !self._stock_taker.has_ended() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Makes room for `bytes` more (evicting the least recently used) before they are written.
    /// Blocking where something has to go.
    ///
    /// # Errors
    /// [`CacheError::Full`] and [`CacheError::DiskFull`] when not enough can be evicted.
    pub fn make_room(&self, bytes: u64) -> Result<(), CacheError> {
        self.shared.reserve(bytes).map(drop)
    }
}

/// Ignores a failure for want of room. The log has it, and the next start tries again.
pub(super) fn unless_full(done: Result<(), CacheError>) -> Result<(), CacheError> {
    match done {
        Err(error) if error.is_out_of_room() || error.is_not_found() => {
            tracing::warn!(%error, "the cache folder is not complete");
            Ok(())
        }
        done => done,
    }
}

fn check_format(root: &Arc<Root>) -> Result<(), CacheError> {
    let (place, copy) = (root.place("format"), root.place("format.copy"));
    let is_ours = |place: &Place| -> Result<bool, CacheError> {
        Ok(place.read(64)?.is_some_and(|it| it == FORMAT.as_bytes()))
    };
    let write = |place: &Place| place.write(FORMAT.as_bytes(), Durability::Synced);
    match (is_ours(&place)?, is_ours(&copy)?) {
        (true, true) => Ok(()),
        (true, false) => write(&copy),
        (false, true) => write(&place),
        (false, false) if !place.exists() => write(&place).and_then(|()| write(&copy)),
        (false, false) => {
            let why = "another version of kitfs made it: choose another folder with --cache-dir, \
                       or remove this one";
            Err(CacheError::other("use", root.path(), why))
        }
    }
}
