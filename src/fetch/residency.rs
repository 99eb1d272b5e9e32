//! The parts of a layer that are in the cache or on their way.

use std::ops::Range;

use super::Layer;
use crate::cache::{Contents, LayerStore};
use crate::layer::{ChunkId, RangeSet, StreamOffset};

/// The state of bytes of a layer at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The bytes are in the cache.
    Resident,
    /// A transfer will bring them.
    Coming,
    /// The bytes are neither in the cache nor on their way.
    Absent,
}

/// The chunks of a layer that transfers will bring, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Coming(RangeSet);

impl Layer {
    /// The chunks on their way. It holds up a reader's plan only while it copies the list.
    pub fn coming(&self) -> Coming {
        let mut chunks = RangeSet::new();
        for chunk in self.inner.coming_chunks() {
            chunks.insert(chunk.into()..u64::from(chunk) + 1);
        }
        Coming(chunks)
    }

    /// The chunks that have only bytes of the scan for the contents, with the number of bytes. Empty for a layer
    /// that this process found in the cache.
    pub fn scanned(&self) -> impl Iterator<Item = (u32, u32)> {
        let store = &self.inner.store;
        let scanned = self.inner.scanned.iter().copied();
        scanned.filter(|&(chunk, filled)| store.filled(ChunkId(chunk)) == filled)
    }

    /// The states of a range of the stream, in order and without gaps; neighbours differ. The part beyond the
    /// stream's end is left out.
    pub fn presence<'a>(
        &'a self,
        range: Range<StreamOffset>,
        coming: &'a Coming,
    ) -> impl Iterator<Item = (Range<StreamOffset>, Presence)> + 'a {
        let layout = &self.inner.contents.layout;
        let chunks = layout.chunks_of(range.clone()).map(move |chunk| {
            let bytes = layout.chunk(ChunkId(chunk)).stream;
            let filled = u64::from(self.inner.store.filled(ChunkId(chunk)));
            let number = u64::from(chunk);
            (bytes, filled, coming.0.covers(number..number + 1))
        });
        merged(chunks.flat_map(of_chunk), range)
    }
}

/// The chunks that have bytes, in order, each with the number of bytes.
pub(super) fn filled(store: &LayerStore, contents: &Contents) -> Vec<(u32, u32)> {
    let chunks = (0..contents.layout.chunks()).map(|chunk| (chunk, store.filled(ChunkId(chunk))));
    chunks.filter(|(_, filled)| *filled > 0).collect()
}

/// The two parts of a chunk: a chunk fills from its start.
fn of_chunk(
    (bytes, filled, is_coming): (Range<StreamOffset>, u64, bool),
) -> [(Range<StreamOffset>, Presence); 2] {
    let end = (bytes.start + filled).min(bytes.end);
    let rest = if is_coming { Presence::Coming } else { Presence::Absent };
    [(bytes.start..end, Presence::Resident), (end..bytes.end, rest)]
}

/// Cuts parts to `range`, drops empty ones and joins neighbours with one state.
fn merged(
    parts: impl Iterator<Item = (Range<StreamOffset>, Presence)>,
    range: Range<StreamOffset>,
) -> impl Iterator<Item = (Range<StreamOffset>, Presence)> {
    let cut = move |(part, state): (Range<StreamOffset>, Presence)| {
        (part.start.max(range.start)..part.end.min(range.end), state)
    };
    let mut parts = parts.map(cut).filter(|(part, _)| part.start < part.end).peekable();
    std::iter::from_fn(move || {
        let (mut part, state) = parts.next()?;
        while let Some((next, _)) = parts.next_if(|(_, next)| *next == state) {
            part.end = next.end;
        }
        Some((part, state))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_has_the_state_of_its_chunk(
            chunks in prop::collection::vec((1..9u64, 0..9u64, any::<bool>()), 0..12),
            start in 0..60u64, length in 0..60u64,
        ) {
            let (mut at, mut bytes, mut expected) = (StreamOffset(0), Vec::new(), Vec::new());
            for (size, filled, is_coming) in chunks {
                let filled = filled.min(size);
                bytes.push((at..at + size, filled, is_coming));
                at += size;
                let rest = if is_coming { Presence::Coming } else { Presence::Absent };
                expected.extend((0..size).map(|byte| if byte < filled { Presence::Resident } else { rest }));
            }
            let range = StreamOffset(start)..StreamOffset(start + length);
            let parts: Vec<_> = merged(bytes.into_iter().flat_map(of_chunk), range).collect();
            prop_assert!(parts.windows(2).all(|pair| pair[0].0.end == pair[1].0.start && pair[0].1 != pair[1].1));
            let found: Vec<_> = parts.iter().flat_map(|(part, state)| {
                (part.start.get()..part.end.get()).map(move |at| (at, *state))
            }).collect();
            let end = (start + length).min(expected.len() as u64);
            let expected: Vec<_> = (start..end.max(start)).map(|at| (at, expected[at as usize])).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
