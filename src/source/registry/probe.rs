//! A look at a registry for diagnosis: one request for each property, without retries.
//!
//! ```text
//! greet           GET /v2/                    reachable, TLS, clock, login
//! manifest        GET manifests/TAG           rights, limits of requests
//! range           GET blobs/DIGEST, Range     ranges, redirects
//! referrers       GET referrers/DIGEST        signatures and other documents about a kit
//! push_rights     a token for a push          asks for a token, and sends nothing else
//! begin_upload    POST, then DELETE           the only request that changes something
//! ```
//!
//! The requests use the client's own authorization, redirects and rules for ranges. So a probe gets the answers
//! that a mount would get. The caller bounds the time of each request.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::auth;
use super::errand::Errand;
use super::exchange::{Payload, Request, Verb};
use super::message;
use super::range::{Asked, Served};
use super::redirect;
use super::repository::{RegistryRepository, Remote};
use super::retry::Failure;
use super::scopes::Rights;
use super::token;
use super::upstream::Upstream;
use crate::oci::{BlobId, BlobOffset, Digest, Selector};
use crate::process::running_time::Stopwatch;
use crate::source::{MANIFEST_LIMIT_BYTES, SourceError};

/// One address of a registry.
pub struct Probe {
    remote: Arc<Remote>,
    index: usize,
}

/// The first answer of an address.
#[derive(Clone, Debug)]
pub struct Greeting {
    /// The URL below which its API lies.
    pub address: String,
    /// The proxy on the way, without its password.
    pub proxy: Option<String>,
    /// The time from the request to the head of the answer, with the connection.
    pub elapsed: Duration,
    /// The authorization that it wants for further requests.
    pub login: Login,
    /// The seconds by which its clock is ahead of this machine's; `None` without a `Date` in the answer.
    pub clock_ahead_seconds: Option<i64>,
}

/// The authorization that an address wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// None.
    Open,
    /// One of these schemes.
    Wanted {
        /// The names of the schemes, in lower case.
        schemes: Vec<String>,
        /// The token server.
        token_server: Option<String>,
    },
}

/// A manifest, and the limits in the head of its answer.
#[derive(Clone, Debug)]
pub struct ProbedManifest {
    /// The digest of the bytes.
    pub digest: Digest,
    /// The manifest.
    pub bytes: Bytes,
    /// The limit of requests.
    pub rate: Rate,
}

/// A limit of requests, as an answer states it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// The number of requests in a window.
    pub limit: Option<u64>,
    /// The number that is left.
    pub remaining: Option<u64>,
    /// The length of a window.
    pub window_seconds: Option<u64>,
}

/// The answer to a request for a part of a blob.
#[derive(Clone, Debug)]
pub struct ProbedRange {
    /// The content of the body.
    pub served: ServedRange,
    /// The hosts that the registry redirected to, in order.
    pub redirects: Vec<String>,
    /// The time from the request to the head of the answer.
    pub elapsed: Duration,
}

/// The content of a body, by its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServedRange {
    /// The requested bytes.
    Exact,
    /// The first of the requested bytes.
    Fewer(u64),
    /// The whole blob.
    Whole,
    /// The part or the whole blob; the head does not show which.
    Unclear,
    /// An answer that contradicts the request, in words.
    Wrong(String),
}

/// The right to push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PushRights {
    /// The token has it.
    Granted,
    /// The token does not have it.
    Refused,
    /// Only an upload shows the right.
    Unknown,
}

impl RegistryClient {
    /// The addresses of a registry in the order to try. `repository` is empty for a look at the registry alone.
    /// Reads the folder of mirrors; no I/O to the network.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a hosts.toml or host name that cannot be used.
    pub fn probes(
        self: &Arc<Self>,
        registry: &str,
        repository: &str,
    ) -> Result<Vec<Probe>, SourceError> {
        let endpoints = self.endpoints(registry)?;
        let remote =
            RegistryRepository::new(Arc::clone(self), registry, repository, endpoints).remote();
        let indices = 0..remote.endpoints();
        Ok(indices.map(|index| Probe { remote: Arc::clone(&remote), index }).collect())
    }
}

