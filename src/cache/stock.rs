//! Taking stock of the cache folder in the background, while the cache already serves.
//!
//! ```text
//! opening: the names of the layers --> unseen
//! unseen --first use, or the thread--> meta read: clean ----------------------------> counted
//!                                          '----: in use --> bounded --first need--> counted
//! ```
//!
//! Opening a cache costs one listing of names. A thread then looks at each layer. A layer that is needed earlier is
//! looked at by the thread that needs it. No look waits for the look at another layer.
//!
//! The resident bytes of a clean layer are in its meta file. For a layer in use, the records of its chunk table are
//! counted. Until then the size of the layer's stream is an upper bound. Nothing is evicted because of that bound:
//! a write that would exceed the limit counts first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::disk::{Durability, Place, TEMPORARY};
use super::documents;
use super::known::{Known, Shared, remove_content, seconds};
use super::mending::{self, META};
use super::meta::{BootId, Meta, Residency};
use super::state::State;
use super::{CacheError, LayerKey, LayerState};

/// The largest bound for a layer whose bytes are not counted. 1 PiB: no layer has more, and the sum over all layers
/// of a folder fits a number of 64 bits.
const MOST_BYTES: u64 = 1 << 50;

/// The progress of the stock of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stock {
    /// Its folder was not looked at.
    #[default]
    Unseen,
    /// Its resident bytes are at most those of the account.
    Bounded,
    /// Its resident bytes are those of the account.
    Counted,
}

/// The thread that takes stock. Dropping it ends the thread.
pub(super) struct StockTaker {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StockTaker {
    /// Looks at every layer in the background, after `leftovers` are removed.
    pub(super) fn start(shared: Arc<Shared>, state: Arc<State>, leftovers: Vec<Place>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let has_ended = is_over.clone();
        let run = move || {
            let is_wanted = || !has_ended.load(Ordering::Relaxed);
            state.open_files();
            shared.clean_up(&leftovers, &is_wanted);
            documents::clean_up(&shared, &is_wanted);
            if is_wanted() {
                shared.count_all(&is_wanted);
            }
        };
        let thread = std::thread::Builder::new().name("kitfs-stock".to_owned()).spawn(run);
        if let Err(error) = &thread {
            tracing::debug!(%error, "layers of the cache are looked at when they are used");
        }
        Self { is_over, thread: thread.ok() }
    }
}

#[cfg(test)]
impl StockTaker {
    pub(super) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for StockTaker {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It changes the folder, so it ends before the folder's lock does.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The layers that the folder names, none of which was looked at, and the names in it that are no layers.
    pub(super) fn list(&self) -> Result<Vec<Place>, CacheError> {
        let folder = self.layers_folder();
        let mut leftovers = Vec::new();
        for name in folder.names()? {
            match LayerKey::parse_folder_name(&name) {
                Some(key) => self.name(key),
                None => leftovers.push(folder.join(&name)),
            }
        }
        Ok(leftovers)
    }

    /// Removes what an interrupted process left in the folder of layers.
    fn clean_up(&self, leftovers: &[Place], is_wanted: &dyn Fn() -> bool) {
        for place in leftovers {
            // A removal of a layer uses such a name, too.
            let _no_removal = self.evicting.lock();
            if !is_wanted() {
                return;
            }
            if let Err(error) = place.remove() {
                tracing::warn!(%error, "cannot remove what an interrupted process left");
            }
        }
        let root = self.root.place("");
        for folder in [self.layers_folder(), self.root.place("layers"), root] {
            if let Err(error) = folder.sync_folder() {
                tracing::warn!(%error, "a folder of the cache was not synced");
            }
        }
    }

    /// Counts the bytes of every layer, so that the account is exact; ends early once `is_wanted` says no.
    pub(super) fn count_all(&self, is_wanted: &dyn Fn() -> bool) {
        if self.is_counted.load(Ordering::Acquire) {
            return;
        }
        for known in self.all_known() {
            if !is_wanted() {
                return;
            }
            self.count(&known);
        }
        self.is_counted.store(true, Ordering::Release);
    }

    /// Looks at a layer's folder, unless that was done; a folder without a usable meta file is removed. If the
    /// content cannot be read, the sizes of its files count: such a layer can be listed and removed, and other
    /// layers can be used.
    pub(super) fn see(&self, known: &Known) {
        if known.is_seen.load(Ordering::Acquire) {
            return;
        }
        let mut stock = known.stock.lock();
        if *stock != Stock::Unseen {
            return;
        }
        *stock = self.look_at(known);
        self.budget.add(known.resident_bytes() + known.spool_bytes());
        known.is_seen.store(true, Ordering::Release);
    }

    fn look_at(&self, known: &Known) -> Stock {
        let folder = self.layer_folder(known.key);
        if !folder.exists() {
            // A layer that is new to the cache.
            return Stock::Counted;
        }
        let meta = match mending::read_meta(&folder, known.key) {
            Ok(meta) => meta,
            Err(error) => {
                tracing::warn!(%error, "cannot use a layer of the cache");
                return Stock::Counted;
            }
        };
        let Some(meta) = meta else {
            tracing::warn!(%folder, "removing a layer without a usable meta file");
            if let Err(error) = folder.remove_folder() {
                tracing::warn!(%error, "cannot remove it");
            }
            return Stock::Counted;
        };
        let last_used = seconds(folder.join(META).modified());
        known.last_used.store(last_used, Ordering::Relaxed);
        known.stamp.store(self.budget.moment_before(last_used), Ordering::Relaxed);
        self.look_at_content(known, &folder, meta.clone()).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot use a layer of the cache");
            known.resident_bytes.store(bytes_on_disk(&folder), Ordering::Relaxed);
            *known.meta.write() = Some(meta);
            Stock::Counted
        })
    }

