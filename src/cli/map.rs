//! `kitfs map REF|MOUNT[/PATH]`.

mod bars;
mod svg;

use std::io::Write;
use std::path::PathBuf;

use super::error::CliError;
use super::output::{count_of, print_json, printable, say};
use super::screen::{Screen, middle_cut, width_of};
use super::settings::Settings;
use super::sizes;
use super::subject::{self, Found, SubjectArguments};
use crate::control::api::{
    Cell, RawPath, Residency, ResidencyRequest, ResidencyRow, ResidencyRows, ResidencyTotal,
};
use bars::Bars;

/// The rows without `--all`: as many as a tall terminal shows.
const USUAL_ROWS: u32 = 40;
/// The rows of one request with `--all`; the daemon has a bound of its own.
const ROWS_AT_ONCE: u32 = 4096;
/// The most ranges in JSON. The daemon's own bound is as high.
const JSON_RANGES: u32 = 50_000;
/// The cells of a file in JSON and in a picture: a cell is then a few pixels wide.
const FINE_CELLS: u16 = 128;
/// The most lines of the map of a single file.
const MOST_LINES: usize = 16;
/// Bytes of a file for one cell of its map, at least: a chunk, which comes as a whole.
const LEAST_CELL_BYTES: u64 = 256 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A map has one bar for each file. Left is the start of the file, right its end.
HERE is the share of the file that is in the cache. A directory shows its 40
largest files; --all shows each file, --folders a sum for each subdirectory.

Examples:
  kitfs map /models
  kitfs map /models/weights/model-00001-of-00004.safetensors
  kitfs map --folders ghcr.io/org/model:v1
  kitfs map --svg map.svg /models")]
pub(super) struct Arguments {
    /// Show every file, in the order of the tree.
    #[arg(long, conflicts_with = "folders")]
    all: bool,
    /// Show one row for each entry of the directory, with the sum of all below it.
    #[arg(long)]
    folders: bool,
    /// Write an SVG picture into this file; - is the standard output.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
    /// Draw with ASCII characters only.
    #[arg(long)]
    ascii: bool,
    /// Print a JSON object, with the ranges of each file that are in the cache.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    subject: SubjectArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let Arguments { subject, all, folders, svg, ascii, json } = arguments;
    let screen = Screen::of_stdout(ascii || !settings.is_utf8());
    let bars = Bars::new(&screen);
    let found = subject::find(settings, subject).await?;
    let rows = match (all, folders) {
        (true, _) => ResidencyRows::InOrder,
        (_, true) => ResidencyRows::Children,
        (false, false) => ResidencyRows::Largest,
    };
    let is_picture = json || svg.is_some();
    let wanted = Wanted {
        rows,
        most_rows: if all { ROWS_AT_ONCE } else { USUAL_ROWS },
        // One request has the cells for a bar in a table, and for the map of a single file.
        cells: if is_picture { FINE_CELLS } else { bars.most_cells() },
        most_ranges: if json { JSON_RANGES } else { 0 },
    };
    let mut map = wanted.ask(&found, 0).await?;
    // A document has one order, however many rows are left out.
    if rows == ResidencyRows::Largest && (json || map.left_out == 0) {
        map.rows.sort_by(|one, other| one.path.cmp(&other.path));
    }
    if !is_picture {
        print_map(&screen, &bars, &map)?;
    }
    while all && map.left_out > 0 {
        let skip = map.rows.len() as u32;
        let next = wanted.ask(&found, skip).await?;
        map.left_out = next.left_out;
        if !is_picture {
            print_rows(&screen, &bars, &next.rows)?;
        }
        let is_end = next.rows.is_empty();
        map.rows.extend(next.rows);
        if is_end {
            break;
        }
    }
    match svg {
        Some(file) => write_svg(&file, &map),
        None if json => print_json(&map),
        None => print_end(&screen, &bars, &map),
    }
}

/// The fields of a request that are the same for each part of a map.
struct Wanted {
    rows: ResidencyRows,
    most_rows: u32,
    cells: u16,
    most_ranges: u32,
}

