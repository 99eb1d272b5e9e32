//! Damage to the files by other processes, crashes and the disk.

use super::*;

#[test]
fn bytes_that_the_disk_changed_before_the_digest_are_dropped_and_poison_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let bytes = content(1, MIB);
    let store = raw_layer(&cache, &bytes);
    fill_all(&cache, &store, &bytes);
    flip(&member_file(folder.path()), CHUNK + 5);
    assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Unconfirmed);
    assert_eq!(cache.resident_bytes(), (MIB - CHUNK) as u64);
    fill(&cache, &store, &bytes, 1..2);
    assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
    assert!(is_resident(&store, &bytes, 0..MIB));
}

/// A layer of one raw file that came compressed, all of it here and confirmed.
fn confirmed_compressed(cache: &Arc<Cache>, bytes: &[u8]) -> Arc<LayerStore> {
    let store = cache.layer(compressed_key(), 10).unwrap();
    let mut stage = store.stage().unwrap();
    stage.write(CacheFile::Member(0), 0, bytes).unwrap();
    let mut covered = RangeSet::new();
    covered.insert(0..bytes.len() as u64);
    let digest = Some(store.key().digest);
    stage.finish(Toc::raw(bytes.len() as u64), &covered, digest).unwrap();
    assert_eq!(store.state(), LayerState::Confirmed);
    store
}

fn compressed_key() -> LayerKey {
    let encoding = Encoding { format: Format::Raw, compression: Compression::Zstd };
    LayerKey { digest: Digest::of(b"compressed"), encoding }
}

/// The sha256 of a layer does not tell which of its bytes are wrong. Checksums find the bytes that the disk
/// changed; then the digest judges the others.
#[test]
fn bytes_that_came_wrong_are_told_from_bytes_that_the_disk_changed() {
    for comes_right in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path(), Some(2 * MIB as u64));
        let bytes = content(1, MIB);
        let mut wrong = bytes.clone();
        wrong[7] ^= 1;
        let store = raw_layer(&cache, &bytes);
        fill_all(&cache, &store, &wrong);
        flip(&member_file(folder.path()), 2 * CHUNK + 5);
        assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Unconfirmed);
        assert_eq!(cache.resident_bytes(), (MIB - CHUNK) as u64, "one chunk was dropped");
        if comes_right {
            // The wrong chunk has a seal by now, which must not outlive the chunk.
            cache.make_room(2 * MIB as u64).unwrap();
            fill_all(&cache, &store, &bytes);
            assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
        } else {
            fill(&cache, &store, &wrong, 2..3);
            let got = Digest::of(&wrong);
            assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Poisoned { got });
        }
    }
}

/// A chunk is evicted after it was hashed, and comes back with other bytes.
#[test]
fn a_layer_is_not_confirmed_by_bytes_that_went_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(2 * MIB as u64));
    let bytes = content(1, 2 * MIB);
    let mut other = bytes.clone();
    other[7] ^= 1;
    let store = raw_layer(&cache, &bytes);
    fill_all(&cache, &store, &bytes);
    let chunks_begun = AtomicU64::new(0);
    let evicts_behind_the_second = || {
        if chunks_begun.fetch_add(1, Ordering::Relaxed) == 2 {
            cache.make_room(1).unwrap();
            assert!(!is_resident(&store, &bytes, 0..CHUNK));
            fill(&cache, &store, &other, 0..1);
        }
        true
    };
    assert_eq!(store.confirm(&evicts_behind_the_second).unwrap(), LayerState::Unconfirmed);
    assert_eq!(store.filled(ChunkId(0)) as usize, CHUNK);
    let got = Digest::of(&other);
    assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Poisoned { got });
}

#[test]
fn a_compressed_layer_that_lost_a_digest_is_emptied_when_it_is_next_opened() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB);
    {
        let cache = open(folder.path(), Some(2 * MIB as u64));
        let store = confirmed_compressed(&cache, &bytes);
        cache.make_room(2 * MIB as u64).unwrap();
        both_named(folder.path(), "chunks").iter().for_each(|file| flip(file, 64 + 80 + 20));
        fill(&cache, &store, &bytes, 0..1);
        assert_eq!(store.state(), LayerState::Confirmed);
        let piece = [IoSlice::new(&bytes[CHUNK..CHUNK + 10])];
        store.appender().append(ChunkId(1), 0, &piece).unwrap();
        assert_eq!((store.state(), store.filled(ChunkId(1))), (LayerState::Unconfirmed, 10));
    }
    let cache = open(folder.path(), None);
    let store = cache.layer(compressed_key(), 10).unwrap();
    assert!(store.contents().is_none());
    assert_eq!((store.state(), cache.resident_bytes()), (LayerState::Unconfirmed, 0));
    drop(store);
    confirmed_compressed(&cache, &bytes);
}

