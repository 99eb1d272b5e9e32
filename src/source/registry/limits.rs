//! A limit on requests at once for each host.
//!
//! A permit is held from before a request until its body has been read or dropped. Token requests
//! take none: they are single flight already, and a host that serves its own tokens must not have
//! to wait for the streams that cannot start without one.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hosts whose limits are remembered.
///
/// 256: far more than a process talks to, and a hostile registry that redirects to ever new hosts
/// cannot make the table grow. A host that falls out only gets a fresh count.
const HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// A limit on requests at once for each registry or storage host.
pub struct HostLimits {
    per_host: usize,
    hosts: Mutex<LruCache<String, Arc<Semaphore>>>,
}

impl HostLimits {
    /// At most `per_host` requests at once for each host; 0 counts as 1.
    pub fn new(per_host: usize) -> Arc<Self> {
        let per_host = per_host.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self { per_host, hosts: Mutex::new(LruCache::new(HOSTS)) })
    }

    /// Waits until a request to `host` (`HOST[:PORT]`) may be sent; first come, first served.
    pub(super) async fn acquire(&self, host: &str) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut hosts = self.hosts.lock();
            let new = || Arc::new(Semaphore::new(self.per_host));
            Arc::clone(hosts.get_or_insert_ref(host, new))
        };
        semaphore.acquire_owned().await.expect("nobody closes these semaphores")
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_host_waits_and_another_does_not() {
        let limits = HostLimits::new(1);
        let held = limits.acquire("a").await;
        assert!(limits.acquire("a").now_or_never().is_none());
        assert!(limits.acquire("b").now_or_never().is_some());
        drop(held);
        assert!(limits.acquire("a").now_or_never().is_some());
    }
}
