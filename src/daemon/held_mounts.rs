//! The mounts that the keeper holds, so that they outlive this process.
//!
//! ```text
//! Attached --hold--> kept, no state: a later process unmounts it
//! Mount::serve --announce--> kept, with state: a later process goes on with it
//! the mount ended --drop--> released
//! ```
//!
//! `record` says what a later process needs of a mount.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use tokio::sync::oneshot;

use super::journal::{Journal, Noted};
use super::keeper_process::{self, Program};
use super::lifecycle::DaemonConfig;
use super::record::{self, Announced, Record, Unreadable};
use crate::control::api::MountDescription;
use crate::fuse::Attached;
use crate::keeper::{Channel, Held, Order};
use crate::process::limits::ChildLimits;
use crate::process::pidfd::Pidfd;

/// The consequence for a mount that is not in the journal.
const UNNOTED: &str = "it is not made again if both processes of the daemon are killed";

/// The mounts that a keeper holds for this process.
#[derive(Debug)]
pub(super) struct Keeping {
    /// `None` where this process has no keeper for good: commands, and mounts in the foreground.
    program: Option<Program>,
    /// `None` while the keeper is gone, and once another process is to go on with the mounts.
    channel: Mutex<Option<Arc<Channel>>>,
    /// Another process goes on with the mounts.
    is_handed_on: AtomicBool,
    /// The program that keeper and worker are to become.
    successor: Mutex<Option<PathBuf>>,
    /// The keeper's process.
    keeper: Mutex<Option<u32>>,
    /// The mounts, for the next keeper if this one dies.
    held: Mutex<BTreeMap<u64, Arc<Held>>>,
    /// None without a keeper, and where the cache folder takes no journal.
    journal: OnceLock<Arc<Journal>>,
    next_number: Mutex<u64>,
}

/// A mount that the keeper holds. Dropping it releases the mount.
#[derive(Debug)]
pub(super) struct Kept {
    keeping: Arc<Keeping>,
    held: Arc<Held>,
    /// The mount in the journal.
    noted: Mutex<Option<Noted>>,
}

impl Keeping {
    /// Holds nothing: this process has no keeper.
    pub(super) fn none() -> Arc<Self> {
        Self::new(None, None, None)
    }

    /// Has mounts held by the keeper that has started this process, and takes over those of the process
    /// before.
    pub(super) fn from_keeper() -> io::Result<(Arc<Self>, Vec<Held>)> {
        let (channel, held) = Channel::from_keeper(io::stdin().as_fd().try_clone_to_owned()?)?;
        keeper_process::silence_input();
        let keeper = rustix::process::getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
        let program = Program::of_this_process()?;
        Ok((Self::new(Some(program), Some(Arc::new(channel)), keeper), held))
    }

    fn new(
        program: Option<Program>,
        channel: Option<Arc<Channel>>,
        keeper: Option<u32>,
    ) -> Arc<Self> {
        let (channel, keeper, held) = (Mutex::new(channel), Mutex::new(keeper), Mutex::default());
        let (is_handed_on, next_number) = (AtomicBool::new(false), Mutex::new(1));
        let journal = OnceLock::new();
        let successor = Mutex::default();
        Arc::new(Self {
            program,
            channel,
            is_handed_on,
            successor,
            keeper,
            held,
            journal,
            next_number,
        })
    }

    /// Has mounts noted in the journal of a cache folder, if this process has a keeper.
    pub(super) fn open_journal(&self, cache_folder: &Path) {
        if !self.is_kept() {
            return;
        }
        match Journal::open(cache_folder) {
            Ok(journal) => _ = self.journal.set(journal),
            Err(error) => {
                tracing::warn!(%error, "mounts cannot be noted in the cache folder: {UNNOTED}");
            }
        }
    }

    /// The journal of mounts.
    pub(super) fn journal(&self) -> Option<Arc<Journal>> {
        self.journal.get().cloned()
    }

    /// The path that this program was started from, where a file is there.
    pub(super) fn program_on_disk(&self) -> Option<&Path> {
        self.program.as_ref()?.on_disk()
    }

