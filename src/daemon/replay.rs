//! Fetching what an access trace says, in its order, ahead of a reader that reads alike.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::api::{Failure, FailureKind, RawPath};
use super::paths::{self, LastLink};
use crate::fetch::{FetchError, Layer};
use crate::fs::{LoadedKit, Trace};
use crate::kit::{Content, NodeKind};
use crate::layer::StreamOffset;
use crate::source::Priority;

/// The largest trace that is read: some million lines.
const TRACE_LIMIT_BYTES: u64 = 256 * 1024 * 1024;
/// Ranges that are fetched at once: at most 8 MiB each, so 64 MiB are under way.
const RANGES_AT_ONCE: usize = 8;

/// Ranges of layers in the order of a trace.
pub(super) struct Replay {
    ranges: Vec<(Arc<Layer>, Range<StreamOffset>)>,
    /// Ranges of the trace that the kit does not have.
    skipped: u64,
    /// Whether it was recorded from the same kit.
    is_of_this_kit: bool,
}

/// Reads a trace and finds its ranges in a kit. Blocking.
///
/// # Errors
/// When the file cannot be read, or is no trace.
pub(super) fn load(kit: &LoadedKit, file: &Path) -> Result<Replay, Failure> {
    let place = file.display();
    let unusable = |why: String| Failure::new(FailureKind::Usage, format!("{place}: {why}"));
    let size = std::fs::metadata(file).map_err(|error| unusable(error.to_string()))?.len();
    if size > TRACE_LIMIT_BYTES {
        return Err(unusable(format!("a trace has at most {TRACE_LIMIT_BYTES} bytes")));
    }
    let text = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
    let trace = Trace::parse(&text).map_err(|error| unusable(error.to_string()))?;
    let mut files: HashMap<Vec<u8>, Option<(Arc<Layer>, Range<StreamOffset>)>> = HashMap::new();
    let mut replay = Replay {
        ranges: Vec::new(),
        skipped: 0,
        is_of_this_kit: trace.digest == kit.manifest.to_string(),
    };
    for range in trace.ranges {
        let extent = files.entry(range.path).or_insert_with_key(|path| extent_of(kit, path));
        let end = range.offset + range.length;
        match extent {
            Some((layer, file)) if end <= file.end - file.start && range.length > 0 => {
                replay.ranges.push((layer.clone(), file.start + range.offset..file.start + end));
            }
            Some(_) | None => replay.skipped += 1,
        }
    }
    Ok(replay)
}

/// Where a file's bytes lie; nothing for what is no file, or is not in a layer.
fn extent_of(kit: &LoadedKit, path: &[u8]) -> Option<(Arc<Layer>, Range<StreamOffset>)> {
    let node = paths::resolve(&kit.tree, &RawPath(path.to_vec()), LastLink::Follow).ok()?;
    match kit.tree.kind(node) {
        NodeKind::File(Content::Extent { layer, range }) => {
            Some((kit.layers[*layer as usize].clone(), range.clone()))
        }
        NodeKind::File(Content::Inline(_)) | NodeKind::Directory | NodeKind::Symlink(_) => None,
    }
}

impl Replay {
    /// What is to be said about it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let other = "the trace was recorded from another kit: files are found by their paths";
        let skipped = format!("{} ranges of the trace are not in the kit", self.skipped);
        let is_other = (!self.is_of_this_kit).then(|| other.to_owned());
        is_other.into_iter().chain((self.skipped > 0).then_some(skipped)).collect()
    }

    /// The layers it reads from, each once, and how many bytes of each.
    pub(super) fn layers(&self) -> Vec<(Arc<Layer>, u64)> {
        let mut layers: Vec<(Arc<Layer>, u64)> = Vec::new();
        for (layer, range) in &self.ranges {
            let bytes = range.end - range.start;
            match layers.iter_mut().find(|(known, _)| Arc::ptr_eq(known, layer)) {
                Some((_, sum)) => *sum = sum.saturating_add(bytes),
                None => layers.push((layer.clone(), bytes)),
            }
        }
        layers
    }

    /// How many bytes it brings, those that are there included.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, range)| range.end - range.start).fold(0, u64::saturating_add)
    }

    /// Fetches the ranges in order, and tells `on_range` of the bytes of each.
    ///
    /// # Errors
    /// The first failure.
    pub(super) async fn run(self, on_range: impl Fn(u64)) -> Result<(), FetchError> {
        stream::iter(self.ranges)
            .map(|(layer, range)| async move {
                let bytes = range.end - range.start;
                layer.bring(range, Priority::Prefetch).await.map(|()| bytes)
            })
            .buffered(RANGES_AT_ONCE)
            .try_for_each(|bytes| {
                on_range(bytes);
                std::future::ready(Ok(()))
            })
            .await
    }
}
