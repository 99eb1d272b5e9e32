//! Limits and signals of the machine that a daemon runs on.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{Kitfs, is_mounted, wait_until};
use crate::support::registry_double::{Access, Options, RegistryDouble};
use crate::support::{Random, golden, golden_reference};

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process number");
    kill_process(pid, signal).expect("it is ours");
}

/// The soft and the hard limit of open files of a process.
fn open_files(pid: u32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut fields = line.split_whitespace().skip(3).map(str::to_owned);
    (fields.next().unwrap(), fields.next().unwrap())
}

/// `test` starts a daemon after a shell ran `before`, and mounts the golden kit.
fn mounted_after(before: &str) -> (Kitfs, std::path::PathBuf) {
    let kitfs = Kitfs::new();
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    let arguments = ["mount", &reference, mountpoint.to_str().unwrap()];
    let outcome = Kitfs::run_command(kitfs.command_after(before, &arguments));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    (kitfs, mountpoint)
}

#[test]
fn a_daemon_may_open_as_many_files_as_its_hard_limit_allows() {
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let mut kit = Kit::modelkit();
    for index in 0..200u32 {
        kit = kit.with(Layer::raw("dataset", &format!("{index}.bin"), 0o644, &index.to_be_bytes()));
    }
    let reference = kit.write(folder.path(), "v1").reference;
    let mountpoint = kitfs.mountpoint("mnt");
    let arguments = ["mount", &reference, mountpoint.to_str().unwrap()];
    let outcome = Kitfs::run_command(kitfs.command_after("ulimit -Sn 64", &arguments));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let (soft, hard) = open_files(kitfs.worker_pid());
    assert_eq!(soft, hard);
    for index in 0..200u32 {
        let path = mountpoint.join(format!("{index}.bin"));
        assert_eq!(fs::read(path).unwrap(), index.to_be_bytes(), "{index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_the_daemon_starts_gets_the_limit_that_the_daemon_was_started_with() {
    let access = Access::Basic { username: "ada".into(), password: "secret".into() };
    let registry = RegistryDouble::start(Options { access, ..Options::default() }).await;
    registry.push_layout("org/article", &golden("article"));
    let kitfs = Kitfs::new();
    let kitops = kitfs.folder().join("kitops");
    fs::create_dir_all(kitops.join("bin")).unwrap();
    let helper = kitops.join("bin/docker-credential-told");
    let told = kitops.join("told");
    let script = format!(
        "#!/bin/sh\nulimit -Sn >{}\necho '{{\"Username\":\"ada\",\"Secret\":\"secret\"}}'\n",
        told.display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(kitops.join("credentials.json"), r#"{"credsStore":"told"}"#).unwrap();
    let before = format!("ulimit -Sn 77\nPATH={}:$PATH", kitops.join("bin").display());
    let start = kitfs.command_after(&before, &["daemon", "start"]);
    assert_eq!(Kitfs::run_command(start).code, Some(0));
    let reference = registry.reference("org/article", "v1");
    kitfs.succeed(&["ls", "--config", kitops.to_str().unwrap(), &reference]);
    assert_eq!(fs::read_to_string(told).unwrap().trim(), "77");
}

#[test]
fn a_daemon_survives_a_limit_of_file_sizes() {
    // In blocks of 512 bytes: less than the file that is read, more than tables and logs.
    let kitfs = Kitfs::new();
    let folder = TempDir::new().unwrap();
    let content = Random::new(1).bytes(6 << 20);
    let kit = Kit::modelkit().with(Layer::raw("model", "weights.bin", 0o644, &content));
    let reference = kit.write(folder.path(), "v1").reference;
    let mountpoint = kitfs.mountpoint("mnt");
    let arguments = ["mount", &reference, mountpoint.to_str().unwrap()];
    let outcome = Kitfs::run_command(kitfs.command_after("ulimit -f 8192", &arguments));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let pid = kitfs.worker_pid();
    // Right bytes or an error, and no wrong ones.
    if let Ok(read) = fs::read(mountpoint.join("weights.bin")) {
        assert!(read == content);
    }
    assert_eq!(kitfs.worker_pid(), pid, "the daemon has ended");
    assert!(fs::read_dir(&mountpoint).unwrap().count() > 0);
}

#[test]
fn sighup_has_a_daemon_in_the_background_open_its_log_anew() {
    let (kitfs, mountpoint) = mounted_after("");
    let pid = kitfs.daemon_pid();
    let (log, aside) = (kitfs.cache().join("daemon.log"), kitfs.cache().join("moved"));
    fs::rename(&log, &aside).unwrap();
    signal(pid, Signal::HUP);
    wait_until("a new log", || log.exists());
    assert_ne!(fs::metadata(&log).unwrap().ino(), fs::metadata(&aside).unwrap().ino());
    assert_eq!(kitfs.daemon_pid(), pid);
    kitfs.unmount(&mountpoint);
    wait_until("a line in the new log", || fs::metadata(&log).is_ok_and(|log| log.len() > 0));
    // So does the next worker.
    let length = fs::metadata(&log).unwrap().len();
    crate::support::kitfs::kill_and_wait(kitfs.worker_pid());
    kitfs.mount(&golden_reference("article"), &[]);
    wait_until("a line of the next worker", || fs::metadata(&log).unwrap().len() > length);
}

/// A mount in the foreground, started by a shell that ran `before`.
fn foreground(kitfs: &Kitfs, before: &str) -> (Child, std::path::PathBuf) {
    let mountpoint = kitfs.mountpoint("mnt");
    let reference = golden_reference("article");
    let arguments = ["mount", "--foreground", &reference, mountpoint.to_str().unwrap()];
    let mut command = kitfs.command_after(before, &arguments);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the mount", || is_mounted(&mountpoint) && mountpoint.join("Kitfile").exists());
    (child, mountpoint)
}

#[test]
fn a_terminal_that_goes_ends_a_mount_in_the_foreground() {
    let kitfs = Kitfs::new();
    let (mut child, mountpoint) = foreground(&kitfs, "");
    signal(child.id(), Signal::HUP);
    assert!(child.wait().unwrap().success());
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let kitfs = Kitfs::new();
    let (mut child, mountpoint) = foreground(&kitfs, "trap '' HUP INT");
    for ignored in [Signal::HUP, Signal::INT] {
        signal(child.id(), ignored);
    }
    // Signals that end it come in the order in which they were sent: this one is not yet it.
    assert!(kitfs.succeed(&["status"]).contains(mountpoint.to_str().unwrap()));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(child.try_wait().unwrap(), None, "it has ended");
    signal(child.id(), Signal::TERM);
    assert!(child.wait().unwrap().success());
}

/// Only root can become another user.
mod as_root {
    use super::*;

    /// A user with no line in /etc/passwd. Another number for each run of the tests, so that processes that
    /// one run leaves do not count for the next.
    fn stranger() -> u32 {
        1_000_000 + std::process::id()
    }

    /// A command of a user that the machine does not know, with at most `processes` of that user.
    fn as_stranger(
        kitfs: &Kitfs,
        processes: Option<u32>,
        arguments: &[&str],
    ) -> crate::support::kitfs::Outcome {
        let binary = kitfs.folder().join("kitfs");
        if !binary.exists() {
            // The build's folder may be closed to other users.
            fs::copy(env!("CARGO_BIN_EXE_kitfs"), &binary).unwrap();
            fs::set_permissions(kitfs.folder(), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut command = std::process::Command::new("prlimit");
        command.args(processes.map(|count| format!("--nproc={count}")));
        command.args(["--", "setpriv", "--clear-groups"]);
        command.args([format!("--reuid={}", stranger()), format!("--regid={}", stranger())]);
        command.arg("--");
        command.arg(&binary).args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
        Kitfs::run_command(command)
    }

    #[test]
    fn a_user_without_a_name_and_a_home_is_told_what_is_missing() {
        let kitfs = Kitfs::new();
        let reference = golden_reference("article");
        let outcome = as_stranger(&kitfs, None, &["ls", &reference]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("--cache-dir"), "{}", outcome.stderr);
        // A command that looks at no cache needs none.
        let outcome = as_stranger(&kitfs, None, &["status"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

        let (cache, mountpoint) = (kitfs.cache(), kitfs.mountpoint("mnt"));
        fs::create_dir(&cache).unwrap();
        for path in [&cache, &mountpoint] {
            std::os::unix::fs::chown(path, Some(stranger()), Some(stranger())).unwrap();
        }
        let cache = ["--cache-dir", cache.to_str().unwrap()];
        let kit = TempDir::new_in(kitfs.folder()).unwrap();
        fs::set_permissions(kit.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let reference = Kit::modelkit().write(&kit.path().join("kit"), "v1").reference;
        let listed = as_stranger(&kitfs, None, &[&["ls", &reference], &cache[..]].concat());
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        let mount = ["mount", &reference, mountpoint.to_str().unwrap()];
        let refused = as_stranger(&kitfs, None, &[&mount, &cache[..]].concat());
        assert_eq!(refused.code, Some(7), "{}", refused.stderr);
        assert!(refused.stderr.contains("/etc/passwd"), "{}", refused.stderr);
        as_stranger(&kitfs, None, &[&["daemon", "stop"], &cache[..]].concat());

        // Not even the threads of a command. The daemon that was stopped may still count for a moment.
        let ls = [&["ls", &reference], &cache[..]].concat();
        let mut limited = as_stranger(&kitfs, Some(2), &ls);
        wait_until("the end of the daemon", || {
            limited = as_stranger(&kitfs, Some(2), &ls);
            limited.stderr.starts_with("kitfs: ")
        });
        assert_eq!(limited.code, Some(1), "{}", limited.stderr);
        for words in ["threads can be started", "--pids-limit", "ulimit -u"] {
            assert!(limited.stderr.contains(words), "{}", limited.stderr);
        }
        assert!(!limited.stderr.contains("panicked"), "{}", limited.stderr);
        // Few, but enough.
        let few = as_stranger(&kitfs, Some(6), &ls);
        assert_eq!(few.code, Some(0), "{}", few.stderr);
    }
}
