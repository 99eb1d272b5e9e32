//! Checks of the cache folder: rights, file system, free space, sparse files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

use super::super::sizes;
use super::check::{Check, Subject};

const GROUP: &str = "Cache";
const FOLDER: Subject = Subject(GROUP, "folder");
const SPACE: Subject = Subject(GROUP, "disk space");
const KIND: Subject = Subject(GROUP, "file system");
const SPARSE: Subject = Subject(GROUP, "sparse files");

/// The file that the check writes and removes.
const TRIAL: &str = "doctor-trial";
/// The size of that file: larger than a block of any file system, and most of it a hole.
const TRIAL_BYTES: u64 = 4 << 20;
/// The most disk space that a file with one written block may take.
const SPARSE_BYTES: u64 = 1 << 20;

/// The free space, beside `--keep-free`, below which kits of gigabytes are fetched again and again.
const LITTLE_BYTES: u64 = 1 << 30;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub name: &'static str,
    /// Whether the file system lies on another one. The kernel refuses passthrough for its files.
    pub is_stacked: bool,
    /// The disadvantage for a cache.
    trouble: Option<&'static str>,
}

/// The kinds by their magic number (linux/magic.h).
const KINDS: [(u64, Kind); 14] = [
    (0xef53, Kind::good("ext4")),
    (0x5846_5342, Kind::good("xfs")),
    (0x9123_683e, Kind::good("btrfs")),
    (0x2fc1_2fc1, Kind::good("zfs")),
    (0xf2f5_2010, Kind::good("f2fs")),
    (
        0x794c_7630,
        Kind::bad("overlay", "it is the writable layer of a container, and goes with it", true),
    ),
    (
        0x0102_1994,
        Kind::bad("tmpfs", "it is memory: what the cache holds counts as used memory", false),
    ),
    (
        0x6969,
        Kind::bad(
            "NFS",
            "its locks and holes depend on the server, and each read of the cache crosses the network",
            false,
        ),
    ),
    (
        0xff53_4d42,
        Kind::bad("CIFS", "it keeps no holes for certain, and reads cross the network", false),
    ),
    (
        0xfe53_4d42,
        Kind::bad("SMB", "it keeps no holes for certain, and reads cross the network", false),
    ),
    (0x0102_1997, Kind::bad("9p", "reads leave the virtual machine", false)),
    (0x6573_5546, Kind::bad("FUSE", "each read of the cache goes through another daemon", true)),
    (0x4d44, Kind::bad("FAT", "it has no holes and no files above 4 GiB", false)),
    (0x2011_bab0, Kind::bad("exFAT", "it has no holes", false)),
];

impl Kind {
    const fn good(name: &'static str) -> Self {
        Self { name, is_stacked: false, trouble: None }
    }

    const fn bad(name: &'static str, trouble: &'static str, is_stacked: bool) -> Self {
        Self { name, is_stacked, trouble: Some(trouble) }
    }
}

/// The kind of the file system at a path, or at the nearest folder above it that is there.
pub(super) fn kind_of(path: &Path) -> Option<Kind> {
    let found = rustix::fs::statfs(&nearest(path)?).ok()?;
    // The field is signed or not, and 32 or 64 bits wide, by architecture. The magic numbers have 32 bits.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "see above")]
    let magic = found.f_type as u64 & 0xffff_ffff;
    KINDS.iter().find(|(number, _)| *number == magic).map(|(_, kind)| *kind)
}

/// The path, or the nearest folder above it that is there.
fn nearest(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.is_dir()).map(Path::to_owned)
}

/// Checks the folder. `keep_free_bytes` is the free space that the cache leaves (`--keep-free`). In an existing
/// folder, it writes a file and removes it. It makes no folder.
pub(super) fn checks(folder: &Path, keep_free_bytes: u64) -> Vec<Check> {
    let mut checks = vec![rights(folder)];
    checks.push(kind(folder));
    checks.push(space(folder, keep_free_bytes));
    if folder.is_dir() {
        checks.push(sparse(folder));
    }
    checks
}

