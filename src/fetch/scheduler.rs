//! Which transfer runs next, and how much memory all of them may take.
//!
//! ```text
//! acquire --> waiting --admitted: most urgent first, memory and class allow--> running --drop--> gone
//!                '-- raised: looked at again --'
//! ```
//!
//! One scheduler serves the process. A transfer waits here before it asks its source, so what is
//! less urgent never stands in front of a reader: not in a queue, not in memory, and (by
//! [`Scheduler::give_way`]) not on the line.
//!
//! | class | runs when |
//! | --- | --- |
//! | on demand | there is memory and a thread |
//! | readahead | also: no reader waits to be admitted, a quarter of memory and threads is free, and its layer has few enough transfers, so that they end one after the other |
//! | prefetch | also: few of its class run at its host, half of the memory is free |
//! | hydrate | also: hardly any of its class run there, and no reader waits at all |
//!
//! One transfer always runs, however little memory there is. A host has a share of the threads and
//! of memory, of what the others leave: one that answers nothing, or 429 for ever, holds its share
//! and no more. A quarter of a share is for readers. Nothing passes a reader in the queue, whatever
//! it needs, but what comes from another host while the reader's own has its share: else small
//! transfers would keep a large one out for ever. Replies to readers have a quarter of the memory of
//! their own: they are assembled when their bytes have come, so they never wait for a transfer, and
//! a transfer never waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use super::FetchConfig;
use crate::source::{Priority, Urgency};

/// Transfers that run at a time: each has a thread that writes, and the runtime has 512 for
/// everything that blocks.
const MOST_RUNNING: usize = 64;
/// Running transfers of a layer beyond which no readahead begins. They share the line, so with
/// more of them the one that a reader waits for comes later, and the window in front of the reader
/// is used up before the next is asked for.
pub(super) const MOST_OF_A_LAYER: usize = 8;
/// Prefetches that run at a time at one host: with requests of some MiB enough to fill a link.
const MOST_PREFETCHES: usize = 8;
/// Hydrating transfers that run at a time at one host: polite to the line and to the registry.
const MOST_HYDRATING: usize = 2;
/// The part of the threads that one host may hold, of those that others do not: a half is twice as
/// many as the requests that a host gets at once.
const HOST_THREADS: (usize, usize) = (1, 2);
/// The same of memory: as much as readahead may take, so that a small `--memory` with a single
/// registry loses little.
const HOST_MEMORY: (u64, u64) = (3, 4);
/// The part of a host's share that work in the background may hold: without room of their own,
/// readers of the only registry would stand behind the readahead of others.
const HOST_BACKGROUND: (u64, u64) = (3, 4);
/// Layers whose digests are computed at a time: a thread and a stream of the disk each.
const MOST_HASHING: usize = 2;
/// From here on a reservation is large: only windows of zstd come to that. Of several, two would take
/// most of the usual memory, and a third that waits for them would hold up every reader behind it.
const LARGE_BYTES: u64 = 32 * 1024 * 1024;
/// The memory that must be left beside a large one, so that readers of other layers go on.
const LEFT_BESIDE_LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// The part of the memory that may be set aside for bytes that the cache could not keep: a third of what
/// transfers have, so that two thirds are left to bring the next ones.
const ASIDE_SHARE: u64 = 3;
/// The unit in which memory for replies is counted: a page.
const REPLY_UNIT_BYTES: u64 = 4096;

/// The rest of a prefetch after each batch of bytes while a reader waits: long enough for a
/// reader's chunk to pass at 100 Mbit/s, short enough not to be cut off by a server.
const PREFETCH_REST: Duration = Duration::from_millis(20);
/// The same for hydrating.
const HYDRATE_REST: Duration = Duration::from_secs(1);

