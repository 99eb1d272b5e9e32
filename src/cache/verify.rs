//! Checking whole layers: against the blob's digest once, and against the chunk digests again.
//!
//! ```text
//! unconfirmed --every chunk resident, sha256 right--> confirmed
//!      '------every chunk resident, sha256 wrong--> poisoned --remove_layer--> (gone)
//! ```
//!
//! The bytes of a poisoned layer are removed at once; its meta file stays and says so, over
//! restarts too, until somebody removes the layer.

use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};

use super::files::Durability;
use super::known::remove_content;
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore, Lookup, Verification};
use crate::layer::ChunkId;
use crate::layer::layout::CHUNK_BYTES;
use crate::oci::{Compression, Digest};

impl LayerStore {
    /// Computes the blob's digest over all chunks of a complete, uncompressed layer, and moves the
    /// state to confirmed or poisoned. Chunks the local disk has changed are dropped instead; then,
    /// and when a chunk is evicted meanwhile, the layer stays unconfirmed.
    /// Blocking, about 0.6 s per GiB; gives up, leaving the layer unconfirmed, once `is_wanted` says
    /// no.
    pub fn confirm(&self, is_wanted: &dyn Fn() -> bool) -> Result<LayerState, CacheError> {
        let is_compressed = self.key().encoding.compression != Compression::None;
        let Some(ready) = self.ready.get() else { return Ok(self.state()) };
        if is_compressed || self.state() != LayerState::Unconfirmed {
            return Ok(self.state());
        }
        let before = self.emptied.load(Ordering::SeqCst);
        let Some(got) = self.stream_digest(ready, is_wanted)? else {
            return Ok(LayerState::Unconfirmed);
        };
        if self.emptied.load(Ordering::SeqCst) != before {
            // A chunk went, and may have come back as something else.
            return Ok(LayerState::Unconfirmed);
        }
        let stream_bytes = Some(ready.contents.layout.stream_bytes());
        if got == self.key().digest {
            self.put_state(LayerState::Confirmed, stream_bytes, Durability::Synced)?;
        } else {
            self.put_state(LayerState::Poisoned { got }, stream_bytes, Durability::Synced)?;
            self.remove_poisoned(ready)?;
        }
        Ok(self.state())
    }

    /// The sha256 of the stream; `None` where a byte is not resident, or it is not wanted any more.
    fn stream_digest(
        &self,
        ready: &Ready,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Digest>, CacheError> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        for chunk in 0..ready.chunks.count() {
            if !is_wanted() {
                return Ok(None);
            }
            let placed = ready.contents.layout.chunk(ChunkId(chunk));
            let bytes = &mut buffer[..(placed.stream.end - placed.stream.start) as usize];
            if self.read_chunk(ready, chunk, &placed, 0, bytes)? == Lookup::Miss {
                return Ok(None);
            }
            hasher.update(bytes);
        }
        Ok(Some(Digest::from_sha256(hasher.finalize().into())))
    }

    /// Takes the bytes of a poisoned layer away. Its state is on disk already: whatever stops this
    /// in the middle, nothing of it is read again.
    fn remove_poisoned(&self, ready: &Ready) -> Result<(), CacheError> {
        for chunk in 0..ready.chunks.count() {
            let state = ready.chunks.claim_waiting(chunk);
            ready.chunks.publish(chunk, state.emptied());
            ready.chunks.release(chunk);
        }
        self.count_resident(0);
        self.forget_files();
        remove_content(&self.folder)
    }

    /// Re-checks every resident byte against the recorded chunk digests; what is wrong is dropped.
    pub(super) fn verify(&self) -> Result<Verification, CacheError> {
        let mut found = Verification::default();
        let Some(ready) = self.ready.get() else { return Ok(found) };
        for chunk in 0..ready.chunks.count() {
            let filled = u64::from(ready.chunks.load(chunk).filled());
            if filled > 0 {
                let placed = ready.contents.layout.chunk(ChunkId(chunk));
                found.dropped_chunks += u64::from(self.check(ready, chunk, &placed)?);
                found.checked_bytes += filled;
            }
        }
        Ok(found)
    }
}
