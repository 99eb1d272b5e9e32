//! Prints tables, names, JSON and warnings.

use std::borrow::Cow;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::CliError;
use super::kept::Sought;
use super::opening::Opening;
use super::screen::middle_cut;
use crate::control::api::{KitRequest, KitState, Waiting};
use crate::daemon::{Backend, OpenKit};
use crate::oci::Origin;

/// Directories.
const BLUE: Style = AnsiColor::Blue.on_default().bold();
/// Symlinks.
const CYAN: Style = AnsiColor::Cyan.on_default();
/// The number of hexadecimal digits of a digest to show: as many as Docker and kit show.
const SHORT_DIGITS: usize = 12;

/// Prints one JSON value and a newline, for `--json`.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    let text = serde_json::to_string_pretty(value).expect("answers have string keys only");
    writeln!(output, "{text}")?;
    Ok(output.flush()?)
}

/// Prints a line.
pub(super) fn print_line(line: impl std::fmt::Display) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Prints rows under headings, without frames, because people also use `grep` and `awk` on tables.
pub(super) fn print_table(
    headings: &[&str],
    right: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Result<(), CliError> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell.as_bytes()).into_owned()));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut output = io::stdout().lock();
    for line in table.lines() {
        writeln!(output, "{}", line.trim_end())?;
    }
    Ok(output.flush()?)
}

/// Prints warnings to the standard error, one a line.
pub(super) fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        warn(printable(warning.as_bytes()));
    }
}

/// Prints a warning to the standard error.
pub(super) fn warn(warning: impl std::fmt::Display) {
    say(format_args!("warning: {warning}"));
}

/// Prints a message to the standard error. Names of kits in it do nothing to the terminal. Ignores a failure to
/// print, which must not change the exit code; `eprintln!` would panic.
pub(super) fn say(words: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "kitfs: {}", message(&words.to_string()));
}

/// A message that is safe to print on a terminal. Its lines stay lines, and backslashes stay as they are.
fn message(text: &str) -> Cow<'_, str> {
    let does_something = |c: char| is_of_terminal(c) && c != '\n';
    if !text.contains(does_something) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match does_something(character) {
            true => safe.extend(character.escape_default()),
            false => safe.push(character),
        }
    }
    Cow::Owned(safe)
}

/// Whether a terminal obeys a character: control characters, and those that change the direction of text (Unicode
/// Standard Annex 9, 2).
fn is_of_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text that is safe to print on a terminal. Escapes control characters and bytes that are not UTF-8,
/// and backslashes, so that no two names print alike.
pub(super) fn printable(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(|c| is_of_terminal(c) || c == '\\') => Cow::Borrowed(text),
        _ => {
            let mut text = String::with_capacity(bytes.len());
            for chunk in bytes.utf8_chunks() {
                for character in chunk.valid().chars() {
                    match character {
                        '\\' => text.push_str("\\\\"),
                        c if is_of_terminal(c) => text.extend(c.escape_default()),
                        c => text.push(c),
                    }
                }
                for byte in chunk.invalid() {
                    text.push_str(&format!("\\x{byte:02x}"));
                }
            }
            Cow::Owned(text)
        }
    }
}

/// Whether the standard output takes colours: it is a terminal, and neither `NO_COLOR`, `CLICOLOR=0` nor
/// `TERM=dumb` forbids them.
pub(super) fn colours_of_stdout() -> bool {
    let output = io::stdout();
    output.is_terminal() && anstream::AutoStream::choice(&output) != anstream::ColorChoice::Never
}

/// Prints names: printable and coloured on a terminal, unchanged into a pipe.
#[derive(Clone, Copy)]
pub(super) struct Names {
    is_terminal: bool,
    has_colours: bool,
}

/// The colour of a name.
#[derive(Clone, Copy)]
pub(super) enum Colour {
    Plain,
    Directory,
    Symlink,
}

impl Names {
    pub(super) fn for_stdout() -> Self {
        Self { is_terminal: io::stdout().is_terminal(), has_colours: colours_of_stdout() }
    }

