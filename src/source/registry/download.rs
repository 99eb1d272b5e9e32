//! A blob's bytes as they arrive, over as many requests as it takes.
//!
//! ```text
//! streaming --all bytes--> ended
//!   |   ^
//!   |   '-- a new request from where it stopped
//!   '--broke off, stalled, or ended early--'      too often without coming far --> failed
//! ```
//!
//! A reader never sees a break. What a reader sees is exactly the promised range: a body that goes
//! on behind it is an error, because then nothing in it can be trusted.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};

use super::exchange::Answer;
use super::repository::Remote;
use crate::oci::BlobId;
use crate::source::{BlobStream, SourceError, Urgency};

/// Bytes after which a stream has come far enough for its earlier breaks to be forgotten.
///
/// 1 MiB: a connection that carries less before it breaks is no use, and a 100 GB layer may well
/// break more than a few times in all.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// How long the end of a body without a length is waited for once all bytes are there.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// A body that has begun, and the bytes of the blob that its head promised.
pub(super) struct Opened {
    pub(super) range: Range<u64>,
    pub(super) answer: Answer,
}

/// The stream over `opened`, which is resumed at `remote` when it breaks.
pub(super) fn stream(
    remote: Arc<Remote>,
    blob: BlobId,
    opened: Opened,
    urgency: Urgency,
) -> BlobStream {
    let range = opened.range.clone();
    let download = Download {
        remote,
        blob,
        urgency,
        at: range.start,
        end: range.end,
        body: Some(Body { promised_end: range.end, skip: 0, answer: opened.answer }),
        breaks: 0,
        since_break: 0,
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
    /// The next byte of the blob to yield.
    at: u64,
    end: u64,
    /// `None` after a break, and behind the last byte.
    body: Option<Body>,
    /// Breaks without coming far.
    breaks: u32,
    since_break: u64,
}

struct Body {
    answer: Answer,
    /// Bytes to pass over, of a whole blob that came where its end was asked for.
    skip: u64,
    promised_end: u64,
}

impl Download {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let stall = self.remote.timing().stall;
        loop {
            if self.at == self.end {
                return match self.body.take() {
                    Some(mut body) => body.end(self.end).await.map(|()| None),
                    None => Ok(None),
                };
            }
            let Some(body) = &mut self.body else {
                self.resume().await?;
                continue;
            };
            match body.answer.piece(stall).await {
                Ok(Some(piece)) => {
                    let piece = body.cut(piece, self.end - self.at, self.end)?;
                    if !piece.is_empty() {
                        self.at += piece.len() as u64;
                        self.since_break += piece.len() as u64;
                        if self.at == self.end && !body.may_go_on(self.end) {
                            // Others need not wait for a reader that comes no more to hear so.
                            self.body = None;
                        }
                        return Ok(Some(piece));
                    }
                }
                Ok(None) => {
                    let left = self.end - self.at;
                    let place = body.answer.place().to_owned();
                    let detail = format!("the body ended {left} bytes early");
                    self.broke(SourceError::Unavailable { place, detail }).await?;
                }
                Err(error) => self.broke(error).await?,
            }
        }
    }

    /// Takes note of a break, and waits a little from the second on.
    async fn broke(&mut self, error: SourceError) -> Result<(), SourceError> {
        let timing = self.remote.timing();
        self.body = None;
        if self.since_break >= PROGRESS_BYTES {
            self.breaks = 0;
        }
        self.since_break = 0;
        self.breaks += 1;
        if self.breaks > timing.resumes {
            return Err(error);
        }
        tracing::debug!(%error, digest = %self.blob.digest, at = self.at, "resuming");
        if self.breaks > 1 {
            let wait = timing.backoff_min.saturating_mul(1 << (self.breaks - 2).min(16));
            tokio::time::sleep(wait.min(timing.backoff_max)).await;
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), SourceError> {
        let opened = self.remote.open(self.blob, self.at..self.end, self.urgency.clone()).await?;
        let skip = self.at - opened.range.start;
        self.body = Some(Body { promised_end: opened.range.end, skip, answer: opened.answer });
        Ok(())
    }
}

impl Body {
    /// What of `piece` is to be yielded, where `left` bytes up to `end` are missing.
    fn cut(&mut self, mut piece: Bytes, left: u64, end: u64) -> Result<Bytes, SourceError> {
        let skipped = self.skip.min(piece.len() as u64);
        piece.advance(skipped as usize);
        self.skip -= skipped;
        if piece.len() as u64 > left {
            if self.promised_end == end {
                return Err(self.too_long());
            }
            piece.truncate(left as usize);
        }
        Ok(piece)
    }

    /// Whether something may follow the last byte that must not. With a length nothing can, and what
    /// follows where a whole blob came for a part of it was not asked for.
    fn may_go_on(&self, end: u64) -> bool {
        self.answer.content_length().is_none() && self.promised_end == end
    }

    /// Makes sure that nothing follows the last byte.
    async fn end(&mut self, end: u64) -> Result<(), SourceError> {
        if !self.may_go_on(end) {
            return Ok(());
        }
        match self.answer.piece(END_PATIENCE).await {
            Ok(Some(piece)) if !piece.is_empty() => Err(self.too_long()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn too_long(&self) -> SourceError {
        SourceError::Protocol {
            place: self.answer.place().to_owned(),
            detail: format!("a body that goes on after byte {}", self.promised_end),
        }
    }
}
