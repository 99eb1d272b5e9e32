//! Limits the log of failed reads: the first few of each minute in full, the others as a count.
//!
//! Every read of a missing layer fails, and a program may try a million times. The first entries
//! have all the information; more entries would only fill the disk.

use std::time::{Duration, Instant};

/// The window of a count.
const WINDOW: Duration = Duration::from_secs(60);

/// Failures to log in full in a window. Ten show several files or reasons, and are an entry every six
/// seconds.
const MOST_IN_WINDOW: u64 = 10;

/// Decides which failures of a mount to log. Pure: the caller passes the time.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    started: Option<Instant>,
    failures: u64,
}

/// The decision about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Log the failure, and how many failures were left out since the last entry.
    Full { left_out: u64 },
    /// Log nothing.
    LeftOut,
}

impl FailureLog {
    /// Counts a failure, and decides whether to log it.
    pub(super) fn note(&mut self, now: Instant) -> Entry {
        let is_over = |started| now.saturating_duration_since(started) >= WINDOW;
        let mut left_out = 0;
        if self.started.is_none_or(is_over) {
            left_out = self.failures.saturating_sub(MOST_IN_WINDOW);
            *self = Self { started: Some(now), failures: 0 };
        }
        self.failures += 1;
        match self.failures <= MOST_IN_WINDOW {
            true => Entry::Full { left_out },
            false => Entry::LeftOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failures_of_a_window_are_logged_and_the_others_counted() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        for _ in 0..MOST_IN_WINDOW {
            assert_eq!(log.note(start), Entry::Full { left_out: 0 });
        }
        for _ in 0..1000 {
            assert_eq!(log.note(start + WINDOW / 2), Entry::LeftOut);
        }
        assert_eq!(log.note(start + WINDOW), Entry::Full { left_out: 1000 });
        assert_eq!(log.note(start + WINDOW), Entry::Full { left_out: 0 });
        assert_eq!(log.note(start + 3 * WINDOW), Entry::Full { left_out: 0 });
    }
}
