//! Remote data sets (`remotePath`): in another kit, and in an S3 store.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::kit_builder::{Kit, Layer};
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Access, Options, RegistryDouble};
use crate::support::s3_double::{S3Double, S3Keys, S3Options};

const REPOSITORY: &str = "org/model";
const DATA_REPOSITORY: &str = "org/data";
/// A size above any readahead, so that a read in the middle shows that the rest is not fetched.
const OBJECT_BYTES: usize = 24 * 1024 * 1024;

/// A kit with data sets in another registry, which needs a password, and in an S3 store.
struct World {
    runtime: Runtime,
    registry: RegistryDouble,
    data_registry: RegistryDouble,
    store: S3Double,
    folder: TempDir,
    object: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = TempDir::new().unwrap();
        let access = Access::Basic { username: "data".into(), password: "word".into() };
        let registry = runtime.block_on(RegistryDouble::start(Options::default()));
        let data_registry =
            runtime.block_on(RegistryDouble::start(Options { access, ..Options::default() }));
        let store = runtime.block_on(S3Double::start(S3Options::default()));
        let object: Vec<u8> = (0..OBJECT_BYTES).map(|at| ((at / 5) ^ at) as u8).collect();
        let etag = store.put("bucket", "path/big.bin", object.clone());

        let data = folder.path().join("data");
        Kit::modelkit()
            .with(Layer::raw("model", "model.bin", 0o644, b"the model of the data kit"))
            .with(Layer::tar("dataset", "train").file("train/a.csv", 0o644, b"a").named("train"))
            .with(Layer::tar("dataset", "test").file("test/b.csv", 0o644, b"b").named("test"))
            .write(&data, "v1");
        data_registry.push_layout(DATA_REPOSITORY, &data);
        let world = Self { runtime, registry, data_registry, store, folder, object };
        world.push("v1", &etag);
        world
    }

    /// Pushes the kit with this ETag of the object.
    fn push(&self, tag: &str, etag: &str) {
        let kit = self.folder.path().join(tag);
        Kit::modelkit()
            .with(Layer::raw("model", "model.bin", 0o644, b"model"))
            .with(Layer::tar("dataset", "own").file("own/c.csv", 0o644, b"c"))
            .with_remote("sets", &self.data_registry.reference(DATA_REPOSITORY, "v1"), "")
            .with_remote("objects/big.bin", "s3://bucket/path/big.bin", etag)
            .write(&kit, tag);
        self.registry.push_layout(REPOSITORY, &kit);
    }

    fn reference(&self) -> String {
        self.registry.reference(REPOSITORY, "v1")
    }

    /// A user without access to the data registry and the store.
    fn stranger(&self) -> Kitfs {
        let kitfs = Kitfs::new();
        let aws = kitfs.folder().join("home/.aws");
        fs::create_dir_all(&aws).unwrap();
        let config = format!("[default]\nendpoint_url = {}\n", self.store.endpoint());
        fs::write(aws.join("config"), config).unwrap();
        kitfs
    }

    /// A user with the password of the data registry.
    fn user(&self) -> Kitfs {
        let kitfs = self.stranger();
        let home = kitfs.folder().join("home/.docker");
        fs::create_dir_all(&home).unwrap();
        let auths = json!({"auths": {self.data_registry.host(): {"auth": "ZGF0YTp3b3Jk"}}});
        fs::write(home.join("config.json"), auths.to_string()).unwrap();
        kitfs
    }

    /// A user with the keys of the store, in a file of the AWS tools.
    fn user_with_keys(&self) -> Kitfs {
        let kitfs = self.user();
        self.write_keys(&kitfs, "AKIDOUBLE", "secret/of+double");
        kitfs
    }

    fn write_keys(&self, kitfs: &Kitfs, id: &str, secret: &str) {
        let keys =
            format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
        fs::write(kitfs.folder().join("home/.aws/credentials"), keys).unwrap();
    }
}

