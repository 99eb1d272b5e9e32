//! The wait of a reader while the sources of a layer fail.
//!
//! ```text
//! attempt --bytes--> done
//!    ^  |--unavailable, or an odd answer--> pause --.
//!    |  |--refused (404, 401)-------------> pause --|   refused again and again --> failed
//!    |  '--nothing that waiting mends-------------------------------------------> failed
//!    '----------------------------------------------'   the deadline ------------> failed
//! ```
//!
//! The kernel repeats a failed request at once. First it requests the window that it reads ahead, then the page
//! that the program wants. It repeats the page of a memory map more often. The program waits for all of these
//! requests. So the deadline of the first request counts for the reader, and a repeated request waits for a moment
//! only. The request of another program that has waited for the same page is such a repetition too. A program that
//! comes later has a deadline of its own, and so has a program that tries again and again.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{FetchError, Layer};
use crate::layer::StreamOffset;
use crate::process::running_time::{self, Stopwatch};
use crate::process::threads::process_of;
use crate::source::SourceError;

/// The first pause after a failure. A source has repeated its requests by itself before it fails.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause of our own. 5 s: a registry that is back is noticed within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause that a source can ask for with `Retry-After`. 10 s: a reader waits meanwhile, and
/// few hosts that say `Retry-After: 100` need all of that.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(10);

/// The time for which a source must refuse a layer before a read fails. 5 s: a load balancer answers 404 or 401 for
/// a moment while the registry behind it starts.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// The refusals in a row before a read fails. 3: the second request already had fresh credentials.
const LEAST_REFUSALS: u32 = 3;

/// The time in which a refusal of a layer counts for other ranges of the layer, too. 60 s: `cp -r` of a
/// thousand files from a deleted layer should not confirm the refusal for each file.
const REFUSAL_COUNTS_FOR: Duration = Duration::from_secs(60);

/// The time after a failure in which a request for the same bytes is a repetition by the kernel. The
/// kernel repeats a request within milliseconds; 2 s allow for a loaded machine.
const REPEATED_WITHIN: Duration = Duration::from_secs(2);

/// The time after a failure in which a request of another process for the same bytes counts as a repetition. The
/// kernel sends one request for a page that many programs wait for, and wakes them within milliseconds. 250 ms
/// allow for a loaded machine.
const WOKEN_WITHIN: Duration = Duration::from_millis(250);

/// The deadline of such a repetition. 1 s: long enough for one request to a healthy source.
const DEADLINE_OF_REPEATED: Duration = Duration::from_secs(1);

/// The repetitions in a row of one process. 3: the kernel repeats a window, then a page, and the page of a map once
/// more. A later request comes from the program, which tries again.
const MOST_REPETITIONS: u8 = 3;

/// The failures that are remembered for a layer. 1024: more readers rarely fail within two seconds, and an entry
/// has 32 bytes.
const MOST_FAILURES: usize = 1024;

/// The reason why a reader was given no bytes.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GaveUp {
    /// The deadline has passed.
    #[error("no answer within {} s: {}", .deadline.as_secs_f32(), reason(.last))]
    Deadline {
        /// The deadline of the reader.
        deadline: Duration,
        /// The last failure; none where no attempt ended.
        last: Option<Box<FetchError>>,
    },
    /// A failure that waiting does not mend.
    #[error(transparent)]
    Failed(FetchError),
}

fn reason(last: &Option<Box<FetchError>>) -> String {
    match last {
        Some(error) => error.to_string(),
        None => "the registry or the network is too slow or stalled".to_owned(),
    }
}

/// The recent failures of a layer's readers.
#[derive(Debug, Default)]
pub(super) struct Outage {
    failures: Mutex<VecDeque<Failure>>,
    /// The time of the last refusal that failed a read. Cleared when bytes come.
    refused: Mutex<Option<Instant>>,
}

/// A failed request of a reader.
#[derive(Debug)]
struct Failure {
    range: Range<StreamOffset>,
    at: Instant,
    /// The process of the reader.
    process: u32,
    /// The number of failures of the process in a row before this one.
    repetitions: u8,
}

impl Failure {
    fn overlaps(&self, range: &Range<StreamOffset>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }
}

