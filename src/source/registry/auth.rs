//! What to write into the `Authorization` header of a repository's requests.
//!
//! ```text
//!             401 + challenge               time to renew, or 401
//! unknown --------------------> granted ----------------------------> renewed, once
//!                                                                        '--401--> Unauthorized
//! ```
//!
//! There is one slot for each repository at each upstream. Whoever needs an authorization locks its
//! slot while asking for one, so any number of requests at once make one token request, and all
//! that waited share its failure too. Slots are not keyed by credential: a client has one store,
//! and it is read anew for each token, so that a login is noticed with the next renewal.
//!
//! Only a registry's own answer is listened to. Its challenge decides where credentials go; those of
//! hosts that it redirects to are ignored.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use lru::LruCache;
use parking_lot::Mutex;

use super::RegistryClient;
use super::challenge::Challenge;
use super::errand::Errand;
use super::message;
use super::retry::{self, Failure};
use super::token::{self, Question};
use super::upstream::Upstream;
use crate::source::SourceError;
use crate::source::credentials::Credential;

/// Repositories whose authorizations are kept: 1,024 tokens of 1-4 KiB.
const SLOTS: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// The largest answer of a token server. 1 MiB: tokens are a few KiB.
const TOKEN_LIMIT_BYTES: u64 = 1024 * 1024;

/// What kitfs calls itself to OAuth2 token servers.
const CLIENT_ID: &str = "kitfs";

/// A value of the `Authorization` header.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    renew_at: Option<Instant>,
}

/// The authorization of one repository at one upstream.
#[derive(Default)]
pub(super) struct Slot {
    state: tokio::sync::Mutex<State>,
    /// Counts the attempts to get an authorization, to tell who waited for one from who came later.
    attempts: AtomicU64,
}

#[derive(Default)]
struct State {
    challenges: Vec<Challenge>,
    granted: Option<Authorization>,
    failure: Option<SourceError>,
}

/// The slots of all repositories.
pub(super) struct Authorizations {
    slots: Mutex<LruCache<String, Arc<Slot>>>,
}

impl Authorizations {
    pub(super) fn new() -> Self {
        Self { slots: Mutex::new(LruCache::new(SLOTS)) }
    }

    pub(super) fn slot(&self, upstream: &Upstream, repository: &str) -> Arc<Slot> {
        let key = format!("{} {repository}", upstream.base);
        Arc::clone(self.slots.lock().get_or_insert(key, Arc::default))
    }
}

/// The challenges of an answer, over all its `WWW-Authenticate` headers.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(header::WWW_AUTHENTICATE).iter();
    texts.filter_map(|value| value.to_str().ok()).flat_map(Challenge::parse).collect()
}

impl RegistryClient {
    /// The authorization to start with: `None` until a challenge has come, renewed when it is
    /// time.
    pub(super) async fn authorization(
        &self,
        slot: &Slot,
        upstream: &Upstream,
        repository: &str,
    ) -> Result<Option<Authorization>, SourceError> {
        let before = slot.attempts.load(Ordering::Acquire);
        let mut state = slot.state.lock().await;
        match &state.granted {
            None => Ok(None),
            Some(granted) if granted.renew_at.is_none_or(|at| Instant::now() < at) => {
                Ok(Some(granted.clone()))
            }
            Some(_) => {
                let fresh = self.grant(slot, &mut state, before, upstream, repository).await?;
                Ok(Some(fresh))
            }
        }
    }

    /// Another authorization than `refused`, which a request that has just been answered with
    /// `challenges` carried.
    pub(super) async fn reauthorization(
        &self,
        slot: &Slot,
        upstream: &Upstream,
        repository: &str,
        challenges: Vec<Challenge>,
        refused: Option<&Authorization>,
    ) -> Result<Authorization, SourceError> {
        let before = slot.attempts.load(Ordering::Acquire);
        let mut state = slot.state.lock().await;
        if let Some(granted) = &state.granted
            && refused.is_none_or(|refused| refused.header != granted.header)
        {
            return Ok(granted.clone());
        }
        state.challenges = challenges;
        let granted = self.grant(slot, &mut state, before, upstream, repository).await?;
        if refused.is_some_and(|refused| refused.header == granted.header) {
            state.granted = None;
            return Err(upstream.unauthorized(repository, "401 Unauthorized", true));
        }
        Ok(granted)
    }

    /// Gets an authorization for the challenges of a slot, whose lock is held.
    async fn grant(
        &self,
        slot: &Slot,
        state: &mut State,
        attempts_before: u64,
        upstream: &Upstream,
        repository: &str,
    ) -> Result<Authorization, SourceError> {
        if slot.attempts.load(Ordering::Acquire) != attempts_before
            && let Some(failure) = &state.failure
        {
            return Err(failure.clone());
        }
        let result = self.answer_challenges(&state.challenges, upstream, repository).await;
        slot.attempts.fetch_add(1, Ordering::Release);
        state.granted = result.as_ref().ok().cloned();
        state.failure = result.as_ref().err().cloned();
        result
    }

