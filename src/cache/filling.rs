//! One chunk that is being filled: its bytes on the way to the disk, or held until they are known to be
//! right. See [`super::append`].

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::append::{Stage, concat};
use super::chunk_states::ChunkState;
use super::chunk_table::{Earlier, Record};
use super::disk::DiskFile;
use super::durable::Change;
use super::page_aligned::page_aligned;
use super::seal::Seal;
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore};
use crate::layer::layout::{CHUNK_BYTES, Placed};

/// A chunk that is being filled, and is owned meanwhile.
pub(super) struct Filling {
    chunk: u32,
    placed: Placed,
    state: ChunkState,
    /// The file that takes its bytes; `None` where the disk takes none.
    target: Option<Target>,
    /// The CRC32C of the bytes so far.
    checksum: u32,
    /// Bytes in the checksum, and in the file or held.
    written: u32,
    /// The seal that the whole chunk must match.
    expected: Option<Seal>,
    /// The bytes that the chunk had before; `None` once as many new bytes have come.
    earlier: Option<Earlier>,
    /// The number of earlier bytes that differ from the new ones. Listeners are told once the new bytes can be
    /// read.
    replaced: u32,
    /// The bytes of a chunk with a seal: none of them is written or shown before all are known to be
    /// right.
    held: Vec<u8>,
    is_recorded: bool,
    /// The bytes of the chunk's start that `warm` has promised.
    promised: u32,
}

/// The file that takes the bytes.
struct Target {
    file: Arc<DiskFile>,
    /// Keeps the layer marked as in use.
    _change: Change,
}

/// The outcome of bytes for a chunk that is being filled.
pub(super) enum Filled {
    /// More are missing; so many can be read.
    Going(u32),
    /// All of it can be read.
    Complete(u32),
    /// The disk did not take them.
    Refused { start: u32, bytes: Bytes },
}

/// The bytes that a chunk may take.
enum Expected {
    /// Any bytes: the layer is not confirmed.
    Anything,
    /// Bytes that match this seal.
    Sealed(Seal),
    /// None: the seal is lost, and programs read the file without kitfs.
    NothingWritten,
}

impl LayerStore {
    /// Takes a chunk over, to append bytes from `offset` on.
    pub(super) fn begin(
        self: &Arc<Self>,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        offset: u32,
    ) -> Result<Stage, CacheError> {
        let state = ready.chunks.claim_waiting(chunk);
        let is_full = u64::from(state.filled()) == placed.stream.end - placed.stream.start;
        let begun = match is_full || state.filled() < offset {
            true => Ok(Stage::PassedOver),
            false => self.begin_claimed(ready, chunk, placed, state),
        };
        if !matches!(begun, Ok(Stage::Filling(_))) {
            ready.chunks.release(chunk);
        }
        match begun {
            // Only a chunk without a seal fails here, and its bytes may be served unchecked.
            Err(error) if error.is_about_keeping() => {
                self.shared.note_trouble(&error);
                Ok(Stage::Unkept)
            }
            begun => begun,
        }
    }

    fn begin_claimed(
        self: &Arc<Self>,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        state: ChunkState,
    ) -> Result<Stage, CacheError> {
        let expected = match self.expected(ready, chunk, placed, state) {
            Expected::Anything => None,
            Expected::Sealed(seal) => Some(seal),
            Expected::NothingWritten => return Ok(Stage::Unkept),
        };
        let target = match self.shared.may_write() && self.offer_tables(ready) {
            true => self.target(placed),
            false => None,
        };
        if target.is_none() && expected.is_none() {
            return Ok(Stage::Unkept);
        }
        let record = match state.filled() {
            // Without a record, nothing is known of earlier bytes.
            0 => self.record(ready, chunk).unwrap_or_default(),
            _ => match self.checked_prefix(ready, chunk, placed, state)? {
                Some(record) => record,
                None => return Ok(Stage::PassedOver),
            },
        };
        let checksum = if state.filled() > 0 { record.checksum } else { 0 };
        let length = (placed.stream.end - placed.stream.start) as usize;
        Ok(Stage::Filling(Box::new(Filling {
            chunk,
            placed: placed.clone(),
            state,
            target,
            checksum,
            written: state.filled(),
            held: Vec::with_capacity(if expected.is_some() { length } else { 0 }),
            expected,
            earlier: record.earlier,
            replaced: 0,
            is_recorded: false,
            promised: if state.filled() > 0 && self.known.is_warmed() { state.filled() } else { 0 },
        })))
    }

    /// The file that a chunk's bytes go to; `None` where the disk does not take them.
    fn target(self: &Arc<Self>, placed: &Placed) -> Option<Target> {
        let open = || {
            let change = self.change(Some(placed.file))?;
            // Without its record the chunk would be lost when it is complete.
            self.table()?;
            Ok(Target { file: self.file(placed.file, true)?, _change: change })
        };
        let opened = self.shared.with_room(CHUNK_BYTES, open);
        opened.inspect_err(|error| self.shared.note_trouble(error)).ok()
    }

