//! The number of requests that a host gets at once, and their order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kitfs::oci::{BlobId, BlobOffset};
use kitfs::source::admission::{Admission, HostUsage};
use kitfs::source::{Priority, Repository, Urgency};
use tokio::task::JoinHandle;

use crate::setup::{NAME, admission, client_with, content, read, repository};
use crate::support::registry_double::{At, Fault, Options, RegistryDouble, Rule};

/// Longer than anything here takes that does not hang.
const HANG: Duration = Duration::from_secs(60);

/// A patience that never ends here, so that no slot is lent.
const NEVER: Duration = Duration::from_secs(3600);

/// A registry with a blob, its repository, and the admission of the client.
struct Fixture {
    registry: RegistryDouble,
    blob: BlobId,
    admission: Arc<Admission>,
    repository: Arc<dyn Repository>,
}

impl Fixture {
    async fn new(most: usize) -> Self {
        let registry = RegistryDouble::start(Options::default()).await;
        let blob = registry.push_blob(NAME, content(300_000));
        let admission = admission(most, NEVER);
        let client = client_with(|config| config.admission = admission.clone());
        let repository = repository(&client, &registry.host());
        Self { registry, blob, admission, repository }
    }

    fn usage(&self) -> HostUsage {
        let mut hosts = self.admission.snapshot();
        hosts.retain(|one| one.host == self.registry.host());
        hosts.pop().expect("the registry was asked")
    }

