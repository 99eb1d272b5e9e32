//! Registries over HTTP (distribution-spec v1.1): manifests, tags, blobs by range.
#![allow(unused_variables, dead_code)]

use std::path::PathBuf;
use std::sync::Arc;

use super::credentials::CredentialStore;
use super::mirrors::Mirrors;
use super::{Repository, SourceError};
use crate::oci::Reference;

/// How to reach registries.
pub struct RegistryConfig {
    /// Speak plain http to every registry; loopback hosts get it anyway when https fails to
    /// be what they speak.
    pub plain_http: bool,
    /// Accept any TLS certificate.
    pub insecure_tls: bool,
    /// PEM files with further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// PEM files with a client certificate and its key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Proxy for http registries, a URL.
    pub http_proxy: Option<String>,
    /// Proxy for https registries, a URL.
    pub https_proxy: Option<String>,
    /// Hosts that are reached directly, as in `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// Who knows the passwords.
    pub credentials: CredentialStore,
    /// Where registry hosts are mapped to other addresses.
    pub mirrors: Mirrors,
    /// Requests at once for each host, shared by all clients of the process.
    pub limits: Arc<HostLimits>,
}

/// A limit on requests at once for each registry host.
pub struct HostLimits {}

impl HostLimits {
    /// At most `per_host` requests at once for each host.
    pub fn new(per_host: usize) -> Arc<Self> {
        todo!()
    }
}

/// Connections, tokens and redirect targets, shared by all repositories with the same options.
pub struct RegistryClient {}

impl RegistryClient {
    /// A client; reads the certificate files.
    pub fn new(config: RegistryConfig) -> Result<Arc<Self>, SourceError> {
        todo!()
    }

    /// The repository that `reference` names. No I/O.
    pub fn repository(
        self: &Arc<Self>,
        reference: &Reference,
    ) -> Result<Arc<dyn Repository>, SourceError> {
        todo!()
    }
}
