//! The ranges of a kit to fetch in the background, and the room that they need.

use std::ops::Range;
use std::sync::Arc;

use super::super::fetching::pieces;
use crate::cache::LayerState;
use crate::fetch::Layer;
use crate::layer::StreamOffset;
use crate::layer::layout::CHUNK_BYTES;

/// Ranges of one layer.
pub(super) struct Want {
    pub(super) layer: Arc<Layer>,
    pub(super) ranges: Vec<Range<StreamOffset>>,
}

/// A part of a layer of which something is missing.
pub(super) struct MissingPiece {
    pub(super) layer: Arc<Layer>,
    pub(super) range: Range<StreamOffset>,
    pub(super) missing_bytes: u64,
}

impl Want {
    /// All of a layer, headers and padding too: only then its digest is known.
    pub(super) fn whole(layer: &Arc<Layer>) -> Self {
        Self { layer: layer.clone(), ranges: vec![layer.contents().layout.stream()] }
    }
}

/// The pieces of which something is missing, in order. Of a poisoned layer nothing is wanted.
pub(super) fn missing_pieces(wants: &[Want]) -> Vec<MissingPiece> {
    let mut missing = Vec::new();
    for Want { layer, ranges } in wants {
        if matches!(layer.state(), LayerState::Poisoned { .. }) {
            continue;
        }
        for range in ranges.iter().cloned().flat_map(pieces) {
            let missing_bytes = missing_bytes(layer, range.clone());
            if missing_bytes > 0 {
                missing.push(MissingPiece { layer: layer.clone(), range, missing_bytes });
            }
        }
    }
    missing
}

/// The bytes of a range that are missing, counted in chunks.
fn missing_bytes(layer: &Layer, range: Range<StreamOffset>) -> u64 {
    if layer.is_resident(range.clone()) {
        return 0;
    }
    let steps = (range.end - range.start).div_ceil(CHUNK_BYTES);
    let chunk_at = |step| {
        let start = range.start + step * CHUNK_BYTES;
        start..range.end.min(start + CHUNK_BYTES)
    };
    let missing = (0..steps).map(chunk_at).filter(|chunk| !layer.is_resident(chunk.clone()));
    missing.map(|chunk| chunk.end - chunk.start).sum()
}
