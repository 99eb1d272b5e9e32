//! `kitfs bugreport [FILE]`: one text file about this machine and its daemon, without secrets.
//!
//! All text goes through one [`Redactor`], which also knows the secrets of the files with credentials and of the
//! environment. The report works without a daemon. Where a part fails, the report has the error instead.

mod secrets;

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::arguments::NetworkArguments;
use super::doctor::{self, Check, Outcome};
use super::error::CliError;
use super::logs::{self, last_lines};
use super::output::{print_line, say};
use super::settings::Settings;
use super::sizes;
use crate::control::api::{DaemonStatus, Failure, LogPlace};
use crate::daemon::{Backend, DaemonConfig, log_files};
use crate::observe::Redactor;
use crate::process::mount_table::{Entry as MountEntry, MountTable};

/// The number of last lines of the log: some hours of a daemon in trouble.
const LOG_LINES: usize = 400;

/// The most bytes of each part. A status of a hundred mounts has some 200 KB.
const PART_BYTES: usize = 1 << 20;

/// The words at the start of a report.
const PREFACE: &str = "\
This file has the versions of kitfs and the kernel, the checks of `kitfs doctor`, the status of the daemon, its
mounts and limits, the size of the cache, and the end of the log. It names registries, kits, files, users and
folders. Passwords, tokens, keys and the queries of URLs were taken out. Read it before you share it.
";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The report has the versions of kitfs and of the kernel, the checks of `kitfs
doctor`, the daemon's status, its mounts and limits, the size of the cache and
the end of the log. It names registries, kits, users and folders. Passwords,
tokens, keys and the queries of URLs are taken out. Read it before you share it.

Example:
  kitfs bugreport report.txt")]
pub(super) struct Arguments {
    /// The file to write; `-` for the standard output [default: kitfs-bugreport-TIME.txt].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let network = settings.network(&arguments.network)?;
    let redactor = Redactor::new(secrets::known(settings, &network));
    let checks = doctor::machine_checks(settings, &network).await;
    let report = redactor.text(&report(settings, &checks).await);
    let file = arguments.file.unwrap_or_else(usual_name);
    if file.as_os_str() == "-" {
        let mut output = io::stdout().lock();
        output.write_all(report.as_bytes())?;
        return Ok(output.flush()?);
    }
    write(&file, &report)?;
    let failures = doctor::count(&checks, Outcome::Fail);
    print_line(file.display())?;
    say("read the report before you share it: it names registries, kits, users and folders");
    if failures > 0 {
        say(format_args!("`kitfs doctor` finds {failures} FAIL: they may be the cause"));
    }
    Ok(())
}

fn usual_name() -> PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("kitfs-bugreport-{now}.txt"))
}

/// Writes the report to a new file that only its owner can read.
fn write(file: &Path, report: &str) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = opened.and_then(|mut file| file.write_all(report.as_bytes()));
    written.map_err(|error| {
        let place = file.display();
        match error.kind() {
            io::ErrorKind::AlreadyExists => {
                CliError::usage(format!("{place} is there already: name another file"))
            }
            _ => Failure::of_write(&error, format!("cannot write {place}: {error}")).into(),
        }
    })
}

async fn report(settings: &Settings, checks: &[Check]) -> String {
    let mut report = Report::default();
    report.text.push_str(PREFACE);
    report.part("Versions", versions());
    report.part(
        "Variables that are set, without their values",
        settings.names_of_variables().join(" "),
    );
    report.part("kitfs doctor", doctor::text(checks));
    let config = settings.daemon();
    match &config {
        Ok(config) => {
            report.part("Daemon", status(config).await);
            report.part("Cache", cache(&config.cache_folder));
        }
        Err(_) => report.part("Daemon", "there is no place for a cache".to_owned()),
    }
    if let Some(folder) = settings.system_folder()
        && let Ok(Some(system)) = Backend::of_system(&folder).await
    {
        report.part(
            "System daemon",
            match system.status().await {
                Ok(status) => shown(&status),
                Err(failure) => failure.message,
            },
        );
    }
    report.part("Mounts in the kernel's table", mounts());
    report.part("Limits of this process", read("/proc/self/limits"));
    report.part("Memory", read("/proc/meminfo"));
    if let Ok(config) = &config {
        report.part("End of the log", log(settings, config).await);
    }
    report.text
}

/// The last lines of the log of the user's daemon.
async fn log(settings: &Settings, config: &DaemonConfig) -> String {
    match logs::place(settings, config, false).await {
        Some(LogPlace::Journal { unit, is_of_user }) => {
            let command = logs::journalctl(&unit, is_of_user, LOG_LINES);
            match tokio::process::Command::from(command).output().await {
                Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
                Err(error) => format!("it is in the journal of {unit}: journalctl: {error}"),
            }
        }
        Some(LogPlace::StandardError) => logs::ELSEWHERE.to_owned(),
        Some(LogPlace::File(_)) | None => {
            match last_lines(&log_files(&config.cache_folder), LOG_LINES) {
                Ok(lines) if lines.is_empty() => "there is none".to_owned(),
                Ok(lines) => lines.join("\n"),
                Err(error) => format!("it cannot be read: {error}"),
            }
        }
    }
}

/// The text of a report as it grows.
#[derive(Default)]
struct Report {
    text: String,
}

impl Report {
    fn part(&mut self, heading: &str, mut text: String) {
        if text.len() > PART_BYTES {
            let cut = (0..=PART_BYTES).rev().find(|&at| text.is_char_boundary(at));
            text.truncate(cut.unwrap_or(0));
            text.push_str("\n… cut here");
        }
        let _ = write!(self.text, "\n=== {heading} ===\n{}\n", text.trim_end());
    }
}

fn versions() -> String {
    let kernel = rustix::system::uname();
    let os = read("/etc/os-release");
    let name = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown");
    format!(
        "kitfs {}\nkernel {} {} {}\nsystem {}\nuser {}\n",
        env!("CARGO_PKG_VERSION"),
        kernel.release().to_string_lossy(),
        kernel.version().to_string_lossy(),
        kernel.machine().to_string_lossy(),
        name.trim_matches('"'),
        rustix::process::geteuid().as_raw()
    )
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| format!("{path} cannot be read: {error}"))
}

/// The status of a daemon that runs.
async fn status(config: &DaemonConfig) -> String {
    let status = match Backend::running(config).await {
        Ok(Some(daemon)) => daemon.status().await,
        Ok(None) => return format!("none runs for {}", config.cache_folder.display()),
        Err(failure) => Err(failure),
    };
    status.map_or_else(|failure| failure.message, |status| shown(&status))
}

fn shown(status: &DaemonStatus) -> String {
    serde_json::to_string_pretty(status).expect("answers have string keys only")
}

/// The files of the cache folder: how many, and the bytes that they take.
fn cache(folder: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    /// The unit of `st_blocks` (stat(2)).
    const UNIT_BYTES: u64 = 512;
    let mut text = String::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("there is no folder {}", folder.display());
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    names.sort();
    for path in names {
        let (mut files, mut bytes) = (0u64, 0u64);
        let mut open = vec![path.clone()];
        while let Some(next) = open.pop() {
            let Ok(there) = next.symlink_metadata() else { continue };
            if there.is_dir() {
                open.extend(
                    std::fs::read_dir(&next).into_iter().flatten().flatten().map(|e| e.path()),
                );
            } else {
                files += 1;
                bytes = bytes.saturating_add(there.blocks().saturating_mul(UNIT_BYTES));
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(text, "{name}: {files} files, {} on disk", sizes::show(bytes));
    }
    text
}

/// The mounts of kitfs, and of overlays over them.
fn mounts() -> String {
    let Ok(table) = MountTable::read() else { return "/proc is not mounted".to_owned() };
    let mut text = String::new();
    let is_kit = |entry: &&MountEntry| entry.file_system.starts_with("fuse.kitfs");
    let kits: Vec<_> = table.entries().iter().filter(is_kit).map(|it| &it.mountpoint).collect();
    // The overlays of containers are of no interest, and name folders of others.
    let is_over_kit = |entry: &&MountEntry| {
        let lower = entry.options.split(',').find_map(|word| word.strip_prefix("lowerdir="));
        let lower = lower.unwrap_or_default();
        entry.file_system.contains("overlay")
            && (lower.split(':').any(|lower| kits.iter().any(|kit| **kit == *Path::new(lower)))
                || kits.contains(&&entry.mountpoint))
    };
    for entry in table.entries().iter().filter(|it| is_kit(it) || is_over_kit(it)) {
        let _ = writeln!(
            text,
            "{} {} on {} ({})",
            entry.file_system,
            entry.source,
            entry.mountpoint.display(),
            entry.options
        );
    }
    text
}
