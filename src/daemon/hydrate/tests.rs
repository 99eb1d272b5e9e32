//! Hydrating kits of a registry in memory.

use std::collections::HashSet;
use std::time::Instant;

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::cache::CacheConfig;
use crate::fetch::FetchConfig;
use crate::fs::{FsConfig, FsError, Ino, LoadRequest, Owner, Read, load};
use crate::layer::StreamOffset;
use crate::layer::layout::CHUNK_BYTES;
use crate::oci::{Digest, Origin};
use crate::source::in_memory::{InMemory, Registry, Stores};

const KIT: &str = "registry.test/org/kit:v1";
const CHUNK: usize = CHUNK_BYTES as usize;
/// Far longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mount of a kit whose data sets `file-0`, `file-1`, … are raw layers.
struct Bench {
    registry: Arc<Registry>,
    hydration: Arc<Hydration>,
    file_system: Arc<FileSystem>,
    digests: Vec<Digest>,
    _folder: tempfile::TempDir,
}

/// The content of one file. Files of different numbers have different digests.
fn content(number: usize, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut content);
    content
}

impl Bench {
    async fn new(sizes: &[usize]) -> Self {
        Self::with_capacity(sizes, None).await
    }

    async fn with_capacity(sizes: &[usize], capacity_bytes: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig { capacity_bytes, ..CacheConfig::new(folder.path()) };
        let cache = Cache::open(config).unwrap();
        let fetcher = Fetcher::new(cache.clone(), FetchConfig::default());
        let registry = Arc::new(Registry::default());
        let numbered = sizes.iter().enumerate();
        let contents: Vec<(String, Vec<u8>)> = numbered
            .map(|(number, &bytes)| (format!("file-{number}"), content(number, bytes)))
            .collect();
        let layers: Vec<_> =
            contents.iter().map(|(path, it)| ("dataset", path.as_str(), it.as_slice())).collect();
        registry.push(KIT, None, &layers);
        let request = LoadRequest::all_of(Origin::parse(KIT).unwrap());
        let repositories = InMemory(registry.clone(), Stores::default());
        let kit = load(&fetcher, &repositories, &request, &|_, _| ()).await.unwrap();
        let owner = Owner { uid: 0, gid: 0 };
        let file_system = FileSystem::new(Arc::new(kit), owner, FsConfig::default());
        let digests = contents.iter().map(|(_, it)| Digest::of(it)).collect();
        let hydration = Hydration::new(cache, fetcher);
        Self { registry, hydration, file_system: file_system.into(), digests, _folder: folder }
    }

    fn begin(&self, mode: HydrateMode) -> Hydrating {
        let hydrating = self.hydration.begin(&self.file_system, mode, Duration::ZERO);
        assert_eq!(hydrating.mode(), mode);
        hydrating
    }

    /// The layer of a file.
    fn layer(&self, number: usize) -> &Arc<Layer> {
        let layers = &self.file_system.kit().layers;
        layers.iter().find(|layer| layer.key().digest == self.digests[number]).unwrap()
    }

    /// Reads some bytes of a file, as a mount does.
    async fn read(&self, number: usize, offset: usize, bytes: usize) -> Result<Vec<u8>, FsError> {
        let name = format!("file-{number}");
        let ino = self.file_system.lookup(Ino::ROOT, name.as_bytes()).unwrap().ino;
        let mut buffer = BytesMut::new();
        match self.file_system.read(ino, offset as u64, bytes as u32, &mut buffer)? {
            Read::Resident(bytes) => Ok(bytes.to_vec()),
            Read::Pending(pending) => Ok(pending.finish(1).await?.to_vec()),
        }
    }

    /// Has other bytes come under the digest of a file.
    fn change(&self, number: usize) {
        let mut blobs = self.registry.blobs.lock();
        let blob = blobs.get_mut(&self.digests[number]).unwrap();
        let mut changed = blob.to_vec();
        changed[0] ^= 1;
        *blob = changed.into();
    }

    fn stall(&self, numbers: &[usize]) {
        let stalled: HashSet<Digest> = numbers.iter().map(|&it| self.digests[it]).collect();
        self.registry.stalled.send_replace(stalled);
    }
}

