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
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// Whether it has a stream and writes: from then on its chunks stay its own.
    is_writing: AtomicBool,
}

impl Transfer {
    pub(super) fn new(start: StreamOffset) -> Arc<Self> {
        let progress = watch::Sender::new(Progress::At(start));
        Arc::new(Self { progress, is_writing: AtomicBool::new(false) })
    }

    /// Everything before `at` has reached the cache.
    pub(super) fn reached(&self, at: StreamOffset) {
        self.progress.send_modify(|progress| {
            if let Progress::At(reached) = progress {
                *reached = at.max(*reached);
            }
        });
    }

    /// It brings everything from the stream's start on: nothing has reached the cache yet.
    pub(super) fn rewind(&self) {
        self.progress.send_modify(|progress| {
            if let Progress::At(reached) = progress {
                *reached = StreamOffset(0);
            }
        });
    }

    /// Says that its chunks cannot be taken over any more. Called under the lock of the claims.
    pub(super) fn begin_to_write(&self) {
        self.is_writing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_writing(&self) -> bool {
        self.is_writing.load(Ordering::Relaxed)
    }

    /// Whether it will bring nothing before `end` any more.
    pub(super) fn has_passed(&self, end: StreamOffset) -> bool {
        match *self.progress.borrow() {
            Progress::At(reached) => reached >= end,
            Progress::Ended(_) => true,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Ended(_))
    }

    /// Waits until nothing more will come, for whatever reason.
    pub(super) async fn ended(&self) {
        let mut progress = self.progress.subscribe();
        let ended = progress.wait_for(|progress| matches!(progress, Progress::Ended(_)));
        ended.await.expect("the sender lives in self");
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
