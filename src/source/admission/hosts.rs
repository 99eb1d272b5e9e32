//! The hosts: the limit of each, and the request that runs next.
//!
//! A request takes a slot before it is sent, and returns the slot when its body was read or dropped. A token
//! request takes no slot. Each repository requests one token at a time, and streams must not hold the slots that
//! their own token would need.
//!
//! This file has the locks and the wake-ups. The rules are in `gate` and `allowance`, which are pure.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::gate::{Gate, Ticket};
use super::rate::{Bucket, Rate};
use super::{Admission, now};
use crate::source::Urgency;

/// Hosts whose limits are remembered.
///
/// 256: far more than a process talks to. The bound holds against a hostile registry that redirects
/// to ever new hosts. A host that falls out of the table starts with a fresh count.
const HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// The requests to one host, and its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUsage {
    /// `HOST[:PORT]`.
    pub host: String,
    /// The most requests that may run now.
    pub limit: usize,
    /// Running requests, from before they are sent to the end of their bodies.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// The time in which the host wants no requests, by its `Retry-After`.
    pub paused_for: Option<Duration>,
    /// Requests sent so far, with and without an answer.
    pub requests: u64,
    /// Bytes of bodies received so far.
    pub body_bytes: u64,
    /// Refusals so far: answers with 429, or with 503 and `Retry-After`.
    pub refusals: u64,
}

struct Host {
    gate: Mutex<Gate<oneshot::Sender<()>>>,
    /// Tells waiting requests that the host has asked for a pause.
    paused: Notify,
    requests: AtomicU64,
    body_bytes: AtomicU64,
    refusals: AtomicU64,
    /// The bytes that a user allows in a second.
    bytes: Mutex<Option<Bucket>>,
}

/// The right to one request, or a place in the queue for it. Dropping it gives it back.
pub(crate) struct Slot {
    host: Arc<Host>,
    ticket: Ticket,
}

/// The table of hosts.
pub(super) struct Hosts {
    most: usize,
    patience: Duration,
    hosts: Mutex<LruCache<String, Arc<Host>>>,
}

impl Hosts {
    pub(super) fn new(most: usize, patience: Duration) -> Self {
        Self { most, patience, hosts: Mutex::new(LruCache::new(HOSTS)) }
    }

    /// The limit of `host` after its first refusal, or the configured limit before it. The present limit would not
    /// do: a host that redirects all requests gets few, so its limit stays at the start.
    pub(super) fn ceiling(&self, host: Option<&str>) -> usize {
        let host = host.and_then(|host| self.hosts.lock().peek(host).cloned());
        host.map_or(self.most, |host| host.gate.lock().allowance().ceiling())
    }

    fn snapshot(&self) -> Vec<HostUsage> {
        let now = now();
        let hosts = self.hosts.lock();
        let mut all: Vec<_> = hosts.iter().map(|(name, host)| host.usage(name, now)).collect();
        all.sort_unstable_by(|one, other| one.host.cmp(&other.host));
        all
    }
}

impl Admission {
    /// The usage of each host that is remembered, by name.
    pub fn snapshot(&self) -> Vec<HostUsage> {
        self.hosts.snapshot()
    }

    fn host(&self, host: &str) -> Arc<Host> {
        let Hosts { most, patience, hosts } = &self.hosts;
        let new = || Arc::new(Host::new(*most, *patience));
        Arc::clone(hosts.lock().get_or_insert_ref(host, new))
    }

    /// Keeps `host` (`HOST[:PORT]`) below a rate, until another rate is set. The rate holds for all requests and
    /// mounts of the process.
    pub(crate) fn limit_rate(&self, host: &str, rate: Rate) {
        let host = self.host(host);
        host.gate.lock().limit_requests(rate.requests_per_second);
        Bucket::set(&mut host.bytes.lock(), rate.bytes_per_second);
    }

    /// The number of transfers that wait for memory or a thread.
    pub fn waiting_transfers(&self) -> usize {
        self.transfers.lock().waiting()
    }

    /// Waits until a request to `host` (`HOST[:PORT]`) may be sent; see [`super::order`].
    pub(crate) async fn request(&self, host: &str, urgency: &Urgency) -> Slot {
        let patience = self.hosts.patience;
        let host = self.host(host);
        let (bell, mut turn) = oneshot::channel();
        let ticket = host.gate.lock().ask(urgency.clone(), bell, now());
        // From here on, a drop of this future gives up the place in the queue.
        let slot = Slot { host, ticket };
        loop {
            // Read before `look`, so that a change between the two is seen.
            let changes = urgency.changes();
            let mut paused = pin!(slot.host.paused.notified());
            paused.as_mut().enable();
            let next_look = slot.host.look().unwrap_or_else(|| now() + patience);
            tokio::select! {
                biased;
                _ = &mut turn => break,
                () = urgency.changed_since(changes) => {}
                () = paused => {}
                () = tokio::time::sleep_until(next_look.into()) => {}
            }
        }
        slot.host.requests.fetch_add(1, Ordering::Relaxed);
        slot
    }
}

