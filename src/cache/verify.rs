//! Checking whole layers: against the blob's digest once, and against the chunks' records again.
//!
//! ```text
//!      .--doubted: emptied, fetched again <--wrong, the first time--.
//!      v                                                             |
//! unconfirmed --every chunk resident--> sha256 and table of contents +--right--> confirmed
//!      ^                                                             |
//!      '--remove_layer-- poisoned <-----------wrong again------------'
//! ```
//!
//! The first wrong digest may be the fault of one transfer, so the layer gets a second chance. The cache
//! does not know which chunk is wrong, and serves none of them until it came again. The bytes of a poisoned
//! layer are removed at once; its meta file stays and says so, over restarts too, until somebody removes the
//! layer.
//!
//! The table of contents was read from bytes that came before the digest was known. So it is read once more
//! from the bytes that have the digest.

use std::sync::atomic::Ordering;

use super::chunk_states::ChunkState;
use super::chunk_table::Record;
use super::disk::Durability;
use super::known::remove_content;
use super::page_aligned::page_aligned;
use super::reading::{Read, Wait};
use super::seal::{Part, RunningSha256, Seal};
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore, Verification};
use crate::layer::layout::{CHUNK_BYTES, Placed};
use crate::layer::tar::Scanner;
use crate::layer::{ChunkId, StreamOffset, Toc};
use crate::oci::{Digest, Format};

/// The chunks that a pass over a layer compares with their checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blames {
    /// Nothing: the digest of the whole is expected to be right.
    Nobody,
    /// Every chunk, because it was not.
    TheDisk,
}

/// The headers of a stream that passes by.
enum Headers {
    Tar(Box<Scanner>),
    /// A layer without headers.
    None,
    /// They cannot be read.
    Malformed,
}

impl Headers {
    fn of(format: Format) -> Self {
        match format {
            Format::Tar => Self::Tar(Box::default()),
            Format::Raw | Format::Object => Self::None,
        }
    }

    fn take(&mut self, at: StreamOffset, bytes: &[u8]) {
        if let Self::Tar(scanner) = self
            && at <= scanner.next_offset()
            && scanner.feed(at, bytes).is_err()
        {
            *self = Self::Malformed;
        }
    }

    /// Whether they are those of `toc`, of which the whole stream has passed by. Warnings are for people, and
    /// another version of kitfs may have written them.
    fn come_to(self, toc: &Toc) -> bool {
        match self {
            Self::None => true,
            Self::Malformed => false,
            Self::Tar(scanner) => {
                let found = scanner.finish(toc.stream_bytes);
                found.is_ok_and(|found| found.members == toc.members)
            }
        }
    }
}

/// The treatment of a layer whose digest is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mercy {
    /// It is emptied and stays unconfirmed, the first time.
    Once,
    /// It is poisoned.
    None,
}

/// The result of a look at all bytes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    /// The sha256 of the stream.
    digest: Digest,
    /// Whether the headers in the stream come to the table of contents that the layer has.
    has_its_toc: bool,
}

