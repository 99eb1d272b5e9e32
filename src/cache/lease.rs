//! Whether another process, or the kernel itself, has a file open or mapped.
//!
//! Only leases tell (fcntl(2), `F_SETLEASE`). The kernel grants a write lease on a file only if the file has no
//! other open descriptor. A map counts as one, even after its process has closed the file. So does a file that FUSE
//! passthrough reads for a mount whose daemon is dead. The lease is given back at once.
//!
//! A process that opens the file in that moment waits until then, and the kernel sends this process a signal:
//! SIGURG, which does nothing by default. The default signal, SIGIO, would end the process.
//!
//! On a file system that lies on others (overlayfs) a map holds the file below and not the one
//! that was opened, so a lease tells nothing there: see [`is_stacked`].
#![allow(unsafe_code, reason = "fcntl with F_SETLEASE, which rustix does not have")]

use std::io::{Error, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::FsWord;

/// `f_type` of file systems that lie on others (include/uapi/linux/magic.h): overlayfs, eCryptfs.
const STACKED_FILE_SYSTEMS: [FsWord; 2] = [0x794c_7630, 0xf15f];

/// The command that names the signal to be sent (asm-generic/fcntl.h); `libc` has it not.
const F_SETSIG: libc::c_int = 10;

/// Whether `file` is open or mapped elsewhere. Another thread that uses another descriptor of it at
/// this moment counts, too.
///
/// # Errors
/// Where the file system has no leases, or the file is not this user's.
pub(super) fn is_open_elsewhere(file: &impl AsFd) -> std::io::Result<bool> {
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    let granted = fcntl(file, libc::F_SETLEASE, libc::F_WRLCK);
    // Without a lease there is none to give back, and that is no error worth telling.
    let _ = fcntl(file, libc::F_SETLEASE, libc::F_UNLCK);
    match granted {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether files of `folder` may be mapped without being held open. Unknown counts as yes.
pub(super) fn is_stacked(folder: &impl AsFd) -> bool {
    let found = rustix::fs::fstatfs(folder);
    found.map_or(true, |found| STACKED_FILE_SYSTEMS.contains(&found.f_type))
}

fn fcntl(file: &impl AsFd, command: libc::c_int, argument: libc::c_int) -> std::io::Result<()> {
    // SAFETY: the descriptor is open while `file` is borrowed, and these commands take a number.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) };
    if result == -1 { Err(Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags};

    use std::fs::File;

    use super::*;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn descriptors_and_maps_of_others_are_seen_until_they_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("member");
        std::fs::write(&path, [7; 10_000]).unwrap();
        let ours = open(&path);
        assert!(!is_open_elsewhere(&ours).unwrap());
        let theirs = File::open(&path).unwrap();
        assert!(is_open_elsewhere(&ours).unwrap());
        // SAFETY: a fresh map of a file that nobody writes, not used after it is unmapped.
        let map = unsafe {
            let none = std::ptr::null_mut();
            rustix::mm::mmap(none, 10_000, ProtFlags::READ, MapFlags::SHARED, &theirs, 0).unwrap()
        };
        drop(theirs);
        assert!(is_open_elsewhere(&ours).unwrap(), "the map is left");
        // SAFETY: nothing reads there any more.
        unsafe { rustix::mm::munmap(map, 10_000) }.unwrap();
        assert!(!is_open_elsewhere(&ours).unwrap());
    }

    #[test]
    fn a_process_that_opens_the_file_meanwhile_gets_it_and_none_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("member");
        std::fs::write(&path, b"bytes").unwrap();
        let ours = open(&path);
        std::thread::scope(|scope| {
            let opens = scope.spawn(|| (0..2_000).for_each(|_| drop(File::open(&path).unwrap())));
            while !opens.is_finished() {
                is_open_elsewhere(&ours).unwrap();
            }
        });
        assert!(!is_open_elsewhere(&ours).unwrap());
    }

    #[test]
    fn an_ordinary_file_system_is_not_stacked() {
        assert!(!is_stacked(&File::open("/proc").unwrap()));
    }
}
