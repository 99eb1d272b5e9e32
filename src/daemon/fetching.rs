//! Fetches ranges of layers into the cache, in pieces of a few requests: for warm, hydrate and replayed traces.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::fetch::{Cause, FetchError, Layer};
use crate::layer::StreamOffset;

/// The length of a piece, a part of a range that a few requests fetch: background work looks for waiting readers
/// between two pieces.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;

/// Fetches ranges of a layer into the cache in order, at most `at_once` pieces at a time. Calls `on_piece` with
/// the number of bytes of each.
///
/// # Errors
/// The first failure. Pieces that were fetched before it stay in the cache.
pub(super) async fn bring(
    layer: &Arc<Layer>,
    ranges: impl IntoIterator<Item = Range<StreamOffset>>,
    cause: Cause,
    at_once: usize,
    on_piece: impl Fn(u64),
) -> Result<(), FetchError> {
    stream::iter(ranges.into_iter().flat_map(pieces))
        .map(|piece| async move {
            layer.bring(piece.clone(), cause).await?;
            Ok(piece.end - piece.start)
        })
        .buffered(at_once)
        .try_for_each(|bytes| {
            on_piece(bytes);
            std::future::ready(Ok(()))
        })
        .await
}

/// Cuts a range into pieces.
pub(super) fn pieces(range: Range<StreamOffset>) -> impl Iterator<Item = Range<StreamOffset>> {
    let count = (range.end - range.start).div_ceil(PIECE_BYTES);
    (0..count).map(move |index| {
        let start = range.start + index * PIECE_BYTES;
        start..range.end.min(start + PIECE_BYTES)
    })
}
