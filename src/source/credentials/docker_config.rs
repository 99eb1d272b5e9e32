//! Docker's config format (docker/cli `cli/config/configfile`), as far as it tells credentials.
//!
//! Pure. No message repeats a value of the file: any of them may be a secret.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::Credential;

/// Docker Hub's name in files of credentials and for helpers, since before registries had hosts.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DockerConfig {
    auths: Option<BTreeMap<String, WireAuth>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct WireAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl DockerConfig {
    /// Decodes a file; an empty one is what `touch` leaves behind, and configures nothing.
    pub(super) fn decode(json: &[u8]) -> Result<Self, String> {
        if json.trim_ascii().is_empty() {
            return Ok(Self { auths: None, creds_store: None, cred_helpers: None });
        }
        serde_json::from_slice(json).map_err(|error| {
            // The position only: serde's words may repeat a value.
            format!(
                "not in Docker's config format (line {}, column {}): correct it, or log in anew",
                error.line(),
                error.column()
            )
        })
    }

    /// The helper that `credHelpers` names for this host.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        let helper = matching(self.cred_helpers.as_ref()?, registry)?;
        (!helper.is_empty()).then_some(helper.as_str())
    }

    /// The store for every host; `""` means none.
    pub(super) fn store(&self) -> Option<&str> {
        self.creds_store.as_deref().filter(|store| !store.is_empty())
    }

    /// What `auths` knows of this host. A store leaves empty entries there.
    pub(super) fn auth(&self, registry: &str) -> Result<Credential, String> {
        let Some(auth) = self.auths.as_ref().and_then(|auths| matching(auths, registry)) else {
            return Ok(Credential::Anonymous);
        };
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

/// What a helper is asked for.
pub(super) fn server_url(registry: &str) -> &str {
    match hostname(registry) {
        "index.docker.io" => DOCKER_HUB,
        _ => registry,
    }
}

/// The entry of a host: the one written exactly so, else one whose key means the same host.
fn matching<'a, V>(entries: &'a BTreeMap<String, V>, registry: &str) -> Option<&'a V> {
    let means_it = |(key, _): &(&String, &'a V)| hostname(key) == hostname(registry);
    entries.get(registry).or_else(|| entries.iter().find(means_it).map(|(_, value)| value))
}

/// The host of a key: `https://host/v1/` and `host` mean the same (Docker's `ConvertToHostname`),
/// and so do all of Docker Hub's names.
fn hostname(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let host = rest.unwrap_or(key).split('/').next().unwrap_or(key);
    match host {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        host => host,
    }
}

/// Decodes `base64(USER:PASSWORD)`; old versions of Docker padded the password with NULs.
fn decode_auth(auth: &str) -> Option<Credential> {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = GeneralPurpose::new(&STANDARD, config).decode(auth.trim()).ok()?;
    let text = String::from_utf8(text).ok()?;
    let (username, password) = text.split_once(':')?;
    let password = password.trim_end_matches('\0').to_owned();
    Some(Credential::Basic { username: username.to_owned(), password })
}
