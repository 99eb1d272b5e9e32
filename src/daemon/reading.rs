//! The bytes of files, for commands that read without a mount.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::paths::{self, LastLink};
use crate::cache::LayerState;
use crate::control::ByteStream;
use crate::control::api::{Failure, FailureKind, FilePart, RawPath};
use crate::fetch::{Cause, Layer};
use crate::fs::{LoadedKit, StoredFile};
use crate::kit::{Content, NodeKind};
use crate::layer::Extents;

/// The cause of downloads ahead of a command or of an answer over HTTP. No predictor of a mount guesses here.
const AHEAD: Cause = Cause::Readahead("command");

/// Bytes read at once: a few chunks, so that a request to a registry is worth its round trip.
const PIECE_BYTES: u64 = 4 * 1024 * 1024;
/// The most bytes that come to the cache behind a part of a file: a few requests to a registry.
const MOST_AHEAD_BYTES: u64 = 4 * PIECE_BYTES;

/// The part of a file that is still to be read.
enum Rest {
    Inline(Bytes),
    /// Bytes of a file that lies in a layer.
    Stored(Arc<Layer>, Extents, Range<u64>),
}

/// The bytes of the files at `paths`, one after the other. The next buffer is fetched while the caller has
/// the last one. Every path is looked up before the first byte comes. The end of the stream waits for the
/// digests of complete layers, and is an error if one is wrong.
///
/// # Errors
/// For a path that is not there, or is a directory.
pub(super) fn open(kit: Arc<LoadedKit>, paths: &[RawPath]) -> Result<ByteStream, Failure> {
    let files = paths.iter().map(|path| find(&kit, path)).collect::<Result<VecDeque<_>, _>>()?;
    let layers = files.iter().filter_map(|rest| match rest {
        Rest::Stored(layer, ..) => Some((layer.key(), layer.clone())),
        Rest::Inline(_) => None,
    });
    let layers = layers.collect::<HashMap<_, _>>().into_values();
    let layers = layers.map(|layer| (kit.title_of(&layer), layer.store().replacements(), layer));
    let layers: Vec<_> = layers.collect();
    // The kit stays open as long as it is read.
    let pieces = stream::unfold((files, kit), |(mut files, kit)| async {
        let piece = next_piece(&mut files).await?;
        Some((piece, (files, kit)))
    });
    let wrong = stream::iter(layers).filter_map(|(title, before, layer)| async move {
        fault(&layer, &title, before).await.map(Err)
    });
    Ok(pieces.chain(wrong).boxed())
}

/// The bytes of a part of the file at `path`; those behind it come to the cache meanwhile.
///
/// # Errors
/// As [`open`], and for a part that is too long or leaves the file.
pub(super) fn open_part(
    kit: Arc<LoadedKit>,
    path: &RawPath,
    part: FilePart,
) -> Result<ByteStream, Failure> {
    let FilePart { start, end, ahead_end, confirm } = part;
    let refuse = |why: String| Err(Failure::new(FailureKind::Usage, why));
    if start > end || end - start > FilePart::LIMIT_BYTES {
        return refuse(format!("a part of a file has at most {} bytes", FilePart::LIMIT_BYTES));
    }
    let rest = find(&kit, path)?;
    let file_bytes = match &rest {
        Rest::Inline(bytes) => bytes.len() as u64,
        Rest::Stored(.., range) => range.end,
    };
    if end > file_bytes {
        return refuse(format!("the file has {file_bytes} bytes, and the part ends at {end}"));
    }
    let (layer, extents) = match rest {
        Rest::Inline(bytes) => {
            let bytes = bytes.slice(start as usize..end as usize);
            return Ok(stream::iter([Ok(bytes)]).boxed());
        }
        Rest::Stored(layer, extents, _) => (layer, extents),
    };
    let reading = StoredFile { layer: &layer, extents: &extents }.read(start..end);
    let ahead = end..ahead_end.min(file_bytes).min(end.saturating_add(MOST_AHEAD_BYTES));
    if !ahead.is_empty() {
        StoredFile { layer: &layer, extents: &extents }.prefetch(ahead, AHEAD);
    }
    let title = kit.title_of(&layer);
    let bytes = async move {
        // The kit stays open as long as it is read.
        let _kit = kit;
        let bytes = reading.await?;
        match confirm {
            Some(before) => fault(&layer, &title, before).await.map_or(Ok(bytes), Err),
            None => Ok(bytes),
        }
    };
    Ok(stream::once(bytes).boxed())
}

