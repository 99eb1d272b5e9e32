//! The control socket: a unix socket in the cache folder, for its owner only.
//!
//! Whoever holds the cache folder's lock owns the socket's name, so a socket that is there while
//! the lock is free is a leftover and may be removed. The folder is 0700; the kernel's word on
//! who connects (`SO_PEERCRED`) is checked all the same, because a folder's mode can be changed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// The socket's name in the cache folder.
const NAME: &str = "control.sock";
/// `sockaddr_un.sun_path` holds 107 bytes and a NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// A path to the control socket that fits a socket address.
///
/// A longer path is reached through the open folder in `/proc/self/fd`, which stays valid as long
/// as this value lives.
pub(super) struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    pub(super) fn new(cache_folder: &Path) -> io::Result<Self> {
        let path = cache_folder.join(NAME);
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(cache_folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(NAME);
        Ok(Self { path, _folder: Some(folder) })
    }

    pub(super) fn as_path(&self) -> &Path {
        &self.path
    }

    /// Listens. The caller holds the cache folder's lock.
    pub(super) fn bind(&self) -> io::Result<UnixListener> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&self.path)?;
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Whether somebody listens.
    pub(super) async fn is_answered(&self) -> bool {
        UnixStream::connect(&self.path).await.is_ok()
    }
}

/// Accepts connections of this process's own user (and root's) only.
pub(super) struct OwnerOnly(pub(super) UnixListener);

impl axum::serve::Listener for OwnerOnly {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) if is_owner(&stream) => return (stream, address),
                Ok(_) => tracing::warn!("refused a control connection of another user"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control connection");
                    // Out of descriptors: give those in use time to close.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cache_folder_with_a_long_path_has_a_socket_too() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("x".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let socket = SocketPath::new(&folder).unwrap();
        assert!(!socket.is_answered().await);
        let _listener = socket.bind().unwrap();
        assert!(SocketPath::new(&folder).unwrap().is_answered().await);
        assert!(folder.join(NAME).exists());
    }

    #[tokio::test]
    async fn a_leftover_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = SocketPath::new(folder.path()).unwrap();
        drop(socket.bind().unwrap());
        let _listener = socket.bind().unwrap();
        assert!(socket.is_answered().await);
    }
}
