//! The one sequential pass that a compressed layer takes.
//!
//! ```text
//! spool (bytes kept by an interrupted pass) --.
//! source --pieces (bounded)--> writer thread: '-> sha256 -> decode -> tar scan -> cache
//!                                       '--> spool
//! ```
//!
//! A pass caches all bytes of the stream, as far as there is room. Of other bytes it keeps the seals, which verify
//! the bytes when they are fetched again. The compressed bytes are spooled as they come. So a pass that was cut
//! short (a restart, a lost network) goes on where it stopped, and fetches nothing twice. The spool is deleted when
//! the pass is done, or when its room is needed. The blob's digest is known at the end. So a compressed layer is
//! confirmed, or refused, before any of its bytes are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::staging::{self, Staging};
use super::{FetchError, LayerSpec};
use crate::cache::{Contents, LayerStore, Stage};
use crate::layer::decode::{Decoder, Windows};
use crate::layer::layout::MOST_STREAM_BYTES;
use crate::layer::tar::Scanner;
use crate::layer::{StreamOffset, Toc};
use crate::oci::{BlobOffset, Compression, Digest, Format};
use crate::source::admission::UserId;
use crate::source::{BlobSource, Urgency};

/// Pieces between the network and the writer. 16: at the usual 16 to 64 KiB a piece they are up to 1 MiB. That
/// keeps the network busy while the writer waits for the disk once.
const PIECES: usize = 16;
/// The memory that a pass may take beside its decoder: its pieces, each at most an HTTP client's
/// buffer of some 400 KiB, and buffers.
const PASS_MEMORY_BYTES: u64 = PIECES as u64 * 400 * 1024 + 1024 * 1024;
/// The bytes that are decoded or read back from the spool at a time.
const BUFFER_BYTES: usize = 256 * 1024;
/// The interval at which a running pass calls `progress`.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The memory that a pass may take with `windows`, in bytes.
pub(super) fn memory_bytes(compression: Compression, windows: Windows) -> u64 {
    PASS_MEMORY_BYTES + windows.memory_bytes(compression)
}

