//! Signals that come to this process.
//!
//! A terminal sends the signals of its keys (Ctrl-C, Ctrl-\) and of its end to every process of the
//! foreground group. `kill` sends a signal to one process. A process that passes signals on to a program
//! in its own group must tell the two apart, or the program gets the first kind twice. The kernel tells
//! the sender (sigaction(2), `si_code`).

#![allow(
    unsafe_code,
    reason = "a signal handler that sees the sender, which no safe interface gives"
)]

use std::io;
use std::os::unix::net::UnixStream as Socket;

use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// `SI_KERNEL`: the kernel has sent the signal, for a terminal.
const SI_KERNEL: i32 = 0x80;
/// The bit that marks a signal of the kernel on its way from the handler. Signals have numbers below 65.
const BY_KERNEL: u8 = 0x80;

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The signal.
    pub signal: Signal,
    /// Whether the terminal has sent it, to the whole foreground group.
    pub is_of_terminal: bool,
}

/// Signals that do not end this process any more. Each one is reported.
#[derive(Debug)]
pub struct Signals {
    heard: UnixStream,
}

impl Signals {
    /// Listens to signals, for as long as this process lives. Those that it should ignore (nohup(1)) stay
    /// ignored. To be called on a runtime.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub fn listen(signals: &[Signal]) -> io::Result<Self> {
        let (heard, said) = Socket::pair()?;
        heard.set_nonblocking(true)?;
        said.set_nonblocking(true)?;
        let ignored = ignored();
        for &signal in signals.iter().filter(|signal| !is_in(ignored, signal.as_raw())) {
            let said = said.try_clone()?;
            let number = signal.as_raw();
            let code = u8::try_from(number).map_err(io::Error::other)?;
            // SAFETY: the handler makes one system call, which is async-signal-safe (signal-safety(7)), on a
            // descriptor that it owns. A full socket drops the signal.
            unsafe {
                signal_hook_registry::register_sigaction(number, move |sent| {
                    let mark = if sent.si_code == SI_KERNEL { BY_KERNEL } else { 0 };
                    let _ = rustix::io::write(&said, &[code | mark]);
                })?;
            }
        }
        // Without a signal to listen to, the socket would be at its end.
        std::mem::forget(said);
        Ok(Self { heard: UnixStream::from_std(heard)? })
    }

    /// Waits for the next signal. May be dropped and called again.
    pub async fn next(&mut self) -> Received {
        loop {
            let Ok(byte) = self.heard.read_u8().await else {
                return std::future::pending().await;
            };
            if let Some(signal) = Signal::from_named_raw(i32::from(byte & !BY_KERNEL)) {
                return Received { signal, is_of_terminal: byte & BY_KERNEL != 0 };
            }
        }
    }
}

/// The signals that this process ignores, as /proc/self/status tells: bit N is signal N + 1.
pub fn ignored() -> u64 {
    ignored_in(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// Whether the signal with this number is in a set of [`ignored`] signals.
pub fn is_in(set: u64, signal: i32) -> bool {
    set >> (signal - 1) & 1 == 1
}

fn ignored_in(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rustix::process::{getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn a_signal_of_a_process_is_not_one_of_the_terminal() {
        let mut signals = Signals::listen(&[Signal::USR1, Signal::USR2]).unwrap();
        for signal in [Signal::USR2, Signal::USR1] {
            kill_process(getpid(), signal).unwrap();
            assert_eq!(signals.next().await, Received { signal, is_of_terminal: false });
        }
    }

    #[test]
    fn ignored_signals_are_read_from_the_process_status() {
        let status = "Name:\tkitfs\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        let set = ignored_in(status);
        let is_in = |signal: Signal| is_in(set, signal.as_raw());
        assert!(is_in(Signal::HUP) && is_in(Signal::PIPE) && !is_in(Signal::INT));
        for nothing in ["", "SigIgn:", "SigIgn:\txyz", "Name:\tSigIgn"] {
            assert_eq!(ignored_in(nothing), 0, "{nothing}");
        }
    }
}