impl Probe {
    /// Whether the address may resolve tags.
    pub fn can_resolve(&self) -> bool {
        self.remote.endpoint(self.index).can_resolve
    }

    /// Whether the address may serve content.
    pub fn can_pull(&self) -> bool {
        self.remote.endpoint(self.index).can_pull
    }

    /// Whether the address takes uploads.
    pub fn can_push(&self) -> bool {
        self.remote.endpoint(self.index).can_push
    }

    async fn upstream(&self) -> Result<Arc<Upstream>, SourceError> {
        self.client().reach(self.remote.endpoint(self.index)).await
    }

    fn client(&self) -> &RegistryClient {
        self.remote.client()
    }

    fn stall(&self) -> Duration {
        self.remote.timing().stall
    }

    fn errand(&self) -> Errand {
        Errand::opening(self.client().user)
    }

    /// Requests the API's root, without credentials.
    ///
    /// # Errors
    /// Fails where no registry answers there.
    pub async fn greet(&self) -> Result<Greeting, SourceError> {
        let upstream = self.upstream().await?;
        let request = upstream.client.get(upstream.base.clone()).headers(upstream.headers.clone());
        let (asked_at, mut watch) = (Timestamp::now(), Stopwatch::start());
        let place = upstream.place(self.remote.repository());
        let sent = self.client().send(request, &upstream.base, &place, &self.errand()).await;
        let answer = sent.map_err(Failure::into_error)?;
        let elapsed = watch.look();
        let clock_ahead_seconds = clock_ahead(answer.headers(), asked_at, Timestamp::now());
        let login = match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => login_of(&answer, &upstream),
            status if status.is_success() => Login::Open,
            status if redirect::is_redirect(status) => {
                let next = answer.next_hop(&upstream.base, &upstream.base)?;
                let detail = format!(
                    "it redirects its API to {}: name that host, or correct the proxy before the registry",
                    message::origin(&next)
                );
                return Err(SourceError::Protocol { place, detail });
            }
            _ => {
                let hint = "no registry answers at this address: check the host and the port";
                let refusal = answer.refusal("the API of a registry (/v2/)", hint, self.stall());
                return Err(refusal.await.into_error());
            }
        };
        Ok(Greeting {
            address: message::without_secrets(&upstream.base),
            proxy: self.client().connections.proxy_for(&upstream.base),
            elapsed,
            login,
            clock_ahead_seconds,
        })
    }

    /// Fetches a manifest or an index.
    ///
    /// # Errors
    /// As for [`crate::source::Repository::manifest`].
    pub async fn manifest(&self, selector: &Selector) -> Result<ProbedManifest, SourceError> {
        let upstream = self.upstream().await?;
        let errand = self.errand();
        let fetched = self.remote.manifest_and_head(&upstream, selector, &errand).await;
        let (digest, bytes, headers) = fetched.map_err(Failure::into_error)?;
        Ok(ProbedManifest { digest, bytes, rate: Rate::of(&headers) })
    }

    /// Requests bytes of a blob, and reads the body if it has exactly these bytes.
    ///
    /// # Errors
    /// Fails where the blob cannot be read there, or its body breaks off.
    pub async fn range(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
    ) -> Result<ProbedRange, SourceError> {
        let upstream = self.upstream().await?;
        let asked = Asked { range: range.clone(), size: blob.size };
        let mut headers = HeaderMap::new();
        if let Some(range) = asked.header() {
            headers
                .insert(header::RANGE, range.parse().expect("digits and `bytes=-` make a header"));
        }
        let url = upstream.blob(self.remote.repository(), blob.digest);
        let errand = self.errand();
        let request = self.remote.request(&upstream, &url, &headers, &errand);
        let mut redirects = Vec::new();
        let mut watch = Stopwatch::start();
        let asking = self.client().ask(&request, |url| redirects.push(message::origin(url)));
        let mut answer = asking.await.map_err(Failure::into_error)?;
        let elapsed = watch.look();
        let status = answer.status();
        if !status.is_success() && status != StatusCode::RANGE_NOT_SATISFIABLE {
            let what = format!("the blob {}", blob.digest.short());
            let hint = "the registry has the manifest but not its content: push the kit again";
            return Err(answer.refusal(&what, hint, self.stall()).await.into_error());
        }
        let served = match asked.served(status, answer.headers()) {
            Ok(Served::Unclear) => ServedRange::Unclear,
            Ok(Served::Bytes(got)) if got == range => {
                read_exactly(&mut answer, range.end.0 - range.start.0, self.stall()).await?
            }
            Ok(Served::Bytes(got)) if got.start == range.start && got.end < range.end => {
                ServedRange::Fewer(got.end.0 - got.start.0)
            }
            Ok(Served::Bytes(_)) => ServedRange::Whole,
            Err(detail) => ServedRange::Wrong(detail),
        };
        Ok(ProbedRange { served, redirects, elapsed })
    }

    /// The number of documents that refer to a manifest; `None` where the registry has no such list.
    ///
    /// # Errors
    /// Fails where the answer is neither a list nor a 404.
    pub async fn referrers(&self, digest: Digest) -> Result<Option<usize>, SourceError> {
        #[derive(serde::Deserialize)]
        struct Index {
            manifests: Vec<serde::de::IgnoredAny>,
        }
        let upstream = self.upstream().await?;
        let url = upstream.referrers(self.remote.repository(), digest);
        let (headers, errand) = (HeaderMap::new(), self.errand());
        let request = self.remote.request(&upstream, &url, &headers, &errand);
        let asking = self.client().ask(&request, |_| ());
        let mut answer = asking.await.map_err(Failure::into_error)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => return Ok(None),
            _ => {
                let refusal = answer.refusal("the list of referrers", "", self.stall());
                return Err(refusal.await.into_error());
            }
        }
        let document = answer.document("the list of referrers", MANIFEST_LIMIT_BYTES, self.stall());
        let document = document.await.map_err(Failure::into_error)?;
        // Older registries answer 200 with another page.
        Ok(serde_json::from_slice::<Index>(&document).ok().map(|index| index.manifests.len()))
    }

    /// Requests a token with the right to push, and reads the rights from it. Sends no other request of a push.
    ///
    /// # Errors
    /// [`SourceError::Unauthorized`] where such a token is refused.
    pub async fn push_rights(&self) -> Result<PushRights, SourceError> {
        let upstream = self.upstream().await?;
        let url = upstream.tags(self.remote.repository(), Some(1));
        let (headers, errand) = (HeaderMap::new(), self.errand());
        let rights = Rights::Push { from: None };
        let request = self.remote.request(&upstream, &url, &headers, &errand);
        let request = Request { rights, ..request };
        // The answer itself proves nothing, because a new repository has no tags.
        self.client().ask(&request, |_| ()).await.map_err(Failure::into_error)?;
        let access =
            self.client().authorizations.access(&upstream, self.remote.repository(), rights);
        let granted = access.granted().await;
        let may =
            granted.and_then(|granted| token::may_push(&granted.header, self.remote.repository()));
        Ok(match may {
            Some(true) => PushRights::Granted,
            Some(false) => PushRights::Refused,
            None => PushRights::Unknown,
        })
    }

    /// Begins an upload, and cancels it. Returns whether the registry has cancelled it.
    ///
    /// # Errors
    /// Fails where the registry does not let an upload begin.
    pub async fn begin_upload(&self) -> Result<bool, SourceError> {
        let upstream = self.upstream().await?;
        let url = upstream.uploads(self.remote.repository());
        let begun = self.change(&upstream, Verb::Post, &url).await?;
        if begun.status() != StatusCode::ACCEPTED {
            let hint = "the registry takes no uploads to this repository";
            return Err(begun.refusal("the upload", hint, self.stall()).await.into_error());
        }
        let at = begun.next_hop(&url, &upstream.base)?;
        drop(begun);
        Ok(self.change(&upstream, Verb::Delete, &at).await.is_ok_and(|it| it.status().is_success()))
    }

    /// Sends a request that changes something, without a body.
    async fn change(
        &self,
        upstream: &Upstream,
        verb: Verb,
        url: &Url,
    ) -> Result<Answer, SourceError> {
        let (headers, errand) = (HeaderMap::new(), self.errand());
        let request = self.remote.request(upstream, url, &headers, &errand);
        let rights = Rights::Push { from: None };
        let request = Request { verb, rights, payload: Payload::None, ..request };
        self.client().follow(&request).await.map_err(Failure::into_error)
    }
}

