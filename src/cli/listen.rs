//! The options of the daemon's HTTP interface.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::CliError;
use super::help::MORE_NETWORK_OPTIONS;
use super::settings::Settings;
use crate::control::api::{DaemonStatus, FailureKind, KitRequest};
use crate::daemon::ListenConfig;

/// Where the daemon serves HTTP.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ListenArguments {
    /// Serve files, status and metrics over HTTP on this address of this machine, such as 127.0.0.1:9000;
    /// port 0 takes a free one (docs/api.md) [default: no HTTP] [env: KITFS_LISTEN].
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    listen: Option<SocketAddr>,
    /// Allow an address that other machines reach. They get health and metrics, never files.
    #[arg(long, requires = "listen", help_heading = MORE_NETWORK_OPTIONS)]
    listen_public: bool,
}

/// The settings that one process of a daemon tells the next one.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct PassedListenArguments {
    #[command(flatten)]
    listen: ListenArguments,
    /// Go on without HTTP where the address is in use.
    #[arg(long, requires = "listen")]
    listen_may_fail: bool,
    /// The listening socket has this number.
    #[arg(long, value_name = "NUMBER", requires = "listen")]
    listen_socket: Option<RawFd>,
}

impl ListenArguments {
    /// The settings of the arguments, or else of the environment.
    ///
    /// # Errors
    /// For an address of all machines without `--listen-public`.
    pub(super) fn config(
        &self,
        settings: &Settings,
        network: &NetworkArguments,
    ) -> Result<Option<ListenConfig>, CliError> {
        let Some(address) = self.listen else {
            let listen = settings.listen()?;
            return listen.map(|listen| with_kit(listen, settings, network)).transpose();
        };
        let is_public = self.listen_public;
        let listen = checked("--listen", "--listen-public", address, is_public, true)?;
        Ok(Some(with_kit(listen, settings, network)?))
    }

    /// Fails when the running daemon does not listen where these arguments want it to.
    pub(super) fn check(&self, status: &DaemonStatus) -> Result<(), CliError> {
        let Some(wanted) = self.listen else { return Ok(()) };
        let has = status.http.as_deref().and_then(|url| url.strip_prefix("http://"));
        let is_it = |has: SocketAddr| match wanted.port() {
            0 => has.ip() == wanted.ip(),
            _ => has == wanted,
        };
        if has.and_then(|has| has.parse().ok()).is_some_and(is_it) {
            return Ok(());
        }
        let does = match &status.http {
            Some(url) => format!("serves {url}"),
            None => "serves no HTTP".to_owned(),
        };
        let message = format!(
            "the daemon runs already and {does}: end it and its mounts with `kitfs daemon stop`, then start it again"
        );
        Err(CliError::new(FailureKind::Daemon, message))
    }
}

impl PassedListenArguments {
    /// The settings, without the options for kits.
    pub(super) fn config(&self) -> Option<ListenConfig> {
        Some(ListenConfig {
            address: self.listen.listen?,
            is_public: self.listen.listen_public,
            is_required: !self.listen_may_fail,
            socket: self.listen_socket,
            kit: None,
        })
    }
}

/// The settings of the environment: `KITFS_LISTEN`, `KITFS_LISTEN_PUBLIC`.
pub(super) fn of_environment(address: &str, is_public: bool) -> Result<ListenConfig, CliError> {
    let address = parse_address(address)
        .map_err(|error| CliError::usage(format!("KITFS_LISTEN: {error}")))?;
    // All daemons of a user have the same environment, and only one of them gets the address.
    checked("KITFS_LISTEN", "KITFS_LISTEN_PUBLIC=yes", address, is_public, false)
}

