//! The heads of a registry's answers to uploads. Pure.
//!
//! ```text
//! 202 Accepted                      the upload goes on at Location
//! Location: /v2/NAME/blobs/uploads/ID?_state=…
//! Range: 0-1048575                  the last byte that is there
//! OCI-Chunk-Min-Length: 5242880     smaller chunks are refused, but for the last
//! ```

use http::{HeaderMap, header};
use url::Url;

use super::super::redirect;
use crate::oci::Digest;
use crate::source::SourceError;

/// The header with the digest of the stored blob (distribution-spec, legacy but common).
const CONTENT_DIGEST: &str = "docker-content-digest";

/// The least length of a chunk that a registry takes (distribution-spec, "Pushing a blob in chunks").
const CHUNK_MIN_LENGTH: &str = "oci-chunk-min-length";

/// The bytes of an upload that a registry has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Has {
    /// This many, from the first byte on.
    Bytes(u64),
    /// No byte or one: distribution reports `0-0` for both.
    NoneOrOne,
    /// The registry does not report it.
    Unsaid,
}

impl Has {
    /// Reads a `Range` of an answer: `0-LAST`, which some write as `bytes=0-LAST`.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let last = text.and_then(|text| {
            let range = text.trim().trim_start_matches("bytes").trim_start_matches(['=', ' ']);
            range.strip_prefix("0-")?.parse::<u64>().ok()
        });
        match last {
            Some(0) => Self::NoneOrOne,
            Some(last) => last.checked_add(1).map_or(Self::Unsaid, Self::Bytes),
            None => Self::Unsaid,
        }
    }
}

/// The least length of a chunk.
pub(super) fn chunk_minimum(headers: &HeaderMap) -> u64 {
    let text = headers.get(CHUNK_MIN_LENGTH).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The URL at which an upload goes on; `None` without a `Location`.
///
/// # Errors
/// The message, where the URL cannot be used.
pub(super) fn next(headers: &HeaderMap, at: &Url, home: &Url) -> Result<Option<Url>, String> {
    match redirect::location(headers) {
        Some(location) => redirect::next_hop(at, &location, home).map(Some),
        None => Ok(None),
    }
}

/// The URL that ends an upload. The registry's own query stays.
pub(super) fn ending(upload: &Url, digest: Digest) -> Url {
    let mut url = upload.clone();
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    url
}

/// Compares the digest that a registry reports as stored with the digest that was sent. A registry need not report
/// one.
pub(super) fn check_digest(
    headers: &HeaderMap,
    sent: Digest,
    what: &str,
    place: &str,
) -> Result<(), SourceError> {
    let said = headers.get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
    match said.and_then(|said| Digest::parse(said.trim()).ok()) {
        Some(got) if got != sent => Err(SourceError::DigestMismatch {
            what: format!("{what}, as it was stored there,"),
            place: place.to_owned(),
            expected: sent,
            got,
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn headers(name: &str, value: &str) -> HeaderMap {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[rstest]
    #[case("0-9", Has::Bytes(10))]
    #[case("bytes=0-9", Has::Bytes(10))]
    #[case("bytes 0-9", Has::Bytes(10))]
    #[case(" 0-1 ", Has::Bytes(2))]
    #[case("0-0", Has::NoneOrOne)]
    #[case("1-9", Has::Unsaid)]
    #[case("0-", Has::Unsaid)]
    #[case("0--1", Has::Unsaid)]
    #[case("9", Has::Unsaid)]
    #[case("0-18446744073709551615", Has::Unsaid)]
    fn the_bytes_that_a_registry_has(#[case] range: &str, #[case] expected: Has) {
        assert_eq!(Has::of(&headers("range", range)), expected);
    }

    #[rstest]
    #[case(
        "/v2/a/blobs/uploads/1?_state=x%3D",
        "https://r.example/v2/a/blobs/uploads/1?_state=x%3D"
    )]
    #[case("2", "https://r.example/v2/a/blobs/uploads/2")]
    #[case("http://r.example/3", "https://r.example/3")]
    #[case("https://s.example/4?sig=a%2Bb", "https://s.example/4?sig=a%2Bb")]
    fn an_upload_goes_on_at_its_location(#[case] location: &str, #[case] expected: &str) {
        let home = Url::parse("https://r.example/v2/").unwrap();
        let at = Url::parse("https://r.example/v2/a/blobs/uploads/").unwrap();
        let url = next(&headers("location", location), &at, &home).unwrap().unwrap();
        assert_eq!(url.as_str(), expected);
        let digest = Digest::of(b"x");
        let end = ending(&url, digest);
        let pairs: Vec<_> = end.query_pairs().map(|(key, _)| key.into_owned()).collect();
        assert_eq!(pairs.last().map(String::as_str), Some("digest"));
        let old = url.query().unwrap_or_default();
        assert!(end.query().unwrap().starts_with(old), "{end}");
        assert!(next(&headers("location", "http://s.example/"), &at, &home).is_err());
    }

    #[test]
    fn a_registry_that_says_another_digest_than_was_sent_is_not_believed() {
        let sent = Digest::of(b"sent");
        let check = |said: &str| check_digest(&headers(CONTENT_DIGEST, said), sent, "it", "there");
        assert!(check(&sent.to_string()).is_ok());
        assert!(check("sha512:00").is_ok());
        assert!(check(&Digest::of(b"other").to_string()).is_err());
        assert!(check_digest(&HeaderMap::new(), sent, "it", "there").is_ok());
    }

    proptest! {
        #[test]
        fn no_head_panics(text in "[ -~]{0,40}") {
            let at = Url::parse("https://r.example/v2/").unwrap();
            let _ = Has::of(&headers("range", &text));
            let _ = chunk_minimum(&headers(CHUNK_MIN_LENGTH, &text));
            let _ = next(&headers("location", &text), &at, &at);
        }
    }
}