async fn until(hydrating: &Hydrating, is_so: impl Fn(&HydrateState) -> bool) -> HydrateState {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = hydrating.state();
        if is_so(&state) {
            return state;
        }
        assert!(Instant::now() < deadline, "still {state:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_a_kit_is_brought_once_and_is_verified() {
    // More than a piece, less than a chunk, and a whole number of chunks.
    let bench = Bench::new(&[17 * 1024 * 1024, 1000, 2 * CHUNK]).await;
    bench.read(1, 0, 10).await.unwrap();
    let hydrating = bench.begin(HydrateMode::All);
    until(&hydrating, |state| *state == HydrateState::Complete).await;
    for number in 0..3 {
        assert!(is_here(bench.layer(number)), "layer {number}");
    }
    assert_eq!(
        bench.hydration.fetcher.usage().fetched_bytes,
        17 * 1024 * 1024 + 1000 + 2 * CHUNK_BYTES
    );
    assert!(bench.hydration.begin(&bench.file_system, HydrateMode::All, PATIENCE)._task.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_begun_is_completed_and_no_other() {
    let bench = Bench::new(&[8 * CHUNK, 8 * CHUNK]).await;
    let hydrating = bench.begin(HydrateMode::Begun);
    assert_eq!(hydrating.state(), HydrateState::Begun);
    // Every second chunk, from the end on: nothing is read ahead of such a reader.
    for chunk in [7, 5, 3, 1] {
        bench.read(0, chunk * CHUNK, 10).await.unwrap();
    }
    let is_complete =
        |state: &HydrateState| *state == HydrateState::Begun && is_here(bench.layer(0));
    until(&hydrating, is_complete).await;
    assert_eq!(bench.layer(1).resident_bytes(), 0);
    for chunk in [7, 5, 3, 1] {
        bench.read(1, chunk * CHUNK, 10).await.unwrap();
    }
    until(&hydrating, |state| *state == HydrateState::Complete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_fetched_where_it_is_off_or_readers_were_there_a_moment_ago() {
    let bench = Bench::new(&[CHUNK]).await;
    assert_eq!(bench.begin(HydrateMode::None).state(), HydrateState::Off);
    let hydrating = bench.hydration.begin(&bench.file_system, HydrateMode::All, 60 * PATIENCE);
    tokio::time::sleep(4 * SHORTEST_WAIT).await;
    assert_eq!(hydrating.state(), HydrateState::Waiting);
    assert_eq!(bench.layer(0).resident_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kit_that_does_not_fit_the_cache_waits_for_room_and_evicts_nothing() {
    let bench = Bench::with_capacity(&[8 * CHUNK, 32 * CHUNK], Some(20 * CHUNK_BYTES)).await;
    bench.read(0, 0, 10).await.unwrap();
    let before = bench.layer(0).resident_bytes();
    let hydrating = bench.begin(HydrateMode::All);
    until(&hydrating, |state| *state == HydrateState::NoRoom).await;
    assert_eq!(bench.layer(1).resident_bytes(), 0);
    assert_eq!(bench.layer(0).resident_bytes(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_cannot_be_had_is_told_and_holds_up_no_other() {
    let bench = Bench::new(&[CHUNK, CHUNK, CHUNK]).await;
    bench.registry.blobs.lock().remove(&bench.digests[1]);
    let hydrating = bench.begin(HydrateMode::All);
    let failed = until(&hydrating, |state| matches!(state, HydrateState::Failed { .. })).await;
    let HydrateState::Failed { reason } = failed else { unreachable!() };
    assert!(reason.contains(&bench.digests[1].to_string()), "{reason}");
    assert!(bench.layer(0).store().is_complete() && bench.layer(2).store().is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_are_told_and_end_the_work_once_the_rest_is_here() {
    let bench = Bench::new(&[CHUNK, CHUNK]).await;
    bench.change(0);
    let hydrating = bench.begin(HydrateMode::All);
    let failed = until(&hydrating, |state| matches!(state, HydrateState::Failed { .. })).await;
    let HydrateState::Failed { reason } = failed else { unreachable!() };
    assert!(reason.starts_with("dataset `file-0`") && reason.contains("poisoned"), "{reason}");
    assert!(is_here(bench.layer(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_bytes_of_a_file_that_was_begun_are_told_too() {
    let bench = Bench::new(&[8 * CHUNK, CHUNK]).await;
    bench.change(0);
    let hydrating = bench.begin(HydrateMode::Begun);
    for chunk in [7, 5, 3, 1] {
        bench.read(0, chunk * CHUNK, 10).await.unwrap();
    }
    let failed = until(&hydrating, |state| matches!(state, HydrateState::Failed { .. })).await;
    let HydrateState::Failed { reason } = failed else { unreachable!() };
    assert!(reason.starts_with("dataset `file-0`") && reason.contains("poisoned"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_gives_way_to_a_reader_and_goes_on_behind_it() {
    let bench = Arc::new(Bench::new(&[4 * CHUNK, 4 * CHUNK]).await);
    bench.stall(&[0, 1]);
    let hydrating = bench.begin(HydrateMode::All);
    until(&hydrating, |state| *state == HydrateState::Running).await;
    let reader = tokio::spawn({
        let bench = bench.clone();
        async move { bench.read(1, 0, 10).await }
    });
    until(&hydrating, |state| *state == HydrateState::Waiting).await;
    assert!(!reader.is_finished());
    bench.stall(&[0]);
    assert_eq!(reader.await.unwrap().unwrap(), content(1, 4 * CHUNK)[..10]);
    bench.stall(&[]);
    until(&hydrating, |state| *state == HydrateState::Complete).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn missing_pieces_have_each_missing_byte_once_and_no_piece_is_here(
        bytes in 1..40 * CHUNK, reads in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        wanted in any::<[prop::sample::Index; 2]>(),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let bench = runtime.block_on(Bench::new(&[bytes]));
        let layer = bench.layer(0);
        for read in reads {
            let at = StreamOffset(read.index(bytes) as u64);
            runtime.block_on(layer.bring(at..at + 1, Priority::Hydrate)).unwrap();
        }
        let whole = missing_pieces(&[Want::whole(layer)]);
        let missing: u64 = whole.iter().map(|piece| piece.missing_bytes).sum();
        prop_assert_eq!(missing, bytes as u64 - layer.resident_bytes());

        let mut ends = wanted.map(|at| StreamOffset(at.index(bytes + 1) as u64));
        ends.sort();
        let want = Want { layer: layer.clone(), ranges: vec![ends[0]..ends[1]] };
        let mut at = ends[0];
        for piece in missing_pieces(&[want]) {
            prop_assert!(at <= piece.range.start && piece.range.end <= ends[1]);
            prop_assert!(at == piece.range.start || layer.is_resident(at..piece.range.start));
            prop_assert!(!layer.is_resident(piece.range.clone()));
            let bytes = piece.range.end - piece.range.start;
            prop_assert!((1..=bytes).contains(&piece.missing_bytes));
            at = piece.range.end;
        }
        prop_assert!(at == ends[1] || layer.is_resident(at..ends[1]));
    }
}
