//! From a reference to a kit that can be read: resolve, fetch the config, open the layers, merge.
//!
//! ```text
//! origin --manifest--> digest (pinned) --config--> Kitfile + layers --filter--> layers to open
//!    '<-- model.path is a reference: the same again for the parent, its model layers only --'
//! layers --open in parallel--> tables of contents --merge--> Tree
//! ```
//!
//! Manifests and configs are kept in the cache by digest, and a tag's digest is remembered: a kit
//! that was mounted once can be mounted again without the network.
//!
//! Layers are merged in the order in which `kit unpack` writes them: the oldest parent first, each
//! kit's layers in the order of its manifest (modelkit-spec 4).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::kit::LoadedKit;
use super::load_error::{For, LoadError};
use super::merging::{MergedLayer, Merging, key_of};
use super::resolve::{Kin, Resolved, resolve};
use crate::cache::{Contents, LayerKey};
use crate::fetch::{FetchError, Fetcher, Layer, LayerSpec};
use crate::kit::{Filters, Kit, KitLayer, Parents, Placement, Role, Tree, TreeError};
use crate::layer::{Extents, Member, Mtime, StreamOffset, Toc};
use crate::oci::{LabelSelector, Origin, Reference};
use crate::source::inline::InlineBlob;
use crate::source::{BlobSource, Repositories};

/// Layers opened at once: enough to hide the round trips of a kit of hundreds of shards (each
/// costs one or two small requests), and within what a registry client's own limit per host lets
/// through.
const OPEN_AT_ONCE: usize = 16;

/// The most warnings that are kept; a tar of a million devices is one problem, not a million.
const MOST_WARNINGS: usize = 100;

/// Files `Kitfile` in layers that are read and compared: kit packs none, another tool one.
const MOST_KITFILES: usize = 8;

/// Which kit, and what of it.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// Where it is read from.
    pub origin: Origin,
    /// Which kit, where the origin is an index.
    pub labels: LabelSelector,
    /// Which layers.
    pub filters: Filters,
    /// Permission bits that files and directories do not get.
    pub umask: u32,
}

impl LoadRequest {
    /// All of the kit at `origin`, with the modes that its layers say.
    pub fn all_of(origin: Origin) -> Self {
        Self { origin, labels: LabelSelector::default(), filters: Filters::default(), umask: 0 }
    }
}

