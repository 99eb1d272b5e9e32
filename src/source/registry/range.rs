//! The bytes in an answer to a request for a range of a blob (RFC 9110, sections 14 and 15.3.7).
//!
//! Pure: the head of an answer in, a range of the blob out. No digest covers a part of a blob, so kitfs
//! takes a body only where its head has one meaning:
//!
//! ```text
//! 206, from the first byte asked for to the last, or to one before it --> those bytes; the rest is
//!                                                                         asked for again
//! 200 with a Content-Range of exactly what was asked                  --> those bytes (Dragonfly)
//! 200 of the blob's length, or with a Content-Range of the whole      --> the whole blob
//! 200 to a request without Range                                      --> the whole blob
//! 200 to a request with Range, of no length                           --> unclear: part or whole
//! everything else                                                     --> refused
//! ```
//!
//! After an unclear answer kitfs asks again without `Range`: then a 200 can only be the whole blob.
//! A `Content-Encoding` is a mere label where the length is that of the unencoded bytes.

use std::ops::Range;

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::{encoding, message};
use crate::oci::BlobOffset;

/// A request for bytes of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The bytes of the blob; not empty.
    pub(super) range: Range<BlobOffset>,
    /// The size of the blob, as its descriptor has it.
    pub(super) size: u64,
}

/// The content of a body, by the head of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// The body has these bytes. They begin where the requested range begins, or are the whole blob.
    Bytes(Range<BlobOffset>),
    /// The body is the part or the whole blob. Only a request without `Range` can show which.
    Unclear,
}

impl Asked {
    /// The whole of a blob.
    pub(super) fn whole(size: u64) -> Self {
        Self { range: BlobOffset::of(0..size), size }
    }

    /// The range of the whole blob.
    fn blob(&self) -> Range<BlobOffset> {
        BlobOffset::of(0..self.size)
    }

    /// The value of the `Range` header; `None` for the whole blob.
    pub(super) fn header(&self) -> Option<String> {
        let Range { start, end } = self.range;
        (self.range != self.blob()).then(|| format!("bytes={start}-{}", end.get() - 1))
    }

    /// The bytes of the blob in the body.
    ///
    /// # Errors
    /// The message, where the head contradicts the request, the blob or itself.
    pub(super) fn served(&self, status: StatusCode, headers: &HeaderMap) -> Result<Served, String> {
        if let Some(coding) = encoding::of_transfer(headers) {
            return Err(format!(
                "a body in the transfer coding `{coding}`, which was not asked for"
            ));
        }
        let length = content_length(headers)?;
        let served = match status {
            StatusCode::PARTIAL_CONTENT => Served::Bytes(self.part(headers)?),
            StatusCode::OK => self.part_or_whole(headers, length)?,
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.unsatisfied(headers)),
            status => return Err(format!("the status {status} to {}", self.words())),
        };
        let expected = match &served {
            Served::Bytes(range) => Some(range.end - range.start),
            Served::Unclear => None,
        };
        match (length, encoding::of_content(headers)) {
            (Some(length), None) if Some(length) != expected => {
                let expected = expected.unwrap_or(self.size);
                Err(format!("a body of {length} bytes instead of {expected}"))
            }
            (length, Some(coding)) if length.is_none() || length != expected => Err(format!(
                "a body in the encoding `{coding}`, which was not asked for: switch compression off \
                 in the registry, or in the proxy before it"
            )),
            (Some(_) | None, _) => Ok(served),
        }
    }

    /// The bytes of a 206: the requested ones, or the first of them.
    fn part(&self, headers: &HeaderMap) -> Result<Range<BlobOffset>, String> {
        refuse_multipart(headers)?;
        let text = only(headers, &header::CONTENT_RANGE)?;
        let text = text.ok_or("the status 206 without a Content-Range")?;
        let range = self.content_range(&text)?;
        if range.start != self.range.start || range.end > self.range.end {
            return Err(self.other_range(&text));
        }
        Ok(range)
    }

    /// The bytes of a 200.
    fn part_or_whole(&self, headers: &HeaderMap, length: Option<u64>) -> Result<Served, String> {
        refuse_multipart(headers)?;
        let whole = self.blob();
        match only(headers, &header::CONTENT_RANGE)? {
            Some(text) => match self.content_range(&text)? {
                range if range == whole || range == self.range => Ok(Served::Bytes(range)),
                _ => Err(self.other_range(&text)),
            },
            None if self.range != whole && length.is_none() => Ok(Served::Unclear),
            None => Ok(Served::Bytes(whole)),
        }
    }

    /// The bytes that a Content-Range names.
    fn content_range(&self, text: &str) -> Result<Range<BlobOffset>, String> {
        let quoted = message::quoted(text);
        let (range, total) = parse(text)
            .ok_or_else(|| format!("the Content-Range `{quoted}`, which says nothing"))?;
        match total {
            Some(total) if total != self.size => Err(format!(
                "the Content-Range `{quoted}`, though the manifest says {} bytes and not {total} \
                 (was it pushed whole?)",
                self.size
            )),
            _ if range.end > BlobOffset(self.size) => Err(self.other_range(text)),
            Some(_) | None => Ok(range),
        }
    }

    /// The error for a 416.
    fn unsatisfied(&self, headers: &HeaderMap) -> String {
        let text = only(headers, &header::CONTENT_RANGE).ok().flatten().unwrap_or_default();
        let total = text.split_once("*/").and_then(|(_, total)| number(total.trim()));
        match total {
            Some(total) if total != self.size => format!(
                "the status 416 to {}: it has {total} bytes, though the manifest says {} (was it \
                 pushed whole?)",
                self.words(),
                self.size
            ),
            Some(_) | None => format!("the status 416 to {}", self.words()),
        }
    }

    fn other_range(&self, text: &str) -> String {
        format!("the Content-Range `{}` to {}", message::quoted(text), self.words())
    }

    /// The request as messages name it.
    fn words(&self) -> String {
        match self.header() {
            Some(header) => format!("a request for `{header}` of {} bytes", self.size),
            None => format!("a request for all {} bytes", self.size),
        }
    }
}

