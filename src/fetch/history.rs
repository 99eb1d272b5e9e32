//! Why the bytes of a layer were fetched, how long each step took, and how long readers waited.
//!
//! ```text
//! transfer begins --> queue of transfers --> slot of the host --> first byte --> last byte --> ended
//!                     '------queued------'   '---slot---'     '--answer--'   '---body---'
//! read that misses --------------------------------------------------------> bytes, or an error
//! ```
//!
//! Each layer has two rings of a fixed length, with the newest transfers and the newest waits. An entry is small
//! and changes a few times in the life of a request, so all work here happens under a short lock.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::{FetchError, Layer};
use crate::layer::StreamOffset;
use crate::process::threads;
use crate::source::admission::UserId;
use crate::source::{Priority, Urgency};

/// The transfers that are remembered for a layer. 128: a whole shard of 512 MiB in usual requests of 4 MiB. An entry
/// has about 250 bytes, so a layer takes 32 KiB, and the layers of a large kit take a few MiB.
const MOST_TRANSFERS: usize = 128;

/// The waits of readers that are remembered for a layer. As many as transfers, because a program that reads a cold
/// file waits once for most requests.
const MOST_WAITS: usize = 128;

/// The longest error that is kept, in bytes. A registry may send long sentences.
const LONGEST_ERROR_BYTES: usize = 512;

/// Why bytes are fetched. The priority of the request follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A reader waits.
    Read,
    /// A predictor of readahead expects a reader; its name.
    Readahead(&'static str),
    /// A predictor expects that a program needs a tensor or the header of a file; its name.
    Tensor(&'static str),
    /// A user asked for the bytes beforehand.
    Prefetch,
    /// An access trace says so.
    Trace,
    /// `kitfs warm`, and commands that copy whole layers.
    Warm,
    /// The rest of a file or of a kit, in the background.
    Hydrate,
    /// Bytes between files, which the digest of the layer needs; or the second copy of a layer whose digest was
    /// wrong.
    Rest,
}

impl Cause {
    /// The priority of a request with this cause.
    pub fn priority(self) -> Priority {
        match self {
            Self::Read => Priority::OnDemand,
            Self::Readahead(_) => Priority::Readahead,
            Self::Tensor(_) | Self::Prefetch | Self::Trace | Self::Warm | Self::Rest => {
                Priority::Prefetch
            }
            Self::Hydrate => Priority::Hydrate,
        }
    }

    /// The urgency of a request with this cause, for `user`.
    pub(super) fn urgency(self, user: UserId) -> Urgency {
        let urgency = Urgency::new(self.priority()).of_user(user);
        match self {
            Self::Warm => urgency.for_warm(),
            Self::Read
            | Self::Readahead(_)
            | Self::Tensor(_)
            | Self::Prefetch
            | Self::Trace
            | Self::Hydrate
            | Self::Rest => urgency,
        }
    }

    /// The word for it in messages and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Readahead(_) => "readahead",
            Self::Tensor(_) => "tensor",
            Self::Prefetch => "prefetch",
            Self::Trace => "trace",
            Self::Warm => "warm",
            Self::Hydrate => "hydrate",
            Self::Rest => "rest",
        }
    }

    /// The name of the predictor, for a guess.
    pub fn predictor(self) -> Option<&'static str> {
        match self {
            Self::Readahead(name) | Self::Tensor(name) => Some(name),
            Self::Read | Self::Prefetch | Self::Trace | Self::Warm | Self::Hydrate | Self::Rest => {
                None
            }
        }
    }
}

impl From<Priority> for Cause {
    /// The usual cause of each priority.
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::OnDemand => Self::Read,
            Priority::Readahead => Self::Readahead("stream"),
            Priority::Prefetch => Self::Prefetch,
            Priority::Hydrate => Self::Hydrate,
        }
    }
}

/// The newest transfers and waits of a layer.
#[derive(Debug, Default)]
pub(super) struct History {
    transfers: Mutex<Ring<Arc<Record>>>,
    waits: Mutex<Ring<WaitedRead>>,
}

/// Entries in the order of time, and the number of older ones that are gone.
#[derive(Debug)]
struct Ring<T> {
    entries: VecDeque<T>,
    gone: u64,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), gone: 0 }
    }
}

impl<T> Ring<T> {
    fn push(&mut self, entry: T, most: usize) {
        if self.entries.len() >= most {
            self.entries.pop_front();
            self.gone += 1;
        }
        self.entries.push_back(entry);
    }
}

