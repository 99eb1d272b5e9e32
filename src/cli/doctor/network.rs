//! Checks of certificates, proxies and credentials, which kitfs needs before a request to a registry.

use std::path::Path;

use super::check::{Check, Subject};
use crate::control::api::NetworkOptions;
use crate::observe::without_user;
use crate::source::credentials::{Credential, CredentialStore, FoundIn, is_open_to_all};
use crate::source::registry::authorities_of_machine;

const GROUP: &str = "Network";
const AUTHORITIES: Subject = Subject(GROUP, "authorities");
const VERIFICATION: Subject = Subject(GROUP, "certificates");
const PROXY: Subject = Subject(GROUP, "proxy");
const CREDENTIALS: Subject = Subject(GROUP, "credentials");

/// Checks for the repository `asked` (registry and repository, which may be empty), or for all.
pub(super) async fn checks(network: &NetworkOptions, asked: Option<(&str, &str)>) -> Vec<Check> {
    let mut checks = vec![authorities(network), proxy(network)];
    if network.insecure_tls {
        checks.push(VERIFICATION.warn(
            "they are not checked (--tls-verify=false): anyone on the way can answer for a registry",
            "pass the authority of the registry with --ca-file instead",
        ));
    }
    let store = CredentialStore::new(network.credential_files.clone());
    checks.extend(match asked {
        Some((registry, repository)) => credentials(&store, registry, repository).await,
        None => vec![logins(network, &store).await],
    });
    let open = network.credential_files.iter().filter(|file| is_open_to_all(file));
    checks.extend(open.map(|file| open_to_all(file)));
    checks
}

fn authorities(network: &NetworkOptions) -> Check {
    let given = match network.ca_files.len() {
        0 => String::new(),
        count => format!(", and {count} of --ca-file"),
    };
    match authorities_of_machine() {
        0 if network.ca_files.is_empty() => AUTHORITIES.warn(
            "this machine trusts no certificate authority",
            "`apt install ca-certificates`, or pass --ca-file; without one only plain http works",
        ),
        count => AUTHORITIES.ok(format!("{count} of this machine{given}")),
    }
}

fn proxy(network: &NetworkOptions) -> Check {
    let NetworkOptions { http_proxy, https_proxy, no_proxy, .. } = network;
    let direct = no_proxy.as_deref().filter(|text| !text.is_empty());
    let direct = direct.map_or_else(String::new, |text| format!("; not for {text}"));
    match (https_proxy.as_deref(), http_proxy.as_deref()) {
        (None, None) => PROXY.ok("none"),
        (Some(https), Some(http)) if https == http => {
            PROXY.ok(format!("{}{direct}", without_user(https)))
        }
        (https, http) => {
            let name = |proxy: Option<&str>| proxy.map_or("none".to_owned(), without_user);
            PROXY.ok(format!("{} for https, {} for http{direct}", name(https), name(http)))
        }
    }
}

/// The registries that the files name.
async fn logins(network: &NetworkOptions, store: &CredentialStore) -> Check {
    let there: Vec<_> = network.credential_files.iter().filter(|file| file.exists()).collect();
    let files: Vec<_> = there.iter().map(|file| file.display().to_string()).collect();
    if files.is_empty() {
        return CREDENTIALS.ok("no file has any: only public kits can be read");
    }
    let hosts = store.hosts().await;
    let hosts = match hosts.is_empty() {
        true => "no registry".to_owned(),
        false => hosts.join(", "),
    };
    CREDENTIALS.ok(format!("{} name {hosts}", files.join(" and ")))
}

/// The credential of one registry, and the file that it came from. Never the secret.
async fn credentials(store: &CredentialStore, registry: &str, repository: &str) -> Vec<Check> {
    let known = match store.find(registry, repository).await {
        Ok(known) => known,
        Err(error) => return vec![CREDENTIALS.failed(error)],
    };
    let place = match &known.found_in {
        Some(FoundIn { file, helper: None }) => file.display().to_string(),
        Some(FoundIn { file, helper: Some(helper) }) => {
            format!("docker-credential-{helper}, which {} names", file.display())
        }
        None => String::new(),
    };
    let mut checks = vec![match &known.credential {
        Credential::Anonymous => {
            let files: Vec<_> =
                known.looked_in.iter().map(|file| file.display().to_string()).collect();
            CREDENTIALS.ok(format!("none for {registry} in {}", files.join(" and ")))
        }
        Credential::Basic { username, .. } => {
            CREDENTIALS.ok(format!("the user `{username}` of {registry}, from {place}"))
        }
        Credential::IdentityToken(_) => {
            CREDENTIALS.ok(format!("an identity token for {registry}, from {place}"))
        }
        Credential::RegistryToken(_) => {
            CREDENTIALS.ok(format!("a registry token for {registry}, from {place}"))
        }
    }];
    if let Some(trouble) = known.trouble {
        checks.push(CREDENTIALS.warn(trouble, "correct or remove the entry"));
    }
    checks
}

fn open_to_all(file: &Path) -> Check {
    let file = file.display();
    CREDENTIALS
        .warn(format!("every user of this machine can read {file}"), format!("`chmod 600 {file}`"))
}
