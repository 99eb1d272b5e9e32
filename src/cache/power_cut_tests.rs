//! A power cut at any moment, with any of the writes that were not synced lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::disk::journal::Journal;
use super::*;
use crate::layer::layout::CHUNK_BYTES;
use crate::layer::{
    CacheFile, ChunkId, Extents, Member, MemberKind, MemberPath, RangeSet, StreamOffset, Toc,
};
use crate::oci::{Compression, Encoding, Format};

pub(super) const BEFORE: BootId = BootId([1; 16]);
const AFTER: BootId = BootId([2; 16]);

/// The layers of the test: big members, small ones, a raw one, a compressed one.
pub(super) struct Kind {
    pub(super) key: LayerKey,
    toc: Toc,
    pub(super) stream: Vec<u8>,
    pub(super) blob_bytes: u64,
}

pub(super) fn kinds() -> Vec<Kind> {
    let mib = 1024 * 1024;
    let bytes = |seed: u8, length: u64| {
        let mut bytes = vec![0; length as usize];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let mut members = Vec::new();
    let mut at = 0;
    for (index, size) in [mib + 300_000, 70_000, mib].into_iter().enumerate() {
        let start = StreamOffset(at + 512);
        let path = Some(MemberPath::parse(format!("file-{index}").as_bytes()).unwrap());
        let kind = MemberKind::File(Extents::contiguous(start..start + size));
        members.push(Member { path, kind, mode: 0o644, mtime: None, is_replaced: false });
        at = (at + 512 + size).next_multiple_of(512);
    }
    let tar = Toc { members, stream_bytes: at + 1024, warnings: Vec::new() };
    let plain = |toc: Toc, format, seed| {
        let mut stream = bytes(seed, toc.stream_bytes);
        if format == Format::Tar {
            add_headers(&mut stream, &toc);
        }
        let encoding = Encoding { format, compression: Compression::None };
        let key = LayerKey { digest: Digest::of(&stream), encoding };
        Kind { key, blob_bytes: toc.stream_bytes, toc, stream }
    };
    let encoding = Encoding { format: Format::Raw, compression: Compression::Zstd };
    let compressed = Kind {
        key: LayerKey { digest: Digest::of(b"compressed"), encoding },
        toc: Toc::raw(mib + 5),
        stream: bytes(3, mib + 5),
        blob_bytes: 10,
    };
    vec![plain(tar, Format::Tar, 1), plain(Toc::raw(600_000), Format::Raw, 2), compressed]
}

/// Makes an archive of random bytes: a header before each member, zeros behind it.
fn add_headers(stream: &mut [u8], toc: &Toc) {
    let mut at = 0;
    for (index, member) in toc.members.iter().enumerate() {
        let stored = member.kind.extents().unwrap().stored();
        let (start, end) = (stored.start.get() as usize, stored.end.get() as usize);
        stream[at..start].fill(0);
        stream[start - 512..start].copy_from_slice(&header(&format!("file-{index}"), end - start));
        at = end;
    }
    stream[at..].fill(0);
}

/// The header of a file (POSIX.1-1988 ustar).
fn header(name: &str, bytes: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000644");
    put(124, format!("{bytes:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

#[derive(Clone, Debug)]
enum Step {
    /// Brings some chunks.
    Fill {
        kind: usize,
        first: prop::sample::Index,
        chunks: u32,
        share: f64,
    },
    Confirm {
        kind: usize,
    },
    Evict {
        bytes: u64,
    },
    /// Looks at what is there, syncs it, and promises it.
    Warm {
        kind: usize,
    },
    Remove {
        kind: usize,
    },
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let kind = || 0..3usize;
    prop_oneof![
        4 => (kind(), any::<prop::sample::Index>(), 1..8u32, prop_oneof![Just(1.0), 0.0..1.0])
            .prop_map(|(kind, first, chunks, share)| Step::Fill { kind, first, chunks, share }),
        1 => kind().prop_map(|kind| Step::Confirm { kind }),
        4 => (0..1_500_000u64).prop_map(|bytes| Step::Evict { bytes }),
        4 => kind().prop_map(|kind| Step::Warm { kind }),
        1 => kind().prop_map(|kind| Step::Remove { kind }),
        1 => Just(Step::Restart),
    ]
}

pub(super) fn open(folder: &Path, boot: BootId, journal: &Journal) -> Arc<Cache> {
    let capacity_bytes = Some(8 * 1024 * 1024);
    let config = CacheConfig { capacity_bytes, boot, ..CacheConfig::new(folder) };
    Cache::open_at(Root::open_with(folder, journal.clone()), &config).unwrap()
}

/// The layer with known contents; a compressed one with all of its bytes, as its pass leaves it.
pub(super) fn layer(cache: &Arc<Cache>, kind: &Kind) -> Arc<LayerStore> {
    let store = cache.layer(kind.key, kind.blob_bytes).unwrap();
    if store.contents().is_some() {
        return store;
    }
    let mut stage = store.stage().unwrap();
    let (mut covered, mut digest) = (RangeSet::new(), None);
    if kind.key.encoding.is_compressed() {
        stage.spool_append(b"spooled").unwrap();
        stage.write(CacheFile::Member(0), 0, &kind.stream).unwrap();
        covered.insert(0..kind.stream.len() as u64);
        digest = Some(kind.key.digest);
    }
    stage.finish(kind.toc.clone(), &covered, digest).unwrap();
    store
}

/// The resident bytes of a layer; each of them is right.
fn resident(store: &LayerStore, kind: &Kind) -> BTreeMap<u32, u32> {
    let Some(contents) = store.contents() else { return BTreeMap::new() };
    let mut resident = BTreeMap::new();
    for chunk in 0..contents.layout.chunks() {
        let filled = store.filled(ChunkId(chunk));
        let span = contents.layout.chunk(ChunkId(chunk)).stream;
        let mut buffer = vec![0; filled as usize];
        if filled > 0 && store.read(span.start, &mut buffer).unwrap() == Lookup::Hit {
            let start = span.start.get() as usize;
            assert!(buffer == kind.stream[start..start + filled as usize], "a wrong byte");
            resident.insert(chunk, filled);
        }
    }
    resident
}

/// The promised survivors: of each layer, the chunks that were resident at its last sync, until
/// something took them away.
type Promises = BTreeMap<usize, BTreeMap<u32, u32>>;

/// The chunks that both promise, as far as both do.
fn both(one: &Promises, other: &Promises) -> Promises {
    let mut both = one.clone();
    both.retain(|kind, _| other.contains_key(kind));
    for (kind, chunks) in &mut both {
        chunks.retain(|chunk, _| other[kind].contains_key(chunk));
        for (chunk, filled) in chunks {
            *filled = other[kind][chunk].min(*filled);
        }
    }
    both
}

struct Run {
    cache: Option<Arc<Cache>>,
    journal: Journal,
    folder: tempfile::TempDir,
    kinds: Vec<Kind>,
    promises: Promises,
}

impl Run {
    fn cache(&self) -> &Arc<Cache> {
        self.cache.as_ref().unwrap()
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Fill { kind, first, chunks, share } => {
                let kind = &self.kinds[*kind];
                let store = layer(self.cache(), kind);
                let layout = &store.contents().unwrap().layout;
                let first = first.index(layout.chunks() as usize) as u32;
                let mut appender = store.appender();
                for chunk in first..(first + chunks).min(layout.chunks()) {
                    let span = layout.chunk(ChunkId(chunk)).stream;
                    let length = ((span.end - span.start) as f64 * share) as usize;
                    let start = span.start.get() as usize;
                    let piece = [IoSlice::new(&kind.stream[start..start + length])];
                    self.cache().make_room(CHUNK_BYTES).unwrap();
                    appender.append(ChunkId(chunk), 0, &piece).unwrap();
                }
            }
            Step::Confirm { kind } => {
                let store = layer(self.cache(), &self.kinds[*kind]);
                let state = store.confirm(&|| true).unwrap();
                assert!(!matches!(state, LayerState::Poisoned { .. }));
            }
            Step::Evict { bytes } => _ = self.cache().make_room(8 * 1024 * 1024 - bytes),
            Step::Warm { kind } => {
                let store = layer(self.cache(), &self.kinds[*kind]);
                store.look(&|| true).unwrap();
                store.mark_warmed(7).unwrap();
                assert!(store.sync().unwrap(), "nobody changes it meanwhile");
                assert_eq!(store.unchecked_bytes(), 0);
                let promised = resident(&store, &self.kinds[*kind]);
                self.promises.insert(*kind, promised);
            }
            Step::Remove { kind } => {
                self.cache().remove_layer(self.kinds[*kind].key).unwrap();
            }
            Step::Restart => {
                self.cache = None;
                self.cache = Some(open(self.folder.path(), BEFORE, &self.journal));
            }
        }
        self.forget_what_went();
    }

    /// Takes back promises of what was evicted, removed or dropped on the way.
    fn forget_what_went(&mut self) {
        let cache = self.cache.clone().unwrap();
        let known: BTreeSet<String> =
            cache.layers().unwrap().iter().map(|l| l.key.folder_name()).collect();
        let kinds = &self.kinds;
        self.promises.retain(|kind, _| known.contains(&kinds[*kind].key.folder_name()));
        for (kind, promised) in &mut self.promises {
            let now = resident(&layer(&cache, &kinds[*kind]), &kinds[*kind]);
            promised.retain(|chunk, filled| now.get(chunk).is_some_and(|now| now >= filled));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_power_cut_at_any_moment_takes_no_promised_byte_and_yields_no_wrong_one(
        steps in prop::collection::vec(any_step(), 1..12), at in any::<prop::sample::Index>(),
        is_at_the_end in any::<bool>(), seed in any::<[u8; 32]>(),
        most_lost in prop_oneof![Just(0.0), Just(1.0), 0.0..1.0],
    ) {
        let (folder, journal) = (tempfile::tempdir().unwrap(), Journal::default());
        let cache = Some(open(folder.path(), BEFORE, &journal));
        let promises = Promises::new();
        let mut run = Run { cache, journal: journal.clone(), folder, kinds: kinds(), promises };
        // Within a step what was promised before it and is promised after it; at its end the latter.
        let mut moments = vec![(journal.len(), Promises::new(), Promises::new())];
        for step in &steps {
            let before = run.promises.clone();
            run.take(step);
            moments.push((journal.len(), both(&before, &run.promises), run.promises.clone()));
        }
        // The thread that takes stock may write after the last step. The promises of the last step hold then, too.
        let written = journal.len();
        moments.push((written, run.promises.clone(), run.promises.clone()));
        let cut = if is_at_the_end { written } else { at.index(written + 1) };
        let (end, within, after) = moments.iter().find(|(end, ..)| cut <= *end).unwrap();
        let promises = if cut == *end { after } else { within };

        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut survives = || rng.random::<f64>() >= most_lost;
        let left = tempfile::tempdir().unwrap();
        journal.cut(cut, left.path(), &mut survives);
        let after = open(left.path(), AFTER, &Journal::default());
        let usages = after.layers().unwrap();
        for (number, kind) in run.kinds.iter().enumerate() {
            let usage = usages.iter().find(|usage| usage.key == kind.key);
            let claimed = usage.map_or(0, |usage| usage.resident_bytes - usage.unchecked_bytes);
            let store = after.layer(kind.key, kind.blob_bytes).unwrap();
            let here = resident(&store, kind);
            let here_bytes: u64 = here.values().map(|&filled| u64::from(filled)).sum();
            prop_assert!(claimed <= here_bytes + 7, "{number}: {claimed} bytes are claimed, {here_bytes} are there");
            prop_assert_eq!(store.unchecked_bytes(), 0, "all of it was read");
            for (chunk, filled) in promises.get(&number).into_iter().flatten() {
                let now = here.get(chunk).copied().unwrap_or(0);
                prop_assert!(now >= *filled, "layer {number}, chunk {chunk}: {now} of {filled} bytes");
            }
        }
    }
}
