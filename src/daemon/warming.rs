//! `kitfs warm`: a kit, or some of its files, brought to the cache at full speed and verified.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::api::{Failure, FailureKind, LayerProgress, RawPath, WarmReport, WarmedLayer};
use super::bringing;
use super::paths::{self, LastLink};
use super::replay::Replay;
use super::upkeep::kit_state;
use crate::cache::{Cache, LayerState};
use crate::fetch::Layer;
use crate::fs::LoadedKit;
use crate::kit::{Content, NodeId, NodeKind, Tree};
use crate::layer::StreamOffset;
use crate::source::Priority;

/// Layers that are warmed at once; their transfers share the scheduler's turns.
const LAYERS_AT_ONCE: usize = 4;
/// Pieces of a layer at once: the next ones are asked for before the line runs dry.
const PIECES_AT_ONCE: usize = 4;
/// How often `progress` is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What is wanted of one layer.
struct Want {
    layer: Arc<Layer>,
    ranges: Vec<Range<StreamOffset>>,
    wanted_bytes: u64,
    done_bytes: AtomicU64,
}

/// Brings the files below `paths`, or all of the kit where there are none, and waits until the
/// digests of complete layers are known.
///
/// # Errors
/// When something cannot be fetched, does not fit the cache, or is not what its digest says.
pub(super) async fn warm(
    cache: &Cache,
    kit: &LoadedKit,
    paths: &[RawPath],
    progress: &(dyn Fn(Vec<LayerProgress>) + Send + Sync),
) -> Result<WarmReport, Failure> {
    let wants = if paths.is_empty() { all_of(kit) } else { files_of(kit, paths)? };
    check_room(cache, &wants)?;
    let tell = || progress(wants.iter().map(Want::progress).collect());
    tell();
    let work =
        stream::iter(wants.iter().map(Ok)).try_for_each_concurrent(LAYERS_AT_ONCE, Want::bring);
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            result = &mut work => break result?,
            _ = ticks.tick() => tell(),
        }
    }
    tell();
    let layers: Vec<WarmedLayer> = stream::iter(&wants)
        .then(|want| verified(want.layer.clone(), want.wanted_bytes))
        .try_collect()
        .await?;
    Ok(WarmReport { layers, warnings: Vec::new() })
}

/// Brings what a trace says, in its order.
///
/// # Errors
/// As [`warm`].
pub(super) async fn replay(
    cache: &Cache,
    replay: Replay,
    progress: &(dyn Fn(Vec<LayerProgress>) + Send + Sync),
) -> Result<WarmReport, Failure> {
    let total_bytes = replay.bytes();
    check_capacity(cache, total_bytes)?;
    let (warnings, done_bytes) = (replay.warnings(), AtomicU64::new(0));
    let tell = |bytes| {
        let done_bytes = done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        progress(vec![LayerProgress { name: "trace".to_owned(), done_bytes, total_bytes }]);
    };
    tell(0);
    let layers = replay.layers();
    replay.run(tell).await?;
    let layers = stream::iter(layers).then(|(layer, wanted_bytes)| verified(layer, wanted_bytes));
    Ok(WarmReport { layers: layers.try_collect().await?, warnings })
}

/// Every layer, whole: headers and padding too, without which no digest is known.
fn all_of(kit: &LoadedKit) -> Vec<Want> {
    let mut wants: Vec<Want> = Vec::new();
    for layer in &kit.layers {
        if !wants.iter().any(|want| want.layer.key() == layer.key()) {
            wants.push(Want::new(layer.clone(), vec![bringing::whole(layer)]));
        }
    }
    wants
}

fn files_of(kit: &LoadedKit, paths: &[RawPath]) -> Result<Vec<Want>, Failure> {
    let mut ranges: BTreeMap<u32, Vec<Range<StreamOffset>>> = BTreeMap::new();
    for path in paths {
        let node = paths::resolve(&kit.tree, path, LastLink::Follow)?;
        collect(&kit.tree, node, &mut ranges);
    }
    let wants = ranges.into_iter().map(|(layer, mut ranges)| {
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        ranges.dedup();
        Want::new(kit.layers[layer as usize].clone(), ranges)
    });
    Ok(wants.collect())
}

/// The extents of a file, or of all files below a directory.
fn collect(tree: &Tree, node: NodeId, ranges: &mut BTreeMap<u32, Vec<Range<StreamOffset>>>) {
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        match tree.kind(node) {
            NodeKind::Directory => open.extend(tree.children(node).map(NodeId)),
            NodeKind::File(Content::Extent { layer, range }) if !range.is_empty() => {
                ranges.entry(*layer).or_default().push(range.clone());
            }
            NodeKind::File(_) | NodeKind::Symlink(_) => {}
        }
    }
}

/// Refuses what would push itself out of the cache again.
fn check_room(cache: &Cache, wants: &[Want]) -> Result<(), Failure> {
    check_capacity(cache, wants.iter().map(|want| want.wanted_bytes).fold(0, u64::saturating_add))
}

fn check_capacity(cache: &Cache, wanted_bytes: u64) -> Result<(), Failure> {
    match cache.capacity_bytes() {
        Some(capacity_bytes) if wanted_bytes > capacity_bytes => {
            let message = format!(
                "{wanted_bytes} bytes are to be warmed, and the cache holds {capacity_bytes} \
                 (--cache-size): make it larger, or name the files that matter"
            );
            Err(Failure::new(FailureKind::Cache, message))
        }
        Some(_) | None => Ok(()),
    }
}

impl Want {
    fn new(layer: Arc<Layer>, ranges: Vec<Range<StreamOffset>>) -> Self {
        let wanted_bytes = ranges.iter().map(|range| range.end - range.start).sum();
        Self { layer, ranges, wanted_bytes, done_bytes: AtomicU64::new(0) }
    }

    async fn bring(&self) -> Result<(), Failure> {
        let ranges = self.ranges.iter().cloned();
        let on_piece = |bytes| _ = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        bringing::bring(&self.layer, ranges, Priority::Prefetch, PIECES_AT_ONCE, on_piece)
            .await
            .map_err(Failure::from)
    }

    fn progress(&self) -> LayerProgress {
        // All of a layer is counted as it comes, some of it piece by piece.
        let is_whole = self.wanted_bytes == self.layer.contents().layout.stream_bytes();
        let done_bytes = match is_whole {
            true => self.layer.resident_bytes().min(self.wanted_bytes),
            false => self.done_bytes.load(Ordering::Relaxed),
        };
        let name = self.layer.key().digest.to_string();
        LayerProgress { name, done_bytes, total_bytes: self.wanted_bytes }
    }
}

/// What is known of a layer now.
async fn verified(layer: Arc<Layer>, wanted_bytes: u64) -> Result<WarmedLayer, Failure> {
    let digest = layer.key().digest.to_string();
    let state = layer.confirmed().await;
    let is_complete = layer.store().is_complete();
    if let LayerState::Poisoned { got } = state {
        let message = format!("{digest} is not what it says: its bytes have {got}");
        return Err(Failure::new(FailureKind::BadContent, message));
    }
    if is_complete && state != LayerState::Confirmed {
        let message = format!(
            "{digest} is complete, but its digest could not be computed; see daemon.log in \
                 the cache folder"
        );
        return Err(Failure::new(FailureKind::Cache, message));
    }
    Ok(WarmedLayer {
        digest,
        wanted_bytes,
        resident_bytes: layer.resident_bytes(),
        is_complete,
        state: kit_state(state.into()),
    })
}
