//! Files that the kernel reads by itself.

use super::*;

/// Whether the kernel may read the file of a raw layer by itself.
fn lookup(store: &Arc<LayerStore>) -> BackingLookup {
    let end = store.contents().unwrap().layout.stream_bytes();
    store.backing(&(StreamOffset(0)..StreamOffset(end))).unwrap()
}

fn is_ready(store: &Arc<LayerStore>) -> bool {
    matches!(lookup(store), BackingLookup::Ready(_))
}

/// Takes a member's file as the kernel does: it outlives this process' own descriptor and its pin.
fn kernels(store: &Arc<LayerStore>) -> File {
    let BackingLookup::Ready(backing) = lookup(store) else { panic!("it is not ready") };
    backing.as_fd().try_clone_to_owned().unwrap().into()
}

fn read_all(file: &File, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_member_is_handed_out_once_it_is_complete_confirmed_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB + 5);
    {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        fill(&cache, &store, &bytes, 0..8);
        assert!(matches!(lookup(&store), BackingLookup::NotNow), "the last chunk is missing");
        fill(&cache, &store, &bytes, 8..9);
        assert!(matches!(lookup(&store), BackingLookup::NotNow), "it is not confirmed");
        store.confirm(&|| true).unwrap();
        let file = kernels(&store);
        assert!(read_all(&file, bytes.len()) == bytes);
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
        assert!(file.write_at(b"x", 0).is_err(), "it is read-only");
        for part in [0..10, 1..bytes.len() as u64, 0..CHUNK_BYTES] {
            let part = StreamOffset(part.start)..StreamOffset(part.end);
            assert!(matches!(store.backing(&part).unwrap(), BackingLookup::Never), "{part:?}");
        }
    }
    for damage in [false, true] {
        if damage {
            flip(&member_file(folder.path()), MIB);
        }
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        let BackingLookup::Unchecked(member) = lookup(&store) else { panic!("nothing is checked") };
        member.check(&|| false).unwrap();
        assert!(!is_ready(&store), "a check that nobody wants checks nothing");
        member.check(&|| true).unwrap();
        assert_eq!(is_ready(&store), !damage);
    }
}

/// A layer whose member a process has confirmed, synced and left.
fn left_layer(folder: &Path, bytes: &[u8]) {
    let cache = open(folder, None);
    let store = confirmed_layer(&cache, bytes);
    assert!(store.sync().unwrap(), "it is clean");
}

/// A change of a member's file, and whether the file is trusted afterwards.
type Damage = (fn(&Path), bool);

fn trusted_file(folder: &Path) -> PathBuf {
    member_file(folder).ancestors().nth(2).unwrap().join("trusted")
}

fn member_files(folder: &Path) -> Vec<PathBuf> {
    let layers = fs::read_dir(folder.join("layers/sha256")).unwrap();
    let files = layers.map(|layer| layer.unwrap().path().join("members/0"));
    let mut files: Vec<PathBuf> = files.filter(|file| file.exists()).collect();
    files.sort();
    files
}

#[test]
fn a_member_that_an_earlier_process_checked_is_handed_out_as_long_as_nobody_writes_to_it() {
    let bytes = content(1, 2 * MIB + 5);
    let same = |_: &Path| {};
    let written = |file: &Path| flip(file, MIB);
    let written_with_the_same_bytes = |file: &Path| {
        flip(file, MIB);
        flip(file, MIB);
    };
    let with_its_old_times = |file: &Path| {
        let modified = file.metadata().unwrap().modified().unwrap();
        flip(file, MIB);
        File::options().write(true).open(file).unwrap().set_modified(modified).unwrap();
    };
    let replaced = |file: &Path| {
        fs::copy(file, file.with_extension("copy")).unwrap();
        fs::rename(file.with_extension("copy"), file).unwrap();
    };
    let damages: [Damage; 5] = [
        (same, true),
        (written, false),
        (written_with_the_same_bytes, false),
        (with_its_old_times, false),
        (replaced, false),
    ];
    for (number, (damage, is_trusted)) in damages.into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        left_layer(folder.path(), &bytes);
        damage(&member_file(folder.path()));
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        match lookup(&store) {
            BackingLookup::Ready(_) => assert!(is_trusted, "damage {number}"),
            BackingLookup::Unchecked(member) => {
                assert!(!is_trusted, "damage {number}");
                member.check(&|| true).unwrap();
            }
            _ => panic!("damage {number}"),
        }
    }
}

#[test]
fn a_member_that_is_checked_in_the_background_is_trusted_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB + 5);
    left_layer(folder.path(), &bytes);
    fs::remove_file(trusted_file(folder.path())).unwrap();
    {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        let BackingLookup::Unchecked(member) = lookup(&store) else { panic!("it is trusted") };
        member.check(&|| true).unwrap();
    }
    let cache = open(folder.path(), None);
    assert!(is_ready(&raw_layer(&cache, &bytes)));
}

