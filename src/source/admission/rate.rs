//! The most bytes and requests in a second that a user allows for a host. Pure: time is an argument.
//!
//! ```text
//! paid: the time at which all that was taken so far is paid for, at the rate
//!   take(amount): paid = max(paid, now - BURST) + amount / rate
//!   free:         paid <= now
//! ```
//!
//! This is the generic cell rate algorithm (ITU-T I.371): one number for each bucket, and no timer. An idle host
//! may get the amount of one second at once. In T seconds, a host gets at most `rate * (T + 1)`, and the last
//! amount more.

use std::time::{Duration, Instant};

/// The time whose amount may be taken at once. 1 s: the unit in which users count.
const BURST: Duration = Duration::from_secs(1);

/// The limits of a user for a host, in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes of bodies; `None` without a limit.
    pub bytes_per_second: Option<u64>,
    /// Requests; `None` without a limit.
    pub requests_per_second: Option<u64>,
}

/// The amount that was taken of one kind: bytes or requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_second: u64,
    paid: Option<Instant>,
}

impl Bucket {
    /// A bucket from which nothing was taken; 0 in a second counts as 1.
    pub(super) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), paid: None }
    }

    /// Sets another rate for the same host. The taken amount still counts.
    pub(super) fn set(bucket: &mut Option<Self>, per_second: Option<u64>) {
        *bucket = per_second.map(|per_second| Self {
            paid: bucket.and_then(|bucket| bucket.paid),
            ..Self::new(per_second)
        });
    }

    /// Takes an amount, free or not.
    pub(super) fn take(&mut self, amount: u64, now: Instant) {
        let idle = now.checked_sub(BURST).unwrap_or(now);
        let begin = self.paid.map_or(idle, |paid| paid.max(idle));
        let time = Duration::from_secs_f64(amount as f64 / self.per_second as f64);
        self.paid = begin.checked_add(time).or(Some(begin));
    }

    /// The time from which more may be taken; `None` where that is now.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.paid.filter(|&paid| paid > now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_second_is_free_at_first_and_then_each_second_brings_the_rate() {
        let begin = Instant::now();
        let mut bucket = Bucket::new(10);
        (0..10).for_each(|_| bucket.take(1, begin));
        assert_eq!(bucket.due(begin), None);
        bucket.take(1, begin);
        assert_eq!(bucket.due(begin), Some(begin + SECOND / 10));
        bucket.take(20, begin);
        assert_eq!(bucket.due(begin), Some(begin + SECOND * 21 / 10));
        assert_eq!(bucket.due(begin + SECOND * 3), None);
    }

    #[test]
    fn another_rate_forgets_nothing() {
        let begin = Instant::now();
        let mut bucket = Some(Bucket::new(10));
        bucket.as_mut().unwrap().take(30, begin);
        Bucket::set(&mut bucket, Some(1000));
        assert!(bucket.unwrap().due(begin).is_some());
        Bucket::set(&mut bucket, None);
        assert!(bucket.is_none());
    }

    proptest! {
        #[test]
        fn no_time_gets_more_than_the_rate_and_one_second(
            per_second in 1u64..1000,
            steps in proptest::collection::vec((0u64..2000, 1u64..100), 1..60),
        ) {
            let begin = Instant::now() + SECOND;
            let (mut bucket, mut now, mut taken) = (Bucket::new(per_second), begin, Vec::new());
            for (wait_ms, amount) in steps {
                now += Duration::from_millis(wait_ms);
                if bucket.due(now).is_none() {
                    bucket.take(amount, now);
                    taken.push((now, amount));
                }
            }
            for (from, (since, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (until, amount) in &taken[from..] {
                    // The last amount is taken as a whole once the rate permits a part of it.
                    let allowed = per_second as f64 * ((*until - *since).as_secs_f64() + 1.001);
                    prop_assert!(sum as f64 <= allowed, "{sum} of {allowed}");
                    sum += amount;
                }
            }
        }

        #[test]
        fn a_taken_amount_is_free_again_in_time(per_second in 1u64..1_000_000, amount in 0u64..1_000_000) {
            let begin = Instant::now() + SECOND;
            let mut bucket = Bucket::new(per_second);
            bucket.take(amount, begin);
            let time = Duration::from_secs_f64(amount as f64 / per_second as f64 + 0.001);
            prop_assert_eq!(bucket.due(begin + time), None);
        }
    }
}
