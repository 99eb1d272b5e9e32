//! The table of contents of a layer: its members and where their bytes are.

use std::ops::Range;

use super::{MemberPath, StreamOffset};

/// What a layer holds, in the order of the archive.
///
/// A tar may name a path twice; both members are here, and the tree decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toc {
    /// The members in archive order.
    pub members: Vec<Member>,
    /// The length of the uncompressed stream in bytes, padding and end marker included.
    pub stream_bytes: u64,
    /// What was passed over, for the user's log: devices, FIFOs and the like.
    pub warnings: Vec<String>,
}

/// One file, directory or symlink of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The path in the archive; `None` for the one file of a raw layer, whose name is the kit's to say.
    pub path: Option<MemberPath>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits as stored, without setuid, setgid and sticky (`& 0o777`).
    pub mode: u32,
    /// Modification time in whole seconds since 1970.
    pub mtime_seconds: i64,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file whose bytes are this range of the stream.
    File(Range<StreamOffset>),
    /// A directory.
    Directory,
    /// A symbolic link with its target, as stored: the kernel resolves it, kitfs never does.
    Symlink(Box<[u8]>),
}

impl Member {
    /// The bytes of its path and of its link's target, which bounds of memory count.
    pub fn names_bytes(&self) -> u64 {
        let target_bytes = match &self.kind {
            MemberKind::Symlink(target) => target.len(),
            MemberKind::File(_) | MemberKind::Directory => 0,
        };
        (self.path.as_ref().map_or(0, |path| path.as_bytes().len()) + target_bytes) as u64
    }
}

impl Toc {
    /// The contents of a raw layer: one file over the whole stream.
    pub fn raw(stream_bytes: u64) -> Self {
        let file = MemberKind::File(StreamOffset(0)..StreamOffset(stream_bytes));
        let member = Member { path: None, kind: file, mode: 0o644, mtime_seconds: 0 };
        Self { members: vec![member], stream_bytes, warnings: Vec::new() }
    }
}