#[test]
fn trust_that_was_ended_does_not_come_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB + 5);
    left_layer(folder.path(), &bytes);
    for _ in 0..2 {
        let cache = open(folder.path(), None);
        let store = raw_layer(&cache, &bytes);
        store.end_trust().unwrap();
        assert!(matches!(lookup(&store), BackingLookup::Unchecked(_)));
    }
}

#[test]
fn after_a_power_cut_while_a_layer_was_written_no_member_of_it_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, 2 * MIB + 5);
    let open_at = |boot| {
        let config = CacheConfig { boot: BootId([boot; 16]), ..CacheConfig::new(folder.path()) };
        Cache::open(config).unwrap()
    };
    {
        let cache = open_at(1);
        let store = confirmed_layer(&cache, &bytes);
        store.sync().unwrap();
        drop(store);
        assert!(is_ready(&raw_layer(&cache, &bytes)));
    }
    assert!(is_ready(&raw_layer(&open_at(2), &bytes)), "it was clean");
    {
        // A chunk goes, and comes back: the layer is in use.
        let cache = open_at(2);
        let store = raw_layer(&cache, &bytes);
        flip(&member_file(folder.path()), MIB);
        cache.verify_layer(store.key()).unwrap();
        fill_all(&cache, &store, &bytes);
    }
    let cache = open_at(3);
    let store = raw_layer(&cache, &bytes);
    assert!(store.unchecked_bytes() > 0);
    assert!(matches!(lookup(&store), BackingLookup::Unchecked(_)));
}

#[derive(Clone, Debug)]
enum Step {
    Fill(usize),
    Evict,
    Check,
    Sync,
    Verify,
    Restart,
    Flip(prop::sample::Index),
    EndTrust,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3usize).prop_map(Step::Fill),
        1 => Just(Step::Evict),
        2 => Just(Step::Check),
        3 => Just(Step::Sync),
        1 => Just(Step::Verify),
        3 => Just(Step::Restart),
        1 => any::<prop::sample::Index>().prop_map(Step::Flip),
        1 => Just(Step::EndTrust),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Members are written, evicted, checked and trusted in any order, processes end at any moment, and
    /// programs write to the files: a file that is handed out has the right bytes.
    #[test]
    fn no_file_is_handed_out_with_bytes_that_nobody_checked(
        steps in prop::collection::vec(any_step(), 1..25),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let layers = [1, 2, 3].map(|seed| content(seed, MIB + seed as usize));
        for bytes in &layers {
            left_layer(folder.path(), bytes);
        }
        let mut cache = open(folder.path(), None);
        let mut stores = layers.each_ref().map(|bytes| raw_layer(&cache, bytes));
        for step in steps {
            match step {
                Step::Fill(layer) => {
                    if stores[layer].filled(ChunkId(0)) == 0 {
                        fill_all(&cache, &stores[layer], &layers[layer]);
                    }
                }
                Step::Evict => {
                    drop(stores);
                    drop(cache);
                    cache = open(folder.path(), Some(2 * MIB as u64 + CHUNK_BYTES));
                    cache.make_room(CHUNK_BYTES).unwrap();
                    drop(cache);
                    cache = open(folder.path(), None);
                    stores = layers.each_ref().map(|bytes| raw_layer(&cache, bytes));
                }
                Step::Check => {
                    for store in &stores {
                        if let BackingLookup::Unchecked(member) = lookup(store) {
                            member.check(&|| true).unwrap();
                        }
                    }
                }
                Step::Sync => {
                    for store in &stores {
                        store.confirm(&|| true).unwrap();
                        store.sync().unwrap();
                    }
                }
                Step::Verify => {
                    for store in &stores {
                        cache.verify_layer(store.key()).unwrap();
                    }
                }
                Step::Restart => {
                    drop(stores);
                    drop(cache);
                    cache = open(folder.path(), None);
                    stores = layers.each_ref().map(|bytes| raw_layer(&cache, bytes));
                }
                Step::Flip(at) => {
                    // Programs write while no process has the cache, because a running process would not notice.
                    drop(stores);
                    drop(cache);
                    let files = member_files(folder.path());
                    let file = &files[at.index(files.len())];
                    flip(file, at.index(file.metadata().unwrap().len() as usize));
                    cache = open(folder.path(), None);
                    stores = layers.each_ref().map(|bytes| raw_layer(&cache, bytes));
                }
                Step::EndTrust => stores.iter().for_each(|store| store.end_trust().unwrap()),
            }
            for (store, bytes) in stores.iter().zip(&layers) {
                if let BackingLookup::Ready(backing) = lookup(store) {
                    let file = File::from(backing.as_fd().try_clone_to_owned().unwrap());
                    prop_assert!(read_all(&file, bytes.len()) == *bytes, "a wrong byte");
                }
            }
        }
    }
}

