//! The overlay at a path.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::changes::{self, Base, Change, Kind, View};
use super::folder::{read_record, upper_in};
use super::{Marks, OverlayError, Record, scan};
use crate::process::mount_table::{Entry, MountTable};

/// The subtype of mounts that fuse-overlayfs answers.
pub const SUBTYPE: &str = "kitfs-overlay";
/// The types of overlays in the mount table.
const TYPES: [&str; 2] = ["overlay", "fuse.kitfs-overlay"];
/// The prefix of UPPER in the source of a mount.
const PREFIX: &str = "kitfs-overlay:";

/// The source of an overlay in the mount table.
pub fn source(upper: &Path) -> std::ffi::OsString {
    let mut source = std::ffi::OsString::from(PREFIX);
    source.push(upper);
    source
}

/// The UPPER folder of an overlay of kitfs, by its entry in the mount table.
pub fn upper_of(entry: &Entry) -> Option<&Path> {
    let is_overlay = TYPES.contains(&entry.file_system.as_str());
    let upper = entry.source.strip_prefix(PREFIX).filter(|_| is_overlay)?;
    Some(Path::new(OsStr::new(upper)))
}

/// A writable view: its base and its changes, mounted or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// UPPER, canonical.
    pub folder: PathBuf,
    /// The base: its reference and the digest of its manifest.
    pub base: Record,
    /// The mountpoint, if the view is mounted where this process sees it.
    pub mountpoint: Option<PathBuf>,
}

impl Overlay {
    /// The overlay that is mounted at `path` or above it, or whose UPPER folder `path` is. `None` where there is none.
    ///
    /// # Errors
    /// When the mount table or the record of UPPER cannot be read.
    pub fn at(path: &Path) -> Result<Option<Self>, OverlayError> {
        let io = |error: io::Error| OverlayError::io(path, &error);
        let path = std::path::absolute(path).map_err(io)?;
        let path = path.canonicalize().unwrap_or(path);
        let table = MountTable::read().map_err(io)?;
        // The topmost mount of the nearest mountpoint decides: a kit or a disk may be mounted inside a view.
        let nearest = path.ancestors().find_map(|place| table.at(place).last());
        let folder = match nearest.and_then(upper_of) {
            Some(upper) => upper.to_owned(),
            None if path.join("overlay.json").is_file() && upper_in(&path).is_dir() => path,
            None => return Ok(None),
        };
        Self::of(&folder, &table).map(Some)
    }

    /// The overlay of an UPPER folder.
    pub(super) fn of(folder: &Path, table: &MountTable) -> Result<Self, OverlayError> {
        let base = base_of(folder)?;
        let mut mounts = table.entries().iter().filter(|entry| upper_of(entry) == Some(folder));
        let mountpoint = mounts.next_back().map(|entry| entry.mountpoint.clone());
        Ok(Self { folder: folder.to_owned(), base, mountpoint })
    }

    /// The views of an UPPER folder and of the mounts that this process sees.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    pub fn mounted() -> Result<Vec<Self>, OverlayError> {
        let io = |error: io::Error| OverlayError::io(Path::new("/proc/self/mountinfo"), &error);
        let table = MountTable::read().map_err(io)?;
        let folders = table.entries().iter().filter_map(upper_of);
        Ok(folders.filter_map(|folder| Self::of(folder, &table).ok()).collect())
    }

    /// The entries of the view, and the places of their content. `base` must have every entry of the base.
    ///
    /// # Errors
    /// When UPPER cannot be read.
    pub fn view(&self, base: &Base) -> Result<View, OverlayError> {
        let Some(marks) = self.base.marks else { return self.refused("it was never mounted") };
        if marks == Marks::Trusted && !rustix::process::geteuid().is_root() {
            return self.refused("only root reads its attributes");
        }
        let upper = scan::scan(&self.upper(), marks);
        let upper = upper.map_err(|error| OverlayError::io(&self.upper(), &error))?;
        changes::view(base, &upper).or_else(|error| self.refused(&error.to_string()))
    }

    /// The differences between the base and the view, by path.
    ///
    /// # Errors
    /// When UPPER cannot be read.
    pub fn changes(&self, base: &Base) -> Result<Vec<Change>, OverlayError> {
        Ok(changes::changes(base, &self.view(base)?))
    }

    /// The bytes on disk that the changes take.
    ///
    /// # Errors
    /// When UPPER cannot be read.
    pub fn disk_bytes(&self) -> Result<u64, OverlayError> {
        disk_bytes(&self.folder)
    }

    /// A mode as the view shows it: the owner may write everything.
    pub fn mode_in_view(kind: Kind, mode: u32) -> u32 {
        match kind {
            Kind::Directory => mode | 0o700,
            Kind::File => mode | 0o600,
            Kind::Symlink | Kind::Other => mode,
        }
    }

    fn refused<T>(&self, why: &str) -> Result<T, OverlayError> {
        let place = self.folder.display();
        Err(OverlayError::Io(format!("the changes in {place} cannot be listed: {why}")))
    }

    /// The folder with the files that changed, as overlayfs keeps them.
    pub fn upper(&self) -> PathBuf {
        upper_in(&self.folder)
    }
}

/// The base of the changes in an UPPER folder.
///
/// # Errors
/// When the record cannot be read.
pub fn base_of(folder: &Path) -> Result<Record, OverlayError> {
    let record = read_record(folder).map_err(|error| OverlayError::io(folder, &error))?;
    record.map_err(|no| OverlayError::NoRecord { path: folder.to_owned(), no })
}

/// The bytes on disk that the changes in an UPPER folder take.
///
/// # Errors
/// When UPPER cannot be read.
pub fn disk_bytes(folder: &Path) -> Result<u64, OverlayError> {
    let upper = upper_in(folder);
    scan::disk_bytes(&upper).map_err(|error| OverlayError::io(&upper, &error))
}
