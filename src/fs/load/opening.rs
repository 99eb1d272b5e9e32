//! Opens the layers of a kit side by side, each layer once.
//!
//! The failure of a layer of the kit or a parent ends the load. After the failure of a layer of a remote data set,
//! only the data set is missing, as if its kit had not been found.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{self, StreamExt};

use super::error::LoadError;
use super::gather::{Gathered, Place};
use super::merging::MergedLayer;
use super::waiting::with_cache;
use super::wanted::Wanted;
use crate::cache::{Contents, LayerKey};
use crate::fetch::{FetchError, Fetcher, Layer, Opener};
use crate::kit::{Tree, TreeError};
use crate::oci::Format;

/// Layers that are opened at the same time. 16: enough to hide the round trips of a kit of hundreds of shards, each
/// with one or two small requests. The limit per host of the registry client lets as many through.
const OPEN_AT_ONCE: usize = 16;

/// Called with the bytes that were passed, and their total.
pub(super) type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// The open layers, each once, and their places in the tree.
pub(super) struct Opened {
    /// The wanted layers that were opened, in the order in which they are merged.
    pub(super) wanted: Vec<Wanted>,
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) media_types: Vec<String>,
    pub(super) titles: Vec<String>,
    index: HashMap<LayerKey, u32>,
}

impl Opened {
    /// The position of a layer among the open ones, and what it contains.
    pub(super) fn contents(&self, layer: &Wanted) -> (u32, &Arc<Contents>) {
        let index = self.index[&layer.key()];
        (index, self.layers[index as usize].contents())
    }

    /// The layers in the order of the merge.
    pub(super) fn merged(&self) -> Vec<MergedLayer> {
        let merged = self.wanted.iter().map(|layer| {
            let (index, contents) = self.contents(layer);
            MergedLayer {
                index,
                key: layer.key(),
                title: layer.name.clone(),
                placement: layer.placement.clone(),
                contents: contents.clone(),
                created: layer.created,
            }
        });
        merged.collect()
    }

    /// The warnings about the layers, each layer once however many entries share it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        let unique = self.wanted.iter().filter(|layer| seen.insert(layer.key()));
        let warnings = unique.flat_map(|layer| {
            let (_, contents) = self.contents(layer);
            contents.toc.warnings.iter().map(|warning| format!("{}: {warning}", layer.name))
        });
        warnings.collect()
    }
}

/// Opens every layer. Remote data that cannot be opened becomes missing in `gathered`.
///
/// # Errors
/// Fails if a layer of the kit itself or of a parent cannot be opened; the first one to fail is named.
pub(super) async fn open_layers(
    fetcher: &Arc<Fetcher>,
    wanted: Vec<Wanted>,
    gathered: &mut Gathered,
    opener: Opener,
    progress: Progress<'_>,
) -> Result<Opened, LoadError> {
    let unique = unique(&wanted);
    let passes = Passes::new(fetcher, &unique).await?;
    let opening: Vec<_> = unique
        .iter()
        .enumerate()
        .map(|(position, layer)| open_layer(fetcher, layer, position, opener, &passes, progress))
        .collect();
    // Unordered, so that the first failure ends the load although passes of earlier layers still run.
    let mut opening = stream::iter(opening).buffer_unordered(OPEN_AT_ONCE);
    let mut open: HashMap<LayerKey, Arc<Layer>> = HashMap::new();
    let mut failed: Vec<(Arc<Place>, LoadError)> = Vec::new();
    // Layers that the merge would refuse are not even collected.
    let mut members = 0;
    while let Some((layer, result)) = opening.next().await {
        let opened = match (result, &layer.place) {
            (Ok(opened), _) => opened,
            (Err(error), None) => return Err(error),
            (Err(error), Some(place)) => {
                failed.push((place.clone(), error));
                continue;
            }
        };
        members += opened.contents().toc.entries();
        if members > Tree::MOST_MEMBERS {
            let (reference, error) = (layer.reference.clone(), TreeError::too_large());
            return Err(LoadError::Tree { reference, error });
        }
        open.insert(layer.key(), opened);
    }
    drop(opening);
    let wanted = without_failed(wanted, &failed, gathered);
    Ok(in_order(wanted, open))
}

