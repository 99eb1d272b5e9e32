//! Counts the requests to a source and the bytes that come, for tests and figures.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use crate::oci::{BlobId, BlobOffset};
use crate::source::{BlobSource, BlobStream, SourceError, Urgency};

/// Counts of one source, or of several sources that share them.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    yielded_bytes: AtomicU64,
}

impl Counts {
    /// Streams asked for, including failed ones.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Bytes of blobs that the streams yielded.
    pub fn yielded_bytes(&self) -> u64 {
        self.yielded_bytes.load(Relaxed)
    }
}

/// A source that counts its requests and the bytes that it yields.
pub struct Counted<S> {
    pub(super) source: S,
    counts: Arc<Counts>,
}

impl<S> Counted<S> {
    /// Counts from zero.
    pub fn new(source: S) -> Self {
        Self::with(source, Arc::default())
    }

    /// Counts together with all others that share `counts`.
    pub fn with(source: S, counts: Arc<Counts>) -> Self {
        Self { source, counts }
    }

    /// See [`Counts::requests`].
    pub fn requests(&self) -> u64 {
        self.counts.requests()
    }

    /// See [`Counts::yielded_bytes`].
    pub fn yielded_bytes(&self) -> u64 {
        self.counts.yielded_bytes()
    }
}

impl<S: BlobSource> BlobSource for Counted<S> {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.counts.requests.fetch_add(1, Relaxed);
        async move {
            let BlobStream { range, bytes } = self.source.open(blob, range, urgency).await?;
            let counts = Arc::clone(&self.counts);
            let count = move |piece: &Result<bytes::Bytes, SourceError>| {
                if let Ok(piece) = piece {
                    counts.yielded_bytes.fetch_add(piece.len() as u64, Relaxed);
                }
            };
            Ok(BlobStream { range, bytes: bytes.inspect(count).boxed() })
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

super::pass_on_manifests_and_tags!(Counted);
