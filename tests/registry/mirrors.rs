//! Registries that are reached at other addresses.

use kitfs::source::mirrors::Mirrors;
use kitfs::source::{BlobSource, Repository, SourceError};
use std::sync::Arc;

use crate::setup::{NAME, client_with, content, manifest, read, repository};
use crate::support::registry_double::{At, Fault, Options, RegistryDouble, Rule};

/// A registry that exists in `hosts.toml` alone.
const FAR: &str = "registry.example";

/// The repository at [`FAR`], with this `hosts.toml` for it.
fn open_far(hosts_toml: &str) -> Arc<dyn Repository> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join(FAR)).unwrap();
    std::fs::write(folder.path().join(FAR).join("hosts.toml"), hosts_toml).unwrap();
    let mirrors = Mirrors::new(Some(folder.path().to_owned()));
    repository(&client_with(|config| config.mirrors = mirrors), FAR)
}

async fn registry() -> RegistryDouble {
    let registry = RegistryDouble::start(Options::default()).await;
    registry.push_manifest(NAME, "latest", manifest());
    registry
}

#[tokio::test]
async fn a_registry_is_reached_at_the_address_of_its_mirror_with_the_headers_given() {
    let mirror = registry().await;
    let far = open_far(&format!(
        "server = \"http://{0}\"\n[host.\"http://{0}\"]\n[host.\"http://{0}\".header]\nx-team = \"models\"\n",
        mirror.host()
    ));
    far.manifest(None).await.unwrap();
    let asked = &mirror.requests()[0];
    assert_eq!(asked.header("x-team"), Some("models"));
    assert!(asked.uri.query().unwrap_or_default().contains("ns=registry.example"), "{}", asked.uri);
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_for_the_next() {
    let [mirror, server] = [registry().await, registry().await];
    let blob = server.push_blob(NAME, content(1000));
    mirror.script(Rule::on("/manifests/").then(Fault::Status(503)));
    let far = open_far(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    ));
    far.manifest(None).await.unwrap();
    read(&far, blob, 0..10).await.unwrap();
    assert_eq!(mirror.requests_to(At::Registry, "/manifests/").len(), 1, "a mirror is asked once");
    assert_eq!(server.requests_to(At::Registry, "/blobs/").len(), 1);
}

#[tokio::test]
async fn the_failures_of_mirrors_are_in_the_message() {
    let [mirror, server] = [registry().await, registry().await];
    mirror.script(Rule::on("/manifests/").then(Fault::Status(503)));
    server.script(Rule::on("/manifests/").then(Fault::Status(404)));
    let far = open_far(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    ));
    let error = far.manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    for expected in [FAR, &mirror.host(), "503 Service Unavailable"] {
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn tags_are_not_resolved_by_a_mirror_that_may_only_be_pulled_from() {
    let [mirror, server] = [registry().await, registry().await];
    let blob = mirror.push_blob(NAME, content(1000));
    let far = open_far(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        server.host(),
        mirror.host()
    ));
    far.manifest(None).await.unwrap();
    read(&far, blob, 0..10).await.unwrap();
    assert_eq!(server.requests_to(At::Registry, "/manifests/").len(), 1);
    assert_eq!(mirror.requests_to(At::Registry, "/blobs/").len(), 1);
    assert_eq!(mirror.requests().len(), 1);
}

#[tokio::test]
async fn a_mirror_that_sent_wrong_bytes_is_left_alone() {
    let [mirror, server] = [registry().await, registry().await];
    let blob = mirror.push_blob(NAME, content(1000));
    server.push_blob(NAME, content(1000));
    let far = open_far(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    ));
    read(&far, blob, 0..10).await.unwrap();
    // Each address but the last is left alone once it is distrusted.
    for _ in 0..2 {
        far.distrust();
        read(&far, blob, 0..10).await.unwrap();
    }
    assert_eq!(mirror.requests_to(At::Registry, "/blobs/").len(), 1);
    assert_eq!(server.requests_to(At::Registry, "/blobs/").len(), 2);
}
