//! Writes kits into kit's own local storage, in the format of kit 1.11.
//!
//! Crash safety. A blob is a file without a name until all of its bytes are on the disk; one call then gives the
//! file its name. An index is written beside the old one, and a rename replaces the old one. The order is: blobs,
//! manifest, the repository's index, the common index, origins, tags. So an index names existing blobs only. A
//! killed process leaves at most blobs that no index names.
//!
//! Other processes. kitfs commands lock `storage/.kitfs.lock` while they compare and change an index, and give up
//! after half a minute. kit locks nothing, and writes an index in place. So kitfs reads a torn index again a few
//! times before the index counts as damaged. If kit and kitfs change one index at the same moment, a change can be
//! lost, as with two processes of kit.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use serde_json::{Map, Value, json};

use super::Origins;
use crate::oci::{BlobId, Digest};
use crate::source::blob_folder;
use crate::source::image_index::INDEX_LIMIT_BYTES;

/// The attempts to read a torn index, and the pause between two: kit writes an index in less than a millisecond.
const READS: u32 = 5;
const READ_PAUSE: Duration = Duration::from_millis(40);
/// Names of files that are not complete. Nothing else in the storage begins so.
const UNFINISHED: &str = ".kitfs-unfinished-";

/// kit's local storage, to add kits to it.
#[derive(Clone, Debug)]
pub struct StorageWriter {
    storage: PathBuf,
}

/// The failure of a write. Messages name the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file of the storage could not be written.
    #[error("cannot write {}: {error}{}", path.display(), advice(error))]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// An index is not in the format of kit. kitfs does not replace the file, because that would lose its kits.
    #[error("{} is damaged: {detail}; move the file away, or repair it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault.
        detail: String,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; free space there, or set KITOPS_HOME to a folder on another disk"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; set KITOPS_HOME to a folder that you can write"
        }
        _ => "",
    }
}

/// A kit to file under a repository.
#[derive(Clone, Debug)]
pub struct Filing<'a> {
    /// The repository with its host: `localhost/model`.
    pub repository: &'a str,
    /// The manifest, whose blob is stored.
    pub manifest: BlobId,
    /// The tags that name the kit from now on.
    pub tags: &'a [String],
    /// The places of layers that the storage lacks.
    pub origins: &'a Origins,
}

impl StorageWriter {
    /// Opens the storage below `kitops_home`, and makes it where there is none. Blocks.
    ///
    /// # Errors
    /// Fails if a folder cannot be made.
    pub fn open(kitops_home: &Path) -> Result<Self, StorageError> {
        let storage = kitops_home.join("storage");
        let blobs = storage.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|error| failed(&blobs, error))?;
        let writer = Self { storage };
        let layout = writer.storage.join("oci-layout");
        if !layout.is_file() {
            writer.replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(writer)
    }

