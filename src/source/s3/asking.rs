//! One request for an object, and the meaning of its answer.
//!
//! ```text
//! send --2xx--> its ETag is the kit's? --> taken
//!   |--another region--> the same there, once
//!   |--403, 400 about keys--> the keys read anew, once --> the same
//!   '--else--> an error that says what to do
//! ```

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;
use url::Url;

use super::Store;
use super::address;
use super::credentials::Access;
use super::signing;
use crate::source::registry::web::{Purpose, Request, Response, Stop};
use crate::source::{ObjectHead, ObjectId, SourceError};

/// The header in which AWS says where a bucket lies.
const BUCKET_REGION: &str = "x-amz-bucket-region";
/// The most of an error's body that is read.
const ERROR_LIMIT_BYTES: u64 = 16 * 1024;
/// Requests in one attempt: the first, one in another region, and one with new keys.
const MOST_REQUESTS: usize = 3;

/// The wanted part of an object.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// Its size and ETag.
    Head,
    /// Its bytes, with the value of the `Range` header; all of them without one.
    Bytes(Option<String>),
}

impl Store {
    /// Asks for an object's size, and compares its ETag.
    pub(super) async fn head(&self, id: &ObjectId) -> Result<ObjectHead, SourceError> {
        let purpose = Purpose::of_command(&self.client);
        purpose.repeat(&id.location.to_string(), || self.head_once(&purpose, id)).await
    }

    async fn head_once(&self, purpose: &Purpose<'_>, id: &ObjectId) -> Result<ObjectHead, Stop> {
        let answer = match self.ask(purpose, id, &Wanted::Head).await {
            Ok(answer) => answer,
            // The answer to HEAD has no body, and so no reason. A request for bytes gets the reason, or has new
            // keys read.
            Err(stop) if is_refusal(stop.error()) => {
                let first_byte = Wanted::Bytes(Some("bytes=0-0".to_owned()));
                self.ask(purpose, id, &first_byte).await?;
                self.ask(purpose, id, &Wanted::Head).await?
            }
            Err(stop) => return Err(stop),
        };
        let protocol = |detail: &str| SourceError::Protocol {
            place: id.location.to_string(),
            detail: detail.to_owned(),
        };
        let size = answer.header("content-length").and_then(|length| length.parse().ok());
        let size = size.ok_or_else(|| protocol("the store does not say its size"))?;
        let modified = answer.header("last-modified").and_then(http_date);
        Ok(ObjectHead { size, modified_seconds: modified.map(Timestamp::as_second) })
    }

    /// Sends one request, to the region of the bucket, with keys that the store accepts. A successful answer is of
    /// the object with the kit's ETag.
    pub(super) async fn ask(
        &self,
        purpose: &Purpose<'_>,
        id: &ObjectId,
        wanted: &Wanted,
    ) -> Result<Response, Stop> {
        let bucket = id.location.bucket();
        let mut has_new_keys = false;
        for _ in 0..MOST_REQUESTS {
            let access = self.credentials.access().await?;
            let region = self.region_of(bucket).unwrap_or_else(|| access.region.clone());
            let url = address::object_url(access.endpoint.as_deref(), &region, &id.location)?;
            let place = format!("{} (at {})", id.location, address::host(&url));
            let mut answer =
                purpose.send(signed_request(&url, wanted, id, &access, &region), &place).await?;
            if answer.status().is_success() {
                check_etag(&answer, id)?;
                return Ok(answer);
            }
            if let Some(other) = other_region(&answer, &region) {
                self.lies_in(bucket, &other);
                continue;
            }
            let code = error_code(&answer.short_body(ERROR_LIMIT_BYTES).await);
            if is_about_keys(answer.status(), code.as_deref()) && !has_new_keys {
                has_new_keys = true;
                self.credentials.forget();
                if access.keys.is_some() {
                    continue;
                }
            }
            let error = refusal(&answer, code.as_deref(), id, &place, &access);
            return Err(answer.stop(error));
        }
        Err(SourceError::Unavailable {
            place: id.location.to_string(),
            detail: "the store sends requests from one region to another".to_owned(),
        }
        .into())
    }
}

