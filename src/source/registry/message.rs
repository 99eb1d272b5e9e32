//! Messages for people: why a request failed, and the words of the registry about it.
//!
//! URLs print without query and user, because both may have secrets. The target of a redirect prints without its
//! path too. Words of a registry are shortened and have no control characters.

use std::error::Error;

use serde::Deserialize;
use url::Url;

/// The most characters of a quotation. 200: a sentence or two.
const QUOTE_LIMIT: usize = 200;

/// Scheme, host and port.
pub(super) fn origin(url: &Url) -> String {
    format!("{}://{}", url.scheme(), authority(url))
}

/// Host, and port where it is not the scheme's own.
pub(in crate::source) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// A URL without its secrets.
pub(super) fn without_secrets(url: &Url) -> String {
    format!("{}{}", origin(url), url.path())
}

/// The reason why a request got no answer, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) words: String,
    pub(super) kind: Kind,
    /// Whether the host answers, but not in TLS.
    pub(super) is_not_tls: bool,
    /// Whether no connection was made at all.
    pub(super) is_connect: bool,
}

/// The kind of a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The same request may succeed a little later.
    Passing,
    /// No host has that name.
    Nameless,
    /// The host does not prove its identity in TLS.
    Untrusted,
    /// The same, because the authority that signed its certificate is not known here.
    UnknownAuthority,
    /// The host wants a client certificate.
    WantsCertificate,
}

/// Words without information, which the HTTP client and its parts put before a cause.
const INTRODUCTIONS: [&str; 7] = [
    "client error (Connect)",
    "client error (SendRequest)",
    "error trying to connect",
    "tcp connect error",
    "dns error",
    "error resolving DNS",
    "failed to lookup address information",
];

/// Words of rustls, std and glibc that identify a cause, with its kind and the advice.
const KNOWN: [(&[&str], Kind, &str); 10] = [
    (
        &["InvalidContentType"],
        Kind::Untrusted,
        "it speaks plain http, not https: pass --plain-http if the network on the way is trusted",
    ),
    (
        &["UnknownIssuer", "CaUsedAsEndEntity"],
        Kind::UnknownAuthority,
        "its certificate is signed by an authority that is not trusted here",
    ),
    (
        &["not valid yet", "NotValidYet"],
        Kind::Untrusted,
        "its certificate is not valid yet: check this machine's clock, or pass --tls-verify=false \
         to trust anyone",
    ),
    (
        &["not valid for name", "NotValidForName"],
        Kind::Untrusted,
        "its certificate is for another host name: check the name, or pass \
         --tls-verify=false to trust anyone",
    ),
    (
        &["certificate expired", "Expired"],
        Kind::Untrusted,
        "its certificate has expired: renew it, check this machine's clock, or pass \
         --tls-verify=false to trust anyone",
    ),
    (
        &["CertificateRequired", "certificate required"],
        Kind::WantsCertificate,
        "it wants a client certificate",
    ),
    (
        &["invalid peer certificate"],
        Kind::Untrusted,
        "its certificate cannot be verified: pass its authority with --ca-file, or \
         --tls-verify=false to trust anyone",
    ),
    (
        &["peer is incompatible", "peer misbehaved", "received corrupt message"],
        Kind::Untrusted,
        "it speaks no TLS that kitfs accepts (1.2 and 1.3): check the name and the port",
    ),
    (
        &["Name or service not known", "No address associated", "invalid dns name"],
        Kind::Nameless,
        "no host has that name: check the name, and the DNS of this machine",
    ),
    (&["dns error", "failed to lookup address"], Kind::Passing, "its name cannot be resolved"),
];

impl Cause {
    /// The cause behind an error of the HTTP client.
    pub(super) fn of(error: &reqwest::Error) -> Self {
        let mut chain: Vec<String> = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            let words = cause.to_string();
            // A wrapper repeats the words of its cause.
            chain.retain(|outer| !outer.contains(&words));
            chain.push(words);
            next = cause.source();
        }
        if error.is_timeout() {
            chain = vec!["the connection timed out".into()];
        }
        Self { is_connect: error.is_connect(), ..Self::from_chain(&chain.join(": ")) }
    }

    /// Recognises known causes, and shows others unchanged.
    fn from_chain(chain: &str) -> Self {
        let is_known = |words: &&[&str]| words.iter().any(|words| chain.contains(words));
        let essence = quoted(without_introductions(chain));
        let known = KNOWN.iter().find(|(words, ..)| is_known(words));
        let (kind, words) = match known {
            Some((_, kind, advice)) => (*kind, format!("{advice} ({essence})")),
            None if essence.is_empty() => (Kind::Passing, "the connection failed".to_owned()),
            None => (Kind::Passing, essence),
        };
        Self { words, kind, is_not_tls: chain.contains("InvalidContentType"), is_connect: false }
    }
}

