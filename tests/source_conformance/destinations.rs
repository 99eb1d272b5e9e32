//! One suite for all implementations of `Destination`: each must keep the promises of `kitfs::source::sending`.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use kitfs::oci::{BlobId, BlobOffset, Digest, Reference, Selector};
use kitfs::source::inline::InlineBlob;
use kitfs::source::kit_storage::{KitStorage, Origins};
use kitfs::source::oci_layout::OciLayout;
use kitfs::source::registry::{RegistryClient, RegistryConfig, UploadSizes};
use kitfs::source::sending::{
    Content, Destination, KitStorageDestination, OciLayoutWriter, Progress, Put, Replaces,
    SendError, SentManifest,
};
use kitfs::source::{Repository, SourceError, Urgency, read_blob};
use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

use super::content;
use super::support::registry_double::{Options, RegistryDouble};
use super::support::registry_process::RegistryProcess;

/// A place to write to and to read from.
struct Place {
    destination: Arc<dyn Destination>,
    repository: Box<dyn Fn() -> Arc<dyn Repository>>,
    /// Whether the place compares a tag at the moment at which it moves.
    compares: bool,
}

fn registry(host: &str) -> Place {
    let reference = Reference::parse(&format!("{host}/org/kit:v1")).unwrap();
    let uploads = UploadSizes { whole_bytes: 5000, chunk_bytes: 100_000 };
    let client =
        RegistryClient::new(RegistryConfig { uploads, ..RegistryConfig::default() }).unwrap();
    let destination = client.destination(&reference).unwrap();
    let repository = Box::new(move || client.repository(&reference).unwrap());
    Place { destination, repository, compares: false }
}

async fn layout(folder: &Path, repository: Option<&str>) -> Place {
    let folder = folder.join("new/layout");
    let name = repository.map(str::to_owned);
    let writer = OciLayoutWriter::open(folder.clone(), name.clone()).await.unwrap();
    let repository: Box<dyn Fn() -> Arc<dyn Repository>> =
        Box::new(move || Arc::new(OciLayout::open(&folder).unwrap().of_repository(name.clone())));
    Place { destination: Arc::new(writer), repository, compares: true }
}

/// The content of a blob, with these bytes, right or wrong.
fn claimed(bytes: &[u8], blob: BlobId) -> Arc<Content> {
    struct Claimed(Bytes);
    impl kitfs::source::BlobSource for Claimed {
        fn open(
            &self,
            _blob: BlobId,
            range: std::ops::Range<BlobOffset>,
            urgency: Urgency,
        ) -> futures_util::future::BoxFuture<'_, Result<kitfs::source::BlobStream, SourceError>>
        {
            let inline = InlineBlob::new(self.0.clone());
            let own = BlobId { digest: Digest::of(&self.0), size: self.0.len() as u64 };
            Box::pin(async move { inline.open(own, range, urgency).await })
        }
    }
    let source = Arc::new(Claimed(Bytes::copy_from_slice(bytes)));
    Content::new(
        blob,
        source,
        "the test".to_owned(),
        Urgency::opening(),
        Arc::new(Progress::default()),
    )
}

