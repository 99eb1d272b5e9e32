//! Maps of sparse files in the four forms of GNU tar ("Storing Sparse Files" in its manual).
//!
//! ```text
//! old GNU   header 'S': 4 runs, the file's size; then blocks of 21 runs each; then the data
//! PAX 0.0   records GNU.sparse.offset and GNU.sparse.numbytes, one of each for a run
//! PAX 0.1   record GNU.sparse.map: OFFSET,BYTES,OFFSET,BYTES…
//! PAX 1.0   records give the version; decimal lines before the data: COUNT, then OFFSET, BYTES…,
//!           padded to a block
//! ```
//!
//! The data of all runs follows back to back. The size of the entry counts the data, and in 1.0 the
//! lines of the map too.

use std::ops::Range;

use super::header::{BLOCK_BYTES, SparseFields, number};
use crate::layer::extents::SparseMapError;
use crate::layer::{Extents, StreamOffset};

/// The places of the fields in an old GNU header (GNU tar manual, "Basic Tar Format", `struct
/// oldgnu_header`) and in star's (`struct star_in_header`).
const GNU_RUNS: Range<usize> = 386..482;
const STAR_RUNS: Range<usize> = 356..452;
/// Two fields of 12 bytes: offset and bytes.
const RUN_BYTES: usize = 24;
/// The runs of a block behind the header, and the byte that says whether another one follows.
const MORE_RUNS: Range<usize> = 0..504;
/// More digits than any 64-bit number has.
const MOST_DIGITS: usize = 20;

/// The runs of a sparse file, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs(Vec<Range<u64>>);

impl Runs {
    /// Adds a run. There may be at most `most` runs.
    pub(super) fn push(&mut self, offset: u64, bytes: u64, most: usize) -> Result<(), String> {
        if self.0.len() >= most {
            return Err(too_many());
        }
        let end = offset.checked_add(bytes).ok_or("a run of its data has an impossible place")?;
        self.0.push(offset..end);
        Ok(())
    }

    /// The record of PAX 0.1.
    pub(super) fn parse_list(text: &[u8], most: usize) -> Result<Self, String> {
        let malformed = || "its GNU.sparse.map is no list of numbers".to_owned();
        let mut runs = Self::default();
        if text.is_empty() {
            return Ok(runs);
        }
        let mut numbers = text.split(|&byte| byte == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            let bytes = numbers.next().flatten();
            let (offset, bytes) = offset.zip(bytes).ok_or_else(malformed)?;
            runs.push(offset, bytes, most)?;
        }
        Ok(runs)
    }
}

fn too_many() -> String {
    "its sparse map has too many entries, together with the archive's members".to_owned()
}

/// The map of a file, which may go on in the blocks behind its header.
#[derive(Clone, Debug)]
pub(super) struct PendingMap {
    runs: Runs,
    /// The size of the file, holes included.
    file_bytes: u64,
    lines: Option<Lines>,
}

/// The decimal lines of PAX 1.0.
#[derive(Clone, Debug, Default)]
struct Lines {
    digits: Vec<u8>,
    /// The number of lines to come; `None` before the first line.
    left: Option<u64>,
    offset: Option<u64>,
}

impl PendingMap {
    /// The map of an old GNU header or of star's, and whether more blocks of it follow.
    pub(super) fn of_header(
        block: &[u8; BLOCK_BYTES],
        fields: SparseFields,
        most: usize,
    ) -> Result<(Self, bool), String> {
        let (fields, is_extended, size) = match fields {
            SparseFields::Gnu => (GNU_RUNS, block[482], &block[483..495]),
            SparseFields::Star => (STAR_RUNS, block[355], &block[452..464]),
        };
        let file_bytes = field(size)?;
        let mut map = Self { runs: Runs::default(), file_bytes, lines: None };
        map.take_fields(&block[fields], most)?;
        Ok((map, is_extended != 0))
    }

    /// A map of PAX 1.0, which lies before the data.
    pub(super) fn in_lines(file_bytes: u64) -> Self {
        Self { runs: Runs::default(), file_bytes, lines: Some(Lines::default()) }
    }

    /// A complete map, from PAX records.
    pub(super) fn whole(file_bytes: u64, runs: Runs) -> Self {
        Self { runs, file_bytes, lines: None }
    }

    /// The file's extents, once the map is complete.
    pub(super) fn extents(self, stored: Range<StreamOffset>) -> Result<Extents, SparseMapError> {
        Extents::sparse(stored, self.file_bytes, self.runs.0)
    }

