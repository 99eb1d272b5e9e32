//! Emptying chunks: evicting them, dropping wrong ones, and pins that keep members from eviction.
//!
//! A file is held while it is pinned, or while a program reads it without this process (`backing`). No chunk of
//! a held file is evicted. A chunk that the disk changed is dropped, but without a hole: readers would
//! take the zeros for content. New bytes are written over the chunk; until then its old bytes lie on the
//! disk uncounted.
//!
//! ```text
//! pin_member       dropped, never handed out
//! ---------> held -------------------------------------------------> gone
//!             ^ '--dropped, handed out--> lingering --nobody has it open--^
//!             '--------pin_member------------'
//! ```
//!
//! The order of the steps keeps readers and crashes from taking a hole for content: the chunk stops being resident,
//! its record is cleared, its bytes are given back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::backing::{chunks_of_member, piece_of};
use super::chunk_states::ChunkState;
use super::chunk_table::{Earlier, Record};
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore};
use crate::layer::layout::Placed;
use crate::layer::{CacheFile, ChunkId};

/// Why a chunk is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Its room is needed.
    Evicted,
    /// Its bytes in this state do not match its record, or cannot be read.
    Changed(ChunkState),
    /// The digest of its layer is wrong, and any chunk may be the reason.
    Doubted,
}

/// A chunk that was just emptied.
struct Emptied {
    /// Its state before.
    state: ChunkState,
    /// Whether its file must keep its bytes.
    is_held: bool,
}

/// The pinned members of a layer.
#[derive(Default)]
pub(super) struct Pins(HashMap<u32, Pinned>);

struct Pinned {
    /// Pins that are alive; with none of them, only a map may have the file.
    count: u32,
    /// The member's bytes, as they were counted.
    bytes: u64,
    /// Whether the file may be open or mapped by others.
    is_handed_out: bool,
}

/// Keeps a big member's resident chunks from being evicted while it lives.
pub struct MemberPin {
    store: Arc<LayerStore>,
    index: u32,
}

impl LayerStore {
    /// Empties a chunk. Returns how many bytes went.
    ///
    /// A chunk that another thread owns stays, unless it is doubted: then this waits for the owner. A held
    /// chunk stays unless it has changed. A changed one stays if it is in another state by now.
    ///
    /// # Errors
    /// When the disk does not take the change. A chunk that was to be evicted is still resident then. One
    /// whose bytes are wrong is empty for this process all the same.
    pub(super) fn empty(&self, ready: &Ready, chunk: u32, why: Why) -> Result<u64, CacheError> {
        if ready.chunks.load(chunk).filled() == 0 {
            return Ok(0);
        }
        let placed = ready.contents.layout.chunk(ChunkId(chunk));
        let is_evicted = why == Why::Evicted;
        let change = self.change(Some(placed.file));
        if is_evicted && let Err(error) = change {
            return Err(error);
        }
        let Some(emptied) = self.claim_and_empty(ready, chunk, &placed, why) else { return Ok(0) };
        let filled = emptied.state.filled();
        let cleared = self.clear_record(ready, chunk);
        if is_evicted && let Err(error) = cleared {
            // The bytes are still there, and the record describes them.
            ready.chunks.publish(chunk, emptied.state.emptied().with_unchecked(filled));
            ready.chunks.release(chunk);
            return Err(error);
        }
        let given_back = self.give_back(&placed, &emptied);
        self.count_gone(u64::from(filled));
        if !emptied.state.is_checked() {
            self.known.changes.no_longer_unchecked(u64::from(filled));
        }
        ready.chunks.release(chunk);
        if matches!(why, Why::Changed(_)) && emptied.state.is_checked() {
            // The bytes were right at the check. Readers may have got changed bytes since.
            self.tell_replaced(placed.stream.start.range(filled.into()));
        }
        change.and(cleared).and(given_back).map(|()| u64::from(filled))
    }

    /// Empties every chunk of a layer whose digest is wrong, except chunks of held files: their layer was confirmed
    /// before. If the disk refuses a change, the chunk is empty for this process, and unconfirmed for the next one.
    pub(super) fn empty_doubted(&self, ready: &Ready) {
        for chunk in 0..ready.chunks.count() {
            if let Err(error) = self.empty(ready, chunk, Why::Doubted) {
                self.shared.note_trouble(&error);
            }
        }
    }

