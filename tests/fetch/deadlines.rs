//! Readers and sources that fail: how long a reader waits, and what it gets. The clock is simulated.
//!
//! `KITFS_FAULTED_READS=COUNT` is the number of faulted reads, `KITFS_SEED=SEED` the first seed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt, stream};
use kitfs::fetch::{FetchError, GaveUp, Layer, LayerSpec};
use kitfs::layer::StreamOffset;
use kitfs::oci::{BlobId, BlobOffset, Compression, Digest, Encoding, Format};
use kitfs::source::admission::UserId;
use kitfs::source::{BlobSource, BlobStream, Priority, SourceError, Urgency};
use parking_lot::Mutex;
use rstest::rstest;
use tokio::time::Instant;

use super::support::Random;
use super::{MIB, content, fetcher};

const DEADLINE: Duration = Duration::from_secs(300);
/// The deadline is looked at every second.
const SLACK: Duration = Duration::from_secs(1);

/// A fault of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Cannot be opened.
    Unavailable,
    /// A connection without an answer.
    Silent,
    /// 429 with `Retry-After: 100`.
    Throttled,
    NotFound,
    Unauthorized,
    /// 416, a wrong or missing Content-Range, an encoding.
    Protocol,
    /// A certificate of another host.
    Untrusted,
    /// Silence after these bytes.
    Stall(usize),
    /// A byte each second after these bytes.
    Drip(usize),
    /// A reset after these bytes.
    Reset(usize),
    /// An end after these bytes.
    Short(usize),
    /// The whole blob for a range.
    Whole,
    /// Bytes of another range.
    OtherRange,
}

const FAULTS: [Fault; 13] = [
    Fault::Unavailable,
    Fault::Silent,
    Fault::Throttled,
    Fault::NotFound,
    Fault::Unauthorized,
    Fault::Protocol,
    Fault::Untrusted,
    Fault::Stall(0),
    Fault::Drip(0),
    Fault::Reset(0),
    Fault::Short(0),
    Fault::Whole,
    Fault::OtherRange,
];

type Script = Box<dyn FnMut(Instant) -> Option<Fault> + Send>;

/// A blob in memory behind a script of faults.
struct Scripted {
    bytes: Bytes,
    script: Mutex<Script>,
    requests: AtomicU64,
}

impl Scripted {
    fn new(
        bytes: Vec<u8>,
        script: impl FnMut(Instant) -> Option<Fault> + Send + 'static,
    ) -> Arc<Self> {
        let requests = AtomicU64::new(0);
        Arc::new(Self { bytes: bytes.into(), script: Mutex::new(Box::new(script)), requests })
    }

    /// The first streams have these faults, later ones none.
    fn with_faults(bytes: Vec<u8>, faults: &[Fault]) -> Arc<Self> {
        let mut faults = VecDeque::from(faults.to_vec());
        Self::new(bytes, move |_| faults.pop_front())
    }

    fn spec(&self) -> LayerSpec {
        let blob = BlobId { digest: Digest::of(&self.bytes), size: self.bytes.len() as u64 };
        let encoding = Encoding { format: Format::Raw, compression: Compression::None };
        LayerSpec { blob, encoding }
    }
}

fn refused(fault: Fault) -> Option<SourceError> {
    let place = || "far.example".to_owned();
    Some(match fault {
        Fault::Unavailable => SourceError::Unavailable { place: place(), detail: "away".into() },
        Fault::Throttled => {
            SourceError::Throttled { place: place(), retry_after: Some(Duration::from_secs(100)) }
        }
        Fault::NotFound => {
            SourceError::NotFound { what: "blob".into(), place: place(), hint: "push it".into() }
        }
        Fault::Unauthorized => SourceError::Unauthorized {
            place: place(),
            detail: "401".into(),
            hint: "log in".into(),
        },
        Fault::Protocol => SourceError::Protocol { place: place(), detail: "416".into() },
        Fault::Untrusted => SourceError::Untrusted { place: place(), detail: "expired".into() },
        _ => return None,
    })
}

const PIECE: usize = 16 * 1024;

fn pieces(bytes: &Bytes) -> impl Iterator<Item = Result<Bytes, SourceError>> + use<> {
    let bytes = bytes.clone();
    let starts = (0..bytes.len()).step_by(PIECE);
    starts.map(move |start| Ok(bytes.slice(start..(start + PIECE).min(bytes.len()))))
}

