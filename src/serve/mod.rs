//! A small read-only OCI registry over OCI image layout folders, for demos, tests and air-gapped
//! sharing. It has the pull part of distribution-spec v1.1, with tag lists, referrers and ranges.
//!
//! ```text
//! path --route--> Route --catalogue--> layout --answer--> headers and a stream of bytes
//! ```
//!
//! Invariants:
//! - No text of a request becomes a path: names are keys of a table, and digests are parsed.
//! - The body of a blob is streamed, so memory does not grow with its size.
//! - `index.json` is read anew for each request, so a kit in a known layout is served as soon as it is copied
//!   there. A new layout in the folder is found within a second.
//!
//! The registry speaks plain http and has no users. Listen on loopback, or put a proxy with TLS in
//! front of it.

mod answer;
pub mod byte_range;
mod catalogue;
mod page;
mod route;
mod stored_manifest;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, Method, Uri};
use catalogue::Catalogue;
use tokio::net::TcpListener;

use crate::process::running_time;

/// The time that running downloads get when the registry ends: a user who pressed Ctrl-C waits.
const GRACE: Duration = Duration::from_secs(3);

/// The reason why a folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The folder cannot be read, or it is no OCI layout and holds none.
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

/// A registry that listens on an address.
pub struct Registry {
    catalogue: Arc<Catalogue>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Registry {
    /// Finds the layouts in `folder` (the folder itself, or folders below it), and listens on
    /// `address`.
    ///
    /// # Errors
    /// [`ServeError::Folder`] without a layout, [`ServeError::Listen`] if the address is in use.
    pub async fn bind(folder: PathBuf, address: SocketAddr) -> Result<Self, ServeError> {
        let shown = folder.display().to_string();
        let look = move || {
            // Resolves `.`, because a repository is named after its folder.
            folder.canonicalize().map(Catalogue::new)
        };
        let catalogue = match tokio::task::spawn_blocking(look).await {
            Ok(Ok(catalogue)) => catalogue,
            Ok(Err(error)) => {
                return Err(ServeError::Folder(format!("cannot read {shown}: {error}")));
            }
            Err(error) => return Err(ServeError::Folder(format!("cannot read {shown}: {error}"))),
        };
        if catalogue.all().is_empty() {
            return Err(ServeError::Folder(format!(
                "{shown} is no OCI layout and holds none: it has no file oci-layout; \
                 `skopeo copy docker://HOST/REPO:TAG oci:{shown}/NAME:TAG` puts a kit there"
            )));
        }
        let listen = |error| ServeError::Listen { address, error };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self { catalogue: Arc::new(catalogue), listener, address })
    }

    /// The address that the registry listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The references of all served kits, as a user types them: `127.0.0.1:5000/article:v1`. A
    /// manifest without a tag is named by its digest. Reads the folders.
    pub fn references(&self) -> Vec<String> {
        let mut references = Vec::new();
        for (name, layout) in self.catalogue.all() {
            let Ok(index) = layout.index() else { continue };
            for entry in &index.entries {
                // A tag of several manifests of a layout leads to none of them.
                let mut tags = entry.names.iter().map(|name| &name.tag);
                let selector = match tags.find(|tag| index.tagged(tag) == Some(entry.digest)) {
                    Some(tag) => format!(":{tag}"),
                    None => format!("@{}", entry.digest),
                };
                references.push(format!("{}/{name}{selector}", self.address));
            }
        }
        references
    }

    /// Serves until `until` is done. Running downloads may then go on for 3 s.
    pub async fn run(
        self,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<()> {
        let catalogue = self.catalogue;
        let service = move |method: Method, uri: Uri, headers: HeaderMap| {
            answer::answer(Arc::clone(&catalogue), method, uri, headers)
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(self.listener, Router::new().fallback(service))
            .with_graceful_shutdown(async { drop(stopped.await) });
        let server = server.into_future();
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => ended,
            () = until => {
                drop(stop);
                running_time::timeout(GRACE, server).await.unwrap_or(Ok(()))
            }
        }
    }
}
