//! The upkeep of the cache: `kitfs cache ls|rm|clear|verify`. Blocking.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::mounts::Mounts;
use crate::cache::{Cache, CacheError, LayerKey, LayerUsage};
use crate::control::api::{CacheReport, CacheRequest, CachedLayer, Failure, FailureKind, KitState};
use crate::fs::State;
use crate::oci::{Compression, Digest, Encoding, Format, Origin};

/// The fewest digits of a digest that stand for it.
const LEAST_DIGITS: usize = 8;
/// The most layers that a message names as possible meanings.
const MOST_CANDIDATES: usize = 4;
/// The longest wait until a layer without a mount is no longer in use: longer than a read takes.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
const RELEASE_INTERVAL: Duration = Duration::from_millis(10);

/// Carries out `request`. Mounted layers stay as they are, and the report names them.
pub(super) fn run(
    cache: &Arc<Cache>,
    mounts: &Mounts,
    request: &CacheRequest,
) -> Result<CacheReport, Failure> {
    let layers = cache.layers()?;
    match request {
        CacheRequest::List => {
            let layers = layers.iter().map(cached_layer).collect();
            Ok(CacheReport { layers, ..CacheReport::default() })
        }
        CacheRequest::Clear => {
            let mut report = remove(cache, mounts, &layers)?;
            match cache.clear_documents() {
                Ok(cleared) => {
                    report.removed_documents = cleared.documents;
                    report.removed_bytes += cleared.bytes;
                }
                Err(error) => report.failed.push(error.to_string()),
            }
            Ok(report)
        }
        CacheRequest::Remove(what) => {
            let keys = layers_of(cache, &layers, what)?;
            let meant = layers.into_iter().filter(|layer| keys.contains(&layer.key));
            remove(cache, mounts, &meant.collect::<Vec<_>>())
        }
        CacheRequest::Verify => verify(cache, &layers),
    }
}

/// The layers that `what` names: a layer's digest, a manifest's digest, the first digits of one, or a
/// reference.
fn layers_of(
    cache: &Cache,
    layers: &[LayerUsage],
    what: &str,
) -> Result<HashSet<LayerKey>, Failure> {
    let mut keys = HashSet::new();
    let mut names = vec![what.to_owned()];
    match Digest::parse(what) {
        Ok(digest) => {
            let named = layers.iter().map(|layer| layer.key).filter(|key| key.digest == digest);
            keys.extend(named);
        }
        Err(_) if is_short_digest(what) => {
            let of_layers = layers.iter().map(|layer| layer.key.digest);
            let digests = of_layers.chain(cache.manifests()).map(|digest| digest.to_string());
            let digests: BTreeSet<String> =
                digests.filter(|digest| digest.starts_with(what)).collect();
            if digests.len() > 1 {
                let some: Vec<String> = digests.into_iter().take(MOST_CANDIDATES).collect();
                let message = format!("{what} begins several digests: {}", some.join(", "));
                return Err(Failure::new(FailureKind::Usage, message));
            }
            let named = layers.iter().map(|layer| layer.key);
            keys.extend(named.filter(|key| digests.contains(&key.digest.to_string())));
            names.extend(digests);
        }
        Err(_) => names.push(Origin::parse(what)?.to_string()),
    }
    keys.extend(names.iter().flat_map(|name| cache.layers_of_kit(name)));
    if keys.is_empty() {
        let message = format!("nothing in the cache belongs to {what}; see `kitfs cache ls`");
        return Err(Failure::new(FailureKind::NotFound, message));
    }
    Ok(keys)
}

