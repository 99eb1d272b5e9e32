//! The proxy that a request goes through, and the hosts that are reached directly. Pure.
//!
//! `NO_PROXY` is read as Go's `golang.org/x/net/http/httpproxy` reads it, and so as kit and docker do:
//!
//! ```text
//! corp.example          this host, and every host below it
//! .corp.example         every host below it; *.corp.example means the same
//! registry:5000         this port alone; an address may have one, too
//! 10.1.2.3, fd00::1     this address
//! 10.0.0.0/8, fd00::/8  the addresses of a network
//! *                     every host
//! ```
//!
//! Upper and lower case are the same. Loopback is always reached directly, because a proxy would connect to its own
//! loopback.

use std::net::IpAddr;

use url::{Host, Url};

use super::message;
use super::upstream::is_loopback;
use crate::source::SourceError;

/// The proxies of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    direct: Direct,
}

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Direct {
    all: bool,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// The addresses whose first bits are those of this one.
    Network {
        address: IpAddr,
        bits: u32,
    },
    Address {
        address: IpAddr,
        port: Option<u16>,
    },
    /// Hosts below `name`, and `name` itself unless the entry excludes it.
    Domain {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// The proxies for http and https, without the hosts of `no_proxy`.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] for a proxy that is no URL. The message does not repeat the text, because it
    /// may have a password.
    pub(super) fn new(
        http: Option<&str>,
        https: Option<&str>,
        no_proxy: Option<&str>,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            http: http.map(parse).transpose()?,
            https: https.map(parse).transpose()?,
            direct: Direct::parse(no_proxy.unwrap_or_default()),
        })
    }

    /// The proxy that a request to `url` goes through.
    pub(super) fn for_url(&self, url: &Url) -> Option<&Url> {
        let proxy = if url.scheme() == "https" { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !is_loopback(url) && !self.direct.has(url))
    }

    /// The same as messages name it, without its password.
    pub(super) fn name_for_url(&self, url: &Url) -> Option<String> {
        self.for_url(url).map(message::origin)
    }

    /// Whether no request goes through a proxy.
    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }
}

/// A proxy's URL; one without a scheme (`proxy:3128`) is an http one, as curl and Go take it.
fn parse(text: &str) -> Result<Url, SourceError> {
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&text).ok();
    let url = url.filter(|url| url.has_host() && matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| SourceError::Configuration {
        what: "the proxy".into(),
        detail: "is no URL of an http or https proxy: write it as http://HOST:PORT".into(),
    })
}

impl Direct {
    fn parse(text: &str) -> Self {
        let mut direct = Self::default();
        for entry in text.split(',') {
            match entry.trim() {
                "*" => direct.all = true,
                entry => direct.rules.extend(Rule::parse(&entry.to_lowercase())),
            }
        }
        direct
    }

    fn has(&self, url: &Url) -> bool {
        self.all || self.rules.iter().any(|rule| rule.matches(url))
    }
}

impl Rule {
    /// A rule from its text in lower case; `None` where it could never match.
    fn parse(text: &str) -> Option<Self> {
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let bits = bits.parse().ok().filter(|&bits| bits <= width(&address))?;
            return Some(Self::Network { address, bits });
        }
        let (host, port) = match split_port(text) {
            (host, "") => (host, None),
            (host, port) => (host, Some(port.parse().ok()?)),
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self::Address { address: address.to_canonical(), port });
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let (name, itself) = match host.strip_prefix('.') {
            Some(name) => (name, false),
            None => (host, true),
        };
        // The name in the letters of DNS, as in URLs.
        let Ok(Host::Domain(name)) = Host::parse(name) else { return None };
        Some(Self::Domain { name, itself, port })
    }

    fn matches(&self, url: &Url) -> bool {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address).to_canonical()),
            Some(Host::Domain(_)) | None => None,
        };
        let has_port = |port: &Option<u16>| port.is_none() || *port == url.port_or_known_default();
        match self {
            Self::Network { address: network, bits } => {
                address.is_some_and(|address| lies_within(&address, network, *bits))
            }
            Self::Address { address: own, port } => address == Some(*own) && has_port(port),
            Self::Domain { name, itself, port } => {
                let Some(host) = url.domain() else { return false };
                let host = host.strip_suffix('.').unwrap_or(host);
                let is_below = host.strip_suffix(name.as_str()).is_some_and(|it| it.ends_with('.'));
                (is_below || (*itself && host == name)) && has_port(port)
            }
        }
    }
}

/// Host and port of an entry; the port is empty where there is none.
fn split_port(text: &str) -> (&str, &str) {
    if let Some(rest) = text.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((host, port)) => (host, port.strip_prefix(':').unwrap_or_default()),
            None => (text, ""),
        };
    }
    match text.split_once(':') {
        // A text with more than one colon and no brackets is an address.
        Some((host, port)) if !port.contains(':') => (host, port),
        _ => (text, ""),
    }
}

