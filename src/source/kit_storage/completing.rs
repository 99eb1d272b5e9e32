//! Downloads a missing blob into kit's storage, so that `kit` can use the kit too.

use std::io::Write as _;

use futures_util::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::writing::{StorageError, StorageWriter};
use crate::oci::{BlobId, Digest};
use crate::source::{BlobSource, SourceError, Urgency};

/// Pieces on their way from the network to the disk: enough that neither waits for the other.
const PIECES: usize = 16;

/// Downloads a blob, checks its digest, and stores the blob. Calls `progress` with the bytes of each piece.
///
/// # Errors
/// Fails if the source or the disk fails, or the digest is wrong. The outer error is the source's.
pub async fn complete(
    source: &dyn BlobSource,
    writer: &StorageWriter,
    blob: BlobId,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Result<(), StorageError>, SourceError> {
    let (sender, mut pieces) = mpsc::channel::<bytes::Bytes>(PIECES);
    let writer = writer.clone();
    let write = tokio::task::spawn_blocking(move || -> Result<Option<Digest>, StorageError> {
        let mut file = writer.begin()?;
        let mut hasher = Sha256::new();
        while let Some(piece) = pieces.blocking_recv() {
            hasher.update(&piece);
            file.write_all(&piece).map_err(|error| file.failed(error))?;
        }
        let got = Digest::from_sha256(hasher.finalize().into());
        if file.size() != blob.size || got != blob.digest {
            return Ok(Some(got));
        }
        file.commit(got)?;
        Ok(None)
    });
    let read = read(source, blob, sender, progress).await;
    let written = match write.await {
        Ok(written) => written,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    // A full disk ends the reading too, so the error of the writer counts.
    match (read, written) {
        (_, Err(error)) => Ok(Err(error)),
        (Err(error), _) => Err(error),
        (Ok(()), Ok(None)) => Ok(Ok(())),
        (Ok(()), Ok(Some(got))) => Err(SourceError::DigestMismatch {
            what: format!("blob {}", blob.digest),
            place: source
                .place()
                .or(source.host().map(|host| host.to_string()))
                .unwrap_or_default(),
            expected: blob.digest,
            got,
        }),
    }
}

async fn read(
    source: &dyn BlobSource,
    blob: BlobId,
    sender: mpsc::Sender<bytes::Bytes>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<(), SourceError> {
    if blob.size == 0 {
        return Ok(());
    }
    let mut stream = source.open(blob, blob.whole(), Urgency::opening()).await?;
    while let Some(piece) = stream.bytes.next().await {
        let piece = piece?;
        progress(piece.len());
        if sender.send(piece).await.is_err() {
            // The writer has failed, and has the error.
            break;
        }
    }
    Ok(())
}
