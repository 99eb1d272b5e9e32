//! Blobs and manifests on their way into a registry that misbehaves.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Method;
use bytes::Bytes;
use kitfs::oci::{Digest, Reference};
use kitfs::source::SourceError;
use kitfs::source::credentials::CredentialStore;
use kitfs::source::sending::{Replaces, SendError, Sender, Sent};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use crate::sent_kit::{Memory, SIZES, assert_there, client, destination, send};
use crate::setup::{NAME, client_with, content, write_credentials};
use crate::support::registry_double::{
    Access, At, Fault, Options, RegistryDouble, Rule, Tokens, Writing,
};

const UPLOADS: &str = "/blobs/uploads/";

/// A kit with a small layer, and one of several chunks that end in the middle of a piece.
fn kit() -> (Memory, Bytes) {
    let mut memory = Memory::default();
    let root = memory.kit(&[content(1000), content(34_567)]);
    (memory, root)
}

async fn registry(writing: Writing) -> RegistryDouble {
    RegistryDouble::start(Options { writing, ..Options::default() }).await
}

/// Sends the kit to a registry with this write side and these faults; it must be there afterwards.
async fn arrives(writing: Writing, rules: Vec<Rule>) -> (RegistryDouble, Sent) {
    let registry = registry(writing).await;
    rules.into_iter().for_each(|rule| registry.script(rule));
    let (source, root) = kit();
    let sent = send(&source, &root, destination(&client(), &registry)).await;
    let sent = sent.unwrap_or_else(|error| panic!("{error}: {:#?}", registry.requests()));
    assert_there(&registry, &source, &root);
    (registry, sent)
}

fn on(method: Method) -> Rule {
    Rule::on(UPLOADS).method(method)
}

#[tokio::test]
async fn a_kit_arrives_and_the_next_push_sends_nothing() {
    let (registry, sent) = arrives(Writing::default(), vec![]).await;
    assert_eq!((sent.sent_blobs, sent.manifests, sent.present_bytes), (3, 1, 0));
    assert_eq!(registry.bytes_received(), sent.sent_bytes);
    let before = registry.requests().len();
    let (source, root) = kit();
    let again = send(&source, &root, destination(&client(), &registry)).await.unwrap();
    assert_eq!((again.sent_blobs, again.manifests), (0, 0));
    assert_eq!(again.present_bytes, sent.sent_bytes);
    let asked = registry.requests().split_off(before);
    assert!(asked.iter().all(|one| one.method == Method::HEAD || one.method == Method::GET));
    assert_eq!(registry.open_uploads(), 0);
}

#[tokio::test]
async fn a_large_blob_goes_out_in_chunks_and_a_small_one_in_one_request() {
    let (registry, _) = arrives(Writing::default(), vec![]).await;
    let chunks = registry.requests().into_iter().filter(|one| one.method == Method::PATCH);
    let mut spans: Vec<_> =
        chunks.map(|one| one.header("content-range").unwrap().to_owned()).collect();
    spans.sort_by_key(|span| span.len());
    assert_eq!(spans, ["0-9999", "10000-19999", "20000-29999", "30000-34566"]);
}

#[rstest]
#[case::refuses_chunks_405(Writing { refuses_chunks: Some(405), ..Writing::default() })]
#[case::refuses_chunks_404(Writing { refuses_chunks: Some(404), ..Writing::default() })]
#[case::refuses_chunks_416(Writing { refuses_chunks: Some(416), ..Writing::default() })]
#[case::refuses_chunks_501(Writing { refuses_chunks: Some(501), ..Writing::default() })]
#[case::refuses_whole_405(Writing { refuses_whole: Some(405), ..Writing::default() })]
#[case::large_minimum(Writing { chunk_minimum: Some(15_000), ..Writing::default() })]
#[case::elsewhere(Writing { is_elsewhere: true, ..Writing::default() })]
#[case::redirects(Writing { redirects: true, ..Writing::default() })]
#[case::terse(Writing { is_terse: true, ..Writing::default() })]
#[tokio::test]
async fn each_kind_of_registry_gets_the_kit(#[case] writing: Writing) {
    let (registry, _) = arrives(writing, vec![]).await;
    let at_storage = registry.requests_to(At::Storage, "");
    assert!(at_storage.iter().all(|one| one.header("authorization").is_none()));
    assert_eq!(registry.open_uploads(), 0);
}

