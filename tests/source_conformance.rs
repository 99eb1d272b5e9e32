//! One suite for all implementations of `BlobSource` and `Repository`: each must keep the promises of
//! `kitfs::source`. `destinations` has the suite for all implementations of `Destination`.

#[path = "source_conformance/destinations.rs"]
mod destinations;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use futures_util::StreamExt;
use futures_util::future::join_all;
use kitfs::oci::{BlobId, BlobOffset, Digest, ObjectLocation, Reference, Selector};
use kitfs::serve::Registry;
use kitfs::source::decorators::{Counted, Fault, Faulty, Limited};
use kitfs::source::inline::InlineBlob;
use kitfs::source::kit_storage::KitStorage;
use kitfs::source::oci_layout::OciLayout;
use kitfs::source::registry::{RegistryClient, RegistryConfig};
use kitfs::source::s3::{Keys, S3, S3Config};
use kitfs::source::{BlobSource, ObjectId, Objects, Repository, SourceError, Urgency, read_blob};
use rstest::rstest;
use serde_json::json;
use support::s3_double::{S3Double, S3Options};
use tempfile::TempDir;

/// The source of a case.
#[derive(Clone, Copy)]
enum From {
    OciLayout,
    KitStorage,
    Registry,
}

/// A repository with the tags `v1` and `latest`, and the content it was made of.
struct Case {
    repository: Arc<dyn Repository>,
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
    _folder: TempDir,
}

impl Case {
    async fn new(from: From) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // One byte; and sizes below and above a piece of any source that are no multiple of a piece.
        let blobs: Vec<_> = [1, 4096, 1024 * 1024 + 7].map(content).into();
        let manifest = write(folder.path(), from, &blobs);
        let repository: Arc<dyn Repository> = match from {
            From::OciLayout => Arc::new(OciLayout::open(&folder.path().join("kit")).unwrap()),
            From::KitStorage => {
                let reference = Reference::parse("localhost/org/kit:v1").unwrap();
                Arc::new(KitStorage::open(folder.path(), &reference).unwrap())
            }
            From::Registry => serve(folder.path()).await,
        };
        Self { repository, manifest, blobs, _folder: folder }
    }
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 31 + index / 251) as u8).collect()
}

fn blob(content: &[u8]) -> BlobId {
    BlobId { digest: Digest::of(content), size: content.len() as u64 }
}

/// Writes the blobs and a manifest in the format of the source; returns the manifest.
fn write(folder: &Path, from: From, blobs: &[Vec<u8>]) -> Vec<u8> {
    let descriptor = |content: &Vec<u8>| json!({"mediaType": "x/y", "digest": Digest::of(content), "size": content.len()});
    let layers: Vec<_> = blobs.iter().map(descriptor).collect();
    let manifest = json!({"schemaVersion": 2, "config": layers[0], "layers": layers}).to_string();
    let manifest = manifest.into_bytes();
    let layout = folder.join(if matches!(from, From::KitStorage) { "storage" } else { "kit" });
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    for content in blobs.iter().chain([&manifest]) {
        let file = layout.join("blobs/sha256").join(Digest::of(content).hex());
        std::fs::write(file, content).unwrap();
    }
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let tagged = |tag: &str| {
        let mut entry = descriptor(&manifest);
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests": [tagged("v1"), tagged("latest")]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    if matches!(from, From::KitStorage) {
        let name = base64::engine::general_purpose::URL_SAFE.encode("localhost/org/kit");
        let tags =
            BTreeMap::from([("v1", descriptor(&manifest)), ("latest", descriptor(&manifest))]);
        let tags = serde_json::to_vec(&tags).unwrap();
        std::fs::write(layout.join(format!("{name}-tags.json")), tags).unwrap();
        std::fs::write(layout.join(format!("{name}-index.json")), index.to_string()).unwrap();
    }
    manifest
}

