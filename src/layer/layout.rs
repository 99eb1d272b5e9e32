//! The layout of a layer's stream in cache files and chunks (docs/design/002-cache.md).
//!
//! ```text
//! stream   | headers, small members | big member 0    | hdr | big member 1 | end |
//! piece    | 0: `stream`            | 1: `members/0`  | 2   | 3            | 4   |
//! chunks   | 0 1 2 3 4              | 5 6 7 8 9 10    | 11  | 12 13 14     | 15  |
//! ```
//!
//! A big member has a file of its own, whose offset 0 is the member's offset 0. So the kernel can
//! read a complete one without kitfs (FUSE passthrough). The bytes between big members lie in the
//! sparse `stream` file, at their stream offsets. Chunks are counted from the start of their piece:
//! the same member in another version of a kit has the same chunks. Chunk numbers rise with the
//! stream offset and cover the stream without a gap.

use std::ops::Range;

use super::{Extents, StreamOffset, Toc};

/// Bytes in a full chunk, the unit that is fetched, verified and evicted.
///
/// 256 KiB take 2 ms at 1 Gbit/s, so a random 4 KiB read waits little beyond its round trip. A 100
/// GB kit still has only 400,000 chunk records (32 MB).
pub const CHUNK_BYTES: u64 = 256 * 1024;

/// Members of at least this size get a file of their own.
///
/// 1 MiB: smaller members gain nothing from passthrough, and each file of the cache costs an inode.
pub const BIG_MEMBER_BYTES: u64 = 1024 * 1024;

/// The longest stream: 16 TiB, the largest file of ext4. It has 67 million chunks. A longer one is
/// a mistake or an attack.
pub const MOST_STREAM_BYTES: u64 = 16 << 40;

/// A file of a layer's cache folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CacheFile {
    /// Headers, small members, padding: at their stream offsets.
    Stream,
    /// The bytes of the big member with this index in [`Toc::members`].
    Member(u32),
}

/// The number of a chunk in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub u32);

/// A stretch of the stream that lies in one cache file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The bytes of the stream that lie here.
    pub stream: Range<StreamOffset>,
    /// The file that holds them.
    pub file: CacheFile,
    /// The number of the first chunk.
    pub first_chunk: ChunkId,
}

impl Piece {
    /// The position in [`Piece::file`] of a stream offset of this piece.
    pub fn file_offset(&self, at: StreamOffset) -> u64 {
        match self.file {
            CacheFile::Stream => at.get(),
            CacheFile::Member(_) => at - self.stream.start,
        }
    }
}

/// A range of the stream in the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The bytes of the stream.
    pub stream: Range<StreamOffset>,
    /// The file that holds them.
    pub file: CacheFile,
    /// Their offset in the file.
    pub file_offset: u64,
}

/// The cache layout of one layer; a pure function of its table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pieces: Vec<Piece>,
    stream_bytes: u64,
    chunks: u32,
}

/// Refuses a layer of more than [`MOST_STREAM_BYTES`], or with members outside the stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table of contents does not fit its layer: {0}")]
pub struct LayoutError(String);

impl Layout {
    /// Lays out a layer of `toc.stream_bytes` bytes.
    ///
    /// # Errors
    /// Fails if a member lies outside the stream, or the stream is longer than [`MOST_STREAM_BYTES`].
    pub fn new(toc: &Toc) -> Result<Self, LayoutError> {
        if toc.stream_bytes > MOST_STREAM_BYTES {
            let why = format!("it has {} bytes, and at most 16 TiB are read", toc.stream_bytes);
            return Err(LayoutError(why));
        }
        let mut builder = Builder { pieces: Vec::new(), at: StreamOffset(0), chunks: 0 };
        for (index, member) in toc.members.iter().enumerate() {
            let Some(range) = member.kind.extents().map(Extents::stored) else { continue };
            if range.end < range.start || range.end.get() > toc.stream_bytes {
                return Err(LayoutError(format!("member {index} lies at {range:?}")));
            }
            if range.end - range.start < BIG_MEMBER_BYTES {
                continue;
            }
            if range.start < builder.at {
                // A hard link: an earlier member has the same bytes.
                continue;
            }
            let index = u32::try_from(index).map_err(|_| LayoutError("too many members".into()))?;
            builder.push(range.start, CacheFile::Stream)?;
            builder.push(range.end, CacheFile::Member(index))?;
        }
        builder.push(StreamOffset(toc.stream_bytes), CacheFile::Stream)?;
        Ok(Self { pieces: builder.pieces, stream_bytes: toc.stream_bytes, chunks: builder.chunks })
    }

    /// The pieces in stream order; they cover the stream without gap or overlap.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The number of chunks.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// The length of the stream in bytes.
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// The whole stream.
    pub fn stream(&self) -> Range<StreamOffset> {
        StreamOffset(0)..StreamOffset(self.stream_bytes)
    }

    /// The chunks that hold any byte of `range`, as a half-open range of numbers.
    ///
    /// Positions beyond the stream's end are ignored.
    pub fn chunks_of(&self, range: Range<StreamOffset>) -> Range<u32> {
        let end = range.end.get().min(self.stream_bytes);
        if range.start.get() >= end {
            return 0..0;
        }
        self.chunk_at(range.start).0..self.chunk_at(StreamOffset(end - 1)).0 + 1
    }