#[test]
fn a_file_of_another_length_than_its_member_is_not_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = content(1, MIB);
    let cache = open(folder.path(), None);
    let store = confirmed_layer(&cache, &bytes);
    let file = File::options().append(true).open(member_file(folder.path())).unwrap();
    file.write_all_at(b"more", 0).unwrap();
    assert!(matches!(lookup(&store), BackingLookup::NotNow));
}

#[test]
fn a_quarter_of_the_cache_is_never_handed_out() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(4 * MIB as u64));
    let layers = [1, 2, 3, 4].map(|seed| {
        let bytes = content(seed, MIB);
        confirmed_layer(&cache, &bytes)
    });
    let taken = layers.each_ref().map(lookup);
    let ready = taken.iter().filter(|taken| matches!(taken, BackingLookup::Ready(_)));
    assert_eq!(ready.count(), 3);
    let again = lookup(&layers[0]);
    assert!(matches!(again, BackingLookup::Ready(_)), "what is pinned already takes no more");
    cache.make_room(MIB as u64).unwrap();
    assert_eq!(
        layers.each_ref().map(|store| store.resident_bytes() == MIB as u64),
        [true, true, true, false]
    );
    drop((taken, again));
    assert!(!is_ready(&layers[3]), "it was evicted");
}

#[test]
fn a_file_that_a_dead_process_handed_to_the_kernel_keeps_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (bytes, others) = (content(1, MIB), content(2, 2 * MIB));
    let file = {
        let cache = open(folder.path(), None);
        let store = confirmed_layer(&cache, &bytes);
        kernels(&store)
    };
    let cache = open(folder.path(), Some(2 * MIB as u64));
    let other = raw_layer(&cache, &others);
    fill_all(&cache, &other, &others);
    assert!(read_all(&file, MIB) == bytes, "a hole was punched under a reader");
    assert!(cache.resident_bytes() <= 2 * MIB as u64);
    // Its bytes go when its readers have gone.
    drop(file);
    let other = content(3, 2 * MIB);
    let store = raw_layer(&cache, &other);
    fill_all(&cache, &store, &other);
    assert_eq!(store.resident_bytes(), 2 * MIB as u64);
}

#[test]
fn a_map_keeps_the_bytes_it_shows_and_counts_as_a_pin() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), Some(4 * MIB as u64));
    let layers = [1, 2].map(|seed| {
        let bytes = content(seed, 2 * MIB);
        confirmed_layer(&cache, &bytes)
    });
    // A descriptor stands for the map: leases see no difference (cache/lease.rs).
    let map = kernels(&layers[0]);
    assert!(is_ready(&layers[0]), "it is handed out again");
    assert!(!is_ready(&layers[1]), "a quarter is left to others");
    cache.make_room(2 * MIB as u64).unwrap();
    assert_eq!(layers.each_ref().map(|store| store.resident_bytes()), [2 * MIB as u64, 0]);
    assert!(read_all(&map, 2 * MIB) == content(1, 2 * MIB));
    drop(map);
    fill_all(&cache, &layers[1], &content(2, 2 * MIB));
    assert!(is_ready(&layers[1]), "nobody has the other one any more");
}

#[test]
fn bytes_that_the_disk_changed_under_the_kernel_are_written_over_and_never_cut_out() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), None);
    let bytes = content(1, MIB);
    let store = confirmed_layer(&cache, &bytes);
    let BackingLookup::Ready(backing) = lookup(&store) else { panic!("it is not ready") };
    let file = File::from(backing.as_fd().try_clone_to_owned().unwrap());
    flip(&member_file(folder.path()), CHUNK + 50);
    let mut changed = bytes.clone();
    changed[CHUNK + 50] ^= 1;
    assert_eq!(cache.verify_layer(store.key()).unwrap().dropped_chunks, 1);
    assert!(read_all(&file, MIB) == changed, "only the byte that the disk changed is wrong");
    assert!(!is_resident(&store, &bytes, CHUNK..2 * CHUNK), "others do not get it");
    assert!(matches!(lookup(&store), BackingLookup::NotNow));
    // Nothing is written to it before it is known to be right.
    let mut wrong = bytes[CHUNK..2 * CHUNK].to_vec();
    wrong[3] ^= 1;
    let mut appender = store.appender();
    appender.append(ChunkId(1), 0, &[IoSlice::new(&wrong[..10])]).unwrap();
    assert!(read_all(&file, MIB) == changed);
    assert!(appender.append(ChunkId(1), 10, &[IoSlice::new(&wrong[10..])]).is_err());
    drop(appender);
    assert!(read_all(&file, MIB) == changed);
    fill(&cache, &store, &bytes, 1..2);
    assert!(read_all(&file, MIB) == bytes);
    assert!(is_ready(&store));
}
