//! Bars of a map in a terminal.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::{LEAST_CELL_BYTES, MOST_LINES, cells_of_total};
use crate::cli::screen::Screen;
use crate::cli::sizes;
use crate::control::api::{Cell, ResidencyTotal};

const GREEN: Style = AnsiColor::Green.on_default();
const BLUE: Style = AnsiColor::Blue.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();

/// The characters before the bar of a line in the map of a single file: an offset.
const OFFSET_WIDTH: usize = 10;

/// Draws cells.
pub(super) struct Bars {
    /// The characters of a bar in a table.
    pub(super) width: usize,
    /// The characters of a line in the map of a single file.
    line_width: usize,
    is_ascii: bool,
    has_colours: bool,
}

impl Bars {
    pub(super) fn new(screen: &Screen) -> Self {
        Self {
            // Two fifths: names need the other half.
            width: (screen.width * 2 / 5).max(10),
            line_width: screen.width.saturating_sub(OFFSET_WIDTH + 2).max(10),
            is_ascii: screen.is_ascii,
            has_colours: screen.has_colours,
        }
    }

    /// The cells that a map of a single file can show. The bar of a table takes fewer.
    pub(super) fn most_cells(&self) -> u16 {
        (self.line_width * MOST_LINES) as u16
    }

    /// The bar of a file.
    pub(super) fn bar(&self, cells: &[Cell]) -> String {
        self.draw(&scaled(cells, self.width))
    }

    /// The bar of a directory.
    pub(super) fn bar_of_total(&self, total: &ResidencyTotal) -> String {
        self.draw(&cells_of_total(total, self.width))
    }

    /// The map of a file of `size` bytes: several lines, each with the offset of its first byte.
    pub(super) fn write_map(
        &self,
        output: &mut impl Write,
        size: u64,
        cells: &[Cell],
    ) -> io::Result<()> {
        let wanted = size.div_ceil(LEAST_CELL_BYTES).clamp(1, cells.len().max(1) as u64) as usize;
        let lines = wanted.div_ceil(self.line_width).clamp(1, MOST_LINES);
        let count = lines * self.line_width;
        for (number, line) in scaled(cells, count).chunks(self.line_width).enumerate() {
            let at = u128::from(size) * (number * self.line_width) as u128 / count as u128;
            let offset = sizes::show(at as u64);
            writeln!(output, "{offset:>OFFSET_WIDTH$}  {}", self.draw(line))?;
        }
        Ok(())
    }

    /// The meaning of the characters.
    pub(super) fn legend(&self) -> String {
        let full = |cell: Cell| self.draw(&[cell]);
        let part = |resident| full(Cell { resident, ..Cell::default() });
        format!(
            "{} verified  {} here  {} in part  {} on its way  {} not here  {} bad",
            full(Cell { resident: 100, verified: 100, ..Cell::default() }),
            part(100),
            part(50),
            full(Cell { fetching: 100, ..Cell::default() }),
            part(0),
            full(Cell { bad: 100, ..Cell::default() }),
        )
    }

    fn draw(&self, cells: &[Cell]) -> String {
        let mut text = String::new();
        for run in cells.chunk_by(|one, other| self.style(one) == self.style(other)) {
            let characters = run.iter().map(|cell| self.character(cell));
            match self.style(&run[0]) {
                Some(style) => {
                    text += &format!("{style}{}{style:#}", characters.collect::<String>());
                }
                None => text.extend(characters),
            }
        }
        text
    }

    fn style(&self, cell: &Cell) -> Option<Style> {
        let style = match *cell {
            Cell { bad: 1.., .. } => RED,
            Cell { fetching: 1.., resident: 0, .. } => YELLOW,
            Cell { verified: 1.., .. } => GREEN,
            Cell { resident: 1.., .. } => BLUE,
            Cell { .. } => return None,
        };
        self.has_colours.then_some(style)
    }

