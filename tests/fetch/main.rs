//! Where a source meets the cache: what is fetched, how often, and what a reader gets.

mod compressed;
mod deadlines;
mod healing;
mod memory;
mod passing;
mod scheduling;
mod sharing;
#[path = "../support/mod.rs"]
mod support;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kitfs::cache::{Cache, CacheConfig, LayerState};
use kitfs::fetch::{FetchConfig, FetchError, Fetcher, Layer, LayerSpec};
use kitfs::layer::StreamOffset;
use kitfs::layer::layout::CHUNK_BYTES;
use kitfs::oci::{Compression, Digest, Format};
use kitfs::source::Priority;
use kitfs::source::admission::UserId;
use memory::{Fault, Memory, PIECE};
use proptest::prelude::*;
use support::Random;
use support::kit_builder::gzip;

const MIB: usize = 1024 * 1024;
/// Far longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn content(seed: u64, length: usize) -> Vec<u8> {
    Random::new(seed).bytes(length)
}

fn tar_of(sizes: &[usize]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (index, &size) in sizes.iter().enumerate() {
        let mut header = tar::Header::new_ustar();
        header.set_size(size as u64);
        header.set_mode(0o644);
        let bytes = content(index as u64 + 1, size);
        builder.append_data(&mut header, format!("file-{index}"), &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn fetcher(folder: &Path, capacity_bytes: Option<u64>) -> Arc<Fetcher> {
    let config = CacheConfig { capacity_bytes, ..CacheConfig::new(folder) };
    Fetcher::new(Cache::open(config).unwrap(), FetchConfig::default())
}

async fn open(
    fetcher: &Fetcher,
    spec: LayerSpec,
    source: &Arc<Memory>,
) -> Result<Arc<Layer>, FetchError> {
    fetcher.open(spec, source.clone(), UserId::default(), &|_| {}).await
}

async fn read(layer: &Layer, range: Range<usize>) -> Result<Bytes, FetchError> {
    let range = StreamOffset(range.start as u64)..StreamOffset(range.end as u64);
    tokio::time::timeout(PATIENCE, layer.read(range)).await.expect("a read hangs")
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_tar_of_big_files_is_listed_from_its_headers() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(tar_of(&[4 * MIB + 1, 5 * MIB, 3 * MIB - 7]));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
    assert_eq!(layer.contents().toc.members.len(), 3);
    assert!(source.yielded() <= source.bytes.len() as u64 / 100, "{} bytes", source.yielded());
    // Bytes that were read beyond a header are kept: only the missing ones are fetched.
    let all = read(&layer, 0..source.bytes.len()).await.unwrap();
    assert!(all == source.bytes);
    // But for the end marker, which came without the padding before it.
    assert!(source.yielded() <= source.bytes.len() as u64 + 1024, "{} bytes", source.yielded());
    until("confirmed", || layer.state() == LayerState::Confirmed).await;
}

#[tokio::test]
async fn the_zeros_behind_an_archive_take_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = tar_of(&[MIB, MIB]);
    // 1024 of them are there.
    archive.extend_from_slice(&[0; 9 * 1024]);
    let source = Memory::new(archive);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
    assert_eq!(layer.contents().toc.warnings, [""; 0]);
    // The head and the tail of the layer, the second header, the zeros.
    assert_eq!(source.requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn many_small_files_take_few_requests_and_each_byte_once() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(tar_of(&[700; 2_000]));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
    assert_eq!(layer.contents().toc.members.len(), 2_000);
    assert!(source.requests.load(Ordering::SeqCst) <= 12);
    assert!(read(&layer, 0..source.bytes.len()).await.unwrap() == source.bytes);
    assert_eq!(source.yielded(), source.bytes.len() as u64);
}

#[tokio::test]
async fn a_read_fetches_the_chunks_it_touches() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 4 * MIB));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    assert_eq!(source.yielded(), 0, "nothing needs to be known of a raw layer");
    let at = 2 * MIB + 100;
    assert!(read(&layer, at..at + 10).await.unwrap() == source.bytes[at..at + 10]);
    until("one chunk", || layer.resident_bytes() == CHUNK_BYTES).await;
    assert_eq!(source.yielded(), CHUNK_BYTES);
    let mut buffer = [0; 10];
    assert!(layer.read_resident(StreamOffset(at as u64), &mut buffer).unwrap());
    assert!(!layer.read_resident(StreamOffset(0), &mut buffer).unwrap());
    let beyond = read(&layer, 4 * MIB - 1..4 * MIB + 1).await;
    assert!(matches!(beyond, Err(FetchError::Malformed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_readers_share_what_is_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 3 * MIB));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let readers = (0..32).map(|reader: usize| {
        let (layer, source) = (layer.clone(), source.clone());
        tokio::spawn(async move {
            let start = reader * 70_000;
            let range = start..start + 800_000;
            assert!(read(&layer, range.clone()).await.unwrap() == source.bytes[range]);
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    assert!(read(&layer, 0..3 * MIB).await.unwrap() == source.bytes);
    assert_eq!(source.yielded(), 3 * MIB as u64);
}

#[tokio::test]
async fn nothing_is_fetched_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(tar_of(&[2 * MIB, 300]));
    let spec = source.spec(Format::Tar, Compression::None);
    for _ in 0..2 {
        let fetcher = fetcher(folder.path(), None);
        let layer = open(&fetcher, spec, &source).await.unwrap();
        assert!(read(&layer, 0..source.bytes.len()).await.unwrap() == source.bytes);
        until("confirmed", || layer.state() == LayerState::Confirmed).await;
        drop(layer);
        drop(fetcher);
        until("the cache is closed", || !Cache::is_held(folder.path())).await;
    }
    assert_eq!(source.yielded(), source.bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_without_ranges_is_read_once_and_fills_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 20 * MIB);
    let source = Arc::new(Memory::with(bytes, true));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    // From behind to the front: each begins before what the stream has reached.
    let readers = (0..8).rev().map(|reader: usize| {
        let (layer, source) = (layer.clone(), source.clone());
        tokio::spawn(async move {
            let range = reader * 2 * MIB..reader * 2 * MIB + 300_000;
            assert!(read(&layer, range.clone()).await.unwrap() == source.bytes[range]);
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    until("confirmed", || layer.state() == LayerState::Confirmed).await;
    assert_eq!(source.yielded(), source.bytes.len() as u64);
}

#[tokio::test]
async fn a_tar_from_a_source_without_ranges_is_read_once_too() {
    let folder = tempfile::tempdir().unwrap();
    let source = Arc::new(Memory::with(tar_of(&[2 * MIB, 10, MIB]), true));
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
    assert!(read(&layer, 0..source.bytes.len()).await.unwrap() == source.bytes);
    assert_eq!(source.yielded(), source.bytes.len() as u64);
}

#[tokio::test]
async fn a_layer_larger_than_the_cache_is_readable_from_any_source() {
    for is_without_ranges in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let source = Arc::new(Memory::with(tar_of(&[3 * MIB, 3 * MIB]), is_without_ranges));
        let fetcher = fetcher(folder.path(), Some(2 * MIB as u64));
        let layer =
            open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
        for start in (0..source.bytes.len() - 100_000).step_by(500_000) {
            let range = start..start + 100_000;
            assert!(read(&layer, range.clone()).await.unwrap() == source.bytes[range]);
        }
    }
}

#[tokio::test]
async fn a_layer_whose_files_were_all_read_is_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    // Padded to a record of 10 KiB, as tar(1) and Python write it.
    let mut archive = tar_of(&[2 * MIB, 3 * MIB + 100]);
    archive.resize(archive.len().next_multiple_of(10 * 1024) + 10 * 1024, 0);
    let source = Memory::new(archive);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
    for member in &layer.contents().toc.members {
        let range = member.kind.extents().expect("all are files").stored();
        read(&layer, range.start.get() as usize..range.end.get() as usize).await.unwrap();
    }
    until("confirmed", || layer.state() == LayerState::Confirmed).await;
}

/// A reader of all files learns of a wrong digest, although padding and end marker are missing.
#[tokio::test]
async fn the_state_of_a_layer_is_known_only_with_the_bytes_that_belong_to_no_file() {
    for is_right in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = tar_of(&[MIB + 100]);
        archive.resize(archive.len() + 10 * 1024, 0);
        let source = Memory::new(archive);
        let mut spec = source.spec(Format::Tar, Compression::None);
        if !is_right {
            spec.blob.digest = Digest::of(b"something else");
        }
        let fetcher = fetcher(folder.path(), None);
        let layer = open(&fetcher, spec, &source).await.unwrap();
        read(&layer, 512..512 + MIB + 100).await.unwrap();
        let got = Digest::of(&source.bytes);
        let expected = if is_right { LayerState::Confirmed } else { LayerState::Poisoned { got } };
        assert_eq!(layer.confirmed().await, expected);
    }
}

#[tokio::test]
async fn a_layer_that_claims_more_than_a_file_system_holds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, MIB));
    let mut spec = source.raw();
    spec.blob.size = 1 << 49;
    let fetcher = fetcher(folder.path(), None);
    let Err(error) = open(&fetcher, spec, &source).await else { panic!("it is not refused") };
    assert!(error.to_string().contains("16 TiB"), "{error}");
}

#[tokio::test]
async fn a_wrong_digest_poisons_an_uncompressed_layer() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, MIB));
    let mut spec = source.raw();
    spec.blob.digest = Digest::of(b"something else");
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, spec, &source).await.unwrap();
    // The digest is known at the last byte; what was read before then was served.
    let _ = read(&layer, 0..MIB).await;
    let got = Digest::of(&source.bytes);
    until("poisoned", || layer.state() == LayerState::Poisoned { got }).await;
    assert!(matches!(read(&layer, 0..10).await, Err(FetchError::Poisoned { .. })));
    drop(layer);
    let again = open(&fetcher, spec, &source).await;
    assert!(matches!(again, Err(FetchError::Poisoned { .. })), "not fetched again");
}

