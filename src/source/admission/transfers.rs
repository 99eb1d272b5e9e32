//! Which transfer runs next, and the memory of all of them. Pure: time is an argument.
//!
//! ```text
//! ask --> waiting --admitted: the first in the order for which there are memory and a thread--> running --> gone
//!            '-- its urgency changed: looked at again --'
//! ```
//!
//! A transfer waits here before its first request. So less urgent work never delays a reader: not in a queue, and
//! not in memory.
//!
//! | priority | runs when |
//! | --- | --- |
//! | on demand | there is memory and a thread |
//! | readahead | also: a quarter of memory and threads is free, and few transfers of its layer run, so that they end one after the other |
//! | prefetch | also: the host has room for one more prefetch (`rooms`), and half of the memory is free |
//! | hydrate | also: no reader waits at all |
//!
//! - One transfer always runs, however little memory there is.
//! - A queued reader blocks all later transfers, because small transfers could keep a large one waiting for ever.
//!   If the share of its own host or user is used up, transfers of other hosts or users may overtake it.
//! - A host has a share of the threads and of the memory that other hosts leave. A host that never answers, or
//!   always answers 429, holds no more than its share. A quarter of a share is for readers.
//! - With several users, each user has such a share too.
//! - One large reservation runs at a time. Queued large reservations block no other transfers.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use super::UserId;
use super::order::{Rank, Shares, Standing};
use super::rooms;
use crate::source::{Priority, Urgency};

/// Transfers that run at a time: each has a thread that writes, and the runtime has 512 for
/// everything that blocks.
pub(super) const MOST_RUNNING: usize = 64;
/// The running transfers of a layer beyond which no readahead begins. They share the host's rate. With more of
/// them, the transfer that a reader waits for would end later, and the reader would use up its window before the
/// next one begins.
pub(crate) const MOST_OF_A_LAYER: usize = 8;
/// The part of the free threads that one host may hold. A half is twice the limit of requests of a host.
const HOST_THREADS: (u64, u64) = (1, 2);
/// The same for memory: as much as readahead may take, so that a small `--memory` with a single registry loses
/// little.
const HOST_MEMORY: (u64, u64) = (3, 4);
/// The part of a host's share that background work may hold. The rest is for readers, who would else wait for the
/// readahead of others at the only registry.
const HOST_BACKGROUND: (u64, u64) = (3, 4);
/// The part of the free threads and memory that one of several users may hold. Where this user's hosts do not
/// answer, the remaining quarter is enough for another user's first transfers.
const USER_SHARE: (u64, u64) = (3, 4);
/// The most users that are remembered. Only the difference between one and several counts.
const MOST_KNOWN_USERS: usize = 16;
/// The size from which a reservation is large; only windows of zstd are. Two large ones would take most of the
/// usual memory, and a third in the queue would delay every reader behind it.
const LARGE_BYTES: u64 = 32 * 1024 * 1024;
/// The memory that must be left beside a large reservation, for readers of other layers.
const LEFT_BESIDE_LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// The part of the memory that may be set aside for bytes that the cache could not keep: a third. Two thirds are
/// left for the next transfers.
const ASIDE_SHARE: u64 = 3;

/// The transfers that run and those that wait. `W` tells a transfer that its turn has come.
pub(super) struct Transfers<W> {
    memory_bytes: u64,
    reserved_bytes: u64,
    /// Memory of bytes that the cache could not keep (`fetch::passing`).
    pub(super) aside_bytes: u64,
    next_id: u64,
    running: Vec<Running>,
    waiting: Vec<(Entry, W)>,
    shares: Shares,
    users: Vec<UserId>,
}

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    whose: Whose,
    bytes: u64,
    urgency: Urgency,
}

#[derive(Clone, Debug)]
struct Running {
    entry: Entry,
    /// The user that the transfer is charged to.
    user: UserId,
    since: Instant,
}

/// The layer and the host of a transfer.
#[derive(Clone, Debug)]
pub(crate) struct Whose {
    /// The number of its layer.
    pub(crate) layer: usize,
    /// The host of its source; `None` for a source that it does not share.
    pub(crate) host: Option<Arc<str>>,
}

