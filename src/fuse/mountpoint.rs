//! What a mountpoint must be: told before anything is fetched.

use std::fs::{DirBuilder, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use parking_lot::Mutex;

use super::device::{self, FUSERMOUNT};
use super::mount_table;
use super::{MountError, MountOptions, hidden};

/// Where fusermount3 looks for what ordinary users may do.
const FUSE_CONF: &str = "/etc/fuse.conf";
/// The table that fusermount3 reads before it unmounts.
const MTAB: &str = "/etc/mtab";
/// The mode of a mountpoint that is made; the umask takes from it.
const MODE: u32 = 0o777;

/// A folder that can be mounted on. One that was made for the mount is removed when it is dropped.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// Device and inode of the folder, if it was made here and is still there.
    made: Mutex<Option<(u64, u64)>>,
}

impl Mountpoint {
    /// Checks that this user can mount a kit there, and makes the folder where only it is missing.
    ///
    /// # Errors
    /// Says what is wrong with the mountpoint, or what the user lacks to mount.
    pub fn prepare(options: &MountOptions) -> Result<Self, MountError> {
        let this = Self::find_or_make(&options.mountpoint, options.nonempty)
            .map_err(MountError::Mountpoint)?;
        hidden::check(&this.path, &options.own_paths).map_err(MountError::Mountpoint)?;
        device::open_device()?;
        if !rustix::process::geteuid().is_root() {
            check_fusermount(options.allow_other)?;
        }
        Ok(this)
    }

    /// Checks what may have changed since it was prepared: loading a kit takes a while.
    pub(super) fn check_again(&self, options: &MountOptions) -> Result<(), MountError> {
        match look_at(&self.path, options.nonempty) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let place = self.path.display();
                Err(MountError::Mountpoint(format!("the mountpoint {place} was removed meanwhile")))
            }
            Err(words) => Err(MountError::Mountpoint(words)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn find_or_make(path: &Path, nonempty: bool) -> Result<Self, String> {
        match look_at(path, nonempty)? {
            true => Ok(Self { path: path.to_owned(), made: Mutex::default() }),
            false => Self::make(path),
        }
    }

    fn make(path: &Path) -> Result<Self, String> {
        let place = path.display();
        match DirBuilder::new().mode(MODE).create(path).and_then(|()| std::fs::metadata(path)) {
            Ok(made) => {
                let made = Mutex::new(Some((made.dev(), made.ino())));
                Ok(Self { path: path.to_owned(), made })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(format!(
                "the mountpoint {place} does not exist, and neither does the folder above it: make them \
                 with `mkdir -p {place}`"
            )),
            Err(error) => Err(format!("the mountpoint {place} cannot be made: {error}")),
        }
    }

    /// Removes the folder, if it was made here, nobody has put another in its place, and it is empty.
    pub(super) fn remove(&self) {
        let Some(made) = self.made.lock().take() else { return };
        let is_it = |there: Metadata| (there.dev(), there.ino()) == made;
        if std::fs::symlink_metadata(&self.path).is_ok_and(is_it)
            && let Err(error) = std::fs::remove_dir(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a mountpoint that was made stays");
        }
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What this user should know before he mounts.
pub fn mount_warnings() -> Vec<String> {
    if rustix::process::geteuid().is_root() || Path::new(MTAB).symlink_metadata().is_ok() {
        return Vec::new();
    }
    vec![format!(
        "there is no {MTAB}, without which {FUSERMOUNT} cannot unmount: as root, make it with \
         `ln -s /proc/self/mounts {MTAB}`"
    )]
}

/// Whether there is a folder that can be mounted on; `false` where nothing is there.
fn look_at(path: &Path, nonempty: bool) -> Result<bool, String> {
    let place = path.display();
    if !path.is_absolute() {
        return Err(format!("the mountpoint {place} is not an absolute path"));
    }
    // Before anything else: a mount whose daemon is stuck would hold whoever looks.
    if is_mounted(path) {
        return Err(format!(
            "a kit is mounted on {place} already, or was when its daemon ended: take it away with \
             `kitfs umount {place}`"
        ));
    }
    match std::fs::metadata(path) {
        Ok(metadata) => check_folder(path, &metadata, nonempty).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("the mountpoint {place} cannot be used: {error}")),
    }
}

fn check_folder(path: &Path, metadata: &Metadata, nonempty: bool) -> Result<(), String> {
    let place = path.display();
    if !metadata.is_dir() {
        return Err(format!("the mountpoint {place} is not a directory"));
    }
    let mut entries = std::fs::read_dir(path)
        .map_err(|error| format!("the mountpoint {place} cannot be listed: {error}"))?;
    if !nonempty && entries.next().is_some() {
        return Err(format!(
            "the mountpoint {place} is not empty: choose an empty folder, or hide what is in it \
             with --nonempty"
        ));
    }
    Ok(())
}

/// Whether the topmost mount at `mountpoint` is a kit. Only its parent is touched: the mount
/// itself may be one that no longer answers.
fn is_mounted(mountpoint: &Path) -> bool {
    let canonical = match (mountpoint.parent(), mountpoint.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|parent| parent.join(name)),
        _ => mountpoint.canonicalize(),
    };
    matches!(canonical.and_then(|path| mount_table::kit_at(&path)), Ok(Some(_)))
}

fn check_fusermount(allow_other: bool) -> Result<(), MountError> {
    Command::new(FUSERMOUNT)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| device::missing(&error))?;
    let conf = std::fs::read_to_string(FUSE_CONF).unwrap_or_default();
    if allow_other && !allows_other(&conf) {
        return Err(MountError::Unavailable(format!(
            "--allow-other is root's to grant: add the line `user_allow_other` to {FUSE_CONF}, or \
             mount as root"
        )));
    }
    Ok(())
}

/// Whether fuse.conf has the line `user_allow_other`.
fn allows_other(conf: &str) -> bool {
    conf.lines().any(|line| line.trim() == "user_allow_other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path, nonempty: bool) -> String {
        Mountpoint::find_or_make(path, nonempty).unwrap_err()
    }

    #[test]
    fn a_missing_mountpoint_is_made_and_removed_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kit");
        let made = Mountpoint::find_or_make(&path, false).unwrap();
        assert!(path.is_dir());
        drop(made);
        assert!(!path.exists());
        let deep = refused(&folder.path().join("no/such"), false);
        assert!(deep.contains("mkdir -p"), "{deep}");
    }

