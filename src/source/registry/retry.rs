//! Which failures may pass, and how long to wait before a request is repeated.
//!
//! kitfs requests content that does not change, and tokens, so every request may be repeated. This happens in one
//! place, above authentication, redirects and ranges. A token request has retries of its own, and its failure is
//! final.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::RegistryClient;
use super::errand::Errand;
use super::timing::Timing;
use crate::process::running_time;
use crate::source::SourceError;

/// The failure of one attempt.
#[derive(Debug)]
pub(super) enum Failure {
    /// The same request may succeed a little later.
    Transient {
        error: SourceError,
        /// The wait that the host asks for.
        retry_after: Option<Duration>,
    },
    /// No connection can be made. That may change too.
    Unreachable(SourceError),
    /// The same request will fail again.
    Final(SourceError),
}

impl Failure {
    /// A failure that may pass, without a `Retry-After`.
    pub(super) fn transient(error: SourceError) -> Self {
        Self::Transient { error, retry_after: None }
    }

    pub(super) fn into_error(self) -> SourceError {
        match self {
            Self::Transient { error, .. } | Self::Unreachable(error) | Self::Final(error) => error,
        }
    }
}

impl From<SourceError> for Failure {
    /// Errors from elsewhere (credentials, tokens, settings) are final.
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

/// Whether a status means "not now" rather than "no".
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

impl RegistryClient {
    /// Repeats `attempt` while its failures may pass, within the bounds of `timing`, or with the patience of its
    /// errand. `host` is the host of its requests.
    pub(super) async fn repeat<T, Attempt, Future>(
        &self,
        timing: Timing,
        errand: &Errand,
        host: &str,
        mut attempt: Attempt,
    ) -> Result<T, SourceError>
    where
        Attempt: FnMut() -> Future,
        Future: std::future::Future<Output = Result<T, Failure>>,
    {
        let of = |is_patient: bool| if is_patient { timing.of_patience() } else { timing };
        let mut repeats = Repeats::new(of(errand.is_patient()), errand.is_patient());
        let mut ran = Duration::ZERO;
        loop {
            let (outcome, attempted) = running_time::timed(Box::pin(attempt())).await;
            ran += attempted;
            let failure = match outcome {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            // A reader may have begun to wait.
            let is_patient = errand.is_patient();
            (repeats.timing, repeats.is_patient) = (of(is_patient), is_patient);
            // The time in the queue is not the host's.
            let elapsed = ran.saturating_sub(errand.queued());
            let Some(wait) = repeats.next_wait(&failure, elapsed) else {
                return Err(failure.into_error());
            };
            if let Failure::Transient { error, .. } | Failure::Unreachable(error) = &failure {
                tracing::info!(%error, ?wait, "asking again");
                errand.urgency().note_retry();
            }
            let pause = running_time::timed(async {
                if is_patient {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => return,
                        () = errand.urgency().until_impatient() => {}
                    }
                }
                tokio::time::sleep(wait.min(timing.retry_after_max)).await;
            });
            let ((), paused) =
                if is_patient { self.silences.watch(host, pause).await } else { pause.await };
            ran += paused;
        }
    }
}

/// The retries of one request. Pure but for the jitter of their waits.
pub(super) struct Repeats {
    timing: Timing,
    is_patient: bool,
    backoff: ExponentialBackoff,
    repeats: usize,
    /// The time without a connection so far.
    waited: Duration,
}

impl Repeats {
    pub(super) fn new(timing: Timing, is_patient: bool) -> Self {
        let backoff = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(timing.backoff_min)
            .with_max_delay(timing.backoff_max)
            .without_max_times()
            .build();
        Self { timing, is_patient, backoff, repeats: 0, waited: Duration::ZERO }
    }

    /// The wait after `failure`, when `elapsed` has passed since the first attempt; `None` to give up.
    pub(super) fn next_wait(&mut self, failure: &Failure, elapsed: Duration) -> Option<Duration> {
        let timing = self.timing;
        let asked = match failure {
            Failure::Transient { retry_after, .. } => *retry_after,
            Failure::Unreachable(_) => None,
            Failure::Final(_) => return None,
        };
        // `Retry-After` is obeyed any number of times, within the patience.
        if !(self.is_patient && asked.is_some()) {
            self.repeats += 1;
            if self.repeats > timing.retries {
                return None;
            }
        }
        // A waiting reader tries again earlier than the host wants. An opener gives up if the wait is longer than
        // its patience.
        let is_too_long =
            self.is_patient && asked.is_some_and(|asked| asked > timing.retry_after_max);
        let delay = self.backoff.next().unwrap_or(timing.backoff_max);
        let wait = delay.max(asked.unwrap_or_default().min(timing.retry_after_max));
        if matches!(failure, Failure::Unreachable(_)) {
            self.waited += wait;
            return (self.waited <= timing.unreachable_total).then_some(wait);
        }
        (!is_too_long && elapsed + wait <= timing.retry_total).then_some(wait)
    }
}

/// The wait that a `Retry-After` header asks for (RFC 9110, 10.2.3): seconds, or an HTTP date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::source::admission::UserId;
    use crate::source::registry::RegistryConfig;

