//! The `Authorization` header of a repository's requests.
//!
//! ```text
//!         401 + challenge           time to renew, or other credentials than before
//! unknown ---------------> granted ------------------------------------------------> granted anew
//!                                  401, or 403 to an earlier grant                    '--> refused
//! ```
//!
//! Each repository at each upstream has one [`Access`]. A request that needs an authorization locks it until there
//! is one. So any number of simultaneous requests make one token request, and share its failure too.
//!
//! No password and no token outlives the file that it came from. Before a granted authorization is used, the
//! credential files are checked for changes, and changed files are read again. So `kit login` and `kit logout`
//! count for a running daemon at once. A credential helper runs for each token. A password from a helper is kept
//! until the registry refuses it.
//!
//! A 403 usually means that the user may not read a repository. But some registries answer 403 to an expired
//! password (ECR, after 12 hours). So the credentials are read again once. If they give another authorization, the
//! request is repeated.
//!
//! A challenge counts only in a host's own answer, and gets the credentials of that host alone.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue, header};
use lru::LruCache;
use parking_lot::Mutex;

use super::RegistryClient;
use super::challenge::Challenge;
use super::exchange::Request;
use super::message;
use super::scopes::{Rights, Scopes};
use super::token;
use super::upstream::Upstream;
use crate::source::SourceError;
use crate::source::credentials::{Credential, Known};

/// Repositories whose authorizations are kept. 1,024: tokens of 1-4 KiB each.
const REPOSITORIES: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// A value of the `Authorization` header.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    /// The time at which it must be renewed.
    pub(super) renew_at: Option<Instant>,
}

/// The authorization of one repository at one upstream.
#[derive(Default)]
pub(super) struct Access {
    state: tokio::sync::Mutex<State>,
    /// Counts the attempts to get an authorization. With it, requests that waited for an attempt are told from
    /// later ones.
    attempts: AtomicU64,
}

#[derive(Default)]
struct State {
    challenges: Vec<Challenge>,
    scopes: Scopes,
    /// The credential of the last request for an authorization.
    known: Known,
    granted: Option<Authorization>,
    failure: Option<SourceError>,
}

/// The authorizations of all repositories.
pub(super) struct Authorizations {
    by_repository: Mutex<LruCache<String, Arc<Access>>>,
}

impl Authorizations {
    pub(super) fn new() -> Self {
        Self { by_repository: Mutex::new(LruCache::new(REPOSITORIES)) }
    }

    pub(super) fn access(
        &self,
        upstream: &Upstream,
        repository: &str,
        rights: Rights<'_>,
    ) -> Arc<Access> {
        let rights = match rights {
            Rights::Pull => String::new(),
            Rights::Push { from } => format!(" push {}", from.unwrap_or_default()),
        };
        let key = format!("{} {repository}{rights}", upstream.base);
        Arc::clone(self.by_repository.lock().get_or_insert(key, Arc::default))
    }
}

impl Access {
    /// The authorization that was granted last.
    pub(super) async fn granted(&self) -> Option<Authorization> {
        self.state.lock().await.granted.clone()
    }

    /// The credential of the last request for an authorization.
    pub(super) async fn known(&self) -> Known {
        self.state.lock().await.known.clone()
    }
}

/// The challenges of an answer, over all its `WWW-Authenticate` headers.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(header::WWW_AUTHENTICATE).iter();
    let texts = texts.map(|value| String::from_utf8_lossy(value.as_bytes()));
    texts.flat_map(|text| Challenge::parse(&text)).collect()
}

impl RegistryClient {
    /// The authorization to start with; `None` before the first challenge. Gets a new one when it must be renewed,
    /// or when the credentials have changed.
    pub(super) async fn authorization(
        &self,
        access: &Access,
        request: &Request<'_>,
    ) -> Result<Option<Authorization>, SourceError> {
        let before = access.attempts.load(Ordering::Acquire);
        let mut state = access.state.lock().await;
        let Some(granted) = state.granted.clone() else { return Ok(None) };
        let is_old = granted.renew_at.is_some_and(|at| Instant::now() >= at);
        if is_old || self.is_outdated(&mut state, request).await? {
            return self.grant(access, &mut state, before, request).await.map(Some);
        }
        Ok(Some(granted))
    }

    /// Whether the files have another credential than when the authorization was granted. An anonymous
    /// authorization depends on no file.
    async fn is_outdated(
        &self,
        state: &mut State,
        request: &Request<'_>,
    ) -> Result<bool, SourceError> {
        let is_anonymous = state.known.credential == Credential::Anonymous;
        if is_anonymous || !self.credentials.has_changed(&state.known).await? {
            return Ok(false);
        }
        let known = self.known(request).await?;
        let is_same = known.credential == state.known.credential;
        if is_same {
            state.known = known;
        }
        Ok(!is_same)
    }

