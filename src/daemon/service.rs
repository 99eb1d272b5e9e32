//! The work itself, whoever asks: the control socket or a command in the same process.
#![allow(unused_variables, dead_code)]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::api::{
    CacheReport, CacheRequest, DaemonStatus, Failure, KitInfo, KitRequest, ListRequest, Listing,
    MountRequest, MountStatus, PassProgress, ReadRequest, TagInfo, TagsRequest,
};
use super::backend::ByteStream;
use super::lifecycle::DaemonConfig;
use crate::cache::Cache;

pub(super) struct Service {}

impl Service {
    pub(super) fn new(cache: Arc<Cache>, config: &DaemonConfig) -> Arc<Self> {
        todo!()
    }
    pub(super) fn status(&self) -> DaemonStatus {
        todo!()
    }
    pub(super) async fn mount(
        &self,
        request: MountRequest,
        progress: &(dyn Fn(PassProgress) + Send + Sync),
    ) -> Result<MountStatus, Failure> {
        todo!()
    }
    pub(super) async fn unmount(&self, mountpoint: PathBuf, lazy: bool) -> Result<(), Failure> {
        todo!()
    }
    pub(super) async fn end_mounts(&self) {
        todo!()
    }
    /// Done when the mount at `mountpoint` has ended.
    pub(super) async fn ended(&self, mountpoint: &Path) {
        todo!()
    }
    pub(super) fn request_stop(&self) {
        todo!()
    }
    pub(super) async fn stop_requested(&self) {
        todo!()
    }
    /// Lets the control socket's server end.
    pub(super) fn drain(&self) {
        todo!()
    }
    pub(super) fn drained(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        async { todo!() }
    }
    pub(super) async fn info(&self, request: &KitRequest) -> Result<KitInfo, Failure> {
        todo!()
    }
    pub(super) async fn tags(&self, request: &TagsRequest) -> Result<Vec<TagInfo>, Failure> {
        todo!()
    }
    pub(super) async fn list(&self, request: &ListRequest) -> Result<Listing, Failure> {
        todo!()
    }
    pub(super) async fn read(&self, request: &ReadRequest) -> Result<ByteStream, Failure> {
        todo!()
    }
    pub(super) async fn cache(&self, request: CacheRequest) -> Result<CacheReport, Failure> {
        todo!()
    }
}
