//! Drops pages of the kernel whose bytes were replaced in the cache (`FUSE_NOTIFY_INVAL_INODE`).
//!
//! ```text
//! cache: bytes of a layer were replaced --> queue --> a thread: which files? --no read of them waits--> kernel
//! ```
//!
//! The kernel keeps the pages of a file for ever, so it would keep wrong bytes that came before the digest of
//! their layer was known. Dropping pages unmaps them, too: a program that has the file mapped reads the right
//! bytes with its next access.
//!
//! The kernel waits for a page that is being read before it drops it, and no signal ends that wait. So:
//! - A thread of its own tells the kernel. The threads that answer reads never wait for it, so the read that
//!   it waits for is answered.
//! - The thread first waits until no read of the same bytes waits for the network. Otherwise a process that
//!   is killed could not end before its own answer came.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

use super::connection::Connection;
use crate::cache::{LayerKey, Listener};
use crate::fs::browse::Watcher;
use crate::fs::{Ino, LoadedKit, Nodes};
use crate::layer::{RangeSet, StreamOffset};

/// The most ranges that `status` names. A layer that came wrong as a whole may have a million files.
const MOST_NAMED: usize = 16;

/// A range of a file whose bytes were replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacedRange {
    /// The path of the file in the mount.
    pub path: String,
    /// The bytes of the file.
    pub range: Range<u64>,
}

/// The ranges of a mount whose bytes were replaced while it was mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplacedRanges {
    /// The first ones.
    pub named: Vec<ReplacedRange>,
    /// The number of others.
    pub others: u64,
}

/// The pages of a mount that are to be dropped.
pub(super) struct StalePages {
    connection: Weak<Connection>,
    nodes: Nodes,
    queue: Mutex<Queue>,
    waiting: WaitingReads,
    replaced: Mutex<ReplacedRanges>,
    /// Itself, for the thread.
    this: Weak<Self>,
}

#[derive(Default)]
struct Queue {
    layers: HashMap<LayerKey, RangeSet>,
    /// Files of kits that have left memory.
    files: Vec<(Ino, Range<u64>)>,
    is_running: bool,
}

impl StalePages {
    /// Hears of all layers of the mount's kits from now on.
    pub(super) fn new(connection: &Arc<Connection>, nodes: Nodes) -> Arc<Self> {
        let this = Arc::new_cyclic(|this: &Weak<Self>| Self {
            connection: Arc::downgrade(connection),
            nodes: nodes.clone(),
            queue: Mutex::default(),
            waiting: WaitingReads::default(),
            replaced: Mutex::default(),
            this: this.clone(),
        });
        if let Some(browse) = nodes.by_path() {
            let watcher: Weak<dyn Watcher> = this.this.clone();
            browse.watch(watcher);
        }
        for kit in nodes.kits() {
            this.listen(kit.file_system().kit());
        }
        this
    }

    fn listen(&self, kit: &LoadedKit) {
        for layer in &kit.layers {
            let listener: Weak<dyn Listener> = self.this.clone();
            layer.store().listen(listener);
        }
    }

    /// Counts a read that waits for the network, until the value is dropped.
    pub(super) fn waiting_read(self: &Arc<Self>, ino: Ino, range: Range<u64>) -> WaitingRead {
        WaitingRead { number: self.waiting.begin(ino, range), pages: self.clone() }
    }

    /// The ranges whose bytes were replaced.
    pub(super) fn replaced(&self) -> ReplacedRanges {
        self.replaced.lock().clone()
    }

    fn run(&self) {
        loop {
            let (layers, asleep) = {
                let mut queue = self.queue.lock();
                if queue.layers.is_empty() && queue.files.is_empty() {
                    queue.is_running = false;
                    return;
                }
                (std::mem::take(&mut queue.layers), std::mem::take(&mut queue.files))
            };
            self.drop_pages(asleep);
            for (layer, ranges) in layers {
                for kit in self.nodes.kits() {
                    let files = kit.file_system().sharers(layer, &ranges);
                    let files: Vec<_> =
                        files.into_iter().map(|(ino, range)| (kit.outer(ino), range)).collect();
                    self.note(&files);
                    self.drop_pages(files);
                }
            }
        }
    }

    fn drop_pages(&self, mut files: Vec<(Ino, Range<u64>)>) {
        while !files.is_empty() {
            for (ino, range) in self.waiting.take_unread(&mut files) {
                let Some(connection) = self.connection.upgrade() else { return };
                match connection.drop_pages(ino, range) {
                    // The kernel does not know the inode, so it has no page of it; or the mount has ended.
                    Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                    Err(error) => tracing::error!(path = self.nodes.path(ino), %error,
                        "the kernel did not drop pages of a file that came wrong: mount the kit again"),
                }
            }
        }
    }

