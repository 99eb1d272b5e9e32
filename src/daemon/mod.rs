//! Lifecycle: the daemon that owns a cache folder, its control socket and its table of mounts.
//!
//! ```text
//! command --> Backend --unix socket--> server --> Service --> mounts --> fuse
//!                '------ no daemon -------------------^  '--> kits (ls, cat, info, …)
//! ```
//!
//! - [`api`]: what is said over the socket; plain data.
//! - [`Backend`]: the daemon when one runs, else a service in this process.
//! - `service`: the work itself; `mounts`: its table of mounts.
//! - `lifecycle`: starting, running and ending a daemon.
//!
//! One daemon owns one cache folder: one budget, one single flight, one limiter per registry host
//! for all mounts of a user.

pub mod api;
mod backend;
mod client;
mod failure;
mod lifecycle;
mod mounts;
mod server;
mod service;
mod socket;

pub use backend::{Backend, ByteStream};
pub use lifecycle::{DaemonConfig, detach, report_ready, run};
