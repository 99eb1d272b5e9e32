//! One question to a registry, and the way to its answer: slot, authorization, redirects.
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

/// A URL of an upstream to ask for, with the headers that every host on the way gets.
pub(super) struct Question<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) repository: &'a str,
    pub(super) url: &'a Url,
    /// `Accept`, `Range`, and what describes the payload; no header that other hosts must not see.
    pub(super) headers: &'a HeaderMap,
    pub(super) errand: &'a Errand,
    pub(super) verb: Verb,
    pub(super) rights: Rights<'a>,
    pub(super) payload: Payload<'a>,
}

/// The method of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
    Post,
    Patch,
    Put,
    Delete,
}

/// The body of a question. It can be sent again, after a challenge or a redirect.
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

    /// Whether the question changes something.
    fn changes(self) -> bool {
        !matches!(self, Self::Get | Self::Head)
    }
}

impl Question<'_> {
    /// A request to the question's URL, with these headers.
    fn request(&self, client: &reqwest::Client, headers: HeaderMap) -> RequestBuilder {
        let request = client.request(self.verb.method(), self.url.clone()).headers(headers);
        match self.payload {
            // Some servers want the length of no body, too.
            Payload::None if self.verb.changes() => request.header(header::CONTENT_LENGTH, 0),
            Payload::None => request,
            Payload::Bytes(bytes) => request.body(bytes.clone()),
            Payload::Content(content, range) => request
                .header(header::CONTENT_LENGTH, range.end - range.start)
                .body(reqwest::Body::wrap_stream(content.read(range.clone()))),
        }
    }
}

impl RegistryClient {
    /// Asks the registry, and follows where it redirects to. `led_to` is told of each target
    /// before it is asked.
    pub(super) async fn ask(
        &self,
        question: &Question<'_>,
        mut led_to: impl FnMut(&Url),
    ) -> Result<Answer, Failure> {
        let mut answer = self.follow(question).await?;
        let mut at = question.url.clone();
        for _ in 0..redirect::HOP_LIMIT {
            if !redirect::is_redirect(answer.status()) {
                return Ok(answer);
            }
            if answer.status() == StatusCode::SEE_OTHER && question.verb.changes() {
                let place = question.upstream.place(question.repository);
                let detail =
                    "it answers an upload with a redirect to another page (303)".to_owned();
                return Err(SourceError::Protocol { place, detail }.into());
            }
            at = answer.next_hop(&at, &question.upstream.base)?;
            // Gives back the slot: a request holds none while it waits for one.
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

    /// Asks a URL that the question's upstream named, once. Another registry gets its own credentials, but not
    /// for a change: a registry could have the user overwrite a kit of another one.
    pub(super) async fn follow(&self, question: &Question<'_>) -> Result<Answer, Failure> {
        let Question { upstream, url, headers, errand, .. } = *question;
        if url.origin() == upstream.base.origin() {
            return self.ask_registry(question).await;
        }
        let elsewhere = redirect::repository_in(url).filter(|_| !question.verb.changes());
        if let Some(repository) = elsewhere {
            let other = upstream.redirected_to(url, self);
            let (upstream, repository) = (&other, repository.as_str());
            return self.ask_registry(&Question { upstream, repository, ..*question }).await;
        }
        let place = format!("{}, to which {} redirects,", message::origin(url), upstream.name);
        let request = question.request(upstream.client_for(url, self), headers.clone());
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
            self.send(question.request(&upstream.client, headers), url, &place, errand)
        };

        let access = self.authorizations.access(upstream, repository, question.rights);
        let authorization = self.authorization(&access, question).await?;
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
            // Gives back the slot: a request holds none while it waits for a token.
            let refused = authorization.as_ref();
            let other = self.reauthorization(&access, question, challenges, refused).await?;
            if let Some(other) = other {
                let mut answer = send(Some(&other)).await?;
                if !matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                    return Ok(answer);
                }
                detail = answer.words(self.timing.stall).await;
            }
        }
        let known = self.known_of(&access, question).await?;
        Err(upstream.unauthorized(repository, &detail, &known, question.rights).into())
    }
}
