//! Mounts that end with a process: `kitfs run`, `mount --while-pid`, `mount --foreground` beside a daemon.

#![allow(unsafe_code, reason = "a terminal of its own for a child")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::counted::{Counted, big_files};
use crate::support::golden_reference;
use crate::support::kitfs::{Kitfs, Outcome, is_mounted, kill_and_wait, signal, wait_until};
use crate::support::registry_double::{Fault, Rule};

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

/// The command `kitfs run` with a folder of the test for its mountpoints.
fn run(kitfs: &Kitfs, arguments: &[&str]) -> Command {
    let runtime = kitfs.folder().join("run");
    fs::create_dir_all(&runtime).unwrap();
    let mut command = kitfs.command(&[&["run"], arguments].concat());
    command.env("XDG_RUNTIME_DIR", runtime);
    command
}

fn run_to_end(kitfs: &Kitfs, arguments: &[&str]) -> Outcome {
    Kitfs::run_command(run(kitfs, arguments))
}

fn stdout(outcome: &Outcome) -> String {
    String::from_utf8(outcome.stdout.clone()).unwrap()
}

/// The entries of the folder for mountpoints.
fn left_behind(kitfs: &Kitfs) -> Vec<PathBuf> {
    let entries = fs::read_dir(kitfs.folder().join("run")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// A `kitfs run` whose command goes on, and its command.
struct Running {
    kitfs: Child,
    _output: BufReader<ChildStdout>,
    command: u32,
    mountpoint: PathBuf,
}

impl Running {
    /// Starts `kitfs run` with a shell that says where the mount is, and then does `script`.
    fn start(kitfs: &Kitfs, script: &str) -> Self {
        Self::start_after(kitfs, "", script)
    }

    /// As [`Self::start`]. The shell does `before` first, so that it is done when this returns.
    fn start_after(kitfs: &Kitfs, before: &str, script: &str) -> Self {
        let reference = golden_reference("article");
        let script = format!("{before}\necho $$; echo $KITFS_MOUNT; {script}");
        let mut command = run(kitfs, &[&reference, "--", "sh", "-c", &script]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = || {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let command = line().parse().expect("the number of the command");
        let mountpoint = PathBuf::from(line());
        assert!(mountpoint.join("Kitfile").exists());
        Self { kitfs: child, _output: output, command, mountpoint }
    }

    /// Kills kitfs, and not its command.
    fn kill_kitfs(&mut self) {
        self.kitfs.kill().unwrap();
        self.kitfs.wait().unwrap();
    }

    fn is_gone(&self) -> bool {
        !is_mounted(&self.mountpoint) && !self.mountpoint.exists()
    }
}

const SLEEP: &str = "exec sleep 100";

#[test]
fn a_command_runs_with_its_mount_and_gives_the_exit_code() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let script = "cat \"$KITFS_MOUNT/Kitfile\"; test $KITFS_MOUNT = $KITFS_MOUNT_1 && exit 7";
    let outcome = run_to_end(&kitfs, &[&reference, "--", "sh", "-c", script]);
    assert_eq!(outcome.code, Some(7), "{}", outcome.stderr);
    assert!(stdout(&outcome).contains("manifestVersion"), "{outcome:?}");
    assert_eq!(left_behind(&kitfs), Vec::<PathBuf>::new());
    let status = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(status["mounts"].as_array().map(Vec::len), Some(0), "{status}");
    // In a directory that the user names, and that is there.
    let mountpoint = kitfs.mountpoint("mnt");
    let outcome = run_to_end(&kitfs, &[&reference, text(&mountpoint), "--", "ls", "mnt/Kitfile"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!is_mounted(&mountpoint) && mountpoint.exists());
}

#[test]
fn a_command_has_several_kits() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    let (one, two) = (format!("{reference}:./one"), format!("{reference}:two"));
    let script =
        "ls $KITFS_MOUNT_1/Kitfile one/Kitfile two/Kitfile && echo $KITFS_MOUNT_2 $KITFS_MOUNT_3";
    let outcome =
        run_to_end(&kitfs, &[&reference, "--kit", &one, "--kit", &two, "--", "sh", "-c", script]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let (one, two) = (kitfs.folder().join("one"), kitfs.folder().join("two"));
    let said = stdout(&outcome);
    assert!(said.ends_with(&format!("{} {}\n", one.display(), two.display())), "{said}");
    assert!(!one.exists() && !two.exists() && left_behind(&kitfs).is_empty());
    // Of two kits at one place the second is refused, and the command is not run.
    let again = format!("{reference}:./one");
    let arguments = ["--kit", &again, "--kit", &again, "--", "touch", "ran"];
    let outcome = run_to_end(&kitfs, &arguments);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("one"), "{outcome:?}");
    assert!(!kitfs.folder().join("ran").exists() && !one.exists());
}

#[test]
fn a_command_that_cannot_be_run_gives_the_exit_codes_of_shells() {
    let kitfs = Kitfs::new();
    let reference = golden_reference("article");
    for (command, code) in [("no-such-command", 127), ("/", 126)] {
        let outcome = run_to_end(&kitfs, &[&reference, "--", command]);
        assert_eq!(outcome.code, Some(code), "{command}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(command), "{}", outcome.stderr);
        assert!(left_behind(&kitfs).is_empty());
    }
    let outcome = run_to_end(&kitfs, &["oci:/no/such/kit", "--", "true"]);
    assert_eq!(outcome.code, Some(125), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/no/such/kit"), "{}", outcome.stderr);
    let outcome = run_to_end(&kitfs, &["--nonsense", &reference, "--", "true"]);
    assert_eq!(outcome.code, Some(125), "{}", outcome.stderr);
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let kitfs = Kitfs::new();
    for (name, sent) in [("TERM", Signal::TERM), ("INT", Signal::INT), ("USR1", Signal::USR1)] {
        let trap = format!("trap 'exit 3' {name}");
        let mut running = Running::start_after(&kitfs, &trap, "while :; do sleep 0.05; done");
        signal(running.kitfs.id(), sent);
        assert_eq!(running.kitfs.wait().unwrap().code(), Some(3), "{name}");
        assert!(running.is_gone(), "{name}");
    }
    let mut running = Running::start(&kitfs, SLEEP);
    signal(running.kitfs.id(), Signal::TERM);
    assert_eq!(running.kitfs.wait().unwrap().code(), Some(128 + 15));
    assert!(running.is_gone());
}

/// The terminal sends it to kitfs and to the command.
#[test]
fn ctrl_c_reaches_the_command_once() {
    let kitfs = Kitfs::new();
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let mut terminal = fs::File::from(openpt(flags).unwrap());
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let side = fs::File::options().read(true).write(true).open(name).unwrap();
    // A program that counts. A signal that comes twice within moments may be taken for one, so it waits.
    let script = "n=0; trap 'n=$((n+1)); echo $n >>counted; sleep 0.3' INT; echo >ready; \
                  while test $n = 0; do sleep 0.05; done; sleep 1; exit $n";
    let reference = golden_reference("article");
    let mut command = run(&kitfs, &[&reference, "--", "sh", "-c", script]);
    command.stdin(side.try_clone().unwrap()).stdout(side.try_clone().unwrap());
    // SAFETY: between fork and exec these are two system calls, without memory or locks.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(ioctl_tiocsctty(rustix::stdio::stdin())?)
        });
    }
    let mut child = command.stderr(side).spawn().unwrap();
    wait_until("the command", || kitfs.folder().join("ready").exists());
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_to_string(kitfs.folder().join("counted")).unwrap(), "1\n");
    assert!(left_behind(&kitfs).is_empty());
}

/// No command is run then.
#[test]
fn a_signal_while_the_kits_are_mounted_ends_the_run() {
    let counted = Counted::new(&big_files());
    let late = Fault::Late(Duration::from_secs(3600));
    counted.registry.script(Rule::on("/blobs/").then(late));
    let local = format!("{}:./first", golden_reference("article"));
    let arguments = ["--kit", &local, "--kit", &format!("{}:./second", counted.reference)];
    let mut command = run(&counted.kitfs, &[&arguments[..], &["--", "touch", "ran"]].concat());
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let folder = counted.kitfs.folder();
    wait_until("the first mount", || is_mounted(&folder.join("first")));
    signal(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    let is_over = || ["first", "second", "ran"].iter().all(|name| !folder.join(name).exists());
    wait_until("the end of the mounts", is_over);
}

#[test]
fn the_mount_of_a_command_that_is_killed_ends() {
    let kitfs = Kitfs::new();
    let mut running = Running::start(&kitfs, SLEEP);
    signal(running.command, Signal::KILL);
    assert_eq!(running.kitfs.wait().unwrap().code(), Some(128 + 9));
    assert!(running.is_gone());
}

#[test]
fn the_mount_of_a_run_that_is_killed_ends() {
    let kitfs = Kitfs::new();
    let mut running = Running::start(&kitfs, SLEEP);
    let owner = kitfs.status_of(&running.mountpoint)["owner"].as_u64();
    assert_eq!(owner, Some(running.kitfs.id().into()));
    let shown = kitfs.succeed(&["status"]);
    assert!(shown.contains(&format!("until process {} ends", running.kitfs.id())), "{shown}");
    running.kitfs.kill().unwrap();
    assert_eq!(running.kitfs.wait().unwrap().signal(), Some(9));
    wait_until("the end of the mount", || running.is_gone());
    kill_and_wait(running.command);
}

#[test]
fn a_program_that_a_killed_run_has_left_reads_what_it_has_open() {
    let kitfs = Kitfs::new();
    let script = "exec <$KITFS_MOUNT/Kitfile; while test -d $KITFS_MOUNT; do sleep 0.05; done; \
                  cat >left; exec sleep 100";
    let mut running = Running::start(&kitfs, script);
    running.kill_kitfs();
    wait_until("the end of the mount", || running.is_gone());
    let left = kitfs.folder().join("left");
    let is_whole = || fs::read_to_string(&left).is_ok_and(|text| text.contains("manifestVersion"));
    wait_until("the bytes of an open file", is_whole);
    kill_and_wait(running.command);
}

#[test]
fn an_owner_is_watched_by_the_next_worker_and_the_next_keeper() {
    let kitfs = Kitfs::new();
    let mut running = Running::start(&kitfs, SLEEP);
    kill_and_wait(kitfs.worker_pid());
    let keeper = kitfs.daemon_pid();
    kill_and_wait(keeper);
    wait_until("another keeper", || kitfs.daemon_pid() != keeper);
    kill_and_wait(kitfs.worker_pid());
    let owner = kitfs.status_of(&running.mountpoint)["owner"].as_u64();
    assert_eq!(owner, Some(running.kitfs.id().into()));
    assert!(running.mountpoint.join("Kitfile").exists());
    running.kill_kitfs();
    wait_until("the end of the mount", || running.is_gone());
    kill_and_wait(running.command);
}

#[test]
fn a_mount_whose_owner_died_without_a_worker_ends_with_the_next_worker() {
    let kitfs = Kitfs::new();
    let mut running = Running::start(&kitfs, SLEEP);
    let (keeper, worker) = (kitfs.daemon_pid(), kitfs.worker_pid());
    // A stopped keeper starts no worker.
    signal(keeper, Signal::STOP);
    kill_and_wait(worker);
    running.kill_kitfs();
    assert!(is_mounted(&running.mountpoint));
    signal(keeper, Signal::CONT);
    wait_until("the end of the mount", || running.is_gone());
    kill_and_wait(running.command);
}

#[test]
fn a_mount_with_an_owner_is_not_made_again_after_both_processes_were_killed() {
    let kitfs = Kitfs::new();
    let mut running = Running::start(&kitfs, SLEEP);
    kitfs.kill_daemon();
    kitfs.succeed(&["daemon", "start", "--restore"]);
    assert!(fs::read(running.mountpoint.join("Kitfile")).is_err());
    signal(running.command, Signal::TERM);
    assert_eq!(running.kitfs.wait().unwrap().code(), Some(128 + 15));
    assert!(running.is_gone(), "a dead mount, and a directory that kitfs has made");
}

#[test]
fn a_mount_lives_as_long_as_a_process() {
    let kitfs = Kitfs::new();
    let mut other = Command::new("sleep").arg("100").spawn().unwrap();
    let pid = other.id().to_string();
    let mountpoint = kitfs.mount(&golden_reference("article"), &["--while-pid", &pid]);
    let staying = kitfs.mount(&golden_reference("article"), &[]);
    kitfs.succeed(&["daemon", "restart"]);
    assert!(mountpoint.join("Kitfile").exists());
    // Its end counts though its parent has not collected it.
    other.kill().unwrap();
    wait_until("the end of the mount", || !is_mounted(&mountpoint));
    assert!(staying.join("Kitfile").exists());
    let place = kitfs.mountpoint("late");
    let reference = golden_reference("article");
    let arguments = ["mount", &reference, text(&place), "--while-pid", &pid];
    assert!(kitfs.fail(3, &arguments).contains("has ended"));
    other.wait().unwrap();
    assert!(kitfs.fail(3, &arguments).contains(&format!("--while-pid {pid}")));
    assert!(!is_mounted(&place));
}

/// A mount in the foreground, beside the daemon that serves it.
fn foreground(kitfs: &Kitfs) -> (Child, PathBuf) {
    let place = kitfs.mountpoint("front");
    let reference = golden_reference("article");
    let mut command = kitfs.command(&["mount", "--foreground", &reference, text(&place)]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains(text(&place)) && place.join("Kitfile").exists(), "{said}");
    (child, place)
}

#[test]
fn a_foreground_mount_beside_a_daemon_ends_with_its_process_and_its_process_with_it() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    for sent in [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL] {
        let (mut child, place) = foreground(&kitfs);
        let owner = kitfs.status_of(&place)["owner"].as_u64();
        assert_eq!(owner, Some(child.id().into()));
        signal(child.id(), sent);
        let status = child.wait().unwrap();
        assert_eq!(status.success(), sent != Signal::KILL, "{status}");
        wait_until("the end of the mount", || !is_mounted(&place));
    }
    let (mut child, place) = foreground(&kitfs);
    kill_and_wait(kitfs.worker_pid());
    kitfs.succeed(&["daemon", "restart"]);
    assert!(place.join("Kitfile").exists());
    assert!(child.try_wait().unwrap().is_none(), "it ends with a process of the daemon");
    kitfs.unmount(&place);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_foreground_mount_whose_daemon_was_killed_fails_and_leaves_no_dead_mount() {
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let (mut child, place) = foreground(&kitfs);
    kitfs.kill_daemon();
    assert!(!child.wait().unwrap().success());
    assert!(!is_mounted(&place));
}
