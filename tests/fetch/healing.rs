//! Layers that come wrong once, and the rest that no reader asks for.

use std::sync::Weak;

use kitfs::cache::{LayerKey, Listener};

use super::*;

/// Collects what was replaced.
#[derive(Default)]
struct Replaced(parking_lot::Mutex<Vec<Range<u64>>>);

impl Listener for Replaced {
    fn replaced(&self, _layer: LayerKey, range: Range<StreamOffset>) {
        self.0.lock().push(range.start.get()..range.end.get());
    }
}

fn listen(layer: &Layer) -> Arc<Replaced> {
    let replaced = Arc::<Replaced>::default();
    let listener: Arc<dyn Listener> = replaced.clone();
    let listener: Weak<dyn Listener> = Arc::downgrade(&listener);
    layer.store().listen(listener);
    replaced
}

/// Reads every file, as far as reads succeed: a layer that is found to be wrong meanwhile is fetched again.
async fn read_files(layer: &Layer) {
    for member in &layer.contents().toc.members {
        let range = member.kind.extents().expect("all are files").stored();
        read(layer, range.start.get() as usize..range.end.get() as usize).await.unwrap();
    }
}

/// An archive of files with these sizes, and blocks of zeros behind it.
fn archive_of(sizes: &[usize], zero_blocks: usize) -> Arc<Memory> {
    let mut archive = tar_of(sizes);
    archive.resize(archive.len() + zero_blocks * 512, 0);
    Memory::new(archive)
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]

    /// Any byte of any archive changes once on its way, in a header too.
    #[test]
    fn a_byte_that_changed_on_its_way_is_fetched_again(
        sizes in prop::collection::vec(prop_oneof![0..2_000usize, 100_000..400_000usize, MIB..MIB + 300_000], 1..5),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..3), zeros in 0..20usize,
    ) {
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let source = archive_of(&sizes, zeros);
            let at: Vec<usize> = flips.iter().map(|at| at.index(source.bytes.len())).collect();
            source.flips.lock().clone_from(&at);
            let fetcher = fetcher(folder.path(), None);
            let spec = source.spec(Format::Tar, Compression::None);
            // An opening takes one wrong header, and there may be two.
            let mut opened = open(&fetcher, spec, &source).await;
            if opened.is_err() {
                opened = open(&fetcher, spec, &source).await;
            }
            let layer = opened.unwrap();
            assert!(layer.contents().toc.members.len() == sizes.len());
            let replaced = listen(&layer);
            read_files(&layer).await;
            until("confirmed", || layer.state() == LayerState::Confirmed).await;
            assert!(read(&layer, 0..source.bytes.len()).await.unwrap() == source.bytes);
            assert!(source.flips.lock().is_empty(), "every byte was asked for");
            let replaced = replaced.0.lock().clone();
            assert!(replaced.iter().all(|range| at.iter().any(|&at| range.contains(&(at as u64)))));
        });
    }

    /// Files of any size are read in any order, by one reader or by several; nobody reads what lies between.
    #[test]
    fn a_layer_whose_files_were_all_read_is_confirmed_whatever_lies_between_them(
        sizes in prop::collection::vec(prop_oneof![0..2_000usize, 100_000..400_000usize, MIB..MIB + 300_000], 1..8),
        order in any::<prop::sample::Index>(), zeros in 0..300usize, is_at_once in any::<bool>(),
        is_restarted in any::<bool>(),
    ) {
        runtime().block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let source = archive_of(&sizes, zeros);
            let spec = source.spec(Format::Tar, Compression::None);
            let mut holder = fetcher(folder.path(), None);
            let mut layer = open(&holder, spec, &source).await.unwrap();
            let mut members = layer.contents().toc.members.clone();
            let first = order.index(members.len());
            members.rotate_left(first);
            for (index, member) in members.iter().enumerate() {
                let stored = member.kind.extents().unwrap().stored();
                let range = stored.start.get() as usize..stored.end.get() as usize;
                if is_restarted && index == members.len() / 2 {
                    drop((layer, holder));
                    until("the cache is closed", || !Cache::is_held(folder.path())).await;
                    holder = fetcher(folder.path(), None);
                    layer = open(&holder, spec, &source).await.unwrap();
                }
                if is_at_once {
                    let layer = layer.clone();
                    tokio::spawn(async move { read(&layer, range).await.unwrap() });
                } else {
                    read(&layer, range).await.unwrap();
                }
            }
            until("confirmed", || layer.state() == LayerState::Confirmed).await;
            assert!(source.yielded() <= source.bytes.len() as u64 + CHUNK_BYTES * (sizes.len() as u64 + 1));
        });
    }
}

