//! Kits by path: one mount, whose folders are registries.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rustix::io::Errno;

use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{Kitfs, is_mounted, kill_and_wait, wait_until};
use crate::support::registry_double::{Access, Fault, Options, RegistryDouble, Rule};

/// A registry with kits, and a mount that leads to them.
struct Browsed {
    kitfs: Kitfs,
    registry: Registry,
    mountpoint: PathBuf,
}

/// A registry, and the threads that it runs in.
struct Registry {
    double: RegistryDouble,
    _runtime: tokio::runtime::Runtime,
}

impl Registry {
    fn start(options: Options) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self { double: runtime.block_on(RegistryDouble::start(options)), _runtime: runtime }
    }
}

impl std::ops::Deref for Registry {
    type Target = RegistryDouble;

    fn deref(&self) -> &RegistryDouble {
        &self.double
    }
}

impl Browsed {
    fn new(options: &[&str]) -> Self {
        Self::with(Kitfs::new(), Registry::start(Options::default()), options)
    }

    fn with(kitfs: Kitfs, registry: Registry, options: &[&str]) -> Self {
        let mountpoint = kitfs.mountpoint("kits");
        let this = Self { kitfs, registry, mountpoint };
        this.browse(options);
        this
    }

    fn browse(&self, options: &[&str]) {
        let (place, host) = (text(&self.mountpoint), self.registry.host());
        let arguments = ["browse", place, "--plain-http", "--registry", &host];
        self.kitfs.succeed(&[&arguments[..], options].concat());
    }

    /// Points a tag at a kit whose files contain `version`.
    fn push(&self, repository: &str, tag: &str, version: &str) -> String {
        push(&self.kitfs, &self.registry, repository, tag, version)
    }

    fn host(&self) -> PathBuf {
        self.mountpoint.join(self.registry.host())
    }

    fn kit(&self, name: &str) -> PathBuf {
        self.host().join(name)
    }

    /// The paths below a place that the registry was asked for.
    fn requests(&self) -> Vec<String> {
        self.registry.requests().iter().map(|one| one.uri.path().to_owned()).collect()
    }
}

fn push(
    kitfs: &Kitfs,
    registry: &RegistryDouble,
    repository: &str,
    tag: &str,
    version: &str,
) -> String {
    let layer = Layer::tar("dataset", "data").file("data/version", 0o644, version.as_bytes());
    let layer = layer.file("data/big", 0o644, &content(version)).symlink("data/link", b"version");
    let folder = tempfile::tempdir_in(kitfs.folder()).unwrap();
    let written = Kit::modelkit().with(layer).write(folder.path(), tag);
    registry.push_layout(repository, folder.path());
    written.digest
}

/// Large enough for a file of its own in the cache, and for passthrough.
fn content(version: &str) -> Vec<u8> {
    format!("{version:>64}").into_bytes().repeat(40_000)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn version(kit: &Path) -> String {
    fs::read_to_string(kit.join("data/version"))
        .unwrap_or_else(|error| panic!("{}: {error}", kit.display()))
}

#[track_caller]
fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.raw_os_error(),
    }
}

#[test]
fn a_kit_is_loaded_when_a_program_looks_at_its_path() {
    let browsed = Browsed::new(&[]);
    let digest = browsed.push("org/model", "v1", "one");
    let kit = browsed.kit("org/model:v1");
    assert_eq!(version(&kit), "one");
    assert_eq!(fs::read(kit.join("data/link")).unwrap(), b"one");
    assert_eq!(fs::read(kit.join("data/big")).unwrap(), content("one"));
    assert_eq!(names(&kit), ["Kitfile", "data"]);
    assert_eq!(version(&browsed.kit(&format!("org/model@{digest}"))), "one");
    // The folder of the repository leads there too.
    let folder = browsed.kit("org/model");
    assert_eq!(names(&folder), [":v1"]);
    assert_eq!(version(&folder.join(":v1")), "one");
    assert_eq!(version(&folder.join(format!("@{digest}"))), "one");
    assert_eq!(names(&browsed.mountpoint), [browsed.registry.host(), "localhost".to_owned()]);
    assert_eq!(names(&browsed.host()), ["org"]);
    assert_eq!(names(&browsed.kit("org")), ["model"]);
    // All is one file system, and each directory is above its own.
    let above = fs::metadata(kit.join("..")).unwrap();
    let org = fs::metadata(browsed.kit("org")).unwrap();
    assert_eq!((above.dev(), above.ino()), (org.dev(), org.ino()));
    let file = fs::metadata(kit.join("data/version")).unwrap();
    assert_eq!(file.dev(), org.dev());
    // Two paths to one kit are two directories.
    let pinned = browsed.kit(&format!("org/model@{digest}/data/version"));
    assert_ne!(fs::metadata(pinned).unwrap().ino(), file.ino());
    // Only a walk that follows links opens every kit.
    let found = Command::new("find").arg(browsed.kit("org/model")).arg("-xdev").output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap().lines().count(), 2);
    let status = browsed.kitfs.status_of(&browsed.mountpoint);
    let kits: Vec<_> = status["browse"]["kits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kit| kit["path"].as_str().unwrap().to_owned())
        .collect();
    let host = browsed.registry.host();
    assert_eq!(kits, [format!("{host}/org/model:v1"), format!("{host}/org/model@{digest}")]);
    browsed.kitfs.unmount(&browsed.mountpoint);
    assert!(!is_mounted(&browsed.mountpoint));
}

