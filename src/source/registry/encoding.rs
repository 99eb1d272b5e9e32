//! Codings around a body (RFC 9110, 8.4; RFC 9112, 6.1). Pure.
//!
//! Every request says `Accept-Encoding: identity`, so a coded body is a fault of the server or of a
//! proxy. kitfs refuses it: decoding would put a decompressor, with a bound against bombs, on bytes that
//! no digest covers yet.
//!
//! The header alone does not prove a coding: object stores keep `Content-Encoding` as a label of the stored object,
//! and send its bytes unchanged. For a blob, the length tells both cases apart (`range`); for a document, its first
//! character does.

use http::{HeaderMap, HeaderValue, header};

use super::message;

/// The value of `Accept-Encoding` in every request.
pub(super) const ACCEPTED: HeaderValue = HeaderValue::from_static("identity");

/// The first coding in `Content-Encoding`, printable in a message; `None` for `identity`.
pub(super) fn of_content(headers: &HeaderMap) -> Option<String> {
    first_but(headers, &header::CONTENT_ENCODING, &["identity"])
}

/// The first coding in `Transfer-Encoding` other than `chunked`, which the HTTP client decodes.
pub(super) fn of_transfer(headers: &HeaderMap) -> Option<String> {
    first_but(headers, &header::TRANSFER_ENCODING, &["chunked", "identity"])
}

fn first_but(headers: &HeaderMap, name: &header::HeaderName, plain: &[&str]) -> Option<String> {
    let values =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let names = values.flat_map(|value| {
        value.split(',').map(|name| name.trim().to_ascii_lowercase()).collect::<Vec<_>>()
    });
    let mut coded = names.filter(|name| !name.is_empty() && !plain.contains(&name.as_str()));
    coded.next().map(|name| message::quoted(&name))
}

/// Whether a body is an uncoded JSON object or list, by its first character. No gzip, zstd or zlib stream begins
/// with it. A brotli stream may, but is no JSON behind its first byte.
pub(super) fn is_plain_json(body: &[u8]) -> bool {
    matches!(without_mark(body).trim_ascii_start().first(), Some(b'{' | b'['))
}

/// A text without the byte order mark that some tools put before JSON, against RFC 8259, 8.1.
pub(super) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(values: &[&str]) -> Option<String> {
        let values = values.iter().map(|value| (header::CONTENT_ENCODING, value.parse().unwrap()));
        of_content(&values.collect())
    }

    #[test]
    fn identity_and_nothing_are_no_coding() {
        for none in [&[][..], &["identity"], &["", " , "], &["Identity", "identity"]] {
            assert_eq!(content(none), None, "{none:?}");
        }
        assert_eq!(content(&["identity, GZIP"]).as_deref(), Some("gzip"));
        assert_eq!(content(&["identity", "br"]).as_deref(), Some("br"));
    }

    #[test]
    fn chunks_are_no_coding_and_what_lies_within_them_is() {
        let transfer = |value: &str| {
            of_transfer(&HeaderMap::from_iter([(
                header::TRANSFER_ENCODING,
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(transfer("chunked"), None);
        assert_eq!(transfer("gzip, chunked").as_deref(), Some("gzip"));
    }

    #[test]
    fn json_is_told_from_its_encodings() {
        for plain in ["{}", " \n[1]", "\u{feff}{\"a\":1}"] {
            assert!(is_plain_json(plain.as_bytes()), "{plain}");
        }
        for coded in [&b""[..], b"<html>", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x78\x9c\x01"] {
            assert!(!is_plain_json(coded), "{coded:?}");
        }
    }
}
