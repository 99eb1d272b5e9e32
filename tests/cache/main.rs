//! The cache folder as a whole: what is kept over restarts, damage and evictions.

mod damage;
mod pages;
mod passthrough;
#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kitfs::cache::{
    Appended, BackingLookup, BootId, Cache, CacheConfig, CacheError, LayerKey, LayerState,
    LayerStore, Lookup,
};
use kitfs::layer::layout::CHUNK_BYTES;
use kitfs::layer::{
    CacheFile, ChunkId, Extents, Member, MemberKind, MemberPath, RangeSet, StreamOffset, Toc,
};
use kitfs::oci::{Compression, Digest, Encoding, Format};
use proptest::prelude::*;
use support::Random;
const CHUNK: usize = CHUNK_BYTES as usize;
const MIB: usize = 1024 * 1024;

fn open(folder: &Path, capacity_bytes: Option<u64>) -> Arc<Cache> {
    let config = CacheConfig { capacity_bytes, ..CacheConfig::new(folder) };
    Cache::open(config).unwrap()
}

/// Bytes that differ from place to place and from seed to seed.
fn content(seed: u64, length: usize) -> Vec<u8> {
    Random::new(seed).bytes(length)
}

fn key(bytes: &[u8], format: Format) -> LayerKey {
    let encoding = Encoding { format, compression: Compression::None };
    LayerKey { digest: Digest::of(bytes), encoding }
}

/// A stream of headers and files of these sizes, as a tar has them.
fn toc(sizes: &[usize]) -> Toc {
    let mut at = 0;
    let mut members = Vec::new();
    for (index, &size) in sizes.iter().enumerate() {
        let start = StreamOffset(at + 512);
        let kind = MemberKind::File(Extents::contiguous(start..start + size as u64));
        let path = Some(MemberPath::parse(format!("file-{index}").as_bytes()).unwrap());
        members.push(Member { path, kind, mode: 0o644, mtime: None, is_replaced: false });
        at = (at + 512 + size as u64).next_multiple_of(512);
    }
    Toc { members, stream_bytes: at + 1024, warnings: Vec::new() }
}

/// The bytes of an archive with this table of contents: headers, random files, zeros between them.
fn archive(toc: &Toc, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; toc.stream_bytes as usize];
    for (index, member) in toc.members.iter().enumerate() {
        let stored = member.kind.extents().unwrap().stored();
        let (start, end) = (stored.start.get() as usize, stored.end.get() as usize);
        bytes[start..end].copy_from_slice(&content(seed + index as u64, end - start));
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("file-{index}")).unwrap();
        header.set_size((end - start) as u64);
        header.set_mode(0o644);
        header.set_cksum();
        bytes[start - 512..start].copy_from_slice(header.as_bytes());
    }
    bytes
}

/// A layer of one raw file with known contents and nothing resident.
fn raw_layer(cache: &Arc<Cache>, bytes: &[u8]) -> Arc<LayerStore> {
    let store = cache.layer(key(bytes, Format::Raw), bytes.len() as u64).unwrap();
    if store.contents().is_none() {
        let toc = Toc::raw(bytes.len() as u64);
        store.stage().unwrap().finish(toc, &RangeSet::new(), None).unwrap();
    }
    store
}

/// Fills chunks as fetch/ does, in pieces of 64 KiB.
fn fill(cache: &Cache, store: &Arc<LayerStore>, bytes: &[u8], chunks: std::ops::Range<u32>) {
    let contents = store.contents().unwrap();
    let mut appender = store.appender();
    for chunk in chunks {
        let span = contents.layout.chunk(ChunkId(chunk)).stream;
        let all = &bytes[span.start.get() as usize..span.end.get() as usize];
        for (index, piece) in all.chunks(64 * 1024).enumerate() {
            cache.make_room(piece.len() as u64).unwrap();
            appender
                .append(ChunkId(chunk), index as u32 * 64 * 1024, &[IoSlice::new(piece)])
                .unwrap();
        }
    }
}

fn fill_all(cache: &Cache, store: &Arc<LayerStore>, bytes: &[u8]) {
    let chunks = store.contents().unwrap().layout.chunks();
    fill(cache, store, bytes, 0..chunks);
}

