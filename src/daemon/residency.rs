//! Which parts of files are in the cache ([`ResidencyRequest`]).
//!
//! ```text
//! path --> files below it --order, skip--> rows --InFlight::parts--> sums, cells, ranges
//!                '-----------------------------InFlight::parts--> total
//! ```
//!
//! The answer is bounded whatever the kit has: rows, cells and ranges by number, and all of them by bytes.

use std::cmp::Reverse;

use super::kits::pinned_reference;
use super::listing::descendants;
use super::paths::{self, LastLink};
use crate::control::api::{
    Cell, Failure, RangeState, RawPath, Residency, ResidencyRequest, ResidencyRow, ResidencyRows,
    ResidencyTotal, ResidentRange,
};
use crate::fs::{InFlight, LoadedKit, Part, PartState};
use crate::kit::{NodeId, NodeKind, Tree};

/// The most rows of an answer: as many files as a person scrolls through, and more.
const MOST_ROWS: u32 = 4096;
/// The most cells of a row: a terminal that is twice as wide as a wide screen has as many.
const MOST_CELLS: u16 = 512;
/// The most ranges of an answer. A file of 12 GB of which every other chunk is here has as many.
const MOST_RANGES: u32 = 50_000;
/// The bytes of JSON after which no further row begins: half a frame, so that the last row fits too.
const MOST_ANSWER_BYTES: usize = 8 * 1024 * 1024;
/// An estimate of the JSON of a row without path, cells and ranges.
const ROW_BYTES: usize = 256;
/// An estimate of the JSON of a cell: a few of its fields are usually 0.
const CELL_BYTES: usize = 32;
/// An estimate of the JSON of a range.
const RANGE_BYTES: usize = 64;
/// The bytes that a byte of a path may take, percent-encoded.
const ENCODED_BYTES: usize = 3;

/// Answers a request about a loaded kit. `path` is the request's path from the root of this kit. Blocks for as
/// long as a look at each chunk of the files takes.
pub(super) fn residency(
    kit: &LoadedKit,
    path: &RawPath,
    request: &ResidencyRequest,
) -> Result<Residency, Failure> {
    let tree = &kit.tree;
    let root = paths::find(kit, path, LastLink::Follow)?;
    let is_directory = matches!(tree.kind(root), NodeKind::Directory);
    if is_directory {
        paths::check_is_there(tree, root)?;
    }
    let view = View { kit, in_flight: InFlight::of(kit) };
    let rows = match (request.rows, is_directory) {
        (_, false) => vec![root],
        (ResidencyRows::Children, true) => tree.children(root).map(NodeId).collect(),
        (ResidencyRows::InOrder, true) => files_below(tree, root),
        (ResidencyRows::Largest, true) => {
            let mut files = files_below(tree, root);
            files.sort_by_key(|&file| (Reverse(tree.size(file)), file));
            files
        }
    };
    let mut answer = Residency {
        reference: pinned_reference(&kit.origin, kit.manifest),
        path: RawPath(tree.path(root)),
        total: (request.skip == 0).then(|| view.total(root)),
        rows: Vec::new(),
        left_out: 0,
    };
    let mut left = Left {
        rows: request.most_rows.min(MOST_ROWS),
        ranges: request.most_ranges.min(MOST_RANGES) as usize,
        bytes: MOST_ANSWER_BYTES,
    };
    let mut wanted = rows.into_iter().skip(request.skip as usize);
    while left.rows > 0 && left.bytes > 0 {
        let Some(node) = wanted.next() else { break };
        answer.rows.push(view.row(node, request.cells.min(MOST_CELLS), &mut left));
    }
    answer.left_out = wanted.len() as u64;
    Ok(answer)
}

/// The sums over a file, or over all files below a directory.
pub(super) fn total_of(kit: &LoadedKit, node: NodeId) -> ResidencyTotal {
    View { kit, in_flight: InFlight::of(kit) }.total(node)
}

