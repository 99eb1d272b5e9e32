//! The bytes of answers.
//!
//! Every answer about a kit is valid for ever, because a kit never changes: entries and attributes carry the
//! longest lifetime that the protocol has. Only tags, and names that are not there, have a shorter one.

use std::time::Duration;

use super::REPLY_HEADER_BYTES;
use crate::fs::{Attributes, FileKind, Ino, Totals};

/// The seconds for which the kernel may keep an entry or attributes: 136 years, the most that fits the
/// 32 bits of older clocks.
const FOR_EVER_SECONDS: u64 = u32::MAX as u64;

/// The bytes of `struct fuse_attr`.
const ATTRIBUTES_BYTES: usize = 88;
/// The bytes of `struct fuse_entry_out`.
const ENTRY_BYTES: usize = 40 + ATTRIBUTES_BYTES;
/// The bytes of `struct fuse_dirent` before the name.
const DIRECTORY_ENTRY_BYTES: usize = 24;

/// The header of a reply (`struct fuse_out_header`) to `unique`. `error` is an errno, or 0; a reply
/// with an error has no body.
pub(in crate::fuse) fn header(
    unique: u64,
    error: i32,
    body_bytes: usize,
) -> [u8; REPLY_HEADER_BYTES] {
    let length = (REPLY_HEADER_BYTES + body_bytes) as u32;
    let mut bytes = Struct::new();
    bytes.u32(length);
    bytes.u32((-error) as u32);
    bytes.u64(unique);
    bytes.filled()
}

/// A notification without a body (`struct fuse_out_header` with no unique number): the kernel should send
/// the requests again that a process has read and not answered (`FUSE_NOTIFY_RESEND`, Linux 6.9).
pub(in crate::fuse) fn resend() -> [u8; REPLY_HEADER_BYTES] {
    const RESEND: u32 = 7;
    let mut bytes = Struct::new();
    bytes.u32(REPLY_HEADER_BYTES as u32);
    bytes.u32(RESEND);
    bytes.u64(0);
    bytes.filled()
}

/// The bytes of a notification about pages.
const DROP_PAGES_BYTES: usize = REPLY_HEADER_BYTES + 24;

/// A notification that the kernel should drop the pages with `bytes` bytes of an inode from `offset` on
/// (`FUSE_NOTIFY_INVAL_INODE`, `struct fuse_notify_inval_inode_out`).
pub(in crate::fuse) fn drop_pages(ino: Ino, offset: u64, bytes: u64) -> [u8; DROP_PAGES_BYTES] {
    const INVAL_INODE: u32 = 2;
    let mut out = Struct::new();
    out.u32(DROP_PAGES_BYTES as u32);
    out.u32(INVAL_INODE);
    out.u64(0);
    out.u64(ino.0);
    // Both are signed for the kernel, and a file has less than 2^63 bytes.
    out.u64(offset);
    out.u64(bytes);
    out.filled()
}

/// A struct that is written field by field, into as many bytes as it has.
struct Struct<const BYTES: usize> {
    bytes: [u8; BYTES],
    at: usize,
}

impl<const BYTES: usize> Struct<BYTES> {
    fn new() -> Self {
        Self { bytes: [0; BYTES], at: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..][..field.len()].copy_from_slice(field);
        self.at += field.len();
    }

