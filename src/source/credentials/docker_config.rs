//! The credentials in Docker's config format (docker/cli `cli/config/configfile`).
//!
//! Pure. An entry is decoded when its host is looked up, so a malformed entry of another host does no harm. No
//! message repeats a value of the file, because any value may be a secret.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::Value;

use super::Credential;

/// Docker Hub's old name in credential files and for helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A file, with the entries of its hosts yet to be decoded.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DockerConfig {
    auths: Option<BTreeMap<String, Value>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Default, Deserialize)]
struct WireAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl DockerConfig {
    /// Decodes a file. An empty file, as `touch` makes it, configures nothing.
    pub(super) fn decode(json: &[u8]) -> Result<Self, String> {
        // Some editors put a byte order mark before the text.
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        if json.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let mut config: Self = serde_json::from_slice(json).map_err(|error| {
            // The message has only the position, because serde's words may repeat a value.
            format!(
                "not in Docker's config format (line {}, column {}): correct it, or log in anew",
                error.line(),
                error.column()
            )
        })?;
        // An edited file may have null, which must not hide another key of the same host.
        config.auths.iter_mut().for_each(|auths| auths.retain(|_, entry| !entry.is_null()));
        Ok(config)
    }

    /// A configuration with entries of hosts only.
    pub(super) fn of_auths(auths: BTreeMap<String, Value>) -> Self {
        Self { auths: Some(auths), ..Self::default() }
    }

    /// The helper that `credHelpers` names for this host.
    pub(super) fn helper(&self, registry: &str, repository: &str) -> Option<&str> {
        let helper = best(self.cred_helpers.as_ref()?, registry, repository)?;
        helper.as_deref().filter(|helper| !helper.is_empty())
    }

    /// The hosts that have an entry or a helper.
    pub(super) fn hosts(&self) -> Vec<String> {
        let auths = self.auths.iter().flat_map(BTreeMap::keys);
        let helpers = self.cred_helpers.iter().flat_map(BTreeMap::keys);
        auths.chain(helpers).map(|key| hostname(key)).collect()
    }

    /// The store for every host; `""` means none.
    pub(super) fn store(&self) -> Option<&str> {
        self.creds_store.as_deref().filter(|store| !store.is_empty())
    }

    /// The credential of this host in `auths`. A store leaves empty entries there.
    pub(super) fn auth(&self, registry: &str, repository: &str) -> Result<Credential, String> {
        let entry = self.auths.as_ref().and_then(|auths| best(auths, registry, repository));
        let Some(entry) = entry else { return Ok(Credential::Anonymous) };
        let auth = WireAuth::deserialize(entry).map_err(|_| {
            format!("the entry of {registry} in `auths` is not Docker's: log in anew")
        })?;
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&auth.registrytoken) {
            return Ok(Credential::RegistryToken(token));
        }
        if let Some(token) = given(&auth.identitytoken) {
            return Ok(Credential::IdentityToken(token));
        }
        if let Some(auth) = given(&auth.auth) {
            return decode_auth(&auth).ok_or_else(|| {
                format!("`auth` of {registry} is not USER:PASSWORD in base64: log in anew")
            });
        }
        match (given(&auth.username), given(&auth.password)) {
            (Some(username), Some(password)) => Ok(Credential::Basic { username, password }),
            _ => Ok(Credential::Anonymous),
        }
    }
}

/// The name under which a helper knows a registry.
pub(super) fn server_url(registry: &str) -> &str {
    match hostname(registry).as_str() {
        "index.docker.io" => DOCKER_HUB,
        _ => registry,
    }
}

/// The entry of a host: the entry with exactly this key, else an entry whose key means the same host.
///
/// Keys may name a part of a registry, as podman writes them: `host/team`. Of several keys for a host, the longest
/// one that the repository lies in counts. A key without a part comes last.
fn best<'a, V>(
    entries: &'a BTreeMap<String, V>,
    registry: &str,
    repository: &str,
) -> Option<&'a V> {
    if let Some(entry) = entries.get(registry) {
        return Some(entry);
    }
    let host = hostname(registry);
    let rank = |key: &str| {
        let part = part(key);
        let lies_within = repository == part || repository.starts_with(&format!("{part}/"));
        match (part.is_empty(), lies_within) {
            (false, true) => 1 + part.len(),
            (true, _) => 1,
            (false, false) => 0,
        }
    };
    let same_host = entries.iter().filter(|(key, _)| hostname(key) == host);
    same_host.max_by_key(|(key, _)| rank(key)).map(|(_, entry)| entry)
}

/// The host of a key, in lower case: `https://host/v1/` and `host` mean the same (Docker's
/// `ConvertToHostname`), and so do all of Docker Hub's names.
pub(super) fn hostname(key: &str) -> String {
    let host = without_scheme(key).split('/').next().unwrap_or_default().to_ascii_lowercase();
    match host.as_str() {
        "docker.io" | "registry-1.docker.io" => "index.docker.io".to_owned(),
        _ => host,
    }
}

/// The part of a registry that a key names; empty where it names all of it, by the path of an API.
fn part(key: &str) -> &str {
    let path = without_scheme(key).split_once('/').map_or("", |(_, path)| path.trim_matches('/'));
    if matches!(path, "v1" | "v2") { "" } else { path }
}

fn without_scheme(key: &str) -> &str {
    let is_scheme =
        |scheme: &str| scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    match key.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => rest,
        _ => key,
    }
}

/// Decodes `base64(USER:PASSWORD)`. Tools write it in several forms: `base64` breaks its lines, and `echo` adds a
/// line break to the password. Some use the alphabet of URLs, and old versions of Docker padded with NULs.
fn decode_auth(auth: &str) -> Option<Credential> {
    let text: String = auth.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let decode = |alphabet: &Alphabet| {
        let config =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        GeneralPurpose::new(alphabet, config).decode(&text).ok()
    };
    let text = String::from_utf8(decode(&STANDARD).or_else(|| decode(&URL_SAFE))?).ok()?;
    let (username, password) = text.split_once(':')?;
    let password = password.trim_end_matches(['\0', '\n', '\r']).to_owned();
    Some(Credential::Basic { username: username.to_owned(), password })
}
