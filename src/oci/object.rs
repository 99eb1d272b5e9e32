//! Objects of an S3 store, as a Kitfile names them (`datasets[].remotePath`, modelkit-spec 9.2).
//!
//! ```text
//! s3://BUCKET/KEY[?versionId=VERSION]
//! ```
//!
//! Read as kit reads it: `%XX` in the key stands for a byte, one `/` ends the bucket, and a `#` ends the text. The
//! bucket becomes a part of a host name, so only a valid bucket name passes.

use std::fmt;

use super::text::escaped;

/// The prefix of an object's location.
const SCHEME: &str = "s3://";
/// The query that names one version of an object.
const VERSION: &str = "versionId";
/// The lengths of a bucket's name (AWS S3 user guide, "Bucket naming rules").
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=63;
/// The longest key (AWS S3 user guide, "Creating object key names"), also taken for a version.
const KEY_LIMIT_BYTES: usize = 1024;
/// Characters of a location that a message shows.
const SHOWN_CHARACTERS: usize = 300;

/// The location of an object: its bucket, its key, and perhaps one version of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectLocation {
    bucket: String,
    key: String,
    version: Option<String>,
}

/// The error for a text that names no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no object: {reason}")]
pub struct ObjectLocationError {
    /// The text, shortened and with control characters escaped.
    pub text: String,
    /// The fault.
    pub reason: String,
}

impl ObjectLocation {
    /// Parses `s3://BUCKET/KEY[?versionId=VERSION]`; `None` for a text with another beginning.
    pub fn parse(text: &str) -> Option<Result<Self, ObjectLocationError>> {
        let rest = text.strip_prefix(SCHEME)?;
        let refuse = |reason: &str| ObjectLocationError {
            text: escaped(text, SHOWN_CHARACTERS),
            reason: reason.to_owned(),
        };
        Some(Self::parse_rest(rest).map_err(refuse))
    }

    fn parse_rest(rest: &str) -> Result<Self, &'static str> {
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, key) = rest.split_once('/').ok_or("expected s3://BUCKET/KEY")?;
        if !is_bucket(bucket) {
            return Err("a bucket has 3 to 63 lower-case letters, digits, `.` and `-`");
        }
        let key = decoded(key).ok_or("its key is not percent-encoded UTF-8")?;
        let versions = query.split('&').filter_map(|pair| pair.split_once('='));
        let mut versions = versions.filter(|(name, _)| *name == VERSION);
        let version = match versions.next() {
            Some((_, version)) => Some(decoded(version).ok_or("its version is malformed")?),
            None => None,
        };
        let version = version.filter(|version| !version.is_empty());
        match key.len() {
            0 => Err("the key is missing: expected s3://BUCKET/KEY"),
            1..=KEY_LIMIT_BYTES
                if version.as_ref().is_none_or(|it| it.len() <= KEY_LIMIT_BYTES) =>
            {
                Ok(Self { bucket: bucket.to_owned(), key, version })
            }
            _ => Err("its key or version is longer than 1,024 bytes"),
        }
    }

    /// The bucket: lower-case letters, digits, `.` and `-` only.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The key, which may hold any character.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The version, where the text names one.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }
}

impl fmt::Display for ObjectLocation {
    /// Writes `s3://BUCKET/KEY` for messages; a key may hold anything, so control characters are
    /// escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.bucket, escaped(&self.key, SHOWN_CHARACTERS))?;
        match &self.version {
            Some(version) => write!(f, "?{VERSION}={}", escaped(version, SHOWN_CHARACTERS)),
            None => Ok(()),
        }
    }
}

fn is_bucket(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    BUCKET_BYTES.contains(&bytes.len())
        && bytes.iter().all(|&byte| is_plain(byte) || byte == b'.' || byte == b'-')
        && is_plain(bytes[0])
        && is_plain(bytes[bytes.len() - 1])
        && !name.contains("..")
}

/// A text whose `%XX` are bytes; `None` where one of them, or the whole, is malformed.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        match first {
            b'%' => {
                let (digits, behind) = rest.split_at_checked(2)?;
                let is_hexadecimal = digits.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(digits).ok().filter(|_| is_hexadecimal)?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = behind;
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Result<ObjectLocation, ObjectLocationError> {
        ObjectLocation::parse(text).expect("it begins with s3://")
    }

    #[rstest]
    #[case("s3://my-bucket/path/to/file", "path/to/file", None)]
    #[case("s3://my-bucket//file", "/file", None)]
    #[case("s3://my-bucket/a%20b%2Fc", "a b/c", None)]
    #[case("s3://my-bucket/a+b", "a+b", None)]
    #[case("s3://my-bucket/../x", "../x", None)]
    #[case("s3://my-bucket/x?versionId=v.1%2B", "x", Some("v.1+"))]
    #[case("s3://my-bucket/x?a=b&versionId=2#f", "x", Some("2"))]
    #[case("s3://my-bucket/x?versionId=", "x", None)]
    fn objects_are_read_as_kit_reads_them(
        #[case] text: &str,
        #[case] key: &str,
        #[case] version: Option<&str>,
    ) {
        let object = parse(text).unwrap();
        assert_eq!((object.bucket(), object.key(), object.version()), ("my-bucket", key, version));
    }

    #[rstest]
    #[case("s3://")]
    #[case("s3://bucket")]
    #[case("s3://bucket/")]
    #[case("s3:///key")]
    #[case("s3://Bucket/key")]
    #[case("s3://evil.example#.b/key")]
    #[case("s3://user@host/key")]
    #[case("s3://host:80/key")]
    #[case("s3://a..b/key")]
    #[case("s3://-bucket/key")]
    #[case("s3://bucket/%zz")]
    #[case("s3://bucket/%+1")]
    #[case("s3://bucket/%2")]
    #[case("s3://bucket/%ff")]
    fn a_text_that_names_no_object_is_refused(#[case] text: &str) {
        assert!(parse(text).is_err(), "{text}");
    }

    #[test]
    fn other_texts_and_long_keys() {
        for text in ["ghcr.io/org/kit:v1", "S3://bucket/key", "https://s3.example/b/k", ""] {
            assert_eq!(ObjectLocation::parse(text), None, "{text}");
        }
        assert!(parse(&format!("s3://bucket/{}", "k".repeat(1024))).is_ok());
        assert!(parse(&format!("s3://bucket/{}", "k".repeat(1025))).is_err());
        let hostile = parse("s3://bucket/%1b%5b2J").unwrap().to_string();
        assert!(!hostile.contains('\u{1b}'), "{hostile}");
    }

    proptest! {
        /// With any text behind the scheme, the bucket can be a label of a host name.
        #[test]
        fn a_bucket_is_never_more_than_a_name(rest in "[a-z0-9A-Z./:@#?%-]{0,30}") {
            if let Ok(object) = parse(&format!("s3://{rest}")) {
                let is_host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
                prop_assert!(object.bucket().chars().all(is_host));
                prop_assert!(!object.key().is_empty());
            }
        }
    }
}
