//! The state of each chunk of a layer in memory: 4 bytes, read without a lock.
//!
//! ```text
//! bit 31..21        20     19        18..0
//!     generation    busy   checked   filled bytes
//! ```
//!
//! - *filled*: how many bytes from the chunk's start are in the cache.
//! - *checked*: this process wrote the bytes or has compared them with their record.
//! - *busy*: one thread owns the chunk: it is being filled, evicted or dropped. Readers ignore this bit; they may
//!   read the filled bytes.
//! - *generation*: counts how often the chunk was emptied. A reader looks at the state, reads the
//!   file, and looks again: with another generation the bytes may be zeros of a punched hole.
//!   (2,048 emptyings during one pread would be needed to deceive it.)
//!
//! Use is noted per group of 16 chunks (4 MiB), as a stamp of the cache's clock: a plain store, so
//! a read costs no more, and a 100 GB kit has 25,000 stamps (200 kB) beside 1.6 MB of states.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::layer::layout::CHUNK_BYTES;

const FILLED: u32 = (1 << 19) - 1;
const CHECKED: u32 = 1 << 19;
const BUSY: u32 = 1 << 20;
const GENERATION: u32 = 1 << 21;
const _: () = assert!(CHUNK_BYTES <= FILLED as u64, "a full chunk's length must fit");

/// Chunks that share a stamp of last use: 4 MiB, a usual request, so that what is read together
/// is judged together.
pub(super) const GROUP_CHUNKS: u32 = 16;

/// The stamp of a group that never had bytes in this process. The clock begins at 1.
const UNUSED: u64 = 0;

/// The state of one chunk at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkState(u32);

impl ChunkState {
    pub(super) fn filled(self) -> u32 {
        self.0 & FILLED
    }

    pub(super) fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }

    pub(super) fn is_checked(self) -> bool {
        self.0 & CHECKED != 0
    }

    /// The same chunk with `filled` bytes that this process wrote or checked.
    pub(super) fn with_checked(self, filled: u32) -> Self {
        debug_assert!(filled <= FILLED);
        Self(self.0 & !FILLED | filled | CHECKED)
    }

    /// The same chunk with `filled` bytes that are to be checked before they are served.
    pub(super) fn with_unchecked(self, filled: u32) -> Self {
        debug_assert!(filled <= FILLED);
        Self(self.0 & !(FILLED | CHECKED) | filled)
    }

    /// The same chunk with nothing in it.
    pub(super) fn emptied(self) -> Self {
        Self((self.0 & !(FILLED | CHECKED)).wrapping_add(GENERATION))
    }

    /// Whether the chunk was not emptied between this state and `later`, which was seen after a read.
    pub(super) fn is_same_generation(self, later: Self) -> bool {
        self.0 / GENERATION == later.0 / GENERATION
    }
}

/// The states of all chunks of a layer.
pub(super) struct ChunkStates {
    states: Box<[AtomicU32]>,
    stamps: Box<[AtomicU64]>,
    /// For threads that wait for a busy chunk.
    waiting: Mutex<()>,
    released: Condvar,
}

impl ChunkStates {
    /// The states of `chunks` chunks, of which those in `filled` have bytes: none of them checked, all last
    /// used at `stamp`.
    pub(super) fn new(chunks: u32, filled: &[(u32, u32)], stamp: u64) -> Self {
        let groups = chunks.div_ceil(GROUP_CHUNKS);
        let states = Self {
            states: (0..chunks).map(|_| AtomicU32::new(0)).collect(),
            stamps: (0..groups).map(|_| AtomicU64::new(UNUSED)).collect(),
            waiting: Mutex::new(()),
            released: Condvar::new(),
        };
        for &(chunk, filled) in filled.iter().filter(|(_, filled)| *filled > 0) {
            states.states[chunk as usize].store(filled & FILLED, Ordering::Relaxed);
            states.touch(chunk, stamp.max(1));
        }
        states
    }

    pub(super) fn count(&self) -> u32 {
        self.states.len() as u32
    }

    /// The state of a chunk; an empty one for numbers beyond the last.
    pub(super) fn load(&self, chunk: u32) -> ChunkState {
        let state = self.states.get(chunk as usize);
        ChunkState(state.map_or(0, |state| state.load(Ordering::SeqCst)))
    }

    /// Makes the caller the chunk's owner, unless it has one.
    pub(super) fn claim(&self, chunk: u32) -> Option<ChunkState> {
        let before = self.states[chunk as usize].fetch_or(BUSY, Ordering::SeqCst);
        (before & BUSY == 0).then_some(ChunkState(before | BUSY))
    }

    /// Waits until the chunk has no owner, and makes the caller its owner. An owner never waits for another chunk,
    /// so this ends.
    pub(super) fn claim_waiting(&self, chunk: u32) -> ChunkState {
        let mut waiting = self.waiting.lock();
        loop {
            if let Some(state) = self.claim(chunk) {
                return state;
            }
            self.released.wait(&mut waiting);
        }
    }

