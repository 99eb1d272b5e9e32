//! One transfer: a run of chunks on its way from a source to the cache, and who waits for it.
//!
//! ```text
//!            pieces (bounded)           append
//! source ----------------------> writer -------> cache
//!   (async task: network)        (blocking thread: hash, disk)
//!                                   '--> progress --> waiters
//! ```
//!
//! Waiters are woken as bytes reach the cache, not when the request ends. The task and the
//! writer are two so that the network never waits for the disk before the channel is full, and
//! no runtime thread ever hashes or writes.

use std::sync::Arc;

use tokio::sync::watch;

use super::FetchError;
use crate::layer::StreamOffset;

/// How far a transfer has come.
#[derive(Clone, Debug)]
enum Progress {
    /// Everything before this offset has reached the cache.
    At(StreamOffset),
    /// Nothing more will come; `Err` says why what is missing did not.
    Ended(Result<(), FetchError>),
}

/// A run of chunks in flight.
#[derive(Debug)]
pub(super) struct Transfer {
    progress: watch::Sender<Progress>,
}

impl Transfer {
    pub(super) fn new(start: StreamOffset) -> Arc<Self> {
        Arc::new(Self { progress: watch::Sender::new(Progress::At(start)) })
    }

    /// Everything before `at` has reached the cache.
    pub(super) fn reached(&self, at: StreamOffset) {
        self.progress.send_modify(|progress| {
            if let Progress::At(reached) = progress {
                *reached = at.max(*reached);
            }
        });
    }

    /// Nothing more will come. Only the first end counts.
    pub(super) fn end(&self, result: Result<(), FetchError>) {
        self.progress.send_modify(|progress| {
            if let Progress::At(_) = progress {
                *progress = Progress::Ended(result);
            }
        });
    }

    /// Waits until everything before `end` has reached the cache, or nothing more will come.
    pub(super) async fn wait(&self, end: StreamOffset) -> Result<(), FetchError> {
        let mut progress = self.progress.subscribe();
        let state = progress.wait_for(|progress| match progress {
            Progress::At(reached) => *reached >= end,
            Progress::Ended(_) => true,
        });
        match &*state.await.expect("the sender lives in self") {
            Progress::At(_) => Ok(()),
            Progress::Ended(result) => result.clone(),
        }
    }
}

/// Ends its transfer when dropped, so that a task that panics or is cancelled leaves no waiter.
pub(super) struct EndOnDrop {
    pub(super) transfer: Arc<Transfer>,
    pub(super) place: String,
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        let detail = "the transfer was cancelled: kitfs is shutting down".to_owned();
        let place = std::mem::take(&mut self.place);
        let error = crate::source::SourceError::Unavailable { place, detail };
        self.transfer.end(Err(error.into()));
    }
}

/// What a reader has to wait for: a transfer, until this offset.
pub(super) type Wait = (Arc<Transfer>, StreamOffset);
