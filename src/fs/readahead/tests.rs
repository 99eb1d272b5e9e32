//! Readahead under the access patterns of real programs, and under random ones.

use std::ops::Range;

use proptest::prelude::*;

use super::ledger::LEAST_HEAD_START_BYTES;
use super::simulation::*;
use super::{Observed, Readahead};
use crate::layer::layout::CHUNK_BYTES;

const FILE: u64 = 2048 * MIB;
/// Files of a data set.
const SHARD: u64 = 430 * MIB;

/// One reader on a host at 1 Gbit/s.
fn one_reader(file_bytes: u64, accesses: Vec<Access>) -> Outcome {
    Simulation::new(Host::SHAPED, file_bytes).run(vec![accesses])
}

/// A pseudo-random generator, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 24) % most
    }
}

#[test]
fn a_single_read_fetches_nothing_beyond_itself() {
    let outcome = one_reader(FILE, vec![(1, 0..READ)]);
    assert_eq!((outcome.fetched_bytes, outcome.requests), (CHUNK_BYTES, 1));
}

#[test]
fn reading_the_same_place_again_fetches_nothing() {
    let outcome = one_reader(FILE, (0..1_000).map(|_| (1, 0..4 * KIB)).collect());
    assert_eq!(outcome.requests, 1);
}

#[test]
fn random_reads_fetch_next_to_nothing_beyond_their_chunks() {
    let mut numbers = Numbers(1);
    let places = (0..5_000).map(|_| numbers.below(FILE / (4 * KIB)) * 4 * KIB);
    let mut simulation = Simulation::new(Host::SHAPED, FILE);
    simulation.run(vec![places.map(|start| (1, start..start + 4 * KIB)).collect()]);
    let (_, wasted_bytes) = simulation.read_and_wasted_bytes();
    // A few of the 1,250 MiB lie next to each other by chance.
    assert!(wasted_bytes <= 2 * LEAST_HEAD_START_BYTES, "{} MiB", wasted_bytes / MIB);
}

#[test]
fn a_stream_is_read_as_fast_as_its_host_sends() {
    for (host, least) in [(Host::SHAPED, 0.99), (Host::NEAR, 0.99), (Host::FAR, 0.94)] {
        let outcome = Simulation::new(host, FILE).run(vec![through(1, 0..FILE, READ)]);
        assert!(outcome.share_of(host) > least, "{host:?}: {outcome:?}");
        assert!(outcome.fetched_bytes == FILE && outcome.requests < 1000, "{outcome:?}");
    }
}

#[test]
fn sixteen_streams_in_turns_are_all_recognised() {
    let part = FILE / 16;
    let readers = |at: u64| through(1, at * part..(at + 1) * part, READ);
    let outcome = Simulation::new(Host::SHAPED, FILE).run((0..16).map(readers).collect());
    assert!(outcome.share_of(Host::SHAPED) > 0.96, "{outcome:?}");
    assert_eq!(outcome.fetched_bytes, FILE);
    // The same with one reader that reads a little of each stream in turn.
    let steps = (0..part / READ).flat_map(|step| {
        (0..16)
            .map(move |stream| (1, stream * part + step * READ..stream * part + (step + 1) * READ))
    });
    // The reader has read some 100 MiB before the ledger allows each stream a round trip's bytes.
    let outcome = one_reader(FILE, steps.collect());
    assert!(outcome.share_of(Host::SHAPED) > 0.75, "{outcome:?}");
}

#[test]
fn a_seek_does_not_end_a_stream() {
    let mut accesses = through(1, 0..100 * MIB, READ);
    accesses.extend([(1, 1500 * MIB..1500 * MIB + READ), (1, 50 * MIB..50 * MIB + READ)]);
    let (before, after) = (accesses.clone(), through(1, 100 * MIB..130 * MIB, READ));
    accesses.extend(after);
    let seconds = one_reader(FILE, accesses).seconds - one_reader(FILE, before).seconds;
    // The read in between waits for a round trip.
    let most = 30.0 * MIB as f64 / Host::SHAPED.rate + 3.0 * Host::SHAPED.round_trip;
    assert!(seconds < most, "{seconds} s");
}

#[test]
fn requests_of_one_stream_may_arrive_out_of_order() {
    let order = (0..4096).step_by(4).flat_map(|first| [0, 2, 1, 3].map(|read| first + read));
    let accesses = order.map(|read| (1, read * READ..(read + 1) * READ)).collect();
    let outcome = one_reader(FILE, accesses);
    assert!(outcome.share_of(Host::SHAPED) > 0.95, "{outcome:?}");
}

