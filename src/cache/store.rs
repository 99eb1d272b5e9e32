//! An open layer, and the part of it that is resident.
//!
//! ```text
//! chunk:  missing --appended--> partial --appended--> full
//!            ^                     |                    |
//!            '----- dropped (changed on disk) / evicted-'
//! ```

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::{Condvar, Mutex};

use super::chunk_states::ChunkStates;
use super::chunk_table::{FilledChunks, Loaded};
use super::disk::{DiskFile, Durability, FileKey, LayerFile, Place};
use super::emptying::Pins;
use super::known::{Known, Shared, Storing, put_meta, remove_content, seconds};
use super::mending;
use super::meta::{Meta, Residency};
use super::records::Records;
use super::replaced::Listeners;
use super::trust::Trusted;
use super::{CacheError, LayerKey, LayerState};
use crate::layer::{CacheFile, ChunkId, Layout, Toc};

/// A layer's place in the cache.
pub struct LayerStore {
    pub(super) shared: Arc<Shared>,
    pub(super) known: Arc<Known>,
    pub(super) folder: Place,
    pub(super) ready: OnceLock<Ready>,
    /// Counts chunks that were emptied: a look at the whole layer can tell that it changed.
    pub(super) emptied: AtomicU64,
    pub(super) pins: Mutex<Pins>,
    pub(super) listeners: Listeners,
    /// Whether the digest was wrong once, and everything was emptied to be fetched again.
    pub(super) is_doubted: AtomicBool,
    pub(super) trusted: Mutex<Trusted>,
    pub(super) is_staging: Mutex<bool>,
    pub(super) staging_ended: Condvar,
    /// Whether somebody opened it to read, not only to evict or check.
    pub(super) is_used: AtomicBool,
    blob_bytes: u64,
    pub(super) serial: u64,
}

/// The parts of a layer whose contents are known.
pub(super) struct Ready {
    pub(super) contents: Arc<Contents>,
    pub(super) chunks: ChunkStates,
    pub(super) records: Records,
}

/// The contents of a layer and how they lie in the cache.
pub struct Contents {
    /// The members.
    pub toc: Toc,
    /// The places of their bytes in cache files, and the cut into chunks.
    pub layout: Layout,
}

impl LayerStore {
    /// Opens or creates the folder of a layer.
    pub(super) fn open(
        shared: Arc<Shared>,
        known: Arc<Known>,
        blob_bytes: u64,
        storing: Storing,
    ) -> Result<Self, CacheError> {
        let store = Self {
            folder: shared.layer_folder(known.key),
            serial: shared.next_serial(),
            shared,
            known,
            ready: OnceLock::new(),
            emptied: AtomicU64::new(0),
            pins: Mutex::default(),
            listeners: Listeners::default(),
            is_doubted: AtomicBool::new(false),
            trusted: Mutex::default(),
            is_staging: Mutex::new(false),
            staging_ended: Condvar::new(),
            is_used: AtomicBool::new(false),
            blob_bytes,
        };
        if storing == Storing::InMemory {
            store.known.is_unstored.store(true, Ordering::SeqCst);
            store.forget_in_memory();
            return Ok(store);
        }
        if store.known.is_unstored.load(Ordering::SeqCst) {
            // The note in memory is over: the file says more, where there is one.
            *store.known.meta.write() = mending::read_meta(&store.folder, store.key())?;
            store.known.is_unstored.store(false, Ordering::SeqCst);
        }
        store.folder.create_folder()?;
        let meta = store.known.meta.read().clone();
        match meta {
            Some(meta) if meta.blob_bytes == blob_bytes => {}
            Some(Meta { state: LayerState::Unconfirmed, .. }) | None => store.reset()?,
            Some(meta) => return Err(store.wrong_blob_bytes(meta.blob_bytes, blob_bytes)),
        }
        if !matches!(store.state(), LayerState::Poisoned { .. })
            && let Some((ready, filled)) = store.load()?
        {
            store.take_up(ready, &filled)?;
            store.remove_old_spool();
        }
        Ok(store)
    }