/// Refuses a body of several parts (RFC 9110, 14.6). No server may send one for a single range.
fn refuse_multipart(headers: &HeaderMap) -> Result<(), String> {
    let kind = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_ascii_lowercase());
    match kind {
        Some(kind) if kind.trim_ascii_start().starts_with(b"multipart/byteranges") => {
            Err("several parts (multipart/byteranges) to a request for one range".to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

/// The value of a header that may come once, or several times with the same value.
fn only(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, String> {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Ok(None) };
    match values.find(|&value| value != first) {
        Some(other) => {
            let quote = |value: &http::HeaderValue| {
                message::quoted(&String::from_utf8_lossy(value.as_bytes()))
            };
            Err(format!("two values of {name}: `{}` and `{}`", quote(first), quote(other)))
        }
        None => Ok(Some(String::from_utf8_lossy(first.as_bytes()).into_owned())),
    }
}

/// The length that the head promises for the body.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, String> {
    let Some(text) = only(headers, &header::CONTENT_LENGTH)? else { return Ok(None) };
    let length = number(text.trim());
    length.map(Some).ok_or_else(|| format!("the Content-Length `{}`", message::quoted(&text)))
}

/// The range and the total of a Content-Range (RFC 9110, 14.4). The total may be `*`.
fn parse(text: &str) -> Option<(Range<BlobOffset>, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    let total = match total.trim() {
        "*" => None,
        total => Some(number(total)?),
    };
    let is_range = unit.eq_ignore_ascii_case("bytes") && first < end;
    (is_range && total.is_none_or(|total| end <= total))
        .then_some((BlobOffset::of(first..end), total))
}

/// A number in digits alone: `u64::from_str` would take a `+` too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn judged(
        asked: &Asked,
        status: u16,
        headers: &[(&'static str, String)],
    ) -> Result<Served, String> {
        let headers = headers.iter();
        let headers = headers.map(|(name, value)| {
            (
                HeaderName::from_static(name),
                http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            )
        });
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| _ = map.append(name, value));
        asked.served(StatusCode::from_u16(status).unwrap(), &map)
    }

    fn answer(status: u16, headers: &[(&'static str, &str)]) -> Result<Served, String> {
        let asked = Asked { range: BlobOffset::of(10..20), size: 100 };
        let own: Vec<_> =
            headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        judged(&asked, status, &own)
    }

    fn served(range: Range<u64>) -> Served {
        Served::Bytes(BlobOffset::of(range))
    }

    const RANGE: &str = "content-range";
    const LENGTH: &str = "content-length";
    const CODING: &str = "content-encoding";

    #[rstest]
    #[case::exact("bytes 10-19/100", 10..20)]
    #[case::unit_in_capitals("Bytes 10-19/100", 10..20)]
    #[case::unknown_total("bytes 10-19/*", 10..20)]
    #[case::prefix("bytes 10-12/100", 10..13)]
    #[case::one_byte("bytes 10-10/*", 10..11)]
    fn a_206_may_hold_all_or_the_start_of_what_was_asked(
        #[case] content_range: &str,
        #[case] expected: Range<u64>,
    ) {
        let length = (expected.end - expected.start).to_string();
        for headers in [&[(RANGE, content_range)][..], &[(RANGE, content_range), (LENGTH, &length)]]
        {
            assert_eq!(answer(206, headers), Ok(served(expected.clone())), "{headers:?}");
        }
        assert!(answer(206, &[(RANGE, content_range), (LENGTH, "11")]).is_err());
    }

    #[rstest]
    #[case::from_the_start("bytes 0-9/100")]
    #[case::longer("bytes 10-20/100")]
    #[case::earlier("bytes 9-19/100")]
    #[case::later("bytes 11-19/100")]
    #[case::the_whole("bytes 0-99/100")]
    #[case::smaller_total("bytes 10-19/99")]
    #[case::larger_total("bytes 10-19/101")]
    #[case::no_range("bytes */100")]
    #[case::signed("bytes +10-19/100")]
    #[case::backward("bytes 19-10/100")]
    #[case::other_unit("items 10-19/100")]
    #[case::no_unit("10-19/100")]
    #[case::too_large("bytes 10-18446744073709551615/100")]
    #[case::empty("")]
    fn a_206_of_other_bytes_is_refused(#[case] content_range: &str) {
        assert!(answer(206, &[(RANGE, content_range)]).is_err());
    }

    #[test]
    fn a_206_that_does_not_say_which_bytes_it_has_is_refused() {
        assert!(answer(206, &[]).is_err());
        assert!(answer(206, &[(LENGTH, "10")]).is_err());
        let parts = ("content-type", "Multipart/ByteRanges; boundary=x");
        assert!(answer(206, &[parts]).unwrap_err().contains("several parts"));
        assert!(answer(206, &[parts, (RANGE, "bytes 10-19/100")]).is_err());
        assert!(answer(206, &[(RANGE, "bytes 10-19/100"), (RANGE, "bytes 0-9/100")]).is_err());
        let twice = [(RANGE, "bytes 10-19/100"), (RANGE, "bytes 10-19/100")];
        assert_eq!(answer(206, &twice), Ok(served(10..20)));
    }

    #[test]
    fn a_200_is_the_whole_where_its_length_says_so_and_the_part_where_its_range_does() {
        assert_eq!(answer(200, &[(LENGTH, "100")]), Ok(served(0..100)));
        assert_eq!(answer(200, &[(RANGE, "bytes 0-99/100")]), Ok(served(0..100)));
        assert_eq!(answer(200, &[(RANGE, "bytes 10-19/100")]), Ok(served(10..20)));
        let both = [(RANGE, "bytes 10-19/100"), (LENGTH, "10")];
        assert_eq!(answer(200, &both), Ok(served(10..20)));
        assert_eq!(answer(200, &[]), Ok(Served::Unclear));
        for wrong in [
            &[(LENGTH, "10")][..],
            &[(LENGTH, "101")],
            &[(RANGE, "bytes 10-19/100"), (LENGTH, "100")],
            &[(RANGE, "bytes 10-12/100")],
            &[(RANGE, "bytes 0-9/10")],
            &[(RANGE, "bytes */100"), (LENGTH, "100")],
            &[(LENGTH, "100"), (LENGTH, "10")],
            &[(LENGTH, "many")],
        ] {
            assert!(answer(200, wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_200_to_a_request_for_everything_is_the_whole() {
        let asked = Asked::whole(100);
        assert_eq!(asked.header(), None);
        assert_eq!(judged(&asked, 200, &[]), Ok(served(0..100)));
        assert!(judged(&asked, 200, &[(LENGTH, "99".into())]).is_err());
        let part = [(RANGE, "bytes 0-49/100".to_owned())];
        assert_eq!(judged(&asked, 206, &part), Ok(served(0..50)));
        assert!(judged(&asked, 200, &part).is_err());
    }

    #[test]
    fn other_statuses_are_refused() {
        for status in [201, 203, 204, 304, 416] {
            assert!(answer(status, &[(LENGTH, "100")]).is_err(), "{status}");
        }
        let refusal = answer(416, &[(RANGE, "bytes */5")]).unwrap_err();
        assert!(refusal.contains("it has 5 bytes") && refusal.contains("says 100"), "{refusal}");
    }

    #[test]
    fn an_encoding_is_a_label_where_the_length_is_right_and_refused_elsewhere() {
        for label in ["gzip", "x-gzip", "aws-chunked"] {
            let right = [(CODING, label), (RANGE, "bytes 10-19/100"), (LENGTH, "10")];
            assert_eq!(answer(206, &right), Ok(served(10..20)), "{label}");
            let right = [(CODING, label), (LENGTH, "100")];
            assert_eq!(answer(200, &right), Ok(served(0..100)), "{label}");
            for refused in [
                answer(206, &[(CODING, label), (RANGE, "bytes 10-19/100")]),
                answer(206, &[(CODING, label), (RANGE, "bytes 10-19/100"), (LENGTH, "9")]),
                answer(200, &[(CODING, label)]),
                answer(200, &[(CODING, label), (LENGTH, "42")]),
            ] {
                assert!(refused.unwrap_err().contains(label));
            }
        }
        let plain = [(CODING, "identity"), (RANGE, "bytes 10-19/100")];
        assert_eq!(answer(206, &plain), Ok(served(10..20)));
        let hidden = [("transfer-encoding", "gzip, chunked"), (RANGE, "bytes 10-19/100")];
        assert!(answer(206, &hidden).unwrap_err().contains("transfer coding"));
    }

    proptest! {
        /// With any head, an accepted body begins where the request does, or is the whole blob. It lies in the
        /// blob.
        #[test]
        fn a_body_that_is_taken_lies_where_the_request_says(
            (size, start, length) in (1u64..40).prop_flat_map(|size| (Just(size), 0..size))
                .prop_flat_map(|(size, start)| (Just(size), Just(start), 1..=size - start)),
            status in prop::sample::select(vec![200u16, 206, 416, 203]),
            content_range in prop::option::of("(bytes|Bytes|items) [0-9]{1,2}-[0-9]{1,2}/([0-9]{1,2}|\\*)"),
            lengths in prop::collection::vec(0u64..42, 0..2),
            coding in prop::option::of("gzip|identity|br"),
        ) {
            let asked = Asked { range: BlobOffset::of(start..start + length), size };
            let mut headers = Vec::new();
            headers.extend(content_range.map(|text| (RANGE, text)));
            headers.extend(lengths.iter().map(|length| (LENGTH, length.to_string())));
            headers.extend(coding.clone().map(|coding| (CODING, coding)));
            if let Ok(Served::Bytes(range)) = judged(&asked, status, &headers) {
                let is_whole = range == asked.blob();
                let is_start = range.start == asked.range.start && range.end <= asked.range.end;
                prop_assert!(is_whole || is_start, "{range:?} for {asked:?}");
                prop_assert!(!range.is_empty());
                let promised = lengths.first().copied();
                prop_assert!(promised.is_none_or(|length| length == range.end - range.start));
                let is_coded = coding.is_some_and(|coding| coding != "identity");
                prop_assert!(!is_coded || promised.is_some());
            }
        }

        #[test]
        fn an_exact_answer_is_taken_at_any_offset(
            start in 0..u64::MAX / 2,
            length in 1..u64::MAX / 4,
            more in 0..9u64,
        ) {
            let asked = Asked { range: BlobOffset::of(start..start + length), size: start + length + more };
            let text = format!("bytes {}-{}/{}", start, start + length - 1, asked.size);
            let served = judged(&asked, 206, &[(RANGE, text)]);
            prop_assert_eq!(served, Ok(Served::Bytes(asked.range)));
        }

        #[test]
        fn any_header_text_is_survived(text in "[ -~é]{0,40}") {
            let _ = answer(206, &[(RANGE, &text), (LENGTH, &text), (CODING, &text)]);
        }
    }
}