    /// The bytes of the stream that make up `chunk`, and where they lie.
    pub fn chunk(&self, chunk: ChunkId) -> Placed {
        debug_assert!(chunk.0 < self.chunks, "chunk numbers come from this layout");
        let index = self.pieces.partition_point(|piece| piece.first_chunk <= chunk) - 1;
        let piece = &self.pieces[index];
        let start = piece.stream.start + u64::from(chunk.0 - piece.first_chunk.0) * CHUNK_BYTES;
        let end = (start + CHUNK_BYTES).min(piece.stream.end);
        Placed { file: piece.file, file_offset: piece.file_offset(start), stream: start..end }
    }

    /// The bytes of the stream that a run of chunks makes up; not empty.
    pub fn chunk_range(&self, chunks: Range<u32>) -> Range<StreamOffset> {
        let last = self.chunk(ChunkId(chunks.end - 1));
        self.chunk(ChunkId(chunks.start)).stream.start..last.stream.end
    }

    /// `range` cut at the borders of pieces, in order; positions beyond the end are left out.
    pub fn place(&self, range: Range<StreamOffset>) -> impl Iterator<Item = Placed> {
        let first = self.pieces.partition_point(|piece| piece.stream.end <= range.start);
        self.pieces[first..].iter().take_while(move |piece| piece.stream.start < range.end).map(
            move |piece| {
                let start = piece.stream.start.max(range.start);
                let end = piece.stream.end.min(range.end);
                Placed {
                    file: piece.file,
                    file_offset: piece.file_offset(start),
                    stream: start..end,
                }
            },
        )
    }

    fn chunk_at(&self, at: StreamOffset) -> ChunkId {
        let index = self.pieces.partition_point(|piece| piece.stream.end <= at);
        let piece = &self.pieces[index];
        let within = (at - piece.stream.start) / CHUNK_BYTES;
        ChunkId(piece.first_chunk.0 + within as u32)
    }
}

struct Builder {
    pieces: Vec<Piece>,
    at: StreamOffset,
    chunks: u32,
}

impl Builder {
    fn push(&mut self, end: StreamOffset, file: CacheFile) -> Result<(), LayoutError> {
        if end <= self.at {
            return Ok(());
        }
        let chunks = (end - self.at).div_ceil(CHUNK_BYTES);
        let piece = Piece { stream: self.at..end, file, first_chunk: ChunkId(self.chunks) };
        self.chunks = u32::try_from(chunks)
            .ok()
            .and_then(|chunks| self.chunks.checked_add(chunks))
            .ok_or_else(|| LayoutError("more than 2^32 chunks".into()))?;
        self.pieces.push(piece);
        self.at = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::{Member, MemberKind};

    fn toc(sizes: &[u64]) -> Toc {
        let mut at = StreamOffset(0);
        let mut members = Vec::new();
        for &size in sizes {
            let data = at + 512..at + 512 + size;
            at = StreamOffset((at + 512 + size).get().next_multiple_of(512));
            let kind = MemberKind::File(Extents::contiguous(data));
            members.push(Member { kind, ..Toc::raw(0).members[0].clone() });
        }
        Toc { members, stream_bytes: at.get() + 1024, warnings: Vec::new() }
    }

    #[test]
    fn a_stream_of_more_than_16_tib_is_refused() {
        let layout = Layout::new(&Toc::raw(MOST_STREAM_BYTES)).unwrap();
        assert_eq!(u64::from(layout.chunks()), MOST_STREAM_BYTES / CHUNK_BYTES);
        let error = Layout::new(&Toc::raw(MOST_STREAM_BYTES + 1)).unwrap_err();
        assert!(error.to_string().contains("16 TiB"), "{error}");
    }

    proptest! {
        #[test]
        fn pieces_and_chunks_cover_the_stream_once(sizes in prop::collection::vec(0..3_000_000u64, 0..8)) {
            let toc = toc(&sizes);
            let layout = Layout::new(&toc).unwrap();
            let mut at = StreamOffset(0);
            for id in 0..layout.chunks() {
                let chunk = layout.chunk(ChunkId(id));
                prop_assert_eq!(chunk.stream.start, at);
                prop_assert!(chunk.stream.end - chunk.stream.start <= CHUNK_BYTES);
                prop_assert_eq!(layout.chunks_of(chunk.stream.clone()), id..id + 1);
                at = chunk.stream.end;
            }
            prop_assert_eq!(at.get(), toc.stream_bytes);
        }

        #[test]
        fn placing_keeps_every_byte_and_starts_big_members_at_zero(
            sizes in prop::collection::vec(0..3_000_000u64, 1..6), start in 0..6_000_000u64, len in 0..3_000_000u64,
        ) {
            let toc = toc(&sizes);
            let layout = Layout::new(&toc).unwrap();
            let range = StreamOffset(start)..StreamOffset((start + len).min(toc.stream_bytes).max(start));
            let placed: u64 = layout.place(range.clone()).map(|p| p.stream.end - p.stream.start).sum();
            let inside = range.end.get().min(toc.stream_bytes).saturating_sub(start);
            prop_assert_eq!(placed, inside);
            for (index, member) in toc.members.iter().enumerate() {
                let data = member.kind.extents().unwrap().stored();
                if data.end - data.start >= BIG_MEMBER_BYTES {
                    let first = layout.place(data.clone()).next().unwrap();
                    prop_assert_eq!(first.file, CacheFile::Member(index as u32));
                    prop_assert_eq!(first.file_offset, 0);
                    prop_assert_eq!(layout.place(data.clone()).count(), 1);
                }
            }
        }
    }
}