#[test]
fn names_that_cannot_be_kits_ask_no_registry() {
    let browsed = Browsed::new(&[]);
    let other = Registry::start(Options::default());
    push(&browsed.kitfs, &other, "org/model", "v1", "one");
    let names = [
        ".git",
        ".Trash-0",
        "autorun.inf",
        ".hidden",
        "docker.io/library/a:b",
        "docker.io",
        &format!("{}/org/model:v1/Kitfile", other.host()),
        &format!("{}/.git", browsed.registry.host()),
        &format!("{}/org/Model:v1", browsed.registry.host()),
        &format!("{}/org/model:", browsed.registry.host()),
        &format!("{}/org/model@sha256:12", browsed.registry.host()),
        &format!("{}/desktop.INI", browsed.registry.host()),
    ];
    for name in names {
        assert_eq!(
            errno(fs::metadata(browsed.mountpoint.join(name))),
            Some(Errno::NOENT.raw_os_error()),
            "{name}"
        );
    }
    for folder in ["org", "org/team"] {
        assert!(browsed.kit(folder).is_dir(), "{folder}");
    }
    let found = Command::new("find").arg(&browsed.mountpoint).output().unwrap();
    assert!(found.status.success());
    assert_eq!((browsed.requests(), other.requests().len()), (Vec::<String>::new(), 0));
}

#[test]
fn a_moved_tag_is_followed_by_new_lookups_and_open_files_stay() {
    let browsed = Browsed::new(&["--tag-ttl", "1s"]);
    browsed.push("org/model", "v1", "one");
    let kit = browsed.kit("org/model:v1");
    let mut open = File::open(kit.join("data/version")).unwrap();
    let mut inside = Command::new("sh");
    inside.current_dir(kit.join("data")).args(["-c", "read _; cat version"]);
    inside.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut inside = inside.spawn().unwrap();
    browsed.push("org/model", "v1", "two");
    wait_until("the new version", || version(&kit) == "two");
    let mut before = String::new();
    open.read_to_string(&mut before).unwrap();
    assert_eq!(before, "one");
    drop(inside.stdin.take());
    assert_eq!(inside.wait_with_output().unwrap().stdout, b"one");
    assert_eq!(version(&browsed.kit("org/model/:v1")), "two");
}

#[test]
fn a_tag_that_comes_later_is_found_and_a_typo_is_not() {
    let browsed = Browsed::new(&["--tag-ttl", "1s"]);
    browsed.push("org/model", "v1", "one");
    let not_there = Some(Errno::NOENT.raw_os_error());
    for name in ["org/model:v2", "org/modle:v1", "org/model/:v2", "org/modle/:v1"] {
        assert_eq!(errno(fs::metadata(browsed.kit(name))), not_there, "{name}");
    }
    // The kernel and the daemon remember for a moment that it is not there.
    let (before, began) = (browsed.requests().len(), Instant::now());
    for _ in 0..20 {
        assert_eq!(errno(fs::metadata(browsed.kit("org/model:v2"))), not_there);
    }
    let moments = 1 + began.elapsed().as_secs() as usize;
    assert!(browsed.requests().len() <= before + 6 * moments, "{:?}", browsed.requests());
    browsed.push("org/model", "v2", "two");
    wait_until("the new tag", || browsed.kit("org/model:v2").is_dir());
    assert_eq!(version(&browsed.kit("org/model:v2")), "two");
    wait_until("the list of tags", || names(&browsed.kit("org/model")) == [":v1", ":v2"]);
}

