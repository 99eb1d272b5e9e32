//! One question to a registry, and the way to its answer: permit, authorization, redirects.
//!
//! ```text
//! ask --> registry --401, 403--> token server --> registry
//!            '--3xx--> storage host (Range kept, no Authorization) --3xx--> ... at most 5 hops
//!            '--3xx--> another registry, as above, with what is known of that one
//! ```

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::{self, Either};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use reqwest::RequestBuilder;
use url::Url;

use super::RegistryClient;
use super::auth::{self, Authorization};
use super::encoding;
use super::errand::Errand;
use super::limits::Permit;
use super::message::{self, Cause, Kind};
use super::redirect;
use super::retry::{self, Failure};
use super::silences::Silences;
use super::upstream::{Upstream, is_loopback};
use crate::source::SourceError;

/// The most of an error's body that is read for its words.
const ERROR_LIMIT_BYTES: u64 = 16 * 1024;

/// How long is waited for the words of an error. 5 s: they are a courtesy, and what a refused request
/// does next must not depend on them.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);

/// The head of an answer, and its body yet to be read.
pub(super) struct Answer {
    response: reqwest::Response,
    /// The host that messages name.
    place: String,
    /// Held until the body has been read or dropped.
    permit: Option<Permit>,
    /// For the first byte of the body, where somebody patient waits for it.
    patience: Option<Patience>,
}

/// How long the first byte of a body is waited for, and where that is known meanwhile.
struct Patience {
    limit: Duration,
    silences: Arc<Silences>,
    host: String,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Where a redirect at `at` leads to; `home` is the URL of the registry that was asked first.
    pub(super) fn next_hop(&self, at: &Url, home: &Url) -> Result<Url, SourceError> {
        let next = redirect::location(self.headers())
            .ok_or_else(|| "a redirect without a Location".to_owned())
            .and_then(|location| redirect::next_hop(at, &location, home));
        next.map_err(|detail| SourceError::Protocol { place: self.place.clone(), detail })
    }

    /// The next piece of the body, `None` at its end. Each is waited for as long as `stall`; the first
    /// one longer where somebody patient waits, since some caches send a head and then fetch.
    pub(super) async fn piece(&mut self, stall: Duration) -> Result<Option<Bytes>, SourceError> {
        let patience = self.patience.take();
        let stall = patience.as_ref().map_or(stall, |patience| patience.limit.max(stall));
        let piece = tokio::time::timeout(stall, self.response.chunk());
        let piece = match &patience {
            Some(patience) => patience.silences.watch(&patience.host, piece).await,
            None => piece.await,
        };
        let detail = match piece {
            Ok(Ok(Some(piece))) => {
                self.permit.iter().for_each(|permit| permit.received(piece.len()));
                return Ok(Some(piece));
            }
            Ok(Ok(None)) => {
                self.permit = None;
                return Ok(None);
            }
            Ok(Err(error)) => {
                format!("the transfer broke off ({})", Cause::of(&error.without_url()).words)
            }
            Err(_) => format!("the transfer stalled: no byte came within {stall:?}"),
        };
        Err(SourceError::Unavailable { place: self.place.clone(), detail })
    }

