//! The addresses at which a registry is reached: mirrors first, and http or https.
//!
//! A registry without configuration has its own address only, and speaks https. A loopback host may speak http or
//! https, and kitfs tries both once. http comes first, because most registries on the same machine speak it; with
//! TLS options, https comes first. No secret is sent before the answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use reqwest::Client;
use tokio::sync::OnceCell;
use url::{Host, Url};

use super::RegistryClient;
use super::errand::Errand;
use super::message::{self, Cause};
use super::redirect;
use super::retry::Failure;
use super::scopes::Rights;
use super::tls::Tls;
use crate::oci::Digest;
use crate::process::running_time;
use crate::source::credentials::{Credential, Known};
use crate::source::{SourceError, Urgency, mirrors};

/// An address that answers for a registry.
pub(super) struct Upstream {
    /// The URL below which the API lies; ends in `/`.
    pub(super) base: Url,
    /// The client for this host alone, which may show a certificate.
    pub(super) client: Client,
    /// Headers for this host alone (hosts.toml).
    pub(super) headers: HeaderMap,
    /// The name under which its credentials are stored.
    pub(super) account: String,
    /// The registry, as messages name it.
    pub(super) name: String,
    /// The role of this address.
    role: Role,
}

/// The role of an address for its registry.
enum Role {
    /// The registry's own address.
    Own,
    /// An address from hosts.toml or a rule, which may serve several registries.
    Mirror(String),
    /// The target of a redirect by this registry.
    Redirect(String),
}

impl Upstream {
    /// The repository in messages; the registry for an empty name.
    pub(super) fn place(&self, repository: &str) -> String {
        let name = match repository {
            "" => self.name.clone(),
            repository => format!("{}/{repository}", self.name),
        };
        match &self.role {
            Role::Own => name,
            Role::Mirror(address) => format!("{name} (at {address})"),
            Role::Redirect(registry) => format!("{name} (to which {registry} redirects)"),
        }
    }

    /// The URL of a manifest.
    pub(super) fn manifest(&self, repository: &str, selector: &str) -> Url {
        self.url(repository, &["manifests", selector])
    }

    /// The URL of a blob.
    pub(super) fn blob(&self, repository: &str, digest: Digest) -> Url {
        self.url(repository, &["blobs", &digest.to_string()])
    }

    /// The URL of the list of documents that refer to a manifest (distribution-spec, "Listing Referrers").
    pub(super) fn referrers(&self, repository: &str, digest: Digest) -> Url {
        self.url(repository, &["referrers", &digest.to_string()])
    }

    /// The URL at which uploads of blobs begin.
    pub(super) fn uploads(&self, repository: &str) -> Url {
        self.url(repository, &["blobs", "uploads", ""])
    }

    /// The URL of the first page of tags, of `number` tags where one is given.
    pub(super) fn tags(&self, repository: &str, number: Option<u32>) -> Url {
        with_number(self.url(repository, &["tags", "list"]), number)
    }

    /// The URL of the first page of repositories.
    pub(super) fn catalogue(&self, number: Option<u32>) -> Url {
        with_number(self.url("", &["_catalog"]), number)
    }

    fn url(&self, repository: &str, rest: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("http URLs have paths").pop_if_empty().extend(
            repository.split('/').filter(|part| !part.is_empty()).chain(rest.iter().copied()),
        );
        if matches!(self.role, Role::Mirror(_)) {
            // A mirror may serve several registries. As in containerd, `ns` names the registry.
            url.query_pairs_mut().append_pair("ns", &self.name);
        }
        url
    }

    /// The client for a request to `url`: this upstream's own client if the host is the same.
    pub(super) fn client_for<'a>(&'a self, url: &Url, all: &'a RegistryClient) -> &'a Client {
        if url.origin() == self.base.origin() { &self.client } else { all.connections.plain() }
    }

    /// Another registry at `url`, to which this one redirects. It gets its own credentials, and no settings of this
    /// registry.
    pub(super) fn redirected_to(&self, url: &Url, all: &RegistryClient) -> Self {
        let mut base = url.clone();
        let prefix = url.path().split_once("/v2/").map_or("", |(prefix, _)| prefix);
        base.set_path(&format!("{prefix}/v2/"));
        base.set_query(None);
        let host = message::authority(url);
        Self {
            base,
            client: all.connections.plain().clone(),
            headers: HeaderMap::new(),
            account: host.clone(),
            name: host,
            role: Role::Redirect(self.name.clone()),
        }
    }

    /// The error where the credential in `known` has no right to `repository`.
    pub(super) fn unauthorized(
        &self,
        repository: &str,
        detail: &str,
        known: &Known,
        rights: Rights<'_>,
    ) -> SourceError {
        let account = &self.account;
        let mut hint = match (&known.credential, rights) {
            (Credential::Anonymous, Rights::Pull) => {
                format!("log in with `kit login {account}` or `docker login {account}`")
            }
            (credential, Rights::Push { .. }) => may_not_push(credential, known, account),
            _ => format!(
                "the credentials for {account} were not accepted, or may not read this repository, \
                 or it does not exist: `kit login {account}` or `docker login {account}` renews them"
            ),
        };
        if let Some(trouble) = &known.trouble {
            hint.push_str(&format!(" ({trouble})"));
        }
        SourceError::Unauthorized { place: self.place(repository), detail: detail.to_owned(), hint }
    }
}