#[test]
fn numbers_open_files_and_folders_outlive_the_process_that_serves_them() {
    let browsed = Browsed::new(&[]);
    for (tag, content) in [("v1", "one"), ("v2", "two")] {
        browsed.push("org/model", tag, content);
    }
    let (one, two) = (browsed.kit("org/model:v1"), browsed.kit("org/model:v2"));
    let big = one.join("data/big");
    assert_eq!(fs::read(&big).unwrap(), content("one"));
    let before: Vec<_> = [&one, &two, &big].map(|path| fs::metadata(path).unwrap().ino()).into();
    let mut open = File::open(two.join("data/big")).unwrap();
    let mut passed = File::open(&big).unwrap();
    let inside = |script: &str| {
        let mut command = Command::new("sh");
        command.current_dir(one.join("data")).args(["-c", script]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let mut shell = inside("read _; cat version; cat ../../model:v2/data/version");
    for _ in 0..3 {
        kill_and_wait(browsed.kitfs.worker_pid());
    }
    browsed.kitfs.succeed(&["daemon", "restart"]);
    drop(shell.stdin.take());
    assert_eq!(shell.wait_with_output().unwrap().stdout, b"onetwo");
    let after: Vec<_> = [&one, &two, &big].map(|path| fs::metadata(path).unwrap().ino()).into();
    assert_eq!(before, after);
    for (file, of) in [(&mut open, "two"), (&mut passed, "one")] {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == content(of), "{of}");
    }
    assert_eq!(names(&browsed.kit("org/model")), [":v1", ":v2"]);
    browsed.push("org/model", "v3", "three");
    assert_eq!(version(&browsed.kit("org/model:v3")), "three");
    // Both processes are killed: the mount comes back, with new numbers.
    drop((open, passed));
    browsed.kitfs.kill_daemon();
    browsed.kitfs.succeed(&["daemon", "start"]);
    wait_until("the mount", || browsed.mountpoint.join("localhost").is_dir());
    assert_eq!(version(&two), "two");
}

#[test]
fn kits_that_nobody_uses_leave_memory_and_come_back_by_themselves() {
    let browsed = Browsed::new(&["--most-kits", "2", "--forget-after", "1s"]);
    let tags: Vec<_> = (0..6).map(|number| format!("v{number}")).collect();
    for tag in &tags {
        browsed.push("org/model", tag, tag);
    }
    let kit = |tag: &str| browsed.kit(&format!("org/model:{tag}"));
    let mut open: Vec<_> =
        tags.iter().map(|tag| File::open(kit(tag).join("data/big")).unwrap()).collect();
    let numbers: Vec<_> =
        tags.iter().map(|tag| fs::metadata(kit(tag).join("data")).unwrap().ino()).collect();
    let in_memory = || {
        let status = browsed.kitfs.status_of(&browsed.mountpoint);
        let kits = status["browse"]["kits"].as_array().unwrap().clone();
        assert_eq!(kits.len(), tags.len());
        kits.iter().filter(|kit| kit["is_in_memory"] == true).count()
    };
    // A kit stays for a moment where a request still uses it.
    wait_until("two kits in memory", || in_memory() <= 2);
    wait_until("all kits out of memory", || in_memory() == 0);
    // A kit comes back from the cache, though its registry is away.
    browsed.registry.script(Rule::on("").then(Fault::Status(503)));
    for (tag, number) in tags.iter().zip(&numbers) {
        assert_eq!(fs::metadata(kit(tag).join("data")).unwrap().ino(), *number);
        assert_eq!(names(&kit(tag).join("data")), ["big", "link", "version"]);
    }
    browsed.registry.heal();
    for (tag, file) in tags.iter().zip(&mut open) {
        assert_eq!(version(&kit(tag)), *tag);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == content(tag), "{tag}");
    }
}