    /// All of a body of at most `limit` bytes.
    pub(super) async fn read(&mut self, limit: u64, stall: Duration) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.piece(stall).await.map_err(Failure::transient)? {
            if (body.len() + piece.len()) as u64 > limit {
                let detail = format!("more than the {limit} bytes that are allowed here");
                let place = self.place.clone();
                return Err(SourceError::Protocol { place, detail }.into());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// All of a JSON document of at most `limit` bytes; `what` names it in messages.
    pub(super) async fn document(
        &mut self,
        what: &str,
        limit: u64,
        stall: Duration,
    ) -> Result<Bytes, Failure> {
        let body = self.read(limit, stall).await?;
        let coding = encoding::of_content(self.headers());
        let coding = coding.or_else(|| encoding::of_transfer(self.headers()));
        match coding.filter(|_| !encoding::is_plain_json(&body)) {
            Some(coding) => {
                let detail = format!(
                    "{what} came in the encoding `{coding}`, which was not asked for: switch \
                     compression off in the registry, or in the proxy before it"
                );
                Err(SourceError::Protocol { place: self.place.clone(), detail }.into())
            }
            None if is_web_page(self.headers(), &body) => {
                let detail = format!(
                    "a web page came in the place of {what}: check the address, or log in at the \
                     proxy or gateway that answers for the registry"
                );
                Err(SourceError::Protocol { place: self.place.clone(), detail }.into())
            }
            None => Ok(body),
        }
    }

    /// The status, and what the body says about it.
    pub(super) async fn words(&mut self, stall: Duration) -> String {
        let status = self.status();
        self.patience = None;
        let body = self.read(ERROR_LIMIT_BYTES, stall.min(WORDS_PATIENCE)).await;
        match body.ok().and_then(|body| message::registry_words(&body)) {
            Some(words) => format!("{status}: {words}"),
            None => status.to_string(),
        }
    }

    /// The failure that an answer without the content means; `what` was asked for, and `hint` says
    /// what to do when it is not there. (A registry's own 401 and 403 are dealt with before.)
    pub(super) async fn refusal(mut self, what: &str, hint: &str, stall: Duration) -> Failure {
        let status = self.status();
        let retry_after = retry::retry_after(self.headers(), Timestamp::now());
        let detail = self.words(stall).await;
        let place = self.place;
        let error = match status.as_u16() {
            404 | 410 => {
                SourceError::NotFound { what: what.to_owned(), place, hint: hint.to_owned() }
            }
            401 | 403 => SourceError::Unauthorized {
                place,
                detail,
                hint:
                    "the registry's own answer was accepted, so its storage is set up wrongly, or \
                       this machine's clock is"
                        .to_owned(),
            },
            429 => SourceError::Throttled { place, retry_after },
            408 | 500.. => SourceError::Unavailable { place, detail },
            _ => SourceError::Protocol { place, detail: format!("{detail} for {what}") },
        };
        if retry::is_transient(status) {
            Failure::Transient { error, retry_after }
        } else {
            Failure::Final(error)
        }
    }
}

/// Whether a document is a web page, as the login pages of proxies and gateways are.
fn is_web_page(headers: &HeaderMap, body: &[u8]) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.as_bytes().to_ascii_lowercase());
    let is_named = kind.is_some_and(|kind| kind.trim_ascii_start().starts_with(b"text/html"));
    let starts_as_one = body.trim_ascii_start().starts_with(b"<");
    (is_named || starts_as_one) && !encoding::is_plain_json(body)
}

/// Why a request has no answer.
enum Unanswered {
    Failed(reqwest::Error),
    /// Nothing came in this time.
    Silent(Duration),
}

/// The first answer to one of two requests; a failure of one says nothing where the other goes on.
async fn either(
    first: impl Future<Output = reqwest::Result<reqwest::Response>>,
    second: impl Future<Output = reqwest::Result<reqwest::Response>>,
    end: tokio::time::Instant,
    limit: Duration,
) -> Result<reqwest::Response, Unanswered> {
    let answer = async {
        match future::select(pin!(first), pin!(second)).await {
            Either::Left((Ok(answer), _)) | Either::Right((Ok(answer), _)) => Ok(answer),
            Either::Left((Err(_), other)) => other.await,
            Either::Right((Err(_), other)) => other.await,
        }
    };
    match tokio::time::timeout_at(end, answer).await {
        Ok(answer) => answer.map_err(Unanswered::Failed),
        Err(_) => Err(Unanswered::Silent(limit)),
    }
}

/// What is asked: a URL of an upstream, with the headers that every host on the way gets.
pub(super) struct Question<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) repository: &'a str,
    pub(super) url: &'a Url,
    /// `Accept` and `Range`: nothing that other hosts must not see.
    pub(super) headers: &'a HeaderMap,
    pub(super) errand: &'a Errand,
}

