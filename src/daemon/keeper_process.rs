//! The keeper's process: `kitfs daemon keep`.
//!
//! ```text
//! kitfs daemon keep (holds keeper.lock) --> kitfs daemon run --kept (holds lock, serves)
//! kitfs daemon run --kept --its keeper died--> kitfs daemon keep --adopt PID
//! ```

use std::ffi::OsString;
use std::fmt::Display;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::Pid;

use super::descriptors;
use super::lifecycle::DaemonConfig;
use super::listening::{self, KIT_OPTIONS_VARIABLE};
use super::log::Log;
use crate::control::api::{Failure, FailureKind};
use crate::keeper::{self, Channel};
use crate::observe::LogFormat;
use crate::process::limits::ChildLimits;

/// The name of the lock in the cache folder.
const LOCK_NAME: &str = "keeper.lock";

/// The longest path of a program, in bytes (`PATH_MAX`).
const LONGEST_PATH: u64 = 4096;

/// The longest number of a process, with a newline, and room to spare.
const LONGEST_PID: u64 = 16;

/// The tries to take the lock. A command that looks at the lock holds it for a moment.
const LOCK_TRIES: u32 = 10;
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// How a keeper begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It starts the first worker.
    Anew,
    /// It goes on for a running worker, whose channel is the standard input.
    Adopt(Pid),
    /// It was the keeper of another version of kitfs, which has left its state in the descriptor.
    Resume(RawFd),
}

/// Holds the mounts of the daemon of a cache folder until it ends for good.
pub fn keep(config: &DaemonConfig, beginning: Beginning) -> ExitCode {
    super::detach();
    let Ok(program) = Program::of_this_process() else { return ExitCode::FAILURE };
    let mut config = config.clone();
    let log = Log::of_this_process(&config.cache_folder);
    // A mount has three descriptors here. Workers raise the limit themselves.
    let child_limits = ChildLimits::raise_own();
    let adopted = match beginning {
        Beginning::Anew => None,
        Beginning::Adopt(process) => match io::stdin().as_fd().try_clone_to_owned() {
            Ok(socket) => {
                silence_input();
                Some((socket, process))
            }
            Err(_) => return ExitCode::FAILURE,
        },
        // The lock is in the state.
        Beginning::Resume(state) => {
            let programs = Programs { program, config: &config, log, child_limits };
            // The socket is open, and its number is in the arguments.
            return keeper::resume(programs, state).unwrap_or_else(|error| {
                eprintln!("kitfs: --resume is for the keeper, which calls it itself: {error}");
                ExitCode::from(FailureKind::Usage.exit_code())
            });
        }
    };
    let lock = match lock(&config.cache_folder) {
        Ok(Some(lock)) => lock,
        Ok(None) => {
            eprintln!("kitfs: {}", held_by_keeper(&config.cache_folder));
            return ExitCode::from(FailureKind::Cache.exit_code());
        }
        Err(error) => {
            eprintln!("kitfs: {}", unusable(&config.cache_folder, &error));
            return ExitCode::from(FailureKind::Cache.exit_code());
        }
    };
    // Held as long as this process lives.
    let _listener = match config.listen.as_mut().map(listening::hold).transpose() {
        Ok(listener) => listener.flatten(),
        Err(failure) => {
            eprintln!("kitfs: {failure}");
            return ExitCode::from(failure.kind.exit_code());
        }
    };
    if adopted.is_some() {
        keeper::silence_output();
    }
    let programs = Programs { program, config: &config, log, child_limits };
    match adopted {
        Some((socket, process)) => keeper::adopt(programs, lock, socket, process),
        None => keeper::run(programs, lock),
    }
}

/// Makes this process the keeper of a new daemon, for a supervisor that wants the process which it has started. Returns
/// when that fails.
///
/// The keeper is small, so it is a fresh program without a runtime.
pub fn become_keeper(config: &DaemonConfig) -> Failure {
    if let Err(error) = config.make_cache_folder() {
        return unusable(&config.cache_folder, &error);
    }
    let error = match keeper_command(config) {
        Ok(mut command) => command.current_dir("/").stdin(Stdio::null()).exec(),
        Err(error) => error,
    };
    let folder = config.cache_folder.display();
    Failure::new(FailureKind::Daemon, format!("cannot start the daemon for {folder}: {error}"))
}

/// The failure of a cache folder that cannot be used.
pub(super) fn unusable(folder: &Path, error: &io::Error) -> Failure {
    let folder = folder.display();
    let message = format!(
        "cannot use the cache folder {folder}: {error}; choose another one with --cache-dir"
    );
    Failure::new(FailureKind::Cache, message)
}

/// The programs that a keeper starts, or becomes.
struct Programs<'a> {
    program: Program,
    config: &'a DaemonConfig,
    log: Option<Log>,
    child_limits: ChildLimits,
}

impl keeper::Programs for Programs<'_> {
    fn worker(&mut self, socket: OwnedFd) -> io::Result<Command> {
        // The worker before may have put the log aside.
        self.log.iter().for_each(Log::reopen);
        let mut command = command(&self.program, "run", self.config);
        command.arg("--kept").stdin(socket);
        self.child_limits.give_back(&mut command);
        Ok(command)
    }

    fn successor(&mut self, program: File, state: RawFd) -> io::Result<Command> {
        let mut path = Vec::new();
        program.take(LONGEST_PATH).read_to_end(&mut path)?;
        let program = Program(PathBuf::from(OsString::from_vec(path)));
        let mut command = command(&program, "keep", self.config);
        command.arg("--resume").arg(state.to_string());
        Ok(command)
    }

    fn log_format(&self) -> LogFormat {
        self.config.log_format
    }
}

