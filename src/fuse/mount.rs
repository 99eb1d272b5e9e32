//! The life of a mount.
//!
//! ```text
//! new --mount--> attached --INIT--> served --root can be stat'ed--> Mount
//!                    '--any failure--> detached (lazily), error
//! Mount --unmount, umount(8), drop--> the kernel ends the session --> ended
//! ```
//!
//! A mount is taken out of the tree by path, and only while the mount table says that what lies
//! there is this mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::{Adapter, Failures};
use super::connection::Connection;
use super::device::{self, UnmountFailure};
use super::passthrough::{Passthrough, PassthroughStatus};
use super::sessions::Sessions;
use super::wire::REQUEST_BYTES;
use super::wire::init::{Features, Offer};
use super::{MountError, MountOptions, mount_table, mountpoint, readahead};
use crate::fs::{FileSystem, FsConfig, Ino, LoadedKit, Owner};
use crate::process::limits::ChildLimits;

/// How long the kernel may take to begin the handshake. It does so when it mounts.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a fresh mount may take to answer its first `stat`.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the session of a mount that was taken out of the tree may take to end. Another mount
/// namespace may still hold it, and then it goes on serving that one.
const SESSION_END_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the end of a session is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A mount that is being served. Dropping it takes it out of the tree lazily.
pub struct Mount {
    mountpoint: PathBuf,
    attachment: Attachment,
    failures: Arc<Failures>,
    passthrough: Arc<Passthrough>,
    /// Kept as long as anybody may ask the mount.
    _sessions: Arc<Sessions>,
}

impl Mount {
    /// Checks the mountpoint without mounting, so that a mistake is told before anything is fetched.
    pub fn check(options: &MountOptions) -> Result<(), MountError> {
        mountpoint::check(options)
    }

    /// Mounts; when it returns, the tree can be listed. Its requests are answered by `sessions`.
    /// Blocking: to be called on a thread of a tokio runtime that may block (`spawn_blocking`), which
    /// then also fetches what is missing.
    ///
    /// # Errors
    /// When the mountpoint cannot be used, or the kernel or fusermount3 refuse; nothing is mounted
    /// then.
    pub fn new(
        kit: Arc<LoadedKit>,
        options: &MountOptions,
        config: FsConfig,
        sessions: Arc<Sessions>,
    ) -> Result<Self, MountError> {
        mountpoint::check(options)?;
        let mountpoint = options.mountpoint.clone();
        let io = |error: std::io::Error| {
            MountError::Io(format!("cannot mount on {}: {error}", mountpoint.display()))
        };
        let path = mountpoint.canonicalize().map_err(io)?;
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
        let mut attachment = Attachment { path, entry: None, ended, child_limits };
        let connection = Connection::new(device).map_err(|error| io(error.into()))?;
        let features = shake_hands(&connection, &passthrough).map_err(io)?;
        let adapter = Adapter::new(file_system, passthrough.clone(), features, Handle::current());
        let failures = adapter.failures();
        sessions.add(connection, adapter, end).map_err(io)?;
        // Only now that requests are answered: the table may lie below the mount.
        attachment.find_entry();
        let mountpoint = mountpoint.clone();
        let mount = Self { mountpoint, attachment, failures, passthrough, _sessions: sessions };
        mount.wait_for_first_answer()?;
        // Only now: the handshake ends with the kernel's own limit.
        if let Some(entry) = &mount.attachment.entry {
            readahead::widen(&entry.device);
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
        &self.mountpoint
    }

    /// Ends the mount; `lazy` even while programs use it. Blocking, bounded. May be called again
    /// after an error.
    ///
    /// A lazy unmount returns when the mount is out of the tree; programs that have files of it
    /// open are served until they close them, and [`Self::ended`] waits for that.
    ///
    /// # Errors
    /// [`MountError::Busy`] names what to do.
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        self.attachment.detach(lazy).map_err(|failure| self.explain(failure))?;
        if !lazy && !self.wait_until_ended(SESSION_END_TIMEOUT) {
            tracing::warn!(
                mountpoint = %self.mountpoint.display(),
                "unmounted here, but another mount namespace still holds the mount"
            );
        }
        Ok(())
    }

