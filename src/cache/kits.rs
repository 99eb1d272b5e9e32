//! Notes about kits: the layers that each kit uses, and the manifest that each origin was resolved to. A note that
//! cannot be written fails no operation.

use std::collections::{BTreeSet, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use super::state::{CHANGE_BYTES, RecordedKit, State};
use super::{Cache, CacheError, LayerKey};
use crate::oci::Digest;

impl Cache {
    /// Remembers which manifest an origin (as its `Display` writes it) was resolved to.
    ///
    /// # Errors
    /// None: where the disk does not take it, the log says so.
    pub fn remember(&self, origin: &str, manifest: Digest) -> Result<(), CacheError> {
        self.note(|state| state.remember(origin, manifest));
        Ok(())
    }

    /// The manifest that an origin was last resolved to, for mounting without the network.
    pub fn recall(&self, origin: &str) -> Option<Digest> {
        self.state.recall(origin).unwrap_or_else(|error| {
            tracing::warn!(%error, "the cache's state file cannot be read");
            None
        })
    }

    /// The hosts that have a layer's bytes, as far as that is known in a cache of several users.
    pub fn hosts_of(&self, layer: LayerKey) -> Vec<String> {
        self.state.hosts_of(layer).unwrap_or_else(|error| {
            tracing::warn!(%error, "the cache's state file cannot be read");
            Vec::new()
        })
    }

    /// Notes that one more host has a layer's bytes.
    pub fn note_host(&self, layer: LayerKey, host: &str) {
        self.note(|state| state.note_host(layer, host, false));
    }

    /// Notes that a layer, which is not in the cache yet, is taken from this host. Earlier hosts are forgotten.
    pub fn note_only_host(&self, layer: LayerKey, host: &str) {
        self.note(|state| state.note_host(layer, host, true));
    }

    /// Records that a kit uses these layers too, for `cache ls` and `cache rm REFERENCE`.
    ///
    /// # Errors
    /// As [`Self::remember`].
    pub fn record_kit(
        &self,
        origin: &str,
        manifest: Digest,
        layers: &[LayerKey],
    ) -> Result<(), CacheError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.note(|state| state.record_kit(origin, manifest, layers, now_seconds));
        Ok(())
    }

    /// The layers that a recorded kit uses: by origin, or by its manifest's digest.
    pub fn layers_of_kit(&self, kit: &str) -> Vec<LayerKey> {
        let digest = Digest::parse(kit).ok();
        let mut layers = Vec::new();
        for recorded in self.recorded_kits() {
            if recorded.origin == kit || Some(recorded.manifest) == digest {
                layers.extend(recorded.layers);
            }
        }
        let mut seen = HashSet::new();
        layers.retain(|layer| seen.insert(*layer));
        layers
    }

    /// The manifests of the recorded kits.
    pub fn manifests(&self) -> BTreeSet<Digest> {
        self.recorded_kits().into_iter().map(|kit| kit.manifest).collect()
    }

    pub(super) fn recorded_kits(&self) -> Vec<RecordedKit> {
        self.state.kits().unwrap_or_else(|error| {
            tracing::warn!(%error, "the cache's state file cannot be read");
            Vec::new()
        })
    }

    /// Makes a change of the state, if there is room for it.
    pub(super) fn note(&self, change: impl FnOnce(&State) -> Result<(), redb::Error>) {
        if let Err(error) = self.shared.make_room_on_disk(CHANGE_BYTES) {
            tracing::warn!(%error, "there is no room to note what a kit is");
            return;
        }
        if let Err(error) = change(&self.state) {
            tracing::warn!(%error, "the cache's state files take no change");
        }
    }
}
