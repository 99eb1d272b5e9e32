//! The address of a token server, and its answer (distribution's "Token Authentication Specification",
//! and its OAuth2 variant). Pure.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde_json::{Map, Value};
use url::Url;

use super::challenge::Challenge;
use super::encoding;
use super::message;
use super::redirect;

/// The life of a token without a usable `expires_in` (token specification).
const DEFAULT_LIFETIME_SECONDS: f64 = 60.0;

/// The longest lifetime that kitfs accepts. A day: a renewal that is too early costs one request.
const MAX_LIFETIME_SECONDS: f64 = 86_400.0;

/// The longest time before its end at which a token is renewed. 10 s: the token must still be valid when the
/// registry checks a request that starts now.
const MARGIN: Duration = Duration::from_secs(10);

/// The address of a token server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
}

impl Server {
    /// The token server that a Bearer challenge of `registry` names.
    ///
    /// A registry behind a TLS proxy may name itself by http, although clients use https. Then kitfs uses https for
    /// its token server too. A path alone (`/token`) is a path of the registry.
    ///
    /// # Errors
    /// The message, when the realm is missing or no URL. Also when it is plain http at another host than that of an
    /// https registry, because passwords go there.
    pub(super) fn new(challenge: &Challenge, registry: &Url) -> Result<Self, String> {
        let realm = challenge.parameter("realm").filter(|realm| !realm.is_empty());
        let realm = realm.ok_or("it wants a token, and does not say from which token server")?;
        let named = registry
            .join(realm)
            .map_err(|_| format!("its token server `{}` is no URL", message::quoted(realm)))?;
        let mut realm = redirect::by_https_at_home(&named, registry);
        match (registry.scheme(), realm.scheme()) {
            (_, "https") | ("http", "http") => {}
            _ => {
                return Err(format!(
                    "its token server {} does not speak https, and would get passwords in the clear",
                    message::without_secrets(&realm)
                ));
            }
        }
        realm
            .set_username("")
            .and_then(|()| realm.set_password(None))
            .expect("http URLs have a host");
        let service = challenge.parameter("service").map(str::to_owned);
        Ok(Self { realm, service })
    }

    /// The server as messages name it.
    pub(super) fn name(&self) -> String {
        message::without_secrets(&self.realm)
    }
}

/// A token and how long it may be used.
#[derive(Debug, PartialEq)]
pub(super) struct Token {
    /// The value of an `Authorization` header.
    pub(super) header: HeaderValue,
    /// The time after the request at which the token is renewed.
    pub(super) renew_after: Duration,
}

impl Token {
    /// Decodes the body of a token server's answer: `token` or `access_token`, and `expires_in`.
    ///
    /// Upper and lower case are the same in names, as for clients in Go. A token must be a text. A lifetime may be
    /// a text, and an unreadable one becomes the default.
    ///
    /// # Errors
    /// A message without text of the body.
    pub(super) fn decode(body: &[u8]) -> Result<Self, String> {
        let body: Map<String, Value> = serde_json::from_slice(encoding::without_mark(body))
            .map_err(|_| "an answer that is not JSON with a token")?;
        let member = |name: &str| {
            let mut members = body.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            members.next().map(|(_, value)| value)
        };
        let text = |name| member(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let token = text("token").or_else(|| text("access_token"));
        let token = token.ok_or("an answer without a token")?;
        let header = bearer(token).ok_or("a token that no HTTP header can carry")?;
        let seconds = member("expires_in").and_then(seconds);
        // Servers without lifetimes send 0, which must not cause a token request for each request.
        let lifetime = seconds.filter(|seconds| *seconds > 0.0).unwrap_or(DEFAULT_LIFETIME_SECONDS);
        let lifetime = Duration::from_secs_f64(lifetime.min(MAX_LIFETIME_SECONDS));
        Ok(Self { header, renew_after: lifetime - MARGIN.min(lifetime / 4) })
    }
}

/// A number of seconds, as a number or as a text.
fn seconds(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|it| !it.is_nan())
}

