//! Blobs that lie at another host.

use std::time::Duration;

use kitfs::oci::BlobId;
use kitfs::source::SourceError;

use crate::setup::{NAME, content, open, read};
use crate::support::registry_double::{Access, At, Fault, Options, RegistryDouble, Rule, Tokens};

const SIZE: usize = 100_000;

async fn registry(redirect_for: Duration) -> (RegistryDouble, BlobId) {
    let access = Access::Bearer(Tokens::default());
    let redirect_for = Some(redirect_for);
    let registry =
        RegistryDouble::start(Options { access, redirect_for, ..Options::default() }).await;
    let blob = registry.push_blob(NAME, content(SIZE));
    (registry, blob)
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_redirect_to_another_host_keeps_the_range_and_drops_the_authorization() {
    let (registry, blob) = registry(LONG).await;
    let (range, bytes) = read(&open(&registry), blob, 10..2000).await.unwrap();
    assert_eq!((range, bytes), (10..2000, content(SIZE)[10..2000].to_vec()));
    let at_storage = &registry.requests_to(At::Storage, "")[0];
    assert_eq!(at_storage.header("range"), Some("bytes=10-1999"));
    assert_eq!(at_storage.header("authorization"), None);
    let at_registry = registry.requests_to(At::Registry, "/blobs/").pop().unwrap();
    assert!(at_registry.header("authorization").unwrap().starts_with("Bearer "));
}

#[tokio::test]
async fn the_target_of_a_redirect_is_reused() {
    let (registry, blob) = registry(LONG).await;
    let repository = open(&registry);
    for start in 0..5 {
        read(&repository, blob, start..start + 100).await.unwrap();
    }
    // One 401, one redirect.
    assert_eq!(registry.requests_to(At::Registry, "/blobs/").len(), 2);
    assert_eq!(registry.requests_to(At::Storage, "").len(), 5);
}

#[tokio::test]
async fn a_target_that_says_it_has_expired_is_not_asked() {
    let (registry, blob) = registry(Duration::from_secs(1)).await;
    let repository = open(&registry);
    for _ in 0..3 {
        read(&repository, blob, 0..100).await.unwrap();
    }
    assert_eq!(registry.requests_to(At::Registry, "/blobs/").len(), 1 + 3);
    assert_eq!(registry.requests_to(At::Storage, "").len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_refused_is_resolved_once_more_by_one_of_many_readers() {
    let (registry, blob) = registry(LONG).await;
    let repository = open(&registry);
    read(&repository, blob, 0..100).await.unwrap();
    let before = registry.requests_to(At::Registry, "/blobs/").len();
    registry.end_signatures();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let repository = repository.clone();
        readers.spawn(async move { read(&repository, blob, 0..100).await.map(|(_, bytes)| bytes) });
    }
    for bytes in readers.join_all().await {
        assert_eq!(bytes.unwrap(), content(SIZE)[..100]);
    }
    assert_eq!(registry.requests_to(At::Registry, "/blobs/").len(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_readers_of_a_blob_ask_a_registry_that_redirects_once() {
    let (registry, first) = registry(LONG).await;
    let blob = registry.push_blob(NAME, content(SIZE + 1));
    let repository = open(&registry);
    // A kit's config, for one.
    read(&repository, first, 0..100).await.unwrap();
    // The storage answers when all requests are there: the turn ends with the redirect.
    registry.script(Rule::on("").at(At::Storage).then(Fault::Gather(8)));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let repository = repository.clone();
        readers.spawn(async move { read(&repository, blob, 0..100).await.map(|(_, bytes)| bytes) });
    }
    for bytes in readers.join_all().await {
        assert_eq!(bytes.unwrap(), content(SIZE)[..100]);
    }
    let asked = registry.requests_to(At::Registry, &blob.digest.to_string());
    assert_eq!((asked.len(), registry.peak()), (1, 8));
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_authorization_each_time() {
    let access = Access::Bearer(Tokens::default());
    let registry = RegistryDouble::start(Options { access, ..Options::default() }).await;
    let blob = registry.push_blob(NAME, content(SIZE));
    registry.push_blob("other/place", content(SIZE));
    let target = format!("/v2/other/place/blobs/{}", blob.digest);
    registry.script(Rule::on(&format!("{NAME}/blobs")).after(1).then(Fault::Redirect(target)));
    let repository = open(&registry);
    let refused = || registry.requests().iter().filter(|one| one.status == 401).count();
    // The first request has no token; on a slow machine its hedge has none either.
    read(&repository, blob, 0..100).await.unwrap();
    let before = refused();
    assert!(before > 0);
    for _ in 0..2 {
        read(&repository, blob, 0..100).await.unwrap();
    }
    assert_eq!(refused(), before);
}

#[tokio::test]
async fn a_stream_from_storage_that_breaks_off_goes_on_at_storage() {
    let (registry, blob) = registry(LONG).await;
    let reset = Fault::Reset { after_bytes: 1000 };
    registry.script(Rule::on("").at(At::Storage).times(1).then(reset));
    let (_, bytes) = read(&open(&registry), blob, 0..50_000).await.unwrap();
    assert_eq!(bytes, content(SIZE)[..50_000]);
    assert_eq!(registry.requests_to(At::Registry, "/blobs/").len(), 2);
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let (registry, blob) = registry(LONG).await;
    let circle = format!("http://{}/circle?Signature=0", registry.storage_host());
    registry.script(Rule::on("").at(At::Storage).then(Fault::Redirect(circle)));
    let error = read(&open(&registry), blob, 0..100).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert_eq!(registry.requests_to(At::Storage, "").len(), 5);
}

#[tokio::test]
async fn a_storage_host_cannot_ask_for_credentials() {
    let (registry, blob) = registry(LONG).await;
    registry.script(Rule::on("").at(At::Storage).then(Fault::Status(401)));
    let error = read(&open(&registry), blob, 0..100).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
    assert_eq!(registry.token_requests(), 1);
}

#[tokio::test]
async fn no_signed_url_is_in_a_message() {
    for fault in [
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(500),
        Fault::Status(418),
        Fault::Reset { after_bytes: 0 },
        Fault::ContentRange("bytes 0-1/2".into()),
        Fault::Redirect("ftp://somewhere/?X-Amz-Signature=secret".into()),
    ] {
        let (registry, blob) = registry(LONG).await;
        registry.script(Rule::on("").at(At::Storage).then(fault.clone()));
        let error = read(&open(&registry), blob, 0..100).await.unwrap_err();
        for message in [error.to_string(), format!("{error:?}")] {
            assert!(!message.contains("Signature"), "{fault:?}: {message}");
            assert!(!message.contains("secret"), "{fault:?}: {message}");
        }
    }
}
