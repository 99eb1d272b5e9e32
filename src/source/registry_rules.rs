//! The settings of a user for one registry, or for all below a domain: mirrors, certificates, credentials, rates.
//!
//! A rule is for a host in the form of references (`ghcr.io`, `registry.example:5000`), or for the hosts below a
//! domain (`*.corp.example`). A pattern without a port fits any port. Several rules may fit a host. For each
//! setting by itself, the most specific rule with the setting counts. Of equal rules, the first counts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::admission::Rate;

/// The settings for the hosts of a pattern. `None` and empty lists set nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryRule {
    /// `HOST[:PORT]`, or `*.DOMAIN[:PORT]`.
    pub host: String,
    /// URLs of mirrors, asked in this order before the registry itself.
    pub mirrors: Vec<String>,
    /// Speak http.
    pub plain_http: Option<bool>,
    /// Check certificates.
    pub tls_verify: Option<bool>,
    /// PEM files with further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// PEM files with a client certificate and its key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// A file in Docker's config format, which comes before all others.
    pub credentials_file: Option<PathBuf>,
    /// The name of a credential helper: `ecr-login` for `docker-credential-ecr-login`.
    pub credential_helper: Option<String>,
    /// The only hosts beside the registry that may get its credentials, such as its token server. `None`: the token
    /// server that the registry names.
    pub trusted: Option<Vec<String>>,
    /// The most bytes in a second from this host.
    pub bytes_per_second: Option<u64>,
    /// The most requests in a second to this host.
    pub requests_per_second: Option<u64>,
}

impl RegistryRule {
    /// Whether the rule has other settings than credentials and rates: settings for reaching the registry.
    pub fn is_about_addresses(&self) -> bool {
        !self.mirrors.is_empty()
            || self.plain_http.is_some()
            || self.tls_verify.is_some()
            || !self.ca_files.is_empty()
            || self.client_identity.is_some()
    }

    /// The rule with only the hosts that may get credentials.
    pub fn about_credentials(&self) -> Self {
        Self { host: self.host.clone(), trusted: self.trusted.clone(), ..Self::default() }
    }

    /// The files that are read for the rule.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identity =
            self.client_identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.ca_files.iter().chain(identity).chain(&self.credentials_file)
    }

    /// How well the pattern fits a host: higher is more specific; `None` where it does not fit.
    fn fit(&self, host: &str) -> Option<usize> {
        let (pattern, host) = (self.host.to_ascii_lowercase(), host.to_ascii_lowercase());
        let Some(domain) = pattern.strip_prefix("*.") else {
            return (pattern == host).then_some(usize::MAX);
        };
        let (domain, port) = split_port(domain);
        let (name, host_port) = split_port(&host);
        let is_below =
            name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
        let is_port = port.is_none_or(|port| host_port == Some(port));
        // A pattern with a port is more specific than the same pattern without.
        (is_below && is_port).then_some(2 * domain.len() + usize::from(port.is_some()))
    }
}

/// The host, and the port where there is one. Colons in `[::1]` begin no port.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// The rules of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryRules(Vec<RegistryRule>);

impl RegistryRules {
    /// These rules. Of equal ones, the first counts.
    pub fn new(rules: Vec<RegistryRule>) -> Self {
        Self(rules)
    }

    /// The settings for a host (`HOST[:PORT]`), of all the rules that fit it.
    pub fn of(&self, host: &str) -> RegistryRule {
        let mut fitting: Vec<_> =
            self.0.iter().filter_map(|rule| Some((rule.fit(host)?, rule))).collect();
        // A stable sort keeps the first of equal rules first.
        fitting.sort_by_key(|(fit, _)| std::cmp::Reverse(*fit));
        let mut found = RegistryRule { host: host.to_owned(), ..RegistryRule::default() };
        for (_, rule) in fitting {
            let rule = rule.clone();
            if found.mirrors.is_empty() {
                found.mirrors = rule.mirrors;
            }
            if found.ca_files.is_empty() {
                found.ca_files = rule.ca_files;
            }
            // The file and the helper come from one rule.
            if found.credentials_file.is_none() && found.credential_helper.is_none() {
                found.credentials_file = rule.credentials_file;
                found.credential_helper = rule.credential_helper;
            }
            found.plain_http = found.plain_http.or(rule.plain_http);
            found.tls_verify = found.tls_verify.or(rule.tls_verify);
            found.client_identity = found.client_identity.or(rule.client_identity);
            found.trusted = found.trusted.or(rule.trusted);
            found.bytes_per_second = found.bytes_per_second.or(rule.bytes_per_second);
            found.requests_per_second = found.requests_per_second.or(rule.requests_per_second);
        }
        found
    }

    /// The rate for a host; `None` where no rule has one.
    pub fn rate(&self, host: &str) -> Option<Rate> {
        let RegistryRule { bytes_per_second, requests_per_second, .. } = self.of(host);
        let rate = Rate { bytes_per_second, requests_per_second };
        (rate != Rate::default()).then_some(rate)
    }

