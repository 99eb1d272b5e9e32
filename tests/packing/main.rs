//! `kitfs pack`: the bytes of kit, the storage, and faults of folders.

#[path = "../support/mod.rs"]
mod support;

mod based;
mod commands;
mod faults;
mod golden;
mod trees;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::kitfs::Kitfs;

/// A folder to pack, and kit's home, in the folder of a [`Kitfs`].
struct Workshop {
    kitfs: Kitfs,
}

impl Workshop {
    fn new() -> Self {
        let kitfs = Kitfs::new();
        fs::create_dir_all(kitfs.folder().join("src")).unwrap();
        Self { kitfs }
    }

    fn folder(&self) -> PathBuf {
        self.kitfs.folder().join("src")
    }

    fn home(&self) -> PathBuf {
        self.kitfs.folder().join("kitops")
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let home = self.home().display().to_string();
        let mut arguments = vec!["pack".to_owned(), "src".to_owned(), "--config".to_owned(), home];
        arguments.extend(more.iter().map(|it| (*it).to_owned()));
        arguments
    }

    fn pack(&self, more: &[&str]) -> Value {
        let mut arguments = self.arguments(more);
        arguments.push("--json".to_owned());
        self.kitfs.json(&arguments)
    }

    fn fail(&self, code: i32, more: &[&str]) -> String {
        self.kitfs.fail(code, &self.arguments(more))
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        fs::read(blob(&self.home(), digest)).unwrap()
    }

    fn manifest(&self, packed: &Value) -> Value {
        serde_json::from_slice(&self.blob(packed["digest"].as_str().unwrap())).unwrap()
    }

    /// The names of all files below kit's storage that are no blob.
    fn side_files(&self) -> Vec<String> {
        let entries = self.home().join("storage").read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != "blobs").collect();
        names.sort();
        names
    }
}

fn blob(home: &Path, digest: &str) -> PathBuf {
    home.join("storage/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
}
