//! The waits for a registry, and the number of times to ask again.

use std::time::Duration;

/// Time-outs and retries. The defaults suit the internet; tests use shorter ones.
///
/// Readers have deadlines, so their requests have short time-outs. Requests that open a kit or fetch
/// in the background have the patience `open` instead, as long as the connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The longest a connection may take, TLS included. 10 s: three lost SYNs and a slow handshake.
    pub connect: Duration,
    /// The longest from a request to the head of its answer, for a reader who can be served by another
    /// endpoint. 30 s: registries that fetch from an upstream of their own are slow with the first byte.
    pub answer: Duration,
    /// The silence after which a reader's request is sent again beside the first, which may be stuck, or
    /// be about to succeed. It doubles each time. 5 s: longer than a healthy registry takes, and a small
    /// part of a reader's deadline.
    pub hedge: Duration,
    /// The longest silence of a host where a kit is opened, before its answer and within it; and the
    /// longest that one question with all its repetitions may take there. 5 min: a pull-through cache
    /// sends nothing before it has fetched a blob itself, at 100 MB/s 30 GB in that time.
    pub open: Duration,
    /// The silence of a host after which the user is told. 10 s: shorter waits are ordinary.
    pub untold: Duration,
    /// The longest without a byte once a body streams, for a reader. 30 s: as long as TCP needs to give
    /// up hope in practice; a reader with a deadline has no use for later bytes.
    pub stall: Duration,
    /// The repetitions of a request after failures that may pass. 5, as `kit pull` does.
    pub retries: usize,
    /// The wait before the first repetition; it doubles each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait that is our own idea.
    pub backoff_max: Duration,
    /// The longest pause that a reader makes for a `Retry-After`; a longer one is cut to it. 10 s: a host
    /// that is well earlier is noticed within seconds.
    pub retry_after_max: Duration,
    /// The longest that a reader's request and its repetitions may take before the last repetition.
    pub retry_total: Duration,
    /// The most time between repetitions while no connection can be made. 10 s: a registry that is
    /// restarted is back by then, and a reader can wait for that.
    pub unreachable_total: Duration,
    /// The most breaks in a row, each before the stream has come far, that are resumed.
    pub resumes: u32,
}

impl Timing {
    /// For resolving a reference: a person waits at a terminal, and an earlier result is used where the
    /// registry cannot be reached.
    pub(super) fn of_a_command(self) -> Self {
        let unreachable_total = self.unreachable_total.min(Duration::from_secs(1));
        Self { unreachable_total, ..self }
    }

    /// For requests that open a kit or fetch in the background.
    pub(super) fn of_patience(self) -> Self {
        Self { retry_after_max: self.open, retry_total: self.open, ..self }
    }

    /// The longest from a request to the head of its answer, for a reader with other endpoints.
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