    /// Says who may have read wrong bytes.
    fn note(&self, files: &[(Ino, Range<u64>)]) {
        let mut replaced = self.replaced.lock();
        let before = replaced.named.len();
        for (ino, range) in files {
            if replaced.named.len() >= MOST_NAMED {
                replaced.others += 1;
                continue;
            }
            let path = self.nodes.path(*ino);
            let new = ReplacedRange { path, range: range.clone() };
            if !replaced.named.contains(&new) {
                replaced.named.push(new);
            }
        }
        let kit = self.nodes.name();
        for ReplacedRange { path, range } in &replaced.named[before..] {
            let (start, end) = (range.start, range.end);
            tracing::warn!(%kit, path, start, end,
                "other bytes took the place of those that came first: programs that have read this range \
                 may have wrong ones");
        }
        if replaced.others > 0 {
            tracing::warn!(%kit, others = replaced.others, "so it is with more ranges than are named");
        }
    }
}

impl Listener for StalePages {
    fn replaced(&self, layer: LayerKey, range: Range<StreamOffset>) {
        let range = range.start.get()..range.end.get();
        self.add(|queue| queue.layers.entry(layer).or_default().insert(range));
    }
}

impl Watcher for StalePages {
    fn woke(&self, kit: &LoadedKit) {
        self.listen(kit);
    }

    fn slept(&self, files: Vec<(Ino, Range<u64>)>) {
        if !files.is_empty() {
            self.add(|queue| queue.files.extend(files));
        }
    }
}

impl StalePages {
    /// Adds to the queue, and has a thread work on it.
    fn add(&self, add: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue.lock();
        add(&mut queue);
        if queue.is_running {
            return;
        }
        let Some(this) = self.this.upgrade() else { return };
        let thread = std::thread::Builder::new().name("kitfs-drop-pages".to_owned());
        match thread.spawn(move || this.run()) {
            Ok(_) => queue.is_running = true,
            Err(error) => tracing::error!(%error, "no thread to drop the kernel's pages with"),
        }
    }
}

/// A read that waits for the network.
pub(super) struct WaitingRead {
    pages: Arc<StalePages>,
    number: u64,
}

impl Drop for WaitingRead {
    fn drop(&mut self) {
        self.pages.waiting.end(self.number);
    }
}

/// The reads of a mount that wait for the network.
#[derive(Default)]
struct WaitingReads {
    reads: Mutex<Reads>,
    ended: Condvar,
}

#[derive(Default)]
struct Reads {
    /// By a number that is given once.
    waiting: HashMap<u64, (Ino, Range<u64>)>,
    next: u64,
}

impl Reads {
    fn has(&self, ino: Ino, range: &Range<u64>) -> bool {
        self.waiting
            .values()
            .any(|(other, read)| *other == ino && read.start < range.end && range.start < read.end)
    }
}

impl WaitingReads {
    /// Counts a read until [`Self::end`] with the number that this returns.
    fn begin(&self, ino: Ino, range: Range<u64>) -> u64 {
        let mut reads = self.reads.lock();
        reads.next += 1;
        let number = reads.next;
        reads.waiting.insert(number, (ino, range));
        number
    }

    fn end(&self, number: u64) {
        let mut reads = self.reads.lock();
        reads.waiting.remove(&number);
        if reads.waiting.is_empty() {
            // The table may have grown for many readers of a silent host.
            reads.waiting.shrink_to_fit();
        }
        drop(reads);
        self.ended.notify_all();
    }

    /// Takes those of `files` out that no read waits for; waits until there are any.
    fn take_unread(&self, files: &mut Vec<(Ino, Range<u64>)>) -> Vec<(Ino, Range<u64>)> {
        let mut reads = self.reads.lock();
        loop {
            let unread = match reads.waiting.is_empty() {
                true => std::mem::take(files),
                false => files.extract_if(.., |(ino, range)| !reads.has(*ino, range)).collect(),
            };
            if !unread.is_empty() || files.is_empty() {
                return unread;
            }
            self.ended.wait(&mut reads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_dropped_once_no_read_of_them_waits() {
        let waiting = WaitingReads::default();
        let (near, far) = (waiting.begin(Ino(7), 0..100), waiting.begin(Ino(7), 500..600));
        let mut files = vec![(Ino(7), 50..60), (Ino(7), 100..500), (Ino(8), 50..60)];
        let mut taken = waiting.take_unread(&mut files);
        taken.sort_by_key(|(ino, range)| (ino.0, range.start));
        assert_eq!(taken, [(Ino(7), 100..500), (Ino(8), 50..60)]);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| waiting.take_unread(&mut files));
            waiting.end(far);
            waiting.end(near);
            assert_eq!(taker.join().unwrap(), [(Ino(7), 50..60)]);
        });
        assert!(waiting.take_unread(&mut files).is_empty());
    }
}
