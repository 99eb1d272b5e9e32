//! Reads where the cache can keep nothing, or too little: they go through without it.

use super::*;

pub fn small(folder: &Path, capacity_bytes: u64, memory_mib: u64) -> Arc<Fetcher> {
    let config = CacheConfig { capacity_bytes: Some(capacity_bytes), ..CacheConfig::new(folder) };
    let memory_bytes = memory_mib * MIB as u64;
    Fetcher::new(
        Cache::open(config).unwrap(),
        FetchConfig { memory_bytes, ..FetchConfig::default() },
    )
}

/// Reads a stream as a program does, 128 KiB after 128 KiB.
async fn read_in_order(layer: &Layer, stream: &[u8]) {
    for start in (0..stream.len()).step_by(128 * 1024) {
        let range = start..(start + 128 * 1024).min(stream.len());
        assert!(read(layer, range.clone()).await.unwrap() == stream[range], "at {start}");
    }
}

/// Smaller than a chunk, than what a request brings, than the layer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_is_read_through_a_cache_of_any_size() {
    let stream = tar_of(&[3 * MIB, 700, 2 * MIB + 5]);
    for capacity_bytes in [0, 1000, CHUNK_BYTES, MIB as u64, 3 * MIB as u64] {
        for is_without_ranges in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let source = Arc::new(Memory::with(stream.clone(), is_without_ranges));
            let fetcher = small(folder.path(), capacity_bytes, 64);
            let spec = source.spec(Format::Tar, Compression::None);
            let layer = open(&fetcher, spec, &source).await.unwrap();
            read_in_order(&layer, &stream).await;
            assert!(fetcher.cache().resident_bytes() <= capacity_bytes);
            assert!(capacity_bytes >= CHUNK_BYTES || fetcher.cache().trouble().is_some());
            // Once to find the contents, and once to read them.
            let yielded = source.yielded();
            assert!(yielded <= 2 * stream.len() as u64 + MIB as u64, "{capacity_bytes}: {yielded}");
            drop(layer);
            until("no memory is held", || fetcher.usage().reserved_bytes == 0).await;
        }
    }
}

/// The pass that finds the contents takes no room. The next one waits for its reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_layer_larger_than_the_cache_is_read_in_one_more_pass() {
    let stream = tar_of(&[9 * MIB, 100, 6 * MIB + 5]);
    let zstd = zstd::encode_all(&stream[..], 1).unwrap();
    for (compression, blob) in [(Compression::Zstd, zstd), (Compression::Gzip, gzip(&stream))] {
        for capacity_bytes in [0, 100_000, 4 * MIB as u64] {
            let folder = tempfile::tempdir().unwrap();
            let source = Memory::new(blob.clone());
            let fetcher = small(folder.path(), capacity_bytes, 64);
            let spec = source.spec(Format::Tar, compression);
            let layer = open(&fetcher, spec, &source).await.unwrap();
            assert_eq!(layer.state(), LayerState::Confirmed);
            assert_eq!(source.yielded(), blob.len() as u64, "one pass, though it was not kept");
            read_in_order(&layer, &stream).await;
            assert_eq!(layer.state(), LayerState::Confirmed);
            let passes = source.yielded().div_ceil(blob.len() as u64);
            assert_eq!(passes, 2, "with {capacity_bytes} bytes");
            assert!(fetcher.cache().resident_bytes() <= capacity_bytes);
        }
    }
}

/// The stream runs a megabyte or more ahead, which this reader needs seconds for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_of_a_compressed_layer_larger_than_the_cache_takes_one_more_pass_too() {
    let stream = content(1, 12 * MIB);
    let blob = zstd::encode_all(&stream[..], 1).unwrap();
    let read_slowly = |capacity_bytes| {
        let (stream, blob) = (&stream, &blob);
        async move {
            let folder = tempfile::tempdir().unwrap();
            let source = Memory::new(blob.clone());
            let fetcher = small(folder.path(), capacity_bytes, 64);
            let spec = source.spec(Format::Raw, Compression::Zstd);
            let layer = open(&fetcher, spec, &source).await.unwrap();
            for start in (0..7 * MIB).step_by(256 * 1024) {
                let range = start..start + 256 * 1024;
                assert!(read(&layer, range.clone()).await.unwrap() == stream[range], "at {start}");
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            let yielded = source.yielded();
            assert!(yielded <= 2 * blob.len() as u64, "{yielded} bytes with {capacity_bytes}");
        }
    };
    futures_util::join!(read_slowly(0), read_slowly(4 * MIB as u64));
}

