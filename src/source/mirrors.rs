//! Registry hosts mapped to other addresses, in containerd's `hosts.toml` folder layout
//! (containerd, docs/hosts.md).
//!
//! ```toml
//! server = "https://registry.example"        # asked last; the registry itself where missing
//! [host."https://mirror.example"]            # asked first, in the order of the file
//!   capabilities = ["pull", "resolve"]
//!   ca = "mirror.pem"                        # relative to this file
//! ```
//!
//! The rules of a user (`registry_rules`) give the same endpoints: `mirrors` first, the registry itself last. The order:
//! hosts.toml of the host, the rules, hosts.toml of `_default`.
//!
//! The file is read for every opened repository, so a change counts from the next mount.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};
use url::{Host, Url};

use super::SourceError;
use super::blob_folder::read_small;
use super::registry_rules::{RegistryRule, RegistryRules};

/// The largest hosts.toml that is read; one host has some 200 bytes.
const FILE_LIMIT_BYTES: u64 = 256 * 1024;

/// One address at which the repositories of a registry can be reached, in the order to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host and port, and a path prefix that ends before `/v2/`.
    pub url: Url,
    /// Accept any TLS certificate of this host (`skip_verify`).
    pub insecure_tls: bool,
    /// PEM files with certificate authorities for this host (`ca`).
    pub ca_files: Vec<PathBuf>,
    /// PEM files with client certificates and keys for this host (`client`).
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// Headers to send to this host (`[host.….header]`).
    pub headers: Vec<(String, String)>,
    /// Whether the path prefix already contains `/v2` (`override_path`).
    pub overrides_path: bool,
    /// May resolve tags (`capabilities` has `resolve`).
    pub can_resolve: bool,
    /// May serve manifests by digest and blobs (`capabilities` has `pull`).
    pub can_pull: bool,
    /// Takes blobs and manifests (`capabilities` has `push`).
    pub can_push: bool,
}

/// The mappings of one folder.
#[derive(Clone, Debug, Default)]
pub struct Mirrors {
    folder: Option<PathBuf>,
    rules: RegistryRules,
    /// Whether registries without a rule speak http.
    plain_http: bool,
}

/// The settings of one host, or of the server at the top of the file.
#[derive(Default, Deserialize)]
struct WireHost {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<WireClient>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    header: Option<Table>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// `client`: one file with certificate and key, or pairs of files. A list of plain names is
/// containerd's way to offer several combined files.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireClient {
    Combined(String),
    List(Vec<OneOrMany>),
}

