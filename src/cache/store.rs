//! An open layer: what is resident of it, and how resident bytes are read.
//!
//! ```text
//! chunk:  missing --appended--> partial --appended--> full
//!            ^                     |                    |
//!            '----- dropped (changed on disk) / evicted-'
//! ```
//!
//! A read takes no lock over its I/O: it looks at the chunk's state, reads the file, and looks again (see
//! [`super::chunk_states`]). A chunk that this process did not write itself is checked before its
//! first byte is served.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::{Condvar, Mutex};

use super::chunk_states::{ChunkState, ChunkStates};
use super::chunk_table::{FilledChunks, Loaded, Record};
use super::disk::{DiskFile, Durability, FileKey, LayerFile, Place};
use super::emptying::Pins;
use super::known::{Known, Shared, Storing, put_meta, remove_content, seconds};
use super::mending;
use super::meta::{Meta, Residency};
use super::page_aligned::page_aligned;
use super::records::Records;
use super::replaced::Listeners;
use super::trust::Trusted;
use super::{CacheError, LayerKey, LayerState};
use crate::layer::{CacheFile, ChunkId, Layout, StreamOffset, Toc, layout::Placed};

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

/// The outcome of a read of resident bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Every byte was resident and is in the buffer.
    Hit,
    /// Some byte is not resident; the buffer's content is unspecified.
    Miss,
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It may: on a thread that nobody else needs.
    ForDisk,
    /// It ends with [`Read::Waits`] where the kernel would have to ask the disk.
    Never,
}

