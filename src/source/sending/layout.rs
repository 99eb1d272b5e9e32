//! An OCI layout folder as a destination, as skopeo and oras read it (image-spec, image-layout.md).
//!
//! ```text
//! FOLDER/.kitfs-NUMBER.part --all bytes, right digest, fsync--> FOLDER/blobs/sha256/HEX
//!        .kitfs-NUMBER.part --fsync---------------------------> FOLDER/index.json
//! ```
//!
//! Files appear by rename, and the folder is synced after each rename. So after a crash, a file of the layout is
//! complete or missing. Blobs need no lock, because two writers of one blob write the same bytes. A lock on the
//! folder (flock) is held while `index.json` is read, changed and replaced. So two writers lose no tag of each
//! other. A part file is locked while it is written. A part file without a lock belongs to a dead process, and the
//! next writer removes it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::layout_index::with_manifest;
use super::{
    Content, Destination, Put, Replaces, SendError, SentManifest, blocking, is_intact, write,
};
use crate::oci::{BlobId, Digest, Reference, Selector};
use crate::source::blob_folder::{self, read_small};
use crate::source::image_index::INDEX_LIMIT_BYTES;
use crate::source::oci_layout::OciLayout;
use crate::source::{Repository, SourceError};

/// The content of `oci-layout` (image-spec, image-layout.md).
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An `index.json` without manifests.
const NO_MANIFESTS: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// The names of part files.
const PART_PREFIX: &str = ".kitfs-";
const PART_SUFFIX: &str = ".part";

/// The most part files of processes with one number. 1,000: a command writes five at once, and containers
/// that share a folder may share the number.
const PARTS_LIMIT: usize = 1000;

/// Writes into an OCI layout folder.
pub struct OciLayoutWriter {
    folder: Arc<PathBuf>,
    /// The repository in the names of tags, if the folder has kits of several.
    repository: Option<String>,
}

impl OciLayoutWriter {
    /// Opens a layout folder, or makes one.
    ///
    /// # Errors
    /// Fails where the folder is not empty and no layout, or cannot be written.
    pub async fn open(folder: PathBuf, repository: Option<String>) -> Result<Self, SendError> {
        let folder = Arc::new(folder);
        let prepared = Arc::clone(&folder);
        blocking(move || prepare(&prepared)).await?;
        Ok(Self { folder, repository })
    }

    fn layout(&self) -> Result<OciLayout, SendError> {
        Ok(OciLayout::open(&self.folder)?.of_repository(self.repository.clone()))
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    /// The name of a tag in the index.
    fn name_of(&self, tag: &str) -> String {
        match &self.repository {
            Some(repository) => format!("{repository}:{tag}"),
            None => tag.to_owned(),
        }
    }
}

impl Destination for OciLayoutWriter {
    fn name(&self) -> String {
        format!("oci:{}", self.folder.display())
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Digest>, SendError>> {
        let (folder, name) = (Arc::clone(&self.folder), self.name_of(tag));
        blocking(move || Ok(named(&folder, &name)?)).boxed()
    }

    fn has_manifest(&self, digest: Digest) -> BoxFuture<'_, Result<bool, SendError>> {
        async move {
            let selector = Selector::Digest(digest);
            is_intact(self.layout()?.manifest(Some(&selector)).await)
        }
        .boxed()
    }

    fn has_blob(&self, blob: BlobId) -> BoxFuture<'_, Result<bool, SendError>> {
        let path = self.blob_path(blob.digest);
        // A damaged blob counts as missing, so it is replaced.
        blocking(move || Ok(blob_folder::is_intact(&path, blob))).boxed()
    }

    fn put_blob<'a>(
        &'a self,
        content: &'a Arc<Content>,
        _others: &'a [Reference],
    ) -> BoxFuture<'a, Result<Put, SendError>> {
        async move {
            let folder = Arc::clone(&self.folder);
            let part = blocking(move || Part::create(&folder)).await?;
            let part = write(content, part, Part::write).await?;
            let path = self.blob_path(content.blob().digest);
            blocking(move || part.appear(&path)).await?;
            Ok(Put::Sent)
        }
        .boxed()
    }

    fn put_manifest<'a>(
        &'a self,
        manifest: &'a SentManifest,
        tag: Option<&'a str>,
        replaces: Replaces,
    ) -> BoxFuture<'a, Result<(), SendError>> {
        let (folder, manifest) = (Arc::clone(&self.folder), manifest.clone());
        let (place, tag) = (self.name(), tag.map(str::to_owned));
        let name = tag.as_deref().map(|tag| self.name_of(tag));
        let blob_path = self.blob_path(manifest.digest);
        blocking(move || {
            Part::create(&folder)?.write(&manifest.bytes)?.appear(&blob_path)?;
            let _lock = lock(&folder)?;
            if let (Some(tag), Some(name), Replaces::Nothing) = (&tag, &name, replaces) {
                replaces.check(&place, tag, named(&folder, name)?, manifest.digest)?;
            }
            let path = folder.join("index.json");
            let before = read_small(&path, INDEX_LIMIT_BYTES)?;
            let after = with_manifest(before.as_deref(), &manifest, name.as_deref());
            let after = after.ok_or_else(|| SourceError::Protocol {
                place: path.display().to_string(),
                detail: "not an image index: correct it, or choose another folder".to_owned(),
            })?;
            if after.len() as u64 > INDEX_LIMIT_BYTES {
                let detail = format!("it would have more than {INDEX_LIMIT_BYTES} bytes");
                return Err(
                    SourceError::Protocol { place: path.display().to_string(), detail }.into()
                );
            }
            Part::create(&folder)?.write(&after)?.appear(&path)
        })
        .boxed()
    }
}

