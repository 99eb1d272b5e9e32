//! A host with a round trip and a rate, files in chunks, and readers that wait: how long reading
//! takes with the guesses of this room, and what is fetched for nothing.
//!
//! Time is simulated, so figures are exact and the same everywhere. The host sends one request after
//! the other, in the order in which they were made: a read that misses waits for every guess that was
//! made before it. A real host shares its rate, which is kinder to readers that jump.

use std::collections::HashMap;
use std::ops::Range;

use super::ledger::HEAD_START;
use super::*;

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
/// A request of the kernel's readahead.
pub(super) const READ: u64 = 128 * KIB;

/// Until a transfer of this size has come, nobody knows how fast the host is.
const TELLING_BYTES: u64 = 512 * KIB;

/// A host, and how far away it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub(super) rate: f64,
    pub(super) round_trip: f64,
}

impl Host {
    /// 1 Gbit/s, 20 ms away.
    pub(super) const SHAPED: Self = Self { rate: 125e6, round_trip: 0.02 };
    /// On the same machine.
    pub(super) const NEAR: Self = Self { rate: 1.5e9, round_trip: 0.0002 };
    /// 200 Mbit/s, 150 ms away.
    pub(super) const FAR: Self = Self { rate: 25e6, round_trip: 0.15 };
}

/// A read that a program makes: which file, which bytes.
pub(super) type Access = (u32, Range<u64>);

/// What readers did, and what it cost.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) seconds: f64,
    pub(super) read_bytes: u64,
    pub(super) fetched_bytes: u64,
    pub(super) requests: u64,
    /// Reads that waited.
    pub(super) waits: u64,
}

impl Outcome {
    /// Bytes fetched for each byte that was read.
    pub(super) fn amplification(&self) -> f64 {
        self.fetched_bytes as f64 / self.read_bytes as f64
    }

    /// The part of the host's rate at which bytes were read.
    pub(super) fn share_of(&self, host: Host) -> f64 {
        self.read_bytes as f64 / self.seconds / host.rate
    }
}

/// A chunk that was asked for.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    /// When it is here.
    at: f64,
    /// A bit for each page that was read.
    read_pages: u64,
}

/// Pages have 4 KiB, so that a chunk has a bit for each.
const PAGE_BYTES: u64 = CHUNK_BYTES / 64;

/// A mount over a host.
pub(super) struct Simulation {
    pub(super) readahead: Readahead,
    host: Host,
    file_bytes: u64,
    chunks: HashMap<(u32, u64), Chunk>,
    /// When the host has sent all that it was asked for.
    free_at: f64,
    /// When its rate is known.
    known_at: f64,
    outcome: Outcome,
}

impl Simulation {
    /// Files of `file_bytes` each.
    pub(super) fn new(host: Host, file_bytes: u64) -> Self {
        Self {
            readahead: Readahead::default(),
            host,
            file_bytes,
            chunks: HashMap::new(),
            free_at: 0.0,
            known_at: f64::INFINITY,
            outcome: Outcome::default(),
        }
    }

    /// What is known of the host at a time, as `fetch::pace` has it.
    fn host_rate(&self, now: f64) -> HostRate {
        if now < self.known_at {
            return HostRate { request_bytes: 4 * MIB, ..HostRate::default() };
        }
        let target = if self.host.rate >= 250e6 { 0.1 } else { 0.033 };
        HostRate {
            request_bytes: ((self.host.rate * target) as u64).clamp(MIB, 32 * MIB),
            head_start_bytes: (self.host.rate * HEAD_START.as_secs_f64()) as u64,
            round_trip_bytes: (self.host.rate * self.host.round_trip) as u64,
        }
    }

