//! Lifecycle: the daemon that owns a cache folder, its control socket and its table of mounts.
//!
//! ```text
//! command --> Backend --unix socket--> server --> Service --> mounts --> fuse
//!                '------ no daemon -------------------^  '--> kits (ls, cat, info, …)
//! ```
//!
//! - [`api`]: the messages on the socket; plain data.
//! - [`Backend`]: the daemon when one runs, else a service in this process.
//! - `service`: the work itself; `mounts`: its table of mounts; `kits`: the kits that it has open;
//!   `networks`: its connections; `paths`, `listing`, `reading`, `describing`, `upkeep`: its
//!   answers.
//! - `server`, `client`, `frames`, `socket`: the control socket, on both sides.
//! - `seen`: commands and daemons that see different file trees.
//! - `failure`: the meaning of every room's errors to a user.
//! - `lifecycle`: starting, running and ending a daemon; `log`: its log in the background.
//!
//! One daemon owns one cache folder: one budget, one single flight, one limiter per registry host
//! for all mounts of a user. A daemon stays until it is told to stop: it is idle at no cost, and
//! the next mount finds its connections and its cache open.

pub mod api;
mod backend;
mod bringing;
mod client;
mod describing;
mod descriptors;
mod failure;
mod fitting;
mod frames;
mod hydrate;
mod keep;
mod keeping;
mod kits;
mod lifecycle;
mod listing;
mod log;
mod machine;
mod memory;
mod mounts;
mod networks;
mod own_paths;
mod paths;
mod reading;
mod recording;
mod replay;
mod seen;
mod server;
mod service;
mod signals;
mod socket;
mod tags;
mod upkeep;
mod waiting;
mod warming;

pub use backend::{Backend, ByteStream, Server};
pub use keep::keep;
pub use lifecycle::{DaemonConfig, detach, report_ready, run};
pub use replay::{TRACE_LIMIT_BYTES, read_trace};
