//! The retry of a reader that lost bytes before it could take them.
//!
//! Where the cache keeps little or nothing, many readers may displace each other's bytes. A reader that has lost
//! some begins a retry. Its bytes are then held in memory (`passing`), whether or not the cache keeps them, and
//! nothing displaces them. A layer has one retry at a time, so retries hold little memory. A host that does not
//! answer holds up only readers of its own layers.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::layer::Inner;
use crate::layer::StreamOffset;

/// The retries of a layer.
#[derive(Default)]
pub(super) struct Retries {
    one_at_a_time: tokio::sync::Mutex<()>,
    /// Whether a retry is running. Each chunk looks here, without the lock.
    is_running: AtomicBool,
    /// The bytes that the retry wants.
    wanted: Mutex<Option<Range<StreamOffset>>>,
}

/// A running retry. It ends when the value is dropped.
pub(super) struct Retry<'a> {
    inner: &'a Inner,
    _one_at_a_time: tokio::sync::MutexGuard<'a, ()>,
}

impl Inner {
    /// Begins a retry for `range`, once no other one is running.
    pub(super) async fn begin_retry(&self, range: &Range<StreamOffset>) -> Retry<'_> {
        let one_at_a_time = self.retries.one_at_a_time.lock().await;
        *self.retries.wanted.lock() = Some(range.clone());
        self.retries.is_running.store(true, Ordering::Release);
        Retry { inner: self, _one_at_a_time: one_at_a_time }
    }

    /// Whether a running retry wants bytes of `range`.
    pub(super) fn is_retried(&self, range: &Range<StreamOffset>) -> bool {
        self.retries.is_running.load(Ordering::Acquire)
            && self
                .retries
                .wanted
                .lock()
                .as_ref()
                .is_some_and(|wanted| wanted.start < range.end && range.start < wanted.end)
    }
}

impl Drop for Retry<'_> {
    fn drop(&mut self) {
        let retries = &self.inner.retries;
        retries.is_running.store(false, Ordering::Release);
        *retries.wanted.lock() = None;
        self.inner.passing.unpin(self.inner.number());
    }
}