#[rstest]
#[case::says_so(Writing { largest_body: Some(100_000), ..Writing::default() })]
#[case::breaks_off(Writing { breaks_above: Some(100_000), ..Writing::default() })]
#[tokio::test]
async fn a_chunk_that_is_too_large_for_a_proxy_is_cut_in_halves(#[case] writing: Writing) {
    let registry = registry(writing).await;
    let mut source = Memory::default();
    let root = source.kit(&[content(500_000)]);
    let sizes = kitfs::source::registry::UploadSizes { whole_bytes: 0, chunk_bytes: 200_000 };
    let client = client_with(|config| config.uploads = sizes);
    send(&source, &root, destination(&client, &registry)).await.unwrap();
    assert_there(&registry, &source, &root);
}

#[tokio::test]
async fn a_registry_that_takes_neither_chunks_nor_whole_blobs_gets_a_clear_word() {
    let writing =
        Writing { refuses_chunks: Some(405), refuses_whole: Some(413), ..Writing::default() };
    let registry = registry(writing).await;
    let (source, root) = kit();
    let error = send(&source, &root, destination(&client(), &registry)).await.unwrap_err();
    let words = error.to_string();
    for part in ["neither in ", "in chunks (405", "in one piece (413", NAME] {
        assert!(words.contains(part), "{words}");
    }
    assert!(registry.tagged(NAME, "v1").is_none());
}

#[rstest]
#[case::chunk_breaks(Method::PATCH, Fault::BreakRequest { after_bytes: 5000 })]
#[case::chunk_breaks_at_once(Method::PATCH, Fault::BreakRequest { after_bytes: 0 })]
#[case::chunk_breaks_after_a_byte(Method::PATCH, Fault::BreakRequest { after_bytes: 1 })]
#[case::answer_to_a_chunk_is_lost(Method::PATCH, Fault::LoseAnswer)]
#[case::part_of_a_chunk_is_taken(Method::PATCH, Fault::TakePart { bytes: 777 })]
#[case::more_than_was_sent(Method::PATCH, Fault::SaysRange("0-99999".to_owned()))]
#[case::less_than_was_sent(Method::PATCH, Fault::SaysRange("0-499".to_owned()))]
#[case::nonsense(Method::PATCH, Fault::SaysRange("bytes 7".to_owned()))]
#[case::session_is_lost(Method::PATCH, Fault::Forget)]
#[case::stored_wrongly(Method::PATCH, Fault::CorruptRequest)]
#[case::server_error(Method::PATCH, Fault::Status(503))]
#[case::whole_breaks(Method::PUT, Fault::BreakRequest { after_bytes: 500 })]
#[case::answer_to_the_end_is_lost(Method::PUT, Fault::LoseAnswer)]
#[case::end_fails(Method::PUT, Fault::Status(500))]
#[case::end_is_unknown(Method::PUT, Fault::Forget)]
#[case::begin_fails(Method::POST, Fault::Status(502))]
#[case::begin_is_lost(Method::POST, Fault::LoseAnswer)]
#[tokio::test]
async fn an_upload_survives_a_fault(#[case] method: Method, #[case] fault: Fault) {
    for skip in 0..3 {
        let rule = on(method.clone()).after(skip).times(2).then(fault.clone());
        arrives(Writing::default(), vec![rule]).await;
    }
}

