//! The life of a mount.
//!
//! ```text
//! Mountpoint::prepare --> Mount::new --mount--> attached --INIT--> served --its root answers--> Mount
//!                                       '--any failure--> detached (lazily), error
//! Mount --unmount, umount(8), drop--> the kernel closes the connection --> ended
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::{Adapter, Failures};
use super::attachment::{Attachment, DetachFailure};
use super::connection::Connection;
use super::handshake::shake_hands;
use super::holders::Holders;
use super::mount_table::MountTable;
use super::mountpoint::Mountpoint;
use super::passthrough::{Passthrough, PassthroughStatus};
use super::sessions::Sessions;
use super::{MountError, MountOptions, device, readahead};
use crate::fs::{FileSystem, FsConfig, Ino, LoadedKit, Owner};

/// How long a fresh mount may take to answer its first `stat`.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the session of a mount that was taken out of the tree may take to end, where nobody else
/// holds the mount. The kernel ends it at once, but for reads that are just being answered.
const SESSION_END_TIMEOUT: Duration = Duration::from_secs(5);

/// After how long others are looked for that may hold the mount.
const HOLDERS_AFTER: Duration = Duration::from_millis(100);

/// How often the end of a session is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A mount that is being served. Dropping it takes it out of the tree lazily.
pub struct Mount {
    // Dropped in this order: first the mount goes from its place, then the place.
    attachment: Attachment,
    mountpoint: Mountpoint,
    failures: Arc<Failures>,
    passthrough: Arc<Passthrough>,
    /// Kept as long as anybody may ask the mount.
    _sessions: Arc<Sessions>,
}

impl Mount {
    /// Mounts; when it returns, the tree can be listed. Its requests are answered by `sessions`.
    /// Blocking: to be called on a thread of a tokio runtime that may block (`spawn_blocking`), which
    /// then also fetches what is missing.
    ///
    /// # Errors
    /// When the mountpoint is in use by now, or the kernel or fusermount3 refuse; nothing is mounted
    /// then, and a mountpoint that was made is removed.
    pub fn new(
        kit: Arc<LoadedKit>,
        mountpoint: Mountpoint,
        options: &MountOptions,
        config: FsConfig,
        sessions: Arc<Sessions>,
    ) -> Result<Self, MountError> {
        mountpoint.check_again(options)?;
        let place = mountpoint.path().display().to_string();
        let io =
            |error: std::io::Error| MountError::Io(format!("cannot mount on {place}: {error}"));
        let path = mountpoint.path().canonicalize().map_err(io)?;
        let owner = Owner {
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
        };
        let name = mount_name(&kit.origin.to_string());
        let file_system = Arc::new(FileSystem::new(kit, owner, config));
        let passthrough = Arc::new(Passthrough::new(file_system.clone(), options.passthrough));

        let MountOptions { allow_other, noexec, child_limits, .. } = *options;
        let request =
            device::MountRequest { mountpoint: &path, name, allow_other, noexec, child_limits };
        let device = device::mount(&request)?;
        // From here on an error takes the mount out of the tree again.
        let (end, ended) = watch::channel(false);
        let mut attachment = Attachment::new(path, ended, child_limits);
        let connection = Connection::new(device).map_err(|error| io(error.into()))?;
        let features = shake_hands(&connection, &passthrough).map_err(io)?;
        let runtime = Handle::current();
        let adapter = Adapter::new(
            file_system,
            passthrough.clone(),
            features,
            options.daemon.clone(),
            runtime,
        );
        let failures = adapter.failures();
        sessions.add(connection, adapter, end).map_err(io)?;
        attachment.find_device();
        let mount = Self { attachment, mountpoint, failures, passthrough, _sessions: sessions };
        mount.wait_for_first_answer()?;
        // Only now: the handshake ends with the kernel's own limit.
        if let Some(device) = mount.attachment.device() {
            readahead::widen(device);
        }
        Ok(mount)
    }

    /// The path and the reason of the last read that failed; a reader sees only an errno.
    pub fn last_failure(&self) -> Option<String> {
        self.failures.last()
    }

    /// Whether complete files are read by the kernel itself, and how many are now.
    pub fn passthrough(&self) -> PassthroughStatus {
        self.passthrough.status()
    }

    /// Lets complete files be passed through, or not: for those who must see every read. Files
    /// that are open stay as they are until their last close. Where there is no passthrough this
    /// does nothing.
    pub fn set_passthrough(&self, is_allowed: bool) {
        self.passthrough.allow(is_allowed);
    }

    /// The files that the kernel reads by itself now, and the raw backing id of each: what a
    /// process that takes the mount over must know.
    pub fn backing_ids(&self) -> Vec<(Ino, u32)> {
        self.passthrough.backing_ids()
    }

    /// How many files are open that are or might be passed through.
    pub fn open_files(&self) -> usize {
        self.passthrough.open_files()
    }

    /// How many reads the kernel has asked for; it does not ask for those of passed-through files.
    pub fn reads(&self) -> u64 {
        self.passthrough.reads()
    }