impl Mirrors {
    /// The mappings in `folder`: `FOLDER/HOST[:PORT]/hosts.toml`, `FOLDER/HOST_PORT_/hosts.toml`
    /// or `FOLDER/_default/hosts.toml`.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, ..Self::default() }
    }

    /// Adds the rules of a user. `plain_http` counts for registries whose rule has no scheme.
    pub fn with_rules(self, rules: RegistryRules, plain_http: bool) -> Self {
        Self { rules, plain_http, ..self }
    }

    /// The endpoints for `registry`, mirrors first, the registry itself (or `server`) last; `None` without a
    /// configuration for it.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] naming the file and the field.
    pub fn endpoints(&self, registry: &str) -> Result<Option<Vec<Endpoint>>, SourceError> {
        for name in folder_names(registry) {
            if let Some(endpoints) = self.of_file(&name, registry)? {
                return Ok(Some(endpoints));
            }
        }
        let rule = self.rules.of(registry);
        match rule.is_about_addresses() {
            true => self.of_rule(registry, &rule).map(Some),
            false => self.of_file(DEFAULT_FOLDER, registry),
        }
    }

    /// The endpoints of a folder's hosts.toml; `None` where there is none.
    fn of_file(&self, name: &str, registry: &str) -> Result<Option<Vec<Endpoint>>, SourceError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let path = folder.join(name).join("hosts.toml");
        let Some(text) = read_small(&path, FILE_LIMIT_BYTES)? else { return Ok(None) };
        let decoded = match std::str::from_utf8(&text) {
            Ok(text) => decode(text, registry, path.parent().unwrap_or(folder)),
            Err(_) => Err("not UTF-8 text".to_owned()),
        };
        decoded.map(Some).map_err(|detail| SourceError::Configuration {
            what: path.display().to_string(),
            detail,
        })
    }

    /// The endpoints of a rule. A mirror gets the certificates of its own rule.
    fn of_rule(&self, registry: &str, rule: &RegistryRule) -> Result<Vec<Endpoint>, SourceError> {
        let wrong = |detail: String| SourceError::Configuration {
            what: format!("`mirror` of [registry.\"{registry}\"]"),
            detail,
        };
        let mut endpoints = Vec::with_capacity(rule.mirrors.len() + 1);
        for mirror in &rule.mirrors {
            let url = base(mirror, false).map_err(|detail| wrong(format!("{mirror}: {detail}")))?;
            let authority = super::registry::authority(&url);
            // A mirror has copies only, and takes no pushes.
            endpoints.push(Endpoint { can_push: false, ..of_url(url, &self.rules.of(&authority)) });
        }
        let has_tls_options = !rule.ca_files.is_empty()
            || rule.client_identity.is_some()
            || rule.tls_verify == Some(false);
        let server = match rule.plain_http.or(self.plain_http.then_some(true)) {
            Some(true) => format!("http://{}", server_host(registry)),
            Some(false) => format!("https://{}", server_host(registry)),
            None => default_server(registry, has_tls_options),
        };
        let url = base(&server, false).map_err(|detail| SourceError::Configuration {
            what: format!("the registry `{registry}`"),
            detail,
        })?;
        endpoints.push(of_url(url, rule));
        Ok(endpoints)
    }

    /// The folder of the mappings.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

/// An endpoint with the certificates of a rule.
fn of_url(url: Url, rule: &RegistryRule) -> Endpoint {
    Endpoint {
        url,
        insecure_tls: rule.tls_verify == Some(false),
        ca_files: rule.ca_files.clone(),
        client_identity: rule.client_identity.clone(),
        headers: Vec::new(),
        overrides_path: false,
        can_resolve: true,
        can_pull: true,
        can_push: true,
    }
}

/// The folder for every registry without one of its own.
const DEFAULT_FOLDER: &str = "_default";

/// The folders of a registry; the first that exists counts. A host never becomes a path.
fn folder_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if !registry.contains('/') && !registry.starts_with('.') {
        // The host as written, and in lower case, as hosts are compared.
        for registry in [registry.to_owned(), registry.to_ascii_lowercase()] {
            if let Some((host, port)) = registry.rsplit_once(':') {
                names.extend([registry.clone(), format!("{host}_{port}_")]);
            } else {
                names.push(registry);
            }
        }
    }
    names
}

/// Decodes a hosts.toml. Its relative paths begin in `folder`.
fn decode(text: &str, registry: &str, folder: &Path) -> Result<Vec<Endpoint>, String> {
    let mut table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let hosts = match table.remove("host") {
        None => Table::new(),
        Some(Value::Table(hosts)) => hosts,
        Some(_) => return Err("`host` must hold tables, as in [host.\"https://…\"]".to_owned()),
    };
    let server = match table.remove("server") {
        None => {
            let mut options = ["ca", "client", "skip_verify"].iter();
            default_server(registry, options.any(|key| table.contains_key(*key)))
        }
        Some(Value::String(server)) => server,
        Some(_) => return Err("`server` must be a URL".to_owned()),
    };
    let mut endpoints = Vec::with_capacity(hosts.len() + 1);
    for (url, host) in hosts {
        let key = format!("host.{url:?}");
        endpoints.push(endpoint(&key, &url, host, folder)?);
    }
    let says_more = !table.is_empty();
    let server = endpoint("server", &server, Value::Table(table), folder)?;
    // The server may have a section of its own. It must not become two endpoints.
    let is_known = endpoints.iter().any(|host: &Endpoint| {
        host.url == server.url && host.can_resolve && host.can_pull && !says_more
    });
    if !is_known {
        endpoints.push(server);
    }
    Ok(endpoints)
}

