//! The bytes of an object as they arrive, over as many requests as it takes.
//!
//! ```text
//! streaming --all bytes--> ended
//!   |  ^
//!   |  '-- a new request from where it stopped
//!   '--body broke off, stalled or was short--' too often without progress --> failed
//! ```

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::asking::Wanted;
use super::{Store, address};
use crate::oci::{BlobId, BlobOffset};
use crate::source::registry::web::{self, Purpose, Response, Stop};
use crate::source::{BlobSource, BlobStream, ObjectId, SourceError, Urgency};

/// Breaks without progress after which a stream fails, as with blobs of a registry.
const MOST_BREAKS: u32 = 5;
/// Bytes after which earlier breaks are forgotten: a connection that carries less is no use.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// An object whose size is known.
#[derive(Clone)]
pub(super) struct Object {
    store: Arc<Store>,
    id: ObjectId,
    /// Its name in the cache, and its size.
    blob: BlobId,
}

/// A body, and the bytes of the object that it has still to yield.
struct Body {
    response: Response,
    range: Range<BlobOffset>,
}

/// A stream under way.
struct Download {
    object: Object,
    urgency: Urgency,
    /// The bytes that are not yielded yet.
    rest: Range<BlobOffset>,
    body: Option<Body>,
    /// Breaks since the last megabyte.
    breaks: u32,
    /// The position of the last break.
    at_break: BlobOffset,
}

impl Object {
    pub(super) fn new(store: Arc<Store>, id: ObjectId, blob: BlobId) -> Self {
        Self { store, id, blob }
    }

    /// Opens a body that begins with the first byte of `range`.
    async fn body(&self, range: Range<BlobOffset>, urgency: Urgency) -> Result<Body, SourceError> {
        let purpose = Purpose::of_reader(&self.store.client, urgency);
        let wanted = Wanted::Bytes(web::range_header(&range, self.blob.size));
        let place = self.id.location.to_string();
        purpose.repeat(&place, || self.body_once(&purpose, &wanted, &range)).await
    }

    async fn body_once(
        &self,
        purpose: &Purpose<'_>,
        wanted: &Wanted,
        range: &Range<BlobOffset>,
    ) -> Result<Body, Stop> {
        let response = self.store.ask(purpose, &self.id, wanted).await?;
        let protocol =
            |detail| SourceError::Protocol { place: self.id.location.to_string(), detail };
        let served = response.served(range, self.blob.size).map_err(protocol)?;
        if served.start != range.start {
            let detail = "the store sends the whole object where a part is asked for".to_owned();
            return Err(protocol(detail).into());
        }
        Ok(Body { response, range: served })
    }
}

impl BlobSource for Object {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        Box::pin(async move {
            if blob != self.blob {
                return Err(SourceError::NotFound {
                    what: format!("blob {}", blob.digest),
                    place: self.id.location.to_string(),
                    hint: format!("it is {}", self.blob.digest),
                });
            }
            let body = self.body(range.clone(), urgency.clone()).await?;
            let download = Download {
                object: self.clone(),
                urgency,
                at_break: range.start,
                rest: range.clone(),
                body: Some(body),
                breaks: 0,
            };
            let bytes = stream::try_unfold(download, |mut download| async move {
                Ok(download.next().await?.map(|piece| (piece, download)))
            });
            Ok(BlobStream { range, bytes: bytes.boxed() })
        })
    }

    fn host(&self) -> Option<Arc<str>> {
        let config = self.store.credentials.config();
        let region = config.region.as_deref().unwrap_or(address::DEFAULT_REGION);
        let url =
            address::object_url(config.endpoint.as_deref(), region, &self.id.location).ok()?;
        Some(web::authority(&url).into())
    }

    fn place(&self) -> Option<String> {
        Some(format!("{:p} {} {}", Arc::as_ptr(&self.store), self.id.location, self.id.etag))
    }
}

impl Download {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.rest.is_empty() {
            let Some(body) = &mut self.body else {
                self.body = Some(self.object.body(self.rest.clone(), self.urgency.clone()).await?);
                continue;
            };
            let error = match body.response.piece().await {
                Ok(Some(piece)) if piece.is_empty() => continue,
                Ok(Some(piece)) => return self.take(piece).map(Some),
                Ok(None) if body.range.is_empty() => {
                    // The body had only a part of the requested bytes, so the next request is for the rest.
                    self.body = None;
                    continue;
                }
                Ok(None) => SourceError::Unavailable {
                    place: self.object.id.location.to_string(),
                    detail: "the body ended early".to_owned(),
                },
                Err(error) => error,
            };
            self.broke(error)?;
        }
        Ok(None)
    }

    fn take(&mut self, piece: Bytes) -> Result<Bytes, SourceError> {
        let body = self.body.as_mut().expect("the piece is of a body");
        let length = piece.len() as u64;
        if length > body.range.end - body.range.start {
            return Err(SourceError::Protocol {
                place: self.object.id.location.to_string(),
                detail: "a body that goes on behind its end".to_owned(),
            });
        }
        body.range.start += length;
        self.rest.start += length;
        if self.rest.is_empty() {
            // Other requests can use the connection before the reader comes again.
            self.body = None;
        }
        Ok(piece)
    }

    fn broke(&mut self, error: SourceError) -> Result<(), SourceError> {
        self.body = None;
        if self.rest.start - self.at_break >= PROGRESS_BYTES {
            self.breaks = 0;
        }
        self.at_break = self.rest.start;
        self.breaks += 1;
        match self.breaks > MOST_BREAKS {
            true => Err(error),
            false => Ok(()),
        }
    }
}