    async fn answer_challenges(
        &self,
        challenges: &[Challenge],
        upstream: &Upstream,
        repository: &str,
    ) -> Result<Authorization, SourceError> {
        let find = |scheme| challenges.iter().find(|one| one.scheme == scheme);
        let credential = self.credentials.find(&upstream.account).await?;
        if let Some(bearer) = find("bearer") {
            return self.bearer(bearer, &credential, upstream, repository).await;
        }
        match (find("basic"), &credential) {
            (Some(_), Credential::Basic { username, password }) => {
                Ok(Authorization { header: basic(username, password), renew_at: None })
            }
            (Some(_), Credential::Anonymous) => {
                Err(upstream.unauthorized(repository, "401 Unauthorized", false))
            }
            (Some(_), Credential::IdentityToken(_) | Credential::RegistryToken(_)) => {
                let detail = "it wants a user and a password, and only a token is known";
                Err(upstream.unauthorized(repository, detail, false))
            }
            (None, _) => {
                let schemes: Vec<_> = challenges.iter().map(|one| one.scheme.as_str()).collect();
                let detail = match schemes.as_slice() {
                    [] => "401 Unauthorized, without saying how to log in".to_owned(),
                    some => format!(
                        "it wants {}, and kitfs speaks Basic and Bearer",
                        message::quoted(&some.join(" or "))
                    ),
                };
                Err(upstream.unauthorized(repository, &detail, true))
            }
        }
    }

    async fn bearer(
        &self,
        challenge: &Challenge,
        credential: &Credential,
        upstream: &Upstream,
        repository: &str,
    ) -> Result<Authorization, SourceError> {
        if let Credential::RegistryToken(token) = credential {
            let header = token::bearer(token).ok_or_else(|| SourceError::Configuration {
                what: format!("the registry token of {}", upstream.account),
                detail: format!(
                    "cannot be sent in a header: log in again with `kit login {}`",
                    upstream.account
                ),
            })?;
            return Ok(Authorization { header, renew_at: None });
        }
        let place = upstream.place(repository);
        let question = Question::new(challenge, &upstream.base, repository)
            .map_err(|detail| SourceError::Protocol { place, detail })?;
        let started = Instant::now();
        let body = retry::with_retries(&self.timing, &Errand::on_demand(), || {
            self.ask_token_server(&question, credential, upstream, repository)
        })
        .await?;
        let answer = token::Answer::decode(&body).map_err(|detail| SourceError::Protocol {
            place: message::without_secrets(&question.realm),
            detail,
        })?;
        Ok(Authorization { header: answer.header, renew_at: Some(started + answer.renew_after) })
    }

    /// One request to a token server: a GET, or a POST to exchange an identity token.
    async fn ask_token_server(
        &self,
        question: &Question,
        credential: &Credential,
        upstream: &Upstream,
        repository: &str,
    ) -> Result<Bytes, Failure> {
        let client = upstream.client_for(&question.realm, self);
        let request = match credential {
            Credential::IdentityToken(token) => {
                let mut form = vec![
                    ("grant_type", "refresh_token".to_owned()),
                    ("refresh_token", token.clone()),
                    ("client_id", CLIENT_ID.to_owned()),
                    ("scope", question.scopes.join(" ")),
                ];
                form.extend(question.service.clone().map(|service| ("service", service)));
                client.post(question.realm.clone()).form(&form)
            }
            Credential::Basic { .. } | Credential::Anonymous | Credential::RegistryToken(_) => {
                let mut query: Vec<_> =
                    question.scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
                query.extend(question.service.as_deref().map(|service| ("service", service)));
                let request = client.get(question.realm.clone()).query(&query);
                match credential {
                    Credential::Basic { username, password } => {
                        request.header(header::AUTHORIZATION, basic(username, password))
                    }
                    _ => request,
                }
            }
        };
        let server = message::without_secrets(&question.realm);
        let place = format!("{server}, the token server of {}", upstream.name);
        let mut answer = self.send_unlimited(request, &question.realm, &place).await?;
        match answer.status() {
            StatusCode::OK => {
                answer.document("the token", TOKEN_LIMIT_BYTES, self.timing.stall).await
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let detail =
                    format!("its token server says {}", answer.words(self.timing.stall).await);
                let was_known = !matches!(credential, Credential::Anonymous);
                Err(upstream.unauthorized(repository, &detail, was_known).into())
            }
            _ => Err(answer
                .refusal("the token", "check the registry's name", self.timing.stall)
                .await),
        }
    }
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}"))
        .expect("base64 has only characters that headers may have");
    header.set_sensitive(true);
    header
}