/// Fetches, verifies, decodes and caches the whole layer, and makes its contents known.
///
/// # Errors
/// [`FetchError::LargeWindow`] where `windows` are too small. The next pass gets the bytes that have come.
pub(super) async fn run(
    spec: LayerSpec,
    windows: Windows,
    store: &Arc<LayerStore>,
    source: &Arc<dyn BlobSource>,
    user: UserId,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Arc<Contents>, FetchError> {
    let opening = Urgency::opening().of_user(user);
    let mut staging = staging_of(spec, staging::begin(store).await?);
    let mut resumed = BlobOffset(staging.stage().spool_bytes());
    if resumed > spec.blob.end() {
        staging.restart()?;
        resumed = BlobOffset(0);
    }
    let mut result = attempt(spec, windows, staging, source, resumed, &opening, progress).await;
    if resumed > BlobOffset(0)
        && let Err(error) = &result
        && is_about_content(error)
    {
        // The spooled bytes on the local disk may be the wrong ones, so the next pass fetches all bytes from the
        // source.
        tracing::warn!(layer = %spec.blob.digest, %error, "fetching a compressed layer again from its start");
        let mut staging = staging_of(spec, staging::begin(store).await?);
        staging.restart()?;
        result = attempt(spec, windows, staging, source, BlobOffset(0), &opening, progress).await;
    }
    if result.as_ref().is_err_and(is_about_content) {
        // Wrong bytes must not take disk space.
        staging::begin(store).await?.restart()?;
    }
    result
}

fn staging_of(spec: LayerSpec, stage: Stage) -> Staging {
    match spec.encoding.format {
        Format::Tar => Staging::new(stage),
        Format::Raw | Format::Object => Staging::raw(stage),
    }
}

fn is_about_content(error: &FetchError) -> bool {
    matches!(
        error,
        FetchError::Malformed { .. } | FetchError::Poisoned { .. } | FetchError::Cache(_)
    )
}

async fn attempt(
    spec: LayerSpec,
    windows: Windows,
    staging: Staging,
    source: &Arc<dyn BlobSource>,
    resumed: BlobOffset,
    urgency: &Urgency,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Arc<Contents>, FetchError> {
    let passed = Arc::new(AtomicU64::new(0));
    let (pieces, incoming) = mpsc::channel::<Bytes>(PIECES);
    let pass = Pass::new(spec, windows, staging, passed.clone());
    let mut writer = tokio::task::spawn_blocking(move || pass.drain(incoming));
    let feed = feed(spec, source, resumed, urgency.clone(), pieces);
    tokio::pin!(feed);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let mut fed = Ok(());
    let mut is_feeding = true;
    let written = loop {
        tokio::select! {
            result = &mut feed, if is_feeding => (fed, is_feeding) = (result, false),
            written = &mut writer => break written,
            _ = ticks.tick() => progress(passed.load(Ordering::Relaxed)),
        }
    };
    let written = written.map_err(|error| FetchError::malformed(spec.blob, error))?;
    // A source that failed leaves the writer with a short blob, so its error is the cause.
    fed?;
    written
}

/// Sends the bytes that the spool does not have yet.
async fn feed(
    spec: LayerSpec,
    source: &Arc<dyn BlobSource>,
    resumed: BlobOffset,
    urgency: Urgency,
    pieces: mpsc::Sender<Bytes>,
) -> Result<(), FetchError> {
    if resumed >= spec.blob.end() {
        return Ok(());
    }
    let mut stream = source.open(spec.blob, resumed..spec.blob.end(), urgency).await?;
    let mut skip = resumed - stream.range.start;
    while let Some(piece) = stream.bytes.next().await {
        let mut piece = piece?;
        let skipped = piece.split_to(skip.min(piece.len() as u64) as usize);
        skip -= skipped.len() as u64;
        if !piece.is_empty() && pieces.send(piece).await.is_err() {
            // The writer has failed, and reports its error itself.
            return Ok(());
        }
    }
    Ok(())
}

/// The writer's side of a pass.
struct Pass {
    spec: LayerSpec,
    staging: Staging,
    passed: Arc<AtomicU64>,
    hasher: Sha256,
    decoder: Decoder,
    scanner: Option<Scanner>,
    at: StreamOffset,
    buffer: Vec<u8>,
    /// The first fault of the content. The rest of the blob is still hashed, because a wrong digest would be the
    /// cause of the fault.
    fault: Option<FetchError>,
}

impl Pass {
    fn new(spec: LayerSpec, windows: Windows, staging: Staging, passed: Arc<AtomicU64>) -> Self {
        let scanner = match spec.encoding.format {
            Format::Tar => Some(Scanner::new()),
            Format::Raw | Format::Object => None,
        };
        Self {
            spec,
            staging,
            passed,
            hasher: Sha256::new(),
            decoder: Decoder::new(spec.encoding.compression, windows),
            scanner,
            at: StreamOffset(0),
            buffer: vec![0; BUFFER_BYTES],
            fault: None,
        }
    }

    fn drain(mut self, mut incoming: mpsc::Receiver<Bytes>) -> Result<Arc<Contents>, FetchError> {
        self.replay_spool()?;
        while let Some(piece) = incoming.blocking_recv() {
            if self.fault.is_none() {
                self.staging.stage().spool_append(&piece)?;
            }
            self.take(&piece)?;
        }
        self.finish()
    }

    fn replay_spool(&mut self) -> Result<(), FetchError> {
        let end = self.staging.stage().spool_bytes();
        self.staging.stage().use_spool(true);
        let mut piece = vec![0; BUFFER_BYTES];
        let mut offset = 0;
        while offset < end {
            let read = self.staging.stage().spool_read(offset, &mut piece)?;
            if read == 0 {
                break;
            }
            self.take(&piece[..read])?;
            offset += read as u64;
        }
        self.staging.stage().use_spool(false);
        Ok(())
    }

    /// Hashes, decodes and stages compressed bytes.
    fn take(&mut self, compressed: &[u8]) -> Result<(), FetchError> {
        self.hasher.update(compressed);
        self.passed.fetch_add(compressed.len() as u64, Ordering::Relaxed);
        if self.fault.is_some() {
            return Ok(());
        }
        match self.decode(compressed) {
            Err(fault @ FetchError::Malformed { .. }) => {
                self.fault = Some(fault);
                Ok(())
            }
            result => result,
        }
    }

    fn decode(&mut self, mut compressed: &[u8]) -> Result<(), FetchError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = loop {
            match self.decoder.decode(&mut compressed, &mut buffer) {
                Ok(0) if compressed.is_empty() => break Ok(()),
                Ok(decoded) => {
                    if let Err(error) = self.stage(&buffer[..decoded]) {
                        break Err(error);
                    }
                }
                Err(error) => break Err(FetchError::undecodable(self.spec.blob, error)),
            }
        };
        self.buffer = buffer;
        result
    }

    fn stage(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let end = self.at + bytes.len() as u64;
        if end.get() > MOST_STREAM_BYTES {
            return Err(FetchError::malformed(
                self.spec.blob,
                "it decompresses to more than 16 TiB",
            ));
        }
        if let Some(scanner) = &mut self.scanner {
            if self.at <= scanner.next_offset() {
                scanner
                    .feed(self.at, bytes)
                    .map_err(|error| FetchError::malformed(self.spec.blob, error))?;
            }
            self.staging.learn(scanner.members());
        }
        self.staging.write(self.at, bytes)?;
        self.at = end;
        Ok(())
    }

    fn finish(mut self) -> Result<Arc<Contents>, FetchError> {
        let blob = self.spec.blob;
        let is_whole = self.passed.load(Ordering::Relaxed) == blob.size;
        let got = Digest::from_sha256(std::mem::take(&mut self.hasher).finalize().into());
        if is_whole && got != blob.digest {
            return Err(FetchError::Poisoned { expected: blob.digest, got });
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.decoder.finish().map_err(|error| FetchError::malformed(blob, error))?;
        let toc = match self.scanner.take() {
            Some(scanner) => {
                scanner.finish(self.at.get()).map_err(|error| FetchError::malformed(blob, error))?
            }
            None => Toc::raw(self.at.get()),
        };
        let (stage, covered) = self.staging.into_parts()?;
        Ok(stage.finish(toc, &covered, Some(got))?)
    }
}