impl Wanted {
    async fn ask(&self, found: &Found, skip: u32) -> Result<Residency, CliError> {
        let request = |subject| ResidencyRequest {
            subject,
            path: found.path.clone(),
            rows: self.rows,
            skip,
            most_rows: self.most_rows,
            cells: self.cells,
            most_ranges: self.most_ranges,
        };
        found.ask(request).await
    }
}

fn print_map(screen: &Screen, bars: &Bars, map: &Residency) -> Result<(), CliError> {
    let mut output = std::io::stdout().lock();
    if let Some(total) = &map.total {
        let reference = printable(map.reference.as_bytes());
        writeln!(output, "{reference}")?;
        writeln!(output, "{}", summary(total))?;
    }
    match &map.rows[..] {
        [file] if file.path == map.path && !file.is_directory => {
            writeln!(output, "{}", printable(&file.path.0))?;
            bars.write_map(&mut output, file.total.bytes, &file.cells)?;
        }
        rows => {
            writeln!(output, "{}", heading(screen, bars))?;
            drop(output);
            print_rows(screen, bars, rows)?;
        }
    }
    Ok(std::io::stdout().flush()?)
}

/// `12 files, 13.4 GiB: 2.1 GiB (16 %) in the cache, 1.0 GiB of it verified; 8.0 MiB on the way`
fn summary(total: &ResidencyTotal) -> String {
    let mut text = format!(
        "{}, {}: {} ({}) in the cache",
        count_of(total.files, "file", "files"),
        sizes::show(total.bytes),
        sizes::show(total.resident_bytes),
        share(total),
    );
    match total.verified_bytes {
        0 => {}
        all if all == total.resident_bytes => text += ", verified",
        some => text += &format!(", {} of it verified", sizes::show(some)),
    }
    if total.fetching_bytes > 0 {
        text += &format!("; {} on the way", sizes::show(total.fetching_bytes));
    }
    if total.bad_bytes > 0 {
        text +=
            &format!("; {} BAD: the digest of the layer is wrong", sizes::show(total.bad_bytes));
    }
    text
}

/// The share of the stored bytes that is in the cache. 100 % is all bytes, and 0 % no byte: other shares are never
/// rounded to these.
fn share(total: &ResidencyTotal) -> String {
    match (total.resident_bytes, total.stored_bytes) {
        (_, 0) => "100 %".to_owned(),
        (0, _) => "0 %".to_owned(),
        (some, all) if some == all => "100 %".to_owned(),
        (some, all) => {
            format!("{} %", (u128::from(some) * 100 / u128::from(all)).clamp(1, 99))
        }
    }
}

fn line(screen: &Screen, bars: &Bars, name: &str, size: &str, here: &str, bar: &str) -> String {
    // A size has at most 10 characters, and two spaces part the columns.
    let name_width = screen.width.saturating_sub(bars.width + 10 + 5 + 3 * 2).max(12);
    let name = middle_cut(name, name_width, screen.is_ascii);
    let pad = " ".repeat(name_width.saturating_sub(width_of(&name)));
    format!("{name}{pad}  {size:>10}  {here:>5}  {bar}").trim_end().to_owned()
}

fn heading(screen: &Screen, bars: &Bars) -> String {
    line(screen, bars, "FILE", "SIZE", "HERE", "MAP")
}

fn print_rows(screen: &Screen, bars: &Bars, rows: &[ResidencyRow]) -> Result<(), CliError> {
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    for row in rows {
        let mut name = printable(&row.path.0).into_owned();
        let (bar, here) = match (&row.missing, row.is_directory) {
            (Some(_), _) => ("elsewhere, and cannot be read now".to_owned(), "-".to_owned()),
            (None, true) => {
                name.push('/');
                (bars.bar_of_total(&row.total), share(&row.total))
            }
            (None, false) => (bars.bar(&row.cells), share(&row.total)),
        };
        let size = sizes::show(row.total.bytes);
        writeln!(output, "{}", line(screen, bars, &name, &size, &here, &bar))?;
    }
    Ok(output.flush()?)
}

