//! The bytes of a file, piece by piece.
//!
//! Each piece is requested when the connection has room for it. So a client that stops reading holds one piece in
//! memory, however large the file is. Meanwhile the cache fetches the bytes behind the piece.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};

use super::Server;
use super::kits::OpenKit;
use super::problem::Problem;
use crate::control::api::{Failure, FailureKind, FilePart, RawPath, ReadRequest};
use crate::control::{Answering, Service};

/// The bytes in memory for each connection. 1 MiB: large enough that a request to the service costs little beside
/// it.
pub(super) const PIECE_BYTES: u64 = 1024 * 1024;
/// The bytes that the cache fetches ahead. 8 MiB: a request of this size to a registry is worth its round trip.
const AHEAD_BYTES: u64 = 8 * 1024 * 1024;

/// A file that is being sent.
pub(super) struct Reading<S> {
    pub(super) server: Arc<Server<S>>,
    pub(super) kit: Arc<OpenKit>,
    pub(super) path: RawPath,
    /// The bytes that are not sent yet.
    pub(super) range: Range<u64>,
    /// Set for a whole file: how often wrong bytes of its layer had been replaced before the first piece. The last
    /// piece then waits for the digest of the layer, if the layer is complete.
    pub(super) replacements: Option<u64>,
    /// Keeps the daemon alive.
    pub(super) _answering: Answering,
}

impl<S: Service> Reading<S> {
    /// Starts to read. The first piece is there when this returns, so that its failure can be the answer.
    ///
    /// # Errors
    /// The failure to read the first piece. A later failure is an item of the stream, and cuts the connection.
    pub(super) async fn start(
        mut self,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Problem> {
        if self.range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let first = self.next().await?;
        let rest = stream::try_unfold(self, |mut reading| async move {
            if reading.range.is_empty() {
                return Ok(None);
            }
            let piece = reading.next().await.inspect_err(|failure| {
                tracing::warn!(%failure, "a file that is being sent over HTTP ends early");
            })?;
            Ok(Some((piece, reading)))
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }

    /// The next piece.
    async fn next(&mut self) -> Result<Bytes, Failure> {
        let piece = next_piece(&self.range);
        let is_last = piece.end == self.range.end;
        let part = FilePart {
            start: piece.start,
            end: piece.end,
            ahead_end: ahead_end(&piece, self.range.end),
            confirm: self.replacements.filter(|_| is_last),
        };
        let request =
            ReadRequest { kit: self.kit.handle, paths: vec![self.path.clone()], part: Some(part) };
        let mut bytes = self.server.kits.connection().stream(request).await?;
        let first = bytes.try_next().await?.unwrap_or_default();
        let whole = match bytes.try_next().await? {
            None => first,
            Some(second) => {
                let mut whole = BytesMut::from(first);
                whole.extend_from_slice(&second);
                while let Some(more) = bytes.try_next().await? {
                    whole.extend_from_slice(&more);
                }
                whole.freeze()
            }
        };
        if whole.len() as u64 != piece.end - piece.start {
            return Err(Failure::new(
                FailureKind::Internal,
                "a part of the file has another length",
            ));
        }
        self.range.start = piece.end;
        Ok(whole)
    }
}

/// The first piece of a range. Pieces end at multiples of their size, as chunks of the cache do.
fn next_piece(range: &Range<u64>) -> Range<u64> {
    let end = (range.start / PIECE_BYTES + 1).saturating_mul(PIECE_BYTES);
    range.start..end.min(range.end)
}

/// The end of the bytes that the cache fetches while a piece is sent: the end of the next block. The first piece of
/// a block starts the download of the block behind it.
fn ahead_end(piece: &Range<u64>, end: u64) -> u64 {
    let block_end = (piece.start / AHEAD_BYTES + 1).saturating_mul(AHEAD_BYTES);
    block_end.saturating_add(AHEAD_BYTES).min(end).max(piece.end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_pieces_together_are_the_range(start in 0u64..1 << 40, length in 1u64..1 << 26) {
            let range = start..start + length;
            let mut rest = range.clone();
            while !rest.is_empty() {
                let piece = next_piece(&rest);
                prop_assert!(piece.start == rest.start && piece.end <= rest.end && !piece.is_empty());
                prop_assert!(piece.end - piece.start <= PIECE_BYTES);
                let ahead = ahead_end(&piece, range.end);
                prop_assert!(piece.end <= ahead && ahead <= range.end);
                prop_assert!(ahead - piece.start <= 2 * AHEAD_BYTES);
                rest.start = piece.end;
            }
        }
    }

    #[test]
    fn no_range_overflows() {
        let last = u64::MAX - 5..u64::MAX;
        assert_eq!(next_piece(&last), last);
        assert_eq!(ahead_end(&last, u64::MAX), u64::MAX);
    }
}
