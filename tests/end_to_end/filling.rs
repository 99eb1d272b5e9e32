//! Plain folders that are filled with a kit: `kitfs warm --to`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rstest::rstest;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::counted::{Counted, big_files};
use crate::support::Random;
use crate::support::kit_builder::{Compression, Kit, Layer};
use crate::support::kitfs::Kitfs;
use crate::support::tree::{Entry, Tree};

/// The tree in a filled folder, without the record and the Kitfile.
fn filled(folder: &Path) -> Tree {
    let mut tree = Tree::read(folder).without_kitfile();
    tree.0.retain(|path, _| !path.starts_with(b".kitfs-folder"));
    tree
}

/// Every kind of layer and file.
fn all_kinds(random: &mut Random) -> Kit {
    let (big, small) = (random.bytes(3 << 20), random.bytes(70_000));
    let mut holes = vec![0; 100_000];
    holes[..10].fill(7);
    holes[50_000..51_000].copy_from_slice(&random.bytes(1000));
    let tar = Layer::tar("dataset", "data")
        .directory("data", 0o750)
        .file("data/big", 0o644, &big)
        .file("data/small", 0o600, &small)
        .file("data/empty", 0o644, b"")
        .sparse_file("data/holes", 0o644, &holes, vec![0..10, 50_000..51_000])
        .symlink("data/link", b"small");
    let code = Layer::tar("code", "src").file("src/run.sh", 0o755, &random.bytes(500));
    Kit::modelkit()
        .with(Layer::raw("model", "model.bin", 0o640, &random.bytes(2 << 20)))
        .with(tar)
        .with(code.gzip())
        .with(Layer::tar("docs", "docs").file("docs/a", 0o644, &small).zstd())
}

fn numbers(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                open.push(entry.path())
            } else {
                _ = found.insert(entry.path(), metadata.ino())
            }
        }
    }
    found
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[rstest]
#[case::without_a_daemon(false)]
#[case::through_the_daemon(true)]
fn a_folder_is_filled_with_the_files_of_the_kit(#[case] has_daemon: bool) {
    let counted = Counted::new(&all_kinds(&mut Random::new(3)));
    if has_daemon {
        counted.kitfs.succeed(&["daemon", "start"]);
    }
    let folder = counted.kitfs.folder().join("made/folder");
    let fill = ["warm", "--json", &counted.reference, "--to", text(&folder)];
    let report = counted.kitfs.json(&fill);
    filled(&folder).assert_equals(&counted.written.tree, "filled");
    let kitfile = counted.kitfs.succeed(&["cat", &format!("{}/Kitfile", counted.reference)]);
    assert_eq!(fs::read_to_string(folder.join("Kitfile")).unwrap(), kitfile);
    assert_eq!((&report["written_files"], &report["unchanged_files"]), (&9.into(), &0.into()));
    assert!(counted.fetched() >= counted.everything());

    // Again: nothing is fetched, nothing is written.
    let (fetched, before) = (counted.fetched(), numbers(&folder));
    let report = counted.kitfs.json(&fill);
    assert_eq!((&report["written_files"], &report["unchanged_files"]), (&0.into(), &9.into()));
    assert_eq!(numbers(&folder), before);
    assert!(counted.fetched() - fetched < 2048, "{}", counted.fetched() - fetched);
}

#[test]
fn the_next_version_fetches_and_writes_what_is_new() {
    let kit = |seed: u64, names: &[&str]| {
        let mut data = Layer::tar("dataset", "data").directory("data", 0o755);
        for name in names {
            data = data.file(format!("data/{name}"), 0o644, &Random::new(seed).bytes(300_000));
        }
        let model = Layer::raw("model", "model.bin", 0o644, &Random::new(1).bytes(4 << 20));
        Kit::modelkit().with(model).with(data)
    };
    let counted = Counted::new(&kit(1, &["a", "gone"]));
    let folder = counted.kitfs.folder().join("folder");
    counted.kitfs.succeed(&["warm", &counted.reference, "--to", text(&folder)]);
    let (model, old) = (folder.join("model.bin"), numbers(&folder));
    fs::write(folder.join("own"), "mine").unwrap();

    let layout = counted.kitfs.folder().join("v2");
    let written = kit(2, &["a", "come"]).write(&layout, "v2");
    counted.registry.push_layout("org/kit", &layout);
    let next = counted.registry.reference("org/kit", "v2");
    let fetched = counted.fetched();
    let outcome = counted.kitfs.run(&["warm", &next, "--to", text(&folder)]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("1 file is of an earlier version"), "{}", outcome.stderr);
    let came = counted.fetched() - fetched;
    assert!((600_000..700_000).contains(&came), "{came} bytes");
    assert_eq!(numbers(&folder)[&model], old[&model], "the model was written again");
    assert!(folder.join("data/gone").exists());

    let fill = ["warm", "--delete", &next, "--to", text(&folder)];
    counted.kitfs.succeed(&fill);
    assert_eq!(fs::read_to_string(folder.join("own")).unwrap(), "mine");
    fs::remove_file(folder.join("own")).unwrap();
    filled(&folder).assert_equals(&written.tree, "version 2");
}

