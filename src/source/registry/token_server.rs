//! Requests a token, and follows redirects of the token server.
//!
//! ```text
//! GET  realm?scope=…&service=…   with a password, or without one
//! POST realm                     with an identity token, in a form
//! ```
//!
//! A redirect within a host keeps the password or the identity token. Another host gets neither: the request with a
//! password becomes an anonymous one, and the request with an identity token fails.

use bytes::Bytes;
use http::{StatusCode, header};
use reqwest::RequestBuilder;
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::auth;
use super::exchange::Request;
use super::message;
use super::redirect;
use super::retry::Failure;
use super::scopes::Scopes;
use super::token::{Server, Token};
use super::upstream::Upstream;
use crate::source::SourceError;
use crate::source::credentials::{Credential, Known};

/// The largest answer of a token server. 1 MiB: tokens are a few KiB.
const TOKEN_LIMIT_BYTES: u64 = 1024 * 1024;

/// The name of kitfs for OAuth2 token servers.
const CLIENT_ID: &str = "kitfs";

impl RegistryClient {
    /// Gets a token for `scopes` with the credential in `known`.
    pub(super) async fn token(
        &self,
        server: &Server,
        scopes: &Scopes,
        known: &Known,
        request: &Request<'_>,
    ) -> Result<Token, SourceError> {
        let Request { upstream, repository, .. } = *request;
        let place = format!("{}, the token server of {}", server.name(), upstream.name);
        let scopes = scopes.written();
        let errand = TokenErrand { server, scopes, known, upstream, repository, request };
        let host = message::authority(&server.realm);
        let is_secret = known.credential != Credential::Anonymous;
        if is_secret && !self.rules.may_have_credentials(&upstream.account, &host) {
            return Err(SourceError::Configuration {
                what: place,
                detail: format!(
                    "gets no credentials: `trust` of [registry.\"{}\"] does not name {host}. Add it there, if \
                     it is the right one",
                    upstream.account
                ),
            });
        }
        let body = self
            .repeat(self.timing, request.errand, &host, || self.ask_token_server(&errand, &place))
            .await?;
        Token::decode(&body).map_err(|detail| SourceError::Protocol { place, detail })
    }

    /// Sends one request, and follows all redirects.
    async fn ask_token_server(
        &self,
        errand: &TokenErrand<'_>,
        place: &str,
    ) -> Result<Bytes, Failure> {
        let mut at = errand.start();
        let mut is_at_home = true;
        for _ in 0..=redirect::HOP_LIMIT {
            let client = errand.upstream.client_for(&at, self);
            let request = errand.request(client, &at, is_at_home);
            let answer = self.send_unlimited(request, &at, place, errand.request.errand).await?;
            if !redirect::is_redirect(answer.status()) {
                return self.token_of(errand, answer).await;
            }
            let next = answer.next_hop(&at, &errand.upstream.base)?;
            is_at_home &= redirect::is_same_host(&at, &next);
            if !is_at_home && matches!(errand.known.credential, Credential::IdentityToken(_)) {
                let host = message::origin(&next);
                let detail = format!(
                    "it redirects to {host}, and another host must not see the identity token: log \
                     in with a password"
                );
                return Err(SourceError::Protocol { place: place.to_owned(), detail }.into());
            }
            at = next;
        }
        let detail = format!("more than {} redirects", redirect::HOP_LIMIT);
        Err(SourceError::Protocol { place: place.to_owned(), detail }.into())
    }

    /// The body of an answer with a token.
    async fn token_of(
        &self,
        errand: &TokenErrand<'_>,
        mut answer: Answer,
    ) -> Result<Bytes, Failure> {
        let stall = self.timing.stall;
        let TokenErrand { upstream, repository, known, .. } = *errand;
        let status = answer.status();
        let is_anonymous = known.credential == Credential::Anonymous;
        match status {
            StatusCode::OK => answer.document("the token", TOKEN_LIMIT_BYTES, stall).await,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                let detail = format!("its token server says {}", answer.words(stall).await);
                Err(upstream.unauthorized(repository, &detail, known, errand.request.rights).into())
            }
            // Some servers answer 404 to requests without a password.
            StatusCode::NOT_FOUND if is_anonymous => {
                let detail = format!("its token server says {}", answer.words(stall).await);
                Err(upstream.unauthorized(repository, &detail, known, errand.request.rights).into())
            }
            _ => Err(answer.refusal("the token", "check the registry's name", stall).await),
        }
    }
}

/// A request for a token, and where it comes from.
struct TokenErrand<'a> {
    server: &'a Server,
    scopes: Vec<String>,
    known: &'a Known,
    upstream: &'a Upstream,
    repository: &'a str,
    request: &'a Request<'a>,
}

impl TokenErrand<'_> {
    /// The URL of the first request.
    fn start(&self) -> Url {
        let mut url = self.server.realm.clone();
        if !matches!(self.known.credential, Credential::IdentityToken(_)) {
            let mut query = url.query_pairs_mut();
            self.scopes.iter().for_each(|scope| _ = query.append_pair("scope", scope));
            self.server
                .service
                .iter()
                .for_each(|service| _ = query.append_pair("service", service));
        }
        url
    }

    /// The request to `at`, with the secret if `at` is at the server's own host.
    fn request(&self, client: &reqwest::Client, at: &Url, is_at_home: bool) -> RequestBuilder {
        match &self.known.credential {
            Credential::IdentityToken(token) if is_at_home => {
                let mut form = vec![
                    ("grant_type", "refresh_token".to_owned()),
                    ("refresh_token", token.clone()),
                    ("client_id", CLIENT_ID.to_owned()),
                    ("scope", self.scopes.join(" ")),
                ];
                form.extend(self.server.service.clone().map(|service| ("service", service)));
                client.post(at.clone()).form(&form)
            }
            Credential::Basic { username, password } if is_at_home => {
                let password = auth::basic(username, password);
                client.get(at.clone()).header(header::AUTHORIZATION, password)
            }
            _ => client.get(at.clone()),
        }
    }
}
