//! Fetches the missing bytes for a layer's digest: bytes between files, and all of a layer whose digest was wrong.
//!
//! ```text
//! all files here ---the rest that belongs to no file--.
//! digest wrong once --all of it, next source first----+--> brought --> confirm
//!                                                     ^       |
//!                                                     '-pause-' failed, or evicted
//! ```
//!
//! Padding, headers and the end marker belong to no file, so no reader asks for them. Without them the digest could
//! never be computed. They are fetched as soon as all files are resident, with or without `--hydrate`.

use std::sync::Arc;
use std::time::Duration;

use super::confirm::Confirming;
use super::history::Cause;
use super::layer::Inner;
use crate::cache::LayerState;
use crate::layer::layout::CHUNK_BYTES;
use crate::layer::{ChunkId, Extents, StreamOffset};
use crate::source::admission::UserId;

/// The rest that is fetched even where it belongs to files, once a reader has read from the layer. 64 KiB: one
/// request, which the digest is worth.
const SMALL_REST_BYTES: u64 = 64 * 1024;

/// The bytes that are fetched at a time, in 256 chunks. A plan for all chunks of a layer at once would queue a
/// transfer for each request of a layer of terabytes.
const REGION_BYTES: u64 = 256 * CHUNK_BYTES;

/// The times that all of a layer is fetched again because its digest was wrong. 3: where a part is evicted each
/// time, a fourth time would not help. After that, chunks are fetched when readers want them.
const MOST_PASSES: u32 = 3;

/// The pause after a source failed. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause. A registry that is back is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The state of that work.
#[derive(Debug, Default)]
pub(super) struct Completing {
    is_running: bool,
    /// The user for whom the last transfer was made.
    user: Option<UserId>,
    /// The times that all of the layer was fetched again.
    passes: u32,
    /// The members before this index were here when they were last looked at.
    members_here: usize,
}

impl Inner {
    /// Starts to fetch the missing bytes for the digest, if it is time for that. `brought_for` is the user for whom
    /// a transfer has just ended. The same user is charged with the rest.
    pub(super) fn complete_quietly(self: &Arc<Self>, brought_for: Option<UserId>) {
        if !self.is_incomplete() {
            return;
        }
        let mut completing = self.completing.lock();
        completing.user = brought_for.or(completing.user);
        if completing.is_running || !self.lacks_rest(&mut completing, brought_for.is_some()) {
            return;
        }
        completing.is_running = true;
        drop(completing);
        let inner = self.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = inner.complete() => {}
                () = inner.closed.cancelled() => return,
            }
            inner.completing.lock().is_running = false;
            // The digest may have turned out to be wrong while this task ended.
            inner.complete_quietly(None);
        });
    }

    /// Whether the digest is unknown, but could be computed if all bytes were resident.
    fn is_incomplete(&self) -> bool {
        !self.is_compressed()
            && self.spec.encoding.is_verifiable()
            && self.store.state() == LayerState::Unconfirmed
            && !self.store.is_complete()
    }

    async fn complete(self: &Arc<Self>) {
        let mut pause = FIRST_PAUSE;
        while self.is_incomplete() && self.lacks_rest(&mut self.completing.lock(), true) {
            match self.bring_all().await {
                Ok(()) => self.completing.lock().passes += 1,
                Err(error) => {
                    let layer = self.spec.blob.digest;
                    tracing::debug!(%layer, %error, "the rest of a layer does not come");
                }
            }
            self.confirm_when_complete();
            if !self.is_incomplete() {
                break;
            }
            // `confirmed` should not wait for a source that is unreachable.
            self.confirming.send_if_modified(|confirming| {
                let is_waited_for = *confirming == Confirming::FetchingAgain;
                if is_waited_for {
                    *confirming = Confirming::Failed;
                }
                is_waited_for
            });
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn bring_all(self: &Arc<Self>) -> Result<(), super::FetchError> {
        let end = self.contents.layout.stream_bytes();
        let user = self.completing.lock().user.unwrap_or_else(UserId::of_process);
        let mut at = 0;
        while at < end {
            let next = (at + REGION_BYTES).min(end);
            let piece = StreamOffset(at)..StreamOffset(next);
            self.clone().bring(piece, Cause::Rest, user).await?;
            at = next;
        }
        Ok(())
    }

    /// Whether only a rest is missing that no reader will ask for, or the whole layer is to be fetched again.
    fn lacks_rest(&self, completing: &mut Completing, has_brought: bool) -> bool {
        if self.store.is_doubted() {
            return completing.passes < MOST_PASSES;
        }
        let missing = self.missing_bytes();
        if has_brought && missing <= SMALL_REST_BYTES {
            return true;
        }
        let members = &self.contents.toc.members;
        while let Some(member) = members.get(completing.members_here) {
            if member.kind.extents().is_some_and(|extents| !self.is_file_here(extents)) {
                return false;
            }
            completing.members_here += 1;
        }
        // Files that were resident may have been evicted.
        let is_rest = missing <= self.bytes_of_no_file();
        if !is_rest {
            completing.members_here = 0;
        }
        is_rest
    }

    fn missing_bytes(&self) -> u64 {
        self.contents.layout.stream_bytes().saturating_sub(self.store.resident_bytes())
    }

    /// Whether all bytes of a file are in the cache.
    fn is_file_here(&self, extents: &Extents) -> bool {
        let (layout, stored) = (&self.contents.layout, extents.stored());
        layout.chunks_of(stored.clone()).all(|chunk| {
            let span = layout.chunk(ChunkId(chunk)).stream;
            let needed = stored.end.min(span.end) - span.start;
            u64::from(self.store.filled(ChunkId(chunk))) >= needed
        })
    }

    /// The bytes of the stream that lie in no file.
    fn bytes_of_no_file(&self) -> u64 {
        let (mut at, mut bytes) = (StreamOffset(0), 0);
        for member in &self.contents.toc.members {
            let Some(stored) = member.kind.extents().map(Extents::stored) else { continue };
            if stored.start > at {
                bytes += stored.start - at;
            }
            // A hard link has the bytes of an earlier member.
            at = at.max(stored.end);
        }
        bytes + self.contents.layout.stream_bytes().saturating_sub(at.get())
    }

    /// Whether nothing but a small rest is missing, which comes fast enough to wait for.
    pub(super) fn lacks_small_rest(&self) -> bool {
        let is_small = (1..=SMALL_REST_BYTES).contains(&self.missing_bytes());
        self.is_incomplete()
            && (is_small || self.lacks_rest(&mut self.completing.lock(), false))
            && !self.store.is_doubted()
    }
}
