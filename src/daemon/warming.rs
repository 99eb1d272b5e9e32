//! `kitfs warm`: fetches a kit, or some of its files, into the cache at full speed, and verifies it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;

use super::fetching;
use super::paths::{self, LastLink};
use super::reached_files::{ReachedFiles, place_after};
use super::replay::Replay;
use super::upkeep::kit_state;
use crate::cache::{Cache, LayerState};
use crate::control::api::{Failure, FailureKind, LayerProgress, RawPath, WarmReport, WarmedLayer};
use crate::fetch::{Cause, Layer};
use crate::fs::LoadedKit;
use crate::kit::{Content, Filters, Kit, KitLayer, NodeId, NodeKind, Placement, Tree};
use crate::layer::StreamOffset;
use crate::observe::shown_bytes;

/// Layers that are warmed at once; their transfers share the scheduler's turns.
const LAYERS_AT_ONCE: usize = 4;
/// Pieces of a layer that are fetched at once: the next requests are sent before the connections idle.
const PIECES_AT_ONCE: usize = 4;
/// The interval between two calls of `progress`.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The wanted ranges of one layer, and the outcome.
pub(super) struct Want {
    layer: Arc<Layer>,
    /// The layer's name in messages.
    title: String,
    ranges: Vec<Range<StreamOffset>>,
    wanted_bytes: u64,
    /// Whether the bytes survive a power cut, and are evicted last.
    is_kept: bool,
    done_bytes: AtomicU64,
    failure: Mutex<Option<Failure>>,
}

/// The parts of a kit to warm: files and directories, or whole layers, or all of the kit.
#[derive(Clone, Copy)]
pub(super) struct WarmedParts<'a> {
    pub(super) paths: &'a [RawPath],
    /// Digests of layers.
    pub(super) layers: &'a [String],
    /// The filters that the kit was loaded with.
    pub(super) filters: Option<&'a Filters>,
}

/// Fetches parts of a kit into the cache, and waits until the digests of complete layers are known. A layer that
/// fails does not hold up the others; the report says so of each.
///
/// # Errors
/// When a path or layer is not in the kit, or what is wanted does not fit the cache: nothing was fetched.
pub(super) async fn warm(
    cache: &Cache,
    kit: &LoadedKit,
    WarmedParts { paths, layers, filters }: WarmedParts<'_>,
    progress: &(dyn Fn(Vec<LayerProgress>) + Send + Sync),
) -> Result<WarmReport, Failure> {
    let wants = match (paths.is_empty(), layers.is_empty()) {
        (true, true) => all_of(kit),
        (true, false) => layers_of(kit, layers)?,
        (false, _) => files_of(kit, paths, filters)?,
    };
    check_room(cache, &wants)?;
    fetch(kit, &wants, progress).await;
    let missing = missing_of(&kit.tree, paths);
    Ok(WarmReport { missing, ..report(&wants, kit.all_warnings()) })
}

/// The files whose content is missing, of those at and below `paths`, or of the whole kit without paths.
fn missing_of(tree: &Tree, paths: &[RawPath]) -> Vec<RawPath> {
    let missing = tree.all_missing().map(|(node, _)| tree.path(node));
    let is_wanted = |path: &Vec<u8>| paths.is_empty() || paths.iter().any(|at| meets(&at.0, path));
    missing.filter(is_wanted).map(RawPath).collect()
}

