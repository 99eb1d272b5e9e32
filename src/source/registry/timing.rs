//! How long to wait for a registry, and how often to ask again.

use std::time::Duration;

/// Time-outs and retries. The defaults suit the internet; tests use shorter ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The longest a connection may take, TLS included. 10 s: three lost SYNs and a slow handshake.
    pub connect: Duration,
    /// The longest from a request to the head of its answer. 30 s: registries that fetch from
    /// an upstream of their own are slow with the first byte.
    pub answer: Duration,
    /// The longest without a byte while a body streams. 30 s: as long as TCP needs to give up
    /// hope in practice; a reader that waits longer has no use for the bytes.
    pub stall: Duration,
    /// How often a request is repeated after a failure that may pass. 5, as `kit pull` does.
    pub retries: usize,
    /// The wait before the first repetition; it doubles each time, with jitter.
    pub backoff_min: Duration,
    /// The longest wait that is our own idea.
    pub backoff_max: Duration,
    /// The longest `Retry-After` that is honoured; who asks for more gets no repetition at all.
    pub retry_after_max: Duration,
    /// The longest that one request and its repetitions may take before the last repetition.
    pub retry_total: Duration,
    /// The most that is waited between repetitions while there is nobody to connect to. 10 s: a
    /// registry that is started anew is back by then, and a reader can wait for that.
    pub unreachable_total: Duration,
    /// How often in a row a stream is resumed that breaks off before it has come far.
    pub resumes: u32,
}

impl Timing {
    /// The patience for finding out which kit is meant: a person waits for that at a terminal, and
    /// a kit that was resolved before is used where the registry cannot be reached.
    pub(super) fn of_a_command(&self) -> Self {
        Self {
            retry_total: self.retry_total.min(Duration::from_secs(30)),
            unreachable_total: self.unreachable_total.min(Duration::from_secs(1)),
            ..self.clone()
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            retries: 5,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(30),
            retry_total: Duration::from_secs(60),
            unreachable_total: Duration::from_secs(10),
            resumes: 5,
        }
    }
}