#[test]
fn a_layer_whose_table_of_contents_goes_is_emptied() {
    for is_running in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = content(1, MIB);
        confirmed_layer(&open(folder.path(), None), &bytes);
        let remove =
            || both_named(folder.path(), "toc").iter().for_each(|it| fs::remove_file(it).unwrap());
        if !is_running {
            remove();
        }
        let cache = open(folder.path(), None);
        if is_running {
            assert_eq!(cache.resident_bytes(), MIB as u64);
            remove();
            let store = cache.layer(key(&bytes, Format::Raw), bytes.len() as u64).unwrap();
            assert!(store.contents().is_none());
        }
        assert_eq!(cache.resident_bytes(), 0);
        assert_eq!(cache.layers().unwrap()[0].state, LayerState::Unconfirmed);
        assert!(!files_below(folder.path()).iter().any(|path| path.ends_with("members/0")));
        confirmed_layer(&cache, &bytes);
    }
}

#[test]
fn a_layer_that_cannot_be_read_is_the_only_one_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, others) = (content(1, MIB), content(2, MIB));
    confirmed_layer(&open(folder.path(), None), &bytes);
    let table = file_named(folder.path(), "chunks");
    fs::remove_file(&table).unwrap();
    fs::create_dir(&table).unwrap();
    let cache = open(folder.path(), None);
    confirmed_layer(&cache, &others);
    let key = key(&bytes, Format::Raw);
    // A folder lies in the place of its table, so the layer is read as if the cache had nothing of it.
    let store = cache.layer(key, bytes.len() as u64).unwrap();
    assert!(store.contents().is_none());
    let trouble = cache.trouble().unwrap();
    assert!(trouble.contains("chunks"), "{trouble}");
    store.stage().unwrap().finish(Toc::raw(MIB as u64), &RangeSet::new(), None).unwrap();
    let appended = store.appender().append(ChunkId(0), 0, &[IoSlice::new(&bytes[..10])]).unwrap();
    let given_back = Appended::Unkept { start: 0, bytes: bytes[..10].to_vec().into() };
    assert_eq!(appended, given_back);
    drop(store);
    // The cache still lists the layer.
    let layers = cache.layers().unwrap();
    let usage = layers.iter().find(|usage| usage.key == key).unwrap();
    assert!(usage.resident_bytes >= MIB as u64 && cache.resident_bytes() >= 2 * MIB as u64);
    assert!(cache.remove_layer(key).unwrap() >= MIB as u64);
    assert_eq!(cache.resident_bytes(), MIB as u64);
    confirmed_layer(&cache, &bytes);
}

/// The least recently used layer would be evicted first, and cannot be.
#[test]
fn a_layer_that_cannot_be_evicted_leaves_it_to_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(3 * MIB as u64));
    let (bytes, others) = (content(1, MIB), content(2, MIB));
    drop(confirmed_layer(&cache, &bytes));
    let table = file_named(folder.path(), "chunks");
    fs::remove_file(&table).unwrap();
    fs::create_dir(&table).unwrap();
    drop(confirmed_layer(&cache, &others));
    cache.make_room(2 * MIB as u64).unwrap();
    assert!(cache.resident_bytes() <= MIB as u64);
    assert!(matches!(cache.make_room(3 * MIB as u64), Err(CacheError::Full { .. })));
}

/// The records of the bytes that must come back are lost: one record is torn, or all are gone.
#[test]
fn a_confirmed_layer_that_lost_a_digest_is_verified_again() {
    for is_torn in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let bytes = content(1, MIB);
        {
            let cache = open(folder.path(), None);
            confirmed_layer(&cache, &bytes);
        }
        for table in both_named(folder.path(), "chunks") {
            match is_torn {
                true => flip(&table, 64 + 80 + 20),
                false => fs::remove_file(&table).unwrap(),
            }
        }
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        let mut other = bytes.clone();
        other[CHUNK + 7] ^= 1;
        fill_all(&cache, &store, &other);
        assert_eq!(store.state(), LayerState::Unconfirmed, "torn: {is_torn}");
        let got = store.confirm(&|| true).unwrap();
        assert_eq!(got, LayerState::Poisoned { got: Digest::of(&other) }, "torn: {is_torn}");
    }
}