fn checked(
    name: &str,
    public: &str,
    address: SocketAddr,
    is_public: bool,
    is_required: bool,
) -> Result<ListenConfig, CliError> {
    if !address.ip().to_canonical().is_loopback() && !is_public {
        let message = format!(
            "{name}: other machines reach {address}: name an address of this machine alone, such as \
             127.0.0.1:{}, or add {public}",
            address.port()
        );
        return Err(CliError::usage(message));
    }
    Ok(ListenConfig { address, is_public, is_required, socket: None, kit: None })
}

/// Adds the options with which HTTP opens kits that are not mounted.
fn with_kit(
    listen: ListenConfig,
    settings: &Settings,
    network: &NetworkArguments,
) -> Result<ListenConfig, CliError> {
    let kit = settings.kit(String::new(), &KitArguments::default(), network)?;
    Ok(ListenConfig { kit: Some(kit), ..listen })
}

/// The options of the command that has started the daemon.
pub(super) fn passed_kit(text: &str) -> Result<KitRequest, CliError> {
    serde_json::from_str(text).map_err(|error| {
        CliError::usage(format!("the options for kits over HTTP are malformed: {error}"))
    })
}

/// Parses `ADDRESS:PORT`, `localhost:PORT` or `PORT`.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    if let Ok(port) = port.parse() {
        return Ok(SocketAddr::new(loopback, port));
    }
    text.parse().map_err(|_| {
        format!("`{text}` is no address and port: write 127.0.0.1:9000, or port 0 for a free one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbers_or_localhost() {
        let parse = |text| parse_address(text).unwrap().to_string();
        assert_eq!(parse("127.0.0.1:9000"), "127.0.0.1:9000");
        assert_eq!(parse("localhost:0"), "127.0.0.1:0");
        assert_eq!(parse("9000"), "127.0.0.1:9000");
        assert_eq!(parse("[::1]:80"), "[::1]:80");
        for text in [
            "",
            "example.com:80",
            "127.0.0.1",
            ":80",
            "localhost",
            "localhost:x",
            "70000",
            "http://127.0.0.1:1",
        ] {
            assert!(parse_address(text).is_err(), "{text}");
        }
    }

    fn message(error: CliError) -> String {
        match error {
            CliError::Failure(failure) => failure.message,
            other => panic!("no failure of a request: {other:?}"),
        }
    }

    #[test]
    fn an_address_of_other_machines_needs_a_word() {
        for address in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[::ffff:192.0.2.1]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            let error = checked("--listen", "--listen-public", address, false, true).unwrap_err();
            let message = message(error);
            assert!(message.contains("--listen-public"), "{message}");
            assert!(checked("--listen", "--listen-public", address, true, true).unwrap().is_public);
        }
        for address in ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(checked("", "", address.parse().unwrap(), false, true).is_ok(), "{address}");
        }
    }

    #[test]
    fn another_address_of_the_running_daemon_is_an_error() {
        let status = |http: Option<&str>| -> DaemonStatus {
            serde_json::from_value(serde_json::json!({
                "pid": 1, "version": "", "cache_folder": "/c", "cache_resident_bytes": 0, "cache_capacity_bytes": null,
                "cache_keep_free_bytes": 0, "started_at": 0, "mounts": [], "http": http,
                "fetch": {"requests": 0, "fetched_bytes": 0, "reserved_bytes": 0, "memory_bytes": 0},
            }))
            .unwrap()
        };
        let wanted = |address: &str| ListenArguments {
            listen: Some(parse_address(address).unwrap()),
            listen_public: false,
        };
        assert!(wanted("9000").check(&status(Some("http://127.0.0.1:9000"))).is_ok());
        assert!(wanted("0").check(&status(Some("http://127.0.0.1:9000"))).is_ok());
        assert!(ListenArguments::default().check(&status(None)).is_ok());
        for (address, http) in
            [("9001", Some("http://127.0.0.1:9000")), ("9000", None), ("0", None)]
        {
            let message = message(wanted(address).check(&status(http)).unwrap_err());
            assert!(message.contains("daemon stop"), "{message}");
        }
    }
}
