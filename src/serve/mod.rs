//! A small read-only OCI registry over OCI image layout folders, for demos, tests and air-gapped
//! sharing.
#![allow(unused_variables, dead_code)]

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The folder is no OCI layout and holds none.
    #[error("{0}")]
    Folder(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        error: std::io::Error,
    },
}

/// A registry that listens.
pub struct Registry {}

impl Registry {
    /// Finds the layouts in `folder` (itself, or folders below it) and listens on `address`.
    ///
    /// # Errors
    /// When there is no layout, or the address is in use.
    pub async fn bind(folder: PathBuf, address: SocketAddr) -> Result<Self, ServeError> {
        todo!()
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        todo!()
    }

    /// References of everything served, as one types them: `127.0.0.1:5000/article:v1`.
    pub fn references(&self) -> Vec<String> {
        todo!()
    }

    /// Serves until `until` is done.
    pub async fn run(
        self,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        todo!()
    }
}
