//! The quiet moments in which background work may begin.

use std::sync::Arc;
use std::time::Duration;

use super::deciding::QuietSpell;
use crate::fetch::Fetcher;
use crate::process::running_time;

/// The quiet that one mount waits for: no reader of any mount waits for bytes.
pub(super) struct Quiet {
    fetcher: Arc<Fetcher>,
    /// The time for which no reader must have waited.
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

    /// Waits until it has been quiet for long enough, counted from now on and in time that this process ran.
    pub(super) async fn wait(&self) {
        let mut spell = QuietSpell::new(self.wanted);
        while let Some(wait) = spell.next_wait(self.fetcher.quiet_for()) {
            running_time::sleep(wait).await;
            spell.waited(wait, self.fetcher.quiet_for());
        }
    }
}
