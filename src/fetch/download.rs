//! The network side of a transfer: opens a stream and passes its pieces on to the writer.
//!
//! When a stream breaks off, the layer's next source continues where it stopped. A source gets one chance in a
//! transfer, because it has retried by itself. When all have failed, a waiting reader plans again (`outage`). When
//! a stream stalls while a reader waits, the transfer gives the stream up and requests the rest on another
//! connection (`stall`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::FetchError;
use super::claims::Right;
use super::history::Record;
use super::layer::{Inner, RatedSource};
use super::pace::Streaming;
use super::stall::Stalls;
use super::transfer::Transfer;
use super::writer::{Writer, Written};
use crate::layer::layout::CHUNK_BYTES;
use crate::layer::{BlobOffset, ChunkId, StreamOffset};
use crate::process::running_time::Stopwatch;
use crate::source::admission::Reservation;
use crate::source::{BlobSource, BlobStream, Priority, SourceError, Urgency};

/// Batches in the channel between the network and the writer. 2: the network goes on while the writer waits for the
/// disk once.
const BATCHES: usize = 2;
/// The memory that a transfer may take, in batches of at most a chunk each. One batch is being gathered, two are in
/// the channel, one is being written, and one is held back until its bytes are verified. A buffer of the HTTP
/// client (some 400 KiB) may reach beyond the end of its chunk.
pub(super) const TRANSFER_MEMORY_BYTES: u64 =
    (BATCHES as u64 + 2) * (CHUNK_BYTES + 512 * 1024) + CHUNK_BYTES;

/// The pieces of a batch: as many as the kernel writes at once (IOV_MAX). A server may send single bytes. Each of
/// them would take tens of bytes of memory that are not reserved.
const MOST_PIECES: usize = 1024;

/// Pieces that came one after the other, without a gap.
pub(super) type Batch = Vec<Bytes>;

/// The sources that a transfer has not tried yet.
type Untried = std::vec::IntoIter<RatedSource>;

/// The source of a transfer's bytes.
struct Feeding<'a> {
    /// The source that sent the last bytes.
    source: Arc<dyn BlobSource>,
    untried: Untried,
    streaming: &'a mut Streaming,
    stalls: Stalls,
}

/// Why pieces stopped coming.
enum Stopped {
    /// The source broke off. Another source may continue.
    Source(SourceError),
    /// Too few bytes came while a reader waits. Another connection may do better.
    Stalled,
    /// The writer has failed, and reports its error itself.
    Writer,
}

