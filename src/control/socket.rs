//! The addresses of a daemon.
//!
//! A daemon listens at two addresses:
//! - `control.sock` in the cache folder, which commands find by the folder. The holder of the folder's lock owns
//!   the name. So a socket beside a free lock is a leftover.
//! - an abstract address (unix(7)), which the daemon's mounts report ([`Address`]). It works under every name of
//!   the cache folder, and after the folder was removed.
//!
//! The folder is 0700; an abstract address has no mode. So at both addresses the server asks the kernel for
//! the user of each connection (`SO_PEERCRED`).

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

/// The socket's name in the cache folder.
const NAME: &str = "control.sock";
/// `sockaddr_un.sun_path` holds 107 bytes and a NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// The address of a daemon, which its mounts report in an attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The process.
    pub pid: u32,
    /// The cache folder, as the daemon was started with it.
    pub cache_folder: PathBuf,
    /// The abstract address, without its leading NUL; none where there is no such address.
    pub control: Option<String>,
}

impl Address {
    /// An address for this process that no other process has or had.
    pub fn new(cache_folder: &Path) -> Self {
        // The hasher has random keys of the system.
        let random = RandomState::new().build_hasher().finish();
        let pid = std::process::id();
        let control = Some(format!("kitfs-{pid}-{random:016x}"));
        Self { pid, cache_folder: cache_folder.to_owned(), control }
    }

    /// Parses the attribute of a mount. Another user's mount may have any text.
    pub fn parse(text: &str) -> Option<Self> {
        let address: Self = serde_json::from_str(text).ok()?;
        let is_plain = |name: &str| {
            name.len() < LONGEST_PATH
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let is_fine =
            address.cache_folder.is_absolute() && address.control.as_deref().is_none_or(is_plain);
        is_fine.then_some(address)
    }

    /// The text of the attribute.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Listens at the abstract address.
    pub fn listen(&self) -> io::Result<Option<UnixListener>> {
        self.control.as_deref().map(|name| UnixListener::bind(abstract_path(name))).transpose()
    }

    /// The sockets of the daemon, in the order in which they are tried.
    pub fn sockets(&self) -> impl Iterator<Item = SocketPath> {
        let name = self.control.as_deref();
        let by_name = name.map(|name| SocketPath { path: abstract_path(name), _folder: None });
        by_name.into_iter().chain(SocketPath::new(&self.cache_folder).ok())
    }
}

fn abstract_path(name: &str) -> PathBuf {
    PathBuf::from(format!("\0{name}"))
}

/// A path to a control socket that fits a socket address.
///
/// A longer path is reached through the open folder in `/proc/self/fd`, which stays valid as long
/// as this value lives.
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    pub fn new(cache_folder: &Path) -> io::Result<Self> {
        let path = cache_folder.join(NAME);
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(cache_folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(NAME);
        Ok(Self { path, _folder: Some(folder) })
    }

    pub fn as_path(&self) -> &Path {
        &self.path
    }

    /// The process that listens; zero where the kernel does not tell.
    ///
    /// # Errors
    /// When none listens, or this user may not connect.
    pub async fn listener(&self) -> io::Result<i32> {
        let stream = UnixStream::connect(&self.path).await?;
        Ok(stream.peer_cred()?.pid().unwrap_or_default())
    }

    /// Whether a process listens.
    pub async fn is_answered(&self) -> bool {
        UnixStream::connect(&self.path).await.is_ok()
    }

    /// Whether a process of root or of this user listens. Only such a process may get passwords.
    pub async fn is_answered_by_trusted_user(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let stream = UnixStream::connect(&self.path).await;
        stream
            .and_then(|stream| stream.peer_cred())
            .is_ok_and(|peer| [0, own].contains(&peer.uid()))
    }

    /// Whether a process of this user listens. An address from a mount may lead to any process.
    pub async fn is_answered_by_own_user(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let stream = UnixStream::connect(&self.path).await;
        stream.and_then(|stream| stream.peer_cred()).is_ok_and(|peer| peer.uid() == own)
    }
}

/// The socket in the cache folder, while a daemon listens there.
pub struct FolderSocket {
    cache_folder: PathBuf,
    /// The folder at that time. Another folder may take its place.
    folder: File,
    /// Device and inode of the socket.
    identity: (u64, u64),
}

impl FolderSocket {
    /// Listens. The caller holds the cache folder's lock.
    pub fn listen(cache_folder: &Path) -> io::Result<(Self, UnixListener)> {
        let socket = SocketPath::new(cache_folder)?;
        match std::fs::remove_file(&socket.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&socket.path)?;
        std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(0o600))?;
        let made = std::fs::symlink_metadata(&socket.path)?;
        let folder = File::open(cache_folder)?;
        let identity = (made.dev(), made.ino());
        Ok((Self { cache_folder: cache_folder.to_owned(), folder, identity }, listener))
    }