impl RegistryClient {
    /// Asks the registry, and follows where it redirects to. `led_to` is told of each target
    /// before it is asked.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
        mut led_to: impl FnMut(&Url),
    ) -> Result<Answer, Failure> {
        let mut answer = self.ask_registry(question).await?;
        let mut at = question.url.clone();
        for _ in 0..redirect::HOP_LIMIT {
            if !redirect::is_redirect(answer.status()) {
                return Ok(answer);
            }
            at = answer.next_hop(&at, &question.upstream.base)?;
            drop(answer); // Its permit too: nobody waits for a permit while holding one.
            led_to(&at);
            answer = self.follow(&Question { url: &at, ..*question }).await?;
        }
        if redirect::is_redirect(answer.status()) {
            let place = question.upstream.place(question.repository);
            let detail = format!("more than {} redirects", redirect::HOP_LIMIT);
            return Err(SourceError::Protocol { place, detail }.into());
        }
        Ok(answer)
    }

    /// Asks a URL that a redirect of the question's upstream named, once.
    pub(super) async fn follow(&self, question: &Question<'_>) -> Result<Answer, Failure> {
        let Question { upstream, url, headers, errand, .. } = *question;
        if url.origin() == upstream.base.origin() {
            return self.ask_registry(question).await;
        }
        if let Some(repository) = redirect::repository_in(url) {
            let other = upstream.redirected_to(url, self);
            let (upstream, repository) = (&other, repository.as_str());
            return self.ask_registry(&Question { upstream, repository, ..*question }).await;
        }
        let place = format!("{}, to which {} redirects,", message::origin(url), upstream.name);
        let request = upstream.client_for(url, self).get(url.clone()).headers(headers.clone());
        self.send(request, url, &place, errand).await
    }

    /// Asks a registry, with an authorization if it wants one. Its refusal is a failure.
    async fn ask_registry(&self, question: &Question<'_>) -> Result<Answer, Failure> {
        let Question { upstream, repository, url, errand, .. } = *question;
        let place = upstream.place(repository);
        let send = |authorization: Option<&Authorization>| {
            let mut headers = question.headers.clone();
            headers.extend(upstream.headers.clone());
            if let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            self.send(upstream.client.get(url.clone()).headers(headers), url, &place, errand)
        };

        let slot = self.authorizations.slot(upstream, repository);
        let authorization = self.authorization(&slot, question).await?;
        let mut answer = send(authorization.as_ref()).await?;
        let may_pass = match answer.status() {
            StatusCode::UNAUTHORIZED => true,
            // What was granted earlier may have ended since.
            StatusCode::FORBIDDEN => authorization.is_some(),
            _ => return Ok(answer),
        };
        let mut detail = answer.words(self.timing.stall).await;
        if may_pass {
            let challenges = auth::challenges(answer.headers());
            drop(answer); // Nobody waits for a token while holding a permit.
            let refused = authorization.as_ref();
            let other = self.reauthorization(&slot, question, challenges, refused).await?;
            if let Some(other) = other {
                let mut answer = send(Some(&other)).await?;
                if !matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Ok(answer);
                }
                detail = answer.words(self.timing.stall).await;
            }
        }
        Err(upstream.unauthorized(repository, &detail, &slot.known().await).into())
    }

    /// Sends a request when its host has a permit for it, and tells the host's limit how it went.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        place: &str,
        errand: &Errand,
    ) -> Result<Answer, Failure> {
        let asked = Instant::now();
        let permit = self.limits.acquire(&message::authority(url), errand.urgency()).await;
        errand.has_queued(asked.elapsed());
        let answer = self.send_unlimited(request, url, place, errand).await?;
        let pause = retry::retry_after(answer.headers(), Timestamp::now());
        // An opener may obey for longer; the others are to try again in time for their readers.
        let pause = pause.map(|pause| pause.min(self.timing.retry_after_max));
        match answer.status() {
            status if status.is_success() || redirect::is_redirect(status) => permit.accepted(),
            StatusCode::TOO_MANY_REQUESTS => permit.refused(pause),
            StatusCode::SERVICE_UNAVAILABLE if pause.is_some() => permit.refused(pause),
            _ => {}
        }
        Ok(Answer { permit: Some(permit), ..answer })
    }

    /// Sends a request without a permit.
    pub(super) async fn send_unlimited(
        &self,
        request: RequestBuilder,
        url: &Url,
        place: &str,
        errand: &Errand,
    ) -> Result<Answer, Failure> {
        let host = message::authority(url);
        let sent = self.first_answer(request, errand);
        let is_patient = errand.is_patient();
        let sent = if is_patient { self.silences.watch(&host, sent).await } else { sent.await };
        let place = place.to_owned();
        match sent {
            Ok(response) => {
                let silences = Arc::clone(&self.silences);
                let patience = Patience { limit: self.timing.open, silences, host };
                let patience = is_patient.then_some(patience);
                Ok(Answer { response, place, permit: None, patience })
            }
            Err(Unanswered::Failed(error)) => {
                Err(self.unreachable(&Cause::of(&error), url, &place))
            }
            Err(Unanswered::Silent(limit)) => {
                let mut detail = format!("no answer came within {} s", limit.as_secs_f32());
                if is_patient {
                    detail.push_str(", and --open-timeout allows no more");
                }
                Err(Failure::transient(SourceError::Unavailable { place, detail }))
            }
        }
    }

    /// Sends a request, and once more beside the first where a reader waits for long: the connection
    /// may be stuck, or the host about to answer, and nobody can tell which.
    ///
    /// ```text
    /// somebody patient:         sent ------------------------------------------> `open` is over
    /// a reader:                 sent --`connect` and `answer`--> sent again ---> `open` is over
    /// a reader, with mirrors:   sent --`connect` and `answer`--> the next endpoint is asked
    /// ```
    async fn first_answer(
        &self,
        request: RequestBuilder,
        errand: &Errand,
    ) -> Result<reqwest::Response, Unanswered> {
        let (short, long) = (self.timing.reader(), self.timing.open.max(self.timing.reader()));
        let again = request.try_clone();
        let started = tokio::time::Instant::now();
        let mut first = pin!(request.send());
        loop {
            let is_patient = errand.is_patient();
            let limit = if is_patient { self.timing.open } else { short };
            tokio::select! {
                biased;
                answer = &mut first => return answer.map_err(Unanswered::Failed),
                () = tokio::time::sleep_until(started + limit) => {
                    match again {
                        Some(again) if !is_patient && !errand.has_others() => {
                            let second = again.send();
                            return either(first, second, started + long, long).await;
                        }
                        _ => return Err(Unanswered::Silent(limit)),
                    }
                }
                () = errand.urgency().until_impatient(), if is_patient => {}
            }
        }
    }

    /// The failure of a request that got no answer.
    pub(super) fn unreachable(&self, cause: &Cause, url: &Url, place: &str) -> Failure {
        let mut detail = cause.words.clone();
        if !is_loopback(url) {
            match self.connections.proxy_for(url) {
                Some(proxy) => detail.push_str(&format!(" (the proxy is {proxy})")),
                None if cause.is_connect => detail.push_str(
                    "; where the internet is reached through a proxy, name it with --proxy or \
                     HTTPS_PROXY",
                ),
                None => {}
            }
        }
        let place = place.to_owned();
        match cause.kind {
            Kind::Passing if cause.is_connect => {
                Failure::Unreachable(SourceError::Unavailable { place, detail })
            }
            Kind::Passing => Failure::transient(SourceError::Unavailable { place, detail }),
            Kind::Nameless => Failure::Final(SourceError::Unavailable { place, detail }),
            Kind::Untrusted => Failure::Final(SourceError::Untrusted { place, detail }),
            Kind::UnknownAuthority => {
                detail.push_str(match self.tls.ca_files.is_empty() {
                    true => {
                        ": pass the certificate of that authority, or the registry's own, with \
                         --ca-file, or --tls-verify=false to trust anyone"
                    }
                    false => {
                        ", nor is it in the files of --ca-file: pass the certificate of that \
                         authority, or --tls-verify=false to trust anyone"
                    }
                });
                Failure::Final(SourceError::Untrusted { place, detail })
            }
            Kind::WantsCertificate => Failure::Final(SourceError::Unauthorized {
                place,
                detail,
                hint: "pass a client certificate with --cert and --key".to_owned(),
            }),
        }
    }
}
