//! Mounts and unmounts: with mount(2) where it is allowed, else through fusermount3, the setuid program
//! of Debian's package fuse3.
//!
//! ```text
//! open /dev/fuse, mount(2) --EPERM--> fusermount3 --the device, over a socket--> here
//! ```

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::MountError;
use crate::overlay::SUBTYPE;
use crate::process::limits::ChildLimits;
use crate::process::running_time::Stopwatch;

/// The kernel's device for file systems in user space.
pub(super) const DEVICE: &str = "/dev/fuse";

/// The number of the device (the kernel's devices.txt: 10 229, /dev/fuse).
const MISC_MAJOR: u32 = 10;
const FUSE_MINOR: u32 = 229;

/// The program that mounts for ordinary users.
pub(super) const FUSERMOUNT: &str = "fusermount3";

/// How long fusermount3 may take. It needs a few system calls, but much longer on a machine under heavy
/// load.
const FUSERMOUNT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to retry while a mount is busy: longer than `df` or `kitfs status` use a mount.
const BUSY_PATIENCE: Duration = Duration::from_millis(300);
/// How long to wait between two tries.
const BUSY_INTERVAL: Duration = Duration::from_millis(10);

/// How long to wait between two looks at a running fusermount3.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The parameters of a mount.
pub(super) struct MountRequest<'a> {
    /// The canonical mountpoint.
    pub(super) mountpoint: &'a Path,
    /// The first column of `mount` and `df`: the reference.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) allow_other: bool,
    pub(super) noexec: bool,
    /// The limits for fusermount3.
    pub(super) child_limits: ChildLimits,
}

/// The program that answers a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// kitfs. The mount is read-only.
    Kit,
    /// fuse-overlayfs.
    Overlay,
}

impl Kind {
    fn subtype(self) -> &'static str {
        match self {
            Self::Kit => "kitfs",
            Self::Overlay => SUBTYPE,
        }
    }
}

/// Mounts, and returns the device with the kernel's requests.
pub(super) fn mount(request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    match mount_directly(request, &device) {
        Ok(()) => Ok(device.into()),
        Err(Errno::PERM) => mount_through_fusermount(request),
        Err(error) => Err(MountError::Io(format!(
            "cannot mount on {}: {}",
            request.mountpoint.display(),
            std::io::Error::from(error)
        ))),
    }
}

/// Opens the FUSE device.
pub(super) fn open_device() -> Result<File, MountError> {
    OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|error| {
        MountError::Unavailable(match error.kind() {
            ErrorKind::NotFound => format!(
                "there is no {DEVICE}: load the kernel's module (`modprobe fuse`), or pass \
                 `--device {DEVICE} --cap-add SYS_ADMIN` to the container"
            ),
            ErrorKind::PermissionDenied => format!(
                "{DEVICE} may not be opened ({error}): in a container pass `--device {DEVICE} \
                 --cap-add SYS_ADMIN`, else ask for mode 0666 of it, the default of Linux systems"
            ),
            _ => format!("cannot open {DEVICE}: {error}"),
        })
    })
}

/// Checks that a descriptor from another process is of the FUSE device.
pub(super) fn check(device: &OwnedFd) -> std::io::Result<()> {
    let stat = rustix::fs::fstat(device)?;
    let is_character = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device();
    if is_character && stat.st_rdev == rustix::fs::makedev(MISC_MAJOR, FUSE_MINOR) {
        return Ok(());
    }
    Err(std::io::Error::other("the descriptor is of no FUSE device"))
}

fn mount_directly(request: &MountRequest<'_>, device: &File) -> rustix::io::Result<()> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if request.kind == Kind::Kit {
        flags |= MountFlags::RDONLY;
    }
    if request.noexec {
        flags |= MountFlags::NOEXEC;
    }
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,subtype={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        request.kind.subtype(),
    );
    if request.allow_other {
        options += ",allow_other";
    }
    let options = CString::new(options).expect("it is made of words and numbers");
    rustix::mount::mount(&*request.name, request.mountpoint, "fuse", flags, &*options)
}