fn blob(bytes: &[u8]) -> BlobId {
    BlobId { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

/// A manifest whose blobs are these; `name` makes it another one.
fn manifest(name: &str, blobs: &[Vec<u8>]) -> SentManifest {
    let descriptor = |bytes: &Vec<u8>| json!({"mediaType": "a/b", "digest": Digest::of(bytes), "size": bytes.len()});
    let json = json!({
        "schemaVersion": 2, "config": descriptor(&blobs[0]),
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": blobs.iter().map(descriptor).collect::<Vec<_>>(), "annotations": {"name": name},
    });
    SentManifest::new(json.to_string().into(), "the test").unwrap().0
}

async fn conforms(place: Place) {
    let Place { destination, repository, compares } = place;
    let blobs = [1, 4096, 5000, 5001, 1024 * 1024 + 7].map(content);
    for bytes in &blobs {
        assert!(!destination.has_blob(blob(bytes)).await.unwrap());
    }
    // Each twice, and all at once.
    let contents: Vec<_> =
        blobs.iter().chain(&blobs).map(|bytes| claimed(bytes, blob(bytes))).collect();
    let put = join_all(contents.iter().map(|content| destination.put_blob(content, &[])));
    for put in put.await {
        assert_eq!(put.unwrap(), Put::Sent);
    }
    for bytes in &blobs {
        let there = blob(bytes);
        assert!(destination.has_blob(there).await.unwrap());
        assert!(!destination.has_blob(BlobId { size: there.size + 1, ..there }).await.unwrap());
        let read = read_blob(&*repository(), there, 2 << 20, "blob", "here").await.unwrap();
        assert!(read == bytes[..]);
    }
    let empty = claimed(b"", blob(b""));
    destination.put_blob(&empty, &[]).await.unwrap();
    assert!(destination.has_blob(blob(b"")).await.unwrap());

    // Bytes of another digest, or too few of them.
    for size in [1, 5000, 300_000] {
        let wanted = blob(&content(size + 1)[1..]);
        let mut bytes = content(size + 1)[1..].to_vec();
        bytes[size / 2] ^= 1;
        let error = destination.put_blob(&claimed(&bytes, wanted), &[]).await.unwrap_err();
        let is_mismatch = matches!(error, SendError::Source(SourceError::DigestMismatch { .. }));
        assert!(is_mismatch, "{error}");
        assert!(!destination.has_blob(wanted).await.unwrap());
    }

    let (one, two) = (manifest("one", &blobs), manifest("two", &blobs));
    assert_eq!(destination.tagged("v1").await.unwrap(), None);
    assert!(!destination.has_manifest(one.digest).await.unwrap());
    for tag in [Some("v1"), Some("v1"), None, Some("latest")] {
        destination.put_manifest(&one, tag, Replaces::Nothing).await.unwrap();
    }
    assert_eq!(destination.tagged("v1").await.unwrap(), Some(one.digest));
    assert!(destination.has_manifest(one.digest).await.unwrap());
    let moved = destination.put_manifest(&two, Some("v1"), Replaces::Nothing).await;
    if compares {
        assert!(matches!(moved, Err(SendError::TagExists { .. })), "{moved:?}");
        assert_eq!(destination.tagged("v1").await.unwrap(), Some(one.digest));
    }
    destination.put_manifest(&two, Some("v1"), Replaces::Anything).await.unwrap();
    assert_eq!(destination.tagged("v1").await.unwrap(), Some(two.digest));
    assert_eq!(repository().tags().await.unwrap(), ["latest", "v1"]);
    for (selector, expected) in [
        (Selector::Tag("v1".into()), &two),
        (Selector::Tag("latest".into()), &one),
        (Selector::Digest(one.digest), &one),
    ] {
        let (digest, bytes) = repository().manifest(Some(&selector)).await.unwrap();
        assert_eq!((digest, &bytes), (expected.digest, &expected.bytes));
    }
}

#[tokio::test]
async fn a_registry_conforms_as_a_destination() {
    let double = RegistryDouble::start(Options::default()).await;
    conforms(registry(&double.host())).await;
}

#[tokio::test]
async fn a_real_registry_conforms_as_a_destination() {
    let real = RegistryProcess::start();
    conforms(registry(&real.host())).await;
}

#[rstest]
#[case::tags(None)]
#[case::whole_names(Some("ghcr.io/org/kit"))]
#[tokio::test]
async fn an_oci_layout_conforms_as_a_destination(#[case] repository: Option<&str>) {
    let folder = TempDir::new().unwrap();
    conforms(layout(folder.path(), repository).await).await;
    // Nothing but the layout is left.
    let entries = folder.path().join("new/layout").read_dir().unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn kits_storage_conforms_as_a_destination() {
    let folder = TempDir::new().unwrap();
    let reference = Reference::parse("localhost/org/kit:v1").unwrap();
    let (home, origins) = (folder.path().to_owned(), Origins::default());
    let writer =
        KitStorageDestination::open(home.clone(), reference.clone(), origins).await.unwrap();
    let repository: Box<dyn Fn() -> Arc<dyn Repository>> = Box::new(move || {
        let any = Selector::Digest(Digest::of(b""));
        Arc::new(KitStorage::open(&home, &reference.with_selector(any)).unwrap())
    });
    conforms(Place { destination: Arc::new(writer), repository, compares: true }).await;
}

#[tokio::test]
async fn writers_of_one_layout_lose_no_tag_of_each_other() {
    let folder = TempDir::new().unwrap();
    let blobs = [content(10)];
    let writers = join_all((0..8).map(|number| {
        let (path, blobs) = (folder.path().to_owned(), blobs.clone());
        tokio::spawn(async move {
            let place = layout(&path, None).await.destination;
            place.put_blob(&claimed(&blobs[0], blob(&blobs[0])), &[]).await.unwrap();
            for tag in 0..4 {
                let manifest = manifest(&format!("{number}-{tag}"), &blobs);
                let tag = format!("v{number}-{tag}");
                place.put_manifest(&manifest, Some(&tag), Replaces::Nothing).await.unwrap();
            }
        })
    }));
    writers.await.into_iter().for_each(|writer| writer.unwrap());
    let read = layout(folder.path(), None).await;
    assert_eq!((read.repository)().tags().await.unwrap().len(), 32);
}

#[tokio::test]
async fn only_an_empty_folder_becomes_a_layout_and_a_damaged_index_stays() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "x").unwrap();
    let open = |path: &Path| OciLayoutWriter::open(path.to_owned(), None);
    let refused = open(folder.path()).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("no OCI layout"), "{refused}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);

    let damaged = folder.path().join("damaged");
    let writer = open(&damaged).await.unwrap();
    std::fs::write(damaged.join("index.json"), "{").unwrap();
    let blobs = [content(10)];
    writer.put_blob(&claimed(&blobs[0], blob(&blobs[0])), &[]).await.unwrap();
    let put = writer.put_manifest(&manifest("x", &blobs), None, Replaces::Anything).await;
    assert!(put.unwrap_err().to_string().contains("index.json"));
    assert_eq!(std::fs::read(damaged.join("index.json")).unwrap(), b"{");
}
