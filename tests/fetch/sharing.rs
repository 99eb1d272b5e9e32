//! A cache with several users, and layers that several hosts have.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kitfs::cache::{Cache, CacheConfig, LayerState};
use kitfs::fetch::{FetchConfig, FetchError, Fetcher, Layer, LayerSpec, Opener};
use kitfs::oci::{Compression, Format};
use kitfs::source::SourceError;
use kitfs::source::admission::UserId;

use super::memory::Memory;
use super::{MIB, content, read, tar_of, until};
use crate::support::kit_builder::gzip;

fn shared(folder: &Path) -> Arc<Fetcher> {
    let cache = Cache::open(CacheConfig::new(folder)).unwrap();
    Fetcher::new(cache, FetchConfig { has_users: true, ..FetchConfig::default() })
}

async fn open(
    fetcher: &Fetcher,
    spec: LayerSpec,
    source: &Arc<Memory>,
    user: u32,
) -> Result<Arc<Layer>, FetchError> {
    fetcher.open(spec, source.clone(), UserId(user), &|_| {}).await
}

fn is_refused(opened: &Result<Arc<Layer>, FetchError>) -> bool {
    matches!(opened, Err(FetchError::Source(SourceError::Unauthorized { .. })))
}

#[tokio::test]
async fn a_layer_is_fetched_once_for_all_users_of_its_host() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let first = Memory::at_host(content(1, 4 * MIB), "near.example");
    let layer = open(&fetcher, first.raw(), &first, 1).await.unwrap();
    // Before it is complete, too.
    let second = Memory::at_host(content(1, 4 * MIB), "near.example");
    let shared = open(&fetcher, first.raw(), &second, 2).await.unwrap();
    assert!(read(&layer, 0..2 * MIB).await.unwrap() == first.bytes[..2 * MIB]);
    assert!(read(&shared, 0..4 * MIB).await.unwrap() == first.bytes);
    assert_eq!(first.yielded() + second.yielded(), 4 * MIB as u64);
}

#[tokio::test]
async fn a_layer_of_another_host_is_shared_with_users_who_reach_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let private = Memory::at_host(content(1, 4 * MIB), "private.example");
    let layer = open(&fetcher, private.raw(), &private, 1).await.unwrap();
    assert!(read(&layer, 0..2 * MIB).await.is_ok());
    let mirror = Memory::at_host(content(1, 4 * MIB), "mirror.example");
    // Its bytes may be wrong as long as the digest is not known.
    assert!(is_refused(&open(&fetcher, private.raw(), &mirror, 2).await));
    assert_eq!(mirror.yielded(), 0);
    assert!(read(&layer, 0..4 * MIB).await.is_ok());
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);

    let lying = Memory::at_host(content(2, 4 * MIB), "lying.example");
    for _ in 0..2 {
        assert!(is_refused(&open(&fetcher, private.raw(), &lying, 3).await));
    }
    let mut near = content(1, 4 * MIB);
    near[..2 * MIB].fill(0);
    let partial = Memory::at_host(near, "partial.example");
    assert!(is_refused(&open(&fetcher, private.raw(), &partial, 3).await));

    let shared = open(&fetcher, private.raw(), &mirror, 2).await.unwrap();
    assert!(mirror.yielded() < MIB as u64, "{} bytes", mirror.yielded());
    let requests = mirror.requests.load(Ordering::SeqCst);
    assert!(read(&shared, 0..4 * MIB).await.unwrap() == private.bytes);
    open(&fetcher, private.raw(), &mirror, 4).await.unwrap();
    assert_eq!(mirror.requests.load(Ordering::SeqCst), requests, "the host has proved it");
}

#[tokio::test]
async fn a_compressed_layer_is_proved_by_all_of_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let blob = gzip(&tar_of(&[100_000, 200_000]));
    let private = Memory::at_host(blob.clone(), "private.example");
    let spec = private.spec(Format::Tar, Compression::Gzip);
    open(&fetcher, spec, &private, 1).await.unwrap();
    let mut wrong = blob.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let lying = Memory::at_host(wrong, "lying.example");
    assert!(is_refused(&open(&fetcher, spec, &lying, 2).await));
    let mirror = Memory::at_host(blob, "mirror.example");
    assert!(open(&fetcher, spec, &mirror, 2).await.is_ok());
}

#[tokio::test]
async fn hosts_that_have_a_layer_are_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::at_host(content(1, MIB), "near.example");
    {
        let fetcher = shared(folder.path());
        let layer = open(&fetcher, source.raw(), &source, 1).await.unwrap();
        assert!(read(&layer, 0..MIB / 2).await.is_ok());
    }
    until("the cache is free", || !Cache::is_held(folder.path())).await;
    let fetcher = shared(folder.path());
    open(&fetcher, source.raw(), &source, 2).await.unwrap();
    let other = Memory::at_host(content(1, MIB), "other.example");
    assert!(is_refused(&open(&fetcher, source.raw(), &other, 2).await));
}

#[tokio::test]
async fn a_host_that_a_user_reaches_by_a_proxy_counts_as_another_host() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let real = Memory::at_host(content(1, MIB), "near.example");
    let fake = Memory::at_host(content(2, MIB), "near.example");
    let opener = Opener { user: UserId(2), is_vouched: false };
    let layer = open(&fetcher, real.raw(), &real, 1).await.unwrap();
    let opened = fetcher.open(real.raw(), fake.clone(), opener, &|_| {}).await;
    assert!(is_refused(&opened));
    assert!(read(&layer, 0..MIB).await.unwrap() == real.bytes);
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    let opened = fetcher.open(real.raw(), fake.clone(), opener, &|_| {}).await;
    assert!(is_refused(&opened));
}

#[tokio::test]
async fn a_host_that_was_asked_in_vain_does_not_count_as_one_that_has_the_layer() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let private = Memory::at_host(tar_of(&[2 * MIB]), "private.example");
    let spec = private.spec(Format::Tar, Compression::None);
    // Nothing of it is in the cache yet, and nothing of use comes.
    let lying = Memory::at_host(content(2, private.bytes.len()), "lying.example");
    assert!(open(&fetcher, spec, &lying, 2).await.is_err());

    let layer = open(&fetcher, spec, &private, 1).await.unwrap();
    read(&layer, 0..private.bytes.len()).await.unwrap();
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    assert!(is_refused(&open(&fetcher, spec, &lying, 2).await));
}

#[tokio::test]
async fn a_host_of_a_layer_with_another_encoding_counts_for_that_encoding_only() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let private = Memory::at_host(tar_of(&[2 * MIB]), "private.example");
    let spec = private.spec(Format::Tar, Compression::None);
    open(&fetcher, spec, &private, 1).await.unwrap();
    let lying = Memory::at_host(content(2, private.bytes.len()), "lying.example");
    open(&fetcher, private.raw(), &lying, 2).await.unwrap();
    assert!(is_refused(&open(&fetcher, spec, &lying, 2).await));
}

#[tokio::test]
async fn hosts_stay_known_when_manifests_that_are_gone_are_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = shared(folder.path());
    let source = Memory::at_host(content(1, MIB), "near.example");
    let _layer = open(&fetcher, source.raw(), &source, 1).await.unwrap();
    fetcher.cache().clear_documents().unwrap();
    open(&fetcher, source.raw(), &source, 2).await.unwrap();
}