/// Fetches the ranges of a trace in their order; otherwise as [`warm`].
///
/// # Errors
/// When nothing of the trace is in the kit; else as [`warm`].
pub(super) async fn replay(
    cache: &Cache,
    kit: &LoadedKit,
    replay: Replay,
    progress: &(dyn Fn(Vec<LayerProgress>) + Send + Sync),
) -> Result<WarmReport, Failure> {
    let wants = replay.wants(kit);
    if replay.finds_nothing() {
        let message = "no range of the trace lies in a file of the kit: was it recorded from \
                       another one? `kitfs trace show FILE` says from which";
        return Err(Failure::new(FailureKind::NotFound, message));
    }
    check_room(cache, &wants)?;
    let (total_bytes, warnings, done_bytes) =
        (replay.bytes(), replay.warnings(), AtomicU64::new(0));
    let tell = |bytes| {
        let done_bytes = done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let (name, title) = ("trace".to_owned(), "trace".to_owned());
        progress(vec![LayerProgress { name, title, file: None, done_bytes, total_bytes }]);
    };
    tell(0);
    if let Err(error) = replay.run(tell).await {
        // Missing ranges are tried again now, where each layer has an outcome of its own.
        tracing::warn!(%error, "an access trace was not replayed to its end");
    }
    fetch(kit, &wants, progress).await;
    Ok(report(&wants, warnings))
}

/// Fetches and verifies, and tells how far each layer is.
async fn fetch(
    kit: &LoadedKit,
    wants: &[Want],
    progress: &(dyn Fn(Vec<LayerProgress>) + Send + Sync),
) {
    let files = ReachedFiles::of(kit);
    let tell = || progress(wants.iter().map(|want| want.progress(&files)).collect());
    tell();
    let work = stream::iter(wants).for_each_concurrent(LAYERS_AT_ONCE, Want::fetch);
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            () = &mut work => break,
            _ = ticks.tick() => tell(),
        }
    }
    tell();
}

fn report(wants: &[Want], warnings: Vec<String>) -> WarmReport {
    let layers = wants.iter().map(Want::outcome).collect();
    WarmReport { layers, warnings, missing: Vec::new() }
}

/// Every layer, whole: headers and padding too, without which no digest is known.
fn all_of(kit: &LoadedKit) -> Vec<Want> {
    let mut wants: Vec<Want> = Vec::new();
    for layer in &kit.layers {
        if !wants.iter().any(|want| want.layer.key() == layer.key()) {
            wants.push(Want::new(kit, layer.clone(), vec![layer.contents().layout.stream()]));
        }
    }
    wants
}

fn layers_of(kit: &LoadedKit, layers: &[String]) -> Result<Vec<Want>, Failure> {
    let mut wants = all_of(kit);
    let digest = |want: &Want| want.layer.key().digest.to_string();
    if let Some(other) =
        layers.iter().find(|layer| !wants.iter().any(|want| digest(want) == **layer))
    {
        let message = format!("the kit has no layer {other}");
        return Err(Failure::new(FailureKind::NotFound, message));
    }
    wants.retain(|want| layers.contains(&digest(want)));
    wants.iter_mut().for_each(|want| want.is_kept = false);
    Ok(wants)
}

fn files_of(
    kit: &LoadedKit,
    paths: &[RawPath],
    filters: Option<&Filters>,
) -> Result<Vec<Want>, Failure> {
    let mut ranges: BTreeMap<u32, Vec<Range<StreamOffset>>> = BTreeMap::new();
    for path in paths {
        let node = paths::find(kit, path, LastLink::Follow);
        let node = node.map_err(|failure| match filters {
            Some(filters) if failure.kind == FailureKind::NotFound => {
                not_taken(&kit.kit, filters, path)
            }
            _ => failure,
        })?;
        collect(&kit.tree, node, &mut ranges);
    }
    let wants = ranges.into_iter().map(|(layer, mut ranges)| {
        ranges.sort_unstable_by_key(|range| (range.start, range.end));
        ranges.dedup();
        Want::new(kit, kit.layers[layer as usize].clone(), ranges)
    });
    Ok(wants.collect())
}