    /// Has keeper and worker become another program, once this process is replaced.
    pub(super) fn set_successor(&self, program: PathBuf) {
        *self.successor.lock() = Some(program);
    }

    /// The keeper's process.
    pub(super) fn keeper(&self) -> Option<u32> {
        *self.keeper.lock()
    }

    /// Whether a keeper holds the mounts of this process.
    pub(super) fn is_kept(&self) -> bool {
        self.program.is_some()
    }

    /// Has a new mount held. `None` without a keeper. When the keeper is gone, the next one holds the
    /// mount.
    ///
    /// # Errors
    /// When there is no memory or descriptor for the record, or another process goes on with the mounts.
    pub(super) fn hold(
        self: &Arc<Self>,
        attached: &Attached,
        request: &MountDescription,
        owner: Option<&Pidfd>,
    ) -> io::Result<Option<Kept>> {
        if !self.is_kept() {
            return Ok(None);
        }
        let record = rustix::fs::memfd_create("kitfs-mount", MemfdFlags::CLOEXEC)?.into();
        record::begin(&record, request)?;
        let (device, opens) =
            (attached.device().try_clone_to_owned()?, attached.opens().try_clone_to_owned()?);
        let owner = owner.map(|owner| owner.as_fd().try_clone_to_owned()).transpose()?;
        let number = {
            let mut next = self.next_number.lock();
            *next += 1;
            *next - 1
        };
        let connection = attached.place().connection();
        let kept = self.know(Held { number, connection, device, record, opens, owner });
        self.tell("of a new mount", |channel| channel.hold(&kept.held));
        // Checked after the message: a mount is announced only when the keeper has it.
        if self.is_handed_on.load(Ordering::SeqCst) {
            return Err(io::Error::other("the daemon is being replaced: try again"));
        }
        Ok(Some(kept))
    }

    /// Knows a mount that the keeper has handed over, and returns its record.
    pub(super) fn taken_over(self: &Arc<Self>, held: Held) -> (Kept, Result<Record, Unreadable>) {
        {
            let mut next = self.next_number.lock();
            *next = (*next).max(held.number + 1);
        }
        let kept = self.know(held);
        let record = record::read(&kept.held.record);
        if let (Some(journal), Ok(Record { announced: Some(announced), .. })) =
            (self.journal(), &record)
        {
            *kept.noted.lock() = journal.taken_over(announced);
        }
        (kept, record)
    }

    fn know(self: &Arc<Self>, held: Held) -> Kept {
        let held = Arc::new(held);
        self.held.lock().insert(held.number, held.clone());
        Kept { keeping: self.clone(), held, noted: Mutex::default() }
    }

    /// Tells the keeper that this process answers commands.
    pub(super) fn note_serving(&self) {
        self.tell("that it serves", Channel::serving);
    }

    /// Tells the keeper how this process ends. After [`Order::Replace`] this process sends nothing more, so
    /// the keeper holds every mount for the next process.
    pub(super) fn note_end(&self, order: Order) {
        if order == Order::Replace {
            self.is_handed_on.store(true, Ordering::SeqCst);
        }
        match self.successor.lock().take().filter(|_| order == Order::Replace) {
            Some(program) => self.tell("its upgrade", |channel| {
                let file = rustix::fs::memfd_create("kitfs-program", MemfdFlags::CLOEXEC)?;
                let file = File::from(file);
                file.write_all_at(program.as_os_str().as_bytes(), 0)?;
                channel.upgrading(file)
            }),
            None => self.tell("its end", |channel| channel.ending(order)),
        }
        if order == Order::Replace {
            // The descriptor stays open until this process ends.
            std::mem::forget(self.channel.lock().take());
        }
    }

    /// Tells the keeper that the mounts of this process have ended. Programs may still use some that are out
    /// of the tree.
    pub(super) fn note_ended(&self) {
        self.tell("the end of its mounts", Channel::ended);
    }