    /// The contents and chunks as the last process left them, and the chunks that have bytes; a layer
    /// whose files do not fit each other is emptied.
    fn load(&self) -> Result<Option<(Ready, FilledChunks)>, CacheError> {
        let folder = &self.folder;
        let Some((contents, toc_digest)) = self.load_toc()? else {
            if self.known.resident_bytes() > 0 || self.state() == LayerState::Confirmed {
                tracing::warn!(%folder, "emptying a layer whose table of contents is lost");
                self.reset()?;
            }
            return Ok(None);
        };
        let chunks = contents.layout.chunks();
        let Some(Loaded { mut filled, sealed, .. }) = self.load_chunks(&toc_digest, chunks)? else {
            // Without the table, neither the resident bytes nor the seals are known.
            tracing::warn!(%folder, "emptying a layer whose table of chunks is lost");
            self.reset()?;
            return Ok(None);
        };
        let is_sealed = sealed == chunks && self.state() == LayerState::Confirmed;
        if self.key().encoding.is_compressed() && !is_sealed {
            // Its blob's digest cannot be computed from these files.
            tracing::warn!(%folder, "emptying a compressed layer that lost what its chunks must come to");
            self.reset()?;
            return Ok(None);
        }
        // Nothing here looks at chunks without bytes: a layer may say that it has millions.
        filled.retain(|(chunk, filled)| {
            let span = contents.layout.chunk(ChunkId(*chunk)).stream;
            u64::from(*filled) <= span.end - span.start
        });
        let stamp = self.known.stamp.load(Ordering::Relaxed);
        let chunks = ChunkStates::new(chunks, &filled, stamp);
        let contents = Arc::new(contents);
        Ok(Some((Ready { contents, chunks, records: Records::on_disk() }, filled)))
    }

    /// Makes a confirmed layer unconfirmed, because the seal of a chunk was lost. The layer is confirmed again once
    /// it is complete and its digest matches.
    pub(super) fn unconfirm(&self, stream_bytes: u64) {
        if self.state() != LayerState::Confirmed {
            return;
        }
        tracing::warn!(layer = %self.key().digest, "seals of its chunks are lost: its bytes are to be verified again");
        let state = LayerState::Unconfirmed;
        if let Err(error) = self.put_state(state.clone(), Some(stream_bytes), Durability::Synced) {
            // The state in memory must be true, whatever the disk takes.
            self.shared.note_trouble(&error);
            if let Some(meta) = &mut *self.known.meta.write() {
                meta.state = state;
            }
        }
    }

    /// Notes in memory alone that nothing of the layer is here: its files cannot be used.
    fn forget_in_memory(&self) {
        let (state, stream_bytes) = match self.known.meta.read().clone() {
            Some(Meta { state: state @ LayerState::Poisoned { .. }, stream_bytes, .. }) => {
                (state, stream_bytes)
            }
            _ => (LayerState::Unconfirmed, None),
        };
        self.set_state_in_memory(state, stream_bytes);
        self.known.changes.begin();
    }

    /// Notes a state in memory alone.
    pub(super) fn set_state_in_memory(&self, state: LayerState, stream_bytes: Option<u64>) {
        let _one_at_a_time = self.known.writing_meta.lock();
        let meta = self.meta_with(state, stream_bytes);
        *self.known.meta.write() = Some(meta);
    }

    /// The contents of this layer, if they can be.
    pub(super) fn contents_of(&self, toc: Toc) -> Result<Contents, CacheError> {
        if !self.key().encoding.is_compressed() && toc.stream_bytes != self.blob_bytes {
            return Err(self.wrong_blob_bytes(toc.stream_bytes, self.blob_bytes));
        }
        let layout = Layout::new(&toc)?;
        Ok(Contents { toc, layout })
    }

