//! kit's local storage as a destination.
//!
//! Repositories of the storage share their blobs, so a further name for a kit only adds to the indexes. A blob that
//! `kitfs pack` took by digest may be missing. Its origins are copied together with the kit's name.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    Content, Destination, Put, Replaces, SendError, SentManifest, blocking, is_intact, write,
};
use crate::oci::{BlobId, Digest, Document, Reference, Selector};
use crate::source::kit_storage::writing::{BlobWriter, Filing, StorageError, StorageWriter};
use crate::source::kit_storage::{KitStorage, Origins};
use crate::source::{Repository, SourceError};

/// Writes into one repository of kit's local storage.
pub struct KitStorageDestination {
    home: PathBuf,
    reference: Reference,
    writer: StorageWriter,
    /// The places of blobs that are not in the storage.
    origins: Origins,
}

impl KitStorageDestination {
    /// Opens the storage below `kitops_home`, and makes it where there is none. `origins` has the places of
    /// blobs that need not be stored.
    ///
    /// # Errors
    /// Fails if a folder cannot be made.
    pub async fn open(
        kitops_home: PathBuf,
        reference: Reference,
        origins: Origins,
    ) -> Result<Self, SendError> {
        let home = kitops_home.clone();
        let writer = blocking(move || Ok(StorageWriter::open(&kitops_home)?)).await?;
        Ok(Self { home, reference, writer, origins })
    }

    fn repository(&self) -> String {
        format!("{}/{}", self.reference.registry(), self.reference.repository())
    }

    /// The repository as it is now, whether it has a kit or not.
    fn storage(&self, digest: Digest) -> Result<KitStorage, SourceError> {
        KitStorage::open(&self.home, &self.reference.with_selector(Selector::Digest(digest)))
    }
}

impl Destination for KitStorageDestination {
    fn name(&self) -> String {
        format!("{} (kit's storage)", self.repository())
    }

    fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Digest>, SendError>> {
        async move { Ok(self.storage(Digest::of(b""))?.tagged(tag).await?) }.boxed()
    }

    fn has_manifest(&self, digest: Digest) -> BoxFuture<'_, Result<bool, SendError>> {
        async move {
            let selector = Selector::Digest(digest);
            is_intact(self.storage(digest)?.manifest(Some(&selector)).await)
        }
        .boxed()
    }

    fn has_blob(&self, blob: BlobId) -> BoxFuture<'_, Result<bool, SendError>> {
        let writer = self.writer.clone();
        blocking(move || Ok(writer.is_intact(blob))).boxed()
    }

    fn put_blob<'a>(
        &'a self,
        content: &'a Arc<Content>,
        _others: &'a [Reference],
    ) -> BoxFuture<'a, Result<Put, SendError>> {
        async move {
            let (writer, digest) = (self.writer.clone(), content.blob().digest);
            let file = blocking(move || Ok(writer.begin()?)).await?;
            let file = write(content, file, write_piece).await?;
            blocking(move || Ok(file.commit(digest)?)).await?;
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
        async move {
            if matches!(Document::decode(&manifest.bytes), Ok(Document::Index(_))) {
                return Err(SourceError::Configuration {
                    what: self.name(),
                    detail: "kit keeps single kits there, and this is an index: copy one of its kits by \
                             its digest, or the index to a folder (oci:FOLDER)"
                        .to_owned(),
                }
                .into());
            }
            let (place, digest) = (self.name(), manifest.digest);
            let (writer, origins) = (self.writer.clone(), self.origins.clone());
            let (repository, bytes) = (self.repository(), manifest.bytes.clone());
            let tags: Vec<String> = tag.into_iter().map(str::to_owned).collect();
            blocking(move || {
                let (manifest, _) = writer.store(&bytes)?;
                let (repository, tags, origins) = (&*repository, &*tags, &origins);
                let filing = Filing { repository, manifest, tags, origins };
                writer.file_if(&filing, |tag, before| replaces.check(&place, tag, before, digest))?;
                Ok::<_, SendError>(())
            })
            .await
        }
        .boxed()
    }
}

fn write_piece(mut file: BlobWriter, piece: &[u8]) -> Result<BlobWriter, SendError> {
    match file.write_all(piece) {
        Ok(()) => Ok(file),
        Err(error) => Err(file.failed(error).into()),
    }
}

impl From<StorageError> for SendError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io { path, error } => {
                Self::Unwritable { path: path.display().to_string(), error: Arc::new(error) }
            }
            StorageError::Damaged { path, detail } => {
                SourceError::Protocol { place: path.display().to_string(), detail }.into()
            }
        }
    }
}
