//! The numbers of places that the kernel knows, in a memory file that outlives the process.
//!
//! The kernel keeps node numbers, and a process that takes the mount over must know them. So each number, and the
//! count of its lookups, is written to this file before the kernel gets the reply.
//!
//! ```text
//! record of number N at BASE + N * 1024:
//! | lookups, 8 (0: free) | CRC32C of what follows, 4 | path bytes, 2 | flags, 2 | digest, 32 | mark, 32 | path |
//! ```
//!
//! Integers are in the machine's own byte order: the file never leaves it. A record is written with one system
//! call, which a kill does not cut in two.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::oci::Digest;

/// The length of a record. The longest path has 455 bytes: host and repository 255, a tag 128, a digest 72.
const RECORD_BYTES: usize = 1024;
const HEAD_BYTES: usize = 80;
/// The first bytes, which the checksum does not cover.
const UNCHECKED_BYTES: usize = 12;

/// The most numbers: a hundred times the kits that one machine can be expected to use at a time.
pub(super) const MOST_PLACES: u32 = 65_536;

const HAS_DIGEST: u16 = 1;
const HAS_MARK: u16 = 2;

/// A place that has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) path: String,
    /// The manifest of a kit.
    pub(super) digest: Option<Digest>,
    /// Tells apart trees with other nodes, once the kit was loaded.
    pub(super) mark: Option<[u8; 32]>,
    /// The lookups that the kernel has not forgotten.
    pub(super) lookups: u64,
}

/// The file.
#[derive(Debug)]
pub(super) struct Records {
    file: File,
    base: u64,
}

impl Records {
    /// The records from byte `base` of a file on.
    pub(super) fn at(file: File, base: u64) -> Self {
        Self { file, base }
    }

    /// Every intact record, by its number.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn read(&self) -> io::Result<Vec<(u32, Record)>> {
        let length = self.file.metadata()?.len().saturating_sub(self.base);
        let count = (length / RECORD_BYTES as u64).min(u64::from(MOST_PLACES)) as u32;
        let mut records = Vec::new();
        let mut bytes = [0; RECORD_BYTES];
        for number in 0..count {
            self.file.read_exact_at(&mut bytes, self.position(number))?;
            records.extend(decode(&bytes).map(|record| (number, record)));
        }
        Ok(records)
    }

    /// Writes a record.
    pub(super) fn write(&self, number: u32, record: &Record) -> io::Result<()> {
        self.file.write_all_at(&encode(record)?, self.position(number))
    }

    /// Writes the count of the kernel's lookups; 0 frees the record.
    pub(super) fn count(&self, number: u32, lookups: u64) -> io::Result<()> {
        self.file.write_all_at(&lookups.to_ne_bytes(), self.position(number))
    }

    fn position(&self, number: u32) -> u64 {
        self.base + u64::from(number) * RECORD_BYTES as u64
    }
}

fn encode(record: &Record) -> io::Result<[u8; RECORD_BYTES]> {
    let path = record.path.as_bytes();
    let mut bytes = [0; RECORD_BYTES];
    let Some(place) = bytes[HEAD_BYTES..].get_mut(..path.len()) else {
        return Err(io::Error::other("its path is too long"));
    };
    place.copy_from_slice(path);
    let mut flags = 0;
    if let Some(digest) = &record.digest {
        flags |= HAS_DIGEST;
        bytes[16..48].copy_from_slice(digest.as_bytes());
    }
    if let Some(mark) = &record.mark {
        flags |= HAS_MARK;
        bytes[48..HEAD_BYTES].copy_from_slice(mark);
    }
    bytes[..8].copy_from_slice(&record.lookups.to_ne_bytes());
    bytes[12..14].copy_from_slice(&(path.len() as u16).to_ne_bytes());
    bytes[14..16].copy_from_slice(&flags.to_ne_bytes());
    let check = crc32c::crc32c(&bytes[UNCHECKED_BYTES..]);
    bytes[8..UNCHECKED_BYTES].copy_from_slice(&check.to_ne_bytes());
    Ok(bytes)
}

/// Decodes a record; `None` for one that is free or damaged.
fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Record> {
    let (lookups, rest) = bytes.split_first_chunk()?;
    let (check, rest) = rest.split_first_chunk()?;
    let lookups = u64::from_ne_bytes(*lookups);
    if lookups == 0 || crc32c::crc32c(rest) != u32::from_ne_bytes(*check) {
        return None;
    }
    let (length, rest) = rest.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let (digest, rest) = rest.split_first_chunk()?;
    let (mark, rest) = rest.split_first_chunk()?;
    let path = rest.get(..usize::from(u16::from_ne_bytes(*length)))?;
    let flags = u16::from_ne_bytes(*flags);
    Some(Record {
        path: std::str::from_utf8(path).ok()?.to_owned(),
        digest: (flags & HAS_DIGEST != 0).then(|| Digest::from_sha256(*digest)),
        mark: (flags & HAS_MARK != 0).then_some(*mark),
        lookups,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> Record {
        let path = "ghcr.io/org/model:v1".to_owned();
        Record { path, digest: Some(Digest::of(b"a")), mark: Some([7; 32]), lookups: 3 }
    }

    #[test]
    fn a_later_process_finds_the_places_and_their_counts() {
        let file = tempfile::tempfile().unwrap();
        let records = Records::at(file.try_clone().unwrap(), 4096);
        let folder = Record { path: "ghcr.io".to_owned(), digest: None, mark: None, lookups: 1 };
        for (number, record) in [(1, &folder), (5, &record()), (9, &folder)] {
            records.write(number, record).unwrap();
        }
        records.count(5, 8).unwrap();
        records.count(9, 0).unwrap();
        let found = Records::at(file, 4096).read().unwrap();
        assert_eq!(found, [(1, folder), (5, Record { lookups: 8, ..record() })]);
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        assert!(encode(&Record { path: "a".repeat(RECORD_BYTES), ..record() }).is_err());
    }

    proptest! {
        #[test]
        fn damaged_records_are_left_out(at in UNCHECKED_BYTES..RECORD_BYTES, byte: u8, noise in prop::collection::vec(any::<u8>(), RECORD_BYTES)) {
            let mut bytes = encode(&record()).unwrap();
            prop_assert_eq!(decode(&bytes), Some(record()));
            let is_same = bytes[at] == byte;
            bytes[at] = byte;
            prop_assert_eq!(decode(&bytes).is_some(), is_same);
            let _ = decode(&noise.try_into().unwrap());
        }
    }
}
