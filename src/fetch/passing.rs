//! Bytes that the cache could not keep. They stay in memory until their readers have taken them.
//!
//! ```text
//! writer --Unkept--> put: memory set aside --> held --read to its end--.
//!                       | no memory left         '--idle for 2 s-------+--> gone
//!                       '--> the least useful go first ----------------'
//! ```
//!
//! - The memory is a part of `--memory`: it is set aside at the admission before bytes are held, and no
//!   transfer gets it meanwhile.
//! - A chunk that was read to its end goes first, then the chunk that was used longest ago. Bytes that a reader
//!   waits for may displace any others. Bytes that were only fetched ahead are refused where they would displace
//!   bytes that may still be read.
//! - Many readers may displace each other's bytes. A reader that lost some begins a retry (`retry`), and
//!   nothing displaces its bytes meanwhile. So every reader ends.
//! - Bytes are dropped after 2 s without a reader, and after 10 s in any case, so that the cache is offered them
//!   again. The exception is bytes in front of a reader that a stream waits for. A slow reader that lost them would
//!   need another stream over the whole layer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::follower::Leash;
use crate::layer::StreamOffset;
use crate::layer::layout::CHUNK_BYTES;
use crate::source::admission::Admission;

/// The time that bytes wait for a reader. 2 s: a waiting reader takes its bytes within milliseconds. A reader in
/// order comes back for the rest of a chunk within a second or two.
const IDLE: Duration = Duration::from_secs(2);
/// The longest time that bytes are held, however often they are read.
const MOST_HELD: Duration = Duration::from_secs(10);
/// The interval at which idle bytes are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A chunk of a layer. The layer has its number in the admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) layer: usize,
    pub(super) chunk: u32,
}

/// How much bytes are needed, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// A reader that has lost these bytes before waits for them.
    Retried,
    /// A reader waits for the bytes.
    Awaited,
    /// The bytes may be read next.
    Ahead,
}

/// The place of a chunk in a stream that waits for its reader.
pub(super) struct Front {
    pub(super) leash: Leash,
    /// The offset at which the chunk starts.
    pub(super) start: StreamOffset,
}

/// Bytes that are held in memory.
pub(super) struct Passing {
    admission: Arc<Admission>,
    table: Mutex<Table>,
    /// Every read that misses the cache looks here first, without the lock.
    held_bytes: AtomicU64,
}

#[derive(Default)]
struct Table {
    chunks: HashMap<Key, Held>,
    is_swept: bool,
}

/// The bytes `start..end` of a chunk.
struct Held {
    start: u32,
    end: u32,
    pieces: Vec<Bytes>,
    /// The end of the furthest read of the chunk.
    read_to: u32,
    /// Whether nothing displaces the chunk until it was read to its end, or until the retry is over.
    is_pinned: bool,
    front: Option<Front>,
    used: Instant,
    began: Instant,
}

impl Held {
    fn bytes(&self) -> u64 {
        u64::from(self.end - self.start)
    }

    fn is_done(&self) -> bool {
        self.read_to >= self.end
    }

    /// Whether a reader comes for the rest of the chunk, however slowly.
    fn is_followed(&self) -> bool {
        let front = self.front.as_ref().filter(|_| !self.is_done());
        front.is_some_and(|front| front.leash.is_followed(front.start))
    }

    fn may_go_for(&self, need: Need) -> bool {
        match need {
            Need::Retried | Need::Awaited => !self.is_pinned || self.is_done(),
            Need::Ahead => self.is_done(),
        }
    }

    fn copy(&self, from: u32, buffer: &mut [u8]) {
        let mut skip = (from - self.start) as usize;
        let mut filled = 0;
        for piece in &self.pieces {
            if filled == buffer.len() {
                return;
            }
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let piece = &piece[skipped..];
            let length = piece.len().min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&piece[..length]);
            filled += length;
        }
    }
}

