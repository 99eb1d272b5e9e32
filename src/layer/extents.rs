//! The places of a file's bytes in its layer's stream: one run, or data between holes.
//!
//! ```text
//! file    | data 0 | hole | data 1 | data 2.. | hole |      Extents::bytes
//!              \             \          |
//! stream  ..   | data 0 | data 1 | data 2.. |   ..          Extents::stored
//! ```
//!
//! Archives store the data of a sparse file back to back, in the order of the file. So any range of
//! a file needs one range of the stream at most ([`Extents::stored_of`]), also across holes. Holes
//! are zeros, and nothing is fetched for them.
//!
//! The form is canonical: runs are not empty, do not touch, and a file without a hole has no map.

use std::ops::Range;
use std::sync::Arc;

use super::StreamOffset;

/// The largest file: offsets in a file are signed 64-bit numbers (`loff_t`).
const MOST_FILE_BYTES: u64 = i64::MAX as u64;

/// The places of a file's bytes in its layer's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    stored: Range<StreamOffset>,
    /// `None` where all bytes are stored.
    holes: Option<Arc<SparseMap>>,
}

/// The data of a file with holes. Shared by hard links.
#[derive(Debug, PartialEq, Eq)]
struct SparseMap {
    file_bytes: u64,
    runs: Box<[Run]>,
}

/// A run of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The run's start in the file.
    offset: u64,
    /// The sum of the bytes of the earlier runs, which are stored before this one.
    stored_before: u64,
}

/// A run of a file's data, and where it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The bytes of the file.
    pub file: Range<u64>,
    /// The first byte's offset in the stream. The others follow.
    pub stream: StreamOffset,
}

/// The fault of a map of data and holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseMapError {
    /// A run starts before the end of the previous one.
    #[error("its data is not in order")]
    Order,
    /// A run leaves the file, or the file is larger than 2^63-1 bytes.
    #[error("its data lies beyond its end")]
    Outside,
    /// The runs together are longer or shorter than the data in the archive.
    #[error("its data has {mapped} bytes, and {stored} are stored")]
    Bytes {
        /// The bytes of all runs.
        mapped: u64,
        /// The bytes in the archive.
        stored: u64,
    },
}

impl Extents {
    /// A file whose bytes are this range of the stream.
    pub fn contiguous(stored: Range<StreamOffset>) -> Self {
        Self { stored, holes: None }
    }

    /// A file of `file_bytes` bytes with data at `runs` (ranges of the file in ascending order, which
    /// may be empty or touch), stored back to back at `stored`, and holes elsewhere.
    ///
    /// # Errors
    /// Fails if the runs are not in order, leave the file, or do not add up to the bytes of `stored`.
    pub fn sparse(
        stored: Range<StreamOffset>,
        file_bytes: u64,
        runs: impl IntoIterator<Item = Range<u64>>,
    ) -> Result<Self, SparseMapError> {
        if file_bytes > MOST_FILE_BYTES {
            return Err(SparseMapError::Outside);
        }
        let mut kept: Vec<Run> = Vec::new();
        let mut mapped = 0;
        let mut end = 0;
        for run in runs {
            if run.start < end || run.end < run.start {
                return Err(SparseMapError::Order);
            }
            if run.end > file_bytes {
                return Err(SparseMapError::Outside);
            }
            let touches = !kept.is_empty() && run.start == end;
            if !run.is_empty() {
                if !touches {
                    kept.push(Run { offset: run.start, stored_before: mapped });
                }
                mapped += run.end - run.start;
                end = run.end;
            }
        }
        let stored_bytes = stored.end - stored.start;
        if mapped != stored_bytes {
            return Err(SparseMapError::Bytes { mapped, stored: stored_bytes });
        }
        let holes = (mapped != file_bytes)
            .then(|| Arc::new(SparseMap { file_bytes, runs: kept.into_boxed_slice() }));
        Ok(Self { stored, holes })
    }

    /// The size of the file in bytes, holes included.
    pub fn bytes(&self) -> u64 {
        match &self.holes {
            None => self.stored_bytes(),
            Some(map) => map.file_bytes,
        }
    }

    /// The range of its data in the stream.
    pub fn stored(&self) -> Range<StreamOffset> {
        self.stored.clone()
    }