    /// Whether the storage has a blob with its size. Blocks.
    pub fn has(&self, blob: BlobId) -> bool {
        let metadata = self.blob(blob.digest).symlink_metadata();
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size)
    }

    /// Whether the storage has a blob with its size and digest. Reads all of the blob, and blocks.
    pub fn is_intact(&self, blob: BlobId) -> bool {
        blob_folder::is_intact(&self.blob(blob.digest), blob)
    }

    /// Begins a blob. Blocks.
    ///
    /// # Errors
    /// Fails if no file can be made.
    pub fn begin(&self) -> Result<BlobWriter, StorageError> {
        let folder = self.storage.join("blobs/sha256");
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(BlobWriter { file: file.into(), folder, name: None, size: 0 }),
            // Not every file system has files without a name.
            Err(
                rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR | rustix::io::Errno::NOENT,
            ) => {
                let (file, name) = unfinished(&folder)?;
                Ok(BlobWriter { file, folder, name: Some(name), size: 0 })
            }
            Err(error) => Err(failed(&folder, error.into())),
        }
    }

    /// Stores a small blob. Returns whether it is new. Blocks.
    ///
    /// # Errors
    /// Fails if the blob cannot be written.
    pub fn store(&self, content: &[u8]) -> Result<(BlobId, bool), StorageError> {
        let blob = BlobId { digest: Digest::of(content), size: content.len() as u64 };
        if self.is_intact(blob) {
            return Ok((blob, false));
        }
        let mut writer = self.begin()?;
        let folder = writer.folder.clone();
        writer.write_all(content).map_err(|error| failed(&folder, error))?;
        Ok((blob, writer.commit(blob.digest)?))
    }

    /// Names a stored kit in the indexes. Returns the tags that named another kit before, with its digest.
    /// Blocks, also while another kitfs files a kit.
    ///
    /// # Errors
    /// Fails if an index cannot be read or written, or is damaged. The kit may then be in some of them.
    pub fn file(&self, filing: &Filing<'_>) -> Result<Vec<(String, Digest)>, StorageError> {
        self.file_if(filing, |_, _| Ok(()))
    }

    /// As [`Self::file`], if `may` returns no error for any tag and the kit that it names now. No other kitfs moves
    /// a tag between the check and the change.
    ///
    /// # Errors
    /// Also the error of `may`; nothing has changed then.
    pub fn file_if<E: From<StorageError>>(
        &self,
        filing: &Filing<'_>,
        may: impl Fn(&str, Option<Digest>) -> Result<(), E>,
    ) -> Result<Vec<(String, Digest)>, E> {
        let lock = self.storage.join(".kitfs.lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock);
        let file = file.map_err(|error| failed(&lock, error))?;
        blob_folder::lock(&file).map_err(|error| failed(&lock, error))?;
        let name = URL_SAFE.encode(filing.repository);
        let tags = read_object(&self.storage.join(format!("{name}-tags.json")))?;
        for tag in filing.tags {
            may(tag, tags.get(tag).and_then(digest_of))?;
        }
        Ok(self.file_locked(filing)?)
    }

    /// Names a kit in the indexes, under the lock.
    fn file_locked(&self, filing: &Filing<'_>) -> Result<Vec<(String, Digest)>, StorageError> {
        remove_unfinished(&self.storage);
        let manifest = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": filing.manifest.digest,
            "size": filing.manifest.size,
        });
        let name = URL_SAFE.encode(filing.repository);
        for index in [format!("{name}-index.json"), "index.json".to_owned()] {
            self.change(&self.storage.join(index), |index| add_manifest(index, &manifest))?;
        }
        self.add_origins(&self.storage.join(format!("{name}-origins.json")), filing.origins)?;
        let mut moved = Vec::new();
        if !filing.tags.is_empty() {
            self.change(&self.storage.join(format!("{name}-tags.json")), |tags| {
                for tag in filing.tags {
                    let before = tags.insert(tag.clone(), manifest.clone());
                    moved.extend(
                        before
                            .as_ref()
                            .and_then(digest_of)
                            .filter(|it| *it != filing.manifest.digest)
                            .map(|it| (tag.clone(), it)),
                    );
                }
                Ok(())
            })?;
        }
        Ok(moved)
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.storage.join("blobs/sha256").join(digest.hex())
    }

    fn add_origins(&self, path: &Path, new: &Origins) -> Result<(), StorageError> {
        if new.is_empty() {
            return Ok(());
        }
        let damaged = |detail| StorageError::Damaged { path: path.to_owned(), detail };
        let mut origins = match read(path)? {
            Some(json) => Origins::decode(&json).map_err(damaged)?,
            None => Origins::default(),
        };
        origins.extend(new);
        let json = origins.encode();
        check_size(json.len()).map_err(damaged)?;
        self.replace(path, &json)
    }

    /// Changes a JSON object in a file, and leaves its other fields as they are.
    fn change(
        &self,
        path: &Path,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), String>,
    ) -> Result<(), StorageError> {
        let damaged = |detail: String| StorageError::Damaged { path: path.to_owned(), detail };
        let mut object = read_object(path)?;
        let before = object.clone();
        change(&mut object).map_err(damaged)?;
        if object == before {
            return Ok(());
        }
        let json = Value::Object(object).to_string();
        check_size(json.len()).map_err(damaged)?;
        self.replace(path, json.as_bytes())
    }

    /// Replaces a file by rename.
    fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        let (mut file, unfinished) = unfinished(&self.storage)?;
        let written = file.write_all(content).and_then(|()| file.sync_all());
        let renamed = written.and_then(|()| std::fs::rename(&unfinished, path));
        if let Err(error) = renamed {
            // The first failure counts.
            let _ = std::fs::remove_file(&unfinished);
            return Err(failed(path, error));
        }
        sync_folder(&self.storage)
    }
}

/// The digest of a descriptor.
fn digest_of(descriptor: &Value) -> Option<Digest> {
    Digest::parse(descriptor["digest"].as_str()?).ok()
}

/// Whether a reader would take a file of so many bytes.
fn check_size(bytes: usize) -> Result<(), String> {
    match bytes as u64 > INDEX_LIMIT_BYTES {
        true => Err(format!("it would have {bytes} bytes, and {INDEX_LIMIT_BYTES} are read")),
        false => Ok(()),
    }
}