    pub(super) fn write(
        self,
        output: &mut impl Write,
        name: &[u8],
        colour: Colour,
    ) -> io::Result<()> {
        if !self.is_terminal {
            return output.write_all(name);
        }
        let name = printable(name);
        match colour {
            Colour::Directory if self.has_colours => write!(output, "{BLUE}{name}{BLUE:#}"),
            Colour::Symlink if self.has_colours => write!(output, "{CYAN}{name}{CYAN:#}"),
            Colour::Plain | Colour::Directory | Colour::Symlink => write!(output, "{name}"),
        }
    }
}

/// A count with its noun: `1 entry`, `2 entries`.
pub(super) fn count_of(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The first digits of a digest. They are enough to find the layer in `cache ls`.
pub(super) fn short_digest(digest: &str) -> &str {
    let algorithm = digest.find(':').map_or(0, |colon| colon + 1);
    digest.get(..algorithm + SHORT_DIGITS).unwrap_or(digest)
}

pub(super) fn state_name(state: KitState) -> &'static str {
    match state {
        KitState::Confirmed => "confirmed",
        KitState::Unconfirmed => "unconfirmed",
        KitState::Poisoned => "POISONED",
    }
}

pub(super) fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// A progress bar on the standard error that counts bytes. Invisible unless that is a terminal.
pub(super) fn byte_bar(total_bytes: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
    let template =
        "{msg} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    bar.with_style(style.progress_chars("=> ")).with_message(what)
}

/// The name of a file or layer beside a progress bar: 40 columns, so that the bar fits 80 beside its numbers.
pub(super) fn bar_name(name: &[u8]) -> String {
    const WIDTH: usize = 40;
    middle_cut(&printable(name), WIDTH, false)
}

/// Opens a kit, and shows the progress.
pub(super) async fn open_kit(backend: &Backend, kit: KitRequest) -> Result<OpenKit, CliError> {
    let sought = Sought::of(&kit);
    let mut opening = Opening::new();
    match backend.open_kit(kit, &mut |progress| opening.show(progress)).await {
        Ok(opened) => Ok(opened),
        Err(failure) => {
            drop(opening);
            Err(sought.explain(failure).await.into())
        }
    }
}

/// Waits for the daemon's answer about `reference`, and prints a message when the registry takes long.
pub(super) async fn say_while_waiting<T>(reference: &str, answer: impl Future<Output = T>) -> T {
    /// The time until the first message, as for a kit that is opened.
    const FIRST: Duration = Duration::from_secs(10);
    /// The interval of the next messages.
    const NEXT: Duration = Duration::from_secs(30);
    let host = match Origin::parse(reference) {
        Ok(Origin::Registry(reference)) => reference.registry().to_owned(),
        // Only a registry lies behind a network.
        _ => return answer.await,
    };
    let mut answer = pin!(answer);
    let started = tokio::time::Instant::now();
    let mut looks = tokio::time::interval_at(started + FIRST, NEXT);
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            _ = looks.tick() => {
                let seconds = started.elapsed().as_secs();
                say(format_args!("still waiting for {host}… ({seconds} s; --open-timeout ends it)"));
            }
        }
    }
}

/// Prints that a host is silent, so that a slow pull-through cache does not look like a command that hangs.
pub(super) fn say_waiting(waiting: &Waiting) {
    let Waiting { host, silent_seconds, limit_seconds } = waiting;
    say(format_args!(
        "still waiting for {host}… (silent for {silent_seconds} s; given up after {limit_seconds} \
         s, --open-timeout)"
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_nothing_to_a_terminal() {
        assert_eq!(printable("größe.txt".as_bytes()), "größe.txt");
        assert_eq!(printable(b"a\x1b[31m\nb"), "a\\u{1b}[31m\\nb");
        assert_eq!(printable(b"caf\xe9\\"), "caf\\xe9\\\\");
        assert_eq!(printable("exe.\u{202e}gpj".as_bytes()), "exe.\\u{202e}gpj");
        assert_eq!(message("C:\\größe\nsecond"), "C:\\größe\nsecond");
        assert_eq!(message("a\x1b]0;t\x07\r\u{9b}1m"), "a\\u{1b}]0;t\\u{7}\\r\\u{9b}1m");
    }

    #[test]
    fn digests_are_shortened_and_other_text_stays() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "sha256:0123456789ab");
        assert_eq!(short_digest("sha256:01"), "sha256:01");
        assert_eq!(short_digest(""), "");
    }
}
