//! Files, directories and symlinks, written so that nothing half done is left under its name.
//!
//! A file is written under a name of its own beside its place, and renamed when every byte is
//! there. An interrupted copy removes it; a killed one leaves it, recognisable by its name.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use indicatif::ProgressBar;
use tokio::io::AsyncWriteExt;

use super::super::error::CliError;
use crate::daemon::ByteStream;
use crate::daemon::api::FailureKind;

/// Leftovers of killed copies in one folder that are passed over; nobody has that many.
const MOST_LEFTOVERS: u32 = 100;

/// Removes a file when it is dropped, unless it has been kept.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Best effort on the way out: its name says what it is.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Writes `bytes` to `target`; exactly `size` bytes, where that is known.
pub(super) async fn file(
    target: &Path,
    mut bytes: ByteStream,
    mode: u32,
    size: Option<u64>,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let failed = |error| write_error(target, error);
    if target.symlink_metadata().is_ok_and(|there| there.is_dir()) {
        return Err(failed(io::Error::other("there is a directory of that name")));
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let (unfinished, opened) =
        make_unfinished(target, |path| options.open(path)).map_err(failed)?;
    let mut guard = Unfinished(Some(unfinished.clone()));
    let mut output = tokio::fs::File::from_std(opened);
    let mut written = 0;
    while let Some(piece) = bytes.next().await {
        let piece = piece?;
        output.write_all(&piece).await.map_err(failed)?;
        written += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    output.flush().await.map_err(failed)?;
    if let Some(size) = size.filter(|size| *size != written) {
        let message = format!("{}: {written} bytes came instead of {size}", target.display());
        return Err(CliError::new(FailureKind::Daemon, message));
    }
    set_mode(&unfinished, mode)?;
    std::fs::rename(&unfinished, target).map_err(failed)?;
    guard.0 = None;
    Ok(())
}

/// Makes a directory that can be written into; one that is there is fine, a symlink to one not.
/// Says whether it is new.
pub(super) fn directory(target: &Path) -> Result<bool, CliError> {
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

/// Makes a symlink, in the place of a file or symlink that is there.
pub(super) fn symlink(target: &Path, link: &[u8]) -> Result<(), CliError> {
    let failed = |error| write_error(target, error);
    let link = OsStr::from_bytes(link);
    let made = make_unfinished(target, |path| std::os::unix::fs::symlink(link, path));
    let (unfinished, ()) = made.map_err(failed)?;
    let mut guard = Unfinished(Some(unfinished.clone()));
    std::fs::rename(&unfinished, target).map_err(failed)?;
    guard.0 = None;
    Ok(())
}

/// Sets permission bits.
pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), CliError> {
    let permissions = std::fs::Permissions::from_mode(mode & 0o777);
    std::fs::set_permissions(path, permissions).map_err(|error| write_error(path, error))
}

/// Makes something under a name in the folder of `target` that no kit and no other copy has.
///
/// Process numbers come again, in containers at once: what an earlier copy left is not touched,
/// because another container may be writing it.
fn make_unfinished<T>(
    target: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(PathBuf, T)> {
    let folder = target.parent().unwrap_or(Path::new(""));
    let name = format!(".kitfs-unfinished-{}", std::process::id());
    let mut attempt = 0;
    loop {
        let path = folder.join(format!("{name}-{attempt}"));
        match make(&path) {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && attempt < MOST_LEFTOVERS =>
            {
                attempt += 1;
            }
            made => return made.map(|made| (path, made)),
        }
    }
}

fn write_error(path: &Path, error: io::Error) -> CliError {
    CliError::new(FailureKind::Usage, format!("cannot write {}: {error}", path.display()))
}
