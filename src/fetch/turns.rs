//! Turns for work that makes no request: replies to readers, and digests of whole layers.
//!
//! A quarter of the memory is for replies alone. A reply is assembled when its bytes have come. So a reply never
//! waits for a transfer, and a transfer never waits for a reply.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Layers whose digests are computed at a time: a thread and a stream of the disk each.
const MOST_HASHING: usize = 2;
/// The unit in which memory for replies is counted: a page.
const REPLY_UNIT_BYTES: u64 = 4096;

/// The memory for replies, and the turns of digests.
pub(super) struct Turns {
    replies: Arc<Semaphore>,
    reply_units: u32,
    hashing: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new(reply_bytes: u64) -> Arc<Self> {
        let reply_units = (reply_bytes / REPLY_UNIT_BYTES).clamp(1, u64::from(u32::MAX >> 3));
        Arc::new(Self {
            replies: Arc::new(Semaphore::new(reply_units as usize)),
            reply_units: reply_units as u32,
            hashing: Arc::new(Semaphore::new(MOST_HASHING)),
        })
    }

    /// Reserves memory for a reply; a reply larger than all memory for replies takes all of it.
    pub(super) async fn reserve_reply(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = bytes.div_ceil(REPLY_UNIT_BYTES).min(u64::from(self.reply_units)) as u32;
        let reservation = self.replies.clone().acquire_many_owned(units).await;
        reservation.expect("the semaphore is never closed")
    }

    /// Memory for replies that is reserved now, in bytes.
    pub(super) fn reserved_bytes(&self) -> u64 {
        let units = self.reply_units as usize - self.replies.available_permits();
        units as u64 * REPLY_UNIT_BYTES
    }

    /// Waits until the digest of a layer may be computed; the turn ends when the value is dropped.
    pub(super) fn hashing(&self) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let hashing = self.hashing.clone();
        async move { hashing.acquire_owned().await.expect("the semaphore is never closed") }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_reply_larger_than_its_memory_is_made_alone() {
        let turns = Turns::new(4 * 1024 * 1024);
        let large = turns.reserve_reply(u64::MAX).await;
        assert_eq!(turns.reserved_bytes(), 4 * 1024 * 1024);
        assert!(turns.reserve_reply(1).now_or_never().is_none());
        drop(large);
        assert_eq!(turns.reserved_bytes(), 0);
    }
}
