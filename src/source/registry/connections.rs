//! HTTP clients for each set of TLS options, with the proxies between.
//!
//! A client certificate and `skip_verify` belong to one registry, so the hosts that a redirect or
//! a challenge names are asked through the plain client, which has neither. Redirects are off:
//! `exchange` follows them with its own rules. Loopback is never proxied: a proxy would
//! ask its own loopback.
//!
//! It is http/1.1: several ranges at once have a connection and a TCP window each. A connection is
//! used again once a body was read to its end. The buffer that bodies are read into begins with
//! 8 KiB and doubles up to 400 KiB while the line fills it (hyper's own rule; reqwest has no knob for
//! it), so pieces are large exactly where the network is fast.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;
use parking_lot::Mutex;
use reqwest::{Certificate, Client, Identity, NoProxy, Proxy};
use url::Url;

use super::encoding;
use super::message;
use super::timing::Timing;
use super::{DEFAULT_REQUESTS_PER_HOST, RegistryConfig};
use crate::source::SourceError;

/// The largest PEM file that is read. 4 MiB: Debian's whole bundle of authorities has 0.2 MiB.
const PEM_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Hosts that are reached without a proxy whatever the user says.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// Idle connections that are kept for each host: one for each request that may run at once, so that
/// a pause between two bursts costs no handshakes.
const IDLE_PER_HOST: usize = DEFAULT_REQUESTS_PER_HOST;

/// How one host's certificate is checked, and what kitfs shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    pub(super) insecure: bool,
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) client_identity: Option<(PathBuf, PathBuf)>,
}

/// Makes clients, and keeps one for each set of options.
pub(super) struct Connections {
    way: Way,
    clients: Mutex<HashMap<Tls, Client>>,
    plain: Client,
}

/// The way to every host: proxies and time-outs.
struct Way {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    no_proxy: Option<String>,
    timing: Timing,
}

impl Connections {
    /// # Errors
    /// [`SourceError::Configuration`] or [`SourceError::Io`] for a certificate file or proxy URL
    /// that cannot be used.
    pub(super) fn new(config: &RegistryConfig) -> Result<Self, SourceError> {
        let way = Way {
            http_proxy: config.http_proxy.as_deref().map(with_scheme),
            https_proxy: config.https_proxy.as_deref().map(with_scheme),
            no_proxy: config.no_proxy.clone(),
            timing: config.timing.clone(),
        };
        let tls = Tls {
            insecure: config.insecure_tls,
            ca_files: config.ca_files.clone(),
            client_identity: None,
        };
        let plain = way.build(&tls)?;
        let clients = Mutex::new(HashMap::from([(tls, plain.clone())]));
        Ok(Self { way, clients, plain })
    }

    /// The client for hosts of which nothing is configured: it shows no certificate.
    pub(super) fn plain(&self) -> &Client {
        &self.plain
    }

    /// The client for a host with these options.
    pub(super) fn client(&self, tls: &Tls) -> Result<Client, SourceError> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(tls) {
            return Ok(client.clone());
        }
        let client = self.way.build(tls)?;
        clients.insert(tls.clone(), client.clone());
        Ok(client)
    }

    /// The proxy that a request to `url` goes through, without its password.
    ///
    /// For messages only: whether `no_proxy` excludes the host is not looked at.
    pub(super) fn proxy_for(&self, url: &Url) -> Option<String> {
        let proxy = match url.scheme() {
            "https" => self.way.https_proxy.as_deref(),
            _ => self.way.http_proxy.as_deref(),
        };
        Some(message::origin(&Url::parse(proxy?).ok()?))
    }
}

