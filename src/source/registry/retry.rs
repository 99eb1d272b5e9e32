//! Which failures pass by themselves, and how long to wait for that.
//!
//! Everything kitfs asks of a registry is a GET of content that does not change (or a token), so
//! every request may be repeated. Repetition happens in one place, above authentication,
//! redirects and ranges; a token request has repetitions of its own, and its failure is final.

use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;

use super::errand::Errand;
use super::timing::Timing;
use crate::source::SourceError;

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The same request may succeed a little later.
    Transient {
        error: SourceError,
        /// How long the other side asks to wait.
        retry_after: Option<Duration>,
    },
    /// Nobody listens there, or the way is blocked; that may change, too.
    Unreachable(SourceError),
    /// It will not.
    Final(SourceError),
}

impl Failure {
    /// A failure that may pass, of which the other side said nothing.
    pub(super) fn transient(error: SourceError) -> Self {
        Self::Transient { error, retry_after: None }
    }

    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Unreachable(_))
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

/// Repeats `attempt` while its failures may pass, within the bounds of `timing`. What its errand
/// waits in line does not count.
pub(super) async fn with_retries<T, Attempt, Future>(
    timing: &Timing,
    errand: &Errand,
    attempt: Attempt,
) -> Result<T, SourceError>
where
    Attempt: FnMut() -> Future,
    Future: std::future::Future<Output = Result<T, Failure>>,
{
    let backoff = ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(timing.backoff_min)
        .with_max_delay(timing.backoff_max)
        .with_max_times(timing.retries);
    let started = Instant::now();
    let mut waited = Duration::ZERO;
    attempt
        .retry(backoff)
        .when(Failure::is_transient)
        .adjust(|failure, delay| {
            let elapsed = started.elapsed().saturating_sub(errand.in_line());
            let wait = next_wait(timing, failure, delay?, waited, elapsed)?;
            waited += wait;
            Some(wait)
        })
        .notify(|failure, wait| {
            if let Failure::Transient { error, .. } | Failure::Unreachable(error) = failure {
                tracing::info!(%error, ?wait, "asking again");
            }
        })
        .await
        .map_err(Failure::into_error)
}

/// How long to wait after `failure`, where `delay` is our own idea, `waited` was waited before, and
/// all of it has taken `elapsed`; `None` to give up.
fn next_wait(
    timing: &Timing,
    failure: &Failure,
    delay: Duration,
    waited: Duration,
    elapsed: Duration,
) -> Option<Duration> {
    let asked = match failure {
        Failure::Transient { retry_after, .. } => retry_after.unwrap_or_default(),
        Failure::Unreachable(_) => {
            return (waited + delay <= timing.unreachable_total).then_some(delay);
        }
        Failure::Final(_) => return None,
    };
    if asked > timing.retry_after_max {
        return None;
    }
    let wait = delay.max(asked);
    (elapsed + wait <= timing.retry_total).then_some(wait)
}

/// How long a `Retry-After` header asks to wait (RFC 9110, 10.2.3): seconds, or an HTTP date.
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

    fn unavailable() -> SourceError {
        SourceError::Unavailable { place: "p".into(), detail: "d".into() }
    }

    fn asking(seconds: u64) -> Failure {
        let retry_after = Some(Duration::from_secs(seconds));
        Failure::Transient { error: unavailable(), retry_after }
    }

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn the_longer_of_the_two_waits_counts() {
        let timing = Timing::default();
        let (short, long) = (Duration::from_millis(200), Duration::from_secs(3));
        let failure = Failure::transient(unavailable());
        assert_eq!(next_wait(&timing, &failure, short, NONE, NONE), Some(short));
        assert_eq!(next_wait(&timing, &asking(3), short, NONE, NONE), Some(long));
        assert_eq!(next_wait(&timing, &asking(1), long, NONE, NONE), Some(long));
    }

    #[test]
    fn who_asks_for_too_much_gets_no_repetition() {
        let timing = Timing::default();
        assert_eq!(next_wait(&timing, &asking(31), NONE, NONE, NONE), None);
        assert_eq!(next_wait(&timing, &asking(30), NONE, NONE, Duration::from_secs(31)), None);
        assert_eq!(next_wait(&timing, &Failure::Final(unavailable()), NONE, NONE, NONE), None);
    }

    #[test]
    fn who_never_answers_is_given_up_though_nothing_was_waited_between() {
        let failure = Failure::transient(unavailable());
        assert_eq!(
            next_wait(&Timing::default(), &failure, NONE, NONE, Duration::from_secs(61)),
            None
        );
    }

    #[test]
    fn a_command_waits_a_second_for_a_host_that_is_not_there_and_a_reader_ten() {
        let failure = Failure::Unreachable(unavailable());
        let (delay, waited) = (Duration::from_millis(400), Duration::from_millis(700));
        let reader = Timing::default();
        assert_eq!(next_wait(&reader, &failure, delay, waited, NONE), Some(delay));
        assert_eq!(next_wait(&reader, &failure, delay, Duration::from_secs(10), NONE), None);
        assert_eq!(next_wait(&reader.of_a_command(), &failure, delay, waited, NONE), None);
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
        let result: Result<(), _> = with_retries(&timing, &Errand::on_demand(), || async {
            attempts.set(attempts.get() + 1);
            Err(Failure::transient(unavailable()))
        })
        .await;
        assert!(matches!(result, Err(SourceError::Unavailable { .. })));
        assert_eq!(attempts.get(), 6);
    }
}
