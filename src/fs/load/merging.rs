//! From open layers to a tree: the files of each layer are dated, then the layers are merged.
//!
//! A file's modification time is the first of these (docs/semantics.md):
//!
//! 1. its own: of a raw layer's metadata, or of its header in the archive;
//! 2. the manifest's `org.opencontainers.image.created`;
//! 3. the moment at which this cache first saw its layer.
//!
//! The cache keeps the time of a layer, so every version of a kit with the layer shows the same time. The Kitfile
//! lies in no layer. It has the date of the manifest, else the moment at which this cache first saw the manifest.
//! Kitfiles of two versions never have the same second.

use std::collections::HashSet;
use std::sync::Arc;

use crate::cache::{Cache, Contents, Dated, LayerKey};
use crate::kit::tree::TreeLayer;
use crate::kit::{Additions, KitLayer, Placement, Tree, TreeError};
use crate::layer::Mtime;
use crate::oci::Digest;

/// The parts of a tree, owned: the work takes a thread that may block.
pub(super) struct Merging {
    pub(super) cache: Arc<Cache>,
    /// The layers in the order in which they are merged.
    pub(super) layers: Vec<MergedLayer>,
    /// Every layer of the kit and of the kits and objects that it takes layers from, also those that filters leave
    /// out.
    pub(super) kit: HashSet<LayerKey>,
    /// The digest of the kit's manifest.
    pub(super) manifest: Digest,
    /// The creation of the kit, if its manifest has it.
    pub(super) created: Option<Mtime>,
    /// The nodes that no layer has: the Kitfile, and the places of missing remote data.
    pub(super) additions: Additions,
    pub(super) umask: u32,
}

/// A layer of a kit, open.
pub(super) struct MergedLayer {
    /// Its index among the open layers.
    pub(super) index: u32,
    pub(super) key: LayerKey,
    /// Its name in messages.
    pub(super) title: String,
    pub(super) placement: Placement,
    pub(super) contents: Arc<Contents>,
    /// The creation of the kit that has the layer: the kit itself or a parent.
    pub(super) created: Option<Mtime>,
}

impl MergedLayer {
    fn dated(&self) -> Dated {
        let own = match &self.placement {
            Placement::Raw { mtime, .. } => *mtime,
            Placement::Tar { .. } => self.contents.toc.constant_mtime(),
        };
        match (own, self.created) {
            (Some(own), _) => Dated::ByItself(own),
            (None, Some(created)) => Dated::ByItsKit(created),
            (None, None) => Dated::ByFirstSight,
        }
    }
}

impl Merging {
    /// Dates and merges. Blocking: a tree of a million entries takes a second.
    ///
    /// # Errors
    /// Fails if the layers make no tree.
    pub(super) fn run(self) -> Result<Tree, TreeError> {
        // A layer that several entries name is dated by the first.
        let mut mtimes: Vec<(LayerKey, Dated)> = Vec::new();
        let mut position_of = std::collections::HashMap::new();
        for layer in &self.layers {
            position_of.entry(layer.key).or_insert_with(|| {
                mtimes.push((layer.key, layer.dated()));
                mtimes.len() - 1
            });
        }
        let mtimes = self.cache.date_layers(&mtimes, &self.kit);
        let layers = self.layers.iter().map(|layer| TreeLayer {
            index: layer.index,
            digest: layer.key.digest,
            name: &layer.title,
            placement: &layer.placement,
            toc: &layer.contents.toc,
            mtime: mtimes[position_of[&layer.key]],
        });
        let layers = layers.collect::<Vec<_>>();
        let mtime = self.mtime();
        Tree::merge(&layers, self.additions, mtime, self.umask)
    }

    /// The time of nodes that lie in no layer.
    fn mtime(&self) -> Mtime {
        let mtime = self.cache.date_manifest(self.manifest, self.created);
        mtime.or_fraction_of(&match &self.additions.kitfile {
            Some(kitfile) => Digest::of(kitfile),
            None => self.manifest,
        })
    }
}

/// The key by which the cache knows a layer.
pub(super) fn key_of(layer: &KitLayer) -> LayerKey {
    LayerKey { digest: layer.blob.digest, encoding: layer.encoding }
}