impl Host {
    fn new(most: usize, patience: Duration) -> Self {
        Self {
            gate: Mutex::new(Gate::new(most, patience)),
            paused: Notify::new(),
            requests: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            bytes: Mutex::new(None),
        }
    }

    /// Admits every request whose turn has come, and tells when to look again.
    fn look(&self) -> Option<Instant> {
        let now = now();
        let (turns, next_look) = {
            let mut gate = self.gate.lock();
            let turns = gate.admit(now);
            // A transfer that pauses between its bytes would keep a reader waiting.
            gate.in_the_way().for_each(|(running, is_so)| running.stands_in_the_way(is_so));
            (turns, gate.next_look(now))
        };
        for bell in turns {
            // A request that was dropped meanwhile returns its slot by itself.
            let _ = bell.send(());
        }
        next_look
    }

    fn usage(&self, name: &str, now: Instant) -> HostUsage {
        let gate = self.gate.lock();
        let pause = gate.allowance().paused_until(now);
        HostUsage {
            host: name.to_owned(),
            limit: gate.allowance().limit(),
            running: gate.running(),
            waiting: gate.waiting(),
            paused_for: pause.map(|end| end.duration_since(now)),
            requests: self.requests.load(Ordering::Relaxed),
            body_bytes: self.body_bytes.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
        }
    }
}

impl Slot {
    /// The host has accepted the request.
    pub(crate) fn accepted(&self) {
        self.host.gate.lock().accepted(self.ticket);
        self.host.look();
    }

    /// The host has refused the request, and wants no others for `pause`.
    pub(crate) fn refused(&self, pause: Option<Duration>) {
        self.host.refusals.fetch_add(1, Ordering::Relaxed);
        self.host.gate.lock().refused(self.ticket, now(), pause);
        self.host.paused.notify_waiters();
    }

    /// Counts received bytes of the body.
    pub(crate) fn received(&self, bytes: usize) {
        self.host.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.host.bytes.lock().iter_mut().for_each(|limit| limit.take(bytes as u64, now()));
    }

