//! The size and number of requests, from the rate at which bytes come. Pure, but for the clock of [`HostPace`].
//!
//! A request of the right size takes some tens of milliseconds. That is long enough to hide the round trip of the
//! next request on the connection. It is short enough for a reader whose bytes are in the tail, and for a more
//! urgent transfer that waits for its turn.
//!
//! Requests that run side by side share the host rate, so the bytes that a reader wants first come at a part of
//! that rate. Where one connection is as fast as several, one request is best for bytes that are wanted in order.
//! Where a server limits each connection, several requests are best. The rate of a transfer that ran alone tells
//! both cases apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::layer::layout::CHUNK_BYTES;
use crate::source::admission::MOST_OF_A_LAYER;

/// The time that a request should take when it runs alone: two to three usual round trips.
const TARGET: Duration = Duration::from_millis(33);
/// The same at [`FAST_RATE`]. There the server's cost of a request counts most: docker-registry fills a buffer of 4
/// MiB for each, however small. A reader whose bytes are in the tail still waits less than a tenth of a second.
const FAST_TARGET: Duration = Duration::from_millis(100);
/// Bytes per second that only machines nearby bring: 2 Gbit/s.
const FAST_RATE: f64 = 250e6;
/// The smallest request of several chunks. Heads and turns of smaller ones cost more than they save.
const LEAST_BYTES: u64 = 1024 * 1024;
/// The largest request: half of a stream's largest window, so that there are always two. On loopback, requests of
/// 16 MiB took a fifth to a third more of the registry's processor time. Requests larger than 32 MiB saved nothing
/// more.
const MOST_BYTES: u64 = 32 * 1024 * 1024;
/// The size of a request before anything was measured: right for 1 Gbit/s.
const FIRST_BYTES: u64 = 4 * 1024 * 1024;
/// The smallest transfer that measures a rate. Shorter ones measure round trips.
const TELLING_BYTES: u64 = 512 * 1024;

/// The number of connections before anything was measured: a window of 16 MiB in requests of 4 MiB.
const FIRST_CONNECTIONS: u32 = 4;
/// The most requests that share a window: the transfers of a layer that run at a time.
const MOST_CONNECTIONS: u32 = MOST_OF_A_LAYER as u32;
/// The most requests of the usual size that are joined to one: as many as the window of a stream of known length
/// has (`fs::readahead`).
const MOST_USUAL: u32 = 8;
/// The share by which the round trip may grow with each answer: an eighth, so that one slow answer changes little.
const ROUND_TRIP_GROWTH: u64 = 8;
/// The most transfers, on average and with itself, beside which a transfer counts as alone.
const ALONE: f64 = 1.25;

/// The rate at which the bytes of a host come, and the requests that suit it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pace {
    /// Bytes per second of all transfers together: a running mean.
    rate: Option<f64>,
    /// Bytes per second of a transfer that runs alone: a running mean, or the best rate of a transfer that did not
    /// run alone.
    single: Option<f64>,
    running: u32,
    /// The sum of the seconds that each transfer ran.
    run_seconds: f64,
    /// The time at which `run_seconds` was last updated.
    now: Duration,
}

/// The state of the pace when a transfer began.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Duration,
    run_seconds: f64,
}

impl Pace {
    /// A transfer begins to bring bytes.
    fn begin(&mut self, now: Duration) -> Begun {
        self.join(now);
        Begun { at: self.now, run_seconds: self.run_seconds }
    }

    /// One more transfer shares the rate.
    fn join(&mut self, now: Duration) {
        self.pass(now);
        self.running += 1;
    }

    /// One transfer fewer shares the rate.
    fn leave(&mut self, now: Duration) {
        self.pass(now);
        self.running = self.running.saturating_sub(1);
    }