/// A table of another version of kitfs, for example. No uncounted byte may stay.
#[test]
fn a_layer_whose_table_of_chunks_cannot_be_used_is_emptied() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    {
        let cache = open(folder.path(), None);
        confirmed_layer(&cache, &bytes);
    }
    // The version.
    both_named(folder.path(), "chunks").iter().for_each(|file| flip(file, 8));
    let cache = open(folder.path(), None);
    let [usage] = &cache.layers().unwrap()[..] else { panic!("one layer is known") };
    assert!(!files_below(folder.path()).iter().any(|path| path.ends_with("members/0")));
    assert_eq!((&usage.state, usage.resident_bytes), (&LayerState::Unconfirmed, 0));
    assert_eq!(cache.resident_bytes(), 0);
    let store = cache.layer(key(&bytes, Format::Raw), bytes.len() as u64).unwrap();
    assert!(store.contents().is_none());
    drop(store);
    confirmed_layer(&cache, &bytes);
}

#[test]
fn verification_drops_what_the_disk_changed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let bytes = content(1, MIB);
    let store = raw_layer(&cache, &bytes);
    fill_all(&cache, &store, &bytes);
    let found = cache.verify_layer(store.key()).unwrap();
    assert_eq!((found.checked_bytes, found.dropped_chunks), (MIB as u64, 0));
    let member = member_file(folder.path());
    let mut changed = fs::read(&member).unwrap();
    changed[CHUNK + 5] ^= 1;
    fs::write(&member, changed).unwrap();
    assert_eq!(cache.verify_layer(store.key()).unwrap().dropped_chunks, 1);
    assert!(!is_resident(&store, &bytes, CHUNK..2 * CHUNK));
    assert!(is_resident(&store, &bytes, 0..CHUNK));
    assert_eq!(cache.resident_bytes(), (MIB - CHUNK) as u64);
}

/// The polynomial of CRC32C, its first coefficient in the lowest bit. Adding it changes no CRC.
const POLYNOMIAL: [u8; 5] = [0xf1, 0x76, 0xec, 0x05, 0x01];

#[test]
fn verification_of_a_confirmed_layer_notices_what_its_checksums_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let bytes = content(1, MIB);
    let store = raw_layer(&cache, &bytes);
    fill_all(&cache, &store, &bytes);
    let change = || {
        let mut changed = bytes.clone();
        changed[CHUNK..].iter_mut().zip(POLYNOMIAL).for_each(|(to, with)| *to ^= with);
        assert_ne!(changed, bytes);
        fs::write(member_file(folder.path()), changed).unwrap();
    };
    change();
    assert_eq!(cache.verify_layer(store.key()).unwrap().dropped_chunks, 0, "there is no seal yet");
    fs::write(member_file(folder.path()), &bytes).unwrap();
    assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
    assert_eq!(cache.verify_layer(store.key()).unwrap().dropped_chunks, 0);
    change();
    assert_eq!(cache.verify_layer(store.key()).unwrap().dropped_chunks, 1);
    assert!(!is_resident(&store, &bytes, CHUNK..2 * CHUNK));
}

/// A change between runs, to a layer with two big members and small ones.
#[derive(Clone, Debug)]
enum Step {
    Fill { chunk: prop::sample::Index },
    Part { chunk: prop::sample::Index, share: f64 },
    Evict { bytes: u64 },
    Restart,
    Flip { file: prop::sample::Index, byte: prop::sample::Index, bit: u8 },
    Truncate { file: prop::sample::Index, byte: prop::sample::Index },
    Remove { file: prop::sample::Index },
}

fn any_step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => index().prop_map(|chunk| Step::Fill { chunk }),
        3 => (index(), 0.0..1.0).prop_map(|(chunk, share)| Step::Part { chunk, share }),
        1 => (0..2_000_000u64).prop_map(|bytes| Step::Evict { bytes }),
        2 => Just(Step::Restart),
        2 => (index(), index(), 0..8u8).prop_map(|(file, byte, bit)| Step::Flip { file, byte, bit }),
        1 => (index(), index()).prop_map(|(file, byte)| Step::Truncate { file, byte }),
        1 => index().prop_map(|file| Step::Remove { file }),
    ]
}

