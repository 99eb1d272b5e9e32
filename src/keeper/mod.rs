//! Keeps the descriptors of mounts while the process that serves them is replaced.
//!
//! The kernel ends a FUSE mount when its last device descriptor is closed. So a daemon is two processes: a
//! *keeper*, which holds the descriptors and does nothing else, and a *worker*, which serves the mounts.
//! When the worker dies, the keeper starts the next one and hands it the descriptors. Readers see a pause.
//!
//! ```text
//! command --starts--> keeper --starts, hands over--> worker 1 --dies
//!                       |  <--hold, release---------'
//!                       '--starts, hands over------> worker 2
//! ```
//!
//! - [`run`]: the keeper. It has no runtime, and knows neither kits nor FUSE.
//! - [`resume`]: the keeper of another version of kitfs. `state`: what it gets.
//! - [`Channel`]: the worker's end of the socket between both.
//! - `message`: the datagrams on that socket, pure.
//! - `budget`: how often a worker that dies at its start is started again.
//! - `connections`: ends the mounts that nobody will serve. `memory`: keeps the process small.
//!
//! A keeper that dies takes nothing with it: the worker has descriptors of its own, and starts another
//! keeper.

mod budget;
mod channel;
mod connections;
mod memory;
mod message;
mod process;
mod signals;
mod socket;
mod state;

pub use channel::{Channel, Order};
pub use process::{Programs, adopt, resume, run, silence_output};
pub use state::inherited;

use std::fs::File;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;

/// The version of everything that a daemon hands to the next version of kitfs: the keeper's state, the
/// datagrams, the records and open files of mounts, and the journal. A version of kitfs that knows another one
/// cannot take over.
pub const HAND_OVER: u32 = 1;

/// The descriptors of a mount. Their meaning is the worker's.
#[derive(Debug)]
pub struct Held {
    /// The number that the worker gave the mount.
    pub number: u64,
    /// The number of its FUSE connection (`/sys/fs/fuse/connections`), if the worker knows it.
    pub connection: Option<NonZeroU32>,
    /// The FUSE device.
    pub device: OwnedFd,
    /// A file with the settings of the mount.
    pub record: File,
    /// A file with the open files of the mount.
    pub opens: OwnedFd,
    /// The process whose end ends the mount (pidfd_open(2)), if there is one.
    pub owner: Option<OwnedFd>,
}
