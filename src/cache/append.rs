//! Filling chunks: bytes are written and checksummed as they arrive, and recorded chunk by chunk.
//!
//! An [`Appender`] owns the chunk it is filling and nothing else, so it may wait for a chunk that
//! another one fills, and is never waited for by it. The order: bytes, state in memory, and when
//! the chunk is complete or given up its record; so a reader sees only what is in the file, and a
//! crash at worst forgets the chunks that were being filled.
//!
//! A chunk of a confirmed layer that comes back after an eviction is shown to readers when it is
//! complete and comes to its seal, not before.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk_states::ChunkState;
use super::chunk_table::Record;
use super::disk::DiskFile;
use super::durable::Change;
use super::page_aligned::page_aligned;
use super::seal::Seal;
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore};
use crate::layer::ChunkId;
use crate::layer::layout::Placed;

/// Writes bytes of the stream into chunks, one chunk at a time. Dropping it gives the last one up.
pub struct Appender {
    store: Arc<LayerStore>,
    filling: Option<Filling>,
    /// The chunk of which nothing is taken, because it was complete when its first bytes came, or
    /// had lost the start that they were to follow. Stays so until the next chunk: it may be
    /// evicted in between.
    passed_over: Option<u32>,
}

/// The chunk being filled.
struct Filling {
    chunk: u32,
    placed: Placed,
    state: ChunkState,
    file: Arc<DiskFile>,
    /// The CRC32C of the bytes so far.
    checksum: u32,
    /// Bytes in the checksum, and in the file or held back.
    written: u32,
    /// What the chunk of a confirmed layer must come to.
    expected: Option<Seal>,
    /// Keeps the layer marked as in use.
    _change: Change,
    /// Bytes that are expected to be others than they may turn out to be: they are not written
    /// before they are known to be right, because programs may read the file by passthrough.
    held: Vec<u8>,
}

impl LayerStore {
    /// Starts to fill chunks.
    pub fn appender(self: &Arc<Self>) -> Appender {
        Appender { store: self.clone(), filling: None, passed_over: None }
    }
}

