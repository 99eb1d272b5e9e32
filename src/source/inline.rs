//! Blobs that a manifest carries itself (OCI image-spec, descriptor.md, `data`).

use std::ops::Range;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{self, StreamExt};

use super::{BlobSource, BlobStream, SourceError, Urgency};
use crate::oci::{BlobId, BlobOffset, Digest};

/// One blob, in memory.
#[derive(Clone, Debug)]
pub struct InlineBlob {
    blob: BlobId,
    bytes: Bytes,
}

impl InlineBlob {
    /// The blob that has these bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self { blob: BlobId { digest: Digest::of(&bytes), size: bytes.len() as u64 }, bytes }
    }
}

impl BlobSource for InlineBlob {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let result = match blob == self.blob {
            true => {
                let piece = self.bytes.slice(BlobOffset::indices(&range));
                Ok(BlobStream { range, bytes: stream::iter([Ok(piece)]).boxed() })
            }
            false => Err(SourceError::NotFound {
                what: format!("blob {}", blob.digest),
                place: "the manifest".to_owned(),
                hint: format!("the manifest carries {} only", self.blob.digest),
            }),
        };
        Box::pin(ready(result))
    }

    fn is_remote(&self) -> bool {
        false
    }
}
