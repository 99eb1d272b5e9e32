//! An answer: its head, its body yet to be read, and its meaning where it is not the content.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use url::Url;

use super::encoding;
use super::limits::Slot;
use super::message::{self, Cause};
use super::redirect;
use super::retry::{self, Failure};
use super::silences::Silences;
use crate::source::SourceError;

/// The most of an error's body that is read for its words.
const ERROR_LIMIT_BYTES: u64 = 16 * 1024;

/// How long to wait for the words of an error. 5 s: the next step after a refusal must not depend on
/// them.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);

/// The longest that a document may take. 5 min: the largest manifest, 4 MiB, at 14 KB/s; a body that
/// comes byte by byte must not hold up a command for ever.
const DOCUMENT_TIME: Duration = Duration::from_secs(300);

/// The head of an answer, and its body yet to be read.
pub(super) struct Answer {
    response: reqwest::Response,
    /// The host, as messages name it.
    place: String,
    /// Held until the body was read or dropped.
    slot: Option<Slot>,
    /// For the first byte of the body, where the request is patient.
    patience: Option<Patience>,
}

/// How long the first byte of a body is waited for, and the table that the host is entered in.
pub(super) struct Patience {
    pub(super) limit: Duration,
    pub(super) silences: Arc<Silences>,
    pub(super) host: String,
}

impl Answer {
    /// An answer of the host `place`, without a slot.
    pub(super) fn new(
        response: reqwest::Response,
        place: &str,
        patience: Option<Patience>,
    ) -> Self {
        Self { response, place: place.to_owned(), slot: None, patience }
    }

    /// The same, which gives `slot` back when its body was read or dropped.
    pub(super) fn holding(self, slot: Slot) -> Self {
        Self { slot: Some(slot), ..self }
    }

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

    /// The next piece of the body, `None` at its end. Waits for each piece as long as `stall`. A patient
    /// request waits longer for the first: some caches send a head and then fetch.
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
                self.slot.iter().for_each(|slot| slot.received(piece.len()));
                return Ok(Some(piece));
            }
            Ok(Ok(None)) => {
                self.slot = None;
                return Ok(None);
            }
            Ok(Err(error)) => {
                format!("the transfer broke off ({})", Cause::of(&error.without_url()).words)
            }
            Err(_) => format!("the transfer stalled: no byte came within {stall:?}"),
        };
        Err(SourceError::Unavailable { place: self.place.clone(), detail })
    }

    /// Reads a body of at most `limit` bytes to its end.
    pub(super) async fn read(&mut self, limit: u64, stall: Duration) -> Result<Bytes, Failure> {
        let read = tokio::time::timeout(DOCUMENT_TIME.max(stall), self.read_slowly(limit, stall));
        match read.await {
            Ok(read) => read,
            Err(_) => {
                let detail = format!("the transfer took more than {} s", DOCUMENT_TIME.as_secs());
                let place = self.place.clone();
                Err(Failure::transient(SourceError::Unavailable { place, detail }))
            }
        }
    }

    async fn read_slowly(&mut self, limit: u64, stall: Duration) -> Result<Bytes, Failure> {
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

    /// Reads a JSON document of at most `limit` bytes; `what` names it in messages.
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

    /// The status, and the message in the body.
    pub(super) async fn words(&mut self, stall: Duration) -> String {
        let status = self.status();
        self.patience = None;
        let body = self.read_slowly(ERROR_LIMIT_BYTES, stall);
        let body = tokio::time::timeout(WORDS_PATIENCE, body).await.ok().and_then(Result::ok);
        match body.and_then(|body| message::registry_words(&body)) {
            Some(words) => format!("{status}: {words}"),
            None => status.to_string(),
        }
    }

    /// The failure of a request for `what` that got this answer; `hint` is the advice for a 404. A
    /// registry's own 401 and 403 do not come here.
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
