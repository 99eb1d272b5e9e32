//! A loaded kit: its tree, and the open layers of its files.

use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::cache::LayerState;
use crate::fetch::Layer;
use crate::kit::{Kit, NodeId, Tree};
use crate::oci::{Digest, Origin};

/// The bytes of names and sizes that are hashed at once: they stay in the processor's cache.
const MARK_PIECE_BYTES: usize = 16 * 1024;

/// A kit that can be read.
pub struct LoadedKit {
    /// The reference or folder that the kit was loaded from.
    pub origin: Origin,
    /// The digest of the manifest.
    pub manifest: Digest,
    /// The manifests of the kit and its parents, the oldest first. The cache keeps them as long as the kit.
    pub manifests: Vec<Digest>,
    /// The contents of manifest and config.
    pub kit: Kit,
    /// The files and directories.
    pub tree: Tree,
    /// The open layers, parents' layers too. [`crate::kit::Content::Stored`] has indexes into it.
    pub layers: Vec<Arc<Layer>>,
    /// The media type of each layer.
    pub media_types: Vec<String>,
    /// The name of each layer in messages: ``model `weights/model.bin` (sha256:0123456789ab)``.
    pub titles: Vec<String>,
    /// Warnings about parts that were left out, in the kit, its parents and its layers.
    pub warnings: Vec<String>,
    /// The reason to doubt that the reference names this kit: its registry did not answer, or the kit in kit's
    /// storage may be another one.
    pub doubt: Mutex<Option<String>>,
}

/// The state of verification, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The digest was computed over all bytes, and matches.
    Confirmed,
    /// The digest is not computed yet.
    Unconfirmed,
    /// The digest does not match: reads fail.
    Poisoned,
}

impl State {
    /// The word for the state in `status`, in JSON and in `user.kitfs.state`.
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
    /// The reference was resolved again, and names this kit. `doubt` is set where the registry did not answer.
    pub fn resolved_again(&self, doubt: Option<String>) {
        *self.doubt.lock() = doubt;
    }

    /// The doubt about the reference, and the warnings.
    pub fn all_warnings(&self) -> Vec<String> {
        let doubt = self.doubt.lock().clone();
        doubt.into_iter().chain(self.warnings.iter().cloned()).collect()
    }

    /// The name in messages of one of its layers.
    pub fn title_of(&self, layer: &Layer) -> String {
        let position = self.layers.iter().position(|own| own.key() == layer.key());
        let unknown = || format!("layer {}", layer.key().digest.short());
        position.map_or_else(unknown, |position| self.titles[position].clone())
    }

    /// The worst state of any layer. A kit without layers is confirmed by its manifest's digest.
    pub fn state(&self) -> State {
        let states = self.layers.iter().map(|layer| State::from(layer.state()));
        states.max().unwrap_or(State::Confirmed)
    }

    /// `true` if a remote data set could not be fetched when the kit was loaded.
    pub fn has_missing(&self) -> bool {
        self.tree.all_missing().next().is_some()
    }

    /// The SHA-256 digest of all names and sizes, in the order of the inodes. Trees with other inodes have other
    /// marks. Blocks: a tree of a million nodes takes a tenth of a second.
    pub fn tree_mark(&self) -> [u8; 32] {
        let mut nodes = Sha256::new();
        // Hashing each field by itself takes three times as long.
        let mut fields = Vec::with_capacity(2 * MARK_PIECE_BYTES);
        for node in (0..self.tree.len()).map(NodeId) {
            let name = self.tree.name(node);
            fields.extend_from_slice(&self.tree.parent(node).0.to_le_bytes());
            fields.extend_from_slice(&self.tree.size(node).to_le_bytes());
            fields.extend_from_slice(&(name.len() as u64).to_le_bytes());
            fields.extend_from_slice(name);
            if fields.len() >= MARK_PIECE_BYTES {
                nodes.update(&fields);
                fields.clear();
            }
        }
        nodes.update(&fields);
        nodes.finalize().into()
    }

    /// The bytes of all uncompressed layers, headers included.
    pub fn total_bytes(&self) -> u64 {
        let bytes = self.layers.iter().map(|layer| layer.contents().layout.stream_bytes());
        // Each layer is bounded; the sum over all parents is not.
        bytes.fold(0, u64::saturating_add)
    }

    /// The part of [`Self::total_bytes`] that is in the cache.
    pub fn resident_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.resident_bytes()).fold(0, u64::saturating_add)
    }

    /// The part of [`Self::resident_bytes`] that is unchecked since the machine went down while these bytes were
    /// written.
    pub fn unchecked_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.unchecked_bytes()).fold(0, u64::saturating_add)
    }
}
