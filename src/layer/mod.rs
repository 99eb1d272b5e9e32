//! Layer formats, sans-IO: code here turns bytes into structures and touches no file, socket or
//! clock.

pub mod decode;
pub mod encode;
pub mod extents;
pub mod layout;
pub mod member_path;
pub mod mtime;
pub mod range_set;
pub(crate) mod replaced;
pub mod tar;
pub mod toc;
pub mod toc_codec;

pub use crate::oci::{BlobOffset, StreamOffset};
pub use extents::{Extent, Extents};
pub use layout::{CacheFile, ChunkId, Layout};
pub use member_path::{MemberPath, MemberPathError};
pub use mtime::Mtime;
pub use range_set::RangeSet;
pub use tar::{MEMBERS_LIMIT, NAMES_LIMIT_BYTES};
pub use toc::{Member, MemberKind, Toc};
