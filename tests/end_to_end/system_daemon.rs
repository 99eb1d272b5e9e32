//! One daemon of root for several users.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Gid, Uid};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::{DROP_OTHERS, Kitfs, Outcome, is_mounted, kill_and_wait, wait_until};
use crate::support::registry_double::{Access, Fault, Options, RegistryDouble, Rule};

/// Users that every Debian has: fusermount3 looks for their names.
const ANNA: u32 = 1;
const BERT: u32 = 2;
const CARL: u32 = 3;
/// The group of all of them, and a group that the daemon does not know.
const GROUP: u32 = 20_000;
const OTHER_GROUP: u32 = 20_001;

const NAME: &str = "org/model";
/// The size of the kit's file: big enough for several requests.
const FILE_BYTES: usize = 9 * 1024 * 1024;

/// A system daemon, its users, and a registry with a kit.
struct System {
    root: Kitfs,
    registry: RegistryDouble,
    reference: String,
    digest: String,
    content: Vec<u8>,
    runtime: Option<Runtime>,
}

impl System {
    fn new(access: Access) -> Self {
        let root = Kitfs::new();
        fs::set_permissions(root.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        let content: Vec<u8> = (0..FILE_BYTES).map(|at| (at / 7) as u8).collect();
        let layer = Layer::tar("model", "model.bin").file("model.bin", 0o644, &content);
        let layout = root.folder().join("layout");
        Kit::modelkit().with(layer).write(&layout, "v1");
        let runtime = Runtime::new().unwrap();
        let registry =
            runtime.block_on(RegistryDouble::start(Options { access, ..Options::default() }));
        registry.push_layout(NAME, &layout);
        let reference = registry.reference(NAME, "v1");
        let index: Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let system = Self { root, registry, reference, digest, content, runtime: Some(runtime) };
        let started = system.run_as_root(&["daemon", "start", "--system", "--group", "20000"]);
        assert_eq!(started.code, Some(0), "{}", started.stderr);
        system
    }

    fn runtime_folder(&self) -> PathBuf {
        self.root.folder().join("run")
    }

    /// A command of root that names the cache of the daemon.
    fn run_as_root(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.root.command(arguments);
        command.env("KITFS_RUNTIME_DIR", self.runtime_folder());
        Kitfs::run_command(command)
    }

    fn home(&self, user: u32) -> PathBuf {
        let home = self.root.folder().join(format!("home-{user}"));
        fs::create_dir_all(&home).unwrap();
        chown(&home, Some(user), Some(GROUP)).unwrap();
        home
    }

    fn command(&self, user: u32, group: u32, arguments: &[&str]) -> Command {
        let home = self.home(user);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kitfs"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &home).env("KITFS_RUNTIME_DIR", self.runtime_folder());
        command.current_dir(&home).args(arguments).uid(user).gid(group);
        command
    }

    fn run(&self, user: u32, arguments: &[&str]) -> Outcome {
        Kitfs::run_command(self.command(user, GROUP, arguments))
    }

    #[track_caller]
    fn succeed(&self, user: u32, arguments: &[&str]) -> String {
        let outcome = self.run(user, arguments);
        assert_eq!(outcome.code, Some(0), "{arguments:?}: {}{}", outcome.stderr, self.root.log());
        String::from_utf8(outcome.stdout).unwrap()
    }

    #[track_caller]
    fn fail(&self, user: u32, code: i32, arguments: &[&str]) -> String {
        let outcome = self.run(user, arguments);
        assert_eq!(outcome.code, Some(code), "{arguments:?}: {}", outcome.stderr);
        outcome.stderr
    }

    #[track_caller]
    fn mount(&self, user: u32) -> PathBuf {
        let place = self.mountpoint(user, "mnt");
        self.succeed(user, &["mount", &self.reference, text(&place)]);
        place
    }

    fn mountpoint(&self, user: u32, name: &str) -> PathBuf {
        let place = self.root.mountpoint(&format!("{name}-{user}"));
        chown(&place, Some(user), Some(GROUP)).unwrap();
        place
    }

    /// Reads a file as a user: root may not look into a user's mount.
    #[track_caller]
    fn read(&self, user: u32, file: &Path) -> Vec<u8> {
        let mut command = Command::new("cat");
        command.arg(file).uid(user).gid(GROUP);
        let outcome = Kitfs::run_command(command);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stdout
    }

    /// The mounts of a user. Mounts of other tests, which have the same users, are left out.
    fn mounts(&self, user: u32) -> Value {
        let status = self.succeed(user, &["status", "--json"]);
        let mounts: Vec<Value> = serde_json::from_str(&status).unwrap();
        let is_ours = |mount: &Value| {
            mount["mountpoint"]
                .as_str()
                .is_some_and(|it| Path::new(it).starts_with(self.root.folder()))
        };
        mounts.into_iter().filter(is_ours).collect()
    }

    fn docker_config(&self, user: u32, config: &Value) {
        let folder = self.home(user).join(".docker");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("config.json");
        fs::write(&file, config.to_string()).unwrap();
        for path in [&folder, &file] {
            chown(path, Some(user), Some(GROUP)).unwrap();
        }
        // Root can read it all the same.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn log_in(&self, user: u32, password: &str) {
        let login = json!({ "username": "reader", "password": password });
        self.docker_config(user, &json!({ "auths": { self.registry.host(): login } }));
    }

    fn has_own_cache(&self, user: u32) -> bool {
        self.home(user).join(".cache/kitfs").exists()
    }
}

impl Drop for System {
    fn drop(&mut self) {
        // Its threads serve until the daemon has ended.
        let _ = self.run_as_root(&["daemon", "stop"]);
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the tests use plain paths")
}

fn private() -> Access {
    Access::Basic { username: "reader".to_owned(), password: "open sesame".to_owned() }
}

#[test]
fn users_share_the_bytes_and_see_only_their_own_mounts() {
    let system = System::new(Access::Open);
    let mut places = Vec::new();
    for user in [ANNA, BERT, CARL] {
        let place = system.mount(user);
        let file = place.join("model.bin");
        assert!(system.read(user, &file) == system.content, "user {user}");
        let mut command = Command::new("stat");
        command.args(["-c", "%u %g"]).arg(&file).uid(user).gid(GROUP);
        let owner = Kitfs::run_command(command).stdout;
        assert_eq!(String::from_utf8(owner).unwrap(), format!("{user} {GROUP}\n"));
        assert!(!system.has_own_cache(user));
        places.push(place);
    }
    let fetched = system.registry.bytes_served();
    assert!(fetched < FILE_BYTES as u64 * 5 / 4, "{fetched} bytes");

    for (user, place) in [ANNA, BERT, CARL].into_iter().zip(&places) {
        let mounts = system.mounts(user);
        assert_eq!(mounts.as_array().unwrap().len(), 1, "{mounts}");
        assert_eq!(mounts[0]["mountpoint"], text(place));
        // The user has the FUSE device, and could have the kernel open the cache's file for writing.
        let passthrough = &mounts[0]["passthrough"]["off"]["reason"];
        assert!(passthrough.as_str().unwrap().contains("system daemon"), "{passthrough}");
    }
    let all: Value = serde_json::from_slice(
        &system.run_as_root(&["daemon", "status", "--system", "--json"]).stdout,
    )
    .unwrap();
    let users: Vec<_> = all["mounts"].as_array().unwrap().iter().map(|it| &it["user"]).collect();
    assert_eq!(users, [&json!(ANNA), &json!(BERT), &json!(CARL)]);

    system.fail(BERT, 7, &["umount", text(&places[0])]);
    assert!(is_mounted(&places[0]));
    for what in ["stop", "restart", "upgrade"] {
        let said = system.fail(BERT, 4, &["daemon", what, "--system"]);
        assert!(said.contains("only root"), "{said}");
    }
    system.succeed(ANNA, &["umount", text(&places[0])]);
    assert!(!is_mounted(&places[0]));
    wait_until("the daemon forgets it", || system.mounts(ANNA) == json!([]));
    assert!(system.read(BERT, &places[1].join("model.bin")) == system.content);
    system.succeed(BERT, &["umount", "--all"]);
    assert!(!is_mounted(&places[1]) && is_mounted(&places[2]));
}

/// The first frame with which a daemon answers a user's request, as text.
fn answer_to(user: u32, socket: &Path, body: String) -> String {
    let socket = socket.to_owned();
    let ask = move || {
        // Changes the ids of this thread alone.
        rustix::thread::set_thread_gid(Gid::from_raw(GROUP)).unwrap();
        rustix::thread::set_thread_uid(Uid::from_raw(user)).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        stream.write_all(&[b"kitfs\0\0\x02\x01", &length[..], body.as_bytes()].concat()).unwrap();
        let mut header = [0; 5];
        stream.read_exact(&mut header).unwrap();
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        let mut answer = vec![0; length as usize];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn a_user_who_names_no_part_of_the_tree_reaches_no_mount_of_root() {
    let system = System::new(Access::Open);
    let place = system.root.mountpoint("root");
    let as_root = |arguments: &[&str]| {
        let outcome = Kitfs::run_command(system.command(0, 0, arguments));
        assert_eq!(outcome.code, Some(0), "{arguments:?}: {}", outcome.stderr);
    };
    as_root(&["mount", &system.reference, text(&place)]);
    let socket = system.runtime_folder().join("control.sock");
    for operation in ["unmount", "record", "stop-recording", "await-end"] {
        let body = json!({
            "version": env!("CARGO_PKG_VERSION"), "operation": operation,
            "request": { "mountpoint": text(&place) },
        });
        let answer = answer_to(BERT, &socket, body.to_string());
        assert!(answer.contains(r#""kind":"not_found""#), "{operation}: {answer}");
    }
    assert!(is_mounted(&place));
    as_root(&["umount", text(&place)]);
    assert!(!is_mounted(&place));
}

#[test]
fn mounts_of_users_outlive_the_process_that_serves_them() {
    let system = System::new(private());
    system.log_in(ANNA, "open sesame");
    let place = system.mount(ANNA);
    let status = system.run_as_root(&["daemon", "status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    kill_and_wait(status["worker_pid"].as_u64().unwrap() as u32);
    // The bytes come with the user's credentials, which the next process has too.
    assert!(system.read(ANNA, &place.join("model.bin")) == system.content);
    let mounts = system.mounts(ANNA);
    assert_eq!(mounts[0]["mountpoint"], text(&place));
    assert_eq!(system.mounts(BERT), json!([]));
}

#[test]
fn a_private_kit_is_given_only_to_users_whom_its_registry_lets_have_it() {
    let system = System::new(private());
    system.log_in(ANNA, "open sesame");
    let place = system.mount(ANNA);
    assert!(system.read(ANNA, &place.join("model.bin")) == system.content);

    let pinned = format!("{}/{NAME}@{}", system.registry.host(), system.digest);
    let there = system.mountpoint(BERT, "private");
    for password in [None, Some("wrong")] {
        password.into_iter().for_each(|password| system.log_in(BERT, password));
        for reference in [&system.reference, &pinned] {
            system.fail(BERT, 4, &["mount", reference, text(&there)]);
            system.fail(BERT, 4, &["ls", reference]);
            system.fail(BERT, 4, &["cat", &format!("{reference}//model.bin")]);
        }
    }
    system.log_in(BERT, "open sesame");
    let before = system.registry.bytes_served();
    system.succeed(BERT, &["mount", &system.reference, text(&there)]);
    assert!(system.read(BERT, &there.join("model.bin")) == system.content);
    // The config comes again: its registry must let this user have it.
    assert!(system.registry.bytes_served() - before < 64 * 1024, "the bytes are in the cache");

    // While the registry is away, its last word to the user counts.
    system.registry.script(Rule::on("/manifests/").then(Fault::Status(503)));
    for reference in [&system.reference, &pinned] {
        let again = ["ls", "--retries", "0", reference];
        assert!(system.succeed(BERT, &again).contains("model.bin"));
        let said = system.fail(CARL, 5, &again);
        assert!(said.contains("503"), "{said}");
    }
}

#[test]
fn a_credential_helper_runs_as_the_user_of_the_command() {
    let system = System::new(private());
    let folder = system.root.folder().join("bin");
    fs::create_dir(&folder).unwrap();
    let helper = folder.join("docker-credential-test");
    let script = "#!/bin/sh\nid -u > \"$HOME/helper-ran-as\"\n\
                  echo '{\"Username\":\"reader\",\"Secret\":\"open sesame\"}'\n";
    fs::write(&helper, script).unwrap();
    for path in [&folder, &helper] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    system.docker_config(ANNA, &json!({ "credHelpers": { system.registry.host(): "test" } }));
    let mut command = system.command(ANNA, GROUP, &["ls", &system.reference]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", folder.display()));
    let outcome = Kitfs::run_command(command);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let ran_as = fs::read_to_string(system.home(ANNA).join("helper-ran-as")).unwrap();
    assert_eq!(ran_as.trim(), ANNA.to_string());
    assert!(!system.has_own_cache(ANNA));
}

#[test]
fn commands_that_need_files_and_users_who_may_not_connect_get_a_cache_of_their_own() {
    let system = System::new(Access::Open);
    let layout = format!("oci:{}:v1", system.root.folder().join("layout").display());
    assert!(system.succeed(ANNA, &["ls", &layout]).contains("model.bin"));
    assert!(system.has_own_cache(ANNA) && !system.has_own_cache(BERT));
    // A kit that this user may not read is not read with root's rights.
    let secret = system.root.folder().join("secret");
    fs::create_dir(&secret).unwrap();
    Kit::modelkit().write(&secret.join("kit"), "v1");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let reference = format!("oci:{}:v1", secret.join("kit").display());
    let outcome = system.run(BERT, &["ls", &reference]);
    assert_ne!(outcome.code, Some(0));

    let command = system.command(CARL, OTHER_GROUP, &["ls", &system.reference]);
    let outcome = Kitfs::run_command(command);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(system.has_own_cache(CARL));
    let elsewhere = system.home(BERT).join("elsewhere");
    system.succeed(BERT, &["ls", "--cache-dir", text(&elsewhere), &system.reference]);
    assert!(elsewhere.exists());
}

/// A mount that root has made after `unshare --mount`, as in a container that shares the socket.
#[test]
fn the_end_of_the_system_daemon_takes_mounts_of_root_out_of_other_namespaces() {
    let system = System::new(Access::Open);
    let place = system.root.mountpoint("elsewhere");
    let made = system.root.folder().join("made");
    // The mount stays in this namespace until the daemon takes it out.
    let script = format!(
        "{DROP_OTHERS} \"$0\" \"$@\"; ls {0} >{1}; for i in $(seq 300); do \
         grep -q \" {0} fuse.kitfs\" /proc/self/mounts || exit 0; sleep 0.1; done; exit 9",
        text(&place),
        text(&made)
    );
    let own = system.command(0, 0, &["mount", &system.reference, text(&place)]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
    command.arg(own.get_program()).args(own.get_args());
    command.env_clear().envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let inside = std::thread::spawn(move || Kitfs::run_command(command));
    wait_until("the mount", || fs::read_to_string(&made).is_ok_and(|it| it.contains("model.bin")));
    assert!(!is_mounted(&place), "it is mounted outside, too");
    let status = system.run(0, &["daemon", "status", "--system"]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains("(in another namespace)"), "{status}");
    let stopped = system.run(0, &["daemon", "stop", "--system"]);
    assert_eq!(stopped.code, Some(0), "{}", stopped.stderr);
    let outcome = inside.join().unwrap();
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.stderr, system.root.log());
}

#[test]
fn the_folder_of_the_socket_belongs_to_the_daemon_and_is_closed_to_others() {
    let system = System::new(Access::Open);
    let socket = fs::metadata(system.runtime_folder().join("control.sock")).unwrap();
    assert_eq!((socket.mode() & 0o777, socket.uid(), socket.gid()), (0o660, 0, GROUP));
    let folder = fs::metadata(system.runtime_folder()).unwrap();
    assert_eq!((folder.mode() & 0o777, folder.uid()), (0o755, 0));
    // The cache, with all users' bytes and names, is root's alone.
    assert_eq!(fs::metadata(system.root.cache()).unwrap().mode() & 0o077, 0);
    let said = system.fail(ANNA, 2, &["daemon", "start", "--system"]);
    assert!(said.contains("root"), "{said}");
}

#[test]
fn a_user_fills_a_folder_and_compares_versions_through_the_system_daemon() {
    let system = System::new(Access::Open);
    let folder = system.home(ANNA).join("filled");
    let fill = ["warm", "--json", &system.reference, "--to", text(&folder)];
    let report: Value = serde_json::from_str(&system.succeed(ANNA, &fill)).unwrap();
    // The daemon writes to no file of a user.
    assert_eq!((&report["written_files"], &report["shared_files"]), (&json!(2), &json!(0)));
    let file = folder.join("model.bin");
    assert_eq!(fs::read(&file).unwrap(), system.content);
    assert_eq!(fs::metadata(&file).unwrap().uid(), ANNA);
    let report: Value = serde_json::from_str(&system.succeed(ANNA, &fill)).unwrap();
    assert_eq!(report["unchanged_files"], 2);
    assert_eq!(system.succeed(ANNA, &["diff", &system.reference, &system.reference]), "");
    let entries = system.succeed(ANNA, &["ls", "--json", &system.reference]);
    assert!(entries.contains("model.bin"), "{entries}");
    assert!(!system.has_own_cache(ANNA));
}
