//! The picture of a [`Model`].
//!
//! ```text
//! kitfs, cache, memory, rates
//! chart of the bytes that came
//! mounts
//! hosts              | readers
//! transfers under way
//! ```

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use super::rates::{Column, Model, Sample};
use crate::cli::output::{count_of, printable};
use crate::cli::screen::middle_cut;
use crate::cli::sizes;
use crate::control::api::{ContentState, MountStatus};

const TITLE: Style = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);
const HEADING: Style = Style::new().add_modifier(Modifier::DIM);
/// The characters of the bar of a mount.
const BAR_WIDTH: usize = 16;

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let Some(sample) = &model.sample else { return };
    let [head, chart, mounts, middle, transfers, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(4),
        Constraint::Min(4),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [hosts, readers] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(middle);
    draw_head(frame, head, model, sample);
    draw_chart(frame, chart, model);
    draw_mounts(frame, mounts, model);
    draw_hosts(frame, hosts, model, sample);
    draw_readers(frame, readers, model, sample);
    draw_transfers(frame, transfers, model, sample);
    let pause = if model.is_paused { "  PAUSED" } else { "" };
    let keys = format!("q end   s sort   r reverse   up/down move   p pause{pause}");
    let foot_line = match &model.failure {
        Some(failure) => Line::styled(printable(failure.as_bytes()), Color::Red),
        None => Line::styled(keys, HEADING),
    };
    frame.render_widget(foot_line, foot);
}

fn block(title: &str, is_ascii: bool) -> Block<'_> {
    let lines = if is_ascii { ASCII_BORDER } else { symbols::border::PLAIN };
    Block::new().borders(Borders::TOP).border_set(lines).title(Span::styled(title, TITLE))
}

/// Lines for terminals without Unicode.
const ASCII_BORDER: symbols::border::Set<'static> = symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

fn rate(bytes: f64) -> String {
    format!("{}/s", sizes::show(bytes as u64))
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let (status, rates) = (&sample.status, &model.rates);
    let limit = status.cache_capacity_bytes.map_or("no limit".to_owned(), sizes::show);
    let hosts = || sample.activity.iter().flat_map(|activity| &activity.hosts);
    let running: u64 = hosts().map(|host| host.running).sum();
    let waiting: u64 = hosts().map(|host| host.waiting).sum();
    let hit_rate =
        rates.hit_percent().map_or(String::new(), |it| format!("  {it:.0} % from the cache"));
    let failed = match rates.failed_reads {
        0.0 => String::new(),
        failed => format!("  {failed:.1}/s fail"),
    };
    let lines = vec![
        Line::from(format!(
            "kitfs {}  process {}  cache {} of {limit}  memory {} of {}",
            printable(status.version.as_bytes()),
            status.pid,
            sizes::show(status.cache_resident_bytes),
            sizes::show(status.fetch.reserved_bytes),
            sizes::show(status.fetch.memory_bytes)
        )),
        Line::from(format!(
            "reading {} in {:.1} reads/s{hit_rate}{failed}",
            rate(rates.read_bytes),
            rates.hits + rates.misses
        )),
        Line::from(format!(
            "fetching {} in {:.1} requests/s  {running} under way, {waiting} wait for a slot of their host",
            rate(rates.fetched_bytes),
            rates.requests
        )),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    // The newest rate is at the right edge.
    let width = usize::from(area.width);
    let newest: Vec<u64> = {
        let skip = model.fetched.len().saturating_sub(width);
        let pad = width.saturating_sub(model.fetched.len());
        std::iter::repeat_n(0, pad).chain(model.fetched.iter().skip(skip).copied()).collect()
    };
    let most = newest.iter().max().copied().unwrap_or(0);
    let title = format!("Fetched, at most {}/s ", sizes::show(most));
    let bars = if model.is_ascii { ASCII_BARS } else { symbols::bar::NINE_LEVELS };
    let chart =
        Sparkline::default().data(newest).bar_set(bars).block(block(&title, model.is_ascii));
    frame.render_widget(chart.style(Style::new().fg(Color::Green)), area);
}

/// Bars for terminals without Unicode.
const ASCII_BARS: symbols::bar::Set<'static> = symbols::bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "#",
    five_eighths: "+",
    half: "+",
    three_eighths: "-",
    one_quarter: "-",
    one_eighth: ".",
    empty: " ",
};

