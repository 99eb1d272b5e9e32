//! The life of a mount.
//!
//! ```text
//! Mountpoint::prepare --mount--> Attached --INIT--> served --its root answers--> Mount
//!                                   '--any failure--> detached (lazily), error
//! a process that is gone --its descriptors, MountState--> Mount::take_over --> Mount
//! Mount --unmount, umount(8), drop--> the kernel closes the connection --> ended
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::adapter::Adapter;
use super::attached::{Attached, place_of};
use super::attachment::{Attachment, DetachFailure};
use super::connection::{self, Connection};
use super::content::Content;
use super::failures::Failures;
use super::handshake::shake_hands;
use super::holders::Holders;
use super::mountpoint::{self, Mountpoint};
use super::opens::{OpenRecord, OpenRecords};
use super::passthrough::{Passthrough, PassthroughStatus};
use super::place::MountPlace;
use super::sessions::Sessions;
use super::stale_pages::{ReplacedRanges, StalePages};
use super::wire::init::Features;
use super::{MountError, MountOptions, readahead};
use crate::fs::browse::Browse;
use crate::fs::{FsConfig, Ino, LoadedKit, Nodes};
use crate::process::limits::{ChildLimits, MORE_PROCESSES};
use crate::process::mount_table::MountTable;
use crate::process::running_time::{self, Stopwatch};

/// How long a fresh mount may take to answer its first `stat`.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a session may take to end after its unmount, when no other namespace has the mount. The
/// kernel ends the session at once, except for reads in progress.
const SESSION_END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait before looking for other namespaces that have the mount.
const HOLDERS_AFTER: Duration = Duration::from_millis(100);

/// The interval between two looks whether the session has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// A mount that this process serves. Dropping it unmounts lazily.
pub struct Mount {
    // Dropped in this order: the mount must be gone before its directory can be removed.
    attachment: Attachment,
    mountpoint: Mountpoint,
    failures: Arc<Failures>,
    /// The passthrough state. Outlives the session, because callers may still ask for it.
    passthrough: Arc<Passthrough>,
    /// The ranges that came wrong. Outlives the session, as `passthrough` does.
    stale_pages: Arc<StalePages>,
    features: Features,
    _sessions: Arc<Sessions>,
}

/// A mount whose requests are about to be answered. Dropping it unmounts lazily.
struct Prepared {
    // Dropped in this order, as in [`Attached`].
    attachment: Attachment,
    mountpoint: Mountpoint,
    connection: Arc<Connection>,
    end: watch::Sender<bool>,
    nodes: Nodes,
    passthrough: Arc<Passthrough>,
}

impl Prepared {
    fn new(
        attached: Attached,
        content: Content,
        options: &MountOptions,
        config: FsConfig,
    ) -> Result<Self, MountError> {
        let Attached { attachment, mountpoint, device, opens, end, .. } = attached;
        let io = io_error(mountpoint.path());
        let nodes = content.nodes(&opens, options, config).map_err(&io)?;
        let passthrough = Arc::new(Passthrough::new(&nodes, options, opens));
        let connection = Connection::new(device).map_err(|error| io(error.into()))?;
        Ok(Self { attachment, mountpoint, connection, end, nodes, passthrough })
    }

    /// Has `sessions` answer the requests, by the features that kernel and kitfs have agreed on.
    fn serve(
        self,
        features: Features,
        options: &MountOptions,
        sessions: Arc<Sessions>,
    ) -> Result<Mount, MountError> {
        let Self { attachment, mountpoint, connection, end, nodes, passthrough } = self;
        let runtime = Handle::current();
        let daemon = options.daemon.clone();
        // Before the first answer: the kernel may get a byte only when a replacement of that byte would be noticed.
        let stale_pages = StalePages::new(&connection, nodes.clone());
        let (passing, stale) = (passthrough.clone(), stale_pages.clone());
        let observers = sessions.observers().clone();
        let adapter = Adapter::new(nodes, passing, stale, features, daemon, observers, runtime);
        let failures = adapter.failures();
        sessions.add(connection, adapter, end).map_err(io_error(mountpoint.path()))?;
        let _sessions = sessions;
        Ok(Mount {
            attachment,
            mountpoint,
            failures,
            passthrough,
            stale_pages,
            features,
            _sessions,
        })
    }
}