    /// Fetches what is missing of a range; says what that is.
    fn fetch(&mut self, file: u32, range: &Range<u64>, now: f64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for chunk in range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES) {
            if self.chunks.contains_key(&(file, chunk)) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == chunk => run.end += 1,
                _ => runs.push(chunk..chunk + 1),
            }
        }
        for run in &runs {
            let run_bytes = (run.end - run.start) * CHUNK_BYTES;
            self.outcome.requests += run_bytes.div_ceil(32 * MIB);
            self.free_at = self.free_at.max(now + self.host.round_trip);
            for chunk in run.clone() {
                let bytes = CHUNK_BYTES.min(self.file_bytes - chunk * CHUNK_BYTES);
                self.free_at += bytes as f64 / self.host.rate;
                self.outcome.fetched_bytes += bytes;
                self.chunks.insert((file, chunk), Chunk { at: self.free_at, read_pages: 0 });
            }
            if (run.end - run.start) * CHUNK_BYTES >= TELLING_BYTES {
                self.known_at = self.known_at.min(self.free_at);
            }
        }
        let bytes = |chunk: u64| (chunk * CHUNK_BYTES).min(self.file_bytes);
        runs.into_iter().map(|run| bytes(run.start)..bytes(run.end)).collect()
    }

    /// Reads at a time; says when the bytes are there.
    pub(super) fn read(&mut self, (file, range): Access, now: f64) -> f64 {
        let range = range.start..range.end.min(self.file_bytes);
        if range.is_empty() {
            return now;
        }
        let rate = self.host_rate(now);
        let chunks = range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES);
        let is_here = |chunk| self.chunks.get(&(file, chunk)).is_some_and(|chunk| chunk.at <= now);
        let is_resident = chunks.clone().all(is_here);
        let Observed { guess, run } = self.readahead.observe(file, &range, self.file_bytes, rate);
        assert!(run.is_empty() || run.end >= range.end);
        let mut started = Vec::new();
        let mut missing = (!is_resident).then(|| range.clone());
        for ahead in guess.iter().flat_map(|guess| &guess.ranges) {
            assert!(!ahead.is_empty() && ahead.end <= self.file_bytes, "{ahead:?}");
            match missing.take() {
                Some(missing) if missing.end == ahead.start => {
                    started.extend(self.fetch(file, &(missing.start..ahead.end), now));
                    continue;
                }
                Some(missing) => started.extend(self.fetch(file, &missing, now)),
                None => {}
            }
            started.extend(self.fetch(file, ahead, now));
        }
        if let Some(missing) = missing {
            started.extend(self.fetch(file, &missing, now));
        }
        let rounded = chunks.start * CHUNK_BYTES..(chunks.end * CHUNK_BYTES).min(self.file_bytes);
        self.readahead.started(file, &started, &range, &rounded, guess.as_ref());
        let mut then = now;
        for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
            let chunk = self.chunks.get_mut(&(file, page / 64)).expect("it was asked for");
            chunk.read_pages |= 1 << (page % 64);
            then = then.max(chunk.at);
        }
        self.outcome.read_bytes += range.end - range.start;
        self.outcome.waits += u64::from(then > now);
        then
    }

    /// The bytes that were read, each counted once, and those of chunks of which nothing was.
    pub(super) fn read_and_wasted_bytes(&self) -> (u64, u64) {
        let read = self.chunks.values().map(|chunk| u64::from(chunk.read_pages.count_ones()));
        let wasted = self.chunks.values().filter(|chunk| chunk.read_pages == 0).count();
        (read.sum::<u64>() * PAGE_BYTES, wasted as u64 * CHUNK_BYTES)
    }

    /// Readers side by side, each of which reads its own accesses in order, and waits for each.
    pub(super) fn run(&mut self, readers: Vec<Vec<Access>>) -> Outcome {
        let mut readers: Vec<_> = readers
            .into_iter()
            .map(|accesses| (self.outcome.seconds, accesses.into_iter()))
            .collect();
        while !readers.is_empty() {
            let times = readers.iter().map(|reader| reader.0).enumerate();
            let (next, now) = times.min_by(|one, other| one.1.total_cmp(&other.1)).unwrap();
            match readers[next].1.next() {
                Some(access) => readers[next].0 = self.read(access, now),
                None => {
                    self.outcome.seconds = self.outcome.seconds.max(now);
                    readers.swap_remove(next);
                }
            }
        }
        self.outcome.clone()
    }
}

/// Reads of `step` bytes through a range.
pub(super) fn through(file: u32, range: Range<u64>, step: u64) -> Vec<Access> {
    let starts = range.clone().step_by(step as usize);
    starts.map(|start| (file, start..(start + step).min(range.end))).collect()
}

/// A file that is mapped: pages stay, and a fault of one reads those around it that are not there.
pub(super) struct Mapped {
    file: u32,
    is_resident: Vec<bool>,
    accesses: Vec<Access>,
}

impl Mapped {
    const PAGE: u64 = 4 * KIB;
    const AROUND: u64 = 128 * KIB;

    pub(super) fn new(file: u32, file_bytes: u64) -> Self {
        let is_resident = vec![false; (file_bytes / Self::PAGE) as usize];
        Self { file, is_resident, accesses: Vec::new() }
    }

    pub(super) fn touch(&mut self, at: u64) {
        let page = at / Self::PAGE;
        if self.is_resident[page as usize] {
            return;
        }
        let around = Self::AROUND / Self::PAGE;
        let last = (page + around).min(self.is_resident.len() as u64);
        let mut run: Option<Range<u64>> = None;
        for page in page.saturating_sub(around)..=last {
            let is_wanted = page < last && !self.is_resident[page as usize];
            match (&mut run, is_wanted) {
                (Some(run), true) => run.end = page + 1,
                (None, true) => run = Some(page..page + 1),
                (Some(read), false) => {
                    let read = std::mem::replace(read, 0..0);
                    run = None;
                    let bytes = read.start * Self::PAGE..read.end * Self::PAGE;
                    self.accesses.push((self.file, bytes));
                    (read.start..read.end).for_each(|it| self.is_resident[it as usize] = true);
                }
                (None, false) => {}
            }
        }
    }

    /// As glibc's memmove copies to a place behind it: both ends first, and then downward.
    pub(super) fn copy(&mut self, block: Range<u64>) {
        self.touch(block.start);
        (block.start / Self::PAGE..block.end / Self::PAGE).rev().for_each(|page| {
            self.touch(page * Self::PAGE);
        });
    }

    /// What the kernel reads meanwhile.
    pub(super) fn take_accesses(&mut self) -> Vec<Access> {
        std::mem::take(&mut self.accesses)
    }
}
