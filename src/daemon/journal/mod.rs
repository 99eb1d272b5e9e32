//! The journal of mounts: the data on disk with which a daemon makes its mounts again.
//!
//! ```text
//! mounted --note: written, synced--> announced --the mount ended--> removed
//!                                        '--a signal ended the daemon--> parked
//! ```
//!
//! Each mount has a file of its own in the folder `mounts` of the cache folder: docs/format/journal.md. A later
//! daemon makes mounts again that died with both processes of this one; `restoring` decides which.

mod format;

use std::fs::{self, DirBuilder, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

use super::machine;
use super::record::Announced;
use crate::control::api::MountDescription;
use crate::process::view::own_view;

pub(super) use format::{Entry, NoEntry};

/// The folder in the cache folder.
const FOLDER: &str = "mounts";
/// The end of the name of a mount that a signal has ended with its daemon.
const PARKED: &str = ".parked";
/// The end of the name of a file that is being written.
const TEMPORARY: &str = ".temp";
/// The most files that are read: far more than a machine has mounts. The others stay.
const MOST_FILES: usize = 10_000;

/// The journal of a cache folder.
#[derive(Debug)]
pub(super) struct Journal {
    /// The folder, held open: another one may take its path.
    folder: File,
    boot: String,
    /// The part of the file tree that this process sees.
    view: String,
    /// Entries of mounts that are not served.
    left: Mutex<Vec<Found>>,
    /// Mounts that end from now on are parked.
    is_parking: AtomicBool,
}

/// The entry of a mount that is served. Dropping it removes the entry.
#[derive(Debug)]
pub(super) struct Noted {
    journal: Arc<Journal>,
    name: String,
    is_struck: AtomicBool,
}

/// A file of the journal.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: String,
    /// A signal has ended the mount with its daemon.
    pub(super) is_parked: bool,
    pub(super) entry: Result<Entry, NoEntry>,
}