#[tokio::test]
async fn a_broken_chunk_goes_on_at_the_byte_that_the_registry_tells() {
    let rule = on(Method::PATCH).after(2).times(1).then(Fault::BreakRequest { after_bytes: 6000 });
    let (registry, sent) = arrives(Writing::default(), vec![rule]).await;
    let patches = registry.requests().into_iter().filter(|one| one.method == Method::PATCH);
    let spans: Vec<_> =
        patches.map(|one| one.header("content-range").unwrap().to_owned()).collect();
    let resumed = spans.iter().filter_map(|span| span.split_once('-')?.0.parse::<u64>().ok());
    // The double keeps whole pieces of the connection; none is sent twice.
    assert!(resumed.into_iter().any(|start| start % 10_000 != 0), "{spans:?}");
    assert_eq!(registry.bytes_received(), sent.sent_bytes, "{spans:?}");
}

#[tokio::test]
async fn an_upload_obeys_a_host_that_says_when_to_come_back() {
    let rule = on(Method::PATCH).times(2).then(Fault::RetryAfter(429, "0".to_owned()));
    arrives(Writing::default(), vec![rule]).await;
    let rule = Rule::on("/manifests/").method(Method::PUT).times(2);
    arrives(Writing::default(), vec![rule.then(Fault::RetryAfter(503, "0".to_owned()))]).await;
}