/// Loads a kit; afterwards its tree can be listed. `progress` hears of compressed bytes passed
/// and their total, while compressed layers take their pass.
///
/// # Errors
/// When the kit or a parent cannot be resolved or is malformed, a layer cannot be opened (the
/// first one to fail is named), or the layers make no tree.
pub async fn load(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    request: &LoadRequest,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<LoadedKit, LoadError> {
    let kin = Kin { origin: &request.origin, labels: &request.labels, child: None };
    let child = resolve(fetcher.cache(), repositories, &kin).await?;
    let parents = resolve_parents(fetcher, repositories, &child, request).await?;
    let (wanted, mut warnings) = wanted_layers(&child, &parents, request);
    if wanted.is_empty() && !request.filters.takes_kitfile() {
        warnings.push(takes_nothing(&child.description.kit));
    }
    let opened = open_layers(fetcher, &wanted, progress).await?;
    let kits = parents.iter().map(|(parent, _)| parent).chain([&child]);
    let all_layers = kits.flat_map(|kit| &kit.description.kit.layers).map(key_of).collect();

    let kit = child.description.kit;
    let kitfile = kit.kitfile_yaml.clone().filter(|_| request.filters.takes_kitfile());
    if let Some(kitfile) = &kitfile {
        check_other_kitfiles(kitfile, &wanted, &opened).await?;
    }
    let merging = Merging {
        cache: fetcher.cache().clone(),
        layers: merged_layers(&wanted, &opened),
        kit: all_layers,
        manifest: child.description.digest,
        created: kit.created,
        kitfile,
        umask: request.umask,
    };
    let tree = tokio::task::spawn_blocking(move || merging.run());
    let tree = tree.await.expect("merging a tree does not panic").of(&kin)?;

    let keys: Vec<LayerKey> = opened.layers.iter().map(|layer| layer.key()).collect();
    let (origin, manifest) = (request.origin.clone(), child.description.digest);
    fetcher.cache().record_kit(&origin.to_string(), manifest, &keys).of(&kin)?;
    warnings.extend(opened.warnings(&wanted));
    let warnings = bounded(warnings);
    let (layers, media_types) = (opened.layers, opened.media_types);
    let labels = request.labels.clone();
    Ok(LoadedKit { origin, labels, manifest, kit, tree, layers, media_types, warnings })
}

/// What a kit has, for a user whose filters take none of it.
fn takes_nothing(kit: &Kit) -> String {
    let mut offered: Vec<String> = Vec::new();
    for layer in kit.layers.iter().take(MOST_WARNINGS) {
        let name = layer.entry_name.as_ref().or(layer.entry_path.as_ref());
        offered.push(match name {
            Some(name) => format!("{} `{name}`", layer.role.as_str()),
            None => layer.role.as_str().to_owned(),
        });
    }
    match offered.is_empty() {
        true => "the filters take nothing, because the kit has no layers".to_owned(),
        false => format!("the filters take nothing; the kit has {}", offered.join(", ")),
    }
}

/// The parents of a kit, the nearest first, each with the filters that apply to it.
async fn resolve_parents(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    child: &Resolved,
    request: &LoadRequest,
) -> Result<Vec<(Resolved, Filters)>, LoadError> {
    let none = LabelSelector::default();
    let child_kin = Kin { origin: &request.origin, labels: &request.labels, child: None };
    let mut chain = Parents::new(&request.origin.to_string());
    let mut parents: Vec<(Resolved, Filters)> = Vec::new();
    let mut filters = request.filters.for_parent();
    let mut next = child.description.kit.parent.clone();
    while let (Some(reference), Some(applied)) = (&next, filters) {
        // Not what a user may type: a kit from the network must not name folders of this machine.
        let origin = Origin::from(Reference::parse(reference).of(&child_kin)?);
        chain.push(&origin.to_string()).of(&child_kin)?;
        let kin = Kin { origin: &origin, labels: &none, child: Some(&request.origin) };
        let parent = resolve(fetcher.cache(), repositories, &kin).await?;
        next = parent.description.kit.parent.clone();
        filters = applied.for_parent();
        parents.push((parent, applied));
    }
    Ok(parents)
}

/// A layer to open, and where it comes from.
struct Wanted {
    layer: KitLayer,
    source: Arc<dyn BlobSource>,
    reference: String,
    /// When its kit was made, as far as that is known.
    created: Option<Mtime>,
}

impl Wanted {
    fn spec(&self) -> LayerSpec {
        LayerSpec { blob: self.layer.blob, encoding: self.layer.encoding }
    }

    fn key(&self) -> LayerKey {
        key_of(&self.layer)
    }

    fn name(&self) -> String {
        self.layer.title()
    }

    fn failed(&self, error: FetchError) -> LoadError {
        let (reference, layer) = (self.reference.clone(), self.name());
        LoadError::Fetch { reference, layer, error: Box::new(error) }
    }
}

/// The layers of a kit and its parents in the order they are merged, and what was passed over.
fn wanted_layers(
    child: &Resolved,
    parents: &[(Resolved, Filters)],
    request: &LoadRequest,
) -> (Vec<Wanted>, Vec<String>) {
    let mut wanted = Vec::new();
    let mut warnings = Vec::new();
    let parents = parents.iter().rev().map(|(parent, filters)| (parent, filters, true));
    for (kit, filters, is_parent) in parents.chain([(child, &request.filters, false)]) {
        let origin = &kit.description.origin;
        let child = is_parent.then_some(&request.origin);
        let kin = Kin { origin, labels: &request.labels, child };
        warnings.extend(kit.description.warning.clone());
        for warning in &kit.description.kit.warnings {
            warnings.push(if is_parent { format!("{origin}: {warning}") } else { warning.clone() });
        }
        let remote = kit.description.kit.remote.iter().filter(|_| !is_parent);
        for remote in remote.filter(|remote| remote.is_taken_by(filters)) {
            let (path, place) = (&remote.entry_path, &remote.target);
            warnings.push(format!("data set `{path}` is left out: its content is at `{place}`"));
        }
        for layer in &kit.description.kit.layers {
            // A parent contributes its model section, nothing else (modelkit-spec 4.2).
            let is_model = matches!(layer.role, Role::Model | Role::ModelPart);
            if filters.takes(layer) && (is_model || !is_parent) {
                let (source, created) = (source_of(kit, layer), kit.description.kit.created);
                let (layer, reference) = (layer.clone(), kin.to_string());
                wanted.push(Wanted { layer, source, reference, created });
            }
        }
    }
    (wanted, warnings)
}

/// Where a layer's bytes come from: the manifest itself, or the kit's repository.
fn source_of(kit: &Resolved, layer: &KitLayer) -> Arc<dyn BlobSource> {
    let mut descriptors = kit.description.manifest.layers.iter();
    let carried = descriptors.find_map(|it| it.data.clone().filter(|_| it.blob() == layer.blob));
    match carried {
        Some(bytes) => Arc::new(InlineBlob::new(bytes)),
        None => kit.repository.clone(),
    }
}

/// The open layers, each once.
struct Opened {
    layers: Vec<Arc<Layer>>,
    media_types: Vec<String>,
    index: HashMap<LayerKey, u32>,
}

impl Opened {
    fn contents(&self, layer: &Wanted) -> (u32, &Arc<Contents>) {
        let index = self.index[&layer.key()];
        (index, self.layers[index as usize].contents())
    }

    /// What was passed over in the layers, each named once however many entries share it.
    fn warnings(&self, wanted: &[Wanted]) -> Vec<String> {
        let mut seen = HashSet::new();
        let unique = wanted.iter().filter(|layer| seen.insert(layer.key()));
        let warnings = unique.flat_map(|layer| {
            let (_, contents) = self.contents(layer);
            contents.toc.warnings.iter().map(|warning| format!("{}: {warning}", layer.name()))
        });
        warnings.collect()
    }
}

async fn open_layers(
    fetcher: &Arc<Fetcher>,
    wanted: &[Wanted],
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<Opened, LoadError> {
    let mut index: HashMap<LayerKey, u32> = HashMap::new();
    let mut unique: Vec<&Wanted> = Vec::new();
    for layer in wanted {
        index.entry(layer.key()).or_insert_with(|| {
            unique.push(layer);
            unique.len() as u32 - 1
        });
    }
    let passes = Passes::new(fetcher, &unique)?;
    let opening: Vec<_> = unique
        .iter()
        .enumerate()
        .map(|(position, layer)| open_layer(fetcher, layer, position, &passes, progress))
        .collect();
    // Unordered: the first layer to fail ends it, though earlier ones still take their pass.
    let mut opening = stream::iter(opening).buffer_unordered(OPEN_AT_ONCE);
    let mut layers: Vec<(usize, Arc<Layer>)> = Vec::with_capacity(unique.len());
    // What the merge would refuse is not even collected.
    let mut members = 0;
    while let Some((position, layer)) = opening.try_next().await? {
        members += layer.contents().toc.entries();
        if members > Tree::MOST_MEMBERS {
            let (reference, error) = (unique[position].reference.clone(), TreeError::too_large());
            return Err(LoadError::Tree { reference, error });
        }
        layers.push((position, layer));
    }
    drop(opening);
    layers.sort_unstable_by_key(|(position, _)| *position);
    let layers = layers.into_iter().map(|(_, layer)| layer).collect();
    let media_types = unique.iter().map(|layer| layer.layer.media_type.clone()).collect();
    Ok(Opened { layers, media_types, index })
}

async fn open_layer(
    fetcher: &Fetcher,
    layer: &Wanted,
    position: usize,
    passes: &Passes,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<(usize, Arc<Layer>), LoadError> {
    let hear = |passed| passes.hear(position, passed, progress);
    match fetcher.open(layer.spec(), layer.source.clone(), &hear).await {
        Ok(opened) => Ok((position, opened)),
        Err(error) => Err(layer.failed(error)),
    }
}

/// How far the passes over compressed layers have come, all together.
struct Passes {
    passed: Vec<AtomicU64>,
    total: u64,
}

impl Passes {
    fn new(fetcher: &Arc<Fetcher>, layers: &[&Wanted]) -> Result<Self, LoadError> {
        let mut total = 0u64;
        for layer in layers {
            if !layer.layer.encoding.is_compressed() {
                continue;
            }
            let store = fetcher.cache().layer(layer.key(), layer.layer.blob.size);
            let store = store.map_err(|error| layer.failed(error.into()))?;
            if store.contents().is_none() {
                total = total.saturating_add(layer.layer.blob.size);
            }
        }
        Ok(Self { passed: layers.iter().map(|_| AtomicU64::new(0)).collect(), total })
    }

    fn hear(&self, position: usize, passed: u64, progress: &(dyn Fn(u64, u64) + Send + Sync)) {
        self.passed[position].store(passed, Ordering::Relaxed);
        let passed = self.passed.iter().map(|layer| layer.load(Ordering::Relaxed)).sum::<u64>();
        progress(passed.min(self.total), self.total);
    }
}

/// A file `Kitfile` in a layer is fine when it has the bytes of the kit's own, as `kit unpack` has
/// it. The merge compares sizes, since it reads nothing; this reads the few that are left.
async fn check_other_kitfiles(
    kitfile: &[u8],
    wanted: &[Wanted],
    opened: &Opened,
) -> Result<(), LoadError> {
    let mut compared = HashSet::new();
    for layer in wanted {
        let (index, contents) = opened.contents(layer);
        for range in kitfiles_in(&layer.layer.placement, &contents.toc) {
            let has_same_size = range.end - range.start == kitfile.len() as u64;
            if !has_same_size || !compared.insert((index, range.start)) {
                continue;
            }
            let bytes = opened.layers[index as usize].read(range.clone()).await;
            let bytes = bytes.map_err(|error| layer.failed(error))?;
            if compared.len() > MOST_KITFILES || bytes != *kitfile {
                let error = TreeError::Collision(format!(
                    "`Kitfile` in {} is another file than the kit's own, which `kit unpack` \
                     refuses as well: leave one of them out with --filter",
                    layer.name()
                ));
                return Err(LoadError::Tree { reference: layer.reference.clone(), error });
            }
        }
    }
    Ok(())
}

/// The bytes of the files that a layer puts at the root under the name `Kitfile`. One with holes is
/// another file than the kit's own, and the merge says so.
fn kitfiles_in(
    placement: &Placement,
    toc: &Toc,
) -> impl Iterator<Item = std::ops::Range<StreamOffset>> {
    let is_at_root = move |member: &&Member| match placement {
        Placement::Raw { path, .. } => path.as_bytes() == b"Kitfile",
        Placement::Tar { below: Some(_) } => false,
        Placement::Tar { below: None } => {
            member.path.as_ref().is_some_and(|path| path.as_bytes() == b"Kitfile")
        }
    };
    let files = toc.shown().filter(is_at_root).filter_map(|member| member.kind.extents());
    files.filter(|extents| extents.is_contiguous()).map(Extents::stored)
}

/// The layers in the order of the merge.
fn merged_layers(wanted: &[Wanted], opened: &Opened) -> Vec<MergedLayer> {
    let merged = wanted.iter().map(|layer| {
        let (index, contents) = opened.contents(layer);
        MergedLayer {
            index,
            key: layer.key(),
            title: layer.name(),
            placement: layer.layer.placement.clone(),
            contents: contents.clone(),
            created: layer.created,
        }
    });
    merged.collect()
}

fn bounded(mut warnings: Vec<String>) -> Vec<String> {
    if warnings.len() > MOST_WARNINGS {
        let more = warnings.len() - MOST_WARNINGS;
        warnings.truncate(MOST_WARNINGS);
        warnings.push(format!("and {more} more"));
    }
    warnings
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