/// The state of a mount that a process needs to take it over, beside its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountState {
    place: MountPlace,
    /// The flags that the handshake has agreed on.
    features: u64,
}

impl MountState {
    /// The place of the mount.
    pub fn place(&self) -> &MountPlace {
        &self.place
    }

    /// The mount in the tree, and its directory.
    fn taken_over(
        &self,
        ended: watch::Receiver<bool>,
        child_limits: ChildLimits,
    ) -> (Attachment, Mountpoint) {
        let attachment = Attachment::at(&self.place, ended, child_limits);
        (attachment, Mountpoint::taken_over(self.place.path.clone(), self.place.made))
    }
}

impl Mount {
    /// Mounts a kit, and returns when its tree can be listed. `sessions` answers the requests.
    /// Blocking: call it in `spawn_blocking` of a tokio runtime. That runtime downloads missing bytes.
    ///
    /// # Errors
    /// As [`Attached::new`] and [`Mount::serve`].
    pub fn new(
        kit: Arc<LoadedKit>,
        mountpoint: Mountpoint,
        options: &MountOptions,
        config: FsConfig,
        sessions: Arc<Sessions>,
    ) -> Result<Self, MountError> {
        let attached = Attached::new(&kit.origin.to_string(), mountpoint, options)?;
        Self::serve(attached, kit.into(), options, config, sessions)
    }

    /// Serves a mount that is in the tree, and returns when its tree can be listed. Blocking, as
    /// [`Mount::new`].
    ///
    /// # Errors
    /// When the kernel's handshake fails, or the root does not answer. Nothing is mounted then.
    pub fn serve(
        attached: Attached,
        content: Content,
        options: &MountOptions,
        config: FsConfig,
        sessions: Arc<Sessions>,
    ) -> Result<Self, MountError> {
        let io = io_error(attached.mountpoint.path());
        let is_commands = attached.is_commands;
        let prepared = Prepared::new(attached, content, options, config)?;
        let features = shake_hands(&prepared.connection, &prepared.passthrough).map_err(io)?;
        let mount = prepared.serve(features, options, sessions)?;
        if !is_commands {
            wait_for_first_answer(mount.attachment.path(), mount.attachment.path())?;
        }
        // The handshake resets the kernel's limit, so this must come after it.
        if let Some(device) = mount.attachment.device() {
            readahead::widen(device);
        }
        Ok(mount)
    }

    /// Goes on with the mount of a process that is gone, after [`resend`](super::resend). `options` are
    /// those of the mount. Blocking, as [`Mount::new`].
    ///
    /// # Errors
    /// When the descriptors are not those of a mount, or cannot be watched. The mount is unmounted lazily
    /// then, so that no program waits for ever.
    pub fn take_over(
        descriptors: (OwnedFd, OwnedFd),
        state: &MountState,
        content: Content,
        options: &MountOptions,
        config: FsConfig,
        sessions: Arc<Sessions>,
    ) -> Result<Self, MountError> {
        let (device, opens) = descriptors;
        let io = io_error(&state.place.path);
        let (end, ended) = watch::channel(connection::has_ended(&device));
        let (attachment, mountpoint) = state.taken_over(ended, options.child_limits);
        let (opens, open) = OpenRecords::taken_over(opens).map_err(io)?;
        let attached = Attached {
            attachment,
            mountpoint,
            device,
            opens,
            end,
            outside: None,
            is_commands: false,
        };
        let prepared = Prepared::new(attached, content, options, config)?;
        let features = Features::from_bits(state.features);
        let has_passthrough = features.has(Features::PASSTHROUGH);
        let Prepared { nodes, passthrough, connection, .. } = &prepared;
        if let Some(browse) = nodes.by_path() {
            wake_passed_through(browse, &open);
        }
        passthrough.take_over(nodes, open, connection, has_passthrough);
        prepared.serve(features, options, sessions)
    }