impl Passing {
    pub(super) fn new(admission: Arc<Admission>) -> Arc<Self> {
        Arc::new(Self { admission, table: Mutex::default(), held_bytes: AtomicU64::new(0) })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held_bytes.load(Ordering::Acquire) == 0
    }

    /// How many more chunks of bytes that are only fetched ahead can be held.
    pub(super) fn free_chunks(&self) -> u32 {
        let free_bytes = self.admission.free_aside_bytes();
        u32::try_from(free_bytes / CHUNK_BYTES).unwrap_or(u32::MAX)
    }

    /// Holds bytes of a chunk from `start` on; `false` where bytes were only fetched ahead and there is no memory.
    pub(super) fn put(
        self: &Arc<Self>,
        key: Key,
        start: u32,
        bytes: Bytes,
        need: Need,
        front: Option<Front>,
        runtime: &Handle,
    ) -> bool {
        let mut table = self.table.lock();
        let length = bytes.len() as u32;
        if length == 0 {
            return true;
        }
        if table.chunks.get(&key).is_some_and(|held| held.end != start) {
            self.remove(&mut table, key);
        }
        if !self.set_aside(&mut table, key, length.into(), need) {
            return false;
        }
        let now = Instant::now();
        let held = table.chunks.entry(key).or_insert_with(|| Held {
            start,
            end: start,
            pieces: Vec::new(),
            read_to: start,
            is_pinned: false,
            front: None,
            used: now,
            began: now,
        });
        held.end += length;
        held.pieces.push(bytes);
        held.used = now;
        held.is_pinned |= need == Need::Retried;
        held.front = front;
        self.held_bytes.fetch_add(length.into(), Ordering::Release);
        if !std::mem::replace(&mut table.is_swept, true) {
            runtime.spawn(self.clone().sweep());
        }
        true
    }

    /// Sets memory aside. Where none is free, it drops less useful bytes.
    fn set_aside(&self, table: &mut Table, key: Key, bytes: u64, need: Need) -> bool {
        while !self.admission.set_aside(bytes) {
            let others = table.chunks.iter().filter(|(other, _)| **other != key);
            let least = others
                .filter(|(_, held)| held.may_go_for(need))
                .min_by_key(|(_, held)| (!held.is_done(), held.used))
                .map(|(other, _)| *other);
            match (least, need) {
                (Some(other), _) => self.remove(table, other),
                (None, Need::Ahead) => return false,
                (None, Need::Awaited | Need::Retried) => {
                    // A chunk that a reader waits for is always held, however little memory there is.
                    self.admission.set_aside_anyway(bytes);
                    return true;
                }
            }
        }
        true
    }

    fn remove(&self, table: &mut Table, key: Key) {
        if let Some(held) = table.chunks.remove(&key) {
            self.held_bytes.fetch_sub(held.bytes(), Ordering::Release);
            self.admission.give_back_aside(held.bytes());
        }
    }

    /// Fills `buffer` with the bytes of a chunk from `from` on; `false` where some are not held.
    pub(super) fn read(&self, key: Key, from: u32, buffer: &mut [u8]) -> bool {
        let mut table = self.table.lock();
        let Some(held) = table.chunks.get_mut(&key) else { return false };
        let end = u64::from(from) + buffer.len() as u64;
        if from < held.start || end > u64::from(held.end) {
            return false;
        }
        held.copy(from, buffer);
        held.read_to = held.read_to.max(end as u32);
        held.used = Instant::now();
        true
    }

    /// Whether the bytes `from..to` of a chunk are held.
    pub(super) fn has(&self, key: Key, from: u32, to: u32) -> bool {
        let table = self.table.lock();
        table.chunks.get(&key).is_some_and(|held| held.start <= from && to <= held.end)
    }

    /// The retry of a layer is over, so its bytes may be dropped.
    pub(super) fn unpin(&self, layer: usize) {
        let mut table = self.table.lock();
        let of_layer = table.chunks.iter_mut().filter(|(key, _)| key.layer == layer);
        of_layer.for_each(|(_, held)| held.is_pinned = false);
    }

