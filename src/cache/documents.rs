//! Manifests and configs, kept by digest: `kits/sha256/<hex>/document`.
//!
//! Read back they are checked against their digest, so no other checksum is needed.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files::{self, Durability};
use super::{Cache, CacheError};
use crate::oci::Digest;

/// The largest document: a manifest has at most 4 MiB; a config with long Kitfile parameters may
/// have more, and sixteen times that is still read in a moment.
const DOCUMENT_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

impl Cache {
    /// Keeps a manifest or config (`kits/`); its digest was verified by the caller.
    pub fn put_document(&self, digest: Digest, bytes: &[u8]) -> Result<(), CacheError> {
        let path = path(self.folder(), digest);
        if bytes.len() as u64 > DOCUMENT_LIMIT_BYTES {
            let why = format!("it has more than {DOCUMENT_LIMIT_BYTES} bytes");
            return Err(CacheError::other("keep", &path, why));
        }
        files::create_folder(path.parent().expect("a document lies in a folder"))?;
        files::write(&path, bytes, Durability::Synced)
    }

    /// A manifest or config that was kept; checked against its digest, `None` when it is not
    /// there or no longer what its digest says.
    pub fn document(&self, digest: Digest) -> Option<Bytes> {
        let path = path(self.folder(), digest);
        let bytes = match files::read(&path, DOCUMENT_LIMIT_BYTES) {
            Ok(bytes) => bytes?,
            Err(error) => {
                tracing::warn!(%error, "a document of the cache cannot be read: it is fetched again");
                return None;
            }
        };
        (Digest::of(&bytes) == digest).then(|| bytes.into())
    }
}

fn path(folder: &Path, digest: Digest) -> PathBuf {
    folder.join("kits").join("sha256").join(digest.hex()).join("document")
}

/// Removes what an interrupted process left beside documents.
pub(super) fn clean(folder: &Path) -> Result<(), CacheError> {
    let kits = folder.join("kits").join("sha256");
    for hex in files::names(&kits)? {
        let folder = kits.join(hex);
        for name in files::names(&folder)? {
            if name.ends_with(files::TEMPORARY) {
                files::remove_file(&folder.join(name))?;
            }
        }
    }
    Ok(())
}
