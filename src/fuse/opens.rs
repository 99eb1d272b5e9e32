//! The open files of a mount, in a file in memory that outlives the process.
//!
//! The kernel requires that all opens of an inode are of one kind (`passthrough`). A process that takes
//! over a running mount has to know them, so each change is written to this file at once.
//!
//! ```text
//! | inode, 8 bytes (0: free) | opens, 4 | backing id, 4 (0: cached) | next record ...
//! ```
//!
//! From [`PLACES_BASE`] on, the file has the numbers of a browse mount (`fs/browse/records.rs`).
//!
//! Integers are in the machine's own byte order: the file never leaves it. A record is written with one
//! system call, which a kill does not cut in two.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SeekFrom};

use crate::fs::Ino;

/// The length of a record, in bytes.
const RECORD_BYTES: usize = 16;

/// The most bytes of the file: a million open files. A longer file is no file of this table.
const MOST_BYTES: u64 = RECORD_BYTES as u64 * 1024 * 1024;

/// The first byte of the numbers of a browse mount: behind the most records of open files.
const PLACES_BASE: u64 = MOST_BYTES;

/// An inode with opens that the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenRecord {
    pub(super) ino: Ino,
    pub(super) opens: u32,
    /// The kernel's number of the file that it reads itself; `None` for a file that the daemon serves.
    pub(super) backing_id: Option<u32>,
}

/// The file with the open files.
#[derive(Debug)]
pub(super) struct OpenRecords {
    file: File,
    slots: HashMap<Ino, u32>,
    free: Vec<u32>,
    used: u32,
}

impl OpenRecords {
    /// An empty file.
    pub(super) fn new() -> io::Result<Self> {
        let file = rustix::fs::memfd_create("kitfs-opens", MemfdFlags::CLOEXEC)?;
        Ok(Self { file: file.into(), slots: HashMap::new(), free: Vec::new(), used: 0 })
    }

    /// The file of a process that is gone, and its records.
    pub(super) fn taken_over(file: OwnedFd) -> io::Result<(Self, Vec<OpenRecord>)> {
        let file = File::from(file);
        let mut length = file.metadata()?.len();
        if length > PLACES_BASE {
            // The records lie side by side, and a hole follows.
            length = rustix::fs::seek(&file, SeekFrom::Hole(0))?.min(MOST_BYTES);
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let mut this = Self { file, slots: HashMap::new(), free: Vec::new(), used: 0 };
        let mut records = Vec::new();
        for bytes in bytes.chunks_exact(RECORD_BYTES) {
            let slot = this.used;
            this.used += 1;
            match decode(bytes) {
                Some(record) if !this.slots.contains_key(&record.ino) => {
                    this.slots.insert(record.ino, slot);
                    records.push(record);
                }
                _ => this.free.push(slot),
            }
        }
        Ok((this, records))
    }

    /// The file and the first byte for the numbers of a browse mount.
    pub(super) fn places(&self) -> io::Result<(File, u64)> {
        Ok((self.file.try_clone()?, PLACES_BASE))
    }

    /// Writes the opens of an inode; none remove its record.
    pub(super) fn set(&mut self, record: OpenRecord) {
        let slot = match self.slots.get(&record.ino) {
            Some(slot) => *slot,
            None => {
                let slot = self.free.pop().unwrap_or(self.used);
                self.used = self.used.max(slot + 1);
                self.slots.insert(record.ino, slot);
                slot
            }
        };
        let bytes = if record.opens == 0 { [0; RECORD_BYTES] } else { encode(record) };
        if record.opens == 0 {
            self.slots.remove(&record.ino);
            self.free.push(slot);
        }
        let position = u64::from(slot) * RECORD_BYTES as u64;
        if position >= PLACES_BASE {
            tracing::warn!("too many open files: a later daemon may not serve all of them");
            return;
        }
        if let Err(error) = self.file.write_all_at(&bytes, position) {
            tracing::warn!(%error, "an open file is not noted: a later daemon may not serve it");
        }
    }
}

impl AsFd for OpenRecords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn encode(record: OpenRecord) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&record.ino.0.to_ne_bytes());
    bytes[8..12].copy_from_slice(&record.opens.to_ne_bytes());
    bytes[12..].copy_from_slice(&record.backing_id.unwrap_or_default().to_ne_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<OpenRecord> {
    let (ino, rest) = bytes.split_first_chunk()?;
    let (opens, rest) = rest.split_first_chunk()?;
    let (ino, opens) = (Ino(u64::from_ne_bytes(*ino)), u32::from_ne_bytes(*opens));
    let id = u32::from_ne_bytes(*rest.first_chunk()?);
    (ino.0 != 0 && opens != 0).then_some(OpenRecord {
        ino,
        opens,
        backing_id: (id != 0).then_some(id),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_numbers_of_a_browse_mount_lie_behind_the_open_files() {
        let mut records = OpenRecords::new().unwrap();
        let (places, base) = records.places().unwrap();
        places.write_all_at(&[7; 64], base + 1024).unwrap();
        let record = OpenRecord { ino: Ino(7 << 32), opens: 2, backing_id: Some(3) };
        records.set(record);
        let file = records.as_fd().try_clone_to_owned().unwrap();
        let (again, found) = OpenRecords::taken_over(file).unwrap();
        assert_eq!(found, [record]);
        let mut bytes = [0; 64];
        again.places().unwrap().0.read_exact_at(&mut bytes, base + 1024).unwrap();
        assert_eq!(bytes, [7; 64]);
    }

    proptest! {
        #[test]
        fn a_later_process_finds_what_is_open(
            changes in proptest::collection::vec((1u64..20, 0u32..4, 0u32..3), 0..200),
            taken_over_at in 0usize..200,
        ) {
            let mut records = OpenRecords::new().unwrap();
            let mut open = BTreeMap::new();
            for (at, (ino, opens, id)) in changes.into_iter().enumerate() {
                if at == taken_over_at {
                    let file = records.as_fd().try_clone_to_owned().unwrap();
                    records = OpenRecords::taken_over(file).unwrap().0;
                }
                let record = OpenRecord { ino: Ino(ino), opens, backing_id: (id != 0).then_some(id) };
                records.set(record);
                match opens {
                    0 => _ = open.remove(&ino),
                    _ => _ = open.insert(ino, record),
                }
            }
            let file = records.as_fd().try_clone_to_owned().unwrap();
            let (_, mut found) = OpenRecords::taken_over(file).unwrap();
            found.sort_by_key(|record| record.ino.0);
            prop_assert_eq!(found, open.into_values().collect::<Vec<_>>());
        }
    }
}