    /// Waits until the mount has ended, whoever ended it (`umount` too).
    pub async fn ended(&self) {
        let mut ended = self.attachment.ended.clone();
        // An error says that the session is gone.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    fn wait_until_ended(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while !self.attachment.has_ended() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        true
    }

    fn explain(&self, failure: DetachFailure) -> MountError {
        let place = self.mountpoint.display();
        match failure {
            DetachFailure::Busy => MountError::Busy(format!(
                "{place} is in use: end the programs that use it (`fuser -vm {place}` lists them), \
                 or take it out of the tree at once with `kitfs umount --lazy {place}`"
            )),
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
        let path = self.attachment.path.clone();
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
        let place = self.mountpoint.display();
        Err(MountError::Io(format!("mounted on {place}, but its root cannot be read: {words}")))
    }
}

/// Answers the kernel's INIT; says what was taken of its offer.
fn shake_hands(
    connection: &Arc<Connection>,
    passthrough: &Passthrough,
) -> std::io::Result<Features> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let mut buffer = [0; REQUEST_BYTES];
    loop {
        let request = match connection.receive(&mut buffer) {
            Ok(request) => request,
            Err(Errno::AGAIN | Errno::INTR) => {
                wait_for_request(connection, deadline)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let offer = Offer::decode(request).map_err(std::io::Error::other)?;
        let is_offered = offer.features.has(Features::PASSTHROUGH);
        let taken = offer.taken(passthrough.is_wanted_of(is_offered));
        connection.reply_to(offer.unique).data(&offer.answer(taken));
        if !offer.is_too_new() {
            return Ok(taken);
        }
    }
}

/// Waits until the kernel has a request.
fn wait_for_request(connection: &Connection, deadline: Instant) -> std::io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = rustix::time::Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut descriptors = [PollFd::new(connection, PollFlags::IN)];
    match poll(&mut descriptors, Some(&timeout)) {
        Ok(0) => {
            let seconds = HANDSHAKE_TIMEOUT.as_secs();
            Err(std::io::Error::other(format!("the kernel said nothing for {seconds} s")))
        }
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The name of a mount in `mount` and `df`. Commas separate mount options, and what is not
/// printable would garble the table.
fn mount_name(reference: &str) -> String {
    let is_plain = |character: char| !character.is_control() && !matches!(character, ',' | '\\');
    let plain = reference.chars().map(|c| if is_plain(c) { c } else { '_' });
    // The kernel takes a page of options all together.
    plain.take(1024).collect()
}

/// A mount's place in the tree. Dropping it detaches it lazily.
struct Attachment {
    path: PathBuf,
    /// The mount's line of the mount table, where that could be read.
    entry: Option<mount_table::Entry>,
    ended: watch::Receiver<bool>,
    child_limits: ChildLimits,
}

enum DetachFailure {
    Busy,
    /// Another mount lies over this one.
    Covered,
    Other(String),
}

impl Attachment {
    fn find_entry(&mut self) {
        self.entry = mount_table::at(&self.path).unwrap_or_default().pop();
    }

    fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Takes the mount out of the tree, if it is still there.
    ///
    /// A mount whose session has ended is not: the kernel may have given its device number to the
    /// next mount. While the session runs the number is taken.
    fn detach(&self, lazy: bool) -> Result<(), DetachFailure> {
        if self.has_ended() {
            return Ok(());
        }
        if let (Some(ours), Ok(entries)) = (&self.entry, mount_table::at(&self.path)) {
            match entries.iter().rposition(|entry| entry == ours) {
                None => return Ok(()),
                Some(position) if position + 1 < entries.len() => {
                    return Err(DetachFailure::Covered);
                }
                Some(_) => {}
            }
        }
        match device::unmount(&self.path, lazy, self.child_limits) {
            Ok(()) | Err(UnmountFailure::NotMounted) => Ok(()),
            Err(UnmountFailure::Busy) => Err(DetachFailure::Busy),
            Err(UnmountFailure::Other(words)) => Err(DetachFailure::Other(words)),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(DetachFailure::Other(words)) = self.detach(true) {
            tracing::warn!(mountpoint = %self.path.display(), words, "cannot unmount");
        }
    }
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
