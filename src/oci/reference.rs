//! References to kits, in kit's own grammar (modelkit-spec 5.1).
//!
//! ```text
//! [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]      or a bare DIGEST
//! ```
//!
//! The text before the first `/` is a host only when it holds a `.` or `:` or is `localhost`;
//! otherwise all of it is a repository of kit's local storage. There is no special name for Docker
//! Hub: `org/model` never goes to the network.

use super::Digest;
use super::text::escaped;

/// The host that stands for kit's local storage.
const LOCAL: &str = "localhost";
/// The repository that kit gives to a bare digest. No valid repository has this name.
const ANY_REPOSITORY: &str = "_";
/// Host and repository together, the limit that registries have in common (distribution-spec,
/// "Pulling manifests": many implementations stop at 255).
const NAME_LIMIT_BYTES: usize = 255;
/// A tag (distribution-spec, "Pulling manifests").
const TAG_LIMIT_BYTES: usize = 128;
/// The most characters of a text that an error repeats. It is longer than any valid reference without
/// a digest; a Kitfile from the network may hold anything as its parent.
const SHOWN_CHARS: usize = 320;

/// Which manifest of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// A tag, which a registry may move.
    Tag(String),
    /// A manifest's digest, which names the same bytes for ever.
    Digest(Digest),
}

/// A kit in a registry: host, repository, and a tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    selector: Selector,
}

/// The error for a text that is no reference. It names the part and its fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a reference to a kit: {reason}")]
pub struct ReferenceError {
    /// The text, shortened and with control characters escaped.
    pub text: String,
    /// The fault, and what is expected.
    pub reason: String,
}

impl ReferenceError {
    pub(super) fn new(text: &str, reason: impl Into<String>) -> Self {
        Self { text: escaped(text, SHOWN_CHARS), reason: reason.into() }
    }
}

impl Reference {
    /// Parses a reference: `[HOST[:PORT]/]REPOSITORY[:TAG|@DIGEST]`. Without a host it is
    /// `localhost`, kit's local storage; without a selector the tag `latest`. A tag before a
    /// digest is dropped, and a bare digest is any manifest of the local storage.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |reason: String| ReferenceError::new(text, reason);
        if let Some((first, _)) = text.split_once(',') {
            return Err(refuse(format!(
                "it has several tags, and only one kit can be read: write `{first}`"
            )));
        }
        if let Ok(digest) = Digest::parse(text) {
            return Ok(Self {
                registry: LOCAL.to_owned(),
                repository: ANY_REPOSITORY.to_owned(),
                selector: Selector::Digest(digest),
            });
        }
        let (registry, rest) = split_host(text).unwrap_or((LOCAL, text));
        check_host(registry).map_err(refuse)?;
        let (repository, selector) = split_selector(rest).map_err(refuse)?;
        check_repository(repository).map_err(refuse)?;
        if registry.len() + 1 + repository.len() > NAME_LIMIT_BYTES {
            return Err(refuse(format!(
                "host and repository have more than {NAME_LIMIT_BYTES} characters"
            )));
        }
        Ok(Self { registry: registry.to_owned(), repository: repository.to_owned(), selector })
    }

    /// The registry's host, with `:port` where one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name; `_` for a bare digest, which names no repository.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Which manifest of the repository is meant.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The same repository with another selector.
    pub fn with_selector(&self, selector: Selector) -> Self {
        Self { selector, ..self.clone() }
    }

    /// Whether it names kit's local storage (`localhost/…`) rather than a registry.
    pub fn is_local(&self) -> bool {
        self.registry == LOCAL
    }
}

impl Selector {
    /// Parses a tag.
    pub(crate) fn tag(text: &str) -> Result<Self, String> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_tag = text.bytes().next().is_some_and(is_word)
            && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
            && text.len() <= TAG_LIMIT_BYTES;
        match is_tag {
            true => Ok(Self::Tag(text.to_owned())),
            false => Err(format!(
                "the tag `{}` must be a letter, digit or `_`, then at most {} letters, digits, \
                 `_`, `.` and `-`",
                text.escape_debug(),
                TAG_LIMIT_BYTES - 1
            )),
        }
    }
}