/// A chain of causes without its introductions.
fn without_introductions(chain: &str) -> &str {
    let mut rest = chain;
    while let Some(behind) = INTRODUCTIONS.iter().find_map(|words| rest.strip_prefix(words)) {
        rest = behind.trim_start_matches([':', ' ']);
    }
    if rest.is_empty() { chain } else { rest }
}

/// The message in an error's body: of a registry (distribution-spec, "Error Codes"), or of a token
/// server (RFC 6749, 5.2; `details` in Docker's own). `None` where the body is neither.
pub(super) fn registry_words(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<One>,
        details: Option<String>,
        error_description: Option<String>,
        message: Option<String>,
    }
    #[derive(Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    let one = body.errors.into_iter().next().and_then(|one| one.message.or(one.code));
    let words = one.or(body.details).or(body.error_description).or(body.message)?;
    (!words.trim().is_empty()).then(|| quoted(&words))
}

/// The start of foreign words, safe for one line of a terminal.
pub(super) fn quoted(words: &str) -> String {
    let clean = words.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = clean.take(QUOTE_LIMIT).collect();
    if words.trim().chars().count() > QUOTE_LIMIT {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn no_secret_of_a_url_prints() {
        let url = Url::parse("https://user:pass@cdn.example:8443/a/b?X-Amz-Signature=s#f").unwrap();
        assert_eq!(origin(&url), "https://cdn.example:8443");
        assert_eq!(without_secrets(&url), "https://cdn.example:8443/a/b");
    }

    #[rstest]
    #[case("received corrupt message of type InvalidContentType", "--plain-http")]
    #[case("invalid peer certificate: certificate not valid yet: at 1", "clock")]
    #[case("invalid peer certificate: certificate not valid for name \"x\"", "another host name")]
    #[case("invalid peer certificate: BadSignature", "cannot be verified")]
    #[case("peer is incompatible: NoCipherSuitesInCommon", "TLS")]
    fn a_host_that_does_not_prove_its_identity_is_not_trusted(
        #[case] chain: &str,
        #[case] advice: &str,
    ) {
        let cause = Cause::from_chain(chain);
        assert_eq!(cause.kind, Kind::Untrusted);
        assert!(cause.words.contains(advice) && cause.words.contains(chain), "{}", cause.words);
    }

    #[rstest]
    #[case(
        "client error (Connect): dns error: failed to lookup address information: Temporary failure in name resolution",
        Kind::Passing,
        "its name cannot be resolved (Temporary failure in name resolution)"
    )]
    #[case(
        "client error (Connect): dns error: error resolving DNS: failed to lookup address information: Name or service not known",
        Kind::Nameless,
        "no host has that name: check the name, and the DNS of this machine (Name or service not known)"
    )]
    #[case(
        "client error (Connect): tcp connect error: Connection refused (os error 111)",
        Kind::Passing,
        "Connection refused (os error 111)"
    )]
    #[case("client error (SendRequest)", Kind::Passing, "client error (SendRequest)")]
    #[case("", Kind::Passing, "the connection failed")]
    fn causes_are_told_short(#[case] chain: &str, #[case] kind: Kind, #[case] words: &str) {
        let cause = Cause::from_chain(chain);
        assert_eq!((cause.kind, cause.words.as_str()), (kind, words));
    }

    #[test]
    fn registries_are_quoted_short_and_clean() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\u001b[31m access"}]}"#;
        assert_eq!(registry_words(body).unwrap(), "no [31m access");
        assert_eq!(registry_words(br#"{"errors":[{"code":"DENIED"}]}"#).unwrap(), "DENIED");
        assert_eq!(registry_words(br#"{"details":"wrong"}"#).unwrap(), "wrong");
        assert_eq!(registry_words(b"<html>"), None);
        assert_eq!(registry_words(b"{}"), None);
        let long = serde_json::json!({"message": "x".repeat(5000)}).to_string();
        assert_eq!(registry_words(long.as_bytes()).unwrap().chars().count(), QUOTE_LIMIT + 1);
    }
}