    /// The bytes that a chunk may take. If its seal is lost, the layer must be confirmed again.
    fn expected(&self, ready: &Ready, chunk: u32, placed: &Placed, state: ChunkState) -> Expected {
        let is_confirmed = self.state() == LayerState::Confirmed;
        // A file that programs read without kitfs gets no unchecked bytes, in any state of the layer.
        if !is_confirmed && !self.is_handed_out(placed.file) {
            return Expected::Anything;
        }
        // A seal describes a whole chunk, so a chunk that has some bytes has none.
        let is_empty = state.filled() == 0;
        let record = self.record(ready, chunk).unwrap_or_default();
        let seal = record.seal.filter(|seal| is_empty && seal.is_of(self.part(ready, placed)));
        match seal {
            Some(seal) => Expected::Sealed(seal),
            None => {
                self.unconfirm(ready.contents.layout.stream_bytes());
                match self.is_held(placed.file, &mut self.pins.lock()) {
                    true => Expected::NothingWritten,
                    false => Expected::Anything,
                }
            }
        }
    }

    /// Compares a chunk's first bytes with their record, and returns the record. Drops bytes that differ, and
    /// returns `None`.
    fn checked_prefix(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        state: ChunkState,
    ) -> Result<Option<Record>, CacheError> {
        let mut prefix = page_aligned(state.filled() as usize);
        let is_there = self.read_file(placed, 0, &mut prefix)?;
        let record = self.record(ready, chunk)?;
        if is_there && record.matches(&prefix) {
            return Ok(Some(record));
        }
        let (bytes, checksum) = (record.filled, record.checksum);
        let before = (bytes > 0).then_some(Earlier { bytes, checksum });
        let earlier = record.earlier.or(before);
        self.put_record(ready, chunk, &Record { earlier, ..Record::default() })?;
        ready.chunks.publish(chunk, state.emptied());
        self.emptied.fetch_add(1, Ordering::SeqCst);
        if let Ok(file) = self.file(placed.file, false) {
            self.take_back(&file, placed, 0, u64::from(state.filled()));
        }
        self.count_gone(u64::from(state.filled()));
        let layer = self.key().digest;
        tracing::warn!(%layer, chunk, "bytes on the local disk changed: dropped, to be fetched again");
        Ok(None)
    }