    /// Empties a chunk whose bytes in the state `seen` are wrong or cannot be read. Returns whether it
    /// went. The disk may not take the change: then the next process finds out the same.
    pub(super) fn drop_wrong(&self, ready: &Ready, chunk: u32, seen: ChunkState) -> bool {
        match self.empty(ready, chunk, Why::Changed(seen)) {
            Ok(dropped) => dropped > 0,
            Err(error) => {
                self.shared.note_trouble(&error);
                true
            }
        }
    }

    /// Makes a chunk empty for readers. Returns its old state; `None` if the chunk stays.
    fn claim_and_empty(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        why: Why,
    ) -> Option<Emptied> {
        let waited_for = match why {
            // Wait before taking the lock below, because the owner may need that lock.
            Why::Doubted => Some(ready.chunks.claim_waiting(chunk)),
            Why::Evicted | Why::Changed(_) => None,
        };
        // A member is pinned under the same lock. So a pin keeps the resident chunk, or finds it empty.
        let mut pins = self.pins.lock();
        let is_held = self.is_held(placed.file, &mut pins);
        if why == Why::Evicted && is_held {
            return None;
        }
        let state = match waited_for {
            Some(state) => state,
            None => ready.chunks.claim(chunk)?,
        };
        let stays = match why {
            Why::Evicted => false,
            Why::Changed(seen) => {
                !seen.is_same_generation(state) || seen.filled() != state.filled()
            }
            Why::Doubted => is_held,
        };
        if state.filled() == 0 || stays {
            ready.chunks.release(chunk);
            return None;
        }
        ready.chunks.publish(chunk, state.emptied());
        self.emptied.fetch_add(1, Ordering::SeqCst);
        if is_held {
            tracing::error!(layer = %self.key().digest, chunk, file = %self.place(placed.file),
                "bytes on the local disk changed in a file that programs have open by passthrough: \
                 they may have read wrong bytes; end them, and read again");
        }
        Some(Emptied { state, is_held })
    }

    /// Clears the record of an emptied chunk. A confirmed layer keeps the seal. Any other layer keeps the checksum,
    /// because other bytes may come back.
    fn clear_record(&self, ready: &Ready, chunk: u32) -> Result<(), CacheError> {
        let stream = ready.contents.layout.chunk(ChunkId(chunk)).stream;
        let is_confirmed = self.state() == LayerState::Confirmed;
        let cleared = self.record(ready, chunk).and_then(|record| {
            let is_full = u64::from(record.filled) == stream.end - stream.start;
            // A layer that is being confirmed has seals, too. They count once the layer is confirmed.
            let seal = record.seal.filter(|_| is_full && is_confirmed);
            let (bytes, checksum) = (record.filled, record.checksum);
            let earlier = (bytes > 0 && seal.is_none()).then_some(Earlier { bytes, checksum });
            if let Some(earlier) = record.earlier.filter(|_| earlier.is_some()) {
                // The chunk has had two different beginnings, and a record has room for one.
                self.tell_replaced(stream.start.range(earlier.bytes.into()));
            }
            let earlier = earlier.or(record.earlier);
            self.put_record(ready, chunk, &Record { seal, earlier, ..Record::default() })
        });
        match cleared {
            // A removed table has no record to clear.
            Err(error) if error.is_not_found() => Ok(()),
            cleared => cleared,
        }
    }