    /// What is served.
    pub fn file_system(&self) -> &Arc<FileSystem> {
        self.failures.file_system()
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Whether the mount is in the tree, by a table that was read after it was mounted. Other programs may
    /// take it out: umount(8), fusermount3.
    pub fn is_attached(&self, table: &MountTable) -> bool {
        self.attachment.is_attached(table)
    }

    /// Ends the mount; `lazy` even while programs use it. Returns what is to be said about it.
    /// Blocking, bounded. May be called again after an error.
    ///
    /// A lazy unmount returns when the mount is out of the tree; programs that have files of it
    /// open are served until they close them, and [`Self::ended`] waits for that.
    ///
    /// # Errors
    /// [`MountError::Busy`] says who uses the mount and what to do.
    pub fn unmount(&self, lazy: bool) -> Result<Vec<String>, MountError> {
        self.attachment.detach(lazy).map_err(|failure| self.explain(failure))?;
        let still_used = if lazy { None } else { self.wait_until_ended() };
        // A folder that is removed takes the mounts on it out of every namespace.
        let is_elsewhere = || {
            let holders = self.attachment.holders();
            holders.is_some_and(|holders| holders.is_mounted_elsewhere())
        };
        if still_used.is_none() && (self.attachment.has_ended() || !is_elsewhere()) {
            self.mountpoint.remove();
        }
        Ok(still_used.into_iter().collect())
    }

    /// Waits until the mount has ended, whoever ended it (`umount` too).
    pub async fn ended(&self) {
        self.attachment.ended().await;
    }

    /// Waits for the end of the session; says who keeps it from ending.
    fn wait_until_ended(&self) -> Option<String> {
        let (start, mut has_looked) = (Instant::now(), false);
        while !self.attachment.has_ended() {
            let waited = start.elapsed();
            let is_over = waited >= SESSION_END_TIMEOUT;
            if is_over || waited >= HOLDERS_AFTER && !has_looked {
                has_looked = true;
                let holders = self.attachment.holders();
                if is_over || holders.as_ref().is_some_and(|it| it.is_mounted_elsewhere()) {
                    let place = self.mountpoint().display();
                    let holders = holders.map_or("something".to_owned(), |it| it.to_string());
                    return Some(format!(
                        "{place} is unmounted here, and goes on being served for {holders}"
                    ));
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        None
    }

    fn explain(&self, failure: DetachFailure) -> MountError {
        let place = self.mountpoint().display();
        match failure {
            DetachFailure::Busy => busy(self.mountpoint(), self.attachment.holders().as_ref()),
            DetachFailure::Covered => MountError::Busy(format!(
                "something else is mounted over {place}: unmount that first with `umount {place}`"
            )),
            DetachFailure::Other(words) => {
                MountError::Io(format!("cannot unmount {place}: {words}"))
            }
        }
    }

    /// Waits for the root's `stat`, on a thread of its own: a mount that does not answer must not
    /// hold the caller.
    fn wait_for_first_answer(&self) -> Result<(), MountError> {
        let (sender, answer) = std::sync::mpsc::channel();
        let path = self.attachment.path().to_owned();
        let asker = std::thread::Builder::new().name("kitfs-first-stat".to_owned());
        let asking = asker.spawn(move || {
            // The receiver is gone when the time is up.
            let _ = sender.send(std::fs::metadata(path).map(drop));
        });
        let words = match asking.map(|_| answer.recv_timeout(FIRST_ANSWER_TIMEOUT)) {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(error))) | Err(error) => error.to_string(),
            Ok(Err(_)) => format!("no answer within {} s", FIRST_ANSWER_TIMEOUT.as_secs()),
        };
        let place = self.mountpoint().display();
        Err(MountError::Io(format!("mounted on {place}, but its root cannot be read: {words}")))
    }
}

/// Says who uses a mount that cannot be unmounted, and what to do.
pub(super) fn busy(mountpoint: &Path, holders: Option<&Holders>) -> MountError {
    let place = mountpoint.display();
    let holders = holders.map_or("something".to_owned(), Holders::to_string);
    MountError::Busy(format!(
        "{place} is in use by {holders}: end that first, or take the mount out of the tree at once \
         with `kitfs umount --lazy {place}`"
    ))
}

/// The name of a mount in `mount` and `df`. Commas separate mount options, and what is not
/// printable would garble the table.
fn mount_name(reference: &str) -> String {
    let is_plain = |character: char| !character.is_control() && !matches!(character, ',' | '\\');
    let plain = reference.chars().map(|c| if is_plain(c) { c } else { '_' });
    // The kernel takes a page of options all together.
    plain.take(1024).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_names_hold_nothing_that_ends_an_option() {
        assert_eq!(mount_name("ghcr.io/org/model:v1"), "ghcr.io/org/model:v1");
        assert_eq!(mount_name("oci:/srv/a,suid\\,b\n"), "oci:/srv/a_suid__b_");
    }
}
