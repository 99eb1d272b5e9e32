//! Durability of a layer: the cache's records must be true after a power cut.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::layer::Inner;
use super::{FetchError, Layer, off_the_runtime};

/// The time without a waiting reader after which a newly confirmed layer is synced. 1 s: pages of the layer compete
/// with the readers' bytes for the disk.
const QUIET: Duration = Duration::from_secs(1);
/// The longest wait for such a moment. The kernel writes pages of this age anyway
/// (vm.dirty_expire_centisecs).
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The interval at which the quiet time is checked.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Layer {
    /// Resident bytes that the disk may lack, because the machine died while they were written.
    pub fn unchecked_bytes(&self) -> u64 {
        self.inner.store.unchecked_bytes()
    }

    /// Checks the bytes that are unchecked since the machine died, and drops chunks that are damaged. Returns at
    /// once where all are checked, and else takes about 1 s per GiB.
    ///
    /// # Errors
    /// When cache files cannot be read.
    pub async fn look(&self) -> Result<(), FetchError> {
        if self.unchecked_bytes() == 0 {
            return Ok(());
        }
        let inner = self.inner.clone();
        Ok(off_the_runtime(move || inner.store.look(&|| !inner.closed.is_cancelled())).await?)
    }

    /// Returns when all resident bytes would survive a power cut. Marks the layer as warmed, so layers that were
    /// only read are evicted before it.
    ///
    /// # Errors
    /// When the disk does not take the bytes.
    pub async fn keep_warmed(&self) -> Result<(), FetchError> {
        let store = self.inner.store.clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let keep = move || store.mark_warmed(now_seconds).and_then(|()| store.sync());
        off_the_runtime(keep).await?;
        Ok(())
    }
}

impl Inner {
    /// Syncs a newly confirmed layer in a quiet moment, on a thread of its own.
    pub(super) fn sync_quietly(self: &Arc<Self>) {
        let deadline = Instant::now() + LONGEST_WAIT;
        while self.admission.quiet_for() < QUIET && Instant::now() < deadline {
            if self.closed.is_cancelled() {
                // The process may be about to end. A layer without a sync is checked once more at the next start,
                // no worse.
                return;
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
        if let Err(error) = self.store.sync() {
            tracing::warn!(layer = %self.spec.blob.digest, %error, "a complete layer was not synced");
        }
    }
}
