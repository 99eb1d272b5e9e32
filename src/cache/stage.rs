//! Collecting the bytes of a layer while its table of contents is being read.
//!
//! Bytes go to their final files at once. Their chunks are known only with the table of contents. Until then no
//! record describes the bytes, and an interrupted stage loses them. Only the spool (the compressed blob as it came)
//! outlives it: the next stage goes on from there.
//!
//! ```text
//! stage() --write*--spool_append*--> finish(): chunks (rename), meta (rename), toc (rename)
//!    '--dropped--> content removed, spool kept
//! ```
//!
//! The toc comes last: its presence says that everything else is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::chunk_states::ChunkStates;
use super::chunk_table::Record;
use super::disk::DiskFile;
use super::known::remove_content;
use super::page_aligned::page_aligned;
use super::records::Records;
use super::seal::Seal;
use super::store::{Contents, Ready};
use super::{CacheError, LayerState, LayerStore};
use crate::layer::layout::{CHUNK_BYTES, Placed};
use crate::layer::{CacheFile, ChunkId, RangeSet, StreamOffset, Toc};
use crate::oci::Digest;

/// The longest wait for a stage that was given up a moment ago and is still letting go: its
/// thread has at most some buffered pieces (2 MiB) left.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Collects the bytes of a layer while its table of contents is being read.
pub struct Stage {
    store: Arc<LayerStore>,
    staged_bytes: u64,
    spool: Option<DiskFile>,
    /// Whether the spool was given up for want of room.
    is_without_spool: bool,
    is_spool_in_use: bool,
    hashes: SequentialHashes,
}

impl LayerStore {
    /// Starts to collect the bytes of a layer whose contents are not known yet.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when the contents are known, or another stage is at work;
    /// [`CacheError::Poisoned`].
    pub fn stage(self: &Arc<Self>) -> Result<Stage, CacheError> {
        self.refuse_poisoned()?;
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut is_staging = self.is_staging.lock();
        while *is_staging {
            if self.staging_ended.wait_until(&mut is_staging, deadline).timed_out() {
                return Err(CacheError::InUse(self.key().digest));
            }
        }
        if self.ready.get().is_some() {
            return Err(CacheError::InUse(self.key().digest));
        }
        if !self.known.is_unstored.load(Ordering::SeqCst) {
            drop(self.change(None)?);
            remove_content(&self.folder)?;
        }
        *is_staging = true;
        let hashes = SequentialHashes::new(self.seals_while_staged());
        let (store, spool) = (self.clone(), None);
        Ok(Stage {
            store,
            staged_bytes: 0,
            spool,
            is_without_spool: false,
            is_spool_in_use: false,
            hashes,
        })
    }

    /// Refuses to write files of a layer that is known in memory alone.
    fn refuse_unstored(&self) -> Result<(), CacheError> {
        match self.known.is_unstored.load(Ordering::SeqCst) {
            true => {
                Err(CacheError::other("use", &self.folder.path(), "the disk refused its files"))
            }
            false => Ok(()),
        }
    }

    /// A compressed layer is confirmed by its blob, so its chunks are sealed as they come. Chunks of other layers
    /// are sealed while the layer's digest is computed.
    fn seals_while_staged(&self) -> bool {
        self.key().encoding.is_compressed()
    }
}

impl Stage {
    /// Writes bytes of the stream to the file where the final layout will have them; says whether they
    /// are kept. Where there is no room, the spool goes first: without it only an interrupted pass has
    /// to begin again.
    ///
    /// # Errors
    /// Only errors about the layer's bytes. If the disk refuses them, the result is `false`.
    pub fn write(
        &mut self,
        file: CacheFile,
        file_offset: u64,
        bytes: &[u8],
    ) -> Result<bool, CacheError> {
        self.hashes.update(file, file_offset, bytes);
        let kept = match self.keep(file, file_offset, bytes) {
            Err(error) if error.is_about_keeping() && self.may_drop_spool() => {
                self.drop_spool()?;
                self.keep(file, file_offset, bytes)
            }
            kept => kept,
        };
        self.kept(kept)
    }

