//! The distance between a stream over a whole layer and its reader.
//!
//! A compressed layer, and one whose source knows no ranges, comes as one stream from its start. Where
//! the cache cannot hold the layer, bytes that run too far ahead of their reader are gone again when the
//! reader gets there, and the next stream has to begin at the layer's start. So the stream waits for its
//! reader: it never runs further ahead than there is room for.
//!
//! ```text
//! layer   |------- read --------|<----- room ----->| not yet
//!                               ^ follower         ^ the stream waits here
//! ```
//!
//! It does not wait when somebody waits for it, and not for a reader that has stopped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::layer::Inner;
use super::transfer::Transfer;
use crate::layer::StreamOffset;
use crate::layer::layout::CHUNK_BYTES;

/// The time that a reader may be busy with its last bytes before it counts as gone: some seconds, as
/// programs compute between reads, and below the time after which servers cut an idle connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// The interval at which a stream that waits looks again: a reader at 1 GB/s reads eight chunks meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// The share of what can be held that a stream may be ahead: a quarter. The chunk that is being read, the
/// one that is being written and a batch on its way take three more where only four chunks can be held.
const AHEAD_SHARE: u64 = 4;

/// The last read of a layer, noted while a stream waits for its reader.
#[derive(Default)]
pub(super) struct Follower {
    is_watched: AtomicBool,
    end: AtomicU64,
    /// Milliseconds since the layer was opened, from 1 on; 0 before the first read.
    read_ms: AtomicU64,
    opened: std::sync::OnceLock<Instant>,
}

impl Follower {
    /// Notes a read that ended there. One load where nobody wants to know.
    pub(super) fn note(&self, end: StreamOffset) {
        if self.is_watched.load(Ordering::Relaxed) {
            self.end.store(end.get(), Ordering::Relaxed);
            self.read_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        self.opened.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
    }

    /// The end of the last read, if that was a moment ago.
    fn end(&self) -> Option<u64> {
        let read_ms = self.read_ms.load(Ordering::Relaxed);
        let age_ms = self.now_ms().saturating_sub(read_ms);
        (read_ms > 0 && age_ms < PATIENCE.as_millis() as u64)
            .then(|| self.end.load(Ordering::Relaxed))
    }
}

/// The rule for one stream over a whole layer.
pub(super) struct Leash {
    /// The bytes that it may be ahead of its reader.
    ahead_bytes: u64,
}

impl Inner {
    /// The leash of a stream over the whole layer; none where the cache can hold all of it.
    pub(super) fn leash(&self) -> Option<Leash> {
        let stream_bytes = self.contents.layout.stream_bytes();
        // Where the file system cannot be asked, nothing is kept.
        let most_bytes = self.cache.most_bytes().unwrap_or(0);
        if most_bytes >= stream_bytes && !self.cache.is_in_trouble() {
            return None;
        }
        self.follower.is_watched.store(true, Ordering::Relaxed);
        self.follower.now_ms();
        let held_bytes = match self.cache.is_in_trouble() {
            true => self.scheduler.free_aside_bytes(),
            false => most_bytes,
        };
        Some(Leash { ahead_bytes: (held_bytes / AHEAD_SHARE).max(CHUNK_BYTES) })
    }

    /// Waits until a stream that has reached `at` may go on. Blocking.
    pub(super) fn wait_for_reader(&self, leash: &Leash, at: StreamOffset, transfer: &Transfer) {
        while !self.closed.is_cancelled() && !transfer.is_awaited() {
            match self.follower.end() {
                Some(end) if at.get() > end.saturating_add(leash.ahead_bytes) => {
                    std::thread::sleep(LOOK_INTERVAL);
                }
                _ => return,
            }
        }
    }

    /// Whether the bytes from `at` on may be read soon.
    pub(super) fn is_followed(&self, leash: &Leash, at: StreamOffset) -> bool {
        let ahead = |end: u64| end <= at.get() + CHUNK_BYTES && at.get() <= end + leash.ahead_bytes;
        self.follower.end().is_some_and(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_followed_from_its_first_read_on_and_only_while_somebody_watches() {
        let follower = Follower::default();
        follower.note(StreamOffset(7));
        assert_eq!(follower.end(), None, "nobody watched");
        follower.is_watched.store(true, Ordering::Relaxed);
        follower.now_ms();
        assert_eq!(follower.end(), None, "nobody has read");
        follower.note(StreamOffset(9));
        assert_eq!(follower.end(), Some(9));
    }
}
