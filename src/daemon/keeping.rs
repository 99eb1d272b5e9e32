//! The mounts that the keeper holds, so that they outlive this process.
//!
//! ```text
//! Attached --hold--> kept, no state: a later process unmounts it
//! Mount::serve --announce--> kept, with state: a later process goes on with it
//! the mount ended --drop--> released
//! ```
//!
//! The record of a mount is a file in memory. It has the options of the command, secrets of S3 stores
//! among them, so it never goes to the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::keep::{self, Program};
use super::lifecycle::DaemonConfig;
use crate::control::api::MountDescription;
use crate::fs::LoadedKit;
use crate::fuse::{Attached, MountState};
use crate::keeper::{Channel, Held, Order};
use crate::kit::NodeId;
use crate::oci::Digest;
use crate::process::limits::ChildLimits;

/// The longest record, in bytes: as long as the longest request.
const RECORD_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// The mounts that a keeper holds for this process.
#[derive(Debug)]
pub(super) struct Keeping {
    /// `None` where this process has no keeper for good: commands, and mounts in the foreground.
    program: Option<Program>,
    /// `None` while the keeper is gone, and once another process is to go on with the mounts.
    channel: Mutex<Option<Arc<Channel>>>,
    /// Another process goes on with the mounts.
    is_handed_on: AtomicBool,
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

/// The content of a record: a line of JSON for each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The request of the command.
    pub(super) request: MountDescription,
    /// The state of a mount that was announced to its command.
    pub(super) announced: Option<Announced>,
}

/// The data with which a later process goes on with a mount.
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
/// may have moved, and another version of kitfs may order a tree in another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreeMark {
    manifest: String,
    layers: Vec<String>,
    /// The SHA-256 digest of all names and sizes, in the order of the inodes.
    nodes: String,
}

impl TreeMark {
    /// The mark of a kit. Blocks: a tree of a million nodes takes a tenth of a second.
    pub(super) fn of(kit: &LoadedKit) -> Self {
        let mut nodes = Sha256::new();
        for node in (0..kit.tree.len()).map(NodeId) {
            let name = kit.tree.name(node);
            nodes.update(kit.tree.parent(node).0.to_le_bytes());
            nodes.update(kit.tree.size(node).to_le_bytes());
            nodes.update((name.len() as u64).to_le_bytes());
            nodes.update(name);
        }
        Self {
            manifest: kit.manifest.to_string(),
            layers: kit.layers.iter().map(|layer| layer.key().digest.to_string()).collect(),
            nodes: Digest::from_sha256(nodes.finalize().into()).to_string(),
        }
    }
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
        keep::silence_input();
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
        Arc::new(Self { program, channel, is_handed_on, keeper, held, next_number })
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
        descriptors.record.write_all_at(&line_of(request)?, 0)?;
        let number = {
            let mut next = self.next_number.lock();
            *next += 1;
            *next - 1
        };
        let kept = self.know(number, descriptors);
        self.tell("of a new mount", |channel| kept.descriptors.send(channel, number));
        // Looked at after the message: a keeper that has not heard of the mount must not have it announced.
        if self.is_handed_on.load(Ordering::SeqCst) {
            return Err(io::Error::other("the daemon is being replaced: try again"));
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
        self.tell("that it serves", Channel::serving);
    }

    /// Tells the keeper how this process ends. For [`Order::Replace`] the keeper hears nothing more, so that
    /// it holds every mount for the next process.
    pub(super) fn note_end(&self, order: Order) {
        if order == Order::Replace {
            self.is_handed_on.store(true, Ordering::SeqCst);
        }
        self.tell("its end", |channel| channel.ending(order));
        if order == Order::Replace {
            // The descriptor stays open until this process ends.
            std::mem::forget(self.channel.lock().take());
        }
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
    ) -> io::Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        // Meanwhile nothing is sent to the old one, and each new mount is sent to the new one.
        let mut current = self.channel.lock();
        *current = None;
        *self.keeper.lock() = None;
        let (channel, keeper) = keep::start_for_this_process(program, config, child_limits)?;
        for (number, descriptors) in &*self.held.lock() {
            descriptors.send(&channel, *number)?;
        }
        channel.serving()?;
        *current = Some(Arc::new(channel));
        *self.keeper.lock() = Some(keeper);
        Ok(())
    }
}

impl Kept {
    /// Notes that the mount is announced to its command, and what a later process needs.
    pub(super) fn announce(&self, announced: &Announced) -> io::Result<()> {
        let record = &self.descriptors.record;
        record.write_all_at(&line_of(announced)?, record.metadata()?.len())
    }

    /// The FUSE device.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        self.descriptors.device.as_fd()
    }

    /// The FUSE device and the file with the open files.
    pub(super) fn descriptors(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.descriptors.device.try_clone()?, self.descriptors.opens.try_clone()?))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeping.held.lock().remove(&self.number);
        self.keeping.tell("the end of a mount", |channel| channel.release(self.number));
    }
}

impl Descriptors {
    fn send(&self, channel: &Channel, number: u64) -> io::Result<()> {
        channel.hold(number, self.device.as_fd(), self.record.as_fd(), self.opens.as_fd())
    }

    fn read(&self) -> io::Result<Record> {
        let length = self.record.metadata()?.len();
        if length > RECORD_LIMIT_BYTES {
            return Err(io::Error::other("the record of a mount is too long"));
        }
        let mut bytes = vec![0; length as usize];
        self.record.read_exact_at(&mut bytes, 0)?;
        Record::decode(&bytes)
    }
}

impl Record {
    /// Decodes a record. The first line is complete before the keeper gets the record. A kill may cut the
    /// second one: the mount was not announced then.
    fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let request = serde_json::from_slice(lines.next().unwrap_or_default())?;
        let announced = lines.next().filter(|line| line.ends_with(b"\n"));
        let announced = announced.map(serde_json::from_slice).transpose()?;
        Ok(Self { request, announced })
    }
}

fn line_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_that_a_kill_has_cut_is_of_a_mount_that_was_not_announced() {
        let request: MountDescription = serde_json::from_value(json!({
            "kit": {"reference": "ghcr.io/org/kit:v1", "umask": 18}, "mountpoint": "/a\nb", "tensor_prefetch": true,
            "hydrate": "begun", "hydrate_after_seconds": 30,
        }))
        .unwrap();
        let announced: Announced = serde_json::from_value(json!({
            "pinned": "ghcr.io/org/kit@sha256:00", "mounted_at": 7,
            "tree": {"manifest": "sha256:00", "layers": ["sha256:01"], "nodes": "sha256:02"},
            "state": {"path": "/a\nb", "features": 5, "device": [0, 44], "made": null},
        }))
        .unwrap();
        let first = line_of(&request).unwrap();
        let whole = [first.clone(), line_of(&announced).unwrap()].concat();
        for cut in first.len()..whole.len() {
            let record = Record::decode(&whole[..cut]).unwrap();
            assert_eq!(record, Record { request: request.clone(), announced: None }, "{cut}");
        }
        let record = Record::decode(&whole).unwrap();
        assert_eq!(record, Record { request, announced: Some(announced) });
        assert!(Record::decode(b"").is_err() && Record::decode(&whole[1..]).is_err());
    }
}
