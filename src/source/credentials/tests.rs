use std::os::unix::fs::PermissionsExt;

use rstest::rstest;
use tempfile::TempDir;

use super::*;

/// A store over one file with this text, whose helpers are shell scripts beside it.
fn store(json: &str, helpers: &[(&str, &str)]) -> (TempDir, CredentialStore) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, json).unwrap();
    for (name, script) in helpers {
        let path = folder.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let store = CredentialStore::new(vec![folder.path().join("missing.json"), file])
        .with_helper_path(folder.path().into());
    (folder, store)
}

fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic { username: username.into(), password: password.into() }
}

const ECHO: &str = r#"read -r server; echo "{\"Username\":\"$1\",\"Secret\":\"$server\"}""#;

#[rstest]
#[case::host("ghcr.io", "ghcr.io", true)]
#[case::scheme("https://ghcr.io", "ghcr.io", true)]
#[case::path("https://ghcr.io/v1/", "ghcr.io", true)]
#[case::port("127.0.0.1:5000", "127.0.0.1:5000", true)]
#[case::other_port("127.0.0.1:5000", "127.0.0.1:5001", false)]
#[case::longer_host("ghcr.io.evil.example", "ghcr.io", false)]
#[case::docker_hub("https://index.docker.io/v1/", "docker.io", true)]
#[case::docker_hub_plain("index.docker.io/v1", "docker.io", true)]
#[case::docker_hub_registry("docker.io", "registry-1.docker.io", true)]
#[tokio::test]
async fn keys_match_as_they_do_for_docker(
    #[case] key: &str,
    #[case] registry: &str,
    #[case] matches: bool,
) {
    let (_folder, store) = store(&format!(r#"{{"auths":{{"{key}":{{"auth":"dTpwOnE="}}}}}}"#), &[]);
    let expected = if matches { basic("u", "p:q") } else { Credential::Anonymous };
    assert_eq!(store.find(registry).await.unwrap(), expected);
}

#[rstest]
#[case::padded_with_nul(r#"{"auth":"dTpwAAA="}"#, basic("u", "p"))]
#[case::without_padding(r#"{"auth":"dTpwOnE"}"#, basic("u", "p:q"))]
#[case::fields(r#"{"username":"u","password":"p"}"#, basic("u", "p"))]
#[case::identity(r#"{"auth":"dTpw","identitytoken":"t"}"#, Credential::IdentityToken("t".into()))]
#[case::bearer(r#"{"registrytoken":"t"}"#, Credential::RegistryToken("t".into()))]
#[case::left_by_a_store("{}", Credential::Anonymous)]
#[tokio::test]
async fn every_form_of_an_entry_is_read(#[case] entry: &str, #[case] expected: Credential) {
    let json = format!(r#"{{"credsStore":"","auths":{{"h.io":{entry}}}}}"#);
    assert_eq!(store(&json, &[]).1.find("h.io").await.unwrap(), expected);
}

#[tokio::test]
async fn the_helper_of_a_host_goes_before_the_store_and_the_store_before_the_file() {
    let json = r#"{"credHelpers":{"a.io":"one"},"credsStore":"two",
        "auths":{"a.io":{"auth":"dTpw"},"b.io":{"auth":"dTpw"},"c.io":{"auth":"dTpw"}}}"#;
    let two = r#"read -r server
        [ "$server" = b.io ] && exec echo '{"Username":"<token>","Secret":"t"}'
        echo credentials not found in native keychain; exit 1"#;
    let (_folder, store) = store(json, &[("one", ECHO), ("two", two)]);
    assert_eq!(store.find("a.io").await.unwrap(), basic("get", "a.io"));
    assert_eq!(store.find("b.io").await.unwrap(), Credential::IdentityToken("t".into()));
    assert_eq!(store.find("c.io").await.unwrap(), basic("u", "p"));
    assert_eq!(store.find("d.io").await.unwrap(), Credential::Anonymous);
}

#[tokio::test]
async fn helpers_are_asked_for_docker_hub_by_its_old_url() {
    let (_folder, store) = store(r#"{"credsStore":"one"}"#, &[("one", ECHO)]);
    let expected = basic("get", "https://index.docker.io/v1/");
    assert_eq!(store.find("docker.io").await.unwrap(), expected);
}

#[rstest]
#[case::absent("absent", "is not installed")]
#[case::failing("failing", "failed: try")]
#[case::babbling("babbling", "other than a credential")]
#[case::hanging("hanging", "did not answer within")]
#[case::a_path("../../bin/sh", "is not the name")]
#[tokio::test]
async fn a_helper_that_fails_is_an_error_for_its_host_and_a_warning_as_the_store(
    #[case] helper: &str,
    #[case] reason: &str,
) {
    let helpers = [
        ("failing", "echo secret; exit 2"),
        ("babbling", "echo secret"),
        ("hanging", "exec sleep 60"),
    ];
    let json = format!(r#"{{"credHelpers":{{"a.io":"{helper}"}},"credsStore":"{helper}"}}"#);
    let (_folder, mut store) = store(&json, &helpers);
    if helper == "hanging" {
        store.helper_timeout = Some(Duration::from_millis(50));
    }
    let error = store.find("a.io").await.unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains(reason), "{error}");
    assert!(!error.contains("secret"), "{error}");
    assert_eq!(store.find("b.io").await.unwrap(), Credential::Anonymous);
}

#[rstest]
#[case::not_json(r#"{"auths":{"h.io":{"auth":"hunter2"#)]
#[case::wrong_type(r#"{"auths":{"h.io":"hunter2"}}"#)]
#[case::not_base64(r#"{"auths":{"h.io":{"auth":"hunter2!"}}}"#)]
#[tokio::test]
async fn malformed_files_are_errors_that_name_the_file_and_no_secret(#[case] json: &str) {
    let (_folder, store) = store(json, &[]);
    let error = store.find("h.io").await.unwrap_err();
    assert!(matches!(error, SourceError::Configuration { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("config.json") && !message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn the_first_file_that_knows_a_host_wins() {
    let (folder, _) = store(r#"{"auths":{"a.io":{"username":"one","password":"p"}}}"#, &[]);
    let second = folder.path().join("second.json");
    let json = r#"{"auths":{"a.io":{"username":"two","password":"p"},
                            "b.io":{"username":"two","password":"p"}}}"#;
    std::fs::write(&second, json).unwrap();
    let empty = folder.path().join("empty.json");
    std::fs::write(&empty, "\n").unwrap();
    let store = CredentialStore::new(vec![empty, folder.path().join("config.json"), second]);
    assert_eq!(store.find("a.io").await.unwrap(), basic("one", "p"));
    assert_eq!(store.find("b.io").await.unwrap(), basic("two", "p"));
}