impl Inner {
    /// Fetches the bytes `range` of the stream into the cache, once its `turn` has come. For a compressed layer, it
    /// fetches the whole layer.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        transfer: &Arc<Transfer>,
        range: Range<StreamOffset>,
        turn: impl Future<Output = Reservation>,
        record: &Record,
    ) -> Result<(), FetchError> {
        let urgency = transfer.urgency();
        let permit = turn.await;
        record.queued();
        if transfer.has_ended() {
            return Ok(());
        }
        let whole = self.spec.blob.whole();
        let mut is_whole = self.is_compressed();
        let mut asked = match is_whole {
            true => whole.clone(),
            false => range.start.in_uncompressed_blob()..range.end.in_uncompressed_blob(),
        };
        let mut untried = self.sources.read().clone().into_iter();
        let asked_at = Instant::now();
        let (stream, rated) = self.open_next(&mut untried, &asked, urgency, None).await?;
        rated.host_pace.answered(asked_at.elapsed());
        record.answered();
        match self.admit(transfer, stream.range == whole && asked != whole) {
            Right::Write => {}
            Right::WriteWhole => (asked, is_whole) = (whole, true),
            Right::TakenOver => return Ok(()),
            Right::After(other) => {
                drop((stream, permit));
                self.wait_behind(&other, urgency).await;
                return Ok(());
            }
        }
        // The measurement starts here, because the time to the first byte says nothing about the rate.
        let mut streaming = rated.host_pace.begin();
        let asked_bytes = asked.end - asked.start;
        let (batches, incoming) = mpsc::channel::<Batch>(BATCHES);
        // The writer of a compressed layer counts from the first byte of both.
        let start = asked.start.in_uncompressed_stream();
        let (inner, to) = (self.clone(), transfer.clone());
        let writer = tokio::task::spawn_blocking(move || {
            Writer::new(inner, to, start, is_whole).drain(incoming)
        });
        let (source, stalls) = (rated.source.clone(), Stalls::default());
        let mut feeding = Feeding { source, untried, streaming: &mut streaming, stalls };
        let fed = self.feed(stream, asked, &mut feeding, transfer, batches).await;
        let source = feeding.source;
        let has_changed = !Arc::ptr_eq(&source, &rated.source);
        let written = writer.await.map_err(|error| FetchError::malformed(self.spec.blob, error))?;
        // Where a source broke off, its error is the reason why the writer has too few bytes.
        match fed.and(written) {
            Ok(Written::All) => {}
            // A reader that wants the rest plans again.
            Ok(Written::Stopped) => return Ok(()),
            Err(error) => {
                // A reader that waits plans again, and reads from the other sources.
                if error.is_about_other_bytes() {
                    source.distrust();
                }
                let goes_on = error.is_about_other_bytes() && self.leave(&source);
                return if goes_on { Ok(()) } else { Err(error) };
            }
        }
        // These transfers do not measure the host rate: one that paused, one that used several sources, and one of
        // a compressed layer, whose decoder may be the bottleneck.
        let is_telling = !transfer.has_paused() && !has_changed && !self.is_compressed();
        if urgency.get() > Priority::Hydrate && is_telling {
            streaming.brought(asked_bytes);
        }
        Ok(())
    }

    /// Waits for a transfer that streams the whole layer, and makes that transfer as urgent as this one.
    async fn wait_behind(&self, other: &Arc<Transfer>, urgency: &Urgency) {
        loop {
            let changes = urgency.changes();
            if other.urgency().join_all(urgency) {
                self.admission.reconsider();
            }
            tokio::select! {
                () = other.ended() => return,
                () = urgency.changed_since(changes) => {}
            }
        }
    }

    /// Passes on the bytes `asked`, from `stream` and, where that breaks off, from other sources.
    async fn feed(
        &self,
        mut stream: BlobStream,
        asked: Range<BlobOffset>,
        feeding: &mut Feeding<'_>,
        transfer: &Transfer,
        batches: mpsc::Sender<Batch>,
    ) -> Result<(), FetchError> {
        let mut sent = asked.start;
        loop {
            let forwarded = self.forward(stream, &mut sent, asked.end, transfer, feeding, &batches);
            let mut failed = match forwarded.await {
                Ok(()) | Err(Stopped::Writer) => return Ok(()),
                Err(Stopped::Source(error)) => Some(error),
                Err(Stopped::Stalled) => None,
            };
            let (missing, urgency) = (sent..asked.end, transfer.urgency());
            if failed.is_none() {
                let place = feeding.source.host().unwrap_or_else(|| "the source".into());
                let detail = format!("the transfer stalled at byte {sent}");
                let stalled = SourceError::Unavailable { place: place.to_string(), detail };
                tracing::debug!(error = %stalled, layer = %self.spec.blob.digest, "asking again");
                urgency.note_retry();
                // A transfer that stalled does not measure the rate of its host.
                transfer.note_pause();
                if feeding.stalls.give_up() {
                    let again =
                        feeding.source.open(self.spec.blob, missing.clone(), urgency.clone());
                    match again.await.and_then(|stream| self.check_covers(stream, &missing)) {
                        Ok(next) => {
                            stream = next;
                            continue;
                        }
                        Err(error) => failed = Some(error),
                    }
                } else {
                    failed = Some(stalled);
                }
            }
            let next = self.open_next(&mut feeding.untried, &missing, urgency, failed);
            let (next, rated) = next.await?;
            (stream, feeding.source) = (next, rated.source);
        }
    }

    /// Sends the bytes `sent..end` of a stream that contains them, and counts them in `sent`.
    ///
    /// A batch is passed on when its chunk is full, when a reader waits for its bytes, or when it has very many
    /// pieces. Passing on each small piece would cost more wake-ups and writes than it is worth.
    async fn forward(
        &self,
        stream: BlobStream,
        sent: &mut BlobOffset,
        end: BlobOffset,
        transfer: &Transfer,
        feeding: &mut Feeding<'_>,
        batches: &mpsc::Sender<Batch>,
    ) -> Result<(), Stopped> {
        let Feeding { streaming, stalls, .. } = feeding;
        let at = stream.range.start;
        let mut pieces = Pieces { at, stream, rest: Bytes::new(), next: *sent, end };
        let mut failed = None;
        stalls.begin();
        // The time since a reader began to wait for the next piece.
        let mut silence = None;
        while *sent < end && failed.is_none() {
            let mut batch = Batch::new();
            let batch_end = self.batch_end(*sent, end);
            while failed.is_none() && !self.is_due(&batch, pieces.next, batch_end, transfer) {
                tokio::select! {
                    biased;
                    piece = pieces.next(batch_end) => match piece {
                        Ok(piece) => {
                            let waited = silence.take().map(|mut watch: Stopwatch| watch.look());
                            stalls.came(waited.unwrap_or_default(), piece.len() as u64);
                            batch.push(piece);
                        }
                        Err(error) => failed = Some(Stopped::Source(error)),
                    },
                    () = overdue(stalls, &mut silence, transfer.urgency()) => {
                        failed = Some(Stopped::Stalled);
                    }
                    () = transfer.wanted() => {}
                }
            }
            if !batch.is_empty() && batches.send(batch).await.is_err() {
                return Err(Stopped::Writer);
            }
            *sent = pieces.next;
            if *sent < end && self.admission.must_give_way(transfer.urgency()) {
                transfer.note_pause();
                streaming.pause();
                self.admission.give_way(transfer.urgency()).await;
                streaming.go_on();
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The end of the batch that begins at `sent`. It is the end of the chunk, so that a chunk is one write. For
    /// compressed bytes only the writer knows where chunks end.
    fn batch_end(&self, sent: BlobOffset, end: BlobOffset) -> BlobOffset {
        if self.is_compressed() {
            return end;
        }
        let layout = &self.contents.layout;
        let chunk = layout.chunks_of(sent.in_uncompressed_stream().range(1)).start;
        layout.chunk(ChunkId(chunk)).stream.end.in_uncompressed_blob().min(end)
    }

    fn is_due(
        &self,
        batch: &Batch,
        next: BlobOffset,
        batch_end: BlobOffset,
        transfer: &Transfer,
    ) -> bool {
        if batch.is_empty() {
            return false;
        }
        next == batch_end
            || batch.len() >= MOST_PIECES
            || self.is_compressed()
            || transfer.is_wanted(next.in_uncompressed_stream())
    }

    /// Opens `range` at the first untried source that has it. Where all fail, it returns the first failure, because
    /// later sources are second choices.
    async fn open_next(
        &self,
        untried: &mut Untried,
        range: &Range<BlobOffset>,
        urgency: &Urgency,
        mut failed: Option<SourceError>,
    ) -> Result<(BlobStream, RatedSource), FetchError> {
        for rated in untried {
            let opened = rated.source.open(self.spec.blob, range.clone(), urgency.clone()).await;
            match opened.and_then(|stream| self.check_covers(stream, range)) {
                Ok(stream) => return Ok((stream, rated)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("a layer is opened with a source").into())
    }

    /// The stream, if it has the bytes `range`.
    fn check_covers(
        &self,
        stream: BlobStream,
        range: &Range<BlobOffset>,
    ) -> Result<BlobStream, SourceError> {
        if stream.range.start <= range.start && stream.range.end >= range.end {
            return Ok(stream);
        }
        let detail = format!(
            "bytes {}..{} instead of {}..{}",
            stream.range.start, stream.range.end, range.start, range.end
        );
        Err(SourceError::Protocol { place: self.spec.blob.digest.to_string(), detail })
    }
}

/// Waits until a stream has brought too little for a reader. Background work is patient, because its source may be
/// a cache that downloads first. Safe to drop and call again.
async fn overdue(stalls: &Stalls, silence: &mut Option<Stopwatch>, urgency: &Urgency) {
    if silence.is_none() {
        urgency.until_impatient().await;
    }
    silence.get_or_insert_with(Stopwatch::start).reach(stalls.left()).await;
}

/// The pieces of a stream, cut to the wanted bytes.
struct Pieces {
    stream: BlobStream,
    /// The offset of the stream's next byte.
    at: BlobOffset,
    /// Bytes that have arrived and were not handed out yet.
    rest: Bytes,
    /// The next byte that is wanted.
    next: BlobOffset,
    end: BlobOffset,
}

impl Pieces {
    /// The next piece, not empty and not beyond `limit`. Call it while bytes before `limit` are wanted. Safe to
    /// drop while it waits: no bytes are lost.
    async fn next(&mut self, limit: BlobOffset) -> Result<Bytes, SourceError> {
        while self.rest.is_empty() {
            let Some(piece) = self.stream.bytes.next().await else {
                let detail = format!("a stream ended {} bytes early", self.end - self.next);
                let place = "the source of a layer".to_owned();
                return Err(SourceError::Unavailable { place, detail });
            };
            let mut piece = piece?;
            self.at += piece.len() as u64;
            let skipped = (self.next + piece.len() as u64).since(self.at);
            drop(piece.split_to(skipped.min(piece.len() as u64) as usize));
            piece.truncate(piece.len().min((self.end - self.next) as usize));
            self.rest = piece;
        }
        let length = (limit - self.next).min(self.rest.len() as u64);
        self.next += length;
        Ok(self.rest.split_to(length as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest piece that hyper reads at once (its `max_buf_size`, by default).
    const LONGEST_PIECE_BYTES: u64 = 8192 + 4096 * 100;

    #[test]
    fn the_memory_of_a_transfer_holds_every_batch_with_a_piece_beyond_its_chunk() {
        let of_batches = (BATCHES as u64 + 2) * (CHUNK_BYTES + LONGEST_PIECE_BYTES);
        assert!(TRANSFER_MEMORY_BYTES >= of_batches + CHUNK_BYTES);
        assert!(TRANSFER_MEMORY_BYTES < 2 * of_batches, "more than a transfer can take");
    }
}
