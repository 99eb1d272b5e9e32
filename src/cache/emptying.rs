//! Taking bytes away: evicting chunks, dropping those the disk changed, and pins against it.
//!
//! In this order, so that neither a reader nor a crash takes a hole for content: no reader sees
//! the chunk as resident any more; its record is cleared; its bytes are given back.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunk_states::ChunkState;
use super::chunk_table::Record;
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore, files};
use crate::layer::layout::Placed;
use crate::layer::{CacheFile, ChunkId};

/// Keeps a big member's resident chunks from being evicted while it lives.
pub struct MemberPin {
    store: Arc<LayerStore>,
    index: u32,
}

impl LayerStore {
    /// Empties a chunk, unless somebody owns it, it is pinned, or it is not in the state `seen` any
    /// more. Returns how many bytes went.
    pub(super) fn empty(
        &self,
        ready: &Ready,
        chunk: u32,
        seen: Option<ChunkState>,
    ) -> Result<u64, CacheError> {
        let placed = ready.contents.layout.chunk(ChunkId(chunk));
        let Some(state) = self.claim_and_empty(ready, chunk, &placed, seen) else { return Ok(0) };
        let emptied = self.give_back(ready, chunk, &placed, state.filled());
        self.known.resident_bytes.fetch_sub(u64::from(state.filled()), Ordering::Relaxed);
        self.shared.budget.subtract(u64::from(state.filled()));
        ready.chunks.release(chunk);
        emptied.map(|()| u64::from(state.filled()))
    }

    /// From here on no reader takes the chunk's bytes for resident; its old state.
    fn claim_and_empty(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        seen: Option<ChunkState>,
    ) -> Option<ChunkState> {
        // A member is pinned under the same lock: who pins sees the chunk resident and keeps it,
        // or sees it empty.
        let pins = self.pins.lock();
        if seen.is_none()
            && let CacheFile::Member(index) = placed.file
            && pins.contains_key(&index)
        {
            return None;
        }
        let state = ready.chunks.claim(chunk)?;
        let is_other = seen
            .is_some_and(|seen| !seen.is_same_generation(state) || seen.filled() != state.filled());
        if state.filled() == 0 || is_other {
            ready.chunks.release(chunk);
            return None;
        }
        ready.chunks.publish(chunk, state.emptied());
        self.emptied.fetch_add(1, Ordering::SeqCst);
        Some(state)
    }

    /// Gives the file's bytes of an emptied chunk back to the file system.
    fn give_back(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        filled: u32,
    ) -> Result<(), CacheError> {
        let full = ready.contents.layout.chunk(ChunkId(chunk)).stream;
        let record = self.record(chunk)?;
        let is_full = u64::from(record.filled) == full.end - full.start;
        // What comes back to a confirmed layer must be what was confirmed.
        let keep = is_full && self.state() == LayerState::Confirmed;
        let left = if keep { Record { filled: 0, ..record } } else { Record::default() };
        self.put_record(chunk, &left)?;
        match self.file(placed.file, false) {
            Ok(file) => files::punch_hole(&file, placed.file_offset, u64::from(filled))
                .map_err(CacheError::io("free space in", &self.path(placed.file))),
            Err(CacheError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => Ok(()),
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
            freed += self.empty(ready, chunk, None)?;
        }
        Ok(freed)
    }

    /// Keeps the resident chunks of a big member from being evicted until the pin is dropped.
    pub fn pin_member(self: &Arc<Self>, index: u32) -> MemberPin {
        *self.pins.lock().entry(index).or_default() += 1;
        MemberPin { store: self.clone(), index }
    }
}

impl Drop for MemberPin {
    fn drop(&mut self) {
        let mut pins = self.store.pins.lock();
        if let Some(count) = pins.get_mut(&self.index) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.index);
            }
        }
    }
}
