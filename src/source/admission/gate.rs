//! Which request to one host is sent next, and which wait. Pure: time is an argument.
//!
//! ```text
//! ask --> waiting --admit--> running --leave--> (gone)
//!            '------------leave-------------------^
//!
//! which: the first in the order of `order` that has room
//! when:  there is room for its priority (`rooms`), and the host has not asked for a pause
//! ```
//!
//! The gate reads a priority when it needs it. A request that is raised while it waits moves forward in
//! the queue. One that is raised while it runs leaves the room of its old priority.
//!
//! The reader of a body may hold its slot long: hours for a large compressed layer, and for ever where it first
//! waits for another answer of the same host. So the gate lends slots, slowly:
//!
//! ```text
//! a request waits for `patience`, and none of its priority was admitted since --> the gate lends a
//! slot to the first of that priority, at most one in each `patience`. The request counts as running,
//! so no other is admitted before as many have left.
//! ```
//!
//! Let N requests of equal or higher priority be ahead of a request, including later ones. Then the request is
//! admitted after N + 1 times the patience at the latest. Streams that are never read cost time, but cause no
//! deadlock. Only a pause of the host stops the loans. A pause is bounded, and patience begins anew after it.
//!
//! The rate that a user allows for the host (`rate`) holds for every admission, also for loans. The first request
//! of the queue waits until the rate permits it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::allowance::Allowance;
use super::order::{Rank, Shares, Standing};
use super::rate::Bucket;
use super::{UserId, rooms};
use crate::source::{Priority, Urgency};

