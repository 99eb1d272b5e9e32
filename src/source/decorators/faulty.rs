//! Faults from a script or a seed, for tests of the rooms above.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::once;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;

use crate::oci::{BlobId, BlobOffset};
use crate::source::{BlobSource, BlobStream, SourceError, Urgency};

/// A fault of one stream.
#[derive(Clone, Debug)]
pub enum Fault {
    /// No fault.
    None,
    /// The stream cannot be opened.
    Refuse(SourceError),
    /// The stream ends with [`SourceError::Unavailable`] after this many bytes.
    Break {
        /// Bytes yielded before the error.
        after_bytes: u64,
    },
    /// The stream ends without an error after this many bytes. No source may do that.
    Truncate {
        /// Bytes yielded before the end.
        after_bytes: u64,
    },
    /// The stream yields the whole blob instead of the range.
    Whole,
    /// The byte at this offset of the blob is changed.
    Flip {
        /// The position of the byte.
        offset: BlobOffset,
    },
}

/// A source with faults.
pub struct Faulty<S> {
    pub(super) source: S,
    plan: Mutex<Plan>,
}

enum Plan {
    Script(VecDeque<Fault>),
    Seed { state: u64, one_in: u64 },
}

impl<S> Faulty<S> {
    /// Gives the first streams these faults in turn, and later ones none.
    pub fn scripted(source: S, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self { source, plan: Mutex::new(Plan::Script(faults.into_iter().collect())) }
    }

    /// About one stream in `one_in` is refused, breaks off, or is the whole blob, as with an honest source behind a
    /// bad connection. The same seed gives the same faults.
    pub fn seeded(source: S, seed: u64, one_in: u64) -> Self {
        Self { source, plan: Mutex::new(Plan::Seed { state: seed, one_in: one_in.max(1) }) }
    }

    fn next_fault(&self, range: &Range<BlobOffset>) -> Fault {
        match &mut *self.plan.lock() {
            Plan::Script(faults) => faults.pop_front().unwrap_or(Fault::None),
            Plan::Seed { state, one_in } => {
                if !next_random(state).is_multiple_of(*one_in) {
                    return Fault::None;
                }
                match next_random(state) % 3 {
                    0 => Fault::Refuse(unavailable()),
                    1 => Fault::Whole,
                    _ => {
                        let length = (range.end - range.start).max(1);
                        Fault::Break { after_bytes: next_random(state) % length }
                    }
                }
            }
        }
    }
}

impl<S: BlobSource> BlobSource for Faulty<S> {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let fault = self.next_fault(&range);
        async move {
            let range = if matches!(fault, Fault::Whole) { blob.whole() } else { range };
            if let Fault::Refuse(error) = fault {
                return Err(error);
            }
            let BlobStream { range, bytes } = self.source.open(blob, range, urgency).await?;
            let start = range.start;
            let bytes = match fault {
                Fault::None | Fault::Refuse(_) | Fault::Whole => bytes,
                Fault::Truncate { after_bytes } => first(bytes, after_bytes),
                Fault::Break { after_bytes } => {
                    first(bytes, after_bytes).chain(once(ready(Err(unavailable())))).boxed()
                }
                Fault::Flip { offset } => flipped(bytes, start, offset),
            };
            Ok(BlobStream { range, bytes })
        }
        .boxed()
    }

    fn is_remote(&self) -> bool {
        self.source.is_remote()
    }

    fn host(&self) -> Option<Arc<str>> {
        self.source.host()
    }

    fn place(&self) -> Option<String> {
        self.source.place()
    }

    fn distrust(&self) {
        self.source.distrust();
    }
}

type Pieces = futures_util::stream::BoxStream<'static, Result<Bytes, SourceError>>;

/// The first `limit_bytes` of a stream.
fn first(bytes: Pieces, limit_bytes: u64) -> Pieces {
    bytes
        .scan(limit_bytes, |rest, piece| {
            let piece = piece.map(|mut piece| {
                piece.truncate(usize::try_from(*rest).unwrap_or(usize::MAX));
                *rest -= piece.len() as u64;
                piece
            });
            let is_over = matches!(&piece, Ok(piece) if piece.is_empty());
            ready((!is_over).then_some(piece))
        })
        .boxed()
}

/// The stream, with all bits of one byte inverted.
fn flipped(bytes: Pieces, start: BlobOffset, offset: BlobOffset) -> Pieces {
    bytes
        .scan(start, move |at, piece| {
            let piece = piece.map(|piece| {
                let within =
                    (*at..*at + piece.len() as u64).contains(&offset).then(|| offset - *at);
                *at += piece.len() as u64;
                let Some(within) = within else { return piece };
                let mut changed = piece.to_vec();
                changed[within as usize] ^= 0xff;
                changed.into()
            });
            ready(Some(piece))
        })
        .boxed()
}

fn unavailable() -> SourceError {
    SourceError::Unavailable { place: "a faulty source".into(), detail: "as scripted".into() }
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

super::pass_on_manifests_and_tags!(Faulty);
