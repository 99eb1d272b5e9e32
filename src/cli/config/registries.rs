//! Sections of a file for single registries: `[registry."ghcr.io"]`, `[registry."*.corp.example"]`.
//!
//! ```toml
//! [registry."ghcr.io"]
//! mirror = ["https://mirror.example/ghcr"]
//! requests-per-second = 20
//! ```
//!
//! A section becomes a rule (`source::registry_rules`). Its values are checked when the file is read.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::Url;

use super::catalogue::Kind;
use super::file::Reader;
use crate::cli::nearest::advice;
use crate::cli::sizes;
use crate::observe::without_user;
use crate::source::registry_rules::RegistryRule;

/// The name of the table with the sections.
pub(super) const TABLE: &str = "registry";

/// A key of a section, as the pages explain it.
pub(in crate::cli) struct SectionKeyHelp {
    pub name: &'static str,
    /// The kind of value. Code is between backticks.
    pub value: &'static str,
    pub meaning: &'static str,
}

/// The keys of a section, in order, with their values and meanings, for messages, the manual page and
/// docs/configuration.md.
pub(in crate::cli) const KEYS: [SectionKeyHelp; 11] = [
    SectionKeyHelp {
        name: "bytes-per-second",
        value: "a size, at least `\"64KiB\"`",
        meaning: "the most bytes in a second from this host, for all mounts of the daemon",
    },
    SectionKeyHelp {
        name: "ca-file",
        value: "one file, or a list",
        meaning: "certificate authorities for this registry, beside `--ca-file` and those of the machine",
    },
    SectionKeyHelp { name: "cert", value: "a file", meaning: "client certificate; with `key`" },
    SectionKeyHelp {
        name: "credential-helper",
        value: "a name",
        meaning: "the program `docker-credential-NAME`, asked before all files. Its failure is an error",
    },
    SectionKeyHelp {
        name: "credentials-file",
        value: "a file",
        meaning: "credentials in Docker's format, looked at before all other files. A file that every user can read is refused",
    },
    SectionKeyHelp { name: "key", value: "a file", meaning: "key of the client certificate" },
    SectionKeyHelp {
        name: "mirror",
        value: "one URL, or a list",
        meaning: "asked in this order before the registry itself, which comes last. Pushes go to the registry. A mirror has the certificates of its own section",
    },
    SectionKeyHelp {
        name: "plain-http",
        value: "`true`, `false`",
        meaning: "speak http, or https also on loopback",
    },
    SectionKeyHelp {
        name: "requests-per-second",
        value: "a number",
        meaning: "the most requests in a second to this host, for all mounts of the daemon",
    },
    SectionKeyHelp {
        name: "tls-verify",
        value: "`true`, `false`",
        meaning: "`false` accepts any certificate of the registry. `--tls-verify=false` accepts any of every registry",
    },
    SectionKeyHelp {
        name: "trust",
        value: "a list of hosts",
        meaning: "the only hosts beside the registry that get its credentials: its token server. Without the key, the registry's answer names the token server",
    },
];

/// Keys of other tools. A section refuses them, and names the keys for a file or a helper.
const SECRETS: [&str; 4] = ["auth", "password", "token", "username"];

/// The lowest rate in bytes: below it, a program that reads takes the registry for dead.
const LEAST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// A section of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub rule: RegistryRule,
    pub keys: Vec<SectionKey>,
}

/// A key of a section, to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SectionKey {
    /// With its section: `registry."ghcr.io".mirror`.
    pub name: String,
    pub line: usize,
    pub values: Vec<String>,
    pub kind: Kind,
}

