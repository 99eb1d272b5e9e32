//! Manifests and configs, kept by digest: `kits/sha256/<hex>/document`, and the same in `copy`. Beside
//! them the file `mtime` keeps the second that dates a manifest (see [`Cache::date_manifest`]).
//!
//! A document is compared with its digest when it is read, so it needs no other checksum. Without its manifest a
//! complete kit cannot be mounted offline, so a damaged document is restored from its copy.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Durability, Place, Root, TEMPORARY};
use super::known::Shared;
use super::{Cache, CacheError};
use crate::layer::Mtime;
use crate::oci::{Descriptor, Digest, Document};

/// The folder of documents, below the cache folder.
const KITS: &str = "kits/sha256";
const NAME: &str = "document";
const COPY: &str = "copy";
const MTIME: &str = "mtime";
/// The length limit of an `mtime` file: more than the digits of any second up to 2106.
const MTIME_LIMIT_BYTES: u64 = 16;

/// The largest document: a manifest has at most 4 MiB; a config with long Kitfile parameters may
/// have more, and sixteen times that is still read in a moment.
const DOCUMENT_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// Documents that were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Their number.
    pub documents: u64,
    /// Their bytes, copies not counted.
    pub bytes: u64,
}

impl Cache {
    /// Keeps a manifest, index or config (`kits/`); its digest was verified by the caller. A document that is there
    /// is not written again, because the time of its file says when it was first seen.
    ///
    /// # Errors
    /// None: if the disk does not take the document, the log says so, and the document is fetched again.
    pub fn put_document(&self, digest: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        if self.document(digest).is_some() {
            return Ok(());
        }
        if bytes.len() as u64 > DOCUMENT_LIMIT_BYTES {
            tracing::warn!(%digest, bytes = bytes.len(), "a document is too large to be kept");
            return Ok(());
        }
        let room = 2 * bytes.len() as u64;
        if let Err(error) = self.shared.with_room(room, || self.write_document(digest, bytes)) {
            tracing::warn!(%error, "a document is not kept");
        }
        Ok(())
    }

    fn write_document(&self, digest: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let _no_clean_up = self.shared.keeping_documents.lock();
        let folder = self.folder_of(digest);
        folder.create_folder()?;
        folder.join(NAME).write(bytes, Durability::Synced)?;
        // After a power cut the copy may be damaged; its digest tells.
        folder.join(COPY).write(bytes, Durability::Atomic)?;
        self.shared.root.place(KITS).sync_folder()
    }

    /// A document that was kept. `None` if it is missing, or its bytes no longer have the digest.
    pub fn document(&self, digest: Digest) -> Option<Bytes> {
        let folder = self.folder_of(digest);
        if let Some(bytes) = read(&folder.join(NAME), digest) {
            return Some(bytes);
        }
        let copy = folder.join(COPY);
        let bytes = read(&copy, digest)?;
        tracing::warn!(%digest, "a document of the cache was damaged: it is made again from its copy");
        let document = folder.join(NAME);
        let _no_clean_up = self.shared.keeping_documents.lock();
        match document.write(&bytes, Durability::Synced) {
            Ok(()) => document.set_modified(copy.modified()),
            Err(error) => tracing::warn!(%error, "a document was not made again"),
        }
        Some(bytes)
    }

    /// Checks each document and its copy, and restores a damaged or lost one from the other.
    ///
    /// # Errors
    /// [`CacheError::Io`] when documents cannot be listed.
    pub fn verify_documents(&self) -> Result<(), CacheError> {
        for hex in self.shared.root.place(KITS).names()? {
            let Some(digest) = Digest::from_hex(&hex) else { continue };
            let Some(bytes) = self.document(digest) else { continue };
            let copy = self.folder_of(digest).join(COPY);
            if read(&copy, digest).is_none() {
                let _no_clean_up = self.shared.keeping_documents.lock();
                copy.write(&bytes, Durability::Synced)?;
            }
        }
        Ok(())
    }

    /// The time at which a document was kept, in whole seconds; `None` where it is not there.
    pub fn document_first_seen(&self, digest: Digest) -> Option<Mtime> {
        let document = self.folder_of(digest).join(NAME);
        document.exists().then(|| Mtime::nearest(document.modified()))
    }

    /// The second since 1970 that dates a document; `None` if none was given or the file is damaged.
    pub(super) fn document_second(&self, digest: Digest) -> Option<i64> {
        read_second(&self.folder_of(digest))
    }

    /// The seconds that date all documents.
    pub(super) fn document_seconds(&self) -> HashSet<i64> {
        let kits = self.shared.root.place(KITS);
        let names = kits.names().unwrap_or_default();
        names.iter().filter_map(|hex| read_second(&kits.join(hex))).collect()
    }