    /// Takes the mount of a process that is gone out of the tree, and removes the directory if kitfs has
    /// made it. Without `state` the mount was being made. Programs that use the mount get errors once the
    /// last copy of `device` is closed. Blocking.
    pub fn give_up(
        device: impl AsFd,
        state: Option<&MountState>,
        mountpoint: &Path,
        child_limits: ChildLimits,
    ) {
        // Nothing is left of a connection that has ended, and another mount may have its number by now.
        let (_end, ended) = watch::channel(connection::has_ended(device));
        match state {
            // Dropped in this order: the mount must be gone before its directory can be removed.
            Some(state) => drop(state.taken_over(ended, child_limits)),
            None => {
                let path = mountpoint::canonical(mountpoint);
                let path = path.unwrap_or_else(|_| mountpoint.to_owned());
                drop(Attachment::new(path, ended, child_limits));
            }
        }
    }

    /// The state of the mount, for a process that takes it over.
    pub fn state(&self) -> MountState {
        MountState { place: self.place(), features: self.features.bits() }
    }

    /// The place of the mount.
    pub fn place(&self) -> MountPlace {
        place_of(&self.attachment, &self.mountpoint)
    }

    /// Leaves the removal of the mountpoint to another mount there.
    pub fn leave_directory(&self) {
        self.mountpoint.leave();
    }

    /// The path and the reason of the last failed read. Its program has seen only an errno.
    pub fn last_failure(&self) -> Option<String> {
        self.failures.last()
    }

    /// The ranges of files whose bytes were replaced while this process served the mount: a program that read
    /// them before may have wrong bytes.
    pub fn replaced(&self) -> ReplacedRanges {
        self.stale_pages.replaced()
    }

    /// The state of passthrough.
    pub fn passthrough(&self) -> PassthroughStatus {
        self.passthrough.status()
    }

    /// Allows or forbids passthrough. A recording forbids it, because it must see every read. Open files
    /// stay as they are until their last close.
    pub fn set_passthrough(&self, is_allowed: bool) {
        self.passthrough.allow(is_allowed);
    }

    /// The files that the kernel reads itself, with their backing ids.
    pub fn backing_ids(&self) -> Vec<(Ino, u32)> {
        self.passthrough.backing_ids()
    }

    /// The number of open files that are passed through, or could be.
    pub fn open_files(&self) -> usize {
        self.passthrough.open_files()
    }

    /// The number of read requests that the kernel has sent. It sends none for passed-through files.
    pub fn reads(&self) -> u64 {
        self.passthrough.reads()
    }

    /// The nodes of the mount.
    pub fn nodes(&self) -> &Nodes {
        self.failures.nodes()
    }

