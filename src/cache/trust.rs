//! Trust in the files of big members over restarts: the `trusted` file of a layer.
//!
//! ```text
//! full, confirmed, every chunk checked --fsync, stat, record--> trusted
//! trusted --first change of the file: record cleared, synced--> unchecked
//! trusted --restart: inode, size or ctime differ--------------> unchecked
//! ```
//!
//! A process that has checked a big member notes the inode number, size and ctime of its file. As long as the
//! file has all three, nobody has written it since: the kernel sets the ctime with each write, and no call
//! sets it back (inode(7)). So a later process hands the file to the kernel without reading it first.
//!
//! - The content reaches the disk before its record is written.
//! - The record is cleared, and synced, before this process changes the file. After a power cut the
//!   disk may have new content and the old ctime.
//! - The kernel's clock for ctimes ticks every few milliseconds. A record is written only when the ctime
//!   is older than that: a later write gets another one.
//! - While bytes count as unchecked since the machine died, no record is believed (`durable`).
//!
//! Trust speaks for [`super::Backing`] alone. A read through this process compares each chunk once, as ever.
//!
//! The file, docs/format/cache-folder.md:
//!
//! ```text
//! header, 32 bytes: 0 magic | 8 version | 12 number of records | 16 zeros | 28 crc32c of 0..28
//! record, 40 bytes: 0 member | 4 zeros | 8 inode | 16 size | 24 ctime, seconds | 32 nanoseconds
//!                   36 crc32c of 0..36
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::backing::chunks_of_piece;
use super::disk::{Durability, FileStamp};
use super::store::Ready;
use super::{CacheError, LayerState, LayerStore};
use crate::layer::layout::Piece;
use crate::layer::{CacheFile, ChunkId};

/// The name of the file below a layer's folder.
pub(super) const TRUSTED: &str = "trusted";

const MAGIC: &[u8; 8] = b"kitfsTRU";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const RECORD_BYTES: usize = 40;

/// The age of a ctime that no later write can get: twice the longest tick of a kernel's clock (100 Hz).
const TICKS: Duration = Duration::from_millis(20);

/// The members of a layer whose files are trusted.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    /// `None` before the file was read.
    members: Option<BTreeMap<u32, Recorded>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recorded {
    stamp: FileStamp,
    /// The record's place in the file.
    position: usize,
}

impl LayerStore {
    /// Whether a member's file, which has this stamp now, is the one that was checked.
    pub(super) fn is_trusted(&self, index: u32, stamp: FileStamp) -> bool {
        if self.known.changes.unchecked_bytes() > 0 {
            return false;
        }
        let mut trusted = self.trusted.lock();
        self.recorded(&mut trusted).get(&index).is_some_and(|recorded| recorded.stamp == stamp)
    }

    /// Notes every member whose file can be trusted from now on, and is not yet. Blocks for some
    /// milliseconds where a file was just written.
    pub(super) fn trust_checked_members(&self) {
        let Some(ready) = self.ready.get() else { return };
        let pieces = ready.contents.layout.pieces().iter();
        self.trust(ready, pieces.filter(|piece| matches!(piece.file, CacheFile::Member(_))));
    }

