//! One transfer: a run of chunks on its way from a source to the cache, and the readers that wait for it.
//!
//! ```text
//!            batches (bounded)          append
//! source ----------------------> writer -------> cache
//!   (async task: network)        (blocking thread: hash, disk)
//!                                   '--> progress --> those whose bytes are there now
//! ```
//!
//! A waiter wakes when its own bytes have reached the cache, not when the request ends. The task and the writer are
//! separate, so the network waits for the disk only when the channel is full. No runtime thread ever hashes or
//! writes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::FetchError;
use crate::layer::StreamOffset;
use crate::source::Urgency;

/// The ranges that readers want of a transfer, noted one by one. 64: more readers of one stream are rare, and each
/// chunk is compared with all ranges.
const MOST_WANTED: usize = 64;

/// A run of chunks in flight.
#[derive(Debug)]
pub(super) struct Transfer {
    urgency: Urgency,
    progress: Mutex<Progress>,
    /// Notified when a reader begins to wait.
    wanted: Notify,
    /// Whether the transfer has a stream and writes. From then on no other transfer takes its chunks over.
    is_writing: AtomicBool,
    /// Whether the transfer has paused for a reader, so that its time does not measure the host rate.
    has_paused: AtomicBool,
}

#[derive(Debug)]
struct Progress {
    /// Everything before this offset has reached the cache.
    reached: StreamOffset,
    /// Set when no more bytes will come. `Err`: why the missing bytes did not come.
    ended: Option<Result<(), FetchError>>,
    waiters: Vec<(StreamOffset, oneshot::Sender<()>)>,
    /// The ranges that readers want; of a stream over the whole layer, only those that have not come yet.
    wanted: Vec<Range<StreamOffset>>,
}

/// The outcome of a wait for an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// Everything before it has reached the cache.
    Reached,
    /// The transfer ended earlier, because another one took its chunks over. Plan again.
    TakenOver,
}

impl Transfer {
    pub(super) fn new(start: StreamOffset, urgency: Urgency) -> Arc<Self> {
        let progress =
            Progress { reached: start, ended: None, waiters: Vec::new(), wanted: Vec::new() };
        Arc::new(Self {
            urgency,
            progress: Mutex::new(progress),
            wanted: Notify::new(),
            is_writing: AtomicBool::new(false),
            has_paused: AtomicBool::new(false),
        })
    }

    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// Everything before `at` can be read. Wakes the waiters for offsets up to `at`.
    pub(super) fn reached(&self, at: StreamOffset) {
        let mut progress = self.progress.lock();
        if progress.ended.is_some() || at <= progress.reached {
            return;
        }
        progress.reached = at;
        let waiters = &mut progress.waiters;
        let mut index = 0;
        while index < waiters.len() {
            if waiters[index].0 <= at {
                // A reader that gave up meanwhile has dropped its receiver.
                let _ = waiters.swap_remove(index).1.send(());
            } else {
                index += 1;
            }
        }
    }

    /// Notes that a reader wants these bytes. Call it before the reader begins to wait, because the bytes may have
    /// passed by then.
    pub(super) fn want(&self, range: Range<StreamOffset>) {
        let mut progress = self.progress.lock();
        if progress.wanted.len() == MOST_WANTED {
            // The ranges become one range. At worst, more bytes are held for a moment.
            let all = progress
                .wanted
                .drain(..)
                .reduce(|one, other| one.start.min(other.start)..one.end.max(other.end));
            progress.wanted.extend(all);
        }
        progress.wanted.push(range);
    }

    /// Whether a reader wants bytes of `range`.
    pub(super) fn wants(&self, range: &Range<StreamOffset>) -> bool {
        let wanted = &self.progress.lock().wanted;
        wanted.iter().any(|wanted| wanted.start < range.end && range.start < wanted.end)
    }

    /// The greatest end of the wanted ranges that have come since the last call.
    pub(super) fn take_wanted(&self) -> Option<StreamOffset> {
        let mut progress = self.progress.lock();
        let reached = progress.reached;
        let is_past = |range: &Range<StreamOffset>| range.end <= reached;
        let last =
            progress.wanted.iter().filter(|range| is_past(range)).map(|range| range.end).max();
        progress.wanted.retain(|range| !is_past(range));
        last
    }

    /// The transfer now brings everything from the stream's start on, and nothing has reached the cache yet.
    pub(super) fn rewind(&self) {
        let mut progress = self.progress.lock();
        if progress.ended.is_none() {
            progress.reached = StreamOffset(0);
        }
    }