    /// Notes what a folder has as far as its meta file tells, after cleaning it up.
    fn look_at_content(
        &self,
        known: &Known,
        folder: &Place,
        meta: Meta,
    ) -> Result<Stock, CacheError> {
        for name in folder.names()? {
            if name.ends_with(TEMPORARY) {
                folder.join(name).remove_file()?;
            }
        }
        let has_content =
            !matches!(meta.state, LayerState::Poisoned { .. }) && mending::has_toc(folder);
        let (stock, resident_bytes) = match (meta.residency, meta.stream_bytes) {
            _ if !has_content => (Stock::Counted, None),
            (Residency::Clean { resident_bytes }, _) => (Stock::Counted, Some(resident_bytes)),
            (Residency::InUse(_), Some(bytes)) => (Stock::Bounded, Some(bytes.min(MOST_BYTES))),
            (Residency::InUse(_), None) => (Stock::Counted, mending::count_resident(folder)?),
        };
        let meta = match resident_bytes {
            Some(_) => meta,
            None => empty_folder(folder, meta)?,
        };
        let resident_bytes = resident_bytes.unwrap_or(0);
        known.resident_bytes.store(resident_bytes, Ordering::Relaxed);
        known.changes.found(meta.residency, self.is_unclean(meta.residency), resident_bytes);
        let spool_bytes = folder.join("spool").length().unwrap_or(0);
        known.spool_bytes.store(spool_bytes, Ordering::Relaxed);
        *known.meta.write() = Some(meta);
        Ok(stock)
    }

    /// Counts the bytes of a layer that was only looked at. An open layer was counted when it was opened.
    pub(super) fn count(&self, known: &Known) {
        let slot = known.store.lock();
        let mut stock = known.stock.lock();
        if *stock != Stock::Bounded {
            return;
        }
        *stock = Stock::Counted;
        if slot.strong_count() > 0 {
            return;
        }
        let folder = self.layer_folder(known.key);
        let counted = mending::count_resident(&folder).and_then(|counted| match counted {
            Some(bytes) => Ok(bytes),
            None => {
                let meta = known.meta.read().clone();
                let emptied = meta.map(|meta| empty_folder(&folder, meta)).transpose()?;
                *known.meta.write() = emptied;
                Ok(0)
            }
        });
        let bytes = counted.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot use a layer of the cache");
            bytes_on_disk(&folder)
        });
        self.budget.add(bytes);
        self.budget.subtract(known.resident_bytes.swap(bytes, Ordering::Relaxed));
        known.changes.opened(bytes);
    }

    /// Whether the machine may have died since the layer was last written. It counts as dead where
    /// nobody knows.
    fn is_unclean(&self, residency: Residency) -> bool {
        match residency {
            Residency::Clean { .. } => false,
            Residency::InUse(boot) => boot == BootId::default() || boot != self.boot,
        }
    }
}