impl Journal {
    /// Opens the journal of a cache folder, which is made where it is missing.
    pub(super) fn open(cache_folder: &Path) -> io::Result<Arc<Self>> {
        let path = cache_folder.join(FOLDER);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Self::open_existing(&path),
        }
    }

    fn open_existing(path: &Path) -> io::Result<Arc<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let boot = machine::boot_id().0.iter().map(|byte| format!("{byte:02x}")).collect();
        let view = own_view().unwrap_or_default();
        let (left, is_parking) = (Mutex::default(), AtomicBool::new(false));
        let this = Self { folder, boot, view, left, is_parking };
        *this.left.lock() = this.files()?;
        Ok(Arc::new(this))
    }

    /// The boot of the kernel.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// The part of the file tree that this process sees.
    pub(super) fn view(&self) -> &str {
        &self.view
    }

    /// Notes a mount, and returns when it is on disk. Forgets earlier mounts of the same place.
    pub(super) fn note(
        self: &Arc<Self>,
        description: &MountDescription,
        announced: &Announced,
    ) -> io::Result<Noted> {
        let (description, left_out) = format::without_secrets(description);
        let place = announced.state.place().clone();
        let entry = Entry {
            boot: self.boot.clone(),
            view: place.view().unwrap_or(&self.view).to_owned(),
            pinned: announced.pinned.clone(),
            mounted_at: announced.mounted_at,
            place,
            description,
            left_out,
        };
        // Two mounts of one place may be there at a time: one is out of the tree, and in use.
        let name = format!("{:016x}", RandomState::new().build_hasher().finish());
        self.write(&name, &entry)?;
        self.forget_earlier(&entry);
        Ok(self.noted(name))
    }

    /// The entry of a mount that an earlier process has made, if there is one.
    pub(super) fn taken_over(self: &Arc<Self>, announced: &Announced) -> Option<Noted> {
        let is_it = |found: &Found| {
            !found.is_parked
                && found.entry.as_ref().is_ok_and(|entry| {
                    entry.boot == self.boot && entry.place == *announced.state.place()
                })
        };
        let mut left = self.left.lock();
        let at = left.iter().position(is_it)?;
        Some(self.noted(left.remove(at).name))
    }

    fn noted(self: &Arc<Self>, name: String) -> Noted {
        Noted { journal: self.clone(), name, is_struck: AtomicBool::new(false) }
    }

    /// The entries of mounts that are not served.
    pub(super) fn left(&self) -> Vec<Found> {
        self.left.lock().clone()
    }

    fn forget_earlier(&self, entry: &Entry) {
        let is_earlier = |found: &mut Found| {
            found.entry.as_ref().is_ok_and(|other| {
                other.description.mountpoint == entry.description.mountpoint
                    && (found.is_parked || other.boot != entry.boot || other.view == entry.view)
            })
        };
        let earlier: Vec<Found> = self.left.lock().extract_if(.., is_earlier).collect();
        earlier.iter().for_each(|found| self.remove(&found.name));
    }

    /// Forgets the entry of a mount that is not served.
    pub(super) fn forget(&self, found: &Found) {
        self.left.lock().retain(|left| left.name != found.name);
        self.remove(&found.name);
    }

    /// From now on the entry of a mount that ends is parked: a signal ends the daemon, and a later one may
    /// make the mount again (`daemon start --restore`).
    pub(super) fn park(&self) {
        self.is_parking.store(true, Ordering::SeqCst);
    }

    /// Every file of the journal. Files that are being written are left out.
    fn files(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for name in rustix::fs::Dir::read_from(&self.folder)? {
            let name = name?;
            let Ok(name) = name.file_name().to_str() else { continue };
            let plain = name.strip_suffix(PARKED).unwrap_or(name);
            let is_ours = plain.len() == 16 && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_ours {
                continue;
            }
            if found.len() == MOST_FILES {
                tracing::warn!(
                    "the journal of mounts has more than {MOST_FILES} files: the others stay unread"
                );
                break;
            }
            let entry = match self.read(name) {
                Ok(entry) => entry,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(NoEntry::Damaged(error.to_string())),
            };
            let is_parked = name.ends_with(PARKED);
            found.push(Found { name: name.to_owned(), is_parked, entry });
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    fn read(&self, name: &str) -> io::Result<Result<Entry, NoEntry>> {
        // A file that another program has put there may be a pipe.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&self.folder, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_file() || !is_own || metadata.mode() & 0o022 != 0 {
            return Err(io::Error::other("it is not a file that only this user can write"));
        }
        if metadata.len() > format::LIMIT_BYTES {
            return Err(io::Error::other("it is too long"));
        }
        let mut bytes = Vec::new();
        file.take(format::LIMIT_BYTES).read_to_end(&mut bytes)?;
        Ok(format::decode(&bytes))
    }

    /// Writes an entry, and returns when it is on disk.
    fn write(&self, name: &str, entry: &Entry) -> io::Result<()> {
        let bytes = format::encode(entry)?;
        if bytes.len() as u64 > format::LIMIT_BYTES {
            return Err(io::Error::other("the options of the mount are too long for the journal"));
        }
        let temporary = format!("{name}{TEMPORARY}");
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = || {
            let mode = Mode::RUSR | Mode::WUSR;
            let mut file = File::from(rustix::fs::openat(&self.folder, &temporary, flags, mode)?);
            file.write_all(&bytes)?;
            file.sync_all()?;
            rustix::fs::renameat(&self.folder, &temporary, &self.folder, name)?;
            self.folder.sync_all()
        };
        let written = write();
        if written.is_err() {
            let _ = rustix::fs::unlinkat(&self.folder, &temporary, AtFlags::empty());
        }
        written
    }

    fn remove(&self, name: &str) {
        let removed = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        // After a power cut the mount would be made again.
        if let Err(error) = removed.map_err(Into::into).and_then(|()| self.folder.sync_all())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, name, "a mount that has ended stays in the journal");
        }
    }

    fn park_entry(&self, name: &str) {
        let parked = format!("{name}{PARKED}");
        let renamed = rustix::fs::renameat(&self.folder, name, &self.folder, &parked);
        if let Err(error) = renamed.map_err(io::Error::from).and_then(|()| self.folder.sync_all()) {
            tracing::warn!(%error, name, "a mount cannot be parked in the journal");
        }
    }
}

impl Found {
    /// The mountpoint, as the command named it; the name of a file that cannot be read.
    pub(super) fn mountpoint(&self) -> PathBuf {
        match &self.entry {
            Ok(entry) => entry.description.mountpoint.clone(),
            Err(_) => Path::new(FOLDER).join(&self.name),
        }
    }
}