/// A transfer, while it runs and afterwards.
#[derive(Debug)]
pub(super) struct Record {
    range: Range<StreamOffset>,
    cause: Cause,
    /// The present priority, and the counts of the source's requests.
    urgency: Urgency,
    started_at_ms: u64,
    since: Instant,
    steps: Mutex<Steps>,
}

#[derive(Clone, Debug, Default)]
struct Steps {
    queued: Option<Duration>,
    answered: Option<Duration>,
    ended: Option<(Duration, Outcome)>,
}

/// How a transfer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The transfer still runs.
    UnderWay,
    /// Its bytes came.
    Done,
    /// The transfer is not needed any more: another one brings its bytes, or its layer was closed.
    GivenUp,
    /// The transfer failed; the reason.
    Failed(String),
}

/// A transfer as `kitfs explain` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastTransfer {
    /// The bytes of the stream that it was to bring.
    pub range: Range<StreamOffset>,
    /// Why it began.
    pub cause: Cause,
    /// Whether a reader began to wait for it later.
    pub is_raised: bool,
    /// The time of its start in milliseconds since 1970.
    pub started_at_ms: u64,
    /// The same moment by the clock that never jumps.
    pub began: Instant,
    /// The time until memory and a thread were free for it.
    pub queued: Duration,
    /// The time that its requests waited for slots of their hosts.
    pub slot: Duration,
    /// The time from then to the head of the answer: connection, login, and the host's own time.
    pub answer: Duration,
    /// The time from then to the last byte, or until now.
    pub body: Duration,
    /// The host that sent the latest answer.
    pub host: Option<Arc<str>>,
    /// The requests that were sent again.
    pub retries: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// A read that had to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitedRead {
    /// The bytes of the stream that it wanted.
    pub range: Range<StreamOffset>,
    /// The process that read; 0 where it is unknown.
    pub process: u32,
    /// The name of its command, as /proc has it.
    pub command: String,
    /// The time of its start in milliseconds since 1970.
    pub started_at_ms: u64,
    /// The time until the bytes or the error came.
    pub waited: Duration,
    /// Why it failed.
    pub error: Option<String>,
}

/// The newest transfers and waits of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The transfers, the oldest first.
    pub transfers: Vec<PastTransfer>,
    /// The reads that had to wait, the oldest first.
    pub waits: Vec<WaitedRead>,
    /// The number of older transfers and waits that have left the rings.
    pub forgotten: u64,
}

impl Layer {
    /// The transfers and the waits that touch a range of the stream.
    pub fn past(&self, range: &Range<StreamOffset>) -> Past {
        self.inner.history.past(range)
    }
}

impl History {
    /// A transfer begins.
    pub(super) fn begin(
        &self,
        range: Range<StreamOffset>,
        cause: Cause,
        urgency: Urgency,
    ) -> Arc<Record> {
        let record = Arc::new(Record {
            range,
            cause,
            urgency,
            started_at_ms: now_ms(),
            since: Instant::now(),
            steps: Mutex::default(),
        });
        self.transfers.lock().push(record.clone(), MOST_TRANSFERS);
        record
    }

    /// A read of the thread `reader` has waited.
    pub(super) fn waited(
        &self,
        range: Range<StreamOffset>,
        reader: u32,
        waited: Duration,
        error: Option<&dyn std::fmt::Display>,
    ) {
        let process = threads::process_of(reader);
        let wait = WaitedRead {
            range,
            process,
            command: threads::command_of(process),
            started_at_ms: now_ms().saturating_sub(millis(waited)),
            waited,
            error: error.map(shortened),
        };
        self.waits.lock().push(wait, MOST_WAITS);
    }

    fn past(&self, range: &Range<StreamOffset>) -> Past {
        let touches =
            |other: &Range<StreamOffset>| other.start < range.end && range.start < other.end;
        let (records, gone) = {
            let ring = self.transfers.lock();
            let records = ring.entries.iter().filter(|record| touches(&record.range));
            (records.cloned().collect::<Vec<_>>(), ring.gone)
        };
        let waits = self.waits.lock();
        Past {
            transfers: records.iter().map(|record| record.seen()).collect(),
            waits: waits.entries.iter().filter(|wait| touches(&wait.range)).cloned().collect(),
            forgotten: gone + waits.gone,
        }
    }
}

impl Record {
    /// Memory and a thread are free.
    pub(super) fn queued(&self) {
        let now = self.since.elapsed();
        self.steps.lock().queued.get_or_insert(now);
    }

