//! Filling chunks: bytes are written and checksummed as they arrive, and recorded chunk by chunk.
//!
//! ```text
//!                     its disk takes bytes           complete: record, shown
//! begin -- claim ------------------------> on disk ---------------------------> done
//!   |                                         |  '--refused--.
//!   '--nothing can be kept--------------> unkept <-----------'  bytes go back to the caller
//! ```
//!
//! An [`Appender`] owns one chunk at a time. So it may wait for the chunk of another appender without a deadlock.
//! The order of the steps: bytes to the file, state in memory, then the record, once the chunk is complete or given
//! up. So a reader sees only bytes that are in the file. A crash at worst forgets the chunks that were being
//! filled.
//!
//! A chunk with a seal (evicted from a confirmed layer) stays in memory until it is complete and matches its seal.
//! Programs may read its file without kitfs (passthrough), so none of its bytes are written earlier.
//!
//! Bytes that the cache cannot keep go back to the caller, who serves its readers from memory. Bytes of a sealed
//! chunk were compared with the seal by then.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use super::filling::{Filled, Filling};
use super::{CacheError, LayerStore};
use crate::layer::ChunkId;

/// The outcome of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// This many bytes from the chunk's start can be read from the cache now.
    Kept(u32),
    /// The cache cannot keep these bytes, and the caller may serve them. They deserve the trust of the layer's
    /// state. For a chunk with a seal they are the whole chunk.
    Unkept {
        /// Their offset in the chunk.
        start: u32,
        /// The bytes.
        bytes: Bytes,
    },
}

/// Writes bytes of the stream into chunks, one chunk at a time. Dropping the appender gives up its last chunk.
pub struct Appender {
    store: Arc<LayerStore>,
    chunk: Option<Current>,
}

/// The chunk that the last bytes belonged to.
struct Current {
    number: u32,
    stage: Stage,
}

/// The treatment of a chunk's bytes.
pub(super) enum Stage {
    /// The bytes are taken.
    Filling(Box<Filling>),
    /// No bytes are taken: the chunk was complete when its first bytes came, or has lost the bytes that these
    /// follow. That lasts until the appender's next chunk, even if this one is evicted meanwhile.
    PassedOver,
    /// The bytes go back to the caller: the cache cannot keep them, and the chunk has no seal.
    Unkept,
}

impl LayerStore {
    /// Starts to fill chunks.
    pub fn appender(self: &Arc<Self>) -> Appender {
        Appender { store: self.clone(), chunk: None }
    }
}

impl Appender {
    /// Writes the bytes of `pieces` in order, from `offset` bytes behind the chunk's start; they must not pass its
    /// end. Makes room for them. Bytes that the chunk already has are passed over. If the chunk was evicted after a
    /// decision to fetch only its end, all bytes are passed over.
    ///
    /// # Errors
    /// [`CacheError::Changed`] when a chunk with a seal comes with other bytes, [`CacheError::Poisoned`],
    /// and [`CacheError::Gap`] when `pieces` do not follow the bytes before them. Nothing wrong is
    /// kept then. A disk that refuses bytes is no error: they are [`Appended::Unkept`].
    pub fn append(
        &mut self,
        chunk: ChunkId,
        offset: u32,
        pieces: &[IoSlice<'_>],
    ) -> Result<Appended, CacheError> {
        self.store.refuse_poisoned()?;
        let store = self.store.clone();
        let Some(ready) = store.ready.get() else {
            let why = "its contents are unknown";
            return Err(CacheError::other("append to", &store.folder.path(), why));
        };
        let placed = ready.contents.layout.chunk(chunk);
        if self.chunk.as_ref().is_none_or(|current| current.number != chunk.0) {
            self.give_up();
            let stage = store.begin(ready, chunk.0, &placed, offset)?;
            self.chunk = Some(Current { number: chunk.0, stage });
        }
        let Some(current) = &mut self.chunk else { return Ok(Appended::Kept(0)) };
        let filling = match &mut current.stage {
            Stage::PassedOver => {
                return Ok(Appended::Kept(ready.chunks.load(chunk.0).filled()));
            }
            Stage::Unkept => {
                return Ok(Appended::Unkept { start: offset, bytes: concat(pieces) });
            }
            Stage::Filling(filling) => filling,
        };
        match store.fill(ready, filling, offset, pieces) {
            Ok(Filled::Going(readable)) => Ok(Appended::Kept(readable)),
            Ok(Filled::Complete(readable)) => {
                self.give_up_as(Stage::PassedOver);
                Ok(Appended::Kept(readable))
            }
            Ok(Filled::Refused { start, bytes }) => {
                self.give_up_as(Stage::Unkept);
                Ok(Appended::Unkept { start, bytes })
            }
            Err(error) => {
                self.give_up();
                Err(error)
            }
        }
    }

    /// Lets go of the chunk.
    fn give_up(&mut self) {
        self.give_up_as(Stage::PassedOver);
        self.chunk = None;
    }

    fn give_up_as(&mut self, stage: Stage) {
        let Some(current) = &mut self.chunk else { return };
        let Some(ready) = self.store.ready.get() else { return };
        if let Stage::Filling(filling) = std::mem::replace(&mut current.stage, stage) {
            self.store.give_up(ready, *filling);
        }
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The bytes of all pieces.
pub(super) fn concat(pieces: &[IoSlice<'_>]) -> Bytes {
    let bytes = pieces.iter().map(|piece| piece.len()).sum();
    let mut all = Vec::with_capacity(bytes);
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all.into()
}
