//! The order of requests, and the bound on the memory of all transfers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kitfs::cache::{Cache, CacheConfig, LayerState};
use kitfs::fetch::{FetchConfig, Fetcher};
use kitfs::layer::StreamOffset;
use kitfs::source::Priority;

use super::memory::Memory;
use super::{MIB, content, fetcher, open, read, until};

fn range(start: usize, end: usize) -> std::ops::Range<StreamOffset> {
    StreamOffset(start as u64)..StreamOffset(end as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brought_bytes_are_there_once_and_an_idle_fetcher_holds_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 20 * MIB));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    layer.bring(range(MIB, 3 * MIB), Priority::Prefetch).await.unwrap();
    assert!(layer.is_resident(range(MIB, 3 * MIB)) && !layer.is_resident(range(0, MIB)));
    layer.bring(range(0, 20 * MIB), Priority::Hydrate).await.unwrap();
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    assert!(read(&layer, 0..20 * MIB).await.unwrap() == source.bytes);
    assert_eq!(source.yielded(), 20 * MIB as u64);
    let usage = fetcher.usage();
    assert_eq!(usage.fetched_bytes, 20 * MIB as u64);
    assert_eq!(usage.requests, source.requests.load(Ordering::SeqCst) as u64);
    until("no memory is reserved", || fetcher.usage().reserved_bytes == 0).await;
    assert!(layer.bring(range(0, 20 * MIB + 1), Priority::Hydrate).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hydrating_waits_for_readers_and_a_reader_of_the_same_bytes_hurries_it() {
    let folder = tempfile::tempdir().unwrap();
    let stalled = Memory::gated(content(1, 4 * MIB), 0);
    let source = Memory::new(content(2, 4 * MIB));
    let fetcher = fetcher(folder.path(), None);
    let waiting = open(&fetcher, stalled.raw(), &stalled).await.unwrap();
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let reader = tokio::spawn(async move { read(&waiting, 0..10).await });
    until("a reader waits", || stalled.requests.load(Ordering::SeqCst) == 1).await;
    assert_eq!(fetcher.quiet_for(), std::time::Duration::ZERO);

    let hydrate = layer.bring(range(0, 2 * MIB), Priority::Hydrate);
    let hydrate = tokio::spawn(hydrate);
    let prefetched = layer.bring(range(2 * MIB, 4 * MIB), Priority::Prefetch);
    tokio::time::timeout(super::PATIENCE, prefetched).await.unwrap().unwrap();
    assert!(!layer.is_resident(range(0, 1)), "hydrated while a reader waits");

    assert!(read(&layer, 0..10).await.unwrap() == source.bytes[..10]);
    hydrate.await.unwrap().unwrap();
    assert_eq!(source.yielded(), 4 * MIB as u64);
    stalled.gate.add_permits(1 << 20);
    reader.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_do_not_shrink_because_a_transfer_pauses_for_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (stalled, source) = (Memory::gated(content(1, MIB), 0), Memory::new(content(2, 4 * MIB)));
    let fetcher = fetcher(folder.path(), None);
    let waiting = open(&fetcher, stalled.raw(), &stalled).await.unwrap();
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let reader = tokio::spawn(async move { read(&waiting, 0..10).await });
    until("a reader waits", || stalled.requests.load(Ordering::SeqCst) == 1).await;
    let before = layer.request_bytes();
    layer.bring(range(0, 4 * MIB), Priority::Prefetch).await.unwrap();
    until("the transfers have ended", || source.streams.load(Ordering::SeqCst) == 0).await;
    stalled.gate.add_permits(1 << 20);
    reader.await.unwrap().unwrap();
    until("no memory is reserved", || fetcher.usage().reserved_bytes == 0).await;
    assert_eq!(layer.request_bytes(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_is_one_request_where_another_layer_has_shown_that_one_reaches_the_rate_of_the_host()
 {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = fetcher(folder.path(), None);
    let first = Memory::at_host(content(1, 2 * MIB), "near.example");
    let layer = open(&fetcher, first.raw(), &first).await.unwrap();
    layer.bring(range(0, 2 * MIB), Priority::OnDemand).await.unwrap();
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    until("its transfer has ended", || fetcher.usage().reserved_bytes == 0).await;
    for (seed, host, requests) in [(2, "near.example", 1), (3, "far.example", 4)] {
        let source = Memory::at_host(content(seed, 40 * MIB), host);
        let layer = open(&fetcher, source.raw(), &source).await.unwrap();
        layer.bring(range(8 * MIB, 40 * MIB), Priority::Readahead).await.unwrap();
        assert_eq!(source.requests.load(Ordering::SeqCst), requests, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_pieces_are_not_gathered_until_their_chunk_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::tiny(content(1, MIB / 4), 2048);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    layer.prefetch(range(0, MIB / 4), Priority::Readahead);
    until("what came is written", || layer.resident_bytes() == 2048).await;
    source.gate.add_permits(MIB);
    assert!(read(&layer, 0..MIB / 4).await.unwrap() == source.bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_memory_bounds_what_is_under_way_and_all_comes_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::gated(content(1, 64 * MIB), 0);
    let config = CacheConfig::new(folder.path());
    let memory_bytes = 16 * MIB as u64;
    let fetcher = Fetcher::new(
        Cache::open(config).unwrap(),
        FetchConfig { memory_bytes, ..FetchConfig::default() },
    );
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    layer.prefetch(range(0, 64 * MIB), Priority::Readahead);
    until("transfers run", || source.streams.load(Ordering::SeqCst) > 1).await;
    let streams = source.streams.clone();
    let (is_done, watched) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), fetcher.clone());
    let until_done = is_done.clone();
    let watcher = std::thread::spawn(move || {
        let mut most = (0, 0);
        while !until_done.load(Ordering::SeqCst) {
            most.0 = most.0.max(streams.load(Ordering::SeqCst));
            most.1 = most.1.max(watched.usage().reserved_bytes);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        most
    });
    source.gate.add_permits(1 << 20);
    layer.bring(range(0, 64 * MIB), Priority::OnDemand).await.unwrap();
    is_done.store(true, Ordering::SeqCst);
    let (streams, reserved_bytes) = watcher.join().unwrap();
    assert!(streams <= 5, "{streams} streams at once");
    assert!(reserved_bytes <= memory_bytes, "{reserved_bytes} bytes reserved");
    assert_eq!(source.yielded(), 64 * MIB as u64);
}