    /// Shows a new state of a chunk that the caller owns and keeps.
    pub(super) fn publish(&self, chunk: u32, state: ChunkState) {
        self.states[chunk as usize].store(state.0 | BUSY, Ordering::SeqCst);
    }

    /// Gives up a chunk in the state that was last published.
    pub(super) fn release(&self, chunk: u32) {
        self.states[chunk as usize].fetch_and(!BUSY, Ordering::SeqCst);
        drop(self.waiting.lock());
        self.released.notify_all();
    }

    /// Notes that the bytes seen in state `seen` are right, if the chunk is still in that state. Returns
    /// whether that is news.
    pub(super) fn mark_checked(&self, chunk: u32, seen: ChunkState) -> bool {
        let (state, ordering) = (&self.states[chunk as usize], Ordering::SeqCst);
        // If the state changed, the chunk's owner changed it, and the owner knows better.
        let marked = state.compare_exchange(seen.0, seen.0 | CHECKED, ordering, ordering);
        marked.is_ok() && !seen.is_checked()
    }

    /// Notes a use of a chunk.
    pub(super) fn touch(&self, chunk: u32, stamp: u64) {
        let group = &self.stamps[(chunk / GROUP_CHUNKS) as usize];
        if group.load(Ordering::Relaxed) != stamp {
            group.store(stamp, Ordering::Relaxed);
        }
    }

    /// The stamp of each group's last use, in order.
    pub(super) fn stamps(&self) -> impl Iterator<Item = u64> {
        self.stamps.iter().map(|stamp| stamp.load(Ordering::Relaxed))
    }

    /// The groups in which something is resident, and when each was last used; in order.
    pub(super) fn resident_groups(&self) -> impl Iterator<Item = (u32, u64)> {
        let has_bytes = |group: &(u32, u64)| self.group(group.0).any(|c| self.load(c).filled() > 0);
        let is_used = |group: &(u32, u64)| group.1 != UNUSED;
        (0..).zip(self.stamps()).filter(is_used).filter(has_bytes)
    }

    /// The chunks of a group.
    pub(super) fn group(&self, group: u32) -> std::ops::Range<u32> {
        let start = group * GROUP_CHUNKS;
        start..(start + GROUP_CHUNKS).min(self.count())
    }

    /// The filled bytes of all chunks together.
    pub(super) fn resident_bytes(&self) -> u64 {
        (0..self.count()).map(|chunk| u64::from(self.load(chunk).filled())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_has_one_owner() {
        let states = ChunkStates::new(2, &[(1, 5)], 0);
        let state = states.claim(1).unwrap();
        assert_eq!(state.filled(), 5);
        assert!(states.claim(1).is_none());
        assert!(states.claim(0).is_some());
        states.publish(1, state.with_checked(7));
        states.release(1);
        assert_eq!(states.load(1).filled(), 7);
        assert!(states.load(1).is_checked());
        assert!(states.claim(1).is_some());
    }

    #[test]
    fn emptying_is_seen_even_after_the_chunk_is_full_again() {
        let full = CHUNK_BYTES as u32;
        let states = ChunkStates::new(1, &[(0, full)], 0);
        let seen = states.load(0);
        for _ in 0..3 {
            let state = states.claim(0).unwrap().emptied();
            assert_eq!(state.filled(), 0);
            states.publish(0, state.with_checked(full));
            states.release(0);
            assert!(!seen.is_same_generation(states.load(0)));
        }
    }

    #[test]
    fn the_generation_wraps_without_touching_the_rest() {
        let mut state = ChunkState(0).with_checked(9);
        for _ in 0..5_000 {
            state = state.emptied();
            assert_eq!((state.filled(), state.is_checked()), (0, false));
        }
    }

    #[test]
    fn only_the_state_that_was_checked_is_marked() {
        let states = ChunkStates::new(1, &[(0, 5)], 0);
        let seen = states.load(0);
        let owned = states.claim(0).unwrap();
        states.publish(0, owned.emptied());
        states.release(0);
        states.mark_checked(0, seen);
        assert!(!states.load(0).is_checked());
    }

    #[test]
    fn groups_without_bytes_are_passed_over() {
        let filled = [(2 * GROUP_CHUNKS - 1, 1), (3 * GROUP_CHUNKS, 2)];
        let states = ChunkStates::new(5 * GROUP_CHUNKS, &filled, 7);
        states.touch(3 * GROUP_CHUNKS, 9);
        assert_eq!(states.resident_groups().collect::<Vec<_>>(), [(1, 7), (3, 9)]);
    }

    #[test]
    fn a_thread_that_waits_for_a_busy_chunk_gets_it() {
        let states = ChunkStates::new(1, &[], 0);
        let owned = states.claim(0).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| states.claim_waiting(0).filled());
            states.publish(0, owned.with_checked(3));
            states.release(0);
            assert_eq!(waiter.join().unwrap(), 3);
        });
    }
}
