//! Copies a file from the cache into a file that a command has opened, without passing its bytes on.
//!
//! Only big files of confirmed layers qualify: the cache has them in files of their own, and hands such a
//! file out only when every chunk was checked (`cache::backing`). The command never sees the cache's file, so it
//! cannot change it, and needs no right to read it. On Btrfs, XFS and the like the copy shares the blocks.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{copy_file_range, ftruncate, ioctl_ficlone};
use rustix::io::Errno;
use tokio::task::spawn_blocking;

use super::failure::panicked;
use super::paths::{self, LastLink};
use crate::cache::{Backing, BackingLookup, LayerStore};
use crate::control::api::{Cloned, Failure, FailureKind, RawPath};
use crate::fetch::FetchError;
use crate::fs::{LoadedKit, StoredFile};
use crate::layer::StreamOffset;

/// The bytes of one system call: between two of them, the copy checks that its command still waits.
const STEP_BYTES: usize = 64 * 1024 * 1024;

/// Ends a copy whose command is gone.
struct EndOnDrop(Arc<AtomicBool>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Copies the file at `path` into `target`, which is empty. `None` if the cache has no file of it, or the
/// kernel cannot copy between the two; `target` is empty then, too.
///
/// # Errors
/// When the path is not in the kit, the layer is poisoned, or the target cannot be written.
pub(super) async fn clone(
    kit: Arc<LoadedKit>,
    path: &RawPath,
    target: OwnedFd,
) -> Result<Option<Cloned>, Failure> {
    let node = paths::find(&kit, path, LastLink::Keep)?;
    let Some(file) = StoredFile::of(&kit, node).filter(|file| file.extents.is_contiguous()) else {
        return Ok(None);
    };
    let (store, stored) = (file.layer.store().clone(), file.extents.stored());
    let is_over = Arc::new(AtomicBool::new(false));
    let guard = EndOnDrop(is_over.clone());
    let work = spawn_blocking(move || {
        let is_wanted = || !is_over.load(Ordering::Relaxed);
        match backing(&store, &stored, &is_wanted)? {
            Some(backing) => copy(&backing, &target, stored.end - stored.start, &is_wanted),
            None => Ok(None),
        }
    });
    let cloned = work.await.map_err(panicked)?;
    drop(guard);
    cloned
}

/// The cache's own file of a member, with every chunk checked.
fn backing(
    store: &Arc<LayerStore>,
    stored: &std::ops::Range<StreamOffset>,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Option<Backing>, Failure> {
    // The second pass finds the file that the first one has checked.
    for _ in 0..2 {
        match store.backing(stored).map_err(FetchError::from)? {
            BackingLookup::Ready(backing) => return Ok(Some(backing)),
            BackingLookup::Unchecked(member) => {
                member.check(is_wanted).map_err(FetchError::from)?;
            }
            BackingLookup::NotNow | BackingLookup::Never => return Ok(None),
        }
    }
    Ok(None)
}

fn copy(
    backing: &Backing,
    target: &OwnedFd,
    bytes: u64,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Option<Cloned>, Failure> {
    let failed = |error: Errno| {
        let kind = FailureKind::Usage;
        Err(Failure::new(kind, format!("cannot write the copy: {error}")))
    };
    if ioctl_ficlone(target.as_fd(), backing.as_fd()).is_ok() {
        return Ok(Some(Cloned::Shared));
    }
    let (mut from, mut to) = (0, 0);
    while to < bytes && is_wanted() {
        let step = STEP_BYTES.min(usize::try_from(bytes - to).unwrap_or(usize::MAX));
        match copy_file_range(backing, Some(&mut from), target, Some(&mut to), step) {
            // The file is shorter than it should be: reading finds out why.
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::IO)) => {
                return failed(error);
            }
            // Another file system, or one that cannot.
            Err(_) => break,
        }
    }
    if to == bytes {
        return Ok(Some(Cloned::Copied));
    }
    match ftruncate(target, 0) {
        Ok(()) => Ok(None),
        Err(error) => failed(error),
    }
}
