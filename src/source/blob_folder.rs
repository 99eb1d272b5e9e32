//! The `blobs/sha256` folder of an OCI layout: blobs as files named by their digest.
//!
//! File names are made from parsed digests only, so no text of an index or a request can name another file. An open
//! never follows a symbolic link, and never waits for the other end of a FIFO. Only regular files of the expected
//! size are read. Blocking tasks read a piece at a time. So a slow disk never holds up the runtime, and an idle
//! stream costs one piece of memory.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::try_unfold;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{BlobStream, MANIFEST_LIMIT_BYTES, SourceError};
use crate::oci::{BlobId, BlobOffset, Digest};
use crate::process::running_time::Stopwatch;

/// The bytes that are read at once. 256 KiB: the hop to a blocking task (some 10 µs) is small beside the time of
/// the disk, and hundreds of streams fit in memory.
const PIECE_BYTES: u64 = 256 * 1024;

/// The longest wait for another writer's lock. 30 s: a writer holds the lock for milliseconds, on a slow network
/// file system for seconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// The interval between two attempts: short for a person.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Blobs as files of a folder.
#[derive(Clone, Debug)]
pub(super) struct BlobFolder {
    folder: PathBuf,
    place: String,
    hint: &'static str,
}

impl BlobFolder {
    /// The blobs of the layout `layout`. Messages name the layout `place`, and have the advice `hint` where a blob
    /// is missing.
    pub(super) fn new(layout: &Path, place: String, hint: &'static str) -> Self {
        Self { folder: layout.join("blobs/sha256"), place, hint }
    }

    /// The size of a blob, in bytes.
    ///
    /// # Errors
    /// As for [`BlobFolder::read_manifest`], without reading the content.
    pub(super) async fn size(&self, digest: Digest) -> Result<u64, SourceError> {
        let folder = self.clone();
        off_the_runtime(move || Ok(folder.open_file(digest)?.1)).await
    }

    /// Whether the folder has a blob with its size. Blocks.
    pub(super) fn has(&self, blob: BlobId) -> bool {
        self.open_file(blob.digest).is_ok_and(|(_, size)| size == blob.size)
    }

    /// Opens a stream over `range` of a blob.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] without such a file, [`SourceError::Protocol`] where it is not a
    /// regular file or has another size.
    pub(super) async fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
    ) -> Result<BlobStream, SourceError> {
        debug_assert!(range.start < range.end && range.end <= blob.end(), "{range:?} of {blob:?}");
        let folder = self.clone();
        let (file, size) = off_the_runtime(move || folder.open_file(blob.digest)).await?;
        let path = self.path(blob.digest);
        if size != blob.size {
            return Err(self.wrong(&path, &format!("has {size} bytes instead of {}", blob.size)));
        }
        Ok(BlobStream { range: range.clone(), bytes: pieces(Arc::new(file), path, range) })
    }

    /// Reads a whole manifest and checks its digest. Blocks.
    ///
    /// # Errors
    /// Also [`SourceError::DigestMismatch`], and [`SourceError::Protocol`] for a file that is too
    /// large to be a manifest.
    pub(super) fn read_manifest(&self, digest: Digest) -> Result<Bytes, SourceError> {
        let (file, size) = self.open_file(digest)?;
        let path = self.path(digest);
        if size > MANIFEST_LIMIT_BYTES {
            let limit = MANIFEST_LIMIT_BYTES;
            return Err(self.wrong(&path, &format!("has {size} bytes, a manifest at most {limit}")));
        }
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).map_err(|error| unreadable(&path, error))?;
        let got = Digest::of(&bytes);
        if got != digest {
            return Err(SourceError::DigestMismatch {
                what: format!("manifest {}", path.display()),
                place: self.place.clone(),
                expected: digest,
                got,
            });
        }
        Ok(bytes.into())
    }

    /// The file of a blob and its size.
    fn open_file(&self, digest: Digest) -> Result<(File, u64), SourceError> {
        let path = self.path(digest);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => {
                return Err(SourceError::NotFound {
                    what: format!("blob {digest}"),
                    place: self.place.clone(),
                    hint: self.hint.to_owned(),
                });
            }
            Err(Errno::LOOP) => {
                return Err(self.wrong(&path, "is a symbolic link, and links are not followed"));
            }
            Err(error) => return Err(unreadable(&path, error.into())),
        };
        let metadata = file.metadata().map_err(|error| unreadable(&path, error))?;
        if !metadata.is_file() {
            return Err(self.wrong(&path, "is not a regular file"));
        }
        Ok((file, metadata.len()))
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn wrong(&self, path: &Path, detail: &str) -> SourceError {
        SourceError::Protocol {
            place: self.place.clone(),
            detail: format!("{} {detail}", path.display()),
        }
    }
}

