//! A simulated host with a round trip and a rate, files in chunks, and readers that wait. Measures
//! how long reading takes with the guesses of this room, and how many bytes are wasted.
//!
//! Time is simulated, so the figures are exact and the same everywhere.
//!
//! ```text
//! reader --misses--> flow --may it run?--> round trip --> shares the host's rate --> chunks are here
//!           '--guess--'    (`source::admission`)
//! ```

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use super::ledger::HEAD_START;
use super::*;

pub(super) const KIB: u64 = 1024;
pub(super) const MIB: u64 = 1024 * KIB;
/// A request of the kernel's readahead with the kernel's default window.
pub(super) const READ: u64 = 128 * KIB;

/// The host's rate is unknown until a flow of this size has arrived.
const TELLING_BYTES: u64 = 512 * KIB;
/// The largest request.
const MOST_REQUEST_BYTES: u64 = 32 * MIB;
/// The most flows of readahead beside each other.
const MOST_FLOWS: usize = 8;

/// The size of a page. A `u64` then has a bit for each page of a chunk.
const PAGE_BYTES: u64 = CHUNK_BYTES / 64;

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

    fn round_trip_bytes(self) -> u64 {
        (self.rate * self.round_trip) as u64
    }
}

/// A read of a program: the file, and the range.
pub(super) type Access = (u32, Range<u64>);

/// The result of a simulation.
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
#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    is_here: bool,
    /// A bit for each page that was read.
    read_pages: u64,
}

/// A request. Its chunks come in order.
#[derive(Debug)]
struct Flow {
    /// The chunks that have not arrived, and their remaining bytes.
    chunks: VecDeque<((u32, u64), f64)>,
    bytes: u64,
    /// `true` if a reader waits for the request.
    is_urgent: bool,
    /// The time of its first byte, if the request runs.
    begins: Option<f64>,
}

/// A reader.
struct Reader {
    accesses: VecDeque<Access>,
    /// The chunks that the last read waits for.
    awaited: Vec<(u32, u64)>,
}

