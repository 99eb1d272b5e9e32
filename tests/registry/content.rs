//! Ranges of blobs, and streams that break.

use std::time::{Duration, Instant};

use kitfs::source::SourceError;

use crate::setup::{NAME, client_with, content, open, read, repository, timing};
use crate::support::registry_double::{Fault, Options, RegistryDouble, Rule};

/// More than the sockets between the two sides hold.
const SIZE: usize = 300_000;

async fn registry() -> (RegistryDouble, kitfs::oci::BlobId) {
    let registry = RegistryDouble::start(Options::default()).await;
    let blob = registry.push_blob(NAME, content(SIZE));
    (registry, blob)
}

#[tokio::test]
async fn a_range_is_fetched_as_that_range_and_nothing_more() {
    let (registry, blob) = registry().await;
    let (range, bytes) = read(&open(&registry), blob, 1000..51_000).await.unwrap();
    assert_eq!(range, 1000..51_000);
    assert_eq!(bytes, content(SIZE)[1000..51_000]);
    assert_eq!(registry.bytes_served(), 50_000);
    assert_eq!(registry.requests()[0].header("range"), Some("bytes=1000-50999"));
}

#[tokio::test]
async fn a_whole_blob_is_fetched_without_a_range() {
    let (registry, blob) = registry().await;
    let (range, bytes) = read(&open(&registry), blob, 0..blob.size).await.unwrap();
    assert_eq!((range, bytes), (0..blob.size, content(SIZE)));
    assert_eq!(registry.requests()[0].header("range"), None);
}

#[tokio::test]
async fn a_200_to_a_range_request_is_one_stream_of_the_whole_layer() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").then(Fault::IgnoreRange));
    let (range, bytes) = read(&open(&registry), blob, 1000..2000).await.unwrap();
    assert_eq!((range, bytes), (0..blob.size, content(SIZE)));
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_content_range_other_than_asked_is_refused() {
    let (registry, blob) = registry().await;
    for wrong in ["bytes 1001-2000/300000", "bytes 1000-1999/300001", "bytes 1000-2000/*"] {
        registry.script(Rule::on("/blobs/").times(1).then(Fault::ContentRange(wrong.into())));
        let error = read(&open(&registry), blob, 1000..2000).await.unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(wrong), "{error}");
    }
}

#[tokio::test]
async fn a_416_is_refused() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").then(Fault::Status(416)));
    let error = read(&open(&registry), blob, 1000..2000).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused() {
    let (registry, mut blob) = registry().await;
    blob.size += 1;
    for range in [0..10, 0..blob.size] {
        let error = read(&open(&registry), blob, range).await.unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_goes_on_where_it_stopped() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").times(2).then(Fault::Reset { after_bytes: 40_000 }));
    let (range, bytes) = read(&open(&registry), blob, 1000..201_000).await.unwrap();
    assert_eq!(range, 1000..201_000);
    assert_eq!(bytes, content(SIZE)[1000..201_000]);
    let asked: Vec<_> =
        registry.requests().iter().map(|one| one.header("range").unwrap().to_owned()).collect();
    assert_eq!(asked, ["bytes=1000-200999", "bytes=41000-200999", "bytes=81000-200999"]);
    assert_eq!(registry.bytes_served(), 200_000, "nothing is fetched twice");
}

#[tokio::test]
async fn a_stream_without_ranges_that_breaks_off_is_read_again_up_to_where_it_stopped() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").times(1).then(Fault::Reset { after_bytes: 40_000 }));
    registry.script(Rule::on("/blobs/").then(Fault::IgnoreRange));
    let (_, bytes) = read(&open(&registry), blob, 0..blob.size).await.unwrap();
    assert_eq!(bytes, content(SIZE));
}

#[tokio::test]
async fn a_stream_that_always_breaks_off_ends_with_an_error() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").then(Fault::Reset { after_bytes: 0 }));
    let error = read(&open(&registry), blob, 0..1000).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    assert_eq!(registry.requests().len(), 1 + timing().resumes as usize);
}

#[tokio::test]
async fn a_stream_that_stalls_goes_on_by_another_request() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").times(1).then(Fault::Stall { after_bytes: 40_000 }));
    let client = client_with(|config| config.timing.stall = Duration::from_millis(500));
    let repository = repository(&client, &registry.host());
    let (_, bytes) = read(&repository, blob, 0..200_000).await.unwrap();
    assert_eq!(bytes, content(SIZE)[..200_000]);
    assert_eq!(registry.requests()[1].header("range"), Some("bytes=40000-199999"));
}

#[tokio::test]
async fn a_body_that_ends_early_goes_on_by_another_request() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").times(1).then(Fault::Short { after_bytes: 999 }));
    let (_, bytes) = read(&open(&registry), blob, 0..2000).await.unwrap();
    assert_eq!(bytes, content(SIZE)[..2000]);
    assert_eq!(registry.requests()[1].header("range"), Some("bytes=999-1999"));
}

#[tokio::test]
async fn a_body_that_does_not_end_is_an_error() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").then(Fault::Long { extra_bytes: 1 }));
    for range in [0..2000, 0..blob.size] {
        let error = read(&open(&registry), blob, range).await.unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn server_errors_are_retried() {
    let (registry, blob) = registry().await;
    for status in [408, 500, 502, 503, 504] {
        registry.script(Rule::on("/blobs/").times(1).then(Fault::Status(status)));
        let before = registry.requests().len();
        read(&open(&registry), blob, 0..1000).await.unwrap();
        assert_eq!(registry.requests().len(), before + 2, "{status}");
    }
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").times(1).then(Fault::RetryAfter(429, "1".into())));
    let before = Instant::now();
    read(&open(&registry), blob, 0..1000).await.unwrap();
    assert!(before.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_429_after_all_retries_is_throttled() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").then(Fault::Status(429)));
    let error = read(&open(&registry), blob, 0..1000).await.unwrap_err();
    assert!(matches!(error, SourceError::Throttled { .. }), "{error}");
    assert_eq!(registry.requests().len(), 1 + timing().retries);
}

#[tokio::test]
async fn a_host_that_asks_a_reader_to_wait_for_too_long_is_asked_earlier_and_not_for_ever() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").then(Fault::RetryAfter(429, "3600".into())));
    let client = client_with(|config| config.timing.retry_after_max = Duration::from_millis(50));
    let repository = repository(&client, &registry.host());
    let error = read(&repository, blob, 0..1000).await.unwrap_err();
    let hour = Some(Duration::from_secs(3600));
    assert!(matches!(error, SourceError::Throttled { retry_after, .. } if retry_after == hour));
    assert_eq!(registry.requests().len(), 1 + timing().retries);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_asked_for_again() {
    let (registry, blob) = registry().await;
    registry.script(Rule::on("/blobs/").times(1).then(Fault::Late(Duration::from_secs(20))));
    let client = client_with(|config| {
        config.timing.connect = Duration::from_millis(250);
        config.timing.answer = Duration::from_millis(250);
    });
    let (_, bytes) = read(&repository(&client, &registry.host()), blob, 0..1000).await.unwrap();
    assert_eq!(bytes, content(SIZE)[..1000]);
}