/// Says that the filters leave a path out, as far as manifest and Kitfile tell: the layers they do
/// not take were not opened.
fn not_taken(kit: &Kit, filters: &Filters, path: &RawPath) -> Failure {
    let shown = String::from_utf8_lossy(&path.0);
    let mut left_out = kit.layers.iter().filter(|layer| !filters.takes(layer));
    let message = match left_out.find_map(|layer| place_of(layer).filter(|at| meets(at, &path.0))) {
        Some(at) => format!(
            "`{shown}` is left out by --filter, which does not take `{}`: take more, or leave \
             --filter out",
            String::from_utf8_lossy(at)
        ),
        None => format!(
            "`{shown}` is not in what --filter takes of the kit; `kitfs ls` shows all of it"
        ),
    };
    Failure::new(FailureKind::NotFound, message)
}

/// The path of a layer's files, where that is known without its table of contents.
fn place_of(layer: &KitLayer) -> Option<&[u8]> {
    match &layer.placement {
        Placement::Raw { path, .. } => Some(path.as_bytes()),
        Placement::Tar { below: None } => layer.entry_path.as_ref().map(|path| path.as_bytes()),
        Placement::Tar { below: Some(_) } => None,
    }
}

/// Whether one of two paths lies at or below the other; the root tells nothing.
fn meets(one: &[u8], other: &[u8]) -> bool {
    let components = |path: &[u8]| {
        let components = path.split(|&byte| byte == b'/').map(<[u8]>::to_vec);
        components.filter(|it| !it.is_empty() && it != b".").collect::<Vec<_>>()
    };
    let (one, other) = (components(one), components(other));
    let common = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
    common > 0 && common == one.len().min(other.len())
}

/// The extents of a file, or of all files below a directory.
fn collect(tree: &Tree, node: NodeId, ranges: &mut BTreeMap<u32, Vec<Range<StreamOffset>>>) {
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        match tree.kind(node) {
            NodeKind::Directory => open.extend(tree.children(node).map(NodeId)),
            NodeKind::File(Content::Stored { layer, extents }) if extents.stored_bytes() > 0 => {
                ranges.entry(*layer).or_default().push(extents.stored());
            }
            NodeKind::File(_) | NodeKind::Symlink(_) => {}
        }
    }
}

/// Refuses what can never be in the cache at the same time.
fn check_room(cache: &Cache, wants: &[Want]) -> Result<(), Failure> {
    let sum = |bytes: fn(&Want) -> u64| wants.iter().map(bytes).fold(0, u64::saturating_add);
    let (wanted_bytes, resident_bytes) = (sum(|want| want.wanted_bytes), sum(Want::resident_bytes));
    let wanted = shown_bytes(wanted_bytes);
    let refuse = |why: String| {
        let message =
            format!("{wanted} are to be warmed, and {why}, or name the files that matter");
        Err(Failure::new(FailureKind::Cache, message))
    };
    if let Some(capacity_bytes) = cache.capacity_bytes().filter(|&bytes| bytes < wanted_bytes) {
        let capacity = shown_bytes(capacity_bytes);
        return refuse(format!("the cache holds {capacity} (--cache-size): make it larger"));
    }
    // Everything else in the cache can go.
    let others_bytes = cache.resident_bytes().saturating_sub(resident_bytes);
    let room_bytes = cache.free_bytes()?.saturating_add(others_bytes);
    if wanted_bytes.saturating_sub(resident_bytes) > room_bytes {
        let (room, folder) = (shown_bytes(room_bytes), cache.folder().display());
        return refuse(format!(
            "the disk of {folder} has room for {room} more: choose another --cache-dir or a \
             smaller --keep-free"
        ));
    }
    Ok(())
}

impl Want {
    pub(super) fn new(
        kit: &LoadedKit,
        layer: Arc<Layer>,
        ranges: Vec<Range<StreamOffset>>,
    ) -> Self {
        let title = kit.title_of(&layer);
        let wanted_bytes = ranges.iter().map(|range| range.end - range.start).sum();
        let (done_bytes, failure) = (AtomicU64::new(0), Mutex::default());
        Self { layer, title, ranges, wanted_bytes, is_kept: true, done_bytes, failure }
    }