fn mount_through_fusermount(request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    let failed = |detail: String| {
        MountError::Unavailable(format!(
            "{FUSERMOUNT} cannot mount on {}: {}",
            request.mountpoint.display(),
            explained(detail.trim())
        ))
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
    ours.set_read_timeout(Some(FUSERMOUNT_TIMEOUT)).map_err(|error| failed(error.to_string()))?;
    let mut command = fusermount(request.child_limits);
    command.arg("-o").arg(fusermount_options(request)).arg("--").arg(request.mountpoint);
    // The socket is the standard input of fusermount3, so no other descriptor must survive exec.
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    let mut child = command.spawn().map_err(|error| missing(&error))?;
    // The command still has the other end of the socket. While it is open, a fusermount3 that sends
    // nothing would keep this function waiting until the timeout.
    drop(command);
    let device = receive_device(&ours);
    let words = finish(&mut child);
    match device {
        Some(device) => Ok(device),
        None => Err(failed(words)),
    }
}

/// A fusermount3 whose standard error this process reads.
fn fusermount(limits: ChildLimits) -> Command {
    let mut command = Command::new(FUSERMOUNT);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    limits.give_back(&mut command);
    command
}

fn fusermount_options(request: &MountRequest<'_>) -> String {
    let mut options =
        format!("nosuid,nodev,default_permissions,subtype={}", request.kind.subtype());
    if request.kind == Kind::Kit {
        options += ",ro";
    }
    if request.noexec {
        options += ",noexec";
    }
    if request.allow_other {
        options += ",allow_other";
    }
    options + ",fsname=" + &request.name.replace('\\', "\\\\").replace(',', "\\,")
}

/// The message of fusermount3, with advice for the user.
fn explained(words: &str) -> String {
    let advice = if words.contains("user_allow_other") {
        ": --allow-other needs the line `user_allow_other` in /etc/fuse.conf, which root can add"
    } else if words.contains("no write access") {
        ": the mountpoint must belong to you"
    } else if words.contains("could not determine username") {
        ": your user number has no line in /etc/passwd, which fusermount3 needs; add one, or mount as root"
    } else if words.contains("/etc/mtab") {
        ": it needs that file; as root, make it with `ln -s /proc/self/mounts /etc/mtab`"
    } else if words.contains("too many FUSE filesystems") {
        ": root can raise mount_max in /etc/fuse.conf"
    } else if words.contains("Operation not permitted") {
        ": in a container pass `--device /dev/fuse --cap-add SYS_ADMIN`; otherwise run as root"
    } else {
        ""
    };
    let words = words.lines().next().unwrap_or("it ended without a word");
    format!("{}{advice}", words.trim_start_matches("fusermount3: "))
}

/// The error when fusermount3 cannot run.
pub(super) fn missing(error: &std::io::Error) -> MountError {
    MountError::Unavailable(match error.kind() {
        ErrorKind::NotFound => format!(
            "{FUSERMOUNT} is not installed, and only root mounts without it: `apt install fuse3`"
        ),
        _ => format!("cannot run {FUSERMOUNT}: {error}"),
    })
}

/// Receives the device from fusermount3 (its mount protocol: one byte with one descriptor).
fn receive_device(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(&mut byte)];
    loop {
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// Removes a mount from the tree, with `lazy` also while programs use it. Retries a busy mount for a
/// moment, because `df` and `kitfs status` use each mount for a moment.
///
/// # Errors
/// When the mount is busy, when there is none, and other errors of the kernel.
pub(super) fn unmount_patiently(
    mountpoint: &Path,
    lazy: bool,
    child_limits: ChildLimits,
) -> Result<(), UnmountFailure> {
    let mut watch = Stopwatch::start();
    loop {
        match unmount(mountpoint, lazy, child_limits) {
            Err(UnmountFailure::Busy) if watch.look() < BUSY_PATIENCE => {
                std::thread::sleep(BUSY_INTERVAL);
            }
            result => return result,
        }
    }
}

fn unmount(mountpoint: &Path, lazy: bool, child_limits: ChildLimits) -> Result<(), UnmountFailure> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_through_fusermount(mountpoint, lazy, child_limits),
        Err(Errno::BUSY) => Err(UnmountFailure::Busy),
        Err(Errno::INVAL | Errno::NOENT) => Err(UnmountFailure::NotMounted),
        Err(error) => Err(UnmountFailure::Other(std::io::Error::from(error).to_string())),
    }
}

/// Why a mount stays in the tree.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum UnmountFailure {
    Busy,
    NotMounted,
    Other(String),
}

fn unmount_through_fusermount(
    mountpoint: &Path,
    lazy: bool,
    child_limits: ChildLimits,
) -> Result<(), UnmountFailure> {
    let flags: &[&str] = if lazy { &["-u", "-z"] } else { &["-u"] };
    let child = fusermount(child_limits).args(flags).arg("--").arg(mountpoint).spawn();
    let mut child = child.map_err(|error| UnmountFailure::Other(missing(&error).to_string()))?;
    let words = finish(&mut child);
    match child.try_wait() {
        Ok(Some(status)) if status.success() => Ok(()),
        _ if words.contains("busy") => Err(UnmountFailure::Busy),
        _ if words.contains("not found in") || words.contains("not mounted") => {
            Err(UnmountFailure::NotMounted)
        }
        _ => Err(UnmountFailure::Other(explained(words.trim()))),
    }
}

/// Waits for a child for a limited time, and returns its standard error.
fn finish(child: &mut Child) -> String {
    use std::io::Read as _;
    let mut watch = Stopwatch::start();
    loop {
        match child.try_wait() {
            Ok(None) if watch.look() < FUSERMOUNT_TIMEOUT => std::thread::sleep(POLL_INTERVAL),
            Ok(None) => {
                // The kill of a child of this process cannot fail. The kernel ends it some time.
                let _ = child.kill();
                return format!("no answer within {} s", FUSERMOUNT_TIMEOUT.as_secs());
            }
            Ok(Some(_)) => break,
            Err(error) => return error.to_string(),
        }
    }
    // The child has ended and wrote a line or two, so this neither blocks nor grows.
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(4096).read_to_end(&mut words);
    }
    String::from_utf8_lossy(&words).into_owned()
}