/// The first request brings a little and breaks off, and all later ones are refused: no reader gets its bytes,
/// whichever request it waits for.
#[tokio::test]
async fn every_waiter_hears_of_a_failure_and_the_next_read_tries_again() {
    const BROUGHT: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    let mut faults = vec![Fault::BreakAfter(BROUGHT)];
    faults.resize(100, Fault::Refuse);
    let source = Memory::faulty(content(1, MIB), &faults);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let (front, all, back) = tokio::join!(
        read(&layer, 0..2 * BROUGHT),
        read(&layer, 0..MIB),
        read(&layer, MIB - 2 * BROUGHT..MIB),
    );
    for failed in [front, all, back] {
        let error = failed.unwrap_err();
        assert!(error.is_retryable(), "{error}");
    }
    source.faults.lock().clear();
    assert!(read(&layer, 0..MIB).await.unwrap() == source.bytes);
    assert_eq!(source.yielded(), MIB as u64, "the bytes before the failure are kept");
}

#[tokio::test]
async fn a_refused_request_fails_its_reader_and_not_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::faulty(content(1, MIB), &[Fault::Refuse]);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let refused = read(&layer, 0..10).await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    assert!(read(&layer, 0..10).await.unwrap() == source.bytes[..10]);
}

/// A confirmed layer is fetched again from a mirror that has something else.
#[tokio::test]
async fn other_bytes_than_the_confirmed_ones_are_fetched_from_the_next_source() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 2 * MIB));
    let mut other = source.bytes.to_vec();
    other[MIB + 7] ^= 1;
    let other = Memory::new(other);
    let fetcher = fetcher(folder.path(), Some(4 * MIB as u64));
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    read(&layer, 0..2 * MIB).await.unwrap();
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    fetcher.cache().make_room(4 * MIB as u64).unwrap();
    assert_eq!(layer.resident_bytes(), 0);
    let again = open(&fetcher, source.raw(), &other).await.unwrap();
    let (whole, wrong) = tokio::join!(read(&again, 0..2 * MIB), read(&layer, MIB..MIB + 10));
    assert!(whole.unwrap() == source.bytes);
    assert!(wrong.unwrap() == source.bytes[MIB..MIB + 10]);
    assert!(other.yielded() > 0, "the newest source is asked first");
    assert_eq!(layer.state(), LayerState::Confirmed);
}