/// Splits `HOST/REST`; `None` where the text has no host.
fn split_host(text: &str) -> Option<(&str, &str)> {
    let (host, rest) = text.split_once('/')?;
    (host == LOCAL || host.contains(['.', ':'])).then_some((host, rest))
}

/// Whether a text is a reference with a host and with a tag or digest.
pub(super) fn is_hosted(text: &str) -> bool {
    let selected = split_host(text).is_some_and(|(_, rest)| rest.contains([':', '@']));
    selected && Reference::parse(text).is_ok()
}

/// Splits `REPOSITORY[:TAG][@DIGEST]`; the digest wins.
fn split_selector(rest: &str) -> Result<(&str, Selector), String> {
    if let Some((name, digest)) = rest.split_once('@') {
        let digest = Digest::parse(digest).map_err(|error| error.to_string())?;
        let repository = name.split_once(':').map_or(name, |(repository, _)| repository);
        return Ok((repository, Selector::Digest(digest)));
    }
    match rest.split_once(':') {
        Some((repository, tag)) => Ok((repository, Selector::tag(tag)?)),
        None => Ok((rest, Selector::Tag("latest".to_owned()))),
    }
}

fn check_host(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) = bracketed
                .split_once(']')
                .ok_or_else(|| format!("the host `{registry}` has no closing `]`"))?;
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("`{address}` is not an IPv6 address"));
            }
            (None, after)
        }
        None => match registry.find(':') {
            Some(colon) => (Some(&registry[..colon]), &registry[colon..]),
            None => (Some(registry), ""),
        },
    };
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    if let Some(host) = host
        && (host.is_empty() || host.starts_with(['.', '-']) || !host.bytes().all(is_host_byte))
    {
        return Err(format!("`{}` is not a host name", host.escape_debug()));
    }
    let Some(digits) = port.strip_prefix(':') else {
        return match port.is_empty() {
            true => Ok(()),
            false => Err(format!("`{}` is not a port", port.escape_debug())),
        };
    };
    let is_port = digits.bytes().all(|byte| byte.is_ascii_digit())
        && digits.parse::<u16>().is_ok_and(|port| port > 0);
    match is_port {
        true => Ok(()),
        false => Err(format!("`{}` is not a port", digits.escape_debug())),
    }
}

/// Checks a repository name (distribution-spec, "Pulling manifests", `<name>`).
fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("the repository is missing: expected HOST/REPOSITORY:TAG".to_owned());
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!(
            "the repository must be lower case: `{}`",
            repository.to_ascii_lowercase()
        ));
    }
    match repository.split('/').all(is_repository_component) {
        true => Ok(()),
        false => Err(format!(
            "the repository `{}` may hold lower-case letters and digits, single `.`, `_`, `__` \
             or dashes between them, and `/` between parts",
            repository.escape_debug()
        )),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_repository_component(component: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    is_alphanumeric(first)
        && is_alphanumeric(last)
        && component
            .split(|character: char| character.is_ascii() && is_alphanumeric(character as u8))
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__")
                    || separator.bytes().all(|byte| byte == b'-')
            })
}

impl std::fmt::Display for Reference {
    /// Writes the canonical text, which parses back to the same reference.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.selector {
            Selector::Digest(digest) if self.repository == ANY_REPOSITORY => write!(f, "{digest}"),
            selector => write!(f, "{}/{}{selector}", self.registry, self.repository),
        }
    }
}

