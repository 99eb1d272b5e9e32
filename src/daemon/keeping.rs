//! The mounts that the keeper holds, so that they outlive this process.
//!
//! ```text
//! Attached --hold--> kept, no state: a later process unmounts it
//! Mount::serve --note--> kept, with state: a later process goes on with it
//! the mount ended --drop--> released
//! ```
//!
//! The record of a mount is a file in memory. It has the options of the command, secrets of S3 stores
//! among them, so it never goes to the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::api::MountRequest;
use super::keep;
use super::lifecycle::DaemonConfig;
use crate::fs::LoadedKit;
use crate::fuse::{Attached, MountState};
use crate::keeper::{Held, Line, Order};

/// The longest record, in bytes: as long as the longest request.
const RECORD_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// The mounts that a keeper holds for this process.
#[derive(Debug)]
pub(super) struct Keeping {
    /// `None` where this process has no keeper: commands, and mounts in the foreground.
    line: Mutex<Option<Arc<Line>>>,
    /// The keeper's process.
    keeper: Mutex<Option<u32>>,
    held: Mutex<BTreeMap<u64, Arc<Descriptors>>>,
    next_number: Mutex<u64>,
}

/// The descriptors of a mount, for the next keeper if this one dies.
#[derive(Debug)]
struct Descriptors {
    device: OwnedFd,
    record: File,
    opens: OwnedFd,
}

/// A mount that the keeper holds. Dropping it releases the mount.
#[derive(Debug)]
pub(super) struct Kept {
    keeping: Arc<Keeping>,
    number: u64,
    descriptors: Arc<Descriptors>,
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The request of the command.
    pub(super) request: MountRequest,
    /// The state of a mount that was announced to its command.
    pub(super) announced: Option<Announced>,
}

/// What a later process needs to go on with a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announced {
    /// The reference with the digest of the manifest.
    pub(super) pinned: String,
    /// The tree whose inodes the kernel knows.
    pub(super) tree: TreeMark,
    pub(super) state: MountState,
    /// Seconds since 1970.
    pub(super) mounted_at: i64,
}

/// Tells apart trees with other inodes. A kit's own layers follow from its digest, but a remote data set
/// may have moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeMark {
    manifest: String,
    nodes: u32,
    bytes: u64,
    layers: Vec<String>,
}

impl TreeMark {
    pub(super) fn of(kit: &LoadedKit) -> Self {
        Self {
            manifest: kit.manifest.to_string(),
            nodes: kit.tree.len(),
            bytes: kit.total_bytes(),
            layers: kit.layers.iter().map(|layer| layer.key().digest.to_string()).collect(),
        }
    }
}

impl Keeping {
    /// Holds nothing: this process has no keeper.
    pub(super) fn none() -> Arc<Self> {
        Self::new(None, None)
    }

    /// Has mounts held by the keeper that has started this process, and takes over those of the process
    /// before.
    pub(super) fn from_keeper() -> io::Result<(Arc<Self>, Vec<Held>)> {
        let (line, held) = Line::from_keeper(io::stdin().as_fd().try_clone_to_owned()?)?;
        keep::silence_input();
        let keeper = rustix::process::getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
        Ok((Self::new(Some(Arc::new(line)), keeper), held))
    }

    fn new(line: Option<Arc<Line>>, keeper: Option<u32>) -> Arc<Self> {
        let (line, keeper, held) = (Mutex::new(line), Mutex::new(keeper), Mutex::default());
        Arc::new(Self { line, keeper, held, next_number: Mutex::new(1) })
    }

    /// The keeper's process.
    pub(super) fn keeper(&self) -> Option<u32> {
        *self.keeper.lock()
    }

    /// Whether a keeper holds the mounts of this process.
    pub(super) fn is_kept(&self) -> bool {
        self.line.lock().is_some()
    }

    /// Has a new mount held. `None` without a keeper.
    pub(super) fn hold(
        self: &Arc<Self>,
        attached: &Attached,
        request: MountRequest,
    ) -> io::Result<Option<Kept>> {
        if !self.is_kept() {
            return Ok(None);
        }
        let record = rustix::fs::memfd_create("kitfs-mount", MemfdFlags::CLOEXEC)?;
        let descriptors = Descriptors {
            device: attached.device().try_clone_to_owned()?,
            record: record.into(),
            opens: attached.opens().try_clone_to_owned()?,
        };
        descriptors.write(&Record { request, announced: None })?;
        let number = {
            let mut next = self.next_number.lock();
            *next += 1;
            *next - 1
        };
        let kept = self.know(number, descriptors);
        if let Some(line) = &*self.line.lock() {
            kept.descriptors.send(line, number)?;
        }
        Ok(Some(kept))
    }