/// The value of an `Authorization` header for a token.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Whether the token in an `Authorization` header has the right to push to a repository. `None` for an unknown
/// format: only a JSON web token with the claim `access` shows its rights (distribution's "Token Authentication
/// Implementation").
pub(super) fn may_push(header: &HeaderValue, repository: &str) -> Option<bool> {
    #[derive(serde::Deserialize)]
    struct Claims {
        access: Vec<Resource>,
    }
    #[derive(serde::Deserialize)]
    struct Resource {
        name: String,
        actions: Vec<String>,
    }
    let token = header.to_str().ok()?.strip_prefix("Bearer ")?;
    let claims = token.split('.').nth(1)?;
    let claims = BASE64_URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    let mut named = claims.access.iter().filter(|one| one.name == repository);
    Some(named.any(|one| one.actions.iter().any(|action| action == "push" || action == "*")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn server(header: &str, registry: &str) -> Result<Server, String> {
        Server::new(&Challenge::parse(header)[0], &Url::parse(registry).unwrap())
    }

    #[test]
    fn the_challenge_says_where_to_ask() {
        let header = r#"Bearer realm="https://auth.example/t?a=b",service="s""#;
        let got = server(header, "https://ghcr.io/v2/").unwrap();
        assert_eq!(got.realm.as_str(), "https://auth.example/t?a=b");
        assert_eq!(got.service.as_deref(), Some("s"));
    }

    #[test]
    fn passwords_go_to_plain_http_only_where_the_registry_is_plain_http() {
        let header = r#"Bearer realm="http://auth.example/t""#;
        let refusal = server(header, "https://ghcr.io/v2/").unwrap_err();
        assert!(refusal.contains("http://auth.example/t does not speak https"), "{refusal}");
        assert!(server(header, "http://ghcr.io/v2/").is_ok());
        assert!(server(r#"Bearer realm="ftp://x/""#, "http://ghcr.io/v2/").is_err());
    }

    #[rstest]
    #[case::path("/token?a=b", Some("https://r.example:5000/token?a=b"))]
    #[case::below_the_api("token", Some("https://r.example:5000/v2/token"))]
    #[case::scheme_left_out("//auth.example/t", Some("https://auth.example/t"))]
    #[case::user("https://u:p@auth.example/t", Some("https://auth.example/t"))]
    #[case::empty("", None)]
    #[case::no_web("data:text/plain,x", None)]
    #[case::no_url("https://:80/", None)]
    fn a_realm_may_be_a_path_of_the_registry(#[case] realm: &str, #[case] expected: Option<&str>) {
        let got = server(&format!("Bearer realm=\"{realm}\""), "https://r.example:5000/v2/");
        assert_eq!(got.ok().map(|server| server.realm.to_string()).as_deref(), expected);
        assert!(server("Bearer service=x", "https://r.example/v2/").is_err());
    }

    #[rstest]
    #[case::default_ports(
        "http://r.example/t",
        "https://r.example/v2/",
        Some("https://r.example/t")
    )]
    #[case::own_port(
        "http://r.example:8443/t",
        "https://r.example:8443/v2/",
        Some("https://r.example:8443/t")
    )]
    #[case::port_left_out(
        "http://R.example/t",
        "https://r.example:8443/v2/",
        Some("https://r.example:8443/t")
    )]
    #[case::other_port("http://r.example:81/t", "https://r.example/v2/", None)]
    #[case::other_host("http://auth.example/t", "https://r.example/v2/", None)]
    fn a_registry_in_https_that_names_itself_by_http_is_asked_by_https(
        #[case] realm: &str,
        #[case] registry: &str,
        #[case] expected: Option<&str>,
    ) {
        let got = server(&format!("Bearer realm=\"{realm}\""), registry);
        assert_eq!(got.ok().map(|server| server.realm.to_string()).as_deref(), expected);
    }

    #[rstest]
    #[case::plain(r#"{"token":"t"}"#, 50)]
    #[case::oauth(r#"{"token":"","access_token":"t","expires_in":3600}"#, 3590)]
    #[case::null(r#"{"token":null,"access_token":"t","expires_in":null}"#, 50)]
    #[case::short(r#"{"token":"t","expires_in":4}"#, 3)]
    #[case::text(r#"{"token":"t","expires_in":"300"}"#, 290)]
    #[case::text_of_a_fraction(r#"{"token":"t","expires_in":" 300.0 "}"#, 290)]
    #[case::words(r#"{"token":"t","expires_in":"an hour"}"#, 50)]
    #[case::not_a_number(r#"{"token":"t","expires_in":"NaN"}"#, 50)]
    #[case::none(r#"{"token":"t","expires_in":0}"#, 50)]
    #[case::negative(r#"{"token":"t","expires_in":-5}"#, 50)]
    #[case::list(r#"{"token":"t","expires_in":[300]}"#, 50)]
    #[case::eternal(r#"{"token":"t","expires_in":1e300}"#, 86_390)]
    #[case::endless(r#"{"token":"t","expires_in":"inf"}"#, 86_390)]
    #[case::names_in_go(r#"{"Token":"t","Expires_In":300}"#, 290)]
    #[case::byte_order_mark("\u{feff}{\"token\":\"t\"}", 50)]
    fn answers(#[case] body: &str, #[case] seconds: u64) {
        let token = Token::decode(body.as_bytes()).unwrap();
        assert_eq!(token.header, "Bearer t");
        assert!(token.header.is_sensitive());
        assert_eq!(token.renew_after, Duration::from_secs(seconds));
    }

    #[test]
    fn answers_without_a_usable_token_are_refused_without_quoting_them() {
        for body in
            ["", "{}", "[]", r#"{"token":null}"#, r#"{"token":"se\ncret"}"#, r#"{"token":1}"#]
        {
            let refusal = Token::decode(body.as_bytes()).unwrap_err();
            assert!(!refusal.contains("cret"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn any_lifetime_is_survived(lifetime in prop_oneof![
            any::<f64>().prop_map(|it| it.to_string()),
            any::<i64>().prop_map(|it| it.to_string()),
            "\"[ -~]{0,12}\"",
        ]) {
            let body = format!(r#"{{"token":"t","expires_in":{lifetime}}}"#);
            if let Ok(token) = Token::decode(body.as_bytes()) {
                prop_assert!(token.renew_after <= Duration::from_secs(86_390));
            }
        }
    }

    #[test]
    fn the_right_to_push_is_read_from_the_token() {
        let header = |claims: &str| {
            bearer(&format!("e30.{}.sig", BASE64_URL_SAFE_NO_PAD.encode(claims))).unwrap()
        };
        let access = |actions: &str| {
            header(&format!(
                r#"{{"access":[{{"type":"repository","name":"org/kit","actions":[{actions}]}}]}}"#
            ))
        };
        assert_eq!(may_push(&access(r#""pull","push""#), "org/kit"), Some(true));
        assert_eq!(may_push(&access(r#""*""#), "org/kit"), Some(true));
        assert_eq!(may_push(&access(r#""pull""#), "org/kit"), Some(false));
        assert_eq!(may_push(&access(r#""push""#), "org/other"), Some(false));
        assert_eq!(may_push(&header("{}"), "org/kit"), None);
        assert_eq!(may_push(&bearer("opaque").unwrap(), "org/kit"), None);
        assert_eq!(may_push(&HeaderValue::from_static("Basic YTpi"), "org/kit"), None);
    }
}
