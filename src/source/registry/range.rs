//! What a registry may answer to a request for a range (RFC 9110, section 14).
//!
//! Pure: heads of answers in, the range of the blob that the body holds out. A server that is
//! trusted with the position of bytes could put any byte anywhere, and only the digest of the
//! whole blob would tell, much later; so the head must say exactly what was asked.

use std::ops::Range;

use http::StatusCode;

/// What the head of an answer says of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    pub(super) status: StatusCode,
    pub(super) content_range: Option<&'a str>,
    pub(super) content_length: Option<u64>,
}

/// The value of a `Range` header for `range`, which is not empty.
pub(super) fn header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end - 1)
}

/// The bytes of a blob of `size` bytes that a body holds, where `asked` was asked for.
///
/// # Errors
/// In words, when the head contradicts the request or the blob.
pub(super) fn served(head: &Head<'_>, asked: &Range<u64>, size: u64) -> Result<Range<u64>, String> {
    let range = match head.status {
        StatusCode::PARTIAL_CONTENT => {
            let text = head.content_range.ok_or("a 206 without a Content-Range")?;
            let (range, total) = parse_content_range(text)
                .ok_or_else(|| format!("the Content-Range `{}`", shortened(text)))?;
            if total != size {
                return Err(format!(
                    "the Content-Range `{}`, though the manifest says {size} bytes and not \
                     {total} (was it pushed whole?)",
                    shortened(text)
                ));
            }
            if range != *asked {
                return Err(format!(
                    "the Content-Range `{}` to a request for `{}` of {size} bytes",
                    shortened(text),
                    header(asked)
                ));
            }
            range
        }
        StatusCode::OK => 0..size,
        status => return Err(format!("status {status} to a request for `{}`", header(asked))),
    };
    let expected = range.end - range.start;
    match head.content_length {
        Some(length) if length != expected => {
            Err(format!("a body of {length} bytes instead of {expected}"))
        }
        Some(_) | None => Ok(range),
    }
}

/// Parses `bytes FIRST-LAST/TOTAL`; nothing else is of use.
fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (unit, rest) = text.split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total) = (number(first)?, number(last)?, number(total)?);
    let end = last.checked_add(1)?;
    (unit.eq_ignore_ascii_case("bytes") && first < end && end <= total)
        .then_some((first..end, total))
}

/// A number in digits alone: `u64::from_str` would take a `+` too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn partial(content_range: &str) -> Head<'_> {
        Head {
            status: StatusCode::PARTIAL_CONTENT,
            content_range: Some(content_range),
            content_length: None,
        }
    }

    #[test]
    fn what_does_not_answer_the_request_is_refused() {
        for wrong in [
            "bytes 0-9/100",
            "bytes 10-20/100",
            "bytes 11-19/100",
            "bytes 10-19/99",
            "bytes 10-19/*",
            "bytes */100",
            "bytes +10-19/100",
            "bytes 19-10/100",
            "items 10-19/100",
            "bytes 10-18446744073709551615/100",
            "",
        ] {
            assert!(served(&partial(wrong), &(10..20), 100).is_err(), "{wrong}");
        }
        assert_eq!(served(&partial("Bytes 10-19/100"), &(10..20), 100), Ok(10..20));
    }

    #[test]
    fn a_200_is_the_whole_blob() {
        let head = Head { status: StatusCode::OK, content_range: None, content_length: Some(100) };
        assert_eq!(served(&head, &(10..20), 100), Ok(0..100));
        assert!(served(&head, &(10..20), 101).is_err());
    }

    #[test]
    fn a_416_and_a_206_without_range_are_refused() {
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        let head = Head { status, content_range: Some("bytes */5"), content_length: None };
        assert!(served(&head, &(10..20), 100).is_err());
        let head =
            Head { status: StatusCode::PARTIAL_CONTENT, content_range: None, content_length: None };
        assert!(served(&head, &(10..20), 100).is_err());
    }

    proptest! {
        #[test]
        fn an_exact_answer_is_taken(start in 0..u64::MAX / 2, length in 1..u64::MAX / 4, more in 0..9u64) {
            let (asked, size) = (start..start + length, start + length + more);
            let text = format!("bytes {}-{}/{size}", asked.start, asked.end - 1);
            let mut head = partial(&text);
            prop_assert_eq!(served(&head, &asked, size), Ok(asked.clone()));
            head.content_length = Some(length + 1);
            prop_assert!(served(&head, &asked, size).is_err());
        }

        #[test]
        fn only_what_was_asked_is_taken(text in "bytes [0-9]{1,2}-[0-9]{1,2}/[0-9]{1,2}") {
            if let Ok(range) = served(&partial(&text), &(3..7), 9) {
                prop_assert_eq!(range, 3..7);
                prop_assert_eq!(text.trim_start_matches("bytes ").split(['-', '/'])
                    .map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>(), [3, 6, 9]);
            }
        }
    }
}
