//! Answers the kernel's requests from the file system.
//!
//! A thread of [`Sessions`](super::Sessions) answers reads of resident bytes itself. A read that must
//! download moves into a task of the runtime, together with its reply. So no thread of this room waits
//! for the network.
//!
//! The adapter answers the first open with ENOSYS. Afterwards the kernel opens and closes files and
//! directories without a request, and keeps their pages and entries. Opens of files that may become
//! passthrough get a real answer (`passthrough`), and so do all opens of a browse mount: ENOSYS would count for
//! kits that no program has looked at so far. Kits never change, so every answer about a kit is valid for ever.
//! The one exception is bytes that came wrong: their pages are dropped (`stale_pages`).
//!
//! In a browse mount, a request may need a kit that is not in memory, or a registry. Such a request moves into a
//! task, too.
//!
//! A read of resident bytes allocates nothing. It copies the bytes from the cache file into the thread's
//! buffer, and writev(2) copies them to the kernel. A read that waits has a buffer of its own and the
//! same two copies.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustix::fs::{Access as AccessMask, OFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::connection::{Connection, Reply};
use super::errno::read_failure;
use super::failures::Failures;
use super::interrupts::Interrupts;
use super::others::DAEMON_ATTRIBUTE;
use super::passthrough::Passthrough;
use super::stale_pages::StalePages;
use super::watched::{EndedRead, Observers};
use super::wire::init::Features;
use super::wire::reply as wire;
use super::wire::request::{Operation, Request, RequestError};
use crate::fs::browse::{Answer, Browse, Entry, FolderEntry, Wake};
use crate::fs::{
    Access, DirectoryEntry, FileSystem, Found, FsError, Ino, KitNodes, Nodes, PendingRead, Place,
    Read, Seek,
};
use crate::observe::reads::ReadFailure;
use crate::process::threads;

/// The kinds of lseek(2) that reach a file system (Linux `include/uapi/linux/fs.h`). The kernel handles
/// the others.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Answers the requests of one mount.
pub(super) struct Adapter {
    nodes: Nodes,
    failures: Arc<Failures>,
    interrupts: Arc<Interrupts>,
    passthrough: Arc<Passthrough>,
    stale_pages: Arc<StalePages>,
    observers: Observers,
    runtime: Handle,
    /// The flags that the handshake has agreed on.
    features: Features,
    /// The value of the root's attribute that names the daemon.
    daemon: String,
}

impl Adapter {
    /// An adapter that downloads missing bytes on `runtime`.
    pub(super) fn new(
        nodes: Nodes,
        passthrough: Arc<Passthrough>,
        stale_pages: Arc<StalePages>,
        features: Features,
        daemon: String,
        observers: Observers,
        runtime: Handle,
    ) -> Arc<Self> {
        let failures = Arc::new(Failures::new(nodes.clone()));
        let interrupts = Arc::default();
        Arc::new(Self {
            nodes,
            failures,
            interrupts,
            passthrough,
            stale_pages,
            observers,
            runtime,
            features,
            daemon,
        })
    }

    /// The failed reads. They outlive the session.
    pub(super) fn failures(&self) -> Arc<Failures> {
        self.failures.clone()
    }