/// The number of a request. Later requests have larger numbers.
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
    shares: Shares,
    /// The last admission of a request of each priority.
    admitted: [Option<Instant>; Priority::ALL.len()],
    /// The last loan of a slot.
    lent: Option<Instant>,
    /// The requests that a user allows in a second.
    requests: Option<Bucket>,
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
    /// The user that the request is charged to.
    user: UserId,
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
            shares: Shares::default(),
            admitted: [None; Priority::ALL.len()],
            lent: None,
            requests: None,
        }
    }

    /// The requests that a user allows in a second; `None` without a limit.
    pub(super) fn limit_requests(&mut self, per_second: Option<u64>) {
        Bucket::set(&mut self.requests, per_second);
    }

    /// The time from which the rate permits a request; `None` where that is now.
    fn free_from(&self, now: Instant) -> Option<Instant> {
        self.requests.as_ref().and_then(|requests| requests.due(now))
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

    #[cfg(test)]
    pub(super) fn users(&self) -> usize {
        self.shares.users()
    }

    /// Puts a request at the end of the queue.
    pub(super) fn ask(&mut self, urgency: Urgency, bell: W, now: Instant) -> Ticket {
        let mut active: Vec<_> = self.running.values().map(|one| one.user).collect();
        self.waiting.values().for_each(|one| one.urgency.each_user(|user| active.push(user)));
        self.shares.arrive(&urgency, &active);
        self.asked += 1;
        let ticket = Ticket(self.asked);
        self.waiting.insert(ticket, Waiting { urgency, since: now, bell });
        ticket
    }

    /// Ends a request, or takes it out of the queue.
    pub(super) fn leave(&mut self, ticket: Ticket, now: Instant) {
        self.waiting.remove(&ticket);
        if let Some(ended) = self.running.remove(&ticket) {
            self.shares.end(ended.user, now.saturating_duration_since(ended.since));
        }
    }

    /// The host has answered a request. The answer counts for the limit only where the whole limit is in use,
    /// because one request alone proves nothing about eight.
    pub(super) fn accepted(&mut self, ticket: Ticket) {
        let Some(running) = self.running.get(&ticket) else { return };
        if self.running.len() + self.waiting.len() >= self.allowance.limit() {
            self.allowance.accepted(running.since);
        }
    }

    /// The host has refused a request, and wants no requests for `pause`.
    pub(super) fn refused(&mut self, ticket: Ticket, now: Instant, pause: Option<Duration>) {
        let Some(running) = self.running.get(&ticket) else { return };
        self.allowance.refused(running.since, now, pause);
    }

    /// Admits every request whose turn has come. These requests run from now on.
    pub(super) fn admit(&mut self, now: Instant) -> Vec<W> {
        let mut turns = Vec::new();
        if self.allowance.paused_until(now).is_some() {
            return turns;
        }
        let mut standing = self.standing(now);
        let priorities = self.running.values().map(|one| one.urgency.get());
        let mut running = rooms::Running::of(priorities);
        let limit = self.allowance.limit();
        let has_room =
            |running: &rooms::Running, kind| running.has_room(limit, kind, Priority::OnDemand);
        while self.free_from(now).is_none()
            && let Some(first) = self.first(&standing, |rank| has_room(&running, rank.room()))
        {
            running.add(first.1.priority);
            self.shares.start(first.1.user, &standing);
            standing.start(first.1.user);
            turns.extend(self.start(first, now));
        }
        let starved = Priority::ALL.into_iter().rev().find(|&kind| self.is_due(kind, now));
        if let Some(kind) = starved
            && self.free_from(now).is_none()
            && let Some(first) = self.first(&standing, |rank| rank.priority == kind)
        {
            self.lent = Some(now);
            self.shares.start(first.1.user, &standing);
            turns.extend(self.start(first, now));
        }
        turns
    }

    fn standing(&self, now: Instant) -> Standing {
        let waiting = self.waiting.values().map(|one| &one.urgency);
        let running = self.running.values().map(|one| (one.user, one.since));
        self.shares.standing(waiting, running, now)
    }

    /// The running requests, each with whether a more urgent request waits for its slot.
    pub(super) fn in_the_way(&self) -> impl Iterator<Item = (&Urgency, bool)> {
        let first = self.waiting.values().map(|one| one.urgency.get()).max();
        let urgencies = self.running.values().map(|one| &one.urgency);
        urgencies.map(move |one| (one, first.is_some_and(|first| first > one.get())))
    }

    /// The time of the next useful [`Gate::admit`] if no request leaves; `None` without a queue.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let next = Priority::ALL.into_iter().filter_map(|kind| self.lending(kind)).min()?;
        Some(match (self.allowance.paused_until(now), self.free_from(now)) {
            (Some(resumed), Some(free)) => resumed.max(free),
            (Some(look), None) | (None, Some(look)) => look,
            (None, None) => next,
        })
    }

    /// The first request of the queue that `may` accepts.
    fn first(&self, standing: &Standing, may: impl Fn(&Rank) -> bool) -> Option<(Ticket, Rank)> {
        let rank = |(ticket, one): (&Ticket, &Waiting<W>)| {
            (*ticket, standing.rank(&one.urgency, ticket.0))
        };
        let queue = self.waiting.iter().map(rank);
        queue.filter(|one| may(&one.1)).max_by_key(|one| one.1)
    }

    /// The time at which a request of a priority may be lent a slot; `None` without one in the queue.
    fn lending(&self, kind: Priority) -> Option<Instant> {
        let alike = self.waiting.values().filter(|one| one.urgency.get() == kind);
        // The longest wait counts, because a request of another user may become the first.
        let since = alike.map(|one| one.since).min()?;
        let others = [self.admitted[kind as usize], self.lent, self.allowance.last_pause()];
        let last = others.into_iter().flatten().fold(since, Instant::max);
        Some(last + self.patience)
    }

    fn is_due(&self, kind: Priority, now: Instant) -> bool {
        self.lending(kind).is_some_and(|due| due <= now)
    }

    fn start(&mut self, (ticket, rank): (Ticket, Rank), now: Instant) -> Option<W> {
        let Waiting { urgency, bell, .. } = self.waiting.remove(&ticket)?;
        self.requests.iter_mut().for_each(|requests| requests.take(1, now));
        self.running.insert(ticket, Running { urgency, user: rank.user, since: now });
        self.admitted[rank.priority as usize] = Some(now);
        Some(bell)
    }
}