/// Nothing of it is in the cache, so nothing but its seals tells what must come.
#[tokio::test]
async fn wrong_bytes_of_a_confirmed_layer_are_not_passed_on_either() {
    let folder = tempfile::tempdir().unwrap();
    let stream = content(1, 2 * MIB);
    let source = Memory::new(zstd::encode_all(&stream[..], 1).unwrap());
    let fetcher = small(folder.path(), 0, 64);
    let layer = open(&fetcher, source.spec(Format::Raw, Compression::Zstd), &source).await.unwrap();
    let mut other = stream.clone();
    other[MIB + 7] ^= 1;
    let other = zstd::encode_all(&other[..], 1).unwrap();
    let mut blob = other;
    blob.resize(source.bytes.len(), 0);
    let liar = Memory::new(blob);
    let again = open(&fetcher, source.spec(Format::Raw, Compression::Zstd), &liar).await.unwrap();
    let whole = read(&again, 0..2 * MIB).await;
    assert!(liar.yielded() > 0, "the newest source is asked first");
    assert!(whole.is_ok_and(|bytes| bytes == stream), "the next source has the right ones");
    drop(layer);
}

/// Background work is for the cache alone, so it ends where the cache keeps nothing.
#[tokio::test]
async fn work_for_the_cache_alone_fails_where_nothing_can_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 4 * MIB));
    let fetcher = small(folder.path(), 0, 64);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let all = StreamOffset(0)..StreamOffset(4 * MIB as u64);
    for priority in [Priority::Prefetch, Priority::Hydrate] {
        let brought = layer.bring(all.clone(), priority).await.unwrap_err();
        assert!(matches!(brought, FetchError::NotKept { .. }), "{brought}");
        assert!(brought.to_string().contains("--cache-size"), "{brought}");
    }
    assert!(source.yielded() < 4 * MIB as u64, "{} bytes", source.yielded());
    assert!(read(&layer, 0..1000).await.unwrap() == source.bytes[..1000]);
}

/// Bytes that are read ahead fill the memory that is set aside, and no more.
#[tokio::test]
async fn reading_ahead_is_bounded_by_the_memory_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 40 * MIB));
    let fetcher = small(folder.path(), 0, 32);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    // A first read finds out that nothing is kept.
    assert!(read(&layer, 0..1000).await.unwrap() == source.bytes[..1000]);
    for _ in 0..20 {
        let all = StreamOffset(0)..StreamOffset(40 * MIB as u64);
        layer.prefetch(all, Priority::Readahead);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(fetcher.usage().reserved_bytes <= 32 * MIB as u64);
    }
    let yielded = source.yielded();
    assert!(yielded <= 24 * MIB as u64, "{yielded} bytes for nothing");
    let range = 30 * MIB..31 * MIB;
    assert!(read(&layer, range.clone()).await.unwrap() == source.bytes[range]);
}

#[tokio::test]
async fn mounts_go_on_when_the_cache_folder_goes() {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("cache");
    let stream = tar_of(&[3 * MIB, 2 * MIB]);
    let blob = zstd::encode_all(&stream[..], 1).unwrap();
    let plain = Memory::new(stream.clone());
    let compressed = Memory::new(blob);
    let fetcher = fetcher(&folder, None);
    let spec = plain.spec(Format::Tar, Compression::None);
    let layer = open(&fetcher, spec, &plain).await.unwrap();
    let spec = compressed.spec(Format::Tar, Compression::Zstd);
    let packed = open(&fetcher, spec, &compressed).await.unwrap();
    assert!(read(&layer, 0..MIB).await.unwrap() == stream[..MIB]);
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    read_in_order(&layer, &stream).await;
    read_in_order(&packed, &stream).await;
    // Another kit, too, of which nothing was known.
    let new = Memory::new(content(9, 2 * MIB));
    let other = open(&fetcher, new.raw(), &new).await.unwrap();
    assert!(read(&other, 0..2 * MIB).await.unwrap() == new.bytes);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "the new folder is another's");
    assert!(fetcher.cache().trouble().is_some());
}