    /// Answers a request with the bytes that came from the device. `buffer` belongs to the thread, and
    /// grows to the longest read.
    pub(super) fn answer(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        bytes: &[u8],
        buffer: &mut BytesMut,
    ) {
        match Request::decode(bytes) {
            Ok(request) => {
                let mut reply = connection.reply_to(request.unique);
                if self.answer_without_node(&request, &mut reply) {
                    return;
                }
                match self.nodes.find(request.ino) {
                    Found::Kit(kit, ino) => {
                        let answered = self.in_kit(&kit, ino, &request, &mut reply, buffer);
                        self.refuse(&request, &mut reply, answered);
                    }
                    Found::Asleep { wake, ino, root } => match (root, request.operation) {
                        (Some(root), Operation::Attributes) => {
                            reply.data(&wire::attributes_out(&root));
                        }
                        (Some(_), Operation::OpenDirectory) => self.open_directory(&mut reply),
                        _ => self.in_sleeping_kit(bytes, &request, wake, ino, reply),
                    },
                    Found::Place(place) => self.in_folder(&place, &request, reply),
                    Found::Gone => {
                        let gone = Err(FsError::NoSuchInode(request.ino.0));
                        self.refuse(&request, &mut reply, gone);
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "the kernel's request is not understood");
                if let RequestError::Arguments { unique, .. } = error {
                    connection.reply_to(unique).error(Errno::INVAL);
                }
            }
        }
    }

    fn refuse(&self, request: &Request<'_>, reply: &mut Reply, answered: Result<(), FsError>) {
        if let Err(error) = answered {
            reply.error(self.failures.refusal(request.ino, &error));
        }
    }

    /// Answers a request that is about no node, or needs no look at it. `false` for the others.
    fn answer_without_node(&self, request: &Request<'_>, reply: &mut Reply) -> bool {
        match request.operation {
            Operation::Release { handle } => {
                reply.ok();
                self.passthrough.release(request.ino, handle);
            }
            Operation::Totals => reply.data(&wire::totals(&self.nodes.totals())),
            Operation::Xattr { name, bytes } if self.is_about_daemon(request.ino, name) => {
                reply_xattr(reply, self.daemon.as_bytes(), bytes);
            }
            // The kernel expects no reply.
            Operation::Forget { forgotten } => {
                reply.none();
                self.nodes.forget(forgotten.iter());
            }
            Operation::ReleaseDirectory | Operation::Destroy => reply.ok(),
            // The kernel itself refuses changes of a read-only mount. These requests come only after
            // root has remounted it as writable.
            Operation::Change => reply.error(Errno::ROFS),
            Operation::Ioctl => reply.error(Errno::NOTTY),
            // The kernel expects no reply: the interrupted request gets one.
            Operation::Interrupt { unique } => {
                reply.none();
                self.interrupts.interrupt(unique);
            }
            Operation::Other { opcode } => {
                tracing::debug!(opcode, "not supported: the kernel does without");
                reply.error(Errno::NOSYS);
            }
            Operation::Lookup { .. }
            | Operation::Attributes
            | Operation::LinkTarget
            | Operation::Open { .. }
            | Operation::Read { .. }
            | Operation::OpenDirectory
            | Operation::Entries { .. }
            | Operation::EntriesWithAttributes { .. }
            | Operation::Xattr { .. }
            | Operation::XattrNames { .. }
            | Operation::Seek { .. }
            | Operation::Access { .. } => return false,
        }
        true
    }

    /// Answers a request to a node of a kit, or returns the error to answer with. `ino` is the node's number in
    /// the kit.
    fn in_kit(
        &self,
        kit: &KitNodes,
        ino: Ino,
        request: &Request<'_>,
        reply: &mut Reply,
        buffer: &mut BytesMut,
    ) -> Result<(), FsError> {
        let fs = kit.file_system();
        let is_single = self.nodes.by_path().is_none();
        match request.operation {
            Operation::Lookup { name } => match kit.lookup(ino, name) {
                Err(FsError::NotFound) => reply.data(&wire::no_entry(None)),
                found => {
                    let found = found?;
                    self.nodes.count(found.ino, 1);
                    reply.data(&wire::entry(&found, None));
                }
            },
            Operation::Attributes => reply.data(&wire::attributes_out(&kit.attributes(ino)?)),
            Operation::LinkTarget => reply.data(fs.link_target(ino)?),
            Operation::Open { flags } => {
                fs.open(ino, is_for_writing(flags))?;
                // ENOSYS counts for all files, so a file with missing content needs a real answer.
                let may_be_told =
                    is_single && self.features.has(Features::NO_OPEN) && !fs.has_missing();
                match may_be_told && self.passthrough.is_off() {
                    true => reply.error(Errno::NOSYS),
                    false => self.passthrough.open(kit, ino, reply.take()),
                }
            }
            Operation::Read { offset, bytes } => {
                self.read(kit, ino, request, (offset, bytes), reply, buffer);
            }
            Operation::OpenDirectory => self.open_directory(reply),
            Operation::Entries { offset, bytes } => {
                let mut entries = wire::Entries::new(bytes as usize);
                for (entry, _) in kit.entries(ino, offset)? {
                    if !entries.push(&entry) {
                        break;
                    }
                }
                reply.data(entries.as_bytes());
            }
            Operation::EntriesWithAttributes { offset, bytes } => {
                let mut entries = wire::Entries::new(bytes as usize);
                let mut lookups = 0;
                for (entry, attributes) in kit.entries(ino, offset)? {
                    if !entries.push_with(&entry, &attributes) {
                        break;
                    }
                    // The kernel counts no lookups of these two.
                    lookups += u64::from(!matches!(entry.name, b"." | b".."));
                }
                self.nodes.count(request.ino, lookups);
                reply.data(entries.as_bytes());
            }
            Operation::Xattr { name, bytes } => {
                let value = fs.xattr(ino, name)?;
                reply_xattr(reply, value.as_bytes(), bytes);
            }
            // The list is empty, so that copies do not carry the attributes away (fs/xattr.rs).
            Operation::XattrNames { bytes } => {
                fs.attributes(ino)?;
                reply_xattr(reply, b"", bytes);
            }
            // The kernel knows the answers for files without holes, and asks no more after ENOSYS.
            Operation::Seek { .. } if is_single && !fs.kit().tree.has_holes() => {
                reply.error(Errno::NOSYS);
            }
            Operation::Seek { offset, whence: SEEK_DATA } => {
                reply.data(&wire::seek_out(fs.seek(ino, offset, Seek::Data)?));
            }
            Operation::Seek { offset, whence: SEEK_HOLE } => {
                reply.data(&wire::seek_out(fs.seek(ino, offset, Seek::Hole)?));
            }
            Operation::Seek { .. } => reply.error(Errno::INVAL),
            Operation::Access { mask } => {
                fs.access(ino, request.caller, wanted_access(mask))?;
                reply.ok();
            }
            Operation::Forget { .. }
            | Operation::Release { .. }
            | Operation::ReleaseDirectory
            | Operation::Totals
            | Operation::Interrupt { .. }
            | Operation::Destroy
            | Operation::Change
            | Operation::Ioctl
            | Operation::Other { .. } => reply.error(Errno::NOSYS),
        }
        Ok(())
    }

    /// Answers the open of a directory of a kit. A browse mount gives a real answer: ENOSYS would have the kernel
    /// keep the lists of tags for ever.
    fn open_directory(&self, reply: &mut Reply) {
        let is_single = self.nodes.by_path().is_none();
        match is_single && self.features.has(Features::NO_OPENDIR) {
            true => reply.error(Errno::NOSYS),
            false => {
                let flags = wire::open::KEEP_CACHE | wire::open::CACHE_DIR;
                reply.data(&wire::open_out(0, flags, 0));
            }
        }
    }

    /// Answers a request once the kit of its node is in memory.
    fn in_sleeping_kit(
        self: &Arc<Self>,
        bytes: &[u8],
        request: &Request<'_>,
        wake: Wake,
        ino: Ino,
        mut reply: Reply,
    ) {
        let (this, bytes) = (self.clone(), bytes.to_vec());
        self.later(request, async move |killed| {
            let kit = tokio::select! {
                biased;
                kit = wake.finish() => kit,
                () = killed => return reply.error(Errno::INTR),
            };
            // The bytes were decoded before.
            let Ok(request) = Request::decode(&bytes) else { return };
            let answered = match kit {
                Ok(kit) => this.in_kit(&kit, ino, &request, &mut reply, &mut BytesMut::new()),
                Err(error) => Err(error),
            };
            this.refuse(&request, &mut reply, answered);
        });
    }

    /// Answers a request to a place of a browse mount.
    fn in_folder(self: &Arc<Self>, place: &Place, request: &Request<'_>, mut reply: Reply) {
        let Some(browse) = self.nodes.by_path() else { return reply.error(Errno::STALE) };
        match request.operation {
            Operation::Lookup { name } => {
                self.when_known(request, reply, browse.lookup(place, name), reply_entry);
            }
            Operation::Entries { bytes, offset } => {
                let reply_with = move |reply: &mut Reply, listed: Vec<FolderEntry>| {
                    reply_entries(reply, &listed, wire::Entries::push, bytes);
                };
                self.when_known(request, reply, browse.entries(place, offset), reply_with);
            }
            Operation::EntriesWithAttributes { bytes, offset } => {
                let reply_with = move |reply: &mut Reply, listed: Vec<FolderEntry>| {
                    reply_entries(reply, &listed, wire::Entries::push_without, bytes);
                };
                self.when_known(request, reply, browse.entries(place, offset), reply_with);
            }
            operation => {
                let answered = of_folder(browse, place, operation, &mut reply);
                self.refuse(request, &mut reply, answered);
            }
        }
    }

    /// Answers with what a browse mount knows, or finds out first.
    fn when_known<T: Send + 'static>(
        self: &Arc<Self>,
        request: &Request<'_>,
        mut reply: Reply,
        answer: Answer<T>,
        reply_with: impl FnOnce(&mut Reply, T) + Send + 'static,
    ) {
        let later = match answer {
            Answer::Now(Ok(known)) => return reply_with(&mut reply, known),
            Answer::Now(Err(error)) => return self.refuse(request, &mut reply, Err(error)),
            Answer::Later(later) => later,
        };
        let (failures, ino) = (self.failures.clone(), request.ino);
        self.later(request, async move |killed| {
            tokio::select! {
                biased;
                known = later => match known {
                    Ok(known) => reply_with(&mut reply, known),
                    Err(error) => reply.error(failures.refusal(ino, &error)),
                },
                () = killed => reply.error(Errno::INTR),
            }
        });
    }

