//! Objects of an S3 store, which share the registry client's connections and limits.

use futures_util::StreamExt;
use kitfs::oci::{BlobId, BlobOffset, Digest, ObjectLocation};
use kitfs::source::s3::{Keys, S3, S3Config};
use kitfs::source::{ObjectId, Objects, SourceError, Urgency};

use crate::setup::{client_with, content};
use crate::support::registry_double::{Fault, Rule};
use crate::support::s3_double::{S3Double, S3Keys, S3Options};

const NEW_KEYS: S3Keys = S3Keys { id: "AKNEW", secret: "new-secret", token: Some("new-token") };

fn config(store: &S3Double) -> S3Config {
    let keys = Keys::new("AKIDOUBLE", "secret/of+double", None);
    S3Config { endpoint: Some(store.endpoint()), keys: Some(keys), ..S3Config::default() }
}

fn s3(config: S3Config) -> S3 {
    S3::new(client_with(|_| {}), config)
}

fn id(key: &str, etag: &str) -> ObjectId {
    let location = ObjectLocation::parse(&format!("s3://bucket/{key}")).unwrap().unwrap();
    ObjectId { location, etag: etag.to_owned() }
}

fn blob(content: &[u8]) -> BlobId {
    BlobId { digest: Digest::of(b"any name"), size: content.len() as u64 }
}

