//! OCI image layout folders (image-spec, image-layout.md) as a source.
#![allow(unused_variables, dead_code)]

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BlobSource, BlobStream, Repository, SourceError};
use crate::oci::{BlobId, Digest, Selector};

/// An OCI image layout folder.
pub struct OciLayout {}

impl OciLayout {
    /// Opens a folder with `oci-layout` and `index.json`.
    pub fn open(folder: &Path) -> Result<Self, SourceError> {
        todo!()
    }
}

impl BlobSource for OciLayout {
    fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        todo!()
    }
}

impl Repository for OciLayout {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        todo!()
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        todo!()
    }

    fn name(&self) -> String {
        todo!()
    }
}
