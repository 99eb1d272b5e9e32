//! Takes secrets out of text that a person may share: logs, reports.
//!
//! ```text
//! text --known secrets--> --private keys--> --URLs--> --KEY = VALUE, headers--> --tokens by their form--> text
//! ```
//!
//! The first step knows the secrets of this machine, and finds them anywhere. The others know the forms of secrets.
//! They find unlisted secrets, and rather take too much than too little. Pure: the caller collects the known
//! secrets.

/// The text in the place of a secret.
pub const REDACTED: &str = "<redacted>";

/// The least length of a known secret. With shorter ones, a report would have a mark in the place of every `a`.
const LEAST_BYTES: usize = 4;

/// The least length of a credential behind `Bearer` or `Basic`. Shorter words are ordinary text.
const LEAST_CREDENTIAL: usize = 8;

/// The least length of a token with a known beginning.
const LEAST_TOKEN: usize = 16;

/// The beginnings of tokens of well-known services: AWS, JSON web tokens, GitHub, GitLab, Hugging Face, Docker Hub.
const TOKEN_BEGINNINGS: [&str; 13] = [
    "AKIA",
    "ASIA",
    "eyJ",
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "hf_",
    "dckr_pat_",
    "dckr_oat_",
];

/// The schemes of `Authorization` headers.
const SCHEMES: [&str; 3] = ["bearer", "basic", "negotiate"];

/// How names of secrets end, in lower case and without `-`, `_` and `.`.
const SECRET_ENDS: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "accesskeyid",
    "secretkey",
    "privatekey",
    "signature",
    "credential",
    "authorization",
    "cookie",
];

/// Whole names of secrets, in the same form.
const SECRET_NAMES: [&str; 5] = ["auth", "pass", "pwd", "sig", "xregistryauth"];

/// Takes secrets out of text.
#[derive(Default)]
pub struct Redactor {
    /// The longest first, so that no secret leaves the end of a longer one.
    known: Vec<String>,
}

impl Redactor {
    /// A redactor that also knows these secrets.
    pub fn new(known: impl IntoIterator<Item = String>) -> Self {
        let mut known: Vec<_> =
            known.into_iter().filter(|secret| secret.len() >= LEAST_BYTES).collect();
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        known.dedup();
        Self { known }
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.known {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), REDACTED);
            }
        }
        let mut redacted = String::with_capacity(text.len());
        let mut is_in_key = false;
        for line in text.split_inclusive('\n') {
            let end = if line.ends_with('\n') { "\n" } else { "" };
            if is_in_key {
                is_in_key = !line.contains("-----END");
                continue;
            }
            match private_key(line) {
                Some((before, is_open)) => {
                    redacted.push_str(&of_line(before));
                    redacted.push_str(REDACTED);
                    redacted.push_str(end);
                    is_in_key = is_open;
                }
                None => redacted.push_str(&of_line(line)),
            }
        }
        redacted
    }
}

/// The text before a private key in PEM, and whether the key goes on in the next line.
fn private_key(line: &str) -> Option<(&str, bool)> {
    let at = line.find("-----BEGIN ")?;
    let (before, key) = line.split_at(at);
    key.contains("PRIVATE KEY").then(|| (before, !key.contains("-----END")))
}

fn of_line(line: &str) -> String {
    tokens(&named(&urls(line)))
}

