//! Reads of resident bytes.
//!
//! A read takes no lock over its I/O: it looks at the chunk's state, reads the file, and looks again (see
//! [`super::chunk_states`]). A chunk that this process did not write itself is checked before its
//! first byte is served.

use std::io::ErrorKind;

use super::CacheError;
use super::chunk_states::ChunkState;
use super::chunk_table::Record;
use super::disk::{FileKey, LayerFile};
use super::page_aligned::page_aligned;
use super::store::{LayerStore, Ready};
use crate::layer::layout::Placed;
use crate::layer::{ChunkId, StreamOffset};

/// The outcome of a read of resident bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Every byte was resident and is in the buffer.
    Hit,
    /// Some byte is not resident; the buffer's content is unspecified.
    Miss,
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It may: on a thread that nobody else needs.
    ForDisk,
    /// It ends with [`Read::Waits`] where the kernel would have to ask the disk.
    Never,
}

/// The outcome of a look at a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Hit,
    Miss,
    /// The bytes count as resident, but are not in memory.
    Waits,
}

impl LayerStore {
    /// Reads resident bytes into `buffer` (its length is the range's); re-checks the record of
    /// chunks that this process has neither written nor checked yet, and drops those that fail.
    ///
    /// # Errors
    /// [`CacheError::Poisoned`], and [`CacheError::Io`] when a cache file cannot be read.
    pub fn read(&self, start: StreamOffset, buffer: &mut [u8]) -> Result<Lookup, CacheError> {
        Ok(match self.read_with(start, buffer, Wait::ForDisk)? {
            Read::Hit => Lookup::Hit,
            Read::Miss | Read::Waits => Lookup::Miss,
        })
    }

