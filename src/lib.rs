//! kitfs mounts remote ModelKits lazily, as read-only directories.
//!
//! The map of the rooms. An arrow means "may import", along several arrows too; no other import is
//! allowed (`tests/architecture.rs` fails on one):
//!
//! ```text
//! cli -> daemon -> control -> fuse -> fs -> fetch -> cache  -> layer -> oci
//!  |      |'-> keeper      |           |        '--> source -> oci
//!  |      '--> http -> control, serve  '--> kit -> layer, oci
//!  |--> serve -> source     '--> overlay -> oci
//!  '--> pack -> kit, source
//! ```
//!
//! - [`oci`]: values, valid by construction: digests, references, descriptors, manifests.
//! - [`layer`]: formats, sans-IO: tar headers, compression, table of contents, cache layout.
//! - [`kit`]: kits: Kitfile, families, filters, parents, the merged tree.
//! - [`source`]: bytes far away: registries, OCI layouts, kit's local storage.
//! - [`cache`]: bytes kept near: chunk tables, verification, eviction, locks.
//! - [`fetch`]: copies bytes from a source to the cache; no other room uses both.
//! - [`fs`]: the read-only file system, without FUSE.
//! - [`fuse`]: the kernel's FUSE protocol, and mounting.
//! - [`overlay`]: writable views: the folder of changes, overlayfs, fuse-overlayfs.
//! - [`pack`]: a folder becomes a kit in kit's local storage.
//! - [`serve`]: a small read-only OCI registry over OCI layout folders.
//! - [`control`]: the operations of a daemon, and the socket between commands and daemon.
//! - [`http`]: the daemon's HTTP interface: health, status, files of kits by range.
//! - [`daemon`]: lifecycle, table of mounts, the work of the operations.
//! - [`keeper`]: the process that holds mounts while their daemon is replaced.
//! - [`cli`]: one file per command.
//! - [`observe`]: metric names, status model, tracing set-up.
//! - [`process`]: the time that this process ran, its limits and its children's.
//!
//! Every room may import `observe` and `process`. These two import no room.

pub mod cache;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod http;
pub mod keeper;
pub mod kit;
pub mod layer;
pub mod observe;
pub mod oci;
pub mod overlay;
pub mod pack;
pub mod process;
pub mod serve;
pub mod source;