/// Whether the file at `path` is a blob with the right size and digest. Reads all of it, and blocks.
pub(super) fn is_intact(path: &Path, blob: BlobId) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return false };
    let file = File::from(file);
    if !file.metadata().is_ok_and(|file| file.is_file() && file.len() == blob.size) {
        return false;
    }
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE_BYTES as usize]);
    let mut at = 0;
    while at < blob.size {
        match file.read_at(&mut piece, at) {
            Ok(read @ 1..) => {
                hasher.update(&piece[..read]);
                at += read as u64;
            }
            Ok(0) | Err(_) => return false,
        }
    }
    at == blob.size && Digest::from_sha256(hasher.finalize().into()) == blob.digest
}

/// Locks an open file against other writers until it is closed. Waits for a while, and blocks. On a file system
/// without locks, the file stays unlocked.
///
/// # Errors
/// [`std::io::ErrorKind::ResourceBusy`] where another writer keeps the lock.
pub(super) fn lock(file: &File) -> std::io::Result<()> {
    let mut watch = Stopwatch::start();
    let mut waited = Duration::ZERO;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if waited > LOCK_PATIENCE {
            let words =
                "another program has written there for half a minute; try again when it has ended";
            return Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, words));
        }
        std::thread::sleep(LOCK_INTERVAL);
        waited = watch.look();
    }
}

/// The bytes of `range`, read piece by piece.
fn pieces(
    file: Arc<File>,
    path: PathBuf,
    range: Range<BlobOffset>,
) -> futures_util::stream::BoxStream<'static, Result<Bytes, SourceError>> {
    try_unfold(range, move |rest| {
        let (file, path) = (Arc::clone(&file), path.clone());
        async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let length = PIECE_BYTES.min(rest.end - rest.start);
            let piece = off_the_runtime(move || {
                let mut piece = vec![0; length as usize];
                file.read_exact_at(&mut piece, rest.start.get())
                    .map_err(|error| unreadable(&path, error))?;
                Ok(Bytes::from(piece))
            });
            Ok(Some((piece.await?, rest.start + length..rest.end)))
        }
    })
    .boxed()
}

/// Reads a file of at most `limit_bytes`; `None` where there is none. Blocks.
pub(super) fn read_small(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
    use std::io::Read;
    // NONBLOCK: opening a FIFO must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(unreadable(path, error.into())),
    };
    let mut content = Vec::new();
    file.take(limit_bytes + 1)
        .read_to_end(&mut content)
        .map_err(|error| unreadable(path, error))?;
    if content.len() as u64 > limit_bytes {
        return Err(SourceError::Protocol {
            place: path.display().to_string(),
            detail: format!("larger than {limit_bytes} bytes"),
        });
    }
    Ok(Some(content))
}

/// Runs a blocking read outside the runtime's threads.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(SourceError::Unavailable {
                place: "the local disk".to_owned(),
                detail: "kitfs is shutting down".to_owned(),
            }),
        },
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> SourceError {
    SourceError::Io { path: path.display().to_string(), error: Arc::new(error) }
}
