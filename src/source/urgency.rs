//! The priority of requests, and the patience with a silent host.
//!
//! The order of priorities: a waiting reader; bytes that a reader's pattern predicts; prefetch on request; the rest
//! of the kit in the background.
//!
//! Patience is separate from priority (docs/design/003-registry-client.md). A reader has a deadline, so its request
//! gives up on a host that is silent for long. A command that opens a kit waits while the connection lives, and so
//! does background work. A pull-through cache may fetch a blob for minutes before its first byte. It begins anew if
//! its client goes away.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::admission::UserId;

/// The most users that are kept of one request.
///
/// 64: more users of one machine rarely wait for one chunk, and the queue looks at each of them. Further users get
/// their bytes too, but do not count for the order.
const MOST_USERS: usize = 64;

/// The reason for a request. A later variant comes before an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// The rest of a kit, in the background.
    Hydrate,
    /// Asked for beforehand: tensors, traces, `kitfs warm`.
    Prefetch,
    /// A reader's pattern predicts that it reads the bytes next.
    Readahead,
    /// A reader waits.
    OnDemand,
}

impl Priority {
    /// All priorities, the least urgent first.
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

/// The reason for a request beyond its priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Purpose {
    /// Its priority says all.
    #[default]
    Plain,
    /// The request opens a kit. It is as urgent as a reader, and as patient as `kitfs warm`.
    Opening,
    /// `kitfs warm`, or a command that copies whole layers.
    Warm,
}

/// The traffic that the bytes of a request belong to, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// A reader waits, or a command that opens a kit.
    OnDemand,
    /// A reader's pattern predicts that it reads the bytes next.
    Readahead,
    /// Asked for beforehand, by tensors and traces.
    Prefetch,
    /// `kitfs warm`, and commands that copy whole layers.
    Warm,
    /// The rest of a kit, in the background.
    Hydrate,
}

impl Traffic {
    /// The number of kinds.
    pub const COUNT: usize = Self::Hydrate as usize + 1;
}

/// The priority of a request, the users who wait for it, and its patience, shared by all clones.
///
/// The priority can rise while the request waits or runs, because a reader began to wait for its bytes. It never
/// falls. Only users of the highest priority count: when a reader begins to wait, it takes the request over from
/// users of readahead.
#[derive(Clone, Debug)]
pub struct Urgency(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    priority: AtomicU8,
    users: Mutex<Vec<UserId>>,
    /// Grows with each change of the priority or of the users.
    changes: AtomicU32,
    purpose: Purpose,
    is_in_the_way: AtomicBool,
    changed: Notify,
    trail: Mutex<Trail>,
}

/// The waits and retries of one transfer's requests so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// The time that the requests waited for slots of their hosts.
    pub slot: Duration,
    /// The requests that were sent again.
    pub retries: u32,
    /// The host that the last one was sent to.
    pub host: Option<Arc<str>>,
}

impl Urgency {
    /// A request of user 0 that starts with this priority; see [`Urgency::of_user`].
    pub fn new(priority: Priority) -> Self {
        Self::with(priority, Purpose::Plain, UserId::default())
    }

    /// The same for another user.
    pub fn of_user(self, user: UserId) -> Self {
        Self::with(self.get(), self.0.purpose, user)
    }

    /// The same for `kitfs warm` and for commands that copy whole layers. Only metrics tell it from other prefetch.
    pub fn for_warm(self) -> Self {
        Self::with(self.get(), Purpose::Warm, self.user())
    }

    fn with(priority: Priority, purpose: Purpose, user: UserId) -> Self {
        Self(Arc::new(Shared {
            priority: AtomicU8::new(priority as u8),
            users: Mutex::new(vec![user]),
            changes: AtomicU32::new(0),
            purpose,
            is_in_the_way: AtomicBool::new(false),
            changed: Notify::new(),
            trail: Mutex::default(),
        }))
    }

    /// A request that a reader waits for from the start.
    pub fn on_demand() -> Self {
        Self::new(Priority::OnDemand)
    }

    /// A request that opens a kit: patient, though a person waits for it.
    pub fn opening() -> Self {
        Self::with(Priority::OnDemand, Purpose::Opening, UserId::default())
    }

    /// Whether the request waits for a silent host while the connection lives.
    pub fn is_patient(&self) -> bool {
        self.0.purpose == Purpose::Opening || self.get() <= Priority::Prefetch
    }