/// A layer of one raw file, all of it here and confirmed.
fn confirmed_layer(cache: &Arc<Cache>, bytes: &[u8]) -> Arc<LayerStore> {
    let store = raw_layer(cache, bytes);
    fill_all(cache, &store, bytes);
    assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
    store
}

fn is_resident(store: &LayerStore, bytes: &[u8], range: std::ops::Range<usize>) -> bool {
    let mut buffer = vec![0; range.len()];
    match store.read(StreamOffset(range.start as u64), &mut buffer).unwrap() {
        Lookup::Hit => {
            assert!(buffer == bytes[range], "a wrong byte was served");
            true
        }
        Lookup::Miss => false,
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn file_named(folder: &Path, name: &str) -> PathBuf {
    files_below(folder).into_iter().find(|path| path.ends_with(name)).unwrap()
}

/// The file of that name, and its copy.
fn both_named(folder: &Path, name: &str) -> [PathBuf; 2] {
    [name.to_owned(), format!("{name}.copy")].map(|name| file_named(folder, &name))
}

fn member_file(folder: &Path) -> PathBuf {
    file_named(folder, "members/0")
}

fn flip(file: &Path, at: usize) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
}

#[test]
fn bytes_survive_a_restart_and_are_counted_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 3 * CHUNK + 1000);
    {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        fill(&cache, &store, &bytes, 1..2);
        store
            .appender()
            .append(ChunkId(2), 0, &[IoSlice::new(&bytes[2 * CHUNK..2 * CHUNK + 77])])
            .unwrap();
    }
    let cache = open(folder.path(), None);
    assert_eq!(cache.resident_bytes(), CHUNK_BYTES + 77);
    let store = raw_layer(&cache, &bytes);
    assert_eq!(store.filled(ChunkId(2)), 77);
    assert!(is_resident(&store, &bytes, CHUNK..2 * CHUNK + 77));
    assert!(!is_resident(&store, &bytes, CHUNK..2 * CHUNK + 78));
    store
        .appender()
        .append(ChunkId(2), 50, &[IoSlice::new(&bytes[2 * CHUNK + 50..3 * CHUNK])])
        .unwrap();
    fill_all(&cache, &store, &bytes);
    assert!(is_resident(&store, &bytes, 0..bytes.len()));
    assert!(store.is_complete());
    assert_eq!(cache.resident_bytes(), bytes.len() as u64);
    assert_eq!(cache.layers().unwrap()[0].resident_bytes, bytes.len() as u64);
}

#[test]
fn a_gap_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let bytes = content(1, CHUNK);
    let store = raw_layer(&cache, &bytes);
    let mut appender = store.appender();
    appender.append(ChunkId(0), 0, &[IoSlice::new(&bytes[..100])]).unwrap();
    assert!(appender.append(ChunkId(0), 101, &[IoSlice::new(&bytes[101..200])]).is_err());
    assert!(
        appender.append(ChunkId(0), 100, &[IoSlice::new(&[0; CHUNK])]).is_err(),
        "past the chunk's end"
    );
    drop(appender);
    assert_eq!(
        store.appender().append(ChunkId(0), 101, &[IoSlice::new(&bytes[101..200])]).unwrap(),
        Appended::Kept(100)
    );
    assert_eq!(store.filled(ChunkId(0)), 100);
    assert!(is_resident(&store, &bytes, 0..100));
}

#[test]
fn the_folder_has_one_owner_and_must_be_writable() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!Cache::is_held(folder.path()));
    let cache = open(folder.path(), None);
    assert!(Cache::is_held(folder.path()));
    let config = |folder| CacheConfig::new(folder);
    let again = Cache::open(config(folder.path().to_owned()));
    assert!(matches!(again, Err(CacheError::Held { pid, .. }) if pid == std::process::id()));
    drop(cache);
    assert!(!Cache::is_held(folder.path()));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Cache::open(config(file.join("cache"))).err().unwrap();
    assert!(error.to_string().contains("file/cache"), "{error}");
}

