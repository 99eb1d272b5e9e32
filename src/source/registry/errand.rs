//! The purpose of a request, shared by all of its attempts: retries, redirects, other endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::source::Urgency;
use crate::source::admission::UserId;
use crate::source::sending::Content;

/// The urgency of a request, and the time that its attempts have waited in the queue.
///
/// The time in the queue is no fault of the host, and can be long for background work. So `retry` does not count
/// it.
pub(super) struct Errand {
    urgency: Urgency,
    queued_us: AtomicU64,
    has_others: AtomicBool,
    /// The content that is sent.
    content: Option<Arc<Content>>,
}

impl Errand {
    pub(super) fn new(urgency: Urgency) -> Self {
        Self {
            urgency,
            queued_us: AtomicU64::new(0),
            has_others: AtomicBool::new(false),
            content: None,
        }
    }

    /// For requests that open a kit or list a repository: manifests, tags.
    pub(super) fn opening(user: UserId) -> Self {
        Self::new(Urgency::opening().of_user(user))
    }

    /// For requests that send a blob. They are as patient as those that open a kit, and have time as long as bytes
    /// move.
    pub(super) fn sending(user: UserId, content: Arc<Content>) -> Self {
        Self { content: Some(content), ..Self::opening(user) }
    }

    /// A number that changes while the content moves; `None` while it waits for its source. Without a content, the
    /// number never changes.
    pub(super) fn pulse(&self) -> Option<u64> {
        self.content.as_ref().map_or(Some(0), |content| content.pulse())
    }

    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    pub(super) fn is_patient(&self) -> bool {
        self.urgency.is_patient()
    }

    /// Whether there is another endpoint. A reader then does not wait for a silent one.
    pub(super) fn has_others(&self) -> bool {
        self.has_others.load(Ordering::Relaxed)
    }

    pub(super) fn set_others(&self, has_others: bool) {
        self.has_others.store(has_others, Ordering::Relaxed);
    }

    /// The time for which its attempts have waited for slots.
    pub(super) fn queued(&self) -> Duration {
        Duration::from_micros(self.queued_us.load(Ordering::Relaxed))
    }

    /// An attempt has waited for a slot.
    pub(super) fn has_queued(&self, time: Duration) {
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.queued_us.fetch_add(time_us, Ordering::Relaxed);
    }
}