/// The one queue of transfers.
pub(super) struct Scheduler {
    table: Mutex<Table>,
    replies: Arc<Semaphore>,
    reply_units: u32,
    hashing: Arc<Semaphore>,
    /// Held with a large reservation, and in the queue for one.
    large: Arc<Semaphore>,
    /// Readers that wait for bytes.
    readers: AtomicUsize,
    readers_left: Notify,
    began: Instant,
    /// The time at which a reader last began or ended to wait, in milliseconds since `began`.
    last_reader_ms: AtomicU64,
}

/// The transfers that run and those that wait. Pure: the shell wakes whom [`Table::admit`] names.
struct Table {
    memory_bytes: u64,
    reserved_bytes: u64,
    /// Memory of bytes that the cache could not keep (`passing`).
    aside_bytes: u64,
    next_id: u64,
    running: Vec<Entry>,
    waiting: Vec<(Entry, oneshot::Sender<()>)>,
}

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    whose: Whose,
    bytes: u64,
    urgency: Urgency,
}

/// Whose transfer it is.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    /// A number that stands for its layer.
    pub(super) layer: usize,
    /// The host that it asks, where that is one that others ask too.
    pub(super) host: Option<Arc<str>>,
}

/// The right to run, and the memory that was reserved for it; given back when dropped.
pub(super) struct Permit {
    scheduler: Arc<Scheduler>,
    id: u64,
    _large: Option<OwnedSemaphorePermit>,
}

/// A reader that waits, for as long as the value lives.
pub(super) struct Reader<'a>(&'a Scheduler);

impl Scheduler {
    pub(super) fn new(config: FetchConfig) -> Arc<Self> {
        let reply_bytes = config.memory_bytes / 4;
        let reply_units = (reply_bytes / REPLY_UNIT_BYTES).clamp(1, u64::from(u32::MAX >> 3));
        let table = Table {
            memory_bytes: config.memory_bytes - reply_bytes,
            reserved_bytes: 0,
            aside_bytes: 0,
            next_id: 0,
            running: Vec::new(),
            waiting: Vec::new(),
        };
        Arc::new(Self {
            table: Mutex::new(table),
            replies: Arc::new(Semaphore::new(reply_units as usize)),
            reply_units: reply_units as u32,
            hashing: Arc::new(Semaphore::new(MOST_HASHING)),
            large: Arc::new(Semaphore::new(1)),
            readers: AtomicUsize::new(0),
            readers_left: Notify::new(),
            began: Instant::now(),
            last_reader_ms: AtomicU64::new(0),
        })
    }

    /// Waits until a transfer may run that takes `bytes` of memory at most. The place in the queue
    /// is taken with the call, not when the future is first polled: tasks begin in any order. But for
    /// large reservations, which come to the queue one at a time.
    pub(super) fn acquire(
        self: &Arc<Self>,
        whose: Whose,
        bytes: u64,
        urgency: Urgency,
    ) -> impl Future<Output = Permit> + Send + use<> {
        let scheduler = self.clone();
        let is_large = bytes >= LARGE_BYTES;
        let queued = (!is_large).then(|| self.queue(whose.clone(), bytes, urgency.clone(), None));
        async move {
            let (permit, started) = match queued {
                Some(queued) => queued,
                None => {
                    let turn = scheduler.large.clone().acquire_owned().await;
                    scheduler.queue(whose, bytes, urgency, turn.ok())
                }
            };
            // The sender is dropped only by the permit, which this future holds.
            let _ = started.await;
            permit
        }
    }

    fn queue(
        self: &Arc<Self>,
        whose: Whose,
        bytes: u64,
        urgency: Urgency,
        large: Option<OwnedSemaphorePermit>,
    ) -> (Permit, oneshot::Receiver<()>) {
        let (start, started) = oneshot::channel();
        let permit = {
            let mut table = self.table.lock();
            let id = table.next_id;
            table.next_id += 1;
            table.waiting.push((Entry { id, whose, bytes, urgency }, start));
            Permit { scheduler: self.clone(), id, _large: large }
        };
        self.reconsider();
        (permit, started)
    }

