//! The read-only file system, without FUSE: loaded kits, and the requests to them.
//!
//! ```text
//! load(reference) --> LoadedKit (tree + open layers) --> FileSystem: lookup, read, …
//! ```
//!
//! - [`load`](load()): from a reference to a [`LoadedKit`].
//! - [`FileSystem`]: answers the requests of a kernel (or a test).
//! - [`readahead`]: guesses the bytes that readers want next, and bounds the cost of guesses; pure.
//! - [`tensors`]: the tensors of model files, and the tensors that a reader is in; pure.
//! - [`StoredFile`]: a file whose bytes lie in a layer.
//! - [`Nodes`]: the nodes of a mount: those of one kit, or of many.
//! - [`browse`]: kits by path.
//! - `tensor_prefetch`: reads headers in the background, and fetches tensors.
//! - [`Trace`], [`Merger`]: access traces.
//!
//! Invariants:
//! - A process that takes over a mount needs no state from here. An inode number is a node's
//!   position in the tree. A directory offset is a position among the children. There are no file
//!   handles. So another process that loads the same kit gives the same answers.
//! - No method of [`FileSystem`] waits for the network. A read of missing bytes returns a
//!   [`PendingRead`], whose future has a deadline.
//! - No errno, no HTTP and no command line here.

mod attributes;
mod backing;
mod begun;
pub mod browse;
mod config;
mod error;
mod file_system;
mod kit;
mod layer_files;
mod load;
mod nodes;
mod percent;
mod read;
pub mod readahead;
mod residency;
mod sharers;
mod stored_file;
mod tensor_prefetch;
pub mod tensors;
mod trace;
mod xattr;

pub use attributes::{Attributes, FileKind, Ino, Owner, Totals};
pub use browse::Place;
pub use config::{FsConfig, READ_DEADLINE};
pub use error::{FsError, Unopened};
pub use file_system::{Access, DirectoryEntry, FileSystem, Seek};
pub use kit::{LoadedKit, State};
pub use layer_files::layer_files;
pub use load::{
    Described, Description, IndexDescription, LoadError, LoadRequest, describe, doubt_about, load,
    look,
};
pub use nodes::{Found, KitNodes, Nodes};
pub use percent::{percent_decoded, percent_encoded};
pub use read::{PendingRead, Read, Reply};
pub use residency::{InFlight, Part, PartState};
pub use stored_file::StoredFile;
pub use trace::{FileRead, Line, Merger, TRACE_LINES, Trace, TraceError, TraceRange};
