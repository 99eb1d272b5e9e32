//! Credentials that a command carries to a daemon of another user.
//!
//! A daemon of another user must not read the user's files, and must not run the user's credential helpers.
//! So the command reads them, and sends what a daemon needs as texts in Docker's config format, with `auths`
//! only: first the credential of the registry that is asked, from a helper perhaps, and then the `auths` of
//! each file, for parents and data sets at other registries.

use serde_json::{Map, Value, json};

use super::docker_config::DockerConfig;
use super::{Credential, CredentialStore, FILE_LIMIT_BYTES, configuration};
use crate::source::SourceError;
use crate::source::blob_folder::{off_the_runtime, read_small};
use crate::source::s3::Secret;

/// The most bytes of all configurations of a request. A request has at most 1 MiB; files of credentials have
/// some kilobytes.
const MOST_BYTES: usize = 512 * 1024;

/// The most configurations of a request: the registry's own, kit's file and two of Docker's, with room.
pub const MOST_CARRIED: usize = 8;

impl CredentialStore {
    /// The configurations that a daemon needs to read `repository` at `registry` (`HOST[:PORT]`).
    ///
    /// # Errors
    /// As for [`CredentialStore::find`].
    pub async fn carry(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Vec<Secret>, SourceError> {
        let mut carried = Vec::new();
        let known = self.find(registry, repository).await?;
        if let Some(entry) = entry(&known.credential) {
            let auths = Map::from_iter([(registry.to_owned(), entry)]);
            carried.push(Secret::new(json!({ "auths": auths }).to_string()));
        }
        for file in &self.files {
            let file = file.clone();
            let json = off_the_runtime(move || read_small(&file, FILE_LIMIT_BYTES)).await;
            // `find` has told what is wrong with a file.
            let Ok(Some(json)) = json else { continue };
            let Ok(Value::Object(mut config)) = serde_json::from_slice(&json) else { continue };
            if let Some(auths @ Value::Object(_)) = config.remove("auths") {
                carried.push(Secret::new(json!({ "auths": auths }).to_string()));
            }
        }
        carried.truncate(MOST_CARRIED);
        while carried.iter().map(|it| it.expose().len()).sum::<usize>() > MOST_BYTES {
            // The first ones count most.
            carried.pop();
        }
        Ok(carried)
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

/// The credential of a registry in a configuration. A helper that it names is not run.
pub(super) fn find(
    carried: &Secret,
    registry: &str,
    repository: &str,
) -> Result<Credential, SourceError> {
    const WHAT: &str = "the credentials of the command";
    let config = DockerConfig::decode(carried.expose().as_bytes())
        .map_err(|detail| configuration(WHAT, detail))?;
    config.auth(registry, repository).map_err(|detail| configuration(WHAT, detail))
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

    proptest! {
        #[test]
        fn a_carried_credential_is_found_at_its_registry_only(credential in any_credential()) {
            let auths = json!({ "registry.example:5000": entry(&credential) });
            let carried = Secret::new(json!({ "auths": auths }).to_string());
            prop_assert!(find(&carried, "registry.example:5000", "org/model").unwrap() == credential);
            let other = find(&carried, "other.example", "org/model").unwrap();
            prop_assert!(other == Credential::Anonymous);
        }

        #[test]
        fn a_hostile_configuration_is_an_error_or_has_no_credential(text in ".{0,200}") {
            let _ = find(&Secret::new(text), "registry.example", "org/model");
        }
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
        assert!(carried.iter().all(|it| !it.expose().contains("credHelpers")));
        let store = CredentialStore::default().with_carried(carried);
        for (host, is_known) in [("a.example", true), ("b.example", true), ("c.example", false)] {
            let known = store.find(host, "org/model").await.unwrap();
            assert_eq!(known.credential != Credential::Anonymous, is_known, "{host}");
        }
    }
}
