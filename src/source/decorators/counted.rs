//! Counts the requests to a source and the bytes that arrive, for tests, figures and metrics.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;

use crate::oci::{BlobId, BlobOffset};
use crate::source::{BlobSource, BlobStream, SourceError, Traffic, Urgency};

/// The most hosts with counts of their own. 64: a process talks to a few. A registry that redirects to ever new
/// hosts must not fill the memory, nor the monitoring system.
const MOST_HOSTS: usize = 64;
/// The name of all further hosts.
const OTHER_HOSTS: &str = "other";
/// The name of sources without a host.
const LOCAL: &str = "local";

/// Counts of one source, or of several sources that share them.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    yielded_bytes: AtomicU64,
    /// The part of them for each kind of traffic.
    bytes_by_traffic: [AtomicU64; Traffic::COUNT],
    outcomes: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
}

/// Requests to a host with the same outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeCount {
    /// `HOST[:PORT]`; `local` for sources of this machine, `other` for hosts beyond the first 64.
    pub host: Arc<str>,
    /// `ok`, or the word for the failure ([`SourceError::word`]).
    pub outcome: &'static str,
    /// How many.
    pub requests: u64,
}

impl Counts {
    /// Requested streams, including failed ones.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Bytes of blobs that the streams yielded.
    pub fn yielded_bytes(&self) -> u64 {
        self.yielded_bytes.load(Relaxed)
    }

    /// The part of these bytes that belongs to a kind of traffic: the kind of the request at the time the bytes came.
    pub fn bytes_of(&self, traffic: Traffic) -> u64 {
        self.bytes_by_traffic[traffic as usize].load(Relaxed)
    }

    /// The answered requests by host and outcome. A request whose stream breaks later counts as `ok`.
    pub fn outcomes(&self) -> Vec<OutcomeCount> {
        let outcomes = self.outcomes.lock();
        let each = outcomes.iter().map(|((host, outcome), requests)| OutcomeCount {
            host: host.clone(),
            outcome,
            requests: *requests,
        });
        each.collect()
    }

    fn note(&self, host: Option<Arc<str>>, outcome: &'static str) {
        let host = host.unwrap_or_else(|| LOCAL.into());
        let mut outcomes = self.outcomes.lock();
        let is_known = outcomes.keys().any(|(known, _)| *known == host);
        let mut hosts: Vec<_> = outcomes.keys().map(|(known, _)| known).collect();
        hosts.dedup();
        let host = if is_known || hosts.len() < MOST_HOSTS { host } else { OTHER_HOSTS.into() };
        *outcomes.entry((host, outcome)).or_default() += 1;
    }
}

/// A source that counts its requests and the bytes that it yields.
pub struct Counted<S> {
    pub(super) source: S,
    counts: Arc<Counts>,
}

impl<S> Counted<S> {
    /// Counts from zero.
    pub fn new(source: S) -> Self {
        Self::with(source, Arc::default())
    }

    /// Shares `counts` with other sources.
    pub fn with(source: S, counts: Arc<Counts>) -> Self {
        Self { source, counts }
    }

    /// See [`Counts::requests`].
    pub fn requests(&self) -> u64 {
        self.counts.requests()
    }

    /// See [`Counts::yielded_bytes`].
    pub fn yielded_bytes(&self) -> u64 {
        self.counts.yielded_bytes()
    }
}

impl<S: BlobSource> BlobSource for Counted<S> {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.counts.requests.fetch_add(1, Relaxed);
        async move {
            let opened = self.source.open(blob, range, urgency.clone()).await;
            self.counts
                .note(self.source.host(), opened.as_ref().err().map_or("ok", SourceError::word));
            let BlobStream { range, bytes } = opened?;
            let counts = Arc::clone(&self.counts);
            let count = move |piece: &Result<bytes::Bytes, SourceError>| {
                if let Ok(piece) = piece {
                    counts.yielded_bytes.fetch_add(piece.len() as u64, Relaxed);
                    let of_traffic = &counts.bytes_by_traffic[urgency.traffic() as usize];
                    of_traffic.fetch_add(piece.len() as u64, Relaxed);
                }
            };
            Ok(BlobStream { range, bytes: bytes.inspect(count).boxed() })
        }
        .boxed()
    }

    fn is_remote(&self) -> bool {
        self.source.is_remote()
    }

    fn host(&self) -> Option<Arc<str>> {
        self.source.host()
    }

    fn place(&self) -> Option<String> {
        self.source.place()
    }

    fn distrust(&self) {
        self.source.distrust();
    }
}

super::pass_on_manifests_and_tags!(Counted);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_hosts_is_bounded() {
        let counts = Counts::default();
        for number in 0..MOST_HOSTS + 10 {
            counts.note(Some(format!("host-{number}").into()), "ok");
            counts.note(Some("host-0".into()), "throttled");
        }
        counts.note(None, "io");
        let outcomes = counts.outcomes();
        let of = |host: &str, outcome: &str| {
            let found = outcomes.iter().find(|it| &*it.host == host && it.outcome == outcome);
            found.map_or(0, |it| it.requests)
        };
        let mut hosts: Vec<_> = outcomes.iter().map(|it| &it.host).collect();
        hosts.dedup();
        assert!(hosts.len() <= MOST_HOSTS + 1, "{} hosts", hosts.len());
        assert_eq!(of("host-0", "throttled"), MOST_HOSTS as u64 + 10);
        assert_eq!(of(OTHER_HOSTS, "ok") + of(OTHER_HOSTS, "io"), 11);
    }
}