    /// The traffic that bytes belong to which come now. A request that a reader waits for is on demand, whatever it
    /// began as.
    pub fn traffic(&self) -> Traffic {
        match (self.get(), self.0.purpose) {
            (Priority::OnDemand, _) => Traffic::OnDemand,
            (Priority::Readahead, _) => Traffic::Readahead,
            (Priority::Prefetch, Purpose::Warm) => Traffic::Warm,
            (Priority::Prefetch, _) => Traffic::Prefetch,
            (Priority::Hydrate, _) => Traffic::Hydrate,
        }
    }

    /// Notes that a request has waited for a slot of its host.
    pub(crate) fn note_slot(&self, waited: Duration) {
        self.0.trail.lock().slot += waited;
    }

    /// Notes that a request is sent to this host.
    pub(crate) fn note_host(&self, host: &str) {
        let mut trail = self.0.trail.lock();
        if trail.host.as_deref() != Some(host) {
            trail.host = Some(host.into());
        }
    }

    /// Notes that a request is sent again.
    pub(crate) fn note_retry(&self) {
        self.0.trail.lock().retries += 1;
    }

    /// The waits and retries of its requests so far.
    pub fn trail(&self) -> Trail {
        self.0.trail.lock().clone()
    }

    /// The priority now.
    pub fn get(&self) -> Priority {
        Priority::ALL[usize::from(self.0.priority.load(Ordering::SeqCst))]
    }

    /// Raises the priority to at least `priority`, for the same users.
    pub fn raise(&self, priority: Priority) {
        if self.0.priority.fetch_max(priority as u8, Ordering::SeqCst) < priority as u8 {
            self.tell();
        }
    }

    /// Notes that `user` waits for the request with `priority`; `true` if that changes its place in the queue.
    pub fn join(&self, priority: Priority, user: UserId) -> bool {
        let mut users = self.0.users.lock();
        let before = self.get();
        let is_raised = priority > before;
        if is_raised {
            users.clear();
        }
        let is_new = priority >= before && users.len() < MOST_USERS && !users.contains(&user);
        if is_new {
            users.push(user);
        }
        self.0.priority.fetch_max(priority as u8, Ordering::SeqCst);
        drop(users);
        if is_raised || is_new {
            self.tell();
        }
        is_raised || is_new
    }

    /// Notes that the users of another request wait for this one too, as urgently.
    pub(crate) fn join_all(&self, other: &Urgency) -> bool {
        let (priority, users) = (other.get(), other.0.users.lock().clone());
        let joined = users.into_iter().filter(|&user| self.join(priority, user));
        joined.count() > 0
    }

    /// Calls `visit` for each user who waits for the request; at least one.
    pub(crate) fn each_user(&self, visit: impl FnMut(UserId)) {
        self.0.users.lock().iter().copied().for_each(visit);
    }

    /// One of its users.
    pub(crate) fn user(&self) -> UserId {
        self.0.users.lock().first().copied().unwrap_or_default()
    }

    pub(crate) fn is_of(&self, user: UserId) -> bool {
        self.0.users.lock().contains(&user)
    }

