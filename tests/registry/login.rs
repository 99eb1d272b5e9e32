//! Credentials that change while a client lives, token servers that redirect, and registries that
//! lead to other registries.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kitfs::oci::{BlobId, Digest};
use kitfs::source::credentials::CredentialStore;
use kitfs::source::registry_rules::{RegistryRule, RegistryRules};
use kitfs::source::{Repository, SourceError};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setup::{client_with, content, manifest, open_at, read, repository, write_credentials};
use crate::wire::{Ask, Reply, Wire};

/// A folder with credentials, and a repository that is read with them.
struct Reader {
    folder: TempDir,
    host: String,
    repository: Arc<dyn Repository>,
}

impl Reader {
    /// Of a host for which Docker's config has this entry.
    fn with_entry(host: &str, entry: Value) -> Self {
        let reader = Self::with_config(host, "{}");
        reader.log_in(entry);
        reader
    }

    /// With this config.
    fn with_config(host: &str, config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        std::fs::write(&file, config).unwrap();
        let store = CredentialStore::new(vec![file]).with_helper_path(folder.path().into());
        let client = client_with(|config| config.credentials = store);
        Self { folder, host: host.to_owned(), repository: repository(&client, host) }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("config.json")
    }

    /// As `docker login` does it: another file takes the place of the old one.
    fn log_in(&self, entry: Value) {
        let new = self.folder.path().join("new");
        write_credentials(&new, &self.host, entry);
        std::fs::rename(new, self.file()).unwrap();
    }

    /// Makes `docker-credential-fake` print this password.
    fn set_helper(&self, password: &str) {
        let helper = self.folder.path().join("docker-credential-fake");
        let new = self.folder.path().join("new");
        let answer = json!({ "Username": "user", "Secret": password }).to_string();
        std::fs::write(&new, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, helper).unwrap();
    }

    async fn ask(&self) -> Result<(), SourceError> {
        self.repository.manifest(None).await.map(drop)
    }
}

fn password_entry(password: &str) -> Value {
    json!({ "auth": BASE64_STANDARD.encode(format!("user:{password}")) })
}

fn basic(password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("user:{password}")))
}

