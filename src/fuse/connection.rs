//! A connection to the kernel: an open FUSE device, and the answers to its requests.
#![allow(unsafe_code, reason = "the ioctls for backing files, which rustix does not have")]

use std::ffi::c_void;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, opcode};

use super::wire::reply;
use crate::fs::Ino;

/// The number of the FUSE device's ioctls (`FUSE_DEV_IOC_MAGIC`).
const IOCTL_GROUP: u8 = 229;
/// `FUSE_DEV_IOC_BACKING_OPEN` (Linux 6.9).
const BACKING_OPEN: Opcode = opcode::write::<BackingMap>(IOCTL_GROUP, 1);
/// `FUSE_DEV_IOC_BACKING_CLOSE` (Linux 6.9).
const BACKING_CLOSE: Opcode = opcode::write::<u32>(IOCTL_GROUP, 2);

/// An open FUSE device that belongs to a mount. The kernel ends the connection when it is dropped.
#[derive(Debug)]
pub(super) struct Connection(OwnedFd);

impl Connection {
    /// A connection over the device of a mount. Its reads never block.
    pub(super) fn new(device: OwnedFd) -> rustix::io::Result<Arc<Self>> {
        let flags = rustix::fs::fcntl_getfl(&device)?;
        rustix::fs::fcntl_setfl(&device, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Arc::new(Self(device)))
    }

    /// Reads the next request and returns its bytes.
    ///
    /// # Errors
    /// `AGAIN` when there is no request, `NODEV` when the connection has ended, `NOENT` and `INTR` when
    /// the caller should try again.
    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> rustix::io::Result<&'a [u8]> {
        let length = rustix::io::read(&self.0, &mut *buffer)?;
        Ok(&buffer[..length])
    }

    /// Makes the reply to a request.
    pub(super) fn reply_to(self: &Arc<Self>, unique: u64) -> Reply {
        Reply { connection: self.clone(), unique, is_sent: false }
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) {
        let header = reply::header(unique, error, body.len());
        let both = [IoSlice::new(&header), IoSlice::new(body)];
        let buffers = if body.is_empty() { &both[..1] } else { &both[..] };
        match rustix::io::writev(&self.0, buffers) {
            Ok(_) => {}
            // The calling program was killed, or the connection ended: no program waits.
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::warn!(%error, "the kernel did not take a reply"),
        }
    }

    /// Has the kernel drop the pages that it has of a range of an inode, and unmap them. Waits for reads of
    /// these pages that are under way; no signal ends that wait.
    ///
    /// # Errors
    /// `NOENT` when the kernel does not know the inode, `NODEV` when the connection has ended.
    pub(super) fn drop_pages(&self, ino: Ino, range: Range<u64>) -> rustix::io::Result<()> {
        let notification = reply::drop_pages(ino, range.start, range.end - range.start);
        rustix::io::write(&self.0, &notification).map(drop)
    }

    /// A file that another process has registered.
    pub(super) fn known_backing(self: &Arc<Self>, id: u32) -> BackingId {
        BackingId { connection: Arc::downgrade(self), id }
    }

    /// Registers a file that the kernel may read itself, and returns the kernel's number for it.
    ///
    /// # Errors
    /// `PERM` without CAP_SYS_ADMIN, and other errors of the kernel.
    pub(super) fn open_backing(self: &Arc<Self>, file: impl AsFd) -> rustix::io::Result<BackingId> {
        let map = BackingMap { file: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the device takes a `struct fuse_backing_map`, which `BackingMap` is, and only reads it.
        let id = unsafe { rustix::ioctl::ioctl(&self.0, OpenBacking(map)) }?;
        Ok(BackingId { connection: Arc::downgrade(self), id })
    }
}

/// Has the kernel send again what a process that is gone has read from its device and not answered. Until
/// then no signal ends a program that waits for such an answer.
///
/// # Errors
/// `INVAL` before Linux 6.9.
pub fn resend(device: impl AsFd) -> std::io::Result<()> {
    Ok(rustix::io::write(device, &reply::resend()).map(drop)?)
}

/// Whether the kernel has ended the connection of a device: its mount is out of the tree and out of use.
pub fn has_ended(device: impl AsFd) -> bool {
    // The kernel tells an error without being asked for it.
    events(device, PollFlags::empty()).contains(PollFlags::ERR)
}

/// Whether the kernel has requests for a device, so that programs wait for an answer.
pub fn has_requests(device: impl AsFd) -> bool {
    events(device, PollFlags::IN).contains(PollFlags::IN)
}

fn events(device: impl AsFd, wanted: PollFlags) -> PollFlags {
    let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut descriptors = [PollFd::new(&device, wanted)];
    match poll(&mut descriptors, Some(&at_once)) {
        Ok(_) => descriptors[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A request's reply. Dropping it answers EIO, so no program waits for ever.
pub(super) struct Reply {
    connection: Arc<Connection>,
    unique: u64,
    is_sent: bool,
}

impl Reply {
    /// Answers with bytes: a struct, or bytes of a file.
    pub(super) fn data(&mut self, body: &[u8]) {
        self.send(0, body);
    }

    /// Answers without bytes.
    pub(super) fn ok(&mut self) {
        self.send(0, &[]);
    }

    /// Answers with an error.
    pub(super) fn error(&mut self, errno: Errno) {
        self.send(errno.raw_os_error(), &[]);
    }

    /// Sends nothing. For requests without a reply.
    pub(super) fn none(&mut self) {
        self.is_sent = true;
    }

    /// Takes the reply out, for an answer in another task.
    pub(super) fn take(&mut self) -> Self {
        let is_sent = std::mem::replace(&mut self.is_sent, true);
        Self { connection: self.connection.clone(), unique: self.unique, is_sent }
    }

    /// The connection of the reply.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn send(&mut self, error: i32, body: &[u8]) {
        self.is_sent = true;
        self.connection.send(self.unique, error, body);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_sent {
            self.send(Errno::IO.raw_os_error(), &[]);
        }
    }
}

/// A file that the kernel knows by a number. Dropping it frees the number.
#[derive(Debug)]
pub(super) struct BackingId {
    connection: Weak<Connection>,
    id: u32,
}

impl BackingId {
    /// The number for answers to opens.
    pub(super) fn raw(&self) -> u32 {
        self.id
    }
}

impl Drop for BackingId {
    fn drop(&mut self) {
        // The numbers end with the connection.
        let Some(connection) = self.connection.upgrade() else { return };
        // SAFETY: the device takes a number, and only reads it.
        let close = unsafe { Setter::<BACKING_CLOSE, u32>::new(self.id) };
        // SAFETY: as above.
        if let Err(error) = unsafe { rustix::ioctl::ioctl(&connection.0, close) } {
            tracing::warn!(%error, "the kernel did not give a backing file back");
        }
    }
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    file: i32,
    flags: u32,
    padding: u64,
}

/// `FUSE_DEV_IOC_BACKING_OPEN`: its result is the number.
struct OpenBacking(BackingMap);

// SAFETY: the opcode is one of the FUSE device's, takes a pointer to the struct that `as_ptr` gives,
// and returns a number.
unsafe impl Ioctl for OpenBacking {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        Ok(output as u32)
    }
}
