//! Bytes in cache files that no record describes.
//!
//! A process that is killed between the bytes of a chunk and their record leaves them in the file. They are neither
//! served nor counted. The next sync or verification of the layer gives them back, so a clean layer has none.

use super::chunk_states::ChunkState;
use super::store::Ready;
use super::{CacheError, LayerStore};
use crate::layer::ChunkId;
use crate::layer::layout::{Piece, Placed};

impl LayerStore {
    /// Gives back what the content files have beyond the filled bytes of their chunks. Chunks that another
    /// thread owns are left alone, and so are files that programs may read past kitfs.
    pub(super) fn give_back_leftovers(&self, ready: &Ready) -> Result<(), CacheError> {
        for piece in ready.contents.layout.pieces() {
            self.give_back_leftovers_of(ready, piece)?;
        }
        Ok(())
    }

    fn give_back_leftovers_of(&self, ready: &Ready, piece: &Piece) -> Result<(), CacheError> {
        let file = match self.file(piece.file, false) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        let start = piece.file_offset(piece.stream.start);
        let end = start + (piece.stream.end - piece.stream.start);
        let to_stream = |at: u64| piece.stream.start + (at - start);
        let mut at = start;
        while at < end {
            let Some(data) = file.data_from(at)?.filter(|data| data.start < end) else { break };
            let stretch = to_stream(data.start.max(at))..to_stream(data.end.min(end));
            for chunk in ready.contents.layout.chunks_of(stretch) {
                self.give_back_leftover(ready, chunk)?;
            }
            at = data.end;
        }
        Ok(())
    }

    fn give_back_leftover(&self, ready: &Ready, chunk: u32) -> Result<(), CacheError> {
        let placed = ready.contents.layout.chunk(ChunkId(chunk));
        let is_full = |state: ChunkState| u64::from(state.filled()) == length_of(&placed);
        if is_full(ready.chunks.load(chunk)) {
            return Ok(());
        }
        let Some(state) = ready.chunks.claim(chunk) else { return Ok(()) };
        let filled = u64::from(state.filled());
        let given_back = match is_full(state) || self.is_held(placed.file, &mut self.pins.lock()) {
            true => Ok(()),
            false => self.file(placed.file, false).and_then(|file| {
                file.punch_hole(placed.file_offset + filled, length_of(&placed) - filled)
            }),
        };
        ready.chunks.release(chunk);
        given_back
    }
}

fn length_of(placed: &Placed) -> u64 {
    placed.stream.end - placed.stream.start
}
