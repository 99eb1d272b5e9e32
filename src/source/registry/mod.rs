//! Registries over HTTP (distribution-spec v1.1): manifests, tags, blobs by range.
//!
//! ```text
//! repository --> endpoints in order --> retries --> ask --> slot, authorization, redirects
//!     '--> blobs: where a blob lies --> range: the bytes that an answer holds
//!            '--> download: its bytes, over as many requests as it takes
//! probe: one request for each property of a registry, for diagnosis --> ask
//! upload: the same repository as a destination --> retries --> ask
//! ```
//!
//! Pure modules: `range` and `encoding` (heads of answers); `challenge`, `scopes` and `token` (authorization);
//! `redirect` (Location, signed URLs); `tags` (pages); `proxies` (NO_PROXY); `certificate` (DER); `message` (words
//! without secrets); the rules of `retry`. Why not oci-client: docs/design/003-registry-client.md.
//! `source::admission` decides when a request is sent.
//!
//! Invariants:
//! - A credential goes to its own host, and to the token server in this host's answer. A redirect takes no
//!   credential to another host.
//! - After a credential file has changed, its earlier passwords and tokens are not used.
//! - A request holds no slot of a host while it waits for a slot or for a token.
//! - If the head of an answer leaves the position of its bytes in doubt, the bytes are not yielded.
//! - Tokens, passwords and signed URLs are in no message and no log.
//!
//! Bytes of blobs are not verified here: the digest of a whole blob says nothing about a part.

mod answer;
mod auth;
mod blobs;
mod certificate;
mod challenge;
mod connections;
mod download;
mod encoding;
mod errand;
mod exchange;
mod listing;
mod message;
mod probe;
mod proxies;
mod range;
mod redirect;
mod repository;
mod retry;
mod scopes;
mod sending;
mod silences;
mod tags;
mod timing;
mod tls;
mod token;
mod token_server;
mod upload;
mod upstream;
pub(super) mod web;

use std::path::PathBuf;
use std::sync::Arc;

use super::admission::{Admission, AdmissionConfig, UserId};
use super::credentials::CredentialStore;
use super::mirrors::Mirrors;
use super::registry_rules::RegistryRules;
use super::sending::Destination;
use super::{Repository, SourceError};
use crate::oci::Reference;
use crate::process::limits::ChildLimits;

pub(super) use message::authority;
pub use probe::{
    Greeting, Login, Probe, ProbedManifest, ProbedRange, PushRights, Rate, ServedRange,
};
pub use silences::Silence;
pub use timing::Timing;
pub use tls::authorities_of_machine;
pub use upload::UploadSizes;

/// The ways to reach registries.
pub struct RegistryConfig {
    /// Speak plain http to every registry. At a loopback host, kitfs tries both schemes.
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
    /// Hosts that are reached directly, as `NO_PROXY` has it. Loopback always is.
    pub no_proxy: Option<String>,
    /// The files with passwords.
    pub credentials: CredentialStore,
    /// The folder that maps registry hosts to other addresses.
    pub mirrors: Mirrors,
    /// The settings of the user for single registries.
    pub rules: RegistryRules,
    /// Decides which request is sent next; shared by all clients of the process.
    pub admission: Arc<Admission>,
    /// The user of the requests that open kits and list repositories.
    pub user: UserId,
    /// Time-outs and retries.
    pub timing: Timing,
    /// The sizes of uploads.
    pub uploads: UploadSizes,
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
            rules: RegistryRules::default(),
            admission: Admission::new(AdmissionConfig::default()),
            user: UserId::default(),
            timing: Timing::default(),
            uploads: UploadSizes::default(),
        }
    }
}

/// Connections, tokens and redirect targets, shared by all repositories with the same options.
pub struct RegistryClient {
    plain_http: bool,
    tls: tls::Tls,
    credentials: CredentialStore,
    mirrors: Mirrors,
    rules: RegistryRules,
    admission: Arc<Admission>,
    user: UserId,
    timing: Timing,
    uploads: UploadSizes,
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
            credentials: config.credentials.with_rules(config.rules.clone()),
            mirrors: config.mirrors.with_rules(config.rules.clone(), config.plain_http),
            rules: config.rules,
            admission: config.admission,
            user: config.user,
            timing: config.timing,
            uploads: config.uploads,
            connections,
            authorizations: auth::Authorizations::new(),
            targets: redirect::Targets::new(),
            schemes: upstream::Schemes::default(),
            silences: Arc::new(silences::Silences::new(config.timing.untold)),
        }))
    }

    /// The limits of programs that this client starts.
    pub(super) fn child_limits(&self) -> ChildLimits {
        self.credentials.helper_limits()
    }

    /// The hosts that are silent for a while to requests that open or warm a kit.
    pub fn silences(&self) -> Vec<Silence> {
        self.silences.list()
    }

    /// Every repository of the registry `host`, sorted.
    ///
    /// # Errors
    /// Fails also where the registry offers no list, as most public ones.
    pub async fn catalogue(self: &Arc<Self>, host: &str) -> Result<Vec<String>, SourceError> {
        let endpoints = self.endpoints(host)?;
        repository::catalogue(Arc::clone(self), host, endpoints).await
    }

    /// The repository of `reference`. Reads the folder of mirrors; no I/O to the network.
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

    /// The repository of `reference` as a destination. Reads the folder of mirrors; no I/O to the network.
    ///
    /// # Errors
    /// As for [`RegistryClient::repository`].
    pub fn destination(
        self: &Arc<Self>,
        reference: &Reference,
    ) -> Result<Arc<dyn Destination>, SourceError> {
        let endpoints = self.endpoints(reference.registry())?;
        let destination = upload::RegistryDestination::new(Arc::clone(self), reference, endpoints)?;
        Ok(Arc::new(destination))
    }
}
