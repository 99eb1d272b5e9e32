//! Files and folders below the cache folder, by name.

use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::super::CacheError;
use super::{DiskFile, FileStamp, Root};

/// The extension of temporary files, which are renamed once they are complete.
pub(in crate::cache) const TEMPORARY: &str = "temp";

/// Whether a file must survive a power cut from the moment it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Durability {
    /// The file and its name are synced.
    Synced,
    /// If the process dies, the file is the old or the new one. A power cut may lose both.
    Atomic,
}

/// A file or folder below the cache folder, whether it is there or not.
#[derive(Clone)]
pub(in crate::cache) struct Place {
    root: Arc<Root>,
    /// The path from the cache folder.
    below: PathBuf,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}

impl Place {
    pub(super) fn new(root: Arc<Root>, below: PathBuf) -> Self {
        Self { root, below }
    }

    pub(in crate::cache) fn join(&self, name: impl AsRef<Path>) -> Self {
        Self { root: self.root.clone(), below: self.below.join(name) }
    }

    /// The same folder, another name.
    pub(in crate::cache) fn with_name(&self, name: impl AsRef<Path>) -> Self {
        Self { root: self.root.clone(), below: self.below.with_file_name(name.as_ref()) }
    }

    /// The path, for messages.
    pub(in crate::cache) fn path(&self) -> PathBuf {
        self.root.path().join(&self.below)
    }

    fn error(&self, action: &'static str) -> impl FnOnce(Errno) -> CacheError {
        let path = self.path();
        move |error| CacheError::io(action, &path)(error.into())
    }

    /// Opens a file for reading and writing. Never follows a symbolic link, and never waits for the
    /// other end of a FIFO.
    pub(in crate::cache) fn open(&self) -> Result<DiskFile, CacheError> {
        self.open_with(OFlags::RDWR)
    }

    /// Opens a file, or makes it, readable by its owner alone.
    pub(in crate::cache) fn open_or_create(&self) -> Result<DiskFile, CacheError> {
        self.open_with(OFlags::RDWR | OFlags::CREATE)
    }

    /// Opens a file for reading only.
    pub(in crate::cache) fn open_to_read(&self) -> Result<DiskFile, CacheError> {
        self.open_with(OFlags::RDONLY)
    }