#[test]
fn a_file_is_fetched_to_its_end_and_not_beyond() {
    for file_bytes in [1, READ, MIB + 1, 5 * MIB + 12_345] {
        let outcome = one_reader(file_bytes, through(1, 0..file_bytes, READ));
        assert_eq!(outcome.fetched_bytes, file_bytes);
    }
}

/// An order in which no block follows the one before it.
fn shuffled(blocks: u64) -> impl Iterator<Item = u64> {
    (0..blocks).map(move |index| index * 27 % 64)
}

#[test]
fn blocks_in_any_order_are_fetched_ahead_and_not_beyond_their_ends() {
    let block = 32 * MIB;
    let accesses = shuffled(16).flat_map(|at| through(1, at * block..(at + 1) * block, READ));
    let mut simulation = Simulation::new(Host::SHAPED, FILE);
    let outcome = simulation.run(vec![accesses.collect()]);
    assert!(outcome.share_of(Host::SHAPED) > 0.78, "{outcome:?}");
    // The first block's window reaches beyond its end.
    let (_, wasted_bytes) = simulation.read_and_wasted_bytes();
    assert!(wasted_bytes <= 12 * MIB, "{} MiB", wasted_bytes / MIB);
}

#[test]
fn a_stream_that_goes_backward_is_a_stream() {
    let bytes = 512 * MIB;
    let accesses = (1..bytes / (64 * KIB)).map(|at| {
        let start = FILE - at * 64 * KIB;
        (1, start..start + 64 * KIB)
    });
    let outcome = one_reader(FILE, accesses.collect());
    assert!(outcome.share_of(Host::SHAPED) > 0.8, "{outcome:?}");
    assert!(outcome.amplification() < 1.1, "{outcome:?}");
}

/// glibc copies a block out of a mapped file so: first bytes first, and then from the end down.
#[test]
fn mapped_blocks_that_are_copied_backward_are_fetched_ahead() {
    let block = 64 * MIB;
    let mut mapped = Mapped::new(1, FILE);
    (0..32).map(|at| at * 27 % 32).for_each(|at| mapped.copy(at * block..(at + 1) * block));
    let outcome = one_reader(FILE, mapped.take_accesses());
    assert!(outcome.share_of(Host::SHAPED) > 0.9, "{outcome:?}");
    assert_eq!(outcome.fetched_bytes, FILE);
}

#[test]
fn single_reads_after_mapped_blocks_fetch_little_beyond_themselves() {
    let block = 64 * MIB;
    let mut mapped = Mapped::new(1, FILE);
    [9, 3, 7, 1, 5].iter().for_each(|at| mapped.copy(at * block..(at + 1) * block));
    let mut simulation = Simulation::new(Host::SHAPED, FILE);
    let blocks = simulation.run(vec![mapped.take_accesses()]);
    (12..30).for_each(|at| mapped.touch(at * block + 8 * MIB + at * at * 4 * KIB));
    let outcome = simulation.run(vec![mapped.take_accesses()]);
    let (read, _) = simulation.read_and_wasted_bytes();
    let most = read / 10 + 7 * MIB + 18 * 2 * CHUNK_BYTES;
    assert!(outcome.fetched_bytes - blocks.fetched_bytes <= most, "{outcome:?}");
}

#[test]
fn the_first_stream_of_a_file_runs_as_far_as_those_before_it() {
    let run = |file: u64| through(file as u32, 100 * MIB..121 * MIB, READ);
    let mut simulation = Simulation::new(Host::SHAPED, SHARD);
    let first = simulation.run(vec![(0..4).flat_map(run).collect()]);
    let outcome = simulation.run(vec![run(4)]);
    // A round trip until the first byte, and no further wait.
    let seconds = outcome.seconds - first.seconds;
    assert!(seconds < 21.0 * MIB as f64 / Host::SHAPED.rate + 0.03, "{seconds} s");
    assert_eq!(outcome.fetched_bytes - first.fetched_bytes, 21 * MIB);
}

/// The kernel's reads for a loader that reads the header of each shard, and then a run inside it.
fn headers_and_runs(numbers: &mut Numbers, header: u64, run: Range<u64>) -> Vec<Access> {
    let shards = (0..10).flat_map(|shard| {
        let bytes = run.start + numbers.below(run.end - run.start + 1);
        let start = MIB + numbers.below((SHARD - bytes - MIB) / (4 * KIB)) * 4 * KIB;
        let mut accesses = through(shard, 0..2 * header, READ);
        accesses.extend(by_kernel(shard, start..start + bytes));
        accesses
    });
    shards.collect()
}