fn print_end(screen: &Screen, bars: &Bars, map: &Residency) -> Result<(), CliError> {
    if map.left_out > 0 {
        let (one, many) = ("more row is", "more rows are");
        let rows = count_of(map.left_out, one, many);
        say(format_args!("{rows} not shown: --all shows each file, --folders sums by directory"));
    }
    if screen.is_terminal && !map.rows.is_empty() {
        let mut output = std::io::stdout().lock();
        writeln!(output, "{}", bars.legend())?;
    }
    Ok(())
}

fn write_svg(file: &std::path::Path, map: &Residency) -> Result<(), CliError> {
    let picture = svg::picture(map);
    if file.as_os_str() == "-" {
        std::io::stdout().lock().write_all(picture.as_bytes())?;
        return Ok(());
    }
    std::fs::write(file, picture).map_err(|error| CliError::unwritten(file, &error))
}

/// The name of a row: its path from the kit's root.
fn name_of(row: &ResidencyRow, root: &RawPath) -> String {
    let name = if row.path.0.is_empty() { &root.0 } else { &row.path.0 };
    let slash = if row.is_directory { "/" } else { "" };
    format!("{}{slash}", printable(name))
}

/// Cells for a row without cells: a directory, which is drawn by its sums.
fn cells_of_total(total: &ResidencyTotal, count: usize) -> Vec<Cell> {
    let share = |bytes: u64| {
        let stored = u128::from(total.stored_bytes).max(1);
        // A few bytes get a whole cell, because an empty bar would mean no byte.
        (u128::from(bytes) * count as u128).div_ceil(stored) as usize
    };
    let verified = share(total.verified_bytes);
    let resident = share(total.resident_bytes);
    let fetching = resident + share(total.fetching_bytes);
    let bad = fetching + share(total.bad_bytes);
    let cell = |at: usize| match at {
        at if at < verified => Cell { resident: 100, verified: 100, ..Cell::default() },
        at if at < resident => Cell { resident: 100, ..Cell::default() },
        at if at < fetching => Cell { fetching: 100, ..Cell::default() },
        at if at < bad => Cell { bad: 100, ..Cell::default() },
        _ => Cell { hole: total.stored_bytes == 0, ..Cell::default() },
    };
    (0..count).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_is_all_or_nothing_only_where_it_is() {
        let of = |resident_bytes, stored_bytes| {
            share(&ResidencyTotal { resident_bytes, stored_bytes, ..ResidencyTotal::default() })
        };
        assert_eq!(of(0, 0), "100 %");
        assert_eq!(of(0, 10), "0 %");
        assert_eq!(of(1, u64::MAX), "1 %");
        assert_eq!(of(u64::MAX - 1, u64::MAX), "99 %");
        assert_eq!(of(u64::MAX, u64::MAX), "100 %");
    }

    proptest! {
        #[test]
        fn the_bar_of_a_directory_shows_each_state_that_it_has(
            verified in 0..1000u64, open in 0..1000u64, fetching in 0..1000u64, absent in 0..1000u64,
        ) {
            let total = ResidencyTotal {
                stored_bytes: verified + open + fetching + absent,
                resident_bytes: verified + open,
                verified_bytes: verified,
                fetching_bytes: fetching,
                ..ResidencyTotal::default()
            };
            let cells = cells_of_total(&total, 40);
            prop_assert_eq!(cells.len(), 40);
            let has = |is: fn(&Cell) -> bool| cells.iter().any(is);
            prop_assert_eq!(has(|cell| cell.resident > 0), verified + open > 0);
            prop_assert_eq!(has(|cell| cell.verified > 0), verified > 0);
            if verified + open == total.stored_bytes && total.stored_bytes > 0 {
                prop_assert!(cells.iter().all(|cell| cell.resident == 100));
            }
        }
    }
}
