//! A blob's bytes as they arrive, over as many requests as it takes.
//!
//! ```text
//! streaming --all bytes--> ended
//!   |   ^
//!   |   '-- a new request from where it stopped
//!   |--body broke off, stalled, or ended early--'   too often without progress --> failed
//!   '--body held only the start of the range----'   too little in each         --> failed
//! ```
//!
//! A reader sees exactly the promised range, without breaks. A body that goes on behind its promised end is an
//! error, because its head may be wrong about the earlier bytes too.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};

use super::answer::Answer;
use super::blobs::Opened;
use super::repository::Remote;
use crate::oci::{BlobId, BlobOffset};
use crate::source::{BlobStream, SourceError, Urgency};

/// The progress in bytes after which a stream's earlier breaks are forgotten.
///
/// 1 MiB: a connection that carries less before it breaks is no use. The stream of a 100 GB layer may break more
/// than a few times in all.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// The wait for the end of a body without a length, once all bytes are there.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// The number of answers that may have only the start of the requested range, however short.
///
/// 64: with blocks of 4 KiB, the smallest of any cache, these answers bring a chunk of 256 KiB.
const FREE_SHORT_ANSWERS: u64 = 64;

/// The bytes that pay for one more such answer.
///
/// 4 KiB: a shorter answer has more head than body. Without this bound, a server that sends byte by byte would get
/// requests for ever.
const BYTES_PER_SHORT_ANSWER: u64 = 4 * 1024;

/// The stream that begins with `opened`.
pub(super) fn stream(
    remote: Arc<Remote>,
    blob: BlobId,
    opened: Opened,
    urgency: Urgency,
) -> BlobStream {
    let range = opened.yields.clone();
    let download = Download {
        remote,
        blob,
        urgency,
        range: range.clone(),
        at: range.start,
        body: Some(Body::new(opened)),
        breaks: 0,
        at_break: range.start,
        skipped: 0,
        short_answers: 0,
    };
    let bytes = stream::try_unfold(download, |mut download| async move {
        Ok(download.next().await?.map(|bytes| (bytes, download)))
    });
    BlobStream { range, bytes: bytes.boxed() }
}

struct Download {
    remote: Arc<Remote>,
    blob: BlobId,
    urgency: Urgency,
    /// The bytes that the stream yields.
    range: Range<BlobOffset>,
    /// The next byte of the blob to yield.
    at: BlobOffset,
    /// `None` after a break, between two answers, and behind the last byte.
    body: Option<Body>,
    /// Breaks without progress.
    breaks: u32,
    /// The position of the stream at its last break.
    at_break: BlobOffset,
    /// Bytes that came again since the last break, because the server sends no ranges.
    skipped: u64,
    short_answers: u64,
}

/// A body, and the bytes of the blob that it has still to yield.
struct Body {
    answer: Answer,
    range: Range<BlobOffset>,
    has_length: bool,
}

impl Download {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let stall = self.remote.timing().stall;
        loop {
            let Some(body) = &mut self.body else {
                if self.at == self.range.end {
                    return Ok(None);
                }
                self.resume().await?;
                continue;
            };
            if self.at == self.range.end || body.range.is_empty() {
                self.finish().await?;
                continue;
            }
            match body.answer.piece(stall).await {
                Ok(Some(piece)) => {
                    let piece = body.take(piece, self.at..self.range.end)?;
                    if piece.is_empty() {
                        continue;
                    }
                    self.at += piece.len() as u64;
                    let is_read = self.at == self.range.end;
                    if is_read && (body.has_length || !body.range.is_empty()) {
                        // This returns the slot, because the reader may never read the end of the stream.
                        self.body = None;
                    }
                    return Ok(Some(piece));
                }
                Ok(None) => {
                    let left = body.range.end - body.range.start;
                    let place = body.answer.place().to_owned();
                    let detail = format!("the body ended {left} bytes early");
                    self.broke(SourceError::Unavailable { place, detail }).await?;
                }
                Err(error) => self.broke(error).await?,
            }
        }
    }

    /// Ends a body without further wanted bytes, and counts a short answer.
    async fn finish(&mut self) -> Result<(), SourceError> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        if body.range.is_empty() {
            body.check_end().await?;
        }
        if self.at < self.range.end {
            self.short_answers += 1;
            let came = self.at - self.range.start;
            if self.short_answers > FREE_SHORT_ANSWERS + came / BYTES_PER_SHORT_ANSWER {
                return Err(SourceError::Protocol {
                    place: body.answer.place().to_owned(),
                    detail: format!(
                        "{came} bytes in {} answers, each a small part of the range that was asked \
                         for",
                        self.short_answers
                    ),
                });
            }
        }
        Ok(())
    }

    /// Counts a break. From the second break on, it waits a little.
    async fn broke(&mut self, error: SourceError) -> Result<(), SourceError> {
        let timing = self.remote.timing();
        self.body = None;
        // Progress must outweigh the skipped bytes. Else a server without ranges whose connections break often
        // would send the start of a blob again and again.
        if self.at - self.at_break >= PROGRESS_BYTES.max(self.skipped) {
            self.breaks = 0;
        }
        (self.at_break, self.skipped) = (self.at, 0);
        self.breaks += 1;
        if self.breaks > timing.resumes {
            return Err(error);
        }
        tracing::debug!(%error, digest = %self.blob.digest, at = %self.at, "resuming");
        self.urgency.note_retry();
        if self.breaks > 1 {
            let wait = timing.backoff_min.saturating_mul(1 << (self.breaks - 2).min(16));
            tokio::time::sleep(wait.min(timing.backoff_max)).await;
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), SourceError> {
        let missing = self.at..self.range.end;
        let opened = self.remote.open(self.blob, missing, self.urgency.clone()).await?;
        self.skipped += self.at.since(opened.range.start);
        self.body = Some(Body::new(opened));
        Ok(())
    }
}

impl Body {
    fn new(Opened { range, answer, .. }: Opened) -> Self {
        let has_length = answer.headers().contains_key(http::header::CONTENT_LENGTH);
        Self { answer, range, has_length }
    }

    /// The part of `piece`, the next bytes of the body, that lies in `wanted`.
    fn take(&mut self, mut piece: Bytes, wanted: Range<BlobOffset>) -> Result<Bytes, SourceError> {
        let length = piece.len() as u64;
        if length > self.range.end - self.range.start {
            return Err(self.too_long());
        }
        let start = self.range.start;
        self.range.start += length;
        let skipped = wanted.start.since(start).min(length);
        piece.advance(skipped as usize);
        piece.truncate((wanted.end - wanted.start).min(length) as usize);
        Ok(piece)
    }

    /// Checks that nothing follows the last byte. A body with a length has an end.
    async fn check_end(&mut self) -> Result<(), SourceError> {
        if self.has_length {
            return Ok(());
        }
        self.answer.hurry();
        match self.answer.piece(END_PATIENCE).await {
            Ok(Some(piece)) if !piece.is_empty() => Err(self.too_long()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn too_long(&self) -> SourceError {
        SourceError::Protocol {
            place: self.answer.place().to_owned(),
            detail: format!("a body that goes on after byte {} of the blob", self.range.end),
        }
    }
}
