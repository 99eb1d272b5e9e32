//! Decides which open files the kernel reads itself, from the files of the cache (FUSE passthrough).
//!
//! ```text
//!                  first open                       last release
//! (no entry) --complete, checked, allowed--> Passthrough {id, pin} --> (no entry): id and pin go
//!      '-------anything else-------------------> Cached ---------> (no entry), perhaps a check
//! ```
//!
//! The kernel requires that all opens of an inode are of one kind: all cached, or all with the same
//! backing id. An open of the other kind fails with EIO. So the first open of an inode decides for all
//! opens until the last release. A map of a cached file counts as an open of it. A map of a passed-through
//! file is an open of the cache's file, and outlives the entry; the cache notices the map and keeps the
//! bytes. The kernel forgets an open before it sends the release. So an entry may live a moment longer
//! than its opens, but never shorter.
//!
//! Each real open costs a request. Where passthrough is not possible ([`Off`]), the first open gets
//! ENOSYS, and the kernel sends no more opens. INIT decides that where it can; otherwise the first file
//! that the kernel refuses decides. The decision is final.
//!
//! An entry has an inode, a number of opens and a backing id. A process that takes over a running mount
//! needs them, because open files keep their id, and further opens must get the same id. So each change is
//! noted in [`OpenRecords`], which outlive the process.
//!
//! A file that has no file of its own in the cache has no entry. Its handle says so, and has the same
//! meaning in every process.

use std::collections::HashMap;
use std::collections::hash_map;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::MountOptions;
use super::checks::Checks;
use super::connection::{BackingId, Connection, Reply};
use super::opens::{OpenRecord, OpenRecords};
use super::wire::reply::{open, open_out};
use crate::cache::{Backing, BackingLookup, MemberPin, UncheckedMember};
use crate::fs::{FileSystem, Found, Ino, KitNodes, Nodes};

/// The handle of an open that no entry counts.
const UNTRACKED: u64 = 0;
/// The handle of an open that an entry counts.
const TRACKED: u64 = 1;

/// The flags for a file that the daemon serves: its pages stay valid for later opens, and a close sends
/// no request.
const CACHED: u32 = open::KEEP_CACHE | open::NOFLUSH;
/// The flags for a passed-through file. The kernel drops the pages that it has from the daemon.
const PASSED_THROUGH: u32 = open::PASSTHROUGH | open::NOFLUSH;

/// The state of passthrough for a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassthroughStatus {
    /// The kernel reads complete files itself.
    On {
        /// The number of passed-through files that are open.
        open_files: u64,
        /// The number of first opens that were passed through.
        opened_files: u64,
    },
    /// Every read goes through the daemon.
    Off {
        /// Why.
        reason: String,
    },
}

/// Why a mount has no passthrough, for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Off {
    #[error("it was mounted with --no-passthrough")]
    Unwanted,
    #[error("the system daemon gives its users no files of the cache")]
    OtherUser,
    #[error("no file of the kit has 1 MiB")]
    NothingBig,
    #[error("the cache folder lies on an overlay: put it on a volume or disk (--cache-dir)")]
    Stacked,
    #[error("the kernel does not have it (Linux 6.9 and later do)")]
    NotOffered,
    #[error("it takes CAP_SYS_ADMIN (run the daemon as root)")]
    NotPrivileged,
    #[error("the kernel does not take files of this cache folder: {0}")]
    Refused(String),
}

/// The open files of a mount.
pub(super) struct Passthrough {
    /// The mount in messages.
    name: String,
    off: OnceLock<Off>,
    /// False while a recording needs all reads.
    is_allowed: AtomicBool,
    table: Mutex<Table>,
    opened_files: AtomicU64,
    reads: AtomicU64,
    checks: Checks,
}

struct Table {
    files: HashMap<Ino, OpenFile>,
    records: OpenRecords,
}

struct OpenFile {
    opens: u32,
    mode: Mode,
}

enum Mode {
    /// Check the member after the last release, so that later opens can be passed through.
    Cached(Option<UncheckedMember>),
    Passthrough(Arc<Registered>),
}

/// A file that the kernel knows by a number. Dropped in this order, so that the pin outlives the number.
struct Registered {
    id: BackingId,
    /// `None` where an earlier process handed out a file that is not in the cache any more.
    _pin: Option<MemberPin>,
}

