//! The bytes of one blob on their way: read from a source, hashed, and read again after a break.
//!
//! ```text
//! read 0..a --> hashed up to a --break--> read b..size, b <= a: bytes before a are not hashed again
//!                                           '--> before the last piece: is the digest right?
//! ```
//!
//! The last piece is held back until the digest of all bytes is known. So a destination never gets a whole blob
//! with a wrong digest, even in a single request.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, try_unfold};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::oci::{BlobId, BlobOffset, Digest};
use crate::source::{BlobSource, BlobStream, SourceError, Urgency};

/// The bytes of all blobs of a kit that are done, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// The bytes that were sent, or need not be.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn moved(&self, from: BlobOffset, to: BlobOffset) {
        // The difference is negative where a blob is sent again. The sum of wrapping additions is still right.
        self.0.fetch_add(to.get().wrapping_sub(from.get()), Ordering::Relaxed);
    }
}

/// The content of a blob.
pub struct Content {
    blob: BlobId,
    source: Arc<dyn BlobSource>,
    /// The source, as messages name it.
    place: String,
    urgency: Urgency,
    progress: Arc<Progress>,
    state: Mutex<State>,
    /// Counts the taken pieces, to tell a slow connection from a dead one.
    pieces: AtomicU64,
    is_waiting: AtomicBool,
}

struct State {
    hasher: Sha256,
    /// The end of the hashed bytes, which begin with the blob's first byte.
    hashed: BlobOffset,
    /// The position of the last piece, for the progress.
    at: BlobOffset,
    failure: Option<SourceError>,
}

impl Content {
    /// The content of `blob` from a source that messages name `place`.
    pub fn new(
        blob: BlobId,
        source: Arc<dyn BlobSource>,
        place: String,
        urgency: Urgency,
        progress: Arc<Progress>,
    ) -> Arc<Self> {
        let state = State {
            hasher: Sha256::new(),
            hashed: BlobOffset(0),
            at: BlobOffset(0),
            failure: None,
        };
        Arc::new(Self {
            blob,
            source,
            place,
            urgency,
            progress,
            state: Mutex::new(state),
            pieces: AtomicU64::new(0),
            is_waiting: AtomicBool::new(false),
        })
    }

    /// The blob.
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// The end of the bytes that were read at least once.
    pub(in crate::source) fn read_end(&self) -> BlobOffset {
        self.state.lock().hashed
    }

    /// The failure of the source, if a read has failed.
    pub(in crate::source) fn failure(&self) -> Option<SourceError> {
        self.state.lock().failure.clone()
    }

    /// A number that changes while bytes move; `None` during a wait for the source.
    pub(in crate::source) fn pulse(&self) -> Option<u64> {
        let is_waiting = self.is_waiting.load(Ordering::Relaxed);
        (!is_waiting).then(|| self.pieces.load(Ordering::Relaxed))
    }

    /// Notes that the blob need not be sent.
    pub(super) fn is_there(&self) {
        self.move_to(self.blob.end());
    }

    /// Moves to `at`, as after a break.
    fn move_to(&self, at: BlobOffset) {
        let mut state = self.state.lock();
        self.progress.moved(state.at, at);
        state.at = at;
    }

    /// The bytes of `range`. All bytes before its start must have been read. If the digest is wrong, the stream
    /// ends with an error instead of the blob's last piece.
    pub(in crate::source) fn read(
        self: &Arc<Self>,
        range: Range<BlobOffset>,
    ) -> BoxStream<'static, Result<Bytes, SourceError>> {
        debug_assert!(range.start <= self.read_end(), "{range:?} leaves a gap");
        self.move_to(range.start);
        let reading = Reading { content: Arc::clone(self), rest: range, open: None };
        let stream = try_unfold(reading, |mut reading| async move {
            match reading.next().await {
                Ok(piece) => Ok(piece.map(|piece| (piece, reading))),
                Err(error) => {
                    reading.content.state.lock().failure = Some(error.clone());
                    Err(error)
                }
            }
        });
        stream.boxed()
    }

    /// Hashes and counts a piece that begins at `at`.
    ///
    /// # Errors
    /// Fails where the piece is the last one and the digest of all bytes is wrong.
    fn pass(&self, at: BlobOffset, piece: &Bytes) -> Result<(), SourceError> {
        let mut state = self.state.lock();
        let end = at + piece.len() as u64;
        let known = state.hashed.since(at).min(piece.len() as u64);
        state.hasher.update(&piece[known as usize..]);
        state.hashed = state.hashed.max(end);
        if end == self.blob.end() {
            self.check(&state)?;
        }
        self.progress.moved(state.at, end);
        state.at = end;
        drop(state);
        self.pieces.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Checks the digest of a blob without bytes, which no piece checks.
    pub(super) fn check_if_empty(&self) -> Result<(), SourceError> {
        if self.blob.size == 0 { self.check(&self.state.lock()) } else { Ok(()) }
    }

    fn check(&self, state: &State) -> Result<(), SourceError> {
        let got = Digest::from_sha256(state.hasher.clone().finalize().into());
        match got == self.blob.digest {
            true => Ok(()),
            false => Err(SourceError::DigestMismatch {
                what: format!("blob {}", self.blob.digest.short()),
                place: self.place.clone(),
                expected: self.blob.digest,
                got,
            }),
        }
    }
}