    /// The number of data bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.end - self.stored.start
    }

    /// Whether all bytes are data. Byte 0 of such a file is the first byte of [`Self::stored`].
    pub fn is_contiguous(&self) -> bool {
        self.holes.is_none()
    }

    /// The number of entries that its map takes in memory; 0 for a file without holes.
    pub fn mapped_runs(&self) -> usize {
        self.holes.as_ref().map_or(0, |map| map.runs.len())
    }

    /// The range of the stream that holds the data of `file`; empty where `file` is a hole. The
    /// part of `file` beyond the end is left out.
    pub fn stored_of(&self, file: Range<u64>) -> Range<StreamOffset> {
        let start = self.stored_before(file.start);
        let end = self.stored_before(file.end).max(start);
        self.stored.start + start..self.stored.start + end
    }

    /// The range of the file from the first to the last data byte in `stream`, with the holes
    /// between; empty where `stream` has none.
    pub fn file_of(&self, stream: Range<StreamOffset>) -> Range<u64> {
        let start = stream.start.max(self.stored.start);
        let end = stream.end.min(self.stored.end);
        if start >= end {
            return 0..0;
        }
        let (first, last) = (start - self.stored.start, end - self.stored.start - 1);
        self.file_offset(first)..self.file_offset(last) + 1
    }

    /// The runs of data in `file`, in order. The bytes between are zeros.
    pub fn data(&self, file: Range<u64>) -> impl Iterator<Item = Extent> {
        let wanted = file.start..file.end.min(self.bytes());
        let first = self.first_run_ending_behind(wanted.start);
        (first..self.runs()).map(|index| self.run(index)).map_while(move |run| {
            let start = run.file.start.max(wanted.start);
            let end = run.file.end.min(wanted.end);
            let stream = run.stream + start.saturating_sub(run.file.start);
            (start < end).then_some(Extent { file: start..end, stream })
        })
    }

    /// The first byte of data from `offset` on (`SEEK_DATA` of lseek(2)). `None` where no data
    /// follows.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.data(offset..self.bytes()).next().map(|run| run.file.start)
    }

    /// The first byte of a hole from `offset` on (`SEEK_HOLE` of lseek(2)). The end of a file
    /// counts as a hole; `None` beyond the end.
    pub fn next_hole(&self, offset: u64) -> Option<u64> {
        if offset >= self.bytes() {
            return None;
        }
        let run = self.data(offset..self.bytes()).next();
        // Runs do not touch, so a hole or the end follows each.
        Some(run.filter(|run| run.file.start == offset).map_or(offset, |run| run.file.end))
    }

    /// The offset in the file of a data byte. `stored` is its number among all data bytes.
    fn file_offset(&self, stored: u64) -> u64 {
        let Some(map) = &self.holes else { return stored };
        let run = map.runs[map.runs.partition_point(|run| run.stored_before <= stored) - 1];
        run.offset + (stored - run.stored_before)
    }

    fn runs(&self) -> usize {
        match &self.holes {
            None => usize::from(!self.stored.is_empty()),
            Some(map) => map.runs.len(),
        }
    }

    fn run(&self, index: usize) -> Extent {
        let Some(map) = &self.holes else {
            return Extent { file: 0..self.stored_bytes(), stream: self.stored.start };
        };
        let run = map.runs[index];
        let next = map.runs.get(index + 1).map_or(self.stored_bytes(), |next| next.stored_before);
        let bytes = next - run.stored_before;
        Extent {
            file: run.offset..run.offset + bytes,
            stream: self.stored.start + run.stored_before,
        }
    }

    fn first_run_ending_behind(&self, offset: u64) -> usize {
        let Some(map) = &self.holes else { return 0 };
        let behind = map.runs.partition_point(|run| run.offset <= offset);
        match behind.checked_sub(1) {
            Some(before) if self.run(before).file.end > offset => before,
            _ => behind,
        }
    }

    /// The number of data bytes before `offset`.
    fn stored_before(&self, offset: u64) -> u64 {
        let Some(map) = &self.holes else { return offset.min(self.stored_bytes()) };
        let behind = map.runs.partition_point(|run| run.offset <= offset);
        let Some(index) = behind.checked_sub(1) else { return 0 };
        let run = self.run(index);
        map.runs[index].stored_before + (offset - run.file.start).min(run.file.end - run.file.start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: StreamOffset = StreamOffset(1000);

    /// A file as a list of bytes that are data, or not.
    fn file() -> impl Strategy<Value = Vec<bool>> {
        prop::collection::vec((any::<bool>(), 0..5usize), 0..9)
            .prop_map(|runs| runs.into_iter().flat_map(|(is_data, n)| vec![is_data; n]).collect())
    }

    /// Its map, with runs split and empty ones between them.
    fn mapped(file: &[bool], splits: &[bool]) -> Extents {
        let mut runs = Vec::new();
        let mut stored = 0;
        for (at, _) in file.iter().enumerate().filter(|(_, is_data)| **is_data) {
            let at = at as u64;
            match runs.last_mut() {
                Some(Range { end, .. }) if *end == at && !splits[at as usize] => *end += 1,
                _ => runs.extend([at..at, at..at + 1]),
            }
            stored += 1;
        }
        runs.push(file.len() as u64..file.len() as u64);
        Extents::sparse(START..START + stored, file.len() as u64, runs).unwrap()
    }

    proptest! {
        #[test]
        fn a_map_says_of_every_byte_what_a_list_says(
            file in file(), splits in prop::collection::vec(any::<bool>(), 45), from in 0..50u64, bytes in 0..50u64,
        ) {
            let extents = mapped(&file, &splits);
            let size = file.len() as u64;
            let is_data = |at: u64| file[at as usize];
            let before = |at: u64| (0..at.min(size)).filter(|&at| is_data(at)).count() as u64;
            prop_assert_eq!(extents.bytes(), size);
            prop_assert_eq!(extents.is_contiguous(), file.iter().all(|is_data| *is_data));
            prop_assert_eq!(&extents, &mapped(&file, &[false; 45]));
            let wanted = from..from + bytes;
            let stored = extents.stored_of(wanted.clone());
            prop_assert_eq!(stored, START + before(from)..START + before(from + bytes));
            let mut found = Vec::new();
            for run in extents.data(wanted.clone()) {
                prop_assert!(run.file.start < run.file.end);
                prop_assert_eq!(run.stream, START + before(run.file.start));
                found.extend(run.file);
            }
            let expected: Vec<u64> = (from..size.min(wanted.end)).filter(|&at| is_data(at)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(extents.next_data(from), (from..size).find(|&at| is_data(at)));
            let hole = (from..size).find(|&at| !is_data(at)).or((from < size).then_some(size));
            prop_assert_eq!(extents.next_hole(from), hole);
        }

        #[test]
        fn a_range_of_the_stream_is_a_range_of_the_file(
            file in file(), splits in prop::collection::vec(any::<bool>(), 45), from in 990..1050u64, bytes in 0..50u64,
        ) {
            let extents = mapped(&file, &splits);
            let data: Vec<u64> = (0..file.len() as u64).filter(|&at| file[at as usize]).collect();
            let index = |at: u64| (at.saturating_sub(START.get()) as usize).min(data.len());
            let expected = match &data[index(from)..index(from + bytes)] {
                [] => 0..0,
                found => found[0]..found[found.len() - 1] + 1,
            };
            prop_assert_eq!(extents.file_of(StreamOffset(from).range(bytes)), expected);
        }

        #[test]
        fn any_map_is_taken_or_refused(
            file_bytes in any::<u64>(), stored in 0..1u64 << 40,
            runs in prop::collection::vec((any::<u64>(), any::<u64>()), 0..5),
        ) {
            let runs = runs.into_iter().map(|(start, end)| start..end);
            if let Ok(extents) = Extents::sparse(START..START + stored, file_bytes, runs) {
                prop_assert_eq!(extents.bytes(), file_bytes);
                prop_assert_eq!(extents.data(0..file_bytes).map(|run| run.file.end - run.file.start).sum::<u64>(), stored);
            }
        }
    }

    #[test]
    fn impossible_maps_are_named() {
        let sparse = |file_bytes, runs: &[Range<u64>]| {
            Extents::sparse(START..START + 10, file_bytes, runs.iter().cloned())
        };
        assert_eq!(sparse(100, &[20..25, 0..5]), Err(SparseMapError::Order));
        assert_eq!(sparse(100, &[0..10, 9..9]), Err(SparseMapError::Order));
        assert_eq!(sparse(12, &[4..5, 5..14]), Err(SparseMapError::Outside));
        assert_eq!(sparse(u64::MAX, &[0..5, 5..10]), Err(SparseMapError::Outside));
        let error = sparse(100, &[0..5, 5..9]).unwrap_err();
        assert_eq!(error, SparseMapError::Bytes { mapped: 9, stored: 10 });
        assert_eq!(sparse(10, &[0..4, 4..10]).unwrap(), Extents::contiguous(START..START + 10));
    }
}