    /// Keeps the second that dates a document.
    ///
    /// The file is not synced: after a power cut the document may be dated anew.
    pub(super) fn put_document_second(&self, digest: Digest, second: i64) {
        let _no_clean_up = self.shared.keeping_documents.lock();
        let text = format!("{second}\n");
        let written = self.folder_of(digest).join(MTIME).write(text.as_bytes(), Durability::Atomic);
        if let Err(error) = written {
            tracing::warn!(%error, "the date of a manifest is not kept: its Kitfile is dated anew after a restart");
        }
    }

    fn folder_of(&self, digest: Digest) -> Place {
        self.shared.root.place(KITS).join(digest.hex())
    }

    /// Removes the documents of kits without a layer in the cache, and the notes about these kits. Other kits keep
    /// their documents: manifests, the configs that these name, and the indexes that name these.
    ///
    /// # Errors
    /// [`CacheError::Io`] when documents cannot be listed or removed.
    pub fn clear_documents(&self) -> Result<Cleared, CacheError> {
        let kits = self.shared.root.place(KITS);
        let digests: Vec<Digest> =
            kits.names()?.iter().filter_map(|hex| Digest::from_hex(hex)).collect();
        let kept = self.documents_in_use(&digests);
        let mut cleared = Cleared::default();
        for digest in digests.into_iter().filter(|digest| !kept.contains(digest)) {
            let folder = self.folder_of(digest);
            let bytes = folder.join(NAME).length().or(folder.join(COPY).length());
            folder.remove_folder()?;
            cleared.documents += 1;
            cleared.bytes += bytes.unwrap_or(0);
        }
        let layers = self.shared.all_known().iter().map(|known| known.key.folder_name()).collect();
        self.note(|state| state.forget(|manifest| !kept.contains(manifest), &layers));
        Ok(cleared)
    }

    fn documents_in_use(&self, digests: &[Digest]) -> BTreeSet<Digest> {
        let layers: BTreeSet<Digest> = self
            .shared
            .all_known()
            .iter()
            .filter(|known| known.meta.read().is_some())
            .map(|known| known.key.digest)
            .collect();
        let mut used = BTreeSet::new();
        let mut indexes = Vec::new();
        for &digest in digests {
            let document = self.document(digest).and_then(|bytes| Document::decode(&bytes).ok());
            let is_kept = |layer: &Descriptor| layers.contains(&layer.digest);
            match document {
                Some(Document::Manifest(manifest)) if manifest.layers.iter().any(is_kept) => {
                    used.extend([digest, manifest.config.digest]);
                }
                Some(Document::Index(index)) => indexes.push((digest, index)),
                // A config is kept if its manifest is.
                Some(Document::Manifest(_)) | None => {}
            }
        }
        for (digest, index) in indexes {
            if index.entries.iter().any(|entry| used.contains(&entry.descriptor.digest)) {
                used.insert(digest);
            }
        }
        used
    }
}

/// The second in the `mtime` file of a document's folder, if it is one that dates files.
fn read_second(folder: &Place) -> Option<i64> {
    let bytes = folder.join(MTIME).read(MTIME_LIMIT_BYTES).ok()??;
    let second = std::str::from_utf8(&bytes).ok()?.strip_suffix('\n')?.parse().ok()?;
    Mtime::new(second, 0).map(|_| second)
}

/// The bytes of a file, if they are those of the digest.
fn read(place: &Place, digest: Digest) -> Option<Bytes> {
    match place.read(DOCUMENT_LIMIT_BYTES) {
        Ok(bytes) => bytes.filter(|bytes| Digest::of(bytes) == digest).map(Bytes::from),
        Err(error) => {
            tracing::warn!(%error, "a document of the cache cannot be read");
            None
        }
    }
}

/// Makes the folder of documents.
pub(super) fn prepare(root: &Arc<Root>) -> Result<(), CacheError> {
    let kits = root.place(KITS);
    if kits.exists() {
        return Ok(());
    }
    kits.create_folder()?;
    root.place("kits").sync_folder()
}

/// Removes the temporary files that an interrupted process left; ends early once `is_wanted` says no.
pub(super) fn clean_up(shared: &Shared, is_wanted: &dyn Fn() -> bool) {
    let kits = shared.root.place(KITS);
    let clean = |folder: &Place| -> Result<(), CacheError> {
        // A document that is just being written has a temporary file, too.
        let _nobody_writes = shared.keeping_documents.lock();
        for name in folder.names()?.iter().filter(|name| name.ends_with(TEMPORARY)) {
            folder.join(name).remove_file()?;
        }
        Ok(())
    };
    let cleaned = kits.names().and_then(|names| {
        let folders = names.iter().map(|hex| kits.join(hex)).filter(Place::is_folder);
        folders.take_while(|_| is_wanted()).try_for_each(|folder| clean(&folder))
    });
    let synced = || shared.root.place("kits").sync_folder();
    if let Err(error) = cleaned.and_then(|()| synced()) {
        tracing::warn!(%error, "the documents of the cache were not cleaned up");
    }
}
