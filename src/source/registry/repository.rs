//! One repository of a registry: its manifests, tags and blobs.
//!
//! Every question is asked at the registry's endpoints in order. A mirror is asked once, and left
//! alone for a while when it does not answer; the last endpoint gets all retries, and its answer is
//! the one that counts.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;
use url::Url;

use super::RegistryClient;
use super::download::{self, Opened};
use super::errand::Errand;
use super::exchange::{Answer, Question};
use super::range::{self, Head};
use super::redirect;
use super::retry::{self, Failure};
use super::tags;
use super::timing::Timing;
use super::upstream::{Endpoint, Upstream};
use crate::oci::{BlobId, Digest, Selector};
use crate::source::{
    BlobSource, BlobStream, MANIFEST_LIMIT_BYTES, Repository, SourceError, Urgency,
};

/// What kitfs takes for a manifest. The first is what it can mount; without it distribution 2.8
/// answers 404. The others are there to be recognised and refused by name.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// How long a mirror that does not answer is left alone. 30 s: without it, every read would first
/// wait for the mirror's time-out.
const MIRROR_REST: Duration = Duration::from_secs(30);

/// One repository of a registry.
pub(super) struct RegistryRepository(Arc<Remote>);

/// A repository and the client to ask.
pub(super) struct Remote {
    client: Arc<RegistryClient>,
    registry: Arc<str>,
    /// As messages call it: `ghcr.io/org/model`.
    name: String,
    repository: String,
    endpoints: Vec<(Endpoint, Rest)>,
}

/// Until when a mirror is left alone.
#[derive(Default)]
struct Rest(Mutex<Option<Instant>>);

impl RegistryRepository {
    pub(super) fn new(
        client: Arc<RegistryClient>,
        registry: &str,
        repository: &str,
        endpoints: Vec<Endpoint>,
    ) -> Self {
        let endpoints = endpoints.into_iter().map(|one| (one, Rest::default())).collect();
        let name = format!("{registry}/{repository}");
        let (registry, repository) = (registry.into(), repository.to_owned());
        Self(Arc::new(Remote { client, registry, name, repository, endpoints }))
    }
}

impl BlobSource for RegistryRepository {
    fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
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
        // Each set of network options has a client of its own, which lives as long as its sources.
        Some(format!("{:p} {}", Arc::as_ptr(&self.0.client), self.0.name))
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
        self.0.tags().boxed()
    }

    fn name(&self) -> String {
        self.0.name.clone()
    }
}

impl Remote {
    pub(super) fn timing(&self) -> &Timing {
        &self.client.timing
    }