#[test]
fn headers_followed_by_runs_cost_15_percent_more_than_is_read_at_most() {
    for seed in 0..5 {
        for host in [Host::SHAPED, Host::NEAR, Host::FAR] {
            for (header, run) in [(64 * KIB, 8 * MIB), (256 * KIB, 8 * MIB), (MIB, 30 * MIB)] {
                let accesses = headers_and_runs(&mut Numbers(seed), header, run..run);
                let outcome = Simulation::new(host, SHARD).run(vec![accesses]);
                let amplification = outcome.amplification();
                assert!(amplification <= 1.15, "{amplification} at {host:?} {header} {run}");
            }
        }
    }
}

#[test]
fn runs_of_any_length_are_fetched_ahead_at_little_cost() {
    for host in [Host::SHAPED, Host::NEAR] {
        let amplification = |seed| {
            let accesses = headers_and_runs(&mut Numbers(seed), 64 * KIB, 8 * MIB..40 * MIB);
            Simulation::new(host, SHARD).run(vec![accesses]).amplification()
        };
        let mean = (0..8).map(amplification).sum::<f64>() / 8.0;
        assert!(mean <= 1.15, "{mean} at {host:?}");
    }
}

#[test]
fn records_of_one_length_are_fetched_as_a_whole() {
    let mut numbers = Numbers(7);
    let places: Vec<_> = (0..200).map(|_| numbers.below(2000) * MIB + 4 * KIB).collect();
    let records = places.iter().flat_map(|&at| through(1, at..at + 512 * KIB, READ));
    let outcome = one_reader(FILE, records.collect());
    // Three chunks each, in one request.
    assert!(outcome.requests < 200 + 20, "{outcome:?}");
    assert!(outcome.fetched_bytes < 200 * 3 * CHUNK_BYTES + 4 * MIB, "{outcome:?}");
}

#[test]
fn reads_at_equal_distances_are_fetched_before_they_come() {
    let accesses = (0..250).map(|at| (1, at * 7 * MIB..at * 7 * MIB + 64 * KIB)).collect();
    let outcome = one_reader(FILE, accesses);
    // Without the guess each read waits for a round trip.
    assert!(outcome.seconds < 250.0 * Host::SHAPED.round_trip / 3.0, "{outcome:?}");
    assert!(outcome.fetched_bytes <= (250 + 8) * CHUNK_BYTES, "{outcome:?}");
}

#[test]
fn a_program_that_changes_its_pattern_of_reads_is_followed() {
    let mut simulation = Simulation::new(Host::SHAPED, SHARD);
    let mut numbers = Numbers(3);
    // The program reads short records for a long time, and then whole shards.
    let records = (0..400).flat_map(|_| {
        let start = numbers.below(400) * MIB;
        through(numbers.below(8) as u32, start..start + 384 * KIB, READ)
    });
    let before = simulation.run(vec![records.collect()]);
    let shards = (10..13).flat_map(|shard| through(shard, 0..SHARD, READ));
    let after = simulation.run(vec![shards.collect()]);
    let seconds = after.seconds - before.seconds;
    assert!(seconds < 3.0 * SHARD as f64 / Host::SHAPED.rate / 0.9, "{seconds} s");
}

#[test]
fn the_number_of_files_and_cursors_is_bounded() {
    let readahead = Readahead::default();
    for file in 0..20_000 {
        readahead.observe(file, &(0..1), 10, Default::default());
    }
    for at in 0..10_000 {
        let range = at * 10 * MIB..at * 10 * MIB + 1;
        readahead.observe(1, &range, u64::MAX, Default::default());
    }
    let files: usize = readahead.files.0.iter().map(|files| files.lock().len()).sum();
    assert_eq!(files, super::SHARDS * super::MOST_FILES.get());
    let mut files = readahead.files.of(1).lock();
    assert_eq!(files.get(&1).unwrap().cursors.len(), super::file::MOST_CURSORS);
}

/// One step of a reader.
#[derive(Clone, Debug)]
enum Doing {
    /// Reads a range from its start, in steps.
    Run { file: u32, start: u64, bytes: u64, step: u64 },
    /// The same from its end.
    Backward { file: u32, start: u64, bytes: u64, step: u64 },
    /// Reads some bytes at equal distances.
    Strides { file: u32, start: u64, distance: u64, count: u64 },
    /// Copies a block of a mapped file.
    Copy { file: u32, start: u64, bytes: u64 },
    /// Reads the heads of some files.
    Heads { first: u32, count: u32, bytes: u64 },
}

