//! The quiet moments in which background work may begin.

use std::sync::Arc;
use std::time::Duration;

use crate::fetch::Fetcher;
use crate::process::running_time;

/// The interval between two looks at readers: short for a person, and long for a processor.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait between two looks: what a daemon that was frozen meanwhile counts for at most.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The quiet that one mount waits for: no reader of any mount waits for bytes.
pub(super) struct Quiet {
    fetcher: Arc<Fetcher>,
    /// How long no reader must have waited.
    wanted: Duration,
}

impl Quiet {
    pub(super) fn new(fetcher: Arc<Fetcher>, wanted: Duration) -> Self {
        Self { fetcher, wanted }
    }

    /// Whether a reader waits, or did a moment ago.
    pub(super) fn is_over(&self) -> bool {
        let lasted = self.fetcher.quiet_for();
        lasted < self.wanted || lasted.is_zero()
    }

    /// Waits until it has been quiet for long enough, counted from now on and in time that this process
    /// ran: a daemon that was quiet before, or frozen, waits all the same.
    pub(super) async fn wait(&self) {
        let mut lasted = Duration::ZERO;
        while lasted < self.wanted || self.fetcher.quiet_for().is_zero() {
            let step = (self.wanted.saturating_sub(lasted)).clamp(SHORTEST_WAIT, LONGEST_WAIT);
            running_time::sleep(step).await;
            lasted = (lasted + step).min(self.fetcher.quiet_for());
        }
    }
}
