//! The read-only file system, without FUSE: loaded kits, and the requests that they answer.
//!
//! ```text
//! load(reference) --> LoadedKit (tree + open layers) --> FileSystem: lookup, read, …
//! ```
//!
//! - [`load`](load()): from a reference to a [`LoadedKit`].
//! - [`FileSystem`]: answers the requests of a kernel (or a test).
//! - [`readahead`]: guesses the bytes that readers want next, and bounds the cost of guesses; pure.
//! - [`tensors`]: the tensors of model files, and those that a reader is in; pure.
//! - [`StoredFile`]: a file whose bytes lie in a layer.
//! - `merging`: dates the files of open layers and makes the tree.
//! - `tensor_prefetch`: reads headers in the background, and fetches tensors.
//!
//! Invariants:
//! - Nothing about a mount lives only here: an inode number is a node's position in the tree, a
//!   directory offset is a position among its children, and there are no file handles. Another
//!   process that loads the same kit answers every request alike.
//! - Only the future of a [`PendingRead`] waits for the network, and it has a deadline.
//! - No errno, no HTTP and no command line here.

mod attributes;
mod backing;
mod begun;
mod config;
mod error;
mod file_system;
mod kit;
mod load;
mod percent;
mod read;
pub mod readahead;
mod stored_file;
mod tensor_prefetch;
pub mod tensors;
mod trace;
mod xattr;

pub use attributes::{Attributes, FileKind, Ino, Owner, Totals};
pub use config::FsConfig;
pub use error::FsError;
pub use file_system::{Access, DirectoryEntry, FileSystem, Seek};
pub use kit::{LoadedKit, State};
pub use load::{
    Described, Description, IndexDescription, LoadError, LoadRequest, describe, load, look,
};
pub use percent::{percent_decoded, percent_encoded};
pub use read::{PendingRead, Read, Reply};
pub use stored_file::StoredFile;
pub use trace::{FileRead, Line, Merger, TRACE_LINES, Trace, TraceError, TraceRange};