/// The rest is asked for again when a host comes back, without a reader.
#[tokio::test]
async fn the_rest_of_a_layer_comes_though_its_source_fails_at_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = tar_of(&[MIB + 100, MIB]);
    archive.resize(archive.len() + 30 * 1024, 0);
    let source = Memory::new(archive);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Tar, Compression::None), &source).await.unwrap();
    let members = layer.contents().toc.members.clone();
    let ranges: Vec<_> = members.iter().map(|it| it.kind.extents().unwrap().stored()).collect();
    read(&layer, ranges[0].start.get() as usize..ranges[0].end.get() as usize).await.unwrap();
    read(&layer, ranges[1].start.get() as usize..ranges[1].end.get() as usize - 1).await.unwrap();
    *source.faults.lock() = vec![Fault::Refuse; 2];
    until("confirmed", || layer.state() == LayerState::Confirmed).await;
}

/// Only the second wrong copy poisons. It comes from the next source first.
#[tokio::test]
async fn the_second_copy_comes_from_the_next_source() {
    for is_other_right in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let right = content(1, 3 * MIB);
        let mut wrong = right.clone();
        wrong[2 * MIB + 5] ^= 1;
        let source = Memory::at_host(wrong.clone(), "first");
        let other = if is_other_right { right.clone() } else { wrong.clone() };
        let other = Memory::at_host(other, "other");
        let mut spec = source.raw();
        spec.blob.digest = Digest::of(&right);
        let fetcher = fetcher(folder.path(), None);
        let layer = open(&fetcher, spec, &source).await.unwrap();
        fetcher.add_fallback(&layer, other.clone());
        let replaced = listen(&layer);
        read(&layer, 0..3 * MIB).await.unwrap();
        if is_other_right {
            until("confirmed", || layer.state() == LayerState::Confirmed).await;
            assert!(read(&layer, 0..3 * MIB).await.unwrap() == right);
            let chunk = CHUNK_BYTES * 8..CHUNK_BYTES * 9;
            assert_eq!(*replaced.0.lock(), [chunk], "the chunk that came wrong, and no other");
        } else {
            let got = Digest::of(&wrong);
            until("poisoned", || layer.state() == LayerState::Poisoned { got }).await;
            let all = 0..3 * MIB as u64;
            until("told", || !replaced.0.lock().is_empty()).await;
            assert!(replaced.0.lock().iter().all(|range| *range == all));
        }
        assert_eq!(other.yielded(), 3 * MIB as u64);
        assert_eq!(source.yielded(), 3 * MIB as u64);
    }
}

/// A poisoned layer that is open is removed, and fetched again by those who have it open.
#[tokio::test]
async fn a_poisoned_layer_begins_anew_when_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let right = content(1, MIB + 5);
    let mut wrong = right.clone();
    wrong[7] ^= 1;
    let got = Digest::of(&wrong);
    let source = Memory::at_host(wrong, "first");
    let mut spec = source.raw();
    spec.blob.digest = Digest::of(&right);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, spec, &source).await.unwrap();
    let replaced = listen(&layer);
    assert!(matches!(
        fetcher.cache().remove_layer(layer.key()),
        Err(kitfs::cache::CacheError::InUse(_))
    ));
    let _ = read(&layer, 0..right.len()).await;
    until("poisoned", || layer.state() == LayerState::Poisoned { got }).await;
    assert!(read(&layer, 0..10).await.is_err());
    assert_eq!(fetcher.cache().remove_layer(layer.key()).unwrap(), 0);
    assert_eq!(layer.state(), LayerState::Unconfirmed);
    fetcher.add_fallback(&layer, Memory::at_host(right.clone(), "other"));
    // The first source is asked first, and has the wrong bytes still.
    let _ = read(&layer, 0..right.len()).await;
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    assert!(read(&layer, 0..right.len()).await.unwrap() == right);
    assert!(replaced.0.lock().contains(&(0..right.len() as u64)));
}

/// A layer of one source is evicted, and a byte changes when it comes again.
#[tokio::test]
async fn a_byte_of_a_confirmed_layer_that_comes_wrong_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = Memory::new(content(1, 2 * MIB));
    let fetcher = fetcher(folder.path(), Some(4 * MIB as u64));
    let layer = open(&fetcher, source.raw(), &source).await.unwrap();
    read(&layer, 0..2 * MIB).await.unwrap();
    assert_eq!(layer.confirmed().await, LayerState::Confirmed);
    fetcher.cache().make_room(4 * MIB as u64).unwrap();
    source.flips.lock().push(MIB + 7);
    assert!(read(&layer, 0..2 * MIB).await.unwrap() == source.bytes);
    assert!(source.flips.lock().is_empty());
}

/// A byte of a compressed layer changes on its way: the whole pass is made once more.
#[tokio::test]
async fn a_compressed_layer_that_came_wrong_takes_another_pass() {
    let folder = tempfile::tempdir().unwrap();
    let stream = content(1, 2 * MIB);
    let source = Memory::new(zstd::encode_all(&stream[..], 1).unwrap());
    source.flips.lock().push(MIB);
    let fetcher = fetcher(folder.path(), None);
    let layer = open(&fetcher, source.spec(Format::Raw, Compression::Zstd), &source).await.unwrap();
    assert!(read(&layer, 0..stream.len()).await.unwrap() == stream);
    assert_eq!(layer.state(), LayerState::Confirmed);
}