/// The advice for a credential without the right to push.
fn may_not_push(credential: &Credential, known: &Known, account: &str) -> String {
    let log_in = format!("log in with `kit login {account}` or `docker login {account}`");
    let who = match credential {
        Credential::Anonymous => {
            let files = known.looked_in.iter().map(|file| file.display().to_string());
            let files: Vec<_> = files.collect();
            let looked = match files.as_slice() {
                [] => String::new(),
                files => format!(" in {}", files.join(" and ")),
            };
            return format!("no credentials for {account} were found{looked}: {log_in}");
        }
        Credential::Basic { username, .. } => format!("the user `{}`", message::quoted(username)),
        Credential::IdentityToken(_) | Credential::RegistryToken(_) => "the token".to_owned(),
    };
    format!(
        "{who} was not accepted, or may not push there: ask the owner of the repository for the right, or \
         {log_in} as another user"
    )
}

fn with_number(mut url: Url, number: Option<u32>) -> Url {
    if let Some(number) = number {
        url.query_pairs_mut().append_pair("n", &number.to_string());
    }
    url
}

/// An address of a registry, and its permitted uses.
pub(super) struct Endpoint {
    address: Address,
    /// May resolve tags.
    pub(super) can_resolve: bool,
    /// May serve manifests by digest and blobs.
    pub(super) can_pull: bool,
    /// Takes blobs and manifests.
    pub(super) can_push: bool,
}

enum Address {
    Known(Arc<Upstream>),
    /// A loopback host with an unknown scheme.
    Loopback(String),
}

/// The schemes that loopback hosts speak.
#[derive(Default)]
pub(super) struct Schemes {
    hosts: Mutex<HashMap<String, Arc<OnceCell<Arc<Upstream>>>>>,
}

impl RegistryClient {
    /// The addresses of a registry, in the order to try. Reads the folder of mirrors.
    pub(super) fn endpoints(&self, registry: &str) -> Result<Vec<Endpoint>, SourceError> {
        if let Some(mirrors) = self.mirrors.endpoints(registry)? {
            return mirrors.iter().map(|mirror| self.mirror(registry, mirror)).collect();
        }
        let http = parse_base("http", registry)?;
        let address = match (self.plain_http, is_loopback(&http)) {
            (true, _) => Address::Known(self.upstream(registry, "http")?),
            (false, false) => Address::Known(self.upstream(registry, "https")?),
            (false, true) => Address::Loopback(registry.to_owned()),
        };
        Ok(vec![Endpoint { address, can_resolve: true, can_pull: true, can_push: true }])
    }

    /// The registry itself.
    fn upstream(&self, registry: &str, scheme: &str) -> Result<Arc<Upstream>, SourceError> {
        let host = if is_docker_hub(registry) { "registry-1.docker.io" } else { registry };
        Ok(Arc::new(Upstream {
            base: parse_base(scheme, host)?,
            client: self.connections.client(&self.tls)?,
            headers: HeaderMap::new(),
            account: registry.to_owned(),
            name: registry.to_owned(),
            role: Role::Own,
        }))
    }