/// Each command that opens a kit brings a source of its own to the layers that are open.
#[tokio::test]
async fn a_place_that_refuses_is_not_asked_again_by_another_source() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    let sources = [(); 3].map(|()| Memory::at_host(bytes.clone(), "registry"));
    let fetcher = fetcher(folder.path(), None);
    let mut layers = Vec::new();
    for source in &sources {
        layers.push(open(&fetcher, sources[0].raw(), source).await.unwrap());
        source.faults.lock().extend([Fault::Refuse; 2]);
    }
    assert!(read(&layers[0], 0..10).await.is_err());
    let asked = sources.each_ref().map(|source| source.requests.load(Ordering::SeqCst));
    assert_eq!(asked, [0, 0, 1]);
}

#[tokio::test]
async fn a_broken_stream_goes_on_at_the_next_source() {
    let folder = tempfile::tempdir().unwrap();
    let good = Memory::new(content(1, MIB));
    let broken = Memory::faulty(content(1, MIB), &[Fault::BreakAfter(300_000)]);
    let fetcher = fetcher(folder.path(), None);
    let _first = open(&fetcher, good.raw(), &good).await.unwrap();
    // The source that was named last is asked first.
    let layer = open(&fetcher, good.raw(), &broken).await.unwrap();
    assert!(read(&layer, 0..MIB).await.unwrap() == good.bytes);
    assert_eq!(broken.yielded(), 300_000);
    assert_eq!(good.yielded(), MIB as u64 - 300_000);
}