impl BlobSource for Scripted {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = (self.script.lock())(Instant::now());
        async move {
            if let Some(error) = fault.and_then(refused) {
                return Err(error);
            }
            let range = match fault {
                Some(Fault::Whole) => blob.whole(),
                Some(Fault::OtherRange) => range.start + 1..range.end,
                _ => range,
            };
            let bytes = self.bytes.slice(BlobOffset::indices(&range));
            let first = |count: usize| pieces(&bytes.slice(..count % bytes.len().max(1)));
            let bytes = match fault {
                Some(Fault::Silent) => return std::future::pending().await,
                Some(Fault::Stall(after)) => {
                    stream::iter(first(after)).chain(stream::pending()).boxed()
                }
                Some(Fault::Drip(after)) => {
                    let rest = bytes.slice(after % bytes.len().max(1)..);
                    let drops = stream::iter(0..rest.len()).then(move |at| {
                        let byte = rest.slice(at..at + 1);
                        async move {
                            tokio::time::sleep(Duration::from_secs(1)).await;
                            Ok(byte)
                        }
                    });
                    stream::iter(first(after)).chain(drops).boxed()
                }
                Some(Fault::Reset(after)) => {
                    let reset = refused(Fault::Unavailable).map(Err);
                    stream::iter(first(after).chain(reset)).boxed()
                }
                Some(Fault::Short(after)) => stream::iter(first(after)).boxed(),
                _ => stream::iter(pieces(&bytes)).boxed(),
            };
            Ok(BlobStream { range, bytes })
        }
        .boxed()
    }
}

/// Runs a test under a simulated clock, which goes on when every part of the test waits.
///
/// tokio's own paused clock stands still while a blocking thread is alive, and a transfer has one for its
/// writer. Here the clock goes on when all of these threads sleep.
fn simulated<T>(test: impl Future<Output = T>) -> T {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("sim-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_name(&name)
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::select! {
            biased;
            result = test => result,
            () = advance_when_idle(&name) => unreachable!(),
        }
    })
}

/// The step of the clock: far less than any wait that a test measures.
const STEP: Duration = Duration::from_millis(100);

async fn advance_when_idle(threads: &str) {
    loop {
        // Tasks that are ready run now, and those that they wake.
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        match all_sleep(threads) {
            true => tokio::time::advance(STEP).await,
            false => std::thread::sleep(Duration::from_micros(20)),
        }
    }
}

/// Whether all threads of this name sleep (proc_pid_stat(5)). A thread that waits for the disk does not.
fn all_sleep(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
    tasks.filter_map(Result::ok).all(|task| {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { return true };
        let Some((head, tail)) = stat.rsplit_once(") ") else { return true };
        let is_of_test = head.split_once('(').is_some_and(|(_, comm)| comm == name);
        !is_of_test || tail.starts_with('S')
    })
}

fn offsets(range: &Range<usize>) -> Range<StreamOffset> {
    StreamOffset(range.start as u64)..StreamOffset(range.end as u64)
}

/// Reads as the file system does for a reader, and says how long that took.
async fn read_for(
    layer: &Arc<Layer>,
    range: Range<usize>,
    deadline: Option<Duration>,
) -> (Result<Bytes, GaveUp>, Duration) {
    let started = Instant::now();
    let range = offsets(&range);
    let attempt = || async {
        layer.bring(range.clone(), Priority::OnDemand).await?;
        layer.read(range.clone()).await
    };
    let result = layer.persist(range.clone(), std::process::id(), deadline, attempt).await;
    (result, started.elapsed())
}

async fn open(folder: &std::path::Path, source: &Arc<Scripted>) -> Arc<Layer> {
    let fetcher = fetcher(folder, Some(4 * MIB as u64));
    fetcher.open(source.spec(), source.clone(), UserId::of_process(), &|_| {}).await.unwrap()
}

#[rstest]
#[case::unavailable(Fault::Unavailable, 1)]
#[case::throttled(Fault::Throttled, 10)]
#[case::not_found(Fault::NotFound, 1)]
#[case::unauthorized(Fault::Unauthorized, 1)]
#[case::odd(Fault::Protocol, 1)]
#[case::untrusted(Fault::Untrusted, 1)]
#[case::stalled(Fault::Stall(1000), 5)]
#[case::dripping(Fault::Drip(1000), 10)]
#[case::reset(Fault::Reset(100_000), 1)]
#[case::short(Fault::Short(100_000), 1)]
#[case::whole(Fault::Whole, 0)]
#[case::other_range(Fault::OtherRange, 1)]
fn one_odd_answer_costs_a_reader_seconds_and_no_error(
    #[case] fault: Fault,
    #[case] most_seconds: u64,
) {
    simulated(async {
        let folder = tempfile::tempdir().unwrap();
        let source = Scripted::with_faults(content(1, MIB), &[fault]);
        let layer = open(folder.path(), &source).await;
        let (bytes, waited) = read_for(&layer, 1000..200_000, Some(DEADLINE)).await;
        assert!(bytes.unwrap() == source.bytes[1000..200_000]);
        // The simulated clock moves in steps.
        assert!(waited < Duration::from_secs(most_seconds + 1), "{waited:?}");
    });
}