    fn mirror(&self, registry: &str, mirror: &mirrors::Endpoint) -> Result<Endpoint, SourceError> {
        let mut base = mirror.url.clone();
        let prefix = base.path().trim_end_matches('/');
        let path = format!("{prefix}{}", if mirror.overrides_path { "/" } else { "/v2/" });
        base.set_path(&path);
        base.set_query(None);
        let mut tls = self.tls.clone();
        tls.insecure |= mirror.insecure_tls;
        tls.ca_files.extend(mirror.ca_files.iter().cloned());
        if mirror.client_identity.is_some() {
            tls.client_identity.clone_from(&mirror.client_identity);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &mirror.headers {
            let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
            else {
                return Err(SourceError::Configuration {
                    what: format!("the header {name:?} for {}", message::origin(&base)),
                    detail: "no HTTP header can look like this: correct hosts.toml".into(),
                });
            };
            headers.append(name, value);
        }
        let host = message::authority(&base);
        let is_registry = host.eq_ignore_ascii_case(registry)
            || (is_docker_hub(registry) && host == "registry-1.docker.io");
        let upstream = Upstream {
            client: self.connections.client(&tls)?,
            headers,
            account: if is_registry { registry.to_owned() } else { host },
            name: registry.to_owned(),
            role: match is_registry {
                true => Role::Own,
                false => Role::Mirror(message::without_secrets(&mirror.url)),
            },
            base,
        };
        Ok(Endpoint {
            address: Address::Known(Arc::new(upstream)),
            can_resolve: mirror.can_resolve,
            can_pull: mirror.can_pull,
            can_push: mirror.can_push,
        })
    }

    /// The upstream of an endpoint. Finds the scheme of a loopback host.
    pub(super) async fn reach(&self, endpoint: &Endpoint) -> Result<Arc<Upstream>, SourceError> {
        let registry = match &endpoint.address {
            Address::Known(upstream) => return Ok(Arc::clone(upstream)),
            Address::Loopback(registry) => registry,
        };
        let cell = Arc::clone(self.schemes.hosts.lock().entry(registry.clone()).or_default());
        let timing = self.timing.of_a_command();
        // The request is not patient, because a host on this machine answers for its API at once.
        let errand = Errand::new(Urgency::on_demand().of_user(self.user));
        let probe = || self.repeat(timing, &errand, registry, || self.probe(registry));
        cell.get_or_try_init(probe).await.map(Arc::clone)
    }

    /// Requests the API of a loopback host in one scheme and then in the other.
    async fn probe(&self, registry: &str) -> Result<Arc<Upstream>, Failure> {
        let has_tls_options = self.tls != Tls::default();
        let order = if has_tls_options { ["https", "http"] } else { ["http", "https"] };
        let first = self.upstream(registry, order[0])?;
        let asked = self.speaks(&first).await;
        if matches!(asked, Ok(Speaks::Yes)) {
            return Ok(first);
        }
        let second = self.upstream(registry, order[1])?;
        match (asked, self.speaks(&second).await) {
            (_, Ok(Speaks::Yes)) => Ok(second),
            // The host speaks TLS, but its certificate is not trusted, or it wants a client certificate.
            (Ok(Speaks::Perhaps), Err(failure @ Failure::Final(_)))
            | (Err(failure @ Failure::Final(_)), Ok(Speaks::Perhaps)) => Err(failure),
            (Ok(Speaks::Perhaps), _) => Ok(first),
            (_, Ok(Speaks::Perhaps)) => Ok(second),
            (Err(first), _) => Err(first),
            (Ok(_), Err(second)) => Err(second),
            (Ok(_), Ok(_)) => Err(SourceError::Protocol {
                place: registry.to_owned(),
                detail: "it speaks neither http nor https".into(),
            }
            .into()),
        }
    }

    /// Whether an upstream answers in its scheme.
    async fn speaks(&self, upstream: &Upstream) -> Result<Speaks, Failure> {
        let request = upstream.client.get(upstream.base.clone());
        let is_http = upstream.base.scheme() == "http";
        let patience = self.timing.reader();
        match running_time::timeout(patience, request.send()).await {
            Ok(Ok(response)) if is_http && may_want_https(&response) => Ok(Speaks::Perhaps),
            Ok(Ok(_)) => Ok(Speaks::Yes),
            Ok(Err(error)) => {
                let cause = Cause::of(&error);
                let clearly_other = if is_http { !cause.is_connect } else { cause.is_not_tls };
                match clearly_other {
                    true => Ok(Speaks::No),
                    false => Err(self.unreachable(&cause, &upstream.base, &upstream.name)),
                }
            }
            Err(_) => Err(Failure::transient(SourceError::Unavailable {
                place: upstream.name.clone(),
                detail: format!("no answer came within {patience:?}"),
            })),
        }
    }
}

/// Whether a host speaks a scheme.
enum Speaks {
    Yes,
    /// The answer is one that servers give in http at a port for https.
    Perhaps,
    No,
}

/// Whether a port for https may give this answer to a request in plain http. Go and nginx answer 400; others answer
/// 426 (RFC 9110, 15.5.22), or redirect to the same port.
fn may_want_https(response: &reqwest::Response) -> bool {
    match response.status() {
        StatusCode::BAD_REQUEST | StatusCode::UPGRADE_REQUIRED => true,
        status if redirect::is_redirect(status) => {
            let at = response.url();
            let next = redirect::location(response.headers());
            let next = next.and_then(|location| at.join(&location).ok());
            next.is_some_and(|next| {
                let port = |url: &Url| url.port_or_known_default();
                next.scheme() == "https" && next.host() == at.host() && port(&next) == port(at)
            })
        }
        _ => false,
    }
}

fn parse_base(scheme: &str, host: &str) -> Result<Url, SourceError> {
    Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|error| SourceError::Configuration {
        what: format!("the registry `{host}`"),
        detail: format!("is no host name: {error}"),
    })
}

/// Whether a registry's name is one of Docker Hub's names, which are no hosts of an API.
fn is_docker_hub(registry: &str) -> bool {
    registry.eq_ignore_ascii_case("docker.io")
}

/// Whether a URL names this machine itself.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts() {
        for host in ["localhost:5000", "127.0.0.1", "127.8.9.1:1", "[::1]:5000"] {
            assert!(is_loopback(&parse_base("http", host).unwrap()), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "10.0.0.1:5000", "[::2]", "ghcr.io"] {
            assert!(!is_loopback(&parse_base("http", host).unwrap()), "{host}");
        }
    }
}
