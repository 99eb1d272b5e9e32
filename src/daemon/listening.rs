//! The TCP socket of the HTTP interface.
//!
//! ```text
//! keeper: bind --inherited descriptor--> worker: serve     next worker: the same socket
//!    ^                                     |
//!    '-- standard output of `keep --adopt` <--' where the keeper died
//! ```
//!
//! The keeper binds the socket and leaves it to each worker. So the port stays, also one that the kernel has chosen, and
//! clients that connect between two workers wait. Without a keeper, the process binds it itself.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use rustix::io::FdFlags;

use crate::control::api::{Failure, FailureKind, KitRequest};
use crate::keeper;

/// The standard output of a keeper that a worker starts.
pub(super) const OUTPUT: RawFd = 1;

/// The environment variable with the options for kits that are not mounted, for the worker. It is no argument, because
/// other users see those, and a proxy's address may have a password.
pub const KIT_OPTIONS_VARIABLE: &str = "KITFS_LISTEN_OPTIONS";

/// The settings of the HTTP interface.
#[derive(Clone, PartialEq, Eq)]
pub struct ListenConfig {
    /// The address; port 0 for one that is free.
    pub address: SocketAddr,
    /// Whether other machines may ask for metrics and health.
    pub is_public: bool,
    /// Whether the daemon does not start where the address is in use. Else it works without the interface.
    pub is_required: bool,
    /// The number of the listening socket, where another process has left it.
    pub socket: Option<RawFd>,
    /// The options with which kits are opened that are not mounted; the reference is ignored. Without them, only
    /// mounted kits can be reached.
    pub kit: Option<KitRequest>,
}

impl fmt::Debug for ListenConfig {
    /// Leaves out the options: the address of a proxy may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, is_public, is_required, socket, kit: _ } = self;
        let mut shown = f.debug_struct("ListenConfig");
        shown.field("address", address).field("is_public", is_public);
        shown.field("is_required", is_required).field("socket", socket).finish_non_exhaustive()
    }
}

impl ListenConfig {
    /// The arguments with which another process of the daemon listens at the same address.
    pub(super) fn pass_on(&self, command: &mut Command) {
        command.arg("--listen").arg(self.address.to_string());
        if self.is_public {
            command.arg("--listen-public");
        }
        if !self.is_required {
            command.arg("--listen-may-fail");
        }
        if let Some(socket) = self.socket {
            command.arg("--listen-socket").arg(socket.to_string());
        }
    }
}

/// The listening socket, of the process before or a new one. `None` where the address is in use, and that may be.
///
/// # Errors
/// When the address cannot be listened at, and the settings require it.
pub(super) fn listen(config: &ListenConfig) -> Result<Option<TcpListener>, Failure> {
    let failed = |error: io::Error| {
        let message = format!(
            "cannot listen on {}: {error}; name another address with --listen, port 0 for a free one",
            config.address
        );
        Failure::new(FailureKind::Unavailable, message)
    };
    let listener = match config.socket {
        Some(number) => inherited(number),
        None => TcpListener::bind(config.address),
    };
    match listener {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if config.is_required => Err(failed(error)),
        Err(error) => {
            tracing::warn!("{}", failed(error));
            Ok(None)
        }
    }
}

/// The socket with a number that another process of the daemon has left. It does not stay open in other programs.
fn inherited(number: RawFd) -> io::Result<TcpListener> {
    // The adopted keeper has it as its standard output, which has another use.
    let socket: OwnedFd = match number {
        OUTPUT => rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?,
        number => keeper::inherited(number)?,
    };
    rustix::io::fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    if !rustix::net::sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::other("the descriptor is no listening socket"));
    }
    Ok(socket.into())
}

/// The socket in a keeper, and the settings with which its workers find it. The socket stays open in all programs that this
/// process starts or becomes: these are workers and keepers.
///
/// # Errors
/// As [`listen`].
pub(super) fn hold(config: &mut ListenConfig) -> Result<Option<TcpListener>, Failure> {
    let Some(listener) = listen(config)? else { return Ok(None) };
    let failed = |error: io::Error| Failure::new(FailureKind::Internal, error.to_string());
    rustix::io::fcntl_setfd(&listener, FdFlags::empty()).map_err(|error| failed(error.into()))?;
    config.address = listener.local_addr().map_err(failed)?;
    config.socket = Some(listener.as_raw_fd());
    Ok(Some(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(address: &str) -> ListenConfig {
        ListenConfig {
            address: address.parse().unwrap(),
            is_public: false,
            is_required: true,
            socket: None,
            kit: None,
        }
    }

    #[test]
    fn an_address_in_use_fails_only_where_it_is_required() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let required = config(&taken.local_addr().unwrap().to_string());
        let failure = listen(&required).unwrap_err();
        assert!(failure.message.contains("--listen, port 0"), "{failure}");
        let optional = ListenConfig { is_required: false, ..required };
        assert!(listen(&optional).unwrap().is_none());
    }

    #[test]
    fn the_next_process_gets_the_port_and_the_socket() {
        let mut config = config("127.0.0.1:0");
        let held = hold(&mut config).unwrap().unwrap();
        assert_ne!(config.address.port(), 0);
        assert!(rustix::io::fcntl_getfd(&held).unwrap().is_empty());
        let mut command = Command::new("kitfs");
        config.pass_on(&mut command);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        let (address, number) = (config.address.to_string(), held.as_raw_fd().to_string());
        assert_eq!(words, ["--listen", &address, "--listen-socket", &number]);
        // As the worker would; the number belongs to it alone then.
        std::mem::forget(held);
        let listener = listen(&config).unwrap().unwrap();
        assert_eq!(listener.local_addr().unwrap(), config.address);
        assert_eq!(rustix::io::fcntl_getfd(&listener).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn what_is_no_listening_socket_is_refused() {
        let file = std::os::fd::IntoRawFd::into_raw_fd(tempfile::tempfile().unwrap());
        let config = ListenConfig { socket: Some(file), ..config("127.0.0.1:0") };
        assert!(listen(&config).is_err());
    }

    #[test]
    fn the_log_has_no_password_of_a_proxy() {
        let kit: KitRequest = serde_json::from_value(serde_json::json!({
            "reference": "", "umask": 18, "network": {"http_proxy": "http://u:secret@proxy"},
        }))
        .unwrap();
        let config = ListenConfig { kit: Some(kit), ..config("127.0.0.1:0") };
        assert!(!format!("{config:?}").contains("secret"));
    }
}
