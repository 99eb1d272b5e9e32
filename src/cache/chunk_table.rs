//! The `chunks` file of a layer: how much of each chunk is in the cache, with the checksum and seal of each.
//!
//! docs/format/chunks.md:
//!
//! ```text
//! header, 64 bytes: 0 magic | 8 version | 12 bytes in a chunk | 16 number of chunks | 20 zeros
//!                   28 blake3 of the toc file | 60 crc32c of 0..60
//! record, 80 bytes: 0 filled bytes | 4 crc32c of them | 8 kind | 12 seal or earlier bytes, 64 bytes
//!                   76 crc32c of (chunk number, 0..76)
//! earlier bytes:    12 their number | 16 crc32c of them | 20 zeros
//! ```
//!
//! A record is written after the bytes it speaks of, into its own place, without a sync. A record with
//! a wrong checksum (torn, or in another one's place) is not believed, and the bytes are checked again
//! before this process first serves them. So a crash at any moment, a power cut included, costs at most
//! a chunk, and never yields a wrong byte.
//!
//! A record of zeros is an empty chunk. A record with a seal but nothing filled is an evicted chunk of a confirmed
//! layer: the bytes that come in its place must match that seal. Before its layer is confirmed, an emptied chunk
//! has no seal. Its record keeps the checksum of the bytes that were here ([`Earlier`]), so that a reader's pages
//! are dropped when other bytes come.
//!
//! A table is a sparse file, because a layer may claim any number of chunks. Reading a table skips holes, so the
//! cost depends on the written records only.
//!
//! Every table is kept twice (see [`super::mending`]); this module knows one file only.

use std::io::ErrorKind;

use super::CacheError;
use super::disk::{DiskFile, Durability, Place};
use super::seal::{Seal, Value};
use crate::layer::layout::CHUNK_BYTES;

const MAGIC: &[u8; 8] = b"kitfsCHK";
const VERSION: u32 = 2;
const HEADER_BYTES: u64 = 64;
pub(super) const RECORD_BYTES: usize = 80;
/// Records that are read or written with one call: 80 kB.
const RECORDS_AT_ONCE: usize = 1024;
/// The place of a record's own checksum.
const CHECKSUM_AT: usize = RECORD_BYTES - 4;

/// Kinds of records. A record of another kind is not believed.
const PLAIN: u32 = 0;
const BLAKE3: u32 = 1;
const SHA256: u32 = 2;
const EARLIER: u32 = 3;

/// The table's record of one chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// The bytes from the chunk's start that are in the cache.
    pub(super) filled: u32,
    /// The CRC32C of them (Castagnoli, RFC 3720).
    pub(super) checksum: u32,
    /// The seal of the whole chunk, if it was full when its layer was confirmed.
    pub(super) seal: Option<Seal>,
    /// The bytes that were here before, of a chunk without a seal.
    pub(super) earlier: Option<Earlier>,
}

/// The bytes that a chunk had from its start when it was emptied. Readers may have them, in the
/// kernel's pages too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Earlier {
    /// Their number; not 0.
    pub(super) bytes: u32,
    /// The CRC32C of them.
    pub(super) checksum: u32,
}

impl Record {
    /// Whether `bytes` are the filled bytes that this record describes.
    pub(super) fn matches(&self, bytes: &[u8]) -> bool {
        self.filled as usize == bytes.len() && self.checksum == crc32c::crc32c(bytes)
    }

