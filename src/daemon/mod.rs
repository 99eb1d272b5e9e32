//! Lifecycle: the daemon that owns a cache folder, its control socket and its table of mounts.

pub mod api;
mod backend;

pub use backend::{Backend, ByteStream, DaemonConfig, run};