/// Waits for the digest of a layer that is complete. `before` is the number of replacements before the first
/// byte was read.
async fn fault(layer: &Layer, title: &str, before: u64) -> Option<Failure> {
    let digest = layer.key().digest;
    match layer.confirmed().await {
        LayerState::Confirmed if layer.store().replacements() != before => {
            let why = "came with wrong bytes at first, and is right now: run the command again";
            Some(Failure::new(FailureKind::BadContent, format!("{title} {why}")))
        }
        LayerState::Confirmed => None,
        LayerState::Poisoned { got } => Some(Failure::poisoned(title, digest, got)),
        // An object has no digest; its ETag was compared with each answer.
        LayerState::Unconfirmed if !layer.key().encoding.is_verifiable() => None,
        LayerState::Unconfirmed if layer.store().is_complete() => {
            Some(Failure::unverifiable(title))
        }
        // Bytes are as trustworthy as their source.
        LayerState::Unconfirmed => None,
    }
}

fn find(kit: &LoadedKit, path: &RawPath) -> Result<Rest, Failure> {
    let node = paths::find(kit, path, LastLink::Follow)?;
    paths::check_is_there(&kit.tree, node)?;
    match kit.tree.kind(node) {
        NodeKind::File(Content::Inline(bytes)) => Ok(Rest::Inline(bytes.as_ref().clone())),
        NodeKind::File(Content::Stored { layer, extents }) => {
            let layer = kit.layers[*layer as usize].clone();
            Ok(Rest::Stored(layer, extents.clone(), 0..extents.bytes()))
        }
        NodeKind::Directory | NodeKind::Symlink(_) => {
            let shown = match path.0.as_slice() {
                b"" => "the kit's root".into(),
                path => format!("`{}`", String::from_utf8_lossy(path)),
            };
            Err(Failure::new(FailureKind::Usage, format!("{shown} is a directory, not a file")))
        }
    }
}

async fn next_piece(files: &mut VecDeque<Rest>) -> Option<Result<Bytes, Failure>> {
    loop {
        match files.front_mut()? {
            Rest::Inline(bytes) => {
                let bytes = std::mem::take(bytes);
                files.pop_front();
                if !bytes.is_empty() {
                    return Some(Ok(bytes));
                }
            }
            Rest::Stored(.., rest) if rest.is_empty() => drop(files.pop_front()),
            Rest::Stored(layer, extents, rest) => {
                let piece = first_piece(rest);
                rest.start = piece.end;
                let reading = StoredFile { layer, extents }.read(piece);
                prefetch_next(files);
                let bytes = reading.await;
                if bytes.is_err() {
                    files.clear();
                }
                return Some(bytes.map_err(Failure::from));
            }
        }
    }
}

fn prefetch_next(files: &VecDeque<Rest>) {
    let extents = files.iter().filter_map(|rest| match rest {
        Rest::Stored(layer, extents, rest) if !rest.is_empty() => {
            Some((StoredFile { layer, extents }, rest))
        }
        Rest::Stored(..) | Rest::Inline(_) => None,
    });
    if let Some((file, rest)) = extents.into_iter().next() {
        file.prefetch(first_piece(rest), AHEAD);
    }
}

fn first_piece(rest: &Range<u64>) -> Range<u64> {
    rest.start..rest.end.min(rest.start + PIECE_BYTES)
}
