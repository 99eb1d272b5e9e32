//! Kernel requests to the file system and back.
//!
//! Resident bytes are answered on the thread that took the request. What must be fetched moves,
//! with its reply, into a task of the runtime: no thread of this room waits for the network.
//!
//! Opens are answered ENOSYS once: the kernel then opens and closes files and directories without
//! asking, and keeps their pages and entries (FUSE_NO_OPEN_SUPPORT, FUSE_NO_OPENDIR_SUPPORT); but
//! opens of files are real where they may lead to passthrough (`passthrough`). Kits never change,
//! so every answer is valid for ever and nothing is ever invalidated.
//!
//! A resident read allocates nothing: its bytes go from the cache file into a pooled buffer (one
//! copy) and from there to the kernel by one writev(2) (a second, the kernel's). One that waits
//! takes a buffer of its own and has the same two copies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::errno::errno;
use super::failure_log::{Entry, FailureLog};
use super::passthrough::Passthrough;
use crate::fs::{
    Access, Attributes, FileKind, FileSystem, FsError, Ino, Owner, PendingRead, Read, Seek,
};

/// How long the kernel may keep what it was told: for ever (136 years).
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The largest request. More than 1 MiB made sequential reads slower and costlier (fuse-notes).
const MOST_REQUEST_BYTES: u32 = 1024 * 1024;

/// The kernel's own readahead, where its default allows it: mmap faults ask for a whole window,
/// so a large one is poison for random access (fuse-notes). Ours does the rest.
const KERNEL_READAHEAD_BYTES: u32 = 128 * 1024;

/// Readahead requests that may wait for the network at once. The default of 16 is 2 MiB, less
/// than a 20 ms round trip at 1 Gbit/s holds; 64 lets several streams go on side by side.
const MOST_BACKGROUND: u16 = 64;

/// What lseek(2) looks for (Linux `include/uapi/linux/fs.h`); the kernel answers all else by itself.
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// What a kit never has: changed inodes under old numbers.
const GENERATION: Generation = Generation(0);

/// A file system as fuser wants it.
pub(super) struct Adapter {
    file_system: Arc<FileSystem>,
    failures: Arc<Failures>,
    passthrough: Arc<Passthrough>,
    runtime: Handle,
    buffers: Buffers,
    has_no_open: bool,
    has_no_opendir: bool,
}

impl Adapter {
    /// An adapter whose misses are fetched on `runtime`, served by `threads` threads; complete
    /// files are `passed_through` where that can be had.
    pub(super) fn new(
        file_system: FileSystem,
        runtime: Handle,
        threads: usize,
        passed_through: bool,
    ) -> Self {
        let file_system = Arc::new(file_system);
        let passthrough = Arc::new(Passthrough::new(file_system.clone(), passed_through));
        let (log, last) = (Mutex::default(), Mutex::default());
        let failures = Arc::new(Failures { file_system: file_system.clone(), log, last });
        Self {
            file_system,
            failures,
            passthrough,
            runtime,
            buffers: Buffers { idle: Mutex::new(Vec::with_capacity(threads)), most: threads },
            has_no_open: false,
            has_no_opendir: false,
        }
    }

    /// The failed reads, which outlive the session.
    pub(super) fn failures(&self) -> Arc<Failures> {
        self.failures.clone()
    }

    /// The open files, which outlive the session.
    pub(super) fn passthrough(&self) -> Arc<Passthrough> {
        self.passthrough.clone()
    }

    fn finish(&self, ino: Ino, read: PendingRead, reply: ReplyData) {
        let failures = self.failures.clone();
        self.runtime.spawn(async move {
            match read.finish().await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failures.errno(ino, &error)),
            }
        });
    }
}

/// Failed reads of a mount.
pub(super) struct Failures {
    file_system: Arc<FileSystem>,
    log: Mutex<FailureLog>,
    last: Mutex<Option<String>>,
}

impl Failures {
    pub(super) fn file_system(&self) -> &Arc<FileSystem> {
        &self.file_system
    }

    /// The path and the reason of the last failed read that was logged.
    pub(super) fn last(&self) -> Option<String> {
        self.last.lock().clone()
    }

