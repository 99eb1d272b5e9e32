//! The folder to fill, and the entries of the kit that are wanted in it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::super::super::error::CliError;
use super::super::super::output::{print_warnings, printable};
use super::super::record;
use crate::control::api::{Entry, EntryKind, FailureKind, Listing, RawPath};
use crate::daemon::OpenKit;

/// Makes the folder if it is missing. Its path has no symlinks then.
pub(super) fn prepare(folder: &Path) -> Result<PathBuf, CliError> {
    let failed = |error| CliError::usage(format!("cannot use {}: {error}", folder.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    folder.canonicalize().map_err(failed)
}

/// Locks the folder for as long as the file is open. Where locks do not work, a warning must do.
pub(super) fn lock(root: &Path) -> Result<File, CliError> {
    let (path, place) = (root.join(record::LOCK), root.display());
    // A lock of NFS needs a file that is open for writing.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let file = options
        .open(&path)
        .map_err(|error| CliError::usage(format!("cannot open {}: {error}", path.display())))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let message = format!("another `kitfs warm --to` fills {place}: wait for its end");
            return Err(CliError::usage(message));
        }
        Err(error) => print_warnings(&[format!(
            "{place} cannot be locked ({error}): let no other command fill it at the same time"
        )]),
    }
    Ok(file)
}

/// Refuses kits that have a file of the record's name.
pub(super) fn check_names(listing: &Listing) -> Result<(), CliError> {
    let own = [record::NAME, record::LOCK, record::NEW].map(str::as_bytes);
    let is_own = |entry: &&Entry| {
        let first = entry.path.0.split(|&byte| byte == b'/').next().unwrap_or_default();
        own.contains(&first)
    };
    match listing.below.iter().find(is_own) {
        Some(entry) => {
            let message = format!(
                "the kit has `{}`, a name that kitfs uses for its own record in a filled folder; \
                 `kitfs cp -r` copies such a kit",
                printable(&entry.path.0)
            );
            Err(CliError::new(FailureKind::BadContent, message))
        }
        None => Ok(()),
    }
}

/// The entries at and below `paths`, and the directories that lead to them.
pub(super) async fn choose<'a>(
    kit: &OpenKit,
    listing: &'a Listing,
    paths: &[RawPath],
) -> Result<Vec<&'a Entry>, CliError> {
    if paths.is_empty() {
        return Ok(listing.below.iter().collect());
    }
    let mut wanted = Vec::new();
    for path in paths {
        // The daemon knows how a path is written, and the reason why one is not there.
        wanted.push(kit.list(path.clone(), false).await?.entry.path.0);
    }
    let is_at_or_below = |path: &[u8], at: &[u8]| {
        at.is_empty() || path == at || path.strip_prefix(at).is_some_and(|rest| rest[0] == b'/')
    };
    let is_chosen = |entry: &&Entry| {
        let path = &entry.path.0;
        wanted.iter().any(|at| {
            let leads = entry.kind == EntryKind::Directory && is_at_or_below(at, path);
            leads || is_at_or_below(path, at)
        })
    };
    Ok(listing.below.iter().filter(is_chosen).collect())
}
