//! CNCF ModelPacks (modelkit-spec 4.3, 6): an annotation of each layer gives its path.
//!
//! kit adds the whole Kitfile as an annotation of the manifest. Other tools add none. Then `kitfs
//! info` shows one made from the layers and the config, and the tree has no file `Kitfile`, as with
//! kit.

use bytes::Bytes;

use super::assign::{self, Known};
use super::kitfile::{Entry, Field, Kitfile, Section};
use super::modelkit::{self, Digests};
use super::placement::annotated_path;
use super::{Family, Kit, KitError, created, go_yaml, remote, shown};
use crate::oci::{ArtifactType, Encoding, LayerContent, LayerType, Manifest};

/// The manifest annotation that holds the Kitfile as JSON.
const KITFILE_ANNOTATION: &str = "ml.kitops.modelkit.kitfile";

/// Understands a ModelPack.
pub(super) fn decode(manifest: &Manifest, config: &[u8]) -> Result<Kit, KitError> {
    let mut warnings = Vec::new();
    let created = created(manifest);
    let layers = known_layers(manifest, &mut warnings);
    let family = Family::ModelPack;
    let Some(json) = manifest.annotations.get(KITFILE_ANNOTATION) else {
        let kitfile = Kitfile::of_modelpack(config, layers.iter().filter_map(entry));
        let entries: Vec<_> = kitfile.entries().collect();
        let assigned = by_path(&layers, &entries);
        let layers = modelkit::build(family, &layers, &assigned, &mut warnings)?;
        let (kitfile_yaml, parent, remote) = (None, None, Vec::new());
        return Ok(Kit {
            family,
            kitfile,
            kitfile_yaml,
            layers,
            parent,
            remote,
            created,
            warnings,
        });
    };
    let kitfile = Kitfile::decode(json.as_bytes())?;
    let parent = modelkit::parent(&kitfile);
    let remote = remote::of(&kitfile, &mut warnings);
    let entries = modelkit::entries_with_layers(&kitfile, parent.is_some());
    let assigned = match modelkit::digests(&entries)? {
        Digests::All => assign::by_digest(manifest, &layers, &entries)?,
        Digests::None => by_path(&layers, &entries),
    };
    let layers = modelkit::build(family, &layers, &assigned, &mut warnings)?;
    let kitfile_yaml = Some(Bytes::from(kitfile.to_yaml(go_yaml(manifest))));
    Ok(Kit { family, kitfile, kitfile_yaml, layers, parent, remote, created, warnings })
}

/// The entry of a layer in a Kitfile that is made from the layers.
fn entry<'a>(layer: &Known<'a>) -> Option<(Section, &'a str)> {
    let section = match layer.kind.content {
        LayerContent::Model => Section::Model,
        LayerContent::ModelPart => Section::Parts,
        LayerContent::Code => Section::Code,
        LayerContent::Dataset => Section::Datasets,
        LayerContent::Docs => Section::Docs,
        LayerContent::McpBundle => Section::McpServers,
    };
    annotated_path(layer.descriptor).map(|path| (section, path))
}

/// The layers that can be mounted.
///
/// Some tools (ramalama) leave the types of config and layers to their registry library. The config
/// is the OCI placeholder then, and each layer that names a path is one file of the model.
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
                "the {} is left out: its type `{}` is not known and no annotation names its path",
                modelkit::unknown_title(descriptor),
                shown(&descriptor.media_type)
            )),
        }
    }
    known
}

/// For each layer, the first entry with the path of its annotation.
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
