//! Tracks whether the disk has all bytes that a layer's records describe, and syncs them.
//!
//! ```text
//!            first change: meta "in use", synced           sync: content, table, folders, meta
//! clean --------------------------------------> in use ------------------------------------> clean
//!   ^                                             |  '--process dies, same boot--> in use
//!   '--every resident byte looked at, sync-- unclean <--machine dies-----------------'
//! ```
//!
//! Content and records are written without a sync, so after a power cut a record may speak of bytes that never
//! reached the disk. The check before a chunk is first served finds that. But `warm` must not promise residency
//! that nobody has checked. So the meta file says how far the records can be believed:
//! - *clean*: everything was synced, and nothing was written since.
//! - *in use*, with the boot of the kernel: something may have been written since. The kernel keeps the writes of a
//!   dead process, so the records are still right within the same boot.
//! - *unclean*: in use under another boot. Residency counts as unchecked until each resident chunk was
//!   compared with its record.
//!
//! "In use" reaches the disk before the first change does. The order of a sync: content, chunk table,
//! names of files and folders, meta file.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::Durability;
use super::known::Known;
use super::meta::{Meta, Residency};
use super::{CacheError, LayerStore};
use crate::layer::{CacheFile, ChunkId};

/// The changes of a layer since its last sync.
pub(super) struct Changes {
    /// Whether the meta file on disk says that the layer is in use.
    is_in_use: AtomicBool,
    /// Changes that were begun.
    begun: AtomicU64,
    /// Changes that are under way.
    under_way: AtomicU32,
    /// Held while the meta file changes between "in use" and "clean".
    marking: Mutex<()>,
    /// Files that were written since they were last synced.
    unsynced: Mutex<Unsynced>,
    /// Whether the layer was in use when the machine died, and not all of it was checked since.
    is_unclean: AtomicBool,
    /// Resident bytes that were not checked since then.
    unchecked_bytes: AtomicU64,
}

enum Unsynced {
    /// These files.
    Files(HashSet<CacheFile>),
    /// An earlier process may have written any file.
    Any,
}

impl Unsynced {
    fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Files(files), Self::Files(others)) => files.extend(others),
            _ => *self = Self::Any,
        }
    }
}

/// A change of a layer's content or records. While it lives, the layer is in use.
pub(super) struct Change(Arc<Known>);

impl Drop for Change {
    fn drop(&mut self) {
        self.0.changes.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Changes {
    /// Of a layer that is not in the folder yet.
    pub(super) fn new() -> Self {
        Self {
            is_in_use: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            marking: Mutex::new(()),
            unsynced: Mutex::new(Unsynced::Files(HashSet::new())),
            is_unclean: AtomicBool::new(false),
            unchecked_bytes: AtomicU64::new(0),
        }
    }

    /// Takes over the state that an earlier process left. `is_unclean`: the machine died since.
    pub(super) fn found(&self, residency: Residency, is_unclean: bool, resident_bytes: u64) {
        if let Residency::InUse(_) = residency {
            self.is_in_use.store(true, Ordering::SeqCst);
            *self.unsynced.lock() = Unsynced::Any;
        }
        self.is_unclean.store(is_unclean && resident_bytes > 0, Ordering::SeqCst);
        self.unchecked_bytes.store(resident_bytes, Ordering::SeqCst);
    }

    /// The layer begins anew in this process, and its meta file says that it is in use.
    pub(super) fn begin(&self) {
        self.is_unclean.store(false, Ordering::SeqCst);
        self.is_in_use.store(true, Ordering::SeqCst);
    }

    /// The layer was removed.
    pub(super) fn end(&self) {
        self.is_unclean.store(false, Ordering::SeqCst);
        self.is_in_use.store(false, Ordering::SeqCst);
    }

    /// Whether something may have been written since the last sync.
    pub(super) fn is_in_use(&self) -> bool {
        self.is_in_use.load(Ordering::SeqCst)
    }

    /// The number of changes that were begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Whether a change is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) > 0
    }

    /// Bytes that count as resident, and were not checked since the machine died.
    pub(super) fn unchecked_bytes(&self) -> u64 {
        match self.is_unclean.load(Ordering::SeqCst) {
            true => self.unchecked_bytes.load(Ordering::SeqCst),
            false => 0,
        }
    }

    /// The layer was opened with these resident bytes, none of which this opening has checked.
    pub(super) fn opened(&self, resident_bytes: u64) {
        self.unchecked_bytes.store(resident_bytes, Ordering::SeqCst);
        self.no_longer_unchecked(0);
    }

    /// Counts resident bytes that were checked, or that went unchecked.
    pub(super) fn no_longer_unchecked(&self, bytes: u64) {
        let subtract = |unchecked: u64| Some(unchecked.saturating_sub(bytes));
        let (all, ordering) = (&self.unchecked_bytes, Ordering::SeqCst);
        let before = all.fetch_update(ordering, ordering, subtract).unwrap_or(0);
        if before <= bytes {
            self.is_unclean.store(false, Ordering::SeqCst);
        }
    }
}

impl LayerStore {
    /// Begins a change: of `file`, where one is written. The meta file on disk says "in use" before
    /// this returns.
    pub(super) fn change(&self, file: Option<CacheFile>) -> Result<Change, CacheError> {
        let changes = &self.known.changes;
        changes.under_way.fetch_add(1, Ordering::SeqCst);
        let change = Change(self.known.clone());
        changes.begun.fetch_add(1, Ordering::SeqCst);
        if self.known.is_unstored.load(Ordering::SeqCst) {
            return Ok(change);
        }
        if !changes.is_in_use() {
            let _one_at_a_time = changes.marking.lock();
            if !changes.is_in_use() {
                self.put_residency(Residency::InUse(self.shared.boot))?;
                changes.is_in_use.store(true, Ordering::SeqCst);
            }
        }
        if let Some(file) = file {
            self.end_trust_in(file)?;
            if let Unsynced::Files(files) = &mut *changes.unsynced.lock() {
                files.insert(file);
            }
        }
        Ok(change)
    }

