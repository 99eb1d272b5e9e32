//! Fetches the ranges of an access trace in their order, ahead of a reader with the same reads.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use super::fetching::pieces;
use super::paths::{self, LastLink};
use super::warming::Want;
use crate::control::api::{Failure, FailureKind, RawPath};
use crate::fetch::{Cause, FetchError, Layer};
use crate::fs::{LoadedKit, Trace};
use crate::kit::{Content, NodeKind};
use crate::layer::{Extents, RangeSet, StreamOffset};

/// The largest trace that is read: some million entries.
pub const TRACE_LIMIT_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes that are fetched at once: half a second at 1 Gbit/s, enough for any round trip. Later ranges
/// wait, so the order holds over a slow connection.
const MOST_BYTES: u64 = 64 * 1024 * 1024;
/// Ranges that are fetched at once: scattered small ones are bounded by their number.
const MOST_RANGES: usize = 64;
/// The unit in which bytes under way are counted: a page.
const UNIT_BYTES: u64 = 4096;

/// A range of a layer's stream.
type Extent = (Arc<Layer>, Range<StreamOffset>);

/// Ranges of layers in the order of a trace.
pub(super) struct Replay {
    ranges: Vec<Extent>,
    /// Ranges that need no fetching: those of the Kitfile, and holes.
    in_memory: u64,
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
    let text = read_trace(file).map_err(|error| unusable(error.to_string()))?;
    let trace = Trace::parse(&text).map_err(|error| unusable(error.to_string()))?;
    let mut files: HashMap<Vec<u8>, Place> = HashMap::new();
    let mut replay = Replay {
        ranges: Vec::new(),
        in_memory: 0,
        skipped: 0,
        is_of_this_kit: trace.digest == kit.manifest.to_string(),
    };
    for range in trace.ranges {
        let place = files.entry(range.path).or_insert_with_key(|path| place_of(kit, path));
        match place {
            Place::Layer(layer, extents) if range.offset < extents.bytes() => {
                // Another version of the file may be shorter.
                let end = range.offset.saturating_add(range.length);
                let stored = extents.stored_of(range.offset..end);
                match stored.is_empty() {
                    true => replay.in_memory += 1,
                    false => replay.ranges.push((layer.clone(), stored)),
                }
            }
            Place::Memory => replay.in_memory += 1,
            Place::Layer(..) | Place::Nowhere => replay.skipped += 1,
        }
    }
    Ok(replay)
}

/// A trace file's bytes. Blocking.
///
/// # Errors
/// For a path that is no regular file, or a file with more bytes than a trace may have.
pub fn read_trace(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let too_long = || io::Error::other(format!("a trace has at most {TRACE_LIMIT_BYTES} bytes"));
    // Before its bytes take memory.
    if metadata.len() > TRACE_LIMIT_BYTES {
        return Err(too_long());
    }
    let mut text = Vec::new();
    // It may grow meanwhile.
    file.take(TRACE_LIMIT_BYTES + 1).read_to_end(&mut text)?;
    match text.len() as u64 > TRACE_LIMIT_BYTES {
        true => Err(too_long()),
        false => Ok(text),
    }
}

/// The place of the bytes of a path.
enum Place {
    Layer(Arc<Layer>, Extents),
    /// Nothing has to be fetched: the Kitfile.
    Memory,
    /// It is no file of the kit.
    Nowhere,
}

fn place_of(kit: &LoadedKit, path: &[u8]) -> Place {
    let path = RawPath(path.to_vec());
    let Ok(node) = paths::resolve(&kit.tree, &path, LastLink::Follow) else {
        return Place::Nowhere;
    };
    match kit.tree.kind(node) {
        NodeKind::File(Content::Stored { layer, extents }) => {
            Place::Layer(kit.layers[*layer as usize].clone(), extents.clone())
        }
        NodeKind::File(Content::Inline(_)) => Place::Memory,
        NodeKind::Directory | NodeKind::Symlink(_) => Place::Nowhere,
    }
}

impl Replay {
    /// Whether nothing of the trace is in the kit.
    pub(super) fn finds_nothing(&self) -> bool {
        self.ranges.is_empty() && self.in_memory == 0
    }

    /// Warnings about it.
    pub(super) fn warnings(&self) -> Vec<String> {
        let other = "the trace was recorded from another kit: files are found by their paths";
        let skipped = match self.skipped {
            1 => "1 range of the trace is not in the kit".to_owned(),
            count => format!("{count} ranges of the trace are not in the kit"),
        };
        let is_other = (!self.is_of_this_kit).then(|| other.to_owned());
        is_other.into_iter().chain((self.skipped > 0).then_some(skipped)).collect()
    }

    /// The ranges that it wants of each layer, every byte once.
    pub(super) fn wants(&self, kit: &LoadedKit) -> Vec<Want> {
        let mut layers: Vec<(&Arc<Layer>, RangeSet)> = Vec::new();
        let mut positions = HashMap::new();
        for (layer, range) in &self.ranges {
            let position = *positions.entry(layer.key()).or_insert_with(|| {
                layers.push((layer, RangeSet::new()));
                layers.len() - 1
            });
            layers[position].1.insert(range.start.get()..range.end.get());
        }
        let wants = layers.into_iter().map(|(layer, ranges)| {
            let ranges = ranges.iter().map(|it| StreamOffset(it.start)..StreamOffset(it.end));
            Want::new(kit, layer.clone(), ranges.collect())
        });
        wants.collect()
    }

    /// The number of bytes in its ranges, with those that are in the cache already.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(_, range)| range.end - range.start).fold(0, u64::saturating_add)
    }

    /// Fetches the ranges in order. Calls `on_range` with the number of bytes of each.
    ///
    /// # Errors
    /// The first failure.
    pub(super) async fn run(self, on_range: impl Fn(u64)) -> Result<(), FetchError> {
        let budget = Semaphore::new((MOST_BYTES / UNIT_BYTES) as usize);
        let budget = &budget;
        // A range may be as long as a file: it is cut when its turn comes.
        let cut = |(layer, range): Extent| pieces(range).map(move |piece| (layer.clone(), piece));
        stream::iter(self.ranges.into_iter().flat_map(cut))
            .map(|(layer, range)| async move {
                let bytes = range.end - range.start;
                // A piece is far shorter than the limit, and requests are served in their order.
                let units = bytes.min(MOST_BYTES).div_ceil(UNIT_BYTES) as u32;
                let _permit = budget.acquire_many(units).await.expect("it is never closed");
                layer.bring(range, Cause::Trace).await.map(|()| bytes)
            })
            .buffered(MOST_RANGES)
            .try_for_each(|bytes| {
                on_range(bytes);
                std::future::ready(Ok(()))
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_of_more_bytes_than_one_may_have_is_refused_unread() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // A hole: it takes neither disk nor, when it is refused, memory.
        file.as_file().set_len(TRACE_LIMIT_BYTES + 1).unwrap();
        let error = read_trace(file.path()).unwrap_err();
        assert!(error.to_string().contains("268435456"), "{error}");
        file.as_file().set_len(10).unwrap();
        assert_eq!(read_trace(file.path()).unwrap(), [0; 10]);
        assert!(read_trace(Path::new("/dev/null")).is_err());
    }
}