#[test]
fn files_in_the_place_of_folders_do_not_keep_the_cache_from_opening() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    drop(confirmed_layer(&open(folder.path(), None), &bytes));
    let strays = ["layers/sha256/.nfs0001", "kits/sha256/.nfs0002"];
    strays.iter().for_each(|stray| fs::write(folder.path().join(stray), b"x").unwrap());
    let cache = open(folder.path(), None);
    assert_eq!(cache.layers().unwrap().len(), 1);
    assert_eq!(cache.resident_bytes(), MIB as u64);
}

#[test]
fn a_folder_of_another_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), None));
    for file in both_named(folder.path(), "format") {
        fs::write(file, "kitfs cache 2\n").unwrap();
    }
    let config = CacheConfig::new(folder.path());
    assert!(Cache::open(config).err().unwrap().to_string().contains("another version"));
}

#[test]
fn the_least_recently_used_goes_first_and_contents_stay() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(8 * MIB as u64));
    let (old, read, new) = (content(1, 4 * MIB), content(2, 4 * MIB), content(3, 2 * MIB));
    let read_store = raw_layer(&cache, &read);
    let old_store = raw_layer(&cache, &old);
    fill_all(&cache, &read_store, &read);
    fill_all(&cache, &old_store, &old);
    assert!(is_resident(&read_store, &read, 0..read.len()), "this is a use");
    fill_all(&cache, &raw_layer(&cache, &new), &new);
    assert!(is_resident(&read_store, &read, 0..read.len()));
    assert!(!is_resident(&old_store, &old, 0..old.len()));
    assert!(old_store.resident_bytes() <= 2 * MIB as u64);
    assert!(cache.resident_bytes() <= 8 * MIB as u64);
    assert!(old_store.contents().is_some(), "it can still be listed");
}

#[test]
fn closed_layers_go_before_open_ones_and_by_age_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second, third) = (content(1, MIB), content(2, MIB), content(3, MIB));
    {
        let cache = open(folder.path(), None);
        for bytes in [&first, &second] {
            fill_all(&cache, &raw_layer(&cache, bytes), bytes);
        }
    }
    // As if the second had been used an hour before the first.
    let meta = folder.path().join("layers/sha256");
    let meta = meta.join(format!("{}.raw/meta", Digest::of(&second).hex()));
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(meta).unwrap().set_modified(hour_ago).unwrap();
    let cache = open(folder.path(), Some(2 * MIB as u64));
    fill_all(&cache, &raw_layer(&cache, &third), &third);
    assert!(is_resident(&raw_layer(&cache, &first), &first, 0..MIB));
    assert!(!is_resident(&raw_layer(&cache, &second), &second, 0..CHUNK));
    assert!(is_resident(&raw_layer(&cache, &third), &third, 0..MIB));
}

