//! A kit that was loaded: its tree, and the open layers its files lie in.

use std::sync::Arc;

use crate::cache::LayerState;
use crate::fetch::Layer;
use crate::kit::{Kit, Tree};
use crate::oci::{Digest, LabelSelector, Origin};

/// A kit that can be read.
pub struct LoadedKit {
    /// Where it was read from.
    pub origin: Origin,
    /// The labels that chose it, where the origin is an index.
    pub labels: LabelSelector,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Manifest and config, understood.
    pub kit: Kit,
    /// Its files and directories.
    pub tree: Tree,
    /// The open layers, as [`crate::kit::Content::Stored`] counts them; parents' layers too.
    pub layers: Vec<Arc<Layer>>,
    /// The media type of each layer.
    pub media_types: Vec<String>,
    /// The name of each layer in messages: ``model `weights/model.bin` (sha256:0123456789ab)``.
    pub titles: Vec<String>,
    /// What was passed over, in the kit, its parents and its layers.
    pub warnings: Vec<String>,
}

/// How far bytes can be trusted (design.md 6), from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The digest was computed over all bytes, and matches.
    Confirmed,
    /// Some digest is not computed yet.
    Unconfirmed,
    /// Some digest does not match: reads fail.
    Poisoned,
}

impl State {
    /// The word for it in `status`, in JSON and in `user.kitfs.state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Unconfirmed => "unconfirmed",
            Self::Poisoned => "poisoned",
        }
    }
}

impl From<LayerState> for State {
    fn from(state: LayerState) -> Self {
        match state {
            LayerState::Confirmed => Self::Confirmed,
            LayerState::Unconfirmed => Self::Unconfirmed,
            LayerState::Poisoned { .. } => Self::Poisoned,
        }
    }
}

impl LoadedKit {
    /// The name in messages of one of its layers.
    pub fn title_of(&self, layer: &Layer) -> String {
        let position = self.layers.iter().position(|own| own.key() == layer.key());
        let unknown = || format!("layer {}", layer.key().digest.short());
        position.map_or_else(unknown, |position| self.titles[position].clone())
    }

    /// The worst state of its layers; a kit without layers is confirmed by its manifest.
    pub fn state(&self) -> State {
        let states = self.layers.iter().map(|layer| State::from(layer.state()));
        states.max().unwrap_or(State::Confirmed)
    }

    /// Whether a remote data set could not be had when the kit was loaded.
    pub fn has_missing(&self) -> bool {
        self.tree.all_missing().next().is_some()
    }

    /// The bytes of its layers' uncompressed streams, headers included.
    pub fn total_bytes(&self) -> u64 {
        let bytes = self.layers.iter().map(|layer| layer.contents().layout.stream_bytes());
        // Each is bounded, all parents' together are not.
        bytes.fold(0, u64::saturating_add)
    }

    /// How many of [`Self::total_bytes`] are in the cache.
    pub fn resident_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.resident_bytes()).fold(0, u64::saturating_add)
    }

    /// How many of these nobody has looked at since the machine went down while they were written.
    pub fn unchecked_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.unchecked_bytes()).fold(0, u64::saturating_add)
    }
}
