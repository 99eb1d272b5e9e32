//! HTTP clients for each set of TLS options, with the proxies between.
//!
//! A client certificate and `skip_verify` belong to one registry. So requests to a host that a redirect or a
//! challenge names use the plain client, which has neither. The clients follow no redirects: `exchange` follows
//! them by its own rules.
//!
//! The clients speak http/1.1, so that each of several ranges has a connection and a TCP window of its own. A
//! connection is used again once a body was read to its end. The buffer for bodies begins with 8 KiB, and doubles
//! up to 400 KiB while the network fills it. That is hyper's rule, and reqwest has no option for it. So pieces are
//! large where the network is fast.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;
use parking_lot::Mutex;
use reqwest::{Client, Proxy};
use url::Url;

use super::RegistryConfig;
use super::encoding;
use super::message;
use super::proxies::Proxies;
use super::tls::{Machine, Tls};
use crate::source::SourceError;
use crate::source::admission::DEFAULT_REQUESTS_PER_HOST;

/// Idle connections that are kept for each host: as many as requests may run, so that a pause between two bursts
/// costs no handshakes.
const IDLE_PER_HOST: usize = DEFAULT_REQUESTS_PER_HOST;

/// The silence of a connection before TCP sends a probe, and the wait for the answer to each probe.
///
/// 15 s: a request may wait minutes for a pull-through cache, but at most a minute for a machine that is gone.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The probes without an answer before the connection ends.
const KEEPALIVE_RETRIES: u32 = 3;

/// Makes clients, and keeps one for each set of options.
pub(super) struct Connections {
    proxies: Proxies,
    connect_timeout: Duration,
    machine: Arc<Machine>,
    clients: Mutex<HashMap<Tls, Client>>,
    plain: Client,
}

impl Connections {
    /// # Errors
    /// [`SourceError::Configuration`] or [`SourceError::Io`] for a certificate file or proxy URL
    /// that cannot be used.
    pub(super) fn new(config: &RegistryConfig) -> Result<Self, SourceError> {
        let proxies = Proxies::new(
            config.http_proxy.as_deref(),
            config.https_proxy.as_deref(),
            config.no_proxy.as_deref(),
        )?;
        let tls = Tls {
            insecure: config.insecure_tls,
            ca_files: config.ca_files.clone(),
            client_identity: None,
        };
        let machine = Arc::default();
        let plain = build(&tls, &machine, &proxies, config.timing.connect)?;
        let clients = Mutex::new(HashMap::from([(tls, plain.clone())]));
        Ok(Self { proxies, connect_timeout: config.timing.connect, machine, clients, plain })
    }

    /// The client for hosts without a configuration. It shows no certificate.
    pub(super) fn plain(&self) -> &Client {
        &self.plain
    }

    /// The client for a host with these options.
    pub(super) fn client(&self, tls: &Tls) -> Result<Client, SourceError> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(tls) {
            return Ok(client.clone());
        }
        let client = build(tls, &self.machine, &self.proxies, self.connect_timeout)?;
        clients.insert(tls.clone(), client.clone());
        Ok(client)
    }

    /// Whether this machine trusts any authority. Reads the files of authorities, unless they were read before.
    pub(super) fn has_authorities(&self) -> bool {
        self.machine.has_authorities()
    }

    /// The proxy that a request to `url` goes through, without its password.
    pub(super) fn proxy_for(&self, url: &Url) -> Option<String> {
        self.proxies.name_for_url(url)
    }
}

fn build(
    tls: &Tls,
    machine: &Arc<Machine>,
    proxies: &Proxies,
    connect_timeout: Duration,
) -> Result<Client, SourceError> {
    let mut builder = Client::builder()
        .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, encoding::ACCEPTED)]))
        .user_agent(concat!("kitfs/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEPALIVE)
        .tcp_keepalive_interval(KEEPALIVE)
        .tcp_keepalive_retries(KEEPALIVE_RETRIES)
        .tls_backend_preconfigured(tls.configure(machine)?)
        .no_proxy();
    if !proxies.is_empty() {
        let proxies = proxies.clone();
        builder = builder.proxy(Proxy::custom(move |url| proxies.for_url(url).cloned()));
    }
    builder.build().map_err(|error| SourceError::Configuration {
        what: "the options of the network".into(),
        detail: message::Cause::of(&error).words,
    })
}