#[test]
fn the_limit_holds_under_concurrent_writers_and_readers_see_no_wrong_byte() {
    const WRITERS: u64 = 4;
    const CAPACITY: u64 = 4 * MIB as u64;
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(CAPACITY));
    let most = AtomicU64::new(0);
    let is_done = AtomicBool::new(false);
    let contents: Vec<Vec<u8>> = (0..WRITERS).map(|seed| content(seed, 3 * MIB)).collect();
    let stores: Vec<_> = contents.iter().map(|bytes| raw_layer(&cache, bytes)).collect();
    std::thread::scope(|scope| {
        let writers: Vec<_> = contents
            .iter()
            .zip(&stores)
            .map(|(bytes, store)| {
                let (cache, most) = (&cache, &most);
                scope.spawn(move || {
                    for _ in 0..2 {
                        fill_all(cache, store, bytes);
                        most.fetch_max(cache.resident_bytes(), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            let mut hits = 0u32;
            let mut is_over = false;
            // Reads once more after the last write, because a reader that got no time meanwhile proves nothing.
            while !is_over {
                is_over = is_done.load(Ordering::Relaxed);
                for (bytes, store) in contents.iter().zip(&stores) {
                    for start in (0..bytes.len()).step_by(200_000) {
                        let end = (start + 50_000).min(bytes.len());
                        hits += u32::from(is_resident(store, bytes, start..end));
                        most.fetch_max(cache.resident_bytes(), Ordering::Relaxed);
                    }
                }
            }
            hits
        });
        for writer in writers {
            writer.join().unwrap();
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    let most = most.into_inner();
    assert!(most <= CAPACITY + WRITERS * 64 * 1024, "{most} bytes were used");
    assert!(most > CAPACITY / 2, "the cache was used");
}

/// `kitfs cache ls` with a smaller limit, or on a disk that others have filled, must not empty a cache.
#[test]
fn looking_evicts_nothing_and_a_smaller_limit_takes_effect_with_the_next_write() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new, third) = (content(1, 2 * MIB), content(2, 2 * MIB), content(3, CHUNK));
    {
        let cache = open(folder.path(), None);
        confirmed_layer(&cache, &old);
        confirmed_layer(&cache, &new);
    }
    let bounds = [(Some(2 * MIB as u64), 0), (None, u64::MAX / 2)];
    for (capacity_bytes, keep_free_bytes) in bounds {
        let config = CacheConfig::new(folder.path());
        let cache = Cache::open(CacheConfig { capacity_bytes, keep_free_bytes, ..config }).unwrap();
        assert_eq!(cache.layers().unwrap().len(), 2);
        assert!(is_resident(&raw_layer(&cache, &old), &old, 0..2 * MIB));
        assert_eq!(
            cache.verify_layer(key(&new, Format::Raw)).unwrap().checked_bytes,
            2 * MIB as u64
        );
        cache.settle(&|| true);
        assert_eq!(cache.resident_bytes(), 4 * MIB as u64);
    }
    let cache = open(folder.path(), Some(2 * MIB as u64));
    fill_all(&cache, &raw_layer(&cache, &third), &third);
    assert!((1..=2 * MIB as u64).contains(&cache.resident_bytes()), "{}", cache.resident_bytes());
}

/// The warmed layer is the oldest, and was not read since.
#[test]
fn warmed_layers_are_evicted_last_after_restarts_too() {
    let folder = tempfile::tempdir().unwrap();
    let (warmed, read, new) = (content(1, MIB), content(2, 3 * MIB), content(3, MIB));
    {
        let cache = open(folder.path(), None);
        let store = confirmed_layer(&cache, &warmed);
        store.mark_warmed(1).unwrap();
        assert!(store.sync().unwrap());
    }
    let cache = open(folder.path(), Some(4 * MIB as u64));
    assert_eq!(cache.layers().unwrap()[0].warmed_seconds, Some(1));
    let (open_store, closed) = (raw_layer(&cache, &read), raw_layer(&cache, &new));
    for _ in 0..2 {
        fill_all(&cache, &open_store, &read);
        fill_all(&cache, &closed, &new);
    }
    drop(closed);
    fill_all(&cache, &open_store, &read);
    assert!(is_resident(&raw_layer(&cache, &warmed), &warmed, 0..MIB));
    // Warming is no pin: if nothing else is left, the layer is evicted.
    cache.make_room(3 * MIB as u64 + 1).unwrap();
    assert!(!is_resident(&raw_layer(&cache, &warmed), &warmed, 0..MIB));
}

/// Opens the cache under the boot of this number.
fn open_under(folder: &Path, boot: u8) -> Arc<Cache> {
    let boot = BootId([boot; 16]);
    Cache::open(CacheConfig { boot, ..CacheConfig::new(folder) }).unwrap()
}

/// A process that dies loses nothing that the kernel has; a machine that dies may.
#[test]
fn bytes_are_unchecked_after_the_machine_died_until_each_was_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    let key = key(&bytes, Format::Raw);
    let unchecked = |cache: &Arc<Cache>| cache.layers().unwrap()[0].unchecked_bytes;
    confirmed_layer(&open_under(folder.path(), 1), &bytes);
    assert_eq!(unchecked(&open_under(folder.path(), 1)), 0, "the process died");
    {
        let cache = open_under(folder.path(), 2);
        assert_eq!(unchecked(&cache), MIB as u64);
        let store = raw_layer(&cache, &bytes);
        assert!(is_resident(&store, &bytes, 0..CHUNK));
        assert!(is_resident(&store, &bytes, 10..20));
        assert_eq!(store.unchecked_bytes(), (MIB - CHUNK) as u64);
        assert!(!store.sync().unwrap(), "nobody knows whether the rest is there");
        drop(store);
        // The next opening does not know which chunks were checked.
        let store = raw_layer(&cache, &bytes);
        assert_eq!(store.unchecked_bytes(), MIB as u64);
        assert!(is_resident(&store, &bytes, 0..CHUNK));
        flip(&member_file(folder.path()), 2 * CHUNK);
        store.look(&|| true).unwrap();
        assert_eq!((store.unchecked_bytes(), cache.resident_bytes()), (0, (MIB - CHUNK) as u64));
        assert!(store.sync().unwrap());
    }
    let cache = open_under(folder.path(), 3);
    assert_eq!((unchecked(&cache), cache.resident_bytes()), (0, (MIB - CHUNK) as u64));
    assert_eq!(cache.verify_layer(key).unwrap().dropped_chunks, 0);
    // The next write makes it uncertain again.
    fill_all(&cache, &raw_layer(&cache, &bytes), &bytes);
    drop(cache);
    let cache = open_under(folder.path(), 4);
    assert_eq!(unchecked(&cache), MIB as u64);
    cache.verify_layer(key).unwrap();
    assert_eq!(unchecked(&cache), 0);
    cache.settle(&|| true);
    drop(cache);
    assert_eq!(unchecked(&open_under(folder.path(), 5)), 0);
}

/// Opening a clean cache reads no table of chunks: a layer may have a million of them.
#[test]
fn the_bytes_of_a_clean_layer_are_known_without_its_table() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    {
        let cache = open_under(folder.path(), 1);
        confirmed_layer(&cache, &bytes);
        cache.settle(&|| true);
    }
    let table = file_named(folder.path(), "chunks");
    fs::rename(&table, folder.path().join("aside")).unwrap();
    assert_eq!(open_under(folder.path(), 2).resident_bytes(), MIB as u64);
    fs::rename(folder.path().join("aside"), &table).unwrap();
    let cache = open_under(folder.path(), 2);
    assert!(is_resident(&raw_layer(&cache, &bytes), &bytes, 0..MIB));
}

/// The layer claims 2 TiB, and three of its chunks are resident.
#[test]
fn a_huge_layer_with_little_in_it_is_opened_and_evicted_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let stream_bytes = 2u64 << 40;
    let encoding = Encoding { format: Format::Raw, compression: Compression::None };
    let key = LayerKey { digest: Digest::of(b"huge"), encoding };
    let chunks = (stream_bytes / CHUNK_BYTES) as u32;
    {
        let cache = open(folder.path(), None);
        let store = cache.layer(key, stream_bytes).unwrap();
        store.stage().unwrap().finish(Toc::raw(stream_bytes), &RangeSet::new(), None).unwrap();
        for chunk in [0, chunks / 2, chunks - 1] {
            store.appender().append(ChunkId(chunk), 0, &[IoSlice::new(&[7; CHUNK])]).unwrap();
        }
    }
    let before = bytes_read();
    let cache = open(folder.path(), None);
    assert_eq!(cache.resident_bytes(), 3 * CHUNK_BYTES);
    drop(cache);
    let cache = open(folder.path(), Some(8 * CHUNK_BYTES));
    cache.make_room(8 * CHUNK_BYTES).unwrap();
    assert_eq!(cache.resident_bytes(), 0);
    // The records of all chunks would be gigabytes.
    let read = bytes_read() - before;
    assert!(read < 16 << 20, "{read} bytes");
}

#[test]
fn a_cache_that_is_all_in_use_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(2 * MIB as u64 + 100));
    let bytes = content(1, 2 * MIB);
    let store = cache.layer(key(&bytes, Format::Tar), toc(&[2 * MIB]).stream_bytes).unwrap();
    store.stage().unwrap().finish(toc(&[2 * MIB]), &RangeSet::new(), None).unwrap();
    let mut stream = vec![0; toc(&[2 * MIB]).stream_bytes as usize];
    stream[512..512 + 2 * MIB].copy_from_slice(&bytes);
    fill(&cache, &store, &stream, 1..9);
    let pin = store.pin_member(0);
    assert!(matches!(cache.make_room(1000), Err(CacheError::Full { .. })));
    assert!(is_resident(&store, &stream, 512..512 + 2 * MIB));
    drop(pin);
    cache.make_room(1000).unwrap();
    assert!(!is_resident(&store, &stream, 512..512 + 2 * MIB));
}