    fn u32(&mut self, number: u32) {
        self.put(&number.to_ne_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.put(&number.to_ne_bytes());
    }

    fn filled(self) -> [u8; BYTES] {
        debug_assert_eq!(self.at, BYTES, "every field is written");
        self.bytes
    }
}

/// `struct fuse_attr`.
fn attributes(of: &Attributes) -> [u8; ATTRIBUTES_BYTES] {
    let (seconds, nanoseconds) = (of.mtime.seconds().into(), of.mtime.nanoseconds());
    let mut bytes = Struct::new();
    bytes.u64(of.ino.0);
    bytes.u64(of.size);
    bytes.u64(of.blocks());
    // Access, modification and change: nothing ever happens to a file of a kit.
    bytes.u64(seconds);
    bytes.u64(seconds);
    bytes.u64(seconds);
    bytes.u32(nanoseconds);
    bytes.u32(nanoseconds);
    bytes.u32(nanoseconds);
    bytes.u32(file_type(of.kind) | of.mode & 0o777);
    bytes.u32(of.links);
    bytes.u32(of.owner.uid);
    bytes.u32(of.owner.gid);
    // Device number.
    bytes.u32(0);
    bytes.u32(Attributes::PREFERRED_READ_BYTES);
    // Flags.
    bytes.u32(0);
    bytes.filled()
}

/// The type bits of `st_mode` (inode(7)).
fn file_type(kind: FileKind) -> u32 {
    match kind {
        FileKind::Directory => 0o040_000,
        FileKind::File => 0o100_000,
        FileKind::Symlink => 0o120_000,
    }
}

/// The answer to `stat` (`struct fuse_attr_out`).
pub(in crate::fuse) fn attributes_out(of: &Attributes) -> [u8; 16 + ATTRIBUTES_BYTES] {
    let mut bytes = Struct::new();
    bytes.u64(FOR_EVER_SECONDS);
    // Nanoseconds of the lifetime, and padding.
    bytes.u64(0);
    bytes.put(&attributes(of));
    bytes.filled()
}

/// The answer to a lookup (`struct fuse_entry_out`), for ever or for a time.
pub(in crate::fuse) fn entry(of: &Attributes, ttl: Option<Duration>) -> [u8; ENTRY_BYTES] {
    entry_out(of.ino.0, ttl, &attributes(of))
}

/// The answer to a lookup of a name that is not there. Inode 0 lets the kernel remember that, too.
pub(in crate::fuse) fn no_entry(ttl: Option<Duration>) -> [u8; ENTRY_BYTES] {
    entry_out(0, ttl, &[0; ATTRIBUTES_BYTES])
}

fn entry_out(
    node: u64,
    ttl: Option<Duration>,
    attributes: &[u8; ATTRIBUTES_BYTES],
) -> [u8; ENTRY_BYTES] {
    let (seconds, nanoseconds) = ttl.map_or((FOR_EVER_SECONDS, 0), |ttl| {
        (ttl.as_secs().min(FOR_EVER_SECONDS), ttl.subsec_nanos())
    });
    let mut bytes = Struct::new();
    bytes.u64(node);
    // The generation: the kernel has forgotten a number before it names another file.
    bytes.u64(0);
    // Lifetimes of the entry and of the attributes, and their nanoseconds.
    bytes.u64(seconds);
    bytes.u64(FOR_EVER_SECONDS);
    bytes.u32(nanoseconds);
    bytes.u32(0);
    bytes.put(attributes);
    bytes.filled()
}

/// How an open file is to be used (`FOPEN_*`).
pub(in crate::fuse) mod open {
    /// The pages that the kernel has stay valid.
    pub(in crate::fuse) const KEEP_CACHE: u32 = 1 << 1;
    /// The kernel may keep the entries of the directory.
    pub(in crate::fuse) const CACHE_DIR: u32 = 1 << 3;
    /// Closing asks nothing.
    pub(in crate::fuse) const NOFLUSH: u32 = 1 << 5;
    /// The kernel reads the file by itself.
    pub(in crate::fuse) const PASSTHROUGH: u32 = 1 << 7;
}

/// The answer to an open (`struct fuse_open_out`); `backing` is a backing id, or 0.
pub(in crate::fuse) fn open_out(handle: u64, flags: u32, backing: u32) -> [u8; 16] {
    let mut bytes = Struct::new();
    bytes.u64(handle);
    bytes.u32(flags);
    bytes.u32(backing);
    bytes.filled()
}

/// The answer to `statfs` (`struct fuse_statfs_out`): no block and no inode is free.
pub(in crate::fuse) fn totals(of: &Totals) -> [u8; 80] {
    let mut bytes = Struct::new();
    bytes.u64(of.blocks());
    bytes.u64(0);
    bytes.u64(0);
    bytes.u64(of.inodes);
    bytes.u64(0);
    // Both sizes are the block's: some programs multiply by the one, some by the other.
    bytes.u32(Attributes::BLOCK_BYTES);
    bytes.u32(Totals::NAME_BYTES);
    bytes.u32(Attributes::BLOCK_BYTES);
    bytes.put(&[0; 28]);
    bytes.filled()
}

/// The answer to a seek (`struct fuse_lseek_out`).
pub(in crate::fuse) fn seek_out(offset: u64) -> [u8; 8] {
    offset.to_ne_bytes()
}

/// The length of an extended attribute (`struct fuse_getxattr_out`), for a caller that asks for it.
pub(in crate::fuse) fn xattr_length(length: u32) -> [u8; 8] {
    let mut bytes = Struct::new();
    bytes.u32(length);
    bytes.u32(0);
    bytes.filled()
}

/// The entries of a directory, at most as many bytes as the kernel asks for.
pub(in crate::fuse) struct Entries {
    bytes: Vec<u8>,
    most_bytes: usize,
}

impl Entries {
    pub(in crate::fuse) fn new(most_bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(most_bytes), most_bytes }
    }