    /// The wanted bytes that are in the cache, by whole ranges and finished pieces.
    fn resident_bytes(&self) -> u64 {
        let pieces = self.ranges.iter().cloned().flat_map(fetching::pieces);
        let resident = pieces.filter(|piece| self.layer.is_resident(piece.clone()));
        resident.map(|piece| piece.end - piece.start).sum()
    }

    async fn fetch(&self) {
        let outcome = async {
            // Bytes that are perhaps not on the disk yet do not count as cached.
            self.layer.look().await?;
            self.bring().await?;
            self.verify().await?;
            match self.is_kept {
                true => self.layer.keep_warmed().await.map_err(Failure::from),
                false => Ok(()),
            }
        };
        *self.failure.lock() = outcome.await.err();
    }

    async fn bring(&self) -> Result<(), Failure> {
        let ranges = self.ranges.iter().cloned();
        let on_piece = |bytes| _ = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        fetching::bring(&self.layer, ranges, Cause::Warm, PIECES_AT_ONCE, on_piece)
            .await
            .map_err(Failure::from)
    }

    /// Waits for the digest of a layer that is complete.
    ///
    /// # Errors
    /// When it is wrong, or should be known and is not.
    async fn verify(&self) -> Result<(), Failure> {
        let digest = self.layer.key().digest;
        let (kind, why) = match self.layer.confirmed().await {
            LayerState::Confirmed if !self.is_whole() || self.layer.store().is_complete() => {
                return Ok(());
            }
            LayerState::Confirmed => {
                let why = "came and is right, but not all of it could be kept: give the cache more \
                           room";
                (FailureKind::Cache, why.to_owned())
            }
            // An object has no digest; its ETag was compared with each answer.
            LayerState::Unconfirmed if !self.layer.key().encoding.is_verifiable() => return Ok(()),
            LayerState::Poisoned { got } => {
                return Err(Failure::poisoned(&self.title, digest, got));
            }
            LayerState::Unconfirmed if self.layer.store().is_complete() => {
                return Err(Failure::unverifiable(&self.title));
            }
            LayerState::Unconfirmed if self.is_whole() => {
                let why = "came, but parts of it were evicted before its digest could be computed: \
                           give the cache more room";
                (FailureKind::Cache, why.to_owned())
            }
            LayerState::Unconfirmed => return Ok(()),
        };
        Err(Failure::new(kind, format!("{} {why}", self.title)))
    }

    fn is_whole(&self) -> bool {
        self.wanted_bytes == self.layer.contents().layout.stream_bytes()
    }

    fn progress(&self, files: &ReachedFiles<'_>) -> LayerProgress {
        // A whole layer is counted as its bytes arrive; ranges of a layer are counted by finished pieces.
        let done_bytes = match self.is_whole() {
            true => self.layer.resident_bytes().min(self.wanted_bytes),
            false => self.done_bytes.load(Ordering::Relaxed),
        };
        let name = self.layer.key().digest.to_string();
        let (title, total_bytes) = (self.title.clone(), self.wanted_bytes);
        let file = (done_bytes < total_bytes)
            .then(|| files.name(&self.layer, place_after(&self.ranges, done_bytes)))
            .flatten();
        LayerProgress { name, title, file: file.map(RawPath), done_bytes, total_bytes }
    }

    fn outcome(&self) -> WarmedLayer {
        WarmedLayer {
            digest: self.layer.key().digest.to_string(),
            wanted_bytes: self.wanted_bytes,
            resident_bytes: self.layer.resident_bytes(),
            unchecked_bytes: self.layer.unchecked_bytes(),
            is_complete: self.layer.store().is_complete(),
            state: kit_state(self.layer.state().into()),
            failure: self.failure.lock().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_meet_where_one_lies_at_or_below_the_other() {
        for (one, other) in [("a", "a"), ("./a/", "a/b"), ("a/b", "a"), ("a//b", "a/./b/c")] {
            assert!(meets(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
        for (one, other) in [("a", "b"), ("a/b", "a/c"), ("a", "ab"), (".", "a"), ("", "")] {
            assert!(!meets(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
    }
}