impl Way {
    fn build(&self, tls: &Tls) -> Result<Client, SourceError> {
        let authorities = authorities(&tls.ca_files)?;
        let identity = tls.client_identity.as_ref().map(identity).transpose()?;
        let proxies = self.proxies()?;
        let builder = || {
            let builder = Client::builder()
                .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, encoding::ACCEPTED)]))
                .user_agent(concat!("kitfs/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(self.timing.connect)
                .pool_max_idle_per_host(IDLE_PER_HOST)
                .tcp_nodelay(true)
                .tls_danger_accept_invalid_certs(tls.insecure)
                .no_proxy();
            let builder = proxies.iter().cloned().fold(builder, reqwest::ClientBuilder::proxy);
            identity.iter().cloned().fold(builder, reqwest::ClientBuilder::identity)
        };
        // A machine that trusts no authority of its own (a bare container) makes the first fail.
        // It can still speak plain http, and https to hosts whose authority was given.
        let merged = builder().tls_certs_merge(authorities.clone()).build();
        merged.or_else(|_| builder().tls_certs_only(authorities).build()).map_err(|error| {
            SourceError::Configuration {
                what: "the TLS options".into(),
                detail: message::Cause::of(&error).words,
            }
        })
    }

    fn proxies(&self) -> Result<Vec<Proxy>, SourceError> {
        let excluded = match &self.no_proxy {
            Some(hosts) => format!("{hosts},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        let one = |url: &str, make: fn(&str) -> reqwest::Result<Proxy>| {
            let proxy = make(url).map_err(|_| SourceError::Configuration {
                what: "the proxy".into(),
                detail: "is no URL: write it as http://HOST:PORT".into(),
            })?;
            Ok(proxy.no_proxy(NoProxy::from_string(&excluded)))
        };
        let http = self.http_proxy.iter().map(|url| one(url, |url| Proxy::http(url)));
        let https = self.https_proxy.iter().map(|url| one(url, |url| Proxy::https(url)));
        http.chain(https).collect()
    }
}

/// A proxy without a scheme (`proxy:3128`) is an http one, as curl and Go take it.
fn with_scheme(proxy: &str) -> String {
    if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") }
}

fn authorities(ca_files: &[PathBuf]) -> Result<Vec<Certificate>, SourceError> {
    let mut authorities = Vec::new();
    for path in ca_files {
        let wrong = |cause: &str| unusable(path, "a certificate", cause);
        let certificates = Certificate::from_pem_bundle(&read_pem(path)?)
            .map_err(|error| wrong(&message::Cause::of(&error).words))?;
        if certificates.is_empty() {
            return Err(wrong("it holds none"));
        }
        authorities.extend(certificates);
    }
    Ok(authorities)
}

fn identity((certificate, key): &(PathBuf, PathBuf)) -> Result<Identity, SourceError> {
    let mut pem = read_pem(certificate)?;
    if key != certificate {
        pem.push(b'\n');
        pem.extend(read_pem(key)?);
    }
    Identity::from_pem(&pem).map_err(|error| {
        unusable(certificate, "a certificate and its key", &message::Cause::of(&error).words)
    })
}

fn unusable(path: &Path, expected: &str, cause: &str) -> SourceError {
    SourceError::Configuration {
        what: path.display().to_string(),
        detail: format!("{expected} in PEM format is needed here ({cause})"),
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, SourceError> {
    use std::io::Read as _;
    let io = |error| SourceError::Io { path: path.display().to_string(), error: Arc::new(error) };
    let mut pem = Vec::new();
    let file = std::fs::File::open(path).map_err(io)?;
    file.take(PEM_LIMIT_BYTES).read_to_end(&mut pem).map_err(io)?;
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        Way { http_proxy: None, https_proxy: None, no_proxy: None, timing: Timing::default() }
    }

    #[test]
    fn files_without_certificates_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "nothing of use").unwrap();
        let tls = Tls { ca_files: vec![empty.clone()], ..Tls::default() };
        let error = way().build(&tls).unwrap_err();
        assert!(
            matches!(&error, SourceError::Configuration { what, .. } if what.contains("empty.pem"))
        );

        let tls = Tls { client_identity: Some((empty.clone(), empty)), ..Tls::default() };
        assert!(matches!(way().build(&tls), Err(SourceError::Configuration { .. })));

        let tls = Tls { ca_files: vec![folder.path().join("missing.pem")], ..Tls::default() };
        let error = way().build(&tls).unwrap_err();
        assert!(matches!(&error, SourceError::Io { path, .. } if path.contains("missing.pem")));
    }

    #[test]
    fn a_proxy_that_is_no_url_is_refused_without_its_password() {
        let way = Way { http_proxy: Some("http://user:secret@".into()), ..way() };
        let error = way.build(&Tls::default()).unwrap_err();
        assert!(matches!(error, SourceError::Configuration { .. }));
        assert!(!error.to_string().contains("secret"));
    }
}
