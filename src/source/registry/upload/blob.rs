//! The upload of one blob.
//!
//! ```text
//!            mounted --> done
//! POST uploads/ --> session at byte 0
//!    small: PUT ?digest, all bytes --> done
//!    large: PATCH a chunk --202--> session at the byte that the registry tells --> ... --> PUT ?digest --> done
//!
//! broke, 429, 5xx:  GET session --> the byte that the registry tells; no such session --> POST again
//! 413:              half as much in each chunk; a whole blob goes in chunks
//! broke again:      half as much, too
//! chunks refused:   POST again, the whole blob in one PUT
//! last PUT broke:   HEAD blob --> done, or as above
//! ```
//!
//! kitfs resumes at the byte that the registry reports, but this report never ends an upload. The registry compares
//! the digest at the end, and so does kitfs before it sends the last byte. If a registry reports more bytes than
//! were sent, the upload begins anew.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use url::Url;

use super::super::answer::Answer;
use super::super::errand::Errand;
use super::super::exchange::{Payload, Request, Verb};
use super::super::retry::{Failure, Repeats, is_transient};
use super::super::scopes::Rights;
use super::super::upstream::Upstream;
use super::RegistryDestination;
use super::session::{self, Has};
use crate::oci::{BlobOffset, Reference};
use crate::source::SourceError;
use crate::source::sending::{Content, Destination, Put, SendError};

/// Progress in bytes that resets the count of breaks, as for downloads.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// The least chunk that is tried where a registry refuses larger ones. 64 KiB: no proxy allows less, and
/// with less the requests would outweigh their bodies.
const SMALLEST_CHUNK_BYTES: u64 = 64 * 1024;

/// Whether an attempt broke off: the failure may pass, and the host sent no `Retry-After`.
fn has_broken(failure: &Failure) -> bool {
    matches!(failure, Failure::Transient { retry_after: None, .. })
}

/// Whether an error is about this upload, and not about the repository or the user.
fn is_about_the_upload(error: &SourceError) -> bool {
    matches!(error, SourceError::NotFound { .. } | SourceError::Protocol { .. })
}

/// Whether registries and proxies refuse a kind of upload with this status.
fn is_refusal_of_kind(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 411 | 413 | 416 | 501)
}

/// Puts a blob into the repository.
pub(super) async fn put(
    destination: &RegistryDestination,
    content: &Arc<Content>,
    others: &[Reference],
) -> Result<Put, SendError> {
    let upstream = &*destination.client.reach(&destination.endpoint).await?;
    let sizes = destination.client.uploads;
    let is_small = content.blob().size <= sizes.whole_bytes;
    let timing = destination.client.timing.of_patience();
    let mut upload = Upload {
        destination,
        upstream,
        content,
        mode: if is_small { Mode::Whole } else { Mode::Chunks(sizes.chunk_bytes.max(1)) },
        refused: None,
        session: None,
        was_lost: false,
        furthest: BlobOffset(0),
        repeats: Repeats::new(timing, true),
        waited: Duration::ZERO,
    };
    let same_registry = |other: &&Reference| {
        other.registry().eq_ignore_ascii_case(&destination.registry)
            && other.repository() != destination.repository
    };
    for other in others.iter().filter(same_registry) {
        if upload.mount(other.repository()).await? {
            return Ok(Put::Mounted);
        }
        if upload.session.is_some() {
            break;
        }
    }
    upload.run().await?;
    Ok(Put::Sent)
}

/// The kind of an upload: in one request, or in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Whole,
    /// In chunks of this many bytes.
    Chunks(u64),
}

/// An upload that the registry knows.
struct Session {
    url: Url,
    /// The end of the bytes that the registry has.
    at: BlobOffset,
    /// The least length of a chunk.
    minimum: u64,
}

struct Upload<'a> {
    destination: &'a RegistryDestination,
    upstream: &'a Upstream,
    content: &'a Arc<Content>,
    mode: Mode,
    /// The registry's answer that refused the other kind of upload.
    refused: Option<String>,
    session: Option<Session>,
    /// Whether the registry has answered 404 to the first bytes before.
    was_lost: bool,
    /// The furthest byte that the registry has had, in any session.
    furthest: BlobOffset,
    repeats: Repeats,
    /// The total of the pauses since the last progress. The patience of an attempt bounds its own time.
    waited: Duration,
}

/// The result of a successful step.
enum Step {
    GoOn,
    Done,
}