    /// Whether so large a reservation leaves others enough to go on.
    pub(super) fn can_hold(&self, bytes: u64) -> bool {
        bytes + LEFT_BESIDE_LARGE_BYTES <= self.table.lock().memory_bytes
    }

    /// Admits whom it can: after a transfer has ended, or an urgency was raised.
    pub(super) fn reconsider(&self) {
        let admitted = self.table.lock().admit(self.readers.load(Ordering::Relaxed) > 0);
        for start in admitted {
            // A task that gave up meanwhile has a permit that is being dropped.
            let _ = start.send(());
        }
    }

    /// Notes that a reader waits.
    pub(super) fn reader(&self) -> Reader<'_> {
        self.readers.fetch_add(1, Ordering::Relaxed);
        self.note_reader();
        Reader(self)
    }

    fn note_reader(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        self.last_reader_ms.store(now, Ordering::Relaxed);
    }

    /// The time in which no reader has waited.
    pub(super) fn quiet_for(&self) -> Duration {
        if self.readers.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last_reader_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }

    /// Whether a transfer is in the background, and a reader waits.
    pub(super) fn must_give_way(&self, urgency: &Urgency) -> bool {
        urgency.get() < Priority::Readahead && self.readers.load(Ordering::Relaxed) > 0
    }

    /// Rests between two batches of bytes of a background transfer while a reader waits.
    pub(super) async fn give_way(&self, urgency: &Urgency) {
        let priority = urgency.get();
        let rest = match priority {
            Priority::OnDemand | Priority::Readahead => return,
            Priority::Prefetch => PREFETCH_REST,
            Priority::Hydrate => HYDRATE_REST,
        };
        let left = self.readers_left.notified();
        if self.readers.load(Ordering::Relaxed) > 0 {
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = left => {}
                // A reader waits for this very transfer, or for its place at the host.
                () = urgency.hurried(priority) => {}
            }
        }
    }

    /// Reserves memory for a reply; more than there is for replies takes all of it.
    pub(super) async fn reserve_reply(&self, bytes: u64) -> OwnedSemaphorePermit {
        let units = bytes.div_ceil(REPLY_UNIT_BYTES).min(u64::from(self.reply_units)) as u32;
        let permit = self.replies.clone().acquire_many_owned(units).await;
        permit.expect("the semaphore is never closed")
    }

    /// Waits until the digest of a layer may be computed, until the permit is dropped.
    pub(super) fn hashing_turn(&self) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let hashing = self.hashing.clone();
        async move { hashing.acquire_owned().await.expect("the semaphore is never closed") }
    }

    /// Memory that is reserved now, in bytes.
    pub(super) fn reserved_bytes(&self) -> u64 {
        let reply_units = self.reply_units as usize - self.replies.available_permits();
        let table = self.table.lock();
        table.reserved_bytes + table.aside_bytes + reply_units as u64 * REPLY_UNIT_BYTES
    }

    /// Sets memory aside for bytes that the cache could not keep; `false` where there is none.
    pub(super) fn set_aside(&self, bytes: u64) -> bool {
        let mut table = self.table.lock();
        let is_free = bytes <= table.free_aside_bytes();
        table.aside_bytes += if is_free { bytes } else { 0 };
        is_free
    }

    /// The same without a look at the bound: for what somebody waits for, where nothing else is held.
    pub(super) fn set_aside_anyway(&self, bytes: u64) {
        self.table.lock().aside_bytes += bytes;
    }

    /// Gives memory back that was set aside.
    pub(super) fn give_back_aside(&self, bytes: u64) {
        self.table.lock().aside_bytes -= bytes;
        self.reconsider();
    }

    /// Memory that can be set aside now.
    pub(super) fn free_aside_bytes(&self) -> u64 {
        self.table.lock().free_aside_bytes()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.scheduler.table.lock().remove(self.id);
        self.scheduler.reconsider();
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.note_reader();
        if self.0.readers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.readers_left.notify_waiters();
            self.0.reconsider();
        }
    }
}

