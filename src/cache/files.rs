//! The few ways in which the cache touches the file system.
//!
//! What must be whole or absent appears by rename: a temporary file in the same folder is written
//! and synced, renamed over the target, and the folder is synced. A crash leaves the old file or
//! the new one, and at most a `*.temp` that the next opening of the cache removes.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::CacheError;

/// The ending of files that are not yet what they will be.
pub(super) const TEMPORARY: &str = "temp";

/// Whether a file must survive a power cut from the moment it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Synced, and its name too.
    Synced,
    /// Atomic for a process that dies; a power cut may lose it.
    Atomic,
}

/// Creates a folder and those above it, readable by its owner alone. Folders that are there
/// already keep their permissions: they may be the user's.
pub(super) fn create_folder(path: &Path) -> Result<(), CacheError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(CacheError::io("create", path))
}

/// Opens a file for reading and writing; never follows a symbolic link.
pub(super) fn open(path: &Path, create: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

/// Puts `bytes` at `path`: afterwards the file is the old one or all of the new one.
pub(super) fn write(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), CacheError> {
    write_with(path, |file| file.write_all(bytes), durability)
}

/// The same for what `write` puts into an empty file.
pub(super) fn write_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
    durability: Durability,
) -> Result<(), CacheError> {
    let temporary = temporary_name(path);
    let written = write_and_rename(path, &temporary, write, durability);
    if written.is_err() {
        // Best effort: the next opening of the cache removes what stays.
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(CacheError::io("write", path))
}

fn write_and_rename(
    path: &Path,
    temporary: &Path,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
    durability: Durability,
) -> std::io::Result<()> {
    let mut file = open(temporary, true)?;
    file.set_len(0)?;
    write(&mut file)?;
    if durability == Durability::Synced {
        file.sync_all()?;
    }
    std::fs::rename(temporary, path)?;
    match path.parent() {
        Some(folder) if durability == Durability::Synced => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

/// A name beside `path` that no other thread of the process uses.
fn temporary_name(path: &Path) -> PathBuf {
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{thread}.{TEMPORARY}"));
    path.with_file_name(name)
}

/// Reads a file of at most `limit_bytes`; `None` where there is none, or it is larger.
pub(super) fn read(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, CacheError> {
    let file = match open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CacheError::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(CacheError::io("read", path))?;
    Ok((bytes.len() as u64 <= limit_bytes).then_some(bytes))
}

/// Removes a file; that it is not there is fine.
pub(super) fn remove_file(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(CacheError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Removes a folder and all in it; that it is not there is fine.
pub(super) fn remove_folder(path: &Path) -> Result<(), CacheError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(CacheError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The names in a folder, sorted; none where the folder is not there.
pub(super) fn names(path: &Path) -> Result<Vec<String>, CacheError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(CacheError::io("list", path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CacheError::io("list", path))?;
        // kitfs gives no other names; those of others are none of its business.
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Writes pieces one after the other, from `offset` on.
pub(super) fn write_all_at(
    file: &File,
    mut pieces: &mut [IoSlice<'_>],
    mut offset: u64,
) -> std::io::Result<()> {
    while !pieces.is_empty() {
        // The kernel takes as many pieces at once (IOV_MAX).
        let some = &pieces[..pieces.len().min(1024)];
        match rustix::io::pwritev(file, some, offset) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives `range_bytes` bytes from `offset` back to the file system; they read as zeros from then on.
pub(super) fn punch_hole(file: &File, offset: u64, range_bytes: u64) -> std::io::Result<()> {
    use rustix::fs::FallocateFlags;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, range_bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_private_whole_and_leaves_nothing_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("meta");
        write(&path, b"first, and longer", Durability::Synced).unwrap();
        write(&path, b"second", Durability::Atomic).unwrap();
        assert_eq!(read(&path, 6).unwrap().unwrap(), b"second");
        assert_eq!(read(&path, 5).unwrap(), None, "larger than the limit");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()).unwrap(), ["meta"]);
    }

    #[test]
    fn a_punched_range_reads_as_zeros_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stream");
        std::fs::write(&path, [7; 30_000]).unwrap();
        punch_hole(&open(&path, false).unwrap(), 5_000, 20_000).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 30_000);
        assert!(bytes[5_000..25_000].iter().all(|&byte| byte == 0));
        assert!(bytes[..5_000].iter().chain(&bytes[25_000..]).all(|&byte| byte == 7));
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::fs::write(folder.path().join("target"), b"x").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        assert!(read(&link, 10).is_err());
    }
}
