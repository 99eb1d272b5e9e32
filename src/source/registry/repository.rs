//! One repository of a registry: its manifests, tags and blobs.
//!
//! Every request goes to the registry's endpoints in order. A mirror gets one attempt, and a pause when it does not
//! answer. The last endpoint gets all retries, and its answer counts.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use url::Url;

use super::RegistryClient;
use super::download;
use super::errand::Errand;
use super::exchange::{Payload, Request, Verb};
use super::redirect::Targets;
use super::retry::Failure;
use super::scopes::Rights;
use super::tags::Listed;
use super::timing::Timing;
use super::upstream::{Endpoint, Upstream};
use crate::oci::{BlobId, BlobOffset, Digest, Selector};
use crate::source::{
    BlobSource, BlobStream, MANIFEST_LIMIT_BYTES, Repository, SourceError, Urgency,
};

/// The media types that kitfs accepts as a manifest. Without the first, distribution 2.8 answers 404.
/// The second is followed to a manifest. The others are recognised and refused by name.
pub(super) const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// The pause of a mirror that did not answer. 30 s: without this pause, every read would first wait for the
/// mirror's time-out.
const MIRROR_PAUSE: Duration = Duration::from_secs(30);

/// The pause of a mirror that sent wrong bytes. 10 min: at 1 Gbit/s, a layer of 60 GB comes from elsewhere in this
/// time.
const DISTRUST: Duration = Duration::from_secs(600);

/// One repository of a registry.
pub(super) struct RegistryRepository(Arc<Remote>);

/// A repository, and the client for its requests.
pub(super) struct Remote {
    client: Arc<RegistryClient>,
    registry: Arc<str>,
    /// The name in messages: `ghcr.io/org/model`.
    name: String,
    repository: String,
    endpoints: Vec<(Endpoint, Pause)>,
}

/// The end of a mirror's pause.
#[derive(Default)]
struct Pause(Mutex<Option<Instant>>);

impl RegistryRepository {
    pub(super) fn new(
        client: Arc<RegistryClient>,
        registry: &str,
        repository: &str,
        endpoints: Vec<Endpoint>,
    ) -> Self {
        let endpoints = endpoints.into_iter().map(|one| (one, Pause::default())).collect();
        let name = match repository {
            "" => registry.to_owned(),
            repository => format!("{registry}/{repository}"),
        };
        let (registry, repository) = (registry.into(), repository.to_owned());
        Self(Arc::new(Remote { client, registry, name, repository, endpoints }))
    }

    pub(super) fn remote(self) -> Arc<Remote> {
        self.0
    }
}

/// Every repository that a registry lists, sorted.
///
/// # Errors
/// Fails also where the registry offers no list, as most public ones.
pub(super) async fn catalogue(
    client: Arc<RegistryClient>,
    registry: &str,
    endpoints: Vec<Endpoint>,
) -> Result<Vec<String>, SourceError> {
    // A list of repositories belongs to none of them.
    let all = RegistryRepository::new(client, registry, "", endpoints);
    let mut error = match all.0.names(Listed::Repositories).await {
        Ok(names) => return Ok(names),
        Err(error) => error,
    };
    if let SourceError::Unauthorized { hint, .. } = &mut error {
        hint.push_str(&format!("; {}", Listed::Repositories.hint()));
    }
    Err(error)
}

impl BlobSource for RegistryRepository {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        async move {
            let opened = self.0.open(blob, range, urgency.clone()).await?;
            Ok(download::stream(Arc::clone(&self.0), blob, opened, urgency))
        }
        .boxed()
    }

    fn host(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.0.registry))
    }

    fn place(&self) -> Option<String> {
        // Each set of network options has its own client, which lives as long as its sources.
        Some(format!("{:p} {}", Arc::as_ptr(&self.0.client), self.0.name))
    }

    fn distrust(&self) {
        self.0.distrust();
    }
}