#[test]
fn an_absurd_wish_for_free_space_is_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let config = CacheConfig { keep_free_bytes: u64::MAX / 2, ..CacheConfig::new(folder.path()) };
    let cache = Cache::open(config).unwrap();
    assert!(matches!(cache.make_room(1), Err(CacheError::DiskFull { .. })));
}

/// Members of odd length: chunks begin and end within blocks of sha256, too.
#[test]
fn each_chunk_of_a_confirmed_archive_comes_back_as_it_was_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let toc = toc(&[MIB + 13, 700, MIB, 3 * MIB / 2 + 64, 5]);
    let bytes = archive(&toc, 1);
    let layer = |cache: &Arc<Cache>| {
        let store = cache.layer(key(&bytes, Format::Tar), bytes.len() as u64).unwrap();
        if store.contents().is_none() {
            store.stage().unwrap().finish(toc.clone(), &RangeSet::new(), None).unwrap();
        }
        store
    };
    {
        let cache = open(folder.path(), None);
        let store = layer(&cache);
        fill_all(&cache, &store, &bytes);
        assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
    }
    let cache = open(folder.path(), Some(bytes.len() as u64));
    let store = layer(&cache);
    cache.make_room(bytes.len() as u64).unwrap();
    assert_eq!(store.resident_bytes(), 0);
    let layout = &store.contents().unwrap().layout;
    for chunk in (0..layout.chunks()).rev() {
        let span = layout.chunk(ChunkId(chunk)).stream;
        let mut other = bytes[span.start.get() as usize..span.end.get() as usize].to_vec();
        for at in [0, other.len() / 2, other.len() - 1] {
            other[at] ^= 1;
            let changed = store.appender().append(ChunkId(chunk), 0, &[IoSlice::new(&other)]);
            assert!(matches!(changed, Err(CacheError::Changed { .. })), "chunk {chunk}, byte {at}");
            other[at] ^= 1;
        }
        fill(&cache, &store, &bytes, chunk..chunk + 1);
    }
    assert!(is_resident(&store, &bytes, 0..bytes.len()));
    assert_eq!(store.state(), LayerState::Confirmed);
}

