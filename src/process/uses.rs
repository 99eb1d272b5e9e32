//! The processes that use directories, by the links of /proc. Asks no file system, so a mount that hangs does not block.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::threads::command_of;

/// The files that are named of a process: a program with many shards maps a few hundred.
const MOST_FILES: usize = 1024;

/// A process that uses a directory or files below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uses {
    /// Its number.
    pub pid: u32,
    /// The name of its command.
    pub command: String,
    /// The directory.
    pub mountpoint: PathBuf,
    /// The files, from that directory on; empty for the directory itself. The first ones by name.
    pub files: BTreeSet<PathBuf>,
}

/// The processes that use some directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// By process, then by directory.
    pub users: Vec<Uses>,
    /// Whether /proc hides what some processes use.
    pub is_partial: bool,
}

/// Finds the processes that use `mountpoints`, which are canonical, in the mount namespace of this process.
pub fn find(mountpoints: &[PathBuf]) -> Found {
    let mut found = Found::default();
    let own_namespace = fs::read_link("/proc/self/ns/mnt").ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.collect::<BTreeSet<u32>>() {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        // The same path is another file in another namespace.
        match fs::read_link(folder.join("ns/mnt")) {
            Ok(namespace) if Some(&namespace) == own_namespace.as_ref() => {}
            Ok(_) => continue,
            Err(error) => {
                // A process that has ended hides nothing.
                found.is_partial |= error.kind() == ErrorKind::PermissionDenied;
                continue;
            }
        }
        let paths = paths_of(&folder);
        for mountpoint in mountpoints {
            let below = paths.iter().filter_map(|path| path.strip_prefix(mountpoint).ok());
            let files: BTreeSet<PathBuf> = below.take(MOST_FILES).map(Path::to_owned).collect();
            if !files.is_empty() {
                let command = command_of(pid);
                found.users.push(Uses { pid, command, mountpoint: mountpoint.clone(), files });
            }
        }
    }
    found
}

/// The paths that a process uses, as the kernel names them.
fn paths_of(folder: &Path) -> BTreeSet<PathBuf> {
    let links = ["cwd", "root", "exe"].map(|name| folder.join(name));
    let open = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    let links = links.into_iter().chain(open.map(|entry| entry.path()));
    let mut paths: BTreeSet<PathBuf> = links.filter_map(|link| fs::read_link(link).ok()).collect();
    let maps = fs::read(folder.join("maps")).unwrap_or_default();
    paths.extend(maps.split(|&byte| byte == b'\n').filter_map(mapped));
    paths
}

/// The path in a line of /proc/PID/maps (proc_pid_maps(5)): the rest behind five fields.
fn mapped(line: &[u8]) -> Option<PathBuf> {
    let slash = line.iter().position(|&byte| byte == b'/')?;
    let fields = line[..slash].split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    if fields.count() != 5 {
        return None;
    }
    // The kernel escapes line breaks alone.
    let text = line[slash..].to_vec();
    let path = PathBuf::from(std::ffi::OsString::from_vec(text));
    let bytes = path.as_os_str().as_bytes();
    match bytes.windows(4).position(|four| four == b"\\012") {
        None => Some(path),
        Some(_) => {
            let text = String::from_utf8_lossy(bytes).replace("\\012", "\n");
            Some(text.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_open_files_and_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        fs::create_dir(folder.join("a")).unwrap();
        fs::write(folder.join("a/file"), "x").unwrap();
        let open = fs::File::open(folder.join("a/file")).unwrap();
        let mut child = std::process::Command::new("sleep");
        let mut child = child.arg("60").current_dir(&folder).spawn().unwrap();
        let other = tempfile::tempdir().unwrap();
        let found = find(&[folder.join("a"), folder.clone(), other.path().canonicalize().unwrap()]);
        let of = |pid: u32, mountpoint: &Path| {
            let mut uses = found.users.iter();
            uses.find(|it| it.pid == pid && it.mountpoint == mountpoint).map(|it| it.files.clone())
        };
        let files = |path: &str| Some(BTreeSet::from([PathBuf::from(path)]));
        assert_eq!(of(std::process::id(), &folder.join("a")), files("file"));
        assert_eq!(of(std::process::id(), &folder), files("a/file"));
        assert_eq!(of(child.id(), &folder), files(""));
        assert_eq!(of(child.id(), &folder.join("a")), None);
        assert!(found.users.iter().all(|it| it.mountpoint != other.path()));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(open);
    }

    #[test]
    fn paths_of_maps_may_have_spaces() {
        let line = b"7f00-7f01 r--s 00000000 00:2d 42     /models/a b.bin";
        assert_eq!(mapped(line), Some("/models/a b.bin".into()));
        assert_eq!(mapped(b"7f00-7f01 rw-p 00000000 00:00 0"), None);
        assert_eq!(mapped(b"7f00-7f01 rw-p 00000000 00:00 0   [stack]"), None);
        assert_eq!(mapped(b""), None);
    }
}