/// Serves the folder for as long as the test's runtime lives.
async fn serve(folder: &Path) -> Arc<dyn Repository> {
    let registry = Registry::bind(folder.to_owned(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let reference = Reference::parse(&format!("{}/kit:v1", registry.address())).unwrap();
    tokio::spawn(registry.run(std::future::pending()));
    let config = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
    RegistryClient::new(config).unwrap().repository(&reference).unwrap()
}

/// Reads a range to its end, and checks all promises of a stream.
async fn check_range(source: &dyn BlobSource, content: &[u8], range: Range<u64>) -> u64 {
    let mut stream = source
        .open(blob(content), BlobOffset::of(range.clone()), Urgency::on_demand())
        .await
        .unwrap();
    let yields = stream.range.clone();
    assert!(
        yields.start.get() <= range.start && range.end <= yields.end.get(),
        "{yields:?} for {range:?}"
    );
    let mut got = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        let piece = piece.unwrap();
        assert!(!piece.is_empty());
        got.extend_from_slice(&piece);
    }
    assert!(got == content[BlobOffset::indices(&yields)], "wrong bytes in {yields:?}");
    got.len() as u64
}

/// The ranges that are likely to fail: the whole blob, first and last byte, across pieces.
fn ranges(size: u64) -> Vec<Range<u64>> {
    let mut ranges = vec![0..size, 0..1, size - 1..size];
    if size > 2 {
        ranges.extend([1..size - 1, size / 2..size / 2 + 1, size / 3..size]);
    }
    ranges
}

/// Checks the promises that hold for every source of this blob.
async fn blob_conforms(source: &dyn BlobSource, content: &[u8]) {
    for range in ranges(content.len() as u64) {
        check_range(source, content, range).await;
    }
    let read = read_blob(source, blob(content), 2 << 20, "layer", "here").await.unwrap();
    assert!(read == content[..]);
    let size = content.len() as u64;
    let at_once = (0..32).map(|index| {
        let start = (index * 1000).min(size - 1);
        check_range(source, content, start..(index * 9000 + 1).clamp(start + 1, size))
    });
    join_all(at_once).await;

    let missing = BlobId { digest: Digest::of(b"missing"), size: 3 };
    let error = source.open(missing, missing.whole(), Urgency::on_demand()).await.err();
    assert!(matches!(error, Some(SourceError::NotFound { .. })), "{error:?}");
    let longer = BlobId { size: size + 1, ..blob(content) };
    let error = source.open(longer, BlobOffset(0).range(1), Urgency::on_demand()).await.err();
    let is_refused =
        matches!(error, Some(SourceError::Protocol { .. } | SourceError::NotFound { .. }));
    assert!(is_refused, "{error:?}");
}

async fn conforms(repository: &dyn Repository, case: &Case) {
    for content in &case.blobs {
        blob_conforms(repository, content).await;
    }
    let digest = Digest::of(&case.manifest);
    let selectors = ["v1", "latest"].map(|tag| Some(Selector::Tag(tag.to_owned())));
    for selector in selectors.into_iter().chain([None, Some(Selector::Digest(digest))]) {
        let (got, bytes) = repository.manifest(selector.as_ref()).await.unwrap();
        assert!(got == digest && bytes == case.manifest, "{selector:?}");
    }
    for selector in [Selector::Tag("absent".into()), Selector::Digest(Digest::of(b"absent"))] {
        let error = repository.manifest(Some(&selector)).await.unwrap_err();
        assert!(matches!(error, SourceError::NotFound { .. }), "{error:?}");
    }
    assert_eq!(repository.tags().await.unwrap(), ["latest", "v1"]);
    assert!(repository.name().contains("kit"), "{}", repository.name());
}

#[rstest]
#[case::oci_layout(From::OciLayout)]
#[case::kit_storage(From::KitStorage)]
#[case::registry(From::Registry)]
#[tokio::test]
async fn every_source_conforms(#[case] from: From) {
    let case = Case::new(from).await;
    conforms(&*case.repository, &case).await;
}

#[tokio::test]
async fn sources_of_one_blob_conform() {
    let store = S3Double::start(S3Options::default()).await;
    let client = RegistryClient::new(RegistryConfig::default()).unwrap();
    let config = S3Config {
        endpoint: Some(store.endpoint()),
        keys: Some(Keys::new("AKIDOUBLE", "secret/of+double", None)),
        ..S3Config::default()
    };
    let s3 = S3::new(client, config);
    for content in [1, 4096, 1024 * 1024 + 7].map(content) {
        let inline = InlineBlob::new(content.clone().into());
        blob_conforms(&inline, &content).await;
        let etag = store.put("bucket", "a key", content.clone());
        let location = ObjectLocation::parse("s3://bucket/a%20key").unwrap().unwrap();
        let object = s3.source(&ObjectId { location, etag }, blob(&content));
        blob_conforms(&*object, &content).await;
        blob_conforms(&Limited::new(object, 1), &content).await;
    }
}

#[rstest]
#[case::oci_layout(From::OciLayout)]
#[case::registry(From::Registry)]
#[tokio::test]
async fn every_decorator_conforms(#[case] from: From) {
    let case = Case::new(from).await;
    let source = || Arc::clone(&case.repository);
    conforms(&Counted::new(source()), &case).await;
    conforms(&Limited::new(source(), 1), &case).await;
    conforms(&Faulty::scripted(source(), []), &case).await;
    conforms(&Faulty::scripted(source(), [Fault::Whole, Fault::None, Fault::Whole]), &case).await;
}

#[tokio::test]
async fn counted_counts_requests_and_exactly_the_bytes_that_came() {
    let case = Case::new(From::OciLayout).await;
    let counted = Counted::new(case.repository.clone());
    let mut expected_bytes = 0;
    for content in &case.blobs {
        for range in ranges(content.len() as u64) {
            expected_bytes += check_range(&counted, content, range.clone()).await;
        }
    }
    let streams: usize = case.blobs.iter().map(|content| ranges(content.len() as u64).len()).sum();
    assert_eq!((counted.requests(), counted.yielded_bytes()), (streams as u64, expected_bytes));
}

#[tokio::test]
async fn limited_holds_the_next_stream_back_until_one_is_dropped() {
    let case = Case::new(From::OciLayout).await;
    let limited = Limited::new(case.repository.clone(), 1);
    let first = blob(&case.blobs[1]);
    let held = limited.open(first, BlobOffset(0).range(10), Urgency::on_demand()).await.unwrap();
    let mut waiting = limited.open(first, BlobOffset(0).range(10), Urgency::on_demand());
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(held);
    waiting.await.unwrap();
}

#[tokio::test]
async fn faults_happen_in_the_order_of_the_script() {
    let case = Case::new(From::OciLayout).await;
    let refusal = SourceError::Unavailable { place: "there".into(), detail: "down".into() };
    let faults = [
        Fault::Refuse(refusal),
        Fault::Break { after_bytes: 5 },
        Fault::Truncate { after_bytes: 5 },
        Fault::Flip { offset: BlobOffset(12) },
    ];
    let faulty = Faulty::scripted(case.repository.clone(), faults);
    let content = &case.blobs[1];
    assert!(
        faulty.open(blob(content), BlobOffset(10).range(10), Urgency::on_demand()).await.is_err()
    );

    let read = async |range| {
        let mut stream =
            faulty.open(blob(content), BlobOffset::of(range), Urgency::on_demand()).await.unwrap();
        let (mut bytes, mut error) = (Vec::new(), None);
        while let Some(piece) = stream.bytes.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(broken) => error = Some(broken),
            }
        }
        (bytes, error.is_some())
    };
    assert_eq!(read(10..20).await, (content[10..15].to_vec(), true));
    assert_eq!(read(10..20).await, (content[10..15].to_vec(), false));
    let mut flipped = content[10..20].to_vec();
    flipped[2] ^= 0xff;
    assert_eq!(read(10..20).await, (flipped, false));
    assert_eq!(read(10..20).await, (content[10..20].to_vec(), false));
}