impl Appender {
    /// Writes the bytes of `pieces`, which follow one another, start `offset` bytes behind the
    /// chunk's start and do not pass its end. What the chunk has already is passed over, and so is
    /// all of a chunk that was evicted after it was decided to fetch only its end. Returns how many
    /// bytes from the chunk's start can be read now.
    ///
    /// # Errors
    /// [`CacheError::Changed`] when a chunk of a confirmed layer comes with other bytes;
    /// [`CacheError::Io`] when the file cannot be written, or `bytes` do not follow those before
    /// (a gap, which the caller must never leave). Nothing wrong is kept then.
    pub fn append(
        &mut self,
        chunk: ChunkId,
        offset: u32,
        pieces: &[IoSlice<'_>],
    ) -> Result<u32, CacheError> {
        self.store.refuse_poisoned()?;
        let store = self.store.clone();
        let Some(ready) = store.ready.get() else {
            return Err(CacheError::other(
                "append to",
                &store.folder.path(),
                "its contents are unknown",
            ));
        };
        let full = ready.contents.layout.chunk(chunk).stream;
        let length = (full.end - full.start) as u32;
        if self.filling.as_ref().is_none_or(|filling| filling.chunk != chunk.0) {
            if self.passed_over == Some(chunk.0) {
                return Ok(ready.chunks.load(chunk.0).filled());
            }
            self.give_up();
            self.filling = self.begin(ready, chunk, offset)?;
            self.passed_over = self.filling.is_none().then_some(chunk.0);
        }
        let Some(filling) = &mut self.filling else {
            return Ok(ready.chunks.load(chunk.0).filled());
        };
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let end = u64::from(offset) + bytes;
        if offset > filling.written || end > u64::from(length) {
            let why = format!(
                "bytes {offset}..{end} do not follow the {} of {length} that chunk {} has",
                filling.written, chunk.0
            );
            return Err(CacheError::other(
                "append to",
                &store.place(filling.placed.file).path(),
                why,
            ));
        }
        let known = u64::from(filling.written - offset);
        if known < bytes {
            let mut pieces = pieces.to_vec();
            let mut pieces = &mut pieces[..];
            IoSlice::advance_slices(&mut pieces, known as usize);
            store.write_pieces(ready, filling, pieces)?;
        }
        if filling.written == length {
            return self.complete(ready);
        }
        Ok(filling.state.filled())
    }

    /// Takes a chunk over; `None` where it is complete, or does not reach to `offset` any more.
    fn begin(
        &self,
        ready: &Ready,
        chunk: ChunkId,
        offset: u32,
    ) -> Result<Option<Filling>, CacheError> {
        let placed = ready.contents.layout.chunk(chunk);
        let state = ready.chunks.claim_waiting(chunk.0);
        let begun = match state.filled() < offset {
            true => Ok(None),
            false => self.store.begin_claimed(ready, chunk.0, placed, state),
        };
        if !matches!(begun, Ok(Some(_))) {
            ready.chunks.release(chunk.0);
        }
        begun
    }

    /// The chunk has all its bytes: shows them, unless they are not those that were confirmed.
    fn complete(&mut self, ready: &Ready) -> Result<u32, CacheError> {
        let Some(filling) = &mut self.filling else { return Ok(0) };
        let (chunk, written) = (filling.chunk, filling.written);
        let expected = filling.expected;
        if let Some(seal) = &expected {
            if !seal.matches(&filling.held, self.store.part(ready, &filling.placed)) {
                self.give_up();
                return Err(CacheError::Changed { layer: self.store.key().digest, chunk });
            }
            self.store.write_at(filling, 0, &[IoSlice::new(&filling.held)])?;
            filling.expected = None;
        }
        self.store.record_filled(filling, expected)?;
        if expected.is_some() {
            self.store.show(ready, filling);
        }
        self.passed_over = Some(chunk);
        self.filling = None;
        ready.chunks.release(chunk);
        Ok(written)
    }

    /// Lets go of a chunk that is not complete.
    fn give_up(&mut self) {
        let Some(mut filling) = self.filling.take() else { return };
        let Some(ready) = self.store.ready.get() else { return };
        let shown = filling.state.filled();
        // Without a record nobody can tell later whether these bytes are right.
        let is_recorded = shown == 0
            || filling.expected.is_none() && self.store.record_filled(&filling, None).is_ok();
        if !is_recorded {
            filling.state = filling.state.emptied();
            ready.chunks.publish(filling.chunk, filling.state);
            self.store.emptied.fetch_add(1, Ordering::SeqCst);
        }
        let unshown = match filling.expected {
            Some(_) => 0,
            None => filling.written - filling.state.filled(),
        };
        if unshown > 0 {
            let (file, shown) = (&filling.file, filling.state.filled());
            self.store.take_back(file, &filling.placed, shown, u64::from(unshown));
            self.store.count_gone(u64::from(unshown));
        }
        ready.chunks.release(filling.chunk);
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl LayerStore {
    /// Prepares a chunk that the caller owns for more bytes; `None` where it is complete.
    fn begin_claimed(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: Placed,
        state: ChunkState,
    ) -> Result<Option<Filling>, CacheError> {
        let length = placed.stream.end - placed.stream.start;
        if u64::from(state.filled()) == length {
            return Ok(None);
        }
        let _change = self.change(Some(placed.file))?;
        let (mut checksum, mut expected) = (0, None);
        if state.filled() > 0 {
            let mut prefix = page_aligned(state.filled() as usize);
            let is_there = self.read_file(&placed, 0, &mut prefix)?;
            let record = self.record(chunk)?;
            if !is_there || !record.matches(&prefix) {
                self.put_record(chunk, &Record::default())?;
                ready.chunks.publish(chunk, state.emptied());
                self.emptied.fetch_add(1, Ordering::SeqCst);
                if let Ok(file) = self.file(placed.file, false) {
                    self.take_back(&file, &placed, 0, u64::from(state.filled()));
                }
                self.count_gone(u64::from(state.filled()));
                let why = "its bytes changed on the local disk; they are dropped, read again";
                return Err(CacheError::other("append to", &self.place(placed.file).path(), why));
            }
            checksum = record.checksum;
        }
        // What programs read past kitfs is not written unchecked, whatever the layer's state.
        if self.state() == LayerState::Confirmed || self.is_handed_out(placed.file) {
            // A seal is of a whole chunk: of one that has its start there is none.
            expected = if state.filled() == 0 { self.record(chunk)?.seal } else { None };
            expected = expected.filter(|seal| seal.is_of(self.part(ready, &placed)));
            if expected.is_none() {
                self.refill_without_seal(ready, &placed)?;
            }
        }
        let written = state.filled();
        let file = self.file(placed.file, true)?;
        let held = Vec::with_capacity(if expected.is_some() { length as usize } else { 0 });
        Ok(Some(Filling { chunk, placed, state, file, checksum, written, expected, _change, held }))
    }

    /// What it takes to fill a chunk of a confirmed layer of which nobody knows what it must come
    /// to: the layer has to be confirmed again.
    ///
    /// # Errors
    /// Where that cannot be while it is in use.
    fn refill_without_seal(&self, ready: &Ready, placed: &Placed) -> Result<(), CacheError> {
        let refuse =
            |why: &str| Err(CacheError::other("append to", &self.place(placed.file).path(), why));
        if self.key().encoding.is_compressed() {
            return refuse(
                "what it must come to is lost, and a compressed layer is verified only as a whole: \
                 unmount what uses it and mount it again",
            );
        }
        if self.is_held(placed.file, &mut self.pins.lock()) {
            return refuse(
                "what it must come to is lost, and programs read it past kitfs, unverified: end \
                 them, and read again",
            );
        }
        self.unconfirm(ready.contents.layout.stream_bytes())
    }

    fn write_pieces(
        &self,
        ready: &Ready,
        filling: &mut Filling,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), CacheError> {
        if filling.expected.is_none() {
            self.write_at(filling, filling.written, pieces)?;
        }
        for piece in pieces {
            filling.checksum = crc32c::crc32c_append(filling.checksum, piece);
            filling.written += piece.len() as u32;
            if filling.expected.is_some() {
                filling.held.extend_from_slice(piece);
            }
        }
        ready.chunks.touch(filling.chunk, self.shared.budget.tick());
        if filling.expected.is_none() {
            self.show(ready, filling);
        }
        Ok(())
    }

    /// Writes pieces from the byte `offset` of a chunk on, and counts them as resident. Where that
    /// fails, none of them stays.
    fn write_at(
        &self,
        filling: &Filling,
        offset: u32,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), CacheError> {
        let at = filling.placed.file_offset + u64::from(offset);
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        if let Err(error) = filling.file.write_pieces_at(pieces, at) {
            self.take_back(&filling.file, &filling.placed, offset, bytes);
            return Err(error);
        }
        self.known.resident_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.budget.add(bytes);
        Ok(())
    }

    /// Gives the file system back what it may have of bytes that no record speaks of. Those of a
    /// file that others read stay, and are overwritten by what is fetched next.
    fn take_back(&self, file: &DiskFile, placed: &Placed, offset: u32, bytes: u64) {
        if !self.is_held(placed.file, &mut self.pins.lock()) {
            let _ = file.punch_hole(placed.file_offset + u64::from(offset), bytes);
        }
    }

    /// Records what was written, and what it must be when it is read again.
    fn record_filled(&self, filling: &Filling, seal: Option<Seal>) -> Result<(), CacheError> {
        let record = Record { filled: filling.written, checksum: filling.checksum, seal };
        self.put_record(filling.chunk, &record)
    }

    /// Lets readers see what was written.
    fn show(&self, ready: &Ready, filling: &mut Filling) {
        filling.state = filling.state.with_checked(filling.written);
        ready.chunks.publish(filling.chunk, filling.state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, CacheConfig, LayerKey};
    use crate::layer::layout::CHUNK_BYTES;
    use crate::layer::{RangeSet, Toc};
    use crate::oci::{Compression, Digest, Encoding, Format};

    /// Of a confirmed layer, whose bytes are held back until they are known to be right, and of one
    /// that is not.
    #[test]
    fn a_chunk_that_cannot_be_written_is_not_there_and_not_counted() {
        for is_confirmed in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
            let bytes = vec![7; 2 * CHUNK_BYTES as usize];
            let (first, second) = bytes.split_at(CHUNK_BYTES as usize);
            let encoding = Encoding { format: Format::Raw, compression: Compression::None };
            let key = LayerKey { digest: Digest::of(&bytes), encoding };
            let store = cache.layer(key, bytes.len() as u64).unwrap();
            let toc = Toc::raw(bytes.len() as u64);
            store.stage().unwrap().finish(toc, &RangeSet::new(), None).unwrap();
            store.appender().append(ChunkId(0), 0, &[IoSlice::new(first)]).unwrap();
            if is_confirmed {
                store.appender().append(ChunkId(1), 0, &[IoSlice::new(second)]).unwrap();
                assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
                store.empty(store.ready.get().unwrap(), 1, None).unwrap();
            }
            let mut appender = store.appender();
            appender.append(ChunkId(1), 0, &[IoSlice::new(&second[..1000])]).unwrap();
            let filling = appender.filling.as_mut().unwrap();
            // The descriptor does not take bytes, as a full disk does not.
            filling.file = Arc::new(store.place(filling.placed.file).open_to_read().unwrap());
            let refused = appender.append(ChunkId(1), 1000, &[IoSlice::new(&second[1000..])]);
            assert!(matches!(refused, Err(CacheError::Io { action: "write", .. })), "{refused:?}");
            drop(appender);
            let left = if is_confirmed { 0 } else { 1000 };
            assert_eq!(store.filled(ChunkId(1)), left);
            assert_eq!(cache.resident_bytes(), CHUNK_BYTES + u64::from(left));
            store.appender().append(ChunkId(1), 0, &[IoSlice::new(second)]).unwrap();
            assert_eq!(cache.resident_bytes(), 2 * CHUNK_BYTES);
            assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
        }
    }
}
