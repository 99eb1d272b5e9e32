//! Daemons and mounts under a supervisor that speaks as systemd does (sd_notify(3)).

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::Signal;

use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, is_mounted, signal, wait_until};
use crate::support::tree::Tree;

/// The watchdog's limit: pings come three times as often.
const LIMIT_MICROSECONDS: &str = "600000";

struct Supervisor<'a> {
    kitfs: &'a Kitfs,
    socket: UnixDatagram,
    path: PathBuf,
    messages: VecDeque<String>,
}

impl<'a> Supervisor<'a> {
    fn new(kitfs: &'a Kitfs) -> Self {
        let path = kitfs.folder().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { kitfs, socket, path, messages: VecDeque::new() }
    }

    /// The command of a service whose watchdog watches `watched`, in the words of a shell.
    fn command<S: AsRef<OsStr>>(&self, watched: &str, arguments: &[S]) -> Command {
        let mut command =
            self.kitfs.command_after(&format!("export WATCHDOG_PID={watched}"), arguments);
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", LIMIT_MICROSECONDS);
        command
    }

    fn start<S: AsRef<OsStr>>(&self, watched: &str, arguments: &[S]) -> Service {
        Service(Some(self.command(watched, arguments).spawn().unwrap()))
    }

    /// All messages that have come so far.
    fn hear(&mut self) -> &VecDeque<String> {
        let mut buffer = [0; 256];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.messages.push_back(String::from_utf8_lossy(&buffer[..length]).trim().to_owned());
        }
        &self.messages
    }

    /// Waits for one more message `words` than have come so far.
    fn await_another(&mut self, words: &str) {
        let count = |messages: &VecDeque<String>| messages.iter().filter(|it| *it == words).count();
        let before = count(self.hear());
        wait_until(words, || count(self.hear()) > before);
    }
}

/// A process that ends with the test.
struct Service(Option<Child>);

impl Service {
    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Ends the process, and returns its exit code.
    fn end(mut self) -> Option<i32> {
        signal(self.pid(), Signal::TERM);
        self.0.take().unwrap().wait().unwrap().code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

#[test]
fn a_daemon_in_the_foreground_is_the_process_of_its_supervisor_and_pings() {
    let kitfs = Kitfs::new();
    let mut supervisor = Supervisor::new(&kitfs);
    let service = supervisor.start("$$", &["daemon", "start", "--foreground"]);
    wait_until("the word that the daemon is ready", || !supervisor.hear().is_empty());
    assert_eq!(supervisor.messages[0], "READY=1");
    assert_eq!(kitfs.daemon_pid(), service.pid(), "the keeper");
    let mountpoint = kitfs.mount(&golden_reference("article"), &[]);
    supervisor.await_another("WATCHDOG=1");
    // The next worker pings, too.
    signal(kitfs.worker_pid(), Signal::KILL);
    supervisor.await_another("READY=1");
    supervisor.await_another("WATCHDOG=1");
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "after a worker that died");

    assert!(
        kitfs.fail(9, &["daemon", "start", "--foreground"]).contains("runs already"),
        "a second daemon"
    );
    assert_eq!(service.end(), Some(0));
    assert!(!is_mounted(&mountpoint));
    kitfs.succeed(&["daemon", "start", "--restore"]);
    Tree::read(&mountpoint).assert_equals(&Tree::golden("article"), "restored");
}

#[test]
fn a_mount_in_the_foreground_pings_alone_and_beside_a_daemon() {
    let kitfs = Kitfs::new();
    let mut supervisor = Supervisor::new(&kitfs);
    let mountpoint = kitfs.mountpoint("model");
    let reference = golden_reference("article");
    let arguments = ["mount", "--foreground", &reference, mountpoint.to_str().unwrap()];
    for has_daemon in [false, true] {
        if has_daemon {
            kitfs.succeed(&["daemon", "start"]);
        }
        let service = supervisor.start("$$", &arguments);
        supervisor.await_another("READY=1");
        supervisor.await_another("WATCHDOG=1");
        assert!(is_mounted(&mountpoint));
        assert_eq!(service.end(), Some(0), "with a daemon: {has_daemon}");
    }
}

#[test]
fn a_process_that_no_watchdog_watches_sends_no_pings() {
    let kitfs = Kitfs::new();
    let mut supervisor = Supervisor::new(&kitfs);
    let mountpoint = kitfs.mountpoint("model");
    let reference = golden_reference("article");
    let arguments = ["mount", "--foreground", &reference, mountpoint.to_str().unwrap()];
    // The number of a process that cannot be a parent: a service may pass its variables on.
    let service = supervisor.start("$(sh -c 'echo $$')", &arguments);
    supervisor.await_another("READY=1");
    // A watched process would ping several times meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(service.end(), Some(0));
    assert_eq!(*supervisor.hear(), ["READY=1"]);
}

#[test]
fn a_daemon_that_a_service_starts_by_a_mount_does_not_speak_for_the_service() {
    let kitfs = Kitfs::new();
    let mut supervisor = Supervisor::new(&kitfs);
    let mountpoint = kitfs.mountpoint("model");
    let reference = golden_reference("article");
    let arguments = ["mount", &reference, mountpoint.to_str().unwrap()];
    let outcome = Kitfs::run_command(supervisor.command("$$", &arguments));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    kitfs.succeed(&["daemon", "stop"]);
    assert_eq!(*supervisor.hear(), Vec::<String>::new());
}