#[test]
fn a_source_that_is_away_and_comes_back_costs_a_reader_seconds_more() {
    simulated(async {
        for away_seconds in [1, 20, 40, 250] {
            let folder = tempfile::tempdir().unwrap();
            let back = Instant::now() + Duration::from_secs(away_seconds);
            let script = move |now| (now < back).then_some(Fault::Unavailable);
            let source = Scripted::new(content(1, MIB), script);
            let layer = open(folder.path(), &source).await;
            let (bytes, waited) = read_for(&layer, 0..MIB, Some(DEADLINE)).await;
            assert!(bytes.unwrap() == source.bytes);
            assert!(waited <= Duration::from_secs(away_seconds + 6), "{waited:?}");
        }
    });
}

#[rstest]
#[case::unavailable(Fault::Unavailable)]
#[case::silent(Fault::Silent)]
#[case::throttled(Fault::Throttled)]
#[case::odd(Fault::Protocol)]
#[case::stalled(Fault::Stall(0))]
#[case::dripping(Fault::Drip(0))]
fn the_deadline_counts_for_the_reader_and_not_for_each_request_of_the_kernel(#[case] fault: Fault) {
    simulated(async {
        let folder = tempfile::tempdir().unwrap();
        let source = Scripted::new(content(1, MIB), move |_| Some(fault));
        let layer = open(folder.path(), &source).await;
        let started = Instant::now();
        // The kernel's window, and then the page, as often as it does for a mapped page.
        for range in [0..131_072, 4096..8192, 4096..8192] {
            let (result, _) = read_for(&layer, range, Some(DEADLINE)).await;
            assert!(matches!(result, Err(GaveUp::Deadline { .. })), "{result:?}");
        }
        let waited = started.elapsed();
        assert!(waited >= DEADLINE && waited <= DEADLINE + 5 * SLACK, "{waited:?}");
        // A reader that comes later has the whole deadline.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (_, waited) = read_for(&layer, 4096..8192, Some(DEADLINE)).await;
        assert!(waited >= DEADLINE, "{waited:?}");
    });
}

#[test]
fn without_a_deadline_a_reader_waits_as_long_as_it_takes() {
    simulated(async {
        let folder = tempfile::tempdir().unwrap();
        let back = Instant::now() + Duration::from_secs(1800);
        let script = move |now| (now < back).then_some(Fault::Unavailable);
        let source = Scripted::new(content(1, MIB), script);
        let layer = open(folder.path(), &source).await;
        let (bytes, _) = read_for(&layer, 0..1000, None).await;
        assert!(bytes.unwrap() == source.bytes[..1000]);
    });
}

#[rstest]
#[case::not_found(Fault::NotFound)]
#[case::unauthorized(Fault::Unauthorized)]
fn a_refusal_that_is_given_again_fails_soon_and_for_other_ranges_at_once(#[case] fault: Fault) {
    simulated(async {
        let folder = tempfile::tempdir().unwrap();
        let source = Scripted::new(content(1, MIB), move |_| Some(fault));
        let layer = open(folder.path(), &source).await;
        let (result, waited) = read_for(&layer, 0..1000, None).await;
        assert!(matches!(result, Err(GaveUp::Failed(FetchError::Source(_)))), "{result:?}");
        assert!(
            waited >= Duration::from_secs(5) && waited <= Duration::from_secs(15),
            "{waited:?}"
        );
        assert!(source.requests.load(Ordering::Relaxed) >= 3);
        for range in [0..1000, 600_000..700_000] {
            let (result, waited) = read_for(&layer, range, None).await;
            assert!(result.is_err() && waited <= Duration::from_secs(1), "{waited:?}");
        }
    });
}

#[test]
fn background_work_is_patient_with_a_silent_body_until_a_reader_waits() {
    simulated(async {
        let folder = tempfile::tempdir().unwrap();
        let source = Scripted::with_faults(content(1, MIB), &[Fault::Stall(1000)]);
        let layer = open(folder.path(), &source).await;
        let (all, in_background) = (offsets(&(0..MIB)), layer.clone());
        let fetching =
            tokio::spawn(async move { in_background.bring(all, Priority::Hydrate).await });
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(source.requests.load(Ordering::Relaxed), 1);
        let (bytes, waited) = read_for(&layer, 0..1000, Some(DEADLINE)).await;
        assert!(bytes.unwrap() == source.bytes[..1000]);
        // The first bytes may have come already.
        assert!(waited <= Duration::from_secs(6), "{waited:?}");
        let (bytes, waited) = read_for(&layer, 1000..9000, Some(DEADLINE)).await;
        assert!(bytes.unwrap() == source.bytes[1000..9000]);
        assert!(waited <= Duration::from_secs(6), "{waited:?}");
        fetching.await.unwrap().unwrap();
    });
}