    /// Gives the file's bytes of an emptied chunk back to the file system.
    fn give_back(&self, placed: &Placed, emptied: &Emptied) -> Result<(), CacheError> {
        if emptied.is_held {
            return Ok(());
        }
        match self.file(placed.file, false) {
            Ok(file) => file.punch_hole(placed.file_offset, emptied.state.filled().into()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Evicts chunks of a group until `wanted` bytes are free; returns how many went.
    pub(super) fn evict_group(&self, group: u32, wanted: u64) -> Result<u64, CacheError> {
        let Some(ready) = self.ready.get() else { return Ok(0) };
        let mut freed = 0;
        for chunk in ready.chunks.group(group) {
            if freed >= wanted {
                break;
            }
            freed += self.empty(ready, chunk, Why::Evicted)?;
        }
        Ok(freed)
    }

    /// Keeps the resident chunks of a big member from being evicted until the pin is dropped.
    pub fn pin_member(self: &Arc<Self>, index: u32) -> MemberPin {
        let mut pins = self.pins.lock();
        // A lingering pin is counted already.
        let pinned = pins.0.entry(index).or_insert_with(|| {
            let piece = self.ready.get().and_then(|ready| piece_of(ready, index));
            let bytes = piece.map_or(0, |piece| piece.stream.end - piece.stream.start);
            self.shared.budget.pin(bytes);
            Pinned { count: 0, bytes, is_handed_out: false }
        });
        pinned.count += 1;
        MemberPin { store: self.clone(), index }
    }

    /// Whether a file is held, so that no hole may be made in it.
    pub(super) fn is_held(&self, file: CacheFile, pins: &mut Pins) -> bool {
        let CacheFile::Member(index) = file else { return false };
        if pins.0.get(&index).is_some_and(|pinned| pinned.count > 0) {
            return true;
        }
        // The lease fails for a missing file, and where there are no leases. Such a file was handed out only if a
        // pin says so.
        let was_handed_out = pins.0.get(&index).is_some_and(|pinned| pinned.is_handed_out);
        let is_held = self.is_open_elsewhere(index).unwrap_or(was_handed_out);
        if !is_held && let Some(pinned) = pins.0.remove(&index) {
            self.shared.budget.unpin(pinned.bytes);
        }
        is_held
    }

    /// Whether this process handed a file to the kernel, and has not yet noticed that the kernel let go of it.
    pub(super) fn is_handed_out(&self, file: CacheFile) -> bool {
        let CacheFile::Member(index) = file else { return false };
        self.pins.lock().0.get(&index).is_some_and(|pinned| pinned.is_handed_out)
    }

    /// Gives up lingering pins of members that no program has open.
    pub(super) fn let_go_of_pins(&self) {
        let mut pins = self.pins.lock();
        let lingering = pins.0.iter().filter(|(_, pinned)| pinned.count == 0);
        for index in lingering.map(|(index, _)| *index).collect::<Vec<_>>() {
            self.is_held(CacheFile::Member(index), &mut pins);
        }
    }

    /// Takes lingering pins out of the account when the layer is closed.
    pub(super) fn forget_pins(&mut self) {
        for pinned in self.pins.get_mut().0.values() {
            self.shared.budget.unpin(pinned.bytes);
        }
    }
}

impl MemberPin {
    /// Marks the member's file as handed out; programs may map it. Returns false if a program already has the file
    /// open: then no lease could tell when the new readers let go. Fails where there are no leases.
    pub(super) fn hand_out(&self) -> Result<bool, CacheError> {
        let mut pins = self.store.pins.lock();
        let Some(pinned) = pins.0.get_mut(&self.index) else { return Ok(false) };
        if !pinned.is_handed_out {
            pinned.is_handed_out = !self.store.is_open_elsewhere(self.index)?;
        }
        Ok(pinned.is_handed_out)
    }

    /// Marks the member's file as handed out by an earlier process.
    pub(super) fn was_handed_out(&self) {
        if let Some(pinned) = self.store.pins.lock().0.get_mut(&self.index) {
            pinned.is_handed_out = true;
        }
    }
}

impl Drop for MemberPin {
    fn drop(&mut self) {
        let store = &self.store;
        let mut pins = store.pins.lock();
        let Some(pinned) = pins.0.get_mut(&self.index) else { return };
        pinned.count -= 1;
        if pinned.count > 0 {
            return;
        }
        // The kernel's reads leave no stamps. Without these stamps the member would be evicted first.
        if pinned.is_handed_out
            && let Some(ready) = store.ready.get()
        {
            let now = store.shared.budget.now();
            chunks_of_member(ready, self.index).for_each(|chunk| ready.chunks.touch(chunk, now));
        }
        if pinned.is_handed_out {
            store.is_held(CacheFile::Member(self.index), &mut pins);
        } else {
            store.shared.budget.unpin(pinned.bytes);
            pins.0.remove(&self.index);
        }
    }
}