/// Work in the background ends where nothing is kept. Its end is no answer to a reader that has just come
/// to wait for the same bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_joins_work_in_the_background_gets_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 4 * MIB));
    let fetcher = small(folder.path(), 0, 64);
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    let mut random = Random::new(7);
    for round in 0..300 {
        let start = random.below(3 * MIB as u64) as usize;
        let all = StreamOffset(0)..StreamOffset(4 * MIB as u64);
        layer.prefetch(all, [Priority::Prefetch, Priority::Hydrate][round % 2]);
        for _ in 0..random.below(40) {
            tokio::task::yield_now().await;
        }
        let range = start..start + 100_000;
        let bytes = read(&layer, range.clone()).await.unwrap_or_else(|e| panic!("{round}: {e}"));
        assert!(bytes == source.bytes[range]);
    }
}

/// Many readers at once, in any order, some of which give up. Memory is bounded, and all of it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_share_a_cache_that_keeps_nothing_and_leave_no_memory_behind() {
    let stream = tar_of(&[5 * MIB, 100, 3 * MIB + 5]);
    let zstd = zstd::encode_all(&stream[..], 1).unwrap();
    for (compression, blob) in [(Compression::None, stream.clone()), (Compression::Zstd, zstd)] {
        for (capacity_bytes, memory_mib) in [(0, 24), (0, 64), (3 * MIB as u64, 24)] {
            let folder = tempfile::tempdir().unwrap();
            let source = Memory::new(blob.clone());
            let fetcher = small(folder.path(), capacity_bytes, memory_mib);
            let spec = source.spec(Format::Tar, compression);
            let layer = open(&fetcher, spec, &source).await.unwrap();
            let reader = |number: u64| {
                let (layer, stream) = (layer.clone(), &stream);
                async move {
                    let mut random = Random::new(number);
                    for _ in 0..12 {
                        let length = 1 + random.below(300_000) as usize;
                        let start = random.below((stream.len() - length) as u64) as usize;
                        let range = start..start + length;
                        if random.below(4) == 0 {
                            // A reader that gives up.
                            let patience = Duration::from_micros(random.below(3_000));
                            let _ = tokio::time::timeout(patience, read(&layer, range)).await;
                        } else {
                            assert!(read(&layer, range.clone()).await.unwrap() == stream[range]);
                        }
                    }
                }
            };
            futures_util::future::join_all((0..8).map(reader)).await;
            let what = format!("{compression:?} {capacity_bytes} {memory_mib}");
            let usage = fetcher.usage();
            assert!(usage.reserved_bytes <= memory_mib * MIB as u64, "{what}: {usage:?}");
            drop(layer);
            until("no memory is held", || fetcher.usage().reserved_bytes == 0).await;
            // While bytes are written they are counted beside those that make room for them.
            assert!(fetcher.cache().resident_bytes() <= capacity_bytes, "{what}");
        }
    }
}

/// Bytes that wait in memory belong to their layer: a layer that is opened later never gets them.
#[tokio::test]
async fn bytes_that_nobody_has_read_go_with_their_layer() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = small(folder.path(), 0, 32);
    let all = StreamOffset(0)..StreamOffset(MIB as u64);
    for seed in 0..20 {
        let source = Memory::new(content(seed, MIB));
        let layer = open(&fetcher, source.raw(), &source).await.unwrap();
        assert!(read(&layer, 0..1000).await.unwrap() == source.bytes[..1000], "{seed}");
        layer.prefetch(all.clone(), Priority::Readahead);
        until("all was read ahead", || source.yielded() >= MIB as u64).await;
        until("it is in memory", || source.streams.load(Ordering::SeqCst) == 0).await;
        drop(layer);
        until("its transfers are gone", || Arc::strong_count(&source) == 1).await;
    }
}
