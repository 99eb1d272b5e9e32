//! Single flight: which transfer brings which chunk of a layer.
//!
//! ```text
//! wanted range --plan--> runs nobody brings --start--> transfers, one claim for each chunk
//!        '--chunks that somebody brings--> their transfers, made as urgent as this wish
//! ```
//!
//! A source that ignores ranges sends the whole layer. The first transfer becomes one stream over the layer
//! (`Claims::whole`), and takes over the chunks of transfers that have not begun to write.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::FetchError;
use super::history::Cause;
use super::layer::Inner;
use super::plan::{self, ChunkStatus};
use super::transfer::{EndOnDrop, Transfer, Wait};
use crate::layer::{ChunkId, StreamOffset};
use crate::source::Priority;
use crate::source::admission::{Reservation, UserId};

/// The transfers of a layer by chunk.
#[derive(Default)]
pub(super) struct Claims {
    chunks: HashMap<u32, Arc<Transfer>>,
    whole: Option<Arc<Transfer>>,
}

/// The outcome of a wish for a range.
pub(super) struct Plan {
    /// The chunks that no transfer was bringing before, in runs.
    pub(super) started: Vec<Range<u32>>,
    /// The transfers to wait for.
    pub(super) waits: Vec<Wait>,
}

/// The right of a transfer to the stream that its source opened.
#[derive(Debug)]
pub(super) enum Right {
    /// Write it to the chunks that the transfer claimed.
    Write,
    /// The source ignores ranges: write all of it, from the layer's start on.
    WriteWhole,
    /// Write nothing: another transfer took the chunks over.
    TakenOver,
    /// Write nothing: another transfer streams the whole layer, and has passed the missing bytes.
    After(Arc<Transfer>),
}

impl Inner {
    /// Starts the transfers that `range` needs for `user`, and makes transfers that run already at least as urgent.
    pub(super) fn plan(
        self: &Arc<Self>,
        range: &Range<StreamOffset>,
        cause: Cause,
        user: UserId,
    ) -> Plan {
        let priority = cause.priority();
        let layout = &self.contents.layout;
        let mut wanted = layout.chunks_of(range.clone());
        if self.cache.is_in_trouble() && priority == Priority::Readahead {
            // Bytes that are not kept lie in memory until they are read.
            wanted.end = wanted.end.min(wanted.start.saturating_add(self.passing.free_chunks()));
        }
        // Background work fills the cache. Bytes that are in memory for a moment are no use to it.
        let is_for_readers = priority >= Priority::Readahead;
        let limit = match priority {
            // The window in front of a reader comes best in the reader's order.
            Priority::Readahead => self.host_pace().request_chunks_of(wanted.end - wanted.start),
            _ => self.host_pace().request_chunks(),
        };
        let mut claims = self.claims.lock();
        let runs = plan::transfers(wanted.clone(), limit, |chunk| {
            // This order matters: the cache has a chunk whose transfer ends between the two checks.
            let is_claimed = self.is_coming(&claims, chunk);
            if is_for_readers && self.is_here(ChunkId(chunk)) {
                return ChunkStatus::Resident;
            }
            self.status(ChunkId(chunk), is_claimed)
        });
        if !runs.is_empty() && self.is_compressed() {
            if let Some(whole) = claims.whole.clone() {
                // The stream has passed the missing bytes. The next stream starts when this one is done.
                let waits = vec![(whole, StreamOffset(u64::MAX))];
                drop(claims);
                self.join(&waits, priority, user);
                return Plan { started: Vec::new(), waits };
            }
            self.start_whole(&mut claims, cause, user);
        } else {
            for run in &runs {
                self.start(&mut claims, run.clone(), cause, user);
            }
        }
        let mut waits: Vec<Wait> = Vec::new();
        for chunk in wanted {
            let Some(transfer) = claims.chunks.get(&chunk) else { continue };
            let span = layout.chunk(ChunkId(chunk)).stream;
            let mut end = span.end.min(range.end);
            if transfer.has_passed(end) {
                if priority != Priority::OnDemand || self.is_here_to(ChunkId(chunk), end) {
                    continue;
                }
                // The reader's part of the chunk was evicted. Another transfer brings it when this one is done with
                // the chunk.
                end = span.end;
            }
            match waits.last_mut() {
                Some((last, last_end)) if Arc::ptr_eq(last, transfer) => *last_end = end,
                _ => waits.push((transfer.clone(), end)),
            }
        }
        if priority == Priority::OnDemand {
            // With a source without ranges, any of the transfers may become a stream over the whole layer.
            waits.iter().for_each(|(transfer, _)| transfer.want(range.clone()));
        }
        drop(claims);
        self.join(&waits, priority, user);
        Plan { started: runs, waits }
    }

    /// Makes transfers at least as urgent as the user who waits for them.
    fn join(&self, waits: &[Wait], priority: Priority, user: UserId) {
        let join =
            |changed, (transfer, _): &Wait| transfer.urgency().join(priority, user) || changed;
        if waits.iter().fold(false, join) {
            self.admission.reconsider();
        }
    }

    /// Whether a transfer will still bring a chunk. A transfer that has passed the chunk will not: its bytes were
    /// evicted.
    fn is_coming(&self, claims: &Claims, chunk: u32) -> bool {
        let end = self.contents.layout.chunk(ChunkId(chunk)).stream.end;
        claims.chunks.get(&chunk).is_some_and(|transfer| !transfer.has_passed(end))
    }