    fn unavailable() -> SourceError {
        SourceError::Unavailable { place: "p".into(), detail: "d".into() }
    }

    fn asking(seconds: u64) -> Failure {
        let retry_after = Some(Duration::from_secs(seconds));
        Failure::Transient { error: unavailable(), retry_after }
    }

    const NONE: Duration = Duration::ZERO;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn reader() -> Repeats {
        Repeats::new(Timing::default(), false)
    }

    fn opener() -> Repeats {
        Repeats::new(Timing::default().of_patience(), true)
    }

    #[test]
    fn the_longer_of_the_two_waits_counts() {
        let timing = Timing::default();
        let own = reader().next_wait(&Failure::transient(unavailable()), NONE).unwrap();
        // The jitter adds up to as much again.
        assert!((timing.backoff_min..timing.backoff_min * 2).contains(&own), "{own:?}");
        assert_eq!(reader().next_wait(&asking(3), NONE), Some(seconds(3)));
        let zero = reader().next_wait(&asking(0), NONE).unwrap();
        assert!(zero >= timing.backoff_min, "{zero:?}");
    }

    #[test]
    fn a_reader_looks_again_after_ten_seconds_and_an_opener_waits_as_long_as_its_patience() {
        assert_eq!(reader().next_wait(&asking(10), NONE), Some(seconds(10)));
        assert_eq!(reader().next_wait(&asking(100), NONE), Some(seconds(10)));
        assert_eq!(reader().next_wait(&asking(u64::MAX), NONE), Some(seconds(10)));
        assert_eq!(reader().next_wait(&asking(10), seconds(51)), None);
        assert_eq!(opener().next_wait(&asking(100), NONE), Some(seconds(100)));
        assert_eq!(opener().next_wait(&asking(100), seconds(201)), None);
        assert_eq!(opener().next_wait(&asking(301), NONE), None);
        assert_eq!(opener().next_wait(&asking(u64::MAX), NONE), None);
        assert_eq!(opener().next_wait(&Failure::Final(unavailable()), NONE), None);
    }

    #[test]
    fn a_host_that_never_answers_is_given_up_though_nothing_was_waited_between() {
        let failure = Failure::transient(unavailable());
        assert_eq!(reader().next_wait(&failure, seconds(61)), None);
        assert_eq!(opener().next_wait(&failure, seconds(301)), None);
    }

    #[test]
    fn a_command_waits_a_second_for_a_host_that_is_not_there_and_a_reader_ten() {
        let waited = |timing: Timing| {
            let mut repeats = Repeats::new(Timing { retries: 100, ..timing }, false);
            let failure = Failure::Unreachable(unavailable());
            std::iter::from_fn(|| repeats.next_wait(&failure, NONE)).sum::<Duration>()
        };
        let [reader, command] = [Timing::default(), Timing::default().of_a_command()].map(waited);
        assert!(reader > seconds(1) && reader <= seconds(10), "{reader:?}");
        assert!(command <= seconds(1), "{command:?}");
    }

    #[test]
    fn an_opener_obeys_a_host_that_says_when_to_come_back_more_often_than_it_tries_by_itself() {
        let times = |mut repeats: Repeats, failure: Failure| {
            (0..50).take_while(|_| repeats.next_wait(&failure, NONE).is_some()).count()
        };
        let retries = Timing::default().retries;
        assert_eq!(times(reader(), asking(1)), retries);
        assert_eq!(times(opener(), asking(1)), 50);
        assert_eq!(times(opener(), Failure::transient(unavailable())), retries);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-24T18:00:00Z".parse().unwrap();
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        assert_eq!(parse("Tue, 24 Nov 2026 18:00:09 GMT"), Some(Duration::from_secs(9)));
        assert_eq!(parse("Tue, 24 Nov 2026 17:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("-1"), None);
    }

    #[tokio::test]
    async fn attempts_are_bounded() {
        let attempts = Cell::new(0);
        let timing = Timing { backoff_min: Duration::from_micros(10), ..Timing::default() };
        let client = RegistryClient::new(RegistryConfig::default()).unwrap();
        let errand = Errand::opening(UserId::default());
        let result: Result<(), _> = client
            .repeat(timing, &errand, "host", || async {
                attempts.set(attempts.get() + 1);
                Err(Failure::transient(unavailable()))
            })
            .await;
        assert!(matches!(result, Err(SourceError::Unavailable { .. })));
        assert_eq!(attempts.get(), 6);
    }
}
