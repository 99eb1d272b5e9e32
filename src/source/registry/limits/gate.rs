//! Who may send a request to one host, and who waits. Pure: time is an argument.
//!
//! ```text
//! ask --> waiting --turn--> running --leave--> (gone)
//!            '------------leave------------------^
//!
//! who:   the most urgent that waits; of equals, who came first
//! when:  there is room for its kind, and the host has not asked for a pause
//!
//! limit  |<----------------------- on demand ------------------------>|
//!        |<----------------- readahead ----------------->|  1 is left |
//!        |<-------- prefetch: a half ------->|
//!        |<- hydrate: 1/4 ->|
//! ```
//!
//! The rooms lie within one another: bodies in the background hold half of the limit together, not
//! half and a quarter. So a reader that waits finds a place, unless readers hold them all. Where
//! nothing runs at all, anyone may begin, so that a limit of 1 starves nobody.
//!
//! The priority of a request is read when it matters, not when it was asked: one that somebody has
//! begun to wait for moves forward in the line, and one that runs leaves the room of its old kind.
//!
//! How long a permit is held is up to the reader of the body: hours for a large compressed layer,
//! and for ever where the reader first waits for another answer of this same host. So the limit and
//! the rooms give way, slowly:
//!
//! ```text
//! somebody waits for `patience`, and nobody of its kind was let in since --> a permit is lent to
//! the first of that kind in line, at most one in each `patience`; it counts as running, so nobody
//! else is let in before as many have left
//! ```
//!
//! Whoever has N others before it that are as urgent or more, later ones included, is let in after
//! N + 1 times the patience at the latest, whatever the holders do: streams that nobody drains cost time, and never a deadlock.
//! A pause is the only thing that stops lending; it is bounded, and patience begins anew behind it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::allowance::Allowance;
use crate::source::{Priority, Urgency};

/// Which request; later ones have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// The line before one host. `W` is how to tell a request that its turn has come.
#[derive(Debug)]
pub(super) struct Gate<W> {
    allowance: Allowance,
    patience: Duration,
    asked: u64,
    waiting: BTreeMap<Ticket, Waiting<W>>,
    running: BTreeMap<Ticket, Running>,
    /// When somebody of each kind was last let in.
    let_in: [Option<Instant>; Priority::ALL.len()],
    /// When a permit was last lent.
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
            let_in: [None; Priority::ALL.len()],
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

    /// Gets in line.
    pub(super) fn ask(&mut self, urgency: Urgency, bell: W, now: Instant) -> Ticket {
        self.asked += 1;
        let ticket = Ticket(self.asked);
        self.waiting.insert(ticket, Waiting { urgency, since: now, bell });
        ticket
    }

    /// Ends a request, or takes it out of the line.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        self.running.remove(&ticket);
    }

    /// The host has answered a request. It says something about the limit only where the limit is in
    /// use: a single reader at its ease proves nothing about eight.
    pub(super) fn accepted(&mut self, ticket: Ticket) {
        let Some(running) = self.running.get(&ticket) else { return };
        if self.running.len() + self.waiting.len() >= self.allowance.limit() {
            self.allowance.accepted(running.since);
        }
    }

    /// The host has refused a request, and wants none for `pause`.
    pub(super) fn refused(&mut self, ticket: Ticket, now: Instant, pause: Option<Duration>) {
        let Some(running) = self.running.get(&ticket) else { return };
        self.allowance.refused(running.since, now, pause);
    }

    /// Lets in everybody whose turn has come: they are running from now on.
    pub(super) fn admit(&mut self, now: Instant) -> Vec<W> {
        let mut turns = Vec::new();
        if self.allowance.paused_until(now).is_some() {
            return turns;
        }
        // Who is less urgent than the first has no more room than the first.
        while let Some(first) = self.first(|_| true)
            && self.has_room(first.1)
        {
            turns.extend(self.let_in(first, now));
        }
        let starved = Priority::ALL.into_iter().rev().find_map(|kind| self.due(kind, now));
        if let Some(first) = starved {
            self.lent = Some(now);
            turns.extend(self.let_in(first, now));
        }
        turns
    }

    /// Whether each request that runs holds a permit that somebody more urgent waits for.
    pub(super) fn in_the_way(&self) -> impl Iterator<Item = (&Urgency, bool)> {
        let first = self.first(|_| true).map(|one| one.1);
        let urgencies = self.running.values().map(|one| &one.urgency);
        urgencies.map(move |one| (one, first.is_some_and(|first| first > one.get())))
    }

    /// When [`Gate::admit`] is worth another try, though nobody leaves; `None` where nobody waits.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let lending =
            Priority::ALL.into_iter().filter_map(|kind| self.lending(kind)).map(|it| it.1);
        let next = lending.min()?;
        Some(self.allowance.paused_until(now).unwrap_or(next))
    }

    /// The first in line of those whose priority `may` be considered.
    fn first(&self, may: impl Fn(Priority) -> bool) -> Option<(Ticket, Priority)> {
        let line = self.waiting.iter().map(|(ticket, one)| (*ticket, one.urgency.get()));
        line.filter(|one| may(one.1)).max_by_key(|&(ticket, priority)| (priority, Reverse(ticket)))
    }

    /// Whether one more of this priority may run.
    fn has_room(&self, priority: Priority) -> bool {
        let limit = self.allowance.limit();
        let kinds: Vec<_> = self.running.values().map(|one| one.urgency.get()).collect();
        let wider = Priority::ALL.into_iter().filter(|&kind| kind >= priority);
        let fits = |kind| kinds.iter().filter(|&&one| one <= kind).count() < room(limit, kind);
        kinds.is_empty() || wider.into_iter().all(fits)
    }

    /// The first in line of a kind, and when a permit may be lent to it.
    fn lending(&self, kind: Priority) -> Option<((Ticket, Priority), Instant)> {
        let first = self.first(|priority| priority == kind)?;
        let since = self.waiting.get(&first.0)?.since;
        let others = [self.let_in[kind as usize], self.lent, self.allowance.last_pause()];
        let last = others.into_iter().flatten().fold(since, Instant::max);
        Some((first, last + self.patience))
    }

    /// The first in line of a kind, if a permit may be lent to it now.
    fn due(&self, kind: Priority, now: Instant) -> Option<(Ticket, Priority)> {
        self.lending(kind).filter(|(_, due)| *due <= now).map(|(first, _)| first)
    }

    fn let_in(&mut self, (ticket, priority): (Ticket, Priority), now: Instant) -> Option<W> {
        let Waiting { urgency, bell, .. } = self.waiting.remove(&ticket)?;
        self.running.insert(ticket, Running { urgency, since: now });
        self.let_in[priority as usize] = Some(now);
        Some(bell)
    }
}

/// How much of `limit` the requests of this priority, and of those below, may hold together.
fn room(limit: usize, priority: Priority) -> usize {
    match priority {
        Priority::Hydrate => limit / 4,
        Priority::Prefetch => limit / 2,
        Priority::Readahead => limit.saturating_sub(1),
        Priority::OnDemand => limit,
    }
}
