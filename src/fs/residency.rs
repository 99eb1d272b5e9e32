//! The parts of a file that are in the cache.

use std::ops::Range;

use super::kit::LoadedKit;
use crate::cache::LayerState;
use crate::fetch::{Coming, Presence};
use crate::kit::{Content, NodeId, NodeKind};
use crate::layer::{Extent, Extents, StreamOffset};

/// The state of a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PartState {
    /// Zeros that no layer stores.
    Hole,
    /// Not in the cache, and not on its way.
    Absent,
    /// On its way to the cache.
    Fetching,
    /// In the cache. The layer's digest is not computed yet.
    Resident,
    /// In the cache, and the layer's digest matches.
    Verified,
    /// The layer's digest does not match: reads fail.
    Bad,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its bytes in the file.
    pub range: Range<u64>,
    /// Their state.
    pub state: PartState,
}

/// The chunks of a kit that are on their way at one moment, and the states of its layers.
pub struct InFlight(Vec<(Coming, Trust)>);

/// The state of bytes in the cache, as the layer's state gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Open,
    Verified,
    Bad,
}

impl InFlight {
    /// Looks at all layers of a kit.
    pub fn of(kit: &LoadedKit) -> Self {
        let layers = kit.layers.iter().map(|layer| {
            let trust = match layer.state() {
                LayerState::Poisoned { .. } => Trust::Bad,
                // Bytes that a crash of the machine may have torn are checked before their next read.
                LayerState::Confirmed if layer.unchecked_bytes() == 0 => Trust::Verified,
                LayerState::Confirmed | LayerState::Unconfirmed => Trust::Open,
            };
            (layer.coming(), trust)
        });
        Self(layers.collect())
    }

    /// The parts of a file, in order and without gaps. Neighbours have different states. Empty for directories and
    /// links.
    pub fn parts<'a>(
        &'a self,
        kit: &'a LoadedKit,
        node: NodeId,
    ) -> Box<dyn Iterator<Item = Part> + 'a> {
        match kit.tree.kind(node) {
            NodeKind::Directory | NodeKind::Symlink(_) => Box::new(std::iter::empty()),
            // The Kitfile came with the manifest, whose digest was compared.
            NodeKind::File(Content::Inline(bytes)) => {
                let part = Part { range: 0..bytes.len() as u64, state: PartState::Verified };
                Box::new(std::iter::once(part).filter(|part| !part.range.is_empty()))
            }
            NodeKind::File(Content::Stored { layer, extents }) => {
                let (coming, trust) = &self.0[*layer as usize];
                let layer = &kit.layers[*layer as usize];
                let presence = |stream| layer.presence(stream, coming);
                Box::new(parts_of(extents, *trust, presence))
            }
        }
    }
}

fn state_of(presence: Presence, trust: Trust) -> PartState {
    match (trust, presence) {
        (Trust::Bad, _) => PartState::Bad,
        (_, Presence::Absent) => PartState::Absent,
        (_, Presence::Coming) => PartState::Fetching,
        (Trust::Open, Presence::Resident) => PartState::Resident,
        (Trust::Verified, Presence::Resident) => PartState::Verified,
    }
}

/// The parts of a file with these extents. `presence` gives the states of a range of the stream.
fn parts_of<I: Iterator<Item = (Range<StreamOffset>, Presence)>>(
    extents: &Extents,
    trust: Trust,
    presence: impl Fn(Range<StreamOffset>) -> I,
) -> impl Iterator<Item = Part> {
    let mut end = 0;
    let size = extents.bytes();
    let last = Extent { file: size..size, stream: StreamOffset(0) };
    let runs = extents.data(0..size).chain(std::iter::once(last));
    let parts = runs.flat_map(move |run| {
        let hole = Part { range: end..run.file.start, state: PartState::Hole };
        end = run.file.end;
        let bytes = run.file.end - run.file.start;
        let data = presence(run.stream..run.stream + bytes).map(move |(stream, presence)| {
            let start = run.file.start + (stream.start - run.stream);
            let bytes = stream.end - stream.start;
            Part { range: start..start + bytes, state: state_of(presence, trust) }
        });
        std::iter::once(hole).chain(data)
    });
    let mut parts = parts.filter(|part| !part.range.is_empty()).peekable();
    std::iter::from_fn(move || {
        let mut part = parts.next()?;
        while let Some(next) = parts.next_if(|next| next.state == part.state) {
            part.range.end = next.range.end;
        }
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: u64 = 1000;

    fn presence() -> impl Strategy<Value = Presence> {
        prop_oneof![Just(Presence::Resident), Just(Presence::Coming), Just(Presence::Absent)]
    }

    proptest! {
        #[test]
        fn every_byte_of_a_file_has_the_state_of_its_place(
            runs in prop::collection::vec((0..5u64, prop::collection::vec(presence(), 0..5)), 0..8),
            hole in 0..4u64,
            trust in prop_oneof![Just(Trust::Open), Just(Trust::Verified), Just(Trust::Bad)],
        ) {
            let (mut at, mut stored, mut mapped, mut expected) = (0, Vec::new(), Vec::new(), Vec::new());
            for (before, data) in runs {
                at += before;
                expected.extend((0..before).map(|_| PartState::Hole));
                mapped.push(at..at + data.len() as u64);
                at += data.len() as u64;
                expected.extend(data.iter().map(|presence| state_of(*presence, trust)));
                stored.extend(data);
            }
            expected.extend((0..hole).map(|_| PartState::Hole));
            let place = StreamOffset(START)..StreamOffset(START + stored.len() as u64);
            let extents = Extents::sparse(place, at + hole, mapped).unwrap();
            let of = |stream: Range<StreamOffset>| {
                let bytes = stream.start.get()..stream.end.get();
                let bytes = bytes.map(|at| (StreamOffset(at)..StreamOffset(at + 1), stored[(at - START) as usize]));
                bytes.collect::<Vec<_>>().into_iter()
            };
            let parts: Vec<Part> = parts_of(&extents, trust, of).collect();
            prop_assert!(parts.windows(2).all(|pair| pair[0].state != pair[1].state));
            let mut found = Vec::new();
            for part in parts {
                prop_assert_eq!(part.range.start, found.len() as u64);
                found.extend(part.range.map(|_| part.state));
            }
            prop_assert_eq!(found, expected);
        }
    }
}
