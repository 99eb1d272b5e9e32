//! Registries that are connected and silent: how long kitfs waits, and what it tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kitfs::oci::{BlobId, BlobOffset, Digest};
use kitfs::source::mirrors::Mirrors;
use kitfs::source::registry::{RegistryClient, RegistryConfig};
use kitfs::source::{Priority, Repository, SourceError, Urgency};

use crate::setup::{client_with, content, manifest, repository};
use crate::wire::{Ask, Reply, Wire};

/// How long the registries here are silent: several times as long as a reader waits.
const SILENCE: Duration = Duration::from_secs(2);
/// Longer than any test runs.
const NEVER: Duration = Duration::from_secs(3600);

/// A client whose readers wait half a second, and whose openers wait for much longer.
fn impatient(change: impl FnOnce(&mut RegistryConfig)) -> Arc<RegistryClient> {
    client_with(|config| {
        config.timing.connect = Duration::from_millis(400);
        config.timing.answer = Duration::from_millis(400);
        config.timing.hedge = Duration::from_millis(1500);
        config.timing.stall = Duration::from_millis(500);
        config.timing.open = Duration::from_secs(60);
        change(config);
    })
}

const SIZE: usize = 1000;

fn blob() -> BlobId {
    BlobId { digest: Digest::of(&content(SIZE)), size: SIZE as u64 }
}

/// The answer of a registry.
fn answer(ask: &Ask) -> Reply {
    match ask.range() {
        Some((first, last)) => {
            let range = format!("Content-Range: bytes {first}-{last}/{SIZE}");
            Reply::new(206, &[&range], &content(SIZE)[first..=last])
        }
        None => Reply::new(200, &[], manifest()),
    }
}

/// A registry that says nothing for a while, before each answer.
async fn slow_registry() -> Wire {
    Wire::start(|ask| answer(ask).late(SILENCE)).await
}

async fn read(repository: &Arc<dyn Repository>, urgency: Urgency) -> Result<Vec<u8>, SourceError> {
    let mut stream = repository.open(blob(), BlobOffset(100).range(800), urgency).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn opening_and_warming_wait_for_a_silent_registry_with_one_request() {
    let registry = slow_registry().await;
    let repository = repository(&impatient(|_| {}), &registry.host());
    repository.manifest(None).await.unwrap();
    let background = [Priority::Prefetch, Priority::Hydrate].map(Urgency::new);
    for urgency in [Urgency::opening()].into_iter().chain(background) {
        assert_eq!(read(&repository, urgency).await.unwrap(), content(SIZE)[100..900]);
    }
    assert_eq!(registry.asked().len(), 4, "none was given up");
}

#[tokio::test]
async fn a_readers_request_is_sent_a_second_time_beside_the_first_which_may_still_be_answered() {
    // Only the first request is ever answered.
    let count = AtomicUsize::new(0);
    let registry = Wire::start(move |ask| match count.fetch_add(1, Ordering::SeqCst) {
        0 => answer(ask).late(SILENCE),
        _ => answer(ask).late(NEVER),
    })
    .await;
    let repository = repository(&impatient(|_| {}), &registry.host());
    let bytes = read(&repository, Urgency::on_demand()).await.unwrap();
    assert_eq!(bytes, content(SIZE)[100..900]);
    assert!(registry.asked().len() >= 2);
}

#[tokio::test]
async fn patience_ends_when_a_reader_begins_to_wait() {
    // A connection that is stuck, and a second one that is not.
    let count = AtomicUsize::new(0);
    let registry = Wire::start(move |ask| match count.fetch_add(1, Ordering::SeqCst) {
        0 => answer(ask).late(NEVER),
        _ => answer(ask),
    })
    .await;
    let repository = repository(&impatient(|_| {}), &registry.host());
    let urgency = Urgency::new(Priority::Prefetch);
    let raised = urgency.clone();
    tokio::spawn(async move {
        tokio::time::sleep(SILENCE).await;
        raised.raise(Priority::OnDemand);
    });
    let started = Instant::now();
    read(&repository, urgency).await.unwrap();
    assert!(started.elapsed() >= SILENCE);
    assert_eq!(registry.asked().len(), 2);
}

#[tokio::test]
async fn the_patience_has_an_end_and_the_message_names_the_option() {
    let registry = slow_registry().await;
    let client = impatient(|config| config.timing.open = Duration::from_secs(1));
    let repository = repository(&client, &registry.host());
    let error = read(&repository, Urgency::opening()).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("--open-timeout"), "{error}");
    assert!(error.to_string().contains("1 s"), "{error}");
    assert_eq!(registry.asked().len(), 1);
}

#[tokio::test]
async fn a_long_retry_after_is_obeyed_by_an_opener_and_cut_for_a_reader() {
    for (urgency, wanted, least) in [(Urgency::opening(), 6, 6), (Urgency::on_demand(), 600, 2)] {
        let count = AtomicUsize::new(0);
        let registry = Wire::start(move |ask| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::new(429, &[&format!("Retry-After: {wanted}")], ""),
            _ => answer(ask),
        })
        .await;
        // A reader makes pauses of two seconds here.
        let repository = repository(&client_with(|_| {}), &registry.host());
        let started = Instant::now();
        read(&repository, urgency).await.unwrap();
        let waited = started.elapsed();
        let bounds = Duration::from_secs(least)..Duration::from_secs(300);
        assert!(bounds.contains(&waited), "{waited:?}");
    }
}