impl Passthrough {
    /// An empty table for a new mount. Finds the reason why the mount cannot have passthrough.
    pub(super) fn new(nodes: &Nodes, options: &MountOptions, records: OpenRecords) -> Self {
        let hindrance = hindrance(nodes.single().map(|kit| &**kit), options);
        let this = Self {
            name: nodes.name(),
            off: OnceLock::new(),
            is_allowed: AtomicBool::new(true),
            table: Mutex::new(Table { files: HashMap::new(), records }),
            opened_files: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            checks: Checks::default(),
        };
        if let Some(off) = hindrance {
            this.turn_off(off);
        }
        this
    }

    /// Takes over the open files of a process that is gone. `features_have_it` says whether that process
    /// has agreed on passthrough with the kernel. The kits of these files are in memory.
    pub(super) fn take_over(
        &self,
        nodes: &Nodes,
        open: Vec<OpenRecord>,
        connection: &Arc<Connection>,
        features_have_it: bool,
    ) {
        self.is_wanted_of(features_have_it);
        let mut table = self.table.lock();
        for OpenRecord { ino, opens, backing_id } in open {
            let mode = match backing_id {
                None => Mode::Cached(None),
                Some(id) => {
                    let pin = match nodes.find(ino) {
                        Found::Kit(kit, ino) => kit.file_system().handed_out_before(ino),
                        Found::Asleep { .. } | Found::Place(_) | Found::Gone => Ok(None),
                    };
                    let pin = pin.ok().flatten();
                    let id = connection.known_backing(id);
                    Mode::Passthrough(Arc::new(Registered { id, _pin: pin }))
                }
            };
            table.files.insert(ino, OpenFile { opens, mode });
        }
    }

    /// Whether to ask the kernel for passthrough, when it does or does not offer it.
    ///
    /// The kernel waits for the answer to its first request meanwhile. So this must not look at any path:
    /// a path through the new mount would wait for the kernel.
    pub(super) fn is_wanted_of(&self, is_offered: bool) -> bool {
        if !is_offered && !self.is_off() {
            self.turn_off(Off::NotOffered);
        }
        !self.is_off()
    }

    fn turn_off(&self, off: Off) {
        tracing::info!(kit = self.name, reason = %off, "no passthrough");
        // Of two reasons at the same time, either is good enough.
        let _ = self.off.set(off);
    }

    /// Whether passthrough is off for good.
    pub(super) fn is_off(&self) -> bool {
        self.off.get().is_some()
    }

    /// Allows or forbids passthrough for the next first opens.
    pub(super) fn allow(&self, is_allowed: bool) {
        self.is_allowed.store(is_allowed, Ordering::SeqCst);
    }

    pub(super) fn status(&self) -> PassthroughStatus {
        if let Some(off) = self.off.get() {
            return PassthroughStatus::Off { reason: off.to_string() };
        }
        if !self.is_allowed.load(Ordering::SeqCst) {
            let reason = "reads are being recorded".to_owned();
            return PassthroughStatus::Off { reason };
        }
        let open_files = self.backing_ids().len() as u64;
        let opened_files = self.opened_files.load(Ordering::Relaxed);
        PassthroughStatus::On { open_files, opened_files }
    }

    /// The files that the kernel reads itself, with their backing ids.
    pub(super) fn backing_ids(&self) -> Vec<(Ino, u32)> {
        let table = self.table.lock();
        let ids = table.files.iter().filter_map(|(ino, file)| match &file.mode {
            Mode::Passthrough(registered) => Some((*ino, registered.id.raw())),
            Mode::Cached(_) => None,
        });
        ids.collect()
    }

    /// The number of entries in the table.
    pub(super) fn open_files(&self) -> usize {
        self.table.lock().files.len()
    }

