//! Handing a complete big member to the kernel: the file that holds it, and the pin that keeps it whole.
//!
//! ```text
//!            confirmed layer, every chunk full, checked or trusted, room to pin
//! member --------------------------------------------------------------> Backing: file + pin
//!    |   every chunk full, some neither checked by this process nor trusted
//!    |-----------------------------------------------------------------> Unchecked --check--.
//!    |   anything else                                                                       |
//!    '------------------------------> NotNow          (ask again) <--------------------------'
//! ```
//!
//! The kernel reads such a file without a check by this process. These rules keep the promises of the room:
//! - A file is handed out only if each of its chunks is right: this process wrote the chunk or compared it with its
//!   record, or an earlier process did so and the file was not written since (`trust`). The layer must be
//!   confirmed, too: its digest was computed over these bytes.
//! - The pin comes before the look at the chunks. A later eviction sees the pin, and leaves the chunks
//!   (`emptying`).
//! - No hole is punched while a program may read the file without this process. A pin protects the file while it is
//!   open here. But a map outlives the last close of its file, and open files outlive the daemon of their mount. So
//!   the pin of a file that was handed out stays until a lease shows that no process has the file open (`lease`).
//!   Where leases do not work, no file is handed out.
//! - A chunk that turns out to be changed is no longer resident, and no new reader gets the file. The bytes that
//!   are fetched again are written in the same place.
//! - Pinned members leave a share of the cache to other files (`Budget::most_pinned_bytes`), so that reads of these
//!   are never refused for want of room.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::disk::DiskFile;
use super::emptying::MemberPin;
use super::known::Shared;
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore, lease};
use crate::layer::layout::Piece;
use crate::layer::{CacheFile, ChunkId, StreamOffset};

/// The interval at which a check that waits for another one looks whether it is still wanted.
const TURN_INTERVAL: Duration = Duration::from_millis(100);

/// A complete member's file, read-only, and the pin that keeps its bytes where they are.
///
/// Byte 0 of the file is byte 0 of the member, and it ends where the member ends.
pub struct Backing {
    file: DiskFile,
    pin: MemberPin,
}

/// Whether a member can be read from its file, past the cache.
pub enum BackingLookup {
    /// It can.
    Ready(Backing),
    /// It can once this process has compared some chunks with their records.
    Unchecked(UncheckedMember),
    /// Not at the moment: bytes are missing, the layer is not confirmed, or enough is pinned.
    NotNow,
    /// It has no file of its own.
    Never,
}

/// A complete member with chunks that came from an earlier process.
pub struct UncheckedMember {
    store: Arc<LayerStore>,
    index: u32,
}

impl Backing {
    /// Closes the file, once the kernel has it.
    pub fn into_pin(self) -> MemberPin {
        self.pin
    }
}

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl UncheckedMember {
    /// Compares every chunk that was not yet checked with its record, and drops wrong chunks. One member at a time
    /// in the whole process. Blocking, about 1 s per GiB; ends early once `is_wanted` says no.
    ///
    /// # Errors
    /// [`CacheError::Io`] when a file cannot be read.
    pub fn check(&self, is_wanted: &dyn Fn() -> bool) -> Result<(), CacheError> {
        let checking = &self.store.shared.checking;
        let _one_at_a_time = loop {
            if !is_wanted() {
                return Ok(());
            }
            if let Some(turn) = checking.try_lock_for(TURN_INTERVAL) {
                break turn;
            }
        };
        let Some(ready) = self.store.ready.get() else { return Ok(()) };
        for chunk in chunks_of_member(ready, self.index) {
            if !is_wanted() {
                break;
            }
            let state = ready.chunks.load(chunk);
            if state.filled() > 0 && !state.is_checked() {
                let placed = ready.contents.layout.chunk(ChunkId(chunk));
                self.store.check(ready, chunk, &placed)?;
            }
        }
        self.store.trust(ready, piece_of(ready, self.index).into_iter());
        Ok(())
    }
}