    /// A new authorization in the place of `refused`, which the last request carried; `None` where the credentials
    /// give no other. `challenges` came with the refusal. Without any, the earlier challenges count.
    pub(super) async fn reauthorization(
        &self,
        access: &Access,
        request: &Request<'_>,
        challenges: Vec<Challenge>,
        refused: Option<&Authorization>,
    ) -> Result<Option<Authorization>, SourceError> {
        let before = access.attempts.load(Ordering::Acquire);
        let mut state = access.state.lock().await;
        let is_other = |granted: &Authorization| {
            refused.is_none_or(|refused| refused.header != granted.header)
        };
        if let Some(granted) = state.granted.clone().filter(is_other) {
            return Ok(Some(granted));
        }
        if !challenges.is_empty() || refused.is_none() {
            state.challenges = challenges;
        }
        let granted = self.grant(access, &mut state, before, request).await?;
        Ok(Some(granted).filter(is_other))
    }

    /// Gets an authorization for the challenges of `access`, whose lock is held.
    async fn grant(
        &self,
        access: &Access,
        state: &mut State,
        attempts_before: u64,
        request: &Request<'_>,
    ) -> Result<Authorization, SourceError> {
        if access.attempts.load(Ordering::Acquire) != attempts_before
            && let Some(failure) = &state.failure
        {
            return Err(failure.clone());
        }
        let result = self.answer_challenges(state, request).await;
        access.attempts.fetch_add(1, Ordering::Release);
        state.granted = result.as_ref().ok().cloned();
        state.failure = result.as_ref().err().cloned();
        result
    }

    async fn answer_challenges(
        &self,
        state: &mut State,
        request: &Request<'_>,
    ) -> Result<Authorization, SourceError> {
        let Request { upstream, repository, .. } = *request;
        state.known = self.known(request).await?;
        let State { challenges, scopes, known, .. } = state;
        let find = |scheme| challenges.iter().find(|one| one.scheme == scheme);
        // A Bearer challenge without a token server is no use, while a Basic one beside it may work.
        let leads = |bearer: &&Challenge| {
            bearer.parameter("realm").is_some_and(|realm| !realm.is_empty())
                || matches!(known.credential, Credential::RegistryToken(_))
                || find("basic").is_none()
        };
        let mut bearers = challenges.iter().filter(|one| one.scheme == "bearer");
        if let Some(bearer) = bearers.find(leads) {
            scopes.add(bearer.parameter("scope"), repository, request.rights);
            return self.bearer(bearer, scopes, known, request).await;
        }
        let refuse = |detail: &str, hint: String| {
            let (place, detail) = (upstream.place(repository), detail.to_owned());
            Err(SourceError::Unauthorized { place, detail, hint })
        };
        match (find("basic"), &known.credential) {
            (Some(_), Credential::Basic { username, password }) => {
                Ok(Authorization { header: basic(username, password), renew_at: None })
            }
            (Some(_), Credential::Anonymous) => {
                let detail = "it wants a user and a password";
                Err(upstream.unauthorized(repository, detail, known, request.rights))
            }
            (Some(_), Credential::IdentityToken(_) | Credential::RegistryToken(_)) => {
                let account = &upstream.account;
                let hint = format!("log in with these: `kit login {account}`");
                refuse("it wants a user and a password, and only a token is known", hint)
            }
            (None, _) => {
                let schemes: Vec<_> = challenges.iter().map(|one| one.scheme.as_str()).collect();
                let detail = match schemes.as_slice() {
                    [] => "401 Unauthorized, without saying how to log in".to_owned(),
                    some => {
                        let schemes = message::quoted(&some.join(" or "));
                        format!("it wants {schemes}, and kitfs speaks Basic and Bearer")
                    }
                };
                let hint = "no login helps here: check the address, and ask those who run the \
                            registry or the proxy before it";
                refuse(&detail, hint.to_owned())
            }
        }
    }

    /// The credential for the message of a refusal: the used one, or the one that could have been used.
    pub(super) async fn known_of(
        &self,
        access: &Access,
        request: &Request<'_>,
    ) -> Result<Known, SourceError> {
        let known = access.known().await;
        match known.looked_in.is_empty() && request.rights != Rights::Pull {
            true => self.known(request).await,
            false => Ok(known),
        }
    }

    /// Reads the credential of the requested host.
    async fn known(&self, request: &Request<'_>) -> Result<Known, SourceError> {
        self.credentials.find(&request.upstream.account, request.repository).await
    }

    async fn bearer(
        &self,
        challenge: &Challenge,
        scopes: &Scopes,
        known: &Known,
        request: &Request<'_>,
    ) -> Result<Authorization, SourceError> {
        let Request { upstream, repository, .. } = *request;
        if let Credential::RegistryToken(token) = &known.credential {
            let header = token::bearer(token).ok_or_else(|| SourceError::Configuration {
                what: format!("the registry token of {}", upstream.account),
                detail: format!(
                    "cannot be sent in a header: log in again with `kit login {}`",
                    upstream.account
                ),
            })?;
            return Ok(Authorization { header, renew_at: None });
        }
        let server = token::Server::new(challenge, &upstream.base).map_err(|detail| {
            SourceError::Protocol { place: upstream.place(repository), detail }
        })?;
        let started = Instant::now();
        let token = self.token(&server, scopes, known, request).await?;
        Ok(Authorization { header: token.header, renew_at: Some(started + token.renew_after) })
    }
}

/// The value of an `Authorization` header for a user and a password (RFC 7617).
pub(super) fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{username}:{password}"));
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}"))
        .expect("base64 has only characters that headers may have");
    header.set_sensitive(true);
    header
}
