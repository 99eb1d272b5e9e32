//! The reads whose traces were lost, until a warning tells of them.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The interval between two warnings: a collector that is away for a day costs a page of the log.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The losses since the last warning.
#[derive(Debug, Default)]
pub(super) struct Losses {
    reads: u64,
    /// The newest reason.
    why: String,
    /// The time of the last warning.
    warned: Option<Instant>,
}

impl Losses {
    /// Notes that the traces of `reads` were lost.
    pub(super) fn note(&mut self, reads: u64, why: &dyn Display) {
        if reads > 0 {
            self.reads += reads;
            self.why = why.to_string();
        }
    }

    /// The losses and their newest reason, where a warning is due. The caller warns.
    pub(super) fn due(&mut self, now: Instant) -> Option<(u64, String)> {
        if self.warned.is_some_and(|warned| now - warned < WARNING_INTERVAL) {
            return None;
        }
        let lost = self.rest()?;
        self.warned = Some(now);
        Some(lost)
    }

    /// The same at the end, when no later warning comes.
    pub(super) fn rest(&mut self) -> Option<(u64, String)> {
        let reads = std::mem::take(&mut self.reads);
        (reads > 0).then(|| (reads, std::mem::take(&mut self.why)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_loss_is_told_once_and_warnings_keep_their_distance(
            losses in prop::collection::vec((0..5u64, 0..40u64), 0..60),
        ) {
            let (mut now, mut noted, mut told) = (Instant::now(), 0, 0);
            let mut last: Option<Instant> = None;
            let mut state = Losses::default();
            for (index, (reads, seconds)) in losses.into_iter().enumerate() {
                now += Duration::from_secs(seconds);
                let may_warn = last.is_none_or(|last| now - last >= WARNING_INTERVAL);
                state.note(reads, &index);
                noted += reads;
                let warning = state.due(now);
                // A loss is told as soon as a warning may come.
                prop_assert_eq!(warning.is_some(), may_warn && noted > told);
                if let Some((count, why)) = warning {
                    prop_assert!(reads == 0 || why == index.to_string());
                    told += count;
                    last = Some(now);
                }
            }
            told += state.rest().map_or(0, |(count, _)| count);
            prop_assert_eq!((told, state.rest()), (noted, None));
        }
    }
}