/// The outcome of a look at a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Hit,
    Miss,
    /// The bytes are resident, as far as is known, and not in memory.
    Waits,
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
            // Nothing says any more what of its files is there, and what it must come to.
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

    /// Takes a confirmed layer for unconfirmed, because the seal of a chunk was lost: it is
    /// confirmed again, if it can be, when all of it is here.
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

    /// Makes what is on disk available, after a look at the chunks that will be appended to: they
    /// are few and small, and a plan of a fetch relies on their length.
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

    /// Removes the spool of a pass that came to its end in a process that was killed right then.
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

    /// Corrects the account of what is resident.
    pub(super) fn count_resident(&self, bytes: u64) {
        let before = self.known.resident_bytes.swap(bytes, Ordering::Relaxed);
        self.shared.budget.add(bytes);
        self.shared.budget.subtract(before);
    }

    /// Takes bytes that went out of the account of what is resident.
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

    /// Reads resident bytes into `buffer` (its length is the range's); re-checks the record of
    /// chunks that this process has neither written nor checked yet, and drops those that fail.
    ///
    /// # Errors
    /// [`CacheError::Poisoned`], and [`CacheError::Io`] when a cache file cannot be read.
    pub fn read(&self, start: StreamOffset, buffer: &mut [u8]) -> Result<Lookup, CacheError> {
        Ok(match self.read_with(start, buffer, Wait::ForDisk)? {
            Read::Hit => Lookup::Hit,
            Read::Miss | Read::Waits => Lookup::Miss,
        })
    }

    /// The same for a thread that must not wait for the disk; `None` where the bytes are not in memory,
    /// or were not checked yet.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_cached(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
    ) -> Result<Option<Lookup>, CacheError> {
        Ok(match self.read_with(start, buffer, Wait::Never)? {
            Read::Hit => Some(Lookup::Hit),
            Read::Miss => Some(Lookup::Miss),
            Read::Waits => None,
        })
    }

    fn read_with(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
        wait: Wait,
    ) -> Result<Read, CacheError> {
        self.refuse_poisoned()?;
        let Some(ready) = self.ready.get() else { return Ok(Read::Miss) };
        let layout = &ready.contents.layout;
        let range = start.range(buffer.len() as u64);
        if range.end.get() > layout.stream_bytes() {
            return Ok(Read::Miss);
        }
        let wanted = layout.chunks_of(range.clone());
        for chunk in wanted.clone() {
            let span = layout.chunk(ChunkId(chunk)).stream;
            let needed = range.end.min(span.end) - span.start;
            if u64::from(ready.chunks.load(chunk).filled()) < needed {
                return Ok(Read::Miss);
            }
        }
        for chunk in wanted {
            let placed = layout.chunk(ChunkId(chunk));
            let from = range.start.max(placed.stream.start);
            let to = range.end.min(placed.stream.end);
            let piece = &mut buffer[(from - range.start) as usize..(to - range.start) as usize];
            let skip = (from - placed.stream.start) as u32;
            match self.read_chunk(ready, chunk, &placed, skip, piece, wait)? {
                Read::Hit => {}
                other => return Ok(other),
            }
        }
        Ok(Read::Hit)
    }

    /// Reads `piece` from the byte `skip` of a chunk on.
    pub(super) fn read_chunk(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        skip: u32,
        piece: &mut [u8],
        wait: Wait,
    ) -> Result<Read, CacheError> {
        let mut state = ready.chunks.load(chunk);
        if state.filled() > 0 && !state.is_checked() {
            if wait == Wait::Never {
                return Ok(Read::Waits);
            }
            self.check(ready, chunk, placed)?;
            state = ready.chunks.load(chunk);
        }
        if !state.is_checked() || u64::from(state.filled()) < u64::from(skip) + piece.len() as u64 {
            return Ok(Read::Miss);
        }
        let is_read = match wait {
            Wait::ForDisk => self.read_file(placed, skip, piece).or_else(|e| self.lost(e))?,
            Wait::Never if self.read_open_file(placed, skip, piece) => true,
            Wait::Never => return Ok(Read::Waits),
        };
        if !is_read {
            self.drop_wrong(ready, chunk, state);
            return Ok(Read::Miss);
        }
        if !state.is_same_generation(ready.chunks.load(chunk)) {
            return Ok(Read::Miss);
        }
        ready.chunks.touch(chunk, self.shared.budget.now());
        Ok(Read::Hit)
    }

    /// Handles a file of the cache that cannot be read: its bytes are fetched again, unless it
    /// is this process that lacks something.
    fn lost(&self, error: CacheError) -> Result<bool, CacheError> {
        if error.is_about_the_process() {
            return Err(error);
        }
        self.shared.note_trouble(&error);
        Ok(false)
    }

    /// Reads bytes of a chunk from its file, if it is open and the kernel has them in memory.
    fn read_open_file(&self, placed: &Placed, skip: u32, piece: &mut [u8]) -> bool {
        let key = FileKey { layer: self.serial, file: LayerFile::Content(placed.file) };
        let file = self.shared.root.files.get_open(key);
        file.is_some_and(|file| file.read_cached_at(piece, placed.file_offset + u64::from(skip)))
    }

    /// Reads bytes of a chunk from its file, whatever they are; `false` where the file is shorter, or
    /// the disk does not give them back.
    pub(super) fn read_file(
        &self,
        placed: &Placed,
        skip: u32,
        piece: &mut [u8],
    ) -> Result<bool, CacheError> {
        let file = match self.file(placed.file, false) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.read_exact_at(piece, placed.file_offset + u64::from(skip)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => match CacheError::io("read", file.path())(error) {
                error if error.is_lost_on_disk() => {
                    tracing::warn!(%error, "the local disk does not give bytes back");
                    Ok(false)
                }
                error => Err(error),
            },
        }
    }

    /// Compares a chunk's bytes with its record; a chunk that fails is dropped. Returns
    /// whether it failed.
    pub(super) fn check(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
    ) -> Result<bool, CacheError> {
        self.check_by(ready, chunk, ready.chunks.load(chunk), placed, Record::matches)
    }

    /// The same for a chunk in that state, where `is_right` compares them.
    pub(super) fn check_by(
        &self,
        ready: &Ready,
        chunk: u32,
        state: ChunkState,
        placed: &Placed,
        is_right: impl FnOnce(&Record, &[u8]) -> bool,
    ) -> Result<bool, CacheError> {
        let mut bytes = page_aligned(state.filled() as usize);
        let is_right = self
            .record(ready, chunk)
            .and_then(|record| {
                Ok(self.read_file(placed, 0, &mut bytes)? && is_right(&record, &bytes))
            })
            .or_else(|error| self.lost(error))?;
        if is_right {
            if ready.chunks.mark_checked(chunk, state) {
                self.known.changes.no_longer_unchecked(u64::from(state.filled()));
            }
            return Ok(false);
        }
        Ok(self.drop_changed(ready, chunk, state))
    }

    /// Drops a chunk in the state `seen`, whose bytes are not what its record says. Returns whether
    /// it went.
    pub(super) fn drop_changed(&self, ready: &Ready, chunk: u32, seen: ChunkState) -> bool {
        let is_dropped = self.drop_wrong(ready, chunk, seen);
        if is_dropped {
            tracing::warn!(layer = %self.key().digest, chunk, "bytes on the local disk changed: dropped, to be fetched again");
        }
        is_dropped
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

    /// Closes the descriptors that are kept open, because the files are to go.
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