/// Reads a body of `bytes` bytes, and keeps none of them.
async fn read_exactly(
    answer: &mut Answer,
    bytes: u64,
    stall: Duration,
) -> Result<ServedRange, SourceError> {
    let mut got = 0;
    while let Some(piece) = answer.piece(stall).await? {
        got += piece.len() as u64;
        if got > bytes {
            return Ok(ServedRange::Wrong(format!("a body of more than {bytes} bytes")));
        }
    }
    Ok(match got == bytes {
        true => ServedRange::Exact,
        false => ServedRange::Wrong(format!("a body of {got} bytes instead of {bytes}")),
    })
}

/// The authorization that a refusal wants.
fn login_of(answer: &Answer, upstream: &Upstream) -> Login {
    let challenges = auth::challenges(answer.headers());
    let bearer = challenges.iter().find(|one| one.scheme == "bearer");
    let server = bearer.and_then(|bearer| token::Server::new(bearer, &upstream.base).ok());
    Login::Wanted {
        schemes: challenges.iter().map(|one| message::quoted(&one.scheme)).collect(),
        token_server: server.map(|server| server.name()),
    }
}

/// The seconds by which the `Date` of an answer (RFC 9110, 6.6.1) is ahead of this machine's clock. The answer
/// was made at some moment between `asked_at` and `now`, and a `Date` has whole seconds.
fn clock_ahead(headers: &HeaderMap, asked_at: Timestamp, now: Timestamp) -> Option<i64> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    let date = date.as_second();
    Some(match () {
        () if date < asked_at.as_second() => date - asked_at.as_second(),
        () if date > now.as_second() => date - now.as_second(),
        () => 0,
    })
}