    /// Opens a body that holds `range` of `blob`.
    pub(super) async fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
        urgency: Urgency,
    ) -> Result<Opened, SourceError> {
        debug_assert!(range.start < range.end && range.end <= blob.size, "asked for {range:?}");
        let (range, errand) = (&range, &Errand::new(urgency));
        let ask = |upstream: Arc<Upstream>| async move {
            self.open_once(&upstream, blob, range, errand).await
        };
        self.first_of(self.timing(), errand, |endpoint| endpoint.can_pull, ask).await
    }

    async fn manifest(&self, selector: &Selector) -> Result<(Digest, Bytes), SourceError> {
        let may = |endpoint: &Endpoint| match selector {
            Selector::Tag(_) => endpoint.can_resolve,
            Selector::Digest(_) => endpoint.can_pull,
        };
        let errand = &Errand::on_demand();
        let ask = |upstream: Arc<Upstream>| async move {
            self.manifest_once(&upstream, selector, errand).await
        };
        self.first_of(&self.timing().of_a_command(), errand, may, ask).await
    }

    async fn tags(&self) -> Result<Vec<String>, SourceError> {
        let errand = &Errand::on_demand();
        let ask = |upstream: Arc<Upstream>| async move { self.tags_once(&upstream, errand).await };
        let timing = self.timing().of_a_command();
        self.first_of(&timing, errand, |endpoint| endpoint.can_resolve, ask).await
    }

    /// The first answer that an endpoint which `may` be asked gives.
    async fn first_of<T, Ask, Asked>(
        &self,
        timing: &Timing,
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
        for (index, (endpoint, rest)) in candidates.iter().enumerate() {
            let is_last = index + 1 == candidates.len();
            if !is_last && rest.is_resting() {
                continue;
            }
            let result = match self.client.reach(endpoint).await {
                Err(error) => Err(error),
                Ok(upstream) if is_last => {
                    retry::with_retries(timing, errand, || ask(Arc::clone(&upstream))).await
                }
                Ok(upstream) => ask(upstream).await.map_err(Failure::into_error),
            };
            match result {
                Ok(answer) => return Ok(answer),
                Err(error) if is_last => return Err(with_earlier(error, &earlier)),
                Err(error) => {
                    // What it does not have, the next one may. The rest is the mirror's own trouble.
                    if error.is_retryable() || matches!(error, SourceError::Untrusted { .. }) {
                        tracing::warn!(%error, "leaving a mirror alone for {MIRROR_REST:?}");
                        rest.begin();
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
        let (text, what) = match selector {
            Selector::Tag(tag) => (tag.clone(), format!("the tag `{tag}`")),
            Selector::Digest(digest) => (digest.to_string(), format!("the manifest {digest}")),
        };
        let url = upstream.manifest(&self.repository, &text);
        let headers =
            HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let question = self.question(upstream, &url, &headers, errand);
        let mut answer = self.client.ask(&question, |_| ()).await?;
        if answer.status() != StatusCode::OK {
            let hint = format!("check it with `kitfs list {}`", self.name);
            return Err(self.refusal(upstream, answer, &what, &hint).await);
        }
        let bytes = answer.read(MANIFEST_LIMIT_BYTES, self.timing().stall).await?;
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
            Some(_) | None => Ok((got, bytes)),
        }
    }

    async fn tags_once(
        &self,
        upstream: &Upstream,
        errand: &Errand,
    ) -> Result<Vec<String>, Failure> {
        let protocol =
            |detail| SourceError::Protocol { place: upstream.place(&self.repository), detail };
        let mut all = Vec::new();
        let mut url = upstream.tags(&self.repository);
        for _ in 0..tags::PAGE_LIMIT {
            let headers = HeaderMap::new();
            let question = self.question(upstream, &url, &headers, errand);
            let mut answer = self.client.ask(&question, |_| ()).await?;
            if answer.status() != StatusCode::OK {
                let what = "the list of tags";
                let hint = "check the name of the repository";
                return Err(self.refusal(upstream, answer, what, hint).await);
            }
            let page = answer.read(tags::PAGE_LIMIT_BYTES, self.timing().stall).await?;
            all.extend(tags::decode(&page).map_err(protocol)?);
            if all.len() > tags::TAG_LIMIT {
                return Err(protocol(format!("more than {} tags", tags::TAG_LIMIT)).into());
            }
            let links = answer.headers().get_all(header::LINK).iter();
            let links = links.filter_map(|link| link.to_str().ok());
            match tags::next(&url, links).map_err(protocol)? {
                Some(next) => url = next,
                None => {
                    all.sort_unstable();
                    all.dedup();
                    return Ok(all);
                }
            }
        }
        Err(protocol(format!("more than {} pages of tags", tags::PAGE_LIMIT)).into())
    }

    /// Asks for a range of a blob: where it was last found, or else at the registry.
    async fn open_once(
        &self,
        upstream: &Upstream,
        blob: BlobId,
        range: &Range<u64>,
        errand: &Errand,
    ) -> Result<Opened, Failure> {
        let url = upstream.blob(&self.repository, blob.digest);
        let mut headers = HeaderMap::new();
        if *range != (0..blob.size) {
            let value = HeaderValue::from_str(&range::header(range)).expect("digits and `bytes=-`");
            headers.insert(header::RANGE, value);
        }
        let targets = &self.client.targets;
        let mut found = self.open_target(upstream, &url, &headers, errand).await?;
        let mut turn = None;
        if found.is_none() {
            turn = targets.turn(&url).await;
            if turn.is_some() && targets.find(&url, Timestamp::now()).is_some() {
                // Whoever had the turn before has found it, and others want to know that too.
                turn = None;
                found = self.open_target(upstream, &url, &headers, errand).await?;
            }
        }
        let answer = match found {
            Some(answer) => answer,
            None => self.ask_for_blob(upstream, &url, &headers, errand, turn).await?,
        };
        self.accept(upstream, blob, range, answer).await
    }

    /// Asks the registry for a blob, and remembers where it redirects to. The turn ends with that.
    async fn ask_for_blob(
        &self,
        upstream: &Upstream,
        blob: &Url,
        headers: &HeaderMap,
        errand: &Errand,
        mut turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Answer, Failure> {
        let targets = &self.client.targets;
        let mut target = None;
        let question = self.question(upstream, blob, headers, errand);
        let asked = self.client.ask(&question, |url| {
            target = Some(targets.led_to(blob, url, Timestamp::now()));
            turn = None;
        });
        let answer = asked.await;
        let is_success = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
        match target {
            Some(target) if !is_success => targets.forget(blob, &target),
            None if is_success => targets.is_here(blob),
            Some(_) | None => {}
        }
        answer
    }

    /// Asks for a blob where it was last found. `None` when that is not known or no longer true.
    async fn open_target(
        &self,
        upstream: &Upstream,
        blob: &Url,
        headers: &HeaderMap,
        errand: &Errand,
    ) -> Result<Option<Answer>, Failure> {
        let targets = &self.client.targets;
        let Some(target) = targets.find(blob, Timestamp::now()) else { return Ok(None) };
        match self.client.fetch(upstream, &target.url, headers, errand).await {
            Ok(answer) if answer.status().is_success() => Ok(Some(answer)),
            Ok(answer)
                if redirect::is_refusal(answer.status())
                    || redirect::is_redirect(answer.status()) =>
            {
                targets.forget(blob, &target);
                Ok(None)
            }
            Ok(answer) => Ok(Some(answer)),
            Err(failure) => {
                // The registry may know a better host by now.
                targets.forget(blob, &target);
                Err(failure)
            }
        }
    }

    /// Checks the head of an answer to a question for `range`.
    async fn accept(
        &self,
        upstream: &Upstream,
        blob: BlobId,
        range: &Range<u64>,
        answer: Answer,
    ) -> Result<Opened, Failure> {
        let status = answer.status();
        if !status.is_success() && status != StatusCode::RANGE_NOT_SATISFIABLE {
            let what = format!("the blob {}", blob.digest);
            let hint = "the registry has the manifest but not its content: push the kit again";
            return Err(self.refusal(upstream, answer, &what, hint).await);
        }
        let head = Head {
            status,
            content_range: answer.header(header::CONTENT_RANGE),
            content_length: answer.content_length(),
        };
        match range::served(&head, range, blob.size) {
            Ok(range) => Ok(Opened { range, answer }),
            Err(detail) => {
                let place = answer.place().to_owned();
                let detail = format!("{detail}, for the blob {}", blob.digest);
                Err(SourceError::Protocol { place, detail }.into())
            }
        }
    }

    fn question<'a>(
        &'a self,
        upstream: &'a Upstream,
        url: &'a Url,
        headers: &'a HeaderMap,
        errand: &'a Errand,
    ) -> Question<'a> {
        Question { upstream, repository: &self.repository, url, headers, errand }
    }

    /// What it means that `answer` does not bring `what`.
    async fn refusal(
        &self,
        upstream: &Upstream,
        mut answer: Answer,
        what: &str,
        hint: &str,
    ) -> Failure {
        let stall = self.timing().stall;
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if answer.is_from(upstream) => {
                let detail = answer.words(stall).await;
                upstream.unauthorized(&self.repository, &detail, true).into()
            }
            _ => answer.refusal(what, hint, stall).await,
        }
    }
}

impl Rest {
    fn is_resting(&self) -> bool {
        self.0.lock().is_some_and(|until| Instant::now() < until)
    }

    fn begin(&self) {
        *self.0.lock() = Some(Instant::now() + MIRROR_REST);
    }
}

/// `error`, with what went wrong at the mirrors before.
fn with_earlier(mut error: SourceError, earlier: &[SourceError]) -> SourceError {
    let words = match &mut error {
        SourceError::NotFound { hint: words, .. }
        | SourceError::Unauthorized { detail: words, .. }
        | SourceError::Unavailable { detail: words, .. }
        | SourceError::Untrusted { detail: words, .. }
        | SourceError::Protocol { detail: words, .. }
        | SourceError::Configuration { detail: words, .. } => words,
        SourceError::Throttled { .. }
        | SourceError::DigestMismatch { .. }
        | SourceError::Io { .. } => return error,
    };
    for one in earlier {
        words.push_str(&format!("; before that, {one}"));
    }
    error
}
