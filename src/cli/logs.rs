//! `kitfs logs`: the log of a daemon, from its files or from the journal.
//!
//! ```text
//! daemon.log.1 (put aside), daemon.log --the last lines--> output --with -f: new lines, and new files--> output
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ArgAction;
use serde_json::{Map, Value, json};

use super::error::CliError;
use super::output::say;
use super::settings::Settings;
use crate::control::api::{FailureKind, LogPlace};
use crate::daemon::{Backend, DaemonConfig, log_files};
use crate::process::running_time;

/// The most bytes that are read of a file for its last lines. A daemon puts its log aside from 8 MiB on, at most a
/// minute late.
const MOST_BYTES: u64 = 64 << 20;

/// The interval between two looks at a log that is followed: soon enough for a person.
const INTERVAL: Duration = Duration::from_millis(200);

/// The unit of the daemon for all users, in the package.
const UNIT: &str = "kitfs.service";

/// How long a daemon may take to say where it logs. A daemon that hangs has a log, too.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The log of a daemon in the background is the file daemon.log in its cache
folder; daemon.log.1 is the one before. Of a daemon in a unit of systemd, the
lines come from the journal.
`--log-format json` (KITFS_LOG_FORMAT) has a daemon write JSON, and KITFS_LOG
says how much, such as `warn,kitfs=debug`.

Examples:
  kitfs logs -f
  kitfs logs -n 1000 --json | jq 'select(.level == \"WARN\")'")]
pub(super) struct Arguments {
    // Counted, so that it is no switch of configuration files: `follow` there is the one of `mount`.
    /// Go on with new lines as they come.
    #[arg(short, long, action = ArgAction::Count)]
    follow: u8,
    /// How many of the last lines to show.
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100)]
    lines: usize,
    /// Print each line as a JSON object.
    #[arg(long)]
    json: bool,
    /// The daemon of all users.
    #[arg(long)]
    system: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let config = match arguments.system {
        true => settings.system_daemon(None)?,
        false => settings.daemon()?,
    };
    match place(settings, &config, arguments.system).await {
        Some(LogPlace::Journal { unit, is_of_user }) => {
            return journal(&arguments, &unit, is_of_user).await;
        }
        Some(LogPlace::StandardError) => {
            return Err(CliError::new(FailureKind::NotFound, ELSEWHERE));
        }
        Some(LogPlace::File(_)) | None => {}
    }
    let files = log_files(&config.cache_folder);
    let [_, current] = &files;
    let is_there = match current.metadata() {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(unreadable(current, &error)),
    };
    if arguments.system && !is_there {
        return journal(&arguments, UNIT, false).await;
    }
    if !is_there && arguments.follow == 0 {
        let folder = config.cache_folder.display();
        let message = format!("no daemon has written a log in {folder}: `kitfs mount` starts one");
        return Err(CliError::new(FailureKind::NotFound, message));
    }
    // The file is opened before its last lines are read, so that no line is lost in between.
    let mut follower = Follower::at_end(current.clone());
    let shown = last_lines(&files, arguments.lines).map_err(|error| unreadable(current, &error))?;
    let mut output = Output { is_json: arguments.json, is_terminal: is_terminal() };
    shown.iter().try_for_each(|line| output.line(line))?;
    if arguments.follow == 0 {
        return Ok(());
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        let lines = follower.new_lines().map_err(|error| unreadable(current, &error))?;
        lines.iter().try_for_each(|line| output.line(line))?;
    }
}

/// The message for a daemon that logs to neither file nor journal.
pub(super) const ELSEWHERE: &str = "the daemon runs in the foreground, and its log goes to its standard error: \
     look at its terminal, or at the log of its container";

/// The place where the running daemon logs; `None` where no daemon says so.
pub(super) async fn place(
    settings: &Settings,
    config: &DaemonConfig,
    is_system: bool,
) -> Option<LogPlace> {
    let status = async {
        let daemon = match is_system {
            true => Backend::of_system(&settings.runtime_folder()).await.ok()?,
            false => Backend::running(config).await.ok()?,
        };
        daemon?.status().await.ok()
    };
    running_time::timeout(PATIENCE, status).await.ok()??.log
}

