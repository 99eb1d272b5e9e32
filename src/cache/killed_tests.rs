//! A process that is killed at each step of writing the cache.

use std::io::IoSlice;
use std::path::Path;

use super::disk::journal::Journal;
use super::power_cut_tests::{BEFORE, Kind, kinds, layer, open};
use super::*;
use crate::layer::layout::Placed;
use crate::layer::{CacheFile, ChunkId};

/// The kills of an ordinary run. `KITFS_KILLS`, when the test is compiled, asks for another number, up to one
/// before each step.
const KILLS: usize = 40;

/// A byte of the second kind that comes wrong at first.
const WRONG_AT: usize = 300_007;

fn fill(cache: &Arc<Cache>, store: &Arc<LayerStore>, stream: &[u8], share: f64) {
    let layout = &store.contents().unwrap().layout;
    let mut appender = store.appender();
    for chunk in 0..layout.chunks() {
        let span = layout.chunk(ChunkId(chunk)).stream;
        let (start, end) = (span.start.get() as usize, span.end.get() as usize);
        let half = start + (end - start) / 2;
        let last = start + ((end - start) as f64 * share) as usize;
        for (from, to) in [(start, half.min(last)), (half.min(last), last)] {
            cache.make_room(CHUNK_BYTES).unwrap();
            let piece = [IoSlice::new(&stream[from..to])];
            appender.append(ChunkId(chunk), (from - start) as u32, &piece).unwrap();
        }
    }
}

/// Everything that writes: stages, fills in part and whole, wrong bytes and right ones in their place,
/// digests, evictions, syncs, poison, removals, a restart.
fn work(folder: &Path, journal: &Journal, kinds: &[Kind]) {
    let [tar, raw, packed] = kinds else { unreachable!("there are three") };
    let mut wrong = raw.stream.clone();
    wrong[WRONG_AT] ^= 1;
    {
        let cache = open(folder, BEFORE, journal);
        let store = layer(&cache, tar);
        fill(&cache, &store, &tar.stream, 0.7);
        fill(&cache, &store, &tar.stream, 1.0);
        assert_eq!(store.judge(&|| true).unwrap(), LayerState::Confirmed);
        assert!(store.sync().unwrap());
        let doubted = layer(&cache, raw);
        fill(&cache, &doubted, &wrong, 1.0);
        assert_eq!(doubted.judge(&|| true).unwrap(), LayerState::Unconfirmed);
        assert!(doubted.is_doubted() && doubted.resident_bytes() == 0);
        fill(&cache, &doubted, &wrong, 1.0);
        let got = Digest::of(&wrong);
        assert_eq!(doubted.judge(&|| true).unwrap(), LayerState::Poisoned { got });
        cache.remove_layer(raw.key).unwrap();
        fill(&cache, &doubted, &wrong, 1.0);
        assert_eq!(doubted.judge(&|| true).unwrap(), LayerState::Unconfirmed);
        fill(&cache, &doubted, &raw.stream, 1.0);
        assert_eq!(doubted.judge(&|| true).unwrap(), LayerState::Confirmed);
    }
    let cache = open(folder, BEFORE, journal);
    let (tar_store, packed_store) = (layer(&cache, tar), layer(&cache, packed));
    cache.make_room(7 * 1024 * 1024).unwrap();
    fill(&cache, &tar_store, &tar.stream, 1.0);
    packed_store.mark_warmed(7).unwrap();
    assert!(packed_store.sync().unwrap());
    cache.verify_layer(tar.key).unwrap();
    drop((tar_store, packed_store));
    cache.remove_layer(tar.key).unwrap();
}

/// The bytes that a chunk's file has beyond those that are resident, which must be zeros.
fn leftover(layer_folder: &Path, placed: &Placed, filled: u32) -> bool {
    let file = match placed.file {
        CacheFile::Stream => layer_folder.join("stream"),
        CacheFile::Member(index) => layer_folder.join(format!("members/{index}")),
    };
    let bytes = std::fs::read(file).unwrap_or_default();
    let length = placed.stream.end - placed.stream.start;
    let start = (placed.file_offset + u64::from(filled)).min(bytes.len() as u64) as usize;
    let end = (placed.file_offset + length).min(bytes.len() as u64) as usize;
    bytes[start..end].iter().any(|byte| *byte != 0)
}

fn check(left: &Path, kinds: &[Kind]) {
    let cache = open(left, BEFORE, &Journal::default());
    let mut counted = 0;
    for (number, kind) in kinds.iter().enumerate() {
        let store = cache.layer(kind.key, kind.blob_bytes).unwrap();
        let folder = left.join("layers/sha256").join(kind.key.folder_name());
        if let Some(contents) = store.contents() {
            for chunk in (0..contents.layout.chunks()).map(ChunkId) {
                let placed = contents.layout.chunk(chunk);
                let filled = store.filled(chunk);
                let mut bytes = vec![0; filled as usize];
                if store.read(placed.stream.start, &mut bytes).unwrap() == Lookup::Miss {
                    continue;
                }
                let start = placed.stream.start.get() as usize;
                let may_be_wrong = number == 1 && store.state() == LayerState::Unconfirmed;
                for (at, (byte, right)) in (start..).zip(bytes.iter().zip(&kind.stream[start..])) {
                    let is_known = may_be_wrong && at == WRONG_AT && *byte == right ^ 1;
                    assert!(byte == right || is_known, "a wrong byte of layer {number} at {at}");
                }
            }
            store.sync().unwrap();
            for chunk in (0..contents.layout.chunks()).map(ChunkId) {
                let placed = contents.layout.chunk(chunk);
                let is_left = leftover(&folder, &placed, store.filled(chunk));
                assert!(!is_left, "bytes of layer {number}, {chunk:?} belong to no record");
            }
        }
        counted += store.resident_bytes();
        let known = ["meta", "meta.copy", "toc", "toc.copy", "chunks", "chunks.copy", "trusted"];
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_content = ["stream", "members"].contains(&&*name) && store.contents().is_some();
            let is_spool = name == "spool" && store.contents().is_none();
            let is_accounted = known.contains(&&*name) || is_content || is_spool;
            assert!(is_accounted, "{name} of layer {number} is left");
            if is_spool {
                counted += std::fs::metadata(folder.join("spool")).unwrap().len();
            }
        }
    }
    assert_eq!(cache.resident_bytes(), counted, "the account");
    for entry in std::fs::read_dir(left.join("layers/sha256")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(kinds.iter().any(|kind| kind.key.folder_name() == name), "{name} is left");
    }
}

#[test]
fn a_process_killed_at_any_step_leaves_no_wrong_byte_and_no_uncounted_one() {
    let (folder, journal, kinds) = (tempfile::tempdir().unwrap(), Journal::default(), kinds());
    work(folder.path(), &journal, &kinds);
    let wanted = option_env!("KITFS_KILLS").map_or(KILLS, |number| number.parse().unwrap());
    let stride = journal.len().div_ceil(wanted).max(1);
    let first = rand_below(stride);
    for (index, steps) in (first..=journal.len()).step_by(stride).enumerate() {
        let left = tempfile::tempdir().unwrap();
        journal.kill(steps, (index % 3) as f64 / 2.5, left.path());
        let outcome = std::panic::catch_unwind(|| check(left.path(), &kinds));
        assert!(outcome.is_ok(), "killed before step {steps} of {}", journal.len());
    }
}

/// A number that differs from run to run.
fn rand_below(limit: usize) -> usize {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.subsec_nanos() as usize / 1000 % limit
}