    fn character(&self, cell: &Cell) -> char {
        let (full, most, half, little, nothing) = match self.is_ascii {
            true => ('#', '*', '+', '-', '.'),
            false => ('█', '▓', '▒', '░', '·'),
        };
        match *cell {
            Cell { bad: 1.., .. } => '!',
            Cell { hole: true, .. } => ' ',
            Cell { fetching: 1.., resident: 0, .. } => '>',
            // Without colours, only this character tells that the digest is known.
            Cell { resident: 100, verified: 100, .. } => full,
            Cell { resident: 100, .. } if !self.has_colours => most,
            Cell { resident: 100, .. } => full,
            Cell { resident: 60.., .. } => most,
            Cell { resident: 30.., .. } => half,
            Cell { resident: 1.., .. } => little,
            Cell { .. } => nothing,
        }
    }
}

/// Cells as a bar of `width` characters: each is repeated, or neighbours are joined.
fn scaled(cells: &[Cell], width: usize) -> Vec<Cell> {
    if cells.is_empty() {
        return vec![Cell { hole: true, ..Cell::default() }; width];
    }
    let joined = |at: usize| {
        let start = at * cells.len() / width;
        let end = ((at + 1) * cells.len() / width).max(start + 1);
        join(&cells[start..end])
    };
    (0..width).map(joined).collect()
}

/// One cell for several. Its share is 100 only if each has 100, and 0 only if each has 0.
fn join(cells: &[Cell]) -> Cell {
    let stored: Vec<&Cell> = cells.iter().filter(|cell| !cell.hole).collect();
    let share = |of: fn(&Cell) -> u8| {
        let sum: usize = stored.iter().map(|cell| usize::from(of(cell))).sum();
        let mean = sum.checked_div(stored.len()).unwrap_or(0);
        mean.max(usize::from(sum > 0)) as u8
    };
    Cell {
        resident: share(|cell| cell.resident),
        verified: share(|cell| cell.verified),
        fetching: share(|cell| cell.fetching),
        bad: share(|cell| cell.bad),
        hole: stored.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bars(is_ascii: bool, has_colours: bool) -> Bars {
        Bars { width: 10, line_width: 10, is_ascii, has_colours }
    }

    fn cell() -> impl Strategy<Value = Cell> {
        (0..=100u8, any::<bool>(), 0..=100u8, any::<bool>()).prop_map(
            |(resident, is_verified, fetching, hole)| match hole {
                true => Cell { hole, ..Cell::default() },
                false => {
                    let verified = if is_verified { resident } else { 0 };
                    Cell { resident, verified, fetching, ..Cell::default() }
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_bar_is_as_wide_as_wanted_and_plain_where_it_must_be(
            cells in prop::collection::vec(cell(), 0..80),
        ) {
            let plain = bars(true, false).bar(&cells);
            prop_assert!(plain.is_ascii() && !plain.contains('\x1b'));
            prop_assert_eq!(plain.len(), 10);
            prop_assert_eq!(bars(false, false).bar(&cells).chars().count(), 10);
            let mut map = Vec::new();
            bars(true, false).write_map(&mut map, 1 << 30, &cells).unwrap();
            let map = String::from_utf8(map).unwrap();
            prop_assert!(map.lines().count() <= MOST_LINES);
            prop_assert!(map.lines().all(|line| line.len() <= OFFSET_WIDTH + 2 + 10));
        }

        #[test]
        fn a_joined_bar_is_full_or_empty_only_where_all_cells_are(
            cells in prop::collection::vec(cell(), 1..80), width in 1..90usize,
        ) {
            let bar = scaled(&cells, width);
            prop_assert_eq!(bar.len(), width);
            let all = |cells: &[Cell], is: fn(&Cell) -> bool| cells.iter().filter(|cell| !cell.hole).all(is);
            prop_assert_eq!(all(&bar, |cell| cell.resident == 100), all(&cells, |cell| cell.resident == 100));
            prop_assert_eq!(all(&bar, |cell| cell.resident == 0), all(&cells, |cell| cell.resident == 0));
        }
    }

    #[test]
    fn states_are_told_apart_without_colours() {
        let legend = bars(true, false).legend();
        assert_eq!(legend, "# verified  * here  + in part  > on its way  . not here  ! bad");
    }
}
