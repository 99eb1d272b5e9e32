//! Which users of a shared cache may have a layer that is in it.
//!
//! A registry that lets a user have a manifest answers for the layers that the manifest names. But a digest is no
//! secret, and a user may run a registry. Its manifest could name a private layer of another registry, whose bytes
//! are in the cache. It could also send wrong bytes for a layer that others read.
//!
//! ```text
//! layer not in the cache ------------------------------> taken from this host; others are forgotten
//! layer from this host --------------------------------> shared
//! confirmed layer from another host --has the bytes?---> shared, and the host is remembered
//!                                        '--no---------> refused
//! layer from another host, not confirmed --------------> refused: its bytes may be wrong
//! ```
//!
//! A host proves that it has the bytes with samples, from places that only this process chooses. It must send all
//! bytes of compressed and small layers, and where the cache has few bytes to compare with.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use sha2::{Digest as _, Sha256};

use super::{FetchError, LayerSpec, Opener, off_the_runtime};
use crate::cache::{Cache, LayerState, LayerStore, Lookup};
use crate::layer::StreamOffset;
use crate::oci::{BlobOffset, Digest};
use crate::source::admission::UserId;
use crate::source::{BlobSource, SourceError, Urgency};

/// The bytes that are compared at each place: a page.
const SAMPLE_BYTES: u64 = 4096;
/// The places that are compared. 16: a host with nine tenths of the bytes passes one time in five, and its
/// user gets the last tenth. A host with half of them passes one time in 65,000.
const SAMPLES: usize = 16;
/// The places that are tried to find resident ones. 64: with less than about a quarter of the layer resident,
/// samples would lie in a few chunks. A host could have these chunks without the others.
const MOST_LOOKS: usize = 64;
/// Below this size, a host proves a layer with all of its bytes. 1 MiB: in a smaller layer the same page would be
/// chosen twice.
const SMALL_BYTES: u64 = 1024 * 1024;

/// Decides whether a user may have a layer from `source`.
///
/// # Errors
/// [`SourceError::Unauthorized`] where the host does not prove that it has the layer; else the error of the source.
pub(super) async fn admit(
    cache: &Arc<Cache>,
    spec: LayerSpec,
    store: &Arc<LayerStore>,
    source: &Arc<dyn BlobSource>,
    opener: Opener,
) -> Result<(), FetchError> {
    let Opener { user, is_vouched } = opener;
    let host = source.host().unwrap_or_else(|| "this machine".into());
    let name = match is_vouched {
        true => host.to_string(),
        // Other users may reach another host by this name.
        false => format!("{host} of user {}", user.0),
    };
    // The same blob with another encoding is another layer of the cache.
    let key = spec.key();
    let known = cache.clone();
    let hosts = off_the_runtime(move || known.hosts_of(key)).await;
    let is_known = hosts.contains(&name);
    let is_here = store.contents().is_some() || store.resident_bytes() > 0;
    if !is_here {
        // A host that was known before may have sent nothing, or a copy that is gone.
        if !is_known || hosts.len() > 1 {
            let (cache, only) = (cache.clone(), name.clone());
            let noted = off_the_runtime(move || {
                cache.note_only_host(key, &only);
                cache.hosts_of(key)
            });
            if noted.await.iter().any(|noted| *noted != name) {
                return Err(refused(spec, &host, "the disk takes no note of the host"));
            }
        }
        return Ok(());
    }
    if is_known {
        return Ok(());
    }
    if store.state() != LayerState::Confirmed {
        let detail = "the cache has a part of it from another host, and its digest is not known to be \
                      right yet";
        return Err(refused(spec, &host, detail));
    }
    if !has_the_bytes(spec, store, source, user).await? {
        return Err(refused(spec, &host, "that host has other bytes"));
    }
    let cache = cache.clone();
    off_the_runtime(move || cache.note_host(key, &name)).await;
    Ok(())
}

fn refused(spec: LayerSpec, host: &str, detail: &str) -> FetchError {
    FetchError::Source(SourceError::Unauthorized {
        place: host.to_owned(),
        detail: format!("layer {}: {detail}", spec.blob.digest),
        hint: "--cache-dir gives the command a cache of its own".to_owned(),
    })
}

async fn has_the_bytes(
    spec: LayerSpec,
    store: &Arc<LayerStore>,
    source: &Arc<dyn BlobSource>,
    user: UserId,
) -> Result<bool, FetchError> {
    let looked = store.clone();
    let samples = match spec.encoding.is_compressed() || spec.blob.size < SMALL_BYTES {
        true => Vec::new(),
        false => off_the_runtime(move || samples(&looked, spec.blob.size)).await,
    };
    if samples.len() < SAMPLES {
        return Ok(digest_of(spec, source, user).await? == spec.blob.digest);
    }
    let compare = |(range, ours): (Range<BlobOffset>, Vec<u8>)| async move {
        Ok::<bool, SourceError>(bytes_of(spec, range, source, user).await? == ours)
    };
    let compared = try_join_all(samples.into_iter().map(compare)).await?;
    Ok(compared.into_iter().all(|is_equal| is_equal))
}

/// Resident bytes at places that a host cannot foretell.
fn samples(store: &LayerStore, size: u64) -> Vec<(Range<BlobOffset>, Vec<u8>)> {
    let pages = size / SAMPLE_BYTES;
    let mut samples = Vec::new();
    for _ in 0..MOST_LOOKS {
        if samples.len() == SAMPLES {
            break;
        }
        // The hasher has random keys of the system.
        let page = RandomState::new().build_hasher().finish() % pages;
        let start = StreamOffset(page * SAMPLE_BYTES);
        let mut bytes = vec![0; SAMPLE_BYTES as usize];
        // Bytes that cannot be read prove nothing.
        if matches!(store.read(start, &mut bytes), Ok(Lookup::Hit)) {
            samples.push((start.in_uncompressed_blob().range(SAMPLE_BYTES), bytes));
        }
    }
    samples
}

/// The bytes that a source has at a place.
async fn bytes_of(
    spec: LayerSpec,
    range: Range<BlobOffset>,
    source: &Arc<dyn BlobSource>,
    user: UserId,
) -> Result<Vec<u8>, SourceError> {
    let urgency = Urgency::opening().of_user(user);
    let mut stream = source.open(spec.blob, range.clone(), urgency).await?;
    let (mut at, mut bytes) = (stream.range.start, Vec::new());
    // A source without ranges sends all of the blob.
    while at < range.end
        && let Some(piece) = stream.bytes.next().await
    {
        let piece = piece?;
        let end = at + piece.len() as u64;
        let wanted = range.start.max(at)..range.end.min(end);
        if !wanted.is_empty() {
            bytes.extend_from_slice(
                &piece[(wanted.start - at) as usize..(wanted.end - at) as usize],
            );
        }
        at = end;
    }
    Ok(bytes)
}

/// The digest of the bytes that a source has.
async fn digest_of(
    spec: LayerSpec,
    source: &Arc<dyn BlobSource>,
    user: UserId,
) -> Result<Digest, SourceError> {
    let mut hasher = Sha256::new();
    if spec.blob.size > 0 {
        let urgency = Urgency::opening().of_user(user);
        let mut stream = source.open(spec.blob, spec.blob.whole(), urgency).await?;
        while let Some(piece) = stream.bytes.next().await {
            hasher.update(&piece?);
        }
    }
    Ok(Digest::from_sha256(hasher.finalize().into()))
}
