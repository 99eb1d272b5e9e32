//! Checks and makes mountpoints, before anything is downloaded.

use std::fs::{DirBuilder, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use parking_lot::Mutex;

use super::device::{self, FUSERMOUNT};
use super::others::{Answer, daemon_of, unmount_other};
use super::place::MountPlace;
use super::{MountError, MountOptions, shadowing};

/// The settings of fusermount3 for ordinary users.
const FUSE_CONF: &str = "/etc/fuse.conf";
/// The mount table that fusermount3 reads when it unmounts.
const MTAB: &str = "/etc/mtab";
/// The mode of a new mountpoint, less the umask.
const MODE: u32 = 0o777;

/// A directory to mount on. Dropping it removes the directory if this process has made it.
#[derive(Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// The device and inode of the directory, while this process still has to remove it.
    made: Mutex<Option<(u64, u64)>>,
    /// Whether a mount whose daemon is gone was removed from there.
    was_dead: bool,
}

/// The state of a path that may become a mountpoint.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Usable,
    Missing,
    /// A mount of kitfs whose daemon is gone.
    Dead,
}

impl Mountpoint {
    /// Checks that this user can mount there, and makes the directory if only its last component is
    /// missing. Removes a mount whose daemon is gone: a service that was killed must be able to start
    /// again.
    ///
    /// # Errors
    /// When the mountpoint is not usable, or the user may not mount.
    pub fn prepare(options: &MountOptions) -> Result<Self, MountError> {
        let this = Self::find_or_make(&options.mountpoint, options.nonempty)
            .map_err(MountError::Mountpoint)?;
        shadowing::check(&this.path, &options.own_paths).map_err(MountError::Mountpoint)?;
        device::open_device()?;
        if !rustix::process::geteuid().is_root() {
            check_fusermount(options.allow_other)?;
        }
        Ok(this)
    }

    /// Checks that a mount may take the place of the mount at a canonical path.
    ///
    /// # Errors
    /// When it would hide files that kitfs needs, or the user may not mount.
    pub fn check_replacing(path: &Path, options: &MountOptions) -> Result<(), MountError> {
        // A mount that does not answer would block the check, and holds nothing that kitfs could use.
        if matches!(daemon_of(path), Some(Answer::Daemon(_))) {
            shadowing::check(path, &options.own_paths).map_err(MountError::Mountpoint)?;
        }
        device::open_device()?;
        match rustix::process::geteuid().is_root() {
            true => Ok(()),
            false => check_fusermount(options.allow_other),
        }
    }

    /// The mountpoint of a mount that another process has made.
    pub(super) fn taken_over(path: PathBuf, made: Option<(u64, u64)>) -> Self {
        Self { path, made: Mutex::new(made), was_dead: false }
    }

    /// Knows that kitfs has made the directory for an earlier mount at `place`, and should remove it.
    pub fn was_made_by(&mut self, place: &MountPlace) {
        let made = self.made.get_mut();
        *made = made.or(place.made);
    }

    /// The device and inode of the directory, if kitfs has made it and should remove it.
    pub(super) fn made(&self) -> Option<(u64, u64)> {
        *self.made.lock()
    }

    /// Leaves the removal of the directory to another mount there.
    pub(super) fn leave(&self) {
        self.made.lock().take();
    }

    /// Checks the directory again: it may have changed while the kit was loaded.
    pub(super) fn check_again(&self, options: &MountOptions) -> Result<(), MountError> {
        let place = self.path.display();
        match look_at(&self.path, options.nonempty).map_err(MountError::Mountpoint)? {
            Place::Usable => Ok(()),
            Place::Missing => Err(MountError::Mountpoint(format!(
                "the mountpoint {place} was removed while the kit was opened"
            ))),
            Place::Dead => Err(MountError::Mountpoint(format!(
                "another kit was mounted on {place} while the kit was opened, and its daemon is gone: \
                 mount again"
            ))),
        }
    }

    /// Warnings for the user.
    pub fn warnings(&self) -> Vec<String> {
        let place = self.path.display();
        let removed = format!("removed the mount on {place}, whose daemon was gone");
        self.was_dead.then_some(removed).into_iter().collect()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn find_or_make(path: &Path, nonempty: bool) -> Result<Self, String> {
        let mut was_dead = false;
        loop {
            match look_at(path, nonempty)? {
                Place::Usable => {
                    return Ok(Self { path: path.to_owned(), made: Mutex::default(), was_dead });
                }
                Place::Missing => return Self::make(path),
                // Lazily: programs may have files open that the kernel reads without the daemon.
                Place::Dead => unmount_other(path, true).map_err(|error| {
                    let place = path.display();
                    format!("the daemon of the kit that is mounted on {place} is gone: {error}")
                })?,
            }
            was_dead = true;
        }
    }

    fn make(path: &Path) -> Result<Self, String> {
        let place = path.display();
        match DirBuilder::new().mode(MODE).create(path).and_then(|()| std::fs::metadata(path)) {
            Ok(made) => {
                let made = Mutex::new(Some((made.dev(), made.ino())));
                Ok(Self { path: path.to_owned(), made, was_dead: false })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(format!(
                "the mountpoint {place} does not exist, nor does its parent: make both with `mkdir -p \
                 {place}`"
            )),
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => Err(format!(
                "the mountpoint {place} cannot be made on a read-only file system: choose a directory that \
                 exists, or another place"
            )),
            Err(error) => Err(format!("the mountpoint {place} cannot be made: {error}")),
        }
    }

    /// Removes the directory if this process has made it, it is still the same one, and it is empty.
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

/// Warnings for a user who mounts.
pub fn mount_warnings() -> Vec<String> {
    if rustix::process::geteuid().is_root() || Path::new(MTAB).symlink_metadata().is_ok() {
        return Vec::new();
    }
    vec![format!(
        "{FUSERMOUNT} needs {MTAB} to unmount, and that file is missing: as root, make it with \
         `ln -s /proc/self/mounts {MTAB}`"
    )]
}

/// Looks at a path, and touches no mount that may hang.
fn look_at(path: &Path, nonempty: bool) -> Result<Place, String> {
    let place = path.display();
    if !path.is_absolute() {
        return Err(format!("the mountpoint {place} is not an absolute path"));
    }
    // This must come first: any other look at a mount whose daemon hangs would hang.
    match canonical(path).ok().and_then(|path| daemon_of(&path)) {
        None => {}
        Some(Answer::Dead) => return Ok(Place::Dead),
        Some(Answer::Daemon(_) | Answer::Silent) => {
            return Err(format!(
                "a kit is mounted on {place} already: end that mount with `kitfs umount {place}`, or \
                 choose another directory"
            ));
        }
    }
    match std::fs::metadata(path) {
        Ok(metadata) => check_folder(path, &metadata, nonempty).map(|()| Place::Usable),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Place::Missing),
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
            "the mountpoint {place} is not empty: choose an empty directory, or hide its content with \
             --nonempty"
        ));
    }
    Ok(())
}

/// The canonical path of a mountpoint. Looks up its parent only, because a mount there may not answer.
///
/// # Errors
/// When the parent cannot be looked up.
pub fn canonical(mountpoint: &Path) -> io::Result<PathBuf> {
    match (mountpoint.parent(), mountpoint.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => mountpoint.canonicalize(),
    }
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
            "only root can permit --allow-other: as root, add the line `user_allow_other` to {FUSE_CONF}, \
             or mount as root"
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