impl Upload<'_> {
    async fn run(&mut self) -> Result<(), SendError> {
        loop {
            let failure = match self.step().await {
                Ok(Step::Done) => return Ok(()),
                Ok(Step::GoOn) => continue,
                Err(failure) => failure,
            };
            if let Some(error) = self.content.failure() {
                self.abandon().await;
                return Err(error.into());
            }
            self.pause(failure).await?;
            match self.mode {
                // It is unknown which bytes of the session the registry has kept.
                Mode::Whole => self.abandon().await,
                Mode::Chunks(_) => self.look_again().await?,
            }
            if self.session.is_none() && self.destination.has_blob(self.content.blob()).await? {
                // The answer was lost, or another sender has put the blob.
                return Ok(());
            }
        }
    }

    /// Waits after a failure, or gives up.
    async fn pause(&mut self, failure: Failure) -> Result<(), SourceError> {
        let timing = self.destination.client.timing.of_patience();
        let at = self.session.as_ref().map_or(BlobOffset(0), |session| session.at);
        if at.since(self.furthest) >= PROGRESS_BYTES {
            self.repeats = Repeats::new(timing, true);
            self.waited = Duration::ZERO;
        } else if let (Mode::Chunks(bytes), true) = (&mut self.mode, has_broken(&failure)) {
            // Some proxies hold a chunk back until it is complete, and end slow requests.
            *bytes = (*bytes / 2).max(SMALLEST_CHUNK_BYTES).min(*bytes);
        }
        self.furthest = self.furthest.max(at);
        let Some(wait) = self.repeats.next_wait(&failure, self.waited) else {
            return Err(failure.into_error());
        };
        let digest = self.content.blob().digest;
        if let Failure::Transient { error, .. } | Failure::Unreachable(error) = &failure {
            tracing::info!(%digest, %at, %error, ?wait, "resuming the upload");
        }
        self.waited += wait;
        crate::process::running_time::sleep(wait).await;
        Ok(())
    }

    async fn step(&mut self) -> Result<Step, Failure> {
        let end = self.content.blob().end();
        if self.session.is_none() {
            self.session = Some(self.open().await?);
        }
        let at = self.session.as_ref().map_or(BlobOffset(0), |session| session.at);
        match self.mode {
            Mode::Whole => self.put_whole().await,
            Mode::Chunks(_) if at == end => self.end().await,
            Mode::Chunks(bytes) => self.patch(at, bytes).await,
        }
    }

    /// Requests that the registry mounts the blob from another of its repositories. If it does not, the upload has
    /// begun.
    async fn mount(&mut self, from: &str) -> Result<bool, SendError> {
        let mut url = self.upstream.uploads(&self.destination.repository);
        let digest = self.content.blob().digest;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        let rights = Rights::Push { from: Some(from) };
        let asked = self.post(&url, rights).await;
        let answer = match asked {
            Ok(answer) => answer,
            // The user may have the right to push without the right to read the other repository.
            Err(error) => {
                tracing::debug!(%error, from, "not mounted");
                return Ok(false);
            }
        };
        match answer.status() {
            StatusCode::CREATED => {
                let what = format!("the blob {}", digest.short());
                session::check_digest(answer.headers(), digest, &what, answer.place())?;
                Ok(true)
            }
            StatusCode::ACCEPTED => {
                self.session = self.session_of(&answer, &url).ok();
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    async fn open(&self) -> Result<Session, Failure> {
        let url = self.upstream.uploads(&self.destination.repository);
        let answer = self.post(&url, Rights::Push { from: None }).await?;
        if answer.status() != StatusCode::ACCEPTED {
            let hint = "the registry does not know the repository: create it there first";
            let refused = answer.refusal("an upload", hint, self.destination.client.timing.stall);
            return Err(refused.await);
        }
        self.session_of(&answer, &url).map_err(Failure::Final)
    }

    /// Begins an upload. The request is retried here, so a failure is final.
    async fn post(&self, url: &Url, rights: Rights<'_>) -> Result<Answer, SourceError> {
        let Self { destination, upstream, .. } = *self;
        let client = &destination.client;
        let errand = &Errand::opening(client.user);
        let (headers, repository) = (&HeaderMap::new(), &*destination.repository);
        let (verb, payload) = (Verb::Post, Payload::None);
        let request =
            &Request { upstream, repository, url, headers, errand, verb, rights, payload };
        let attempt = || async move {
            let answer = client.ask(request, |_| ()).await?;
            match is_transient(answer.status()) {
                true => Err(answer.refusal("an upload", "", client.timing.stall).await),
                false => Ok(answer),
            }
        };
        client.repeat(client.timing.of_a_command(), errand, &destination.registry, attempt).await
    }

    fn session_of(&self, answer: &Answer, at: &Url) -> Result<Session, SourceError> {
        let next = session::next(answer.headers(), at, &self.upstream.base);
        let url = next.and_then(|url| url.ok_or_else(|| "an upload without a Location".to_owned()));
        let url = url.map_err(|detail| self.wrong(detail))?;
        Ok(Session { url, at: BlobOffset(0), minimum: session::chunk_minimum(answer.headers()) })
    }

    fn wrong(&self, detail: String) -> SourceError {
        SourceError::Protocol { place: self.upstream.place(&self.destination.repository), detail }
    }

    /// Sends a request of the session.
    async fn send(
        &self,
        verb: Verb,
        url: &Url,
        headers: &HeaderMap,
        payload: Payload<'_>,
    ) -> Result<Answer, Failure> {
        let client = &self.destination.client;
        let errand = Errand::sending(client.user, Arc::clone(self.content));
        self.destination.send(self.upstream, &errand, verb, url, headers, payload).await
    }

    /// Sends the whole blob in the request that ends the upload.
    async fn put_whole(&mut self) -> Result<Step, Failure> {
        let Some(session) = &self.session else { return Ok(Step::GoOn) };
        let blob = self.content.blob();
        let url = session::ending(&session.url, blob.digest);
        let answer = self
            .send(Verb::Put, &url, &octets(), Payload::Content(self.content, &blob.whole()))
            .await?;
        let is_refused = self.is_refused(answer.status());
        if is_refused && self.refused.is_none() {
            let chunk = self.destination.client.uploads.chunk_bytes.min(blob.size / 2);
            return self
                .change_mode(answer, "in one piece", Mode::Chunks(chunk.max(SMALLEST_CHUNK_BYTES)))
                .await;
        }
        self.ended(answer, is_refused).await
    }

    /// Whether the status refuses this kind of upload. The first 404 counts as a lost session, the second one as a
    /// refusal.
    fn is_refused(&mut self, status: StatusCode) -> bool {
        if status == StatusCode::NOT_FOUND && !self.was_lost {
            self.was_lost = true;
            return false;
        }
        is_refusal_of_kind(status)
    }

    /// The failure of a refused request. `this` is set where the other kind of upload was refused before.
    async fn failed(&self, answer: Answer, what: &str, this: Option<&str>) -> Failure {
        let stall = self.destination.client.timing.stall;
        let failure = answer.refusal(what, "the registry has lost the upload", stall).await;
        match (failure, &self.refused, this) {
            (failure, Some(earlier), Some(this)) => {
                let words = match failure.into_error() {
                    SourceError::Protocol { detail, .. } => detail,
                    error => error.to_string(),
                };
                let detail = format!(
                    "it takes the blob neither {earlier} nor {this} ({words}): ask those who run the registry, \
                     or the proxy before it, to allow uploads of this size"
                );
                self.wrong(detail).into()
            }
            // The upload is gone, or the registry has other bytes than were sent. The next upload may succeed.
            (Failure::Final(error), ..) if is_about_the_upload(&error) => Failure::transient(error),
            (failure, ..) => failure,
        }
    }

    /// Changes to the kind `other` after `answer` has refused this kind of upload.
    async fn change_mode(
        &mut self,
        mut answer: Answer,
        this: &str,
        other: Mode,
    ) -> Result<Step, Failure> {
        let words = answer.words(self.destination.client.timing.stall).await;
        tracing::info!(%words, "the registry takes no blob {this}");
        self.refused = Some(format!("{this} ({words})"));
        self.mode = other;
        self.abandon().await;
        Ok(Step::GoOn)
    }

    /// The outcome of the request that ends the upload.
    async fn ended(&mut self, answer: Answer, is_refused: bool) -> Result<Step, Failure> {
        let what = format!("the blob {}", self.content.blob().digest.short());
        let status = answer.status();
        if status.is_success() && status != StatusCode::ACCEPTED {
            session::check_digest(
                answer.headers(),
                self.content.blob().digest,
                &what,
                answer.place(),
            )?;
            return Ok(Step::Done);
        }
        if self.mode != Mode::Whole {
            self.session = None;
        }
        Err(self.failed(answer, &what, is_refused.then_some("in one piece")).await)
    }

    /// Sends the chunk that begins at `at`.
    async fn patch(&mut self, at: BlobOffset, chunk_bytes: u64) -> Result<Step, Failure> {
        let end = self.content.blob().end();
        let Some(session) = &self.session else { return Ok(Step::GoOn) };
        let length = chunk_bytes.max(session.minimum).max(1);
        let range = at..at.range(length).end.min(end);
        let mut headers = octets();
        let span = format!("{}-{}", range.start, range.end.get() - 1);
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::from_str(&span).expect("digits and a hyphen"),
        );
        let url = session.url.clone();
        let answer =
            self.send(Verb::Patch, &url, &headers, Payload::Content(self.content, &range)).await?;
        let status = answer.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED) {
            return self.accepted(&answer, &url, range.end).map_err(Failure::transient);
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            let smaller = (range.end - range.start) / 2;
            let minimum = self.session.as_ref().map_or(0, |session| session.minimum);
            if smaller >= minimum.max(SMALLEST_CHUNK_BYTES) {
                self.mode = Mode::Chunks(smaller);
                self.look_again_now().await?;
                return Ok(Step::GoOn);
            }
        }
        let is_refused = at == BlobOffset(0) && self.is_refused(status);
        if is_refused && self.refused.is_none() {
            return self.change_mode(answer, "in chunks", Mode::Whole).await;
        }
        Err(self.failed(answer, "a chunk", is_refused.then_some("in chunks")).await)
    }

    /// Takes over the state that the registry reports after a chunk that ended at `sent`.
    fn accepted(
        &mut self,
        answer: &Answer,
        at: &Url,
        sent: BlobOffset,
    ) -> Result<Step, SourceError> {
        let has = match Has::of(answer.headers()) {
            Has::Bytes(bytes) => BlobOffset(bytes),
            // The registry has taken the chunk, but reports no size.
            Has::Unsaid => sent,
            Has::NoneOrOne => sent.min(BlobOffset(1)),
        };
        let next = session::next(answer.headers(), at, &self.upstream.base);
        let next = next.map_err(|detail| self.wrong(detail))?;
        let place = self.upstream.place(&self.destination.repository);
        let Some(session) = &mut self.session else { return Ok(Step::GoOn) };
        session.url = next.unwrap_or_else(|| at.clone());
        if has == sent {
            session.at = has;
            return Ok(Step::GoOn);
        }
        // The registry reports another byte than the end of the chunk. That counts as a break, with missing or with
        // invented bytes.
        let detail = format!("it has {has} bytes of a blob after {sent} were sent");
        match has > sent {
            true => self.session = None,
            false => session.at = has,
        }
        Err(SourceError::Unavailable { place, detail })
    }

    /// Ends a complete upload.
    async fn end(&mut self) -> Result<Step, Failure> {
        let Some(session) = &self.session else { return Ok(Step::GoOn) };
        let url = session::ending(&session.url, self.content.blob().digest);
        let answer = self.send(Verb::Put, &url, &HeaderMap::new(), Payload::None).await?;
        if is_transient(answer.status()) {
            let stall = self.destination.client.timing.stall;
            return Err(answer.refusal("the end of an upload", "", stall).await);
        }
        self.ended(answer, false).await
    }

    /// After a break, requests the byte at which the upload goes on.
    async fn look_again(&mut self) -> Result<(), SourceError> {
        loop {
            match self.look_again_now().await {
                Ok(()) => return Ok(()),
                Err(failure) => self.pause(failure).await?,
            }
        }
    }

    async fn look_again_now(&mut self) -> Result<(), Failure> {
        let Some(session) = &self.session else { return Ok(()) };
        let (url, minimum) = (session.url.clone(), session.minimum);
        let client = &self.destination.client;
        let errand = Errand::opening(client.user);
        let none = HeaderMap::new();
        let answer = self
            .destination
            .send(self.upstream, &errand, Verb::Get, &url, &none, Payload::None)
            .await?;
        if is_transient(answer.status()) {
            return Err(answer.refusal("the state of an upload", "", client.timing.stall).await);
        }
        let next = session::next(answer.headers(), &url, &self.upstream.base);
        let url = next.ok().flatten().unwrap_or(url);
        let known = match (answer.status().is_success(), Has::of(answer.headers())) {
            (true, Has::Bytes(bytes)) => Some(BlobOffset(bytes)),
            _ => None,
        };
        match known.filter(|at| *at <= self.content.read_end()) {
            Some(at) => self.session = Some(Session { url, at, minimum }),
            // The session is gone, its state is in doubt, or it has no bytes worth keeping.
            None => self.abandon().await,
        }
        Ok(())
    }

    /// Cancels a session. Registries remove sessions by themselves later, so a failure is ignored.
    async fn abandon(&mut self) {
        /// The wait for the registry's answer, whose content is ignored.
        const PATIENCE: Duration = Duration::from_secs(2);
        let Some(session) = self.session.take() else { return };
        let errand = Errand::opening(self.destination.client.user);
        let none = HeaderMap::new();
        let (verb, payload) = (Verb::Delete, Payload::None);
        let deleted =
            self.destination.send(self.upstream, &errand, verb, &session.url, &none, payload);
        let _ = crate::process::running_time::timeout(PATIENCE, deleted).await;
    }
}

/// The header of a body of bytes.
fn octets() -> HeaderMap {
    let octets = HeaderValue::from_static("application/octet-stream");
    HeaderMap::from_iter([(header::CONTENT_TYPE, octets)])
}