#[test]
fn a_right_layer_is_confirmed_and_takes_only_the_same_bytes_back() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB + 5);
    {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Unconfirmed, "it is not complete");
        fill_all(&cache, &store, &bytes);
        assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
    }
    let cache = open(folder.path(), Some(2 * MIB as u64 + 5));
    let store = raw_layer(&cache, &bytes);
    assert_eq!(store.state(), LayerState::Confirmed);
    cache.make_room(2 * MIB as u64 + 5).unwrap();
    assert_eq!(store.resident_bytes(), 0);
    let mut appender = store.appender();
    let readable =
        appender.append(ChunkId(1), 0, &[IoSlice::new(&bytes[CHUNK..CHUNK + 10])]).unwrap();
    assert_eq!(readable, Appended::Kept(0), "not shown before it is known to be right");
    let mut rest = bytes[CHUNK + 10..2 * CHUNK].to_vec();
    rest[500] ^= 1;
    let changed = appender.append(ChunkId(1), 10, &[IoSlice::new(&rest)]);
    assert!(matches!(changed, Err(CacheError::Changed { chunk: 1, .. })));
    assert_eq!((store.filled(ChunkId(1)), cache.resident_bytes()), (0, 0));
    drop(appender);
    fill(&cache, &store, &bytes, 1..2);
    assert!(is_resident(&store, &bytes, CHUNK..2 * CHUNK));
}

#[test]
fn a_wrong_layer_is_poisoned_over_restarts_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    let mut wrong = bytes.clone();
    wrong[700_000] ^= 1;
    let got = Digest::of(&wrong);
    {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        fill_all(&cache, &store, &wrong);
        assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Poisoned { got });
        let read = store.read(StreamOffset(0), &mut [0; 10]);
        assert!(matches!(read, Err(CacheError::Poisoned { .. })));
        assert!(store.appender().append(ChunkId(0), 0, &[IoSlice::new(&bytes[..10])]).is_err());
        assert_eq!(cache.resident_bytes(), 0);
    }
    let cache = open(folder.path(), None);
    let store = cache.layer(key(&bytes, Format::Raw), bytes.len() as u64).unwrap();
    assert_eq!(store.state(), LayerState::Poisoned { got });
    assert!(store.stage().is_err());
    assert!(matches!(cache.remove_layer(store.key()), Err(CacheError::InUse(_))));
    drop(store);
    cache.remove_layer(key(&bytes, Format::Raw)).unwrap();
    assert_eq!(cache.layers().unwrap(), []);
    confirmed_layer(&cache, &bytes);
}