fn rights(folder: &Path) -> Check {
    let place = folder.display();
    let advice = "give it to this user (`chown`), or name another folder with --cache-dir";
    let own = rustix::process::geteuid().as_raw();
    match folder.metadata() {
        Ok(there) if !there.is_dir() => FOLDER.fail(
            format!("{place} is no folder"),
            "remove it, or name another one with --cache-dir",
        ),
        Ok(there) if there.uid() != own => FOLDER.fail(
            format!("{place} belongs to user {}, and this is user {own}", there.uid()),
            advice,
        ),
        Ok(there) if there.mode() & 0o077 != 0 => FOLDER.warn(
            format!("{place} is open to other users (mode {:o})", there.mode() & 0o777),
            format!("kits of private repositories lie there: `chmod 700 {place}`"),
        ),
        Ok(_) => match trial(folder) {
            Ok((_, path)) => {
                let _ = fs::remove_file(path);
                FOLDER.ok(format!("{place} can be written"))
            }
            Err(error) => FOLDER.fail(format!("{place} cannot be written: {error}"), advice),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => match nearest(folder) {
            Some(above) if is_writable(&above) => {
                FOLDER.ok(format!("{place} is made by the first mount"))
            }
            _ => FOLDER.fail(format!("{place} cannot be made by this user"), advice),
        },
        Err(error) => FOLDER.fail(format!("{place} cannot be looked at: {error}"), advice),
    }
}

fn is_writable(folder: &Path) -> bool {
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Makes a new file in a folder.
fn trial(folder: &Path) -> io::Result<(File, PathBuf)> {
    let path = folder.join(format!("{TRIAL}-{}", std::process::id()));
    let file =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((file, path))
}

fn kind(folder: &Path) -> Check {
    match kind_of(folder) {
        Some(Kind { name, trouble: None, .. }) => KIND.ok(name),
        Some(Kind { name, trouble: Some(trouble), .. }) => KIND.warn(
            format!("{name}: {trouble}"),
            "name a folder on a disk or volume of this machine with --cache-dir",
        ),
        None => KIND.ok("one that kitfs does not know by name"),
    }
}

fn space(folder: &Path, keep_free_bytes: u64) -> Check {
    let found = nearest(folder).and_then(|folder| rustix::fs::statvfs(&folder).ok());
    let Some(found) = found else { return SPACE.skip("the file system does not say") };
    let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
    let words = format!(
        "{} free of {}, and {} stay free (--keep-free)",
        sizes::show(free_bytes),
        sizes::show(found.f_blocks.saturating_mul(found.f_frsize)),
        sizes::show(keep_free_bytes)
    );
    // File systems without a table of inodes count none.
    if found.f_files > 0 && found.f_favail == 0 {
        return SPACE.fail(format!("{words}; no inode is left"), "remove files from the disk");
    }
    match free_bytes.checked_sub(keep_free_bytes) {
        None => SPACE.warn(
            format!("{words}: the cache keeps no new bytes, and reads go through without it"),
            "make room (`kitfs cache ls`, `kitfs cache rm`), or name another disk with --cache-dir",
        ),
        Some(room) if room < LITTLE_BYTES => SPACE.warn(
            words,
            "make room, or name another disk with --cache-dir: kits often have many gigabytes",
        ),
        Some(_) => SPACE.ok(words),
    }
}

/// Whether files can have holes, and whether kitfs can make them later.
fn sparse(folder: &Path) -> Check {
    let Ok((file, path)) = trial(folder) else {
        return SPARSE.skip("the folder cannot be written");
    };
    let tried = try_holes(&file);
    let _ = fs::remove_file(path);
    match tried {
        Ok(taken) if taken <= SPARSE_BYTES => SPARSE.ok("files can have holes"),
        Ok(taken) => SPARSE.warn(
            format!("a file of {} with one byte takes {}", sizes::show(TRIAL_BYTES), sizes::show(taken)),
            "name a folder on ext4, xfs or btrfs with --cache-dir: here each kit takes its whole size at once",
        ),
        Err(error) => SPARSE.warn(
            format!("no hole can be made in a file: {error}"),
            "name a folder on ext4, xfs or btrfs with --cache-dir: here only whole layers can be removed",
        ),
    }
}

/// Writes the last byte of a file, makes a hole at its start, and returns the bytes that it takes.
fn try_holes(file: &File) -> io::Result<u64> {
    /// The unit of `st_blocks` (stat(2)).
    const UNIT_BYTES: u64 = 512;
    file.write_all_at(&[1], 0)?;
    file.write_all_at(&[1], TRIAL_BYTES - 1)?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, 0, TRIAL_BYTES / 2)?;
    file.sync_all()?;
    Ok(file.metadata()?.blocks() * UNIT_BYTES)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::check::Outcome;
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("a/b");
        let checks = checks(&cache, 0);
        assert!(!folder.path().join("a").exists());
        assert_eq!(checks[0].outcome, Outcome::Ok);
        assert!(checks[0].found.contains("made by the first mount"));
    }

    #[test]
    fn a_check_leaves_no_file_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let checks = checks(folder.path(), 0);
        assert_eq!(checks[0].outcome, Outcome::Ok, "{checks:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_and_an_open_folder_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(rights(&file).outcome, Outcome::Fail);
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let open = rights(folder.path());
        assert_eq!(open.outcome, Outcome::Warn);
        assert!(open.advice.unwrap().contains("chmod 700"));
    }

    #[test]
    fn a_disk_without_room_beside_what_stays_free_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(space(folder.path(), u64::MAX / 2).outcome, Outcome::Warn);
    }

    #[test]
    fn memory_is_no_place_for_a_cache() {
        // /dev/shm is a tmpfs on every Linux machine.
        assert_eq!(kind(Path::new("/dev/shm")).outcome, Outcome::Warn);
        assert!(kind_of(Path::new("/dev/shm/not/there")).is_some_and(|it| it.name == "tmpfs"));
    }
}
