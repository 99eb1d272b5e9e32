//! Refuses mountpoints that would hide files which kitfs itself needs while it serves the mount.
//!
//! With a mount over the cache folder, each access to the cache would go through the mount, and the daemon
//! would wait for itself. A mount inside the cache folder would look like a part of the cache.
//!
//! The check compares devices and inodes of folders, so it sees through symbolic links and bind mounts.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path that kitfs needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPath {
    /// Its name in messages, such as `the cache folder`.
    pub what: String,
    /// The path. It need not exist.
    pub path: PathBuf,
    /// Whether mounts inside it are refused, too.
    pub is_closed: bool,
}

/// The device and inode of a folder.
type Identity = (u64, u64);

/// Checks that a mount at `mountpoint` would hide nothing that kitfs needs.
///
/// # Errors
/// When the mount would hide such a path. The message names it.
pub(super) fn check(mountpoint: &Path, own_paths: &[OwnPath]) -> Result<(), String> {
    let Some(here) = identity(mountpoint) else { return Ok(()) };
    let above_here = folders(mountpoint);
    for OwnPath { what, path, is_closed } in own_paths {
        let (place, own) = (mountpoint.display(), path.display());
        let own_folders = folders(path);
        if own_folders.contains(&here) {
            return Err(format!(
                "cannot mount on {place}: it holds {what} ({own}), which the mount would hide from \
                 kitfs; choose another mountpoint"
            ));
        }
        let own_folder = identity(path);
        if *is_closed && own_folder.is_some_and(|own| above_here.contains(&own)) {
            return Err(format!(
                "cannot mount on {place}: it lies in {what} ({own}); choose another mountpoint"
            ));
        }
    }
    Ok(())
}

fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The folders of a path, itself included. For a path that does not exist, the folders of the part
/// that does.
fn folders(path: &Path) -> Vec<Identity> {
    let existing = path.ancestors().find_map(|path| path.canonicalize().ok());
    let existing = existing.unwrap_or_default();
    existing.ancestors().filter_map(identity).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn cache(path: PathBuf) -> [OwnPath; 1] {
        [OwnPath { what: "the cache folder".to_owned(), path, is_closed: true }]
    }

    #[test]
    fn what_holds_the_cache_or_lies_in_it_is_no_mountpoint() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("home/.cache/kitfs/layers")).unwrap();
        fs::create_dir_all(at("home/models")).unwrap();
        symlink(at("home"), at("link")).unwrap();
        let own = cache(at("home/.cache/kitfs"));
        for holder in ["home", "home/.cache", "home/.cache/kitfs", "link", "link/.cache", "."] {
            let words = check(&at(holder), &own).unwrap_err();
            assert!(words.contains("holds the cache folder"), "{holder}: {words}");
        }
        let inside = check(&at("link/.cache/kitfs/layers"), &own).unwrap_err();
        assert!(inside.contains("lies in the cache folder"), "{inside}");
        for fine in ["home/models", "link/models"] {
            check(&at(fine), &own).unwrap();
        }
    }

    #[test]
    fn a_cache_that_is_still_to_be_made_counts_too() {
        let folder = tempfile::tempdir().unwrap();
        let own = cache(folder.path().join("new/cache"));
        check(folder.path(), &own).unwrap_err();
        let other = tempfile::tempdir().unwrap();
        check(other.path(), &own).unwrap();
    }

    #[test]
    fn a_folder_that_is_only_read_from_may_have_mountpoints() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        let own = [OwnPath {
            what: "the kit's folder".to_owned(),
            path: folder.path().to_owned(),
            is_closed: false,
        }];
        check(&folder.path().join("mnt"), &own).unwrap();
        check(folder.path(), &own).unwrap_err();
    }
}
