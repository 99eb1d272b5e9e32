//! How many failed reads are logged: the first few of each minute in full, the others as a count.
//!
//! Every read of a layer that cannot be had fails, and a program may try a million times. The
//! first lines say all there is to say; the rest would only fill the disk.

use std::time::{Duration, Instant};

/// How long a count goes on.
const WINDOW: Duration = Duration::from_secs(60);

/// Failures logged in a window: enough to see several files or reasons, a line every six seconds.
const MOST_IN_WINDOW: u64 = 10;

/// Which failures of a mount are logged. Pure: it is told the time.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    started: Option<Instant>,
    failures: u64,
}

/// What is to be logged of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The failure, and how many were left out since the last one that was logged.
    Full { left_out: u64 },
    /// Nothing.
    LeftOut,
}

impl FailureLog {
    /// Takes note of a failure.
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
