//! The records of a layer's chunks: in its `chunks` file, or in memory while the disk does not take it.
//!
//! ```text
//!            tables written                      tables written, nothing was there
//! contents ------------------> on disk   in memory ------------------------------> on disk
//!     '---the disk refuses them-----------------^
//! ```
//!
//! A layer whose records are in memory keeps no content, so that the disk has no byte without a record. These
//! records hold the seals of a compressed layer: bytes that are fetched again must match their seals.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::chunk_table::{self, RECORD_BYTES, Record};
use super::disk::{DiskFile, Durability, FileKey, LayerFile};
use super::known::remove_content;
use super::mending::{self, CHUNKS, TOC};
use super::store::{Contents, Ready};
use super::{CacheError, LayerState, LayerStore};
use crate::layer::layout::CHUNK_BYTES;
use crate::layer::toc_codec;

/// The interval at which tables that the disk refused are offered to it again.
const OFFER_INTERVAL: Duration = Duration::from_secs(1);

/// The records of a layer's chunks, on disk or in memory.
pub(super) struct Records {
    /// The records that the disk did not take.
    memory: RwLock<Option<HashMap<u32, Record>>>,
    /// The time at which the tables were last offered to the disk.
    offered: Mutex<Instant>,
}

impl Records {
    pub(super) fn on_disk() -> Self {
        Self { memory: RwLock::new(None), offered: Mutex::new(Instant::now()) }
    }

    pub(super) fn in_memory(records: HashMap<u32, Record>) -> Self {
        Self { memory: RwLock::new(Some(records)), ..Self::on_disk() }
    }

    pub(super) fn are_on_disk(&self) -> bool {
        self.memory.read().is_none()
    }
}

impl LayerStore {
    pub(super) fn record(&self, ready: &Ready, chunk: u32) -> Result<Record, CacheError> {
        if let Some(records) = &*ready.records.memory.read() {
            return Ok(records.get(&chunk).copied().unwrap_or_default());
        }
        self.read_record(chunk)
    }

    pub(super) fn put_record(
        &self,
        ready: &Ready,
        chunk: u32,
        record: &Record,
    ) -> Result<(), CacheError> {
        if let Some(records) = &mut *ready.records.memory.write() {
            records.insert(chunk, *record);
            return Ok(());
        }
        chunk_table::write_record(&*self.table()?, chunk, record)?;
        self.copy_record(chunk, record);
        Ok(())
    }

    /// Returns when all records are on the disk.
    pub(super) fn sync_records(&self) -> Result<(), CacheError> {
        self.table()?.sync()
    }

    pub(super) fn table(&self) -> Result<Arc<DiskFile>, CacheError> {
        let key = FileKey { layer: self.serial, file: LayerFile::Chunks };
        let place = self.folder.join(CHUNKS);
        self.shared.root.files.get(key, || match place.open() {
            Err(error) if error.is_not_found() && self.remake_table()? => place.open(),
            opened => opened,
        })
    }

    /// Writes the tables of a layer; the toc last.
    pub(super) fn store_tables(
        &self,
        contents: &Contents,
        records: &[(u32, Record)],
        state: LayerState,
    ) -> Result<(), CacheError> {
        let shared = &self.shared;
        let toc_bytes = toc_codec::encode(&contents.toc);
        let toc_digest = *blake3::hash(&toc_bytes).as_bytes();
        let (chunks, stream_bytes) = (contents.layout.chunks(), contents.layout.stream_bytes());
        let write = |table: &DiskFile| chunk_table::write(table, &toc_digest, chunks, records);
        let table_bytes = records.len() as u64 * RECORD_BYTES as u64;
        let table = self.folder.join(CHUNKS);
        shared.with_room(table_bytes, || table.write_with(write, Durability::Synced))?;
        shared.with_room(CHUNK_BYTES, || {
            self.put_state(state.clone(), Some(stream_bytes), Durability::Synced)
        })?;
        let toc = self.folder.join(TOC);
        shared.with_room(toc_bytes.len() as u64, || toc.write(&toc_bytes, Durability::Synced))?;
        self.copy_tables(&toc_bytes);
        Ok(())
    }

    /// Tries to write tables from memory to the disk. Returns whether they are on the disk. Does not try while the
    /// disk has files of the layer that cannot be read.
    pub(super) fn offer_tables(&self, ready: &Ready) -> bool {
        if ready.records.are_on_disk() {
            return true;
        }
        if !self.shared.may_write() || self.known.resident_bytes() > 0 {
            return false;
        }
        let mut offered = ready.records.offered.lock();
        if offered.elapsed() < OFFER_INTERVAL {
            return ready.records.are_on_disk();
        }
        *offered = Instant::now();
        let stored = self.shared.with_room(CHUNK_BYTES, || {
            self.folder.create_folder()?;
            match mending::has_toc(&self.folder) {
                true => Err(CacheError::other("replace", &self.folder.path(), "it has contents")),
                false => remove_content(&self.folder),
            }
        });
        let stored = stored.and_then(|()| self.store_tables_of(ready, self.state()));
        if let Err(error) = &stored {
            self.shared.note_trouble(error);
        }
        stored.is_ok()
    }

    /// Lets an open, poisoned layer begin anew with the contents that it had, so that its mounts fetch it
    /// again.
    ///
    /// # Errors
    /// [`CacheError::InUse`] where the layer is not poisoned, or its table of contents came wrong, and when
    /// the disk does not take the tables.
    pub(super) fn begin_anew(&self) -> Result<(), CacheError> {
        let in_use = || CacheError::InUse(self.key().digest);
        let LayerState::Poisoned { got } = self.state() else { return Err(in_use()) };
        let ready = self.ready.get().filter(|_| got != self.key().digest).ok_or_else(in_use)?;
        drop(self.change(None)?);
        remove_content(&self.folder)?;
        ready.records.memory.write().get_or_insert_default().clear();
        self.store_tables_of(ready, LayerState::Unconfirmed)?;
        self.tell_all_replaced();
        Ok(())
    }

    /// Writes tables that are in memory to the disk.
    fn store_tables_of(&self, ready: &Ready, state: LayerState) -> Result<(), CacheError> {
        let mut memory = ready.records.memory.write();
        let Some(records) = &*memory else { return Ok(()) };
        let mut records: Vec<(u32, Record)> = records.iter().map(|(c, r)| (*c, *r)).collect();
        records.sort_unstable_by_key(|(chunk, _)| *chunk);
        self.store_tables(&ready.contents, &records, state)?;
        *memory = None;
        self.known.is_unstored.store(false, Ordering::SeqCst);
        self.known.changes.begin();
        Ok(())
    }
}