impl Repository for RegistryRepository {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        let latest = || Selector::Tag("latest".to_owned());
        let selector = selector.cloned().unwrap_or_else(latest);
        async move { self.0.manifest(&selector).await }.boxed()
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        self.0.names(Listed::Tags).boxed()
    }

    fn name(&self) -> String {
        self.0.name.clone()
    }
}

impl Remote {
    pub(super) fn timing(&self) -> Timing {
        self.client.timing
    }

    pub(super) fn client(&self) -> &RegistryClient {
        &self.client
    }

    pub(super) fn targets(&self) -> &Targets {
        &self.client.targets
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// The number of addresses.
    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    pub(super) fn endpoint(&self, index: usize) -> &Endpoint {
        &self.endpoints[index].0
    }

    async fn manifest(&self, selector: &Selector) -> Result<(Digest, Bytes), SourceError> {
        let may = |endpoint: &Endpoint| match selector {
            Selector::Tag(_) => endpoint.can_resolve,
            Selector::Digest(_) => endpoint.can_pull,
        };
        let errand = &Errand::opening(self.client.user);
        let ask = |upstream: Arc<Upstream>| async move {
            self.manifest_once(&upstream, selector, errand).await
        };
        self.first_of(self.timing().of_a_command(), errand, may, ask).await
    }

    async fn names(&self, listed: Listed) -> Result<Vec<String>, SourceError> {
        let errand = &Errand::opening(self.client.user);
        let ask = |upstream: Arc<Upstream>| async move {
            self.names_once(listed, &upstream, errand).await
        };
        let timing = self.timing().of_a_command();
        self.first_of(timing, errand, |endpoint| endpoint.can_resolve, ask).await
    }

    /// Begins a pause of the first mirror for content. The registry itself never gets a pause.
    fn distrust(&self) {
        let pulled = self.endpoints.iter().filter(|(endpoint, _)| endpoint.can_pull);
        let mut mirrors: Vec<_> = pulled.map(|(_, pause)| pause).collect();
        mirrors.pop();
        if let Some(pause) = mirrors.into_iter().find(|pause| !pause.is_on()) {
            tracing::warn!(
                repository = self.name,
                "a mirror sent wrong bytes: leaving it alone for {DISTRUST:?}"
            );
            pause.begin(DISTRUST);
        }
    }

    /// The first answer of the endpoints that `may` accepts.
    pub(super) async fn first_of<T, Ask, Asked>(
        &self,
        timing: Timing,
        errand: &Errand,
        may: impl Fn(&Endpoint) -> bool,
        ask: Ask,
    ) -> Result<T, SourceError>
    where
        Ask: Fn(Arc<Upstream>) -> Asked,
        Asked: Future<Output = Result<T, Failure>>,
    {
        let candidates: Vec<_> = self.endpoints.iter().filter(|(one, _)| may(one)).collect();
        let mut earlier: Vec<SourceError> = Vec::new();
        for (index, (endpoint, pause)) in candidates.iter().enumerate() {
            let is_last = index + 1 == candidates.len();
            if !is_last && pause.is_on() {
                continue;
            }
            errand.set_others(!is_last);
            let result = match self.client.reach(endpoint).await {
                Err(error) => Err(error),
                Ok(upstream) if is_last => {
                    let attempt = || ask(Arc::clone(&upstream));
                    self.client.repeat(timing, errand, &self.registry, attempt).await
                }
                Ok(upstream) => ask(upstream).await.map_err(Failure::into_error),
            };
            match result {
                Ok(answer) => return Ok(answer),
                Err(error) if is_last => return Err(with_earlier(error, &earlier)),
                Err(error) => {
                    // A missing blob is no fault of the mirror, and the next endpoint may have it.
                    if error.is_retryable() || matches!(error, SourceError::Untrusted { .. }) {
                        tracing::warn!(%error, "leaving a mirror alone for {MIRROR_PAUSE:?}");
                        pause.begin(MIRROR_PAUSE);
                    } else {
                        tracing::debug!(%error, "a mirror failed, asking the next");
                    }
                    earlier.push(error);
                }
            }
        }
        Err(SourceError::Configuration {
            what: format!("the mirrors of {}", self.name),
            detail: "none of them may be asked for this: add the capability `resolve` (tags) or \
                     `pull` (content) to a host in hosts.toml"
                .into(),
        })
    }

    async fn manifest_once(
        &self,
        upstream: &Upstream,
        selector: &Selector,
        errand: &Errand,
    ) -> Result<(Digest, Bytes), Failure> {
        let (digest, bytes, _) = self.manifest_and_head(upstream, selector, errand).await?;
        Ok((digest, bytes))
    }

    /// A manifest from one address, with the headers of the answer.
    pub(super) async fn manifest_and_head(
        &self,
        upstream: &Upstream,
        selector: &Selector,
        errand: &Errand,
    ) -> Result<(Digest, Bytes, HeaderMap), Failure> {
        let (text, what) = match selector {
            Selector::Tag(tag) => (tag.clone(), format!("the tag `{tag}`")),
            Selector::Digest(digest) => {
                (digest.to_string(), format!("the manifest {}", digest.short()))
            }
        };
        let url = upstream.manifest(&self.repository, &text);
        let headers =
            HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let request = self.request(upstream, &url, &headers, errand);
        let mut answer = self.client.ask(&request, |_| ()).await?;
        if answer.status() != StatusCode::OK {
            let hint = format!("`kitfs list {}` shows the tags and their digests", self.name);
            return Err(answer.refusal(&what, &hint, self.timing().stall).await);
        }
        let stall = self.timing().stall;
        let bytes = answer.document("the manifest", MANIFEST_LIMIT_BYTES, stall).await?;
        let got = Digest::of(&bytes);
        let announced = || {
            let value = answer.headers().get("docker-content-digest")?.to_str().ok()?;
            Digest::parse(value).ok()
        };
        let expected = match selector {
            Selector::Digest(digest) => Some(*digest),
            Selector::Tag(_) => announced(),
        };
        match expected {
            Some(expected) if expected != got => Err(SourceError::DigestMismatch {
                what,
                place: upstream.place(&self.repository),
                expected,
                got,
            }
            .into()),
            Some(_) | None => Ok((got, bytes, answer.headers().clone())),
        }
    }

    pub(super) fn request<'a>(
        &'a self,
        upstream: &'a Upstream,
        url: &'a Url,
        headers: &'a HeaderMap,
        errand: &'a Errand,
    ) -> Request<'a> {
        Request {
            upstream,
            repository: &self.repository,
            url,
            headers,
            errand,
            verb: Verb::Get,
            rights: Rights::Pull,
            payload: Payload::None,
        }
    }
}

impl Pause {
    fn is_on(&self) -> bool {
        self.0.lock().is_some_and(|until| Instant::now() < until)
    }

    fn begin(&self, time: Duration) {
        *self.0.lock() = Some(Instant::now() + time);
    }
}

/// `error`, with the different errors of the mirrors before it.
fn with_earlier(mut error: SourceError, earlier: &[SourceError]) -> SourceError {
    let own = error.to_string();
    let words = match &mut error {
        SourceError::NotFound { hint: words, .. }
        | SourceError::Unauthorized { detail: words, .. }
        | SourceError::Unavailable { detail: words, .. }
        | SourceError::Untrusted { detail: words, .. }
        | SourceError::Protocol { detail: words, .. }
        | SourceError::Configuration { detail: words, .. } => words,
        SourceError::Throttled { .. }
        | SourceError::DigestMismatch { .. }
        | SourceError::Changed { .. }
        | SourceError::Io { .. } => return error,
    };
    let others = earlier.iter().map(SourceError::to_string);
    for one in others.filter(|one| *one != own) {
        words.push_str(&format!("; before that, {one}"));
    }
    error
}
