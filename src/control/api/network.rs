//! How a daemon reaches registries for a request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::source::s3::S3Config;

/// How to reach registries. Read from flags and environment by the commands; mounts with
/// different options share a daemon, not connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkOptions {
    /// Ask kit's own storage before registries.
    pub prefer_local: bool,
    /// Speak plain http to every registry (loopback hosts get it anyway).
    pub plain_http: bool,
    /// Accept any TLS certificate.
    pub insecure_tls: bool,
    /// PEM files with further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// PEM file with a client certificate.
    pub client_certificate: Option<PathBuf>,
    /// PEM file with the client certificate's key.
    pub client_key: Option<PathBuf>,
    /// Proxy for http registries, a URL.
    pub http_proxy: Option<String>,
    /// Proxy for https registries, a URL.
    pub https_proxy: Option<String>,
    /// Hosts that are reached directly, as in `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// A folder of `HOST/hosts.toml` files, in containerd's layout.
    pub registries_dir: Option<PathBuf>,
    /// Credential files in Docker's config format, the first that knows a host wins.
    pub credential_files: Vec<PathBuf>,
    /// kit's own folder (`KITOPS_HOME`), for `localhost/…` references.
    pub kitops_home: Option<PathBuf>,
    /// The number of times that a request is repeated after a failure that may pass; `None` for the default.
    pub retries: Option<usize>,
    /// How to reach the S3 store that objects are read from.
    pub s3: S3Config,
    /// How long opening and warming wait for a host that is silent; `None` for the usual.
    #[serde(default)]
    pub open_timeout_seconds: Option<u64>,
}
