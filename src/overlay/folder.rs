//! An UPPER folder: the changes of one writable view, and the base that they belong to.
//!
//! ```text
//! UPPER/
//!   overlay.json   the record: docs/format/overlay.md
//!   mounted.json   the mountpoint and the daemon of the last mount
//!   upper/ work/   overlayfs's own
//!   lower/         empty; a mountpoint for the base, where it cannot be mounted without one
//! ```
//!
//! A lock on UPPER keeps two commands apart. The program fuse-overlayfs inherits the lock. A kernel mount has no
//! process, so kitfs asks the kernel whether UPPER is in use (`kernel::is_in_use`).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, Uid, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::record::{LIMIT_BYTES, Marks, NoRecord, Record};
use super::{OverlayError, kernel, upper_of};
use crate::process::mount_table::MountTable;
use crate::process::running_time::Stopwatch;

const RECORD: &str = "overlay.json";
const MOUNTED: &str = "mounted.json";
/// The folder with the files that changed.
const UPPER: &str = "upper";
const WORK: &str = "work";
const LOWER: &str = "lower";

/// The longest wait for an UPPER that is in use though no mount shows it: the program of the last mount may still
/// be ending. On a busy machine that takes less.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// The interval between two tries.
const END_INTERVAL: Duration = Duration::from_millis(10);

/// An UPPER folder that this process has locked.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    record: Record,
    /// The record that the disk has.
    on_disk: Option<Record>,
    lock: File,
}

/// The last mount of an UPPER folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMount {
    /// The mountpoint.
    pub mountpoint: PathBuf,
    /// The daemon's address, as the base's root tells it.
    #[serde(default)]
    pub daemon: String,
}