/// The command that shows lines of a unit's journal (journalctl(1)).
pub(super) fn journalctl(unit: &str, is_of_user: bool, lines: usize) -> Command {
    let mut command = Command::new("journalctl");
    if is_of_user {
        command.arg("--user");
    }
    command.arg("--unit").arg(unit).arg("--lines").arg(lines.to_string());
    command
}

fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stdout())
}

fn unreadable(file: &Path, error: &io::Error) -> CliError {
    let place = file.display();
    let message = match error.kind() {
        ErrorKind::PermissionDenied => {
            format!("this user may not read {place}: it belongs to the daemon's user")
        }
        _ => format!("cannot read {place}: {error}"),
    };
    CliError::new(FailureKind::Cache, message)
}

/// The log of a daemon that writes to the journal (systemd-journald(8)).
async fn journal(arguments: &Arguments, unit: &str, is_of_user: bool) -> Result<(), CliError> {
    let mut command = journalctl(unit, is_of_user, arguments.lines);
    command.args(["--output", if arguments.json { "json" } else { "cat" }]);
    if arguments.follow > 0 {
        command.arg("--follow");
    }
    let status = tokio::process::Command::from(command).status().await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(CliError::Passed(FailureKind::Internal.exit_code())),
        Err(error) => {
            say(format_args!(
                "the log of the daemon is in the journal of {unit}, and journalctl cannot be run: {error}"
            ));
            Err(CliError::Passed(FailureKind::NotFound.exit_code()))
        }
    }
}

/// The last lines of the files together, the oldest first. Missing files have none.
pub(super) fn last_lines(files: &[PathBuf], count: usize) -> io::Result<Vec<String>> {
    let mut last = VecDeque::new();
    for file in files {
        for line in end_of(file)? {
            if last.len() == count {
                last.pop_front();
            }
            if count > 0 {
                last.push_back(line);
            }
        }
    }
    Ok(last.into())
}

/// The lines at the end of a file.
fn end_of(path: &Path) -> io::Result<Vec<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let start = file.metadata()?.len().saturating_sub(MOST_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line of a part may have lost its start.
    let skip = usize::from(start > 0);
    Ok(text.lines().skip(skip).map(str::to_owned).collect())
}

/// Reads new lines of a log, also after the daemon has begun a new file.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    /// A line whose end has not come yet.
    begun: Vec<u8>,
}

impl Follower {
    /// Begins behind the present lines.
    fn at_end(path: PathBuf) -> Self {
        let mut file = File::open(&path).ok();
        if file.as_mut().is_some_and(|file| file.seek(SeekFrom::End(0)).is_err()) {
            file = None;
        }
        Self { path, file, begun: Vec::new() }
    }