fn files_below(tree: &Tree, root: NodeId) -> Vec<NodeId> {
    let mut below = descendants(tree, root);
    below.retain(|&node| matches!(tree.kind(node), NodeKind::File(_)));
    below
}

/// The room that an answer has.
struct Left {
    rows: u32,
    ranges: usize,
    bytes: usize,
}

/// A kit at one moment.
struct View<'a> {
    kit: &'a LoadedKit,
    in_flight: InFlight,
}

impl View<'_> {
    /// The sums over the file `node`, or over all files below it.
    fn total(&self, node: NodeId) -> ResidencyTotal {
        let mut total = ResidencyTotal::default();
        let tree = &self.kit.tree;
        let below = match tree.kind(node) {
            NodeKind::Directory => files_below(tree, node),
            NodeKind::File(_) | NodeKind::Symlink(_) => vec![node],
        };
        for file in below {
            let is_file = matches!(tree.kind(file), NodeKind::File(_));
            total.files += u64::from(is_file);
            for part in self.in_flight.parts(self.kit, file) {
                add(&mut total, &part);
            }
        }
        total
    }

    fn row(&self, node: NodeId, cells: u16, left: &mut Left) -> ResidencyRow {
        let tree = &self.kit.tree;
        let is_file = matches!(tree.kind(node), NodeKind::File(_));
        let mut row = ResidencyRow {
            path: RawPath(tree.path(node)),
            is_directory: matches!(tree.kind(node), NodeKind::Directory),
            total: self.total(node),
            cells: Vec::new(),
            ranges: Vec::new(),
            ranges_are_cut: false,
            missing: tree.missing(node).map(str::to_owned),
        };
        if is_file {
            let parts = || self.in_flight.parts(self.kit, node);
            row.cells = cells_of(parts(), tree.size(node), cells);
            let mut ranges = parts().filter_map(range_of);
            row.ranges = ranges.by_ref().take(left.ranges).collect();
            // A request without ranges has none cut.
            row.ranges_are_cut = !row.ranges.is_empty() && ranges.next().is_some();
        }
        let words = row.missing.as_ref().map_or(0, String::len);
        let bytes = ROW_BYTES
            + ENCODED_BYTES * row.path.0.len()
            + CELL_BYTES * row.cells.len()
            + RANGE_BYTES * row.ranges.len()
            + words;
        left.rows -= 1;
        left.ranges -= row.ranges.len();
        left.bytes = left.bytes.saturating_sub(bytes);
        row
    }
}

fn add(total: &mut ResidencyTotal, part: &Part) {
    let bytes = part.range.end - part.range.start;
    let counts: &mut [&mut u64] = match part.state {
        PartState::Hole => &mut [],
        PartState::Absent => &mut [&mut total.stored_bytes],
        PartState::Fetching => &mut [&mut total.stored_bytes, &mut total.fetching_bytes],
        PartState::Resident => &mut [&mut total.stored_bytes, &mut total.resident_bytes],
        PartState::Bad => &mut [&mut total.stored_bytes, &mut total.bad_bytes],
        PartState::Verified => {
            &mut [&mut total.stored_bytes, &mut total.resident_bytes, &mut total.verified_bytes]
        }
    };
    // A sparse file says any size; the sums over many are not bounded.
    total.bytes = total.bytes.saturating_add(bytes);
    counts.iter_mut().for_each(|count| **count = count.saturating_add(bytes));
}

fn range_of(part: Part) -> Option<ResidentRange> {
    let state = match part.state {
        PartState::Absent => return None,
        PartState::Hole => RangeState::Hole,
        PartState::Fetching => RangeState::Fetching,
        PartState::Resident => RangeState::Resident,
        PartState::Verified => RangeState::Verified,
        PartState::Bad => RangeState::Bad,
    };
    Some(ResidentRange { start: part.range.start, end: part.range.end, state })
}