#[tokio::test]
async fn one_seed_gives_the_same_faults_twice() {
    let case = Case::new(From::OciLayout).await;
    let content = &case.blobs[1];
    let outcomes = async |seed| {
        let faulty = Faulty::seeded(case.repository.clone(), seed, 3);
        let mut outcomes = Vec::new();
        for _ in 0..40 {
            let read = read_blob(&faulty, blob(content), 1 << 20, "layer", "here").await;
            outcomes.push(read.map(|_| ()).map_err(|error| error.to_string()));
        }
        outcomes
    };
    let first = outcomes(7).await;
    assert_eq!(first, outcomes(7).await);
    assert!(first.iter().any(Result::is_ok) && first.iter().any(Result::is_err));
}

#[tokio::test]
async fn a_layout_without_a_clear_choice_lists_its_tags() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), From::OciLayout, &[content(1)]);
    let index = json!({"manifests": [
        {"digest": Digest::of(b"a"), "annotations": {"org.opencontainers.image.ref.name": "small"}},
        {"digest": Digest::of(b"b"), "annotations": {"org.opencontainers.image.ref.name": "large"}},
    ]});
    std::fs::write(folder.path().join("kit/index.json"), index.to_string()).unwrap();
    let layout = OciLayout::open(&folder.path().join("kit")).unwrap();
    let error = layout.manifest(None).await.unwrap_err().to_string();
    assert!(error.contains("large, small") && error.contains("oci:"), "{error}");
}