impl Folder {
    /// Makes or opens the UPPER folder at `path` for a base, and locks it.
    ///
    /// # Errors
    /// When the folder has changes to another base, is in use, or holds other files.
    pub fn prepare(path: &Path, base: &Record) -> Result<Self, OverlayError> {
        let io = |error: io::Error| OverlayError::io(path, &error);
        match DirBuilder::new().mode(0o700).recursive(true).create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(no_upper(path, "it is no folder"));
            }
            Err(error) => return Err(io(error)),
        }
        let path = path.canonicalize().map_err(io)?;
        let owner = fs::metadata(&path).map_err(io)?.uid();
        if ![0, base.owner.0, rustix::process::geteuid().as_raw()].contains(&owner) {
            return Err(no_upper(&path, "it belongs to another user"));
        }
        let lock = lock(&path)?;
        let on_disk;
        let record = match read_record(&path) {
            Ok(record) => {
                let record =
                    record.map_err(|no| OverlayError::NoRecord { path: path.clone(), no })?;
                check_base(&path, &record, base)?;
                on_disk = Some(record.clone());
                // The kit may have another reference now, and the owner another user id.
                Record { marks: record.marks, ..base.clone() }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                check_new(&path)?;
                on_disk = None;
                base.clone()
            }
            Err(error) => return Err(OverlayError::io(&path, &error)),
        };
        let folder = Self { path, record, on_disk, lock };
        folder.make_folders(base.owner).map_err(|error| OverlayError::io(&folder.path, &error))?;
        wait_until_free(&folder.path, || Ok(!kernel::is_in_use(&folder)))?;
        Ok(folder)
    }

    /// The canonical path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The base, and the owner.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The mountpoint for the base, where it needs one.
    pub fn lower(&self) -> PathBuf {
        self.path.join(LOWER)
    }

    pub(super) fn upper(&self) -> PathBuf {
        self.path.join(UPPER)
    }

    pub(super) fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// The lock, for a program that inherits it.
    pub(super) fn lock(&self) -> &File {
        &self.lock
    }

    /// Records the format in which deletions are kept from now on.
    ///
    /// # Errors
    /// When there are changes in another format.
    pub(super) fn keep_marks(&mut self, marks: Marks) -> Result<(), OverlayError> {
        if let Some(has) = self.record.marks.filter(|has| *has != marks)
            && !is_empty(&self.upper()).map_err(|error| OverlayError::io(&self.path, &error))?
        {
            return Err(OverlayError::OtherMarks { path: self.path.clone(), has, wanted: marks });
        }
        self.record.marks = Some(marks);
        self.write_record()
    }

    /// Sets the rights of the view's root: open to others or not.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn let_others_in(&self, is_open: bool, umask: u32) -> Result<(), OverlayError> {
        let mode = if is_open { 0o755 & !umask | 0o700 } else { 0o700 };
        let changed = open_folder(&self.upper(), OFlags::RDONLY)
            .and_then(|upper| rustix::fs::fchmod(upper, Mode::from_raw_mode(mode)));
        changed.map_err(|error| OverlayError::io(&self.path, &error.into()))
    }

    /// Notes a mount. Without the note, commands look for the daemon by the cache folder.
    pub fn note(&self, mount: &LastMount) -> io::Result<()> {
        let bytes = serde_json::to_vec(mount).map_err(io::Error::other)?;
        replace(&self.path, MOUNTED, &bytes, false)
    }

    fn make_folders(&self, (uid, gid): (u32, u32)) -> io::Result<()> {
        for name in [UPPER, WORK, LOWER] {
            match DirBuilder::new().mode(0o700).create(self.path.join(name)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let upper = open_folder(&self.upper(), OFlags::RDONLY)?;
        open_folder(&self.work(), OFlags::PATH)?;
        open_folder(&self.lower(), OFlags::PATH)?;
        let found = rustix::fs::fstat(&upper)?;
        if (found.st_uid, found.st_gid) != (uid, gid) {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(&upper, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// Writes the record if it says something new: the sync takes longer than the rest of a mount.
    fn write_record(&mut self) -> Result<(), OverlayError> {
        if self.on_disk.as_ref() == Some(&self.record) {
            return Ok(());
        }
        replace(&self.path, RECORD, &self.record.encode(), true)
            .map_err(|error| OverlayError::io(&self.path, &error))?;
        self.on_disk = Some(self.record.clone());
        Ok(())
    }
}

/// Opens a folder of UPPER. A link in its place is never followed: root mounts views of other users, who own UPPER and
/// could have any folder of the machine given to them.
fn open_folder(path: &Path, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The record of an UPPER folder, or the reason why the file is none.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read_record(path: &Path) -> io::Result<Result<Record, NoRecord>> {
    let bytes = read_bounded(&path.join(RECORD))?;
    Ok(Record::decode(&bytes))
}

/// The last mount of an UPPER folder, if it is known.
pub fn last_mount(path: &Path) -> Option<LastMount> {
    serde_json::from_slice(&read_bounded(&path.join(MOUNTED)).ok()?).ok()
}

/// The folder with the files that changed.
pub(super) fn upper_in(path: &Path) -> PathBuf {
    path.join(UPPER)
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        // Another user's folder may have anything in the place of the file.
        .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32)
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT_BYTES {
        return Err(io::Error::other("the file is too long"));
    }
    Ok(bytes)
}

/// Whether this process sees an overlay with the folder.
fn is_mounted(path: &Path) -> bool {
    let is_it = |table: MountTable| table.entries().iter().any(|it| upper_of(it) == Some(path));
    MountTable::read().is_ok_and(is_it)
}

fn lock(path: &Path) -> Result<File, OverlayError> {
    let folder = File::open(path).map_err(|error| OverlayError::io(path, &error))?;
    let take = || match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(OverlayError::io(path, &error.into())),
    };
    wait_until_free(path, take)?;
    Ok(folder)
}

/// Waits until `is_free`. A mount that has just ended keeps UPPER for a moment: fuse-overlayfs until its process
/// ends, and the kernel until newer mount namespaces have dropped their copies of the mount.
///
/// # Errors
/// [`OverlayError::InUse`] when a mount is in the tree, or that moment takes too long.
fn wait_until_free(
    path: &Path,
    is_free: impl Fn() -> Result<bool, OverlayError>,
) -> Result<(), OverlayError> {
    let mut watch = Stopwatch::start();
    while !is_free()? {
        if watch.look() >= END_PATIENCE || is_mounted(path) {
            return Err(OverlayError::InUse(path.to_owned()));
        }
        std::thread::sleep(END_INTERVAL);
    }
    Ok(())
}

fn check_base(path: &Path, has: &Record, wanted: &Record) -> Result<(), OverlayError> {
    if has.digest == wanted.digest && has.filters == wanted.filters {
        return Ok(());
    }
    Err(OverlayError::OtherBase {
        path: path.to_owned(),
        has: Box::new(has.clone()),
        wanted: Box::new(wanted.clone()),
    })
}

/// A folder without a record must be empty: its files would become a part of the view, or be lost.
fn check_new(path: &Path) -> Result<(), OverlayError> {
    let mut entries = fs::read_dir(path).map_err(|error| OverlayError::io(path, &error))?;
    // A kill between the first two steps leaves the folders and no record.
    let is_ours = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(".tmp"))
                || ([UPPER, WORK, LOWER].iter().any(|own| name == *own)
                    && is_empty(&entry.path()).unwrap_or(false))
        })
    };
    match entries.all(is_ours) {
        true => Ok(()),
        false => Err(no_upper(path, "it has files that are no changes of an overlay")),
    }
}

fn no_upper(path: &Path, why: &str) -> OverlayError {
    OverlayError::NoUpper { path: path.to_owned(), why: why.to_owned() }
}

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}

/// Writes a file whole: after a kill there is the old one or the new one. If `is_synced`, after a power cut, too.
fn replace(folder: &Path, name: &str, bytes: &[u8], is_synced: bool) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(&temporary)?;
    file.write_all(bytes)?;
    if is_synced {
        file.sync_all()?;
    }
    fs::rename(&temporary, folder.join(name))?;
    if is_synced {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
