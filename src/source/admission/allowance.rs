//! The number of requests that a host takes at once, learnt from its answers. Pure: time is an argument.
//!
//! ```text
//!          each answer: +1                      each round of answers: +1
//! start (8) -----------------> ... --refusal--> half, at least 1 --------> ... up to the most
//!                                      ^                                |
//!                                      '-----------refusal--------------'
//! ```
//!
//! A refusal is a 429, or a 503 that says when to come back. As in TCP, the limit rises fast until the first
//! refusal, and slowly after it (RFC 5681, 3.1). A host that has never refused is probably far from its bound; a
//! host that has refused is near it.
//!
//! Invariants:
//! - The limit is at least 1 and at most what was configured.
//! - A request that was sent before a cut neither cuts nor raises the limit. So eight refusals at the same time are
//!   one cut, not eight.
//! - `Retry-After` pauses all requests to the host, not only the refused one.

use std::time::{Duration, Instant};

/// The limit of a host that has not answered yet.
///
/// 8: with ranges of a few MiB, they fill 1 Gbit/s at a round trip of 20 ms. A browser opens about as many
/// connections to a host, so no registry takes them for an attack.
const START: usize = 8;

/// The number of requests that a host gets at once.
#[derive(Debug)]
pub(super) struct Allowance {
    most: usize,
    limit: usize,
    /// Answers towards the next rise.
    answers: usize,
    /// The moment at which the limit was last halved.
    cut: Option<Instant>,
    /// The moment from which requests may be sent again.
    resume: Option<Instant>,
}

impl Allowance {
    /// A limit of at most `most`; 0 counts as 1.
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, limit: START.min(most), answers: 0, cut: None, resume: None }
    }

    /// The present limit.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The limit after the first refusal, or the configured limit before it.
    pub(super) fn ceiling(&self) -> usize {
        if self.cut.is_some() { self.limit } else { self.most }
    }

    /// The end of the pause that the host has asked for; `None` when it is over.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.resume.filter(|&resume| resume > now)
    }

    /// The end of the last pause, over or not.
    pub(super) fn last_pause(&self) -> Option<Instant> {
        self.resume
    }

    /// The host has answered a request that was sent at `sent`.
    pub(super) fn accepted(&mut self, sent: Instant) {
        if self.is_old(sent) {
            return;
        }
        self.answers += 1;
        let round = if self.cut.is_none() { 1 } else { self.limit };
        if self.answers >= round {
            self.answers = 0;
            self.limit = (self.limit + 1).min(self.most);
        }
    }

    /// The host has refused a request that was sent at `sent`, and wants no others for `pause`.
    pub(super) fn refused(&mut self, sent: Instant, now: Instant, pause: Option<Duration>) {
        let resume = pause.and_then(|pause| now.checked_add(pause));
        self.resume = self.resume.max(resume);
        if !self.is_old(sent) {
            self.limit = (self.limit / 2).max(1);
            self.answers = 0;
            self.cut = Some(now);
        }
    }

    /// Whether a request of that time was sent under an earlier limit. Its answer does not change this one.
    fn is_old(&self, sent: Instant) -> bool {
        self.cut.is_some_and(|cut| sent <= cut)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_limit_doubles_in_a_round_until_the_first_refusal_and_rises_by_one_after_it() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(64);
        assert_eq!(allowance.limit(), 8);
        (0..8).for_each(|_| allowance.accepted(begin));
        assert_eq!((allowance.limit(), allowance.ceiling()), (16, 64));
        allowance.refused(begin, begin, None);
        assert_eq!((allowance.limit(), allowance.ceiling()), (8, 8));
        (0..7).for_each(|_| allowance.accepted(begin + SECOND));
        assert_eq!(allowance.limit(), 8);
        allowance.accepted(begin + SECOND);
        assert_eq!(allowance.limit(), 9);
    }

    #[test]
    fn eight_refusals_of_one_moment_halve_the_limit_once() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(16);
        for late in 0..8 {
            allowance.refused(begin, begin + SECOND * late, Some(SECOND));
        }
        assert_eq!(allowance.limit(), 4);
        // Each answer says when to come back, and the last one counts.
        assert_eq!(allowance.paused_until(begin), Some(begin + SECOND * 8));
        assert_eq!(allowance.paused_until(begin + SECOND * 8), None);
    }

    #[test]
    fn a_shorter_pause_does_not_end_a_longer_one() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(16);
        allowance.refused(begin, begin, Some(SECOND * 9));
        allowance.refused(begin, begin, Some(SECOND));
        allowance.refused(begin, begin, None);
        allowance.accepted(begin + SECOND);
        assert_eq!(allowance.paused_until(begin), Some(begin + SECOND * 9));
    }

    proptest! {
        #[test]
        fn the_limit_stays_in_its_bounds_and_moves_by_one_or_to_the_half(
            most in 0usize..40,
            // Whether a request was refused, the time of its answer, and the pause of the host.
            answers in prop::collection::vec((any::<bool>(), 0u64..50, prop::option::of(0u64..50)), 0..200),
        ) {
            let begin = Instant::now();
            let mut allowance = Allowance::new(most);
            let mut cut = None;
            for (step, (is_refused, took, pause)) in answers.into_iter().enumerate() {
                let now = begin + Duration::from_millis(50 + step as u64 * 7);
                let sent = now - Duration::from_millis(took);
                let before = allowance.limit();
                if is_refused {
                    let pause = pause.map(Duration::from_millis);
                    allowance.refused(sent, now, pause);
                    prop_assert!(pause.is_none_or(|pause| allowance.last_pause() >= Some(now + pause)));
                } else {
                    allowance.accepted(sent);
                }
                let after = allowance.limit();
                prop_assert!((1..=most.max(1)).contains(&after));
                if cut.is_some_and(|cut| sent <= cut) {
                    prop_assert_eq!(after, before, "a request of an earlier limit says nothing");
                } else if is_refused {
                    prop_assert_eq!(after, (before / 2).max(1));
                    cut = Some(now);
                } else {
                    prop_assert!(after == before || after == before + 1);
                }
            }
        }

        #[test]
        fn the_limit_recovers(most in 1usize..40, refusals in 1u32..8) {
            let begin = Instant::now();
            let mut allowance = Allowance::new(most);
            for step in 0..refusals {
                allowance.refused(begin + SECOND * step, begin + SECOND * step, None);
            }
            (0..most * most).for_each(|_| allowance.accepted(begin + SECOND * 100));
            prop_assert_eq!(allowance.limit(), most);
        }
    }
}