    /// Drops all bytes of a layer that is closed.
    pub(super) fn forget(&self, layer: usize) {
        if !self.is_empty() {
            self.remove_where(|key, _| key.layer == layer);
        }
    }

    fn remove_where(&self, is_meant: impl Fn(&Key, &Held) -> bool) -> bool {
        let mut table = self.table.lock();
        let meant = table.chunks.iter().filter(|(key, held)| is_meant(key, held));
        let meant: Vec<Key> = meant.map(|(key, _)| *key).collect();
        meant.into_iter().for_each(|key| self.remove(&mut table, key));
        table.is_swept = !table.chunks.is_empty();
        table.is_swept
    }

    /// Drops idle bytes at intervals, until no bytes are left.
    async fn sweep(self: Arc<Self>) {
        while self.sweep_once(IDLE) {
            tokio::time::sleep(SWEEP_INTERVAL).await;
        }
    }

    /// Drops bytes that were idle for `idle`; returns whether any are left.
    fn sweep_once(&self, idle: Duration) -> bool {
        self.remove_where(|_, held| {
            let is_old = held.used.elapsed() >= idle || held.began.elapsed() >= MOST_HELD;
            is_old && !held.is_followed()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::admission::AdmissionConfig;

    const MIB: u64 = 1024 * 1024;

    fn passing(memory_bytes: u64) -> Arc<Passing> {
        let transfer_memory_bytes = memory_bytes / 4 * 3;
        let config = AdmissionConfig { transfer_memory_bytes, ..AdmissionConfig::default() };
        Passing::new(Admission::new(config))
    }

    fn key(chunk: u32) -> Key {
        Key { layer: 1, chunk }
    }

    fn chunk(byte: u8) -> Bytes {
        vec![byte; CHUNK_BYTES as usize].into()
    }

    #[tokio::test]
    async fn what_no_reader_comes_for_goes_and_its_memory_too() {
        let passing = passing(64 * MIB);
        let runtime = Handle::current();
        assert!(passing.put(key(0), 0, chunk(1), Need::Awaited, None, &runtime));
        assert_eq!(passing.admission.reserved_bytes(), CHUNK_BYTES);
        let mut buffer = [0; 10];
        assert!(passing.read(key(0), 100, &mut buffer) && buffer == [1; 10]);
        assert!(!passing.read(key(0), CHUNK_BYTES as u32 - 9, &mut buffer), "beyond its end");
        assert!(!passing.read(key(1), 0, &mut buffer));
        assert!(passing.sweep_once(Duration::from_secs(1000)) && !passing.is_empty());
        assert!(!passing.sweep_once(Duration::ZERO));
        assert!(passing.is_empty() && !passing.read(key(0), 0, &mut buffer));
        assert_eq!(passing.admission.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn bytes_in_front_of_a_reader_stay_until_it_has_passed_them() {
        let (passing, follower) = (passing(64 * MIB), Arc::default());
        let leash = Leash::new(&follower, MIB);
        let put = |number: u32| {
            let start = StreamOffset(u64::from(number) * CHUNK_BYTES);
            let front = Some(Front { leash: leash.clone(), start });
            passing.put(key(number), 0, chunk(1), Need::Ahead, front, &Handle::current())
        };
        assert!((0..8).all(put));
        follower.note(StreamOffset(2 * CHUNK_BYTES + 1));
        assert!(passing.sweep_once(Duration::ZERO));
        let here: Vec<u32> = (0..8).filter(|&number| passing.has(key(number), 0, 1)).collect();
        assert_eq!(here, [2, 3, 4, 5, 6, 7], "what the reader has passed goes");
        let mut all = vec![0; CHUNK_BYTES as usize];
        assert!(passing.read(key(2), 0, &mut all));
        follower.note(StreamOffset(100 * CHUNK_BYTES));
        assert!(!passing.sweep_once(Duration::ZERO), "the reader is elsewhere");
    }

    #[tokio::test]
    async fn what_is_awaited_displaces_what_is_not_and_what_is_ahead_only_what_was_read() {
        let passing = passing(8 * MIB);
        let runtime = Handle::current();
        let most = passing.free_chunks();
        assert!(most >= 4, "{most}");
        for number in 0..most {
            assert!(passing.put(key(number), 0, chunk(number as u8), Need::Ahead, None, &runtime));
        }
        assert_eq!(passing.free_chunks(), 0);
        assert!(
            !passing.put(key(99), 0, chunk(9), Need::Ahead, None, &runtime),
            "nothing was read"
        );
        let mut all = vec![0; CHUNK_BYTES as usize];
        assert!(passing.read(key(2), 0, &mut all));
        assert!(passing.put(key(99), 0, chunk(9), Need::Ahead, None, &runtime));
        assert!(!passing.has(key(2), 0, 1) && passing.has(key(0), 0, 1));
        assert!(passing.put(key(100), 0, chunk(9), Need::Awaited, None, &runtime));
        assert!(!passing.has(key(0), 0, 1) && passing.has(key(1), 0, 1), "the oldest went");
        passing.forget(1);
        assert_eq!((passing.is_empty(), passing.admission.reserved_bytes()), (true, 0));
    }

    #[tokio::test]
    async fn bytes_that_a_reader_lost_before_stay_until_they_were_read_or_its_retry_is_over() {
        let passing = passing(8 * MIB);
        let runtime = Handle::current();
        let put_many = |need| {
            for number in 100..200 {
                assert!(passing.put(key(number), 0, chunk(1), need, None, &runtime));
            }
        };
        assert!(passing.put(key(0), 0, chunk(7), Need::Retried, None, &runtime));
        put_many(Need::Awaited);
        let mut all = vec![0; CHUNK_BYTES as usize];
        assert!(passing.read(key(0), 0, &mut all[..10]) && all[..10] == [7; 10]);
        put_many(Need::Awaited);
        assert!(passing.read(key(0), 0, &mut all), "it was read in part");
        put_many(Need::Awaited);
        assert!(!passing.has(key(0), 0, 1), "it was read to its end");
        assert!(passing.put(key(0), 0, chunk(7), Need::Retried, None, &runtime));
        passing.unpin(2);
        put_many(Need::Awaited);
        assert!(passing.has(key(0), 0, 1), "that was another layer's retry");
        passing.unpin(1);
        put_many(Need::Awaited);
        assert!(!passing.has(key(0), 0, 1), "the retry is over");
    }

    proptest! {
        /// Bytes of any lengths that follow one another, or begin anew.
        #[test]
        fn what_is_read_is_what_was_put(
            steps in prop::collection::vec((0..3u32, any::<bool>(), 1..2_000usize, any::<u8>()), 1..40),
            at in any::<prop::sample::Index>(), length in 1..3_000usize,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let passing = passing(64 * MIB);
            let mut expected: HashMap<u32, (u32, Vec<u8>)> = HashMap::new();
            for (number, goes_on, length, byte) in steps {
                let (start, bytes) = expected.entry(number).or_default();
                if !goes_on {
                    (*start, *bytes) = (*start + bytes.len() as u32 + 7, Vec::new());
                }
                let place = *start + bytes.len() as u32;
                bytes.extend(std::iter::repeat_n(byte, length));
                let piece = Bytes::from(vec![byte; length]);
                prop_assert!(passing.put(key(number), place, piece, Need::Awaited, None, runtime.handle()));
            }
            for (number, (start, bytes)) in &expected {
                let from = at.index(bytes.len());
                let length = length.min(bytes.len() - from);
                let mut buffer = vec![0; length];
                prop_assert!(passing.read(key(*number), start + from as u32, &mut buffer));
                prop_assert_eq!(&buffer[..], &bytes[from..from + length]);
                prop_assert!(*start == 0 || !passing.has(key(*number), start - 1, *start));
            }
            let held: u64 = expected.values().map(|(_, bytes)| bytes.len() as u64).sum();
            prop_assert_eq!(passing.held_bytes.load(Ordering::Relaxed), held);
        }
    }
}
