//! Manifests and tags, and the messages where there are none.

use kitfs::oci::{BlobOffset, Digest, Selector};
use kitfs::source::{SourceError, Urgency};

use crate::setup::{NAME, manifest, open, open_at, repository, timing};
use crate::support::registry_double::{At, Fault, Options, RegistryDouble, Rule};
use crate::wire::{Reply, Wire};

fn tag(tag: &str) -> Option<Selector> {
    Some(Selector::Tag(tag.into()))
}

#[tokio::test]
async fn manifests_are_asked_for_as_oci_manifests_by_a_named_client() {
    let registry = RegistryDouble::start(Options::default()).await;
    let digest = registry.push_manifest(NAME, "v1", manifest());
    let repository = open(&registry);
    let by_tag = repository.manifest(tag("v1").as_ref()).await.unwrap();
    assert_eq!(by_tag, (digest, manifest().into()));
    let by_digest = repository.manifest(Some(&Selector::Digest(digest))).await.unwrap();
    assert_eq!(by_digest, by_tag);

    let asked = &registry.requests_to(At::Registry, "/manifests/v1")[0];
    let accept = asked.header("accept").unwrap();
    assert!(accept.starts_with("application/vnd.oci.image.manifest.v1+json"), "{accept}");
    assert!(asked.header("user-agent").unwrap().starts_with("kitfs/"));
}