fn draw_mounts(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let names = ["MOUNT", "REFERENCE", "TOTAL", "RESIDENT", "+/s"];
    let headings =
        Column::ALL.iter().zip(names).map(|(column, name)| match *column == model.sort {
            true => Cell::from(format!("{name}{}", if model.is_reversed { "^" } else { "v" }))
                .style(TITLE),
            false => Cell::from(name),
        });
    let headings = headings.chain(["HERE", "STATE"].map(Cell::from));
    // The other columns take 62.
    let room = usize::from(area.width).saturating_sub(62).max(24);
    let rows = model.mounts().into_iter().skip(model.first).map(|mount| {
        let cut = |text: &str, width: usize| {
            middle_cut(&printable(text.as_bytes()), width, model.is_ascii)
        };
        let growth = model.rates.growth.get(&mount.mountpoint).copied().unwrap_or(0.0);
        Row::new(vec![
            Cell::from(cut(&mount.mountpoint.display().to_string(), room / 2)),
            Cell::from(cut(&mount.reference, room - room / 2)),
            Cell::from(sizes::show(mount.total_bytes)),
            Cell::from(sizes::show(mount.resident_bytes)),
            Cell::from(if growth > 0.0 { rate(growth) } else { "-".to_owned() }),
            Cell::from(bar(mount, model.is_ascii)).style(Style::new().fg(Color::Green)),
            state(mount.content()),
        ])
    });
    let widths = [
        Constraint::Length((room / 2) as u16),
        Constraint::Length((room - room / 2) as u16),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Length(BAR_WIDTH as u16),
        Constraint::Length(8),
    ];
    let title = format!("Mounts {} ", model.mounts().len());
    let table = Table::new(rows, widths).header(Row::new(headings).style(HEADING));
    frame.render_widget(table.block(block(&title, model.is_ascii)), area);
}

/// The share of a mount that is here.
fn bar(mount: &MountStatus, is_ascii: bool) -> String {
    let total = u128::from(mount.total_bytes).max(1);
    let full = (u128::from(mount.resident_bytes) * BAR_WIDTH as u128 / total) as usize;
    let full = full.max(usize::from(mount.resident_bytes > 0)).min(BAR_WIDTH);
    let (here, missing) = if is_ascii { ("#", ".") } else { ("█", "░") };
    here.repeat(full) + &missing.repeat(BAR_WIDTH - full)
}

fn state(state: ContentState) -> Cell<'static> {
    let color = match state {
        ContentState::Verified | ContentState::Complete => Color::Green,
        ContentState::Fetching => Color::Yellow,
        ContentState::Bad => Color::Red,
    };
    Cell::from(state.as_str()).style(Style::new().fg(color))
}