impl LayerStore {
    /// As [`Self::judge`], without a second chance: a layer with a wrong digest is poisoned.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn confirm(&self, is_wanted: &dyn Fn() -> bool) -> Result<LayerState, CacheError> {
        self.compute(is_wanted, Mercy::None)
    }

    /// Computes the blob's digest over all chunks of a complete, uncompressed layer, and moves the
    /// state to confirmed or poisoned. A layer whose digest is wrong for the first time is emptied instead,
    /// and [`Self::is_doubted`] from then on. Chunks the local disk has changed are dropped; then,
    /// and when a chunk is evicted meanwhile, the layer stays unconfirmed. Each chunk gets its seal
    /// on the way: what it must come to if it is evicted and fetched again.
    /// Blocking, about 1 s per GiB; gives up, leaving the layer unconfirmed, once `is_wanted` says
    /// no.
    ///
    /// # Errors
    /// When cache files cannot be read or written.
    pub fn judge(&self, is_wanted: &dyn Fn() -> bool) -> Result<LayerState, CacheError> {
        self.compute(is_wanted, Mercy::Once)
    }

    fn compute(
        &self,
        is_wanted: &dyn Fn() -> bool,
        mercy: Mercy,
    ) -> Result<LayerState, CacheError> {
        let Some(ready) = self.ready.get() else { return Ok(self.state()) };
        if self.key().encoding.is_compressed() || self.state() != LayerState::Unconfirmed {
            return Ok(self.state());
        }
        let _change = self.change(None)?;
        let before = self.emptied.load(Ordering::SeqCst);
        let look = |blames| self.look_at_stream(ready, blames, is_wanted);
        let is_right = |found: &Found| found.digest == self.key().digest && found.has_its_toc;
        // Right bytes need no checksums. For wrong bytes, checksums tell whether the disk changed them or they
        // arrived wrong.
        let found = match look(Blames::Nobody)? {
            Some(found) if !is_right(&found) => look(Blames::TheDisk)?,
            found => found,
        };
        let Some(found) = found else { return Ok(LayerState::Unconfirmed) };
        let is_right = is_right(&found);
        // Other bytes do not mend a table of contents that came wrong.
        let may_mend = found.digest != self.key().digest && mercy == Mercy::Once;
        if !is_right && may_mend && !self.is_doubted.swap(true, Ordering::SeqCst) {
            self.empty_doubted(ready);
            return Ok(LayerState::Unconfirmed);
        }
        // A confirmed layer relies on the seals of its chunks.
        self.sync_records()?;
        let state = match is_right {
            true => LayerState::Confirmed,
            false => LayerState::Poisoned { got: found.digest },
        };
        {
            // Chunks are emptied under this lock: none goes between the look and the new state.
            let _pins = self.pins.lock();
            if self.emptied.load(Ordering::SeqCst) != before {
                // A chunk went, and may have come back as something else.
                return Ok(LayerState::Unconfirmed);
            }
            let stream_bytes = Some(ready.contents.layout.stream_bytes());
            self.put_state(state, stream_bytes, Durability::Synced)?;
        }
        self.is_doubted.store(false, Ordering::SeqCst);
        if !is_right {
            self.remove_poisoned(ready)?;
            self.tell_all_replaced();
        }
        Ok(self.state())
    }

    /// The sha256 of the stream and what its headers say, after sealing each chunk; `None` where a byte is
    /// not resident, or it is not wanted any more.
    fn look_at_stream(
        &self,
        ready: &Ready,
        blames: Blames,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Option<Found>, CacheError> {
        let mut sha256 = RunningSha256::new();
        let mut headers = Headers::of(self.key().encoding.format);
        let mut buffer = page_aligned(CHUNK_BYTES as usize);
        for chunk in 0..ready.chunks.count() {
            if !is_wanted() {
                return Ok(None);
            }
            let placed = ready.contents.layout.chunk(ChunkId(chunk));
            let bytes = &mut buffer[..(placed.stream.end - placed.stream.start) as usize];
            let seen = ready.chunks.load(chunk);
            if self.read_chunk(ready, chunk, &placed, 0, bytes, Wait::ForDisk)? != Read::Hit {
                return Ok(None);
            }
            let seal = sha256.seal(bytes, self.part(ready, &placed));
            headers.take(placed.stream.start, bytes);
            if !self.seal(ready, chunk, seen, bytes, seal, blames)? {
                return Ok(None);
            }
        }
        let digest = Digest::from_sha256(sha256.digest());
        Ok(Some(Found { digest, has_its_toc: headers.come_to(&ready.contents.toc) }))
    }

    /// The place of a chunk in the stream.
    pub(super) fn part(&self, ready: &Ready, placed: &Placed) -> Part {
        let is_last = placed.stream.end.get() == ready.contents.layout.stream_bytes();
        Part { start: placed.stream.start.get(), is_last }
    }

    /// Puts the seal of a full chunk with these `bytes` into its record. `false` if the chunk was emptied since it
    /// was `seen`, or is dropped because its record is of other bytes.
    fn seal(
        &self,
        ready: &Ready,
        chunk: u32,
        seen: ChunkState,
        bytes: &[u8],
        seal: Seal,
        blames: Blames,
    ) -> Result<bool, CacheError> {
        // The thread that filled it may still have to write its record.
        let state = ready.chunks.claim_waiting(chunk);
        let is_same = seen.is_same_generation(state);
        let is_right = match is_same {
            true => self.seal_record(ready, chunk, bytes, seal, blames),
            false => Ok(true),
        };
        ready.chunks.release(chunk);
        if !is_right? {
            self.drop_changed(ready, chunk, seen);
            return Ok(false);
        }
        Ok(is_same)
    }

    /// The same for a chunk that the caller owns; `false` where its record is of other bytes.
    fn seal_record(
        &self,
        ready: &Ready,
        chunk: u32,
        bytes: &[u8],
        seal: Seal,
        blames: Blames,
    ) -> Result<bool, CacheError> {
        let record = self.record(ready, chunk)?;
        let is_right = match blames {
            Blames::Nobody => record.filled as usize == bytes.len(),
            Blames::TheDisk => record.matches(bytes),
        };
        if !is_right {
            return Ok(false);
        }
        if record.seal != Some(seal) {
            self.put_record(ready, chunk, &Record { seal: Some(seal), ..record })?;
        }
        Ok(true)
    }

    /// Removes the bytes of a poisoned layer. Its state is on disk already, so an interruption is harmless: no byte
    /// of the layer is read again.
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

    /// Re-checks every resident byte against the records and seals of its chunks, drops wrong chunks, and
    /// mends the layer's small files.
    pub(super) fn verify(&self) -> Result<Verification, CacheError> {
        let mut found = Verification::default();
        let Some(ready) = self.ready.get() else { return Ok(found) };
        for chunk in 0..ready.chunks.count() {
            let state = ready.chunks.load(chunk);
            let filled = u64::from(state.filled());
            // Of one that is being filled there may be no record yet.
            if filled > 0 && !state.is_busy() {
                let placed = ready.contents.layout.chunk(ChunkId(chunk));
                let is_whole = filled == placed.stream.end - placed.stream.start;
                let part = self.part(ready, &placed);
                let is_sealed_so = |record: &Record, bytes: &[u8]| {
                    let seal = record.seal.filter(|seal| is_whole && seal.is_of(part));
                    record.matches(bytes) && seal.is_none_or(|seal| seal.matches(bytes, part))
                };
                let is_dropped = self.check_by(ready, chunk, state, &placed, is_sealed_so)?;
                found.dropped_chunks += u64::from(is_dropped);
                found.checked_bytes += filled;
            }
        }
        self.give_back_leftovers(ready)?;
        self.mend(ready)?;
        Ok(found)
    }
}