    /// Waits until the rate of the host permits more bytes. All bodies that are read at the same time share the
    /// rate, piece by piece.
    pub(crate) async fn paced(&self) {
        let due = || self.host.bytes.lock().as_ref().and_then(|limit| limit.due(now()));
        while let Some(due) = due() {
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.host.gate.lock().leave(self.ticket, now());
        self.host.look();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::AdmissionConfig;
    use super::*;
    use crate::source::Priority;

    const NEVER: Duration = Duration::from_secs(3600);

    fn limits(requests_per_host: usize, patience: Duration) -> Arc<Admission> {
        Admission::new(AdmissionConfig { requests_per_host, patience, ..Default::default() })
    }

    fn on_demand() -> Urgency {
        Urgency::on_demand()
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_gets_no_more_requests_and_bytes_than_its_rate_allows() {
        let limits = limits(4, NEVER);
        let rate = Rate { bytes_per_second: Some(1000), requests_per_second: Some(2) };
        limits.limit_rate("a", rate);
        let begin = tokio::time::Instant::now();
        let mut sent = Vec::new();
        for _ in 0..8 {
            drop(limits.request("a", &on_demand()).await);
            sent.push(begin.elapsed());
        }
        // Two requests run at once because the host was idle, and one more when they are paid. Then come two a
        // second.
        assert!(sent[7] >= Duration::from_millis(2_400), "{sent:?}");
        assert!(sent[7] <= Duration::from_millis(3_600), "{sent:?}");
        assert!(limits.request("b", &on_demand()).now_or_never().is_some());
        tokio::time::sleep(Duration::from_secs(10)).await;
        let slot = limits.request("a", &on_demand()).await;
        let begin = tokio::time::Instant::now();
        for _ in 0..50 {
            slot.paced().await;
            slot.received(100);
        }
        slot.paced().await;
        // 5000 bytes: those of one second at once, and the rest in four seconds.
        assert!(begin.elapsed() >= Duration::from_millis(3_900), "{:?}", begin.elapsed());
        assert!(begin.elapsed() <= Duration::from_millis(4_200), "{:?}", begin.elapsed());
        limits.limit_rate("a", Rate::default());
        slot.received(1 << 30);
        assert!(slot.paced().now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_goes_first_where_a_rate_makes_requests_wait() {
        let limits = limits(4, NEVER);
        limits.limit_rate("a", Rate { bytes_per_second: None, requests_per_second: Some(1) });
        for _ in 0..2 {
            drop(limits.request("a", &on_demand()).await);
        }
        let (hydrate, reader) = (Urgency::new(Priority::Hydrate), on_demand());
        let mut background = Box::pin(limits.request("a", &hydrate));
        assert!(futures_util::poll!(&mut background).is_pending());
        let reader = limits.request("a", &reader).await;
        assert!(futures_util::poll!(&mut background).is_pending());
        drop(reader);
        background.await;
    }

    #[tokio::test]
    async fn a_full_host_holds_up_no_other() {
        let limits = limits(1, NEVER);
        let held = limits.request("a", &on_demand()).await;
        assert!(limits.request("a", &on_demand()).now_or_never().is_none());
        assert!(limits.request("b", &on_demand()).now_or_never().is_some());
        drop(held);
        assert!(limits.request("a", &on_demand()).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_request_that_is_dropped_leaves_nothing_behind() {
        let limits = limits(1, NEVER);
        let (urgency, held) = (on_demand(), limits.request("a", &on_demand()).await);
        let mut first = Box::pin(limits.request("a", &urgency));
        let mut second = Box::pin(limits.request("a", &urgency));
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        // The first request is dropped after its turn has come, but before it knows.
        drop(held);
        drop(first);
        drop(second.await);
        let usage = &limits.snapshot()[0];
        assert_eq!((usage.running, usage.waiting, usage.requests), (0, 0, 2));
    }

    #[tokio::test]
    async fn a_request_is_admitted_though_no_slot_ever_comes_back() {
        let limits = limits(2, Duration::from_millis(5));
        let mut held = Vec::new();
        for _ in 0..7 {
            held.push(limits.request("a", &on_demand()).await);
        }
        assert_eq!(limits.snapshot()[0].running, 7);
        // Requests that end pay back the loans, and the limit is as before.
        held.truncate(2);
        let urgency = on_demand();
        let mut waiting = Box::pin(limits.request("a", &urgency));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(held);
        waiting.await;
    }

    #[tokio::test]
    async fn a_request_that_is_raised_finds_the_room_of_its_new_priority() {
        let limits = limits(4, NEVER);
        let held = limits.request("a", &Urgency::new(Priority::Hydrate)).await;
        let urgency = Urgency::new(Priority::Hydrate);
        let mut waiting = Box::pin(limits.request("a", &urgency));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        urgency.raise(Priority::OnDemand);
        waiting.await;
        drop(held);
    }

    #[tokio::test]
    async fn the_queue_goes_on_when_a_pause_ends_the_most_urgent_first() {
        const PAUSE: Duration = Duration::from_millis(20);
        let limits = limits(1, NEVER);
        let refused = limits.request("a", &on_demand()).await;
        let (order, mut waiting) = (Arc::new(Mutex::new(Vec::new())), Vec::new());
        for priority in [Priority::Hydrate, Priority::OnDemand] {
            let (limits, order) = (limits.clone(), order.clone());
            waiting.push(tokio::spawn(async move {
                let slot = limits.request("a", &Urgency::new(priority)).await;
                order.lock().push(priority);
                drop(slot);
            }));
        }
        while limits.snapshot()[0].waiting < 2 {
            tokio::task::yield_now().await;
        }
        refused.refused(Some(PAUSE));
        drop(refused);
        for one in waiting {
            tokio::time::timeout(NEVER / 60, one).await.expect("the queue is looked at").unwrap();
        }
        assert_eq!(*order.lock(), [Priority::OnDemand, Priority::Hydrate]);
    }

    #[tokio::test]
    async fn a_request_is_told_that_a_reader_waits_for_its_slot() {
        let limits = limits(1, NEVER);
        let hydrate = Urgency::new(Priority::Hydrate);
        let is_hurried = || hydrate.hurried(Priority::Hydrate).now_or_never().is_some();
        let _held = limits.request("a", &hydrate).await;
        let (equal, reader) = (Urgency::new(Priority::Hydrate), on_demand());
        let mut next = Box::pin(limits.request("a", &equal));
        assert!(futures_util::poll!(&mut next).is_pending());
        assert!(limits.request("b", &reader).now_or_never().is_some());
        assert!(!is_hurried());
        let mut waiting = Box::pin(limits.request("a", &reader));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        assert!(is_hurried());
        drop(waiting);
        assert!(!is_hurried(), "no more urgent request waits");
        equal.raise(Priority::Readahead);
        assert!(futures_util::poll!(&mut next).is_pending());
        assert!(is_hurried());
    }

    #[tokio::test]
    async fn a_pause_holds_for_all_requests_to_its_host() {
        let limits = limits(4, super::super::PATIENCE);
        let refused = limits.request("a", &on_demand()).await;
        refused.refused(Some(NEVER));
        drop(refused);
        assert!(limits.request("a", &on_demand()).now_or_never().is_none());
        assert!(limits.request("b", &on_demand()).now_or_never().is_some());
        let usage = &limits.snapshot()[0];
        assert_eq!((usage.limit, usage.running, usage.refusals), (2, 0, 1));
        assert!(usage.paused_for.is_some());
    }
}