fn read_at(path: &Path, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    fs::File::open(path)?.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn big(mountpoint: &Path) -> PathBuf {
    mountpoint.join("objects/big.bin")
}

#[test]
fn remote_data_sets_are_part_of_the_mounted_kit() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let mountpoint = kitfs.mount(&world.reference(), &["--no-hydrate"]);
    assert_eq!(names(&mountpoint), ["Kitfile", "model.bin", "objects", "own", "sets"]);
    // The mount has the data sets of the other kit, and nothing else of that kit.
    assert_eq!(names(&mountpoint.join("sets")), ["test", "train"]);
    assert_eq!(fs::read(mountpoint.join("sets/train/a.csv")).unwrap(), b"a");
    assert_eq!(fs::read(mountpoint.join("model.bin")).unwrap(), b"model");

    // The object has its size before any read. A read fetches only its own range.
    assert_eq!(fs::metadata(big(&mountpoint)).unwrap().len(), OBJECT_BYTES as u64);
    assert_eq!(world.store.bytes_served(), 0);
    let middle = OBJECT_BYTES / 2;
    let got = read_at(&big(&mountpoint), middle as u64, 1000).unwrap();
    assert!(got == world.object[middle..middle + 1000]);
    assert!(world.store.bytes_served() < OBJECT_BYTES as u64 / 2, "lazily");
    assert!(world.store.reads().iter().all(|one| one.header("if-match").is_some()));
    assert!(fs::read(big(&mountpoint)).unwrap() == world.object);
}

#[test]
fn every_command_reads_remote_data_sets() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let reference = world.reference();
    let listed = kitfs.succeed(&["ls", "-R", &reference]);
    assert!(listed.contains("sets/train/a.csv\n") && listed.contains("objects/big.bin\n"));
    assert_eq!(kitfs.succeed(&["cat", &format!("{reference}/sets/test/b.csv")]), "b");
    let copy = kitfs.folder().join("copy");
    kitfs.succeed(&["cp", "-r", &reference, copy.to_str().unwrap()]);
    assert!(fs::read(big(&copy)).unwrap() == world.object);
    assert_eq!(fs::read(copy.join("sets/train/a.csv")).unwrap(), b"a");
    kitfs.succeed(&["warm", &reference]);

    let info = kitfs.json(&["info", "--json", &reference]);
    assert_eq!(info["remote"][0]["path"], "sets");
    assert_eq!(info["remote"][1]["place"], "s3://bucket/path/big.bin");
    let table = kitfs.succeed(&["info", &reference]);
    assert!(table.contains("REMOTE DATA SET") && table.contains("s3://bucket/path/big.bin"));
}

#[test]
fn keys_come_from_the_environment_of_the_command() {
    let world = World::new();
    let kitfs = world.user();
    let mut command = kitfs.command(&["cat", &format!("{}/objects/big.bin", world.reference())]);
    let output = command.envs(world.store.environment()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == world.object);
    // Without the keys the object is missing.
    let said = world.user().fail(5, &["cat", &format!("{}/objects/big.bin", world.reference())]);
    assert!(said.contains("objects/big.bin") && said.contains("AWS_PROFILE"), "{said}");
    // The daemon's answers do not have the keys.
    let status = format!("{}{}", kitfs.succeed(&["status", "--json"]), kitfs.log());
    assert!(!status.contains("secret/of+double"), "{status}");
}

