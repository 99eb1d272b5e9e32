//! Signals: which end a daemon, and which it goes on after.
//!
//! | signal | in the background | in the foreground |
//! |---|---|---|
//! | SIGTERM | ends | ends |
//! | SIGINT | ends | ends, unless it was ignored at the start (`kitfs … &` in a script) |
//! | SIGHUP | opens the log anew, for logrotate(8) | ends, unless it was ignored at the start (nohup(1)) |
//! | SIGXFSZ | goes on: the write fails with EFBIG | goes on |

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::signals::{ignored, is_in};

/// `SIGXFSZ`: a file would exceed the limit of file sizes (`ulimit -f`, RLIMIT_FSIZE).
const SIGXFSZ: i32 = libc::SIGXFSZ;

/// The place where a daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On its own, without a terminal.
    Background,
    /// In the process that the user started.
    Foreground,
}

/// The request of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// To end, by this signal.
    End(&'static str),
    /// To open the log anew.
    ReopenLog,
}

/// The signals that a daemon listens to. Those that it should ignore stay ignored.
pub(super) struct Signals {
    place: Place,
    terminate: Signal,
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    pub(super) fn listen(place: Place) -> io::Result<Self> {
        let ignored = ignored();
        let heard = |kind: SignalKind| {
            let is_ignored = is_in(ignored, kind.as_raw_value());
            (!is_ignored || place == Place::Background).then(|| signal(kind)).transpose()
        };
        Ok(Self {
            place,
            terminate: signal(SignalKind::terminate())?,
            interrupt: heard(SignalKind::interrupt())?,
            hangup: heard(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End("SIGTERM"),
            () = received(&mut self.interrupt) => Told::End("SIGINT"),
            () = received(&mut self.hangup) => match self.place {
                Place::Background => Told::ReopenLog,
                Place::Foreground => Told::End("SIGHUP"),
            },
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Has writes beyond the limit of file sizes fail instead of ending this process. To be called on a
/// runtime; lasts as long as the process. Programs that it starts have the default action again.
pub(super) fn survive_file_size_limit() {
    // Listening replaces the default action, the end of the process, for good.
    if let Err(error) = signal(SignalKind::from_raw(SIGXFSZ)) {
        tracing::warn!(%error, "a file that exceeds `ulimit -f` will end this process");
    }
}