impl std::fmt::Display for Selector {
    /// Writes `:TAG` or `@DIGEST`, as it follows a repository or folder.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("ghcr.io/org/model:v1", "ghcr.io", "org/model", ":v1")]
    #[case("ghcr.io/org/model", "ghcr.io", "org/model", ":latest")]
    #[case("localhost:5000/x:T_1.a-b", "localhost:5000", "x", ":T_1.a-b")]
    #[case("[::1]:5000/x", "[::1]:5000", "x", ":latest")]
    #[case("localhost/x:v1", "localhost", "x", ":v1")]
    #[case("org/model:v1", "localhost", "org/model", ":v1")]
    #[case("model", "localhost", "model", ":latest")]
    #[case("sha256:abc", "localhost", "sha256", ":abc")]
    #[case("127.0.0.1:5555/golden/a__b--c.d_e:v1", "127.0.0.1:5555", "golden/a__b--c.d_e", ":v1")]
    fn parts_are_found(
        #[case] text: &str,
        #[case] registry: &str,
        #[case] repository: &str,
        #[case] selector: &str,
    ) {
        let reference = Reference::parse(text).unwrap();
        assert_eq!(reference.registry(), registry);
        assert_eq!(reference.repository(), repository);
        assert_eq!(reference.selector().to_string(), selector);
        assert_eq!(reference.is_local(), registry == "localhost");
    }

    #[test]
    fn a_digest_wins_over_the_tag_before_it() {
        let with_tag = Reference::parse(&format!("ghcr.io/org/model:v1@{DIGEST}")).unwrap();
        let without = Reference::parse(&format!("ghcr.io/org/model@{DIGEST}")).unwrap();
        assert_eq!(with_tag, without);
        assert_eq!(with_tag.to_string(), format!("ghcr.io/org/model@{DIGEST}"));
    }

    #[test]
    fn a_bare_digest_is_any_local_manifest() {
        let reference = Reference::parse(DIGEST).unwrap();
        assert!(reference.is_local());
        assert_eq!(reference.repository(), "_");
        assert_eq!(reference.to_string(), DIGEST);
    }

    #[rstest]
    #[case("", "repository is missing")]
    #[case("ghcr.io/", "repository is missing")]
    #[case("ghcr.io/org/model:a,b", "write `ghcr.io/org/model:a`")]
    #[case("ghcr.io/Org/Model", "lower case: `org/model`")]
    #[case("ghcr.io/org//model", "between parts")]
    #[case("ghcr.io/org/model/", "between parts")]
    #[case("ghcr.io/a___b", "may hold")]
    #[case("ghcr.io/_", "may hold")]
    #[case("localhost/_", "may hold")]
    #[case("ghcr.io/-a", "may hold")]
    #[case("ghcr.io/mod\u{e9}l", "may hold")]
    #[case("ghcr.io/a:", "tag")]
    #[case("ghcr.io/a:-x", "tag")]
    #[case("ghcr.io/a@sha512:00", "sha512")]
    #[case("ghcr.io/a@v1", "digest")]
    #[case("ghcr.io:0/a", "not a port")]
    #[case("ghcr.io:99999/a", "not a port")]
    #[case("ghcr.io:+1/a", "not a port")]
    #[case("gh cr.io/a", "not a host name")]
    #[case("user:pass@ghcr.io/a", "not a port")]
    #[case("[::1/a", "closing")]
    #[case("[::g]:1/a", "IPv6")]
    #[case("../a", "not a host name")]
    fn faults_are_named(#[case] text: &str, #[case] words: &str) {
        let error = Reference::parse(text).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }

    #[test]
    fn lengths_are_bounded() {
        let longest = format!("ghcr.io/{}", "a".repeat(247));
        assert!(Reference::parse(&longest).is_ok());
        assert!(Reference::parse(&format!("{longest}a")).is_err());
        assert!(Reference::parse(&format!("a.b/c:{}", "t".repeat(128))).is_ok());
        assert!(Reference::parse(&format!("a.b/c:{}", "t".repeat(129))).is_err());
        let error = Reference::parse(&"\u{1b}".repeat(100_000)).unwrap_err();
        assert!(error.text.len() < 10_000 && !error.text.contains('\u{1b}'));
    }

    proptest! {
        #[test]
        fn display_parses_back(
            text in r"([a-z0-9.]{1,8}(:[0-9]{1,5})?/)?[a-z0-9]{1,4}([._-][a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,4}){0,2}(:[\w.-]{1,9})?",
            with_digest in any::<bool>(),
        ) {
            let text = if with_digest { format!("{text}@{DIGEST}") } else { text };
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.to_string());
                prop_assert_eq!(again, Ok(reference));
            }
        }

        #[test]
        fn any_text_parses_back_or_is_refused(text in "\\PC{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }
    }
}
