//! `--complete`: downloads the layers that a new version takes from its base.

use std::path::Path;

use crate::cli::error::CliError;
use crate::cli::output::byte_bar;
use crate::control::api::{Failure, NetworkOptions};
use crate::daemon::sources_of_command;
use crate::oci::{BlobId, Origin};
use crate::pack::PackError;
use crate::source::Repositories;
use crate::source::kit_storage::complete;
use crate::source::kit_storage::writing::StorageWriter;

/// Downloads the blobs of the kit at `origin` that kit's storage lacks.
pub(super) async fn complete_all(
    home: &Path,
    origin: &Origin,
    blobs: Vec<BlobId>,
    network: &NetworkOptions,
) -> Result<(), CliError> {
    let writer = StorageWriter::open(home).map_err(PackError::from)?;
    let looking = writer.clone();
    let missing = tokio::task::spawn_blocking(move || {
        // A damaged blob is downloaded again.
        blobs.into_iter().filter(|blob| !looking.is_intact(*blob)).collect::<Vec<_>>()
    });
    let missing =
        missing.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    let bar = byte_bar(missing.iter().map(|blob| blob.size).sum(), "downloading");
    let sources = sources_of_command(network).map_err(Failure::from)?;
    let repository = sources.open(origin).map_err(Failure::from)?;
    for blob in missing {
        let advance = |bytes: usize| bar.inc(bytes as u64);
        let completed = complete(&repository, &writer, blob, &advance).await;
        completed.map_err(Failure::from)?.map_err(PackError::from)?;
    }
    bar.finish_and_clear();
    Ok(())
}