impl Outage {
    /// Notes that a reader got an error.
    fn failed(&self, failure: Failure) {
        let mut failures = self.failures.lock();
        let (now, process) = (failure.at, failure.process);
        failures.retain(|known| {
            now - known.at < REPEATED_WITHIN
                && (known.range != failure.range || known.process != process)
        });
        if failures.len() == MOST_FAILURES {
            failures.pop_front();
        }
        failures.push_back(failure);
    }

    /// The number of recent failures that a request for `range` repeats; 0 for a new request. `process` is called
    /// only where some request has failed.
    fn repetitions(
        &self,
        range: &Range<StreamOffset>,
        now: Instant,
        process: impl FnOnce() -> u32,
    ) -> u8 {
        let failures = self.failures.lock();
        let is_recent =
            |failure: &&Failure| now - failure.at < REPEATED_WITHIN && failure.overlaps(range);
        let mut recent = failures.iter().filter(is_recent).peekable();
        if recent.peek().is_none() {
            return 0;
        }
        let process = process();
        let (mut own, mut was_woken) = (None, false);
        for failure in recent {
            match failure.process == process {
                true => own = own.max(Some(failure.repetitions + 1)),
                false => was_woken |= now - failure.at < WOKEN_WITHIN,
            }
        }
        match own {
            Some(count) if count > MOST_REPETITIONS => 0,
            Some(count) => count,
            None => u8::from(was_woken),
        }
    }

    /// Notes that bytes of `range` came.
    fn succeeded(&self, range: &Range<StreamOffset>) {
        *self.refused.lock() = None;
        let mut failures = self.failures.lock();
        failures.retain(|failure| !failure.overlaps(range));
    }

    fn refused(&self, now: Instant) {
        *self.refused.lock() = Some(now);
    }

    fn is_refused(&self, now: Instant) -> bool {
        self.refused.lock().is_some_and(|at| now - at < REFUSAL_COUNTS_FOR)
    }
}

impl Layer {
    /// Repeats `attempt`, which reads `range` for the thread `reader`. Ends when an attempt succeeds, when the
    /// deadline passes, or at an error that waiting does not mend. Without a deadline it may wait for ever.
    ///
    /// # Errors
    /// [`GaveUp`]. A repetition by the kernel of a request that has just failed gets its error after a second at
    /// most.
    pub async fn persist<T, Attempt>(
        &self,
        range: Range<StreamOffset>,
        reader: u32,
        deadline: Option<Duration>,
        mut attempt: impl FnMut() -> Attempt,
    ) -> Result<T, GaveUp>
    where
        Attempt: Future<Output = Result<T, FetchError>>,
    {
        let (outage, history) = (&self.inner.outage, &self.inner.history);
        let now = Instant::now();
        let repetitions = outage.repetitions(&range, now, || process_of(reader));
        let is_repeated = repetitions > 0;
        let limit = match (deadline, is_repeated) {
            (deadline, true) => Some(deadline.unwrap_or(Duration::MAX).min(DEADLINE_OF_REPEATED)),
            (deadline, false) => deadline,
        };
        let mut pauses = Pauses::new(is_repeated || outage.is_refused(now));
        let mut last = None;
        let persisting = async {
            let mut ran = Stopwatch::start();
            loop {
                let error = match attempt().await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => error,
                };
                let Some(pause) = pauses.after(&error, ran.look()) else { return Err(error) };
                let layer = self.inner.spec.blob.digest;
                tracing::debug!(%layer, %error, ?pause, "a reader's bytes are asked for again");
                last = Some(Box::new(error));
                // The stopwatch counts only while it is looked at once a second.
                let end = ran.look() + pause;
                ran.reach(end).await;
            }
        };
        let persisted = match limit {
            Some(limit) => running_time::timeout(limit, persisting).await.ok(),
            None => Some(persisting.await),
        };
        let gave_up = match persisted {
            Some(Ok(bytes)) => {
                history.waited(range.clone(), reader, now.elapsed(), None);
                outage.succeeded(&range);
                return Ok(bytes);
            }
            Some(Err(error)) => GaveUp::Failed(error),
            None => GaveUp::Deadline { deadline: deadline.or(limit).unwrap_or_default(), last },
        };
        history.waited(range.clone(), reader, now.elapsed(), Some(&gave_up));
        let now = Instant::now();
        if matches!(&gave_up, GaveUp::Failed(error) if hope(error) == Hope::Refused) {
            outage.refused(now);
        }
        let process = process_of(reader);
        outage.failed(Failure { range, at: now, process, repetitions });
        Err(gave_up)
    }
}

