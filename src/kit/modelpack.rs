//! CNCF ModelPacks (modelkit-spec 4.3, 6): layers say by annotation where they go.
//!
//! kit adds the whole Kitfile as an annotation of the manifest; others have none, and then no
//! file `Kitfile` is shown, as kit writes none.

use bytes::Bytes;

use super::assign::{self, Known};
use super::kitfile::{Entry, Field, Kitfile};
use super::modelkit::{self, Digests};
use super::placement::annotated_path;
use super::{Family, Kit, KitError, Role, shown};
use crate::oci::{ArtifactType, Encoding, LayerContent, LayerType, Manifest};

/// The manifest annotation that holds the Kitfile as JSON.
const KITFILE_ANNOTATION: &str = "ml.kitops.modelkit.kitfile";

/// Understands a ModelPack. Its config is not needed: descriptors and annotations say it all.
pub(super) fn decode(manifest: &Manifest) -> Result<Kit, KitError> {
    let mut warnings = Vec::new();
    let layers = known_layers(manifest, &mut warnings);
    let family = Family::ModelPack;
    let Some(json) = manifest.annotations.get(KITFILE_ANNOTATION) else {
        let none = vec![Vec::new(); layers.len()];
        let mut layers = modelkit::build(family, &layers, &none, &mut warnings)?;
        further_weights_are_parts(&mut layers);
        return Ok(Kit {
            family,
            kitfile: None,
            kitfile_yaml: None,
            layers,
            parent: None,
            warnings,
        });
    };
    let kitfile = Kitfile::decode(json.as_bytes())?;
    let parent = modelkit::parent(&kitfile);
    let entries = modelkit::entries_with_layers(&kitfile, parent.is_some(), &mut warnings);
    let assigned = match modelkit::digests(&entries)? {
        Digests::All => assign::by_digest(manifest, &layers, &entries)?,
        Digests::None => by_path(&layers, &entries),
    };
    let layers = modelkit::build(family, &layers, &assigned, &mut warnings)?;
    let kitfile_yaml = Some(Bytes::from(kitfile.to_yaml()));
    Ok(Kit { family, kitfile: Some(kitfile), kitfile_yaml, layers, parent, warnings })
}

/// The layers that can be mounted.
///
/// Where a tool leaves config and layer types to its registry library (ramalama), the config is
/// the OCI placeholder and each layer that names a path is one file of the model.
fn known_layers<'a>(manifest: &'a Manifest, warnings: &mut Vec<String>) -> Vec<Known<'a>> {
    let config = ArtifactType::parse(&manifest.config.media_type);
    if config == Some(ArtifactType::ModelPack) {
        return modelkit::known_layers(manifest, warnings);
    }
    let file = LayerType { content: LayerContent::Model, encoding: Encoding::RAW };
    let mut known = Vec::with_capacity(manifest.layers.len());
    for descriptor in &manifest.layers {
        let kind = LayerType::parse(&descriptor.media_type);
        match kind.or_else(|| annotated_path(descriptor).map(|_| file)) {
            Some(kind) => known.push(Known { descriptor, kind }),
            None => warnings.push(format!(
                "layer {} is left out: its type `{}` is not known and no annotation names its path",
                descriptor.digest,
                shown(&descriptor.media_type)
            )),
        }
    }
    known
}

/// For each layer, the first entry that has the path of its annotation.
fn by_path<'a>(layers: &[Known<'_>], entries: &[&'a Entry]) -> Vec<Vec<&'a Entry>> {
    let clean = |path: &str| crate::layer::MemberPath::parse(path.as_bytes()).ok();
    let mut paths = std::collections::HashMap::new();
    for entry in entries.iter().rev() {
        if let Some(path) = clean(entry.text(Field::Path)) {
            paths.insert(path, *entry);
        }
    }
    let entry = |layer: &Known<'_>| {
        let path = annotated_path(layer.descriptor).and_then(clean)?;
        paths.get(&path).copied()
    };
    layers.iter().map(|layer| entry(layer).into_iter().collect()).collect()
}

/// A ModelPack has any number of weights, a Kitfile one model: the further ones are its parts.
fn further_weights_are_parts(layers: &mut [super::KitLayer]) {
    let weights = layers.iter_mut().filter(|layer| layer.role == Role::Model);
    for layer in weights.skip(1) {
        layer.role = Role::ModelPart;
    }
}