/// The number of bits of an address.
fn width(address: &IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn lies_within(address: &IpAddr, network: &IpAddr, bits: u32) -> bool {
    let number = |address: &IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let behind = width(network) - bits;
    let head = |address: &IpAddr| number(address).checked_shr(behind).unwrap_or(0);
    width(address) == width(network) && head(address) == head(network)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        Proxies::new(Some("proxy:3128"), Some("http://secure:3128"), Some(no_proxy)).unwrap()
    }

    fn is_direct(no_proxy: &str, url: &str) -> bool {
        proxies(no_proxy).for_url(&Url::parse(url).unwrap()).is_none()
    }

    #[rstest]
    #[case::name("corp.example", "https://corp.example/", true)]
    #[case::below_a_name("corp.example", "https://a.b.corp.example/", true)]
    #[case::part_of_a_name("corp.example", "https://mycorp.example/", false)]
    #[case::below_a_dot(".corp.example", "https://a.corp.example/", true)]
    #[case::dot_itself(".corp.example", "https://corp.example/", false)]
    #[case::below_a_star("*.corp.example", "https://a.b.corp.example/", true)]
    #[case::star_itself("*.corp.example", "https://corp.example/", false)]
    #[case::short_name("*.corp", "http://r.corp/", true)]
    #[case::case("Corp.EXAMPLE", "https://a.corp.example/", true)]
    #[case::port("corp.example:8443", "https://corp.example:8443/", true)]
    #[case::other_port("corp.example:8443", "https://corp.example/", false)]
    #[case::default_port("corp.example:443", "https://corp.example/", true)]
    #[case::port_below("*.corp:5000", "http://a.corp:5000/", true)]
    #[case::no_port_named("corp.example", "https://corp.example:8443/", true)]
    #[case::empty_port("corp.example:", "https://corp.example:8443/", true)]
    #[case::address("10.1.2.3", "https://10.1.2.3:5000/", true)]
    #[case::address_and_port("10.1.2.3:5000", "https://10.1.2.3:5001/", false)]
    #[case::network("10.0.0.0/8", "https://10.200.3.4/", true)]
    #[case::other_network("10.0.0.0/8", "https://11.0.0.1/", false)]
    #[case::odd_network("10.1.2.3/15", "https://10.0.255.255/", true)]
    #[case::whole_network("0.0.0.0/0", "https://9.9.9.9/", true)]
    #[case::network_has_no_names("0.0.0.0/0", "https://corp.example/", false)]
    #[case::ipv6("fd00::1", "https://[fd00::1]:5000/", true)]
    #[case::ipv6_in_brackets("[fd00::1]:5000", "https://[fd00::1]:5000/", true)]
    #[case::ipv6_other_port("[fd00::1]:5000", "https://[fd00::1]/", false)]
    #[case::ipv6_network("fd00::/8", "https://[fdff::2]/", true)]
    #[case::mapped_address("10.1.2.3", "https://[::ffff:10.1.2.3]/", true)]
    #[case::everything("elsewhere, *", "https://corp.example/", true)]
    #[case::list(" a.example ,, corp.example ", "https://corp.example/", true)]
    #[case::nothing("", "https://corp.example/", false)]
    #[case::absolute_name("corp.example", "https://a.corp.example./", true)]
    #[case::foreign_letters("bücher.example", "https://xn--bcher-kva.example/", true)]
    #[case::loopback_name("", "http://localhost:5000/", true)]
    #[case::loopback_address("", "http://127.3.4.5/", true)]
    #[case::loopback_ipv6("", "https://[::1]:5000/", true)]
    fn hosts_are_excluded_as_in_go(
        #[case] no_proxy: &str,
        #[case] url: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(is_direct(no_proxy, url), expected);
    }

    #[test]
    fn entries_that_mean_nothing_exclude_nothing() {
        for odd in
            ["10.0.0.0/33", "10.0.0.0/x", ":8080", "corp.example:http", ".", "*.", "[::1", "/8"]
        {
            assert!(!is_direct(odd, "https://corp.example:8080/"), "{odd}");
            assert!(!is_direct(odd, "https://10.0.0.1/"), "{odd}");
        }
    }

    #[test]
    fn http_and_https_have_a_proxy_each_and_no_password_is_shown() {
        let proxies =
            Proxies::new(Some("http://u:secret@plain:3128"), Some("https://safe"), None).unwrap();
        let name = |url: &str| proxies.name_for_url(&Url::parse(url).unwrap());
        assert_eq!(name("http://a.example/").as_deref(), Some("http://plain:3128"));
        assert_eq!(name("https://a.example/").as_deref(), Some("https://safe"));
        for odd in ["http://user:secret@", "ftp://secret@proxy", "http://"] {
            let error = Proxies::new(Some(odd), None, None).unwrap_err();
            assert!(matches!(error, SourceError::Configuration { .. }), "{odd}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(no_proxy in any::<String>(), hosts in "[a-c.*:0-9/\\[\\], ]{0,30}") {
            is_direct(&no_proxy, "https://corp.example/");
            is_direct(&hosts, "https://a.b:8443/");
            is_direct(&hosts, "https://[fd00::1]/");
        }

        #[test]
        fn a_network_has_the_addresses_that_share_its_first_bits(
            address in any::<u32>(), other in any::<u32>(), bits in 0u32..=32,
        ) {
            let [address, other] = [address, other].map(std::net::Ipv4Addr::from_bits);
            let excluded = is_direct(&format!("{address}/{bits}"), &format!("https://{other}/"));
            let shared = (address.to_bits() ^ other.to_bits()).leading_zeros();
            prop_assert_eq!(excluded, shared >= bits || other.is_loopback());
        }
    }
}