/// The prospects of a reader who waits after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hope {
    /// The source may be back, or send a right answer, at any time.
    Passing {
        /// The pause that the source asks for.
        asked: Option<Duration>,
    },
    /// The source refuses. It may be starting, or the credentials are being renewed.
    Refused,
    /// Waiting does not mend the error.
    Final,
}

fn hope(error: &FetchError) -> Hope {
    match error {
        FetchError::Source(error) => match error {
            SourceError::Throttled { retry_after, .. } => Hope::Passing { asked: *retry_after },
            SourceError::Unavailable { .. }
            | SourceError::Protocol { .. }
            | SourceError::Untrusted { .. } => Hope::Passing { asked: None },
            SourceError::NotFound { .. }
            | SourceError::Unauthorized { .. }
            | SourceError::Changed { .. } => Hope::Refused,
            SourceError::DigestMismatch { .. }
            | SourceError::Io { .. }
            | SourceError::Configuration { .. } => Hope::Final,
        },
        FetchError::Thrashing(_) => Hope::Passing { asked: None },
        FetchError::Cache(_)
        | FetchError::Poisoned { .. }
        | FetchError::Malformed { .. }
        | FetchError::NotKept { .. }
        | FetchError::LargeWindow(_) => Hope::Final,
    }
}

/// The pauses between the attempts of one reader. Pure but for their jitter.
struct Pauses {
    backoff: ExponentialBackoff,
    /// Whether the first refusal counts.
    is_refusal_known: bool,
    refusals: u32,
    /// The time of the first refusal of the present row.
    first_refusal: Duration,
}

impl Pauses {
    fn new(is_refusal_known: bool) -> Self {
        let backoff = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .without_max_times()
            .build();
        Self { backoff, is_refusal_known, refusals: 0, first_refusal: Duration::ZERO }
    }

