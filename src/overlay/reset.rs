//! Takes changes back.
//!
//! overlayfs forbids changes of `upper/` below a mount, so a view is reset while it is not mounted.

use std::fs;
use std::io;
use std::path::{Component, Path};

use super::changes::Upper;
use super::{Folder, OverlayError, scan};

impl Folder {
    /// Opens and locks the UPPER folder of a view that is not mounted.
    ///
    /// # Errors
    /// When it is mounted, in use, or no UPPER folder.
    pub fn unmounted(path: &Path) -> Result<Self, OverlayError> {
        let base = super::base_of(path)?;
        Self::prepare(path, &base)
    }

    /// Takes all changes back, and removes the folder if it holds nothing else.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn reset(self) -> Result<(), OverlayError> {
        let io = |error: io::Error| OverlayError::io(self.path(), &error);
        // The record goes last: after a kill in between, the command can be given again.
        for folder in [self.upper(), self.work(), self.lower()] {
            gone(fs::remove_dir_all(folder)).map_err(io)?;
        }
        for file in ["mounted.json", "overlay.json"] {
            gone(fs::remove_file(self.path().join(file))).map_err(io)?;
        }
        // The folder stays if it has other files.
        let _ = fs::remove_dir(self.path());
        Ok(())
    }

    /// Takes the changes at a path of the view back, and those below it. Returns whether there were any.
    ///
    /// # Errors
    /// When the path leaves the view, or lies in a folder that does not show the base's.
    pub fn reset_path(&self, path: &Path) -> Result<bool, OverlayError> {
        let refused =
            |why: &str| OverlayError::Refused(format!("{} cannot be reset: {why}", path.display()));
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || path.as_os_str().is_empty() {
            return Err(refused("name a path in the view, relative to its root"));
        }
        let io = |error: io::Error| OverlayError::io(self.path(), &error);
        let marks = self.record().marks.ok_or_else(|| refused("the view was never mounted"))?;
        let entries = scan::scan(&self.upper(), marks).map_err(io)?;
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match entries.get(parent) {
                None | Some(Upper::Directory { is_opaque: false, redirect: None, .. }) => {}
                Some(_) => {
                    let words =
                        format!("{} is new, renamed or removed; reset that", parent.display());
                    return Err(refused(&words));
                }
            }
        }
        let mut has_changes = false;
        for place in scan::places(&self.upper(), path, marks) {
            let removed = match fs::symlink_metadata(&place) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&place),
                Ok(_) => fs::remove_file(&place),
                Err(error) => Err(error),
            };
            has_changes |= removed.is_ok();
            gone(removed).map_err(io)?;
        }
        Ok(has_changes)
    }
}

/// Something that is gone already need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        removed => removed,
    }
}
