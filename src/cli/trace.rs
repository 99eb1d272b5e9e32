//! `kitfs trace record|show`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, LineWriter, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use futures_util::StreamExt;
use serde::Serialize;
use tokio::process::Command as Process;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;
use super::output::{count_of, print_json, print_line, print_table, printable, say, warn};
use super::program::{exit_code_of, not_run};
use super::settings::{Settings, mountpoint};
use super::sizes;
use crate::control::ByteStream;
use crate::control::api::{Failure, FailureKind, MountStatus, RecordRequest, StopRecordingRequest};
use crate::daemon::{Backend, TRACE_LIMIT_BYTES, read_trace};
use crate::fs::{TRACE_LINES, Trace, percent_encoded};
use crate::process::view::own_view;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A trace lists the ranges that programs read, in their order. `kitfs mount
--trace FILE` downloads them ahead of the programs, `kitfs warm --trace FILE`
before anything is mounted. Record from a fresh mount: kitfs does not see the
reads that the kernel answers from its memory.

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
    /// Record the reads from a mount, until COMMAND ends or Ctrl-C.
    Record {
        /// Where the kit is mounted.
        #[arg(value_name = "DIR")]
        mountpoint: PathBuf,
        /// File to write the trace to, needed with COMMAND [default: standard output].
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Run this command, and exit with its exit code.
        #[arg(value_name = "COMMAND", last = true)]
        command: Vec<OsString>,
    },
    /// Show a trace as a table.
    Show {
        /// The trace.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Show only the sums of each file.
        #[arg(long)]
        summary: bool,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// A trace, for `--json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Shown {
    /// The reference of the mounted kit.
    reference: String,
    /// The digest of its manifest.
    digest: String,
    /// Reads that came too fast to be recorded.
    lost_reads: u64,
    /// The ranges in the order of the reads; none with `--summary`.
    ranges: Vec<ShownRange>,
    /// The sums of each file.
    files: Vec<ShownFile>,
}

/// A range that was read.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct ShownRange {
    /// The time since the recording began, in milliseconds.
    at_ms: u64,
    /// The path from the root of the mount; bytes that are not UTF-8 are percent-encoded.
    path: String,
    /// The first byte in the file.
    offset: u64,
    /// The number of bytes.
    bytes: u64,
}

/// The reads of a file.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct ShownFile {
    /// The path from the root of the mount; bytes that are not UTF-8 are percent-encoded.
    path: String,
    /// The number of ranges.
    ranges: u64,
    /// The sum of their bytes.
    bytes: u64,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    match arguments.command {
        Command::Record { mountpoint: place, output, command } => {
            let request = RecordRequest { mountpoint: mountpoint(&place)?, view: own_view().ok() };
            let recorded = record(settings, request, output.as_deref(), &command).await;
            match command.is_empty() {
                true => recorded,
                false => recorded.map_err(CliError::of_runner),
            }
        }
        Command::Show { file, summary, json } => show(&file, summary, json),
    }
}