    /// Whether `host` may get the credentials of `registry`.
    pub fn may_have_credentials(&self, registry: &str, host: &str) -> bool {
        let is_same = |one: &str, other: &str| one.eq_ignore_ascii_case(other);
        match self.of(registry).trusted {
            None => true,
            Some(trusted) => is_same(registry, host) || trusted.iter().any(|it| is_same(it, host)),
        }
    }

    /// The files with credentials of all rules.
    pub fn credential_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().filter_map(|rule| rule.credentials_file.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(host: &str, mirror: &str) -> RegistryRule {
        let mirrors = vec![mirror.to_owned()];
        RegistryRule { host: host.to_owned(), mirrors, ..RegistryRule::default() }
    }

    fn mirror(rules: &[(&str, &str)], host: &str) -> String {
        let rules = rules.iter().map(|(host, mirror)| rule(host, mirror)).collect();
        RegistryRules::new(rules).of(host).mirrors.concat()
    }

    #[test]
    fn the_most_specific_pattern_counts() {
        let rules = [
            ("*.example", "wide"),
            ("*.corp.example", "narrow"),
            ("*.corp.example:5000", "port"),
            ("r.corp.example:5000", "exact"),
            ("R.corp.example:5000", "second"),
        ];
        for (host, expected) in [
            ("r.corp.example:5000", "exact"),
            ("R.Corp.Example:5000", "exact"),
            ("q.corp.example:5000", "port"),
            ("q.corp.example", "narrow"),
            ("a.b.corp.example:1", "narrow"),
            ("corp.example", "wide"),
            ("example", ""),
            ("xcorp.example", "wide"),
            ("notexample", ""),
            ("[::1]:5000", ""),
        ] {
            assert_eq!(mirror(&rules, host), expected, "{host}");
        }
        assert_eq!(mirror(&[("[::1]:5000", "own")], "[::1]:5000"), "own");
        // A name with a port is another registry than the same name without.
        assert_eq!(mirror(&[("ghcr.io", "own")], "ghcr.io:5000"), "");
    }

    #[test]
    fn each_setting_comes_from_the_most_specific_rule_that_has_it() {
        let wide = RegistryRule {
            ca_files: vec!["/ca.pem".into()],
            tls_verify: Some(true),
            bytes_per_second: Some(9),
            credentials_file: Some("/wide".into()),
            ..rule("*.example", "wide")
        };
        let narrow = RegistryRule {
            host: "r.example".to_owned(),
            tls_verify: Some(false),
            credential_helper: Some("pass".to_owned()),
            ..RegistryRule::default()
        };
        let rules = RegistryRules::new(vec![wide, narrow]);
        let found = rules.of("r.example");
        assert_eq!((found.tls_verify, found.mirrors.concat()), (Some(false), "wide".to_owned()));
        assert_eq!(found.credential_helper.as_deref(), Some("pass"));
        assert_eq!(found.credentials_file, None, "one rule says where the credentials are");
        let rate = Rate { bytes_per_second: Some(9), requests_per_second: None };
        assert_eq!((rules.rate("r.example"), rules.rate("r.org")), (Some(rate), None));
    }

    #[test]
    fn credentials_go_to_trusted_hosts_alone_where_a_rule_names_them() {
        let trusted = Some(vec!["auth.example".to_owned()]);
        let rules = RegistryRules::new(vec![RegistryRule { trusted, ..rule("r.example", "m") }]);
        assert!(rules.may_have_credentials("r.example", "AUTH.example"));
        assert!(rules.may_have_credentials("r.example", "r.example"));
        assert!(!rules.may_have_credentials("r.example", "evil.example"));
        assert!(rules.may_have_credentials("other.example", "auth.other.example"));
    }

    #[test]
    fn of_another_users_rule_only_the_trusted_hosts_count() {
        let theirs = RegistryRule {
            plain_http: Some(true),
            tls_verify: Some(false),
            ca_files: vec!["/ca.pem".into()],
            client_identity: Some(("/c".into(), "/k".into())),
            credentials_file: Some("/etc/shadow".into()),
            credential_helper: Some("evil".to_owned()),
            trusted: Some(vec!["auth.example".to_owned()]),
            bytes_per_second: Some(1),
            requests_per_second: Some(1),
            ..rule("r.example", "https://evil.example")
        };
        let trusted = theirs.trusted.clone();
        let expected =
            RegistryRule { host: theirs.host.clone(), trusted, ..RegistryRule::default() };
        assert_eq!(theirs.about_credentials(), expected);
    }

    proptest! {
        #[test]
        fn a_wildcard_fits_hosts_below_its_domain_only(
            sub in "[a-z]{1,4}(\\.[a-z]{1,4})?",
            domain in "[a-z]{1,5}\\.[a-z]{2}",
            port in proptest::option::of(1u16..9999),
        ) {
            let port = port.map_or(String::new(), |port| format!(":{port}"));
            let pattern = rule(&format!("*.{domain}"), "m");
            let below = format!("{}.{}{}", sub, domain, port);
            let (itself, glued) = (format!("{domain}{port}"), format!("{sub}{domain}{port}"));
            prop_assert!(pattern.fit(&below).is_some());
            prop_assert!(pattern.fit(&itself).is_none());
            prop_assert!(pattern.fit(&glued).is_none());
        }
    }
}