#[tokio::test]
async fn a_cache_that_sends_the_head_and_then_fetches_is_waited_for() {
    let wire = Wire::start(|ask| answer(ask).silent_behind_head(SILENCE)).await;
    let repository = repository(&impatient(|_| {}), &wire.host());
    let bytes = read(&repository, Urgency::opening()).await.unwrap();
    assert_eq!(bytes, content(SIZE)[100..900]);
    assert_eq!(wire.asked().len(), 1);
}

#[tokio::test]
async fn a_body_that_pauses_is_waited_for() {
    let wire = Wire::start(|ask| answer(ask).silent_within_body(10, SILENCE)).await;
    let repository = repository(&impatient(|_| {}), &wire.host());
    repository.manifest(None).await.unwrap();
    for urgency in [Urgency::opening(), Urgency::new(Priority::Prefetch)] {
        assert_eq!(read(&repository, urgency).await.unwrap(), content(SIZE)[100..900]);
    }
    assert_eq!(wire.asked().len(), 3, "none was given up");
}

#[tokio::test]
async fn patience_with_a_body_ends_when_a_reader_begins_to_wait() {
    let count = AtomicUsize::new(0);
    let wire = Wire::start(move |ask| match count.fetch_add(1, Ordering::SeqCst) {
        0 => answer(ask).silent_within_body(10, NEVER),
        _ => answer(ask),
    })
    .await;
    let repository = repository(&impatient(|_| {}), &wire.host());
    let urgency = Urgency::new(Priority::Prefetch);
    let raised = urgency.clone();
    tokio::spawn(async move {
        tokio::time::sleep(SILENCE).await;
        raised.raise(Priority::OnDemand);
    });
    let started = Instant::now();
    assert_eq!(read(&repository, urgency).await.unwrap(), content(SIZE)[100..900]);
    assert!(started.elapsed() >= SILENCE);
    assert_eq!(wire.asked().len(), 2);
}

#[tokio::test]
async fn the_patience_with_a_body_has_an_end_and_the_message_names_the_option() {
    let wire = Wire::start(|ask| answer(ask).silent_within_body(10, NEVER)).await;
    let client = impatient(|config| {
        config.timing.stall = Duration::from_millis(500);
        config.timing.open = Duration::from_secs(2);
    });
    let repository = repository(&client, &wire.host());
    for (urgency, words) in [
        (Urgency::opening(), "within 2 s, and --open-timeout allows no more"),
        (Urgency::on_demand(), "within 0.5 s"),
    ] {
        let error = read(&repository, urgency).await.unwrap_err().to_string();
        assert!(error.ends_with(words), "{error}");
    }
}

#[tokio::test]
async fn a_token_server_is_waited_for_as_its_registry_is() {
    let wire = Wire::start(|ask| match ask.header("authorization") {
        _ if ask.target.starts_with("/token") => {
            Reply::new(200, &[], r#"{"token":"t"}"#).late(SILENCE)
        }
        Some("Bearer t") => Reply::new(200, &[], manifest()),
        _ => {
            let realm = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"", ask.host());
            Reply::new(401, &[&realm], "")
        }
    })
    .await;
    repository(&impatient(|_| {}), &wire.host()).manifest(None).await.unwrap();
    assert_eq!(wire.asked().len(), 3);
}

#[tokio::test]
async fn a_reader_leaves_a_silent_mirror_and_an_opener_waits_for_it() {
    let mirror = slow_registry().await;
    let server = Wire::start(answer).await;
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("registry.example");
    std::fs::create_dir(&own).unwrap();
    let text =
        format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.host(), mirror.host());
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    let mirrors = Mirrors::new(Some(folder.path().to_owned()));
    let client = impatient(|config| config.mirrors = mirrors);
    let far = || repository(&client, "registry.example");
    read(&far(), Urgency::opening()).await.unwrap();
    assert_eq!((mirror.asked().len(), server.asked().len()), (1, 0));
    read(&far(), Urgency::on_demand()).await.unwrap();
    assert_eq!((mirror.asked().len(), server.asked().len()), (2, 1));
}

#[tokio::test]
async fn a_host_that_is_silent_is_named_while_somebody_patient_waits_for_it() {
    let registry = slow_registry().await;
    let client = impatient(|config| config.timing.untold = Duration::from_millis(100));
    let repository = repository(&client, &registry.host());
    for (urgency, is_named) in [(Urgency::opening(), true), (Urgency::on_demand(), false)] {
        let reading = read(&repository, urgency);
        tokio::pin!(reading);
        let mut named = Vec::new();
        loop {
            tokio::select! {
                read = &mut reading => break drop(read.unwrap()),
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    named.extend(client.silences().into_iter().map(|silence| silence.host));
                }
            }
        }
        assert_eq!(!named.is_empty(), is_named, "{named:?}");
        assert!(named.iter().all(|host| *host == registry.host()), "{named:?}");
        assert!(client.silences().is_empty());
    }
}