async fn record(
    settings: &Settings,
    request: RecordRequest,
    output: Option<&Path>,
    command: &[OsString],
) -> Result<(), CliError> {
    let mut backend = Backend::running(&settings.daemon()?).await?;
    if let Some(folder) = settings.system_folder()
        && let Some(system) = Backend::of_system(&folder).await?
    {
        let is_there = |mount: &MountStatus| mount.mountpoint == request.mountpoint;
        if backend.is_none() || system.status().await?.mounts.iter().any(is_there) {
            backend = Some(system);
        }
    }
    let Some(backend) = backend else {
        let message = "no daemon runs, so there is no mount to record from; see `kitfs mount`";
        return Err(CliError::new(FailureKind::Daemon, message));
    };
    if output.is_none() && !command.is_empty() {
        return Err(CliError::usage("the command's output would mix with the trace: add -o FILE"));
    }
    let lines = backend.stream(request.clone()).await?;
    let output = Output::new(output)?;
    let (path, is_new) = (output.path.clone(), matches!(output.sink, Sink::Started(_)));
    let mut interrupts = Interrupts { signal: signal(SignalKind::interrupt())?, skips_next: false };
    let mut child = match command.split_first() {
        Some((program, arguments)) => {
            let failed = |error| {
                // Best effort: `trace show` refuses an empty file.
                let _ = path.filter(|_| is_new).map(std::fs::remove_file);
                not_run(program, &error)
            };
            Some(Process::new(program).args(arguments).kill_on_drop(true).spawn().map_err(failed)?)
        }
        None => {
            let place = request.mountpoint.display();
            say(format_args!("recording the reads from {place}; Ctrl-C ends the recording"));
            None
        }
    };
    let mut recorder = Recorder::new(backend, request, lines, output);
    let mut exit_code = None;
    // Whether Ctrl-C came while the command ran.
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
            // The command gets the signal too, and may end. The next Ctrl-C ends the wait for the last reads.
            () = interrupts.next() => match (&child, exit_code) {
                (Some(_), None) => was_interrupted = true,
                _ if recorder.is_stopped => recorder.cut(),
                _ => recorder.stop_unless(interrupts.next()).await,
            },
            status = ended, if exit_code.is_none() => {
                let status = status?;
                exit_code = Some(exit_code_of(status));
                // The signal that ended the command may reach this process later.
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
        // A parent process sees only the low 8 bits of an exit code.
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
    /// Waits for the next Ctrl-C. Safe to drop and call again.
    async fn next(&mut self) {
        self.signal.recv().await;
        if std::mem::take(&mut self.skips_next) {
            self.signal.recv().await;
        }
    }
}

/// A recording, and its result. A failure of the recording does not end the recorded command.
struct Recorder {
    backend: Backend,
    request: RecordRequest,
    /// The entries from the daemon; `None` after the last one.
    lines: Option<ByteStream>,
    output: Output,
    room: Room,
    /// Whether this process ended the recording.
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

    /// The next entry; waits for ever after the last one.
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
                warn("the trace has reached its largest size; kitfs does not record later reads");
                return self.break_off().await;
            }
            Some(Err(failure)) => Err(failure.into()),
            None => {
                self.lines = None;
                if !self.is_stopped {
                    warn("the mount has ended, so the recording has ended");
                }
                return;
            }
        };
        if let Err(error) = written {
            self.failure = Some(error);
            self.break_off().await;
        }
    }

    /// Asks the daemon to end the recording. The entries of the last reads are still to come.
    async fn stop(&mut self) {
        if self.lines.is_none() || std::mem::replace(&mut self.is_stopped, true) {
            return;
        }
        let RecordRequest { mountpoint, view } = self.request.clone();
        let request = StopRecordingRequest { mountpoint, view };
        if self.backend.ask(request).await.is_err() {
            // The mount has ended meanwhile, and with it the recording.
            self.lines = None;
        }
    }

    /// Stops, but does not wait for the daemon after another Ctrl-C.
    async fn stop_unless(&mut self, interrupted: impl Future<Output = ()>) {
        tokio::select! {
            () = self.stop() => {}
            () = interrupted => self.cut(),
        }
    }

    /// Ends the recording at once after Ctrl-C, without the entries that are still to come.
    fn cut(&mut self) {
        warn("interrupted: the trace may lack the last reads");
        self.lines = None;
        self.failure = Some(CliError::Interrupted);
    }

    /// Ends the recording after a failure, without the entries that are still to come.
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
                "the trace is empty: no program read from the mount, or the kernel had the bytes in its \
                 memory; record from a fresh mount",
            ),
            count => say(format_args!("recorded {}", count_of(count as u64, "line", "lines"))),
        }
        Ok(())
    }
}

/// The destination of the lines.
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
        Some(path) => CliError::unwritten(path, &error),
        None => error.into(),
    }
}

/// The file of the trace. An existing file keeps its content until the first read. So a command that fails to
/// start, or reads nothing, destroys no older trace.
enum Sink {
    /// An existing file, and the header of the new trace.
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

    /// Writes line by line, so a killed process leaves all complete lines.
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

/// The bytes that may still be added to a trace.
struct Room {
    lines: usize,
    bytes: u64,
}

impl Room {
    /// Takes room for a line; returns whether there was enough.
    fn take(&mut self, line: &[u8]) -> bool {
        let bytes = self.bytes.checked_sub(line.len() as u64);
        let (Some(bytes), Some(lines)) = (bytes, self.lines.checked_sub(1)) else { return false };
        *self = Self { lines, bytes };
        true
    }
}

fn show(path: &Path, is_summary: bool, is_json: bool) -> Result<(), CliError> {
    let unusable = |why: String| CliError::usage(format!("{}: {why}", path.display()));
    let text = read_trace(path).map_err(|error| unusable(error.to_string()))?;
    let trace = Trace::parse(&text).map_err(|error| unusable(error.to_string()))?;
    let mut files: BTreeMap<&[u8], (u64, u64)> = BTreeMap::new();
    for range in &trace.ranges {
        let (count, bytes) = files.entry(&range.path).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(range.length);
    }
    if is_json {
        let ranges = trace.ranges.iter().filter(|_| !is_summary).map(|range| ShownRange {
            at_ms: range.at_ms,
            path: percent_encoded(&range.path),
            offset: range.offset,
            bytes: range.length,
        });
        let files = files.iter().map(|(path, &(ranges, bytes))| ShownFile {
            path: percent_encoded(path),
            ranges,
            bytes,
        });
        return print_json(&Shown {
            reference: trace.reference,
            digest: trace.digest.to_string(),
            lost_reads: trace.lost,
            ranges: ranges.collect(),
            files: files.collect(),
        });
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
        warn(format_args!("the trace lacks {lost} that came too fast"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_ends_before_it_is_larger_than_trace_show_accepts() {
        let mut room = Room { lines: 2, bytes: 100 };
        assert!(room.take(b"one") && room.take(b"two") && !room.take(b"three"), "lines");
        let mut room = Room { lines: 100, bytes: 10 };
        assert!(room.take(b"0123") && !room.take(b"0123456"), "bytes");
        assert!(room.take(b"456789"), "what was refused takes no room");
        assert_eq!((room.lines, room.bytes), (98, 0));
    }
}