#[tokio::test]
async fn readers_are_served_before_their_request_ends() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::gated(content(1, 2 * MIB), 20);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    layer.prefetch(StreamOffset(0)..StreamOffset(2 * MIB as u64), Priority::Readahead);
    let range = 5 * PIECE..19 * PIECE;
    assert!(read(&layer, range.clone()).await.unwrap() == source.bytes[range]);
    assert_eq!(source.requests.load(Ordering::SeqCst), 1);
    assert_eq!(source.streams.load(Ordering::SeqCst), 1, "the request still runs");
    source.gate.add_permits(1000);
    assert!(read(&layer, 0..2 * MIB).await.unwrap() == source.bytes);
}

#[tokio::test]
async fn dropping_the_layer_ends_its_transfers() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::gated(content(1, 2 * MIB), 3);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    layer.prefetch(StreamOffset(0)..StreamOffset(2 * MIB as u64), Priority::Readahead);
    until("a stream is open", || source.streams.load(Ordering::SeqCst) == 1).await;
    drop(layer);
    until("no stream is open", || source.streams.load(Ordering::SeqCst) == 0).await;
}

#[derive(Clone, Debug)]
enum Step {
    Read { start: prop::sample::Index, length: usize },
    Prefetch { start: prop::sample::Index, length: usize },
    Evict { bytes: u64 },
    Restart,
    Faults(Vec<Fault>),
}

fn any_step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        Just(Fault::None),
        Just(Fault::Refuse),
        (0..600_000usize).prop_map(Fault::BreakAfter),
        Just(Fault::Whole),
    ];
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (index(), 1..700_000usize).prop_map(|(start, length)| Step::Read { start, length }),
        2 => (index(), 1..2_000_000usize).prop_map(|(start, length)| Step::Prefetch { start, length }),
        2 => (0..3_000_000u64).prop_map(|bytes| Step::Evict { bytes }),
        1 => Just(Step::Restart),
        2 => prop::collection::vec(fault, 1..4).prop_map(Step::Faults),
    ]
}

