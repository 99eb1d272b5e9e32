//! Passwords and tokens.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use kitfs::oci::BlobOffset;
use kitfs::source::credentials::CredentialStore;
use kitfs::source::{Repository, SourceError, Urgency};
use serde_json::json;

use crate::setup::{
    NAME, client_with, content, manifest, open, read, repository, write_credentials,
};
use crate::support::registry_double::{Access, At, Fault, Options, RegistryDouble, Rule, Tokens};

async fn registry(access: Access) -> RegistryDouble {
    let registry = RegistryDouble::start(Options { access, ..Options::default() }).await;
    registry.push_manifest(NAME, "latest", manifest());
    registry
}

/// The repository, read with `entry` for the registry in Docker's config.
fn open_as(registry: &RegistryDouble, entry: serde_json::Value) -> Arc<dyn Repository> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.keep().join("config.json");
    write_credentials(&path, &registry.host(), entry);
    let client = client_with(|config| config.credentials = CredentialStore::new(vec![path]));
    repository(&client, &registry.host())
}

fn password() -> Option<(String, String)> {
    Some(("user".into(), "pass word".into()))
}

/// `user:pass word` as Docker's config has it.
fn password_entry() -> serde_json::Value {
    json!({ "auth": "dXNlcjpwYXNzIHdvcmQ=" })
}