    /// Works on a request in a task. The future that the work gets ends when the calling program is killed.
    fn later<W, F>(&self, request: &Request<'_>, work: W)
    where
        W: FnOnce(BoxFuture<'static, ()>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let waiting = self.interrupts.begin(request.unique, request.thread);
        let killed = async move { waiting.killed().await }.boxed();
        self.runtime.spawn(async move { work(killed).await });
    }

    fn is_about_daemon(&self, ino: Ino, name: &[u8]) -> bool {
        ino == Ino::ROOT && name == DAEMON_ATTRIBUTE.as_bytes() && !self.daemon.is_empty()
    }

    fn read(
        &self,
        kit: &KitNodes,
        node: Ino,
        request: &Request<'_>,
        (offset, bytes): (u64, u32),
        reply: &mut Reply,
        buffer: &mut BytesMut,
    ) {
        let ino = request.ino;
        let begun = Instant::now();
        let wanted = offset..offset.saturating_add(u64::from(bytes));
        self.passthrough.note_read();
        match kit.file_system().read(node, offset, bytes, buffer) {
            Ok(Read::Resident(bytes)) => {
                // Before the reply: the program may ask for the failures at once.
                self.failures.succeeded(ino, &wanted);
                reply.data(bytes);
                self.observers.reads.hit(begun.elapsed(), bytes.len());
            }
            Ok(Read::Pending(read)) => {
                let file = (kit.file_system().clone(), node);
                self.finish(request, file, wanted, read, begun, reply.take());
            }
            Err(error) => {
                self.observers.reads.failed(read_failure(&error));
                reply.error(self.failures.read_failed(ino, &wanted, begun, &error));
            }
        }
    }

    fn finish(
        &self,
        request: &Request<'_>,
        (file_system, node): (Arc<FileSystem>, Ino),
        wanted: Range<u64>,
        read: PendingRead,
        begun: Instant,
        mut reply: Reply,
    ) {
        let (failures, ino) = (self.failures.clone(), request.ino);
        let Observers { reads, tracer } = self.observers.clone();
        let waiting = self.interrupts.begin(request.unique, request.thread);
        let thread = request.thread;
        let waits_for_pages = self.stale_pages.waiting_read(ino, wanted.clone());
        self.runtime.spawn(async move {
            // The program may end right after the reply. While it waits, it has a name.
            let reader = tracer.is_some().then(|| {
                let process = threads::process_of(thread);
                (process, threads::command_of(process))
            });
            let failure = tokio::select! {
                biased;
                finished = read.finish(thread) => match finished {
                    Ok(bytes) => {
                        failures.succeeded(ino, &wanted);
                        reply.data(&bytes);
                        reads.miss(begun.elapsed(), bytes.len());
                        None
                    }
                    Err(error) => {
                        let reason = read_failure(&error);
                        reads.failed(reason);
                        reply.error(failures.read_failed(ino, &wanted, begun, &error));
                        Some((reason, error.to_string()))
                    }
                },
                () = waiting.killed() => {
                    reply.error(Errno::INTR);
                    Some((ReadFailure::Other, "the program was killed while it read".to_owned()))
                }
            };
            drop(waits_for_pages);
            if let (Some(tracer), Some((process, command))) = (tracer, reader) {
                tracer.ended(EndedRead {
                    file_system,
                    ino: node,
                    range: wanted,
                    process,
                    command,
                    began: begun,
                    ended: Instant::now(),
                    failure,
                });
            }
        });
    }
}

/// Answers a request to a place of a browse mount that needs no registry.
fn of_folder(
    browse: &Browse,
    place: &Place,
    operation: Operation<'_>,
    reply: &mut Reply,
) -> Result<(), FsError> {
    let is_link = matches!(place, Place::Link { .. });
    match operation {
        Operation::Attributes => reply.data(&wire::attributes_out(&browse.attributes(place))),
        Operation::LinkTarget => reply.data(browse.link_target(place)?.as_bytes()),
        // The kernel keeps no entries: the list of tags has a lifetime of its own.
        Operation::OpenDirectory if !is_link => reply.data(&wire::open_out(0, 0, 0)),
        Operation::OpenDirectory => return Err(FsError::NotADirectory),
        Operation::Open { .. } | Operation::Read { .. } if !is_link => {
            return Err(FsError::IsADirectory);
        }
        Operation::Open { .. } | Operation::Read { .. } | Operation::Seek { .. } => {
            return Err(FsError::NotAFile);
        }
        Operation::Xattr { .. } => return Err(FsError::NoSuchAttribute),
        Operation::XattrNames { bytes } => reply_xattr(reply, b"", bytes),
        Operation::Access { mask } if wanted_access(mask).write => return Err(FsError::ReadOnly),
        Operation::Access { .. } => reply.ok(),
        _ => reply.error(Errno::NOSYS),
    }
    Ok(())
}

fn reply_entry(reply: &mut Reply, entry: Entry) {
    match &entry.attributes {
        Some(attributes) => reply.data(&wire::entry(attributes, entry.ttl)),
        None => reply.data(&wire::no_entry(entry.ttl)),
    }
}

fn reply_entries(
    reply: &mut Reply,
    listed: &[FolderEntry],
    push: fn(&mut wire::Entries, &DirectoryEntry<'_>) -> bool,
    bytes: u32,
) {
    let mut entries = wire::Entries::new(bytes as usize);
    for FolderEntry { ino, kind, name, next_offset } in listed {
        let (ino, kind, next_offset) = (*ino, *kind, *next_offset);
        if !push(&mut entries, &DirectoryEntry { ino, kind, name: name.as_bytes(), next_offset }) {
            break;
        }
    }
    reply.data(entries.as_bytes());
}

/// Whether the flags of open(2) ask for writing.
fn is_for_writing(flags: u32) -> bool {
    let flags = OFlags::from_bits_retain(flags);
    flags.intersects(OFlags::WRONLY | OFlags::RDWR)
}

/// The mask of access(2).
fn wanted_access(mask: u32) -> Access {
    let mask = AccessMask::from_bits_retain(mask);
    Access {
        read: mask.contains(AccessMask::READ_OK),
        write: mask.contains(AccessMask::WRITE_OK),
        execute: mask.contains(AccessMask::EXEC_OK),
    }
}

/// The protocol of getxattr(2): size 0 asks for the length.
fn reply_xattr(reply: &mut Reply, value: &[u8], size: u32) {
    match value.len() as u32 {
        length if size == 0 => reply.data(&wire::xattr_length(length)),
        length if length > size => reply.error(Errno::RANGE),
        _ => reply.data(value),
    }
}
