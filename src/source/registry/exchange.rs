//! One request to a registry, and the steps to its answer: slot, authorization, redirects.
//!
//! ```text
//! ask --> registry --401, 403--> token server --> registry
//!            '--3xx--> storage host (Range kept, no Authorization) --3xx--> ... at most 5 hops
//!            '--3xx--> another registry, as above, with its own credentials
//! ```

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::RequestBuilder;
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::auth::{self, Authorization};
use super::errand::Errand;
use super::message;
use super::redirect;
use super::retry::Failure;
use super::scopes::Rights;
use super::upstream::Upstream;
use crate::oci::BlobOffset;
use crate::source::SourceError;
use crate::source::sending::Content;

/// A request to an upstream. Every host that a redirect leads to gets the headers.
pub(super) struct Request<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) repository: &'a str,
    pub(super) url: &'a Url,
    /// `Accept`, `Range`, and headers that describe the payload. Other hosts may see all of them.
    pub(super) headers: &'a HeaderMap,
    pub(super) errand: &'a Errand,
    pub(super) verb: Verb,
    pub(super) rights: Rights<'a>,
    pub(super) payload: Payload<'a>,
}

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
    Post,
    Patch,
    Put,
    Delete,
}

/// The body of a request. It can be sent again after a challenge or a redirect.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a Bytes),
    /// A part of a blob.
    Content(&'a Arc<Content>, &'a Range<BlobOffset>),
}

impl Verb {
    fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Post => Method::POST,
            Self::Patch => Method::PATCH,
            Self::Put => Method::PUT,
            Self::Delete => Method::DELETE,
        }
    }

    /// Whether the method changes something.
    fn changes(self) -> bool {
        !matches!(self, Self::Get | Self::Head)
    }
}

impl Request<'_> {
    /// The HTTP request with these headers.
    fn builder(&self, client: &reqwest::Client, headers: HeaderMap) -> RequestBuilder {
        let builder = client.request(self.verb.method(), self.url.clone()).headers(headers);
        match self.payload {
            // Some servers want a length even without a body.
            Payload::None if self.verb.changes() => builder.header(header::CONTENT_LENGTH, 0),
            Payload::None => builder,
            Payload::Bytes(bytes) => builder.body(bytes.clone()),
            Payload::Content(content, range) => builder
                .header(header::CONTENT_LENGTH, range.end - range.start)
                .body(reqwest::Body::wrap_stream(content.read(range.clone()))),
        }
    }
}

impl RegistryClient {
    /// Sends the request to the registry, and follows redirects. Calls `led_to` with each target before the request
    /// to it.
    pub(super) async fn ask(
        &self,
        request: &Request<'_>,
        mut led_to: impl FnMut(&Url),
    ) -> Result<Answer, Failure> {
        let mut answer = self.follow(request).await?;
        let mut at = request.url.clone();
        for _ in 0..redirect::HOP_LIMIT {
            if !redirect::is_redirect(answer.status()) {
                return Ok(answer);
            }
            if answer.status() == StatusCode::SEE_OTHER && request.verb.changes() {
                let place = request.upstream.place(request.repository);
                let detail =
                    "it answers an upload with a redirect to another page (303)".to_owned();
                return Err(SourceError::Protocol { place, detail }.into());
            }
            at = answer.next_hop(&at, &request.upstream.base)?;
            // The drop returns the slot, because a request must hold no slot while it waits for one.
            led_to(&at);
            answer = self.follow(&Request { url: &at, ..*request }).await?;
        }
        if redirect::is_redirect(answer.status()) {
            let place = request.upstream.place(request.repository);
            let detail = format!("more than {} redirects", redirect::HOP_LIMIT);
            return Err(SourceError::Protocol { place, detail }.into());
        }
        Ok(answer)
    }

    /// Sends the request once, to a URL that the upstream named. Another registry gets its own credentials, but not
    /// for a change. Else a registry could make the user overwrite a kit of another registry.
    pub(super) async fn follow(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let Request { upstream, url, headers, errand, .. } = *request;
        if url.origin() == upstream.base.origin() {
            return self.ask_registry(request).await;
        }
        let elsewhere = redirect::repository_in(url).filter(|_| !request.verb.changes());
        if let Some(repository) = elsewhere {
            let other = upstream.redirected_to(url, self);
            let (upstream, repository) = (&other, repository.as_str());
            return self.ask_registry(&Request { upstream, repository, ..*request }).await;
        }
        let place = format!("{}, to which {} redirects,", message::origin(url), upstream.name);
        let builder = request.builder(upstream.client_for(url, self), headers.clone());
        self.send(builder, url, &place, errand).await
    }

    /// Sends the request to a registry, with an authorization if it wants one. A refusal is a failure.
    async fn ask_registry(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let Request { upstream, repository, url, errand, .. } = *request;
        let place = upstream.place(repository);
        let send = |authorization: Option<&Authorization>| {
            let mut headers = request.headers.clone();
            headers.extend(upstream.headers.clone());
            if let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.header.clone());
            }
            self.send(request.builder(&upstream.client, headers), url, &place, errand)
        };

        let access = self.authorizations.access(upstream, repository, request.rights);
        let authorization = self.authorization(&access, request).await?;
        let mut answer = send(authorization.as_ref()).await?;
        let may_pass = match answer.status() {
            StatusCode::UNAUTHORIZED => true,
            // An authorization that was granted earlier may have ended since.
            StatusCode::FORBIDDEN => authorization.is_some(),
            _ => return Ok(answer),
        };
        let mut detail = answer.words(self.timing.stall).await;
        if may_pass {
            let challenges = auth::challenges(answer.headers());
            // The drop returns the slot, because a request must hold no slot while it waits for a token.
            let refused = authorization.as_ref();
            let other = self.reauthorization(&access, request, challenges, refused).await?;
            if let Some(other) = other {
                let mut answer = send(Some(&other)).await?;
                if !matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Ok(answer);
                }
                detail = answer.words(self.timing.stall).await;
            }
        }
        let known = self.known_of(&access, request).await?;
        Err(upstream.unauthorized(repository, &detail, &known, request.rights).into())
    }
}
