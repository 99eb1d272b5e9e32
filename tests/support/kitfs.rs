//! The `kitfs` binary as a user runs it, with its own cache folder, home and environment. A guard
//! ends the daemon and the mounts.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// The time limit of a command: far more than any command needs, so that a hang becomes a failure.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// The time limit for work in the background.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The outcome of a command.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` if a signal ended the command.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// A command for a new mount namespace, without single quotes: takes the mounts of other tests out of it, which
/// would not end before the namespace.
pub const DROP_OTHERS: &str =
    r#"grep -o "[^ ]* fuse.kitfs" /proc/self/mounts | cut -d" " -f1 | xargs -r umount -l || true;"#;

/// One user's kitfs: a cache folder, and the daemon that may own it.
pub struct Kitfs {
    folder: TempDir,
    options: Vec<OsString>,
    mountpoints: RefCell<Vec<PathBuf>>,
}

impl Kitfs {
    /// An empty cache folder and no daemon.
    pub fn new() -> Self {
        Self::with_options::<&str>(&[])
    }

    /// As [`Kitfs::new`], with options for every command.
    pub fn with_options<S: AsRef<OsStr>>(options: &[S]) -> Self {
        Self {
            folder: TempDir::with_prefix("kitfs-test-").expect("a folder for the test"),
            options: options.iter().map(|option| option.as_ref().to_owned()).collect(),
            mountpoints: RefCell::default(),
        }
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cache folder.
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// The command. Of the caller's environment it has only `PATH`.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let home = self.folder.path().join("home");
        fs::create_dir_all(&home).expect("a home");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kitfs"));
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &home).env("KITFS_CACHE_DIR", self.cache());
        command.current_dir(self.folder.path());
        command.args(arguments).args(&self.options);
        command
    }

    /// The command, started by a shell that first runs `before` (limits, traps).
    pub fn command_after<S: AsRef<OsStr>>(&self, before: &str, arguments: &[S]) -> Command {
        let inner = self.command(arguments);
        let mut command = Command::new("sh");
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(self.folder.path()).arg("-c").arg(format!("{before}\nexec \"$@\""));
        command.arg("sh").arg(inner.get_program()).args(inner.get_args());
        command
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Outcome {
        Self::run_command(self.command(arguments))
    }

    /// Runs a command of [`Self::command`] or [`Self::command_after`] to its end.
    pub fn run_command(mut command: Command) -> Outcome {
        let words = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kitfs can be started");
        finish(child).unwrap_or_else(|| panic!("{words} did not end within {COMMAND_TIMEOUT:?}"))
    }

    /// Runs a command that must succeed; returns its standard output.
    #[track_caller]
    pub fn succeed<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let outcome = self.run(arguments);
        let words: Vec<_> = arguments.iter().map(|it| it.as_ref().to_string_lossy()).collect();
        let words = words.join(" ");
        assert_eq!(outcome.code, Some(0), "kitfs {words}: {}{}", outcome.stderr, self.log());
        String::from_utf8(outcome.stdout).expect("the output is text")
    }

    /// Runs a command that must fail with `code`; returns its standard error.
    #[track_caller]
    pub fn fail<S: AsRef<OsStr>>(&self, code: i32, arguments: &[S]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, Some(code), "{}{}", outcome.stderr, self.log());
        let said = outcome.stderr.trim_end();
        assert!(said.contains("kitfs: "), "no message: {said:?}");
        assert!(!said.contains("panicked"), "{said}");
        outcome.stderr
    }

    /// Runs a command that must succeed, and reads its output as JSON.
    #[track_caller]
    pub fn json<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Value {
        let text = self.succeed(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON: {error}: {text}"))
    }

    /// A new empty folder to mount on. Dropping this value unmounts it.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).expect("a mountpoint");
        self.mountpoints.borrow_mut().push(path.clone());
        path
    }

    /// Mounts a kit; returns the mountpoint.
    #[track_caller]
    pub fn mount(&self, reference: &str, options: &[&str]) -> PathBuf {
        let mountpoint = self.mountpoint(&format!("mnt{}", self.mountpoints.borrow().len()));
        let mut arguments = vec![OsStr::new("mount"), reference.as_ref(), mountpoint.as_os_str()];
        arguments.extend(options.iter().map(OsStr::new));
        self.succeed(&arguments);
        mountpoint
    }

    /// Unmounts.
    #[track_caller]
    pub fn unmount(&self, mountpoint: &Path) {
        self.succeed(&[OsStr::new("umount"), mountpoint.as_os_str()]);
    }

    /// The daemon's process that stays: its keeper.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon_process("pid")
    }

    /// The daemon's process that serves the mounts.
    pub fn worker_pid(&self) -> u32 {
        self.daemon_process("worker_pid")
    }

    fn daemon_process(&self, which: &str) -> u32 {
        let status = self.json(&["daemon", "status", "--json"]);
        let pid = status[which].as_u64().unwrap_or_else(|| panic!("no {which} in {status}"));
        pid.try_into().expect("a process number")
    }

    /// Kills the daemon, keeper and worker, and waits until both are gone. Its mounts are dead then.
    pub fn kill_daemon(&self) {
        let (keeper, worker) = (self.daemon_pid(), self.worker_pid());
        // A stopped worker starts no other keeper.
        signal(worker, Signal::STOP);
        for process in [keeper, worker] {
            kill_and_wait(process);
        }
    }

    /// The one mount of `kitfs status --json` at `mountpoint`.
    #[track_caller]
    pub fn status_of(&self, mountpoint: &Path) -> Value {
        let status = self.json(&["status", "--json"]);
        let mounts = status.as_array().or_else(|| status["mounts"].as_array());
        let mounts = mounts.unwrap_or_else(|| panic!("no mounts in {status}"));
        let here = |mount: &&Value| mount["mountpoint"].as_str().map(Path::new) == Some(mountpoint);
        mounts.iter().find(here).unwrap_or_else(|| panic!("not mounted: {status}")).clone()
    }

    /// The daemon's log, for failures.
    pub fn log(&self) -> String {
        match fs::read_to_string(self.cache().join("daemon.log")) {
            Ok(log) if !log.is_empty() => format!("\n--- daemon.log\n{log}"),
            _ => String::new(),
        }
    }
}