    fn open_with(&self, flags: OFlags) -> Result<DiskFile, CacheError> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*self.root, &self.below, flags, private(0o600));
        let opened = self.root.with_descriptors(open).map_err(self.error("open"))?;
        let file = DiskFile::new(File::from(opened), self.path());
        #[cfg(test)]
        let file = self.root.journal.opened(file, &self.below, flags);
        Ok(file)
    }

    /// Opens a file that may be missing.
    pub(in crate::cache) fn open_if_there(&self) -> Result<Option<DiskFile>, CacheError> {
        match self.open() {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a file of at most `limit_bytes`; `None` where there is none, or it is larger.
    pub(in crate::cache) fn read(&self, limit_bytes: u64) -> Result<Option<Vec<u8>>, CacheError> {
        let Some(file) = self.open_if_there()? else { return Ok(None) };
        // Room for all bytes at once: growing the buffer would take as long as reading a large table of contents.
        let mut bytes = Vec::with_capacity(file.length()?.min(limit_bytes) as usize + 1);
        let mut limited = file.as_std().take(limit_bytes + 1);
        limited.read_to_end(&mut bytes).map_err(CacheError::io("read", &self.path()))?;
        Ok((bytes.len() as u64 <= limit_bytes).then_some(bytes))
    }

    /// Replaces the file by `bytes`. After a failure the file is the old one or all of the new one.
    pub(in crate::cache) fn write(
        &self,
        bytes: &[u8],
        durability: Durability,
    ) -> Result<(), CacheError> {
        self.write_with(|file| file.write_all_at(bytes, 0), durability)
    }

    /// Replaces the file by one that `write` fills, as [`Self::write`] does.
    pub(in crate::cache) fn write_with(
        &self,
        write: impl FnOnce(&DiskFile) -> Result<(), CacheError>,
        durability: Durability,
    ) -> Result<(), CacheError> {
        let temporary = self.temporary();
        let written = self.write_and_rename(&temporary, write, durability);
        if written.is_err() {
            // Best effort: the next opening of the cache removes what stays.
            let _ = temporary.remove_file();
        }
        written
    }

    fn write_and_rename(
        &self,
        temporary: &Self,
        write: impl FnOnce(&DiskFile) -> Result<(), CacheError>,
        durability: Durability,
    ) -> Result<(), CacheError> {
        let file = temporary.open_or_create()?;
        file.set_len(0)?;
        write(&file)?;
        if durability == Durability::Synced {
            file.sync()?;
        }
        temporary.rename(self)?;
        match self.folder() {
            Some(folder) if durability == Durability::Synced => folder.sync_folder(),
            _ => Ok(()),
        }
    }

    /// A name beside it that no other thread of the process uses.
    fn temporary(&self) -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let mut name = self.below.file_name().map(OsString::from).unwrap_or_default();
        name.push(format!(".{thread}.{TEMPORARY}"));
        self.with_name(name)
    }

    fn folder(&self) -> Option<Self> {
        self.below.parent().map(|below| Self { root: self.root.clone(), below: below.to_owned() })
    }

    /// Renames the file or folder within the cache folder. A file that has the new name is replaced.
    pub(in crate::cache) fn rename(&self, to: &Self) -> Result<(), CacheError> {
        rustix::fs::renameat(&*self.root, &self.below, &*self.root, &to.below)
            .map_err(to.error("write"))?;
        #[cfg(test)]
        self.root.journal.renamed(&self.below, &to.below);
        Ok(())
    }

    /// Returns when the names in a folder are on the disk.
    pub(in crate::cache) fn sync_folder(&self) -> Result<(), CacheError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // An empty path is the cache folder itself.
        let below = if self.below.as_os_str().is_empty() { Path::new(".") } else { &self.below };
        let open = || rustix::fs::openat(&*self.root, below, flags, Mode::empty());
        let folder = self.root.with_descriptors(open).map_err(self.error("open"))?;
        rustix::fs::fsync(folder).map_err(self.error("sync"))?;
        #[cfg(test)]
        self.root.journal.synced_folder(&self.below);
        Ok(())
    }

    /// Makes a folder and those above it, readable by their owner alone.
    pub(in crate::cache) fn create_folder(&self) -> Result<(), CacheError> {
        let create = || rustix::fs::mkdirat(&*self.root, &self.below, private(0o700));
        let created = match (create(), self.folder()) {
            (Err(Errno::NOENT), Some(above)) if !above.below.as_os_str().is_empty() => {
                above.create_folder()?;
                create()
            }
            (created, _) => created,
        };
        match created {
            Ok(()) => {
                #[cfg(test)]
                self.root.journal.created_folder(&self.below);
                Ok(())
            }
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(self.error("create")(error)),
        }
    }

    /// Removes a file. A missing file is no error.
    pub(in crate::cache) fn remove_file(&self) -> Result<(), CacheError> {
        self.unlink(AtFlags::empty())
    }

    fn unlink(&self, flags: AtFlags) -> Result<(), CacheError> {
        match rustix::fs::unlinkat(&*self.root, &self.below, flags) {
            Ok(()) => {
                #[cfg(test)]
                self.root.journal.removed(&self.below);
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error("remove")(error)),
        }
    }

    /// Removes a folder and its content. A missing folder is no error.
    pub(in crate::cache) fn remove_folder(&self) -> Result<(), CacheError> {
        for (name, is_folder) in self.entries()? {
            let entry = self.join(name);
            if is_folder { entry.remove_folder()? } else { entry.remove_file()? }
        }
        self.unlink(AtFlags::REMOVEDIR)
    }

    /// Removes a file, or a folder with its content.
    pub(in crate::cache) fn remove(&self) -> Result<(), CacheError> {
        if self.is_folder() { self.remove_folder() } else { self.remove_file() }
    }

    /// The names in a folder, sorted; none where the folder is not there. Names that are not UTF-8 are left out:
    /// kitfs gives ASCII names only.
    pub(in crate::cache) fn names(&self) -> Result<Vec<String>, CacheError> {
        let names = self.entries()?.into_iter();
        let mut names: Vec<String> =
            names.filter_map(|(name, _)| name.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// The names in a folder, and whether each is a folder.
    fn entries(&self) -> Result<Vec<(OsString, bool)>, CacheError> {
        use std::os::unix::ffi::OsStringExt;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&*self.root, &self.below, flags, Mode::empty());
        let folder = match self.root.with_descriptors(open) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(self.error("list")(error)),
        };
        let mut entries = Vec::new();
        for entry in Dir::new(folder).map_err(self.error("list"))? {
            let entry = entry.map_err(self.error("list"))?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name == "." || name == ".." {
                continue;
            }
            let is_folder = match entry.file_type() {
                FileType::Unknown => self.join(&name).is_folder(),
                kind => kind == FileType::Directory,
            };
            entries.push((name, is_folder));
        }
        Ok(entries)
    }

    pub(in crate::cache) fn is_folder(&self) -> bool {
        self.stat().is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir())
    }

    fn stat(&self) -> Option<rustix::fs::Stat> {
        rustix::fs::statat(&*self.root, &self.below, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    pub(in crate::cache) fn exists(&self) -> bool {
        self.stat().is_some()
    }

    /// The length of a file; `None` where it is not there.
    pub(in crate::cache) fn length(&self) -> Option<u64> {
        self.stat().map(|stat| stat.st_size.cast_unsigned())
    }

    /// The status of a file that changes with each write; `None` where it is not there.
    pub(in crate::cache) fn stamp(&self) -> Option<FileStamp> {
        self.stat().as_ref().map(FileStamp::of)
    }

    /// The bytes of the disk that a file takes; 0 where it is not there.
    pub(in crate::cache) fn bytes_on_disk(&self) -> u64 {
        // st_blocks counts in 512 bytes, whatever the file system's own blocks are (stat(2)).
        self.stat().map_or(0, |stat| stat.st_blocks.cast_unsigned() * 512)
    }

    /// The time of a file's last change; 1970 where it is not there.
    pub(in crate::cache) fn modified(&self) -> SystemTime {
        let seconds = self.stat().map_or(0, |stat| stat.st_mtime.max(0).cast_unsigned());
        UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    /// Gives a file another time of its last change. The time is a hint for people and for the next process, so a
    /// failure is ignored.
    pub(in crate::cache) fn set_modified(&self, time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(since.subsec_nanos()) };
        let times = Timestamps { last_access: time, last_modification: time };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let _ = rustix::fs::utimensat(&*self.root, &self.below, &times, flags);
    }
}

/// Permission bits for the owner alone.
fn private(mode: u32) -> Mode {
    Mode::from_raw_mode(mode)
}

/// Makes the cache folder itself, and those above it. Folders that are there already keep their
/// permissions: they may be the user's.
pub(super) fn create_folders(path: &Path) -> Result<(), CacheError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    match created {
        // A link to a folder elsewhere is the user's choice.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created.map_err(CacheError::io("create", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(folder: &Path) -> Arc<Root> {
        Root::open(folder, 16).unwrap()
    }

    #[test]
    fn a_written_file_is_private_whole_and_leaves_nothing_beside_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let place = root(folder.path()).place("meta");
        place.write(b"first, and longer", Durability::Synced).unwrap();
        place.write(b"second", Durability::Atomic).unwrap();
        assert_eq!(place.read(6).unwrap().unwrap(), b"second");
        assert_eq!(place.read(5).unwrap(), None, "larger than the limit");
        assert_eq!(place.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(root(folder.path()).place("").names().unwrap_or_default(), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::fs::write(folder.path().join("target"), b"x").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        let place = root(folder.path()).place("link");
        assert!(place.read(10).is_err());
        assert!(place.names().is_err());
        place.remove_folder().unwrap_err();
        place.remove_file().unwrap();
        assert!(folder.path().join("target").exists());
    }

    #[test]
    fn folders_are_made_listed_and_removed_with_all_that_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let place = root(folder.path()).place("a/b/c");
        assert_eq!(place.names().unwrap(), Vec::<String>::new());
        place.create_folder().unwrap();
        place.create_folder().unwrap();
        place.join("x").write(b"1", Durability::Atomic).unwrap();
        place.join("d").create_folder().unwrap();
        place.join("d/y").write(b"2", Durability::Atomic).unwrap();
        assert_eq!(place.names().unwrap(), ["d", "x"]);
        place.remove_folder().unwrap();
        place.remove_folder().unwrap();
        assert!(!place.exists() && place.folder().unwrap().exists());
    }

    /// The folder is moved, and another one takes its place; then it is removed.
    #[test]
    fn nothing_is_written_into_a_folder_that_took_the_place_of_the_cache() {
        let above = tempfile::tempdir().unwrap();
        let (path, moved) = (above.path().join("cache"), above.path().join("moved"));
        let root = root(&path);
        let place = root.place("file");
        let open = place.open_or_create().unwrap();
        std::fs::rename(&path, &moved).unwrap();
        std::fs::create_dir(&path).unwrap();
        place.write(b"ours", Durability::Synced).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
        assert_eq!(std::fs::read(moved.join("file")).unwrap(), b"ours");
        std::fs::remove_dir_all(&moved).unwrap();
        assert!(place.write(b"lost", Durability::Synced).is_err());
        open.write_all_at(b"x", 0).unwrap();
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }
}