/// A registry that knows one password, and says no to others with this status.
async fn password_registry(password: &Arc<Mutex<String>>, refusal: u16) -> Wire {
    let password = Arc::clone(password);
    Wire::start(move |ask| match ask.header("authorization") {
        None => Reply::new(401, &["WWW-Authenticate: Basic realm=\"Anmeldung für alle\""], "no"),
        Some(given) if given == basic(&password.lock()) => Reply::new(200, &[], manifest()),
        Some(_) => Reply::new(refusal, &[], r#"{"errors":[{"message":"token has expired"}]}"#),
    })
    .await
}

/// The `Authorization` headers of the requests, in order.
fn carried(wire: &Wire) -> Vec<Option<String>> {
    wire.asked().iter().map(|ask| ask.header("authorization").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_password_that_expired_is_read_again_once_whether_the_registry_says_401_or_403() {
    for refusal in [401, 403] {
        let valid = Arc::new(Mutex::new("first".to_owned()));
        let wire = password_registry(&valid, refusal).await;
        let config = json!({ "credHelpers": { wire.host(): "fake" } }).to_string();
        let reader = Reader::with_config(&wire.host(), &config);
        reader.set_helper("first");
        reader.ask().await.unwrap();

        *valid.lock() = "second".to_owned();
        reader.set_helper("second");
        reader.ask().await.unwrap();
        let [first, second] = ["first", "second"].map(|password| Some(basic(password)));
        assert_eq!(carried(&wire), [None, first.clone(), first, second.clone()]);

        // The helper has nothing new: the refusal stands, and is not asked for twice.
        *valid.lock() = "third".to_owned();
        let error = reader.ask().await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("token has expired"), "{error}");
        assert_eq!(carried(&wire)[4..], [second]);
    }
}

#[tokio::test]
async fn a_login_counts_for_a_client_that_lives() {
    let valid = Arc::new(Mutex::new("first".to_owned()));
    let wire = password_registry(&valid, 403).await;
    let reader = Reader::with_entry(&wire.host(), password_entry("first"));
    reader.ask().await.unwrap();
    *valid.lock() = "second".to_owned();
    reader.log_in(password_entry("second"));
    reader.ask().await.unwrap();
    let second = Some(basic("second"));
    assert_eq!(carried(&wire)[2..], [second], "the old password is not tried once more");
}

#[tokio::test]
async fn a_logout_counts_for_a_client_that_lives() {
    let log_outs: [fn(&Reader); 3] = [
        |reader| std::fs::remove_file(reader.file()).unwrap(),
        |reader| std::fs::write(reader.file(), "{}").unwrap(),
        |reader| reader.log_in(json!({})),
    ];
    for log_out in log_outs {
        let valid = Arc::new(Mutex::new("first".to_owned()));
        let wire = password_registry(&valid, 401).await;
        let reader = Reader::with_entry(&wire.host(), password_entry("first"));
        reader.ask().await.unwrap();
        log_out(&reader);
        let error = reader.ask().await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("kit login"), "{error}");
        assert_eq!(wire.asked().len(), 2, "no request carries what is gone");
    }
}

/// A registry and its token server at one host. The token server answers as `token` says, where the
/// password was `first`; the registry takes the tokens in `valid`.
async fn token_registry(
    challenge: &'static str,
    valid: &Arc<Mutex<Vec<&'static str>>>,
    token: impl Fn(&Ask) -> Reply + Send + Sync + 'static,
) -> Wire {
    let valid = Arc::clone(valid);
    Wire::start(move |ask| {
        if !ask.target.starts_with("/v2/") {
            return token(ask);
        }
        let given = ask.header("authorization").and_then(|given| given.strip_prefix("Bearer "));
        match given.is_some_and(|given| valid.lock().contains(&given)) {
            true => Reply::new(200, &[], manifest()),
            false => {
                let realm = format!("realm=\"http://{}/token\"", ask.host());
                let header = format!("WWW-Authenticate: Bearer {realm},{challenge}");
                Reply::new(if given.is_some() { 403 } else { 401 }, &[&header], "{}")
            }
        }
    })
    .await
}

fn tokens(valid: &[&'static str]) -> Arc<Mutex<Vec<&'static str>>> {
    Arc::new(Mutex::new(valid.to_vec()))
}

/// The requests for tokens.
fn token_requests(wire: &Wire) -> Vec<Ask> {
    wire.asked().into_iter().filter(|ask| !ask.target.starts_with("/v2/")).collect()
}

#[tokio::test]
async fn a_token_that_is_answered_with_403_is_replaced_once() {
    let valid = tokens(&["t0"]);
    let count = Mutex::new(0);
    let wire = token_registry("service=\"s\"", &valid, move |_| {
        let mut count = count.lock();
        *count += 1;
        Reply::new(200, &[], json!({ "token": format!("t{}", *count - 1) }).to_string())
    })
    .await;
    let repository = open_at(&wire.host());
    repository.manifest(None).await.unwrap();
    *valid.lock() = vec!["t1"];
    repository.manifest(None).await.unwrap();
    assert_eq!(token_requests(&wire).len(), 2);

    // A repository that may not be read: one more try, not one after the other.
    valid.lock().clear();
    let error = repository.manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
    assert_eq!(token_requests(&wire).len(), 3);
}

#[tokio::test]
async fn no_token_outlives_the_credentials_that_it_was_given_for() {
    let valid = tokens(&["t"]);
    let wire = token_registry("service=\"s\"", &valid, |ask| match ask.header("authorization") {
        Some(given) if given == basic("first") => Reply::new(200, &[], r#"{"token":"t"}"#),
        _ => Reply::new(401, &[], "{}"),
    })
    .await;
    let reader = Reader::with_entry(&wire.host(), password_entry("first"));
    reader.ask().await.unwrap();
    // Another program writes the file without a change for this host.
    reader.log_in(password_entry("first"));
    reader.ask().await.unwrap();
    assert_eq!(token_requests(&wire).len(), 1);

    std::fs::remove_file(reader.file()).unwrap();
    let before = wire.asked().len();
    let error = reader.ask().await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
    let after = &wire.asked()[before..];
    assert!(after.iter().all(|ask| ask.header("authorization").is_none()), "{after:?}");
}

#[tokio::test]
async fn a_token_is_asked_for_with_the_scope_of_the_challenge_but_for_what_changes_something() {
    let challenge = "service=\"s\",scope=\"repository:org/model:push,metadata_read,pull,delete\"";
    let valid = tokens(&["t"]);
    let wire =
        token_registry(challenge, &valid, |_| Reply::new(200, &[], r#"{"token":"t"}"#)).await;
    open_at(&wire.host()).manifest(None).await.unwrap();
    let asked = &token_requests(&wire)[0].target;
    assert_eq!(asked, "/token?scope=repository%3Aorg%2Fmodel%3Ametadata_read%2Cpull&service=s");
}

#[tokio::test]
async fn a_token_server_that_has_no_place_for_strangers_asks_for_a_login() {
    for status in [400, 401, 403, 404] {
        let (valid, none) = (tokens(&[]), move |_: &Ask| Reply::new(status, &[], "{}"));
        let wire = token_registry("service=\"s\"", &valid, none).await;
        let error = open_at(&wire.host()).manifest(None).await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{status}: {error}");
        assert!(error.to_string().contains("log in with `kit login"), "{status}: {error}");
    }
}

#[tokio::test]
async fn a_token_server_may_be_named_by_a_path_of_the_registry() {
    let wire = Wire::start(|ask| match ask.header("authorization") {
        _ if ask.target.starts_with("/auth?account=a&") => {
            Reply::new(200, &[], r#"{"access_token":"t"}"#)
        }
        Some("Bearer t") => Reply::new(200, &[], manifest()),
        _ => Reply::new(401, &["WWW-Authenticate: Bearer realm=\"/auth?account=a\""], ""),
    })
    .await;
    open_at(&wire.host()).manifest(None).await.unwrap();
    assert_eq!(wire.asked().len(), 3);
}

#[tokio::test]
async fn a_password_is_sent_where_no_token_server_is_named_beside_it() {
    let wire = Wire::start(|ask| match ask.header("authorization") {
        Some(given) if given == basic("first") => Reply::new(200, &[], manifest()),
        _ => {
            let challenges = "WWW-Authenticate: Bearer service=\"s\", Basic realm=\"r\"";
            Reply::new(401, &[challenges], "")
        }
    })
    .await;
    Reader::with_entry(&wire.host(), password_entry("first")).ask().await.unwrap();

    let wire =
        Wire::start(|_| Reply::new(401, &["WWW-Authenticate: Bearer service=\"s\""], "")).await;
    let error = open_at(&wire.host()).manifest(None).await.unwrap_err().to_string();
    assert!(error.contains("does not say from which token server"), "{error}");
}

/// Redirects requests for `/token`, and gives a token at `/new`.
fn redirecting(status: u16, to: String) -> impl Fn(&Ask) -> Reply + Send + Sync + 'static {
    move |ask| match ask.target.starts_with("/token") {
        true => {
            let query = ask.target.split_once('?').map_or("", |(_, query)| query);
            Reply::new(status, &[&format!("Location: {to}?{query}")], "<html>moved</html>")
        }
        false => Reply::new(200, &[], r#"{"token":"t"}"#),
    }
}

#[tokio::test]
async fn a_redirect_of_a_token_server_is_followed_with_the_password_at_its_host_alone() {
    for status in [301, 302, 303, 307, 308] {
        let valid = tokens(&["t"]);
        let wire =
            token_registry("service=\"s\"", &valid, redirecting(status, "/new".into())).await;
        let reader = Reader::with_entry(&wire.host(), password_entry("first"));
        reader.ask().await.unwrap();
        let asked = token_requests(&wire);
        assert!(asked[1].target.starts_with("/new?scope=repository"), "{}", asked[1].target);
        assert_eq!(asked[1].header("authorization"), Some(basic("first").as_str()));

        let other = Wire::start(|_| Reply::new(200, &[], r#"{"token":"t"}"#)).await;
        let elsewhere = redirecting(status, format!("http://{}/new", other.host()));
        let wire = token_registry("service=\"s\"", &valid, elsewhere).await;
        let reader = Reader::with_entry(&wire.host(), password_entry("first"));
        reader.ask().await.unwrap();
        assert_eq!(other.asked()[0].header("authorization"), None);
        assert!(other.asked()[0].target.starts_with("/new?scope=repository"));
    }
}

#[tokio::test]
async fn an_identity_token_is_posted_to_its_host_alone() {
    let entry = || json!({ "identitytoken": "refresh-me" });
    let valid = tokens(&["t"]);
    let wire = token_registry("service=\"s\"", &valid, redirecting(307, "/new".into())).await;
    Reader::with_entry(&wire.host(), entry()).ask().await.unwrap();
    let asked = &token_requests(&wire)[1];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/new?"));
    assert!(asked.body.contains("refresh_token=refresh-me"), "{}", asked.body);

    let other = Wire::start(|_| Reply::new(200, &[], r#"{"token":"t"}"#)).await;
    let elsewhere = redirecting(307, format!("http://{}/new", other.host()));
    let wire = token_registry("service=\"s\"", &valid, elsewhere).await;
    let error = Reader::with_entry(&wire.host(), entry()).ask().await.unwrap_err();
    assert!(error.to_string().contains("must not see the identity token"), "{error}");
    assert!(!error.to_string().contains("refresh-me") && other.asked().is_empty(), "{error}");
}

#[tokio::test]
async fn token_servers_that_redirect_in_a_circle_are_given_up() {
    let valid = tokens(&["t"]);
    let wire = token_registry("service=\"s\"", &valid, redirecting(302, "/token".into())).await;
    let error = open_at(&wire.host()).manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert_eq!(token_requests(&wire).len(), 6);
}

#[tokio::test]
async fn a_credential_store_that_fails_is_named_when_the_registry_refuses() {
    let valid = Arc::new(Mutex::new("first".to_owned()));
    let wire = password_registry(&valid, 401).await;
    let reader = Reader::with_config(&wire.host(), r#"{"credsStore":"desktop.exe"}"#);
    let message = reader.ask().await.unwrap_err().to_string();
    for words in ["docker-credential-desktop.exe", "config.json", "is not installed", "kit login"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    // A public registry asks for no password, so no message names the store.
    let open = Wire::start(|_| Reply::new(200, &[], manifest())).await;
    Reader::with_config(&open.host(), r#"{"credsStore":"desktop.exe"}"#).ask().await.unwrap();
}

#[tokio::test]
async fn a_login_is_advised_where_it_helps() {
    let wanting = |challenge: &'static str| Wire::start(move |_| Reply::new(401, &[challenge], ""));
    let wire = wanting("WWW-Authenticate: Negotiate, NTLM").await;
    let error = open_at(&wire.host()).manifest(None).await.unwrap_err().to_string();
    assert!(error.contains("it wants negotiate or ntlm"), "{error}");
    assert!(!error.contains("kit login"), "{error}");

    let wire = wanting("WWW-Authenticate: Basic realm=\"r\"").await;
    let entry = json!({ "identitytoken": "secret" });
    let error = Reader::with_entry(&wire.host(), entry).ask().await.unwrap_err().to_string();
    assert!(error.contains("only a token is known") && error.contains("kit login"), "{error}");
    assert!(!error.contains("secret") && !error.contains("were not accepted"), "{error}");
}

/// A registry behind another one, with a token server of its own.
async fn second_registry(blob: Vec<u8>) -> Wire {
    let with_token = move |ask: &Ask| match ask.range() {
        _ if ask.target.contains("/manifests/") => Reply::new(200, &[], manifest()),
        Some((first, last)) => {
            let range = format!("Content-Range: bytes {first}-{last}/{}", blob.len());
            Reply::new(206, &[&range], &blob[first..=last])
        }
        None => Reply::new(200, &[], &blob),
    };
    Wire::start(move |ask| {
        if ask.target.starts_with("/token") {
            return match ask.header("authorization") {
                Some(given) if given == basic("second") => {
                    Reply::new(200, &[], r#"{"token":"t","expires_in":300}"#)
                }
                _ => Reply::new(401, &[], "{}"),
            };
        }
        match ask.header("authorization") {
            Some("Bearer t") => with_token(ask),
            _ => {
                let realm = format!("realm=\"http://{}/token\"", ask.host());
                let header = format!("WWW-Authenticate: Bearer {realm},service=\"b\"");
                Reply::new(401, &[&header], "{}")
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_registry_may_lead_to_another_one_which_asks_for_credentials_of_its_own() {
    lead_to_second_registry("").await;
    lead_to_second_registry("/artifactory/api/docker/hub").await;
}

/// `prefix` is the path that the API of the second registry lies below.
async fn lead_to_second_registry(prefix: &'static str) {
    let blob = content(3000);
    let second = second_registry(blob.clone()).await;
    let target = second.host();
    let valid = basic("first");
    let first = Wire::start(move |ask| match ask.header("authorization") {
        Some(given) if given == valid => {
            let location = format!("Location: http://{target}{prefix}{}", ask.target);
            Reply::new(307, &[&location], "")
        }
        _ => Reply::new(401, &["WWW-Authenticate: Basic realm=\"a\""], "{}"),
    })
    .await;
    let entry = |password: &str| password_entry(password);
    let auths = json!({ first.host(): entry("first"), second.host(): entry("second") });
    let config = json!({ "auths": auths }).to_string();
    let reader = Reader::with_config(&first.host(), &config);
    reader.ask().await.unwrap();
    let id = BlobId { digest: Digest::of(&blob), size: blob.len() as u64 };
    for start in [0, 1000, 2000] {
        let (_, bytes) = read(&reader.repository, id, start..start + 1000).await.unwrap();
        assert_eq!(bytes, blob[start as usize..][..1000]);
    }
    // Each host sees its own credentials, and the target of the blob is kept.
    let at_second = carried(&second);
    assert!(!at_second.contains(&Some(basic("first"))), "{at_second:?}");
    let tokens = second.asked().into_iter().filter(|ask| ask.target.starts_with("/token"));
    assert_eq!(tokens.count(), 1);
    assert!(!carried(&first).contains(&Some(basic("second"))));
    let asked = first.asked();
    assert_eq!(asked.iter().filter(|ask| ask.target.contains("/blobs/")).count(), 1);

    // Without credentials for the second registry the message says where to log in.
    let config = json!({ "auths": { first.host(): entry("first") } }).to_string();
    let message = Reader::with_config(&first.host(), &config).ask().await.unwrap_err().to_string();
    assert!(message.contains(&format!("kit login {}", second.host())), "{message}");
    assert!(message.contains(&format!("to which {} redirects", first.host())), "{message}");
}

#[tokio::test]
async fn utf_8_in_a_location_is_followed() {
    let storage = Wire::start(|_| Reply::new(200, &[], manifest())).await;
    let target = storage.host();
    let registry = Wire::start(move |_| {
        Reply::new(307, &[&format!("Location: http://{target}/模型?name=é")], "")
    })
    .await;
    open_at(&registry.host()).manifest(None).await.unwrap();
    assert_eq!(storage.asked()[0].target, "/%E6%A8%A1%E5%9E%8B?name=%C3%A9");
}

#[tokio::test]
async fn credentials_go_to_no_token_server_that_a_rule_does_not_trust() {
    let server = Wire::start(|_| Reply::new(200, &[], r#"{"token":"t"}"#)).await;
    let realm = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"", server.host());
    let wire = Wire::start(move |ask| match ask.header("authorization") {
        Some("Bearer t") => Reply::new(200, &[], manifest()),
        _ => Reply::new(401, &[realm.as_str()], "no"),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    write_credentials(&file, &wire.host(), password_entry("first"));
    let open = |trusted: Option<Vec<String>>| {
        let host = wire.host();
        let client = client_with(|config| {
            config.credentials = CredentialStore::new(vec![file.clone()]);
            let rule = RegistryRule { host: host.clone(), trusted, ..RegistryRule::default() };
            config.rules = RegistryRules::new(vec![rule]);
        });
        repository(&client, &host)
    };
    let error = open(Some(Vec::new())).manifest(None).await.unwrap_err();
    assert!(error.to_string().contains(&server.host()), "{error}");
    assert!(error.to_string().contains("`trust`"), "{error}");
    assert!(server.asked().is_empty(), "the token server was asked");
    open(Some(vec![server.host()])).manifest(None).await.unwrap();
    open(None).manifest(None).await.unwrap();
    assert_eq!(carried(&server), [Some(basic("first")), Some(basic("first"))]);
}