impl Reader<'_> {
    /// Reads all sections.
    pub(super) fn registries(&mut self, table: &DeTable<'_>) {
        for (host, value) in table {
            let (name, place) = (host.get_ref().as_ref(), host.span().start);
            match value.get_ref() {
                DeValue::Table(keys) if is_pattern(name) => {
                    let section = self.section(name, place, keys);
                    self.sections.push(section);
                }
                DeValue::Table(_) => {
                    let message = format!(
                        "`{name}` is no registry: write [registry.\"HOST[:PORT]\"], or \"*.DOMAIN\" for all below a \
                         domain"
                    );
                    self.problem(place, message);
                }
                _ => {
                    let message = "a registry is a table, such as [registry.\"ghcr.io\"]; the option of \
                                   `kitfs browse` belongs into [browse] and [daemon.start]";
                    self.problem(place, message.to_owned());
                }
            }
        }
    }

    fn section(&mut self, host: &str, place: usize, table: &DeTable<'_>) -> Section {
        let mut section = Section {
            rule: RegistryRule { host: host.to_owned(), ..RegistryRule::default() },
            keys: Vec::new(),
        };
        let (mut certificate, mut secret) = (None, None);
        for (key, value) in table {
            let (name, place) = (key.get_ref().as_ref(), key.span().start);
            let full = format!("{TABLE}.\"{host}\".{name}");
            match self.set(&mut section.rule, (&mut certificate, &mut secret), name, value) {
                Ok((values, kind)) => {
                    let line = self.line(place);
                    section.keys.push(SectionKey { name: full, line, values, kind });
                }
                Err(reason) => self.problem(place, format!("`{full}` {reason}")),
            }
        }
        section.rule.client_identity = match (certificate, secret) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let message =
                    format!("`{TABLE}.\"{host}\"` needs both `cert` and `key`, or neither");
                self.problem(place, message);
                None
            }
        };
        if section.rule.credentials_file.is_some() && section.rule.credential_helper.is_some() {
            let message = format!(
                "`{TABLE}.\"{host}\"` has `credentials-file` and `credential-helper`: write one of them"
            );
            self.problem(place, message);
        }
        section
    }

    /// Sets a key of a rule. Returns its values, for `kitfs config show`.
    fn set(
        &self,
        rule: &mut RegistryRule,
        (certificate, secret): (&mut Option<PathBuf>, &mut Option<PathBuf>),
        name: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<(Vec<String>, Kind), String> {
        let path = || one_text(value).map(|text| PathBuf::from(self.resolved(&text)));
        let shown = |path: &PathBuf| path.display().to_string();
        let switch = || match value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err("is either true or false, without quotes".to_owned()),
        };
        match name {
            "mirror" => {
                rule.mirrors = texts(value)?;
                for mirror in &rule.mirrors {
                    let url = Url::parse(mirror).ok();
                    if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https")) {
                        let mirror = without_user(mirror);
                        return Err(format!("cannot be {mirror:?}: write a URL such as \"https://mirror.example\""));
                    }
                }
                Ok((rule.mirrors.clone(), Kind::List))
            }
            "trust" => {
                let hosts = texts(value)?;
                if let Some(wrong) = hosts.iter().find(|host| !is_host(host)) {
                    return Err(format!("cannot be {:?}: write HOST[:PORT]", without_user(wrong)));
                }
                rule.trusted = Some(hosts.clone());
                Ok((hosts, Kind::List))
            }
            "ca-file" => {
                rule.ca_files = texts(value)?.iter().map(|text| self.resolved(text).into()).collect();
                Ok((rule.ca_files.iter().map(shown).collect(), Kind::List))
            }
            "cert" => Ok((vec![shown(certificate.insert(path()?))], Kind::Text)),
            "key" => Ok((vec![shown(secret.insert(path()?))], Kind::Text)),
            "credentials-file" => {
                Ok((vec![shown(rule.credentials_file.insert(path()?))], Kind::Text))
            }
            "credential-helper" => {
                let helper = one_text(value)?;
                if helper.is_empty() || helper.contains('/') {
                    let example = "is the part of its name after `docker-credential-`, such as \"ecr-login\"";
                    return Err(example.to_owned());
                }
                Ok((vec![rule.credential_helper.insert(helper).clone()], Kind::Text))
            }
            "plain-http" => Ok((vec![rule.plain_http.insert(switch()?).to_string()], Kind::Switch)),
            "tls-verify" => Ok((vec![rule.tls_verify.insert(switch()?).to_string()], Kind::Switch)),
            "bytes-per-second" => {
                let text = number_or_text(value)?;
                let bytes = sizes::parse(&text).map_err(|reason| format!("is wrong: {reason}"))?;
                if bytes < LEAST_BYTES_PER_SECOND {
                    return Err("is at least 64KiB: a slower registry would look dead".to_owned());
                }
                rule.bytes_per_second = Some(bytes);
                Ok((vec![text], Kind::Text))
            }
            "requests-per-second" => {
                let text = number_or_text(value)?;
                match text.parse() {
                    Ok(requests) if requests > 0 => rule.requests_per_second = Some(requests),
                    _ => return Err("is a whole number, at least 1".to_owned()),
                }
                Ok((vec![text], Kind::Text))
            }
            name if SECRETS.contains(&name) => Err("does not exist, so that no password lies here: name a file \
                                                    with `credentials-file`, or a `credential-helper`"
                .to_owned()),
            name => Err(format!("is no key of a registry{}", advice(name, KEYS.map(|key| key.name)))),
        }
    }
}

fn one_text(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.as_ref().to_owned()),
        _ => Err("takes text".to_owned()),
    }
}

fn texts(value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    match value.get_ref() {
        DeValue::Array(values) => values.iter().map(one_text).collect(),
        _ => one_text(value).map(|text| vec![text]),
    }
}

