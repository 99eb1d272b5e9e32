//! Writable views: an overlay over a kit's mount.
//!
//! ```text
//! writes --> DIR: overlayfs, or the program fuse-overlayfs --> UPPER/upper
//! reads  --> DIR --changed--> UPPER/upper
//!                '--else----> a mount of the kit that has no place in the tree
//! ```
//!
//! - [`Folder`]: an UPPER folder, its record and its lock.
//! - [`kernel`]: mounts with overlayfs. [`program`]: mounts with fuse-overlayfs.
//! - [`Overlay`]: the overlay at a path, mounted or not.
//! - [`Change`]: a difference between the base and the view. `scan` reads `upper/`, and `changes` is pure.
//!
//! The overlay's source in the mount table is `kitfs-overlay:UPPER`, with either file system. So any process finds
//! UPPER by the table, in any mount namespace. This room knows neither FUSE nor kits.

mod changes;
mod error;
mod file_system;
mod folder;
pub mod kernel;
mod mounted;
pub mod program;
mod record;
mod reset;
mod scan;

pub use changes::{Base, BaseEntry, Change, Kind, Source, View, What, changes};
pub use error::OverlayError;
pub use folder::{Folder, LastMount, last_mount};
pub use mounted::{Overlay, SUBTYPE, base_of, disk_bytes, source, upper_of};
pub use record::{Marks, NoRecord, Record};