impl Table {
    fn free_aside_bytes(&self) -> u64 {
        let most = self.memory_bytes / ASIDE_SHARE;
        let free = self.memory_bytes.saturating_sub(self.reserved_bytes + self.aside_bytes);
        free.min(most.saturating_sub(self.aside_bytes))
    }

    /// Moves everybody who may run from waiting to running, the most urgent first and within a
    /// class the first come; returns whom to wake.
    fn admit(&mut self, reader_waits: bool) -> Vec<oneshot::Sender<()>> {
        let mut admitted = Vec::new();
        while let Some(next) = self.next(reader_waits) {
            let (entry, start) = self.waiting.remove(next);
            self.reserved_bytes += entry.bytes;
            self.running.push(entry);
            admitted.push(start);
        }
        admitted
    }

    fn next(&self, reader_waits: bool) -> Option<usize> {
        // First come, first in the list.
        let waiting = || self.waiting.iter().map(|(entry, _)| entry).enumerate();
        // Hosts that have their share, and a reader that waits for more.
        let mut held = Vec::new();
        for (index, reader) in waiting().filter(|(_, entry)| is_on_demand(entry)) {
            if held.contains(&&reader.whose.host) {
                continue;
            }
            if self.has_share(reader) {
                return self.may_run(reader, reader_waits).then_some(index);
            }
            held.push(&reader.whose.host);
        }
        let may_run = |entry: &Entry| {
            !held.contains(&&entry.whose.host)
                && self.has_share(entry)
                && self.may_run(entry, reader_waits)
        };
        let urgent = waiting()
            .filter(|(_, entry)| may_run(entry))
            .max_by_key(|(_, entry)| (entry.urgency.get(), std::cmp::Reverse(entry.id)));
        urgent.map(|(index, _)| index)
    }

    /// Whether its host has room in its share for one more. The first of a host always fits.
    fn has_share(&self, entry: &Entry) -> bool {
        let Some(host) = &entry.whose.host else { return true };
        let of_host = self.running.iter().filter(|one| one.whose.host.as_ref() == Some(host));
        let (mut running, mut bytes) = (0, 0);
        of_host.for_each(|one| (running, bytes) = (running + 1, bytes + one.bytes));
        let threads = MOST_RUNNING.saturating_sub(self.running.len() - running);
        let others_bytes = self.reserved_bytes - bytes + self.aside_bytes;
        let memory_bytes = self.memory_bytes.saturating_sub(others_bytes);
        let mut threads = threads * HOST_THREADS.0 / HOST_THREADS.1;
        let mut memory_bytes = memory_bytes / HOST_MEMORY.1 * HOST_MEMORY.0;
        if !is_on_demand(entry) {
            threads = threads * HOST_BACKGROUND.0 as usize / HOST_BACKGROUND.1 as usize;
            memory_bytes = memory_bytes / HOST_BACKGROUND.1 * HOST_BACKGROUND.0;
        }
        running == 0 || running < threads && bytes + entry.bytes <= memory_bytes
    }

    fn may_run(&self, entry: &Entry, reader_waits: bool) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let priority = entry.urgency.get();
        // At its host alone: transfers that a dead host holds are none in another's way.
        let of_class = || {
            let is_alike =
                |one: &&Entry| one.urgency.get() == priority && one.whose.host == entry.whose.host;
            self.running.iter().filter(is_alike).count()
        };
        let of_layer =
            || self.running.iter().filter(|one| one.whose.layer == entry.whose.layer).count();
        let (memory_bytes, threads) = (self.memory_bytes, MOST_RUNNING);
        let (class_allows, memory_bytes, threads) = match priority {
            Priority::OnDemand => (true, memory_bytes, threads),
            Priority::Readahead => {
                (of_layer() < MOST_OF_A_LAYER, memory_bytes / 4 * 3, threads / 4 * 3)
            }
            Priority::Prefetch => (of_class() < MOST_PREFETCHES, memory_bytes / 2, threads / 2),
            Priority::Hydrate => {
                (!reader_waits && of_class() < MOST_HYDRATING, memory_bytes / 2, threads / 2)
            }
        };
        class_allows
            && self.running.len() < threads
            && self.reserved_bytes + self.aside_bytes + entry.bytes <= memory_bytes
    }

    fn remove(&mut self, id: u64) {
        if let Some(index) = self.running.iter().position(|entry| entry.id == id) {
            self.reserved_bytes -= self.running.swap_remove(index).bytes;
        } else {
            self.waiting.retain(|(entry, _)| entry.id != id);
        }
    }
}