    /// A transfer has ended. `bytes`: the bytes that it brought, if they measure the rate.
    fn end(&mut self, begun: Begun, now: Duration, bytes: Option<u64>) {
        self.leave(now);
        let seconds = (self.now - begun.at).as_secs_f64();
        let Some(bytes) = bytes.filter(|&bytes| bytes >= TELLING_BYTES && seconds > 0.0) else {
            return;
        };
        let side_by_side = ((self.run_seconds - begun.run_seconds) / seconds).max(1.0);
        let own = bytes as f64 / seconds;
        let mean = |known: Option<f64>, sample| match known {
            Some(known) => known * 0.75 + sample * 0.25,
            None => sample,
        };
        self.rate = Some(mean(self.rate, own * side_by_side));
        self.single = Some(match self.single {
            Some(known) if side_by_side > ALONE => known.max(own),
            known => mean(known, own),
        });
    }

    fn pass(&mut self, now: Duration) {
        let now = now.max(self.now);
        self.run_seconds += f64::from(self.running) * (now - self.now).as_secs_f64();
        self.now = now;
    }

    /// The most chunks that one request should ask for.
    fn chunks(&self) -> u32 {
        let bytes = match self.rate {
            Some(rate) if rate >= FAST_RATE => (rate * FAST_TARGET.as_secs_f64()) as u64,
            Some(rate) => (rate * TARGET.as_secs_f64()) as u64,
            None => FIRST_BYTES,
        };
        (bytes.clamp(LEAST_BYTES, MOST_BYTES) / CHUNK_BYTES) as u32
    }

    /// The number of requests side by side that use the whole rate.
    fn connections(&self) -> u32 {
        match (self.rate, self.single) {
            (Some(rate), Some(single)) => {
                (rate / single).round().clamp(1.0, f64::from(MOST_CONNECTIONS)) as u32
            }
            _ => FIRST_CONNECTIONS,
        }
    }
}

/// The measured rate and round trip of a host, for all layers that come from it.
#[derive(Debug)]
pub(super) struct HostPace {
    began: Instant,
    pace: Mutex<Pace>,
    /// The chunks of a request, for readers without a lock.
    request_chunks: AtomicU32,
    connections: AtomicU32,
    /// Bytes per second; 0 before anything was measured.
    rate: AtomicU64,
    /// Microseconds; 0 before anything was measured.
    round_trip: AtomicU64,
}

impl HostPace {
    pub(super) fn new() -> Arc<Self> {
        let pace = Pace::default();
        Arc::new(Self {
            began: Instant::now(),
            pace: Mutex::new(pace),
            request_chunks: AtomicU32::new(pace.chunks()),
            connections: AtomicU32::new(pace.connections()),
            rate: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
        })
    }

    /// A transfer begins to bring bytes, until the value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Streaming {
        let begun = self.pace.lock().begin(self.began.elapsed());
        Streaming { host_pace: self.clone(), begun, brought: None, is_paused: false }
    }

    /// The most chunks that one request should ask for.
    pub(super) fn request_chunks(&self) -> u32 {
        self.request_chunks.load(Ordering::Relaxed)
    }

    /// The bytes that come in `time`; 0 before anything was measured.
    pub(super) fn bytes_in(&self, time: Duration) -> u64 {
        (self.rate.load(Ordering::Relaxed) as f64 * time.as_secs_f64()) as u64
    }

    /// A request was answered after `time`. A shorter time counts at once, a longer one little by little, because
    /// an answer may be late for another reason than the round trip.
    pub(super) fn answered(&self, time: Duration) {
        let sample = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let known = self.round_trip.load(Ordering::Relaxed);
        let longest = known.saturating_add(known / ROUND_TRIP_GROWTH + 1);
        let now = if known == 0 { sample } else { sample.min(longest) };
        self.round_trip.store(now, Ordering::Relaxed);
    }

    /// The time between a request and the first byte of its answer; zero before it was measured.
    pub(super) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// The most chunks of one request, where `chunks` are wanted in order and requested at the same time. A request
    /// takes a quarter of a second at most, for a reader whose bytes are in its tail.
    pub(super) fn request_chunks_of(&self, chunks: u32) -> u32 {
        let usual = self.request_chunks();
        let most = (usual * MOST_USUAL).min((MOST_BYTES / CHUNK_BYTES) as u32);
        chunks.div_ceil(self.connections.load(Ordering::Relaxed)).min(most).max(usual)
    }
}

