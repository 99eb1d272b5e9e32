//! The cache's files on disk: the only module of the room that calls the file system.
//!
//! The cache folder is held open ([`Root`]), and every file is opened relative to it. So the cache stays in its own
//! folder when somebody moves or removes the folder, and never writes into another folder at the same path. In a
//! removed folder, open files can still be read, and no file can be made.
//!
//! ```text
//! Root (descriptor of the folder) --> Place (a path below it) --open--> DiskFile (descriptor, path)
//!   '--> OpenFiles: descriptors that are kept open
//! ```
//!
//! A file that must be whole or absent appears by rename: [`Place::write`] writes a temporary file in
//! the same folder, syncs it, renames it over the target, and syncs the folder. A crash leaves the old
//! file or the new one, and at most a `*.temp` that the next opening of the cache removes.

mod file;
#[cfg(test)]
pub(super) mod journal;
mod open_files;
mod place;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, StatVfs};
use rustix::io::Errno;

use super::CacheError;

pub(super) use file::{DiskFile, FileStamp};
pub(super) use open_files::{FileKey, LayerFile, OpenFiles};
pub(super) use place::{Durability, Place, TEMPORARY};

/// A cache folder, held open.
pub(super) struct Root {
    folder: OwnedFd,
    /// The folder's path when it was opened; absolute.
    path: PathBuf,
    /// Descriptors that are kept open.
    pub(super) files: OpenFiles,
    #[cfg(test)]
    pub(super) journal: journal::Journal,
}

impl Root {
    /// Opens a cache folder, which is made where it is missing. At most `open_files` of its files are
    /// kept open.
    pub(super) fn open(folder: &Path, open_files: usize) -> Result<Arc<Self>, CacheError> {
        let path = std::path::absolute(folder).map_err(CacheError::io("find", folder))?;
        place::create_folders(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|error| CacheError::io("open", &path)(error.into()))?;
        Ok(Arc::new(Self {
            folder,
            path,
            files: OpenFiles::new(open_files),
            #[cfg(test)]
            journal: journal::Journal::default(),
        }))
    }

    /// The folder's path when it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub(super) fn place(self: &Arc<Self>, name: impl AsRef<Path>) -> Place {
        Place::new(self.clone(), name.as_ref().to_owned())
    }

    /// The bytes that the file system still gives to this user.
    pub(super) fn available_bytes(&self) -> Result<u64, CacheError> {
        let StatVfs { f_bavail, f_frsize, .. } = rustix::fs::fstatvfs(&self.folder)
            .map_err(|e| CacheError::io("look at the free space of", &self.path)(e.into()))?;
        Ok(f_bavail.saturating_mul(f_frsize))
    }

    /// Runs `open`. Where the process or the machine has no descriptor left, closes descriptors that
    /// are only kept for later, and runs `open` again.
    fn with_descriptors<T>(&self, open: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) if self.files.close_half() > 0 => open(),
            result => result,
        }
    }
}

#[cfg(test)]
impl Root {
    /// Opens a cache folder whose changes are added to a journal.
    pub(super) fn open_with(folder: &Path, journal: journal::Journal) -> Arc<Self> {
        let mut root = Self::open(folder, 16).unwrap();
        Arc::get_mut(&mut root).unwrap().journal = journal;
        root
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