    /// Syncs the layer: returns when all bytes that are resident now would survive a power cut. Returns whether the
    /// layer is clean afterwards. A layer is not clean while a thread changes it, or while residency is unchecked.
    /// Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`CacheError::Io`] when a file cannot be synced.
    pub fn sync(&self) -> Result<bool, CacheError> {
        let changes = &self.known.changes;
        if !changes.is_in_use() || self.known.is_unstored.load(Ordering::SeqCst) {
            return Ok(true);
        }
        let begun = changes.begun.load(Ordering::SeqCst);
        let unsynced =
            std::mem::replace(&mut *changes.unsynced.lock(), Unsynced::Files(HashSet::new()));
        if let Err(error) = self.sync_files(&unsynced) {
            changes.unsynced.lock().add(unsynced);
            return Err(error);
        }
        let marking = changes.marking.lock();
        // From here on a new change waits for the lock, and marks the layer as in use again.
        changes.is_in_use.store(false, Ordering::SeqCst);
        let is_unchanged = changes.under_way.load(Ordering::SeqCst) == 0
            && changes.begun.load(Ordering::SeqCst) == begun;
        let is_clean = is_unchanged && changes.unchecked_bytes() == 0;
        let marked = match is_clean {
            true => {
                let resident_bytes = self.known.resident_bytes();
                self.put_residency(Residency::Clean { resident_bytes })
            }
            false => {
                // A change that is under way may write to a file that it named before the sync.
                changes.unsynced.lock().add(unsynced);
                Ok(())
            }
        };
        changes.is_in_use.store(!is_clean || marked.is_err(), Ordering::SeqCst);
        drop(marking);
        marked?;
        if is_clean {
            self.trust_checked_members();
        }
        Ok(is_clean)
    }

    fn sync_files(&self, unsynced: &Unsynced) -> Result<(), CacheError> {
        if let (Unsynced::Any, Some(ready)) = (unsynced, self.ready.get()) {
            self.give_back_leftovers(ready)?;
        }
        let files: Vec<CacheFile> = match unsynced {
            Unsynced::Files(files) => files.iter().copied().collect(),
            Unsynced::Any => self.files_of_content(),
        };
        for file in files {
            match self.file(file, false) {
                Ok(file) => file.sync()?,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        if self.ready.get().is_some() {
            self.sync_records()?;
        }
        let members = self.folder.join("members");
        if members.exists() {
            members.sync_folder()?;
        }
        self.folder.sync_folder()?;
        self.shared.layers_folder().sync_folder()
    }

    /// The files in which something is resident.
    fn files_of_content(&self) -> Vec<CacheFile> {
        let Some(ready) = self.ready.get() else { return Vec::new() };
        let layout = &ready.contents.layout;
        let is_used = |chunk: u32| ready.chunks.load(chunk).filled() > 0;
        let has_content = |piece: &&crate::layer::layout::Piece| {
            layout.chunks_of(piece.stream.clone()).any(is_used)
        };
        let pieces = layout.pieces().iter().filter(has_content);
        let files: HashSet<CacheFile> = pieces.map(|piece| piece.file).collect();
        files.into_iter().collect()
    }

    /// Checks the layer after an unclean start: compares each resident chunk that this process has not checked with
    /// its record, and drops chunks that fail. Returns at once if nothing is unchecked. Blocks for about 1 s per
    /// GiB; ends early once `is_wanted` returns false.
    ///
    /// # Errors
    /// [`CacheError::Io`] when a file cannot be read.
    pub fn look(&self, is_wanted: &dyn Fn() -> bool) -> Result<(), CacheError> {
        let Some(ready) = self.ready.get() else { return Ok(()) };
        for chunk in 0..ready.chunks.count() {
            if self.known.changes.unchecked_bytes() == 0 || !is_wanted() {
                break;
            }
            let state = ready.chunks.load(chunk);
            if state.filled() > 0 && !state.is_checked() {
                let placed = ready.contents.layout.chunk(ChunkId(chunk));
                self.check(ready, chunk, &placed)?;
            }
        }
        Ok(())
    }

    /// Resident bytes that the disk may lack, because the machine died while they were written. The number falls as
    /// chunks are read or checked.
    pub fn unchecked_bytes(&self) -> u64 {
        self.known.changes.unchecked_bytes()
    }

    /// Notes that `warm` brought the layer or a part of it. Layers that were only read are evicted before it. The
    /// note is synced.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the note cannot be written.
    pub fn mark_warmed(&self, now_seconds: i64) -> Result<(), CacheError> {
        let warm = |meta| Meta { warmed_seconds: Some(now_seconds), ..meta };
        self.update_meta(warm, Durability::Synced)
    }

    fn put_residency(&self, residency: Residency) -> Result<(), CacheError> {
        self.update_meta(|meta| Meta { residency, ..meta }, Durability::Synced)
    }
}