    /// Knows a mount that the keeper has handed over, and returns its record.
    pub(super) fn taken_over(self: &Arc<Self>, held: Held) -> (Kept, io::Result<Record>) {
        let Held { number, device, record, opens } = held;
        {
            let mut next = self.next_number.lock();
            *next = (*next).max(number + 1);
        }
        let kept = self.know(number, Descriptors { device, record: record.into(), opens });
        let record = kept.descriptors.read();
        (kept, record)
    }

    fn know(self: &Arc<Self>, number: u64, descriptors: Descriptors) -> Kept {
        let descriptors = Arc::new(descriptors);
        self.held.lock().insert(number, descriptors.clone());
        Kept { keeping: self.clone(), number, descriptors }
    }

    /// Tells the keeper that this process answers commands.
    pub(super) fn note_serving(&self) {
        self.tell("that it serves", Line::serving);
    }

    /// Tells the keeper how this process ends. For [`Order::Replace`] the keeper hears nothing more, so that
    /// it holds every mount for the next process.
    pub(super) fn note_end(&self, order: Order) {
        self.tell("its end", |line| line.ending(order));
        if order == Order::Replace {
            // The descriptor stays open until this process ends.
            std::mem::forget(self.line.lock().take());
        }
    }

    fn tell(&self, what: &str, tell: impl FnOnce(&Line) -> io::Result<()>) {
        let line = self.line.lock().clone();
        if let Some(line) = line
            && let Err(error) = tell(&line)
        {
            tracing::debug!(%error, "the keeper does not hear {what}");
        }
    }

    /// Waits until the keeper is gone, for ever without one.
    pub(super) async fn lost(&self) {
        let line = self.line.lock().clone();
        let Some(line) = line else { return std::future::pending().await };
        // A thread of its own: the runtime's watchers of descriptors need a promise that nobody else closes
        // them. The thread ends with the keeper or with this process.
        let (gone, is_gone) = oneshot::channel();
        let watch = move || {
            let mut socket = [PollFd::new(&*line, PollFlags::IN)];
            while poll(&mut socket, None) == Err(Errno::INTR) {}
            let _ = gone.send(());
        };
        let thread = std::thread::Builder::new().name("kitfs-line".to_owned());
        if thread.spawn(watch).is_err() || is_gone.await.is_err() {
            tracing::warn!("the keeper cannot be watched");
            std::future::pending::<()>().await;
        }
    }

    /// Has another keeper hold the mounts.
    pub(super) fn start_keeper(&self, config: &DaemonConfig) -> io::Result<()> {
        // Meanwhile nothing is sent to the old one, and each new mount is sent to the new one.
        let mut current = self.line.lock();
        *current = None;
        *self.keeper.lock() = None;
        let (line, keeper) = keep::start_for_this_process(config)?;
        for (number, descriptors) in &*self.held.lock() {
            descriptors.send(&line, *number)?;
        }
        line.serving()?;
        *current = Some(Arc::new(line));
        *self.keeper.lock() = Some(keeper);
        Ok(())
    }
}

impl Kept {
    /// Notes what a later process needs.
    pub(super) fn note(&self, record: &Record) -> io::Result<()> {
        self.descriptors.write(record)
    }

    /// The FUSE device and the file with the open files.
    pub(super) fn descriptors(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.descriptors.device.try_clone()?, self.descriptors.opens.try_clone()?))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeping.held.lock().remove(&self.number);
        self.keeping.tell("the end of a mount", |line| line.release(self.number));
    }
}

impl Descriptors {
    fn send(&self, line: &Line, number: u64) -> io::Result<()> {
        line.hold(number, self.device.as_fd(), self.record.as_fd(), self.opens.as_fd())
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let json = serde_json::to_vec(record)?;
        self.record.write_all_at(&json, 0)?;
        // A record only grows, so a kill in between leaves no shorter one.
        self.record.set_len(json.len() as u64)
    }

    fn read(&self) -> io::Result<Record> {
        let length = self.record.metadata()?.len();
        if length > RECORD_LIMIT_BYTES {
            return Err(io::Error::other("the record of a mount is too long"));
        }
        let mut json = vec![0; length as usize];
        self.record.read_exact_at(&mut json, 0)?;
        Ok(serde_json::from_slice(&json)?)
    }
}