/// Files of the property tests.
const SMALL: u64 = 96 * MIB;

fn any_doing() -> impl Strategy<Value = Doing> {
    let place = (0..6u32, 0..SMALL / (4 * KIB)).prop_map(|(file, page)| (file, page * 4 * KIB));
    let steps = prop::sample::select(vec![4 * KIB, 64 * KIB, READ, 256 * KIB, MIB]);
    let bytes = prop_oneof![1..64u64, 64..1024u64, 1024..8192u64].prop_map(|pages| pages * 4 * KIB);
    prop_oneof![
        4 => (place.clone(), bytes.clone(), steps.clone())
            .prop_map(|((file, start), bytes, step)| Doing::Run { file, start, bytes, step }),
        1 => (place.clone(), bytes.clone(), steps)
            .prop_map(|((file, start), bytes, step)| Doing::Backward { file, start, bytes, step }),
        1 => (place.clone(), 1..1024u64, 2..20u64).prop_map(|((file, start), pages, count)| {
            Doing::Strides { file, start, distance: pages * 16 * KIB, count }
        }),
        1 => (place, bytes.clone()).prop_map(|((file, start), bytes)| Doing::Copy { file, start, bytes }),
        1 => (0..40u32, 1..20u32, bytes).prop_map(|(first, count, bytes)| {
            Doing::Heads { first, count, bytes: bytes.min(4 * MIB) }
        }),
    ]
}

impl Doing {
    fn accesses(&self) -> Vec<Access> {
        match *self {
            Self::Run { file, start, bytes, step } => through(file, start..start + bytes, step),
            Self::Backward { file, start, bytes, step } => {
                let mut accesses = through(file, start..start + bytes, step);
                accesses.reverse();
                accesses
            }
            Self::Strides { file, start, distance, count } => {
                let starts = (0..count).map(|at| start + at * distance);
                starts.map(|start| (file, start..start + 16 * KIB)).collect()
            }
            Self::Copy { file, start, bytes } => {
                let mut mapped = Mapped::new(file, SMALL);
                mapped.copy(start..(start + bytes).min(SMALL));
                mapped.take_accesses()
            }
            Self::Heads { first, count, bytes } => {
                (first..first + count).flat_map(|file| through(file, 0..bytes, READ)).collect()
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn waste_is_a_tenth_of_what_is_read_and_one_head_start_at_most(
        readers in prop::collection::vec(prop::collection::vec(any_doing(), 1..12), 1..4),
        host in prop::sample::select(vec![Host::SHAPED, Host::NEAR, Host::FAR]),
    ) {
        let mut simulation = Simulation::new(host, SMALL);
        let readers =
            readers.iter().map(|doings| doings.iter().flat_map(Doing::accesses).collect());
        simulation.run(readers.collect());
        let (read_bytes, wasted_bytes) = simulation.read_and_wasted_bytes();
        let head_start = ((host.rate * 0.05) as u64).max(LEAST_HEAD_START_BYTES);
        // One guess may exceed its grant by its first and its last chunk.
        let most = read_bytes / 10 + head_start + 2 * CHUNK_BYTES;
        prop_assert!(wasted_bytes <= most, "{wasted_bytes} of {read_bytes}: {:?}",
            simulation.readahead.ledger().state());
        let state = simulation.readahead.ledger().state();
        prop_assert!(state.read_bytes <= read_bytes);
        prop_assert!(state.unread_bytes <= most);
    }

    #[test]
    fn guesses_lie_within_the_file_and_are_never_empty(
        size in 1..u64::MAX,
        reads in prop::collection::vec((any::<u64>(), 1..MIB), 1..200),
        request_bytes in 0..256 * MIB, head_start_bytes in 0..256 * MIB,
        round_trip_bytes in 0..256 * MIB,
    ) {
        let rate = super::HostRate { request_bytes, head_start_bytes, round_trip_bytes };
        let readahead = Readahead::default();
        for (start, bytes) in reads {
            let start = start % size;
            let range = start..start.saturating_add(bytes).min(size);
            let Observed { guess, run } = readahead.observe(1, &range, size, rate);
            prop_assert!(run.is_empty() || run.end >= range.end);
            for ahead in guess.iter().flat_map(|guess| &guess.ranges) {
                prop_assert!(ahead.start < ahead.end && ahead.end <= size, "{ahead:?}");
            }
            let guessed = guess.as_ref().map_or(Vec::new(), |guess| guess.ranges.clone());
            readahead.started(1, &guessed, &(0..0), &(0..0), guess.as_ref());
        }
    }
}