/// A stream over a part of a content.
struct Reading {
    content: Arc<Content>,
    /// The bytes that have not come yet.
    rest: Range<BlobOffset>,
    open: Option<Open>,
}

struct Open {
    stream: BlobStream,
    /// The position of the stream's next byte.
    at: BlobOffset,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let content = Arc::clone(&self.content);
        let _waiting = Waiting::new(&content.is_waiting);
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                none => {
                    let opened = content.source.open(
                        content.blob,
                        self.rest.clone(),
                        content.urgency.clone(),
                    );
                    let stream = opened.await?;
                    none.insert(Open { at: stream.range.start, stream })
                }
            };
            let Some(mut piece) = open.stream.bytes.next().await.transpose()? else {
                let detail =
                    format!("the blob ended {} bytes early", self.rest.end - self.rest.start);
                return Err(SourceError::Protocol { place: content.place.clone(), detail });
            };
            // A source without ranges sends the whole blob.
            let skipped = (self.rest.start - open.at).min(piece.len() as u64);
            open.at += piece.len() as u64;
            piece.advance(skipped as usize);
            piece.truncate((self.rest.end - self.rest.start).min(piece.len() as u64) as usize);
            if piece.is_empty() {
                continue;
            }
            content.pass(self.rest.start, &piece)?;
            self.rest.start += piece.len() as u64;
            return Ok(Some(piece));
        }
    }
}

/// Marks a wait for the source, as long as the value lives.
struct Waiting<'a>(&'a AtomicBool);

impl<'a> Waiting<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::inline::InlineBlob;

    fn content(bytes: &[u8], digest: Digest) -> (Arc<Content>, Arc<Progress>) {
        /// Bytes whose digest may differ from the requested one.
        struct Claimed(InlineBlob, BlobId);
        impl BlobSource for Claimed {
            fn open(
                &self,
                _blob: BlobId,
                range: Range<BlobOffset>,
                urgency: Urgency,
            ) -> futures_util::future::BoxFuture<'_, Result<BlobStream, SourceError>> {
                self.0.open(self.1, range, urgency)
            }
        }
        let size = bytes.len() as u64;
        let own = BlobId { digest: Digest::of(bytes), size };
        let source = Claimed(InlineBlob::new(Bytes::copy_from_slice(bytes)), own);
        let progress = Arc::new(Progress::default());
        let (blob, place) = (BlobId { digest, size }, "here".to_owned());
        let content =
            Content::new(blob, Arc::new(source), place, Urgency::opening(), progress.clone());
        (content, progress)
    }

    proptest! {
        /// An upload may break and go back any number of times. The digest of all bytes is still compared, and the
        /// progress is at the last piece.
        #[test]
        fn a_content_that_is_read_in_parts_again_and_again_is_checked_as_a_whole(
            bytes in prop::collection::vec(any::<u8>(), 1..300),
            parts in prop::collection::vec((0.0..1.0f64, 0.0..1.0f64), 0..8),
            is_damaged: bool,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let digest = Digest::of(if is_damaged { b"another" } else { &bytes });
            let (content, progress) = content(&bytes, digest);
            let size = bytes.len() as u64;
            let mut parts: Vec<_> = parts.into_iter().map(|(start, length)| {
                (start, (length * size as f64) as u64)
            }).collect();
            parts.push((1.0, size));
            for (start, length) in parts {
                // The registry may have the upload go on from any byte that was read.
                let start = (start * content.read_end().get() as f64) as u64;
                let range = start..(start + length).min(size);
                let read: Vec<_> = runtime.block_on(content.read(BlobOffset::of(range.clone())).collect());
                let is_last = range.end == size && !range.is_empty();
                if is_last && is_damaged {
                    prop_assert!(read.iter().any(Result::is_err));
                    prop_assert!(content.failure().is_some());
                    return Ok(());
                }
                let read: Vec<u8> = read.into_iter().flat_map(|piece| piece.unwrap()).collect();
                prop_assert_eq!(&read[..], &bytes[range.start as usize..range.end as usize]);
                prop_assert_eq!(progress.bytes(), range.end);
            }
            prop_assert!(!is_damaged || content.read_end() < BlobOffset(size));
        }
    }
}