#[tokio::test]
async fn an_index_within_a_layout_is_returned_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write(folder.path(), From::OciLayout, &[content(1)]);
    let nested = json!({"manifests": [{"digest": Digest::of(&manifest)}]}).to_string();
    let layout = folder.path().join("kit");
    let digest = Digest::of(nested.as_bytes());
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &nested).unwrap();
    let index = json!({"manifests": [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest}
    ]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let (got, bytes) = OciLayout::open(&layout).unwrap().manifest(None).await.unwrap();
    assert!(got == digest && bytes == nested.as_bytes());
}

#[tokio::test]
async fn links_and_changed_files_are_refused_with_their_name() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = write(folder.path(), From::OciLayout, &[content(1), content(9)]);
    let layout = OciLayout::open(&folder.path().join("kit")).unwrap();
    let file =
        |content: &[u8]| folder.path().join("kit/blobs/sha256").join(Digest::of(content).hex());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, content(9)).unwrap();
    std::fs::remove_file(file(&content(9))).unwrap();
    std::os::unix::fs::symlink(&secret, file(&content(9))).unwrap();
    let error = layout
        .open(blob(&content(9)), BlobOffset(0).range(9), Urgency::on_demand())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains(&Digest::of(&content(9)).hex()) && error.contains("link"), "{error}");

    std::fs::write(file(&manifest), "{}").unwrap();
    let error = layout.manifest(None).await.unwrap_err();
    assert!(matches!(error, SourceError::DigestMismatch { .. }), "{error:?}");
}

#[test]
fn a_missing_layout_or_storage_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = OciLayout::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("oci-layout") && error.contains("skopeo copy"), "{error}");
    let reference = Reference::parse("localhost/org/other:v1").unwrap();
    let error = KitStorage::open(folder.path(), &reference).unwrap_err().to_string();
    assert!(error.contains("KITOPS_HOME"), "{error}");
    write(folder.path(), From::KitStorage, &[content(1)]);
    let error = KitStorage::open(folder.path(), &reference).unwrap_err().to_string();
    assert!(error.contains("kit list") && error.contains("localhost/org/other"), "{error}");
    let reference = Reference::parse("ghcr.io/org/other:v1").unwrap();
    let error = KitStorage::open(folder.path(), &reference).unwrap_err().to_string();
    assert!(error.contains("kit pull ghcr.io/org/other"), "{error}");
}
