//! kit's own local storage as a source (modelkit-spec 5.4): read-only.
#![allow(unused_variables, dead_code)]

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{BlobSource, BlobStream, Repository, SourceError};
use crate::oci::{BlobId, Digest, Reference, Selector};

/// One repository of kit's local storage.
pub struct KitStorage {}

impl KitStorage {
    /// Opens the repository of `reference` in the storage below `kitops_home`.
    pub fn open(kitops_home: &Path, reference: &Reference) -> Result<Self, SourceError> {
        todo!()
    }
}

impl BlobSource for KitStorage {
    fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        todo!()
    }
}

impl Repository for KitStorage {
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
