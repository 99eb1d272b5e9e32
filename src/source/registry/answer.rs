//! An answer: its head, its unread body, and its meaning where it is not the content.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use url::Url;

use super::encoding;
use super::message::{self, Cause};
use super::redirect;
use super::retry::{self, Failure};
use super::silences::Silences;
use crate::process::running_time;
use crate::source::admission::Slot;
use crate::source::{SourceError, Urgency};

/// The most of an error's body that is read for its message.
const ERROR_LIMIT_BYTES: u64 = 16 * 1024;

/// The wait for the message of an error. 5 s: the next step after a refusal must not depend on it.
const WORDS_PATIENCE: Duration = Duration::from_secs(5);

/// The longest time for a document. 5 min: the largest manifest, 4 MiB, at 14 KB/s. A body that comes byte by byte
/// must not hold up a command for ever.
const DOCUMENT_TIME: Duration = Duration::from_secs(300);

/// The head of an answer, and its unread body.
pub(super) struct Answer {
    response: reqwest::Response,
    /// The host, as messages name it.
    place: String,
    /// Held until the body was read or dropped.
    slot: Option<Slot>,
    /// The patience with silences within the body, for a patient request.
    patience: Option<Patience>,
}

/// The patience with a body that falls silent. A pull-through cache may send a head, or half a body, and then fetch
/// the rest.
pub(super) struct Patience {
    /// The longest silence.
    pub(super) limit: Duration,
    /// Ends when a reader begins to wait.
    pub(super) urgency: Urgency,
    /// The table of silent hosts.
    pub(super) silences: Arc<Silences>,
    pub(super) host: String,
}

/// The length of a body's silence, and whether it used up the patience of an opener.
struct Silent {
    time: Duration,
    is_patience: bool,
}

impl Patience {
    /// Waits for a piece as long as `limit`. Once a reader begins to wait, it waits as long as `stall` from then
    /// on.
    async fn wait<T>(&self, stall: Duration, piece: impl Future<Output = T>) -> Result<T, Silent> {
        let mut piece = pin!(piece);
        let limit = self.limit.max(stall);
        let patiently = async {
            tokio::select! {
                biased;
                piece = &mut piece => Some(Ok(piece)),
                () = self.urgency.until_impatient() => None,
                () = running_time::sleep(limit) => {
                    Some(Err(Silent { time: limit, is_patience: true }))
                }
            }
        };
        match self.silences.watch(&self.host, patiently).await {
            Some(ended) => ended,
            None => impatiently(stall, piece).await,
        }
    }
}

async fn impatiently<T>(stall: Duration, piece: impl Future<Output = T>) -> Result<T, Silent> {
    let silent = |_| Silent { time: stall, is_patience: false };
    running_time::timeout(stall, piece).await.map_err(silent)
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

    /// The same, with a slot that is returned when the body was read or dropped.
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

    /// The target of a redirect at `at`. `home` is the URL of the registry that got the first request.
    pub(super) fn next_hop(&self, at: &Url, home: &Url) -> Result<Url, SourceError> {
        let next = redirect::location(self.headers())
            .ok_or_else(|| "a redirect without a Location".to_owned())
            .and_then(|location| redirect::next_hop(at, &location, home));
        next.map_err(|detail| SourceError::Protocol { place: self.place.clone(), detail })
    }

    /// The next piece of the body; `None` at its end. Waits for each piece as long as `stall`, or with the patience
    /// of the request.
    pub(super) async fn piece(&mut self, stall: Duration) -> Result<Option<Bytes>, SourceError> {
        if let Some(slot) = &self.slot {
            slot.paced().await;
        }
        let piece = self.response.chunk();
        let piece = match &self.patience {
            Some(patience) => patience.wait(stall, piece).await,
            None => impatiently(stall, piece).await,
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
            Err(Silent { time, is_patience }) => {
                let more = if is_patience { ", and --open-timeout allows no more" } else { "" };
                format!("the transfer stalled: no byte came within {} s{more}", time.as_secs_f32())
            }
        };
        Err(SourceError::Unavailable { place: self.place.clone(), detail })
    }

    /// Reads a body of at most `limit` bytes to its end.
    pub(super) async fn read(&mut self, limit: u64, stall: Duration) -> Result<Bytes, Failure> {
        let patience = self.patience.as_ref().map_or(stall, |patience| patience.limit);
        let time = DOCUMENT_TIME.max(patience);
        match running_time::timeout(time, self.read_slowly(limit, stall)).await {
            Ok(read) => read,
            Err(_) => {
                let detail = format!("the transfer took more than {} s", time.as_secs());
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

    /// From now on, the body has no more patience than a reader.
    pub(super) fn hurry(&mut self) {
        self.patience = None;
    }

    /// The status, and the message in the body.
    pub(super) async fn words(&mut self, stall: Duration) -> String {
        let status = self.status();
        self.hurry();
        let body = self.read_slowly(ERROR_LIMIT_BYTES, stall);
        let body = running_time::timeout(WORDS_PATIENCE, body).await.ok().and_then(Result::ok);
        match body.and_then(|body| message::registry_words(&body)) {
            Some(words) => format!("{status}: {words}"),
            None => status.to_string(),
        }
    }

    /// The failure of a request for `what` with this answer. `hint` is the advice for a 404. A registry's own 401
    /// and 403 are handled elsewhere.
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