/// The manifest with exactly this name in the index. Blocks.
fn named(folder: &Path, name: &str) -> Result<Option<Digest>, SourceError> {
    let index = OciLayout::open(folder)?.index()?;
    let has_name = |names: &[crate::source::image_index::RefName]| {
        names.iter().any(|one| one.to_string() == name)
    };
    Ok(index.entries.iter().rfind(|entry| has_name(&entry.names)).map(|entry| entry.digest))
}

/// Makes the folder a layout, and removes what dead writers have left. Blocks.
fn prepare(folder: &Path) -> Result<(), SendError> {
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, error))?;
    let _lock = lock(folder)?;
    let marker = folder.join("oci-layout");
    if !marker.exists() {
        let entries = folder.read_dir().map_err(|error| unwritable(folder, error))?;
        if entries.flatten().any(|entry| !is_of_a_layout(&entry.path())) {
            return Err(SourceError::Configuration {
                what: format!("oci:{}", folder.display()),
                detail: "the folder has files and is no OCI layout: name an empty or a new folder"
                    .to_owned(),
            }
            .into());
        }
    }
    remove_leftovers(folder);
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|error| unwritable(&blobs, error))?;
    // The marker comes last: a folder without it is no layout yet.
    let index = folder.join("index.json");
    if !marker.exists() && !index.exists() {
        Part::create(folder)?.write(NO_MANIFESTS)?.appear(&index)?;
    }
    if !marker.exists() {
        Part::create(folder)?.write(MARKER)?.appear(&marker)?;
    }
    OciLayout::open(folder)?;
    Ok(())
}

/// Whether a killed writer can have left this file in a new folder.
fn is_of_a_layout(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name == "blobs" || name == "index.json" || is_part(path)
}

fn is_part(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(PART_PREFIX) && name.ends_with(PART_SUFFIX)
}

/// Removes part files that no process has locked.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = folder.read_dir() else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| is_part(path)) {
        let file = File::options().read(true).open(&path);
        let is_left =
            file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if is_left {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Locks the folder until the file is dropped. Blocks.
fn lock(folder: &Path) -> Result<File, SendError> {
    let file = File::open(folder).map_err(|error| unwritable(folder, error))?;
    blob_folder::lock(&file).map_err(|error| unwritable(folder, error))?;
    Ok(file)
}

/// A file that gets its name when it is complete. Dropping it removes the incomplete file.
struct Part {
    file: Option<File>,
    path: PathBuf,
}

impl Part {
    /// Makes a part file with an unused name, and locks the file.
    fn create(folder: &Path) -> Result<Self, SendError> {
        let process = std::process::id();
        for number in 0..PARTS_LIMIT {
            let path = folder.join(format!("{PART_PREFIX}{process}-{number}{PART_SUFFIX}"));
            let file = match File::options().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(unwritable(&path, error)),
            };
            // Another writer may have taken the file for a leftover before it was locked.
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            if locked != Err(Errno::WOULDBLOCK)
                && file.metadata().is_ok_and(|file| file.nlink() > 0)
            {
                return Ok(Self { file: Some(file), path });
            }
        }
        let busy = std::io::Error::new(ErrorKind::ResourceBusy, "too many writers");
        Err(unwritable(folder, busy))
    }

    fn write(mut self, bytes: &[u8]) -> Result<Self, SendError> {
        let file = self.file.as_mut().expect("it is open until it appears");
        match file.write_all(bytes) {
            Ok(()) => Ok(self),
            Err(error) => Err(unwritable(&self.path, error)),
        }
    }

    /// Gives the file its name.
    fn appear(mut self, to: &Path) -> Result<(), SendError> {
        let file = self.file.take().expect("it appears once");
        file.sync_all().map_err(|error| unwritable(&self.path, error))?;
        std::fs::rename(&self.path, to).map_err(|error| unwritable(to, error))?;
        let folder = to.parent().expect("a file has a folder");
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        let synced = synced.map_err(|error| unwritable(folder, error));
        // The temporary name is gone, so there is nothing to remove.
        self.path = PathBuf::new();
        synced
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn unwritable(path: &Path, error: std::io::Error) -> SendError {
    SendError::Unwritable { path: path.display().to_string(), error: Arc::new(error) }
}
