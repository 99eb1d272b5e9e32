//! Manifests and configs, kept by digest: `kits/sha256/<hex>/document`.
//!
//! Read back they are checked against their digest, so no other checksum is needed.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Durability, Place, Root, TEMPORARY};
use super::{Cache, CacheError};
use crate::layer::Mtime;
use crate::oci::Digest;

/// The folder of documents, below the cache folder.
const KITS: &str = "kits/sha256";

/// The largest document: a manifest has at most 4 MiB; a config with long Kitfile parameters may
/// have more, and sixteen times that is still read in a moment.
const DOCUMENT_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

impl Cache {
    /// Keeps a manifest or config (`kits/`); its digest was verified by the caller. One that is there
    /// stays as it is, because its file's time says when it was first seen.
    pub fn put_document(&self, digest: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let folder = self.shared.root.place(KITS).join(digest.hex());
        let document = folder.join("document");
        if self.document(digest).is_some() {
            return Ok(());
        }
        if bytes.len() as u64 > DOCUMENT_LIMIT_BYTES {
            let why = format!("it has more than {DOCUMENT_LIMIT_BYTES} bytes");
            return Err(CacheError::other("keep", &document.path(), why));
        }
        folder.create_folder()?;
        document.write(bytes, Durability::Synced)?;
        self.shared.root.place(KITS).sync_folder()
    }

    /// A manifest or config that was kept; checked against its digest, `None` when it is not
    /// there or no longer what its digest says.
    pub fn document(&self, digest: Digest) -> Option<Bytes> {
        let document = self.shared.root.place(KITS).join(digest.hex()).join("document");
        let bytes = match document.read(DOCUMENT_LIMIT_BYTES) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(%error, "a document of the cache cannot be read: it is fetched again");
                return None;
            }
        };
        (Digest::of(&bytes) == digest).then(|| bytes.into())
    }

    /// When a manifest or config was kept, in whole seconds; `None` where it is not there.
    pub fn document_first_seen(&self, digest: Digest) -> Option<Mtime> {
        let document = self.shared.root.place(KITS).join(digest.hex()).join("document");
        document.exists().then(|| Mtime::nearest(document.modified()))
    }
}

/// Makes the folder of documents, and removes the temporary files that an interrupted process left.
pub(super) fn prepare(root: &Arc<Root>) -> Result<(), CacheError> {
    let kits = root.place(KITS);
    kits.create_folder()?;
    root.place("kits").sync_folder()?;
    for hex in kits.names()? {
        let folder: Place = kits.join(hex);
        for name in folder.names()? {
            if name.ends_with(TEMPORARY) {
                folder.join(name).remove_file()?;
            }
        }
    }
    Ok(())
}
