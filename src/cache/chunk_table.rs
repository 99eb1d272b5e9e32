//! The `chunks` file of a layer: how much of each chunk is in the cache, and what it is checked by.
//!
//! docs/format/chunks.md:
//!
//! ```text
//! header, 64 bytes: 0 magic | 8 version | 12 bytes in a chunk | 16 number of chunks | 20 zeros
//!                   28 blake3 of the toc file | 60 crc32c of 0..60
//! record, 40 bytes: 0 filled bytes | 4 blake3 of them | 36 crc32c of (chunk number, 0..36)
//!            or:    0 filled bytes + 2^31 | 4 crc32c of them | 8 zeros | 36 the same
//! ```
//!
//! A record is written after the bytes it speaks of, into its own place, without a sync. It is
//! believed only if its checksum is right (a torn or misplaced record is not), and the bytes are
//! checked again before this process first serves them: so a crash at any moment, power cuts
//! included, costs at most a chunk, and never yields a wrong byte. A record of zeros is an empty
//! chunk; a record with a digest but nothing filled is an evicted chunk of a confirmed layer:
//! what is fetched in its place must have that digest.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::check::{Check, ChunkDigest};
use super::{CacheError, files};
use crate::layer::layout::CHUNK_BYTES;

const MAGIC: &[u8; 8] = b"kitfsCHK";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 64;
const RECORD_BYTES: u64 = 40;

/// Added to the filled bytes of a record that has a checksum in the digest's place. A kitfs that
/// does not know it takes the chunk for absent.
const HAS_CRC32C: u32 = 1 << 31;

/// What the table says of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// How many bytes from the chunk's start are in the cache.
    pub(super) filled: u32,
    /// What they come to; of an evicted chunk, the digest of all its bytes.
    pub(super) check: Check,
}

impl Record {
    fn encode(&self, chunk: u32) -> [u8; RECORD_BYTES as usize] {
        let mut bytes = [0; RECORD_BYTES as usize];
        if *self != Self::default() {
            let word = match &self.check {
                Check::Blake3(digest) => {
                    bytes[4..36].copy_from_slice(digest);
                    self.filled
                }
                Check::Crc32c(checksum) => {
                    bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
                    self.filled | HAS_CRC32C
                }
            };
            bytes[..4].copy_from_slice(&word.to_le_bytes());
            let crc = checksum(chunk, &bytes[..36]);
            bytes[36..].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    /// An empty record where the checksum is wrong or the length impossible.
    fn decode(chunk: u32, bytes: &[u8; RECORD_BYTES as usize]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let has_crc32c = u32_at(0) & HAS_CRC32C != 0;
        let filled = u32_at(0) & !HAS_CRC32C;
        if u32_at(36) != checksum(chunk, &bytes[..36]) || u64::from(filled) > CHUNK_BYTES {
            return Self::default();
        }
        let check = match has_crc32c {
            true => Check::Crc32c(u32_at(4)),
            false => Check::Blake3(std::array::from_fn(|i| bytes[4 + i])),
        };
        Self { filled, check }
    }
}

fn checksum(chunk: u32, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&chunk.to_le_bytes()), record)
}

/// The bytes of a whole table.
pub(super) fn encode(toc_digest: &ChunkDigest, records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 + records.len() * RECORD_BYTES as usize);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(toc_digest);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    for (chunk, record) in (0..).zip(records) {
        bytes.extend_from_slice(&record.encode(chunk));
    }
    bytes
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    toc_digest: ChunkDigest,
    chunks: u32,
}

fn decode_header(bytes: &[u8; HEADER_BYTES as usize]) -> Option<Header> {
    let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    let is_ours = &bytes[..8] == MAGIC
        && u32_at(8) == VERSION
        && u64::from(u32_at(12)) == CHUNK_BYTES
        && u32_at(60) == crc32c::crc32c(&bytes[..60]);
    is_ours
        .then(|| Header { toc_digest: std::array::from_fn(|i| bytes[28 + i]), chunks: u32_at(16) })
}

/// How many bytes of each chunk a table says are there: `None` where there is no usable table of
/// `chunks` chunks for the toc with this digest.
pub(super) fn load(
    path: &Path,
    toc_digest: &ChunkDigest,
    chunks: u32,
) -> Result<Option<Vec<u32>>, CacheError> {
    let Some((header, records)) = open(path)? else { return Ok(None) };
    if header != (Header { toc_digest: *toc_digest, chunks }) {
        return Ok(None);
    }
    let mut filled = Vec::with_capacity(chunks as usize);
    for_each(records, chunks, |record| filled.push(record.filled))
        .map_err(CacheError::io("read", path))?;
    Ok(Some(filled))
}

/// The filled bytes of all chunks together, as the table has them; 0 where there is no usable one.
pub(super) fn count(path: &Path) -> Result<u64, CacheError> {
    let Some((header, records)) = open(path)? else { return Ok(0) };
    let mut filled_bytes = 0;
    for_each(records, header.chunks, |record| filled_bytes += u64::from(record.filled))
        .map_err(CacheError::io("read", path))?;
    Ok(filled_bytes)
}