/// A value that may be a URL, such as one of a proxy, without its user and password: `***` stands for both. The value
/// need not be well-formed, because it may stand in an error.
pub fn without_user(value: &str) -> String {
    let Some(at) = value.rfind('@') else { return value.to_owned() };
    let (before, behind) = value.split_at(at);
    let is_scheme =
        |text: &str| text.bytes().all(|it| it.is_ascii_alphanumeric() || b"+-.".contains(&it));
    let (scheme, rest) = match before.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
        _ => (None, before),
    };
    if scheme.is_none() && value.starts_with(['/', '.', '~']) {
        return value.to_owned();
    }
    // The `@` of a path: a host, perhaps a port, and a slash come before it.
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let port = host.split_once(':').map_or("", |(_, port)| port);
    let is_host = !host.is_empty()
        && !host.contains(['@', '\\'])
        && port.bytes().all(|it| it.is_ascii_digit());
    let is_digest = behind.starts_with("@sha256:") || behind.starts_with("@sha512:");
    if (is_digest || scheme.is_some()) && is_host && !path.is_empty() {
        return value.to_owned();
    }
    match scheme {
        Some(scheme) => format!("{scheme}://***{behind}"),
        None => format!("***{behind}"),
    }
}

/// Takes the user, the password and the query out of URLs.
fn urls(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || c.is_control() || "\"'`<>\\".contains(c);
        let (url, next) = behind.split_at(behind.find(ends).unwrap_or(behind.len()));
        let (place, query) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        // A password may have a slash or a question mark that should have been encoded.
        let user = url.rfind('@').filter(|&at| !url[at..].starts_with("@sha256:"));
        let query = match user {
            Some(at) => {
                out.push_str(REDACTED);
                let behind = &url[at..];
                let (place, query) =
                    behind.split_at(behind.find(['?', '#']).unwrap_or(behind.len()));
                out.push_str(place);
                query
            }
            None => {
                out.push_str(place);
                query
            }
        };
        match query.len() {
            0 | 1 => out.push_str(query),
            _ => {
                out.push('?');
                out.push_str(REDACTED);
            }
        }
        rest = next;
    }
    out.push_str(rest);
    out
}

/// Whether a character belongs to the name of a value.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Takes out the values of names that secrets have: `password=…`, `"auth": "…"`, `Authorization: …`.
fn named(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find(is_of_name) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (name, behind) = rest.split_at(rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()));
        out.push_str(name);
        rest = behind;
        if !is_secret_name(name) {
            continue;
        }
        let Some(gap) = gap_to_value(rest) else { continue };
        let (gap, behind) = rest.split_at(gap);
        if is_another_name(behind) {
            continue;
        }
        let length = value_length(gap, behind, is_header(name));
        if length > 0 {
            out.push_str(gap);
            out.push_str(REDACTED);
            rest = &behind[length..];
        }
    }
    out.push_str(rest);
    out
}

/// Whether the text begins with another name of a secret and its value.
fn is_another_name(text: &str) -> bool {
    let (name, behind) = text.split_at(text.find(|c| !is_of_name(c)).unwrap_or(text.len()));
    is_secret_name(name) && gap_to_value(behind).is_some()
}

fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