/// The cells of a file of `size` bytes: `count` parts that differ by a byte at most. A file with fewer bytes has a
/// cell for each byte. `parts` cover the file in order.
fn cells_of(parts: impl Iterator<Item = Part>, size: u64, count: u16) -> Vec<Cell> {
    let count = u64::from(count).min(size);
    // The product of a size and a number of cells may not fit 64 bits.
    let border = |cell: u64| (u128::from(size) * u128::from(cell) / u128::from(count)) as u64;
    let mut sums = vec![ResidencyTotal::default(); count as usize];
    let mut cell = 0;
    for part in parts {
        let mut start = part.range.start;
        while start < part.range.end && cell < count {
            let end = part.range.end.min(border(cell + 1));
            add(&mut sums[cell as usize], &Part { range: start..end, state: part.state });
            start = end;
            cell += u64::from(end == border(cell + 1));
        }
    }
    sums.iter().map(cell_of).collect()
}

fn cell_of(sums: &ResidencyTotal) -> Cell {
    let share = |bytes: u64| match (bytes, sums.stored_bytes) {
        (0, _) => 0,
        (all, stored) if all == stored => 100,
        (some, stored) => (u128::from(some) * 100 / u128::from(stored)).max(1) as u8,
    };
    Cell {
        resident: share(sums.resident_bytes),
        verified: share(sums.verified_bytes),
        fetching: share(sums.fetching_bytes),
        bad: share(sums.bad_bytes),
        hole: sums.stored_bytes == 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [PartState; 6] = [
        PartState::Hole,
        PartState::Absent,
        PartState::Fetching,
        PartState::Resident,
        PartState::Verified,
        PartState::Bad,
    ];

    fn parts(bytes: &[usize]) -> impl Iterator<Item = Part> {
        let bytes = bytes.iter().enumerate();
        bytes.map(|(at, &state)| Part { range: at as u64..at as u64 + 1, state: STATES[state] })
    }

    proptest! {
        #[test]
        fn cells_cover_each_byte_once_and_say_all_only_of_all(
            bytes in prop::collection::vec(0..STATES.len(), 0..200), count in 0..60u16,
        ) {
            let size = bytes.len() as u64;
            let cells = cells_of(parts(&bytes), size, count);
            let wanted = usize::from(count).min(bytes.len());
            prop_assert_eq!(cells.len(), wanted);
            for (index, cell) in cells.iter().enumerate() {
                let of = |cell: usize| bytes.len() * cell / wanted;
                let own = &bytes[of(index)..of(index + 1)];
                let stored = own.iter().filter(|&&state| state > 0).count();
                let having = |states: &[usize]| own.iter().filter(|state| states.contains(state)).count();
                prop_assert_eq!(cell.hole, stored == 0);
                for (share, states) in [
                    (cell.resident, &[3, 4][..]), (cell.verified, &[4]), (cell.fetching, &[2]), (cell.bad, &[5]),
                ] {
                    let some = having(states);
                    prop_assert_eq!(share == 0, some == 0);
                    prop_assert_eq!(share == 100, some > 0 && some == stored);
                    prop_assert!(share <= 100);
                }
            }
        }

        #[test]
        fn sums_add_up(bytes in prop::collection::vec(0..STATES.len(), 0..100)) {
            let mut total = ResidencyTotal::default();
            parts(&bytes).for_each(|part| add(&mut total, &part));
            let count = |states: &[usize]| bytes.iter().filter(|state| states.contains(state)).count() as u64;
            prop_assert_eq!(total.bytes, bytes.len() as u64);
            prop_assert_eq!(total.stored_bytes, count(&[1, 2, 3, 4, 5]));
            prop_assert_eq!(total.resident_bytes, count(&[3, 4]));
            prop_assert_eq!(total.verified_bytes, count(&[4]));
            prop_assert_eq!((total.fetching_bytes, total.bad_bytes), (count(&[2]), count(&[5])));
        }

        #[test]
        fn the_largest_file_has_cells(cells in 1..600u16) {
            let part = Part { range: 0..u64::MAX, state: PartState::Verified };
            let cells = cells_of(std::iter::once(part), u64::MAX, cells);
            prop_assert!(cells.iter().all(|cell| cell.verified == 100));
        }
    }
}
