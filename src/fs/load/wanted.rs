//! The layers to open, each with its place in the tree and its name in messages.

use std::sync::Arc;

use super::error::LoadError;
use super::gather::{Gathered, Part, Place, Taken};
use super::resolve::Resolved;
use crate::cache::LayerKey;
use crate::fetch::{FetchError, LayerSpec};
use crate::kit::{KitLayer, Placement};
use crate::layer::{MemberPath, MemberPathError, Mtime};
use crate::oci::Encoding;
use crate::source::BlobSource;
use crate::source::inline::InlineBlob;

/// The value of `user.kitfs.media_type` for an object of an S3 store.
const OBJECT_TYPE: &str = "application/octet-stream";
/// The mode of a file that kit downloads.
const OBJECT_MODE: u32 = 0o644;

/// A layer to open, and where it comes from.
pub(super) struct Wanted {
    pub(super) spec: LayerSpec,
    pub(super) placement: Placement,
    pub(super) media_type: String,
    pub(super) source: Arc<dyn BlobSource>,
    /// The source for when `source` fails.
    pub(super) fallback: Option<Arc<dyn BlobSource>>,
    /// The kit that has the layer, as messages name it.
    pub(super) reference: String,
    /// The layer as messages name it: ``model `weights/model.bin` (sha256:0123456789ab)``.
    pub(super) name: String,
    /// The creation of its kit, if known.
    pub(super) created: Option<Mtime>,
    /// Set for remote data, whose failure does not end the load.
    pub(super) place: Option<Arc<Place>>,
}

impl Wanted {
    pub(super) fn key(&self) -> LayerKey {
        LayerKey { digest: self.spec.blob.digest, encoding: self.spec.encoding }
    }

    pub(super) fn failed(&self, error: FetchError) -> LoadError {
        let (reference, layer) = (self.reference.clone(), self.name.clone());
        LoadError::Fetch { reference, layer, error: Box::new(error) }
    }
}

/// The layers of all gathered kits and objects, in the order in which they are merged. A layer whose path is too
/// long becomes a warning.
pub(super) fn layers(gathered: &mut Gathered) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    let mut warnings = Vec::new();
    for part in &gathered.parts {
        match part {
            Part::Kit(taken) => {
                wanted.extend(taken_layers(taken).map(|layer| of_kit(taken, layer)));
            }
            Part::RemoteKit(taken, place) => {
                for layer in taken_layers(taken) {
                    let layer = of_kit(taken, layer);
                    match below(layer, place) {
                        Ok(layer) => wanted.push(layer),
                        Err(warning) => warnings.push(warning),
                    }
                }
            }
            Part::Object(object, place) => {
                let Some(path) = place.path.clone() else { continue };
                wanted.push(Wanted {
                    spec: LayerSpec { blob: object.blob, encoding: Encoding::OBJECT },
                    placement: Placement::Raw {
                        path,
                        mode: OBJECT_MODE,
                        mtime: object.modified_seconds.and_then(|seconds| Mtime::new(seconds, 0)),
                        size: Some(object.blob.size),
                    },
                    media_type: OBJECT_TYPE.to_owned(),
                    source: object.source.clone(),
                    fallback: None,
                    reference: format!("the data set `{}`", place.shown),
                    name: "its object".to_owned(),
                    created: None,
                    place: Some(place.clone()),
                });
            }
        }
    }
    gathered.warnings.append(&mut warnings);
    wanted
}

fn taken_layers(taken: &Taken) -> impl Iterator<Item = &KitLayer> {
    let layers = taken.resolved.description.kit.layers.iter();
    layers.filter(|layer| taken.filters.takes(layer))
}

fn of_kit(taken: &Taken, layer: &KitLayer) -> Wanted {
    let (source, fallback) = sources_of(&taken.resolved, layer);
    Wanted {
        spec: LayerSpec { blob: layer.blob, encoding: layer.encoding },
        placement: layer.placement.clone(),
        media_type: layer.media_type.clone(),
        source,
        fallback,
        reference: taken.name.clone(),
        name: layer.title(),
        created: taken.resolved.description.kit.created,
        place: None,
    }
}

/// A layer of a kit that a data set names, below the data set's directory.
fn below(layer: Wanted, place: &Arc<Place>) -> Result<Wanted, String> {
    let moved = |path: Option<&MemberPath>, placement: Placement| match path {
        Some(path) => placement.below(path),
        None => Ok::<_, MemberPathError>(placement),
    };
    match moved(place.path.as_ref(), layer.placement.clone()) {
        Ok(placement) => Ok(Wanted { placement, place: Some(place.clone()), ..layer }),
        Err(error) => Err(format!("{}: {} is left out: {error}", layer.reference, layer.name)),
    }
}

/// The sources of a layer's bytes: the manifest itself, or the sources of the kit.
fn sources_of(
    kit: &Resolved,
    layer: &KitLayer,
) -> (Arc<dyn BlobSource>, Option<Arc<dyn BlobSource>>) {
    let mut descriptors = kit.description.manifest.layers.iter();
    let carried = descriptors.find_map(|it| it.data.clone().filter(|_| it.blob() == layer.blob));
    match carried {
        Some(bytes) => (Arc::new(InlineBlob::new(bytes)), None),
        None => kit.sources.of(layer.blob),
    }
}