    pub(in crate::fuse) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds an entry (`struct fuse_dirent`); `false` where it does not fit any more.
    pub(in crate::fuse) fn push(&mut self, entry: &crate::fs::DirectoryEntry<'_>) -> bool {
        self.push_after(&[], entry)
    }

    /// Adds an entry with its attributes (`struct fuse_direntplus`); `false` where it does not fit.
    pub(in crate::fuse) fn push_with(
        &mut self,
        entry: &crate::fs::DirectoryEntry<'_>,
        of: &Attributes,
    ) -> bool {
        self.push_after(&self::entry(of, None), entry)
    }

    /// Adds an entry without its attributes to a list of entries with attributes: the kernel looks it up later.
    /// `false` where it does not fit.
    pub(in crate::fuse) fn push_without(&mut self, entry: &crate::fs::DirectoryEntry<'_>) -> bool {
        self.push_after(&no_entry(None), entry)
    }

    fn push_after(&mut self, before: &[u8], entry: &crate::fs::DirectoryEntry<'_>) -> bool {
        let Ino(ino) = entry.ino;
        let length = (DIRECTORY_ENTRY_BYTES + entry.name.len()).next_multiple_of(8);
        if self.bytes.len() + before.len() + length > self.most_bytes {
            return false;
        }
        self.bytes.extend_from_slice(before);
        let end = self.bytes.len() + length;
        self.bytes.extend_from_slice(&ino.to_ne_bytes());
        self.bytes.extend_from_slice(&entry.next_offset.to_ne_bytes());
        self.bytes.extend_from_slice(&(entry.name.len() as u32).to_ne_bytes());
        // The type is what `d_type` tells: the bits of `st_mode`, moved down.
        self.bytes.extend_from_slice(&(file_type(entry.kind) >> 12).to_ne_bytes());
        self.bytes.extend_from_slice(entry.name);
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fs::{DirectoryEntry, Owner};
    use crate::layer::Mtime;

    fn numbers(bytes: &[u8], size: usize) -> Vec<u64> {
        let number = |bytes: &[u8]| {
            let mut wide = [0; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(wide)
        };
        bytes.chunks(size).map(number).collect()
    }

    fn file() -> Attributes {
        Attributes {
            ino: Ino(7),
            kind: FileKind::File,
            size: 1000,
            mode: 0o4755,
            links: 1,
            mtime: Mtime::new(1_700_000_000, 5).unwrap(),
            stored_bytes: 1000,
            owner: Owner { uid: 1000, gid: 100 },
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn structs_lie_as_the_kernel_reads_them() {
        assert_eq!(numbers(&header(9, 0, 4), 4), [20, 0, 9, 0]);
        assert_eq!(numbers(&header(9, 5, 0), 4), [16, u64::from(-5i32 as u32), 9, 0]);
        assert_eq!(numbers(&drop_pages(Ino(7), 5, 9)[..16], 4), [40, 2, 0, 0]);
        assert_eq!(numbers(&drop_pages(Ino(7), 5, 9)[16..], 8), [7, 5, 9]);
        let out = attributes_out(&file());
        assert_eq!(numbers(&out[..16], 8), [u64::from(u32::MAX), 0]);
        let attributes = numbers(&out[16..], 4);
        // Inode, size, blocks; then three times, their seconds and their nanoseconds.
        assert_eq!(attributes[..6], [7, 0, 1000, 0, 2, 0]);
        assert_eq!(numbers(&out[40..64], 8), [1_700_000_000; 3]);
        assert_eq!(attributes[12..], [5, 5, 5, 0o100_755, 1, 1000, 100, 0, 1 << 20, 0]);
        let found = entry(&file(), None);
        assert_eq!(found[40..], out[16..]);
        assert_eq!(numbers(&found[..16], 8), [7, 0]);
        assert_eq!(numbers(&no_entry(None)[..24], 8), [0, 0, u64::from(u32::MAX)]);
        let briefly = entry(&file(), Some(Duration::new(3, 7)));
        assert_eq!(numbers(&briefly[16..32], 8), [3, u64::from(u32::MAX)]);
        assert_eq!(numbers(&briefly[32..40], 4), [7, 0]);
        assert_eq!(numbers(&open_out(1, 0x82, 3), 4), [1, 0, 0x82, 3]);
        let totals = totals(&Totals { file_bytes: 513, inodes: 3 });
        assert_eq!(numbers(&totals[..40], 8), [2, 0, 0, 3, 0]);
        assert_eq!(numbers(&totals[40..], 4), [512, 255, 512, 0, 0, 0, 0, 0, 0, 0]);
    }

    proptest! {
        /// Entries are padded to 8 bytes, hold the pushed names, and never exceed the requested size.
        #[test]
        fn entries_are_read_back_as_readdir_reads_them(
            names in prop::collection::vec(prop::collection::vec(1..=255u8, 1..255), 0..20),
            most in 0..4096usize, with_attributes: bool,
        ) {
            let mut entries = Entries::new(most);
            let mut pushed = Vec::new();
            for (at, name) in names.iter().enumerate() {
                let next_offset = at as u64 + 1;
                let entry = DirectoryEntry { ino: Ino(7), kind: FileKind::File, name, next_offset };
                let fits = match with_attributes {
                    true => entries.push_with(&entry, &file()),
                    false => entries.push(&entry),
                };
                if !fits {
                    break;
                }
                pushed.push((next_offset, name.clone()));
            }
            let mut bytes = entries.as_bytes();
            prop_assert!(bytes.len() <= most && bytes.len().is_multiple_of(8));
            let mut read = Vec::new();
            while !bytes.is_empty() {
                if with_attributes {
                    prop_assert_eq!(&bytes[..ENTRY_BYTES], &entry(&file(), None)[..]);
                    bytes = &bytes[ENTRY_BYTES..];
                }
                let next_offset = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
                let length = u32::from_ne_bytes(bytes[16..20].try_into().unwrap()) as usize;
                prop_assert_eq!(u32::from_ne_bytes(bytes[20..24].try_into().unwrap()), 8);
                read.push((next_offset, bytes[24..24 + length].to_vec()));
                bytes = &bytes[(24 + length).next_multiple_of(8)..];
            }
            prop_assert_eq!(read, pushed);
        }
    }
}
