//! Which request to one host is sent next, and which wait. Pure: time is an argument.
//!
//! ```text
//! ask --> waiting --admit--> running --leave--> (gone)
//!            '------------leave-------------------^
//!
//! which: the most urgent that waits; of equals, the earliest
//! when:  there is room for its priority, and the host has not asked for a pause
//!
//! limit  |<----------------------- on demand ------------------------>|
//!        |<----------------- readahead ----------------->|  1 is left |
//!        |<-------- prefetch: a half ------->|
//!        |<- hydrate: 1/4 ->|
//! ```
//!
//! The rooms lie within one another: all background requests together hold half of the limit, not a
//! half and a quarter. So a reader finds a slot unless other readers hold all of them. Where nothing
//! runs, any request may start, so that a limit of 1 starves none.
//!
//! The gate reads a priority when it needs it. A request that is raised while it waits moves forward in
//! the queue. One that is raised while it runs leaves the room of its old priority.
//!
//! A reader of a body decides how long it holds its slot: hours for a large compressed layer, and for
//! ever where it first waits for another answer of the same host. So the gate lends slots, slowly:
//!
//! ```text
//! a request waits for `patience`, and none of its priority was admitted since --> the gate lends a
//! slot to the first of that priority, at most one in each `patience`. The request counts as running,
//! so no other is admitted before as many have left.
//! ```
//!
//! A request with N requests of equal or higher priority ahead of it, later ones included, is admitted
//! after N + 1 times the patience at the latest. Streams that are never read cost time, and cause no
//! deadlock. Only a pause stops the lending; a pause is bounded, and patience begins anew behind it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::allowance::Allowance;
use crate::source::{Priority, Urgency};

/// Which request; later ones have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The queue of one host. `W` tells a request that its turn has come.
#[derive(Debug)]
pub(super) struct Gate<W> {
    allowance: Allowance,
    patience: Duration,
    asked: u64,
    waiting: BTreeMap<Ticket, Waiting<W>>,
    running: BTreeMap<Ticket, Running>,
    /// The last admission of a request of each priority.
    admitted: [Option<Instant>; Priority::ALL.len()],
    /// The last loan of a slot.
    lent: Option<Instant>,
}

#[derive(Debug)]
struct Waiting<W> {
    urgency: Urgency,
    since: Instant,
    bell: W,
}

#[derive(Debug)]
struct Running {
    urgency: Urgency,
    since: Instant,
}

impl<W> Gate<W> {
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        Self {
            allowance: Allowance::new(most),
            patience,
            asked: 0,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            admitted: [None; Priority::ALL.len()],
            lent: None,
        }
    }

    pub(super) fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Puts a request at the end of the queue.
    pub(super) fn ask(&mut self, urgency: Urgency, bell: W, now: Instant) -> Ticket {
        self.asked += 1;
        let ticket = Ticket(self.asked);
        self.waiting.insert(ticket, Waiting { urgency, since: now, bell });
        ticket
    }

    /// Ends a request, or takes it out of the queue.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.running.remove(&ticket);
    }

    /// The host has answered a request. That says something about the limit only where all of the
    /// limit is in use: one reader alone proves nothing about eight.
    pub(super) fn accepted(&mut self, ticket: Ticket) {
        let Some(running) = self.running.get(&ticket) else { return };
        if self.running.len() + self.waiting.len() >= self.allowance.limit() {
            self.allowance.accepted(running.since);
        }
    }

    /// The host has refused a request, and wants no others for `pause`.
    pub(super) fn refused(&mut self, ticket: Ticket, now: Instant, pause: Option<Duration>) {
        let Some(running) = self.running.get(&ticket) else { return };
        self.allowance.refused(running.since, now, pause);
    }

    /// Admits every request whose turn has come: these run from now on.
    pub(super) fn admit(&mut self, now: Instant) -> Vec<W> {
        let mut turns = Vec::new();
        if self.allowance.paused_until(now).is_some() {
            return turns;
        }
        // A less urgent request has no more room than the first.
        while let Some(first) = self.first(|_| true)
            && self.has_room(first.1)
        {
            turns.extend(self.start(first, now));
        }
        let starved = Priority::ALL.into_iter().rev().find_map(|kind| self.due(kind, now));
        if let Some(first) = starved {
            self.lent = Some(now);
            turns.extend(self.start(first, now));
        }
        turns
    }

    /// Of each running request, whether a more urgent request waits for its slot.
    pub(super) fn in_the_way(&self) -> impl Iterator<Item = (&Urgency, bool)> {
        let first = self.first(|_| true).map(|one| one.1);
        let urgencies = self.running.values().map(|one| &one.urgency);
        urgencies.map(move |one| (one, first.is_some_and(|first| first > one.get())))
    }

    /// The time of the next useful [`Gate::admit`] if no request leaves; `None` without a queue.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let lending =
            Priority::ALL.into_iter().filter_map(|kind| self.lending(kind)).map(|it| it.1);
        let next = lending.min()?;
        Some(self.allowance.paused_until(now).unwrap_or(next))
    }

    /// The first request of the queue whose priority `may` be considered.
    fn first(&self, may: impl Fn(Priority) -> bool) -> Option<(Ticket, Priority)> {
        let queue = self.waiting.iter().map(|(ticket, one)| (*ticket, one.urgency.get()));
        queue.filter(|one| may(one.1)).max_by_key(|&(ticket, priority)| (priority, Reverse(ticket)))
    }

    /// Whether one more request of this priority may run.
    fn has_room(&self, priority: Priority) -> bool {
        let limit = self.allowance.limit();
        let kinds: Vec<_> = self.running.values().map(|one| one.urgency.get()).collect();
        let wider = Priority::ALL.into_iter().filter(|&kind| kind >= priority);
        let fits = |kind| kinds.iter().filter(|&&one| one <= kind).count() < room(limit, kind);
        kinds.is_empty() || wider.into_iter().all(fits)
    }

    /// The first request of a priority, and when it may be lent a slot.
    fn lending(&self, kind: Priority) -> Option<((Ticket, Priority), Instant)> {
        let first = self.first(|priority| priority == kind)?;
        let since = self.waiting.get(&first.0)?.since;
        let others = [self.admitted[kind as usize], self.lent, self.allowance.last_pause()];
        let last = others.into_iter().flatten().fold(since, Instant::max);
        Some((first, last + self.patience))
    }

    /// The first request of a priority, if it may be lent a slot now.
    fn due(&self, kind: Priority, now: Instant) -> Option<(Ticket, Priority)> {
        self.lending(kind).filter(|(_, due)| *due <= now).map(|(first, _)| first)
    }

    fn start(&mut self, (ticket, priority): (Ticket, Priority), now: Instant) -> Option<W> {
        let Waiting { urgency, bell, .. } = self.waiting.remove(&ticket)?;
        self.running.insert(ticket, Running { urgency, since: now });
        self.admitted[priority as usize] = Some(now);
        Some(bell)
    }
}

/// The slots of `limit` that requests of this priority and of lower ones may hold together.
fn room(limit: usize, priority: Priority) -> usize {
    match priority {
        Priority::Hydrate => limit / 4,
        Priority::Prefetch => limit / 2,
        Priority::Readahead => limit.saturating_sub(1),
        Priority::OnDemand => limit,
    }
}