    /// Takes in a block of the map; says whether another one follows.
    pub(super) fn take_block(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        most: usize,
    ) -> Result<bool, String> {
        let Some(lines) = &mut self.lines else {
            self.take_fields(&block[MORE_RUNS], most)?;
            return Ok(block[MORE_RUNS.end] != 0);
        };
        for &byte in block {
            if lines.left == Some(0) {
                break;
            }
            match byte {
                b'0'..=b'9' if lines.digits.len() < MOST_DIGITS => lines.digits.push(byte),
                b'\n' => lines.end_line(&mut self.runs, most)?,
                _ => return Err(not_lines()),
            }
        }
        Ok(lines.left != Some(0))
    }

    /// An entry without bytes ends the list, as GNU tar reads it.
    fn take_fields(&mut self, fields: &[u8], most: usize) -> Result<(), String> {
        for run in fields.chunks_exact(RUN_BYTES) {
            if run[RUN_BYTES / 2] == 0 {
                break;
            }
            let (offset, bytes) = run.split_at(RUN_BYTES / 2);
            self.runs.push(field(offset)?, field(bytes)?, most)?;
        }
        Ok(())
    }
}

impl Lines {
    fn end_line(&mut self, runs: &mut Runs, most: usize) -> Result<(), String> {
        let number = decimal(&self.digits).ok_or_else(not_lines)?;
        self.digits.clear();
        let Some(left) = self.left else {
            if number > most as u64 {
                return Err(too_many());
            }
            self.left = Some(2 * number);
            return Ok(());
        };
        self.left = Some(left - 1);
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => runs.push(offset, number, most)?,
        }
        Ok(())
    }
}

fn not_lines() -> String {
    "the sparse map before its data is not in lines of numbers".to_owned()
}

fn field(bytes: &[u8]) -> Result<u64, String> {
    number(bytes)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| "a field of its sparse map is not a number".to_owned())
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1000;

    fn block(bytes: &[u8]) -> [u8; BLOCK_BYTES] {
        std::array::from_fn(|at| bytes.get(at).copied().unwrap_or(0))
    }

    fn in_lines(text: &[u8]) -> Result<(Runs, usize), String> {
        let mut map = PendingMap::in_lines(0);
        let mut blocks = 0;
        for piece in text.chunks(BLOCK_BYTES) {
            blocks += 1;
            if !map.take_block(&block(piece), MOST)? {
                return Ok((map.runs, blocks));
            }
        }
        Err("more is wanted".to_owned())
    }

    proptest! {
        #[test]
        fn lists_and_lines_give_the_same_runs(runs in prop::collection::vec((0..1u64 << 60, 0..1u64 << 60), 0..90)) {
            let expected = Runs(runs.iter().map(|(offset, bytes)| *offset..offset + bytes).collect());
            let list = runs.iter().map(|(offset, bytes)| format!("{offset},{bytes}")).collect::<Vec<_>>().join(",");
            prop_assert_eq!(Runs::parse_list(list.as_bytes(), MOST), Ok(expected.clone()));
            let lines: String = runs.iter().map(|(offset, bytes)| format!("{offset}\n{bytes}\n")).collect();
            let lines = format!("{}\n{lines}", runs.len());
            let blocks = lines.len().div_ceil(BLOCK_BYTES);
            prop_assert_eq!(in_lines(lines.as_bytes()), Ok((expected, blocks)));
        }

        #[test]
        fn any_bytes_are_a_map_or_refused(bytes in prop::collection::vec(prop_oneof![any::<u8>(), b'0'..=b'9', Just(b'\n')], 0..1200)) {
            let _ = in_lines(&bytes);
            let _ = Runs::parse_list(&bytes, MOST);
            let _ = PendingMap::of_header(&block(&bytes), SparseFields::Gnu, MOST);
        }
    }

    #[test]
    fn maps_are_bounded_before_they_take_memory() {
        assert!(in_lines(b"1001\n").unwrap_err().contains("too many"));
        assert!(in_lines(b"99999999999999999999\n").unwrap_err().contains("lines of numbers"));
        assert!(in_lines(b"999999999999999999999\n").is_err());
        let list = vec!["1,0"; 1001].join(",");
        assert!(Runs::parse_list(list.as_bytes(), MOST).unwrap_err().contains("too many"));
        assert!(Runs::parse_list(b"1,2,3", MOST).is_err());
        assert!(Runs::parse_list(b"18446744073709551615,1", MOST).is_err());
    }
}
