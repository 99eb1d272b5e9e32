//! Why bytes are fetched, and who goes first.
//!
//! The order is that of design.md 8: a reader that waits, what a reader's pattern says it will
//! want next, what was asked for beforehand, and the rest of the kit in the background.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::Notify;

/// Why bytes are fetched; later ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// The rest of a kit, in the background.
    Hydrate,
    /// Asked for beforehand: tensors, traces, `kitfs warm`.
    Prefetch,
    /// A reader's pattern says that it comes next.
    Readahead,
    /// A reader waits.
    OnDemand,
}

impl Priority {
    /// All of them, the least urgent first.
    pub const ALL: [Self; 4] = [Self::Hydrate, Self::Prefetch, Self::Readahead, Self::OnDemand];

    /// The word for it in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hydrate => "hydrate",
            Self::Prefetch => "prefetch",
            Self::Readahead => "readahead",
            Self::OnDemand => "on_demand",
        }
    }
}

/// The priority of a request, shared by all who hold a clone. It can be raised while the request
/// waits or runs, because somebody began to wait for its bytes; it never falls.
#[derive(Clone, Debug)]
pub struct Urgency(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    priority: AtomicU8,
    is_in_the_way: AtomicBool,
    changed: Notify,
}

impl Urgency {
    /// A request that begins with this priority.
    pub fn new(priority: Priority) -> Self {
        Self(Arc::new(Shared {
            priority: AtomicU8::new(priority as u8),
            is_in_the_way: AtomicBool::new(false),
            changed: Notify::new(),
        }))
    }

    /// A request that somebody waits for from the start.
    pub fn on_demand() -> Self {
        Self::new(Priority::OnDemand)
    }

    /// The priority now.
    pub fn get(&self) -> Priority {
        Priority::ALL[usize::from(self.0.priority.load(Ordering::SeqCst))]
    }

    /// Raises the priority to at least `priority`.
    pub fn raise(&self, priority: Priority) {
        if self.0.priority.fetch_max(priority as u8, Ordering::SeqCst) < priority as u8 {
            self.0.changed.notify_waiters();
        }
    }

    /// Waits until the priority is above `priority`.
    pub(crate) async fn raised_above(&self, priority: Priority) {
        self.until(|| self.get() > priority).await;
    }

    /// Notes whether something more urgent waits for this request to end, because of what it holds.
    pub(crate) fn stands_in_the_way(&self, is_so: bool) {
        if !self.0.is_in_the_way.swap(is_so, Ordering::SeqCst) && is_so {
            self.0.changed.notify_waiters();
        }
    }

    /// Waits until the priority is above `priority`, or the request stands in the way.
    pub(crate) async fn hurried(&self, priority: Priority) {
        let is_in_the_way = || self.0.is_in_the_way.load(Ordering::SeqCst);
        self.until(|| self.get() > priority || is_in_the_way()).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // In line for the news before looking, so that none is missed between the two.
            changed.as_mut().enable();
            if is_so() {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_urgency_rises_for_all_who_share_it_and_never_falls() {
        let urgency = Urgency::new(Priority::Prefetch);
        let shared = urgency.clone();
        shared.raise(Priority::OnDemand);
        shared.raise(Priority::Hydrate);
        assert_eq!(urgency.get(), Priority::OnDemand);
    }

    #[tokio::test]
    async fn who_waits_for_a_raise_is_told_of_it() {
        let urgency = Urgency::new(Priority::Hydrate);
        let mut raised = Box::pin(urgency.raised_above(Priority::Prefetch));
        assert!(futures_util::poll!(&mut raised).is_pending());
        urgency.raise(Priority::Prefetch);
        assert!(futures_util::poll!(&mut raised).is_pending());
        urgency.raise(Priority::Readahead);
        raised.await;
        urgency.raised_above(Priority::Prefetch).await;
    }

    #[tokio::test]
    async fn who_stands_in_the_way_is_hurried_for_as_long_as_it_does() {
        let urgency = Urgency::new(Priority::Hydrate);
        let mut hurried = Box::pin(urgency.hurried(Priority::Hydrate));
        assert!(futures_util::poll!(&mut hurried).is_pending());
        urgency.stands_in_the_way(true);
        hurried.await;
        urgency.stands_in_the_way(false);
        assert!(futures_util::poll!(Box::pin(urgency.hurried(Priority::Hydrate))).is_pending());
        assert_eq!(urgency.get(), Priority::Hydrate);
    }

    #[test]
    fn the_order_is_that_of_the_design() {
        assert!(Priority::ALL.is_sorted());
        assert_eq!(Priority::ALL.map(|priority| priority as u8), [0, 1, 2, 3]);
    }
}
