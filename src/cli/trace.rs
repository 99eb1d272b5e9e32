//! `kitfs trace record|show`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, LineWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use bytes::Bytes;
use clap::Subcommand;
use futures_util::StreamExt;
use tokio::process::Command as Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;
use super::output::{count_of, print_line, print_table, printable, say, warn};
use super::settings::{Settings, mountpoint};
use super::sizes;
use crate::daemon::api::{Failure, FailureKind, RecordRequest};
use crate::daemon::{Backend, ByteStream, TRACE_LIMIT_BYTES, read_trace};
use crate::fs::{TRACE_LINES, Trace, percent_encoded};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A trace says which ranges of which files were read in what order, as lines of JSON. It is replayed
ahead of a reader with `kitfs mount --trace FILE`, or fetched beforehand with `kitfs warm --trace
FILE`. What the kernel has in memory already is not seen: record from a fresh mount.

Examples:
  kitfs trace record -o start.trace /models -- python serve.py --once
  kitfs trace show start.trace
  kitfs mount --trace start.trace ghcr.io/org/model:v1 /models")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record what is read from a mount, until COMMAND ends or Ctrl-C.
    Record {
        /// Where the kit is mounted.
        #[arg(value_name = "DIR")]
        mountpoint: PathBuf,
        /// The file to write; without it, the standard output. Needed with COMMAND.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// A command to run meanwhile; its exit code is passed on.
        #[arg(value_name = "COMMAND", last = true)]
        command: Vec<OsString>,
    },
    /// Show a trace as a table.
    Show {
        /// The trace.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Only the sums of each file.
        #[arg(long)]
        summary: bool,
    },
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    match arguments.command {
        Command::Record { mountpoint: place, output, command } => {
            let request = RecordRequest { mountpoint: mountpoint(&place)? };
            record(settings, request, output.as_deref(), &command).await
        }
        Command::Show { file, summary } => show(&file, summary),
    }
}