fn damage(folder: &Path, step: &Step) {
    let files = files_below(folder);
    let choose = |file: &prop::sample::Index| &files[file.index(files.len())];
    match step {
        Step::Flip { file, byte, bit } => {
            let mut bytes = fs::read(choose(file)).unwrap();
            if !bytes.is_empty() {
                let at = byte.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            fs::write(choose(file), bytes).unwrap();
        }
        Step::Truncate { file, byte } => {
            let mut bytes = fs::read(choose(file)).unwrap();
            bytes.truncate(byte.index(bytes.len() + 1));
            fs::write(choose(file), bytes).unwrap();
        }
        Step::Remove { file } => fs::remove_file(choose(file)).unwrap(),
        Step::Fill { .. } | Step::Part { .. } | Step::Evict { .. } | Step::Restart => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Damage happens while no process has the folder, because a running process believes its own writes.
    #[test]
    fn no_damage_to_the_files_makes_the_cache_serve_a_wrong_byte(
        steps in prop::collection::vec(any_step(), 1..25),
    ) {
        let sizes = [100, 300_000, 5, MIB + 300_000, 70_000, MIB];
        let toc = toc(&sizes);
        let bytes = archive(&toc, 9);
        let key = key(&bytes, Format::Tar);
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Some(open(folder.path(), Some(3 * MIB as u64)));
        for step in &steps {
            let is_damage = matches!(step, Step::Flip { .. } | Step::Truncate { .. } | Step::Remove { .. });
            if is_damage || matches!(step, Step::Restart) {
                cache = None;
                damage(folder.path(), step);
            }
            if cache.is_none() {
                cache = Some(open(folder.path(), Some(3 * MIB as u64)));
            }
            let cache = cache.as_ref().unwrap();
            let store = cache.layer(key, bytes.len() as u64).unwrap();
            if store.contents().is_none() {
                store.stage().unwrap().finish(toc.clone(), &RangeSet::new(), None).unwrap();
            }
            let layout = &store.contents().unwrap().layout;
            match step {
                Step::Fill { chunk } => {
                    let chunk = chunk.index(layout.chunks() as usize) as u32;
                    fill(cache, &store, &bytes, chunk..chunk + 1);
                }
                Step::Part { chunk, share } => {
                    let chunk = ChunkId(chunk.index(layout.chunks() as usize) as u32);
                    let span = layout.chunk(chunk).stream;
                    let length = ((span.end - span.start) as f64 * share) as usize;
                    let start = span.start.get() as usize;
                    store.appender().append(chunk, 0, &[IoSlice::new(&bytes[start..start + length])]).unwrap();
                }
                Step::Evict { bytes } => cache.make_room(*bytes).unwrap(),
                _ => {}
            }
            let mut resident = 0;
            for chunk in 0..layout.chunks() {
                let span = layout.chunk(ChunkId(chunk)).stream;
                let start = span.start.get() as usize;
                let filled = store.filled(ChunkId(chunk)) as usize;
                if filled > 0 && is_resident(&store, &bytes, start..start + filled) {
                    resident += filled as u64;
                }
            }
            prop_assert_eq!(store.resident_bytes(), resident);
            prop_assert_eq!(cache.resident_bytes(), resident);
        }
    }
}

/// A cache with a tar of big and small members, a raw layer and a compressed one, all complete, and with the
/// documents to mount their kit offline.
pub(super) struct Full {
    pub(super) layers: Vec<(LayerKey, u64, Vec<u8>)>,
    pub(super) document: Digest,
}

impl Full {
    pub(super) fn fill(cache: &Arc<Cache>) -> Self {
        let toc = toc(&[100, 300_000, MIB + 5, 70_000]);
        let (tar, raw, packed) = (archive(&toc, 1), content(2, MIB), content(3, MIB + 7));
        let store = cache.layer(key(&tar, Format::Tar), tar.len() as u64).unwrap();
        store.stage().unwrap().finish(toc, &RangeSet::new(), None).unwrap();
        fill_all(cache, &store, &tar);
        assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed);
        confirmed_layer(cache, &raw);
        confirmed_compressed(cache, &packed);
        let document = Digest::of(b"manifest");
        cache.put_document(document, b"manifest").unwrap();
        cache.remember("host/kit:v1", document).unwrap();
        let layers = vec![
            (key(&tar, Format::Tar), tar.len() as u64, tar),
            (key(&raw, Format::Raw), raw.len() as u64, raw),
            (compressed_key(), 10, packed),
        ];
        Self { layers, document }
    }

    /// Checks that everything is here without a network, and is confirmed in the end.
    fn assert_whole(&self, cache: &Arc<Cache>, what: &str) {
        assert_eq!(cache.recall("host/kit:v1"), Some(self.document), "{what}");
        assert_eq!(cache.document(self.document).as_deref(), Some(&b"manifest"[..]), "{what}");
        for (key, blob_bytes, bytes) in &self.layers {
            let store = cache.layer(*key, *blob_bytes).unwrap();
            assert!(store.contents().is_some(), "{what}: {key:?}");
            assert!(is_resident(&store, bytes, 0..bytes.len()), "{what}: {key:?}");
            assert_eq!(store.confirm(&|| true).unwrap(), LayerState::Confirmed, "{what}: {key:?}");
        }
        let total: usize = self.layers.iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert_eq!(cache.resident_bytes(), total as u64, "{what}");
    }

    fn verify(&self, cache: &Arc<Cache>) {
        for (key, ..) in &self.layers {
            assert_eq!(cache.verify_layer(*key).unwrap().dropped_chunks, 0);
        }
        cache.verify_documents().unwrap();
    }
}

/// The files of a cache that are not content.
fn small_files(folder: &Path) -> Vec<PathBuf> {
    let is_content = |path: &PathBuf| {
        path.ends_with("stream") || path.parent().is_some_and(|folder| folder.ends_with("members"))
    };
    let mut files = files_below(folder);
    files.retain(|path| !is_content(path));
    files
}

/// The file that has the same content.
fn twin_of(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap().to_str().unwrap();
    let twin = match name {
        "document" => "copy".to_owned(),
        "copy" => "document".to_owned(),
        "state.redb" => "state.copy.redb".to_owned(),
        "state.copy.redb" => "state.redb".to_owned(),
        "lock" => name.to_owned(),
        name => match name.strip_suffix(".copy") {
            Some(name) => name.to_owned(),
            None => format!("{name}.copy"),
        },
    };
    file.with_file_name(twin)
}

#[derive(Clone, Debug)]
enum Small {
    Flip { byte: prop::sample::Index, bit: u8 },
    Truncate { byte: prop::sample::Index },
    Remove,
}

impl Small {
    fn apply(&self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        match self {
            Self::Flip { byte, bit } if !bytes.is_empty() => {
                let at = byte.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Truncate { byte } => bytes.truncate(byte.index(bytes.len() + 1)),
            Self::Flip { .. } => {}
            Self::Remove => return fs::remove_file(file).unwrap(),
        }
        // In place, as a disk damages a file that a process may have open.
        let file = File::options().write(true).open(file).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }
}

fn any_small() -> impl Strategy<Value = Small> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => (index(), 0..8u8).prop_map(|(byte, bit)| Small::Flip { byte, bit }),
        1 => index().prop_map(|byte| Small::Truncate { byte }),
        1 => Just(Small::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// One small file is damaged, mended, and then the other one that has the same content.
    #[test]
    fn any_damage_to_one_small_file_costs_nothing(
        file in any::<prop::sample::Index>(), damages in (any_small(), any_small()),
        is_settled in any::<bool>(), is_running in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let cache = open_under(folder.path(), 1);
        let full = Full::fill(&cache);
        if is_settled {
            cache.settle(&|| true);
        }
        let files = small_files(folder.path());
        let file = file.index(files.len());
        let file = &files[file];
        let what = format!("{} {damages:?}", file.display());
        if is_running {
            damages.0.apply(file);
            full.verify(&cache);
            full.assert_whole(&cache, &what);
            drop(cache);
        } else {
            drop(cache);
            damages.0.apply(file);
        }
        let cache = open_under(folder.path(), 1);
        full.assert_whole(&cache, &what);
        full.verify(&cache);
        drop(cache);
        damages.1.apply(&twin_of(file));
        full.assert_whole(&open_under(folder.path(), 1), &what);
    }
}