impl Noted {
    /// The mount is out of the tree.
    pub(super) fn strike(&self) {
        if self.is_struck.swap(true, Ordering::SeqCst) {
            return;
        }
        match self.journal.is_parking.load(Ordering::SeqCst) {
            true => self.journal.park_entry(&self.name),
            false => self.journal.remove(&self.name),
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.strike();
    }
}

/// A mount in the journal of a cache folder, for a command that looks while no daemon runs.
#[derive(Debug)]
pub(super) struct Mounted {
    name: String,
    /// The canonical mountpoint.
    pub(super) path: PathBuf,
}

/// The mounts in the journal of a cache folder that may be dead: those of this boot and of this part of the
/// tree, which no signal has ended. Makes nothing.
pub(super) fn mounts_of_now(cache_folder: &Path) -> Vec<Mounted> {
    let Ok(journal) = Journal::open_existing(&cache_folder.join(FOLDER)) else { return Vec::new() };
    let mounts = journal.left().into_iter().filter(|found| !found.is_parked).filter_map(|found| {
        let entry = found.entry.ok()?;
        let is_here = entry.boot == journal.boot && entry.view == journal.view;
        is_here.then(|| Mounted { name: found.name, path: entry.place.path().to_owned() })
    });
    mounts.collect()
}

/// Forgets a mount that a command has taken out of the tree while no daemon runs.
pub(super) fn forget(cache_folder: &Path, mounted: &Mounted) {
    let _ = fs::remove_file(cache_folder.join(FOLDER).join(&mounted.name));
}

#[cfg(test)]
pub(super) use format::tests::entry as example;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::format::tests::entry;
    use super::*;

    fn description() -> MountDescription {
        entry().description
    }

    fn announced(device: u32) -> Announced {
        serde_json::from_value(serde_json::json!({
            "pinned": "ghcr.io/org/kit@sha256:00", "mounted_at": 7,
            "tree": {"manifest": "sha256:00", "layers": [], "nodes": "sha256:02"},
            "state": {"place": {"path": "/models", "device": [0, device], "made": null, "view": null}, "features": 5},
        }))
        .unwrap()
    }

    fn again(folder: &Path) -> Arc<Journal> {
        Journal::open(folder).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        again(folder).left().into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn an_entry_lives_as_long_as_its_mount() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let noted = journal.note(&description(), &announced(44)).unwrap();
        let next = again(folder.path());
        let [found] = &next.left()[..] else { panic!("one entry") };
        let there = found.entry.as_ref().unwrap();
        assert_eq!((&there.description, &there.boot), (&description(), &journal.boot));
        let file = folder.path().join(FOLDER).join(&found.name);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        // The next process takes over, and ends the mount.
        std::mem::forget(noted);
        assert!(next.taken_over(&announced(45)).is_none(), "another mount");
        let noted = next.taken_over(&announced(44)).unwrap();
        assert!(next.left().is_empty());
        drop(noted);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_signal_parks_the_mounts_that_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let before = journal.note(&description(), &announced(44)).unwrap();
        drop(before);
        let noted = journal.note(&description(), &announced(45)).unwrap();
        journal.park();
        drop(noted);
        let next = again(folder.path());
        let [found] = &next.left()[..] else { panic!("one entry") };
        assert!(found.is_parked && found.entry.is_ok());
        assert!(
            mounts_of_now(folder.path()).is_empty() && next.taken_over(&announced(45)).is_none()
        );
        // A mount at the same place takes its place.
        let noted = next.note(&description(), &announced(46)).unwrap();
        assert_eq!(names(folder.path()), std::slice::from_ref(&noted.name));
    }

    #[test]
    fn strange_files_are_no_entries() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let inside = folder.path().join(FOLDER);
        let good = journal.note(&description(), &announced(44)).unwrap();
        fs::write(inside.join("notes.txt"), "mine").unwrap();
        fs::write(inside.join("0000000000000001.temp"), "cut").unwrap();
        symlink(inside.join(&good.name), inside.join("0000000000000002")).unwrap();
        fs::create_dir(inside.join("0000000000000003")).unwrap();
        fs::copy(inside.join(&good.name), inside.join("0000000000000004")).unwrap();
        let open = fs::Permissions::from_mode(0o666);
        fs::set_permissions(inside.join("0000000000000004"), open).unwrap();
        let long = File::create(inside.join("0000000000000005")).unwrap();
        long.set_len(format::LIMIT_BYTES + 1).unwrap();
        let next = again(folder.path());
        for found in next.left() {
            let is_good = found.name == good.name;
            assert_eq!(found.entry.is_ok(), is_good, "{found:?}");
        }
        assert_eq!(next.left().len(), 5);
    }

    #[test]
    fn a_journal_that_is_a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), folder.path().join(FOLDER)).unwrap();
        assert!(Journal::open(folder.path()).is_err());
    }

    #[test]
    fn a_command_finds_the_mounts_of_a_daemon_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(mounts_of_now(folder.path()).is_empty());
        assert!(!folder.path().join(FOLDER).exists(), "a look makes nothing");
        let journal = Journal::open(folder.path()).unwrap();
        let _noted = journal.note(&description(), &announced(44)).unwrap();
        let [there] = &mounts_of_now(folder.path())[..] else { panic!("one mount") };
        assert_eq!(there.path, description().mountpoint);
        forget(folder.path(), there);
        assert!(mounts_of_now(folder.path()).is_empty());
    }
}