/// The bytes that the files of a folder and its `members` take of the disk, as far as that can be told.
fn bytes_on_disk(folder: &Place) -> u64 {
    let taken = |folder: &Place| {
        let names = folder.names().unwrap_or_default();
        names.into_iter().map(|name| folder.join(name).bytes_on_disk()).sum::<u64>()
    };
    taken(folder) + taken(&folder.join("members"))
}

/// Removes the content of a layer of which nothing says what is there, and what its meta file said
/// of it; that a layer is poisoned stays known.
fn empty_folder(folder: &Place, meta: Meta) -> Result<Meta, CacheError> {
    let has_toc = mending::has_toc(folder);
    remove_content(folder)?;
    if matches!(meta.state, LayerState::Poisoned { .. }) {
        return Ok(meta);
    }
    let emptied = Meta { stream_bytes: None, state: LayerState::Unconfirmed, ..meta.clone() };
    if emptied != meta || has_toc {
        tracing::warn!(%folder, "emptied a layer whose files do not fit each other");
        folder.join(META).write(&emptied.encode(), Durability::Atomic)?;
    }
    Ok(emptied)
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::path::Path;

    use super::super::disk::Root;
    use super::super::{Cache, CacheConfig, LayerStore};
    use super::*;
    use crate::layer::layout::CHUNK_BYTES;
    use crate::layer::{ChunkId, RangeSet, Toc};
    use crate::oci::{Compression, Digest, Encoding, Format};

    const STREAM_BYTES: u64 = 64 * CHUNK_BYTES;

    fn key(name: u8) -> LayerKey {
        let encoding = Encoding { format: Format::Raw, compression: Compression::None };
        LayerKey { digest: Digest::of(&[name]), encoding }
    }

    /// Leaves a layer with one chunk of many.
    fn leave(cache: &Arc<Cache>, name: u8, is_clean: bool) -> Arc<LayerStore> {
        let store = cache.layer(key(name), STREAM_BYTES).unwrap();
        let stage = store.stage().unwrap();
        stage.finish(Toc::raw(STREAM_BYTES), &RangeSet::new(), None).unwrap();
        append(&store, 3);
        if is_clean {
            assert!(store.sync().unwrap());
        }
        store
    }

    fn append(store: &Arc<LayerStore>, chunk: u32) {
        let bytes = vec![7; CHUNK_BYTES as usize];
        store.appender().append(ChunkId(chunk), 0, &[IoSlice::new(&bytes)]).unwrap();
    }

    /// The shared state of a folder that a process has left, before anybody looks at a layer.
    fn reopened(folder: &Path, capacity_bytes: Option<u64>) -> Arc<Shared> {
        let config = CacheConfig { capacity_bytes, ..CacheConfig::new(folder) };
        Shared::open(Root::open(folder, 16).unwrap(), &config).unwrap().0
    }

    fn stock(known: &Known) -> (Stock, u64) {
        (*known.stock.lock(), known.resident_bytes())
    }

    #[test]
    fn a_clean_layer_is_counted_at_sight_and_one_in_use_by_its_records() {
        let folder = tempfile::tempdir().unwrap();
        {
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            leave(&cache, 1, true);
            leave(&cache, 2, false);
        }
        let shared = reopened(folder.path(), None);
        assert_eq!(shared.budget.used_bytes(), 0, "nothing was looked at");
        assert_eq!(stock(&shared.known(key(1))), (Stock::Counted, CHUNK_BYTES));
        let in_use = shared.known(key(2));
        assert_eq!(stock(&in_use), (Stock::Bounded, STREAM_BYTES));
        assert_eq!(shared.budget.used_bytes(), CHUNK_BYTES + STREAM_BYTES);
        shared.count_all(&|| true);
        assert_eq!(stock(&in_use), (Stock::Counted, CHUNK_BYTES));
        assert_eq!(shared.budget.used_bytes(), 2 * CHUNK_BYTES);
        assert_eq!(in_use.changes.unchecked_bytes(), CHUNK_BYTES, "under an unknown boot");
    }

    #[test]
    fn a_write_counts_before_it_evicts() {
        let folder = tempfile::tempdir().unwrap();
        {
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            leave(&cache, 2, false);
        }
        let shared = reopened(folder.path(), Some(STREAM_BYTES));
        shared.reserve(CHUNK_BYTES).unwrap().keep();
        let in_use = shared.known(key(2));
        assert_eq!(stock(&in_use), (Stock::Counted, CHUNK_BYTES), "nothing was evicted");
        assert_eq!(shared.budget.used_bytes(), 2 * CHUNK_BYTES);
    }

    #[test]
    fn a_write_makes_room_although_nobody_has_looked_at_the_layers() {
        let folder = tempfile::tempdir().unwrap();
        {
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            let store = leave(&cache, 1, false);
            (4..20).for_each(|chunk| append(&store, chunk));
        }
        let shared = reopened(folder.path(), Some(18 * CHUNK_BYTES));
        shared.reserve(5 * CHUNK_BYTES).unwrap().keep();
        assert!(shared.budget.used_bytes() <= 18 * CHUNK_BYTES);
        assert!(shared.known(key(1)).resident_bytes() <= 13 * CHUNK_BYTES);
    }

    #[test]
    fn a_layer_that_is_opened_before_it_is_counted_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        {
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            leave(&cache, 2, false);
        }
        let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
        let store = cache.layer(key(2), STREAM_BYTES).unwrap();
        append(&store, 5);
        assert_eq!(cache.resident_bytes(), 2 * CHUNK_BYTES);
        drop(store);
        assert_eq!(cache.resident_bytes(), 2 * CHUNK_BYTES);
        assert_eq!(cache.layers().unwrap()[0].resident_bytes, 2 * CHUNK_BYTES);
        assert_eq!(cache.remove_layer(key(2)).unwrap(), 2 * CHUNK_BYTES);
        assert_eq!(cache.resident_bytes(), 0);
    }

    #[test]
    fn a_layer_of_which_nothing_tells_what_is_there_is_emptied_when_it_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        {
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            leave(&cache, 2, false);
        }
        let place = folder.path().join("layers/sha256").join(key(2).folder_name());
        for name in ["chunks", "chunks.copy"] {
            std::fs::write(place.join(name), b"short").unwrap();
        }
        let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
        assert_eq!(cache.resident_bytes(), 0);
        assert!(!place.join("toc").exists());
        assert!(cache.layer(key(2), STREAM_BYTES).unwrap().contents().is_none());
    }

    #[test]
    fn only_leftovers_of_an_interrupted_process_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let kept = {
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            cache.put_document(Digest::of(b"{}"), b"{}").unwrap();
            leave(&cache, 1, true).key()
        };
        let layers = folder.path().join("layers/sha256");
        let document = folder.path().join("kits/sha256").join(Digest::of(b"{}").hex());
        std::fs::create_dir(layers.join("half.removed")).unwrap();
        let temporary =
            [document.join("document.1.temp"), layers.join(kept.folder_name()).join("toc.1.temp")];
        temporary.iter().for_each(|path| std::fs::write(path, b"x").unwrap());
        let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
        cache.wait_for_stock();
        assert!(!layers.join("half.removed").exists());
        assert!(temporary.iter().all(|path| !path.exists()));
        assert_eq!(cache.document(Digest::of(b"{}")).unwrap(), "{}");
        assert_eq!(cache.resident_bytes(), CHUNK_BYTES);
    }
}