    /// The same for some members of a layer.
    pub(super) fn trust<'p>(&self, ready: &Ready, pieces: impl Iterator<Item = &'p Piece>) {
        let changes = &self.known.changes;
        if self.state() != LayerState::Confirmed || self.known.is_unstored.load(Ordering::SeqCst) {
            return;
        }
        // The order of the looks: a change that begins later is seen in `put_trusted`.
        let begun = changes.begun();
        if changes.is_under_way() || changes.unchecked_bytes() > 0 {
            return;
        }
        let mut stamps = BTreeMap::new();
        for piece in pieces {
            let CacheFile::Member(index) = piece.file else { continue };
            match self.checked_stamp(ready, piece) {
                Ok(Some(stamp)) if !self.is_trusted(index, stamp) => {
                    stamps.insert(index, stamp);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a cache file is not trusted after a restart");
                }
            }
        }
        let Some(youngest) = stamps.values().map(|stamp| stamp.changed()).max() else { return };
        std::thread::sleep(TICKS.saturating_sub(age(youngest)));
        stamps.retain(|index, stamp| {
            age(stamp.changed()) >= TICKS
                && self.place(CacheFile::Member(*index)).stamp() == Some(*stamp)
        });
        if let Err(error) = self.put_trusted(begun, &stamps) {
            tracing::debug!(%error, "checked files of the cache are checked again after a restart");
        }
    }

    /// The stamp of a member's file, all of which was checked and has reached the disk.
    fn checked_stamp(&self, ready: &Ready, piece: &Piece) -> Result<Option<FileStamp>, CacheError> {
        let is_checked = chunks_of_piece(ready, piece).all(|chunk| {
            let full = ready.contents.layout.chunk(ChunkId(chunk)).stream;
            let state = ready.chunks.load(chunk);
            state.is_checked() && u64::from(state.filled()) == full.end - full.start
        });
        if !is_checked {
            return Ok(None);
        }
        let file = self.file(piece.file, false)?;
        file.sync()?;
        file.stamp().map(Some)
    }

    /// Adds records, unless the layer was changed since `begun`.
    fn put_trusted(&self, begun: u64, stamps: &BTreeMap<u32, FileStamp>) -> Result<(), CacheError> {
        // A change takes this lock after it is counted: it finds its record here, or is seen here.
        let mut trusted = self.trusted.lock();
        let changes = &self.known.changes;
        if stamps.is_empty() || changes.is_under_way() || changes.begun() != begun {
            return Ok(());
        }
        let before = self.recorded(&mut trusted).iter();
        let mut all: BTreeMap<u32, FileStamp> =
            before.map(|(&index, recorded)| (index, recorded.stamp)).collect();
        all.extend(stamps);
        self.folder.join(TRUSTED).write(&encode(&all), Durability::Synced)?;
        let positions = all.into_iter().enumerate();
        let members = positions
            .map(|(position, (index, stamp))| (index, Recorded { stamp, position }))
            .collect();
        trusted.members = Some(members);
        Ok(())
    }

    /// Ends the trust in a file that is about to be changed; durable when this returns.
    pub(super) fn end_trust_in(&self, file: CacheFile) -> Result<(), CacheError> {
        let CacheFile::Member(index) = file else { return Ok(()) };
        let mut trusted = self.trusted.lock();
        let members = self.recorded(&mut trusted);
        let Some(recorded) = members.get(&index) else { return Ok(()) };
        if let Some(file) = self.folder.join(TRUSTED).open_if_there()? {
            let place = HEADER_BYTES + recorded.position * RECORD_BYTES;
            file.write_all_at(&[0; RECORD_BYTES], place as u64)?;
            file.sync()?;
        }
        members.remove(&index);
        Ok(())
    }

    /// Ends the trust in all files of the layer: what an earlier process has checked is checked again before
    /// the kernel gets it.
    ///
    /// # Errors
    /// [`CacheError::Io`] when the record cannot be removed.
    pub fn end_trust(&self) -> Result<(), CacheError> {
        let mut trusted = self.trusted.lock();
        self.folder.join(TRUSTED).remove_file()?;
        self.folder.sync_folder()?;
        trusted.members = Some(BTreeMap::new());
        Ok(())
    }

    /// The records of the file, which is read once. One that cannot be read has none.
    fn recorded<'t>(&self, trusted: &'t mut Trusted) -> &'t mut BTreeMap<u32, Recorded> {
        trusted.members.get_or_insert_with(|| {
            let Some(ready) = self.ready.get() else { return BTreeMap::new() };
            let members = ready.contents.layout.pieces().len();
            let most_bytes = HEADER_BYTES + members * RECORD_BYTES;
            match self.folder.join(TRUSTED).read(most_bytes as u64) {
                Ok(bytes) => bytes.map(|bytes| decode(&bytes)).unwrap_or_default(),
                Err(error) => {
                    tracing::debug!(%error, "checked files of the cache are checked again");
                    BTreeMap::new()
                }
            }
        })
    }
}

/// The time since `moment`; none for one in the future.
fn age(moment: (i64, u32)) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let Ok(seconds) = u64::try_from(moment.0) else { return Duration::MAX };
    now.saturating_sub(Duration::new(seconds, moment.1.min(999_999_999)))
}

fn encode(members: &BTreeMap<u32, FileStamp>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + members.len() * RECORD_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(members.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 12]);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    for (index, stamp) in members {
        let mut record = Vec::with_capacity(RECORD_BYTES);
        record.extend_from_slice(&index.to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&stamp.inode.to_le_bytes());
        record.extend_from_slice(&stamp.bytes.to_le_bytes());
        record.extend_from_slice(&stamp.changed_seconds.to_le_bytes());
        record.extend_from_slice(&stamp.changed_nanoseconds.to_le_bytes());
        record.extend_from_slice(&crc32c::crc32c(&record).to_le_bytes());
        bytes.append(&mut record);
    }
    bytes
}