fn any_sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![0..3_000usize, 200_000..600_000usize, MIB..MIB + 300_000];
    prop::collection::vec(size, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_reads_like_its_stream(
        sizes in any_sizes(), is_compressed in any::<bool>(),
        steps in prop::collection::vec(any_step(), 1..20), room in any_room(),
        memory_mib in prop_oneof![Just(512u64), 16..64u64],
    ) {
        let stream = tar_of(&sizes);
        let (blob, compression) = match is_compressed {
            true => (zstd::encode_all(&stream[..], 1).unwrap(), Compression::Zstd),
            false => (stream.clone(), Compression::None),
        };
        let capacity = (stream.len() as f64 * room) as u64;
        let source = Memory::new(blob);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2).enable_all().build().unwrap();
        let fetcher = |folder: &Path| passing::small(folder, capacity, memory_mib);
        runtime.block_on(model(stream, fetcher, source, compression, steps));
    }
}

/// The capacity of the cache, by the layer's size: nothing, a part, or all of it and its spool.
fn any_room() -> impl Strategy<Value = f64> {
    prop_oneof![1 => Just(0.0), 2 => 0.0..1.0, 2 => Just(2.1)]
}

async fn model(
    stream: Vec<u8>,
    fetcher_over: impl Fn(&Path) -> Arc<Fetcher>,
    source: Arc<Memory>,
    compression: Compression,
    steps: Vec<Step>,
) {
    let folder = tempfile::tempdir().unwrap();
    let spec = source.spec(Format::Tar, compression);
    let mut fetcher = fetcher_over(folder.path());
    let mut layer = open(&fetcher, spec, &source).await.unwrap();
    for step in steps {
        match step {
            Step::Read { start, length } => {
                let start = start.index(stream.len());
                let range = start..(start + length).min(stream.len());
                match read(&layer, range.clone()).await {
                    Ok(bytes) => assert!(bytes == stream[range], "wrong bytes"),
                    // As many faults as there are left may each fail a read.
                    Err(FetchError::Source(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Prefetch { start, length } => {
                let start = start.index(stream.len()) as u64;
                layer.prefetch(
                    StreamOffset(start)..StreamOffset(start + length as u64),
                    Priority::Readahead,
                );
            }
            Step::Evict { bytes } => {
                fetcher.cache().make_room(bytes).ok();
            }
            Step::Restart => {
                drop(layer);
                drop(fetcher);
                until("the cache is closed", || !Cache::is_held(folder.path())).await;
                source.faults.lock().clear();
                fetcher = fetcher_over(folder.path());
                layer = open(&fetcher, spec, &source).await.unwrap();
            }
            Step::Faults(faults) => *source.faults.lock() = faults,
        }
    }
    source.faults.lock().clear();
    // Transfers that are under way may still fail for a fault they met earlier.
    let mut all = read(&layer, 0..stream.len()).await;
    if all.is_err() {
        all = read(&layer, 0..stream.len()).await;
    }
    assert!(all.unwrap() == stream);
    let files = layer.contents().toc.members.iter();
    assert!(files.clone().all(|member| member.kind.extents().is_some()));
    assert!(!matches!(layer.state(), LayerState::Poisoned { .. }));
}

/// The transfer that brought a chunk may still run when the chunk is gone again.
#[tokio::test]
async fn a_chunk_that_is_evicted_at_once_is_fetched_again() {
    for compression in [Compression::None, Compression::Zstd] {
        let folder = tempfile::tempdir().unwrap();
        let stream = content(1, MIB);
        let blob = match compression {
            Compression::Zstd => zstd::encode_all(&stream[..], 1).unwrap(),
            _ => stream.clone(),
        };
        let source = Memory::new(blob);
        let fetcher = fetcher(folder.path(), Some(5 * MIB as u64));
        let layer = open(&fetcher, source.spec(Format::Raw, compression), &source).await.unwrap();
        for _ in 0..5 {
            let piece = 300_000..400_000;
            assert!(read(&layer, piece.clone()).await.unwrap() == stream[piece]);
            fetcher.cache().make_room(5 * MIB as u64).ok();
        }
    }
}