    /// Makes the content on disk available, after a check of the chunks that are not full. They are few, and plans
    /// of fetches rely on their length.
    fn take_up(&self, ready: Ready, filled: &[(u32, u32)]) -> Result<(), CacheError> {
        let resident_bytes = filled.iter().map(|(_, filled)| u64::from(*filled)).sum();
        self.count_resident(resident_bytes);
        self.known.changes.opened(resident_bytes);
        self.ready.set(ready).ok().expect("the store is being opened");
        let ready = self.ready.get().expect("it was set in the line before");
        for &(chunk, filled) in filled {
            let placed = ready.contents.layout.chunk(ChunkId(chunk));
            if u64::from(filled) < placed.stream.end - placed.stream.start {
                self.check(ready, chunk, &placed)?;
            }
        }
        Ok(())
    }

    /// Removes the spool of a finished pass: its process was killed before it could do so.
    fn remove_old_spool(&self) {
        if self.known.spool_bytes() == 0 {
            return;
        }
        match self.folder.join("spool").remove_file() {
            Ok(()) => {
                let spooled = self.known.spool_bytes.swap(0, Ordering::Relaxed);
                self.shared.budget.subtract(spooled);
            }
            Err(error) => self.shared.note_trouble(&error),
        }
    }

    /// Sets the number of resident bytes, and corrects the account.
    pub(super) fn count_resident(&self, bytes: u64) {
        let before = self.known.resident_bytes.swap(bytes, Ordering::Relaxed);
        self.shared.budget.add(bytes);
        self.shared.budget.subtract(before);
    }

    /// Takes emptied bytes out of the account.
    pub(super) fn count_gone(&self, bytes: u64) {
        self.known.resident_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.shared.budget.subtract(bytes);
    }

    /// Forgets everything of the layer but its meta file.
    fn reset(&self) -> Result<(), CacheError> {
        drop(self.change(None)?);
        remove_content(&self.folder)?;
        self.folder.join("spool").remove_file()?;
        self.count_resident(0);
        self.shared.budget.subtract(self.known.spool_bytes.swap(0, Ordering::Relaxed));
        let state = LayerState::Unconfirmed;
        self.put_state(state, None, Durability::Atomic)?;
        self.known.changes.begin();
        Ok(())
    }

    pub(super) fn put_state(
        &self,
        state: LayerState,
        stream_bytes: Option<u64>,
        durability: Durability,
    ) -> Result<(), CacheError> {
        let _one_at_a_time = self.known.writing_meta.lock();
        put_meta(&self.folder, &self.known, self.meta_with(state, stream_bytes), durability)
    }

    /// The record of the layer with another state; a new one where there is none.
    fn meta_with(&self, state: LayerState, stream_bytes: Option<u64>) -> Meta {
        let blob_bytes = self.blob_bytes;
        match self.known.meta.read().clone() {
            Some(meta) => Meta { blob_bytes, stream_bytes, state, ..meta },
            None => Meta {
                key: self.key(),
                blob_bytes,
                stream_bytes,
                state,
                first_seen_seconds: seconds(SystemTime::now()),
                warmed_seconds: None,
                residency: Residency::InUse(self.shared.boot),
                mtime: None,
            },
        }
    }

    /// Changes the meta file; nothing where there is none.
    pub(super) fn update_meta(
        &self,
        update: impl FnOnce(Meta) -> Meta,
        durability: Durability,
    ) -> Result<(), CacheError> {
        let _one_at_a_time = self.known.writing_meta.lock();
        let Some(meta) = self.known.meta.read().clone() else { return Ok(()) };
        put_meta(&self.folder, &self.known, update(meta), durability)
    }

    pub(super) fn check_blob_bytes(&self, blob_bytes: u64) -> Result<(), CacheError> {
        match self.blob_bytes == blob_bytes {
            true => Ok(()),
            false => Err(self.wrong_blob_bytes(self.blob_bytes, blob_bytes)),
        }
    }