    /// What the reader sees; the reason is logged, since an errno does not tell it.
    fn errno(&self, ino: Ino, error: &FsError) -> Errno {
        let entry = self.log.lock().note(Instant::now());
        if let Entry::Full { left_out } = entry {
            let kit = &self.file_system.kit().origin;
            if left_out > 0 {
                tracing::error!(%kit, left_out, "more reads failed than were logged");
            }
            let path = self.file_system.path(ino);
            tracing::error!(%kit, path, %error, "a read failed");
            *self.last.lock() = Some(format!("{path}: {error}"));
        }
        errno(error)
    }
}

impl Failures {
    /// What a program sees that opens or lists something. Content that could not be had is a failed
    /// read; everything else is an ordinary answer.
    fn refusal(&self, ino: Ino, error: &FsError) -> Errno {
        match error {
            FsError::Missing(_) => self.errno(ino, error),
            error => errno(error),
        }
    }
}

/// Reply buffers that wait for the next read: one for each thread, so none is ever allocated
/// twice.
struct Buffers {
    idle: Mutex<Vec<BytesMut>>,
    most: usize,
}

impl Buffers {
    fn take(&self) -> BytesMut {
        self.idle.lock().pop().unwrap_or_default()
    }

    fn put_back(&self, buffer: BytesMut) {
        let mut idle = self.idle.lock();
        if idle.len() < self.most && buffer.len() <= MOST_REQUEST_BYTES as usize {
            idle.push(buffer);
        }
    }
}