#[tokio::test]
async fn a_host_that_asks_for_pauses_for_ever_is_given_up_when_the_patience_ends() {
    let registry = registry(Writing::default()).await;
    registry.script(on(Method::PATCH).then(Fault::RetryAfter(429, "1".to_owned())));
    let client = client_with(|config| {
        config.timing.open = Duration::from_secs(3);
        config.uploads = SIZES;
    });
    let (source, root) = kit();
    let error = send(&source, &root, destination(&client, &registry)).await.unwrap_err();
    assert!(matches!(error, SendError::Source(SourceError::Throttled { .. })), "{error}");
    let asked = registry.requests().into_iter().filter(|one| one.method == Method::PATCH).count();
    assert!((2..=5).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_registry_that_never_takes_a_chunk_is_given_up() {
    for fault in [Fault::BreakRequest { after_bytes: 0 }, Fault::Forget, Fault::CorruptRequest] {
        let registry = registry(Writing::default()).await;
        registry.script(Rule::on(UPLOADS).then(fault.clone()));
        let (source, root) = kit();
        let error = send(&source, &root, destination(&client(), &registry)).await.unwrap_err();
        assert!(matches!(error, SendError::Source(_)), "{fault:?}: {error}");
        assert!(registry.tagged(NAME, "v1").is_none());
    }
}

#[rstest]
#[case::blob(UPLOADS)]
#[case::manifest("/manifests/")]
#[tokio::test]
async fn a_registry_that_stores_another_digest_is_an_error(#[case] part: &str) {
    let registry = registry(Writing::default()).await;
    let other = Digest::of(b"other").to_string();
    registry.script(Rule::on(part).method(Method::PUT).then(Fault::SaysDigest(other)));
    let (source, root) = kit();
    let error = send(&source, &root, destination(&client(), &registry)).await.unwrap_err();
    let is_it = matches!(error, SendError::Source(SourceError::DigestMismatch { .. }));
    assert!(is_it, "{error}");
}

#[tokio::test]
async fn a_damaged_blob_is_refused_before_its_last_byte() {
    for size in [1, 1000, 34_567] {
        let registry = registry(Writing::default()).await;
        let mut source = Memory::default();
        let root = source.kit(&[content(size)]);
        let digest = Digest::of(&content(size));
        let mut damaged = content(size);
        damaged[size / 2] ^= 1;
        source.blobs.insert(digest, damaged.into());
        let error = send(&source, &root, destination(&client(), &registry)).await.unwrap_err();
        let SendError::Source(SourceError::DigestMismatch { expected, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(*expected, digest);
        assert!(error.to_string().contains("memory"), "{error}");
        assert!(registry.tagged(NAME, "v1").is_none());
        assert!(registry.bytes_received() < size as u64 + 100, "all of it was sent");
        assert_eq!(registry.open_uploads(), 0);
    }
}

#[tokio::test]
async fn a_blob_of_the_registrys_other_repository_is_mounted() {
    let (source, root) = kit();
    for refuses_mounts in [false, true] {
        let registry = registry(Writing { refuses_mounts, ..Writing::default() }).await;
        source.blobs.values().for_each(|bytes| _ = registry.push_blob("org/base", bytes.clone()));
        let base = Reference::parse(&registry.reference("org/base", "v1")).unwrap();
        let elsewhere = Reference::parse("ghcr.io/org/base:v1").unwrap();
        let destination = destination(&client(), &registry);
        let sender =
            Sender::new(Arc::new(source.clone()), root.clone(), destination).await.unwrap();
        let sender = sender.with_others(move |_| vec![elsewhere.clone(), base.clone()]);
        let sent = sender.send(Some("v1"), Replaces::Nothing).await.unwrap();
        assert_there(&registry, &source, &root);
        assert_eq!(sent.mounted_bytes > 0, !refuses_mounts);
        assert_eq!(registry.bytes_received(), if refuses_mounts { sent.sent_bytes } else { 0 });
        assert_eq!(sender.progress().bytes(), sender.total_bytes());
        // The upload that a refused mount has begun is used.
        let begun = registry.requests().into_iter().filter(|one| one.method == Method::POST);
        assert_eq!(begun.count(), source.blobs.len());
    }
}

#[tokio::test]
async fn a_tag_of_another_kit_moves_only_when_it_is_told_to() {
    let (registry, _) = arrives(Writing::default(), vec![]).await;
    let mut other = Memory::default();
    let root = other.kit(&[content(10)]);
    let before = registry.bytes_received();
    let error = send(&other, &root, destination(&client(), &registry)).await.unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, SendError::TagExists { .. }), "{words}");
    let there = registry.tagged(NAME, "v1").unwrap().0;
    for digest in [there, Digest::of(&root)] {
        assert!(words.contains(&digest.short()), "{words}");
    }
    assert!(words.contains("--force") && words.contains("`v1`"), "{words}");
    assert_eq!(registry.bytes_received(), before);
    let destination = destination(&client(), &registry);
    let sender = Sender::new(Arc::new(other.clone()), root.clone(), destination).await.unwrap();
    sender.send(Some("v1"), Replaces::Anything).await.unwrap();
    assert_there(&registry, &other, &root);
}

#[tokio::test]
async fn an_index_arrives_with_its_kits() {
    let registry = registry(Writing::default()).await;
    let mut source = Memory::default();
    let kits = [source.kit(&[content(10)]), source.kit(&[content(20_000)])];
    let entries: Vec<_> = kits
        .iter()
        .map(|kit| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(kit), "size": kit.len()})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries});
    let root = source.manifest(index.to_string());
    let sent = send(&source, &root, destination(&client(), &registry)).await.unwrap();
    assert_eq!(sent.manifests, 3);
    assert_there(&registry, &source, &root);
    assert_eq!(registry.manifests(NAME).len(), 3);
    // An index whose kit is missing cannot be sent.
    source.manifests.remove(&Digest::of(&kits[0]));
    let error = send(&source, &root, destination(&client(), &registry)).await.unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
}