#[test]
fn an_unfinished_stage_leaves_its_spool_alone() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 3 * MIB);
    let encoding = Encoding { format: Format::Raw, compression: Compression::Zstd };
    let key = LayerKey { digest: Digest::of(b"compressed"), encoding };
    {
        let cache = open(folder.path(), None);
        let mut stage = cache.layer(key, 10).unwrap().stage().unwrap();
        stage.write(CacheFile::Member(0), 0, &bytes).unwrap();
        stage.spool_append(b"compr").unwrap();
        assert_eq!(cache.resident_bytes(), bytes.len() as u64 + 5);
        drop(stage);
        assert_eq!(cache.resident_bytes(), 5);
    }
    let cache = open(folder.path(), None);
    assert_eq!(cache.resident_bytes(), 5);
    let store = cache.layer(key, 10).unwrap();
    let mut stage = store.stage().unwrap();
    let mut spooled = [0; 10];
    assert_eq!(stage.spool_read(0, &mut spooled).unwrap(), 5);
    assert_eq!(&spooled[..5], b"compr");
    stage.spool_append(b"essed").unwrap();
    stage.write(CacheFile::Member(0), 0, &bytes).unwrap();
    let mut covered = RangeSet::new();
    covered.insert(0..bytes.len() as u64);
    stage.finish(Toc::raw(bytes.len() as u64), &covered, Some(key.digest)).unwrap();
    assert_eq!(store.state(), LayerState::Confirmed);
    assert_eq!(cache.resident_bytes(), bytes.len() as u64);
    assert!(is_resident(&store, &bytes, 0..bytes.len()));
    assert!(!files_below(folder.path()).iter().any(|path| path.ends_with("spool")));
}

#[test]
fn documents_and_origins_are_kept_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"manifest");
    let layer = key(b"layer", Format::Tar);
    {
        let cache = open(folder.path(), None);
        assert_eq!(cache.document(digest), None);
        cache.put_document(digest, b"manifest").unwrap();
        cache.remember("host/kit:v1", digest).unwrap();
        cache.record_kit("host/kit:v1", digest, &[layer, layer]).unwrap();
        cache.layer(layer, 5).unwrap();
    }
    let cache = open(folder.path(), None);
    assert_eq!(cache.document(digest).unwrap().as_ref(), b"manifest");
    assert_eq!(cache.recall("host/kit:v1"), Some(digest));
    assert_eq!(cache.recall("host/kit:v2"), None);
    assert_eq!(cache.layers_of_kit("host/kit:v1"), [layer]);
    assert_eq!(cache.layers_of_kit(&digest.to_string()), [layer]);
    assert_eq!(cache.layers().unwrap()[0].origins, ["host/kit:v1"]);
    // A damaged one is restored from its copy, and keeps its date.
    let files = ["document", "copy"].map(|name| file_named(folder.path(), name));
    let seen = cache.document_first_seen(digest);
    for damaged in &files {
        fs::write(damaged, b"manifesT").unwrap();
        assert_eq!(cache.document(digest).unwrap().as_ref(), b"manifest");
    }
    assert_eq!(cache.document_first_seen(digest), seen);
    files.iter().for_each(|file| fs::write(file, b"manifesT").unwrap());
    assert_eq!(cache.document(digest), None);
}