/// Whether a keeper holds the cache folder: its worker answers, or will in a moment.
pub(super) fn is_kept(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join(LOCK_NAME)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Says that the keeper of a cache folder holds it, though no worker answers.
pub(super) fn held_by_keeper(folder: &Path) -> String {
    let place = folder.display();
    match keeper_of(folder) {
        Some(pid) if is_stopped(pid) => stopped(place, pid),
        Some(pid) => format!(
            "the daemon of {place} (its keeper is process {pid}) does not answer yet: try again in a moment; its \
             log is daemon.log in that folder"
        ),
        None => format!(
            "the daemon of {place} does not answer yet: try again in a moment; its log is daemon.log in that \
             folder"
        ),
    }
}

/// The advice for a keeper that is stopped (SIGSTOP), if it is: it starts no worker then.
pub(super) fn stopped_keeper(folder: &Path) -> Option<String> {
    let pid = keeper_of(folder).filter(|&pid| is_stopped(pid))?;
    Some(stopped(folder.display(), pid))
}

fn stopped(place: impl Display, pid: u32) -> String {
    format!(
        "the daemon of {place} does not answer: its keeper, process {pid}, is stopped. `kill -CONT {pid}` \
         continues it, `kill -KILL {pid}` ends it"
    )
}

/// The process that has written itself into the lock.
fn keeper_of(folder: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(folder.join(LOCK_NAME)).ok()?.take(LONGEST_PID).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether a process is stopped, as proc_pid_stat(5) has it.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Starts a keeper for this process, whose keeper is gone.
pub(super) fn start_for_this_process(
    program: &Program,
    config: &DaemonConfig,
    child_limits: ChildLimits,
    listener: Option<OwnedFd>,
) -> io::Result<(Channel, u32)> {
    let (channel, theirs) = Channel::new()?;
    let mut command = command(program, "keep", config);
    child_limits.give_back(&mut command);
    command.arg("--adopt").arg(std::process::id().to_string());
    command.stdin(theirs).stdout(Stdio::null());
    if let Some(listener) = listener {
        // The one descriptor that the new keeper gets without being asked for its number.
        command.stdout(listener);
    }
    descriptors::close_on_exec()?;
    let mut child = command.spawn()?;
    let pid = child.id();
    // Collects its exit status, whenever that comes. Without the thread, the end of this process does.
    let thread = std::thread::Builder::new().name("kitfs-keeper".to_owned());
    let _ = thread.spawn(move || child.wait());
    Ok((channel, pid))
}

/// The keeper's command line, for a daemon that is started.
pub(super) fn keeper_command(config: &DaemonConfig) -> io::Result<Command> {
    let mut command = command(&Program::of_this_process()?, "keep", config);
    if let Some(kit) = config.listen.as_ref().and_then(|listen| listen.kit.as_ref()) {
        command.env(KIT_OPTIONS_VARIABLE, serde_json::to_string(kit)?);
    }
    Ok(command)
}

/// The file of this program.
#[derive(Debug)]
pub(super) struct Program(PathBuf);

impl Program {
    /// The path that this process was started from. To be called at its start: a newer version may replace
    /// the file, and the kernel's answer is no path then.
    pub(super) fn of_this_process() -> io::Result<Self> {
        std::env::current_exe().map(Self)
    }

    /// The path, where a file is there: of a newer version perhaps.
    pub(super) fn on_disk(&self) -> Option<&Path> {
        Some(&*self.0).filter(|path| path.exists())
    }

    /// The file at the path, of a newer version perhaps; without one, the file that this process runs.
    fn path(&self) -> &Path {
        self.on_disk().unwrap_or(Path::new("/proc/self/exe"))
    }
}

fn command(program: &Program, word: &str, config: &DaemonConfig) -> Command {
    let mut command = Command::new(program.path());
    // A program of another name may do other things: `mount.fuse.kitfs` takes the words of mount(8).
    command.arg0("kitfs");
    command.args(["daemon", word]).arg("--cache-dir").arg(&config.cache_folder);
    command.arg("--keep-free").arg(config.keep_free_bytes.to_string());
    command.arg("--memory").arg(config.memory_bytes.to_string());
    let idle_exit = config.idle_exit.map(|limit| limit.as_secs().to_string());
    command.arg("--idle-exit").arg(idle_exit.unwrap_or("never".to_owned()));
    config.listen.iter().for_each(|listen| listen.pass_on(&mut command));
    if let Some(collector) = &config.otlp {
        command.arg("--otlp").arg(collector.as_str());
    }
    if config.log_format == LogFormat::Json {
        command.arg("--log-format").arg("json");
    }
    if let Some(capacity_bytes) = config.cache_capacity_bytes {
        command.arg("--cache-size").arg(capacity_bytes.to_string());
    }
    if let Some(system) = &config.system {
        command.arg("--system");
        if let Some(group) = system.group {
            command.arg("--group").arg(group.to_string());
        }
    }
    command
}

/// Takes the keeper's lock; `None` when another keeper has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let path = folder.join(LOCK_NAME);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => {
                // Only a name for messages: a full disk does not keep the daemon from its work.
                let _ = file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id()));
                return Ok(Some(file));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_INTERVAL),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(None)
}

/// Points the standard input to nothing: the socket must close when its last owner closes it.
pub(super) fn silence_input() {
    if let Ok(null) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
}
