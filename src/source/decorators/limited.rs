//! Bounds how many streams of a source are open at once.

use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Semaphore;

use crate::oci::{BlobId, BlobOffset};
use crate::source::{BlobSource, BlobStream, SourceError, Urgency};

/// A source with a limit on open streams: a further one waits until one of them is dropped.
pub struct Limited<S> {
    pub(super) source: S,
    permits: Arc<Semaphore>,
}

impl<S> Limited<S> {
    /// Allows `streams` open streams.
    ///
    /// # Panics
    /// For a limit of zero, with which nothing could ever be read.
    pub fn new(source: S, streams: usize) -> Self {
        assert!(streams > 0, "a limit of zero streams");
        Self { source, permits: Arc::new(Semaphore::new(streams)) }
    }
}

impl<S: BlobSource> BlobSource for Limited<S> {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        async move {
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            let BlobStream { range, bytes } = self.source.open(blob, range, urgency).await?;
            // The closure owns the semaphore's permit, which so lives as long as the stream.
            let hold = move |piece| {
                let _held = &permit;
                piece
            };
            Ok(BlobStream { range, bytes: bytes.map(hold).boxed() })
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

super::pass_on_manifests_and_tags!(Limited);