/// A blob that is being written.
pub struct BlobWriter {
    file: File,
    folder: PathBuf,
    /// The file's name until the blob is complete, where the file system needs one.
    name: Option<PathBuf>,
    size: u64,
}

impl BlobWriter {
    /// The bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The error for a write that failed.
    pub fn failed(&self, error: io::Error) -> StorageError {
        failed(&self.folder, error)
    }

    /// Makes the blob part of the storage. Returns whether the blob is new. An equal blob stays, and a damaged one
    /// is replaced. The caller has computed the digest of the written bytes. Blocks.
    ///
    /// # Errors
    /// Fails if the bytes do not reach the disk.
    pub fn commit(mut self, digest: Digest) -> Result<bool, StorageError> {
        let path = self.folder.join(digest.hex());
        if blob_folder::is_intact(&path, BlobId { digest, size: self.size }) {
            return Ok(false);
        }
        self.file.sync_all().map_err(|error| failed(&path, error))?;
        let named = match self.name.take() {
            Some(unfinished) => std::fs::rename(&unfinished, &path).inspect_err(|_| {
                // The first failure counts.
                let _ = std::fs::remove_file(&unfinished);
            }),
            None => self.link(&path),
        };
        named.map_err(|error| failed(&path, error))?;
        sync_folder(&self.folder)?;
        Ok(true)
    }

    /// Gives the file its name.
    fn link(&self, path: &Path) -> io::Result<()> {
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let link = |path: &Path| rustix::fs::linkat(CWD, &file, CWD, path, AtFlags::SYMLINK_FOLLOW);
        match link(path) {
            Ok(()) => Ok(()),
            // The existing file is damaged; old versions of kit leave such files on a full disk.
            Err(rustix::io::Errno::EXIST) => {
                let beside = self.folder.join(format!("{UNFINISHED}{}", fresh_name()));
                link(&beside)?;
                std::fs::rename(&beside, path).inspect_err(|_| {
                    // The first failure counts.
                    let _ = std::fs::remove_file(&beside);
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // The file is not needed, and the next command removes it.
            let _ = std::fs::remove_file(name);
        }
    }
}

/// A new file, locked while it is open, so that other processes can tell it from a leftover.
fn unfinished(folder: &Path) -> Result<(File, PathBuf), StorageError> {
    let path = folder.join(format!("{UNFINISHED}{}", fresh_name()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed(&path, error.into()))?;
    let file = File::from(file);
    // On a file system without locks, leftovers stay.
    let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    Ok((file, path))
}

/// A name that no other file has.
fn fresh_name() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds each state at random.
    RandomState::new().hash_one(std::process::id())
}

/// Removes files of commands that were killed.
fn remove_unfinished(storage: &Path) {
    for folder in [storage.to_owned(), storage.join("blobs/sha256")] {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        let is_unfinished =
            |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with(UNFINISHED));
        for entry in entries.filter(|entry| is_unfinished(&entry.file_name())) {
            let Ok(file) = File::open(entry.path()) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                // A leftover costs disk space and nothing else.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn add_manifest(index: &mut Map<String, Value>, manifest: &Value) -> Result<(), String> {
    index.entry("schemaVersion").or_insert(json!(2));
    let manifests = index.entry("manifests").or_insert(Value::Null);
    if manifests.is_null() {
        *manifests = json!([]);
    }
    let manifests = manifests.as_array_mut().ok_or("`manifests` is not a list")?;
    if !manifests.iter().any(|it| it["digest"] == manifest["digest"]) {
        manifests.push(manifest.clone());
    }
    Ok(())
}

/// An object in a file; empty where there is no file.
fn read_object(path: &Path) -> Result<Map<String, Value>, StorageError> {
    let mut detail = String::new();
    for read_before in 0..READS {
        if read_before > 0 {
            std::thread::sleep(READ_PAUSE);
        }
        let Some(json) = read(path)? else { return Ok(Map::new()) };
        match serde_json::from_slice(&json) {
            Ok(Value::Object(object)) => return Ok(object),
            Ok(Value::Null) => return Ok(Map::new()),
            Ok(_) => detail = "it is not a JSON object".to_owned(),
            Err(error) => detail = error.to_string(),
        }
    }
    Err(StorageError::Damaged { path: path.to_owned(), detail })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    super::read_small(path, INDEX_LIMIT_BYTES)
        .map_err(|error| StorageError::Damaged { path: path.to_owned(), detail: error.to_string() })
}

fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(|error| failed(folder, error))
}

fn failed(path: &Path, error: io::Error) -> StorageError {
    StorageError::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