/// The faults of a source: how often, and when it is away.
struct Weather {
    random: Random,
    /// One stream in so many has a fault.
    one_in: u64,
    /// Faults in a row so far, and the most of them.
    row: u64,
    longest_row: u64,
    away_until: Instant,
    /// One stream in so many begins an outage.
    one_in_is_away: u64,
    has_refusals: bool,
}

impl Weather {
    /// Each fault passes: an honest registry on a bad day.
    fn passing(seed: u64) -> Self {
        Self::new(seed, [2, 5, 20][(seed % 3) as usize], 4, 200)
    }

    /// A registry that is broken, or hostile.
    fn foul(seed: u64) -> Self {
        Self::new(seed, [1, 2][(seed % 2) as usize], u64::MAX, 10)
    }

    fn new(seed: u64, one_in: u64, longest_row: u64, one_in_is_away: u64) -> Self {
        let (random, away_until) = (Random::new(seed), Instant::now());
        Self { random, one_in, row: 0, longest_row, away_until, one_in_is_away, has_refusals: true }
    }

    fn next(&mut self, now: Instant) -> Option<Fault> {
        if now < self.away_until {
            return Some(Fault::Unavailable);
        }
        if self.random.below(self.one_in_is_away) == 0 {
            self.away_until = now + Duration::from_secs(1 + self.random.below(40));
        }
        if self.row >= self.longest_row || self.random.below(self.one_in) != 0 {
            self.row = 0;
            return None;
        }
        self.row += 1;
        let after = self.random.below(400_000) as usize;
        let fault = FAULTS[self.random.below(FAULTS.len() as u64) as usize];
        Some(match fault {
            Fault::Stall(_) => Fault::Stall(after),
            Fault::Drip(_) => Fault::Drip(after),
            Fault::Reset(_) => Fault::Reset(after),
            Fault::Short(_) => Fault::Short(after),
            // No source is silent without end: its client gives up (`tests/registry/patience.rs`).
            Fault::Silent if self.longest_row != u64::MAX => Fault::Stall(0),
            Fault::NotFound | Fault::Unauthorized if !self.has_refusals => Fault::Protocol,
            fault => fault,
        })
    }
}

/// `readers` read at random places; each read is right, or fails by its deadline.
async fn faulted_reads(seed: u64, reads: u64, mut weather: Weather, may_fail: bool) -> u64 {
    const READERS: u64 = 8;
    const LAYER_BYTES: usize = 6 * MIB + 12_345;
    let folder = tempfile::tempdir().unwrap();
    weather.has_refusals = may_fail;
    let source = Scripted::new(content(seed, LAYER_BYTES), move |now| weather.next(now));
    let layer = open(folder.path(), &source).await;
    let readers = (0..READERS).map(|reader| {
        let (layer, source) = (layer.clone(), source.clone());
        tokio::spawn(async move {
            let mut random = Random::new(seed.wrapping_mul(READERS).wrapping_add(reader));
            let mut failed = 0;
            for _ in 0..reads / READERS {
                let start = random.below(LAYER_BYTES as u64 - 1) as usize;
                let most = [4096, 131_072, 1 << 20][random.below(3) as usize];
                let end = (start + 1 + random.below(most) as usize).min(LAYER_BYTES);
                let deadline = match may_fail {
                    true => Duration::from_secs(1 + random.below(60)),
                    false => DEADLINE,
                };
                let (result, waited) = read_for(&layer, start..end, Some(deadline)).await;
                assert!(waited <= deadline + SLACK, "{waited:?} of {deadline:?}, seed {seed}");
                match result {
                    Ok(bytes) => {
                        assert!(bytes == source.bytes[start..end], "{start}..{end}, seed {seed}");
                    }
                    Err(error) => {
                        assert!(may_fail, "{error} after {waited:?}, seed {seed}");
                        failed += 1;
                    }
                }
            }
            failed
        })
    });
    join_all(readers).await.into_iter().map(Result::unwrap).sum()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The reads with one seed, of which there are as many as it takes.
const READS_OF_SEED: u64 = 400;

#[test]
fn a_faulted_read_gets_the_right_bytes_or_an_error_by_its_deadline() {
    let (reads, first) = (number("KITFS_FAULTED_READS").unwrap_or(1600), number("KITFS_SEED"));
    let first = first.unwrap_or(1);
    let (mut done, mut failed) = (0, 0);
    for seed in first.. {
        if done >= reads {
            break;
        }
        failed += simulated(async {
            match seed % 2 {
                0 => faulted_reads(seed, READS_OF_SEED, Weather::passing(seed), false).await,
                _ => faulted_reads(seed, READS_OF_SEED, Weather::foul(seed), true).await,
            }
        });
        done += READS_OF_SEED;
    }
    println!("{done} faulted reads from seed {first}: {failed} failed by their deadlines, 0 wrong");
}
