//! Admission: which transfer and which request runs next, by host, priority and user. No other room decides this.
//!
//! ```text
//! a transfer (fetch): its memory and its thread     a request (registry, S3): a slot of its host
//!   transfer --> transfers --> Reservation            request --> gate of the host --> Slot
//!                      |                                                  |
//!                      '--------- order, rooms, allowance ----------------'
//! ```
//!
//! There are two queues, because a transfer and its requests are known at different times. The memory of a transfer
//! is known when it is planned. The host of a request is known after mirrors and redirects. A manifest is a request
//! without a transfer. Both queues have the same rules:
//!
//! - `order`: the priority, and fair shares for users.
//! - `rooms`: the part of a host's limit that each priority may use.
//! - `allowance`: the limit of a host, learnt from 429, 503 and `Retry-After`.
//! - `rate`: the bytes and requests in a second that a user allows for a host.
//!
//! `transfers` and `gate` are the two queues. They and the rules are pure: time is an argument.
//! `hosts`, `reservations` and `readers` have the locks and the wake-ups.

mod allowance;
mod gate;
#[cfg(test)]
mod gate_tests;
mod hosts;
mod order;
#[cfg(test)]
mod order_tests;
mod rate;
mod readers;
mod reservations;
mod rooms;
mod transfers;
#[cfg(test)]
mod transfers_tests;
mod user;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

pub use hosts::HostUsage;
pub use rate::Rate;
pub use user::UserId;

pub(crate) use hosts::Slot;
pub(crate) use reservations::Reservation;
pub(crate) use transfers::{MOST_OF_A_LAYER, Whose};

use hosts::Hosts;
use readers::Readers;
use transfers::Transfers;

/// The default limit of running requests for each host.
///
/// 16: with ranges of a few MiB over http/1.1, they fill a fast network, and most registries answer 429 to more
/// only. A host gets fewer at first, and after refusals.
pub const DEFAULT_REQUESTS_PER_HOST: usize = 16;

/// The wait in vain after which a request is lent a slot.
///
/// 5 s: a connection of 30 MB/s brings 16 streams of 8 MiB in this time. So on networks that suit models, slots
/// return sooner, and no slot is lent.
const PATIENCE: Duration = Duration::from_secs(5);

/// The bounds of an [`Admission`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// The limit of running requests for each host; 0 counts as 1. A host gets fewer at first, and after refusals.
    /// It gets one more for each `patience` in which a request waits in vain.
    pub requests_per_host: usize,
    /// The wait in vain after which a request is lent a slot.
    pub patience: Duration,
    /// Memory for transfers, in bytes.
    pub transfer_memory_bytes: u64,
}

impl Default for AdmissionConfig {
    /// 16 requests, 5 s, and 384 MiB: three quarters of the default of `--memory`.
    fn default() -> Self {
        Self {
            requests_per_host: DEFAULT_REQUESTS_PER_HOST,
            patience: PATIENCE,
            transfer_memory_bytes: 384 * 1024 * 1024,
        }
    }
}

/// The queues of one process: for transfers, and for the requests to each host.
pub struct Admission {
    hosts: Hosts,
    transfers: Mutex<Transfers<oneshot::Sender<()>>>,
    readers: Readers,
}

impl Admission {
    /// Nothing runs and nothing waits.
    pub fn new(config: AdmissionConfig) -> Arc<Self> {
        Arc::new(Self {
            hosts: Hosts::new(config.requests_per_host, config.patience),
            transfers: Mutex::new(Transfers::new(config.transfer_memory_bytes)),
            readers: Readers::new(),
        })
    }
}

/// The time by the clock of the runtime's timers.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
