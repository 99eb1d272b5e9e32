//! The secrets that this user's files and environment have, so that a report has none of them.
//!
//! Each text in a credential file counts as a secret, whatever its key. So do the parts of an `auth`, which is a
//! user and a password in base64.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use url::Url;

use super::super::settings::Settings;
use crate::control::api::NetworkOptions;

/// The largest file that is read. Files of credentials have some kilobytes.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// Every secret that is known.
pub(super) fn known(settings: &Settings, network: &NetworkOptions) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    known.extend(settings.secret_values().iter().cloned());
    let proxies = [&network.http_proxy, &network.https_proxy];
    known.extend(proxies.into_iter().flatten().filter_map(|proxy| password_of_url(proxy)));
    for file in &network.credential_files {
        if let Some(text) = read(file) {
            of_json(&text, &mut known);
        }
    }
    let aws = [&network.s3.credentials_file, &network.s3.config_file];
    for file in aws.into_iter().flatten() {
        known.extend(read(file).iter().flat_map(|text| of_profiles(text)));
    }
    for file in headers_of_mirrors(network.registries_dir.as_deref()) {
        known.extend(read(&file).iter().flat_map(|text| of_headers(text)));
    }
    known
}

fn read(file: &Path) -> Option<String> {
    let is_small = file.metadata().is_ok_and(|it| it.is_file() && it.len() <= FILE_LIMIT_BYTES);
    let bytes = is_small.then(|| std::fs::read(file).ok()).flatten()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn password_of_url(url: &str) -> Option<String> {
    let text = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    Url::parse(&text).ok()?.password().map(str::to_owned)
}

/// The texts below `auths` of a file in Docker's format.
fn of_json(text: &str, known: &mut BTreeSet<String>) {
    let Ok(Value::Object(config)) = serde_json::from_str(text) else { return };
    let Some(Value::Object(auths)) = config.get("auths") else { return };
    for entry in auths.values() {
        let Value::Object(entry) = entry else { continue };
        for (name, value) in entry {
            let Some(value) = value.as_str().filter(|_| name != "username" && name != "email")
            else {
                continue;
            };
            known.insert(value.to_owned());
            let pair = BASE64_STANDARD.decode(value).ok();
            let pair = pair.and_then(|pair| String::from_utf8(pair).ok());
            let password = pair.as_deref().and_then(|pair| pair.split_once(':'));
            known.extend(password.map(|(_, password)| password.trim_matches('\0').to_owned()));
        }
    }
}

/// The values of keys and tokens in a file of the AWS tools.
fn of_profiles(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let secret = lines.filter(|(name, _)| {
        let name = name.trim().to_ascii_lowercase();
        name.contains("key") || name.contains("secret") || name.contains("token")
    });
    secret.map(|(_, value)| value.trim().to_owned()).collect()
}

fn headers_of_mirrors(folder: Option<&Path>) -> Vec<PathBuf> {
    let hosts = folder.and_then(|folder| std::fs::read_dir(folder).ok());
    let hosts = hosts.into_iter().flatten().flatten();
    hosts.map(|host| host.path().join("hosts.toml")).collect()
}

/// The values of headers in a hosts.toml.
fn of_headers(text: &str) -> Vec<String> {
    fn texts(value: &toml::Value, out: &mut Vec<String>) {
        match value {
            toml::Value::String(text) => {
                out.push(text.clone());
                out.extend(text.split_whitespace().skip(1).map(str::to_owned));
            }
            toml::Value::Array(all) => all.iter().for_each(|value| texts(value, out)),
            _ => {}
        }
    }
    fn walk(table: &toml::Table, out: &mut Vec<String>) {
        for (name, value) in table {
            match value {
                toml::Value::Table(headers) if name == "header" => {
                    headers.values().for_each(|value| texts(value, out));
                }
                toml::Value::Table(table) => walk(table, out),
                _ => {}
            }
        }
    }
    let mut out = Vec::new();
    if let Ok(table) = text.parse::<toml::Table>() {
        walk(&table, &mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_an_entry_and_the_password_in_it_are_secret() {
        let auth = BASE64_STANDARD.encode("ada:hunter2!");
        let text = format!(
            r#"{{"auths":{{"a.example":{{"auth":"{auth}","username":"ada"}},
               "b.example":{{"identitytoken":"id-tok","registrytoken":"reg-tok"}}}}}}"#
        );
        let mut known = BTreeSet::new();
        of_json(&text, &mut known);
        let expected: BTreeSet<_> =
            ["hunter2!", &auth, "id-tok", "reg-tok"].map(str::to_owned).into();
        assert_eq!(known, expected);
        of_json("no json", &mut known);
        of_json(r#"{"auths":[1]}"#, &mut known);
    }

    #[test]
    fn profiles_headers_and_proxies_have_secrets() {
        let profile = "[default]\naws_access_key_id = AKID\naws_secret_access_key=s/k\nregion=eu\n";
        assert_eq!(of_profiles(profile), ["AKID", "s/k"]);
        let hosts =
            "server = \"https://r\"\n[host.\"https://m\".header]\nx-key = [\"Bearer abc\"]\n";
        assert_eq!(of_headers(hosts), ["Bearer abc", "abc"]);
        assert_eq!(password_of_url("http://u:p@h:1"), Some("p".to_owned()));
        assert_eq!(password_of_url("u:p@h:1"), Some("p".to_owned()));
        assert_eq!(password_of_url("h:1"), None);
    }
}
