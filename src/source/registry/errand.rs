//! What one question is asked for, over all its requests: retries, redirects, other endpoints.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::source::Urgency;

/// Why something is asked, and how long it has stood in line for that.
///
/// The time in line is our own doing, and can be long where bytes are wanted in the background: it
/// is no reason to give up on a host, so `retry` does not count it.
pub(super) struct Errand {
    urgency: Urgency,
    in_line_us: AtomicU64,
}

impl Errand {
    pub(super) fn new(urgency: Urgency) -> Self {
        Self { urgency, in_line_us: AtomicU64::new(0) }
    }

    /// Somebody waits for the answer: manifests, tags.
    pub(super) fn on_demand() -> Self {
        Self::new(Urgency::on_demand())
    }

    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// How long its requests have waited for permits.
    pub(super) fn in_line(&self) -> Duration {
        Duration::from_micros(self.in_line_us.load(Ordering::Relaxed))
    }

    /// One of its requests has waited for a permit.
    pub(super) fn has_waited(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.in_line_us.fetch_add(time_us, Ordering::Relaxed);
    }
}
