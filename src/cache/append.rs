//! Filling chunks: bytes are written and checksummed as they arrive, and recorded chunk by chunk.
//!
//! ```text
//!                     its disk takes bytes           complete: record, shown
//! begin -- claim ------------------------> on disk ---------------------------> done
//!   |                                         |  '--refused--.
//!   '--nothing can be kept--------------> unkept <-----------'  bytes go back to the caller
//! ```
//!
//! An [`Appender`] owns the chunk that it is filling and nothing else. So it may wait for a chunk that
//! another one fills, and is never waited for by that one. The order: bytes, state in memory, and when
//! the chunk is complete or given up its record. So a reader sees only what is in the file, and a crash
//! at worst forgets the chunks that were being filled.
//!
//! A chunk with a seal (of a confirmed layer, after an eviction) is held back until it is complete and
//! comes to its seal. Programs may read its file past kitfs, so nothing of it is written before.
//!
//! Where the cache cannot keep bytes, they are not lost: the caller gets them back, checked as far as
//! bytes of the layer are, and hands them to its readers from memory.

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
    /// The cache cannot keep these bytes: they are right as far as the layer's state says, and the
    /// caller's to hand out. Of a chunk with a seal they are all of it.
    Unkept {
        /// Their offset in the chunk.
        start: u32,
        /// The bytes.
        bytes: Bytes,
    },
}

/// Writes bytes of the stream into chunks, one chunk at a time. Dropping it gives the last one up.
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
    /// They are taken.
    Filling(Box<Filling>),
    /// Nothing is taken: the chunk was complete when its first bytes came, or has lost the start that
    /// they were to follow. Stays so until the next chunk: it may be evicted in between.
    PassedOver,
    /// They go back as they come: the cache cannot keep them, and the chunk has no seal.
    Unkept,
}

impl LayerStore {
    /// Starts to fill chunks.
    pub fn appender(self: &Arc<Self>) -> Appender {
        Appender { store: self.clone(), chunk: None }
    }
}

impl Appender {
    /// Writes the bytes of `pieces`, which follow one another, start `offset` bytes behind the
    /// chunk's start and do not pass its end. Room is made for them. Bytes that the chunk has
    /// already are passed over. So is everything, if the chunk was evicted after a decision to fetch only its
    /// end.
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
