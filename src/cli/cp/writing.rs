//! Writes files, directories and symlinks. A file never has its final name before it is complete.
//!
//! A file first gets a temporary name in its folder. It gets its final name once every byte is written and no
//! digest is wrong. An interrupted copy removes its temporary files. A killed copy leaves temporary files, whose
//! names begin with `.kitfs-unfinished`.

use std::ffi::OsStr;
use std::io::{self, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use indicatif::ProgressBar;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::super::error::CliError;
use crate::control::ByteStream;
use crate::control::api::FailureKind;

/// The most temporary names that a copy tries in a folder with leftovers of killed copies. 100: more leftovers are
/// another problem.
const MOST_LEFTOVERS: u32 = 100;

/// The start of temporary names; two numbers follow.
const UNFINISHED: &str = ".kitfs-unfinished-";

/// Numbers for temporary names.
#[derive(Default)]
pub(in crate::cli) struct Numbers(AtomicU64);

/// A file or symlink with a temporary name. Dropping it removes it.
pub(in crate::cli) struct Unfinished {
    path: PathBuf,
    target: PathBuf,
    is_kept: bool,
}

impl Unfinished {
    /// Sets the permission bits of the file.
    pub(in crate::cli) fn set_mode(&self, mode: u32) -> Result<(), CliError> {
        set_mode(&self.path, mode)
    }

    /// Gives the file its final name, and replaces a file or symlink of that name.
    pub(in crate::cli) fn keep(mut self) -> Result<(), CliError> {
        std::fs::rename(&self.path, &self.target)
            .map_err(|error| write_error(&self.target, error))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_kept {
            // Best effort: a user knows a leftover by its name.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes an empty file under a temporary name beside `target`.
pub(in crate::cli) fn empty_file(
    numbers: &Numbers,
    target: &Path,
) -> Result<(Unfinished, std::fs::File), CliError> {
    let failed = |error| write_error(target, error);
    if target.symlink_metadata().is_ok_and(|there| there.is_dir()) {
        return Err(failed(io::Error::other("there is a directory of that name")));
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    make_unfinished(numbers, target, |path| options.open(path)).map_err(failed)
}

/// Writes `bytes` under a temporary name beside `target`. Where `size` is known, it fails unless there are as many
/// bytes.
pub(in crate::cli) async fn file(
    numbers: &Numbers,
    target: &Path,
    mut bytes: ByteStream,
    mode: u32,
    size: Option<u64>,
    bar: &ProgressBar,
) -> Result<Unfinished, CliError> {
    let failed = |error| write_error(target, error);
    let (unfinished, opened) = empty_file(numbers, target)?;
    let mut output = tokio::fs::File::from_std(opened);
    let mut written = 0;
    while let Some(piece) = bytes.next().await {
        let piece = piece?;
        match is_hole(&piece) {
            true => {
                output.seek(SeekFrom::Current(piece.len() as i64)).await.map_err(failed)?;
            }
            false => output.write_all(&piece).await.map_err(failed)?,
        }
        written += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    output.flush().await.map_err(failed)?;
    // A hole at the end was not written, so the file is too short.
    output.set_len(written).await.map_err(failed)?;
    if let Some(size) = size.filter(|size| *size != written) {
        let message = format!("{}: the daemon sent {written} bytes of {size}", target.display());
        return Err(CliError::new(FailureKind::Daemon, message));
    }
    set_mode(&unfinished.path, mode)?;
    Ok(unfinished)
}

/// Whether bytes become a hole. A sparse file of a kit, such as a disk image, may have more zeros than the disk has
/// room for. Short runs of zeros are written, for fewer extents.
fn is_hole(piece: &[u8]) -> bool {
    /// The block of the usual file systems: less than that makes no hole.
    const LEAST_BYTES: usize = 4096;
    piece.len() >= LEAST_BYTES && piece.iter().all(|&byte| byte == 0)
}

/// Makes a directory, unless it exists. Refuses a symlink to a directory. Returns whether the directory is new.
pub(in crate::cli) fn directory(target: &Path) -> Result<bool, CliError> {
    match std::fs::create_dir(target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match target.symlink_metadata() {
                Ok(there) if there.is_dir() => Ok(false),
                Ok(_) | Err(_) => Err(write_error(target, error)),
            }
        }
        Err(error) => Err(write_error(target, error)),
    }
}

/// Makes a symlink, and replaces a file or symlink of that name.
pub(in crate::cli) fn symlink(
    numbers: &Numbers,
    target: &Path,
    link: &[u8],
) -> Result<(), CliError> {
    let link = OsStr::from_bytes(link);
    let made = make_unfinished(numbers, target, |path| std::os::unix::fs::symlink(link, path));
    let (unfinished, ()) = made.map_err(|error| write_error(target, error))?;
    unfinished.keep()
}

/// Sets permission bits.
pub(in crate::cli) fn set_mode(path: &Path, mode: u32) -> Result<(), CliError> {
    let permissions = std::fs::Permissions::from_mode(mode & 0o777);
    std::fs::set_permissions(path, permissions).map_err(|error| write_error(path, error))
}

/// Removes the temporary files that killed copies have left in a folder. The caller has the folder for itself.
/// A file for which `is_wanted` returns true stays.
pub(in crate::cli) fn remove_leftovers(folder: &Path, is_wanted: impl Fn(&OsStr) -> bool) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_leftover = name
            .as_bytes()
            .strip_prefix(UNFINISHED.as_bytes())
            .is_some_and(|rest| rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-'));
        if is_leftover && !is_wanted(&name) {
            // Best effort: a leftover costs room and nothing else.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Makes a file or symlink in the folder of `target`. No kit and no other copy has a file of its temporary name.
///
/// Two containers may have processes with the same number. So a copy never touches a leftover of that
/// name: another container may still write it.
fn make_unfinished<T>(
    numbers: &Numbers,
    target: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(Unfinished, T)> {
    let folder = target.parent().unwrap_or(Path::new(""));
    let mut leftovers = 0;
    loop {
        let number = numbers.0.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        match make(&path) {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && leftovers < MOST_LEFTOVERS =>
            {
                leftovers += 1;
            }
            Err(error) => return Err(error),
            Ok(made) => {
                let target = target.to_owned();
                return Ok((Unfinished { path, target, is_kept: false }, made));
            }
        }
    }
}

fn write_error(path: &Path, error: io::Error) -> CliError {
    CliError::unwritten(path, &error)
}
