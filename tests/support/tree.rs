//! Trees of files to compare: the kind, mode, size and content digest of each path. Times and owners
//! are left out, because `kit unpack` sets neither.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::golden;

/// The entry at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file: its size in bytes and the sha256 of its content.
    File { size: u64, sha256: String },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
}

/// One entry: permission bits and the node. A symlink's mode is always 0777.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub kind: Kind,
}

/// Everything below a directory, without the directory itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<Vec<u8>, Entry>);

/// The number of differences that a failure shows: a wrong kit of 5,000 files must not hide the first one.
const SHOWN_DIFFERENCES: usize = 10;

impl Tree {
    /// Walks `root` and reads every file.
    pub fn read(root: &Path) -> Self {
        let mut tree = Self::default();
        tree.read_below(root, &mut Vec::new());
        tree
    }

    fn read_below(&mut self, directory: &Path, prefix: &mut Vec<u8>) {
        let entries = fs::read_dir(directory)
            .unwrap_or_else(|error| panic!("cannot list {}: {error}", directory.display()));
        for entry in entries {
            let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            let length = prefix.len();
            if !prefix.is_empty() {
                prefix.push(b'/');
            }
            prefix.extend_from_slice(entry.file_name().as_bytes());
            let read = read_entry(&entry.path());
            let is_directory = read.kind == Kind::Directory;
            let earlier = self.0.insert(prefix.clone(), read);
            assert!(earlier.is_none(), "{} is listed twice", entry.path().display());
            if is_directory {
                self.read_below(&entry.path(), prefix);
            }
            prefix.truncate(length);
        }
    }

    /// The output of `kit unpack` for the golden kit `name`.
    pub fn golden(name: &str) -> Self {
        let path = golden(name).with_file_name(format!("{name}.tree.json"));
        let text = fs::read_to_string(&path).expect("the golden tree can be read");
        let listing: Vec<Value> = serde_json::from_str(&text).expect("the golden tree is JSON");
        let entries = listing.iter().map(|entry| {
            let path = entry["path"].as_str().expect("a path").as_bytes().to_vec();
            let mode = entry["mode"].as_str().expect("a mode");
            let mode = u32::from_str_radix(mode, 8).expect("an octal mode");
            let kind = match entry["type"].as_str().expect("a type") {
                "dir" => Kind::Directory,
                "file" => Kind::File {
                    size: entry["size"].as_u64().expect("a size"),
                    sha256: entry["sha256"].as_str().expect("a digest").to_owned(),
                },
                other => panic!("an unknown type {other}"),
            };
            (path, Entry { mode, kind })
        });
        Self(entries.collect())
    }

    /// Adds a file, and its parents with mode 0755 where they are missing.
    pub fn add_file(&mut self, path: &[u8], mode: u32, content: &[u8]) {
        let kind = Kind::File { size: content.len() as u64, sha256: sha256(content) };
        self.add(path, Entry { mode, kind });
    }

    /// Adds an entry, and its parents with mode 0755 where they are missing.
    pub fn add(&mut self, path: &[u8], entry: Entry) {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let parent = Entry { mode: 0o755, kind: Kind::Directory };
            self.0.entry(path[..at].to_vec()).or_insert(parent);
        }
        self.0.insert(path.to_vec(), entry);
    }

    /// This tree without the file `Kitfile` at its root.
    pub fn without_kitfile(mut self) -> Self {
        self.0.remove(b"Kitfile".as_slice());
        self
    }

    /// The size of the file at `path` in bytes.
    pub fn size(&self, path: &str) -> u64 {
        match self.0.get(path.as_bytes()).map(|entry| &entry.kind) {
            Some(Kind::File { size, .. }) => *size,
            other => panic!("{path} is no file: {other:?}"),
        }
    }

    /// Fails with the first differences unless the trees are equal.
    #[track_caller]
    pub fn assert_equals(&self, expected: &Self, what: &str) {
        let paths = self.0.keys().chain(expected.0.keys());
        let mut different: Vec<_> =
            paths.filter(|path| self.0.get(*path) != expected.0.get(*path)).collect();
        different.sort();
        different.dedup();
        if different.is_empty() {
            return;
        }
        let mut message = format!("{what}: {} entries differ", different.len());
        for path in different.iter().take(SHOWN_DIFFERENCES) {
            message += &format!(
                "\n  {}\n    is        {:?}\n    should be {:?}",
                Path::new(OsStr::from_bytes(path)).display(),
                self.0.get(*path),
                expected.0.get(*path),
            );
        }
        panic!("{message}");
    }
}

fn read_entry(path: &Path) -> Entry {
    let metadata = fs::symlink_metadata(path)
        .unwrap_or_else(|error| panic!("cannot stat {}: {error}", path.display()));
    let kind = if metadata.is_dir() {
        Kind::Directory
    } else if metadata.is_symlink() {
        let target = fs::read_link(path).expect("a symlink has a target");
        Kind::Symlink(target.into_os_string().into_vec())
    } else {
        let (size, sha256) = hash_file(path);
        assert_eq!(size, metadata.len(), "{}: stat and read disagree", path.display());
        Kind::File { size, sha256 }
    };
    let mode = if metadata.is_symlink() { 0o777 } else { metadata.mode() & 0o7777 };
    Entry { mode, kind }
}

/// The size and the sha256 of a file's content.
pub fn hash_file(path: &Path) -> (u64, String) {
    let mut file =
        File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let read = file
            .read(&mut buffer)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        if read == 0 {
            return (size, hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// The sha256 of `content` in hexadecimal digits.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