fn is_on_demand(entry: &Entry) -> bool {
    entry.urgency.get() == Priority::OnDemand
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn scheduler(memory_mib: u64) -> Arc<Scheduler> {
        Scheduler::new(FetchConfig { memory_bytes: memory_mib * MIB })
    }

    fn of(layer: usize) -> Whose {
        Whose { layer, host: None }
    }

    fn at(host: &str) -> Whose {
        Whose { layer: 0, host: Some(host.into()) }
    }

    #[tokio::test]
    async fn the_most_urgent_runs_first_and_raising_counts() {
        let scheduler = scheduler(8);
        let all = scheduler.acquire(of(0), 6 * MIB, Urgency::on_demand()).await;
        let raised = Urgency::new(Priority::Hydrate);
        let mut low = Box::pin(scheduler.acquire(of(1), 6 * MIB, raised.clone()));
        let mut middle =
            Box::pin(scheduler.acquire(of(1), 6 * MIB, Urgency::new(Priority::Readahead)));
        assert!(low.as_mut().now_or_never().is_none() && middle.as_mut().now_or_never().is_none());
        raised.raise(Priority::OnDemand);
        scheduler.reconsider();
        drop(all);
        let low = low.as_mut().now_or_never().expect("it was raised above the other");
        assert!(middle.as_mut().now_or_never().is_none());
        drop(low);
        assert!(middle.now_or_never().is_some());
    }

    #[tokio::test]
    async fn background_work_leaves_room_for_a_reader() {
        let scheduler = scheduler(512);
        let mut held = Vec::new();
        for priority in [Priority::Prefetch, Priority::Hydrate] {
            for _ in 0..100 {
                held.extend(
                    scheduler.acquire(of(0), 2 * MIB, Urgency::new(priority)).now_or_never(),
                );
            }
        }
        assert_eq!(held.len(), MOST_PREFETCHES + MOST_HYDRATING);
        assert!(scheduler.acquire(of(0), 2 * MIB, Urgency::on_demand()).now_or_never().is_some());
    }

    #[tokio::test]
    async fn nothing_is_hydrated_while_a_reader_waits() {
        let scheduler = scheduler(512);
        let running = scheduler.acquire(of(0), MIB, Urgency::on_demand()).await;
        let reader = scheduler.reader();
        let mut hydrate = Box::pin(scheduler.acquire(of(0), MIB, Urgency::new(Priority::Hydrate)));
        assert!(hydrate.as_mut().now_or_never().is_none());
        assert_eq!(scheduler.quiet_for(), Duration::ZERO);
        drop(reader);
        assert!(hydrate.now_or_never().is_some());
        drop(running);
    }

    /// Frames that claim large windows, each at its own host.
    #[tokio::test]
    async fn large_reservations_come_one_at_a_time_and_hold_nobody_up() {
        let scheduler = scheduler(512);
        let large = |host| scheduler.acquire(at(host), 136 * MIB, Urgency::on_demand());
        let first = large("a").await;
        let (mut second, mut third) = (Box::pin(large("b")), Box::pin(large("c")));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        for host in ["a", "d"] {
            let reader = scheduler.acquire(at(host), 3 * MIB, Urgency::on_demand());
            assert!(reader.now_or_never().is_some(), "{host}");
        }
        drop(first);
        let second = second.now_or_never().expect("it is its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.now_or_never().is_some());
        assert_eq!(scheduler.reserved_bytes(), 0);
        assert!(scheduler.can_hold(136 * MIB) && !self::scheduler(128).can_hold(136 * MIB));
    }

    #[tokio::test]
    async fn nothing_passes_a_reader_that_needs_much() {
        let scheduler = scheduler(16);
        let small = || scheduler.acquire(of(1), 3 * MIB, Urgency::new(Priority::Readahead));
        let mut running: Vec<_> = std::iter::from_fn(|| small().now_or_never()).collect();
        assert_eq!(running.len(), 3, "a quarter of the 12 MiB is not for readahead");
        let mut large = Box::pin(scheduler.acquire(of(0), 8 * MIB, Urgency::on_demand()));
        assert!(large.as_mut().now_or_never().is_none());
        let mut next = Box::pin(small());
        let mut turns = 0;
        while large.as_mut().now_or_never().is_none() {
            assert!(running.pop().is_some(), "it runs when others have left");
            assert!(next.as_mut().now_or_never().is_none(), "readahead does not take their room");
            turns += 1;
        }
        assert_eq!(turns, 2);
    }

    #[tokio::test]
    async fn a_host_that_does_not_answer_leaves_threads_and_memory_for_others() {
        // With much memory the threads are what is short, with little the memory.
        for memory_mib in [512, 16] {
            let scheduler = scheduler(memory_mib);
            let ask = |host| Box::pin(scheduler.acquire(at(host), MIB, Urgency::on_demand()));
            let mut dead: Vec<_> = (0..100).map(|_| ask("dead.example")).collect();
            let mut held = Vec::new();
            dead.retain_mut(|one| one.now_or_never().map(|permit| held.push(permit)).is_none());
            assert_eq!(held.len(), if memory_mib == 16 { 9 } else { MOST_RUNNING / 2 });
            // They stand behind a hundred readers of the other host, and do not wait for them.
            for host in ["one.example", "two.example", "three.example"] {
                held.push(ask(host).now_or_never().expect("others have room"));
            }
            let readahead = Urgency::new(Priority::Readahead);
            let ahead = scheduler.acquire(at("dead.example"), MIB, readahead);
            assert!(ahead.now_or_never().is_none(), "it passes the readers of its host");
            held.remove(0);
            let first = dead[0].as_mut().now_or_never();
            assert!(first.is_none(), "the share is of what others leave");
        }
    }

    #[tokio::test]
    async fn background_work_of_a_host_that_does_not_answer_holds_up_that_of_no_other() {
        for priority in [Priority::Prefetch, Priority::Hydrate] {
            let scheduler = scheduler(512);
            let urgency = Urgency::new(priority);
            let ask = |host| Box::pin(scheduler.acquire(at(host), MIB, urgency.clone()));
            let mut dead: Vec<_> = (0..100).map(|_| ask("dead.example")).collect();
            let ran = dead.iter_mut().filter_map(|one| one.now_or_never()).collect::<Vec<_>>();
            assert!([MOST_PREFETCHES, MOST_HYDRATING].contains(&ran.len()), "{}", ran.len());
            assert!(ask("other.example").now_or_never().is_some(), "{priority:?}");
        }
    }

    #[tokio::test]
    async fn a_reader_does_not_wait_for_the_readahead_of_its_host() {
        for memory_mib in [16, 512] {
            let scheduler = scheduler(memory_mib);
            let ask = |layer, urgency| {
                let whose = Whose { layer, host: Some("only.example".into()) };
                Box::pin(scheduler.acquire(whose, 3 * MIB, urgency))
            };
            let readahead = Urgency::new(Priority::Readahead);
            let mut ahead: Vec<_> = (0..100).map(|layer| ask(layer, readahead.clone())).collect();
            let ran = ahead.iter_mut().filter_map(|one| one.now_or_never()).collect::<Vec<_>>();
            assert_eq!(ran.len(), if memory_mib == 16 { 2 } else { 24 });
            assert!(ask(0, Urgency::on_demand()).now_or_never().is_some(), "{memory_mib} MiB");
        }
    }

    #[tokio::test]
    async fn a_large_transfer_of_a_host_is_not_passed_by_small_ones_of_it() {
        let scheduler = scheduler(16);
        let small = || scheduler.acquire(at("a"), 3 * MIB, Urgency::on_demand());
        let mut running = vec![small().await, small().await];
        let mut large = Box::pin(scheduler.acquire(at("a"), 8 * MIB, Urgency::on_demand()));
        let mut next = Box::pin(small());
        assert!(large.as_mut().now_or_never().is_none() && next.as_mut().now_or_never().is_none());
        running.pop();
        assert!(next.as_mut().now_or_never().is_none());
        running.pop();
        assert!(large.now_or_never().is_some() && next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_transfer_that_rests_goes_on_when_a_reader_wants_it() {
        let scheduler = scheduler(16);
        let _reader = scheduler.reader();
        let urgency = Urgency::new(Priority::Hydrate);
        let mut rest = Box::pin(scheduler.give_way(&urgency));
        assert!(rest.as_mut().now_or_never().is_none());
        urgency.raise(Priority::OnDemand);
        assert!(rest.now_or_never().is_some());
        let holder = Urgency::new(Priority::Hydrate);
        let mut rest = Box::pin(scheduler.give_way(&holder));
        assert!(rest.as_mut().now_or_never().is_none());
        holder.stands_in_the_way(true);
        assert!(rest.now_or_never().is_some(), "it holds what a reader waits for");
        assert!(scheduler.give_way(&holder).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing_behind() {
        let scheduler = scheduler(4);
        let held = scheduler.acquire(of(0), 100 * MIB, Urgency::on_demand()).await;
        for _ in 0..100 {
            assert!(scheduler.acquire(of(0), MIB, Urgency::on_demand()).now_or_never().is_none());
        }
        assert!(scheduler.table.lock().waiting.is_empty());
        drop(held);
        assert_eq!(scheduler.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn a_reply_larger_than_its_memory_is_made_alone() {
        let scheduler = scheduler(16);
        let large = scheduler.reserve_reply(u64::MAX).await;
        assert_eq!(scheduler.reserved_bytes(), 4 * MIB);
        assert!(scheduler.reserve_reply(1).now_or_never().is_none());
        drop(large);
        assert_eq!(scheduler.reserved_bytes(), 0);
    }

    fn any_priority() -> impl Strategy<Value = Priority> {
        prop::sample::select(Priority::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn memory_is_kept_and_everybody_runs_in_the_end(
            wants in prop::collection::vec((0..3usize, 1..9 * MIB, any_priority()), 1..40),
            hosts in 1..4usize,
        ) {
            let scheduler = scheduler(16);
            let mut waiting: Vec<_> = wants
                .iter()
                .map(|&(layer, bytes, priority)| {
                    let scheduler = scheduler.clone();
                    Box::pin(async move {
                        let whose = at(&(layer % hosts).to_string());
                        scheduler.acquire(whose, bytes, Urgency::new(priority)).await
                    })
                })
                .collect();
            let mut rounds = 0;
            while !waiting.is_empty() {
                rounds += 1;
                prop_assert!(rounds <= wants.len(), "somebody runs in each round");
                let mut permits = Vec::new();
                waiting.retain_mut(|want| match want.as_mut().now_or_never() {
                    Some(permit) => {
                        permits.push(permit);
                        false
                    }
                    None => true,
                });
                let reserved = scheduler.reserved_bytes();
                prop_assert!(reserved <= 12 * MIB || permits.len() == 1);
            }
            prop_assert_eq!(scheduler.reserved_bytes(), 0);
        }
    }
}