    fn tell(&self) {
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// The number of changes of its priority and its users so far.
    pub(crate) fn changes(&self) -> u32 {
        self.0.changes.load(Ordering::SeqCst)
    }

    /// Waits until there were more changes than `seen`.
    pub(crate) async fn changed_since(&self, seen: u32) {
        self.until(|| self.changes() != seen).await;
    }

    /// Waits until patience ends, because a reader began to wait. A request without such an end waits for ever.
    pub(crate) async fn until_impatient(&self) {
        if self.0.purpose == Purpose::Opening {
            return std::future::pending().await;
        }
        self.raised_above(Priority::Prefetch).await;
    }

    /// Waits until the priority is above `priority`.
    pub(crate) async fn raised_above(&self, priority: Priority) {
        self.until(|| self.get() > priority).await;
    }

    /// Notes whether a more urgent request waits for the slot of this one.
    pub(crate) fn stands_in_the_way(&self, is_so: bool) {
        if !self.0.is_in_the_way.swap(is_so, Ordering::SeqCst) && is_so {
            self.0.changed.notify_waiters();
        }
    }

    /// Waits until the priority is above `priority`, or a more urgent request waits for this one.
    pub(crate) async fn hurried(&self, priority: Priority) {
        let is_in_the_way = || self.0.is_in_the_way.load(Ordering::SeqCst);
        self.until(|| self.get() > priority || is_in_the_way()).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            // The notification is enabled before the look, so that a change between the two is not missed.
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
    fn an_urgency_rises_for_all_clones_and_never_falls() {
        let urgency = Urgency::new(Priority::Prefetch);
        let shared = urgency.clone();
        shared.raise(Priority::OnDemand);
        shared.raise(Priority::Hydrate);
        assert_eq!(urgency.get(), Priority::OnDemand);
    }

    #[test]
    fn bytes_of_a_warm_are_told_from_other_prefetch_until_a_reader_waits() {
        let of = |priority| Urgency::new(priority).for_warm().of_user(UserId(7)).traffic();
        assert_eq!(of(Priority::Prefetch), Traffic::Warm);
        assert_eq!(Urgency::new(Priority::Prefetch).traffic(), Traffic::Prefetch);
        for (priority, expected) in [
            (Priority::Hydrate, Traffic::Hydrate),
            (Priority::Readahead, Traffic::Readahead),
            (Priority::OnDemand, Traffic::OnDemand),
        ] {
            assert_eq!(of(priority), expected);
            assert_eq!(Urgency::new(priority).traffic(), expected);
        }
        assert_eq!(Urgency::opening().traffic(), Traffic::OnDemand);
        let warm = Urgency::new(Priority::Prefetch).of_user(UserId(7)).for_warm();
        assert!(warm.is_of(UserId(7)) && warm.is_patient());
        warm.join(Priority::OnDemand, UserId(8));
        assert_eq!(warm.traffic(), Traffic::OnDemand);
    }

    #[tokio::test]
    async fn a_raise_is_told_to_what_waits_for_it() {
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
    async fn a_request_is_hurried_for_as_long_as_it_stands_in_the_way() {
        let urgency = Urgency::new(Priority::Hydrate);
        let mut hurried = Box::pin(urgency.hurried(Priority::Hydrate));
        assert!(futures_util::poll!(&mut hurried).is_pending());
        urgency.stands_in_the_way(true);
        hurried.await;
        urgency.stands_in_the_way(false);
        assert!(futures_util::poll!(Box::pin(urgency.hurried(Priority::Hydrate))).is_pending());
        assert_eq!(urgency.get(), Priority::Hydrate);
    }

    #[tokio::test]
    async fn patience_ends_when_a_reader_waits_and_never_while_a_kit_is_opened() {
        let urgency = Urgency::new(Priority::Prefetch);
        assert!(urgency.is_patient() && Urgency::new(Priority::Hydrate).is_patient());
        assert!(!Urgency::new(Priority::Readahead).is_patient());
        let mut impatient = Box::pin(urgency.until_impatient());
        assert!(futures_util::poll!(&mut impatient).is_pending());
        urgency.raise(Priority::OnDemand);
        impatient.await;
        assert!(!urgency.is_patient());

        let opening = Urgency::opening();
        assert_eq!((opening.get(), opening.is_patient()), (Priority::OnDemand, true));
        assert!(futures_util::poll!(Box::pin(opening.until_impatient())).is_pending());
    }

    #[test]
    fn users_of_the_highest_priority_count() {
        let users = |urgency: &Urgency| {
            let mut users = Vec::new();
            urgency.each_user(|user| users.push(user.0));
            users
        };
        let urgency = Urgency::new(Priority::Readahead).of_user(UserId(1));
        assert!(!urgency.join(Priority::Readahead, UserId(1)), "nothing changes");
        assert!(!urgency.join(Priority::Hydrate, UserId(2)) && urgency.changes() == 0);
        assert!(urgency.join(Priority::Readahead, UserId(2)));
        assert_eq!(users(&urgency), [1, 2]);
        assert!(urgency.join(Priority::OnDemand, UserId(3)));
        assert_eq!((users(&urgency), urgency.get()), (vec![3], Priority::OnDemand));
        assert!(urgency.join_all(&Urgency::on_demand().of_user(UserId(4))));
        assert_eq!(users(&urgency), [3, 4]);
        (0..200).for_each(|user| _ = urgency.join(Priority::OnDemand, UserId(user)));
        assert_eq!(users(&urgency).len(), MOST_USERS);
    }

    #[tokio::test]
    async fn a_user_who_joins_is_told_to_what_waits_for_a_change() {
        let urgency = Urgency::on_demand();
        let mut changed = Box::pin(urgency.changed_since(urgency.changes()));
        assert!(futures_util::poll!(&mut changed).is_pending());
        urgency.join(Priority::OnDemand, UserId(7));
        changed.await;
    }

    #[test]
    fn the_order_is_that_of_the_design() {
        assert!(Priority::ALL.is_sorted());
        assert_eq!(Priority::ALL.map(|priority| priority as u8), [0, 1, 2, 3]);
    }
}