#[tokio::test]
async fn no_selector_means_latest() {
    let registry = RegistryDouble::start(Options::default()).await;
    let digest = registry.push_manifest(NAME, "latest", manifest());
    assert_eq!(open(&registry).manifest(None).await.unwrap().0, digest);
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let registry = RegistryDouble::start(Options::default()).await;
    let digest = registry.push_manifest(NAME, "v1", manifest());
    registry.script(Rule::on("/manifests/").then(Fault::Corrupt));
    for selector in [Selector::Tag("v1".into()), Selector::Digest(digest)] {
        let error = open(&registry).manifest(Some(&selector)).await.unwrap_err();
        assert!(
            matches!(error, SourceError::DigestMismatch { expected, .. } if expected == digest),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_manifest_beyond_4_mib_is_refused() {
    let registry = RegistryDouble::start(Options::default()).await;
    registry.push_manifest(NAME, "v1", vec![b' '; 4 * 1024 * 1024 + 1]);
    let error = open(&registry).manifest(tag("v1").as_ref()).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn tags_are_collected_over_all_pages_and_sorted() {
    let options = Options { tags_per_page: Some(3), ..Options::default() };
    let registry = RegistryDouble::start(options).await;
    let mut expected: Vec<_> = (0..10).map(|number| format!("v{number}")).collect();
    for tag in expected.iter().rev() {
        registry.push_manifest(NAME, tag, manifest());
    }
    expected.sort();
    assert_eq!(open(&registry).tags().await.unwrap(), expected);
    assert_eq!(registry.requests_to(At::Registry, "/tags/list").len(), 4);
}

#[tokio::test]
async fn a_registry_that_refuses_the_number_of_tags_is_asked_without_one() {
    for status in [400, 405, 422, 501] {
        let wire = Wire::start(move |ask| match ask.target.contains("n=") {
            true => Reply::new(status, &[], "{}"),
            false => Reply::new(200, &[], r#"{"tags":["v2","v1"]}"#),
        })
        .await;
        assert_eq!(open_at(&wire.host()).tags().await.unwrap(), ["v1", "v2"], "{status}");
        assert_eq!(wire.asked().len(), 2);
    }
    // One that has no such repository is asked once.
    let wire = Wire::start(|_| Reply::new(404, &[], "{}")).await;
    let error = open_at(&wire.host()).tags().await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    assert_eq!(wire.asked().len(), 1);
}

#[tokio::test]
async fn a_link_that_brings_nothing_new_ends_the_list_and_what_came_is_kept() {
    // The same page for ever, the first page again, a page with nothing in it.
    for second in [r#"{"tags":["a","b"]}"#, r#"{"tags":["a"]}"#, r#"{"tags":null}"#] {
        let wire = Wire::start(move |ask| {
            let page = if ask.target.contains("last=") { second } else { r#"{"tags":["b","a"]}"# };
            Reply::new(200, &["Link: </v2/org/model/tags/list?last=b&n=2>; rel=\"next\""], page)
        })
        .await;
        assert_eq!(open_at(&wire.host()).tags().await.unwrap(), ["a", "b"], "{second}");
        assert_eq!(wire.asked().len(), 2);
    }
}

#[tokio::test]
async fn a_link_to_a_page_that_is_not_there_ends_the_list() {
    for (status, is_end) in [(404, true), (410, true), (400, false), (403, false), (503, false)] {
        let wire = Wire::start(move |ask| match ask.target.contains("last=") {
            true => Reply::new(status, &[], "{}"),
            false => Reply::new(200, &["Link: <?last=a>; rel=next"], r#"{"tags":["a"]}"#),
        })
        .await;
        let tags = open_at(&wire.host()).tags().await;
        assert_eq!(tags.is_ok_and(|tags| tags == ["a"]), is_end, "{status}: a part is no list");
    }
}

#[tokio::test]
async fn a_link_by_another_name_of_the_registry_is_followed_at_the_registry() {
    let wire = Wire::start(|ask| match ask.target.contains("last=") {
        true => Reply::new(200, &[], r#"{"tags":["b"]}"#),
        false => {
            let link =
                "Link: <http://registry.internal:5000/v2/org/model/tags/list?last=a>; rel=next";
            Reply::new(200, &[link], r#"{"tags":["a"]}"#)
        }
    })
    .await;
    assert_eq!(open_at(&wire.host()).tags().await.unwrap(), ["a", "b"]);
    assert_eq!(wire.asked()[1].target, "/v2/org/model/tags/list?last=a");
}

#[tokio::test]
async fn a_missing_tag_is_not_found_and_the_message_says_how_to_see_the_others() {
    let registry = RegistryDouble::start(Options::default()).await;
    registry.push_manifest(NAME, "v1", manifest());
    let error = open(&registry).manifest(tag("v2").as_ref()).await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }));
    let place = format!("{}/{NAME}", registry.host());
    let message = error.to_string();
    assert!(message.contains("tag `v2`"), "{message}");
    assert!(message.contains(&format!("kitfs list {place}")), "{message}");
    assert_eq!(registry.requests().len(), 1, "what is not there is asked for once");
}

#[tokio::test]
async fn a_missing_repository_and_a_lost_blob_are_not_found() {
    let registry = RegistryDouble::start(Options::default()).await;
    let error = open(&registry).tags().await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");

    let blob = registry.push_blob(NAME, b"content".to_vec());
    registry.lose_blob(NAME, blob.digest);
    let error = open(&registry)
        .open(blob, BlobOffset(0).range(3), Urgency::on_demand())
        .await
        .err()
        .unwrap();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(&blob.digest.short()), "{error}");
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable_and_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = free.local_addr().unwrap().to_string();
    drop(free);
    let client = crate::setup::client_with(|config| config.timing.retries = 1);
    let error = repository(&client, &host).manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&host), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_told_short_and_once() {
    // A label has at most 63 letters (RFC 1035, 2.3.4): no resolver sends a question for this one.
    let host = format!("{}.example", "a".repeat(64));
    let client = crate::setup::client_with(|config| {
        config.timing.retries = 0;
        config.plain_http = true;
    });
    let error = repository(&client, &host).manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    let message = error.to_string();
    assert!(
        message.contains("resolved (") || message.contains("no host has that name"),
        "{message}"
    );
    for noise in ["client error", "dns error", "error resolving", "failed to lookup"] {
        assert!(!message.contains(noise), "{message}");
    }
}

#[tokio::test]
async fn the_words_of_a_registry_are_quoted() {
    let registry = RegistryDouble::start(Options::default()).await;
    registry.push_manifest(NAME, "v1", manifest());
    registry.script(Rule::on("/manifests/").then(Fault::Status(502)));
    let error = open(&registry).manifest(tag("v1").as_ref()).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("502 Bad Gateway: scripted fault"), "{error}");
    assert_eq!(registry.requests().len(), 1 + timing().retries);
}

#[tokio::test]
async fn kits_of_a_layout_are_served_as_they_are() {
    let registry = RegistryDouble::start(Options::default()).await;
    registry.push_layout(NAME, &crate::support::golden("article"));
    let (digest, bytes) = open(&registry).manifest(tag("v1").as_ref()).await.unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    assert_eq!(open(&registry).tags().await.unwrap(), ["v1"]);
}
