//! Reads: resident bytes at once, others as a future with a deadline.
//!
//! A future, not a wait: whoever serves a kernel moves it into a task, so that a stalled
//! connection never holds one of the kernel's threads.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::FsError;
use crate::fetch::Layer;
use crate::layer::StreamOffset;

/// How many bytes of replies may be assembled at once; further reads wait for their turn, within
/// their deadline. 64 MiB: 64 requests of the largest size, or 512 of the kernel's usual 128 KiB.
pub(super) const PENDING_BYTES: u32 = 64 * 1024 * 1024;

/// What a read came to.
pub enum Read<'a> {
    /// The bytes; fewer than asked for only at the end of the file.
    Resident(&'a [u8]),
    /// Some byte is not in the cache.
    Pending(PendingRead),
}

/// A read that has to wait for bytes. Owns all it needs.
pub struct PendingRead {
    pub(super) layer: Arc<Layer>,
    pub(super) range: Range<StreamOffset>,
    pub(super) turns: Arc<Semaphore>,
    pub(super) deadline: Duration,
}

impl PendingRead {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// [`FsError::TimedOut`] at the deadline, [`FsError::Fetch`] when they cannot be had.
    pub async fn finish(self) -> Result<Bytes, FsError> {
        let read = async {
            let bytes = self.range.end - self.range.start;
            // A read larger than the whole bound takes all of it: one at a time, but it runs.
            let turns = bytes.min(u64::from(PENDING_BYTES)) as u32;
            let _turn = self.turns.acquire_many(turns).await.expect("it is never closed");
            Ok(self.layer.read(self.range.clone()).await?)
        };
        match tokio::time::timeout(self.deadline, read).await {
            Ok(result) => result,
            Err(_) => Err(FsError::TimedOut(self.deadline)),
        }
    }
}
