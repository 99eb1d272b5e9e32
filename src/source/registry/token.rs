//! What to ask a token server, and what it may answer (distribution's "Token Authentication
//! Specification", and its OAuth2 variant). Pure.

use std::time::Duration;

use http::HeaderValue;
use serde::Deserialize;
use url::Url;

use super::challenge::Challenge;
use super::message;

/// How long a token lives that does not say it (token specification, `expires_in`).
const DEFAULT_LIFETIME_SECONDS: f64 = 60.0;

/// The longest life that is believed. A day: what is renewed too early costs one request.
const MAX_LIFETIME_SECONDS: f64 = 86_400.0;

/// How long before its end a token is renewed, at most: a request that starts now must still be
/// under way when the registry looks at the token.
const MARGIN: Duration = Duration::from_secs(10);

/// Where to get a token, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scopes: Vec<String>,
}

impl Question {
    /// What a Bearer challenge asks for, for reading `repository`.
    ///
    /// The scope of the challenge counts where it has one, because a mirror may keep the
    /// repository under another name; its actions are cut down to `pull`.
    ///
    /// # Errors
    /// In words, when the realm is no URL, or is plain http where the registry is not: passwords
    /// go there.
    pub(super) fn new(
        challenge: &Challenge,
        registry: &Url,
        repository: &str,
    ) -> Result<Self, String> {
        let realm = challenge.parameter("realm").unwrap_or_default();
        let mut realm = Url::parse(realm)
            .map_err(|_| format!("its token server `{}` is no URL", message::quoted(realm)))?;
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
        let asked = challenge.parameter("scope").unwrap_or_default();
        let mut scopes: Vec<_> = asked.split_ascii_whitespace().map(reading).collect();
        if scopes.is_empty() {
            scopes.push(format!("repository:{repository}:pull"));
        }
        let service = challenge.parameter("service").map(str::to_owned);
        Ok(Self { realm, service, scopes })
    }
}

/// A scope with no more than the right to read.
fn reading(scope: &str) -> String {
    match scope.rsplit_once(':') {
        Some((resource, _)) if resource.starts_with("repository:") => format!("{resource}:pull"),
        Some(_) | None => scope.to_owned(),
    }
}

/// A token and how long it may be used.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    /// The value of an `Authorization` header.
    pub(super) header: HeaderValue,
    /// How long after the request it is time for the next one.
    pub(super) renew_after: Duration,
}

impl Answer {
    /// Decodes the body of a token server's answer.
    ///
    /// # Errors
    /// In words that hold nothing of the body.
    pub(super) fn decode(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Body {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<f64>,
        }
        let body: Body =
            serde_json::from_slice(body).map_err(|_| "an answer that is not JSON with a token")?;
        let token = [body.token, body.access_token].into_iter().flatten().find(|t| !t.is_empty());
        let token = token.ok_or("an answer without a token")?;
        let header = bearer(&token).ok_or("a token that no HTTP header can carry")?;
        // Servers that count no time send a 0, which must not mean a token for each request.
        let lifetime = body.expires_in.filter(|seconds| *seconds > 0.0);
        let lifetime = lifetime.unwrap_or(DEFAULT_LIFETIME_SECONDS).min(MAX_LIFETIME_SECONDS);
        let lifetime = Duration::from_secs_f64(lifetime);
        Ok(Self { header, renew_after: lifetime - MARGIN.min(lifetime / 4) })
    }
}

/// The value of an `Authorization` header for a token.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(header: &str, registry: &str) -> Result<Question, String> {
        let challenge = &Challenge::parse(header)[0];
        Question::new(challenge, &Url::parse(registry).unwrap(), "org/model")
    }

    #[test]
    fn the_scope_is_that_of_the_challenge_but_only_to_pull() {
        let header = r#"Bearer realm="https://auth.example/t?a=b",service="s",scope="repository:org/model:pull,push""#;
        let got = question(header, "https://ghcr.io/v2/").unwrap();
        assert_eq!(got.realm.as_str(), "https://auth.example/t?a=b");
        assert_eq!(got.service.as_deref(), Some("s"));
        assert_eq!(got.scopes, ["repository:org/model:pull"]);
    }

    #[test]
    fn a_challenge_without_scope_asks_for_the_repository() {
        let got = question("Bearer realm=https://auth.example/t", "https://ghcr.io/v2/").unwrap();
        assert_eq!(got.scopes, ["repository:org/model:pull"]);
    }

    #[test]
    fn passwords_go_to_plain_http_only_where_the_registry_is_plain_http() {
        let header = r#"Bearer realm="http://auth.example/t""#;
        let refusal = question(header, "https://ghcr.io/v2/").unwrap_err();
        assert!(refusal.contains("http://auth.example/t does not speak https"), "{refusal}");
        assert!(question(header, "http://ghcr.io/v2/").is_ok());
        assert!(question(r#"Bearer realm="ftp://x/""#, "http://ghcr.io/v2/").is_err());
        assert!(question("Bearer realm=/relative", "http://ghcr.io/v2/").is_err());
        assert!(question("Bearer service=x", "http://ghcr.io/v2/").is_err());
    }

    #[test]
    fn answers() {
        let decode = |body: &str| Answer::decode(body.as_bytes());
        let plain = decode(r#"{"token":"t"}"#).unwrap();
        assert_eq!(plain.header, "Bearer t");
        assert!(plain.header.is_sensitive());
        assert_eq!(plain.renew_after, Duration::from_secs(50));

        let oauth = decode(r#"{"token":"","access_token":"a","expires_in":3600}"#).unwrap();
        assert_eq!(oauth.header, "Bearer a");
        assert_eq!(oauth.renew_after, Duration::from_secs(3590));

        let short = decode(r#"{"token":"t","expires_in":4}"#).unwrap();
        assert_eq!(short.renew_after, Duration::from_secs(3));
        for none in ["0", "-5", "null"] {
            let body = format!(r#"{{"token":"t","expires_in":{none}}}"#);
            assert_eq!(decode(&body).unwrap().renew_after, Duration::from_secs(50), "{none}");
        }
        let eternal = decode(r#"{"token":"t","expires_in":1e300}"#).unwrap();
        assert_eq!(eternal.renew_after, Duration::from_secs(86_390));
    }

    #[test]
    fn answers_without_a_usable_token_are_refused_without_quoting_them() {
        for body in ["", "{}", "[]", r#"{"token":null}"#, r#"{"token":"se\ncret"}"#] {
            let refusal = Answer::decode(body.as_bytes()).unwrap_err();
            assert!(!refusal.contains("cret"), "{refusal}");
        }
    }
}