#[test]
fn a_registry_that_refuses_or_does_not_answer_has_an_errno_of_its_own() {
    let password = Access::Basic { username: "ada".to_owned(), password: "secret".to_owned() };
    let registry = Registry::start(Options { access: password, ..Options::default() });
    let browsed = Browsed::with(Kitfs::new(), registry, &["--read-deadline", "2s"]);
    browsed.push("org/model", "v1", "one");
    let kit = browsed.kit("org/model:v1");
    assert_eq!(errno(fs::metadata(&kit)), Some(Errno::ACCESS.raw_os_error()));
    assert_eq!(
        errno(fs::read_dir(browsed.kit("org/model")).and_then(|mut it| it.next().unwrap())),
        Some(Errno::ACCESS.raw_os_error())
    );
    let failure = browsed.kitfs.status_of(&browsed.mountpoint)["last_failure"].clone();
    assert!(failure.as_str().unwrap().contains("org/model"), "{failure}");
    // A login takes effect at once.
    let home = browsed.kitfs.folder().join("home/.docker");
    fs::create_dir_all(&home).unwrap();
    let auth = format!(
        r#"{{"auths": {{"{}": {{"username": "ada", "password": "secret"}}}}}}"#,
        browsed.registry.host()
    );
    fs::write(home.join("config.json"), auth).unwrap();
    assert_eq!(version(&kit), "one");
    // A registry that never answers holds up no program for longer than the deadline, and no program that needs no
    // registry.
    browsed.registry.script(Rule::on("").then(Fault::Hold));
    let waiting = std::thread::spawn({
        let kit = browsed.kit("org/model:v2");
        move || fs::metadata(kit).map(drop)
    });
    for _ in 0..100 {
        assert!(browsed.kit("org/other").is_dir());
        assert_eq!(version(&kit), "one");
    }
    assert_eq!(errno(waiting.join().unwrap()), Some(Errno::TIMEDOUT.raw_os_error()));
}

#[test]
fn a_mount_asks_the_registries_that_the_user_has_logged_in_to() {
    let kitfs = Kitfs::new();
    let registry = Registry::start(Options::default());
    push(&kitfs, &registry, "org/model", "v1", "one");
    let mountpoint = kitfs.mountpoint("kits");
    let outcome = kitfs.run(&["browse", text(&mountpoint), "--plain-http"]);
    assert!(outcome.code == Some(0) && outcome.stderr.contains("--registry"), "{}", outcome.stderr);
    assert_eq!(names(&mountpoint), ["localhost"]);
    kitfs.unmount(&mountpoint);
    let home = kitfs.folder().join("home/.docker");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("config.json"), format!(r#"{{"auths": {{"{}": {{}}}}}}"#, registry.host()))
        .unwrap();
    kitfs.succeed(&["browse", text(&mountpoint), "--plain-http"]);
    assert_eq!(names(&mountpoint), [registry.host(), "localhost".to_owned()]);
    assert_eq!(version(&mountpoint.join(registry.host()).join("org/model:v1")), "one");
    let complaint = kitfs.fail(7, &["trace", "record", text(&mountpoint), "-o", "trace"]);
    assert!(complaint.contains("kits by path"), "{complaint}");
}

#[test]
fn nothing_below_a_browse_mount_can_be_written() {
    let browsed = Browsed::new(&[]);
    browsed.push("org/model", "v1", "one");
    let read_only = |result: std::io::Result<()>| {
        let kind = result.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::ReadOnlyFilesystem | ErrorKind::AlreadyExists), "{kind}");
    };
    read_only(fs::create_dir(browsed.host().join("new")));
    read_only(fs::write(browsed.kit("org/model:v1/new"), "x"));
    read_only(fs::remove_file(browsed.kit("org/model:v1/Kitfile")));
}

