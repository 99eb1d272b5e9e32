//! Credentials that a command carries to a daemon of another user.
//!
//! A daemon of another user must not read the user's files, and must not run the user's credential helpers. So the
//! command reads the files, and sends texts in Docker's config format, with `auths` only. The first text has the
//! credential of the requested registry, perhaps from a helper. The others have the `auths` of each file, for
//! parents and data sets at other registries.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::docker_config::{DockerConfig, hostname};
use super::{Credential, CredentialStore, FILE_LIMIT_BYTES, configuration};
use crate::source::SourceError;
use crate::source::blob_folder::{off_the_runtime, read_small};
use crate::source::s3::Secret;

/// The name of the credentials in messages.
const WHAT: &str = "the credentials of the command";

/// The most hosts of a user whose credentials are kept: far more than a user logs in to.
const MOST_ENTRIES: usize = 1_000;

/// The most bytes of all configurations of a request. A request has at most 1 MiB; files of credentials have
/// some kilobytes.
const MOST_BYTES: usize = 512 * 1024;

/// The most configurations of a request: the registry's own, kit's file and two of Docker's, with room.
pub const MOST_CARRIED: usize = 8;

impl CredentialStore {
    /// The credentials that a daemon needs to read `repository` at `registry` (`HOST[:PORT]`).
    ///
    /// # Errors
    /// As for [`CredentialStore::find`].
    pub async fn carry(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<CarriedCredentials, SourceError> {
        let mut carried = Vec::new();
        let known = self.find(registry, repository).await?;
        if let Some(entry) = entry(&known.credential) {
            let auths = Map::from_iter([(registry.to_owned(), entry)]);
            carried.push(Secret::new(json!({ "auths": auths }).to_string()));
        }
        for file in self.rules.credential_files().chain(&self.files) {
            let file = file.clone();
            let json = off_the_runtime(move || read_small(&file, FILE_LIMIT_BYTES)).await;
            // `find` has reported the fault of a file.
            let Ok(Some(json)) = json else { continue };
            let Ok(Value::Object(mut config)) = serde_json::from_slice(&json) else { continue };
            if let Some(auths @ Value::Object(_)) = config.remove("auths") {
                carried.push(Secret::new(json!({ "auths": auths }).to_string()));
            }
        }
        carried.truncate(MOST_CARRIED);
        while carried.iter().map(|it| it.expose().len()).sum::<usize>() > MOST_BYTES {
            // The first texts count most.
            carried.pop();
        }
        let host = registry.to_owned();
        Ok(CarriedCredentials { host, configurations: carried, at_ms: 0 })
    }
}

/// The entry of a credential in `auths`.
fn entry(credential: &Credential) -> Option<Value> {
    match credential {
        Credential::Anonymous => None,
        Credential::Basic { username, password } => {
            Some(json!({ "username": username, "password": password }))
        }
        Credential::IdentityToken(token) => Some(json!({ "identitytoken": token })),
        Credential::RegistryToken(token) => Some(json!({ "registrytoken": token })),
    }
}

/// The credentials that a command carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedCredentials {
    /// The registry of the request (`HOST[:PORT]`). Where no configuration knows it, the user has logged out there.
    pub host: String,
    /// Texts in Docker's config format, the first that knows a host wins.
    pub configurations: Vec<Secret>,
    /// The time at which the daemon got them, in milliseconds since 1970. Set by the daemon.
    #[serde(default)]
    pub at_ms: u64,
}

/// Carried credentials make no difference between requests, because a user's newest credentials count for all.
impl PartialEq for CarriedCredentials {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for CarriedCredentials {}

impl Hash for CarriedCredentials {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// The credentials that the commands of one user have carried here. A mount that lives for weeks uses the newest
/// ones of any command.
#[derive(Default)]
pub struct CarriedStore(Mutex<Auths>);

#[derive(Default)]
struct Auths {
    entries: BTreeMap<String, (u64, Value)>,
    changes: u64,
}

impl fmt::Debug for CarriedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CarriedStore")
    }
}

impl CarriedStore {
    /// Stores credentials, except where a later command has brought newer ones.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a malformed configuration.
    pub fn take(&self, carried: &CarriedCredentials) -> Result<(), SourceError> {
        let mut taken = BTreeMap::new();
        for text in carried.configurations.iter().rev() {
            let config: Value = serde_json::from_str(text.expose())
                .map_err(|_| configuration(WHAT, "not JSON".to_owned()))?;
            if let Some(auths) = config.get("auths").and_then(Value::as_object) {
                taken.extend(auths.clone());
            }
        }
        let mut auths = self.0.lock();
        let Auths { entries, changes } = &mut *auths;
        let host = hostname(&carried.host);
        let is_of_host = |key: &str| hostname(key) == host;
        entries.retain(|key, (at_ms, _)| !is_of_host(key) || *at_ms > carried.at_ms);
        for (key, value) in taken {
            let is_newer = entries.get(&key).is_none_or(|(at_ms, _)| *at_ms <= carried.at_ms);
            if is_newer && (entries.len() < MOST_ENTRIES || entries.contains_key(&key)) {
                entries.insert(key, (carried.at_ms, value));
            }
        }
        *changes += 1;
        Ok(())
    }