    fn wrong_blob_bytes(&self, known: u64, said: u64) -> CacheError {
        CacheError::WrongSize { layer: self.key().digest, known, said }
    }

    /// Which layer this is.
    pub fn key(&self) -> LayerKey {
        self.known.key
    }

    /// The table of contents and layout, once known (persisted: survives restarts).
    pub fn contents(&self) -> Option<Arc<Contents>> {
        self.ready.get().map(|ready| ready.contents.clone())
    }

    /// The trust in the layer's bytes.
    pub fn state(&self) -> LayerState {
        self.known.state()
    }

    /// Whether the layer's digest was wrong once, and it is not confirmed since: [`Self::judge`] has emptied
    /// it, and all of it is to be fetched again.
    pub fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::SeqCst)
    }

    /// The time at which this cache first saw the layer, in seconds since 1970: the same for the layer's life here,
    /// over restarts and evictions, until it is removed.
    pub fn first_seen_seconds(&self) -> i64 {
        self.known.meta.read().as_ref().map_or(0, |meta| meta.first_seen_seconds)
    }

    /// Bytes of content on disk.
    pub fn resident_bytes(&self) -> u64 {
        self.known.resident_bytes()
    }

    /// The bytes that a chunk has, from its start.
    pub fn filled(&self, chunk: ChunkId) -> u32 {
        self.ready.get().map_or(0, |ready| ready.chunks.load(chunk.0).filled())
    }

    /// Whether every chunk is complete.
    pub fn is_complete(&self) -> bool {
        self.ready.get().is_some_and(|ready| {
            self.known.resident_bytes() >= ready.contents.layout.stream_bytes()
                && ready.chunks.resident_bytes() == ready.contents.layout.stream_bytes()
        })
    }

    /// The groups of chunks in which something is resident, and when each was last used.
    pub(super) fn resident_groups(&self) -> impl Iterator<Item = (u32, u64)> {
        self.ready.get().into_iter().flat_map(|ready| ready.chunks.resident_groups())
    }

    pub(super) fn refuse_poisoned(&self) -> Result<(), CacheError> {
        match self.state() {
            LayerState::Poisoned { got } => {
                Err(CacheError::Poisoned { layer: self.key().digest, got })
            }
            LayerState::Unconfirmed | LayerState::Confirmed => Ok(()),
        }
    }

    /// A file of content, open; created where it is not there and `create` says so.
    pub(super) fn file(&self, file: CacheFile, create: bool) -> Result<Arc<DiskFile>, CacheError> {
        let key = FileKey { layer: self.serial, file: LayerFile::Content(file) };
        self.shared.root.files.get(key, || self.open_file(file, create))
    }

    fn open_file(&self, file: CacheFile, create: bool) -> Result<DiskFile, CacheError> {
        let place = self.place(file);
        if !create {
            return place.open();
        }
        match place.open_or_create() {
            Err(error) if error.is_not_found() => {
                // The first big member: its folder is not there yet.
                self.folder.join("members").create_folder()?;
                place.open_or_create()
            }
            result => result,
        }
    }

    pub(super) fn place(&self, file: CacheFile) -> Place {
        match file {
            CacheFile::Stream => self.folder.join("stream"),
            CacheFile::Member(index) => self.folder.join("members").join(index.to_string()),
        }
    }

    /// Closes the descriptors that are kept open, before the files are removed.
    pub(super) fn forget_files(&self) {
        self.shared.root.files.forget(self.serial);
    }
}

impl Drop for LayerStore {
    fn drop(&mut self) {
        self.forget_pins();
        self.forget_files();
        let stamps = self.ready.get().into_iter().flat_map(|ready| ready.chunks.stamps());
        let latest = stamps.max().unwrap_or(0);
        self.known.stamp.fetch_max(latest, Ordering::Relaxed);
        if self.is_used.load(Ordering::Relaxed) {
            self.shared.note_use(&self.known);
        }
    }
}
