//! The distance between a stream over a whole layer and its reader.
//!
//! A compressed layer, and a layer whose source knows no ranges, comes as one stream from its start. The cache may
//! have no room for the whole layer. Bytes too far ahead would then be evicted before their reader gets there, and
//! the next stream would begin at the layer's start. So the stream waits for its reader, and never runs further
//! ahead than there is room for.
//!
//! ```text
//! layer   |------- read --------|<----- room ----->| not yet
//!                               ^ follower         ^ the stream waits here
//! ```
//!
//! The stream does not pause while a reader waits for its bytes, nor for a reader that has stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::layer::Inner;
use super::transfer::Transfer;
use crate::cache::LEAST_BYTES;
use crate::layer::StreamOffset;
use crate::layer::layout::CHUNK_BYTES;

/// The time that a reader may be busy with its last bytes before it counts as gone. 5 s: programs compute between
/// reads, and servers cut an idle connection later than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// The interval at which a paused stream looks for its reader. 2 ms: a reader at 1 GB/s reads eight chunks
/// meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// The share of the room that a stream may be ahead: a quarter. Where there is room for four chunks only, three
/// more are in use: the chunk being read, the chunk being written, and a batch on its way.
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
    /// Notes a read that ended at `end`. It costs one atomic load where no stream follows.
    pub(super) fn note(&self, end: StreamOffset) {
        if self.is_watched.load(Ordering::Relaxed) {
            self.end.store(end.get(), Ordering::Relaxed);
            self.read_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        self.opened.get_or_init(Instant::now).elapsed().as_millis() as u64 + 1
    }

    /// The end of the last read, if the reader does not count as gone.
    fn end(&self) -> Option<u64> {
        let read_ms = self.read_ms.load(Ordering::Relaxed);
        let age_ms = self.now_ms().saturating_sub(read_ms);
        (read_ms > 0 && age_ms < PATIENCE.as_millis() as u64)
            .then(|| self.end.load(Ordering::Relaxed))
    }
}

/// The distance that one stream over a whole layer keeps.
#[derive(Clone)]
pub(super) struct Leash {
    follower: Arc<Follower>,
    /// The bytes that the stream may be ahead of its reader when it takes more.
    ahead_bytes: u64,
}

impl Leash {
    /// A leash of `ahead_bytes`. From here on `follower` notes reads.
    pub(super) fn new(follower: &Arc<Follower>, ahead_bytes: u64) -> Self {
        follower.is_watched.store(true, Ordering::Relaxed);
        follower.now_ms();
        Self { follower: follower.clone(), ahead_bytes: ahead_bytes.max(CHUNK_BYTES) }
    }

    /// Whether the stream must wait at `at`.
    fn must_wait(&self, at: StreamOffset) -> bool {
        self.follower.end().is_some_and(|end| at.get() > end.saturating_add(self.ahead_bytes))
    }

    /// Whether a chunk that starts at `at` may be read soon.
    ///
    /// Once the stream need not wait, it takes a chunk's length. So a chunk may start that much further ahead, for
    /// example a small chunk between two big members.
    pub(super) fn is_followed(&self, at: StreamOffset) -> bool {
        let most = self.ahead_bytes + CHUNK_BYTES;
        let ahead = |end: u64| end <= at.get() + CHUNK_BYTES && at.get() <= end + most;
        self.follower.end().is_some_and(ahead)
    }
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
        // The cache may begin or cease to keep bytes while the stream runs, so they must fit the smaller of both
        // places.
        let aside_bytes = self.admission.free_aside_bytes();
        let held_bytes = match most_bytes {
            0..LEAST_BYTES => aside_bytes,
            most_bytes => most_bytes.min(aside_bytes),
        };
        Some(Leash::new(&self.follower, held_bytes / AHEAD_SHARE))
    }

    /// Waits until a stream that has reached `at` may go on. Blocking.
    pub(super) fn wait_for_reader(&self, leash: &Leash, at: StreamOffset, transfer: &Transfer) {
        while !self.closed.is_cancelled() && !transfer.is_awaited() && leash.must_wait(at) {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reader_is_followed_from_its_first_read_on_and_only_while_somebody_watches() {
        let follower = Arc::new(Follower::default());
        follower.note(StreamOffset(7));
        assert_eq!(follower.end(), None, "nobody watched");
        let _leash = Leash::new(&follower, 0);
        assert_eq!(follower.end(), None, "nobody has read");
        follower.note(StreamOffset(9));
        assert_eq!(follower.end(), Some(9));
    }

    proptest! {
        /// A stream takes at most a chunk's length whenever it need not wait. Every chunk that starts in these
        /// bytes is followed, so no bytes are thrown away.
        #[test]
        fn whatever_a_stream_takes_before_it_waits_is_followed(
            read in 0..100 * CHUNK_BYTES, ahead_bytes in 0..20 * CHUNK_BYTES,
            ahead in 0..30 * CHUNK_BYTES, taken in 0..=CHUNK_BYTES,
        ) {
            let follower = Arc::new(Follower::default());
            let leash = Leash::new(&follower, ahead_bytes);
            follower.note(StreamOffset(read));
            let at = StreamOffset(read + ahead);
            prop_assert!(leash.must_wait(at) || leash.is_followed(at + taken));
            prop_assert!(!leash.is_followed(StreamOffset(read + ahead_bytes.max(CHUNK_BYTES) + CHUNK_BYTES + 1)));
        }
    }
}
