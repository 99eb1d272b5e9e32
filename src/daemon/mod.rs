//! The daemon that owns a cache folder, and its mounts.
//!
//! ```text
//! command --> Backend --control--> Service --> mounts --> fuse
//!                                     '------> kits (ls, cat, info, …)
//! ```
//!
//! - [`Backend`]: the daemon when one runs, else a service in this process.
//! - `service`: the work of each operation; `mounts`: its table of mounts; `kits`: the kits that it has open;
//!   `networks`: its connections; `paths`, `listing`, `reading`, `cloning`, `describing`, `comparing`, `upkeep`: its answers.
//! - `mounting`: mounts for a command, in the part of the file tree that the command sees.
//! - `browsing`: the kits of mounts with kits by path.
//! - `following`: tags that move under a mount.
//! - `other_view`: daemons that see another file tree than a command.
//! - `failure`: the meaning of every room's errors to a user.
//! - `lifecycle`: starting, running and ending a daemon; `log`: its log in the background.
//! - `activity`: what the daemon has done: counts, and the last ten minutes.
//! - `listening`: the socket of the HTTP interface.
//! - `idle`: the end of a daemon without mounts and commands.
//! - `keeper_process`, `held_mounts`: the keeper's process, and the mounts that it holds.
//! - `watchdog`: signs of life for a supervisor.
//!
//! One daemon owns one cache folder: one budget, one single flight, one limiter per registry host
//! for all mounts of a user. A daemon stays for a while after its last mount, because the next
//! mount finds its connections and its cache open.

mod activity;
mod backend;
mod browsing;
mod cloning;
mod comparing;
mod dead;
mod describing;
mod descriptors;
mod explaining;
mod failure;
mod fetching;
mod fitting;
mod following;
mod group;
mod held_mounts;
mod hydrate;
mod idle;
mod journal;
mod keeper_process;
mod kits;
mod lifecycle;
mod listening;
mod listing;
mod log;
mod machine;
mod memory;
mod mounting;
mod mounts;
mod near_tags;
mod networks;
mod other_view;
mod overlaying;
mod own_paths;
mod paths;
mod reached_files;
mod reading;
mod record;
mod recording;
mod replay;
mod residency;
mod service;
mod signals;
mod successor;
mod tags;
#[cfg(feature = "otlp")]
mod traces;
mod upkeep;
mod waiting;
mod warming;
mod watchdog;
mod work;

pub use backend::{Backend, OpenKit, Server};
pub use dead::{forget_dead, running_or_restoring};
pub use group::group;
pub use keeper_process::{Beginning, become_keeper, keep};
pub use lifecycle::{DaemonConfig, SystemConfig, detach, report_ready, run};
pub use listening::{KIT_OPTIONS_VARIABLE, ListenConfig};
pub use log::log_files;
pub use networks::sources_of_command;
pub use replay::{TRACE_LIMIT_BYTES, read_trace};
pub use service::Service;
pub use successor::{CAN_TAKE_OVER, can_take_over};
pub use watchdog::Watchdog;
