//! The account of the cache's bytes on disk, its limits, and its clock.
//!
//! Bytes are counted as content, not as blocks: at the borders of pieces a file system may keep up
//! to one block (4 KiB) more. They are counted before they are written, so that writers at the same
//! time do not exceed the limit together.
//!
//! Time is counted in writes: the clock ticks once per append. The least-recently-used order needs no more, because
//! nothing is evicted while nothing is written. Tests need no timer.

use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::Root;
use super::{CacheConfig, CacheError};

/// The most bytes that are written between two looks at the file system's free space: 16 MiB, at
/// 2 GB/s a look (some microseconds) every 8 ms.
const MOST_UNLOOKED_BYTES: u64 = 16 * 1024 * 1024;

/// The share of the room above `--keep-free` that may be written before the next look: a quarter. So
/// the limit holds on a small file system too, unless others fill three quarters of the room meanwhile.
const UNLOOKED_SHARE: u64 = 4;

/// The share of the cache's limit that can be pinned: three quarters. The last quarter is for reads through the
/// daemon, which must always find something to evict.
const PINNED_QUARTERS: u64 = 3;

/// The moment at which the clock begins. Lower moments are seconds since 1970, of uses by earlier processes. 2^40
/// seconds are 34,000 years.
const FIRST_MOMENT: u64 = 1 << 40;

/// The account of one cache folder.
pub(super) struct Budget {
    capacity_bytes: Option<u64>,
    keep_free_bytes: u64,
    used_bytes: AtomicU64,
    pinned_bytes: AtomicU64,
    clock: AtomicU64,
    /// The bytes that may be written before the next look at the free space.
    unlooked_bytes: AtomicU64,
}

/// Bytes that must go before more can be written, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// More than `capacity_bytes` would be used.
    Capacity { bytes: u64, capacity_bytes: u64 },
    /// Less than `keep_free_bytes` would be free.
    FreeSpace { bytes: u64, available_bytes: u64 },
}

impl Excess {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Capacity { bytes, .. } | Self::FreeSpace { bytes, .. } => bytes,
        }
    }
}

