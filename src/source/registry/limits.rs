//! A limit on requests at once for each host.
//!
//! A permit is held from before a request until its body has been read or dropped. Token requests
//! take none: they are single flight already, and a host that serves its own tokens must not have
//! to wait for the streams that cannot start without one.
//!
//! How long a permit is held is up to the reader of the body: hours for a large compressed layer,
//! and for ever where the reader first waits for another answer of this same host. So the limit
//! gives way, slowly:
//!
//! ```text
//! all permits held, nobody let in for PATIENCE --> one more permit is lent, to the first in line
//! a permit comes back while some are lent -------> it is withdrawn
//! ```
//!
//! Whoever has N others before it in line is let in after N + 1 times the patience at the latest,
//! whatever the holders do: streams that nobody drains cost time, and never a deadlock. The limit is
//! exceeded by one request in each such time at most, and only while it would stand still.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hosts whose limits are remembered.
///
/// 256: far more than a process talks to, and a hostile registry that redirects to ever new hosts
/// cannot make the table grow. A host that falls out only gets a fresh count.
const HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// How long all permits of a host may be held before one more is lent. 5 s: 16 streams of 8 MiB
/// that a line of 30 MB/s brings take that long all together, so on a line worth mounting models
/// over, permits come back sooner and the limit is kept.
const PATIENCE: Duration = Duration::from_secs(5);

/// A limit on requests at once for each registry or storage host.
pub struct HostLimits {
    per_host: usize,
    patience: Duration,
    hosts: Mutex<LruCache<String, Arc<Host>>>,
}

struct Host {
    permits: Arc<Semaphore>,
    lending: Mutex<Lending>,
}

struct Lending {
    /// Permits beyond the limit.
    lent: usize,
    /// When somebody was last let in, or a permit was last lent.
    last: Instant,
}

/// The right to one request; given back when dropped.
pub(super) struct Permit {
    host: Arc<Host>,
    permit: Option<OwnedSemaphorePermit>,
}

impl HostLimits {
    /// At most `per_host` requests at once for each host, and one more for each 5 seconds in which
    /// none of them ends; 0 counts as 1.
    pub fn new(per_host: usize) -> Arc<Self> {
        Self::with_patience(per_host, PATIENCE)
    }

    /// As [`HostLimits::new`], with another time than 5 seconds.
    pub fn with_patience(per_host: usize, patience: Duration) -> Arc<Self> {
        let per_host = per_host.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self { per_host, patience, hosts: Mutex::new(LruCache::new(HOSTS)) })
    }

    /// Waits until a request to `host` (`HOST[:PORT]`) may be sent; first come, first served.
    pub(super) async fn acquire(&self, host: &str) -> Permit {
        let host = {
            let mut hosts = self.hosts.lock();
            Arc::clone(hosts.get_or_insert_ref(host, || Arc::new(Host::new(self.per_host))))
        };
        // One future all along: it keeps its place in the line.
        let mut turn = pin!(Arc::clone(&host.permits).acquire_owned());
        loop {
            let end = host.lending.lock().last + self.patience;
            match tokio::time::timeout_at(end.into(), &mut turn).await {
                Ok(permit) => {
                    let permit = permit.expect("nobody closes these semaphores");
                    host.lending.lock().last = Instant::now();
                    return Permit { host, permit: Some(permit) };
                }
                Err(_) => host.lend(self.patience),
            }
        }
    }
}

impl Host {
    fn new(permits: usize) -> Self {
        let lending = Mutex::new(Lending { lent: 0, last: Instant::now() });
        Self { permits: Arc::new(Semaphore::new(permits)), lending }
    }

    /// Lends one more permit, unless somebody was let in within `patience`: of all that wait, only
    /// one gets that far, and the permit goes to the first in line.
    fn lend(&self, patience: Duration) {
        let mut lending = self.lending.lock();
        if lending.last.elapsed() >= patience {
            lending.last = Instant::now();
            lending.lent += 1;
            self.permits.add_permits(1);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut lending = self.host.lending.lock();
        let permit = self.permit.take();
        if lending.lent > 0 {
            lending.lent -= 1;
            permit.into_iter().for_each(OwnedSemaphorePermit::forget);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn one_host_waits_and_another_does_not() {
        let limits = HostLimits::with_patience(1, NEVER);
        let held = limits.acquire("a").await;
        assert!(limits.acquire("a").now_or_never().is_none());
        assert!(limits.acquire("b").now_or_never().is_some());
        drop(held);
        assert!(limits.acquire("a").now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_waits_for_permits_that_never_come_back_is_let_in_all_the_same() {
        let limits = HostLimits::with_patience(2, Duration::from_millis(5));
        let mut held = Vec::new();
        for _ in 0..7 {
            held.push(limits.acquire("a").await);
        }
        let host = Arc::clone(&held[0].host);
        assert_eq!(host.lending.lock().lent, 5);
        // What was lent is withdrawn as requests end, and the limit is as it was.
        drop(held);
        assert_eq!((host.lending.lock().lent, host.permits.available_permits()), (0, 2));
    }

    #[tokio::test]
    async fn many_that_wait_are_lent_one_permit_at_a_time() {
        let limits = HostLimits::with_patience(1, Duration::from_millis(200));
        let held = limits.acquire("a").await;
        let host = Arc::clone(&held.host);
        host.lending.lock().last = Instant::now() - Duration::from_millis(200);
        for _ in 0..10 {
            host.lend(Duration::from_millis(200));
        }
        assert_eq!(host.lending.lock().lent, 1);
    }
}