/// One layer for each key. A layer of the kit or a parent comes before one of remote data, so that its source is
/// used.
fn unique(wanted: &[Wanted]) -> Vec<&Wanted> {
    let mut positions: HashMap<LayerKey, usize> = HashMap::new();
    let mut unique: Vec<&Wanted> = Vec::new();
    for layer in wanted {
        match positions.get(&layer.key()) {
            None => {
                positions.insert(layer.key(), unique.len());
                unique.push(layer);
            }
            Some(&at) if unique[at].place.is_some() && layer.place.is_none() => unique[at] = layer,
            Some(_) => {}
        }
    }
    unique
}

async fn open_layer<'a>(
    fetcher: &Fetcher,
    layer: &'a Wanted,
    position: usize,
    opener: Opener,
    passes: &Passes,
    progress: Progress<'_>,
) -> (&'a Wanted, Result<Arc<Layer>, LoadError>) {
    let hear = |passed| passes.hear(position, passed, progress);
    let mut opened = fetcher.open(layer.spec, layer.source.clone(), opener, &hear).await;
    if let Some(fallback) = &layer.fallback {
        match &opened {
            Ok(opened) => fetcher.add_fallback(opened, fallback.clone()),
            Err(FetchError::Source(_)) => {
                opened = fetcher.open(layer.spec, fallback.clone(), opener, &hear).await;
            }
            Err(_) => {}
        }
    }
    (layer, opened.map_err(|error| layer.failed(error)))
}

/// Leaves out every layer of a data set with a failed layer.
fn without_failed(
    wanted: Vec<Wanted>,
    failed: &[(Arc<Place>, LoadError)],
    gathered: &mut Gathered,
) -> Vec<Wanted> {
    let mut told: HashSet<*const Place> = HashSet::new();
    for (place, error) in failed {
        if told.insert(Arc::as_ptr(place)) {
            let (missing, warning) = place.missing(error);
            gathered.missing.extend(missing);
            gathered.warnings.push(warning);
        }
    }
    let is_there = |layer: &Wanted| {
        layer.place.as_ref().is_none_or(|place| !told.contains(&Arc::as_ptr(place)))
    };
    wanted.into_iter().filter(is_there).collect()
}

fn in_order(wanted: Vec<Wanted>, mut open: HashMap<LayerKey, Arc<Layer>>) -> Opened {
    let (mut layers, mut index) = (Vec::new(), HashMap::new());
    let (mut media_types, mut titles) = (Vec::new(), Vec::new());
    for layer in &wanted {
        if let Some(opened) = open.remove(&layer.key()) {
            index.insert(layer.key(), layers.len() as u32);
            layers.push(opened);
            media_types.push(layer.media_type.clone());
            titles.push(layer.name.clone());
        }
    }
    Opened { wanted, layers, media_types, titles, index }
}

/// The progress over all layers with unknown contents: over the headers of archives, and over all of a compressed
/// layer.
struct Passes {
    passed: Vec<AtomicU64>,
    total: u64,
}

impl Passes {
    async fn new(fetcher: &Arc<Fetcher>, layers: &[&Wanted]) -> Result<Self, LoadError> {
        let mut total = 0u64;
        for layer in layers {
            // Other formats have no headers.
            if !layer.spec.encoding.is_compressed() && layer.spec.encoding.format != Format::Tar {
                continue;
            }
            let size = layer.spec.blob.size;
            let key = layer.key();
            let is_known = with_cache(fetcher.cache(), move |cache| {
                cache.layer(key, size).map(|store| store.contents().is_some())
            });
            match is_known.await {
                Ok(true) => {}
                Ok(false) => total = total.saturating_add(size),
                Err(error) if layer.place.is_none() => return Err(layer.failed(error.into())),
                // The open of the layer fails too, and returns the error.
                Err(_) => {}
            }
        }
        Ok(Self { passed: layers.iter().map(|_| AtomicU64::new(0)).collect(), total })
    }

    fn hear(&self, position: usize, passed: u64, progress: Progress<'_>) {
        self.passed[position].store(passed, Ordering::Relaxed);
        let passed = self.passed.iter().map(|layer| layer.load(Ordering::Relaxed)).sum::<u64>();
        progress(passed.min(self.total), self.total);
    }
}
