//! Decides by its headers whether a request is let in. Pure.
//!
//! A web page in a user's browser can send requests to 127.0.0.1. With a host name that resolves to 127.0.0.1 (DNS
//! rebinding), it can read the answers too. So a request must name this server as a loopback host, and must not
//! come from a page of another origin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Uri};

use super::problem::Problem;

/// The header that relates the origin of a page to this server (Fetch Metadata, section 2.1). Browsers set it; pages
/// cannot.
const FETCH_SITE: &str = "sec-fetch-site";

/// Checks that a request names this server by a loopback host.
///
/// # Errors
/// For another name, several names, and no name.
pub(super) fn check_host(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let hosts: Vec<_> = headers.get_all(HOST).iter().collect();
    let named = match hosts[..] {
        [host] => host.to_str().is_ok_and(is_loopback),
        _ => false,
    };
    // A request to a proxy names the host twice, and both must be this one.
    if named && uri.authority().is_none_or(|authority| is_loopback(authority.as_str())) {
        return Ok(());
    }
    let message = "the Host of the request is no loopback name: ask for http://127.0.0.1:PORT or http://localhost:PORT";
    Err(Problem::forbidden(message))
}

/// Checks that no page of another origin has sent a request.
///
/// # Errors
/// When such a page has sent it.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("not text"));
    let is_own = match text(ORIGIN.as_str()) {
        Some(origin) => {
            let host = text(HOST.as_str()).unwrap_or_default();
            origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
        }
        None => true,
    };
    let is_direct = matches!(text(FETCH_SITE), None | Some("same-origin" | "none"));
    match is_own && is_direct {
        true => Ok(()),
        false => Err(Problem::forbidden("a web page of another origin has sent the request")),
    }
}

/// Whether `host` (`NAME[:PORT]`) is a loopback name.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if is_port(port) => {
                return address.parse().is_ok_and(|it: Ipv6Addr| is_loopback_address(it.into()));
            }
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if is_digits(port) => name,
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse().is_ok_and(|it: Ipv4Addr| it.is_loopback())
}

/// Whether an address is one of this machine alone.
pub(super) fn is_loopback_address(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(is_digits)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_loopback_names_reach_the_server() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:80",
            "127.9.8.7:1",
            "localhost",
            "LocalHost:9000",
            "[::1]",
            "[::1]:80",
        ] {
            assert!(
                check_host(&"/".parse().unwrap(), &headers(&[("host", host)])).is_ok(),
                "{host}"
            );
        }
        for host in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost.",
            "0.0.0.0",
            "10.0.0.1",
            "[::]",
            "[::1",
            "[::1]x",
            "127.0.0.1:",
            "127.0.0.1:80x",
            "127.0.0.1@evil.example",
            "::1",
            "127.1",
            "2130706433",
        ] {
            let problem = check_host(&"/".parse().unwrap(), &headers(&[("host", host)]));
            assert!(problem.is_err(), "{host}");
        }
        assert!(check_host(&"/".parse().unwrap(), &headers(&[])).is_err());
        let twice = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert!(check_host(&"/".parse().unwrap(), &twice).is_err());
        let evil = "http://evil.example/".parse().unwrap();
        assert!(check_host(&evil, &headers(&[("host", "localhost")])).is_err());
    }

    #[test]
    fn pages_of_other_origins_are_kept_out() {
        let host = ("host", "127.0.0.1:9000");
        for own in [
            &[host][..],
            &[host, ("origin", "http://127.0.0.1:9000")],
            &[host, ("sec-fetch-site", "none")],
            &[host, ("sec-fetch-site", "same-origin")],
        ] {
            assert!(check_origin(&headers(own)).is_ok(), "{own:?}");
        }
        for other in [
            ("origin", "null"),
            ("origin", "https://127.0.0.1:9000"),
            ("origin", "http://127.0.0.1:8000"),
            ("origin", "http://evil.example"),
            ("origin", ""),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
        ] {
            assert!(check_origin(&headers(&[host, other])).is_err(), "{other:?}");
        }
    }
}