fn number_or_text(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        _ => one_text(value),
    }
}

/// Whether a text is `HOST[:PORT]` or `*.DOMAIN[:PORT]`.
fn is_pattern(text: &str) -> bool {
    is_host(text.strip_prefix("*.").unwrap_or(text))
}

fn is_host(text: &str) -> bool {
    let is_plain = !text.is_empty() && !text.contains(['/', '*', '@', '?', '#', ' ']);
    is_plain && Url::parse(&format!("https://{text}/")).is_ok_and(|url| url.host().is_some())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::arguments::Arguments;
    use crate::cli::config::catalogue::Catalogue;
    use crate::cli::config::file::parse;

    fn parsed(text: &str) -> (Vec<Section>, Vec<String>) {
        let catalogue = Catalogue::of(&Arguments::command());
        let (file, problems) = parse(Path::new("/etc/kitfs/config.toml"), text, None, &catalogue);
        (file.sections, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_section_becomes_a_rule() {
        let (sections, problems) = parsed(
            "[registry.\"*.corp.example:5000\"]\nmirror = 'https://m.example/corp'\nplain-http = false\n\
             tls-verify = true\nca-file = ['ca.pem', '/b.pem']\ncert = 'c.pem'\nkey = '/k.pem'\n\
             credentials-file = 'auth.json'\ntrust = ['auth.corp.example']\nbytes-per-second = '50MiB'\n\
             requests-per-second = 20\n[registry.\"ghcr.io\"]\ncredential-helper = 'pass'\n",
        );
        assert_eq!(problems, [""; 0]);
        let expected = RegistryRule {
            host: "*.corp.example:5000".to_owned(),
            mirrors: vec!["https://m.example/corp".to_owned()],
            plain_http: Some(false),
            tls_verify: Some(true),
            ca_files: vec!["/etc/kitfs/ca.pem".into(), "/b.pem".into()],
            client_identity: Some(("/etc/kitfs/c.pem".into(), "/k.pem".into())),
            credentials_file: Some("/etc/kitfs/auth.json".into()),
            credential_helper: None,
            trusted: Some(vec!["auth.corp.example".to_owned()]),
            bytes_per_second: Some(50 << 20),
            requests_per_second: Some(20),
        };
        assert_eq!(sections[0].rule, expected);
        assert_eq!(sections[1].rule.credential_helper.as_deref(), Some("pass"));
        let mirror = sections[0].keys.iter().find(|key| key.name.ends_with("mirror")).unwrap();
        assert_eq!((&*mirror.name, mirror.line), ("registry.\"*.corp.example:5000\".mirror", 2));
    }

    #[test]
    fn wrong_sections_name_their_line_and_key() {
        for (text, expected) in [
            (
                "mirrors = 'https://m'",
                ":2: `registry.\"h.io\".mirrors` is no key of a registry; did you mean `mirror`?",
            ),
            ("mirror = 'm.example'", "write a URL such as"),
            ("mirror = 1", "takes text"),
            ("tls-verify = 'no'", "is either true or false"),
            ("cert = 'c.pem'", "needs both `cert` and `key`"),
            ("credential-helper = '/bin/x'", "docker-credential-"),
            ("credential-helper = 'x'\ncredentials-file = 'y'", "write one of them"),
            ("bytes-per-second = 1000", "at least 64KiB"),
            ("bytes-per-second = 'fast'", "`registry.\"h.io\".bytes-per-second`"),
            ("requests-per-second = 0", "at least 1"),
            ("trust = 'https://a'", "write HOST[:PORT]"),
            ("password = 'x'", "so that no password lies here"),
        ] {
            let (_, problems) = parsed(&format!("[registry.\"h.io\"]\n{text}"));
            assert!(problems.iter().any(|it| it.contains(expected)), "{text}: {problems:?}");
        }
        for text in [
            "registry = ['ghcr.io']",
            "[registry]\n'ghcr.io' = 1",
            "[registry.'a/b']\n",
            "[registry.'*']\n",
        ] {
            assert_eq!(parsed(text).1.len(), 1, "{text}");
        }
    }

    #[test]
    fn the_page_has_each_key_of_a_section() {
        let page = include_str!("../../../docs/configuration.md");
        let (_, rest) = page.split_once("## Registries").expect("there is a part about registries");
        let rest = rest.split("\n## ").next().unwrap_or_default();
        let mut rows: Vec<_> = rest.lines().filter(|line| line.starts_with("| `")).collect();
        rows.sort_unstable();
        let expected =
            KEYS.map(|key| format!("| `{}` | {} | {} |", key.name, key.value, key.meaning));
        assert_eq!(rows, expected);
        assert!(KEYS.is_sorted_by_key(|key| key.name));
    }
}