#[test]
fn the_rest_of_a_kit_is_there_without_its_remote_data() {
    let world = World::new();
    let kitfs = world.stranger();
    let mountpoint = kitfs.mountpoint("mnt");
    let outcome = kitfs.run(&["mount", &world.reference(), mountpoint.to_str().unwrap()]);
    let said = outcome.stderr;
    assert_eq!(outcome.code, Some(0), "{said}");
    assert!(
        said.contains("`objects/big.bin` is missing") && said.contains("AWS_PROFILE"),
        "{said}"
    );
    assert!(said.contains("`sets` is missing") && said.contains("kit login"), "{said}");

    assert_eq!(fs::read(mountpoint.join("model.bin")).unwrap(), b"model");
    assert_eq!(fs::read(mountpoint.join("own/c.csv")).unwrap(), b"c");
    let error = fs::read(big(&mountpoint)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let error = fs::read_dir(mountpoint.join("sets")).and_then(|mut all| all.next().unwrap());
    assert_eq!(error.unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let failure = kitfs.status_of(&mountpoint)["last_failure"].to_string();
    assert!(failure.contains("sets") || failure.contains("big.bin"), "{failure}");
}

#[test]
fn commands_that_want_missing_data_fail_and_do_what_they_can() {
    let world = World::new();
    let kitfs = world.stranger();
    let reference = world.reference();
    let listed = kitfs.run(&["ls", "-R", &reference]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    assert!(listed.stderr.contains("is missing"), "{}", listed.stderr);
    let copy = kitfs.folder().join("copy");
    let outcome = kitfs.run(&["cp", "-r", &reference, copy.to_str().unwrap()]);
    assert_ne!(outcome.code, Some(0));
    assert_eq!(fs::read(copy.join("own/c.csv")).unwrap(), b"c");
    assert!(!big(&copy).exists());
    let outcome = kitfs.run(&["warm", &reference]);
    assert_ne!(outcome.code, Some(0));
    assert!(outcome.stderr.contains("--no-remote"), "{}", outcome.stderr);
    assert_eq!(kitfs.succeed(&["cat", &format!("{reference}/model.bin")]), "model");
}

#[test]
fn no_remote_leaves_them_out_and_asks_nobody() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let mountpoint = kitfs.mount(&world.reference(), &["--no-remote"]);
    assert_eq!(names(&mountpoint), ["Kitfile", "model.bin", "own"]);
    kitfs.succeed(&["warm", "--no-remote", &world.reference()]);
    let copy = kitfs.folder().join("copy");
    kitfs.succeed(&["cp", "-r", "--no-remote", &world.reference(), copy.to_str().unwrap()]);
    assert_eq!(names(&copy), ["Kitfile", "model.bin", "own"]);
    assert!(world.store.requests().is_empty());
    assert!(world.data_registry.requests().is_empty());
}

#[test]
fn filters_choose_remote_data_sets() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let mountpoint = kitfs.mount(&world.reference(), &["--filter", "model"]);
    assert_eq!(names(&mountpoint), ["model.bin"]);
    assert!(world.store.requests().is_empty() && world.data_registry.requests().is_empty());
    let mountpoint = kitfs.mount(&world.reference(), &["--filter", "datasets:objects/big.bin"]);
    assert_eq!(names(&mountpoint), ["objects"]);
    let mountpoint = kitfs.mount(&world.reference(), &["--filter", "datasets"]);
    assert_eq!(names(&mountpoint), ["objects", "own", "sets"]);
}

#[test]
fn known_remote_data_mounts_again_without_the_network() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let reference = world.reference();
    kitfs.succeed(&["warm", &reference]);
    kitfs.succeed(&["daemon", "stop"]);
    let World { runtime, registry, data_registry, store, folder: _folder, object } = world;
    drop((registry, data_registry, store, runtime));
    let mountpoint = kitfs.mount(&reference, &["--retries", "0"]);
    assert_eq!(fs::read(mountpoint.join("sets/train/a.csv")).unwrap(), b"a");
    assert!(fs::read(big(&mountpoint)).unwrap() == object);
}

#[test]
fn an_object_that_changed_under_a_mount_gives_no_other_bytes() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let mountpoint = kitfs.mount(&world.reference(), &["--no-hydrate", "--retries", "0"]);
    read_at(&big(&mountpoint), 0, 10).unwrap();
    world.store.put("bucket", "path/big.bin", vec![0; OBJECT_BYTES]);
    let end = OBJECT_BYTES as u64 - 10;
    let error = read_at(&big(&mountpoint), end, 10).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let failure = kitfs.status_of(&mountpoint)["last_failure"].to_string();
    assert!(failure.contains("was replaced") && failure.contains("s3://bucket"), "{failure}");
}

#[test]
fn new_keys_in_the_file_count_for_a_mount_that_runs() {
    let world = World::new();
    let kitfs = world.user_with_keys();
    let mountpoint = kitfs.mount(&world.reference(), &["--no-hydrate", "--retries", "0"]);
    world.store.accept(S3Keys { id: "AKNEW", secret: "new-secret", token: None });
    world.write_keys(&kitfs, "AKNEW", "new-secret");
    assert!(fs::read(big(&mountpoint)).unwrap() == world.object);
}

#[test]
fn a_credential_process_gets_the_limit_that_the_daemon_was_started_with() {
    let world = World::new();
    let kitfs = world.user();
    let told = kitfs.folder().join("told");
    let keys =
        json!({"Version": 1, "AccessKeyId": "AKIDOUBLE", "SecretAccessKey": "secret/of+double"});
    let script = kitfs.folder().join("keys.sh");
    fs::write(&script, format!("ulimit -Sn >{}\necho '{keys}'\n", told.display())).unwrap();
    let profile = format!(
        "[default]\nendpoint_url = {}\ncredential_process = sh {}\n",
        world.store.endpoint(),
        script.display()
    );
    fs::write(kitfs.folder().join("home/.aws/config"), profile).unwrap();
    let start = kitfs.command_after("ulimit -Sn 77", &["daemon", "start"]);
    assert_eq!(Kitfs::run_command(start).code, Some(0));
    let said = kitfs.succeed(&["ls", &format!("{}/objects", world.reference())]);
    assert_eq!(said.trim(), "big.bin");
    assert_eq!(fs::read_to_string(told).unwrap().trim(), "77");
}