    /// The mountpoint.
    pub fn mountpoint(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Whether the mount is in the tree, according to a table that was read after the mount. Other
    /// programs may have unmounted it (umount(8), fusermount3).
    pub fn is_attached(&self, table: &MountTable) -> bool {
        self.attachment.is_attached(table)
    }

    /// Ends the mount, with `lazy` also while programs use it. Returns warnings for the user. Blocks for
    /// a limited time. May be called again after an error.
    ///
    /// A lazy unmount returns when the mount is out of the tree. Programs can still read the files that
    /// they have open, and [`Self::ended`] waits until they have closed them.
    ///
    /// # Errors
    /// [`MountError::Busy`] names the programs that use the mount, and the next step.
    pub fn unmount(&self, lazy: bool) -> Result<Vec<String>, MountError> {
        self.attachment.detach(lazy).map_err(|failure| self.explain(failure))?;
        let still_used = if lazy { None } else { self.wait_until_ended() };
        // Removing the directory detaches the mount in the other namespaces, too.
        let is_elsewhere = || {
            let holders = self.attachment.holders();
            holders.is_some_and(|holders| holders.is_mounted_elsewhere())
        };
        if still_used.is_none() && (self.attachment.has_ended() || !is_elsewhere()) {
            self.mountpoint.remove();
        }
        Ok(still_used.into_iter().collect())
    }

    /// The users of the mount, as words; `None` once it has ended.
    pub fn users(&self) -> Option<String> {
        if self.attachment.has_ended() {
            return None;
        }
        Some(words_of(self.attachment.holders().as_ref()))
    }

    /// Waits until the mount has ended, also by another program such as umount(8).
    pub async fn ended(&self) {
        self.attachment.ended().await;
    }

    /// Waits for the end of the session. Returns a warning with the namespaces that still have the mount.
    fn wait_until_ended(&self) -> Option<String> {
        let (mut watch, mut has_looked) = (Stopwatch::start(), false);
        while !self.attachment.has_ended() {
            let waited = watch.look();
            let is_over = waited >= SESSION_END_TIMEOUT;
            if is_over || waited >= HOLDERS_AFTER && !has_looked {
                has_looked = true;
                let holders = self.attachment.holders();
                if is_over || holders.as_ref().is_some_and(|it| it.is_mounted_elsewhere()) {
                    let place = self.mountpoint().display();
                    let holders = words_of(holders.as_ref());
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
}

/// Has the kits in memory whose files the kernel reads itself, so that the cache keeps these files. Blocks: a kit
/// is loaded from the cache.
fn wake_passed_through(browse: &Arc<Browse>, open: &[OpenRecord]) {
    let passed = open.iter().filter(|record| record.backing_id.is_some());
    for record in passed {
        // The cache keeps open files of a kit that cannot be loaded as long as it sees them open.
        if let Err(error) = Handle::current().block_on(browse.awake(record.ino)) {
            tracing::warn!(path = browse.path(record.ino), %error, "a kit with open files is not loaded");
        }
    }
}

/// Waits for the first `stat` of a mount's root. `place` is its name in messages. A thread of its own calls
/// `stat`, because a mount that does not answer must not block the caller.
pub(super) fn wait_for_first_answer(root: &Path, place: &Path) -> Result<(), MountError> {
    let (sender, answer) = std::sync::mpsc::channel();
    let asked = root.to_owned();
    let asker = std::thread::Builder::new().name("kitfs-first-stat".to_owned());
    let asking = asker.spawn(move || {
        // The receiver is gone after the timeout.
        let _ = sender.send(std::fs::metadata(asked).map(drop));
    });
    let words = match asking.map(|_| running_time::receive(&answer, FIRST_ANSWER_TIMEOUT)) {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(error))) => error.to_string(),
        Err(error) => format!("no thread can be started ({error}): {MORE_PROCESSES}"),
        Ok(Err(_)) => format!("no answer within {} s", FIRST_ANSWER_TIMEOUT.as_secs()),
    };
    let place = place.display();
    Err(MountError::Io(format!("mounted on {place}, but its root cannot be read: {words}")))
}

/// Makes the error of a mount that the system refuses.
pub(super) fn io_error(place: &Path) -> impl Fn(std::io::Error) -> MountError + use<> {
    let place = place.display().to_string();
    move |error| MountError::Io(format!("cannot mount on {place}: {error}"))
}

/// The error for a busy mount: its users and the next step.
pub(super) fn busy(mountpoint: &Path, holders: Option<&Holders>) -> MountError {
    let place = mountpoint.display();
    let holders = words_of(holders);
    MountError::Busy(format!(
        "{place} is in use by {holders}: end that first, or take the mount out of the tree at once \
         with `kitfs umount --lazy {place}`"
    ))
}

/// The users of a mount, as the end of a sentence.
fn words_of(holders: Option<&Holders>) -> String {
    holders.map_or("something".to_owned(), Holders::to_string)
}
