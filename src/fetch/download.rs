//! The network side of a transfer: opens a stream and passes its pieces on to the writer.
//!
//! A stream that breaks off is taken up by the layer's next source where it stopped; each source
//! gets one chance in a transfer (it retries by itself), and a reader's next read starts anew.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::FetchError;
use super::layer::{Admission, Inner};
use super::transfer::Transfer;
use super::writer::Writer;
use crate::layer::StreamOffset;
use crate::source::{BlobSource, BlobStream, SourceError, Urgency};

/// Pieces between the network and the writer of a transfer: about 1 MiB.
const PIECES: usize = 32;

/// The sources that a transfer has not tried yet.
type Untried = std::vec::IntoIter<Arc<dyn BlobSource>>;

/// Why pieces stopped coming.
enum Stopped {
    /// The source broke off; another one may go on.
    Source(SourceError),
    /// The writer has met an error, and tells it itself.
    Writer,
}

impl Inner {
    /// Brings the bytes `range` of the stream to the cache; for a compressed layer, all of it.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        transfer: &Arc<Transfer>,
        range: Range<StreamOffset>,
    ) -> Result<(), FetchError> {
        let permit = self.permits.acquire().await.expect("the permits are never closed");
        if transfer.has_ended() {
            return Ok(());
        }
        let whole = 0..self.spec.blob.size;
        let mut asked = match self.is_compressed() {
            true => whole.clone(),
            false => range.start.in_uncompressed_blob().get()..range.end.get(),
        };
        let mut untried = self.sources.read().clone().into_iter();
        let stream = self.open_next(&mut untried, &asked, None).await?;
        match self.admit(transfer, stream.range == whole && asked != whole) {
            Admission::Write => {}
            Admission::WriteWhole => asked = whole,
            Admission::TakenOver => return Ok(()),
            Admission::After(other) => {
                drop((stream, permit));
                other.ended().await;
                return Ok(());
            }
        }
        let (pieces, incoming) = mpsc::channel::<Bytes>(PIECES);
        let writer = Writer::new(self.clone(), transfer.clone(), StreamOffset(asked.start));
        let writer = tokio::task::spawn_blocking(move || writer.drain(incoming));
        let fed = self.feed(stream, asked, untried, pieces).await;
        let written = writer.await.map_err(|error| FetchError::malformed(self.spec.blob, error))?;
        written.and(fed)
    }

    /// Passes on the bytes `asked`, from `stream` and, where that breaks off, from other sources.
    async fn feed(
        &self,
        mut stream: BlobStream,
        asked: Range<u64>,
        mut untried: Untried,
        pieces: mpsc::Sender<Bytes>,
    ) -> Result<(), FetchError> {
        let mut sent = asked.start;
        loop {
            match forward(stream, &mut sent, asked.end, &pieces).await {
                Ok(()) | Err(Stopped::Writer) => return Ok(()),
                Err(Stopped::Source(error)) => {
                    let missing = sent..asked.end;
                    stream = self.open_next(&mut untried, &missing, Some(error)).await?;
                }
            }
        }
    }

    /// Opens `range` at the first untried source that has it. Where none has, the first failure
    /// is told: later sources are second choices.
    async fn open_next(
        &self,
        untried: &mut Untried,
        range: &Range<u64>,
        mut failed: Option<SourceError>,
    ) -> Result<BlobStream, FetchError> {
        for source in untried {
            match source.open(self.spec.blob, range.clone(), Urgency::on_demand()).await {
                Ok(stream)
                    if stream.range.start <= range.start && stream.range.end >= range.end =>
                {
                    return Ok(stream);
                }
                Ok(stream) => {
                    let detail = format!("bytes {:?} instead of {range:?}", stream.range);
                    let place = self.spec.blob.digest.to_string();
                    failed = failed.or(Some(SourceError::Protocol { place, detail }));
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("a layer is opened with a source").into())
    }
}

/// Sends the bytes `sent..end` of a stream that contains them, and counts them in `sent`.
async fn forward(
    mut stream: BlobStream,
    sent: &mut u64,
    end: u64,
    pieces: &mpsc::Sender<Bytes>,
) -> Result<(), Stopped> {
    let mut at = stream.range.start;
    while *sent < end {
        let Some(piece) = stream.bytes.next().await else {
            let detail = format!("a stream ended {} bytes early", end - *sent);
            let place = "the source of a layer".to_owned();
            return Err(Stopped::Source(SourceError::Unavailable { place, detail }));
        };
        let mut piece = piece.map_err(Stopped::Source)?;
        let skipped = piece.split_to((*sent - at).min(piece.len() as u64) as usize);
        at += (skipped.len() + piece.len()) as u64;
        piece.truncate(piece.len().min((end - *sent) as usize));
        if piece.is_empty() {
            continue;
        }
        let length = piece.len() as u64;
        if pieces.send(piece).await.is_err() {
            return Err(Stopped::Writer);
        }
        *sent += length;
    }
    Ok(())
}
