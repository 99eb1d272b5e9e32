//! Everything bad gets a clear word, and leaves the storage as it was.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use super::*;
use crate::support::kitfs::signal;

#[test]
fn a_folder_without_a_kitfile_shows_how_to_write_one() {
    let workshop = Workshop::new();
    let words = workshop.fail(2, &["-t", "demo:v1"]);
    assert!(
        words.contains("src has no Kitfile") && words.contains("manifestVersion: 1.0.0"),
        "{words}"
    );
    let words = workshop.kitfs.fail(3, &["pack", "nowhere", "-t", "demo:v1"]);
    assert!(words.contains("nowhere"), "{words}");
}

#[test]
fn a_kitfile_whose_path_leaves_the_folder_is_refused() {
    let workshop = Workshop::new();
    fs::write(workshop.kitfs.folder().join("secret"), "x").unwrap();
    for path in ["../secret", "a/../../secret", "/etc/passwd"] {
        workshop.write("Kitfile", format!("code:\n  - path: {path}\n"));
        let words = workshop.fail(2, &["-t", "demo:v1"]);
        assert!(words.contains("src/Kitfile: line 2") && words.contains(path), "{words}");
    }
    assert!(!workshop.home().exists());
}

#[test]
fn faults_of_the_folder_are_named() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "model: {path: nix.bin}");
    let words = workshop.fail(2, &[]);
    assert!(words.contains("src/Kitfile: model `nix.bin`: the folder has no `nix.bin`"), "{words}");
    workshop.write("Kitfile", "code: [{path: .}]");
    workshop.write(".kitignore", "ok\n[");
    let words = workshop.fail(2, &[]);
    assert!(words.contains(".kitignore, line 2"), "{words}");
    workshop.write(".kitignore", "");
    workshop.write("dir/a", "");
    let words = workshop.fail(2, &["--layer-format", "raw"]);
    assert!(words.contains("a raw layer is one regular file"), "{words}");
    let words = workshop.fail(2, &["-t", "Demo:v1"]);
    assert!(words.contains("lower case"), "{words}");
}

#[test]
fn files_that_a_quirk_of_kit_drops_are_named() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "model: {path: model}\ncode: [{path: .}]");
    workshop.write("model/w", "");
    workshop.write("model_utils.py", "");
    workshop.write("a..b", "");
    symlink("model_utils.py", workshop.folder().join("link")).unwrap();
    let outcome = workshop.kitfs.run(&workshop.arguments(&["-t", "demo:v1"]));
    assert_eq!(outcome.code, Some(0));
    for words in [
        "model_utils.py is not packed: its path begins with `model`",
        "a..b is not packed",
        "link is not packed: symbolic links",
    ] {
        assert!(outcome.stderr.contains(words), "{words}: {}", outcome.stderr);
    }
    for number in 0..40 {
        workshop.write(&format!("x..{number}"), "");
    }
    let outcome = workshop.kitfs.run(&workshop.arguments(&["-t", "demo:v1"]));
    assert!(outcome.stderr.contains("23 more files"), "{}", outcome.stderr);
    assert!(outcome.stderr.lines().count() < 30);
}

#[test]
fn a_link_is_never_followed_out_of_the_folder() {
    let workshop = Workshop::new();
    fs::write(workshop.kitfs.folder().join("secret"), "secret").unwrap();
    symlink("../secret", workshop.folder().join("code")).unwrap();
    workshop.write("Kitfile", "code: [{path: code}]");
    let packed = workshop.pack(&["-t", "demo:v1"]);
    assert_eq!(packed["layers"][0]["files"], 0);
    assert_eq!(packed["layers"][0]["blob_bytes"], 1024);
    let words = workshop.fail(2, &["--layer-format", "raw"]);
    assert!(words.contains("symbolic link"), "{words}");
}

#[test]
fn a_file_that_grows_while_it_is_packed_is_named() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "model: {path: log}");
    workshop.write("log", vec![0; 64 << 20]);
    let path = workshop.folder().join("log");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let words = std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            let mut file = fs::File::options().append(true).open(&path).unwrap();
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                file.write_all(b"x").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let outcome = workshop.kitfs.run(&workshop.arguments(&["-t", "demo:v1"]));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(outcome.code, Some(6), "{}", outcome.stderr);
        outcome.stderr
    });
    assert!(words.contains("src/log changed") && words.contains("Pack again"), "{words}");
    let blobs = workshop.home().join("storage/blobs/sha256").read_dir().unwrap().count();
    assert_eq!(blobs, 0);
}

#[test]
fn a_killed_command_leaves_a_storage_that_is_read() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "model: {path: m}\ncode: [{path: c}]");
    workshop.write("c", "code");
    workshop.write("m", "small");
    workshop.pack(&["-t", "demo:v1"]);
    workshop.write("m", vec![5; 48 << 20]);
    let blobs = workshop.home().join("storage/blobs/sha256");
    let before = blobs.read_dir().unwrap().count();
    for wait_ms in [0, 5, 20, 60, 120] {
        let mut command = workshop.kitfs.command(&workshop.arguments(&["-t", "demo:v1"]));
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        if child.try_wait().unwrap().is_none() {
            signal(child.id(), rustix::process::Signal::KILL);
        }
        child.wait().unwrap();
        let home = workshop.home().display().to_string();
        let kits = workshop.kitfs.json(&["list", "--json", "--config", &home]);
        assert!(kits.as_array().unwrap().iter().all(|kit| kit["problem"].is_null()), "{kits}");
        let digest = kits[0]["digest"].as_str().unwrap();
        assert!(crate::blob(&workshop.home(), digest).exists());
    }
    let started = Instant::now();
    workshop.pack(&["-t", "demo:v1"]);
    assert!(started.elapsed() < Duration::from_secs(300));
    // The large layer, its config and its manifest. A command that was killed late has left a manifest of another second.
    assert!(blobs.read_dir().unwrap().count() >= before + 3);
    for blob in blobs.read_dir().unwrap() {
        let name = blob.unwrap().file_name().into_string().unwrap();
        let digest = format!("sha256:{name}");
        assert_eq!(crate::support::tree::sha256(&workshop.blob(&digest)), name);
    }
}

#[test]
fn a_storage_that_cannot_be_written_is_named() {
    let workshop = Workshop::new();
    workshop.write("Kitfile", "code: [{path: c}]");
    workshop.write("c", "");
    fs::write(workshop.home(), "a file").unwrap();
    let words = workshop.fail(8, &["-t", "demo:v1"]);
    assert!(words.contains("cannot write") && words.contains("kitops/storage"), "{words}");
}