#[test]
fn a_file_that_was_touched_is_written_again() {
    let counted = Counted::new(&all_kinds(&mut Random::new(5)));
    let folder = counted.kitfs.folder().join("folder");
    let fill = ["warm", "--json", &counted.reference, "--to", text(&folder)];
    counted.kitfs.json(&fill);
    // Of the same size, and the date is set back.
    let big = folder.join("data/big");
    let date = fs::metadata(&big).unwrap().modified().unwrap();
    let file = File::options().write(true).open(&big).unwrap();
    file.write_all_at(b"x", 77).unwrap();
    file.set_modified(date).unwrap();
    fs::remove_file(folder.join("model.bin")).unwrap();
    fs::remove_file(folder.join("data/link")).unwrap();
    symlink("elsewhere", folder.join("data/link")).unwrap();
    let report = counted.kitfs.json(&fill);
    assert_eq!(report["written_files"], 3, "{report}");
    filled(&folder).assert_equals(&counted.written.tree, "mended");
}

#[test]
fn a_layer_with_a_wrong_digest_gives_the_folder_no_file() {
    let kitfs = Kitfs::new();
    let written = big_files().write(&kitfs.folder().join("kit"), "v1");
    let blob = File::options().write(true).open(written.blob(&written.layers[1].0)).unwrap();
    blob.write_all_at(b"other bytes", 5 << 20).unwrap();
    let folder = kitfs.folder().join("folder");
    let said = kitfs.fail(6, &["warm", &written.reference, "--to", text(&folder)]);
    assert!(said.contains(&written.layers[1].0), "{said}");
    let mut expected = Tree(written.tree.0.clone());
    expected.0.remove(b"weights/shard-1".as_slice());
    filled(&folder).assert_equals(&expected, "the other layers");
}

#[test]
fn a_run_that_is_killed_leaves_no_wrong_file_and_the_next_one_goes_on() {
    let counted = Counted::new(&all_kinds(&mut Random::new(9)));
    let folder = counted.kitfs.folder().join("folder");
    let fill = ["warm", &counted.reference, "--to", text(&folder)];
    let is_right = |path: &[u8], entry: &Entry| counted.written.tree.0.get(path) == Some(entry);
    for wait_ms in [20, 60, 100, 150, 220, 300] {
        let mut command = counted.kitfs.command(&fill);
        let mut run = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        run.kill().unwrap();
        run.wait().unwrap();
        if !folder.exists() {
            continue;
        }
        for (path, entry) in &filled(&folder).0 {
            let name = path.rsplit(|&byte| byte == b'/').next().unwrap();
            let is_directory = folder.join(std::str::from_utf8(path).unwrap()).is_dir();
            let is_unfinished = name.starts_with(b".kitfs-unfinished-");
            let shown = String::from_utf8_lossy(path);
            assert!(is_directory || is_unfinished || is_right(path, entry), "{shown} is wrong");
        }
    }
    counted.kitfs.succeed(&fill);
    filled(&folder).assert_equals(&counted.written.tree, "filled at last");
}

#[test]
fn a_part_of_a_kit_fills_a_folder_with_that_part() {
    let counted = Counted::new(&all_kinds(&mut Random::new(4)));
    let folder = counted.kitfs.folder().join("folder");
    counted.kitfs.succeed(&[
        "warm",
        &counted.reference,
        "src",
        "data/small",
        "--to",
        text(&folder),
    ]);
    let mut expected = Tree(counted.written.tree.0.clone());
    let wanted: [&[u8]; 4] = [b"data", b"data/small", b"src", b"src/run.sh"];
    expected.0.retain(|path, _| wanted.contains(&path.as_slice()));
    filled(&folder).assert_equals(&expected, "a part");
    // The model was not needed, and the layer of the small file came whole, to be verified.
    assert!(counted.fetched() < counted.everything() - (1 << 20), "{}", counted.fetched());
    let fill = ["warm", &counted.reference, "nope", "--to", text(&folder)];
    assert!(counted.kitfs.fail(3, &fill).contains("`nope` is not in the kit"));
}

#[test]
fn a_folder_holds_a_kit_that_is_larger_than_the_cache() {
    let kitfs = Kitfs::with_options(&["--cache-size", "24MiB"]);
    let counted = Counted::with(&big_files(), kitfs);
    let folder = counted.kitfs.folder().join("folder");
    counted.kitfs.succeed(&["warm", &counted.reference, "--to", text(&folder)]);
    filled(&folder).assert_equals(&counted.written.tree, "filled");
}

