//! One process owns a cache folder: an exclusive flock on `lock`, with the owner's pid inside.
//!
//! The kernel lets go of the lock when the process dies, however it dies, so no stale lock exists.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::CacheError;
use super::disk::Root;

/// The number of attempts before a lock counts as held.
///
/// [`is_held`] takes the lock for some microseconds, because flock cannot test a lock. Ten times 10 ms outlast any
/// number of such tests.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(10);

/// The lock on a folder, let go of when dropped.
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock of a cache folder.
    pub(super) fn take(root: &Arc<Root>) -> Result<Self, CacheError> {
        let opened = root.place("lock").open_or_create()?;
        let path = opened.path().to_owned();
        let mut file = opened.into_std();
        for attempt in 1.. {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if attempt < ATTEMPTS => std::thread::sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    let folder = root.path().to_owned();
                    return Err(CacheError::Held { folder, pid: owner(&file) });
                }
                Err(error) => return Err(CacheError::io("lock", &path)(error.into())),
            }
        }
        match write_owner(&mut file).map_err(CacheError::io("write", &path)) {
            // Only a name for messages.
            Err(error) if !error.is_out_of_room() => Err(error),
            _ => Ok(Self { _file: file }),
        }
    }
}

fn write_owner(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// The process that wrote itself into the lock file; 0 where nothing sensible is in it.
fn owner(file: &File) -> u32 {
    let mut text = String::new();
    match file.take(16).read_to_string(&mut text) {
        Ok(_) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}

/// Whether some process holds the lock of `folder`.
pub(super) fn is_held(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join("lock")) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_folder_names_its_owner_and_is_free_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path(), 1).unwrap();
        assert!(!is_held(folder.path()));
        let lock = FolderLock::take(&root).unwrap();
        assert!(is_held(folder.path()));
        match FolderLock::take(&root) {
            Err(CacheError::Held { pid, .. }) => assert_eq!(pid, std::process::id()),
            _ => panic!("two owners"),
        }
        drop(lock);
        assert!(!is_held(folder.path()));
        FolderLock::take(&root).unwrap();
    }

    #[test]
    fn nonsense_in_the_lock_file_is_pid_zero() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        for text in ["", "no number", "99999999999999999999999"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(owner(&File::open(&path).unwrap()), 0, "{text}");
        }
    }
}
