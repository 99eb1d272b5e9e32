//! The result of a read: resident bytes at once, other bytes as a future with a deadline.
//!
//! The FUSE session moves the future into a task. So a stalled connection never blocks a thread
//! that serves the kernel.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::FsError;
use super::stored_file::StoredFile;
use crate::fetch::{Cause, Layer};
use crate::layer::Extents;

/// The result of a read.
pub enum Read<'a> {
    /// The bytes; fewer than requested only at the end of the file.
    Resident(&'a [u8]),
    /// A read of which some byte is not in the cache.
    Pending(PendingRead),
}

/// The bytes of a read that waited. Holds the memory reservation until the reply is sent.
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

/// A read that has to wait for bytes. Borrows nothing, so a task can own it.
pub struct PendingRead {
    pub(super) layer: Arc<Layer>,
    pub(super) extents: Extents,
    pub(super) wanted: Range<u64>,
    pub(super) deadline: Option<Duration>,
}

impl PendingRead {
    /// Waits for the bytes, for the thread `reader`. Asks for them again while that can help, until the deadline.
    ///
    /// # Errors
    /// [`FsError::GaveUp`] at the deadline, and for failures that waiting does not mend.
    pub async fn finish(self, reader: u32) -> Result<Reply, FsError> {
        let file = StoredFile { layer: &self.layer, extents: &self.extents };
        let attempt = || async {
            file.bring(self.wanted.clone(), Cause::Read).await?;
            // The bytes are in the cache now. Memory is reserved only here, so that the read holds
            // it for a copy and not for a fetch. Only an eviction in between causes a fetch again.
            let memory = self.layer.reserve_reply(self.wanted.end - self.wanted.start).await;
            let bytes = file.read(self.wanted.clone()).await?;
            Ok(Reply { bytes, _memory: memory })
        };
        let stored = self.extents.stored_of(self.wanted.clone());
        Ok(self.layer.persist(stored, reader, self.deadline, attempt).await?)
    }
}