    /// The chunks that transfers will bring, in any order. The lock is held for a copy of the list only, because
    /// each transfer has a lock of its own.
    pub(super) fn coming_chunks(&self) -> Vec<u32> {
        let claims: Vec<(u32, Arc<Transfer>)> = {
            let claims = self.claims.lock();
            claims.chunks.iter().map(|(chunk, transfer)| (*chunk, transfer.clone())).collect()
        };
        let end = |chunk| self.contents.layout.chunk(ChunkId(chunk)).stream.end;
        let coming =
            claims.into_iter().filter(|(chunk, transfer)| !transfer.has_passed(end(*chunk)));
        coming.map(|(chunk, _)| chunk).collect()
    }

    pub(super) fn status(&self, chunk: ChunkId, is_claimed: bool) -> ChunkStatus {
        let bytes = self.contents.layout.chunk(chunk).stream;
        match u64::from(self.store.filled(chunk)) {
            filled if filled == bytes.end - bytes.start => ChunkStatus::Resident,
            _ if is_claimed => ChunkStatus::InFlight,
            0 => ChunkStatus::Missing,
            _ => ChunkStatus::Partial,
        }
    }

    fn start(self: &Arc<Self>, claims: &mut Claims, run: Range<u32>, cause: Cause, user: UserId) {
        let layout = &self.contents.layout;
        let first = layout.chunk(ChunkId(run.start)).stream.start;
        let start = first + u64::from(self.store.filled(ChunkId(run.start)));
        let end = layout.chunk(ChunkId(run.end - 1)).stream.end;
        let transfer = Transfer::new(start, cause.urgency(user));
        for chunk in run {
            claims.chunks.insert(chunk, transfer.clone());
        }
        self.spawn(transfer, start..end, cause);
    }

    /// Claims every chunk that no transfer brings yet, and starts one pass over all of the layer.
    fn start_whole(self: &Arc<Self>, claims: &mut Claims, cause: Cause, user: UserId) {
        let transfer = Transfer::new(StreamOffset(0), cause.urgency(user));
        self.claim_rest(claims, &transfer);
        self.spawn(transfer, self.contents.layout.stream(), cause);
    }

    fn claim_rest(&self, claims: &mut Claims, transfer: &Arc<Transfer>) {
        claims.whole = Some(transfer.clone());
        for chunk in 0..self.contents.layout.chunks() {
            if self.status(ChunkId(chunk), false) != ChunkStatus::Resident
                && !self.is_coming(claims, chunk)
            {
                claims.chunks.insert(chunk, transfer.clone());
            }
        }
    }

    fn spawn(self: &Arc<Self>, transfer: Arc<Transfer>, range: Range<StreamOffset>, cause: Cause) {
        let inner = self.clone();
        let record = self.history.begin(range.clone(), cause, transfer.urgency().clone());
        let guard =
            EndOnDrop { transfer: transfer.clone(), place: self.spec.blob.digest.to_string() };
        let turn = self.turn(&transfer);
        self.runtime.spawn(async move {
            let fetch = async {
                match inner.fetch(&transfer, range.clone(), turn, &record).await {
                    Err(FetchError::LargeWindow(_)) if inner.use_large_windows() => {
                        inner.fetch(&transfer, range, inner.turn(&transfer), &record).await
                    }
                    // A byte may have changed on its way, and there is no other source.
                    Err(error) if error.is_about_other_bytes() => {
                        inner.fetch(&transfer, range, inner.turn(&transfer), &record).await
                    }
                    result => result,
                }
            };
            let result = tokio::select! {
                result = fetch => Some(result),
                () = inner.closed.cancelled() => None,
            };
            record.ended(result.as_ref());
            inner.release(&transfer);
            let is_done = matches!(result, Some(Ok(())));
            if let Some(result) = result {
                transfer.end(result);
            }
            drop(guard);
            inner.confirm_when_complete();
            if is_done {
                inner.complete_quietly(Some(transfer.urgency().user()));
            }
        });
    }

    /// Takes a place in the queue, for as much memory as it may need.
    fn turn(&self, transfer: &Transfer) -> impl Future<Output = Reservation> + Send + use<> {
        let bytes = self.transfer_memory_bytes();
        self.admission.transfer(self.whose(), bytes, transfer.urgency().clone())
    }

    fn release(&self, transfer: &Arc<Transfer>) {
        let mut claims = self.claims.lock();
        claims.chunks.retain(|_, claimed| !Arc::ptr_eq(claimed, transfer));
        claims.whole.take_if(|whole| Arc::ptr_eq(whole, transfer));
    }

    /// The right of `transfer` to the stream that it has opened. `is_whole`: the source sends the whole blob
    /// instead of the requested range.
    pub(super) fn admit(&self, transfer: &Arc<Transfer>, is_whole: bool) -> Right {
        let mut claims = self.claims.lock();
        if transfer.has_ended() {
            return Right::TakenOver;
        }
        match &claims.whole {
            Some(other) if is_whole && !Arc::ptr_eq(other, transfer) => {
                return Right::After(other.clone());
            }
            None if is_whole => {}
            _ => {
                transfer.begin_to_write();
                return Right::Write;
            }
        }
        transfer.begin_to_write();
        transfer.rewind();
        claims.chunks.retain(|_, claimed| {
            let keeps = claimed.is_writing();
            if !keeps {
                // A reader that waits for the transfer plans again, and then waits for the whole stream.
                claimed.end(Ok(()));
            }
            keeps
        });
        self.claim_rest(&mut claims, transfer);
        Right::WriteWhole
    }
}