/// The registry itself, reached as without a file: by https, and on this machine by http. As in containerd, a
/// certificate or `skip_verify` at the top of the file means https also on this machine.
fn default_server(registry: &str, has_tls_options: bool) -> String {
    let host = server_host(registry);
    let is_loopback = Url::parse(&format!("http://{host}")).is_ok_and(|url| match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(domain)) => domain == "localhost",
        None => false,
    });
    let is_plain = is_loopback && !has_tls_options;
    format!("{}://{host}", if is_plain { "http" } else { "https" })
}

/// The host that answers for a registry.
fn server_host(registry: &str) -> &str {
    let is_docker_hub = registry.eq_ignore_ascii_case("docker.io");
    if is_docker_hub { "registry-1.docker.io" } else { registry }
}

fn endpoint(key: &str, url: &str, host: Value, folder: &Path) -> Result<Endpoint, String> {
    let wire: WireHost = host.try_into().map_err(|error| format!("in `{key}`: {error}"))?;
    let can = |capability: &str| match &wire.capabilities {
        Some(capabilities) => capabilities.iter().any(|given| given == capability),
        None => true,
    };
    let (can_resolve, can_pull, can_push) = (can("resolve"), can("pull"), can("push"));
    let ca_files = match wire.ca {
        None => Vec::new(),
        Some(OneOrMany::One(file)) => vec![folder.join(file)],
        Some(OneOrMany::Many(files)) => files.iter().map(|file| folder.join(file)).collect(),
    };
    Ok(Endpoint {
        url: base(url, wire.override_path).map_err(|detail| format!("in `{key}`: {detail}"))?,
        insecure_tls: wire.skip_verify,
        ca_files,
        client_identity: identity(wire.client, folder)
            .map_err(|detail| format!("in `{key}`, `client`: {detail}"))?,
        headers: headers(wire.header.unwrap_or_default())
            .map_err(|detail| format!("in `{key}`, `header`: {detail}"))?,
        overrides_path: wire.override_path,
        can_resolve,
        can_pull,
        can_push,
    })
}

/// The address of a host: https without a scheme, and without the `/v2` of some files.
fn base(text: &str, overrides_path: bool) -> Result<Url, String> {
    let with_scheme = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let expected = || "expected a URL such as \"https://mirror.example\"".to_owned();
    let mut url = Url::parse(&with_scheme).map_err(|_| expected())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(expected());
    }
    let path = url.path().trim_end_matches('/');
    let path = if overrides_path { path } else { path.strip_suffix("/v2").unwrap_or(path) };
    let path = path.to_owned();
    url.set_path(&path);
    Ok(url)
}

fn identity(
    client: Option<WireClient>,
    folder: &Path,
) -> Result<Option<(PathBuf, PathBuf)>, String> {
    let combined = |file: &str| (folder.join(file), folder.join(file));
    let of = |entry: &OneOrMany| match entry {
        OneOrMany::One(file) => Ok(combined(file)),
        OneOrMany::Many(files) => match &files[..] {
            [file] => Ok(combined(file)),
            [certificate, key] if key.is_empty() => Ok(combined(certificate)),
            [certificate, key] => Ok((folder.join(certificate), folder.join(key))),
            _ => Err("expected [\"CERTIFICATE\", \"KEY\"]".to_owned()),
        },
    };
    match client {
        None => Ok(None),
        Some(WireClient::Combined(file)) => Ok(Some(combined(&file))),
        Some(WireClient::List(entries)) => {
            match &entries[..] {
                [] => Ok(None),
                [one] => of(one).map(Some),
                _ => Err("one certificate and key per host: write [[\"CERTIFICATE\", \"KEY\"]]"
                    .to_owned()),
            }
        }
    }
}

