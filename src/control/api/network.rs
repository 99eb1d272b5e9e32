//! How a daemon reaches registries for a request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::source::credentials::CarriedCredentials;
use crate::source::registry_rules::RegistryRule;
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
    /// The settings of the user for single registries. The first of equal ones counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryRule>,
    /// Credentials that the command has read for a daemon of another user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<CarriedCredentials>,
    /// The user of the command. Set by a daemon with several users; what a command says here is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
}

impl NetworkOptions {
    /// Whether other users reach the same hosts by the same names: certificates are checked, and no proxy of the
    /// user answers plain http.
    pub fn is_vouched(&self) -> bool {
        !(self.plain_http || self.insecure_tls || self.http_proxy.is_some())
    }

    /// Whether the options name files that a daemon would read, or programs that it would run.
    pub fn has_paths(&self) -> bool {
        let Self { ca_files, client_certificate, client_key, registries_dir, .. } = self;
        let Self { credential_files, kitops_home, s3, .. } = self;
        let files = [client_certificate, client_key, registries_dir, kitops_home];
        let is_local =
            |rule: &RegistryRule| rule.files().next().is_some() || rule.credential_helper.is_some();
        !(ca_files.is_empty() && credential_files.is_empty())
            || self.registries.iter().any(is_local)
            || files.into_iter().any(Option::is_some)
            || s3.credentials_file.is_some()
            || s3.config_file.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_among_the_options_counts_as_one() {
        assert!(!NetworkOptions::default().has_paths());
        let file = || PathBuf::from("/etc/shadow");
        let of_registry = |rule| NetworkOptions { registries: vec![rule], ..Default::default() };
        let s3 = |s3| NetworkOptions { s3, ..Default::default() };
        let with_paths = [
            NetworkOptions { ca_files: vec![file()], ..Default::default() },
            NetworkOptions { client_certificate: Some(file()), ..Default::default() },
            NetworkOptions { client_key: Some(file()), ..Default::default() },
            NetworkOptions { registries_dir: Some(file()), ..Default::default() },
            NetworkOptions { credential_files: vec![file()], ..Default::default() },
            NetworkOptions { kitops_home: Some(file()), ..Default::default() },
            of_registry(RegistryRule { ca_files: vec![file()], ..Default::default() }),
            of_registry(RegistryRule { credentials_file: Some(file()), ..Default::default() }),
            of_registry(RegistryRule {
                client_identity: Some((file(), PathBuf::from("/key.pem"))),
                ..Default::default()
            }),
            s3(S3Config { credentials_file: Some(file()), ..Default::default() }),
            s3(S3Config { config_file: Some(file()), ..Default::default() }),
        ];
        let helper = Some("pass".to_owned());
        let rule = RegistryRule { credential_helper: helper, ..Default::default() };
        assert!(of_registry(rule).has_paths(), "a program is as good as a path");
        for options in &with_paths {
            assert!(options.has_paths(), "{options:?}");
            // A path that is added to the options must be added here, too.
            let json = serde_json::to_string(options).unwrap();
            assert_eq!(json.matches("/etc/shadow").count(), 1);
        }
    }
}
