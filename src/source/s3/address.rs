//! The URLs of objects. Pure.
//!
//! ```text
//! AWS             https://BUCKET.s3.REGION.amazonaws.com/KEY
//! AWS, a bucket   https://s3.REGION.amazonaws.com/BUCKET/KEY    a name with points fits no certificate
//! another store   ENDPOINT/BUCKET/KEY
//! ```
//!
//! Keys are encoded as signatures want it: every byte but letters, digits, `-._~` and `/`.

use url::{Position, Url};

use crate::oci::ObjectLocation;
use crate::source::SourceError;

/// The region without a setting.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// The URL of an object.
///
/// # Errors
/// [`SourceError::Configuration`] for an endpoint or region that makes no URL. [`SourceError::Protocol`] for a key
/// that no URL can carry.
pub(super) fn object_url(
    endpoint: Option<&str>,
    region: &str,
    location: &ObjectLocation,
) -> Result<Url, SourceError> {
    let key = encoded(location.key(), b"-._~/");
    let bucket = location.bucket();
    let base = match endpoint {
        Some(endpoint) => format!("{}/{bucket}", checked(endpoint)?),
        None => {
            let domain = domain(region)?;
            match bucket.contains('.') {
                true => format!("https://s3.{region}.{domain}/{bucket}"),
                false => format!("https://{bucket}.s3.{region}.{domain}"),
            }
        }
    };
    let query = match location.version() {
        Some(version) => format!("?versionId={}", encoded(version, b"-._~")),
        None => String::new(),
    };
    let text = format!("{base}/{key}{query}");
    let url = Url::parse(&text).map_err(|error| SourceError::Configuration {
        what: "the S3 endpoint".to_owned(),
        detail: format!("makes no URL: {error}"),
    })?;
    // A URL loses the parts `.` and `..`, and would then name another object.
    match url.as_str() == text {
        true => Ok(url),
        false => Err(SourceError::Protocol {
            place: location.to_string(),
            detail: "its key has a part `.` or `..`, which no URL can carry".to_owned(),
        }),
    }
}

/// An endpoint as a URL is written, without slashes at its end.
pub(super) fn checked(endpoint: &str) -> Result<String, SourceError> {
    let wrong = |why: &str| SourceError::Configuration {
        what: "the S3 endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, S3_API_ENDPOINT)".to_owned(),
        detail: format!("{why}: write it as https://HOST[:PORT]"),
    };
    let url = Url::parse(endpoint).map_err(|_| wrong("is no URL"))?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    let is_plain = url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    match (is_web, is_plain) {
        (true, true) => Ok(url.as_str().trim_end_matches('/').to_owned()),
        (false, _) => Err(wrong("is no http or https URL")),
        (true, false) => Err(wrong("has more than a host and a path")),
    }
}

/// The domain of a region's hosts.
fn domain(region: &str) -> Result<&'static str, SourceError> {
    let is_region = !region.is_empty()
        && region
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    match is_region {
        true if region.starts_with("cn-") => Ok("amazonaws.com.cn"),
        true => Ok("amazonaws.com"),
        false => Err(SourceError::Configuration {
            what: "the S3 region (AWS_REGION, S3_REGION)".to_owned(),
            detail: format!("`{}` is not the name of a region", region.escape_debug()),
        }),
    }
}

/// `HOST[:PORT]` as the `Host` header has it: without a port that follows from the scheme.
pub(super) fn host(url: &Url) -> String {
    url[Position::BeforeHost..Position::AfterPort].to_owned()
}

/// A text with every byte encoded but letters, digits and those in `kept`.
fn encoded(text: &str, kept: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            true => encoded.push(byte.into()),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn location(text: &str) -> ObjectLocation {
        ObjectLocation::parse(text).unwrap().unwrap()
    }

    #[rstest]
    #[case(None, "eu-west-1", "s3://bucket/a/b", "https://bucket.s3.eu-west-1.amazonaws.com/a/b")]
    #[case(None, "us-east-1", "s3://b.ucket/a", "https://s3.us-east-1.amazonaws.com/b.ucket/a")]
    #[case(None, "cn-north-1", "s3://bucket/a", "https://bucket.s3.cn-north-1.amazonaws.com.cn/a")]
    #[case(Some("http://127.0.0.1:9000"), "r", "s3://bucket/a", "http://127.0.0.1:9000/bucket/a")]
    #[case(Some("https://minio.test/s3/"), "r", "s3://bucket/a", "https://minio.test/s3/bucket/a")]
    #[case(None, "r", "s3://bucket/a b+c%25", "https://bucket.s3.r.amazonaws.com/a%20b%2Bc%25")]
    #[case(None, "r", "s3://bucket//a", "https://bucket.s3.r.amazonaws.com//a")]
    #[case(
        None,
        "r",
        "s3://bucket/a?versionId=x%2F",
        "https://bucket.s3.r.amazonaws.com/a?versionId=x%2F"
    )]
    fn urls(
        #[case] endpoint: Option<&str>,
        #[case] region: &str,
        #[case] object: &str,
        #[case] expected: &str,
    ) {
        let url = object_url(endpoint, region, &location(object)).unwrap();
        assert_eq!(url.as_str(), expected);
    }

    #[rstest]
    #[case("s3://bucket/..")]
    #[case("s3://bucket/a/../b")]
    #[case("s3://bucket/./b")]
    #[case("s3://bucket/a/%2e%2e/b")]
    fn a_key_that_no_url_can_carry_is_refused(#[case] object: &str) {
        let error = object_url(None, "r", &location(object)).unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    }

    #[rstest]
    #[case("minio.test:9000")]
    #[case("ftp://minio.test")]
    #[case("https://user:secret@minio.test")]
    #[case("https://minio.test?x=y")]
    fn a_text_that_is_no_endpoint_is_refused_and_not_repeated(#[case] endpoint: &str) {
        let error = object_url(Some(endpoint), "r", &location("s3://bucket/k")).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(error.to_string().contains("AWS_ENDPOINT_URL"), "{error}");
    }

    #[test]
    fn a_region_cannot_lead_to_another_host() {
        for region in ["", "evil.example/", "a.b", "US", "x#", "x@y"] {
            assert!(object_url(None, region, &location("s3://bucket/k")).is_err(), "{region}");
        }
    }

    proptest! {
        /// The path of a URL, decoded, is the key again: nothing is lost or normalised away.
        #[test]
        fn a_url_keeps_its_key(key in "[a-zA-Z0-9 +%/.~é\u{1}&?#=-]{1,20}") {
            let text = format!("s3://bucket/{}", encoded(&key, b""));
            let Ok(url) = object_url(None, "r", &location(&text)) else {
                let is_dots = |part: &str| matches!(part, "." | "..");
                prop_assert!(key.split('/').any(is_dots), "{key}");
                return Ok(());
            };
            let back = location(&format!("s3://bucket{}", url.path()));
            prop_assert_eq!(back.key(), key);
        }
    }
}
