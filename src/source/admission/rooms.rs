//! The part of a host's limit that each priority may use.
//!
//! ```text
//! limit  |<----------------------- on demand ------------------------>|
//!        |<----------------- readahead ----------------->|  1 is left |
//!        |<-------- prefetch: a half ------->|
//!        |<- hydrate: 1/4 ->|
//! ```
//!
//! The rooms lie within one another: all background requests together hold half of the limit, not a half and a
//! quarter. So a reader finds a slot, unless other readers, or the readahead of a user who is behind, hold all
//! slots.

use crate::source::Priority;

/// The slots of `limit` that requests of this priority and of lower priorities may hold together.
fn room(limit: usize, priority: Priority) -> usize {
    match priority {
        Priority::Hydrate => limit / 4,
        Priority::Prefetch => limit / 2,
        Priority::Readahead => limit.saturating_sub(1),
        Priority::OnDemand => limit,
    }
}

/// The requests that run, counted by priority.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running([usize; Priority::ALL.len()]);

impl Running {
    pub(super) fn of(priorities: impl Iterator<Item = Priority>) -> Self {
        let mut running = Self::default();
        priorities.for_each(|priority| running.add(priority));
        running
    }

    pub(super) fn add(&mut self, priority: Priority) {
        self.0[priority as usize] += 1;
    }

    /// Whether `limit` has room for one more request of this priority. Each wider room, up to that of `widest`,
    /// must have room too. Where no such request runs, there is always room, so that a limit of 1 starves no
    /// priority.
    pub(super) fn has_room(&self, limit: usize, priority: Priority, widest: Priority) -> bool {
        let up_to = |kind: Priority| self.0[..=kind as usize].iter().sum::<usize>();
        let rooms = &Priority::ALL[priority as usize..=widest as usize];
        up_to(widest) == 0 || rooms.iter().all(|&kind| up_to(kind) < room(limit, kind))
    }
}