/// Whether a value of this name is a secret: `AWS_SECRET_ACCESS_KEY`, `identitytoken`, `Authorization`.
pub fn is_secret_name(name: &str) -> bool {
    let name = plain(name);
    SECRET_NAMES.contains(&name.as_str()) || SECRET_ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether a name is that of a header whose value goes on to the end of the line.
fn is_header(name: &str) -> bool {
    let name = plain(name);
    name.ends_with("authorization") || name.ends_with("cookie")
}

/// The length of the gap between a name and its value: quotes, blanks, and one `=` or `:`.
fn gap_to_value(text: &str) -> Option<usize> {
    let is_blank = |c: &char| matches!(c, ' ' | '\t' | '"' | '\'' | '\\');
    let before: usize = text.chars().take_while(is_blank).map(char::len_utf8).sum();
    let separator = text[before..].chars().next().filter(|c| matches!(c, '=' | ':'))?;
    let behind = before + separator.len_utf8();
    let blanks: usize = text[behind..].chars().take_while(is_blank).map(char::len_utf8).sum();
    Some(behind + blanks)
}

/// The length of a value behind `gap`. A quoted value ends at its quote.
fn value_length(gap: &str, value: &str, is_header: bool) -> usize {
    let quote = gap.chars().next_back().filter(|c| matches!(c, '"' | '\''));
    match quote {
        Some(quote) => {
            let mut is_escaped = false;
            for (at, c) in value.char_indices() {
                match c {
                    _ if is_escaped => is_escaped = false,
                    '\n' => return at,
                    // An escaped quote may be the end, where the whole text is quoted.
                    '\\' if value[at + 1..].starts_with(quote) && gap.contains('\\') => return at,
                    '\\' => is_escaped = true,
                    c if c == quote => return at,
                    _ => {}
                }
            }
            value.len()
        }
        None if is_header => value.find(['\n', '"', '\'']).unwrap_or(value.len()),
        None => {
            let ends = |c: char| c.is_whitespace() || ",;&\"'`)}]".contains(c);
            value.find(ends).unwrap_or(value.len())
        }
    }
}

/// Takes out tokens with known beginnings, and credentials behind the name of a scheme.
fn tokens(line: &str) -> String {
    let is_of_token = |c: char| c.is_ascii_alphanumeric() || "+/=_.~-".contains(c);
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    let mut follows_scheme = false;
    while let Some(at) = rest.find(is_of_token) {
        let between = &rest[..at];
        out.push_str(between);
        follows_scheme &= between.trim().is_empty();
        rest = &rest[at..];
        let (token, behind) = rest.split_at(rest.find(|c| !is_of_token(c)).unwrap_or(rest.len()));
        let is_credential = follows_scheme && token.len() >= LEAST_CREDENTIAL;
        match is_credential.then_some(0).or_else(|| token_at(token)) {
            Some(at) => {
                out.push_str(&token[..at]);
                out.push_str(REDACTED);
            }
            None => out.push_str(token),
        }
        follows_scheme = SCHEMES.contains(&token.to_ascii_lowercase().as_str());
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The position of a token with a known beginning in a run of characters.
fn token_at(run: &str) -> Option<usize> {
    let starts = TOKEN_BEGINNINGS.iter().filter_map(|beginning| {
        let at = run.find(beginning)?;
        let is_start = !run[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
        (is_start && run.len() - at >= LEAST_TOKEN).then_some(at)
    });
    starts.min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn redacted(text: &str) -> String {
        Redactor::default().text(text)
    }

    #[rstest]
    #[case("https://proxy.example:3128/a@b", "https://proxy.example:3128/a@b")]
    #[case("ghcr.io/org/kit@sha256:00", "ghcr.io/org/kit@sha256:00")]
    #[case("/home/me@corp/cache", "/home/me@corp/cache")]
    #[case("https://token@host/x", "https://***@host/x")]
    #[case("u:p@host:1", "***@host:1")]
    #[case("no address", "no address")]
    fn a_value_that_is_no_url_with_a_user_stays(#[case] value: &str, #[case] expected: &str) {
        assert_eq!(without_user(value), expected);
    }

    #[rstest]
    #[case("at https://u:p@host/x?sig=abc, then", "at https://<redacted>@host/x?<redacted> then")]
    #[case("http://u:p/a?s@host:80/", "http://<redacted>@host:80/")]
    #[case("Authorization: Basic dTpw", "Authorization: <redacted>")]
    #[case("got Bearer abcdefghij.k", "got Bearer <redacted>")]
    #[case(r#"{"auth":"dTpw","x":1}"#, r#"{"auth":"<redacted>","x":1}"#)]
    #[case(r#""{\"password\": \"a b\"}""#, r#""{\"password\": \"<redacted>\"}""#)]
    #[case("AWS_SECRET_ACCESS_KEY=a/b+c rest", "AWS_SECRET_ACCESS_KEY=<redacted> rest")]
    #[case("key AKIAIOSFODNN7EXAMPLE", "key <redacted>")]
    #[case(
        "a\n-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nb",
        "a\n<redacted>\nb"
    )]
    fn secrets_are_found_by_their_form(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(redacted(text), expected);
    }

    #[rstest]
    #[case("https://ghcr.io/org/model@sha256:0123 was read")]
    #[case("it wants Basic and Bearer")]
    #[case("tokenizer.json: not found, max_tokens=5")]
    #[case("digest=sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")]
    #[case("credentials: none for ghcr.io; authorities: 5")]
    #[case("the token server of r.example")]
    fn other_text_stays(#[case] text: &str) {
        assert_eq!(redacted(text), text);
    }

    #[test]
    fn known_secrets_are_found_anywhere_and_the_longer_one_first() {
        let redactor = Redactor::new(["hunter2".to_owned(), "hunter22".to_owned(), "a".to_owned()]);
        assert_eq!(redactor.text("xhunter22x hunter2 a"), "x<redacted>x <redacted> a");
    }

    /// Places where a secret stands, with `SECRET` for it.
    const PLACES: [&str; 16] = [
        "https://user:SECRET@host.example/path",
        "registry+https://SECRET@host.example",
        "GET https://host.example/blob?X-Amz-Signature=SECRET&b=c HTTP/1.1",
        "\"url\":\"https://host.example/blob?sig=SECRET\"",
        "Authorization: Bearer SECRET",
        "authorization=\"Basic SECRET\"",
        "{\"auths\":{\"ghcr.io\":{\"auth\":\"SECRET\"}}}",
        "{\\\"identitytoken\\\":\\\"SECRET\\\"}",
        "password=SECRET",
        "KITOPS_PASSWORD: 'SECRET'",
        "AWS_SESSION_TOKEN=SECRET",
        "aws_secret_access_key = SECRET",
        "x-amz-security-token: SECRET",
        "Set-Cookie: session=SECRET; Path=/",
        "Proxy-Authorization: Basic SECRET",
        "ghp_SECRET",
    ];

    proptest! {
        #[test]
        fn no_password_of_a_proxy_is_told(
            scheme in proptest::sample::select(&["", "http://", "https://", "socks5h://"][..]),
            user in "[a-z]{0,8}", password in "[A-Z][ -~]{7,20}",
            behind in proptest::sample::select(&["", ":3128", "/", ":3128/path?x#y"][..]),
        ) {
            let told = without_user(&format!("{scheme}{user}:{password}@proxy.example{behind}"));
            prop_assert_eq!(told, format!("{scheme}***@proxy.example{behind}"));
        }

        #[test]
        fn no_planted_secret_stays(
            place in proptest::sample::select(&PLACES[..]),
            secret in "[A-Za-z0-9+/_~][A-Za-z0-9+/_~.-]{15,39}",
            before in "[ -~]{0,20}",
            behind in "[ -~]{0,20}",
        ) {
            let planted = place.replace("SECRET", &secret);
            // An open quote before the place may pair with any of the quotes in it.
            prop_assume!(!before.contains(['"', '\'', '\\']));
            let told = redacted(&format!("{before} {planted} {behind}\n"));
            prop_assert!(!told.contains(&secret), "{}", told);
        }

        #[test]
        fn known_secrets_never_stay(
            text in any::<String>(),
            secret in "[!-~]{12,30}",
            at in any::<prop::sample::Index>(),
        ) {
            let mut cut = at.index(text.len() + 1);
            while !text.is_char_boundary(cut) {
                cut -= 1;
            }
            let planted = format!("{}{secret}{}", &text[..cut], &text[cut..]);
            let told = Redactor::new([secret.clone()]).text(&planted);
            prop_assert!(!told.contains(&secret), "{}", told);
        }

        #[test]
        fn redacting_again_finds_nothing_and_no_text_panics(text in any::<String>()) {
            let once = redacted(&text);
            prop_assert_eq!(redacted(&once), once);
        }

        #[test]
        fn words_stay_as_they_are(text in "[a-z]{1,7}( [a-z]{1,7}){0,9}") {
            prop_assert_eq!(redacted(&text), text);
        }
    }
}
