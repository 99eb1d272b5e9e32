//! Makes room for bytes that are about to be written, and reports when there is none.
//!
//! ```text
//! reserve: counted --over a bound--> evict --> written --> kept in the account
//!             '--nothing can be evicted--> Full, DiskFull
//! write:   the file system is full --> evict as much --> write again, a few times
//! ```
//!
//! A cache that cannot keep bytes fails no read: the caller serves them from memory. The log says so once, and
//! [`super::Cache::trouble`] for as long as that lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::CacheError;
use super::budget::Excess;
use super::known::Shared;
use crate::layer::layout::CHUNK_BYTES;

/// The bytes that an eviction frees beyond the need, as a share of the cache. So the sort of all groups (some
/// milliseconds for a terabyte) is paid once in many writes.
const SLACK_SHARE: u64 = 128;
/// The most bytes that an eviction frees beyond the need: more would empty the cache for nothing.
const MOST_SLACK_BYTES: u64 = 64 * 1024 * 1024;

/// A cache that may hold less keeps nothing: its chunks would be gone before a reader of a few of them
/// has taken the last one. The kernel asks for at most four at a time (1 MiB); as many more may be on
/// their way behind them.
pub const LEAST_BYTES: u64 = 8 * CHUNK_BYTES;

/// The attempts of a write that finds the file system full, each after an eviction: others may
/// take what was freed, but not for ever.
const MOST_ATTEMPTS: u32 = 4;

/// The pause after a refused write: a read should not wait for each refusal.
const PAUSE: Duration = Duration::from_secs(1);
/// The shortest interval between two log messages that nothing is kept, if the trouble comes and goes.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Bytes that are counted, and not yet written. They go out of the account when it is dropped.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Reserved {
    /// The bytes are on disk, and stay in the account.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.budget.subtract(self.bytes);
    }
}

/// Why nothing is kept at the moment.
#[derive(Default)]
pub(super) struct Trouble {
    /// Looked at for every chunk, without the lock.
    is_on: AtomicBool,
    state: Mutex<TroubleState>,
}

#[derive(Default)]
struct TroubleState {
    /// Why the last write failed, if it did.
    reason: Option<String>,
    /// The end of the pause.
    pause_ends: Option<Instant>,
    /// The time of the last log message about it.
    said: Option<Instant>,
    /// Whether the log says that nothing is kept, and not yet that it is over.
    is_told: bool,
}

impl Shared {
    /// Counts `bytes` that are about to be written, and makes room for them.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reserved, CacheError> {
        if let Some(capacity_bytes) = self.budget.capacity_bytes()
            && capacity_bytes < LEAST_BYTES
        {
            return Err(CacheError::Full { capacity_bytes });
        }
        self.see_all();
        self.budget.add(bytes);
        let reserved = Reserved { shared: self.clone(), bytes };
        if self.budget.excess(&self.root, bytes)?.is_none() {
            return Ok(reserved);
        }
        let _one_at_a_time = self.evicting.lock();
        // Layers that were in use count for more than they have until they are counted.
        self.count_all(&|| true);
        let Some(excess) = self.budget.excess(&self.root, bytes)? else { return Ok(reserved) };
        // Evict nothing if evicting everything would not be enough.
        if excess.bytes() <= self.evictable_bytes() {
            let freed = self.evict(excess.bytes() + self.slack());
            if freed >= excess.bytes() {
                return Ok(reserved);
            }
        }
        match self.budget.excess(&self.root, bytes)? {
            None => Ok(reserved),
            Some(Excess::Capacity { capacity_bytes, .. }) => {
                Err(CacheError::Full { capacity_bytes })
            }
            Some(Excess::FreeSpace { available_bytes, .. }) => Err(CacheError::DiskFull {
                folder: self.root.path().to_owned(),
                available_bytes,
                keep_free_bytes: self.budget.keep_free_bytes(),
            }),
        }
    }

    /// The most that an eviction can free.
    fn evictable_bytes(&self) -> u64 {
        self.all_known().iter().map(|known| known.resident_bytes()).sum()
    }

    /// The bytes to be freed beyond the need: whole chunks, so that a small cache loses none for nothing.
    fn slack(&self) -> u64 {
        let slack = (self.budget.used_bytes() / SLACK_SHARE).min(MOST_SLACK_BYTES);
        slack / CHUNK_BYTES * CHUNK_BYTES
    }

    /// Writes some `bytes`. Where the file system is full, evicts as much and writes again. To be
    /// called without a lock of the cache.
    pub(super) fn with_room<T>(
        self: &Arc<Self>,
        bytes: u64,
        write: impl Fn() -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let mut written = write();
        for attempt in 0..MOST_ATTEMPTS {
            match &written {
                Err(error) if error.is_out_of_room() => {}
                _ => break,
            }
            let wanted = bytes.max(CHUNK_BYTES) << attempt;
            let freed = {
                let _one_at_a_time = self.evicting.lock();
                self.evict(wanted + self.slack())
            };
            if freed == 0 {
                break;
            }
            written = write();
        }
        written
    }

    /// Makes room for `bytes` on the file system, for files that are not counted.
    pub(super) fn make_room_on_disk(self: &Arc<Self>, bytes: u64) -> Result<(), CacheError> {
        let missing = |available: u64| bytes.saturating_sub(available);
        let wanted = missing(self.root.available_bytes()?);
        if wanted == 0 {
            return Ok(());
        }
        {
            let _one_at_a_time = self.evicting.lock();
            if wanted <= self.evictable_bytes() {
                self.evict(wanted);
            }
        }
        let available_bytes = self.root.available_bytes()?;
        match missing(available_bytes) {
            0 => Ok(()),
            _ => Err(CacheError::DiskFull {
                folder: self.root.path().to_owned(),
                available_bytes,
                keep_free_bytes: self.budget.keep_free_bytes(),
            }),
        }
    }

    /// Whether a write is worth trying: not right after the disk has refused one.
    pub(super) fn may_write(&self) -> bool {
        !self.is_in_trouble()
            || self.trouble.state.lock().pause_ends.is_none_or(|end| Instant::now() >= end)
    }

    /// Takes note of a write that succeeded.
    pub(super) fn note_kept(&self) {
        if !self.is_in_trouble() {
            return;
        }
        let mut trouble = self.trouble.state.lock();
        self.trouble.is_on.store(false, Ordering::Relaxed);
        trouble.pause_ends = None;
        trouble.reason = None;
        if std::mem::take(&mut trouble.is_told) {
            tracing::info!("the cache keeps bytes again");
        }
    }

    /// Takes note of bytes that could not be kept, and says so now and then.
    pub(super) fn note_trouble(&self, error: &CacheError) {
        let mut trouble = self.trouble.state.lock();
        self.trouble.is_on.store(true, Ordering::Relaxed);
        let now = Instant::now();
        if error.is_about_the_disk() {
            trouble.pause_ends = Some(now + PAUSE);
        }
        trouble.reason = Some(error.to_string());
        let is_due = trouble.said.is_none_or(|said| now - said >= LOG_INTERVAL);
        if is_due && !std::mem::replace(&mut trouble.is_told, true) {
            trouble.said = Some(now);
            tracing::warn!(%error, "the cache cannot keep what is read: reads go through without it");
        }
    }

    /// Whether the last write failed.
    pub(super) fn is_in_trouble(&self) -> bool {
        self.trouble.is_on.load(Ordering::Relaxed)
    }

    /// Why nothing is kept at the moment.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.state.lock().reason.clone()
    }
}