/// A mount over a host.
pub(super) struct Simulation {
    pub(super) readahead: Readahead,
    host: Host,
    file_bytes: u64,
    chunks: HashMap<(u32, u64), Chunk>,
    flows: Vec<Flow>,
    now: f64,
    is_rate_known: bool,
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
            flows: Vec::new(),
            now: 0.0,
            is_rate_known: false,
            outcome: Outcome::default(),
        }
    }

    /// The measured rate of the host, as in `fetch::pace`.
    fn host_rate(&self) -> HostRate {
        if !self.is_rate_known {
            return HostRate { request_bytes: 4 * MIB, ..HostRate::default() };
        }
        let target = if self.host.rate >= 250e6 { 0.1 } else { 0.033 };
        HostRate {
            request_bytes: ((self.host.rate * target) as u64).clamp(MIB, MOST_REQUEST_BYTES),
            head_start_bytes: (self.host.rate * HEAD_START.as_secs_f64()) as u64,
            round_trip_bytes: self.host.round_trip_bytes(),
        }
    }

    /// Asks for the missing bytes of a range, and returns their ranges.
    fn fetch(&mut self, file: u32, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for chunk in range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES) {
            if self.chunks.contains_key(&(file, chunk)) {
                continue;
            }
            self.chunks.insert((file, chunk), Chunk::default());
            match runs.last_mut() {
                Some(run)
                    if run.end == chunk
                        && (run.end - run.start) * CHUNK_BYTES < MOST_REQUEST_BYTES =>
                {
                    run.end += 1;
                }
                _ => runs.push(chunk..chunk + 1),
            }
        }
        let mut started = Vec::new();
        for run in runs {
            let end = |chunk: u64| (chunk * CHUNK_BYTES).min(self.file_bytes);
            let chunk = |chunk| ((file, chunk), (end(chunk + 1) - end(chunk)) as f64);
            let (bytes, range) = (end(run.end) - end(run.start), end(run.start)..end(run.end));
            let chunks = run.map(chunk).collect();
            self.flows.push(Flow { chunks, bytes, is_urgent: false, begins: None });
            self.outcome.requests += 1;
            self.outcome.fetched_bytes += bytes;
            started.push(range);
        }
        started
    }

    /// Makes a read, and returns the chunks that the read waits for.
    fn read(&mut self, (file, range): Access) -> Vec<(u32, u64)> {
        let range = range.start..range.end.min(self.file_bytes);
        if range.is_empty() {
            return Vec::new();
        }
        let chunks = range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES);
        let is_here = |chunk| self.chunks.get(&(file, chunk)).is_some_and(|chunk| chunk.is_here);
        let is_resident = chunks.clone().all(is_here);
        let rate = self.host_rate();
        let Observed { guess, run } = self.readahead.observe(file, &range, self.file_bytes, rate);
        assert!(run.is_empty() || run.end >= range.end);
        let mut started = Vec::new();
        let mut missing = (!is_resident).then(|| range.clone());
        for ahead in guess.iter().flat_map(|guess| &guess.ranges) {
            assert!(!ahead.is_empty() && ahead.end <= self.file_bytes, "{ahead:?}");
            match missing.take() {
                Some(missing) if missing.end == ahead.start => {
                    started.extend(self.fetch(file, &(missing.start..ahead.end)));
                    continue;
                }
                Some(missing) => started.extend(self.fetch(file, &missing)),
                None => {}
            }
            started.extend(self.fetch(file, ahead));
        }
        if let Some(missing) = missing {
            started.extend(self.fetch(file, &missing));
        }
        let rounded = chunks.start * CHUNK_BYTES..(chunks.end * CHUNK_BYTES).min(self.file_bytes);
        self.readahead.started(file, &started, &range, &rounded, guess.as_ref());
        for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
            let chunk = self.chunks.get_mut(&(file, page / 64)).expect("it was asked for");
            chunk.read_pages |= 1 << (page % 64);
        }
        self.outcome.read_bytes += range.end - range.start;
        self.outcome.waits += u64::from(!is_resident);
        let awaited: Vec<_> =
            chunks.map(|chunk| (file, chunk)).filter(|chunk| !self.chunks[chunk].is_here).collect();
        for flow in &mut self.flows {
            flow.is_urgent |= flow.chunks.iter().any(|(chunk, _)| awaited.contains(chunk));
        }
        awaited
    }

    /// Starts the flows that the limits allow, as `source::admission` does.
    fn admit(&mut self) {
        let mut count = self.flows.iter().filter(|flow| flow.begins.is_some()).count();
        for flow in self.flows.iter_mut().filter(|flow| flow.begins.is_none()) {
            if flow.is_urgent || count < MOST_FLOWS {
                flow.begins = Some(self.now + self.host.round_trip);
                count += 1;
            }
        }
    }

    /// Lets time pass until a chunk arrives. At least one flow must run.
    fn pass(&mut self) {
        loop {
            let now = self.now;
            let has_begun = |flow: &Flow| flow.begins.is_some_and(|begins| begins <= now);
            let flowing = self.flows.iter().filter(|flow| has_begun(flow));
            let each = self.host.rate / flowing.clone().count().max(1) as f64;
            let seconds = flowing.map(|flow| flow.chunks[0].1 / each).fold(f64::INFINITY, f64::min);
            let begins = self.flows.iter().filter_map(|flow| flow.begins);
            let next_begin = begins.filter(|&begins| begins > now).fold(f64::INFINITY, f64::min);
            let to = (now + seconds).min(next_begin);
            let mut come = Vec::new();
            for flow in self.flows.iter_mut().filter(|flow| has_begun(flow)) {
                flow.chunks[0].1 -= (to - now) * each;
                // A rest below a thousandth of a byte is a rounding error.
                if flow.chunks[0].1 < 1e-3 {
                    come.push(flow.chunks.pop_front().expect("it has chunks").0);
                }
            }
            self.now = to;
            if come.is_empty() {
                continue;
            }
            for chunk in come {
                self.chunks.get_mut(&chunk).expect("it was asked for").is_here = true;
            }
            let is_over = |flow: &Flow| flow.chunks.is_empty();
            self.is_rate_known |=
                self.flows.iter().any(|flow| is_over(flow) && flow.bytes >= TELLING_BYTES);
            self.flows.retain(|flow| !is_over(flow));
            return;
        }
    }

    /// Runs readers side by side. Each reader makes its accesses in order, and waits for each.
    pub(super) fn run(&mut self, readers: Vec<Vec<Access>>) -> Outcome {
        let reader = |accesses: Vec<Access>| Reader { accesses: accesses.into(), awaited: vec![] };
        let mut readers: Vec<_> = readers.into_iter().map(reader).collect();
        loop {
            for reader in &mut readers {
                reader.awaited.retain(|chunk| !self.chunks[chunk].is_here);
            }
            let mut is_idle = true;
            for reader in readers.iter_mut().filter(|reader| reader.awaited.is_empty()) {
                if let Some(access) = reader.accesses.pop_front() {
                    reader.awaited = self.read(access);
                    is_idle = false;
                }
            }
            self.admit();
            readers.retain(|reader| !reader.accesses.is_empty() || !reader.awaited.is_empty());
            if readers.is_empty() {
                break;
            }
            if is_idle {
                self.pass();
            }
        }
        self.outcome.seconds = self.now;
        self.outcome.clone()
    }

    /// The bytes that were read, each counted once, and the bytes of chunks that no reader touched.
    pub(super) fn read_and_wasted_bytes(&self) -> (u64, u64) {
        let read = self.chunks.values().map(|chunk| u64::from(chunk.read_pages.count_ones()));
        let wasted = self.chunks.values().filter(|chunk| chunk.read_pages == 0).count();
        (read.sum::<u64>() * PAGE_BYTES, wasted as u64 * CHUNK_BYTES)
    }
}

/// Reads of `step` bytes through a range.
pub(super) fn through(file: u32, range: Range<u64>, step: u64) -> Vec<Access> {
    let starts = range.clone().step_by(step as usize);
    starts.map(|start| (file, start..(start + step).min(range.end))).collect()
}

/// The kernel's reads for a program that reads a range from its start: windows of a chunk. The kernel
/// reads a window before the program needs it, so it reads one more than the program.
pub(super) fn by_kernel(file: u32, range: Range<u64>) -> Vec<Access> {
    let start = range.start - range.start % PAGE_BYTES;
    through(file, start..range.end.next_multiple_of(PAGE_BYTES) + CHUNK_BYTES, CHUNK_BYTES)
}

/// A mapped file. Pages stay in memory; a page fault reads the missing pages around it.
pub(super) struct Mapped {
    file: u32,
    is_resident: Vec<bool>,
    accesses: Vec<Access>,
}

impl Mapped {
    const PAGE: u64 = PAGE_BYTES;
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

    /// Copies as glibc's memmove does to a place behind the source: both ends first, then downward.
    pub(super) fn copy(&mut self, block: Range<u64>) {
        self.touch(block.start);
        (block.start / Self::PAGE..block.end / Self::PAGE).rev().for_each(|page| {
            self.touch(page * Self::PAGE);
        });
    }

    /// The kernel's reads so far.
    pub(super) fn take_accesses(&mut self) -> Vec<Access> {
        std::mem::take(&mut self.accesses)
    }
}
