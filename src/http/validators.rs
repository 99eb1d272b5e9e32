//! ETags, and the conditions of a request (RFC 9110, section 13). Pure.

use axum::http::HeaderMap;
use axum::http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE};

/// The outcome of the conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send the content.
    Send {
        /// Whether the `Range` of the request counts: the client has a part of exactly this content.
        range_counts: bool,
    },
    /// The client has this content.
    NotModified,
    /// The client wants other content than this.
    Failed,
}

/// Compares the conditions of a request with the ETag of the content, quotes included.
///
/// Dates are ignored: content has no `Last-Modified`, so `If-Range` with a date never matches.
pub(super) fn judge(headers: &HeaderMap, etag: &str) -> Verdict {
    if headers.contains_key(IF_MATCH) && !names(headers, &IF_MATCH, etag, false) {
        return Verdict::Failed;
    }
    if names(headers, &IF_NONE_MATCH, etag, true) {
        return Verdict::NotModified;
    }
    let if_range = headers.get(IF_RANGE).map(|value| value.as_bytes().trim_ascii());
    Verdict::Send { range_counts: if_range.is_none_or(|value| value == etag.as_bytes()) }
}

/// Whether a list of ETags has this ETag. A weak ETag (`W/`) counts for `If-None-Match` only.
fn names(headers: &HeaderMap, name: &HeaderName, etag: &str, is_weak_enough: bool) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    // The ETags of this server have no comma.
    let mut each = values.flat_map(|value| value.split(',')).map(str::trim);
    each.any(|given| {
        let strong = if is_weak_enough { given.strip_prefix("W/").unwrap_or(given) } else { given };
        given == "*" || strong == etag
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const SEND: Verdict = Verdict::Send { range_counts: true };
    const WHOLE: Verdict = Verdict::Send { range_counts: false };

    #[rstest]
    #[case(&[], SEND)]
    #[case(&[("if-none-match", "\"a\"")], Verdict::NotModified)]
    #[case(&[("if-none-match", "\"b\", W/\"a\"")], Verdict::NotModified)]
    #[case(&[("if-none-match", "*")], Verdict::NotModified)]
    #[case(&[("if-none-match", "\"b\"")], SEND)]
    #[case(&[("if-none-match", "a")], SEND)]
    #[case(&[("if-match", "\"a\"")], SEND)]
    #[case(&[("if-match", "*")], SEND)]
    #[case(&[("if-match", "W/\"a\"")], Verdict::Failed)]
    #[case(&[("if-match", "\"b\"")], Verdict::Failed)]
    #[case(&[("if-match", "\"b\""), ("if-none-match", "\"a\"")], Verdict::Failed)]
    #[case(&[("if-range", "\"a\"")], SEND)]
    #[case(&[("if-range", "W/\"a\"")], WHOLE)]
    #[case(&[("if-range", "\"b\"")], WHOLE)]
    #[case(&[("if-range", "Sat, 29 Oct 1994 19:43:31 GMT")], WHOLE)]
    fn conditions_are_judged(#[case] pairs: &[(&'static str, &str)], #[case] expected: Verdict) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        assert_eq!(judge(&headers, "\"a\""), expected);
    }
}
