//! Reads: resident bytes at once, others as a future with a deadline.
//!
//! A future, not a wait: whoever serves a kernel moves it into a task, so that a stalled
//! connection never holds one of the kernel's threads.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::FsError;
use super::stored_file::StoredFile;
use crate::fetch::Layer;
use crate::layer::Extents;
use crate::process::running_time;
use crate::source::Priority;

/// What a read came to.
pub enum Read<'a> {
    /// The bytes; fewer than asked for only at the end of the file.
    Resident(&'a [u8]),
    /// Some byte is not in the cache.
    Pending(PendingRead),
}

/// The bytes of a read that had to wait, and the memory that is reserved for them.
pub struct Reply {
    bytes: Bytes,
    _memory: OwnedSemaphorePermit,
}

impl std::ops::Deref for Reply {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A read that has to wait for bytes. Owns all it needs.
pub struct PendingRead {
    pub(super) layer: Arc<Layer>,
    pub(super) extents: Extents,
    pub(super) wanted: Range<u64>,
    pub(super) deadline: Duration,
}

impl PendingRead {
    /// Waits for the bytes.
    ///
    /// # Errors
    /// [`FsError::TimedOut`] at the deadline, [`FsError::Fetch`] when they cannot be had.
    pub async fn finish(self) -> Result<Reply, FsError> {
        let read = async {
            let file = StoredFile { layer: &self.layer, extents: &self.extents };
            file.bring(self.wanted.clone(), Priority::OnDemand).await?;
            // From here on nothing waits for the network: the memory for a reply is held for as
            // long as it takes to copy it, unless the bytes were evicted in between.
            let memory = self.layer.reserve_reply(self.wanted.end - self.wanted.start).await;
            let bytes = file.read(self.wanted.clone()).await?;
            Ok(Reply { bytes, _memory: memory })
        };
        match running_time::timeout(self.deadline, read).await {
            Ok(result) => result,
            Err(_) => Err(FsError::TimedOut(self.deadline)),
        }
    }
}