    #[test]
    fn a_mountpoint_that_was_there_or_is_used_otherwise_stays() {
        let folder = tempfile::tempdir().unwrap();
        drop(Mountpoint::find_or_make(folder.path(), false).unwrap());
        assert!(folder.path().is_dir());
        let path = folder.path().join("kit");
        let made = Mountpoint::find_or_make(&path, false).unwrap();
        std::fs::write(path.join("mine"), "").unwrap();
        drop(made);
        assert!(path.join("mine").exists());
        let other = folder.path().join("other");
        let made = Mountpoint::find_or_make(&other, false).unwrap();
        std::fs::rename(&other, folder.path().join("moved")).unwrap();
        std::fs::create_dir(&other).unwrap();
        drop(made);
        assert!(other.is_dir(), "another folder took its place");
    }

    #[test]
    fn a_file_is_no_mountpoint() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(refused(&file, true).contains("not a directory"));
    }

    #[test]
    fn a_folder_that_is_not_empty_needs_the_option() {
        let folder = tempfile::tempdir().unwrap();
        Mountpoint::find_or_make(folder.path(), false).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(refused(folder.path(), false).contains("--nonempty"));
        Mountpoint::find_or_make(folder.path(), true).unwrap();
    }

    #[test]
    fn a_relative_mountpoint_is_refused() {
        assert!(refused(Path::new("kit"), false).contains("absolute"));
    }

    #[test]
    fn only_the_line_itself_allows_other_users() {
        assert!(allows_other("# comment\n  user_allow_other \n"));
        assert!(!allows_other("#user_allow_other\nmount_max = 1000\n"));
    }
}
