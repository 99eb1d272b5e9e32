//! Registry hosts mapped to other addresses, in containerd's `hosts.toml` folder layout.
#![allow(unused_variables, dead_code)]

use std::path::{Path, PathBuf};

use url::Url;

use super::SourceError;

/// One address at which the repositories of a registry can be reached, in the order to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host and port, and a path prefix that ends before `/v2/`.
    pub url: Url,
    /// Accept any TLS certificate of this host (`skip_verify`).
    pub insecure_tls: bool,
    /// PEM files with certificate authorities for this host (`ca`).
    pub ca_files: Vec<PathBuf>,
    /// PEM files with client certificates and keys for this host (`client`).
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Headers to send to this host (`[host.….header]`).
    pub headers: Vec<(String, String)>,
    /// Whether the path prefix already holds `/v2` (`override_path`).
    pub overrides_path: bool,
    /// May resolve tags (`capabilities` has `resolve`).
    pub can_resolve: bool,
    /// May serve manifests by digest and blobs (`capabilities` has `pull`).
    pub can_pull: bool,
}

/// The mappings of one folder.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    folder: Option<PathBuf>,
}

impl Mirrors {
    /// The mappings in `folder`: `FOLDER/HOST[:PORT]/hosts.toml`, `FOLDER/HOST_PORT_/hosts.toml`
    /// or `FOLDER/_default/hosts.toml`.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// The endpoints for `registry`, mirrors first, the registry itself (or `server`) last;
    /// `None` where nothing is configured for it.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] naming the file and the field.
    pub fn endpoints(&self, registry: &str) -> Result<Option<Vec<Endpoint>>, SourceError> {
        todo!()
    }

    /// The folder of the mappings.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}
