//! Matches the entries of a Kitfile with the layers, by digest.
//!
//! Two layers may have one digest (two empty files), and two entries too. Of several layers with an
//! entry's digest, the one whose `filepath` annotation is the entry's path comes first, then the
//! first layer without an entry. The lists come from the network, so matching takes linear time.

use std::collections::{HashMap, HashSet, VecDeque};

use super::kitfile::{Entry, Field};
use super::placement::annotated_path;
use super::{KitError, Role, layer_title};
use crate::layer::MemberPath;
use crate::oci::{Descriptor, Digest, LayerContent, LayerType, Manifest};

/// A layer that can be mounted.
pub(super) struct Known<'a> {
    pub(super) descriptor: &'a Descriptor,
    pub(super) kind: LayerType,
}

impl Known<'_> {
    /// The layer's name in messages.
    pub(super) fn title(&self, entry: Option<&Entry>) -> String {
        let role = entry.map_or_else(|| self.role(), |entry| entry.section().role());
        let path = entry.map(|entry| entry.text(Field::Path)).filter(|path| !path.is_empty());
        let path = path.or_else(|| annotated_path(self.descriptor));
        layer_title(role.as_str(), path, self.descriptor.digest)
    }

    /// The layer's role, by its media type and annotations alone.
    pub(super) fn role(&self) -> Role {
        let subtype = self.descriptor.annotations.get("ml.kitops.modelkit.layer-subtype");
        match self.kind.content {
            LayerContent::Model => Role::Model,
            LayerContent::ModelPart => Role::ModelPart,
            LayerContent::Code if subtype.is_some_and(|subtype| subtype == "prompt") => {
                Role::Prompt
            }
            LayerContent::Code => Role::Code,
            LayerContent::Dataset => Role::Dataset,
            LayerContent::Docs => Role::Docs,
            LayerContent::McpBundle => Role::McpServer,
        }
    }
}

/// For each layer, the indexes of its entries.
///
/// # Errors
/// Fails if an entry's digest is not the digest of any layer of the manifest.
pub(super) fn by_digest<'a>(
    manifest: &Manifest,
    layers: &[Known<'_>],
    entries: &[&'a Entry],
) -> Result<Vec<Vec<&'a Entry>>, KitError> {
    let mut assignment = Assignment::new(layers);
    let in_manifest: HashSet<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
    let mut rest = Vec::new();
    for entry in entries {
        let digest = entry.digest().expect("the caller checked that every entry has a digest");
        if !in_manifest.contains(&digest) {
            return Err(KitError::Malformed(format!(
                "the Kitfile's entry {} names the layer {}, which the manifest does not have",
                super::shown(&entry.title()),
                digest.short()
            )));
        }
        if !assignment.take_same_path(digest, entry) {
            rest.push((digest, *entry));
        }
    }
    for (digest, entry) in rest {
        assignment.take_any(digest, entry);
    }
    Ok(assignment.entries)
}

struct Assignment<'a> {
    by_path: HashMap<(Digest, MemberPath), VecDeque<usize>>,
    by_digest: HashMap<Digest, VecDeque<usize>>,
    entries: Vec<Vec<&'a Entry>>,
}

impl<'a> Assignment<'a> {
    fn new(layers: &[Known<'_>]) -> Self {
        let mut by_path: HashMap<_, VecDeque<usize>> = HashMap::new();
        let mut by_digest: HashMap<_, VecDeque<usize>> = HashMap::new();
        for (index, layer) in layers.iter().enumerate() {
            let digest = layer.descriptor.digest;
            by_digest.entry(digest).or_default().push_back(index);
            if let Some(path) = annotated_path(layer.descriptor).and_then(clean) {
                by_path.entry((digest, path)).or_default().push_back(index);
            }
        }
        Self { by_path, by_digest, entries: vec![Vec::new(); layers.len()] }
    }

    fn take_same_path(&mut self, digest: Digest, entry: &'a Entry) -> bool {
        let Some(path) = clean(entry.text(Field::Path)) else { return false };
        let same = self.by_path.get_mut(&(digest, path));
        let Some(layer) = same.and_then(VecDeque::pop_front) else { return false };
        self.entries[layer].push(entry);
        true
    }

    fn take_any(&mut self, digest: Digest, entry: &'a Entry) {
        // The layer may have an unknown type, and be passed over.
        let Some(layers) = self.by_digest.get_mut(&digest) else { return };
        while layers.len() > 1 && !self.entries[layers[0]].is_empty() {
            layers.pop_front();
        }
        // The last layer serves every further entry: one blob, several entries.
        self.entries[layers[0]].push(entry);
    }
}

fn clean(path: &str) -> Option<MemberPath> {
    MemberPath::parse(path.as_bytes()).ok()
}