    /// The pause after `error`, for a reader that has waited for `waited`; `None` to give up.
    fn after(&mut self, error: &FetchError, waited: Duration) -> Option<Duration> {
        let asked = match hope(error) {
            Hope::Final => return None,
            Hope::Refused => {
                self.refusals += 1;
                if self.refusals == 1 {
                    self.first_refusal = waited;
                }
                let is_confirmed = self.refusals >= LEAST_REFUSALS
                    && waited.saturating_sub(self.first_refusal) >= REFUSED_FOR;
                if self.is_refusal_known || is_confirmed {
                    return None;
                }
                None
            }
            Hope::Passing { asked } => {
                self.refusals = 0;
                asked
            }
        };
        // The jitter adds to the longest pause.
        let own = self.backoff.next().unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
        Some(own.max(asked.unwrap_or_default().min(LONGEST_ASKED_PAUSE)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Digest;

    fn unavailable() -> FetchError {
        SourceError::Unavailable { place: "p".into(), detail: "d".into() }.into()
    }

    fn throttled(seconds: u64) -> FetchError {
        let retry_after = Some(Duration::from_secs(seconds));
        SourceError::Throttled { place: "p".into(), retry_after }.into()
    }

    fn refusal() -> FetchError {
        SourceError::NotFound { what: "w".into(), place: "p".into(), hint: "h".into() }.into()
    }

    fn odd() -> FetchError {
        SourceError::Protocol { place: "p".into(), detail: "416".into() }.into()
    }

    fn poisoned() -> FetchError {
        let (expected, got) = (Digest::of(b"a"), Digest::of(b"b"));
        FetchError::Poisoned { expected, got }
    }

    fn range(start: u64, end: u64) -> Range<StreamOffset> {
        StreamOffset(start)..StreamOffset(end)
    }

    /// How long a reader without a deadline waits for a source that always fails with `error`.
    fn waited_for(error: &FetchError, is_refusal_known: bool, most: Duration) -> Duration {
        let mut pauses = Pauses::new(is_refusal_known);
        let mut waited = Duration::ZERO;
        while waited < most {
            match pauses.after(error, waited) {
                Some(pause) => waited += pause,
                None => break,
            }
        }
        waited
    }

    #[test]
    fn a_source_that_may_come_back_is_asked_for_ever() {
        let day = Duration::from_secs(24 * 3600);
        for error in [unavailable(), odd(), throttled(100)] {
            assert!(waited_for(&error, false, day) >= day, "{error}");
            assert!(waited_for(&error, true, day) >= day, "{error}");
        }
    }

    #[test]
    fn a_refusal_is_heard_of_when_it_was_confirmed_and_then_at_once() {
        let most = Duration::from_secs(3600);
        let waited = waited_for(&refusal(), false, most);
        assert!(waited >= REFUSED_FOR && waited <= 3 * REFUSED_FOR, "{waited:?}");
        assert_eq!(waited_for(&refusal(), true, most), Duration::ZERO);
        assert_eq!(waited_for(&poisoned(), false, most), Duration::ZERO);
    }

    proptest! {
        /// Recovery is noticed within seconds, whatever failed before, and no source gets requests without a pause.
        #[test]
        fn pauses_are_bounded_from_both_sides(
            failures in prop::collection::vec((0..4u8, 0..1_000u64), 1..60),
        ) {
            let mut pauses = Pauses::new(false);
            let mut waited = Duration::ZERO;
            let mut refused_since = None;
            for (kind, seconds) in failures {
                let error = match kind {
                    0 => unavailable(),
                    1 => odd(),
                    2 => throttled(seconds),
                    _ => refusal(),
                };
                match kind {
                    3 => refused_since = refused_since.or(Some(waited)),
                    _ => refused_since = None,
                }
                let Some(pause) = pauses.after(&error, waited) else {
                    let since = refused_since.expect("only a refusal ends it");
                    prop_assert!(waited - since >= REFUSED_FOR);
                    return Ok(());
                };
                prop_assert!(pause >= FIRST_PAUSE && pause <= LONGEST_ASKED_PAUSE, "{pause:?}");
                prop_assert!(kind == 2 || pause <= LONGEST_PAUSE, "{pause:?}");
                waited += pause;
            }
        }

        /// A request repeats a failed request of its process for two seconds, where both share a byte. It repeats a
        /// failed request of another process for a moment.
        #[test]
        fn a_request_is_a_repetition_where_it_shares_bytes_with_a_recent_failure(
            failures in prop::collection::vec((0..40u64, 1..9u64, 0..4_000u64, 1..3u32), 0..20),
            (start, length, own) in (0..40u64, 1..9u64, 1..3u32),
        ) {
            let outage = Outage::default();
            let begin = Instant::now();
            let mut failures = failures;
            failures.sort_by_key(|failure| failure.2);
            for &(start, length, at_ms, process) in &failures {
                let (range, at) = (range(start, start + length), begin + Duration::from_millis(at_ms));
                outage.failed(Failure { range, at, process, repetitions: 0 });
            }
            let now_ms = 4_000;
            let expected = failures.iter().any(|&(failed, failed_length, at_ms, process)| {
                now_ms - at_ms < if process == own { 2_000 } else { 250 }
                    && failed < start + length
                    && start < failed + failed_length
            });
            let now = begin + Duration::from_millis(now_ms);
            let repetitions = outage.repetitions(&range(start, start + length), now, || own);
            prop_assert_eq!(repetitions, u8::from(expected));
        }
    }

    /// After three repetitions, a request comes from the program, and has the whole deadline.
    #[test]
    fn a_program_that_tries_for_ever_has_its_whole_deadline_now_and_then() {
        let (outage, now) = (Outage::default(), Instant::now());
        let mut seen = Vec::new();
        for _ in 0..10 {
            let repetitions = outage.repetitions(&range(0, 1), now, || 1);
            outage.failed(Failure { range: range(0, 1), at: now, process: 1, repetitions });
            seen.push(repetitions);
        }
        assert_eq!(seen, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]);
    }

    #[test]
    fn failures_are_forgotten_when_bytes_come_and_never_too_many() {
        let outage = Outage::default();
        let now = Instant::now();
        for at in 0..3 * MOST_FAILURES as u64 {
            outage.failed(Failure {
                range: range(at, at + 1),
                at: now,
                process: 1,
                repetitions: 0,
            });
        }
        assert_eq!(outage.failures.lock().len(), MOST_FAILURES);
        outage.refused(now);
        assert!(outage.is_refused(now) && !outage.is_refused(now + REFUSAL_COUNTS_FOR));
        outage.succeeded(&range(0, u64::MAX));
        assert!(outage.failures.lock().is_empty() && !outage.is_refused(now));
    }
}
