//! A sparse file on its way into the table of contents: its map may go on behind its header.
//!
//! ```text
//! old GNU   | header S | more runs | more runs | data of all runs | next header
//!             size: of the data                '----- content ----'
//! PAX 1.0   | x | header 0 | lines | lines | data of all runs | next header
//!                            '------ content: the size --------'
//! ```

use std::ops::Range;

use super::entry::MapPlace;
use super::header::BLOCK_BYTES;
use super::sparse::PendingMap;
use crate::layer::{Extents, Member, MemberKind, StreamOffset};

/// A sparse file.
pub(super) struct SparseFile {
    /// The name as written, for messages.
    pub name: Vec<u8>,
    /// The bytes of content that the header promises, less the blocks of the map so far.
    pub content: Range<StreamOffset>,
    /// The offset of the map's next block.
    pub next_block: StreamOffset,
    /// Whether more of the map follows.
    pub has_more: bool,
    member: Member,
    map: PendingMap,
    /// Whether the content begins with the map.
    holds_map: bool,
}

impl SparseFile {
    /// Reads the map of `member` from the header `block` or the records. The map may have at most `most_runs`
    /// entries.
    pub(super) fn new(
        member: Member,
        name: &[u8],
        place: MapPlace,
        block: &[u8; BLOCK_BYTES],
        most_runs: usize,
    ) -> Result<Self, String> {
        let content = member.kind.extents().map(Extents::stored).expect("it is a file");
        let (map, has_more, holds_map) = match place {
            MapPlace::Header(fields) => {
                let (map, has_more) = PendingMap::of_header(block, fields, most_runs)?;
                (map, has_more, false)
            }
            MapPlace::Records(records) => match records.into_map()? {
                (file_bytes, None) => (PendingMap::in_lines(file_bytes), true, true),
                (file_bytes, Some(runs)) => (PendingMap::whole(file_bytes, runs), false, false),
            },
        };
        let (name, next_block) = (name.to_vec(), content.start);
        Ok(Self { name, content, next_block, has_more, member, map, holds_map })
    }

    /// Takes in the next block of the map.
    pub(super) fn take_block(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        most_runs: usize,
    ) -> Result<(), String> {
        self.has_more = self.map.take_block(block, most_runs)?;
        let bytes = self.content.end - self.content.start;
        self.next_block += BLOCK_BYTES as u64;
        self.content = match self.holds_map {
            true if self.next_block > self.content.end => {
                return Err("its map is longer than its content".to_owned());
            }
            true => self.next_block..self.content.end,
            false => self.next_block..self.next_block + bytes,
        };
        Ok(())
    }

    /// The member, once its map is complete.
    pub(super) fn into_member(self) -> Result<Member, String> {
        let extents = self.map.extents(self.content);
        let extents = extents.map_err(|error| format!("its sparse map is wrong: {error}"))?;
        Ok(Member { kind: MemberKind::File(extents), ..self.member })
    }
}