/// A registry with tokens, and a client that has a password.
async fn with_password(tokens: Tokens, writing: Writing) -> (RegistryDouble, tempfile::TempDir) {
    let access =
        Access::Bearer(Tokens { password: Some(("bob".into(), "secret".into())), ..tokens });
    let registry = RegistryDouble::start(Options { access, writing, ..Options::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let entry = json!({ "username": "bob", "password": "secret" });
    write_credentials(&folder.path().join("config.json"), &registry.host(), entry);
    (registry, folder)
}

#[tokio::test]
async fn a_token_is_asked_for_the_right_to_push_and_renewed_in_the_midst_of_an_upload() {
    let tokens = Tokens { lifetime: Duration::from_millis(1500), ..Tokens::default() };
    let (registry, folder) = with_password(tokens, Writing::default()).await;
    registry.script(on(Method::PATCH).then(Fault::Late(Duration::from_millis(600))));
    let store = CredentialStore::new(vec![folder.path().join("config.json")]);
    let client = client_with(|config| (config.credentials, config.uploads) = (store, SIZES));
    let (source, root) = kit();
    send(&source, &root, destination(&client, &registry)).await.unwrap();
    assert_there(&registry, &source, &root);
    let asked = registry.requests_to(At::TokenServer, "");
    assert!(asked.len() > 1, "{}", asked.len());
    assert!(asked.iter().all(|one| one.uri.to_string().contains("push")), "{asked:?}");
}

#[tokio::test]
async fn a_push_without_rights_names_the_repository_the_user_and_the_way_out() {
    let denied = Writing { is_denied: true, ..Writing::default() };
    let (registry, folder) = with_password(Tokens::default(), denied.clone()).await;
    let file = folder.path().join("config.json");
    let store = CredentialStore::new(vec![file.clone()]);
    let client = client_with(|config| (config.credentials, config.uploads) = (store, SIZES));
    let (source, root) = kit();
    let error = send(&source, &root, destination(&client, &registry)).await.unwrap_err();
    let words = error.to_string();
    assert!(matches!(error, SendError::Source(SourceError::Unauthorized { .. })), "{words}");
    for part in [NAME, "`bob`", "kit login", &registry.host()] {
        assert!(words.contains(part), "no {part} in {words}");
    }
    assert!(!words.contains("secret"), "{words}");

    // Nobody is logged in.
    let open = RegistryDouble::start(Options { writing: denied, ..Options::default() }).await;
    for registry in [&registry, &open] {
        let missing = folder.path().join("missing.json");
        let store = CredentialStore::new(vec![missing.clone()]);
        let client = client_with(|config| (config.credentials, config.uploads) = (store, SIZES));
        let error = send(&source, &root, destination(&client, registry)).await.unwrap_err();
        let words = error.to_string();
        let looked = missing.display().to_string();
        for part in [NAME, "no credentials", &looked, "kit login"] {
            assert!(words.contains(part), "no {part} in {words}");
        }
    }
}

#[tokio::test]
async fn a_mount_asks_for_the_right_to_read_the_other_repository() {
    let (source, root) = kit();
    let (registry, folder) = with_password(Tokens::default(), Writing::default()).await;
    source.blobs.values().for_each(|bytes| _ = registry.push_blob("org/base", bytes.clone()));
    let store = CredentialStore::new(vec![folder.path().join("config.json")]);
    let client = client_with(|config| (config.credentials, config.uploads) = (store, SIZES));
    let destination = destination(&client, &registry);
    let sender = Sender::new(Arc::new(source.clone()), root.clone(), destination).await.unwrap();
    let base = Reference::parse(&registry.reference("org/base", "v1")).unwrap();
    let sender = sender.with_others(move |_| vec![base.clone()]);
    let sent = sender.send(Some("v1"), Replaces::Nothing).await.unwrap();
    assert_eq!((sent.sent_bytes, registry.bytes_received()), (0, 0));
    assert_there(&registry, &source, &root);
    let asked = registry.requests_to(At::TokenServer, "base");
    let is_pull = |uri: String| uri.contains("base%3Apull") && !uri.contains("base%3Apull%2Cpush");
    assert!(!asked.is_empty() && asked.iter().all(|one| is_pull(one.uri.to_string())), "{asked:?}");
}

/// A registry could otherwise have the user overwrite a kit of another registry.
#[rstest]
#[case::manifest("/manifests/v1", Method::PUT)]
#[case::begin("/blobs/uploads/", Method::POST)]
#[tokio::test]
async fn a_change_that_is_redirected_to_another_registry_goes_without_credentials(
    #[case] path: &str,
    #[case] method: Method,
) {
    let access = || Access::Basic { username: "bob".into(), password: "secret".into() };
    let other = RegistryDouble::start(Options { access: access(), ..Options::default() }).await;
    let registry = registry(Writing::default()).await;
    let target = format!("http://{}/v2/{NAME}{path}", other.host());
    registry.script(Rule::on(path).method(method).then(Fault::Redirect(target)));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    write_credentials(&file, &other.host(), json!({ "username": "bob", "password": "secret" }));
    let store = CredentialStore::new(vec![file]);
    let client = client_with(|config| (config.credentials, config.uploads) = (store, SIZES));
    let (source, root) = kit();
    send(&source, &root, destination(&client, &registry)).await.unwrap_err();
    let asked = other.requests();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|one| one.header("authorization").is_none()), "{asked:?}");
    assert!(other.tagged(NAME, "v1").is_none());
}

