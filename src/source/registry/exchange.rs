//! One question to a registry, and the way to its answer: slot, authorization, redirects.
//!
//! ```text
//! ask --> registry --401, 403--> token server --> registry
//!            '--3xx--> storage host (Range kept, no Authorization) --3xx--> ... at most 5 hops
//!            '--3xx--> another registry, as above, with its own credentials
//! ```

use http::{HeaderMap, StatusCode, header};
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::auth::{self, Authorization};
use super::errand::Errand;
use super::message;
use super::redirect;
use super::retry::Failure;
use super::upstream::Upstream;
use crate::source::SourceError;

/// A URL of an upstream to ask for, with the headers that every host on the way gets.
pub(super) struct Question<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) repository: &'a str,
    pub(super) url: &'a Url,
    /// `Accept` and `Range`; no header that other hosts must not see.
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

        let access = self.authorizations.access(upstream, repository);
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
        Err(upstream.unauthorized(repository, &detail, &access.known().await).into())
    }
}