    /// Takes pieces that start at `offset` in the chunk.
    pub(super) fn fill(
        self: &Arc<Self>,
        ready: &Ready,
        filling: &mut Filling,
        offset: u32,
        pieces: &[IoSlice<'_>],
    ) -> Result<Filled, CacheError> {
        let length = (filling.placed.stream.end - filling.placed.stream.start) as u32;
        let bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let end = u64::from(offset) + bytes;
        if offset > filling.written || end > u64::from(length) {
            let (layer, chunk, written) = (self.key().digest, filling.chunk, filling.written);
            return Err(CacheError::Gap { layer, chunk, written, start: offset.into(), end });
        }
        let known = u64::from(filling.written - offset);
        if known < bytes {
            let mut pieces = pieces.to_vec();
            let mut pieces = &mut pieces[..];
            IoSlice::advance_slices(&mut pieces, known as usize);
            if let Err(error) = self.take(ready, filling, pieces) {
                return self.refused(error, filling.written, || concat(pieces));
            }
        }
        match filling.written == length {
            true => self.complete(ready, filling),
            false => Ok(Filled::Going(filling.state.filled())),
        }
    }

    /// Writes new bytes of a chunk, or holds them.
    fn take(
        self: &Arc<Self>,
        ready: &Ready,
        filling: &mut Filling,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), CacheError> {
        let is_held = filling.expected.is_some();
        // Touch first, so that room is not made by evicting the neighbours, which are as new.
        ready.chunks.touch(filling.chunk, self.shared.budget.tick());
        if !is_held {
            self.write_at(filling, filling.written, pieces)?;
        }
        for piece in pieces {
            filling.count(piece);
            if is_held {
                filling.held.extend_from_slice(piece);
            }
        }
        if !is_held {
            self.show(ready, filling);
        }
        Ok(())
    }

    /// Records and shows a chunk that has all its bytes, unless they do not match the seal.
    fn complete(
        self: &Arc<Self>,
        ready: &Ready,
        filling: &mut Filling,
    ) -> Result<Filled, CacheError> {
        let kept = match &filling.expected {
            None => self.record_filled(ready, filling),
            Some(seal) if !seal.matches(&filling.held, self.part(ready, &filling.placed)) => {
                let (layer, chunk) = (self.key().digest, filling.chunk);
                return Err(CacheError::Changed { layer, chunk });
            }
            Some(_) if filling.target.is_none() => {
                let bytes = std::mem::take(&mut filling.held).into();
                return Ok(Filled::Refused { start: 0, bytes });
            }
            Some(_) => self.write_held(ready, filling),
        };
        if let Err(error) = kept {
            let held = std::mem::take(&mut filling.held);
            // Bytes without a seal are shown already. They go when the chunk is given up without a record.
            return self.refused(error, 0, || held.into());
        }
        filling.is_recorded = true;
        self.show(ready, filling);
        self.shared.note_kept();
        Ok(Filled::Complete(filling.written))
    }

    /// Writes all of a chunk that was held, and its record.
    fn write_held(self: &Arc<Self>, ready: &Ready, filling: &Filling) -> Result<(), CacheError> {
        self.write_at(filling, 0, &[IoSlice::new(&filling.held)])?;
        let recorded = self.record_filled(ready, filling);
        if recorded.is_err()
            && let Some(target) = &filling.target
        {
            let bytes = filling.held.len() as u64;
            self.take_back(&target.file, &filling.placed, 0, bytes);
            self.count_gone(bytes);
        }
        recorded
    }

    /// Hands bytes back that were not kept, if nothing else is wrong.
    fn refused(
        &self,
        error: CacheError,
        start: u32,
        bytes: impl FnOnce() -> Bytes,
    ) -> Result<Filled, CacheError> {
        if !error.is_about_keeping() {
            return Err(error);
        }
        self.shared.note_trouble(&error);
        Ok(Filled::Refused { start, bytes: bytes() })
    }

    /// Lets go of a chunk. The bytes that readers may have seen stay, if they can be recorded.
    pub(super) fn give_up(self: &Arc<Self>, ready: &Ready, mut filling: Filling) {
        let shown = filling.state.filled();
        let is_recorded = filling.is_recorded
            || shown == 0
            || filling.expected.is_none() && self.record_filled(ready, &filling).is_ok();
        if !is_recorded {
            // Without a record nobody can tell later whether these bytes are right.
            filling.state = filling.state.emptied();
            ready.chunks.publish(filling.chunk, filling.state);
            self.emptied.fetch_add(1, Ordering::SeqCst);
            self.count_gone(u64::from(shown));
            if let Some(target) = &filling.target {
                self.take_back(&target.file, &filling.placed, 0, u64::from(shown));
            }
        }
        ready.chunks.release(filling.chunk);
    }

    /// Writes pieces from the byte `offset` of a chunk on, and counts them as resident. Where that
    /// fails, none of them stays.
    fn write_at(
        self: &Arc<Self>,
        filling: &Filling,
        offset: u32,
        pieces: &[IoSlice<'_>],
    ) -> Result<(), CacheError> {
        let Some(target) = &filling.target else {
            let path = self.place(filling.placed.file).path();
            return Err(CacheError::other("write", &path, "the disk has just refused bytes"));
        };
        let at = filling.placed.file_offset + u64::from(offset);
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let reserved = self.shared.reserve(bytes)?;
        let written = self.shared.with_room(bytes, || target.file.write_pieces_at(pieces, at));
        if let Err(error) = written {
            self.take_back(&target.file, &filling.placed, offset, bytes);
            return Err(error);
        }
        self.known.resident_bytes.fetch_add(bytes, Ordering::Relaxed);
        reserved.keep();
        Ok(())
    }

    /// Makes a hole of bytes that no record describes. In a held file the bytes stay, and the next fetched bytes
    /// overwrite them.
    fn take_back(&self, file: &DiskFile, placed: &Placed, offset: u32, bytes: u64) {
        if !self.is_held(placed.file, &mut self.pins.lock()) {
            let _ = file.punch_hole(placed.file_offset + u64::from(offset), bytes);
        }
    }

    /// Writes the record of the chunk's bytes, with their checksum.
    ///
    /// The record replaces that of the chunk's start. If `warm` promised the start, the bytes are synced first:
    /// after a power cut there is one of the two records, and the bytes of both.
    fn record_filled(self: &Arc<Self>, ready: &Ready, filling: &Filling) -> Result<(), CacheError> {
        let Filling { chunk, written, checksum, expected, earlier, promised, target, .. } = filling;
        if *promised > 0
            && promised < written
            && let Some(target) = target
        {
            target.file.sync()?;
        }
        let (filled, checksum, seal) = (*written, *checksum, *expected);
        let record = Record { filled, checksum, seal, earlier: *earlier };
        self.shared.with_room(CHUNK_BYTES, || self.put_record(ready, *chunk, &record))
    }

    /// Lets readers see what was written.
    fn show(&self, ready: &Ready, filling: &mut Filling) {
        filling.state = filling.state.with_checked(filling.written);
        ready.chunks.publish(filling.chunk, filling.state);
        match std::mem::take(&mut filling.replaced) {
            0 => {}
            bytes => self.tell_replaced(filling.placed.stream.start.range(bytes.into())),
        }
    }
}

impl Filling {
    /// Counts bytes that came, and compares them with those that were here before.
    fn count(&mut self, bytes: &[u8]) {
        let missing = self.earlier.map_or(0, |earlier| earlier.bytes.saturating_sub(self.written));
        let (first, rest) = bytes.split_at(bytes.len().min(missing as usize));
        self.checksum = crc32c::crc32c_append(self.checksum, first);
        self.written += first.len() as u32;
        if let Some(earlier) = self.earlier.take_if(|earlier| earlier.bytes <= self.written)
            && earlier.checksum != self.checksum
        {
            self.replaced = earlier.bytes;
        }
        self.checksum = crc32c::crc32c_append(self.checksum, rest);
        self.written += rest.len() as u32;
    }
}
