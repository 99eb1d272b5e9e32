//! The folder that is packed: lists it, and opens its files without following symbolic links.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::PackError;
use crate::kit::packing::{FolderEntry, FolderEntryKind};
use crate::layer::MemberPath;
use crate::layer::member_path::tree_order;

/// Permission bits, setuid, setgid and sticky.
const MODE_BITS: u32 = 0o7777;

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    root: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder. A symbolic link to it is followed: its user named it.
    pub(super) fn open(path: &Path) -> Result<Self, PackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            PackError::Read { path: path.display().to_string(), error: error.into() }
        })?;
        Ok(Self { root, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file in messages.
    pub(super) fn shown(&self, path: &[u8]) -> String {
        let path = self.path.join(OsStr::from_bytes(path));
        path.display()
            .to_string()
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    }

    /// Reads a small file of the folder itself; `None` where there is none. A link is followed, as by kit.
    pub(super) fn read_small(
        &self,
        name: &str,
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>, PackError> {
        let failed = |error: io::Error| self.failed(name.as_bytes(), error);
        // NONBLOCK: opening a FIFO must not wait for its other end.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.root, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let mut content = Vec::new();
        file.take(limit_bytes + 1).read_to_end(&mut content).map_err(failed)?;
        match content.len() as u64 > limit_bytes {
            true => Err(PackError::Unsupported {
                path: self.shown(name.as_bytes()),
                reason: format!("it has more than {limit_bytes} bytes"),
            }),
            false => Ok(Some(content)),
        }
    }

    /// Lists everything below the folder, in the order of a kit's layers. The content of directories for
    /// which `is_skipped` says so is left out.
    pub(super) fn walk(
        &self,
        is_skipped: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<FolderEntry>, PackError> {
        let mut entries = Vec::new();
        let mut directories: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(directory) = directories.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = self.open_at(&directory, flags)?;
            let listed = Dir::read_from(&opened).map_err(|e| self.failed(&directory, e.into()))?;
            for item in listed {
                let item = item.map_err(|error| self.failed(&directory, error.into()))?;
                let name = item.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let entry = self.entry(opened.as_fd(), &directory, name)?;
                let path = entry.path.as_bytes();
                if entry.kind == FolderEntryKind::Directory && !is_skipped(path) {
                    directories.push(path.to_vec());
                }
                entries.push(entry);
            }
        }
        entries.sort_by(|a, b| tree_order(a.path.as_bytes(), b.path.as_bytes()));
        Ok(entries)
    }

    fn entry(
        &self,
        directory: BorrowedFd<'_>,
        parent: &[u8],
        name: &CStr,
    ) -> Result<FolderEntry, PackError> {
        let path = match parent {
            b"" => name.to_bytes().to_vec(),
            _ => [parent, name.to_bytes()].join(&b'/'),
        };
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| self.failed(&path, error.into()))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => FolderEntryKind::Directory,
            FileType::RegularFile => FolderEntryKind::File(stat.st_size as u64),
            FileType::Symlink => FolderEntryKind::Symlink,
            _ => FolderEntryKind::Special,
        };
        let parsed = MemberPath::parse(&path).map_err(|error| PackError::Unsupported {
            path: self.shown(&path),
            reason: format!("its path has no place in a kit: {error}"),
        })?;
        Ok(FolderEntry { path: parsed, kind, mode: stat.st_mode & MODE_BITS })
    }

    /// Opens a regular file.
    pub(super) fn open_file(&self, path: &MemberPath) -> Result<File, PackError> {
        let opened = self.open_at(path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?;
        Ok(File::from(opened))
    }

    /// Opens a path component by component, so that no component can be a symbolic link.
    fn open_at(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, PackError> {
        let open = |directory: BorrowedFd<'_>, name: &[u8], flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(directory, OsStr::from_bytes(name), flags, Mode::empty())
                .map_err(|error| self.failed(path, error.into()))
        };
        if path.is_empty() {
            return open(self.root.as_fd(), b".", flags);
        }
        let mut components: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        let last = components.pop().expect("a path has a component");
        let mut directory: Option<OwnedFd> = None;
        for component in components {
            let from = directory.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            directory = Some(open(from, component, OFlags::PATH | OFlags::DIRECTORY)?);
        }
        let from = directory.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
        open(from, last, flags)
    }

    /// The failure of a file that was there a moment ago, or that cannot be read.
    pub(super) fn failed(&self, path: &[u8], error: io::Error) -> PackError {
        let path = self.shown(path);
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => PackError::Changed { path, change: "was removed" },
            Some(Errno::LOOP | Errno::NOTDIR) => {
                PackError::Changed { path, change: "was replaced" }
            }
            _ => PackError::Read { path, error },
        }
    }
}
