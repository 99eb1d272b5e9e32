//! The only place where a source meets the cache: plans, single flight, layers as files see them.
//!
//! Signatures first: the bodies are being written.
#![allow(unused_variables, dead_code, missing_docs)]

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{Contents, LayerKey, LayerState};
use crate::layer::StreamOffset;

/// A layer that can be read: resident bytes from the cache, others from its source.
pub struct Layer {}

#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    #[error("todo")]
    Todo,
}

impl Layer {
    pub fn key(&self) -> LayerKey {
        todo!()
    }
    pub fn blob_bytes(&self) -> u64 {
        todo!()
    }
    pub fn contents(&self) -> &Arc<Contents> {
        todo!()
    }
    pub fn state(&self) -> LayerState {
        todo!()
    }
    pub fn resident_bytes(&self) -> u64 {
        todo!()
    }
    /// Answers from resident bytes without blocking on the network; `false` when some are missing.
    pub fn read_resident(
        &self,
        start: StreamOffset,
        buffer: &mut [u8],
    ) -> Result<bool, FetchError> {
        todo!()
    }
    /// Reads a range, fetching what is missing; returns exactly the range's bytes.
    pub fn read(
        self: &Arc<Self>,
        range: Range<StreamOffset>,
    ) -> impl Future<Output = Result<Bytes, FetchError>> + Send + 'static {
        async { todo!() }
    }
    /// Starts to fetch what is missing of `range` and returns at once.
    pub fn prefetch(self: &Arc<Self>, range: Range<StreamOffset>) {
        todo!()
    }
}