/// The limit of running requests of a host.
pub(super) type Ceiling<'a> = &'a dyn Fn(Option<&str>) -> usize;

impl<W> Transfers<W> {
    pub(super) fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            reserved_bytes: 0,
            aside_bytes: 0,
            next_id: 0,
            running: Vec::new(),
            waiting: Vec::new(),
            shares: Shares::default(),
            users: Vec::new(),
        }
    }

    /// Puts a transfer at the end of the queue.
    pub(super) fn ask(&mut self, whose: Whose, bytes: u64, urgency: Urgency, bell: W) -> u64 {
        let mut active: Vec<_> = self.running.iter().map(|one| one.user).collect();
        self.waiting.iter().for_each(|one| one.0.urgency.each_user(|user| active.push(user)));
        self.shares.arrive(&urgency, &active);
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push((Entry { id, whose, bytes, urgency }, bell));
        id
    }

    /// Ends a transfer, or takes it out of the queue.
    pub(super) fn remove(&mut self, id: u64, now: Instant) {
        if let Some(index) = self.running.iter().position(|one| one.entry.id == id) {
            let ended = self.running.swap_remove(index);
            self.reserved_bytes -= ended.entry.bytes;
            self.shares.end(ended.user, now.saturating_duration_since(ended.since));
        } else {
            self.waiting.retain(|(entry, _)| entry.id != id);
        }
    }

    /// Moves each transfer that may run from waiting to running, in order. Returns their bells.
    pub(super) fn admit(
        &mut self,
        reader_waits: bool,
        ceiling: Ceiling<'_>,
        now: Instant,
    ) -> Vec<W> {
        let mut admitted = Vec::new();
        loop {
            let standing = self.standing(now);
            let Some((next, user)) = self.next(&standing, reader_waits, ceiling) else { break };
            let (entry, bell) = self.waiting.remove(next);
            self.reserved_bytes += entry.bytes;
            self.shares.start(user, &standing);
            if self.users.len() < MOST_KNOWN_USERS && !self.users.contains(&user) {
                self.users.push(user);
            }
            self.running.push(Running { entry, user, since: now });
            admitted.push(bell);
        }
        admitted
    }

    pub(super) fn can_hold(&self, bytes: u64) -> bool {
        bytes + LEFT_BESIDE_LARGE_BYTES <= self.memory_bytes
    }

    pub(super) fn taken_bytes(&self) -> u64 {
        self.reserved_bytes + self.aside_bytes
    }

    pub(super) fn free_aside_bytes(&self) -> u64 {
        let most = self.memory_bytes / ASIDE_SHARE;
        let free = self.memory_bytes.saturating_sub(self.taken_bytes());
        free.min(most.saturating_sub(self.aside_bytes))
    }

    /// The position in the queue of the transfer that runs next, and the user that it is charged to.
    fn next(
        &self,
        standing: &Standing,
        reader_waits: bool,
        ceiling: Ceiling<'_>,
    ) -> Option<(usize, UserId)> {
        let mut held_hosts: Vec<&Option<Arc<str>>> = Vec::new();
        let mut held_users: Vec<UserId> = Vec::new();
        let mut has_large = self.running.iter().any(|one| one.entry.is_large());
        for (index, rank) in self.in_order(standing) {
            let entry = &self.waiting[index].0;
            if entry.is_large() && std::mem::replace(&mut has_large, true) {
                continue;
            }
            if held_hosts.contains(&&entry.whose.host) || held_users.contains(&rank.user) {
                continue;
            }
            let (has_host, has_user) =
                (self.host_has_share(entry, &rank), self.user_has_share(entry, &rank));
            let may_run = has_host && has_user && self.may_run(entry, &rank, reader_waits, ceiling);
            if may_run {
                return Some((index, rank.user));
            }
            if rank.priority == Priority::OnDemand {
                match (has_host, has_user) {
                    (true, true) => return None,
                    (false, _) => held_hosts.push(&entry.whose.host),
                    (true, false) => held_users.push(rank.user),
                }
            }
        }
        None
    }

    fn standing(&self, now: Instant) -> Standing {
        let waiting = self.waiting.iter().map(|one| &one.0.urgency);
        let running = self.running.iter().map(|one| (one.user, one.since));
        self.shares.standing(waiting, running, now)
    }

    /// The positions of the waiting transfers, the first in the order first.
    fn in_order(&self, standing: &Standing) -> Vec<(usize, Rank)> {
        let rank = |(index, (entry, _)): (usize, &(Entry, W))| {
            (index, standing.rank(&entry.urgency, entry.id))
        };
        let mut all: Vec<_> = self.waiting.iter().enumerate().map(rank).collect();
        all.sort_unstable_by_key(|one| Reverse(one.1));
        all
    }

    /// Whether the share of its host has room for one more transfer. The first transfer of a host always fits.
    fn host_has_share(&self, entry: &Entry, rank: &Rank) -> bool {
        let Some(host) = &entry.whose.host else { return true };
        let is_alike = |one: &Running| one.entry.whose.host.as_ref() == Some(host);
        let background = if rank.is_urgent() { (1, 1) } else { HOST_BACKGROUND };
        self.has_share(entry, is_alike, HOST_THREADS, HOST_MEMORY, background)
    }

    /// The same for the user that the transfer is charged to, if there are several users.
    fn user_has_share(&self, entry: &Entry, rank: &Rank) -> bool {
        let is_alike = |one: &Running| one.user == rank.user;
        self.users.iter().all(|user| *user == rank.user)
            || self.has_share(entry, is_alike, USER_SHARE, USER_SHARE, (1, 1))
    }

    fn has_share(
        &self,
        entry: &Entry,
        is_alike: impl Fn(&Running) -> bool,
        threads: (u64, u64),
        memory: (u64, u64),
        part: (u64, u64),
    ) -> bool {
        let alike = self.running.iter().filter(|one| is_alike(one));
        let (mut running, mut bytes) = (0, 0);
        alike.for_each(|one| (running, bytes) = (running + 1, bytes + one.entry.bytes));
        let of = |whole: u64, share: (u64, u64)| whole / share.1 * share.0;
        let others = self.running.len() as u64 - running;
        let threads = (MOST_RUNNING as u64).saturating_sub(others) * threads.0 / threads.1;
        let others_bytes = self.taken_bytes() - bytes;
        let memory_bytes = of(self.memory_bytes.saturating_sub(others_bytes), memory);
        running == 0
            || running < threads * part.0 / part.1 && bytes + entry.bytes <= of(memory_bytes, part)
    }

    fn may_run(
        &self,
        entry: &Entry,
        rank: &Rank,
        reader_waits: bool,
        ceiling: Ceiling<'_>,
    ) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let has_room = || {
            // Only transfers of the same host count, because transfers of a dead host must not hold up others. The
            // host's share bounds readers, so the rooms of background work do not count them.
            let at_host =
                self.running.iter().filter(|one| one.entry.whose.host == entry.whose.host);
            let running = rooms::Running::of(at_host.map(|one| one.entry.urgency.get()));
            let limit = ceiling(entry.whose.host.as_deref());
            running.has_room(limit, rank.priority, Priority::Prefetch)
        };
        let of_layer = || {
            let alike = |one: &&Running| one.entry.whose.layer == entry.whose.layer;
            self.running.iter().filter(alike).count()
        };
        let (memory_bytes, threads) = (self.memory_bytes, MOST_RUNNING);
        let (is_allowed, memory_bytes, threads) = match rank.priority {
            Priority::OnDemand => (true, memory_bytes, threads),
            Priority::Readahead if rank.is_behind => {
                (of_layer() < MOST_OF_A_LAYER, memory_bytes, threads)
            }
            Priority::Readahead => {
                (of_layer() < MOST_OF_A_LAYER, memory_bytes / 4 * 3, threads / 4 * 3)
            }
            Priority::Prefetch => (has_room(), memory_bytes / 2, threads / 2),
            Priority::Hydrate => (!reader_waits && has_room(), memory_bytes / 2, threads / 2),
        };
        is_allowed
            && self.running.len() < threads
            && self.taken_bytes() + entry.bytes <= memory_bytes
    }

    /// The number of transfers that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl Entry {
    fn is_large(&self) -> bool {
        self.bytes >= LARGE_BYTES
    }
}
