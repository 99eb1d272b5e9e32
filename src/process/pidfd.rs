//! A process that this one watches.
//!
//! A process number may be given to another process later. A pidfd (pidfd_open(2), Linux 5.3) names one
//! process for good, and can be sent to other processes.

#![allow(unsafe_code, reason = "the runtime's promise that nobody else closes the descriptor")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that names a process.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Names a process.
    ///
    /// # Errors
    /// `NotFound` when there is no such process, or the number is that of a thread. `Unsupported` before
    /// Linux 5.3.
    pub fn open(pid: Pid) -> io::Result<Self> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Self(descriptor)),
            // A thread: EINVAL, and ENOENT since Linux 6.15.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => Err(io::ErrorKind::NotFound.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Names this process.
    ///
    /// # Errors
    /// Before Linux 5.3, and when there is no free descriptor.
    pub fn of_this_process() -> io::Result<Self> {
        Self::open(rustix::process::getpid())
    }

    /// Takes a descriptor that another process has sent.
    ///
    /// # Errors
    /// When it is no pidfd.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        match pid_line(&descriptor)? {
            Some(_) => Ok(Self(descriptor)),
            None => Err(io::Error::other("the descriptor names no process")),
        }
    }

    /// The number of the process; `None` when it has ended, or lies in another pid namespace.
    pub fn pid(&self) -> Option<u32> {
        pid_line(&self.0).ok().flatten()?.parse().ok().filter(|&pid| pid != 0)
    }

    /// Whether the process has ended. A process that its parent has not collected yet (a zombie) has ended,
    /// too.
    pub fn has_ended(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.0, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut descriptors, Some(&at_once)), Ok(1..))
    }

    /// Waits until the process has ended. May be dropped and called again.
    ///
    /// # Errors
    /// When the runtime cannot watch the descriptor.
    pub async fn ended(&self) -> io::Result<()> {
        // A copy, because the runtime watches each descriptor once.
        let copy = self.0.try_clone()?;
        // SAFETY: the runtime's watcher owns the copy, and no other code knows its number.
        let watched = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE)? };
        watched.readable().await.map(drop)
    }

    /// A second descriptor for the same process.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> Self {
        pidfd.0
    }
}

/// The process number that the kernel tells of a pidfd (proc_pid_fdinfo(5)); `None` for another
/// descriptor.
fn pid_line(descriptor: &OwnedFd) -> io::Result<Option<String>> {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().find_map(|line| line.strip_prefix("Pid:")).map(|pid| pid.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_shows_before_its_parent_has_heard_of_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = Pidfd::open(Pid::from_child(&child)).unwrap();
        let sent = Pidfd::from_descriptor(pidfd.try_clone().unwrap().into()).unwrap();
        assert!(!pidfd.has_ended());
        assert_eq!(sent.pid(), Some(child.id()));
        child.kill().unwrap();
        sent.ended().await.unwrap();
        assert!(pidfd.has_ended() && sent.has_ended());
        child.wait().unwrap();
        sent.ended().await.unwrap();
        assert!(sent.pid().is_none());
        assert!(Pidfd::from_descriptor(sent.into()).is_ok(), "a process may end on the way");
    }

    #[test]
    fn other_descriptors_name_no_process() {
        let (reader, writer) = std::io::pipe().unwrap();
        for other in [File::open("/dev/null").unwrap().into(), reader.into(), writer.into()] {
            assert!(Pidfd::from_descriptor(other).is_err());
        }
    }

    #[test]
    fn a_thread_is_no_process() {
        let thread = std::thread::spawn(rustix::thread::gettid).join().unwrap();
        let error = Pidfd::open(thread).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
}
