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
#[case::case_of_the_key("GHCR.io", "ghcr.io", true)]
#[case::case_of_the_reference("ghcr.io", "Ghcr.IO", true)]
#[case::case_of_the_scheme("HTTPS://ghcr.io/v2/", "ghcr.io", true)]
#[case::trailing_slash("ghcr.io/", "ghcr.io", true)]
#[case::address("[::1]:5000", "[::1]:5000", true)]
#[case::address_with_path("http://[2001:DB8::1]:5000/v1/", "[2001:db8::1]:5000", true)]
#[tokio::test]
async fn keys_match_as_they_do_for_docker(
    #[case] key: &str,
    #[case] registry: &str,
    #[case] matches: bool,
) {
    let (_folder, store) = store(&format!(r#"{{"auths":{{"{key}":{{"auth":"dTpwOnE="}}}}}}"#), &[]);
    let expected = if matches { basic("u", "p:q") } else { Credential::Anonymous };
    assert_eq!(store.find(registry, "org/model").await.unwrap().credential, expected);
}

#[rstest]
#[case::padded_with_nul(r#"{"auth":"dTpwAAA="}"#, basic("u", "p"))]
#[case::without_padding(r#"{"auth":"dTpwOnE"}"#, basic("u", "p:q"))]
#[case::fields(r#"{"username":"u","password":"p"}"#, basic("u", "p"))]
#[case::identity(r#"{"auth":"dTpw","identitytoken":"t"}"#, Credential::IdentityToken("t".into()))]
#[case::bearer(r#"{"registrytoken":"t"}"#, Credential::RegistryToken("t".into()))]
#[case::left_by_a_store("{}", Credential::Anonymous)]
#[case::null("null", Credential::Anonymous)]
#[case::null_member(r#"{"auth":null,"username":"u","password":"p"}"#, basic("u", "p"))]
#[case::line_breaks(r#"{"auth":"dTpw\nOnE=\r\n"}"#, basic("u", "p:q"))]
#[case::line_break_within(r#"{"auth":"dTpwDQo="}"#, basic("u", "p"))]
#[case::alphabet_of_urls(r#"{"auth":"dTrDv8O_"}"#, basic("u", "ÿÿ"))]
#[case::other_members(r#"{"auth":"dTpw","email":"e","serveraddress":7}"#, basic("u", "p"))]
#[tokio::test]
async fn every_form_of_an_entry_is_read(#[case] entry: &str, #[case] expected: Credential) {
    let json = format!(r#"{{"credsStore":"","auths":{{"h.io":{entry}}}}}"#);
    assert_eq!(store(&json, &[]).1.find("h.io", "org/model").await.unwrap().credential, expected);
}

#[tokio::test]
async fn the_helper_of_a_host_goes_before_the_store_and_the_store_before_the_file() {
    let json = r#"{"credHelpers":{"a.io":"one"},"credsStore":"two",
        "auths":{"a.io":{"auth":"dTpw"},"b.io":{"auth":"dTpw"},"c.io":{"auth":"dTpw"}}}"#;
    let two = r#"read -r server
        [ "$server" = b.io ] && exec echo '{"Username":"<token>","Secret":"t"}'
        echo credentials not found in native keychain; exit 1"#;
    let (_folder, store) = store(json, &[("one", ECHO), ("two", two)]);
    assert_eq!(store.find("a.io", "org/model").await.unwrap().credential, basic("get", "a.io"));
    assert_eq!(
        store.find("b.io", "org/model").await.unwrap().credential,
        Credential::IdentityToken("t".into())
    );
    assert_eq!(store.find("c.io", "org/model").await.unwrap().credential, basic("u", "p"));
    assert_eq!(store.find("d.io", "org/model").await.unwrap().credential, Credential::Anonymous);
}

#[tokio::test]
async fn a_null_entry_hides_no_other_key_of_its_host() {
    let json = r#"{"auths":{"h.io":null,"https://h.io/v1/":{"auth":"dTpw"},"H.io":null}}"#;
    let found = store(json, &[]).1.find("h.io", "org/model").await.unwrap();
    assert_eq!(found.credential, basic("u", "p"));
}

#[tokio::test]
async fn a_helper_is_asked_for_a_host_as_it_is_written_and_in_lower_case() {
    let knows = |host: &str| {
        format!(
            r#"read -r server
            [ "$server" = {host} ] && exec echo '{{"Username":"u","Secret":"p"}}'
            echo credentials not found in native keychain; exit 1"#
        )
    };
    for (known, expected) in [
        ("GHCR.io", basic("u", "p")),
        ("ghcr.io", basic("u", "p")),
        ("x.io", Credential::Anonymous),
    ] {
        let (_folder, store) = store(r#"{"credsStore":"one"}"#, &[("one", &knows(known))]);
        let found = store.find("GHCR.io", "org/model").await.unwrap();
        assert_eq!(found.credential, expected, "{known}");
    }
}

#[tokio::test]
async fn helpers_are_asked_for_docker_hub_by_its_old_url() {
    let (_folder, store) = store(r#"{"credsStore":"one"}"#, &[("one", ECHO)]);
    let expected = basic("get", "https://index.docker.io/v1/");
    assert_eq!(store.find("docker.io", "org/model").await.unwrap().credential, expected);
}

#[rstest]
#[case::absent("absent", "is not installed")]
#[case::failing("failing", "shows why")]
#[case::babbling("babbling", "other than a credential")]
#[case::hanging("hanging", "did not answer within")]
#[case::foreign("foreign", "cannot be run")]
#[case::a_path("../../bin/sh", "is not the name")]
#[tokio::test]
async fn a_helper_that_fails_is_an_error_for_its_host_and_named_as_the_store(
    #[case] helper: &str,
    #[case] reason: &str,
) {
    let helpers = [
        ("failing", "echo secret; exit 2"),
        ("babbling", "echo secret"),
        ("hanging", "exec sleep 60"),
    ];
    let json = format!(r#"{{"credHelpers":{{"a.io":"{helper}"}},"credsStore":"{helper}"}}"#);
    let (folder, mut store) = store(&json, &helpers);
    let foreign = folder.path().join("docker-credential-foreign");
    std::fs::write(&foreign, b"MZ\x90\x00 of another system").unwrap();
    std::fs::set_permissions(&foreign, std::fs::Permissions::from_mode(0o755)).unwrap();
    if helper == "hanging" {
        store.helper_timeout = Some(Duration::from_millis(50));
    }
    let error = store.find("a.io", "org/model").await.unwrap_err().to_string();
    let known = store.find("b.io", "org/model").await.unwrap();
    assert_eq!(known.credential, Credential::Anonymous);
    for message in [error, known.trouble.unwrap()] {
        assert!(message.contains("config.json") && message.contains(reason), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn warnings_of_a_helper_are_passed_over() {
    let noisy = "echo 'WARNING: {old}'; echo '{\"Username\":\"u\",\"Secret\":\"p\"}'; echo done";
    let (_folder, store) = store(r#"{"credsStore":"noisy"}"#, &[("noisy", noisy)]);
    assert_eq!(store.find("a.io", "org/model").await.unwrap().credential, basic("u", "p"));
}

#[tokio::test]
async fn of_several_entries_for_a_host_the_nearest_to_the_repository_counts() {
    let json = r#"{"auths":{
        "https://h.io/v2/":{"username":"all","password":"p"},
        "h.io/org":{"username":"org","password":"p"},
        "h.io/org/model":{"username":"model","password":"p"},
        "h.io/zzz":{"username":"other","password":"p"}}}"#;
    let (_folder, store) = store(json, &[]);
    for (repository, user) in [("org/model", "model"), ("org/x", "org"), ("organ/model", "all")] {
        let known = store.find("h.io", repository).await.unwrap();
        assert_eq!(known.credential, basic(user, "p"), "{repository}");
    }
}

#[tokio::test]
async fn an_entry_of_another_host_may_be_anything() {
    let json = r#"{"auths":{"a.io":7,"b.io":{"auth":"!"},"h.io":{"auth":"dTpw"}},
        "credHelpers":{"a.io":null},"credsStore":null,"HttpHeaders":{"x":"y"},"psFormat":3}"#;
    let (_folder, store) = store(json, &[]);
    assert_eq!(store.find("h.io", "org/model").await.unwrap().credential, basic("u", "p"));
    assert!(store.find("a.io", "org/model").await.is_err());
}

#[tokio::test]
async fn a_file_that_is_changed_replaced_or_gone_is_noticed() {
    let (folder, store) = store(r#"{"auths":{"h.io":{"auth":"dTpw"}}}"#, &[]);
    let file = folder.path().join("config.json");
    let known = store.find("h.io", "org/model").await.unwrap();
    assert!(!store.has_changed(&known).await.unwrap());
    for change in ["write", "replace", "create", "remove"] {
        let known = store.find("h.io", "org/model").await.unwrap();
        // Older kernels stamp files with a coarse clock, whose tick has 4 or 10 ms.
        tokio::time::sleep(Duration::from_millis(30)).await;
        match change {
            // The same size: `dTpx` is another password.
            "write" => std::fs::write(&file, r#"{"auths":{"h.io":{"auth":"dTpx"}}}"#).unwrap(),
            "replace" => {
                let new = folder.path().join("new");
                std::fs::copy(&file, &new).unwrap();
                std::fs::rename(&new, &file).unwrap();
            }
            "create" => std::fs::write(folder.path().join("missing.json"), "{}").unwrap(),
            _ => std::fs::remove_file(&file).unwrap(),
        }
        assert!(store.has_changed(&known).await.unwrap(), "{change}");
    }
}

#[rstest]
#[case::not_json(r#"{"auths":{"h.io":{"auth":"hunter2"#)]
#[case::wrong_type(r#"{"auths":{"h.io":"hunter2"}}"#)]
#[case::not_base64(r#"{"auths":{"h.io":{"auth":"hunter2!"}}}"#)]
#[tokio::test]
async fn malformed_files_are_errors_that_name_the_file_and_no_secret(#[case] json: &str) {
    let (_folder, store) = store(json, &[]);
    let error = store.find("h.io", "org/model").await.unwrap_err();
    assert!(matches!(error, SourceError::Configuration { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("config.json") && !message.contains("hunter2"), "{message}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_and_the_next_one_counts() {
    let (folder, _) = store(r#"{"auths":{"a.io":{"auth":"dTpw"}}}"#, &[]);
    // Docker makes a folder in the place of a missing file that is to be mounted.
    let unreadable = folder.path().join("folder");
    std::fs::create_dir(&unreadable).unwrap();
    let store = CredentialStore::new(vec![unreadable, folder.path().join("config.json")]);
    let known = store.find("a.io", "org/model").await.unwrap();
    assert_eq!(known.credential, basic("u", "p"));
    let trouble = store.find("b.io", "org/model").await.unwrap().trouble.unwrap();
    assert!(trouble.contains("folder cannot be read"), "{trouble}");
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
    assert_eq!(store.find("a.io", "org/model").await.unwrap().credential, basic("one", "p"));
    assert_eq!(store.find("b.io", "org/model").await.unwrap().credential, basic("two", "p"));
}