impl Budget {
    pub(super) fn new(config: &CacheConfig) -> Self {
        Self {
            capacity_bytes: config.capacity_bytes,
            keep_free_bytes: config.keep_free_bytes,
            used_bytes: AtomicU64::new(0),
            pinned_bytes: AtomicU64::new(0),
            clock: AtomicU64::new(FIRST_MOMENT),
            unlooked_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn capacity_bytes(&self) -> Option<u64> {
        self.capacity_bytes
    }

    pub(super) fn keep_free_bytes(&self) -> u64 {
        self.keep_free_bytes
    }

    /// Bytes of content, with those that are just being written.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn subtract(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "only what was added is subtracted");
    }

    /// Bytes of pinned members, resident or not.
    pub(super) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn pin(&self, bytes: u64) {
        self.pinned_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn unpin(&self, bytes: u64) {
        let before = self.pinned_bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "only what was pinned is unpinned");
    }

    /// The most bytes that may be pinned at a time; everything where nothing is ever evicted.
    pub(super) fn most_pinned_bytes(&self, root: &Root) -> Result<u64, CacheError> {
        let most = match self.keep_free_bytes {
            0 => self.capacity_bytes.unwrap_or(u64::MAX),
            _ => self.most_bytes(root)?,
        };
        Ok(if most == u64::MAX { most } else { most / 4 * PINNED_QUARTERS })
    }

    /// The present, for noting a use.
    pub(super) fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// The moment of a use by an earlier process, at that time in seconds since 1970.
    pub(super) fn moment_before(&self, used_seconds: i64) -> u64 {
        u64::try_from(used_seconds).unwrap_or(0).clamp(1, FIRST_MOMENT - 1)
    }

    /// Advances the clock. Returns the moment that ends, so that reads after a write are later than the write.
    pub(super) fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// The bytes that can be written before something must go.
    pub(super) fn free_bytes(&self, root: &Root) -> Result<u64, CacheError> {
        let on_disk = root.available_bytes()?.saturating_sub(self.keep_free_bytes);
        let capacity = self.capacity_bytes.unwrap_or(u64::MAX);
        Ok(on_disk.min(capacity.saturating_sub(self.used_bytes())))
    }

    /// The most that the cache can hold at this moment, if everything else in it went.
    pub(super) fn most_bytes(&self, root: &Root) -> Result<u64, CacheError> {
        let on_disk = root.available_bytes()?.saturating_add(self.used_bytes());
        let on_disk = on_disk.saturating_sub(self.keep_free_bytes);
        Ok(on_disk.min(self.capacity_bytes.unwrap_or(u64::MAX)))
    }

    /// The bytes that must go before `bytes` that were [added](Self::add) can be written.
    pub(super) fn excess(&self, root: &Root, bytes: u64) -> Result<Option<Excess>, CacheError> {
        if let Some(capacity_bytes) = self.capacity_bytes {
            let used_bytes = self.used_bytes();
            if used_bytes > capacity_bytes {
                let bytes = used_bytes - capacity_bytes;
                return Ok(Some(Excess::Capacity { bytes, capacity_bytes }));
            }
        }
        let (unlooked, ordering) = (&self.unlooked_bytes, Ordering::Relaxed);
        let take = |left: u64| left.checked_sub(bytes);
        if self.keep_free_bytes == 0 || unlooked.fetch_update(ordering, ordering, take).is_ok() {
            return Ok(None);
        }
        let available_bytes = root.available_bytes()?;
        let needed = self.keep_free_bytes.saturating_add(bytes);
        if available_bytes >= needed {
            unlooked.store(unlooked_bytes(available_bytes - needed), ordering);
            return Ok(None);
        }
        unlooked.store(0, ordering);
        Ok(Some(Excess::FreeSpace { bytes: needed - available_bytes, available_bytes }))
    }
}

/// The bytes that may be written before the next look, with so much room on the disk.
fn unlooked_bytes(room_bytes: u64) -> u64 {
    (room_bytes / UNLOOKED_SHARE).min(MOST_UNLOOKED_BYTES)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn budget(capacity_bytes: Option<u64>, keep_free_bytes: u64) -> (Arc<Root>, Budget) {
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig::new(folder.path());
        let budget = Budget::new(&CacheConfig { capacity_bytes, keep_free_bytes, ..config });
        (Root::open(folder.path(), 1).unwrap(), budget)
    }

    #[test]
    fn bytes_above_the_capacity_must_go() {
        let (root, budget) = budget(Some(100), 0);
        budget.add(100);
        assert_eq!(budget.excess(&root, 100).unwrap(), None);
        budget.add(30);
        let excess = budget.excess(&root, 30).unwrap();
        assert_eq!(excess, Some(Excess::Capacity { bytes: 30, capacity_bytes: 100 }));
        budget.subtract(30);
        assert_eq!(budget.excess(&root, 70).unwrap(), None);
        assert_eq!(budget.most_bytes(&root).unwrap(), 100);
    }

    #[test]
    fn a_quarter_of_what_the_cache_may_hold_is_never_pinned() {
        let (root, bounded) = budget(Some(1000), 0);
        assert_eq!(bounded.most_pinned_bytes(&root).unwrap(), 750);
        let (root, full) = budget(None, u64::MAX / 2);
        assert_eq!(full.most_pinned_bytes(&root).unwrap(), 0);
        let (root, unbounded) = budget(None, 0);
        assert_eq!(unbounded.most_pinned_bytes(&root).unwrap(), u64::MAX);
    }

    #[test]
    fn free_space_is_looked_at_first_and_then_before_a_quarter_of_the_room_is_written() {
        let (root, budget) = budget(None, u64::MAX / 2);
        for _ in 0..2 {
            let excess = budget.excess(&root, 1).unwrap();
            assert!(matches!(excess, Some(Excess::FreeSpace { .. })), "asked again until it fits");
        }
        assert_eq!(unlooked_bytes(1 << 20), 1 << 18);
        assert_eq!(unlooked_bytes(u64::MAX), MOST_UNLOOKED_BYTES);
        // The disk has more than a byte. Others use it, so that its exact room is unknown.
        let (root, budget) = self::budget(None, 1);
        assert_eq!(budget.excess(&root, 1).unwrap(), None);
        let unlooked = budget.unlooked_bytes.load(Ordering::Relaxed);
        assert!((1..=MOST_UNLOOKED_BYTES).contains(&unlooked), "{unlooked}");
    }
}
