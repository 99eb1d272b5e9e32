//! The watchdog of a supervisor, such as systemd (`WatchdogSec=`): the supervisor restarts a daemon that hangs.
//!
//! The daemon pings while both of its duties work:
//!
//! - A command gets an answer over the socket, and the table of mounts can be locked.
//! - A thread is free for the kernel's requests. A thread never waits for the network, so a thread that is busy with
//!   one request from one look to the next hangs.
//!
//! A registry that is away, a full disk and a lost cache folder are no hang: a restart would not help.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use super::service::Service;
use crate::control::socket::SocketPath;
use crate::control::{Client, Liveness};
use crate::fuse::Look;

/// Looks within the supervisor's limit. A look may take as long as the pause before it, so that the ping comes in time.
const LOOKS: u32 = 3;

/// A supervisor that waits for signs of life.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    /// The time without a ping after which the supervisor ends the daemon.
    pub limit: Duration,
    /// Sends a ping.
    pub ping: fn(),
}

impl Watchdog {
    /// The pause between two pings.
    pub fn pause(&self) -> Duration {
        self.limit / LOOKS
    }
}

/// Pings as long as the daemon works. Never done.
pub(super) async fn ping(
    watchdog: Option<Watchdog>,
    service: &Service,
    folder: &Path,
) -> Infallible {
    let Some(watchdog) = watchdog else { return std::future::pending().await };
    let mut before = None;
    loop {
        tokio::time::sleep(watchdog.pause()).await;
        match hang(service, folder, &mut before).await {
            None => (watchdog.ping)(),
            Some(hang) => {
                let limit = watchdog.limit;
                tracing::error!(?limit, "{hang}: the supervisor will restart this daemon");
            }
        }
    }
}

/// Says what hangs, if something does. `before` is the look before this one.
async fn hang(service: &Service, folder: &Path, before: &mut Option<Look>) -> Option<&'static str> {
    let now = service.look_at_threads();
    let was = std::mem::replace(before, now.clone());
    if let (Some(was), Some(now)) = (was, now)
        && now.is_stuck_since(&was)
    {
        return Some("no thread is left that answers the kernel");
    }
    // Never comes back when a task holds the table for ever. Then no ping is sent either.
    service.has_no_mounts();
    // Without its folder, the daemon still serves what is mounted.
    if !service.is_reachable() {
        return None;
    }
    let Ok(socket) = SocketPath::new(folder) else { return None };
    match Client::new(socket).liveness().await {
        Liveness::Silent => Some("commands get no answer"),
        // A socket at its limit of connections, or a daemon that is about to end.
        Liveness::Answers | Liveness::Ends | Liveness::Foreign(_) => None,
    }
}
