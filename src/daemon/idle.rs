//! The end of a daemon without mounts and commands.
//!
//! ```text
//! no mount, no command --limit--> the cache is synced --> no command is admitted --> the daemon ends
//!          ^                                |
//!          '---------a command came---------'
//! ```
//!
//! The sync may take seconds, and commands are answered meanwhile. The steps after it take milliseconds. A
//! command that finds the daemon closed waits for its end, and starts another one.

use std::sync::Arc;
use std::time::Duration;

use super::service::Service;
use crate::control::Activity;
use crate::process::running_time::Stopwatch;

/// The longest interval between two looks whether the daemon is idle. A stopwatch needs a look every second.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The part of the limit between two looks, so that a short limit is kept too.
const LOOKS: u32 = 8;

/// Ends a daemon that has neither mounts nor commands for `limit`. Never done.
pub(super) async fn end_when_idle(
    service: &Service,
    activity: &Arc<Activity>,
    limit: Option<Duration>,
) -> std::convert::Infallible {
    let Some(limit) = limit else { return std::future::pending().await };
    let interval = LOOK_INTERVAL.min(limit / LOOKS);
    let mut idle = None;
    loop {
        tokio::time::sleep(interval).await;
        let quiet = activity.quiet().filter(|_| !service.is_in_use());
        let Some(quiet) = quiet else {
            idle = None;
            continue;
        };
        let (_, watch) = match &mut idle {
            Some((since, watch)) if *since == quiet => (since, watch),
            _ => {
                let (since, watch) = idle.insert((quiet, Stopwatch::start()));
                (since, watch)
            }
        };
        if watch.look() < limit {
            continue;
        }
        service.settle().await;
        // Only a command makes a mount.
        if activity.close(quiet) {
            tracing::info!(?limit, "nothing was mounted and no command came");
            service.drain();
            service.request_stop();
            return std::future::pending().await;
        }
    }
}
