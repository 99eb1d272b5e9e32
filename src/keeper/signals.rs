//! The signals that a keeper passes on to its worker.

#![allow(
    unsafe_code,
    reason = "signalfd(2), sigprocmask(2) and signal(2), which rustix does not have, and a mask for a child"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Signal;

/// The signals that are passed on: the ones that end a daemon, and the one that reopens its log.
const PASSED_ON: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Blocks the signals that are passed on, and returns a descriptor that gives them out. Blocks `SIGXFSZ`,
/// too: a log at the limit of file sizes must not end the keeper.
pub(super) fn listen() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, and the other calls read or change it.
    let descriptor = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in PASSED_ON {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        let mut blocked = set;
        libc::sigaddset(blocked.as_mut_ptr(), libc::SIGXFSZ);
        if libc::sigprocmask(libc::SIG_BLOCK, blocked.as_ptr(), std::ptr::null_mut()) == -1 {
            return Err(io::Error::last_os_error());
        }
        libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if descriptor == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Has a program started with the signals that this process blocks.
pub(super) fn unblock_in(command: &mut Command) {
    let unblock = || {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set, and `sigprocmask` reads it.
        let result = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
        };
        if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec these are two system calls, without memory or locks.
    unsafe { command.pre_exec(unblock) };
}

/// Has a write to a closed pipe fail, and not end this process. Rust's start does so; an exec(2) through
/// [`Command`] takes it back before it fails.
pub(super) fn ignore_broken_pipes() {
    // SAFETY: no handler is installed, so nothing runs on a signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Takes the next signal; `None` when there is none.
pub(super) fn next(signals: &OwnedFd) -> Option<Signal> {
    let mut bytes = [0; size_of::<libc::signalfd_siginfo>()];
    let length = rustix::io::read(signals, &mut bytes[..]).ok()?;
    // `ssi_signo` comes first (signalfd(2)).
    let number = u32::from_ne_bytes(bytes[..length].first_chunk().copied()?);
    match number.cast_signed() {
        libc::SIGTERM => Some(Signal::TERM),
        libc::SIGINT => Some(Signal::INT),
        libc::SIGHUP => Some(Signal::HUP),
        _ => None,
    }
}
