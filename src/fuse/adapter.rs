//! Answers the kernel's requests from the file system.
//!
//! A thread of [`Sessions`](super::Sessions) answers reads of resident bytes itself. A read that must
//! download moves into a task of the runtime, together with its reply. So no thread of this room waits
//! for the network.
//!
//! The adapter answers the first open with ENOSYS. Afterwards the kernel opens and closes files and
//! directories without a request, and keeps their pages and entries. Opens of files that may become
//! passthrough get a real answer (`passthrough`). Kits never change, so every answer is valid for ever.
//! The one exception is bytes that came wrong: their pages are dropped (`stale_pages`).
//!
//! A read of resident bytes allocates nothing. It copies the bytes from the cache file into the thread's
//! buffer, and writev(2) copies them to the kernel. A read that waits has a buffer of its own and the
//! same two copies.

use std::ops::Range;
use std::sync::Arc;

use bytes::BytesMut;
use rustix::fs::{Access as AccessMask, OFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::connection::{Connection, Reply};
use super::failures::Failures;
use super::interrupts::Interrupts;
use super::others::DAEMON_ATTRIBUTE;
use super::passthrough::Passthrough;
use super::stale_pages::StalePages;
use super::wire::init::Features;
use super::wire::reply as wire;
use super::wire::request::{Operation, Request, RequestError};
use crate::fs::{Access, FileSystem, FsError, Ino, PendingRead, Read, Seek};

/// The kinds of lseek(2) that reach a file system (Linux `include/uapi/linux/fs.h`). The kernel handles
/// the others.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

/// Answers the requests of one mount.
pub(super) struct Adapter {
    file_system: Arc<FileSystem>,
    failures: Arc<Failures>,
    interrupts: Arc<Interrupts>,
    passthrough: Arc<Passthrough>,
    stale_pages: Arc<StalePages>,
    runtime: Handle,
    /// The flags that the handshake has agreed on.
    features: Features,
    /// The value of the root's attribute that names the daemon.
    daemon: String,
}

impl Adapter {
    /// An adapter that downloads missing bytes on `runtime`.
    pub(super) fn new(
        file_system: Arc<FileSystem>,
        passthrough: Arc<Passthrough>,
        stale_pages: Arc<StalePages>,
        features: Features,
        daemon: String,
        runtime: Handle,
    ) -> Self {
        let failures = Arc::new(Failures::new(file_system.clone()));
        let interrupts = Arc::default();
        Self {
            file_system,
            failures,
            interrupts,
            passthrough,
            stale_pages,
            runtime,
            features,
            daemon,
        }
    }

    /// The failed reads. They outlive the session.
    pub(super) fn failures(&self) -> Arc<Failures> {
        self.failures.clone()
    }

    /// Answers a request with the bytes that came from the device. `buffer` belongs to the thread, and
    /// grows to the longest read.
    pub(super) fn answer(&self, connection: &Arc<Connection>, bytes: &[u8], buffer: &mut BytesMut) {
        match Request::decode(bytes) {
            Ok(request) => {
                let mut reply = connection.reply_to(request.unique);
                if let Err(error) = self.dispatch(&request, &mut reply, buffer) {
                    reply.error(self.failures.refusal(request.ino, &error));
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

    /// Answers a request, or returns the error to answer with.
    fn dispatch(
        &self,
        request: &Request<'_>,
        reply: &mut Reply,
        buffer: &mut BytesMut,
    ) -> Result<(), FsError> {
        let (fs, ino) = (&self.file_system, request.ino);
        match request.operation {
            Operation::Lookup { name } => match fs.lookup(ino, name) {
                Err(FsError::NotFound) => reply.data(&wire::no_entry()),
                found => reply.data(&wire::entry(&found?)),
            },
            Operation::Attributes => reply.data(&wire::attributes_out(&fs.attributes(ino)?)),
            Operation::LinkTarget => reply.data(fs.link_target(ino)?),
            Operation::Open { flags } => {
                fs.open(ino, is_for_writing(flags))?;
                // ENOSYS counts for all files, so a file with missing content needs a real answer.
                let may_be_told = self.features.has(Features::NO_OPEN) && !fs.has_missing();
                match may_be_told && self.passthrough.is_off() {
                    true => reply.error(Errno::NOSYS),
                    false => self.passthrough.open(ino, reply.take()),
                }
            }
            Operation::Release { handle } => {
                reply.ok();
                self.passthrough.release(ino, handle);
            }
            Operation::Read { offset, bytes } => self.read(request, offset, bytes, reply, buffer),
            Operation::OpenDirectory => match self.features.has(Features::NO_OPENDIR) {
                true => reply.error(Errno::NOSYS),
                false => {
                    let flags = wire::open::KEEP_CACHE | wire::open::CACHE_DIR;
                    reply.data(&wire::open_out(0, flags, 0));
                }
            },
            Operation::Entries { offset, bytes } => {
                let mut entries = wire::Entries::new(bytes as usize);
                for entry in fs.entries(ino, offset)? {
                    if !entries.push(&entry) {
                        break;
                    }
                }
                reply.data(entries.as_bytes());
            }
            Operation::EntriesWithAttributes { offset, bytes } => {
                let mut entries = wire::Entries::new(bytes as usize);
                for entry in fs.entries(ino, offset)? {
                    if !entries.push_with(&entry, &fs.attributes(entry.ino)?) {
                        break;
                    }
                }
                reply.data(entries.as_bytes());
            }
            Operation::Totals => reply.data(&wire::totals(&fs.totals())),
            Operation::Xattr { name, bytes } if self.is_about_daemon(ino, name) => {
                reply_xattr(reply, self.daemon.as_bytes(), bytes);
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
            Operation::Seek { .. } if !fs.kit().tree.has_holes() => reply.error(Errno::NOSYS),
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
            // The kernel expects no reply.
            Operation::Forget => reply.none(),
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
        }
        Ok(())
    }

    fn is_about_daemon(&self, ino: Ino, name: &[u8]) -> bool {
        ino == Ino::ROOT && name == DAEMON_ATTRIBUTE.as_bytes() && !self.daemon.is_empty()
    }

    fn read(
        &self,
        request: &Request<'_>,
        offset: u64,
        bytes: u32,
        reply: &mut Reply,
        buffer: &mut BytesMut,
    ) {
        let ino = request.ino;
        let wanted = offset..offset.saturating_add(u64::from(bytes));
        self.passthrough.note_read();
        match self.file_system.read(ino, offset, bytes, buffer) {
            Ok(Read::Resident(bytes)) => {
                reply.data(bytes);
                self.failures.succeeded(ino, &wanted);
            }
            Ok(Read::Pending(read)) => self.finish(request, wanted, read, reply.take()),
            Err(error) => reply.error(self.failures.read_failed(ino, &wanted, &error)),
        }
    }

    fn finish(
        &self,
        request: &Request<'_>,
        wanted: Range<u64>,
        read: PendingRead,
        mut reply: Reply,
    ) {
        let (failures, ino) = (self.failures.clone(), request.ino);
        let waiting = self.interrupts.begin(request.unique, request.thread);
        let thread = request.thread;
        let waits_for_pages = self.stale_pages.waiting_read(ino, wanted.clone());
        self.runtime.spawn(async move {
            tokio::select! {
                biased;
                finished = read.finish(thread) => match finished {
                    Ok(bytes) => {
                        reply.data(&bytes);
                        failures.succeeded(ino, &wanted);
                    }
                    Err(error) => reply.error(failures.read_failed(ino, &wanted, &error)),
                },
                () = waiting.killed() => reply.error(Errno::INTR),
            }
            drop(waits_for_pages);
        });
    }
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