async fn record(
    settings: &Settings,
    request: RecordRequest,
    output: Option<&Path>,
    command: &[OsString],
) -> Result<(), CliError> {
    let Some(backend) = Backend::running(&settings.daemon()?).await? else {
        let message = "no daemon runs, so nothing is mounted; see `kitfs mount`";
        return Err(CliError::new(FailureKind::Daemon, message));
    };
    if output.is_none() && !command.is_empty() {
        return Err(CliError::usage("the command's output would mix with the trace: add -o FILE"));
    }
    let lines = backend.record(&request).await?;
    let output = Output::new(output)?;
    let (path, is_new) = (output.path.clone(), matches!(output.sink, Sink::Started(_)));
    let mut interrupts = Interrupts { signal: signal(SignalKind::interrupt())?, skips_next: false };
    let mut child = match command.split_first() {
        Some((program, arguments)) => {
            let failed = |error| {
                // Best effort: an empty file is no trace, and says so where it is shown.
                let _ = path.filter(|_| is_new).map(std::fs::remove_file);
                CliError::usage(format!("{}: {error}", program.display()))
            };
            Some(Process::new(program).args(arguments).kill_on_drop(true).spawn().map_err(failed)?)
        }
        None => {
            let place = request.mountpoint.display();
            say(format_args!("recording {place}: end it with Ctrl-C"));
            None
        }
    };
    let mut recorder = Recorder::new(backend, request, lines, output);
    let mut exit_code = None;
    // Whether an interrupt came that was the command's.
    let mut was_interrupted = false;
    while recorder.is_recording() || child.is_some() && exit_code.is_none() {
        let ended = async {
            match &mut child {
                Some(child) => child.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // A command gets the signal, too, and ends by it or not. One more, or one after it, ends
            // the wait for what was read last.
            () = interrupts.next() => match (&child, exit_code) {
                (Some(_), None) => was_interrupted = true,
                _ if recorder.is_stopped => recorder.cut(),
                _ => recorder.stop_unless(interrupts.next()).await,
            },
            status = ended, if exit_code.is_none() => {
                let status = status?;
                exit_code = Some(exit_code_of(status));
                // The interrupt that ended the command may reach this process only later.
                interrupts.skips_next =
                    status.signal() == Some(SignalKind::interrupt().as_raw_value()) && !was_interrupted;
                recorder.stop_unless(interrupts.next()).await;
            }
            line = recorder.next() => recorder.take(line).await,
        }
    }
    let recorded = recorder.end();
    match (exit_code.unwrap_or(0), recorded) {
        (0, recorded) => recorded,
        // Of a code beyond 8 bits only those are seen by whoever started it, too.
        (code, recorded) => {
            if let Err(CliError::Failure(failure)) = recorded {
                warn(failure);
            }
            Err(CliError::Passed(code as u8))
        }
    }
}

/// Ctrl-C.
struct Interrupts {
    signal: Signal,
    /// Whether the next one was meant for the command that is recorded.
    skips_next: bool,
}

impl Interrupts {
    /// Waits for the next one. May be dropped and called again.
    async fn next(&mut self) {
        self.signal.recv().await;
        if std::mem::take(&mut self.skips_next) {
            self.signal.recv().await;
        }
    }
}

/// A recording, and what has come of it. Whatever goes wrong with it, a command that runs meanwhile
/// goes on.
struct Recorder {
    backend: Backend,
    request: RecordRequest,
    /// What comes; nothing more once it has ended.
    lines: Option<ByteStream>,
    output: Output,
    room: Room,
    /// Whether it was ended from here.
    is_stopped: bool,
    failure: Option<CliError>,
}

impl Recorder {
    fn new(backend: Backend, request: RecordRequest, lines: ByteStream, output: Output) -> Self {
        let room = Room { lines: TRACE_LINES, bytes: TRACE_LIMIT_BYTES };
        let (lines, is_stopped, failure) = (Some(lines), false, None);
        Self { backend, request, lines, output, room, is_stopped, failure }
    }

    fn is_recording(&self) -> bool {
        self.lines.is_some()
    }

    /// The next line; waits for ever once there is none.
    async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        match &mut self.lines {
            Some(lines) => lines.next().await,
            None => std::future::pending().await,
        }
    }

    async fn take(&mut self, line: Option<Result<Bytes, Failure>>) {
        let written = match line {
            Some(Ok(line)) if self.room.take(&line) => self.output.write(&line),
            Some(Ok(_)) => {
                warn("the trace is as long as one can be: what is read now is not recorded");
                return self.break_off().await;
            }
            Some(Err(failure)) => Err(failure.into()),
            None => {
                self.lines = None;
                if !self.is_stopped {
                    warn("the mount ended, and the recording with it");
                }
                return;
            }
        };
        if let Err(error) = written {
            self.failure = Some(error);
            self.break_off().await;
        }
    }

    /// Lets it come to its end: the lines of what was read last are still to come.
    async fn stop(&mut self) {
        if self.lines.is_none() || std::mem::replace(&mut self.is_stopped, true) {
            return;
        }
        if self.backend.stop_recording(&self.request).await.is_err() {
            // The mount has ended just now, and the recording with it.
            self.lines = None;
        }
    }

    /// The same, but for a daemon that does not answer: whoever interrupts waits for it no longer.
    async fn stop_unless(&mut self, interrupted: impl Future<Output = ()>) {
        tokio::select! {
            () = self.stop() => {}
            () = interrupted => self.cut(),
        }
    }

    /// Ends it because nobody wants to wait for the lines that are still to come.
    fn cut(&mut self) {
        warn("interrupted: the trace may lack what was read last");
        self.lines = None;
        self.failure = Some(CliError::Interrupted);
    }

    /// Ends it without the lines that are still to come.
    async fn break_off(&mut self) {
        self.stop().await;
        self.lines = None;
    }

    fn end(mut self) -> Result<(), CliError> {
        let ended = self.output.end();
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        ended?;
        // The first line is the header.
        match (TRACE_LINES - self.room.lines).saturating_sub(1) {
            0 => warn(
                "nothing was recorded: either nothing was read from files, or the kernel had it in \
                 memory already, where it is not seen; record from a fresh mount",
            ),
            count => say(format_args!("recorded {}", count_of(count as u64, "line", "lines"))),
        }
        Ok(())
    }
}

/// Where the lines go.
struct Output {
    /// `None` is the standard output.
    path: Option<PathBuf>,
    sink: Sink,
}

impl Output {
    fn new(path: Option<&Path>) -> Result<Self, CliError> {
        let opened = match path {
            Some(path) => Sink::file(path),
            None => Ok(Sink::Started(Box::new(std::io::stdout()))),
        };
        let path = path.map(Path::to_owned);
        let sink = opened.map_err(|error| unwritten(path.as_deref(), error))?;
        Ok(Self { path, sink })
    }