#[tokio::test]
async fn public_repositories_are_read_with_an_anonymous_token() {
    let registry = registry(Access::Bearer(Tokens::default())).await;
    open(&registry).manifest(None).await.unwrap();
    let asked = &registry.requests_to(At::TokenServer, "")[0];
    assert_eq!(asked.uri, "/token?scope=repository%3Aorg%2Fmodel%3Apull&service=double");
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn basic_credentials_are_sent_once_they_are_asked_for() {
    let (username, password) = password().unwrap();
    let registry = registry(Access::Basic { username, password }).await;
    let repository = open_as(&registry, password_entry());
    repository.manifest(None).await.unwrap();
    repository.manifest(None).await.unwrap();
    let statuses: Vec<_> = registry.requests().iter().map(|one| one.status.as_u16()).collect();
    assert_eq!(statuses, [401, 200, 200]);
}

#[tokio::test]
async fn a_password_goes_to_the_token_server_and_the_token_to_the_registry() {
    let registry =
        registry(Access::Bearer(Tokens { password: password(), ..Tokens::default() })).await;
    open_as(&registry, password_entry()).manifest(None).await.unwrap();
    let asked = &registry.requests_to(At::TokenServer, "")[0];
    assert_eq!(asked.header("authorization"), Some("Basic dXNlcjpwYXNzIHdvcmQ="));
    let sent: Vec<_> = registry.requests_to(At::Registry, "");
    assert_eq!(sent[0].header("authorization"), None);
    assert!(sent[1].header("authorization").unwrap().starts_with("Bearer secret-token-"));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let identity = Some("refresh-me".to_owned());
    let registry =
        registry(Access::Bearer(Tokens { identity, terse: true, ..Tokens::default() })).await;
    let entry = json!({ "auth": "PHRva2VuPjo=", "identitytoken": "refresh-me" });
    open_as(&registry, entry).manifest(None).await.unwrap();
    let asked = &registry.requests_to(At::TokenServer, "")[0];
    assert_eq!(asked.method, "POST");
    assert!(asked.form.contains("grant_type=refresh_token"), "{}", asked.form);
    assert!(asked.form.contains("scope=repository%3Aorg%2Fmodel%3Apull"), "{}", asked.form);
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_first_requests_make_one_token_request() {
    let registry = registry(Access::Bearer(Tokens::default())).await;
    registry.script(
        Rule::on("").at(At::TokenServer).times(1).then(Fault::Late(Duration::from_millis(100))),
    );
    let blob = registry.push_blob(NAME, content(1000));
    let repository = open(&registry);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let repository = repository.clone();
        readers.spawn(async move { read(&repository, blob, 0..100).await.map(drop) });
    }
    for result in readers.join_all().await {
        result.unwrap();
    }
    assert_eq!(registry.token_requests(), 1);
}

#[tokio::test]
async fn a_token_is_used_for_all_requests_of_a_repository() {
    let registry = registry(Access::Bearer(Tokens::default())).await;
    let client = client_with(|_| {});
    for _ in 0..3 {
        let repository = repository(&client, &registry.host());
        repository.manifest(None).await.unwrap();
        repository.tags().await.unwrap();
    }
    assert_eq!(registry.token_requests(), 1);
    assert_eq!(registry.requests_to(At::Registry, "").len(), 1 + 6);
}

#[tokio::test]
async fn a_token_that_is_refused_is_refreshed() {
    let registry = registry(Access::Bearer(Tokens::default())).await;
    let repository = open(&registry);
    repository.manifest(None).await.unwrap();
    registry.revoke_tokens();
    repository.manifest(None).await.unwrap();
    assert_eq!(registry.token_requests(), 2);
}

#[tokio::test]
async fn a_token_that_is_refused_in_the_midst_of_a_stream_is_refreshed_unseen() {
    let registry = registry(Access::Bearer(Tokens::default())).await;
    let blob = registry.push_blob(NAME, content(300_000));
    // The first request has no token yet.
    let reset = Fault::Reset { after_bytes: 100_000 };
    registry.script(Rule::on("/blobs/").after(1).times(1).then(reset));
    let repository = open(&registry);
    let mut stream =
        repository.open(blob, BlobOffset(0).range(200_000), Urgency::on_demand()).await.unwrap();
    registry.revoke_tokens();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(bytes, content(300_000)[..200_000]);
    assert_eq!(registry.token_requests(), 2);
}

#[tokio::test]
async fn a_401_without_a_challenge_says_nothing_about_how_to_go_on() {
    let registry = registry(Access::Open).await;
    registry.script(Rule::on("/manifests/").then(Fault::Status(401)));
    let error = open(&registry).manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
    assert!(!error.to_string().contains("kit login"), "advice that cannot help: {error}");
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    // Renewed a quarter of its life before its end.
    let lifetime = Duration::from_secs(8);
    let registry = registry(Access::Bearer(Tokens { lifetime, ..Tokens::default() })).await;
    let repository = open(&registry);
    repository.manifest(None).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    repository.manifest(None).await.unwrap();
    let refused = registry.requests().iter().filter(|one| one.status == 401).count();
    assert_eq!(refused, 1, "only the first request, which had no token");
    assert_eq!(registry.token_requests(), 2);
}

#[tokio::test]
async fn token_requests_are_retried() {
    let registry = registry(Access::Bearer(Tokens::default())).await;
    registry.script(Rule::on("").at(At::TokenServer).times(2).then(Fault::Status(503)));
    open(&registry).manifest(None).await.unwrap();
    assert_eq!(registry.token_requests(), 3);
}

#[tokio::test]
async fn a_refusal_says_how_to_log_in() {
    let tokens = Tokens { password: password(), ..Tokens::default() };
    let (username, password) = password().unwrap();
    for access in [Access::Bearer(tokens), Access::Basic { username, password }] {
        let registry = registry(access).await;
        let error = open(&registry).manifest(None).await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
        let advice = format!("kit login {}", registry.host());
        assert!(error.to_string().contains(&advice), "{error}");
        assert!(error.to_string().contains(NAME), "{error}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_tried_once_and_not_shown() {
    let tokens = Tokens { password: password(), ..Tokens::default() };
    let (username, password) = password().unwrap();
    for access in [Access::Bearer(tokens), Access::Basic { username, password }] {
        let registry = registry(access).await;
        // user:hunter2
        let repository = open_as(&registry, json!({ "auth": "dXNlcjpodW50ZXIy" }));
        let error = repository.manifest(None).await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
        for message in [error.to_string(), format!("{error:?}")] {
            assert!(!message.contains("hunter2") && !message.contains("dXNlcj"), "{message}");
        }
        let with_password =
            registry.requests().iter().filter(|one| one.header("authorization").is_some()).count();
        assert_eq!(with_password, 1);
    }
}

#[tokio::test]
async fn a_403_is_unauthorized_and_not_retried() {
    let registry = registry(Access::Open).await;
    registry.script(Rule::on("/manifests/").then(Fault::Status(403)));
    let error = open(&registry).manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
    assert!(error.to_string().contains("403 Forbidden: scripted fault"), "{error}");
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn kits_credentials_come_before_dockers() {
    let registry =
        registry(Access::Bearer(Tokens { password: password(), ..Tokens::default() })).await;
    let folder = tempfile::tempdir().unwrap();
    let [kit, docker] = ["credentials.json", "config.json"].map(|name| folder.path().join(name));
    write_credentials(&kit, &registry.host(), password_entry());
    write_credentials(&docker, &registry.host(), json!({ "auth": "dXNlcjpodW50ZXIy" }));
    let files = vec![kit.clone(), docker];
    let client = client_with(|config| config.credentials = CredentialStore::new(files));
    let repository = repository(&client, &registry.host());
    repository.manifest(None).await.unwrap();

    // Without kit's file, Docker's counts.
    std::fs::remove_file(kit).unwrap();
    registry.revoke_tokens();
    let error = repository.manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
}
