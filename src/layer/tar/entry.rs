//! What one header, and the records before it, say.

use super::header::Header;
use super::records::{Records, SPARSE};
use crate::layer::member_path::shown;
use crate::layer::{MemberPath, MemberPathError};

/// The longest target of a symbolic link (`PATH_MAX` of Linux without its NUL).
const TARGET_LIMIT_BYTES: usize = 4095;

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of content behind the header.
    pub content_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time in whole seconds since 1970.
    pub mtime_seconds: i64,
}

/// What an entry is, with the path it lands at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A regular file.
    File(MemberPath),
    /// A directory; `None` for the root itself, which every tree has.
    Directory(Option<MemberPath>),
    /// A symbolic link and its target.
    Symlink(MemberPath, Box<[u8]>),
    /// Another name for the bytes of an earlier entry.
    HardLink { path: MemberPath, target: MemberPath },
    /// Nothing that a kit's tree shows: devices, FIFOs, types nobody has defined.
    Other(&'static str),
}

impl Entry {
    /// Puts a header and its records together; the error says what is wrong with the entry.
    pub(super) fn new(header: &Header, name: &[u8], mut records: Records) -> Result<Self, String> {
        // Directories, links and devices have no content, whatever their size says: so reads Go's
        // archive/tar, which is what kit reads with.
        let content_bytes = match header.kind {
            b'1'..=b'6' => 0,
            0 if name.ends_with(b"/") => 0,
            _ => records.size()?.unwrap_or(header.size),
        };
        let mut link_name = || records.take_link_path().unwrap_or_else(|| header.link_name.clone());
        let kind = match header.kind {
            0 if name.ends_with(b"/") => EntryKind::Directory(directory(name)?),
            0 | b'0' | b'7' => EntryKind::File(member(name)?),
            b'1' => EntryKind::HardLink { path: member(name)?, target: hard_target(&link_name())? },
            b'2' => EntryKind::Symlink(member(name)?, symlink_target(link_name())?),
            b'3' => EntryKind::Other("a character device"),
            b'4' => EntryKind::Other("a block device"),
            b'5' => EntryKind::Directory(directory(name)?),
            b'6' => EntryKind::Other("a FIFO"),
            b'S' => return Err(SPARSE.to_owned()),
            _ => EntryKind::Other("of an unknown type"),
        };
        let mtime_seconds = records.mtime_seconds()?.unwrap_or(header.mtime_seconds);
        Ok(Self { kind, content_bytes, mode: header.mode, mtime_seconds })
    }
}

fn member(name: &[u8]) -> Result<MemberPath, String> {
    MemberPath::parse(name).map_err(|error| format!("its name cannot be a path in a kit: {error}"))
}

fn directory(name: &[u8]) -> Result<Option<MemberPath>, String> {
    match MemberPath::parse(name) {
        Err(MemberPathError::Root) if !name.is_empty() => Ok(None),
        _ => member(name).map(Some),
    }
}

fn hard_target(name: &[u8]) -> Result<MemberPath, String> {
    MemberPath::parse(name)
        .map_err(|error| format!("it is a hard link to `{}`, and {error}", shown(name)))
}

/// The target stays as stored: the kernel resolves it, below the mount or not.
fn symlink_target(target: Vec<u8>) -> Result<Box<[u8]>, String> {
    match target.len() {
        0 => Err("it is a symbolic link without a target".to_owned()),
        _ if target.contains(&0) => Err("the target of its link holds a NUL byte".to_owned()),
        1..=TARGET_LIMIT_BYTES => Ok(target.into()),
        _ => Err("the target of its link is too long".to_owned()),
    }
}
