//! A map as an SVG picture.
//!
//! Colours come from CSS classes, and a media query has the colours for dark pages. Names are hostile: each is
//! escaped, and characters that XML lacks are replaced.

use std::fmt::Write;

use super::{FINE_CELLS, cells_of_total, name_of, share, summary};
use crate::cli::screen::middle_cut;
use crate::cli::sizes;
use crate::control::api::{Cell, Residency, ResidencyRow};

/// The height of a row in pixels, and of the bar in it.
const ROW: usize = 22;
const BAR_HEIGHT: usize = 14;
/// The height of the head, and of the legend at the foot.
const HEAD: usize = 54;
const FOOT: usize = 34;
/// The left edge and the width of a bar. A cell is 4 pixels wide.
const BAR_LEFT: usize = 460;
const BAR_WIDTH: usize = 4 * FINE_CELLS as usize;
/// The width of the picture.
const WIDTH: usize = BAR_LEFT + BAR_WIDTH + 16;
/// The characters of a name: as many as fit before the sizes.
const NAME_CHARACTERS: usize = 42;
const STYLE: &str = "\
text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328}.dim{fill:#59636e}.end{text-anchor:end}
.page{fill:#fff}.absent{fill:#e4e7eb}.resident{fill:#54aeff}.verified{fill:#2da44e}.fetching{fill:#d4a72c}.bad{fill:#cf222e}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#9198a1}.page{fill:#0d1117}.absent{fill:#2a313c}
.resident{fill:#388bfd}.verified{fill:#3fb950}.fetching{fill:#d29922}.bad{fill:#f85149}}";

/// The picture of a map.
pub(super) fn picture(map: &Residency) -> String {
    let height = HEAD + ROW * map.rows.len() + FOOT;
    let title = escaped(&map.reference);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n"
    );
    text(&mut svg, 16, 22, "", &middle_cut(&map.reference, 110, false));
    if let Some(total) = &map.total {
        text(&mut svg, 16, 42, "dim", &summary(total));
    }
    for (number, row) in map.rows.iter().enumerate() {
        draw_row(&mut svg, HEAD + ROW * number, row, &name_of(row, &map.path));
    }
    draw_legend(&mut svg, height - FOOT + 10, map.left_out);
    svg += "</svg>\n";
    svg
}

fn draw_row(svg: &mut String, top: usize, row: &ResidencyRow, name: &str) {
    let base = top + 15;
    text(svg, 16, base, "", &middle_cut(name, NAME_CHARACTERS, false));
    text(svg, BAR_LEFT - 70, base, "end dim", &sizes::show(row.total.bytes));
    let here = if row.missing.is_some() { "-".to_owned() } else { share(&row.total) };
    text(svg, BAR_LEFT - 14, base, "end", &here);
    let of_total;
    let cells = match row.is_directory {
        true => {
            of_total = cells_of_total(&row.total, FINE_CELLS.into());
            &of_total
        }
        false => &row.cells,
    };
    rectangle(svg, BAR_LEFT as f64, top + 3, BAR_WIDTH as f64, "absent", 1.0);
    let width = BAR_WIDTH as f64 / cells.len().max(1) as f64;
    let mut at = 0.0;
    for run in cells.chunk_by(|one, other| look(one) == look(other)) {
        let run_width = width * run.len() as f64;
        if let Some((class, opacity)) = look(&run[0]) {
            rectangle(
                svg,
                BAR_LEFT as f64 + at,
                top + 3,
                run_width,
                class,
                f64::from(opacity) / 4.0,
            );
        }
        at += run_width;
    }
}

/// The class of a cell and its opacity in quarters; `None` for nothing.
fn look(cell: &Cell) -> Option<(&'static str, u8)> {
    // Quarters, so that neighbours are usually alike and share a rectangle.
    let quarters = |share: u8| share.div_ceil(25);
    match *cell {
        Cell { bad: share @ 1.., .. } => Some(("bad", quarters(share))),
        Cell { fetching: share @ 1.., resident: 0, .. } => Some(("fetching", quarters(share))),
        Cell { verified: share @ 1.., .. } => Some(("verified", quarters(share))),
        Cell { resident: share @ 1.., .. } => Some(("resident", quarters(share))),
        Cell { .. } => None,
    }
}

fn draw_legend(svg: &mut String, top: usize, left_out: u64) {
    let words = [
        ("verified", "verified"),
        ("resident", "here, digest not known yet"),
        ("fetching", "on its way"),
        ("absent", "not here"),
        ("bad", "bad"),
    ];
    let mut left = 16;
    for (class, word) in words {
        rectangle(svg, left as f64, top - 2, 12.0, class, 1.0);
        text(svg, left + 18, top + 10, "dim", word);
        // 8 pixels for a character of this font.
        left += 18 + 8 * word.len() + 22;
    }
    if left_out > 0 {
        text(svg, WIDTH - 16, top + 10, "end dim", &format!("{left_out} more not shown"));
    }
}

fn rectangle(svg: &mut String, x: f64, y: usize, width: f64, class: &str, opacity: f64) {
    let opacity = if opacity < 1.0 { format!(" opacity=\"{opacity}\"") } else { String::new() };
    writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{BAR_HEIGHT}\"{opacity}/>"
    )
    .expect("a string takes all");
}

fn text(svg: &mut String, x: usize, y: usize, class: &str, words: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let words = escaped(words);
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\"{class}>{words}</text>").expect("a string takes all");
}

/// Text as XML. Characters that XML does not have become `?`.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            control if control.is_control() => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::api::{RawPath, ResidencyTotal};

    fn row(path: Vec<u8>, cells: Vec<Cell>) -> ResidencyRow {
        ResidencyRow {
            path: RawPath(path),
            is_directory: false,
            total: ResidencyTotal {
                bytes: 1 << 30,
                stored_bytes: 1 << 30,
                ..ResidencyTotal::default()
            },
            cells,
            ranges: Vec::new(),
            ranges_are_cut: false,
            missing: None,
        }
    }

    fn map(rows: Vec<ResidencyRow>) -> Residency {
        let reference = "localhost/a@sha256:00".to_owned();
        Residency { reference, path: RawPath::default(), total: None, rows, left_out: 3 }
    }

    proptest! {
        #[test]
        fn no_name_ends_its_text(path in prop::collection::vec(any::<u8>(), 0..60), word in "[<>&\"']{0,20}") {
            let path = [path, word.into_bytes()].concat();
            let svg = picture(&map(vec![row(path, Vec::new())]));
            let names = svg.lines().filter(|line| line.starts_with("<text"));
            for line in names {
                let inner = line.split_once('>').unwrap().1.strip_suffix("</text>").unwrap();
                prop_assert!(!inner.contains(['<', '>', '"']), "{}", line);
                prop_assert!(!inner.chars().any(char::is_control), "{}", line);
                for entity in inner.split('&').skip(1) {
                    prop_assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|it| entity.starts_with(it)), "{}", line);
                }
            }
        }
    }

    #[test]
    fn equal_neighbours_share_a_rectangle_and_dark_pages_have_colours() {
        let here = Cell { resident: 100, verified: 100, ..Cell::default() };
        let cells = [vec![here; 50], vec![Cell::default(); 50]].concat();
        let svg = picture(&map(vec![row(b"model.bin".to_vec(), cells)]));
        // One in the bar, one in the legend.
        assert_eq!(svg.matches("class=\"verified\"").count(), 2, "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark") && svg.contains("3 more not shown"));
    }
}
