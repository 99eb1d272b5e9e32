//! Bringing ranges of layers to the cache, piece by piece: warm, hydrate and replayed traces.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::fetch::{FetchError, Layer};
use crate::layer::StreamOffset;
use crate::source::Priority;

/// A piece: what a few requests bring.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;

/// Brings ranges of a layer in order, at most `at_once` pieces at a time, and tells `on_piece` of
/// the bytes of each.
///
/// # Errors
/// The first failure; what came before it stays in the cache.
pub(super) async fn bring(
    layer: &Arc<Layer>,
    ranges: impl IntoIterator<Item = Range<StreamOffset>>,
    priority: Priority,
    at_once: usize,
    on_piece: impl Fn(u64),
) -> Result<(), FetchError> {
    stream::iter(ranges.into_iter().flat_map(pieces))
        .map(|piece| async move {
            layer.bring(piece.clone(), priority).await?;
            Ok(piece.end - piece.start)
        })
        .buffered(at_once)
        .try_for_each(|bytes| {
            on_piece(bytes);
            std::future::ready(Ok(()))
        })
        .await
}

/// A range cut into pieces.
pub(super) fn pieces(range: Range<StreamOffset>) -> impl Iterator<Item = Range<StreamOffset>> {
    let count = (range.end - range.start).div_ceil(PIECE_BYTES);
    (0..count).map(move |index| {
        let start = range.start + index * PIECE_BYTES;
        start..range.end.min(start + PIECE_BYTES)
    })
}