    /// Counts a read request.
    pub(super) fn note_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Answers an open of a file whose content is there. `ino` is its number in the kit.
    pub(super) fn open(&self, kit: &KitNodes, ino: Ino, mut reply: Reply) {
        let outer = kit.outer(ino);
        let mut locked = self.table.lock();
        let table = &mut *locked;
        let file = match table.files.entry(outer) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => match self.first_mode(kit, ino, &reply) {
                Some(mode) => entry.insert(OpenFile { opens: 0, mode }),
                None => return reply.data(&open_out(UNTRACKED, CACHED, 0)),
            },
        };
        file.opens += 1;
        // Before the reply: an open that a killed process has noted and not answered is counted twice,
        // and its inode stays as it is. An open that is not noted could be answered in another way.
        table.records.set(file.record(outer));
        match &file.mode {
            Mode::Cached(_) => {
                drop(locked);
                reply.data(&open_out(TRACKED, CACHED, 0));
            }
            Mode::Passthrough(registered) => {
                // Must live until the kernel has the answer.
                let registered = registered.clone();
                drop(locked);
                reply.data(&open_out(TRACKED, PASSED_THROUGH, registered.id.raw()));
            }
        }
    }

    /// Removes an open. The kernel must have its answer before, so that it does not send the same release to
    /// a later process.
    pub(super) fn release(&self, ino: Ino, handle: u64) {
        if handle != TRACKED {
            return;
        }
        let mut locked = self.table.lock();
        let table = &mut *locked;
        let hash_map::Entry::Occupied(mut entry) = table.files.entry(ino) else { return };
        entry.get_mut().opens -= 1;
        table.records.set(entry.get().record(ino));
        if entry.get().opens > 0 {
            return;
        }
        let closed = entry.remove();
        if table.files.is_empty() {
            // The table may have grown for many files at once.
            table.files.shrink_to_fit();
        }
        drop(locked);
        if let Mode::Cached(Some(unchecked)) = closed.mode {
            self.checks.add(unchecked);
        }
    }

    /// Decides the kind of a first open; `None` for a file that never can be passed through. Runs under
    /// the table's lock, so that two first opens get the same kind. Reads the local disk only.
    fn first_mode(&self, kit: &KitNodes, ino: Ino, reply: &Reply) -> Option<Mode> {
        let (file_system, connection) = (kit.file_system(), reply.connection());
        match file_system.backing(ino) {
            Ok(BackingLookup::Never) => None,
            Ok(BackingLookup::NotNow) => Some(Mode::Cached(None)),
            Ok(BackingLookup::Unchecked(member)) => Some(Mode::Cached(Some(member))),
            Ok(BackingLookup::Ready(backing)) => Some(match self.register(backing, connection) {
                Some(registered) => Mode::Passthrough(Arc::new(registered)),
                None => Mode::Cached(None),
            }),
            Err(error) => {
                // The reads of this file will fail with the reason.
                tracing::debug!(path = file_system.path(ino), %error, "not passed through");
                Some(Mode::Cached(None))
            }
        }
    }

    fn register(&self, backing: Backing, connection: &Arc<Connection>) -> Option<Registered> {
        if self.is_off() || !self.is_allowed.load(Ordering::SeqCst) {
            return None;
        }
        match connection.open_backing(&backing) {
            Ok(id) => {
                self.opened_files.fetch_add(1, Ordering::Relaxed);
                Some(Registered { id, _pin: Some(backing.into_pin()) })
            }
            Err(error) if will_fail_again(error) => {
                self.turn_off(match error {
                    Errno::PERM => Off::NotPrivileged,
                    error => Off::Refused(std::io::Error::from(error).to_string()),
                });
                None
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel did not take a file: it is read through the daemon");
                None
            }
        }
    }
}

impl OpenFile {
    fn record(&self, ino: Ino) -> OpenRecord {
        let backing_id = match &self.mode {
            Mode::Cached(_) => None,
            Mode::Passthrough(registered) => Some(registered.id.raw()),
        };
        OpenRecord { ino, opens: self.opens, backing_id }
    }
}

/// Why a mount cannot have passthrough, as far as this is known before the mount.
/// `kit` is the only one of the mount, if there is one.
fn hindrance(kit: Option<&FileSystem>, options: &MountOptions) -> Option<Off> {
    if !options.passthrough {
        return Some(Off::Unwanted);
    }
    if options.is_of_other_user {
        return Some(Off::OtherUser);
    }
    if kit.is_some_and(|kit| !kit.has_big_members()) {
        return Some(Off::NothingBig);
    }
    if kit.is_some_and(FileSystem::is_on_stacked_file_system) {
        return Some(Off::Stacked);
    }
    let capabilities = rustix::thread::capabilities(None);
    let has_it = capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    (!has_it).then_some(Off::NotPrivileged)
}

/// Whether the kernel would refuse every other file of the mount, too: no privilege, no such operation,
/// a file system on too many others.
fn will_fail_again(error: Errno) -> bool {
    [Errno::PERM, Errno::LOOP, Errno::INVAL, Errno::NOTTY, Errno::OPNOTSUPP].contains(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_no_reason_to_give_up() {
        for error in [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::IO] {
            assert!(!will_fail_again(error), "{error}");
        }
        assert!(will_fail_again(Errno::PERM));
    }
}
