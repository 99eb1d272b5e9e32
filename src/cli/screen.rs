//! The terminal that output goes to: its width, its colours, and its characters.

use std::io::{self, IsTerminal};

use unicode_width::UnicodeWidthStr as _;

use super::output::printable;

/// The width of output that goes to no terminal, and the least that tables expect.
const USUAL_WIDTH: usize = 80;
/// The least width: a terminal that reports less counts as this wide, because no table fits less.
const LEAST_WIDTH: usize = 40;
/// The greatest width, which bounds the length of lines: a terminal that reports more counts as this wide.
const MOST_WIDTH: usize = 400;

/// The abilities of the standard output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// In columns.
    pub(super) width: usize,
    pub(super) is_terminal: bool,
    pub(super) has_colours: bool,
    /// Whether only ASCII characters are safe.
    pub(super) is_ascii: bool,
}

impl Screen {
    pub(super) fn of_stdout(is_ascii: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let choice = anstream::AutoStream::choice(&io::stdout());
        let has_colours = is_terminal && choice != anstream::ColorChoice::Never;
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        // A terminal without a size reports 0.
        let width = size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        let width = width.map_or(USUAL_WIDTH, |width| width.clamp(LEAST_WIDTH, MOST_WIDTH));
        Self { width, is_terminal, has_colours, is_ascii }
    }
}

/// The spaces between two columns.
const GAP: usize = 2;
/// The least width of a cut name, even where the terminal is too narrow.
const LEAST_NAME: usize = 12;

impl Screen {
    /// Cuts the middle of the names in two columns, so that the lines of a table fit the terminal. A pipe gets them whole.
    pub(super) fn fit(&self, headings: &[&str], names: [usize; 2], rows: &mut [Vec<String>]) {
        if !self.is_terminal {
            return;
        }
        // Cells are cut as they will be printed.
        for row in rows.iter_mut() {
            names.iter().for_each(|&at| row[at] = printable(row[at].as_bytes()).into_owned());
        }
        let widths = |column: usize| {
            let cells = rows.iter().map(|row| width_of(&row[column]));
            cells.chain([headings[column].len()]).max().unwrap_or(0)
        };
        let others = (0..headings.len()).filter(|column| !names.contains(column));
        let taken: usize = others.map(|column| widths(column) + GAP).sum();
        let limits = shared(self.width.saturating_sub(taken + GAP), names.map(widths));
        for row in rows {
            for (column, limit) in names.into_iter().zip(limits) {
                row[column] = middle_cut(&row[column], limit, self.is_ascii);
            }
        }
    }
}

/// Shares `room` columns among two names: the shorter one stays whole where it takes no more than half.
fn shared(room: usize, [one, other]: [usize; 2]) -> [usize; 2] {
    let half = (room / 2).max(LEAST_NAME);
    let rest = |taken: usize| room.saturating_sub(taken).max(LEAST_NAME);
    match (one <= half, other <= half) {
        _ if one + other <= room => [one, other],
        (true, _) => [one, rest(one)],
        (false, true) => [rest(other), other],
        (false, false) => [half, half],
    }
}

/// The columns that a text takes on a terminal.
pub(super) fn width_of(text: &str) -> usize {
    text.width()
}

/// A text of at most `width` columns. The middle of a longer one is cut out: the ends of paths tell most.
pub(super) fn middle_cut(text: &str, width: usize, is_ascii: bool) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mark = if is_ascii { "..." } else { "…" };
    let room = width.saturating_sub(mark.width());
    // The end has the name of the file, so it gets the larger half.
    let (head, tail) = (room / 2, room - room / 2);
    // The width of a character depends on those around it: a selector makes a sign an emoji of two columns.
    let ends = || text.char_indices().map(|(at, character)| at + character.len_utf8());
    let starts = text.char_indices().rev().map(|(at, _)| at);
    let head = ends().take_while(|&at| text[..at].width() <= head).last().unwrap_or(0);
    let tail = starts.take_while(|&at| text[at..].width() <= tail).last().unwrap_or(text.len());
    let mut tail = text[tail..].chars();
    loop {
        let cut = format!("{}{mark}{}", &text[..head], tail.as_str());
        if cut.width() <= width || tail.next().is_none() {
            return cut;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fitted(mount: &str, reference: &str, width: usize) -> usize {
        let headings = ["MOUNT", "REFERENCE", "TOTAL", "RESIDENT", "STATE"];
        let cells = [mount, reference, "123.4 GiB", "123.4 GiB", "fetching"];
        let mut rows = vec![cells.map(str::to_owned).to_vec()];
        let screen = Screen { width, is_terminal: true, has_colours: false, is_ascii: true };
        screen.fit(&headings, [0, 1], &mut rows);
        rows[0].iter().map(|cell| width_of(cell)).sum::<usize>() + 4 * GAP
    }

    #[test]
    fn usual_names_stay_whole_on_80_columns() {
        let (mount, reference) = ("/srv/models/llama", "ghcr.io/org/llama:v1");
        assert!(fitted(mount, reference, 80) <= 80);
        assert_eq!(shared(40, [17, 20]), [17, 20]);
        assert_eq!(shared(40, [10, 90]), [10, 30]);
        assert_eq!(shared(40, [90, 10]), [30, 10]);
        assert_eq!(shared(40, [90, 90]), [20, 20]);
    }

    #[test]
    fn the_middle_of_a_long_path_is_cut_out() {
        assert_eq!(middle_cut("/models/a", 9, false), "/models/a");
        assert_eq!(middle_cut("/models/weights/a.bin", 11, false), "/mode…a.bin");
        assert_eq!(middle_cut("/models/weights/a.bin", 11, true), "/mod....bin");
        assert!(middle_cut("🕯\u{fe0f}🕯\u{fe0f}🕯\u{fe0f}🕯\u{fe0f}", 6, false).width() <= 6);
    }

    proptest! {
        #[test]
        fn a_line_fits_the_terminal_whatever_the_names(
            mount in "/[\\PC]{0,200}", reference in "[\\PC]{0,200}", width in 70..200usize,
        ) {
            prop_assert!(fitted(&mount, &reference, width) <= width);
        }

        #[test]
        fn a_cut_text_fits_and_keeps_its_ends(text in "\\PC{0,60}", width in 5..70usize, is_ascii: bool) {
            let cut = middle_cut(&text, width, is_ascii);
            if text.width() <= width {
                prop_assert_eq!(&cut, &text);
            } else {
                prop_assert!(cut.width() <= width, "{:?}", cut);
                // The text itself may have the mark.
                let mark = if is_ascii { "..." } else { "…" };
                let mut heads = cut.char_indices().map(|(at, _)| cut.split_at(at));
                let is_cut_at = |(head, rest): (&str, &str)| {
                    rest.strip_prefix(mark).is_some_and(|tail| text.ends_with(tail)) && text.starts_with(head)
                };
                prop_assert!(heads.any(is_cut_at), "{:?}", cut);
            }
        }
    }
}