impl LayerStore {
    /// Whether the kernel may read `range` of the stream from a file of the cache; see [`Backing`].
    ///
    /// # Errors
    /// [`CacheError::Poisoned`], and [`CacheError::Io`] when the file cannot be opened.
    pub fn backing(
        self: &Arc<Self>,
        range: &Range<StreamOffset>,
    ) -> Result<BackingLookup, CacheError> {
        self.refuse_poisoned()?;
        let Some(ready) = self.ready.get() else { return Ok(BackingLookup::NotNow) };
        let Some(index) = member_at(ready, range) else { return Ok(BackingLookup::Never) };
        if self.state() != LayerState::Confirmed {
            return Ok(BackingLookup::NotNow);
        }
        let Some(pin) = self.pin_within_limit(index, range.end - range.start)? else {
            return Ok(BackingLookup::NotNow);
        };
        let mut is_checked = true;
        for chunk in chunks_of_member(ready, index) {
            let full = ready.contents.layout.chunk(ChunkId(chunk)).stream;
            let state = ready.chunks.load(chunk);
            if u64::from(state.filled()) != full.end - full.start {
                return Ok(BackingLookup::NotNow);
            }
            is_checked &= state.is_checked();
        }
        let place = self.place(CacheFile::Member(index));
        let unchecked =
            || Ok(BackingLookup::Unchecked(UncheckedMember { store: self.clone(), index }));
        // Before the file is opened: a lease tells of every opener, this process too.
        if !is_checked && !place.stamp().is_some_and(|stamp| self.is_trusted(index, stamp)) {
            return unchecked();
        }
        if !pin.hand_out()? {
            return Ok(BackingLookup::NotNow);
        }
        let file = place.open_to_read()?;
        let bytes = file.length()?;
        if !file.is_regular() || bytes != range.end - range.start {
            tracing::warn!(file = %file.path().display(), bytes,
                "a cache file has another size than its member: it is read through the daemon");
            return Ok(BackingLookup::NotNow);
        }
        // Another file may have taken the name since.
        if !is_checked && !self.is_trusted(index, file.stamp()?) {
            return unchecked();
        }
        Ok(BackingLookup::Ready(Backing { file, pin }))
    }

    /// Pins a member's file that an earlier process has handed to the kernel, and that the kernel still has open.
    /// `None` if the range is not that of a big member.
    pub fn handed_out_before(self: &Arc<Self>, range: &Range<StreamOffset>) -> Option<MemberPin> {
        let index = member_at(self.ready.get()?, range)?;
        let pin = self.pin_member(index);
        pin.was_handed_out();
        Some(pin)
    }

    /// Whether any member of the layer has a file of its own.
    pub fn has_big_members(&self) -> bool {
        self.ready.get().is_some_and(|ready| {
            let mut pieces = ready.contents.layout.pieces().iter();
            pieces.any(|piece| matches!(piece.file, CacheFile::Member(_)))
        })
    }

    /// Whether the cache lies on a file system whose files are never handed out.
    pub fn is_on_stacked_file_system(&self) -> bool {
        lease::is_stacked(&*self.shared.root)
    }

    /// Pins a member, unless too much would be pinned then.
    fn pin_within_limit(
        self: &Arc<Self>,
        index: u32,
        bytes: u64,
    ) -> Result<Option<MemberPin>, CacheError> {
        let most = self.shared.budget.most_pinned_bytes(&self.shared.root)?;
        let pin = self.pin_member(index);
        // The pin itself is counted. Two that come at once may both be refused; they ask again.
        if self.shared.budget.pinned_bytes() > most {
            self.shared.let_go_of_pins();
        }
        let is_within = self.shared.budget.pinned_bytes() <= most;
        if !is_within {
            tracing::debug!(layer = %self.key().digest, index, bytes,
                "too much of the cache is pinned for passthrough: this member is read through the daemon");
        }
        Ok(is_within.then_some(pin))
    }

    /// Whether anything besides this cache has a member's file open or mapped.
    pub(super) fn is_open_elsewhere(&self, index: u32) -> Result<bool, CacheError> {
        let file = self.file(CacheFile::Member(index), false)?;
        lease::is_open_elsewhere(&*file).map_err(CacheError::io("ask who has open", file.path()))
    }
}

impl Shared {
    /// Gives up the pins of members that nobody reads any more.
    fn let_go_of_pins(&self) {
        self.open_stores().iter().for_each(|store| store.let_go_of_pins());
    }
}

/// The number of the member whose bytes are exactly `range`, if it has a file of its own.
fn member_at(ready: &Ready, range: &Range<StreamOffset>) -> Option<u32> {
    let pieces = ready.contents.layout.pieces();
    let position = pieces.binary_search_by_key(&range.start, |piece| piece.stream.start).ok()?;
    match pieces[position].file {
        CacheFile::Member(index) if pieces[position].stream == *range => Some(index),
        CacheFile::Member(_) | CacheFile::Stream => None,
    }
}

/// The place of the big member `index`; `None` where it has no file of its own.
pub(super) fn piece_of(ready: &Ready, index: u32) -> Option<&Piece> {
    let mut pieces = ready.contents.layout.pieces().iter();
    pieces.find(|piece| piece.file == CacheFile::Member(index))
}

/// The chunks of the big member `index`.
pub(super) fn chunks_of_member(ready: &Ready, index: u32) -> Range<u32> {
    piece_of(ready, index).map_or(0..0, |piece| chunks_of_piece(ready, piece))
}

/// The chunks of a piece.
pub(super) fn chunks_of_piece(ready: &Ready, piece: &Piece) -> Range<u32> {
    ready.contents.layout.chunks_of(piece.stream.clone())
}