    /// Waits until the usage of the host is as wanted.
    async fn until(&self, wanted: impl Fn(&HostUsage) -> bool) {
        let wait = async {
            while !self.admission.snapshot().iter().any(&wanted) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(HANG, wait).await.expect("it comes to that");
    }

    /// Reads a range in a task of its own.
    fn start(&self, range: Range<u64>, urgency: &Urgency) -> JoinHandle<()> {
        let (repository, blob, urgency) = (self.repository.clone(), self.blob, urgency.clone());
        tokio::spawn(async move {
            let stream =
                repository.open(blob, BlobOffset::of(range.clone()), urgency).await.unwrap();
            let pieces: Vec<_> = stream.bytes.collect().await;
            let bytes: usize = pieces.into_iter().map(|piece| piece.unwrap().len()).sum();
            assert_eq!(bytes as u64, range.end - range.start);
        })
    }

    /// The starts of the ranges that were asked for, in order of arrival.
    fn order(&self) -> Vec<u64> {
        let mut requests = self.registry.requests_to(At::Registry, "/blobs/");
        requests.sort_by_key(|one| one.arrived);
        let start = |range: &str| range.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok();
        requests.iter().filter_map(|one| start(one.header("range")?)).collect()
    }
}

async fn all(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    // All of them are started first.
    let tasks: Vec<_> = tasks.into_iter().collect();
    for task in tasks {
        tokio::time::timeout(HANG, task).await.expect("it does not hang").unwrap();
    }
}

#[tokio::test]
async fn the_most_urgent_request_is_sent_first_and_one_that_is_raised_moves_forward() {
    let fixture = Fixture::new(1).await;
    fixture.registry.script(Rule::on("/blobs/").times(1).then(Fault::Hold));
    let mut tasks = vec![fixture.start(0..1, &Urgency::on_demand())];
    fixture.until(|host| host.running == 1 && host.requests > 0).await;
    let kinds = [Priority::Hydrate, Priority::Prefetch, Priority::Readahead, Priority::OnDemand];
    let urgencies = [kinds, kinds].concat().into_iter().map(Urgency::new);
    let urgencies: Vec<_> = urgencies.collect();
    for (number, urgency) in urgencies.iter().enumerate() {
        let start = 10 * (number as u64 + 1);
        tasks.push(fixture.start(start..start + 5, urgency));
        // One after the other: of equals, the earliest goes first.
        fixture.until(|host| host.waiting == number + 1).await;
    }
    // A reader begins to wait for the first background request.
    urgencies[0].raise(Priority::OnDemand);
    fixture.registry.release();
    all(tasks).await;
    assert_eq!(fixture.order(), [0, 10, 40, 80, 30, 70, 20, 60, 50]);
}

#[tokio::test]
async fn a_reader_finds_room_beside_bodies_in_the_background() {
    let fixture = Fixture::new(4).await;
    fixture.registry.script(Rule::on("/blobs/").times(3).then(Fault::Hold));
    let hydrate = Urgency::new(Priority::Hydrate);
    let readahead = Urgency::new(Priority::Readahead);
    let tasks = [
        fixture.start(0..5, &hydrate),
        fixture.start(10..15, &hydrate),
        fixture.start(20..25, &readahead),
        fixture.start(30..35, &readahead),
        fixture.start(40..45, &readahead),
    ];
    // A quarter for hydrating, and all but one for all of them together.
    fixture.until(|host| host.running == 3 && host.waiting == 2).await;
    read(&fixture.repository, fixture.blob, 50..55).await.unwrap();
    fixture.registry.release();
    all(tasks).await;
}

#[tokio::test]
async fn a_429_with_retry_after_pauses_all_requests_and_the_limit_falls_and_recovers() {
    let fixture = Fixture::new(4).await;
    fixture.registry.script(Rule::on("/blobs/").times(1).then(Fault::RetryAfter(429, "1".into())));
    let first = fixture.start(0..5, &Urgency::on_demand());
    fixture.until(|host| host.refusals == 1 && host.running == 0).await;
    assert_eq!(fixture.usage().limit, 2);
    let others: Vec<_> =
        (1..6).map(|number| fixture.start(number..number + 5, &Urgency::on_demand())).collect();
    all(others.into_iter().chain([first])).await;

    let requests = fixture.registry.requests_to(At::Registry, "/blobs/");
    assert_eq!(requests.len(), 7);
    for later in &requests[1..] {
        let after = later.arrived - requests[0].arrived;
        assert!(after >= Duration::from_secs(1), "asked again after {after:?}");
    }
    assert!(fixture.registry.peak() <= 3, "{}", fixture.registry.peak());

    // A queue that is never empty lets the limit rise again, by one in each round.
    for _ in 0..4 {
        all((0..8).map(|number| fixture.start(number..number + 9, &Urgency::on_demand()))).await;
    }
    let usage = fixture.usage();
    assert_eq!((usage.limit, usage.running, usage.waiting), (4, 0, 0));
}

#[tokio::test]
async fn a_503_cuts_the_limit_only_where_it_says_when_to_come_back() {
    for (fault, limit) in [(Fault::Status(503), 8), (Fault::RetryAfter(503, "0".into()), 4)] {
        let fixture = Fixture::new(16).await;
        fixture.registry.script(Rule::on("/blobs/").times(1).then(fault));
        read(&fixture.repository, fixture.blob, 0..5).await.unwrap();
        assert_eq!(fixture.usage().limit, limit);
    }
}

#[tokio::test]
async fn requests_bytes_and_refusals_are_counted_for_each_host() {
    let fixture = Fixture::new(16).await;
    read(&fixture.repository, fixture.blob, 0..5).await.unwrap();
    let before = fixture.usage();
    fixture.registry.script(Rule::on("/blobs/").times(1).then(Fault::Status(429)));
    read(&fixture.repository, fixture.blob, 0..100_000).await.unwrap();
    let after = fixture.usage();
    assert_eq!(after.requests - before.requests, 2);
    assert_eq!(after.refusals - before.refusals, 1);
    // The words of the refusal are a body, too.
    assert!((100_000..101_000).contains(&(after.body_bytes - before.body_bytes)));
    assert_eq!((after.running, after.waiting, after.paused_for), (0, 0, None));
}

#[tokio::test]
async fn a_slot_is_given_back_with_the_last_byte() {
    let fixture = Fixture::new(1).await;
    let urgency = Urgency::on_demand();
    let mut stream =
        fixture.repository.open(fixture.blob, BlobOffset(0).range(50_000), urgency).await.unwrap();
    let mut left = 50_000;
    while left > 0 {
        left -= stream.bytes.next().await.unwrap().unwrap().len();
    }
    // Its end has not been asked for, and it is still there.
    let other = read(&fixture.repository, fixture.blob, 0..5);
    tokio::time::timeout(HANG, other).await.expect("it does not hang").unwrap();
    assert!(stream.bytes.next().await.is_none());
}

#[tokio::test]
async fn ranges_one_after_the_other_share_a_connection() {
    for redirect_for in [None, Some(Duration::from_secs(3600))] {
        let registry = RegistryDouble::start(Options { redirect_for, ..Options::default() }).await;
        let blob = registry.push_blob(NAME, content(300_000));
        let repository = repository(&client_with(|_| {}), &registry.host());
        for number in 0..20 {
            read(&repository, blob, number * 10_000..(number + 1) * 10_000).await.unwrap();
            // The client puts a connection back in a task of its own; here tasks take turns.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        let at = if redirect_for.is_some() { At::Storage } else { At::Registry };
        assert_eq!(registry.requests_to(at, "").len(), 20);
        assert_eq!(registry.connections(at), 1, "{at:?}");
    }
}