/// A transfer that brings bytes of a host.
pub(super) struct Streaming {
    host_pace: Arc<HostPace>,
    begun: Begun,
    brought: Option<u64>,
    is_paused: bool,
}

impl Streaming {
    /// The transfer pauses, and leaves the rate to others until [`Self::go_on`].
    pub(super) fn pause(&mut self) {
        self.host_pace.pace.lock().leave(self.host_pace.began.elapsed());
        self.is_paused = true;
    }

    /// The transfer brings bytes again.
    pub(super) fn go_on(&mut self) {
        self.host_pace.pace.lock().join(self.host_pace.began.elapsed());
        self.is_paused = false;
    }

    /// The transfer has brought `bytes` as fast as the host sends them.
    pub(super) fn brought(mut self, bytes: u64) {
        self.brought = Some(bytes);
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let host_pace = &self.host_pace;
        let mut pace = host_pace.pace.lock();
        let now = host_pace.began.elapsed();
        if self.is_paused {
            // A transfer that ends counts as running until then.
            pace.join(now);
        }
        pace.end(self.begun, now, self.brought);
        host_pace.request_chunks.store(pace.chunks(), Ordering::Relaxed);
        host_pace.connections.store(pace.connections(), Ordering::Relaxed);
        host_pace.rate.store(pace.rate.map_or(0, |rate| rate as u64), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs transfers of `bytes`, `count` at a time, `rounds` times. One of them gets at most `most` bytes per
    /// second, and all together get `rate`.
    fn run(pace: &mut Pace, count: u32, rounds: u32, bytes: u64, most: f64, rate: f64) {
        for _ in 0..rounds {
            let now = pace.now;
            let seconds = bytes as f64 / most.min(rate / f64::from(count));
            let ended = now + Duration::from_secs_f64(seconds);
            let begun: Vec<_> = (0..count).map(|_| pace.begin(now)).collect();
            begun.into_iter().for_each(|begun| pace.end(begun, ended, Some(bytes)));
        }
    }

    fn chunks_at(bytes_per_second: u64) -> u64 {
        let mut pace = Pace::default();
        run(&mut pace, 3, 20, bytes_per_second, f64::MAX, bytes_per_second as f64);
        u64::from(pace.chunks()) * CHUNK_BYTES
    }

    #[test]
    fn requests_grow_with_the_rate() {
        assert_eq!(chunks_at(10_000_000), LEAST_BYTES);
        assert_eq!(chunks_at(125_000_000), 15 * CHUNK_BYTES);
        assert_eq!(chunks_at(240_000_000), 30 * CHUNK_BYTES);
        assert_eq!(chunks_at(260_000_000), 99 * CHUNK_BYTES);
        assert_eq!(chunks_at(2_000_000_000), MOST_BYTES);
    }

    #[test]
    fn small_transfers_say_nothing() {
        let mut pace = Pace::default();
        run(&mut pace, 1, 1, CHUNK_BYTES, 10e6, 10e6);
        assert_eq!((pace.rate, pace.single), (None, None));
    }

    #[test]
    fn a_line_that_one_connection_fills_needs_one() {
        let mut pace = Pace::default();
        assert_eq!(pace.connections(), FIRST_CONNECTIONS);
        // The rate of one connection is unknown before a transfer ran alone.
        run(&mut pace, 4, 5, 4 << 20, f64::MAX, 125e6);
        assert_eq!(pace.connections(), 4);
        run(&mut pace, 1, 1, 4 << 20, f64::MAX, 125e6);
        run(&mut pace, 4, 5, 4 << 20, f64::MAX, 125e6);
        assert!(pace.connections() <= 2, "{pace:?}");
        run(&mut pace, 1, 5, 4 << 20, f64::MAX, 125e6);
        run(&mut pace, 4, 50, 4 << 20, f64::MAX, 125e6);
        assert_eq!(pace.connections(), 1);
    }

    #[test]
    fn a_server_that_bounds_each_connection_needs_several() {
        let mut pace = Pace::default();
        run(&mut pace, 1, 5, 4 << 20, 90e6, 1e9);
        run(&mut pace, 6, 5, 4 << 20, 90e6, 1e9);
        assert!((5..=6).contains(&pace.connections()), "{pace:?}");
        run(&mut pace, 50, 50, 4 << 20, 20e6, 1e9);
        assert_eq!(pace.connections(), MOST_CONNECTIONS);
    }

    #[test]
    fn transfers_that_end_one_after_the_other_shared_the_line_all_the_same() {
        let mut pace = Pace::default();
        let at = |milliseconds| Duration::from_millis(milliseconds);
        let begun = [0; 4].map(|_| pace.begin(at(0)));
        for (index, begun) in begun.into_iter().enumerate() {
            pace.end(begun, at(100 + index as u64), Some(1_000_000));
        }
        let rate = pace.rate.unwrap();
        assert!((38e6..42e6).contains(&rate), "{rate}");
        assert_eq!(pace.connections(), 4, "none was alone");
    }

    #[test]
    fn who_rests_does_not_share_the_line() {
        let host_pace = HostPace::new();
        let (mut paused, mut ended) = (host_pace.begin(), host_pace.begin());
        paused.pause();
        ended.pause();
        assert_eq!(host_pace.pace.lock().running, 0);
        drop(ended);
        assert_eq!(host_pace.pace.lock().running, 0);
        paused.go_on();
        assert_eq!(host_pace.pace.lock().running, 1);
        drop(paused);
        assert_eq!(host_pace.pace.lock().running, 0);
    }

    #[test]
    fn a_round_trip_is_what_answers_take_that_did_not_wait() {
        let host_pace = HostPace::new();
        assert_eq!(host_pace.round_trip(), Duration::ZERO);
        for milliseconds in [500, 20, 90, 21, 300, 20] {
            host_pace.answered(Duration::from_millis(milliseconds));
        }
        assert_eq!(host_pace.round_trip(), Duration::from_millis(20));
        (0..30).for_each(|_| host_pace.answered(Duration::from_millis(100)));
        assert_eq!(host_pace.round_trip(), Duration::from_millis(100), "it has moved away");
    }

    #[test]
    fn a_request_is_never_much_larger_than_usual() {
        let host_pace = HostPace::new();
        let window = (64 << 20) / CHUNK_BYTES as u32;
        for (rate, bytes) in [(12.5e6, 8 << 20), (125e6, 32 << 20), (1e9, 32 << 20)] {
            let mut pace = Pace::default();
            run(&mut pace, 1, 20, 64 << 20, f64::MAX, rate);
            host_pace.request_chunks.store(pace.chunks(), Ordering::Relaxed);
            host_pace.connections.store(pace.connections(), Ordering::Relaxed);
            let request_bytes = u64::from(host_pace.request_chunks_of(window)) * CHUNK_BYTES;
            assert!(request_bytes <= bytes, "{request_bytes} at {rate}");
            assert!(host_pace.request_chunks_of(window) >= host_pace.request_chunks());
        }
    }

    #[test]
    fn an_end_that_says_nothing_is_an_end_all_the_same() {
        let host_pace = HostPace::new();
        drop(host_pace.begin());
        host_pace.begin().brought(1);
        let pace = *host_pace.pace.lock();
        assert_eq!((pace.running, pace.rate), (0, None));
        assert_eq!(host_pace.request_chunks(), (FIRST_BYTES / CHUNK_BYTES) as u32);
    }

    proptest! {
        #[test]
        fn requests_and_connections_are_always_within_their_bounds(
            notes in prop::collection::vec((any::<Option<u64>>(), any::<Duration>(), 0..9usize), 0..20),
        ) {
            let mut pace = Pace::default();
            let mut begun = Vec::new();
            for (bytes, now, running) in notes {
                while begun.len() <= running {
                    begun.push(pace.begin(now));
                }
                pace.end(begun.swap_remove(0), now, bytes);
                let bytes = u64::from(pace.chunks()) * CHUNK_BYTES;
                prop_assert!((LEAST_BYTES..=MOST_BYTES).contains(&bytes));
                prop_assert!((1..=MOST_CONNECTIONS).contains(&pace.connections()));
            }
        }
    }
}