async fn read(
    s3: &S3,
    id: &ObjectId,
    blob: BlobId,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, SourceError> {
    let mut stream =
        s3.source(id, blob).open(blob, BlobOffset::of(range), Urgency::on_demand()).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn an_object_is_read_by_range_and_only_as_long_as_it_is_the_same() {
    let store = S3Double::start(S3Options::default()).await;
    let content = content(100_000);
    let etag = store.put("bucket", "a/b c+d.bin", content.clone());
    let (s3, id) = (s3(config(&store)), id("a/b%20c+d.bin", &etag));
    let head = s3.head(&id).await.unwrap();
    assert_eq!((head.size, head.modified_seconds), (100_000, Some(1_369_353_600)));
    assert_eq!(read(&s3, &id, blob(&content), 10..20).await.unwrap(), content[10..20]);
    let sent = store.reads().pop().unwrap();
    assert_eq!(sent.header("range"), Some("bytes=10-19"));
    assert_eq!(sent.header("if-match"), Some(&*format!("\"{etag}\"")));
    assert_eq!(store.bytes_served(), 10);

    store.put("bucket", "a/b c+d.bin", &b"other bytes"[..]);
    for error in
        [read(&s3, &id, blob(&content), 10..20).await.unwrap_err(), s3.head(&id).await.unwrap_err()]
    {
        let is_changed =
            matches!(&error, SourceError::Changed { expected, .. } if *expected == etag);
        assert!(is_changed, "{error:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_resumed_where_it_stopped() {
    let store = S3Double::start(S3Options::default()).await;
    let content = content(300_000);
    let id = id("k", &store.put("bucket", "k", content.clone()));
    let s3 = s3(config(&store));
    for fault in [
        Fault::Reset { after_bytes: 70_000 },
        Fault::Status(503),
        Fault::Short { after_bytes: 1000 },
        Fault::Status(500),
        Fault::Reset { after_bytes: 0 },
    ] {
        store.script(Rule::on("/k").times(1).then(fault));
    }
    assert_eq!(read(&s3, &id, blob(&content), 0..300_000).await.unwrap(), content);
    // Bytes from before a break are not sent again.
    assert!(store.bytes_served() <= 300_000 + 4 * 16 * 1024, "{}", store.bytes_served());
}

#[tokio::test]
async fn a_store_that_lies_about_ranges_is_refused() {
    let store = S3Double::start(S3Options::default()).await;
    let content = content(50_000);
    let id = id("k", &store.put("bucket", "k", content.clone()));
    let s3 = s3(config(&store));
    for fault in [
        Fault::IgnoreRange,
        Fault::ContentRange("bytes 0-9/50000".to_owned()),
        Fault::ContentRange("bytes 10-19/49999".to_owned()),
    ] {
        store.script(Rule::on("/k").times(1).then(fault));
        let error = read(&s3, &id, blob(&content), 10..20).await.unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{error:?}");
    }
    store.script(Rule::on("/k").then(Fault::Long { extra_bytes: 5 }));
    let error = read(&s3, &id, blob(&content), 10..20).await;
    assert!(error.is_err() || error.unwrap() == content[10..20]);
}

#[tokio::test]
async fn keys_that_are_refused_are_read_anew() {
    let store = S3Double::start(S3Options::default()).await;
    let id = id("k", &store.put("bucket", "k", &b"content"[..]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let write = |id: &str, secret: &str, token: Option<&str>| {
        let token = token.map(|token| format!("aws_session_token = {token}\n"));
        let text = format!(
            "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n{}",
            token.unwrap_or_default()
        );
        std::fs::write(&file, text).unwrap();
    };
    write("AKIDOUBLE", "secret/of+double", None);
    let files = S3Config { keys: None, credentials_file: Some(file.clone()), ..config(&store) };
    let s3 = s3(files);
    s3.head(&id).await.unwrap();
    store.accept(NEW_KEYS);
    let error = s3.head(&id).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }), "{error:?}");
    write(NEW_KEYS.id, NEW_KEYS.secret, NEW_KEYS.token);
    assert_eq!(read(&s3, &id, blob(b"content"), 0..7).await.unwrap(), b"content");
    // If a session has ended, S3 answers 400. To a request for a size (HEAD) it gives no reason.
    store.accept(S3Keys { token: Some("newer-token"), ..NEW_KEYS });
    write(NEW_KEYS.id, NEW_KEYS.secret, Some("newer-token"));
    s3.head(&id).await.unwrap();
}

#[tokio::test]
async fn a_bucket_of_another_region_is_asked_there() {
    let options = S3Options { region: "eu-central-1", ..S3Options::default() };
    let store = S3Double::start(options).await;
    let id = id("k", &store.put("bucket", "k", &b"content"[..]));
    let s3 = s3(config(&store));
    for _ in 0..2 {
        s3.head(&id).await.unwrap();
    }
    assert_eq!(store.requests().len(), 3, "the region is remembered");
}

#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let store = S3Double::start(S3Options::default()).await;
    let object = id("k", &store.put("bucket", "k", &b"content"[..]));
    let keys = |id, secret, token| Some(Keys::new(id, secret, token));
    let with = |keys| S3Config { keys, ..config(&store) };
    for (config, word) in [
        (with(None), "AWS_PROFILE"),
        (S3Config { anonymous: true, ..config(&store) }, "AWS_PROFILE"),
        (with(keys("AKOTHER", "x", None)), "InvalidAccessKeyId"),
        (with(keys("AKIDOUBLE", "wrong", None)), "SignatureDoesNotMatch"),
        (with(keys("AKIDOUBLE", "secret/of+double", Some("old"))), "ExpiredToken"),
        (S3Config { region: Some("x y".into()), endpoint: None, ..with(None) }, "region"),
        (S3Config { endpoint: Some("minio:9000".into()), ..with(None) }, "AWS_ENDPOINT_URL"),
    ] {
        let error = s3(config).head(&object).await.unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains("secret"), "{word}: {error}");
    }
    let error = s3(config(&store)).head(&id("absent", "x")).await.unwrap_err();
    assert!(matches!(&error, SourceError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("s3://bucket/absent"), "{error}");
}

#[tokio::test]
async fn a_public_object_is_read_without_keys() {
    let store = S3Double::start(S3Options { keys: None, ..S3Options::default() }).await;
    let id = id("k", &store.put("bucket", "k", &b"content"[..]));
    let s3 = s3(S3Config { endpoint: Some(store.endpoint()), ..S3Config::default() });
    assert_eq!(read(&s3, &id, blob(b"content"), 0..7).await.unwrap(), b"content");
    assert!(store.requests().iter().all(|one| one.header("authorization").is_none()));
}

#[tokio::test]
async fn a_signed_request_goes_nowhere_else() {
    let other = S3Double::start(S3Options { keys: None, ..S3Options::default() }).await;
    other.put("bucket", "k", &b"content"[..]);
    let store = S3Double::start(S3Options::default()).await;
    let id = id("k", &store.put("bucket", "k", &b"content"[..]));
    let target = format!("{}/bucket/k", other.endpoint());
    store.script(Rule::on("/k").then(Fault::Redirect(target)));
    let error = s3(config(&store)).head(&id).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error:?}");
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn stores_have_names_of_their_own() {
    let of = async |endpoint: Option<&str>| {
        s3(S3Config { endpoint: endpoint.map(str::to_owned), ..S3Config::default() }).store().await
    };
    assert_eq!(of(None).await.unwrap(), "amazonaws.com");
    let minio = of(Some("https://minio.test/")).await.unwrap();
    assert_eq!(minio, of(Some("https://minio.test")).await.unwrap());
    assert_ne!(minio, of(Some("http://minio.test")).await.unwrap());
    assert!(of(Some("minio.test")).await.is_err());
}