    /// Listens for other users: members of `group`, or root alone. Makes the folder of the socket.
    ///
    /// # Errors
    /// Also when another user could replace the socket, because the folder belongs to another user or is open to
    /// others.
    pub fn listen_for(folder: &Path, group: Option<u32>) -> io::Result<(Self, UnixListener)> {
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
            Ok(()) => std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?,
        }
        let there = std::fs::symlink_metadata(folder)?;
        let own = rustix::process::geteuid().as_raw();
        if !there.is_dir() || there.uid() != own || there.mode() & 0o022 != 0 {
            let message = "another user could put a socket there: it must be a directory of this user that \
                           nobody else can write";
            return Err(io::Error::other(message));
        }
        let (socket, listener) = Self::listen(folder)?;
        if let Some(group) = group {
            let path = folder.join(NAME);
            std::os::unix::fs::lchown(&path, None, Some(group))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
        }
        Ok((socket, listener))
    }

    /// Whether commands still find the daemon by its cache folder. They do not after the folder, or its
    /// content, was removed or replaced.
    pub fn is_reachable(&self) -> bool {
        let there = std::fs::symlink_metadata(self.cache_folder.join(NAME));
        there.is_ok_and(|there| (there.dev(), there.ino()) == self.identity)
    }

    /// Removes the socket, unless another daemon has put one in its place.
    pub fn remove(&self) {
        let there = rustix::fs::statat(&self.folder, NAME, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == self.identity) {
            let _ = rustix::fs::unlinkat(&self.folder, NAME, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test]
    async fn a_cache_folder_with_a_long_path_has_a_socket_too() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("x".repeat(120));
        std::fs::create_dir(&folder).unwrap();
        let socket = SocketPath::new(&folder).unwrap();
        assert!(!socket.is_answered().await);
        let (listening, _listener) = FolderSocket::listen(&folder).unwrap();
        assert!(SocketPath::new(&folder).unwrap().is_answered_by_own_user().await);
        let listener = SocketPath::new(&folder).unwrap().listener().await.unwrap();
        assert_eq!(listener, std::process::id().cast_signed());
        assert!(folder.join(NAME).exists() && listening.is_reachable());
        listening.remove();
        assert!(!folder.join(NAME).exists());
    }

    #[tokio::test]
    async fn a_socket_for_other_users_lies_where_none_of_them_can_replace_it() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("run");
        let (listening, _listener) = FolderSocket::listen_for(&folder, None).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o755, 0o600));
        assert!(SocketPath::new(&folder).unwrap().is_answered_by_trusted_user().await);
        drop(listening);
        let (_listening, _listener) = FolderSocket::listen_for(&folder, Some(0)).unwrap();
        assert_eq!(mode(&folder.join(NAME)), 0o660);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(FolderSocket::listen_for(&folder, None).is_err());
    }

    #[tokio::test]
    async fn a_leftover_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        drop(UnixListener::bind(folder.path().join(NAME)).unwrap());
        let _listening = FolderSocket::listen(folder.path()).unwrap();
        assert!(SocketPath::new(folder.path()).unwrap().is_answered().await);
    }

    #[tokio::test]
    async fn a_daemon_never_removes_the_socket_of_another_one() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("cache");
        for is_folder_replaced in [true, false] {
            std::fs::create_dir_all(&folder).unwrap();
            let (first, _first_listener) = FolderSocket::listen(&folder).unwrap();
            match is_folder_replaced {
                true => std::fs::remove_dir_all(&folder).unwrap(),
                false => std::fs::remove_file(folder.join(NAME)).unwrap(),
            }
            std::fs::create_dir_all(&folder).unwrap();
            assert!(!first.is_reachable());
            let (second, _second_listener) = FolderSocket::listen(&folder).unwrap();
            first.remove();
            assert!(second.is_reachable());
            assert!(SocketPath::new(&folder).unwrap().is_answered().await);
        }
    }

    #[tokio::test]
    async fn an_abstract_address_is_there_without_the_cache_folder() {
        let address = Address::new(Path::new("/no/such/folder"));
        let listener = address.listen().unwrap().unwrap();
        let told = Address::parse(&address.to_text()).unwrap();
        assert_eq!(told, address);
        let socket = told.sockets().next().unwrap();
        assert!(socket.is_answered_by_own_user().await);
        drop(listener);
        assert!(!socket.is_answered().await);
    }

    proptest! {
        #[test]
        fn what_a_hostile_mount_tells_is_an_address_or_nothing(text in ".{0,200}", name in ".{0,120}") {
            let _ = Address::parse(&text);
            let told = serde_json::json!({"pid": 1, "cache_folder": "/c", "control": name}).to_string();
            if let Some(address) = Address::parse(&told) {
                let name = address.control.unwrap();
                prop_assert!(name.len() < LONGEST_PATH && !name.contains(['\0', '/', '.']));
            }
        }
    }
}