/// Operations that have one answer, whatever is asked.
macro_rules! refuse {
    ($errno:ident: $($operation:ident($($argument:ty),*) -> $reply:ty;)*) => {$(
        fn $operation(&self, _: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Errno::$errno);
        }
    )*};
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        let offered = config.capabilities();
        config.add_capabilities(wanted & offered).expect("only what is offered is asked for");
        self.has_no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.has_no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        config.set_max_write(MOST_REQUEST_BYTES).expect("1 MiB is within fuser's 16 MiB");
        config.set_max_background(MOST_BACKGROUND).expect("64 is not zero");
        // A kernel set to less keeps its own, which is what its administrator wants.
        let _ = config.set_max_readahead(KERNEL_READAHEAD_BYTES);
        self.passthrough.init(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.file_system.lookup(Ino(parent.0), name.as_bytes()) {
            Ok(attributes) => reply.entry(&FOR_EVER, &attr(&attributes), GENERATION),
            Err(FsError::NotFound) => reply.entry(&FOR_EVER, &NO_SUCH_ENTRY, GENERATION),
            Err(error) => reply.error(self.failures.refusal(Ino(parent.0), &error)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.file_system.attributes(Ino(ino.0)) {
            Ok(attributes) => reply.attr(&FOR_EVER, &attr(&attributes)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.file_system.link_target(Ino(ino.0)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let for_writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match self.file_system.open(Ino(ino.0), for_writing) {
            // Told once, the kernel opens every file by itself, those that cannot be had too.
            Ok(())
                if self.has_no_open
                    && self.passthrough.is_off()
                    && !self.file_system.has_missing() =>
            {
                reply.error(Errno::ENOSYS);
            }
            Ok(()) => self.passthrough.open(Ino(ino.0), reply),
            Err(error) => reply.error(self.failures.refusal(Ino(ino.0), &error)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.passthrough.release(Ino(ino.0), handle);
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = Ino(ino.0);
        self.passthrough.note_read();
        let mut buffer = self.buffers.take();
        match self.file_system.read(ino, offset, size, &mut buffer) {
            Ok(Read::Resident(bytes)) => reply.data(bytes),
            Ok(Read::Pending(read)) => self.finish(ino, read, reply),
            Err(error) => reply.error(self.failures.errno(ino, &error)),
        }
        self.buffers.put_back(buffer);
    }

    fn opendir(&self, _request: &Request, _: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.has_no_opendir {
            return reply.error(Errno::ENOSYS);
        }
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.file_system.entries(Ino(ino.0), offset) {
            Ok(entries) => entries,
            Err(error) => return reply.error(self.failures.refusal(Ino(ino.0), &error)),
        };
        for entry in entries {
            let name = OsStr::from_bytes(entry.name);
            let kind = file_type(entry.kind);
            if reply.add(INodeNo(entry.ino.0), entry.next_offset, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let entries = match self.file_system.entries(Ino(ino.0), offset) {
            Ok(entries) => entries,
            Err(error) => return reply.error(self.failures.refusal(Ino(ino.0), &error)),
        };
        for entry in entries {
            let attributes = match self.file_system.attributes(entry.ino) {
                Ok(attributes) => attr(&attributes),
                Err(error) => return reply.error(errno(&error)),
            };
            let (ino, name) = (INodeNo(entry.ino.0), OsStr::from_bytes(entry.name));
            if reply.add(ino, entry.next_offset, name, &FOR_EVER, &attributes, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let totals = self.file_system.totals();
        // Both sizes are the block's: some programs multiply by the one, some by the other.
        let block = Attributes::BLOCK_BYTES;
        let name_bytes = crate::fs::Totals::NAME_BYTES;
        reply.statfs(totals.blocks(), 0, 0, totals.inodes, 0, block, name_bytes, block);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.file_system.xattr(Ino(ino.0), name.as_bytes()) {
            Ok(value) => reply_xattr(value.as_bytes(), size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        // None is listed (fs/xattr.rs): a copy with all attributes would carry them away.
        match self.file_system.attributes(Ino(ino.0)) {
            Ok(_) => reply_xattr(b"", size, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // Without holes the kernel knows the answers by itself; it does not ask again.
        if !self.file_system.kit().tree.has_holes() {
            return reply.error(Errno::ENOSYS);
        }
        let wanted = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = u64::try_from(offset)
            .map_err(|_| FsError::NoSuchOffset)
            .and_then(|offset| self.file_system.seek(Ino(ino.0), offset, wanted));
        match found {
            // No file is larger than an offset can say.
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let caller = Owner { uid: request.uid(), gid: request.gid() };
        let wanted = Access {
            read: mask.contains(AccessFlags::R_OK),
            write: mask.contains(AccessFlags::W_OK),
            execute: mask.contains(AccessFlags::X_OK),
        };
        match self.file_system.access(Ino(ino.0), caller, wanted) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    // The mount is read-only, so the kernel refuses these itself; a remount by root does not
    // change what a kit is.
    refuse! { EROFS:
        setattr(INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>,
            Option<TimeOrNow>, Option<SystemTime>, Option<FileHandle>, Option<SystemTime>,
            Option<SystemTime>, Option<SystemTime>, Option<BsdFileFlags>) -> ReplyAttr;
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        unlink(INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>)
            -> ReplyWrite;
        fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty;
    }

    // What the kernel does well by itself; it does not ask again.
    refuse! { ENOSYS:
        flush(INodeNo, FileHandle, LockOwner) -> ReplyEmpty;
        fsync(INodeNo, FileHandle, bool) -> ReplyEmpty;
        fsyncdir(INodeNo, FileHandle, bool) -> ReplyEmpty;
        poll(INodeNo, FileHandle, PollNotifier, PollEvents, PollFlags) -> ReplyPoll;
    }

    refuse! { ENOTTY:
        ioctl(INodeNo, FileHandle, IoctlFlags, u32, &[u8], u32) -> ReplyIoctl;
    }
}

/// The answer to a lookup that finds nothing: inode 0 lets the kernel remember that, too.
const NO_SUCH_ENTRY: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

fn attr(attributes: &Attributes) -> FileAttr {
    let time = SystemTime::from(attributes.mtime);
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.blocks(),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attributes.kind),
        perm: (attributes.mode & 0o777) as u16,
        nlink: attributes.links,
        uid: attributes.owner.uid,
        gid: attributes.owner.gid,
        rdev: 0,
        blksize: Attributes::PREFERRED_READ_BYTES,
        flags: 0,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::File => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
    }
}

/// The protocol of getxattr(2): size 0 asks for the length.
fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match value.len() as u32 {
        length if size == 0 => reply.size(length),
        length if length > size => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}