    /// The head of an answer has arrived.
    pub(super) fn answered(&self) {
        let now = self.since.elapsed();
        self.steps.lock().answered.get_or_insert(now);
    }

    /// The transfer has ended. `None`: its layer was closed.
    pub(super) fn ended(&self, result: Option<&Result<(), FetchError>>) {
        let outcome = match result {
            Some(Ok(())) => Outcome::Done,
            Some(Err(error)) => Outcome::Failed(shortened(error)),
            None => Outcome::GivenUp,
        };
        let now = self.since.elapsed();
        self.steps.lock().ended.get_or_insert((now, outcome));
    }

    fn seen(&self) -> PastTransfer {
        let Steps { queued, answered, ended } = self.steps.lock().clone();
        let trail = self.urgency.trail();
        let (end, outcome) = ended.unwrap_or_else(|| (self.since.elapsed(), Outcome::UnderWay));
        let queued = queued.unwrap_or(end);
        let first_byte = answered.unwrap_or(end).max(queued);
        let slot = trail.slot.min(first_byte - queued);
        // A transfer whose chunks were taken over never had an answer of its own.
        let is_taken_over = outcome == Outcome::Done && answered.is_none();
        PastTransfer {
            range: self.range.clone(),
            cause: self.cause,
            is_raised: self.urgency.get() == Priority::OnDemand && self.cause != Cause::Read,
            started_at_ms: self.started_at_ms,
            began: self.since,
            queued,
            slot,
            answer: first_byte - queued - slot,
            body: end.saturating_sub(first_byte),
            host: trail.host,
            retries: trail.retries,
            outcome: if is_taken_over { Outcome::GivenUp } else { outcome },
        }
    }
}

/// An error of a bounded length.
fn shortened(error: &(impl std::fmt::Display + ?Sized)) -> String {
    let mut text = error.to_string();
    if text.len() > LONGEST_ERROR_BYTES {
        text.truncate(text.floor_char_boundary(LONGEST_ERROR_BYTES));
        text.push('…');
    }
    text
}

fn now_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, length: u64) -> Range<StreamOffset> {
        StreamOffset(start)..StreamOffset(start + length)
    }

    proptest! {
        #[test]
        fn the_newest_that_touch_a_range_are_kept_and_the_rest_is_counted(
            ranges in prop::collection::vec((0..1000u64, 1..50u64), 0..400), at in (0..1000u64, 1..50u64),
        ) {
            let history = History::default();
            for &(start, length) in &ranges {
                history.begin(range(start, length), Cause::Read, Urgency::on_demand());
            }
            let wanted = range(at.0, at.1);
            let past = history.past(&wanted);
            let kept = &ranges[ranges.len().saturating_sub(MOST_TRANSFERS)..];
            let touching = kept.iter().map(|&(start, length)| range(start, length));
            let touching: Vec<_> = touching.filter(|it| it.start < wanted.end && wanted.start < it.end).collect();
            let found: Vec<_> = past.transfers.into_iter().map(|it| it.range).collect();
            prop_assert_eq!(found, touching);
            prop_assert_eq!(past.forgotten, (ranges.len() - kept.len()) as u64);
        }

        #[test]
        fn an_error_stays_short(text in "\\PC{0,400}") {
            let short = shortened(&text);
            prop_assert!(short.len() <= LONGEST_ERROR_BYTES + '…'.len_utf8());
            prop_assert!(text.starts_with(short.strip_suffix('…').unwrap_or(&short)));
        }
    }

    #[test]
    fn the_steps_of_a_transfer_add_up() {
        let history = History::default();
        let urgency = Urgency::new(Priority::Readahead);
        let record = history.begin(range(0, 10), Cause::Readahead("run"), urgency.clone());
        let seen = |outcome: Outcome| {
            let past = history.past(&range(5, 1)).transfers.remove(0);
            assert_eq!(past.outcome, outcome);
            past
        };
        assert!(!seen(Outcome::UnderWay).is_raised);
        record.queued();
        urgency.note_slot(Duration::from_secs(3600));
        urgency.raise(Priority::OnDemand);
        record.answered();
        record.ended(Some(&Ok(())));
        record.ended(None);
        let past = seen(Outcome::Done);
        assert!(past.is_raised);
        // The slot of another request at the same time must not make the parts longer than the whole.
        let all = past.queued + past.slot + past.answer + past.body;
        assert!(all <= record.since.elapsed());
    }
}