impl Drop for Kitfs {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.cache().join("lock"))
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok());
        let stopped = self.cache().exists() && self.run(&["daemon", "stop"]).code == Some(0);
        for mountpoint in self.mountpoints.borrow().iter().filter(|path| is_mounted(path)) {
            let _ = Command::new("fusermount3").arg("-uzq").arg(mountpoint).status();
        }
        // Checks the binary, because the kernel may have given the number to another process.
        if let (false, Some(pid)) = (stopped, pid) {
            let binary = fs::read_link(format!("/proc/{pid}/exe")).ok();
            if binary.as_deref() == Some(Path::new(env!("CARGO_BIN_EXE_kitfs"))) {
                let pid = Pid::from_raw(pid).expect("not zero");
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Sends a signal to a process of this test.
pub fn signal(process: u32, signal: Signal) {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process number");
    rustix::process::kill_process(pid, signal).expect("it is ours");
}

/// Kills a process, and waits until it is gone.
pub fn kill_and_wait(process: u32) {
    signal(process, Signal::KILL);
    // It is nobody's child here: whoever inherited it may take a while to collect it.
    wait_until("the end of a process", || {
        let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        state.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    });
}

/// `true` if the kernel's table has a mount at `path`.
pub fn is_mounted(path: &Path) -> bool {
    mount_type(path).is_some()
}

/// The file system type of the topmost mount at `path`: `fuse.kitfs` for ours.
pub fn mount_type(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mounts").expect("the mount table");
    let path = path.to_str().expect("the tests use plain paths");
    let lines = table.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.into_iter().find(|fields| fields[1] == path).map(|fields| fields[2].to_owned())
}

/// Waits until `condition` holds, and fails after the time limit.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about within {WAIT_TIMEOUT:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn finish(mut child: Child) -> Option<Outcome> {
    let mut stdout = child.stdout.take().expect("the output is piped");
    let mut stderr = child.stderr.take().expect("the messages are piped");
    let stdout = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
    });
    let stderr = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).map(|_| bytes).unwrap_or_default()
    });
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let stdout = stdout.join().expect("reading cannot panic");
    let stderr = stderr.join().expect("reading cannot panic");
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Some(Outcome { code: status.code(), stdout, stderr })
}