/// The header of a table whose file is as long as the header says, and its records.
fn open(path: &Path) -> Result<Option<(Header, BufReader<File>)>, CacheError> {
    let mut file = match files::open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CacheError::io("open", path)(error)),
    };
    let length = file.metadata().map_err(CacheError::io("read", path))?.len();
    let mut bytes = [0; HEADER_BYTES as usize];
    if length < HEADER_BYTES {
        return Ok(None);
    }
    file.read_exact(&mut bytes).map_err(CacheError::io("read", path))?;
    let header = decode_header(&bytes)
        .filter(|header| length == HEADER_BYTES + u64::from(header.chunks) * RECORD_BYTES);
    Ok(header.map(|header| (header, BufReader::with_capacity(64 * 1024, file))))
}

fn for_each(
    mut records: impl Read,
    chunks: u32,
    mut each: impl FnMut(Record),
) -> std::io::Result<()> {
    let mut bytes = [0; RECORD_BYTES as usize];
    for chunk in 0..chunks {
        records.read_exact(&mut bytes)?;
        each(Record::decode(chunk, &bytes));
    }
    Ok(())
}

/// The record of a chunk as it is on disk now.
pub(super) fn read_record(table: &File, chunk: u32) -> std::io::Result<Record> {
    let mut bytes = [0; RECORD_BYTES as usize];
    table.read_exact_at(&mut bytes, HEADER_BYTES + u64::from(chunk) * RECORD_BYTES)?;
    Ok(Record::decode(chunk, &bytes))
}

/// Writes the record of a chunk. Only the chunk's owner does.
pub(super) fn write_record(table: &File, chunk: u32, record: &Record) -> std::io::Result<()> {
    table.write_all_at(&record.encode(chunk), HEADER_BYTES + u64::from(chunk) * RECORD_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let checksum = any::<u32>().prop_map(Check::Crc32c);
        let check = prop_oneof![checksum, any::<ChunkDigest>().prop_map(Check::Blake3)];
        (0..=CHUNK_BYTES as u32, check).prop_map(|(filled, check)| Record { filled, check })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_table_says_the_same_or_less(
            records in prop::collection::vec(any_record(), 1..20), at in any::<prop::sample::Index>(),
            bit in 0..8u8, cut in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("chunks");
            let mut bytes = encode(&[7; 32], &records);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            std::fs::write(&path, &bytes).unwrap();
            if let Some(filled) = load(&path, &[7; 32], records.len() as u32).unwrap() {
                let differing = filled.iter().zip(&records).filter(|(a, b)| **a != b.filled);
                let differing: Vec<u32> = differing.map(|(filled, _)| *filled).collect();
                prop_assert!(!cut && (differing.is_empty() || differing == [0]));
            }
        }

        #[test]
        fn records_are_written_in_place(records in prop::collection::vec(any_record(), 1..20), new in any_record(), at in any::<prop::sample::Index>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("chunks");
            std::fs::write(&path, encode(&[7; 32], &records)).unwrap();
            let mut records = records;
            let at = at.index(records.len());
            let file = files::open(&path, false).unwrap();
            write_record(&file, at as u32, &new).unwrap();
            records[at] = new;
            for (chunk, record) in records.iter().enumerate() {
                prop_assert_eq!(read_record(&file, chunk as u32).unwrap(), *record);
            }
            let sum: u64 = records.iter().map(|record| u64::from(record.filled)).sum();
            prop_assert_eq!(count(&path).unwrap(), sum);
        }
    }

    #[test]
    fn a_table_of_another_toc_or_size_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chunks");
        std::fs::write(&path, encode(&[7; 32], &[Record::default(); 3])).unwrap();
        assert_eq!(load(&path, &[7; 32], 3).unwrap(), Some(vec![0; 3]));
        assert_eq!(load(&path, &[8; 32], 3).unwrap(), None);
        assert_eq!(load(&path, &[7; 32], 4).unwrap(), None);
        assert_eq!(load(&folder.path().join("none"), &[7; 32], 3).unwrap(), None);
    }

    #[test]
    fn the_bytes_are_those_of_the_format_page() {
        let digest = Record { filled: 0x0102, check: Check::Blake3([0xcd; 32]) };
        let checksum = Record { filled: 0x0304, check: Check::Crc32c(0x1234_5678) };
        let bytes = encode(&[0xab; 32], &[digest, checksum]);
        assert_eq!(bytes.len(), 144);
        assert_eq!(&bytes[..28], b"kitfsCHK\x01\0\0\0\0\0\x04\0\x02\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytes[28..60], [0xab; 32]);
        assert_eq!(&bytes[64..68], b"\x02\x01\0\0");
        assert_eq!(bytes[68..100], [0xcd; 32]);
        assert_eq!(&bytes[104..112], b"\x04\x03\0\x80\x78\x56\x34\x12");
        assert_eq!(bytes[112..140], [0; 28]);
    }
}