    /// Says that its chunks cannot be taken over any more. Called under the lock of the claims.
    pub(super) fn begin_to_write(&self) {
        self.is_writing.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_writing(&self) -> bool {
        self.is_writing.load(Ordering::Relaxed)
    }

    /// Notes that the transfer has paused.
    pub(super) fn note_pause(&self) {
        self.has_paused.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_paused(&self) -> bool {
        self.has_paused.load(Ordering::Relaxed)
    }

    /// Whether the transfer will bring no more bytes before `end`.
    pub(super) fn has_passed(&self, end: StreamOffset) -> bool {
        let progress = self.progress.lock();
        progress.ended.is_some() || progress.reached >= end
    }

    pub(super) fn has_ended(&self) -> bool {
        self.progress.lock().ended.is_some()
    }

    /// Whether a reader waits for bytes that end at `at` or before.
    pub(super) fn is_wanted(&self, at: StreamOffset) -> bool {
        self.progress.lock().waiters.iter().any(|(end, waiter)| *end <= at && !waiter.is_closed())
    }

    /// Whether a reader waits for any bytes of the transfer.
    pub(super) fn is_awaited(&self) -> bool {
        self.progress.lock().waiters.iter().any(|(_, waiter)| !waiter.is_closed())
    }

    /// Waits until a reader begins to wait.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Waits until nothing more will come, for whatever reason.
    pub(super) async fn ended(&self) {
        // No stream has that many bytes, so only the end is left to wait for.
        let _ = self.wait(StreamOffset(u64::MAX)).await;
    }

    /// No more bytes will come. Only the first end counts.
    pub(super) fn end(&self, result: Result<(), FetchError>) {
        let mut progress = self.progress.lock();
        if progress.ended.is_none() {
            progress.ended = Some(result);
            for (_, waiter) in progress.waiters.drain(..) {
                // A reader that gave up meanwhile has dropped its receiver.
                let _ = waiter.send(());
            }
        }
    }

    /// Waits until everything before `end` has reached the cache, or no more bytes will come.
    ///
    /// # Errors
    /// Why the bytes before `end` did not come.
    pub(super) async fn wait(&self, end: StreamOffset) -> Result<Waited, FetchError> {
        loop {
            let woken = {
                let mut progress = self.progress.lock();
                if progress.reached >= end {
                    return Ok(Waited::Reached);
                }
                match &progress.ended {
                    Some(Ok(())) => return Ok(Waited::TakenOver),
                    Some(Err(error)) => return Err(error.clone()),
                    None => {}
                }
                let (waiter, woken) = oneshot::channel();
                progress.waiters.retain(|(_, waiter)| !waiter.is_closed());
                progress.waiters.push((end, waiter));
                woken
            };
            self.wanted.notify_one();
            let _ = woken.await;
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

/// A transfer that a reader waits for, up to this offset.
pub(super) type Wait = (Arc<Transfer>, StreamOffset);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn transfer() -> Arc<Transfer> {
        Transfer::new(StreamOffset(10), Urgency::on_demand())
    }

    #[tokio::test]
    async fn each_waiter_is_woken_when_its_bytes_are_there() {
        let transfer = transfer();
        let mut near = Box::pin(transfer.wait(StreamOffset(20)));
        let mut far = Box::pin(transfer.wait(StreamOffset(30)));
        assert!(near.as_mut().now_or_never().is_none() && far.as_mut().now_or_never().is_none());
        transfer.reached(StreamOffset(25));
        assert_eq!(near.await.unwrap(), Waited::Reached);
        assert!(far.as_mut().now_or_never().is_none());
        transfer.end(Ok(()));
        assert_eq!(far.await.unwrap(), Waited::TakenOver);
        assert!(transfer.progress.lock().waiters.is_empty());
    }

    #[tokio::test]
    async fn an_end_before_the_bytes_tells_why_and_after_them_does_not_matter() {
        let transfer = transfer();
        transfer.reached(StreamOffset(20));
        drop(EndOnDrop { transfer: transfer.clone(), place: "here".into() });
        assert!(transfer.wait(StreamOffset(21)).await.is_err());
        assert_eq!(transfer.wait(StreamOffset(20)).await.unwrap(), Waited::Reached);
    }

    #[test]
    fn who_gives_up_is_forgotten() {
        let transfer = transfer();
        for _ in 0..1_000 {
            assert!(transfer.wait(StreamOffset(20)).now_or_never().is_none());
        }
        assert!(transfer.progress.lock().waiters.len() <= 2);
    }
}