/// Whether it is a digest as tables show it: its algorithm and its first digits.
fn is_short_digest(what: &str) -> bool {
    let hex = what.strip_prefix("sha256:").unwrap_or_default();
    hex.len() >= LEAST_DIGITS && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn remove(
    cache: &Arc<Cache>,
    mounts: &Mounts,
    layers: &[LayerUsage],
) -> Result<CacheReport, Failure> {
    let mut report = CacheReport::default();
    // Of all layers together: they are let go of at the same time.
    let deadline = Instant::now() + RELEASE_PATIENCE;
    for layer in layers {
        let digest = layer.key.digest;
        match remove_layer(cache, mounts, layer.key, deadline) {
            Ok(freed_bytes) => {
                report.removed_bytes += freed_bytes;
                report.layers.push(cached_layer(layer));
            }
            Err(CacheError::InUse(_)) => report.kept.push(match mounts.mountpoint_of(layer.key) {
                Some(mountpoint) => {
                    let place = mountpoint.display();
                    format!("{digest} is mounted at {place}; end that with `kitfs umount {place}`")
                }
                None => format!("{digest} is being read"),
            }),
            Err(error) => report.failed.push(error.to_string()),
        }
    }
    Ok(report)
}

/// Removes a layer. A read or a check that is about to end may still hold a layer that no mount has open.
fn remove_layer(
    cache: &Arc<Cache>,
    mounts: &Mounts,
    key: LayerKey,
    deadline: Instant,
) -> Result<u64, CacheError> {
    loop {
        match cache.remove_layer(key) {
            Err(CacheError::InUse(_))
                if mounts.mountpoint_of(key).is_none() && Instant::now() < deadline =>
            {
                std::thread::sleep(RELEASE_INTERVAL);
            }
            result => return result,
        }
    }
}

fn verify(cache: &Arc<Cache>, layers: &[LayerUsage]) -> Result<CacheReport, Failure> {
    let mut report = CacheReport::default();
    for layer in layers {
        let found = match cache.verify_layer(layer.key) {
            Ok(found) => found,
            Err(error) => {
                report.failed.push(error.to_string());
                continue;
            }
        };
        report.checked_bytes += found.checked_bytes;
        report.dropped_chunks += found.dropped_chunks;
        if found.dropped_chunks > 0 {
            tracing::warn!(layer = %layer.key.digest, chunks = found.dropped_chunks,
                "dropped chunks that the local disk had changed");
        }
    }
    if let Err(error) = cache.verify_documents() {
        report.failed.push(error.to_string());
    }
    // As they are now, after the check.
    report.layers = cache.layers()?.iter().map(cached_layer).collect();
    Ok(report)
}

fn cached_layer(layer: &LayerUsage) -> CachedLayer {
    CachedLayer {
        digest: layer.key.digest.to_string(),
        encoding: encoding_name(layer.key.encoding).to_owned(),
        blob_bytes: layer.blob_bytes,
        stream_bytes: layer.stream_bytes,
        resident_bytes: layer.resident_bytes,
        unchecked_bytes: layer.unchecked_bytes,
        state: kit_state(layer.state.clone().into()),
        references: layer.origins.clone(),
        last_used: layer.last_used,
    }
}

pub(super) fn kit_state(state: State) -> KitState {
    match state {
        State::Confirmed => KitState::Confirmed,
        State::Unconfirmed => KitState::Unconfirmed,
        State::Poisoned => KitState::Poisoned,
    }
}

pub(super) fn encoding_name(encoding: Encoding) -> &'static str {
    match (encoding.format, encoding.compression) {
        (Format::Tar, Compression::None) => "tar",
        (Format::Tar, Compression::Gzip) => "tar+gzip",
        (Format::Tar, Compression::Zstd) => "tar+zstd",
        (Format::Raw, Compression::None) => "raw",
        (Format::Raw, Compression::Gzip) => "raw+gzip",
        (Format::Raw, Compression::Zstd) => "raw+zstd",
        (Format::Object, _) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;

    /// Three layers, two of which have digests that begin alike.
    #[test]
    fn the_first_digits_of_a_digest_name_one_layer_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
        let encoding = Encoding { format: Format::Raw, compression: Compression::None };
        let with_digits = |first, last| {
            let mut digest = [first; 32];
            digest[31] = last;
            LayerKey { digest: Digest::from_sha256(digest), encoding }
        };
        let keys = [with_digits(0xaa, 1), with_digits(0xaa, 2), with_digits(0xbb, 1)];
        for key in keys {
            cache.layer(key, 10).unwrap();
        }
        let named = |what: &str| layers_of(&cache, &cache.layers().unwrap(), what);
        let manifest = Digest::from_sha256([0xdd; 32]);
        cache.record_kit("a", manifest, &keys[1..]).unwrap();
        assert_eq!(named("sha256:dddddddd").unwrap(), HashSet::from([keys[1], keys[2]]));
        assert_eq!(named("sha256:bbbbbbbb").unwrap(), HashSet::from([keys[2]]));
        assert_eq!(named(&keys[0].digest.to_string()).unwrap(), HashSet::from([keys[0]]));
        let ambiguous = named("sha256:aaaaaaaa").unwrap_err();
        assert_eq!(ambiguous.kind, FailureKind::Usage);
        for key in &keys[..2] {
            assert!(ambiguous.message.contains(&key.digest.to_string()), "{ambiguous:?}");
        }
        assert_eq!(named("sha256:cccccccc").unwrap_err().kind, FailureKind::NotFound);
        assert!(named("sha256:bbbbbbb").is_err(), "too few digits");
    }
}
