//! Registries over HTTP (distribution-spec v1.1): manifests, tags, blobs by range.
//!
//! ```text
//! repository --> endpoints in order --> retries --> ask --> permit, authorization, redirects
//!     '--> download: a body, resumed where it breaks off
//! ```
//!
//! Pure rooms within: `challenge` (WWW-Authenticate), `token` (token servers), `range`
//! (Content-Range), `redirect` (Location, signed URLs), `tags` (pages), `retry` (what passes
//! by itself), `limits` (whose turn it is, how much a host can take), `message` (words without
//! secrets). Why not oci-client: docs/design/003-registry-client.md.
//!
//! Invariants:
//! - Credentials and tokens go to the registry, and to the token server that its own answer names;
//!   never to a host that a redirect names.
//! - Nobody waits for a permit while holding one, and nobody waits for a token while holding one.
//! - Nothing is yielded for a range that the head of the answer did not promise exactly.
//! - Tokens, passwords and signed URLs are in no message and no log.
//!
//! Bytes of blobs are not verified here: the digest of a whole blob says nothing about a part.

mod auth;
mod blobs;
mod certificate;
mod challenge;
mod connections;
mod download;
mod encoding;
mod errand;
mod exchange;
mod limits;
mod listing;
mod message;
mod proxies;
mod range;
mod redirect;
mod repository;
mod retry;
mod scopes;
mod silences;
mod tags;
mod timing;
mod tls;
mod token;
mod token_server;
mod upstream;
pub(super) mod web;

use std::path::PathBuf;
use std::sync::Arc;

use super::credentials::CredentialStore;
use super::mirrors::Mirrors;
use super::{Repository, SourceError};
use crate::oci::Reference;

pub use limits::{HostLimits, HostUsage};
pub use silences::Silence;
pub use timing::Timing;

/// The most requests at once for each host, where nobody says otherwise.
///
/// 16: enough to fill a fast line with ranges of a few MiB over http/1.1, and few enough for most
/// registries not to answer 429. A host gets fewer at first, and where it refuses some.
pub const DEFAULT_REQUESTS_PER_HOST: usize = 16;

/// How to reach registries.
pub struct RegistryConfig {
    /// Speak plain http to every registry. Loopback hosts are asked what they speak.
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
    /// Hosts that are reached directly, as in `NO_PROXY`. Loopback always is.
    pub no_proxy: Option<String>,
    /// Who knows the passwords.
    pub credentials: CredentialStore,
    /// Where registry hosts are mapped to other addresses.
    pub mirrors: Mirrors,
    /// Requests at once for each host and whose turn it is, shared by all clients of the process.
    pub limits: Arc<HostLimits>,
    /// Time-outs and retries.
    pub timing: Timing,
}

impl Default for RegistryConfig {
    /// TLS verified, no proxy, no credentials, no mirrors.
    fn default() -> Self {
        Self {
            plain_http: false,
            insecure_tls: false,
            ca_files: Vec::new(),
            client_identity: None,
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            credentials: CredentialStore::default(),
            mirrors: Mirrors::default(),
            limits: HostLimits::new(DEFAULT_REQUESTS_PER_HOST),
            timing: Timing::default(),
        }
    }
}

/// Connections, tokens and redirect targets, shared by all repositories with the same options.
pub struct RegistryClient {
    plain_http: bool,
    tls: tls::Tls,
    credentials: CredentialStore,
    mirrors: Mirrors,
    limits: Arc<HostLimits>,
    timing: Timing,
    connections: connections::Connections,
    authorizations: auth::Authorizations,
    targets: redirect::Targets,
    schemes: upstream::Schemes,
    silences: Arc<silences::Silences>,
}

impl RegistryClient {
    /// A client; reads the certificate files.
    ///
    /// # Errors
    /// [`SourceError::Io`] and [`SourceError::Configuration`], naming the file or option.
    pub fn new(config: RegistryConfig) -> Result<Arc<Self>, SourceError> {
        let connections = connections::Connections::new(&config)?;
        let tls = tls::Tls {
            insecure: config.insecure_tls,
            ca_files: config.ca_files,
            client_identity: config.client_identity,
        };
        connections.client(&tls)?;
        Ok(Arc::new(Self {
            plain_http: config.plain_http,
            tls,
            credentials: config.credentials,
            mirrors: config.mirrors,
            limits: config.limits,
            timing: config.timing,
            connections,
            authorizations: auth::Authorizations::new(),
            targets: redirect::Targets::new(),
            schemes: upstream::Schemes::default(),
            silences: Arc::new(silences::Silences::new(config.timing.untold)),
        }))
    }

    /// The hosts that have said nothing for a while to requests that open or warm a kit.
    pub fn silences(&self) -> Vec<Silence> {
        self.silences.list()
    }

    /// The repository that `reference` names. Reads the folder of mirrors; no I/O to the network.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a hosts.toml or host name that cannot be used.
    pub fn repository(
        self: &Arc<Self>,
        reference: &Reference,
    ) -> Result<Arc<dyn Repository>, SourceError> {
        let endpoints = self.endpoints(reference.registry())?;
        Ok(Arc::new(repository::RegistryRepository::new(
            Arc::clone(self),
            reference.registry(),
            reference.repository(),
            endpoints,
        )))
    }
}