    /// The complete lines that came since the last call.
    fn new_lines(&mut self) -> io::Result<Vec<String>> {
        let mut bytes = std::mem::take(&mut self.begun);
        let there = match File::open(&self.path) {
            Ok(there) => Some(there),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(file) = &mut self.file {
            // Shorter than it was: somebody has emptied it (logrotate's copytruncate).
            if file.metadata()?.len() < file.stream_position()? {
                file.seek(SeekFrom::Start(0))?;
            }
            file.read_to_end(&mut bytes)?;
        }
        let is_another = match (&self.file, &there) {
            (Some(old), Some(new)) => id(old)? != id(new)?,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let (true, Some(mut file)) = (is_another, there) {
            file.read_to_end(&mut bytes)?;
            self.file = Some(file);
        }
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.begun = bytes.split_off(end);
        Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
    }
}

fn id(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The place and the form of the lines.
struct Output {
    is_json: bool,
    is_terminal: bool,
}

impl Output {
    fn line(&mut self, line: &str) -> Result<(), CliError> {
        let mut output = io::stdout().lock();
        match (self.is_json, self.is_terminal) {
            (true, _) => writeln!(output, "{}", as_json(line))?,
            (false, true) => writeln!(output, "{}", without_controls(line))?,
            (false, false) => writeln!(output, "{line}")?,
        }
        Ok(output.flush()?)
    }
}

/// A line without characters that change the terminal. A line may have names from registries and kits.
fn without_controls(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for c in line.chars() {
        match c {
            '\t' => text.push(c),
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

/// The levels of a log.
const LEVELS: [&str; 5] = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

/// A line as a JSON object. A line of text becomes one with `timestamp`, `level`, `target` and `message` as far as
/// it has them.
fn as_json(line: &str) -> Value {
    if let Ok(object @ Value::Object(_)) = serde_json::from_str(line) {
        return object;
    }
    let mut words = line.trim_start().splitn(2, ' ');
    let timestamp = words.next().filter(|word| word.parse::<jiff::Timestamp>().is_ok());
    let rest = words.next().unwrap_or_default().trim_start();
    let level = LEVELS.iter().find(|level| rest.split(' ').next() == Some(level));
    let (Some(timestamp), Some(level)) = (timestamp, level) else {
        return json!({ "message": line });
    };
    let rest = rest[level.len()..].trim_start();
    let mut object = Map::new();
    object.insert("timestamp".to_owned(), timestamp.into());
    object.insert("level".to_owned(), (*level).into());
    let is_target = |target: &&str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        !target.is_empty() && target.chars().all(is_part)
    };
    match rest.split_once(": ").filter(|(target, _)| is_target(target)) {
        Some((target, message)) => {
            object.insert("target".to_owned(), target.into());
            object.insert("message".to_owned(), message.into());
        }
        None => _ = object.insert("message".to_owned(), rest.into()),
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn append(path: &Path, text: &str) {
        let mut file = File::options().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn the_last_lines_come_from_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("daemon.log.1"), folder.path().join("daemon.log")];
        assert!(last_lines(&files, 5).unwrap().is_empty());
        append(&files[0], "a\nb\n");
        append(&files[1], "c\nd");
        assert_eq!(last_lines(&files, 3).unwrap(), ["b", "c", "d"]);
        assert_eq!(last_lines(&files, 9).unwrap(), ["a", "b", "c", "d"]);
        assert!(last_lines(&files, 0).unwrap().is_empty());
    }

    #[test]
    fn following_goes_on_in_the_next_file_and_loses_no_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.log");
        append(&path, "old\n");
        let mut follower = Follower::at_end(path.clone());
        assert!(follower.new_lines().unwrap().is_empty());
        append(&path, "a\nb");
        assert_eq!(follower.new_lines().unwrap(), ["a"]);
        append(&path, "c\n");
        fs::rename(&path, folder.path().join("daemon.log.1")).unwrap();
        append(&path, "d\n");
        assert_eq!(follower.new_lines().unwrap(), ["bc", "d"]);
        fs::write(&path, "").unwrap();
        append(&path, "e");
        assert!(follower.new_lines().unwrap().is_empty());
        append(&path, "f\n");
        assert_eq!(follower.new_lines().unwrap(), ["ef"]);
        fs::remove_file(&path).unwrap();
        assert!(follower.new_lines().unwrap().is_empty());
        append(&path, "g\n");
        assert_eq!(follower.new_lines().unwrap(), ["g"]);
    }

    #[test]
    fn lines_of_text_become_objects() {
        let text = "2026-12-01T04:00:00.000001Z  WARN kitfs::fetch: asking again error=x";
        let expected = json!({
            "timestamp": "2026-12-01T04:00:00.000001Z", "level": "WARN",
            "target": "kitfs::fetch", "message": "asking again error=x",
        });
        assert_eq!(as_json(text), expected);
        assert_eq!(as_json("kitfs: ended"), json!({ "message": "kitfs: ended" }));
        assert_eq!(as_json("{\"a\":1}"), json!({ "a": 1 }));
        assert_eq!(as_json("[1]"), json!({ "message": "[1]" }));
    }

    #[test]
    fn no_line_changes_the_terminal() {
        assert_eq!(without_controls("a\u{1b}[31m\tb\\"), "a\\u{1b}[31m\tb\\");
    }
}