/// The records of a file that can be believed.
fn decode(bytes: &[u8]) -> BTreeMap<u32, Recorded> {
    let u32_of = |bytes: &[u8], at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[at + i]));
    let u64_of = |bytes: &[u8], at: usize| {
        u64::from(u32_of(bytes, at)) | u64::from(u32_of(bytes, at + 4)) << 32
    };
    let Some((header, records)) = bytes.split_at_checked(HEADER_BYTES) else {
        return BTreeMap::new();
    };
    let (records, rest) = records.as_chunks::<RECORD_BYTES>();
    let is_ours = header.starts_with(MAGIC)
        && u32_of(header, 8) == VERSION
        && u32_of(header, 28) == crc32c::crc32c(&header[..28])
        && u32_of(header, 12) as usize == records.len()
        && rest.is_empty();
    if !is_ours {
        return BTreeMap::new();
    }
    let decoded = records.iter().enumerate().filter_map(|(position, record)| {
        // A record of zeros was cleared, and fails here too: the crc32c of 36 zeros is not zero.
        let is_right = u32_of(record, 36) == crc32c::crc32c(&record[..36]);
        is_right.then(|| {
            let stamp = FileStamp {
                inode: u64_of(record, 8),
                bytes: u64_of(record, 16),
                changed_seconds: u64_of(record, 24).cast_signed(),
                changed_nanoseconds: u32_of(record, 32),
            };
            (u32_of(record, 0), Recorded { stamp, position })
        })
    });
    decoded.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_stamp() -> impl Strategy<Value = FileStamp> {
        any::<(u64, u64, i64, u32)>().prop_map(|(inode, bytes, seconds, nanoseconds)| FileStamp {
            inode,
            bytes,
            changed_seconds: seconds,
            changed_nanoseconds: nanoseconds,
        })
    }

    fn stamps(decoded: BTreeMap<u32, Recorded>) -> BTreeMap<u32, FileStamp> {
        decoded.into_iter().map(|(index, recorded)| (index, recorded.stamp)).collect()
    }

    const GOLDEN: &str = concat!(
        "6b697466735452550100000001000000000000000000000000000000aac70d030300000000000000",
        "0807060504030201000010000000000000f15365000000000500000068a029cd",
    );

    #[test]
    fn golden_bytes() {
        let stamp = FileStamp {
            inode: 0x0102_0304_0506_0708,
            bytes: 1 << 20,
            changed_seconds: 1_700_000_000,
            changed_nanoseconds: 5,
        };
        let hex: String =
            encode(&[(3, stamp)].into()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    proptest! {
        #[test]
        fn encoded_records_are_decoded(
            members in prop::collection::btree_map(any::<u32>(), any_stamp(), 0..5),
        ) {
            let decoded = decode(&encode(&members));
            prop_assert!(decoded.values().map(|it| it.position).eq(0..members.len()));
            prop_assert_eq!(stamps(decoded), members);
        }

        /// A flip, a cut or bytes behind the end: what is still believed was recorded.
        #[test]
        fn damaged_records_are_not_believed(
            members in prop::collection::btree_map(any::<u32>(), any_stamp(), 1..5),
            at in any::<prop::sample::Index>(),
            bit in 0..8u8,
        ) {
            let whole = encode(&members);
            let at = at.index(whole.len());
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            let left = stamps(decode(&flipped));
            prop_assert!(left.len() < members.len());
            prop_assert!(left.iter().all(|(index, stamp)| members.get(index) == Some(stamp)));
            prop_assert!(decode(&whole[..at]).is_empty());
            prop_assert!(decode(&[&whole[..], &[0]].concat()).is_empty());
        }
    }

    #[test]
    fn a_cleared_record_is_none_and_the_others_stay() {
        let stamp =
            |inode| FileStamp { inode, bytes: 1, changed_seconds: 2, changed_nanoseconds: 3 };
        let mut bytes = encode(&[(1, stamp(10)), (7, stamp(70))].into());
        bytes[HEADER_BYTES..HEADER_BYTES + RECORD_BYTES].fill(0);
        let decoded = decode(&bytes);
        assert_eq!(decoded[&7].position, 1);
        assert_eq!(stamps(decoded), [(7, stamp(70))].into());
    }
}
