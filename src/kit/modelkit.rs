//! ModelKits: the config blob is the Kitfile, whose entries name their layers by digest.

use bytes::Bytes;

use super::assign::{self, Known};
use super::kitfile::{Entry, Field, Kitfile, Section};
use super::{
    Family, Kit, KitError, KitLayer, Placement, Role, created, go_yaml, legacy, placement, remote,
    shown,
};
use crate::oci::{Descriptor, Format, LayerType, Manifest, Reference};

impl Section {
    /// The role of its entries' layers.
    pub(super) fn role(self) -> Role {
        match self {
            Self::Model => Role::Model,
            Self::Parts => Role::ModelPart,
            Self::Code => Role::Code,
            Self::Datasets => Role::Dataset,
            Self::Docs => Role::Docs,
            Self::Prompts => Role::Prompt,
            Self::McpServers => Role::McpServer,
        }
    }
}

/// Understands a ModelKit, legacy ones too.
pub(super) fn decode(manifest: &Manifest, config: &[u8]) -> Result<Kit, KitError> {
    let kitfile = Kitfile::decode(config)?;
    let mut warnings = Vec::new();
    let layers = known_layers(manifest, &mut warnings);
    let parent = parent(&kitfile);
    let remote = remote::of(&kitfile, &mut warnings);
    let entries = entries_with_layers(&kitfile, parent.is_some());
    let (family, assigned) = match digests(&entries)? {
        Digests::All => (Family::ModelKit, assign::by_digest(manifest, &layers, &entries)?),
        Digests::None => (Family::LegacyModelKit, legacy::by_order(&layers, &entries)?),
    };
    let layers = build(family, &layers, &assigned, &mut warnings)?;
    let kitfile_yaml = Some(Bytes::from(kitfile.to_yaml(go_yaml(manifest))));
    let created = created(manifest);
    Ok(Kit { family, kitfile, kitfile_yaml, layers, parent, remote, created, warnings })
}

/// The layers of a known type, and a warning for each other one.
pub(super) fn known_layers<'a>(
    manifest: &'a Manifest,
    warnings: &mut Vec<String>,
) -> Vec<Known<'a>> {
    let mut known = Vec::with_capacity(manifest.layers.len());
    for descriptor in &manifest.layers {
        match LayerType::parse(&descriptor.media_type) {
            Some(kind) => known.push(Known { descriptor, kind }),
            None => warnings.push(format!(
                "the {} is left out: its type `{}` is not known",
                unknown_title(descriptor),
                shown(&descriptor.media_type)
            )),
        }
    }
    known
}

/// The name in messages of a layer whose role is not known.
pub(super) fn unknown_title(descriptor: &Descriptor) -> String {
    match placement::annotated_path(descriptor) {
        Some(path) => format!("layer `{}` ({})", shown(path), descriptor.digest.short()),
        None => format!("layer {}", descriptor.digest.short()),
    }
}

/// `model.path`, where that is a reference to another kit (modelkit-spec 2.1).
///
/// The path of a model with a layer of its own is no reference, however it looks.
pub(super) fn parent(kitfile: &Kitfile) -> Option<String> {
    let model = kitfile.model().filter(|model| model.digest().is_none())?;
    let path = model.text(Field::Path);
    (path.contains([':', '@']) && Reference::parse(path).is_ok()).then(|| path.to_owned())
}

/// The entries that have a layer, in the order of their layers.
pub(super) fn entries_with_layers(kitfile: &Kitfile, has_parent: bool) -> Vec<&Entry> {
    let has_layer = |entry: &&Entry| match entry.section() {
        _ if entry.digest().is_some() => true,
        Section::Model => !has_parent && !entry.text(Field::Path).is_empty(),
        _ => !remote::is_remote(entry),
    };
    kitfile.entries().filter(has_layer).collect()
}

pub(super) enum Digests {
    All,
    None,
}

/// Whether the entries name their layers.
///
/// # Errors
/// Fails if only some do. No release of kit wrote that, and a guess would mix up layers.
pub(super) fn digests(entries: &[&Entry]) -> Result<Digests, KitError> {
    let without: Vec<_> = entries.iter().filter(|entry| entry.digest().is_none()).collect();
    match without.first() {
        None => Ok(Digests::All),
        Some(_) if without.len() == entries.len() => Ok(Digests::None),
        Some(entry) => Err(KitError::Malformed(format!(
            "the Kitfile's entry {} has no digest, and others have one",
            shown(&entry.title())
        ))),
    }
}

/// The layers of a kit, in manifest order. A layer that several entries share comes once for each.
pub(super) fn build(
    family: Family,
    layers: &[Known<'_>],
    assigned: &[Vec<&Entry>],
    warnings: &mut Vec<String>,
) -> Result<Vec<KitLayer>, KitError> {
    let mut built = Vec::with_capacity(layers.len());
    for (layer, entries) in layers.iter().zip(assigned) {
        if entries.is_empty() {
            if family != Family::ModelPack {
                warnings.push(format!("the {} has no entry in the Kitfile", layer.title(None)));
            }
            built.push(build_layer(family, layer, None, warnings)?);
        }
        for entry in entries {
            built.push(build_layer(family, layer, Some(entry), warnings)?);
        }
    }
    Ok(built)
}

fn build_layer(
    family: Family,
    layer: &Known<'_>,
    entry: Option<&Entry>,
    warnings: &mut Vec<String>,
) -> Result<KitLayer, KitError> {
    let placement = match layer.kind.encoding.format {
        Format::Raw | Format::Object => placement::raw(layer, entry, warnings)?,
        Format::Tar => Placement::Tar {
            below: match entry {
                Some(entry) if family == Family::LegacyModelKit => legacy::directory(entry)?,
                _ => None,
            },
        },
    };
    let text = |field| {
        entry.map(|entry| entry.text(field)).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let annotated = || placement::annotated_path(layer.descriptor).map(str::to_owned);
    Ok(KitLayer {
        blob: layer.descriptor.blob(),
        encoding: layer.kind.encoding,
        media_type: layer.descriptor.media_type.clone(),
        role: entry.map_or_else(|| layer.role(), |entry| entry.section().role()),
        entry_name: text(Field::Name),
        entry_path: text(Field::Path).or_else(annotated),
        placement,
    })
}