#[tokio::test]
async fn a_slow_upload_is_waited_for_as_long_as_its_bytes_move_and_a_stuck_one_is_not() {
    let patience = Duration::from_secs(3);
    let client = || {
        client_with(|config| {
            config.timing.open = patience;
            config.timing.retries = 1;
            config.uploads.whole_bytes = u64::MAX;
        })
    };
    let mut source = Memory::default();
    // More than the buffers of a connection hold.
    let root = source.kit(&[content(24 << 20)]);
    let slow = registry(Writing::default()).await;
    slow.script(on(Method::PUT).then(Fault::SlowRequest { bytes_per_second: 6 << 20 }));
    let started = std::time::Instant::now();
    send(&source, &root, destination(&client(), &slow)).await.unwrap();
    assert!(started.elapsed() > patience, "it was not slow: {:?}", started.elapsed());
    assert_there(&slow, &source, &root);

    let stuck = registry(Writing::default()).await;
    stuck.script(on(Method::PUT).then(Fault::StallRequest { after_bytes: 1 << 20 }));
    let error = send(&source, &root, destination(&client(), &stuck)).await.unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
    assert!(stuck.tagged(NAME, "v1").is_none());
}

/// A fault that an upload may meet.
fn any_fault() -> impl Strategy<Value = (Method, usize, usize, Fault)> {
    let method = prop_oneof![
        Just(Method::POST),
        Just(Method::PATCH),
        Just(Method::PATCH),
        Just(Method::PUT),
        Just(Method::GET),
        Just(Method::HEAD),
    ];
    let fault = prop_oneof![
        (0usize..12_000).prop_map(|after_bytes| Fault::BreakRequest { after_bytes }),
        (0usize..12_000).prop_map(|bytes| Fault::TakePart { bytes }),
        Just(Fault::LoseAnswer),
        Just(Fault::Forget),
        Just(Fault::CorruptRequest),
        Just(Fault::Status(500)),
        Just(Fault::Status(404)),
        Just(Fault::Status(400)),
        Just(Fault::RetryAfter(429, "0".to_owned())),
        "(0-[0-9]{1,5}|[ -~]{0,12})".prop_map(Fault::SaysRange),
        Just(Fault::SaysDigest(Digest::of(b"other").to_string())),
    ];
    (method, 0usize..6, 1usize..3, fault)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Under any faults, the kit arrives with the right bytes, or there is an error and no manifest without its
    /// blobs.
    #[test]
    fn no_fault_leaves_a_manifest_without_its_blobs(
        faults in prop::collection::vec(any_fault(), 0..6),
        size in 0usize..45_000,
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let registry = registry(Writing::default()).await;
            for (method, skip, times, fault) in &faults {
                registry.script(Rule::on("").method(method.clone()).after(*skip).times(*times).then(fault.clone()));
            }
            let mut source = Memory::default();
            let root = source.kit(&[content(size), content(20_001)]);
            let sent = send(&source, &root, destination(&client(), &registry)).await;
            match sent {
                Ok(_) => assert_there(&registry, &source, &root),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            if registry.tagged(NAME, "v1").is_some() {
                assert_there(&registry, &source, &root);
            }
            // The next push goes on where this one ended.
            registry.heal();
            send(&source, &root, destination(&client(), &registry)).await.unwrap();
            assert_there(&registry, &source, &root);
        });
    }
}
