//! The order of requests that wait: by priority, and fair among users. Pure: time is an argument.
//!
//! ```text
//! 1. requests of a user who is behind: another user has used SLACK more (hydrating never counts as behind)
//! 2. the higher priority
//! 3. the user who has used less
//! 4. the earlier request
//! ```
//!
//! A user is charged with time: a request that runs for a second uses one second. A running request counts as
//! [`LEAST_CHARGE`] from its start, so a user who starts many requests has used more at once. Bytes are no better
//! measure. Connections to a host share its rate about equally, and the size of a compressed stream is unknown
//! before its end.
//!
//! Guarantees, for users who always have a request of readahead or a reader in the queue:
//! - The difference between the used times of two such users has a bound that does not grow with time.
//! - A user with one request, beside a user with a hundred, waits for at most one request of the other user.
//! - A new or returning user gets no credit for the time of absence.
//!
//! With a single user, rules 1 and 3 never decide.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::UserId;
use crate::source::{Priority, Urgency};

/// The difference in used time from which a user's readahead comes before another user's readers.
///
/// 5 s: a request of some MiB takes a second or two of a slot. So a burst of reads keeps its priority,
/// and a long stream does not keep all slots from another user's readahead.
pub(super) const SLACK: Duration = Duration::from_secs(5);

/// The least time that a running request counts for. 1 s: much more than most requests take, so the
/// number of running requests decides among users whose requests are short.
pub(super) const LEAST_CHARGE: Duration = Duration::from_secs(1);

/// The most that a user can be behind. 10 s, twice the slack. A user with background requests, which have little
/// room, cannot use the share. This bound keeps the user from taking all slots for long later.
const MOST_CREDIT: Duration = Duration::from_secs(10);

/// The time of ended requests, by user. It has the users with requests, and for a while users who were ahead.
#[derive(Debug, Default)]
pub(super) struct Shares {
    ended: BTreeMap<UserId, Duration>,
}

/// The use of all users at one moment.
#[derive(Debug, Default)]
pub(super) struct Standing {
    used: BTreeMap<UserId, Duration>,
    most: Duration,
    /// The least time of ended requests. A new user starts there.
    least: Duration,
}

/// The place of a request in the order: the greatest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) is_behind: bool,
    pub(super) priority: Priority,
    used: Reverse<Duration>,
    number: Reverse<u64>,
    /// The user that the request is charged to.
    pub(super) user: UserId,
}

impl Shares {
    /// Notes a new request of `urgency`, before it is among the waiting ones. `active` has the users of
    /// all other requests.
    pub(super) fn arrive(&mut self, urgency: &Urgency, active: &[UserId]) {
        // A user who alone had requests has no other user to compare with.
        if active.is_empty() {
            self.ended.clear();
        }
        let ended = |user: &UserId| self.ended.get(user).copied();
        let least = active.iter().filter_map(ended).min().unwrap_or_default();
        urgency.each_user(|user| {
            let is_new = !active.contains(&user);
            let ended = self.ended.entry(user).or_insert(least);
            if is_new {
                *ended = (*ended).max(least);
            }
        });
        // Absent users would return to this value anyway.
        self.ended
            .retain(|user, ended| *ended > least || active.contains(user) || urgency.is_of(*user));
    }

    /// Notes the start of a request that is charged to `user`, who may have joined a request in the queue.
    pub(super) fn start(&mut self, user: UserId, standing: &Standing) {
        self.ended.entry(user).or_insert(standing.least);
    }

    /// Notes the end of a request that was charged to `user`.
    pub(super) fn end(&mut self, user: UserId, ran_for: Duration) {
        *self.ended.entry(user).or_default() += ran_for;
    }

    /// The use at `now` of all users with a request. `waiting` has the requests in the queue, and
    /// `running` the user and the start of each other one.
    pub(super) fn standing<'a>(
        &self,
        waiting: impl Iterator<Item = &'a Urgency>,
        running: impl Iterator<Item = (UserId, Instant)>,
        now: Instant,
    ) -> Standing {
        let mut used = BTreeMap::new();
        let ended = |user: &UserId| self.ended.get(user).copied().unwrap_or_default();
        for (user, since) in running {
            let ran_for = now.saturating_duration_since(since);
            *used.entry(user).or_insert_with(|| ended(&user)) += ran_for.max(LEAST_CHARGE);
        }
        for urgency in waiting {
            // A user who joined a request in the queue has no entry before a request of the user's own.
            urgency.each_user(|user| {
                if let Some(ended) = self.ended.get(&user) {
                    used.entry(user).or_insert(*ended);
                }
            });
        }
        let most = used.values().copied().max().unwrap_or_default();
        let least = used.keys().map(ended).min().unwrap_or_default();
        Standing { used, most, least }
    }

    #[cfg(test)]
    pub(super) fn users(&self) -> usize {
        self.ended.len()
    }
}

impl Rank {
    /// The priority whose room the request may use. The readahead of a user who is behind may use the slot that is
    /// kept for readers. Else the readers of one user could hold this slot for ever.
    pub(super) fn room(&self) -> Priority {
        match self.is_behind && self.priority == Priority::Readahead {
            true => Priority::OnDemand,
            false => self.priority,
        }
    }

    /// Whether a reader, or a user who is behind, waits for the request.
    pub(super) fn is_urgent(&self) -> bool {
        self.is_behind || self.priority == Priority::OnDemand
    }
}

impl Standing {
    /// The place of a waiting request. Of its users, the one who has used least counts.
    pub(super) fn rank(&self, urgency: &Urgency, number: u64) -> Rank {
        let mut first: Option<(Duration, UserId)> = None;
        urgency.each_user(|user| {
            let used = self.used.get(&user).copied().unwrap_or(self.least);
            let used = used.max(self.most.saturating_sub(MOST_CREDIT));
            first = Some(first.map_or((used, user), |first| first.min((used, user))));
        });
        let (used, user) = first.unwrap_or_default();
        let priority = urgency.get();
        // No user waits for hydration, so it never comes before other requests.
        let is_behind = priority > Priority::Hydrate && used + SLACK < self.most;
        Rank { is_behind, priority, used: Reverse(used), number: Reverse(number), user }
    }

    /// Charges a request that starts now.
    pub(super) fn start(&mut self, user: UserId) {
        let used = self.used.entry(user).or_insert(self.least);
        *used += LEAST_CHARGE;
        self.most = self.most.max(*used);
    }
}