    fn may_drop_spool(&self) -> bool {
        self.spool_bytes() > 0 && !self.is_spool_in_use
    }

    /// Says whether the spool is still to be read.
    pub fn use_spool(&mut self, is_in_use: bool) {
        self.is_spool_in_use = is_in_use;
    }

    fn keep(&mut self, file: CacheFile, file_offset: u64, bytes: &[u8]) -> Result<(), CacheError> {
        let (store, length) = (&self.store, bytes.len() as u64);
        store.refuse_unstored()?;
        let reserved = store.shared.reserve(length)?;
        store.shared.with_room(length, || {
            let _change = store.change(Some(file))?;
            store.file(file, true)?.write_all_at(bytes, file_offset)
        })?;
        reserved.keep();
        self.staged_bytes += length;
        store.shared.budget.tick();
        Ok(())
    }

    /// Whether bytes were kept. Notes trouble of the disk, and returns other errors.
    fn kept(&self, kept: Result<(), CacheError>) -> Result<bool, CacheError> {
        match kept {
            Ok(()) => {
                self.store.shared.note_kept();
                Ok(true)
            }
            Err(error) if error.is_about_keeping() => {
                self.store.shared.note_trouble(&error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes of the compressed blob kept by an interrupted pass, from the blob's start.
    pub fn spool_bytes(&self) -> u64 {
        self.store.known.spool_bytes()
    }

    /// Reads bytes of the spool; returns how many, 0 at its end.
    pub fn spool_read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, CacheError> {
        if offset >= self.spool_bytes() {
            return Ok(0);
        }
        self.spool()?.read_at(buffer, offset)
    }

    /// Keeps more of the compressed blob, for a pass that goes on after an interruption. Once there is
    /// no room, nothing of the blob is kept any more: the room is the content's.
    ///
    /// # Errors
    /// Only errors about the layer's bytes.
    pub fn spool_append(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        if self.is_without_spool {
            return Ok(());
        }
        let kept = self.keep_spooled(bytes);
        if !self.kept(kept)? {
            self.drop_spool()?;
        }
        Ok(())
    }

    fn keep_spooled(&mut self, bytes: &[u8]) -> Result<(), CacheError> {
        let (at, length) = (self.spool_bytes(), bytes.len() as u64);
        self.store.refuse_unstored()?;
        let shared = self.store.shared.clone();
        let reserved = shared.reserve(length)?;
        drop(shared.with_room(CHUNK_BYTES, || self.store.change(None))?);
        let spool = self.spool()?;
        shared.with_room(length, || spool.write_all_at(bytes, at))?;
        self.store.known.spool_bytes.fetch_add(length, Ordering::Relaxed);
        reserved.keep();
        Ok(())
    }

    fn spool(&mut self) -> Result<&DiskFile, CacheError> {
        if self.spool.is_none() {
            self.spool = Some(self.store.folder.join("spool").open_or_create()?);
        }
        Ok(self.spool.as_ref().expect("it was opened in the lines before"))
    }

    /// Forgets everything staged, the spool too.
    pub fn restart(&mut self) -> Result<(), CacheError> {
        self.drop_content()?;
        self.drop_spool()?;
        self.is_without_spool = false;
        Ok(())
    }

    fn drop_content(&mut self) -> Result<(), CacheError> {
        self.store.forget_files();
        self.hashes = SequentialHashes::new(self.store.seals_while_staged());
        self.store.shared.budget.subtract(std::mem::take(&mut self.staged_bytes));
        remove_content(&self.store.folder)
    }

    fn drop_spool(&mut self) -> Result<(), CacheError> {
        self.spool = None;
        self.is_without_spool = true;
        let spooled = self.store.known.spool_bytes.swap(0, Ordering::Relaxed);
        self.store.shared.budget.subtract(spooled);
        self.store.folder.join("spool").remove_file()
    }

    /// Makes the layer's contents final: writes the toc, marks chunks (or their first bytes) that
    /// `covered` has as resident. `blob_digest` is the digest computed over the compressed blob.
    ///
    /// Where the disk does not take the tables, the contents are known in memory alone, and nothing is
    /// resident.
    ///
    /// # Errors
    /// When the contents do not fit the layer.
    pub fn finish(
        mut self,
        toc: Toc,
        covered: &RangeSet,
        blob_digest: Option<Digest>,
    ) -> Result<Arc<Contents>, CacheError> {
        let store = self.store.clone();
        let state = match blob_digest {
            None => LayerState::Unconfirmed,
            Some(digest) if digest == store.key().digest => LayerState::Confirmed,
            Some(got) => return Err(CacheError::Poisoned { layer: store.key().digest, got }),
        };
        let stream_bytes = toc.stream_bytes;
        let contents = Arc::new(store.contents_of(toc)?);
        let stored = store.refuse_unstored().and_then(|()| {
            let records = self.records(&contents, covered)?;
            store.store_tables(&contents, &records, state.clone())?;
            Ok(records)
        });
        let ready = match stored {
            Ok(records) => self.ready_on_disk(&contents, &records),
            Err(error) if error.is_about_keeping() => {
                store.shared.note_trouble(&error);
                self.ready_in_memory(&contents, state, stream_bytes)
            }
            Err(error) => return Err(error),
        };
        store.ready.set(ready).ok().expect("there is one stage, and it starts without contents");
        self.drop_spool()?;
        Ok(contents)
    }

    fn ready_on_disk(&mut self, contents: &Arc<Contents>, records: &[(u32, Record)]) -> Ready {
        let store = &self.store;
        let filled: Vec<(u32, u32)> = records.iter().map(|(c, it)| (*c, it.filled)).collect();
        let chunks = contents.layout.chunks();
        let chunks = ChunkStates::new(chunks, &filled, store.shared.budget.now());
        store.count_resident(filled.iter().map(|(_, filled)| u64::from(*filled)).sum());
        store.known.changes.opened(0);
        store.shared.budget.subtract(std::mem::take(&mut self.staged_bytes));
        Ready { contents: contents.clone(), chunks, records: Records::on_disk() }
    }

    fn ready_in_memory(
        &mut self,
        contents: &Arc<Contents>,
        state: LayerState,
        stream_bytes: u64,
    ) -> Ready {
        let store = self.store.clone();
        let layout = &contents.layout;
        let seals = (0..layout.chunks()).filter_map(|chunk| {
            let seal = self.seal_of(&layout.chunk(ChunkId(chunk)))?;
            Some((chunk, Record { seal: Some(seal), ..Record::default() }))
        });
        let records = Records::in_memory(seals.collect());
        store.known.is_unstored.store(true, Ordering::SeqCst);
        store.set_state_in_memory(state, Some(stream_bytes));
        // Best effort: the disk may refuse to remove files.
        let _ = self.drop_content();
        let chunks = ChunkStates::new(layout.chunks(), &[], 0);
        Ready { contents: contents.clone(), chunks, records }
    }

    /// The seal of a whole chunk that passed by.
    fn seal_of(&self, placed: &Placed) -> Option<Seal> {
        let length = (placed.stream.end - placed.stream.start) as u32;
        self.hashes.get(placed.file, placed.file_offset, length)?.seal
    }

    /// The records of chunks whose first bytes were staged, and of those whose seal is known.
    fn records(
        &self,
        contents: &Contents,
        covered: &RangeSet,
    ) -> Result<Vec<(u32, Record)>, CacheError> {
        let layout = &contents.layout;
        let mut records = BTreeMap::new();
        if self.store.seals_while_staged() {
            for chunk in 0..layout.chunks() {
                let seal = self.seal_of(&layout.chunk(ChunkId(chunk)));
                records.insert(chunk, Record { seal, ..Record::default() });
            }
        }
        for run in covered.iter() {
            for chunk in layout.chunks_of(StreamOffset(run.start)..StreamOffset(run.end)) {
                let placed = layout.chunk(ChunkId(chunk));
                let (start, end) = (placed.stream.start.get(), placed.stream.end.get());
                if start < run.start {
                    self.give_back(&placed, run.start - start, run.end.min(end) - run.start);
                    continue;
                }
                let filled = (run.end.min(end) - start) as u32;
                let is_whole = run.end >= end;
                match records.get(&chunk).and_then(|record| record.seal) {
                    // A sealed chunk is here as a whole or not at all.
                    Some(_) if !is_whole => self.give_back(&placed, 0, filled.into()),
                    seal => {
                        records.insert(chunk, Record { seal, ..self.record(&placed, filled)? });
                    }
                }
            }
        }
        Ok(records.into_iter().collect())
    }

    /// Gives bytes back that lie behind a gap in their chunk: no record can speak of them.
    fn give_back(&self, placed: &Placed, offset: u64, bytes: u64) {
        if let Ok(file) = self.store.file(placed.file, false) {
            // They are uncounted, and overwritten when their chunk comes.
            let _ = file.punch_hole(placed.file_offset + offset, bytes);
        }
    }

    fn record(&self, placed: &Placed, filled: u32) -> Result<Record, CacheError> {
        if let Some(record) = self.hashes.get(placed.file, placed.file_offset, filled) {
            return Ok(record);
        }
        let mut bytes = page_aligned(filled as usize);
        match self.store.read_file(placed, 0, &mut bytes)? {
            true => {
                let mut hasher = ChunkHasher::new(self.store.seals_while_staged());
                hasher.update(&bytes);
                Ok(hasher.record())
            }
            false => {
                let path = self.store.place(placed.file).path();
                Err(CacheError::other("read back", &path, "what was written is not there"))
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.store.ready.get().is_none()
            && let Err(error) = self.drop_content()
        {
            tracing::warn!(%error, "could not remove the bytes of an unfinished layer");
        }
        *self.store.is_staging.lock() = false;
        self.store.staging_ended.notify_all();
    }
}

/// Computes the record of a chunk from its bytes as they come.
struct ChunkHasher {
    filled: u32,
    checksum: u32,
    seal: Option<Box<blake3::Hasher>>,
}

impl ChunkHasher {
    fn new(seals: bool) -> Self {
        Self { filled: 0, checksum: 0, seal: seals.then(Box::default) }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.filled += bytes.len() as u32;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        if let Some(hasher) = &mut self.seal {
            hasher.update(bytes);
        }
    }

    fn record(&self) -> Record {
        let seal = self.seal.as_ref().map(|hasher| Seal::Blake3(*hasher.finalize().as_bytes()));
        Record { filled: self.filled, checksum: self.checksum, seal, earlier: None }
    }
}

/// Hashes of chunks that a sequential pass wrote, so that they need not be read back.
///
/// In a stream written in order, a piece of the layout starts wherever the file changes, and its
/// chunks are counted from there; so they are known before the layout is. A hash is only used
/// for exactly the place and length it was computed over, and the first write out of order ends
/// the collecting: what was overwritten is read back.
struct SequentialHashes {
    seals: bool,
    done: HashMap<(CacheFile, u64), Record>,
    /// The end of the last write to each file.
    ends: HashMap<CacheFile, u64>,
    current: Option<Current>,
    is_out_of_order: bool,
}

struct Current {
    file: CacheFile,
    start: u64,
    hasher: ChunkHasher,
}

impl Current {
    fn new(file: CacheFile, start: u64, seals: bool) -> Self {
        Self { file, start, hasher: ChunkHasher::new(seals) }
    }

    fn end(&self) -> u64 {
        self.start + u64::from(self.hasher.filled)
    }
}

impl SequentialHashes {
    fn new(seals: bool) -> Self {
        Self {
            seals,
            done: HashMap::new(),
            ends: HashMap::new(),
            current: None,
            is_out_of_order: false,
        }
    }

    fn update(&mut self, file: CacheFile, file_offset: u64, mut bytes: &[u8]) {
        if self.is_out_of_order || bytes.is_empty() {
            return;
        }
        let follows = |current: &Current| current.file == file && current.end() == file_offset;
        if !self.current.as_ref().is_some_and(follows) {
            self.close();
            if self.ends.get(&file).is_some_and(|&end| file_offset < end) {
                *self = Self { is_out_of_order: true, ..Self::new(self.seals) };
                return;
            }
            self.current = Some(Current::new(file, file_offset, self.seals));
        }
        while !bytes.is_empty() {
            let Some(current) = &mut self.current else { return };
            let room = CHUNK_BYTES as usize - current.hasher.filled as usize;
            let (piece, rest) = bytes.split_at(room.min(bytes.len()));
            current.hasher.update(piece);
            bytes = rest;
            if u64::from(current.hasher.filled) == CHUNK_BYTES {
                let next = current.end();
                self.close();
                self.current = Some(Current::new(file, next, self.seals));
            }
        }
    }

    fn close(&mut self) {
        if let Some(current) = self.current.take()
            && current.hasher.filled > 0
        {
            self.ends.insert(current.file, current.end());
            self.done.insert((current.file, current.start), current.hasher.record());
        }
    }

    fn get(&self, file: CacheFile, start: u64, filled: u32) -> Option<Record> {
        if let Some(current) = &self.current
            && (current.file, current.start, current.hasher.filled) == (file, start, filled)
        {
            return Some(current.hasher.record());
        }
        self.done.get(&(file, start)).filter(|record| record.filled == filled).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Writes of any length into two files, in order or not: what is known is never wrong.
        #[test]
        fn a_known_hash_is_that_of_the_bytes_in_the_file(
            writes in prop::collection::vec((any::<bool>(), 0..600_000usize, 1..400_000usize, any::<u8>()), 1..8),
            is_in_order in any::<bool>(),
        ) {
            let mut hashes = SequentialHashes::new(true);
            let mut files = [Vec::new(), Vec::new()];
            for (is_member, at, length, byte) in writes {
                let file = &mut files[usize::from(is_member)];
                let at = if is_in_order { file.len() } else { at };
                file.resize(file.len().max(at + length), 0);
                file[at..at + length].fill(byte);
                hashes.update(name(is_member), at as u64, &vec![byte; length]);
            }
            for (is_member, file) in [(false, &files[0]), (true, &files[1])] {
                for start in (0..file.len()).step_by(CHUNK_BYTES as usize) {
                    let end = file.len().min(start + CHUNK_BYTES as usize);
                    let filled = (end - start) as u32;
                    if let Some(record) = hashes.get(name(is_member), start as u64, filled) {
                        let bytes = &file[start..end];
                        let seal = Some(Seal::blake3(bytes));
                        let checksum = crc32c::crc32c(bytes);
                        prop_assert_eq!(record, Record { filled, checksum, seal, earlier: None });
                    }
                }
            }
        }
    }

    fn name(is_member: bool) -> CacheFile {
        if is_member { CacheFile::Member(0) } else { CacheFile::Stream }
    }

    #[test]
    fn a_pass_in_order_needs_no_reading_back() {
        let bytes = vec![7; 700_000];
        let mut hashes = SequentialHashes::new(true);
        hashes.update(CacheFile::Stream, 0, &bytes[..512]);
        for piece in bytes.chunks(100_001).scan(0, |at, piece| {
            let start = *at;
            *at += piece.len() as u64;
            Some((start, piece))
        }) {
            hashes.update(CacheFile::Member(0), piece.0, piece.1);
        }
        hashes.update(CacheFile::Stream, 700_512, &bytes[..1024]);
        let known = |file, start, filled| hashes.get(file, start, filled).is_some();
        assert!(known(CacheFile::Stream, 0, 512));
        assert!(known(CacheFile::Member(0), 0, 262_144));
        assert!(known(CacheFile::Member(0), 262_144, 262_144));
        assert!(known(CacheFile::Member(0), 524_288, 175_712));
        assert!(known(CacheFile::Stream, 700_512, 1024));
    }
}
