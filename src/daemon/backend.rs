//! (skeleton; see the signatures)
#![allow(unused_variables, dead_code, missing_docs)]
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream::BoxStream;

use super::api::*;

#[derive(Clone, Debug)]
pub struct DaemonConfig {
    pub cache_folder: PathBuf,
    pub cache_capacity_bytes: Option<u64>,
    pub keep_free_bytes: u64,
}

/// A running daemon, or a service in this process.
pub struct Backend {}

pub type ByteStream = BoxStream<'static, Result<Bytes, Failure>>;

impl Backend {
    /// Talks to the daemon of the cache folder when one runs; else takes the cache in this process.
    pub async fn open(config: &DaemonConfig) -> Result<Backend, Failure> {
        todo!()
    }
    /// Talks to the daemon; starts one (`kitfs daemon run …`, detached) when none runs.
    pub async fn daemon(config: &DaemonConfig) -> Result<Backend, Failure> {
        todo!()
    }
    /// Talks to the daemon when one runs.
    pub async fn running(config: &DaemonConfig) -> Result<Option<Backend>, Failure> {
        todo!()
    }
    pub async fn status(&self) -> Result<DaemonStatus, Failure> {
        todo!()
    }
    pub async fn mount(
        &self,
        request: MountRequest,
        on_progress: &mut (dyn FnMut(PassProgress) + Send),
    ) -> Result<MountStatus, Failure> {
        todo!()
    }
    pub async fn unmount(&self, mountpoint: PathBuf, lazy: bool) -> Result<(), Failure> {
        todo!()
    }
    /// Returns when the daemon is gone.
    pub async fn stop(&self) -> Result<(), Failure> {
        todo!()
    }
    pub async fn info(&self, request: KitRequest) -> Result<KitInfo, Failure> {
        todo!()
    }
    pub async fn tags(
        &self,
        reference: String,
        network: NetworkOptions,
    ) -> Result<Vec<TagInfo>, Failure> {
        todo!()
    }
    pub async fn list(&self, request: ListRequest) -> Result<Listing, Failure> {
        todo!()
    }
    pub async fn read(&self, request: ReadRequest) -> Result<ByteStream, Failure> {
        todo!()
    }
    pub async fn cache(&self, request: CacheRequest) -> Result<CacheReport, Failure> {
        todo!()
    }
}

/// Runs the daemon in this process until it is told to stop. `mount` is made first; when it ends,
/// so does the daemon. `ready` is called once the socket listens and the mount is made.
pub async fn run(
    config: DaemonConfig,
    mount: Option<MountRequest>,
    ready: impl FnOnce(Option<&MountStatus>) + Send,
) -> Result<(), Failure> {
    todo!()
}