#[test]
fn three_hundred_kits_take_no_more_memory_than_a_few() {
    const KITS: usize = 300;
    let browsed = Browsed::new(&["--most-kits", "4", "--registry", "other.example"]);
    // Each has a tree of a thousand files with long names, which takes some 200 KiB of memory, and layers of its own.
    // So 280 trees that were not dropped would take more than 50 MiB.
    let padding = "x".repeat(80);
    let layer = |kit: usize| {
        let layer =
            Layer::tar("dataset", "data").file("data/version", 0o644, kit.to_string().as_bytes());
        (0..1000)
            .fold(layer, |layer, file| layer.file(format!("data/{padding}-{file}"), 0o644, b""))
    };
    for kit in 0..KITS {
        let folder = tempfile::tempdir_in(browsed.kitfs.folder()).unwrap();
        Kit::modelkit().with(layer(kit)).write(folder.path(), &format!("v{kit}"));
        browsed.registry.push_layout("org/model", folder.path());
    }
    let resident_kib = || {
        let status =
            fs::read_to_string(format!("/proc/{}/status", browsed.kitfs.worker_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let kit = |kit: usize| browsed.kit(&format!("org/model:v{kit}"));
    let look = |range: std::ops::Range<usize>| {
        for number in range {
            assert_eq!(version(&kit(number)), number.to_string());
            assert_eq!(names(&kit(number).join("data")).len(), 1001);
        }
    };
    look(0..20);
    let few = resident_kib();
    look(20..KITS);
    let all = resident_kib();
    let in_memory = || {
        let status = browsed.kitfs.status_of(&browsed.mountpoint);
        let kits = status["browse"]["kits"].as_array().unwrap();
        assert_eq!(kits.len(), KITS);
        kits.iter().filter(|kit| kit["is_in_memory"] == true).count()
    };
    wait_until("four kits in memory", || in_memory() <= 4);
    assert!(all < few + 24 * 1024, "{few} KiB after 20 kits, {all} KiB after {KITS}");
    // The first ones come back.
    look(0..5);
    eprintln!("{few} KiB after 20 kits, {all} KiB after {KITS}");
}

mod as_root {
    use super::*;

    #[test]
    fn an_ordinary_user_browses_with_fusermount() {
        /// A user that every Debian has: fusermount3 looks for the name.
        const USER: u32 = 1;
        let (kitfs, registry) = (Kitfs::new(), Registry::start(Options::default()));
        push(&kitfs, &registry, "org/model", "v1", "one");
        let place = kitfs.mountpoint("kits");
        let as_user = |mut command: Command| {
            command.uid(USER).gid(USER);
            let outcome = Kitfs::run_command(command);
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            String::from_utf8(outcome.stdout).unwrap()
        };
        // Makes the home.
        let _ = kitfs.command(&["--version"]);
        for folder in [kitfs.folder(), &kitfs.folder().join("home"), &place] {
            chown(folder, Some(USER), Some(USER)).unwrap();
        }
        let host = registry.host();
        as_user(kitfs.command(&["browse", text(&place), "--plain-http", "--registry", &host]));
        // Root may not look into a mount of another user.
        let cat = |path: &str| {
            let mut command = Command::new("cat");
            command.arg(place.join(&host).join(path));
            as_user(command)
        };
        assert_eq!(cat("org/model:v1/data/version"), "one");
        as_user(kitfs.command(&["daemon", "restart"]));
        assert_eq!(cat("org/model/:v1/data/version"), "one");
        as_user(kitfs.command(&["umount", text(&place)]));
        as_user(kitfs.command(&["daemon", "stop"]));
        assert!(!is_mounted(&place));
    }
}

#[test]
fn a_daemon_mounts_its_root_when_it_starts_and_once_only() {
    let (kitfs, registry) = (Kitfs::new(), Registry::start(Options::default()));
    push(&kitfs, &registry, "org/model", "v1", "one");
    let (place, host) = (kitfs.mountpoint("kits"), registry.host());
    let start = [
        "daemon",
        "start",
        "--restore",
        "--root",
        text(&place),
        "--plain-http",
        "--registry",
        &host,
    ];
    let version = || version(&place.join(&host).join("org/model:v1"));
    for _ in 0..2 {
        kitfs.succeed(&start);
        assert_eq!(version(), "one");
    }
    // A signal parks the mount, and the next start brings it back.
    let pid = kitfs.daemon_pid();
    crate::support::kitfs::signal(pid, rustix::process::Signal::TERM);
    wait_until("the end of the daemon", || {
        !is_mounted(&place) && !Path::new(&format!("/proc/{pid}")).exists()
    });
    kitfs.succeed(&start);
    assert_eq!(version(), "one");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!(mounts.lines().filter(|line| line.contains(text(&place))).count(), 1, "{mounts}");
    let refused = kitfs.command(&["daemon", "start", "--system", "--root", text(&place)]).output();
    assert_eq!(refused.unwrap().status.code(), Some(2));
}