    fn encode(&self, chunk: u32) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        if *self == Self::default() {
            return bytes;
        }
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.filled.to_le_bytes());
        put(4, &self.checksum.to_le_bytes());
        match (&self.seal, &self.earlier) {
            (None, None) => put(8, &PLAIN.to_le_bytes()),
            (None, Some(earlier)) => {
                put(8, &EARLIER.to_le_bytes());
                put(12, &earlier.bytes.to_le_bytes());
                put(16, &earlier.checksum.to_le_bytes());
            }
            (Some(Seal::Blake3(digest)), _) => {
                put(8, &BLAKE3.to_le_bytes());
                put(12, digest);
            }
            (Some(Seal::Sha256 { before, after }), _) => {
                put(8, &SHA256.to_le_bytes());
                put(12, before);
                put(44, after);
            }
        }
        let crc = checksum(chunk, &bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` where the checksum is wrong, a length impossible or the kind unknown.
    fn decode(chunk: u32, bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        if bytes == &[0; RECORD_BYTES] {
            return Some(Self::default());
        }
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
        let value_at = |at: usize| -> Value { std::array::from_fn(|i| bytes[at + i]) };
        let filled = u32_at(0);
        let is_right = u32_at(CHECKSUM_AT) == checksum(chunk, &bytes[..CHECKSUM_AT]);
        if !is_right || u64::from(filled) > CHUNK_BYTES {
            return None;
        }
        let mut record = Self { filled, checksum: u32_at(4), seal: None, earlier: None };
        match u32_at(8) {
            PLAIN => {}
            BLAKE3 => record.seal = Some(Seal::Blake3(value_at(12))),
            SHA256 => {
                record.seal = Some(Seal::Sha256 { before: value_at(12), after: value_at(44) });
            }
            EARLIER if (1..=CHUNK_BYTES as u32).contains(&u32_at(12)) => {
                record.earlier = Some(Earlier { bytes: u32_at(12), checksum: u32_at(16) });
            }
            _ => return None,
        }
        Some(record)
    }
}

fn checksum(chunk: u32, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&chunk.to_le_bytes()), record)
}

/// Writes a table of `chunks` chunks into an empty file. Chunks that are not among `records` (in order)
/// are empty, and take no room.
pub(super) fn write(
    table: &DiskFile,
    toc_digest: &Value,
    chunks: u32,
    records: &[(u32, Record)],
) -> Result<(), CacheError> {
    table.set_len(table_bytes(chunks))?;
    table.write_all_at(&encode_header(&Header { toc_digest: *toc_digest, chunks }), 0)?;
    let follows = |before: &(u32, Record), after: &(u32, Record)| before.0 + 1 == after.0;
    for run in records.chunk_by(follows).flat_map(|run| run.chunks(RECORDS_AT_ONCE)) {
        let bytes: Vec<u8> = run.iter().flat_map(|(chunk, record)| record.encode(*chunk)).collect();
        table.write_all_at(&bytes, place_of(run[0].0))?;
    }
    Ok(())
}

fn encode_header(header: &Header) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
    bytes.extend_from_slice(&header.chunks.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&header.toc_digest);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The fields of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    toc_digest: Value,
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

/// The chunks that have bytes, in order, and how many each has.
pub(super) type FilledChunks = Vec<(u32, u32)>;

/// The contents of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loaded {
    /// The chunks that have bytes.
    pub(super) filled: FilledChunks,
    /// The number of chunks that have a seal.
    pub(super) sealed: u32,
    /// Chunks whose record cannot be believed, in order. They count as empty.
    pub(super) damaged: Vec<u32>,
}

/// Reads a table: `None` where there is no usable one of `chunks` chunks for the toc with this
/// digest.
pub(super) fn load(
    place: &Place,
    toc_digest: &Value,
    chunks: u32,
) -> Result<Option<Loaded>, CacheError> {
    let Some((header, table)) = open(place)? else { return Ok(None) };
    if header != (Header { toc_digest: *toc_digest, chunks }) {
        return Ok(None);
    }
    let mut loaded = Loaded::default();
    for_each(&table, chunks, |chunk, record| match record {
        Some(record) => {
            loaded.filled.extend((record.filled > 0).then_some((chunk, record.filled)));
            loaded.sealed += u32::from(record.seal.is_some());
        }
        None => loaded.damaged.push(chunk),
    })?;
    Ok(Some(loaded))
}

/// Writes the records of one table to another place, but for those that cannot be believed. `false`
/// where the table is not usable.
pub(super) fn copy(from: &Place, to: &Place, durability: Durability) -> Result<bool, CacheError> {
    let Some((header, table)) = open(from)? else { return Ok(false) };
    let mut records = Vec::new();
    for_each(&table, header.chunks, |chunk, record| {
        records.extend(record.filter(|it| *it != Record::default()).map(|record| (chunk, record)));
    })?;
    let put = |file: &DiskFile| write(file, &header.toc_digest, header.chunks, &records);
    to.write_with(put, durability)?;
    Ok(true)
}

/// Whether the header is that of a table of `chunks` chunks for the toc with this digest.
pub(super) fn is_usable(
    place: &Place,
    toc_digest: &Value,
    chunks: u32,
) -> Result<bool, CacheError> {
    let header = Header { toc_digest: *toc_digest, chunks };
    Ok(open(place)?.is_some_and(|(found, _)| found == header))
}

/// The filled bytes of all chunks together, as the table has them; `None` where there is no usable
/// one.
pub(super) fn count(place: &Place) -> Result<Option<u64>, CacheError> {
    let Some((header, table)) = open(place)? else { return Ok(None) };
    let mut filled_bytes = 0;
    for_each(&table, header.chunks, |_, record| {
        filled_bytes += record.map_or(0, |record| u64::from(record.filled));
    })?;
    Ok(Some(filled_bytes))
}

/// The header of a table whose file is as long as the header says, and the file.
fn open(place: &Place) -> Result<Option<(Header, DiskFile)>, CacheError> {
    let Some(table) = place.open_if_there()? else { return Ok(None) };
    let mut bytes = [0; HEADER_BYTES as usize];
    if table.read_at(&mut bytes, 0)? < bytes.len() {
        return Ok(None);
    }
    let length = table.length()?;
    let header = decode_header(&bytes).filter(|header| length == table_bytes(header.chunks));
    Ok(header.map(|header| (header, table)))
}

/// Calls `each` with the records that are not in a hole of the file; `None` for one that cannot be
/// believed.
pub(super) fn for_each(
    table: &DiskFile,
    chunks: u32,
    mut each: impl FnMut(u32, Option<Record>),
) -> Result<(), CacheError> {
    let mut buffer = vec![0; RECORDS_AT_ONCE * RECORD_BYTES];
    let mut next = 0;
    while next < chunks {
        let Some(data) = table.data_from(place_of(next))? else { break };
        next = next.max(record_at(data.start));
        let end = chunks.min(record_at(data.end - 1).saturating_add(1));
        while next < end {
            let count = (end - next).min(RECORDS_AT_ONCE as u32);
            let bytes = &mut buffer[..count as usize * RECORD_BYTES];
            table
                .read_exact_at(bytes, place_of(next))
                .map_err(CacheError::io("read", table.path()))?;
            for (chunk, record) in (next..).zip(bytes.as_chunks::<RECORD_BYTES>().0) {
                each(chunk, Record::decode(chunk, record));
            }
            next += count;
        }
    }
    Ok(())
}

/// The record that the byte at `offset` belongs to; the first one for a byte of the header.
fn record_at(offset: u64) -> u32 {
    let record = offset.saturating_sub(HEADER_BYTES) / RECORD_BYTES as u64;
    u32::try_from(record).unwrap_or(u32::MAX)
}

/// The record of a chunk as it is on disk now; `None` where it cannot be believed.
pub(super) fn read_record(table: &DiskFile, chunk: u32) -> Result<Option<Record>, CacheError> {
    let mut bytes = [0; RECORD_BYTES];
    match table.read_exact_at(&mut bytes, place_of(chunk)) {
        Ok(()) => Ok(Record::decode(chunk, &bytes)),
        // Somebody cut the file.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(CacheError::io("read", table.path())(error)),
    }
}

/// Writes the record of a chunk. Only the chunk's owner does.
pub(super) fn write_record(
    table: &DiskFile,
    chunk: u32,
    record: &Record,
) -> Result<(), CacheError> {
    table.write_all_at(&record.encode(chunk), place_of(chunk))
}

fn place_of(chunk: u32) -> u64 {
    table_bytes(chunk)
}

/// The length of a table of `chunks` chunks.
fn table_bytes(chunks: u32) -> u64 {
    HEADER_BYTES + u64::from(chunks) * RECORD_BYTES as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::disk::Root;
    use super::*;

    fn place(folder: &tempfile::TempDir) -> Place {
        Root::open(folder.path(), 16).unwrap().place("chunks")
    }

    /// The bytes of a table that was written at once.
    fn encode(toc_digest: &Value, records: &[Record]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let records: Vec<(u32, Record)> = (0..).zip(records.iter().copied()).collect();
        let table = place(&folder).open_or_create().unwrap();
        write(&table, toc_digest, records.len() as u32, &records).unwrap();
        std::fs::read(table.path()).unwrap()
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let blake3 = any::<Value>().prop_map(Seal::Blake3);
        let sha256 = any::<(Value, Value)>();
        let sha256 = sha256.prop_map(|(before, after)| Seal::Sha256 { before, after });
        let seal = prop_oneof![blake3, sha256].prop_map(|seal| (Some(seal), None));
        let earlier = (1..=CHUNK_BYTES as u32, any::<u32>());
        let earlier =
            earlier.prop_map(|(bytes, checksum)| (None, Some(Earlier { bytes, checksum })));
        let kind = prop_oneof![Just((None, None)), seal, earlier];
        (0..=CHUNK_BYTES as u32, any::<u32>(), kind).prop_map(
            |(filled, checksum, (seal, earlier))| Record { filled, checksum, seal, earlier },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_damaged_table_says_the_same_or_less(
            records in prop::collection::vec(any_record(), 1..20), at in any::<prop::sample::Index>(),
            bit in 0..8u8, cut in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let place = place(&folder);
            let mut bytes = encode(&[7; 32], &records);
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            std::fs::write(place.path(), &bytes).unwrap();
            if let Some(loaded) = load(&place, &[7; 32], records.len() as u32).unwrap() {
                let is_right = |(chunk, filled): &(u32, u32)| records[*chunk as usize].filled == *filled;
                prop_assert!(!cut && loaded.filled.iter().all(is_right));
                let lost = records.iter().filter(|record| record.filled > 0).count() - loaded.filled.len();
                prop_assert!(lost <= loaded.damaged.len() && loaded.damaged.len() <= 1);
            }
        }

        #[test]
        fn records_are_written_in_place(records in prop::collection::vec(any_record(), 1..20), new in any_record(), at in any::<prop::sample::Index>()) {
            let folder = tempfile::tempdir().unwrap();
            let place = place(&folder);
            std::fs::write(place.path(), encode(&[7; 32], &records)).unwrap();
            let mut records = records;
            let at = at.index(records.len());
            let file = place.open().unwrap();
            write_record(&file, at as u32, &new).unwrap();
            records[at] = new;
            for (chunk, record) in records.iter().enumerate() {
                prop_assert_eq!(read_record(&file, chunk as u32).unwrap(), Some(*record));
            }
            let sum: u64 = records.iter().map(|record| u64::from(record.filled)).sum();
            prop_assert_eq!(count(&place).unwrap(), Some(sum));
        }
    }

    #[test]
    fn a_table_of_another_toc_or_size_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        assert_eq!(load(&place, &[7; 32], 3).unwrap(), None, "it is not there");
        std::fs::write(place.path(), encode(&[7; 32], &[Record::default(); 3])).unwrap();
        assert_eq!(load(&place, &[7; 32], 3).unwrap(), Some(Loaded::default()));
        assert_eq!(load(&place, &[8; 32], 3).unwrap(), None);
        assert_eq!(load(&place, &[7; 32], 4).unwrap(), None);
    }

    /// A layer claims 2.5 TB. Its table takes neither that room on disk nor that time to read.
    #[test]
    fn chunks_that_a_layer_only_claims_take_no_room_and_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(&folder);
        let table = place.open_or_create().unwrap();
        let record = |filled| Record { filled, ..Record::default() };
        let records = [(0, record(1)), (1, record(2)), (9_999_999, record(3))];
        write(&table, &[7; 32], 10_000_000, &records).unwrap();
        assert_eq!(table.length().unwrap(), 64 + 800_000_000);
        assert!(place.bytes_on_disk() <= 64 * 1024, "{} bytes", place.bytes_on_disk());
        for (chunk, record) in [&records[..], &[(2, record(0)), (9_999_998, record(0))]].concat() {
            assert_eq!(read_record(&table, chunk).unwrap(), Some(record));
        }
        let mut read = 0;
        let mut found = Vec::new();
        for_each(&table, 10_000_000, |chunk, record| {
            read += 1;
            found.extend(record.filter(|it| it.filled > 0).map(|record| (chunk, record)));
        })
        .unwrap();
        assert_eq!(found, records);
        assert!(read < 10_000, "{read} records were read");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Wherever the holes of the file lie, every record is found once.
        #[test]
        fn records_between_holes_are_all_found(
            filled in prop::collection::btree_map(0..200_000u32, 1..1000u32, 0..12), chunks in 200_000..300_000u32,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let place = place(&folder);
            let record = |filled| Record { filled, ..Record::default() };
            let records: Vec<_> = filled.iter().map(|(chunk, filled)| (*chunk, record(*filled))).collect();
            write(&place.open_or_create().unwrap(), &[7; 32], chunks, &records).unwrap();
            let loaded = load(&place, &[7; 32], chunks).unwrap().unwrap();
            prop_assert_eq!(loaded.filled, filled.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_format_page() {
        let seal = Seal::Sha256 { before: [0xcd; 32], after: [0xef; 32] };
        let filled = Record { filled: 0x0102, checksum: 0x1234_5678, ..Record::default() };
        let confirmed = Record { seal: Some(seal), ..filled };
        let evicted = Record { seal: Some(Seal::Blake3([0x11; 32])), ..Record::default() };
        let earlier = Some(Earlier { bytes: 0x0304, checksum: 0x8765_4321 });
        let emptied = Record { earlier, ..Record::default() };
        let bytes = encode(&[0xab; 32], &[confirmed, evicted, Record::default(), emptied]);
        assert_eq!(bytes.len(), 384);
        assert_eq!(&bytes[..28], b"kitfsCHK\x02\0\0\0\0\0\x04\0\x04\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(bytes[28..60], [0xab; 32]);
        assert_eq!(&bytes[64..76], b"\x02\x01\0\0\x78\x56\x34\x12\x02\0\0\0");
        assert_eq!(bytes[76..140], [[0xcd; 32], [0xef; 32]].concat());
        assert_eq!(&bytes[144..156], b"\0\0\0\0\0\0\0\0\x01\0\0\0");
        assert_eq!(bytes[156..220], [[0x11; 32], [0; 32]].concat());
        assert_eq!(bytes[224..304], [0; 80]);
        assert_eq!(&bytes[304..324], b"\0\0\0\0\0\0\0\0\x03\0\0\0\x04\x03\0\0\x21\x43\x65\x87");
        assert_eq!(bytes[324..380], [0; 56]);
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_not_believed() {
        let seal = Some(Seal::Blake3([1; 32]));
        let mut bytes = Record { filled: 7, checksum: 9, seal, earlier: None }.encode(3);
        bytes[8] = 4;
        let crc = checksum(3, &bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Record::decode(3, &bytes), None);
    }
}