/// The manifest, index and config of a kit whose layer stays, and of one whose layer went.
#[test]
fn the_documents_of_kits_that_are_gone_can_be_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let (stays, goes) = (content(1, 1000), content(2, 1000));
    let mut kept = Vec::new();
    for bytes in [&stays, &goes] {
        let layer = key(bytes, Format::Raw);
        let config = format!("{{\"config of\":\"{}\"}}", layer.digest);
        let descriptor = |digest: &Digest, size: usize| {
            let media_type = "application/vnd.kitops.modelkit.model.v1.raw";
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        };
        let config_digest = Digest::of(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(&config_digest, config.len()),
            descriptor(&layer.digest, bytes.len())
        );
        let manifest_digest = Digest::of(manifest.as_bytes());
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            descriptor(&manifest_digest, manifest.len())
        );
        let documents = [config, manifest, index];
        for document in &documents {
            cache.put_document(Digest::of(document.as_bytes()), document.as_bytes()).unwrap();
        }
        cache.remember(&layer.digest.to_string(), manifest_digest).unwrap();
        cache.record_kit(&layer.digest.to_string(), manifest_digest, &[layer]).unwrap();
        confirmed_layer(&cache, bytes);
        kept.push(documents.map(|document| Digest::of(document.as_bytes())));
    }
    assert_eq!(cache.clear_documents().unwrap().documents, 0, "both layers are here");
    cache.remove_layer(key(&goes, Format::Raw)).unwrap();
    let cleared = cache.clear_documents().unwrap();
    assert_eq!(cleared.documents, 3);
    assert!(cleared.bytes > 100, "{cleared:?}");
    assert!(kept[0].iter().all(|&digest| cache.document(digest).is_some()));
    assert!(kept[1].iter().all(|&digest| cache.document(digest).is_none()));
    let is_remembered = |bytes| cache.recall(&key(bytes, Format::Raw).digest.to_string()).is_some();
    assert!(is_remembered(&stays) && !is_remembered(&goes));
    assert_eq!(cache.manifests().len(), 1);
}

#[test]
fn another_size_for_a_known_blob_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let bytes = content(1, 1000);
    let store = raw_layer(&cache, &bytes);
    assert!(cache.layer(store.key(), 999).is_err());
    fill_all(&cache, &store, &bytes);
    store.confirm(&|| true).unwrap();
    drop(store);
    assert!(cache.layer(key(&bytes, Format::Raw), 999).is_err());
    assert!(is_resident(&raw_layer(&cache, &bytes), &bytes, 0..1000));
}

/// Files without another date get this one, so it must not change.
#[test]
fn a_layer_remembers_when_it_was_first_seen() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB);
    let begun = now_seconds();
    let seen = raw_layer(&open(folder.path(), None), &bytes).first_seen_seconds();
    assert!((begun..=now_seconds()).contains(&seen), "{seen}");
    // Everything that is written to the file, and the time of the file itself.
    let meta = file_named(folder.path(), "meta");
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    File::options().write(true).open(meta).unwrap().set_modified(hour_ago).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let cache = open(folder.path(), Some(2 * MIB as u64));
    let store = confirmed_layer(&cache, &bytes);
    assert_eq!(store.first_seen_seconds(), seen);
    cache.make_room(2 * MIB as u64).unwrap();
    drop((store, cache));
    let cache = open(folder.path(), None);
    assert_eq!(raw_layer(&cache, &bytes).first_seen_seconds(), seen);
    cache.remove_layer(key(&bytes, Format::Raw)).unwrap();
    assert!(raw_layer(&cache, &bytes).first_seen_seconds() > seen, "another life");
}

/// A folder of a kitfs that wrote version 1 of the meta file is taken over.
#[test]
fn a_layer_of_the_first_version_was_first_seen_when_its_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    drop(confirmed_layer(&open(folder.path(), None), &bytes));
    let meta = file_named(folder.path(), "meta");
    let mut old = fs::read(&meta).unwrap()[..96].to_vec();
    old[8] = 1;
    old[15] = 0;
    old.extend(crc32c::crc32c(&old).to_le_bytes());
    fs::write(&meta, old).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    File::options().write(true).open(&meta).unwrap().set_modified(time).unwrap();
    for _ in 0..2 {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        assert_eq!(store.first_seen_seconds(), 1_700_000_000);
        assert_eq!(store.state(), LayerState::Confirmed);
        assert!(is_resident(&store, &bytes, 0..MIB));
    }
}

/// The bytes that this thread has read from files (proc_pid_io(5)).
fn bytes_read() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/io").unwrap();
    let read = counters.lines().find_map(|line| line.strip_prefix("rchar: "));
    read.unwrap().parse().unwrap()
}

fn now_seconds() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_secs() as i64
}