    /// Grows with each change.
    pub(super) fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// The credential of a registry. A helper that a configuration names is not run.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a malformed entry.
    pub(super) fn find(&self, registry: &str, repository: &str) -> Result<Credential, SourceError> {
        let auths = self.0.lock();
        let entries = auths.entries.iter().map(|(key, (_, value))| (key.clone(), value.clone()));
        let config = DockerConfig::of_auths(entries.collect());
        config.auth(registry, repository).map_err(|detail| configuration(WHAT, detail))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_credential() -> impl Strategy<Value = Credential> {
        prop_oneof![
            ("[^:]{1,12}", ".{1,40}")
                .prop_map(|(username, password)| Credential::Basic { username, password }),
            ".{1,40}".prop_map(Credential::IdentityToken),
            ".{1,40}".prop_map(Credential::RegistryToken),
        ]
    }

    fn carried(host: &str, at_ms: u64, configurations: &[Value]) -> CarriedCredentials {
        let configurations = configurations.iter().map(|it| Secret::new(it.to_string())).collect();
        CarriedCredentials { host: host.to_owned(), configurations, at_ms }
    }

    fn password(password: &str) -> Value {
        json!({ "username": "user", "password": password })
    }

    fn is(store: &CarriedStore, host: &str, expected: &str) -> bool {
        match store.find(host, "org/model").unwrap() {
            Credential::Basic { password, .. } => password == expected,
            _ => expected.is_empty(),
        }
    }

    proptest! {
        #[test]
        fn a_carried_credential_is_found_at_its_registry_only(credential in any_credential()) {
            let auths = json!({ "auths": { "registry.example:5000": entry(&credential) } });
            let store = CarriedStore::default();
            store.take(&carried("registry.example:5000", 1, &[auths])).unwrap();
            prop_assert!(store.find("registry.example:5000", "org/model").unwrap() == credential);
            let other = store.find("other.example", "org/model").unwrap();
            prop_assert!(other == Credential::Anonymous);
        }

        #[test]
        fn a_hostile_configuration_is_an_error_or_has_no_credential(text in ".{0,200}") {
            let store = CarriedStore::default();
            let configurations = vec![Secret::new(text)];
            let host = "registry.example".to_owned();
            let _ = store.take(&CarriedCredentials { host, configurations, at_ms: 1 });
            let _ = store.find("registry.example", "org/model");
        }
    }

    #[test]
    fn the_newest_credentials_of_a_host_count() {
        let store = CarriedStore::default();
        let of = |host: &str, text: &str| json!({ "auths": { host: password(text) } });
        store
            .take(&carried("a.example", 5, &[of("a.example", "new"), of("b.example", "b")]))
            .unwrap();
        // A process that takes over an earlier mount does the same.
        store.take(&carried("a.example", 3, &[of("a.example", "old")])).unwrap();
        assert!(is(&store, "a.example", "new") && is(&store, "b.example", "b"));
        let before = store.changes();
        store
            .take(&carried("b.example", 7, &[of("b.example", "first"), of("b.example", "second")]))
            .unwrap();
        assert!(is(&store, "b.example", "first") && is(&store, "a.example", "new"));
        assert!(store.changes() > before);
        // The user has logged out.
        store.take(&carried("b.example", 8, &[])).unwrap();
        assert!(is(&store, "b.example", "") && is(&store, "a.example", "new"));
        store.take(&carried("example", 9, &[])).unwrap();
        assert!(is(&store, "a.example", "new"), "another host, whose name ends so");
        let hub = "https://index.docker.io/v1/";
        store.take(&carried("docker.io", 9, &[of(hub, "hub")])).unwrap();
        store.take(&carried("docker.io", 10, &[])).unwrap();
        assert!(is(&store, "docker.io", ""));
    }

    #[tokio::test]
    async fn the_auths_of_all_files_are_carried_and_no_helper_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (kit, docker) = (folder.path().join("kit"), folder.path().join("docker"));
        std::fs::write(&kit, r#"{"auths":{"a.example":{"username":"u","password":"p"}}}"#).unwrap();
        let config =
            r#"{"auths":{"b.example":{"identitytoken":"t"}},"credHelpers":{"c.example":"x"}}"#;
        std::fs::write(&docker, config).unwrap();
        let files = vec![kit, folder.path().join("missing"), docker];
        let carried = CredentialStore::new(files).carry("a.example", "org/model").await.unwrap();
        assert!(carried.configurations.iter().all(|it| !it.expose().contains("credHelpers")));
        let carried_store = std::sync::Arc::new(CarriedStore::default());
        carried_store.take(&carried).unwrap();
        let store = CredentialStore::default().with_carried(carried_store);
        for (host, is_known) in [("a.example", true), ("b.example", true), ("c.example", false)] {
            let known = store.find(host, "org/model").await.unwrap();
            assert_eq!(known.credential != Credential::Anonymous, is_known, "{host}");
        }
    }
}