fn headers(table: Table) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                Value::String(value) => headers.push((name.clone(), value)),
                _ => return Err(format!("`{name}` must be a string or a list of strings")),
            }
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str, registry: &str) -> Vec<String> {
        let endpoints = decode(text, registry, Path::new("/etc/kitfs")).unwrap();
        endpoints.iter().map(|endpoint| endpoint.url.to_string()).collect()
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_registry_last() {
        let text = r#"[host."https://z.example"]
                      [host."http://a.example:81/proxy"]"#;
        assert_eq!(
            urls(text, "ghcr.io"),
            ["https://z.example/", "http://a.example:81/proxy", "https://ghcr.io/"]
        );
        assert_eq!(urls("", "127.0.0.1:5555"), ["http://127.0.0.1:5555/"]);
        for tls in ["ca = 'own.pem'", "skip_verify = true", "client = 'both.pem'"] {
            assert_eq!(urls(tls, "127.0.0.1:5555"), ["https://127.0.0.1:5555/"], "{tls}");
        }
        assert_eq!(urls("", "docker.io"), ["https://registry-1.docker.io/"]);
        assert_eq!(urls("", "Docker.IO"), ["https://registry-1.docker.io/"]);
        assert_eq!(urls(r#"server = "other.example/v2/""#, "h.io"), ["https://other.example/"]);
    }

    #[test]
    fn a_server_that_is_one_of_the_hosts_is_asked_once() {
        let own = "[host.\"https://h.io\"]\nca = \"own.pem\"";
        assert_eq!(urls(own, "h.io"), ["https://h.io/"]);
        assert_eq!(urls(&format!("server = \"https://h.io\"\n{own}"), "h.io"), ["https://h.io/"]);
        let twice = ["https://h.io/", "https://h.io/"];
        assert_eq!(urls(&format!("skip_verify = true\n{own}"), "h.io"), twice);
        assert_eq!(urls(&format!("{own}\ncapabilities = [\"pull\"]"), "h.io"), twice);
    }

    #[test]
    fn every_field_is_read() {
        let text = r#"
            [host."https://m.example/v2/mirror"]
            capabilities = ["pull"]
            ca = ["one.pem", "/two.pem"]
            client = [["cert.pem", "key.pem"]]
            skip_verify = true
            override_path = true
            [host."https://m.example/v2/mirror".header]
            x-one = "1"
            x-many = ["2", "3"]"#;
        let endpoints = decode(text, "h.io", Path::new("/c")).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            endpoints[0],
            Endpoint {
                url: Url::parse("https://m.example/v2/mirror").unwrap(),
                insecure_tls: true,
                ca_files: vec!["/c/one.pem".into(), "/two.pem".into()],
                client_identity: Some(("/c/cert.pem".into(), "/c/key.pem".into())),
                headers: vec![pair("x-one", "1"), pair("x-many", "2"), pair("x-many", "3")],
                overrides_path: true,
                can_resolve: false,
                can_pull: true,
                can_push: false,
            }
        );
        assert!(endpoints[1].can_resolve && endpoints[1].can_pull);
    }

    #[test]
    fn a_combined_client_file_is_certificate_and_key() {
        for client in [r#""both.pem""#, r#"["both.pem"]"#, r#"[["both.pem", ""]]"#] {
            let endpoints = decode(&format!("client = {client}"), "h.io", Path::new("/c")).unwrap();
            let expected = Some(("/c/both.pem".into(), "/c/both.pem".into()));
            assert_eq!(endpoints[0].client_identity, expected, "{client}");
        }
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let mirrors = Mirrors::new(Some(folder.path().to_owned()));
        std::fs::create_dir(folder.path().join("h.io")).unwrap();
        for (text, key) in [
            ("server = 1", "server"),
            ("host = 1", "host"),
            ("[host.\"ftp://x\"]", "ftp://x"),
            ("[host.\"https://x\"]\nca = 1", "https://x"),
            ("[host.\"https://x\"]\nclient = [[\"a\",\"b\",\"c\"]]", "client"),
            ("[host.\"https://x\".header]\na = 1", "header"),
            ("[host", "line 1"),
        ] {
            std::fs::write(folder.path().join("h.io/hosts.toml"), text).unwrap();
            let error = mirrors.endpoints("h.io").unwrap_err().to_string();
            assert!(error.contains("h.io/hosts.toml") && error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn a_rule_gives_mirrors_and_the_registry_with_their_own_certificates() {
        let rule = |host: &str, ca: &str| RegistryRule {
            host: host.to_owned(),
            ca_files: vec![ca.into()],
            ..RegistryRule::default()
        };
        let mirrors = vec!["https://m.example/ghcr".to_owned(), "http://127.0.0.1:1".to_owned()];
        let own = RegistryRule { mirrors, tls_verify: Some(false), ..rule("h.io", "/own.pem") };
        let rules = || RegistryRules::new(vec![own.clone(), rule("m.example", "/mirror.pem")]);
        let endpoints =
            Mirrors::default().with_rules(rules(), false).endpoints("h.io").unwrap().unwrap();
        let found: Vec<_> = endpoints
            .iter()
            .map(|it| (it.url.as_str(), it.ca_files.len(), it.insecure_tls, it.can_push))
            .collect();
        let expected = [
            ("https://m.example/ghcr", 1, false, false),
            ("http://127.0.0.1:1/", 0, false, false),
            ("https://h.io/", 1, true, true),
        ];
        assert_eq!(found, expected);
        assert_eq!(endpoints[0].ca_files, [PathBuf::from("/mirror.pem")]);
        let plain =
            Mirrors::default().with_rules(rules(), true).endpoints("h.io").unwrap().unwrap();
        assert_eq!(plain[2].url.as_str(), "http://h.io/");
        let none = Mirrors::default().with_rules(rules(), false).endpoints("other.io").unwrap();
        assert_eq!(none, None);
        let wrong = vec![RegistryRule { mirrors: vec!["ftp://m".into()], ..rule("h.io", "/c") }];
        let error =
            Mirrors::default().with_rules(RegistryRules::new(wrong), false).endpoints("h.io");
        assert!(error.unwrap_err().to_string().contains("ftp://m"));
    }

    #[test]
    fn hosts_toml_of_a_host_goes_before_a_rule_and_that_of_all_hosts_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            let text = format!("[host.\"https://m.example/{name}\"]");
            std::fs::write(folder.path().join(name).join("hosts.toml"), text).unwrap();
        };
        let rules = ["a.io", "b.io"].map(|host| RegistryRule {
            host: host.to_owned(),
            mirrors: vec!["https://rule.example".to_owned()],
            ..RegistryRule::default()
        });
        let mirrors = Mirrors::new(Some(folder.path().to_owned()));
        let mirrors = mirrors.with_rules(RegistryRules::new(rules.into()), false);
        write("a.io");
        write("_default");
        let first = |host: &str| mirrors.endpoints(host).unwrap().unwrap()[0].url.to_string();
        assert_eq!(first("a.io"), "https://m.example/a.io");
        assert_eq!(first("b.io"), "https://rule.example/");
        assert_eq!(first("c.io"), "https://m.example/_default");
    }

    #[test]
    fn the_folder_of_a_host_goes_before_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let mirrors = Mirrors::new(Some(folder.path().to_owned()));
        assert_eq!(mirrors.endpoints("h.io:5000").unwrap(), None);
        for name in ["_default", "h.io_5000_", "h.io:5000"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            let text = format!("[host.\"https://m.example/{}\"]", name.replace(':', "-"));
            std::fs::write(folder.path().join(name).join("hosts.toml"), text).unwrap();
            let endpoints = mirrors.endpoints("h.io:5000").unwrap().unwrap();
            assert_eq!(endpoints[0].url.path(), format!("/{}", name.replace(':', "-")));
        }
        assert_eq!(
            mirrors.endpoints("H.io:5000").unwrap(),
            mirrors.endpoints("h.io:5000").unwrap()
        );
        let endpoints = mirrors.endpoints("other.io").unwrap().unwrap();
        assert_eq!(endpoints[0].url.path(), "/_default");
        assert_eq!(mirrors.endpoints("../h.io:5000").unwrap().unwrap()[0].url.path(), "/_default");
    }
}
