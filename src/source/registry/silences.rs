//! Hosts that are silent while a kit is opened or warmed, so that the user can be told.
//!
//! A pull-through cache may be silent for minutes while it downloads a blob. A patient request adds its host here
//! after a while, and removes it at the first byte.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::process::running_time;

/// A silent host, and the patient wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// `HOST[:PORT]`.
    pub host: String,
    /// The time since the last byte.
    pub silent_for: Duration,
}

/// The hosts that are silent now.
#[derive(Debug)]
pub(super) struct Silences {
    /// The silence after which a host is added.
    untold: Duration,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    silent: BTreeMap<u64, (String, Instant)>,
}

/// Removes its entry from the table when dropped.
struct Entry<'a> {
    silences: &'a Silences,
    number: u64,
}

impl Silences {
    pub(super) fn new(untold: Duration) -> Self {
        Self { untold, table: Mutex::default() }
    }

    /// Each host that is silent, with its longest silence; by name.
    pub(super) fn list(&self) -> Vec<Silence> {
        let mut longest: BTreeMap<String, Duration> = BTreeMap::new();
        for (host, since) in self.table.lock().silent.values() {
            let silent_for = longest.entry(host.clone()).or_default();
            *silent_for = since.elapsed().max(*silent_for);
        }
        longest.into_iter().map(|(host, silent_for)| Silence { host, silent_for }).collect()
    }

    /// Waits for `something` of `host`, and adds the host to the table when that takes long.
    pub(super) async fn watch<T>(&self, host: &str, something: impl Future<Output = T>) -> T {
        let since = Instant::now();
        let mut something = pin!(something);
        match running_time::timeout(self.untold, &mut something).await {
            Ok(came) => came,
            Err(_) => {
                let _entry = self.enter(host, since);
                something.await
            }
        }
    }

    fn enter(&self, host: &str, since: Instant) -> Entry<'_> {
        let mut table = self.table.lock();
        table.next += 1;
        let number = table.next;
        table.silent.insert(number, (host.to_owned(), since));
        Entry { silences: self, number }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.silences.table.lock().silent.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(silences: &Silences) -> Vec<String> {
        silences.list().into_iter().map(|silence| silence.host).collect()
    }

    #[tokio::test]
    async fn a_host_is_entered_while_it_is_silent_for_long() {
        let silences = Silences::new(Duration::from_millis(20));
        silences.watch("quick", std::future::ready(())).await;
        let (answer, answered) = tokio::sync::oneshot::channel::<()>();
        let mut first = pin!(silences.watch("slow", answered));
        let mut second = pin!(silences.watch("slow", std::future::pending::<()>()));
        let poll_both = async |first: &mut std::pin::Pin<&mut _>,
                               second: &mut std::pin::Pin<&mut _>| {
            let _: (std::task::Poll<Result<(), _>>, std::task::Poll<()>) =
                (futures_util::poll!(first), futures_util::poll!(second));
        };
        poll_both(&mut first, &mut second).await;
        assert!(silences.list().is_empty(), "it has only begun");
        tokio::time::sleep(Duration::from_millis(40)).await;
        poll_both(&mut first, &mut second).await;
        assert_eq!(hosts(&silences), ["slow"]);
        assert!(silences.list()[0].silent_for >= Duration::from_millis(40));
        answer.send(()).unwrap();
        first.await.unwrap();
        assert_eq!(hosts(&silences), ["slow"], "another request still waits");
    }

    #[tokio::test]
    async fn a_host_is_taken_out_when_nobody_waits_any_more() {
        let silences = Silences::new(Duration::ZERO);
        {
            let mut waiting = pin!(silences.watch("slow", std::future::pending::<()>()));
            assert!(futures_util::poll!(&mut waiting).is_pending());
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert!(futures_util::poll!(&mut waiting).is_pending());
            assert_eq!(hosts(&silences), ["slow"]);
        }
        assert!(silences.list().is_empty());
    }
}