fn signed_request(
    url: &Url,
    wanted: &Wanted,
    id: &ObjectId,
    access: &Access,
    region: &str,
) -> Request {
    let mut headers = HeaderMap::new();
    let mut put = |name, value: &str| {
        // Digits and a checked ETag make header values.
        headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
    };
    let method = match wanted {
        Wanted::Head => Method::HEAD,
        Wanted::Bytes(range) => {
            range.iter().for_each(|range| put(header::RANGE, range));
            put(header::IF_MATCH, &format!("\"{}\"", id.etag));
            Method::GET
        }
    };
    if let Some(keys) = &access.keys {
        signing::sign(&method, url, &mut headers, keys, region, Timestamp::now());
    }
    Request { method, url: url.clone(), headers }
}

/// Checks that an answer is of the object that the kit names.
fn check_etag(answer: &Response, id: &ObjectId) -> Result<(), SourceError> {
    let got = answer.header("etag").map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
    match got {
        Some(got) if got == id.etag => Ok(()),
        Some(got) => Err(changed(id, Some(got))),
        None => Err(SourceError::Protocol {
            place: id.location.to_string(),
            detail: "an answer without an ETag, so it may be of another object".to_owned(),
        }),
    }
}

fn changed(id: &ObjectId, got: Option<&str>) -> SourceError {
    SourceError::Changed {
        place: id.location.to_string(),
        expected: id.etag.clone(),
        got: got.map(|etag| etag.chars().take(64).collect()),
    }
}

/// Whether a request was refused for its content or its sender.
fn is_refusal(error: &SourceError) -> bool {
    matches!(error, SourceError::Unauthorized { .. } | SourceError::Protocol { .. })
}

/// The region in an answer, if it is not the requested one.
fn other_region(answer: &Response, asked: &str) -> Option<String> {
    let is_elsewhere =
        answer.status().is_redirection() || answer.status() == StatusCode::BAD_REQUEST;
    let named = answer.header(BUCKET_REGION).filter(|region| is_elsewhere && *region != asked)?;
    Some(named.to_owned())
}

/// The code in an error's body: `<Error><Code>AccessDenied</Code>…`.
fn error_code(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let (_, behind) = text.split_once("<Code>")?;
    let (code, _) = behind.split_once("</Code>")?;
    let is_code = !code.is_empty()
        && code.len() <= 64
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_code.then(|| code.to_owned())
}

/// Whether other keys might be accepted.
fn is_about_keys(status: StatusCode, code: Option<&str>) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        || matches!(code, Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired"))
}

/// The error for an answer without the object.
fn refusal(
    answer: &Response,
    code: Option<&str>,
    id: &ObjectId,
    place: &str,
    access: &Access,
) -> SourceError {
    let status = answer.status();
    let detail = match code {
        Some(code) => format!("{status}: {code}"),
        None => status.to_string(),
    };
    let place = place.to_owned();
    match status.as_u16() {
        412 => changed(id, None),
        404 => SourceError::NotFound {
            what: "the object".to_owned(),
            place,
            hint: "it was removed, or the endpoint is another one (AWS_ENDPOINT_URL_S3)".to_owned(),
        },
        _ if is_about_keys(status, code) => {
            let hint = match (code, &access.keys) {
                (Some("RequestTimeTooSkewed"), _) => "this machine's clock is wrong",
                (_, Some(_)) => "the keys are not accepted, or may not read the object",
                (_, None) => {
                    "there are no keys: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY"
                }
            };
            SourceError::Unauthorized { place, detail, hint: hint.to_owned() }
        }
        429 | 503 => SourceError::Throttled { place, retry_after: None },
        408 | 500.. => SourceError::Unavailable { place, detail },
        _ => SourceError::Protocol { place, detail },
    }
}

/// A date as HTTP writes it (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_from_errors() {
        let body =
            b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>x</Message></Error>";
        assert_eq!(error_code(body).as_deref(), Some("AccessDenied"));
        for body in [&b""[..], b"<Code></Code>", b"<Code>a b\x1b</Code>", b"<html>", b"<Code>x"] {
            assert_eq!(error_code(body), None);
        }
    }

    #[test]
    fn dates_are_those_of_http() {
        let date = http_date("Fri, 24 May 2013 00:00:00 GMT").unwrap();
        assert_eq!(date.as_second(), 1_369_353_600);
        assert_eq!(http_date("yesterday"), None);
    }
}
