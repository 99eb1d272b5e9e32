//! Layer formats, sans-IO: bytes come in, structures come out; no file, socket or clock.

pub mod layout;
pub mod member_path;
pub mod offset;
pub mod range_set;
pub mod toc;

pub use layout::{CacheFile, ChunkId, Layout};
pub use member_path::MemberPath;
pub use offset::{BlobOffset, StreamOffset};
pub use range_set::RangeSet;
pub use toc::{Member, MemberKind, Toc};
