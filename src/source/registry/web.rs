//! Requests to hosts that are no registries (S3 stores): over the same connections, with the same
//! proxies, authorities, limits, time-outs and repetitions.
//!
//! Redirects are not followed, and nothing is added to a request: the caller signs it.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use url::Url;

use super::RegistryClient;
use super::answer::Answer;
use super::errand::Errand;
use super::message;
use super::range::{Asked, Served};
use super::retry::{self, Failure};
use super::timing::Timing;
use crate::oci::BlobOffset;
use crate::source::{SourceError, Urgency};

/// A request as it is sent.
pub(in crate::source) struct Request {
    pub(in crate::source) method: Method,
    pub(in crate::source) url: Url,
    pub(in crate::source) headers: HeaderMap,
}

/// The head of an answer, and its body yet to be read.
pub(in crate::source) struct Response {
    answer: Answer,
    stall: Duration,
}

/// The end of an attempt without success.
pub(in crate::source) struct Stop(Failure);

/// The purpose of a request: its urgency, and how long to try.
pub(in crate::source) struct Purpose<'a> {
    client: &'a RegistryClient,
    errand: Errand,
    timing: Timing,
}

/// The value of a `Range` header for `range`, which is not empty, of `size` bytes; `None` for all bytes.
pub(in crate::source) fn range_header(range: &Range<BlobOffset>, size: u64) -> Option<String> {
    Asked { range: range.clone(), size }.header()
}

impl<'a> Purpose<'a> {
    /// For bytes that a reader waits for, or for readahead.
    pub(in crate::source) fn of_reader(client: &'a RegistryClient, urgency: Urgency) -> Self {
        Self { client, errand: Errand::new(urgency), timing: client.timing }
    }

    /// For facts that a command needs before it can go on.
    pub(in crate::source) fn of_command(client: &'a RegistryClient) -> Self {
        let timing = client.timing.of_a_command();
        Self { client, errand: Errand::opening(client.user), timing }
    }

    /// Repeats `attempt`, which sends requests to `host`, while its failures may pass.
    pub(in crate::source) async fn repeat<T, Attempt, Attempted>(
        &self,
        host: &str,
        mut attempt: Attempt,
    ) -> Result<T, SourceError>
    where
        Attempt: FnMut() -> Attempted,
        Attempted: Future<Output = Result<T, Stop>>,
    {
        let attempt = || {
            let attempted = attempt();
            async { attempted.await.map_err(|Stop(failure)| failure) }
        };
        self.client.repeat(self.timing, &self.errand, host, attempt).await
    }

    /// Sends a request; `place` names its host in messages.
    pub(in crate::source) async fn send(
        &self,
        request: Request,
        place: &str,
    ) -> Result<Response, Stop> {
        let Request { method, url, headers } = request;
        let builder = self.client.connections.plain().request(method, url.clone()).headers(headers);
        let answer = self.client.send(builder, &url, place, &self.errand).await.map_err(Stop)?;
        Ok(Response { answer, stall: self.timing.stall })
    }
}

impl Response {
    pub(in crate::source) fn status(&self) -> StatusCode {
        self.answer.status()
    }

    /// A header as text; one with other bytes than ASCII counts as missing.
    pub(in crate::source) fn header(&self, name: &str) -> Option<&str> {
        self.answer.headers().get(name)?.to_str().ok()
    }

    /// The next piece of the body, `None` at its end.
    pub(in crate::source) async fn piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        self.answer.piece(self.stall).await
    }

    /// All of a body of at most `limit_bytes`; empty for a body that is longer or breaks off.
    pub(in crate::source) async fn short_body(&mut self, limit_bytes: u64) -> Bytes {
        self.answer.read(limit_bytes, self.stall).await.unwrap_or_default()
    }

    /// The bytes in the body of an answer to a request for `range` of `size` bytes.
    ///
    /// # Errors
    /// The message, where the head contradicts the request or itself.
    pub(in crate::source) fn served(
        &self,
        range: &Range<BlobOffset>,
        size: u64,
    ) -> Result<Range<BlobOffset>, String> {
        let asked = Asked { range: range.clone(), size };
        match asked.served(self.answer.status(), self.answer.headers())? {
            Served::Bytes(range) => Ok(range),
            Served::Unclear => Err("a body that may be the part or the whole".to_owned()),
        }
    }

    /// The failure of this answer. The status decides whether it may pass.
    pub(in crate::source) fn stop(&self, error: SourceError) -> Stop {
        match retry::is_transient(self.status()) {
            true => {
                let retry_after = retry::retry_after(self.answer.headers(), Timestamp::now());
                Stop(Failure::Transient { error, retry_after })
            }
            false => Stop(Failure::Final(error)),
        }
    }
}

impl Stop {
    pub(in crate::source) fn error(&self) -> &SourceError {
        match &self.0 {
            Failure::Transient { error, .. } | Failure::Unreachable(error) => error,
            Failure::Final(error) => error,
        }
    }
}

impl From<SourceError> for Stop {
    /// A failure that does not pass by itself.
    fn from(error: SourceError) -> Self {
        Self(Failure::Final(error))
    }
}

/// `HOST[:PORT]` of a URL, the key of limits.
pub(in crate::source) fn authority(url: &Url) -> String {
    message::authority(url)
}