impl Rate {
    /// Reads the headers of Docker Hub (`ratelimit-limit: 100;w=21600`) and of GitHub and others
    /// (`x-ratelimit-limit: 100`).
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| {
            let both = [name.to_owned(), format!("x-{name}")];
            let value = both.iter().find_map(|name| headers.get(name.as_str()));
            value.and_then(|value: &HeaderValue| value.to_str().ok())
        };
        let number = |text: &str| text.split([';', ',']).next()?.trim().parse().ok();
        let window = |text: &str| {
            let mut parameters = text.split([';', ',']).skip(1);
            parameters.find_map(|one| one.trim().strip_prefix("w=")?.parse().ok())
        };
        let limit = text("ratelimit-limit");
        Self {
            limit: limit.and_then(number),
            remaining: text("ratelimit-remaining").and_then(number),
            window_seconds: limit.and_then(window),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let all = all.iter();
        all.map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn limits_of_requests_are_read_in_both_forms() {
        let hub =
            headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "7;w=21600")]);
        let expected = Rate { limit: Some(100), remaining: Some(7), window_seconds: Some(21600) };
        assert_eq!(Rate::of(&hub), expected);
        let other = headers(&[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "0")]);
        let expected = Rate { limit: Some(60), remaining: Some(0), window_seconds: None };
        assert_eq!(Rate::of(&other), expected);
        assert_eq!(Rate::of(&headers(&[("ratelimit-limit", "many")])), Rate::default());
        assert_eq!(Rate::of(&HeaderMap::new()), Rate::default());
    }

    #[test]
    fn a_clock_counts_as_wrong_only_beyond_the_time_of_the_request() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let ahead = |date: &str| {
            let asked = at("2026-12-01T10:00:00.9Z");
            clock_ahead(&headers(&[("date", date)]), asked, at("2026-12-01T10:00:05.1Z"))
        };
        assert_eq!(ahead("Tue, 01 Dec 2026 10:00:00 GMT"), Some(0));
        assert_eq!(ahead("Tue, 01 Dec 2026 10:00:05 GMT"), Some(0));
        assert_eq!(ahead("Tue, 01 Dec 2026 10:01:05 GMT"), Some(60));
        assert_eq!(ahead("Tue, 01 Dec 2026 09:00:00 GMT"), Some(-3600));
        assert_eq!(ahead("yesterday"), None);
    }
}
