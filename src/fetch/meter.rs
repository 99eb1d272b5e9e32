//! Counts what is asked of the sources of all layers, for `kitfs daemon status`.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};

use crate::oci::BlobId;
use crate::source::{BlobSource, BlobStream, SourceError, Urgency};

/// Requests and bytes since the process started.
#[derive(Debug, Default)]
pub(super) struct Meter {
    requests: AtomicU64,
    fetched_bytes: AtomicU64,
}

impl Meter {
    /// A source that is counted here.
    pub(super) fn metered(self: &Arc<Self>, source: Arc<dyn BlobSource>) -> Arc<dyn BlobSource> {
        Arc::new(Metered { source, meter: self.clone() })
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }
}

struct Metered {
    source: Arc<dyn BlobSource>,
    meter: Arc<Meter>,
}

impl BlobSource for Metered {
    fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.meter.requests.fetch_add(1, Ordering::Relaxed);
        async move {
            let BlobStream { range, bytes } = self.source.open(blob, range, urgency).await?;
            let meter = self.meter.clone();
            let count = move |piece: &Result<bytes::Bytes, SourceError>| {
                if let Ok(piece) = piece {
                    meter.fetched_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            };
            Ok(BlobStream { range, bytes: bytes.inspect(count).boxed() })
        }
        .boxed()
    }

    fn is_remote(&self) -> bool {
        self.source.is_remote()
    }
}