    fn write(&mut self, line: &[u8]) -> Result<(), CliError> {
        self.sink.write(line).map_err(|error| unwritten(self.path.as_deref(), error))
    }

    fn end(&mut self) -> Result<(), CliError> {
        self.sink.end().map_err(|error| unwritten(self.path.as_deref(), error))
    }
}

fn unwritten(path: Option<&Path>, error: std::io::Error) -> CliError {
    match path {
        Some(path) => CliError::usage(format!("cannot write {}: {error}", path.display())),
        None => error.into(),
    }
}

/// A file keeps what it has until something was read: a command that does not start, or reads
/// nothing, takes no good trace away.
enum Sink {
    /// A file that is there, and the header that it is to begin with.
    Waiting {
        file: File,
        header: Vec<u8>,
    },
    Started(Box<dyn Write + Send>),
}

impl Sink {
    fn file(path: &Path) -> std::io::Result<Self> {
        match File::options().write(true).open(path) {
            Ok(file) => Ok(Self::Waiting { file, header: Vec::new() }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Self::lines(File::create(path)?))
            }
            Err(error) => Err(error),
        }
    }

    /// Line by line: what was recorded is there even if this process is killed.
    fn lines(file: File) -> Self {
        Self::Started(Box::new(LineWriter::new(file)))
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Started(written) => written.write_all(line),
            Self::Waiting { header, .. } if header.is_empty() => {
                header.extend_from_slice(line);
                Ok(())
            }
            Self::Waiting { file, header } => {
                // A pipe or a device has no length.
                if file.metadata()?.is_file() {
                    file.set_len(0)?;
                }
                let (file, header) = (file.try_clone()?, std::mem::take(header));
                *self = Self::lines(file);
                self.write(&header)?;
                self.write(line)
            }
        }
    }

    fn end(&mut self) -> std::io::Result<()> {
        match self {
            Self::Started(written) => written.flush(),
            Self::Waiting { .. } => Ok(()),
        }
    }
}

/// What a trace may still hold.
struct Room {
    lines: usize,
    bytes: u64,
}

impl Room {
    /// Whether there is room for a line, which is counted then.
    fn take(&mut self, line: &[u8]) -> bool {
        let bytes = self.bytes.checked_sub(line.len() as u64);
        let (Some(bytes), Some(lines)) = (bytes, self.lines.checked_sub(1)) else { return false };
        *self = Self { lines, bytes };
        true
    }
}

/// The exit code of a command, as shells give it where a signal ended it.
fn exit_code_of(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

fn show(path: &Path, is_summary: bool) -> Result<(), CliError> {
    let unusable = |why: String| CliError::usage(format!("{}: {why}", path.display()));
    let text = read_trace(path).map_err(|error| unusable(error.to_string()))?;
    let trace = Trace::parse(&text).map_err(|error| unusable(error.to_string()))?;
    let mut files: BTreeMap<&[u8], (u64, u64)> = BTreeMap::new();
    for range in &trace.ranges {
        let (count, bytes) = files.entry(&range.path).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(range.length);
    }
    print_line(format_args!("{}  {}", printable(trace.reference.as_bytes()), trace.digest))?;
    if !is_summary {
        let rows = trace.ranges.iter().map(|range| {
            vec![
                format!("{:.3}", range.at_ms as f64 / 1000.0),
                range.offset.to_string(),
                range.length.to_string(),
                percent_encoded(&range.path),
            ]
        });
        print_table(&["SECONDS", "OFFSET", "BYTES", "PATH"], &[0, 1, 2], rows)?;
    }
    let rows = files.iter().map(|(path, (count, bytes))| {
        vec![count.to_string(), sizes::show(*bytes), percent_encoded(path)]
    });
    print_table(&["RANGES", "TOTAL", "PATH"], &[0, 1], rows)?;
    if trace.lost > 0 {
        let lost = count_of(trace.lost, "read", "reads");
        warn(format_args!("{lost} came too fast to be written down"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_ends_before_it_has_more_than_can_be_read() {
        let mut room = Room { lines: 2, bytes: 100 };
        assert!(room.take(b"one") && room.take(b"two") && !room.take(b"three"), "lines");
        let mut room = Room { lines: 100, bytes: 10 };
        assert!(room.take(b"0123") && !room.take(b"0123456"), "bytes");
        assert!(room.take(b"456789"), "what was refused takes no room");
        assert_eq!((room.lines, room.bytes), (98, 0));
    }
}