    /// The same for a thread that must not wait for the disk; `None` where the bytes are not in memory,
    /// or were not checked yet.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_cached(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
    ) -> Result<Option<Lookup>, CacheError> {
        Ok(match self.read_with(start, buffer, Wait::Never)? {
            Read::Hit => Some(Lookup::Hit),
            Read::Miss => Some(Lookup::Miss),
            Read::Waits => None,
        })
    }

    fn read_with(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
        wait: Wait,
    ) -> Result<Read, CacheError> {
        self.refuse_poisoned()?;
        let Some(ready) = self.ready.get() else { return Ok(Read::Miss) };
        let layout = &ready.contents.layout;
        let range = start.range(buffer.len() as u64);
        if range.end.get() > layout.stream_bytes() {
            return Ok(Read::Miss);
        }
        let wanted = layout.chunks_of(range.clone());
        for chunk in wanted.clone() {
            let span = layout.chunk(ChunkId(chunk)).stream;
            let needed = range.end.min(span.end) - span.start;
            if u64::from(ready.chunks.load(chunk).filled()) < needed {
                return Ok(Read::Miss);
            }
        }
        for chunk in wanted {
            let placed = layout.chunk(ChunkId(chunk));
            let from = range.start.max(placed.stream.start);
            let to = range.end.min(placed.stream.end);
            let piece = &mut buffer[(from - range.start) as usize..(to - range.start) as usize];
            let skip = (from - placed.stream.start) as u32;
            match self.read_chunk(ready, chunk, &placed, skip, piece, wait)? {
                Read::Hit => {}
                other => return Ok(other),
            }
        }
        Ok(Read::Hit)
    }

    /// Reads `piece` from the byte `skip` of a chunk on.
    pub(super) fn read_chunk(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
        skip: u32,
        piece: &mut [u8],
        wait: Wait,
    ) -> Result<Read, CacheError> {
        let mut state = ready.chunks.load(chunk);
        if state.filled() > 0 && !state.is_checked() {
            if wait == Wait::Never {
                return Ok(Read::Waits);
            }
            self.check(ready, chunk, placed)?;
            state = ready.chunks.load(chunk);
        }
        if !state.is_checked() || u64::from(state.filled()) < u64::from(skip) + piece.len() as u64 {
            return Ok(Read::Miss);
        }
        let is_read = match wait {
            Wait::ForDisk => self.read_file(placed, skip, piece).or_else(|e| self.lost(e))?,
            Wait::Never if self.read_open_file(placed, skip, piece) => true,
            Wait::Never => return Ok(Read::Waits),
        };
        if !is_read {
            self.drop_wrong(ready, chunk, state);
            return Ok(Read::Miss);
        }
        if !state.is_same_generation(ready.chunks.load(chunk)) {
            return Ok(Read::Miss);
        }
        ready.chunks.touch(chunk, self.shared.budget.now());
        Ok(Read::Hit)
    }

    /// Handles a file of the cache that cannot be read: its bytes are fetched again, unless this process lacks
    /// descriptors or memory.
    fn lost(&self, error: CacheError) -> Result<bool, CacheError> {
        if error.is_about_the_process() {
            return Err(error);
        }
        self.shared.note_trouble(&error);
        Ok(false)
    }

    /// Reads bytes of a chunk from its file, if it is open and the kernel has them in memory.
    fn read_open_file(&self, placed: &Placed, skip: u32, piece: &mut [u8]) -> bool {
        let key = FileKey { layer: self.serial, file: LayerFile::Content(placed.file) };
        let file = self.shared.root.files.get_open(key);
        file.is_some_and(|file| file.read_cached_at(piece, placed.file_offset + u64::from(skip)))
    }

    /// Reads bytes of a chunk from its file, unchecked. `false` where the file is shorter, or the disk does not
    /// give the bytes back.
    pub(super) fn read_file(
        &self,
        placed: &Placed,
        skip: u32,
        piece: &mut [u8],
    ) -> Result<bool, CacheError> {
        let file = match self.file(placed.file, false) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        match file.read_exact_at(piece, placed.file_offset + u64::from(skip)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => match CacheError::io("read", file.path())(error) {
                error if error.is_lost_on_disk() => {
                    tracing::warn!(%error, "the local disk does not give bytes back");
                    Ok(false)
                }
                error => Err(error),
            },
        }
    }

    /// Compares a chunk's bytes with its record; a chunk that fails is dropped. Returns
    /// whether it failed.
    pub(super) fn check(
        &self,
        ready: &Ready,
        chunk: u32,
        placed: &Placed,
    ) -> Result<bool, CacheError> {
        self.check_by(ready, chunk, ready.chunks.load(chunk), placed, Record::matches)
    }

    /// The same for a chunk in that state, where `is_right` compares them.
    pub(super) fn check_by(
        &self,
        ready: &Ready,
        chunk: u32,
        state: ChunkState,
        placed: &Placed,
        is_right: impl FnOnce(&Record, &[u8]) -> bool,
    ) -> Result<bool, CacheError> {
        let mut bytes = page_aligned(state.filled() as usize);
        let is_right = self
            .record(ready, chunk)
            .and_then(|record| {
                Ok(self.read_file(placed, 0, &mut bytes)? && is_right(&record, &bytes))
            })
            .or_else(|error| self.lost(error))?;
        if is_right {
            if ready.chunks.mark_checked(chunk, state) {
                self.known.changes.no_longer_unchecked(u64::from(state.filled()));
            }
            return Ok(false);
        }
        Ok(self.drop_changed(ready, chunk, state))
    }

    /// Drops a chunk in the state `seen`, whose bytes are not what its record says. Returns whether
    /// it went.
    pub(super) fn drop_changed(&self, ready: &Ready, chunk: u32, seen: ChunkState) -> bool {
        let is_dropped = self.drop_wrong(ready, chunk, seen);
        if is_dropped {
            tracing::warn!(layer = %self.key().digest, chunk, "bytes on the local disk changed: dropped, to be fetched again");
        }
        is_dropped
    }
}
