//! The read-only file system, without FUSE: kits that were loaded, and what is asked of them.
//!
//! ```text
//! load(reference) --> LoadedKit (tree + open layers) --> FileSystem: lookup, read, …
//! ```
//!
//! - [`load`](load()): from a reference to a [`LoadedKit`].
//! - [`FileSystem`]: what a kernel (or a test) asks of a loaded kit.
//! - [`readahead`]: which bytes the readers of a mount want next, and what guesses may cost; pure.
//! - [`tensors`]: where a model file's tensors lie, and which of them a reader wants; pure.
//! - [`StoredFile`]: a file whose bytes lie in a layer.
//! - `merging`: dates the files of open layers and makes the tree.
//! - `prefetch`: reads headers in the background, and fetches what [`tensors`] says.
//!
//! Invariants:
//! - Nothing about a mount lives only here: an inode number is a node's position in the tree, a
//!   directory offset is a position among its children, and there are no file handles. Another
//!   process that loads the same kit answers every request alike.
//! - No call waits for the network, but the future of a [`PendingRead`], which has a deadline.
//!
//! It knows no FUSE, no errno, no HTTP and no command line.

mod attributes;
mod backing;
mod begun;
mod config;
mod error;
mod file_system;
mod kit;
mod load;
mod percent;
mod prefetch;
mod read;
pub mod readahead;
mod stored_file;
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
