//! The waits for a registry, and the number of retries.

use std::time::Duration;

/// Time-outs and retries. The defaults suit the internet; tests use shorter ones.
///
/// Readers have deadlines, so their requests have short time-outs. Requests that open a kit or fetch in the
/// background have the patience `open` instead, while the connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The longest time for a connection, TLS included. 10 s: three lost SYNs and a slow handshake.
    pub connect: Duration,
    /// The longest time from a request to the head of its answer, for a reader with another endpoint. 30 s:
    /// registries that fetch from an upstream of their own send the first byte late.
    pub answer: Duration,
    /// The silence after which a reader's request is sent again beside the first. The time doubles with each
    /// further request. 5 s: longer than a healthy registry takes, and a small part of a reader's deadline.
    pub hedge: Duration,
    /// The longest silence of a host while a kit is opened, before and within its answer. Also the longest time of
    /// a request with all retries. 5 min: a pull-through cache sends nothing before it has the whole blob; at 100
    /// MB/s it fetches 30 GB in this time.
    pub open: Duration,
    /// The silence of a host after which the user is told. 10 s: shorter waits are ordinary.
    pub untold: Duration,
    /// The longest silence within a body, for a reader. 30 s: a connection that is silent for longer rarely
    /// recovers, and a reader with a deadline has no use for later bytes.
    pub stall: Duration,
    /// The repetitions of a request after failures that may pass. 5, as `kit pull` does.
    pub retries: usize,
    /// The wait before the first repetition; it doubles each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait without a `Retry-After`.
    pub backoff_max: Duration,
    /// The longest pause of a reader for a `Retry-After`; a longer one is cut. 10 s: a host that recovers earlier
    /// is noticed within seconds.
    pub retry_after_max: Duration,
    /// The time after which a reader's request is not repeated any more.
    pub retry_total: Duration,
    /// The longest total wait while no connection can be made. 10 s: a restarted registry is back by then, and a
    /// reader can wait so long.
    pub unreachable_total: Duration,
    /// The most breaks in a row after which a stream is resumed. Much progress begins a new row.
    pub resumes: u32,
}

impl Timing {
    /// The timing for resolving a reference. A person waits at a terminal, and an earlier result is used where the
    /// registry is unreachable.
    pub(super) fn of_a_command(self) -> Self {
        let unreachable_total = self.unreachable_total.min(Duration::from_secs(1));
        Self { unreachable_total, ..self }
    }

    /// The timing of requests that open a kit or fetch in the background.
    pub(super) fn of_patience(self) -> Self {
        Self { retry_after_max: self.open, retry_total: self.open, ..self }
    }

    /// The longest time from a request to the head of its answer, for a reader with other endpoints.
    pub(super) fn reader(self) -> Duration {
        self.connect + self.answer
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            hedge: Duration::from_secs(5),
            open: Duration::from_secs(300),
            untold: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            retries: 5,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(10),
            retry_total: Duration::from_secs(60),
            unreachable_total: Duration::from_secs(10),
            resumes: 5,
        }
    }
}