    fn tell(&self, what: &str, tell: impl FnOnce(&Channel) -> io::Result<()>) {
        let channel = self.channel.lock().clone();
        if let Some(channel) = channel
            && let Err(error) = tell(&channel)
        {
            tracing::debug!(%error, "the keeper does not hear {what}");
        }
    }

    /// Waits until the keeper is gone, for ever where this process never has one.
    pub(super) async fn lost(&self) {
        if !self.is_kept() {
            return std::future::pending().await;
        }
        let Some(channel) = self.channel.lock().clone() else { return };
        // A thread of its own: the runtime's watchers of descriptors need a promise that nobody else closes
        // them. The thread ends with the keeper or with this process.
        let (gone, is_gone) = oneshot::channel();
        let watch = move || {
            let mut socket = [PollFd::new(&*channel, PollFlags::IN)];
            while poll(&mut socket, None) == Err(Errno::INTR) {}
            let _ = gone.send(());
        };
        let thread = std::thread::Builder::new().name("kitfs-channel".to_owned());
        if thread.spawn(watch).is_err() || is_gone.await.is_err() {
            tracing::warn!("the keeper cannot be watched");
            std::future::pending::<()>().await;
        }
    }

    /// Has another keeper hold the mounts. Blocks for a moment.
    ///
    /// # Errors
    /// When no process or thread can be started. The caller tries again later.
    pub(super) fn start_keeper(
        &self,
        config: &DaemonConfig,
        child_limits: ChildLimits,
        listener: Option<OwnedFd>,
    ) -> io::Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        // Meanwhile nothing is sent to the old one, and each new mount is sent to the new one.
        let mut current = self.channel.lock();
        *current = None;
        *self.keeper.lock() = None;
        let (channel, keeper) =
            keeper_process::start_for_this_process(program, config, child_limits, listener)?;
        for held in self.held.lock().values() {
            channel.hold(held)?;
        }
        channel.serving()?;
        *current = Some(Arc::new(channel));
        *self.keeper.lock() = Some(keeper);
        Ok(())
    }
}

impl Kept {
    /// Notes what a later process needs of a mount that is about to be announced to its command. Returns a
    /// warning where the journal does not take it.
    pub(super) fn announce(
        &self,
        description: &MountDescription,
        announced: &Announced,
    ) -> io::Result<Option<String>> {
        let warning = self.note(description, announced);
        record::announce(&self.held.record, announced)?;
        Ok(warning)
    }

    fn note(&self, description: &MountDescription, announced: &Announced) -> Option<String> {
        let journal = self.keeping.journal()?;
        // Its owner is the reason for the mount, and may have ended when another daemon reads the journal.
        if self.held.owner.is_some() {
            return None;
        }
        // This process cannot mount in another part of the file tree.
        if announced.state.place().view().is_some_and(|view| view != journal.view()) {
            return None;
        }
        match journal.note(description, announced) {
            Ok(noted) => {
                *self.noted.lock() = Some(noted);
                None
            }
            Err(error) => {
                tracing::warn!(%error, "the mount cannot be noted in the cache folder: {UNNOTED}");
                Some(format!("the mount cannot be noted in the cache folder ({error}): {UNNOTED}"))
            }
        }
    }

    /// The mount is out of the tree: no later daemon makes it again.
    pub(super) fn strike(&self) {
        drop(self.noted.lock().take());
    }

    /// The FUSE device.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.held.device.as_fd()
    }

    /// The FUSE device and the file with the open files.
    pub(super) fn descriptors(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.held.device.try_clone()?, self.held.opens.try_clone()?))
    }

    /// The process whose end ends the mount, if there is one.
    pub(super) fn owner(&self) -> io::Result<Option<Pidfd>> {
        let owner = self.held.owner.as_ref().map(OwnedFd::try_clone).transpose()?;
        owner.map(Pidfd::from_descriptor).transpose()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeping.held.lock().remove(&self.held.number);
        self.keeping.tell("the end of a mount", |channel| channel.release(self.held.number));
    }
}
