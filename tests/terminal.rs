//! `kitfs top` on a terminal.

#[path = "support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use support::kit_builder::{Kit, Layer};
use support::kitfs::{Kitfs, signal, wait_until};

/// The start and the end of the terminal's other screen (xterm's control sequences).
const OTHER_SCREEN: &str = "\x1b[?1049h";
const FIRST_SCREEN: &str = "\x1b[?1049l";

/// `kitfs top` with a terminal of its own.
struct Top {
    child: Child,
    keys: File,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
    terminal: OwnedFd,
}

impl Top {
    fn start(kitfs: &Kitfs) -> Self {
        let leader = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&leader).unwrap();
        unlockpt(&leader).unwrap();
        let path = PathBuf::from(ptsname(&leader, Vec::new()).unwrap().into_string().unwrap());
        let terminal = File::options().read(true).write(true).open(path).unwrap();
        let size = Winsize { ws_row: 40, ws_col: 140, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).unwrap();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let mut command = kitfs.command(&["top"]);
        command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let keys = File::from(leader.as_fd().try_clone_to_owned().unwrap());
        let mut reads = File::from(leader);
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reads.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keys, output, seen: String::new(), terminal: terminal.into() }
    }

    /// Waits until the terminal has got a text. Control sequences may stand between its words.
    fn wait_for(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let next = self.output.recv_timeout(Duration::from_secs(60));
            let next = next.unwrap_or_else(|error| panic!("no {text:?}: {error}: {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&next);
        }
    }

    fn press(&mut self, key: &str) {
        self.keys.write_all(key.as_bytes()).unwrap();
    }

    /// Waits for the end, and returns the exit code. The terminal is as it was.
    fn end(mut self) -> Option<i32> {
        self.wait_for(FIRST_SCREEN);
        let mut code = None;
        wait_until("the end", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "raw: {modes:?}");
        code.unwrap().code()
    }
}

fn mounted() -> (Kitfs, String) {
    let kitfs = Kitfs::new();
    let layer = Layer::tar("code", "src").file("src/main.py", 0o644, b"print()");
    let reference =
        Kit::modelkit().with(layer).write(&kitfs.folder().join("layout"), "v1").reference;
    let mountpoint = kitfs.mount(&reference, &[]);
    (kitfs, mountpoint.file_name().unwrap().to_str().unwrap().to_owned())
}

#[test]
fn top_shows_mounts_and_leaves_the_terminal_as_it_was() {
    let (kitfs, mount) = mounted();
    let mut top = Top::start(&kitfs);
    top.wait_for(OTHER_SCREEN);
    top.wait_for(&mount);
    top.press("p");
    top.wait_for("PAUSED");
    top.press("s\x1b[Cq");
    assert_eq!(top.end(), Some(0));
}

#[test]
fn a_signal_and_the_end_of_the_daemon_leave_the_terminal_as_it_was() {
    let (kitfs, mount) = mounted();
    let mut top = Top::start(&kitfs);
    top.wait_for(&mount);
    signal(top.child.id(), Signal::TERM);
    assert_eq!(top.end(), Some(0));
    let mut top = Top::start(&kitfs);
    top.wait_for(&mount);
    kitfs.succeed(&["daemon", "stop"]);
    assert_ne!(top.end(), Some(0));
}

#[test]
fn a_daemon_that_is_silent_holds_up_no_key_and_no_signal() {
    let (kitfs, mount) = mounted();
    let worker = kitfs.worker_pid();
    for is_signal in [false, true] {
        let mut top = Top::start(&kitfs);
        top.wait_for(&mount);
        signal(worker, Signal::STOP);
        top.wait_for("does not answer");
        match is_signal {
            true => signal(top.child.id(), Signal::TERM),
            false => top.press("q"),
        }
        assert_eq!(top.end(), Some(0));
        signal(worker, Signal::CONT);
    }
}

#[test]
fn without_a_terminal_or_a_daemon_top_says_so() {
    let kitfs = Kitfs::new();
    assert!(kitfs.fail(2, &["top"]).contains("kitfs status --watch"));
    let mut top = Top::start(&kitfs);
    top.wait_for("no daemon runs");
    assert!(!top.seen.contains(OTHER_SCREEN));
    top.child.wait().unwrap();
}
