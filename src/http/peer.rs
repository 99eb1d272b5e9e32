//! The user at the other end of a TCP connection of this machine.
//!
//! The kernel's table of sockets has the user of each socket (proc_pid_net(5), `tcp` and `tcp6`). The other end of
//! a connection is the socket with the two addresses of this end, exchanged. A connection from another machine, or
//! through a network namespace with other addresses, has no such socket.
//!
//! The table has user 0 for a socket that no process has open any more. Such a socket has no inode, and counts as
//! no user's.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The tables, with the length of an address in hexadecimal digits.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The user of the socket at `client` that is connected to `server`; `None` where this machine has no such socket.
/// Blocking.
///
/// # Errors
/// When the tables cannot be read.
pub(super) fn user_of(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let (client, server) = (canonical(client), canonical(server));
    for table in TABLES {
        let file = match File::open(table) {
            Ok(file) => file,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).lines().skip(1) {
            let found =
                Socket::parse(&line?).filter(|it| it.local == client && it.remote == server);
            if let Some(socket) = found {
                return Ok(Some(socket.user).filter(|_| socket.inode != 0));
            }
        }
    }
    Ok(None)
}

/// An address without the scope of a link, and an IPv4 address as such.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    remote: SocketAddr,
    user: u32,
    inode: u64,
}

impl Socket {
    /// Parses `sl: LOCAL REMOTE STATE QUEUES TIMER RETRANSMITS UID TIMEOUT INODE …`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        let user = words.nth(4)?.parse().ok()?;
        let inode = words.nth(1)?.parse().ok()?;
        Some(Self { local, remote, user, inode })
    }
}

/// Parses `ADDRESS:PORT`. The kernel prints each 32 bits of the address as a number of this machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address: IpAddr = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, place) in bytes.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(address, port)))
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    fn connected(listen: &str) -> Option<(TcpStream, TcpStream)> {
        let listener = TcpListener::bind(listen).ok()?;
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Some((client, listener.accept().unwrap().0))
    }

    #[test]
    fn the_user_of_a_connection_is_found() {
        // Where the kernel has no IPv6, the first address alone counts.
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Some((client, server)) = connected(listen) else { continue };
            let ends = (server.peer_addr().unwrap(), server.local_addr().unwrap());
            let own = Some(rustix::process::geteuid().as_raw());
            assert_eq!(user_of(ends.0, ends.1).unwrap(), own, "{listen}");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(user_of(ends.0, ends.1).unwrap(), own, "it is still open: {listen}");
            // The kernel keeps its end for a while, and gives it to root.
            drop(client);
            assert_eq!(user_of(ends.0, ends.1).unwrap(), None, "{listen}");
        }
    }

    #[test]
    fn nobody_has_a_socket_of_another_machine() {
        let there = "192.0.2.1:40000".parse().unwrap();
        assert_eq!(user_of(there, "127.0.0.1:80".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_line_of_the_table_is_understood() {
        let words = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let (v4, v6) = (
            words([127, 0, 0, 1]),
            format!(
                "{}{}{}{}",
                words([0; 4]),
                words([0; 4]),
                words([0, 0, 255, 255]),
                words([127, 0, 0, 1])
            ),
        );
        for local in [&v4, &v6] {
            let line = format!(
                "   9: {local}:1F90 {v4}:C5A2 01 00000000:00000000 00:00000000 00000000  1000        0 46055 1 0 20 4 30 10 -1"
            );
            let socket = Socket::parse(&line).unwrap();
            assert_eq!(socket.local, "127.0.0.1:8080".parse().unwrap());
            assert_eq!(socket.remote, "127.0.0.1:50594".parse().unwrap());
            assert_eq!((socket.user, socket.inode), (1000, 46055));
        }
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_refused(line in "[ 0-9A-F:é]{0,120}") {
            let _ = Socket::parse(&line);
        }
    }
}