fn draw_hosts(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let of = |rates: &std::collections::HashMap<String, f64>, host: &str| {
        rates.get(host).copied().unwrap_or(0.0)
    };
    let mut hosts: Vec<_> = sample.activity.iter().flat_map(|it| &it.hosts).collect();
    hosts.sort_by(|one, other| {
        let rate = |host: &str| of(&model.rates.host_bytes, host);
        rate(&other.host).total_cmp(&rate(&one.host)).then_with(|| one.host.cmp(&other.host))
    });
    let rows = hosts.into_iter().map(|host| {
        let pause = host.paused_ms.map_or(String::new(), |ms| format!(", paused {} s", ms / 1000));
        Row::new(vec![
            printable(host.host.as_bytes()).into_owned(),
            rate(of(&model.rates.host_bytes, &host.host)),
            format!("{:.1}/s", of(&model.rates.host_requests, &host.host)),
            format!("{} of {}, {} wait{pause}", host.running, host.limit, host.waiting),
        ])
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Length(18),
    ];
    let heading = Row::new(["HOST", "RATE", "REQ", "UNDER WAY"]).style(HEADING);
    let table = Table::new(rows, widths).header(heading).block(block("Hosts ", model.is_ascii));
    frame.render_widget(table, area);
}

fn draw_readers(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let rows = sample.work.readers.iter().map(|reader| {
        let place = reader.mountpoint.display().to_string();
        let failed =
            if reader.failed > 0 { format!(", {} failed", reader.failed) } else { String::new() };
        Row::new(vec![
            reader.reader.pid.to_string(),
            printable(reader.reader.command.as_bytes()).into_owned(),
            middle_cut(&printable(place.as_bytes()), 20, model.is_ascii),
            format!("{} waits{failed}", reader.waits),
            format!("{:.2} s", reader.longest_ms as f64 / 1000.0),
        ])
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Length(15),
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Length(9),
    ];
    let heading = Row::new(["PID", "COMMAND", "MOUNT", "WAITS", "LONGEST"]).style(HEADING);
    let table =
        Table::new(rows, widths).header(heading).block(block("Slowest readers ", model.is_ascii));
    frame.render_widget(table, area);
}

fn draw_transfers(frame: &mut Frame<'_>, area: Rect, model: &Model, sample: &Sample) {
    let work = &sample.work;
    let rows = work.transfers.iter().map(|transfer| {
        let layer = printable(transfer.layer.as_bytes());
        Row::new(vec![
            middle_cut(&layer, usize::from(area.width / 2), model.is_ascii),
            sizes::show(transfer.bytes),
            transfer.cause.clone(),
            format!("{:.1} s", transfer.age_ms as f64 / 1000.0),
            match transfer.retries {
                0 => String::new(),
                retries => count_of(retries.into(), "retry", "retries"),
            },
            printable(transfer.host.as_deref().unwrap_or("-").as_bytes()).into_owned(),
        ])
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Fill(1),
    ];
    let heading = Row::new(["LAYER", "BYTES", "WHY", "AGE", "", "HOST"]).style(HEADING);
    let count = work.transfers.len() as u64 + work.other_transfers;
    let title = format!("Transfers under way {count} ");
    let table = Table::new(rows, widths).header(heading).block(block(&title, model.is_ascii));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::rates::tests::sample;
    use super::*;

    fn drawn(width: u16, height: u16, model: &Model) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n").collect()
    }

    fn model(is_ascii: bool) -> Model {
        let (mut model, begin) = (Model::new(is_ascii), Instant::now());
        model.add(sample(begin, 0, 0, &[("a", 0), ("b", 1 << 29)]));
        model.add(sample(begin, 2, 64 << 20, &[("a", 8 << 20), ("b", 1 << 29)]));
        model
    }

    #[test]
    fn a_screen_shows_mounts_rates_hosts_readers_and_transfers() {
        let screen = drawn(120, 30, &model(false));
        for expected in [
            "fetching 32.0 MiB/s",
            "in 20.0 reads/s  75 % from the cache",
            "2 under way, 1 wait for a slot",
            "registry.example/b:v1",
            "4.0 MiB/s",
            "████████░░░░░░░░",
            "2 of 8, 1 wait",
            "python3",
            "7 waits",
            "1.50 s",
            "1 retry",
            "q end",
        ] {
            assert!(screen.contains(expected), "{expected}:\n{screen}");
        }
    }

    #[test]
    fn a_small_terminal_and_one_without_unicode_are_drawn_too() {
        assert!(drawn(120, 30, &model(true)).is_ascii());
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 90)] {
            let screen = drawn(width, height, &model(false));
            assert_eq!(screen.lines().count(), usize::from(height));
        }
        drawn(80, 24, &Model::new(false));
    }
}