#[test]
fn a_hostile_folder_is_refused_or_mended() {
    let counted = Counted::new(&all_kinds(&mut Random::new(6)));
    let kitfs = &counted.kitfs;
    let outside = kitfs.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("small"), "mine").unwrap();
    let folder = kitfs.folder().join("folder");
    let fill = ["warm", "--delete", &counted.reference, "--to", text(&folder)];

    // A file of the user, in a folder that was never filled.
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("Kitfile"), "mine").unwrap();
    assert!(kitfs.fail(2, &fill).contains("`Kitfile`"));
    assert_eq!(fs::read_to_string(folder.join("Kitfile")).unwrap(), "mine");
    fs::remove_file(folder.join("Kitfile")).unwrap();

    // A directory of the kit is a symlink.
    symlink(&outside, folder.join("data")).unwrap();
    kitfs.fail(2, &fill);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    fs::remove_file(folder.join("data")).unwrap();

    // A record that is none, one that leads out of the folder, and one of another version.
    fs::write(folder.join(".kitfs-folder"), b"\xff\0garbage\n").unwrap();
    let outcome = kitfs.run(&fill);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("damaged"), "{}", outcome.stderr);
    filled(&folder).assert_equals(&counted.written.tree, "beside garbage");
    let json = r#"{"path":"../outside/small","written":{"content":"x","stamp":[1,1,1,1,1]}}"#;
    let line = format!("kitfs-folder 1\n{:08x} {json}\n", crc32c::crc32c(json.as_bytes()));
    fs::write(folder.join(".kitfs-folder"), line).unwrap();
    kitfs.succeed(&fill);
    assert_eq!(fs::read_to_string(outside.join("small")).unwrap(), "mine");
    fs::write(folder.join(".kitfs-folder"), "kitfs-folder 9\n").unwrap();
    assert!(kitfs.fail(2, &fill).contains("another version"));
    fs::remove_file(folder.join(".kitfs-folder")).unwrap();

    // Somebody else fills the folder.
    let lock = File::options().write(true).open(folder.join(".kitfs-folder.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert!(kitfs.fail(2, &fill).contains("another `kitfs warm --to`"));
    drop(lock);

    // A kit that would overwrite the record.
    let kit = Kit::modelkit().with(Layer::raw("model", ".kitfs-folder", 0o644, b"x"));
    let written = kit.write(&kitfs.folder().join("evil"), "v1");
    let said = kitfs.fail(6, &["warm", &written.reference, "--to", text(&folder)]);
    assert!(said.contains("its own record"), "{said}");
}

/// A version with files at random paths; some paths are files in one version and directories in another.
pub fn random_kit(random: &mut Random) -> Kit {
    let names = ["a", "a/b", "a/b/c", "d", "d/e", "f/g", "f/h", "i"];
    let mut kit = Kit::modelkit();
    let mut taken: Vec<&str> = Vec::new();
    for (role, path) in [("code", "one"), ("dataset", "two"), ("docs", "three")] {
        let mut layer = Layer::tar(role, path);
        for _ in 0..random.below(4) {
            let name = names[random.below(names.len() as u64) as usize];
            let is_free = |other: &&str| {
                let (short, long) =
                    if other.len() < name.len() { (*other, name) } else { (name, *other) };
                long != short && !long.starts_with(&format!("{short}/"))
            };
            if !taken.iter().all(is_free) {
                continue;
            }
            taken.push(name);
            let mut parents: Vec<&str> =
                name.match_indices('/').map(|(at, _)| &name[..at]).collect();
            parents.retain(|parent| !taken.contains(parent));
            for parent in parents {
                layer = layer.directory(parent, 0o755);
            }
            let content = random.below(3).to_string();
            layer = match random.below(5) {
                0 => layer.symlink(name, b"target"),
                _ => layer.file(name, 0o644, content.as_bytes()),
            };
        }
        let compression = [Compression::None, Compression::Gzip][random.below(2) as usize];
        kit = kit.with(layer.compressed(compression));
    }
    kit
}

#[test]
fn a_folder_follows_any_versions() {
    let mut random = Random::new(11);
    let kitfs = Kitfs::new();
    kitfs.succeed(&["daemon", "start"]);
    let folder = kitfs.folder().join("folder");
    for round in 0..25 {
        let kit = random_kit(&mut random);
        let written = kit.write(&kitfs.folder().join("kits"), &format!("v{round}"));
        let report: Value =
            kitfs.json(&["warm", "--json", "--delete", &written.reference, "--to", text(&folder)]);
        filled(&folder).assert_equals(&written.tree, &format!("round {round}: {report}"));
    }
}
