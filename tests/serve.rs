//! The embedded registry against the distribution-spec, and with other clients (skopeo, oci-client).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kitfs::oci::Digest;
use kitfs::serve::{Registry, ServeError};
use reqwest::{Client, Method, Response, StatusCode};
use rstest::rstest;
use serde_json::{Value, json};

/// A registry over the golden kits, or over another folder.
struct Served {
    address: String,
    client: Client,
}

impl Served {
    async fn golden() -> Self {
        Self::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")).await
    }

    async fn folder(folder: &Path) -> Self {
        let address = "127.0.0.1:0".parse().unwrap();
        let registry = Registry::bind(folder.to_owned(), address).await.unwrap();
        let address = registry.address().to_string();
        tokio::spawn(registry.run(std::future::pending()));
        Self { address, client: Client::builder().no_proxy().build().unwrap() }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.request(method, format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.ask(Method::GET, path, &[]).await
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.get(path).await.bytes().await.unwrap()).unwrap()
    }

    /// A layer of a golden kit: its path here and its content.
    async fn layer(&self, kit: &str) -> (String, Vec<u8>) {
        let manifest = self.json(&format!("/v2/{kit}/manifests/v1")).await;
        let path = format!("/v2/{kit}/blobs/{}", manifest["layers"][0]["digest"].as_str().unwrap());
        let content = self.get(&path).await.bytes().await.unwrap();
        (path, content.to_vec())
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// A layout whose index holds these manifests, each with a tag.
fn layout(folder: &Path, manifests: &[(&str, Value)]) {
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut entries = Vec::new();
    for (tag, manifest) in manifests {
        let manifest = manifest.to_string();
        let digest = Digest::of(manifest.as_bytes());
        std::fs::write(folder.join("blobs/sha256").join(digest.hex()), &manifest).unwrap();
        let annotations = json!({"org.opencontainers.image.ref.name": tag});
        entries.push(json!({"digest": digest, "size": manifest.len(), "annotations": annotations}));
    }
    std::fs::write(folder.join("index.json"), json!({"manifests": entries}).to_string()).unwrap();
}

#[tokio::test]
async fn manifests_come_by_tag_and_digest_with_type_and_digest() {
    let served = Served::golden().await;
    assert_eq!(served.get("/v2/").await.status(), StatusCode::OK);
    let by_tag = served.get("/v2/article/manifests/v1").await;
    let digest = header(&by_tag, "docker-content-digest").to_owned();
    assert_eq!(header(&by_tag, "content-type"), "application/vnd.oci.image.manifest.v1+json");
    let bytes = by_tag.bytes().await.unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), digest);
    let path = format!("/v2/article/manifests/{digest}");
    assert_eq!(served.get(&path).await.bytes().await.unwrap(), bytes);
    let head = served.ask(Method::HEAD, &path, &[]).await;
    assert_eq!(header(&head, "content-length"), bytes.len().to_string());
    assert_eq!(header(&head, "docker-content-digest"), digest);
    assert!(head.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn blobs_come_whole_and_in_ranges() {
    let served = Served::golden().await;
    let (path, content) = served.layer("article").await;
    let size = content.len();
    let digest = path.rsplit('/').next().unwrap();
    assert_eq!(Digest::of(&content).to_string(), digest);

    let head = served.ask(Method::HEAD, &path, &[]).await;
    assert_eq!(header(&head, "content-length"), size.to_string());
    assert_eq!(header(&head, "accept-ranges"), "bytes");

    for (range, expected) in [
        ("bytes=0-0".to_owned(), 0..1),
        ("bytes=512-1023".to_owned(), 512..1024),
        (format!("bytes={}-", size - 1), size - 1..size),
        ("bytes=-100".to_owned(), size - 100..size),
        (format!("bytes=1-{}", size * 2), 1..size),
    ] {
        let part = served.ask(Method::GET, &path, &[("range", &range)]).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        let shown = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
        assert_eq!(header(&part, "content-range"), shown);
        assert!(part.bytes().await.unwrap() == content[expected], "{range}");
    }
    let behind = served.ask(Method::GET, &path, &[("range", &format!("bytes={size}-"))]).await;
    assert_eq!(behind.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(header(&behind, "content-range"), format!("bytes */{size}"));
    let several = served.ask(Method::GET, &path, &[("range", "bytes=0-1,5-6")]).await;
    assert_eq!(several.status(), StatusCode::OK);
    assert!(several.bytes().await.unwrap() == content);
}

#[rstest]
#[case::name("/v2/absent/manifests/v1", 404, "NAME_UNKNOWN")]
#[case::tag("/v2/article/manifests/absent", 404, "MANIFEST_UNKNOWN")]
#[case::no_digest("/v2/article/blobs/sha256:123", 400, "DIGEST_INVALID")]
#[case::traversal("/v2/article/blobs/..%2f..%2findex.json", 400, "DIGEST_INVALID")]
#[case::name_traversal("/v2/..%2fgolden%2farticle/manifests/v1", 404, "NAME_UNKNOWN")]
#[case::absolute("/v2/%2fetc/tags/list", 404, "NAME_UNKNOWN")]
#[case::n("/v2/article/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID")]
#[case::elsewhere("/metrics", 404, "NAME_UNKNOWN")]
#[tokio::test]
async fn missing_content_is_an_error_in_the_form_of_the_spec(
    #[case] path: &str,
    #[case] status: u16,
    #[case] code: &str,
) {
    let response = Served::golden().await.get(path).await;
    assert_eq!(response.status().as_u16(), status);
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(body["errors"][0]["code"], code);
}

#[tokio::test]
async fn absent_blobs_and_layers_as_manifests_are_not_found() {
    let served = Served::golden().await;
    let absent = format!("/v2/article/blobs/{}", Digest::of(b"absent"));
    assert_eq!(served.get(&absent).await.status(), StatusCode::NOT_FOUND);
    let (layer, _) = served.layer("article").await;
    let as_manifest = layer.replace("/blobs/", "/manifests/");
    assert_eq!(served.get(&as_manifest).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nothing_can_be_written() {
    let served = Served::golden().await;
    for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE] {
        let response = served.ask(method, "/v2/article/manifests/v1", &[]).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(header(&response, "allow"), "GET, HEAD");
        let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        assert_eq!(body["errors"][0]["code"], "UNSUPPORTED");
    }
}

#[tokio::test]
async fn tags_come_in_pages_that_link_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path().join("Group/My Kit");
    layout(&kit, &["a", "b", "c"].map(|tag| (tag, json!({"config": {}}))));
    let served = Served::folder(folder.path()).await;
    assert_eq!(served.json("/v2/_catalog").await["repositories"], json!(["group/my-kit"]));
    let all = served.json("/v2/group/my-kit/tags/list").await;
    assert_eq!(all, json!({"name": "group/my-kit", "tags": ["a", "b", "c"]}));
    let first = served.get("/v2/group/my-kit/tags/list?n=2").await;
    let link = header(&first, "link").to_owned();
    let next = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
    let first: Value = serde_json::from_slice(&first.bytes().await.unwrap()).unwrap();
    assert_eq!(first["tags"], json!(["a", "b"]));
    let last = served.get(next).await;
    assert_eq!(header(&last, "link"), "");
    let last: Value = serde_json::from_slice(&last.bytes().await.unwrap()).unwrap();
    assert_eq!(last["tags"], json!(["c"]));
}

#[tokio::test]
async fn referrers_are_the_manifests_with_that_subject() {
    let folder = tempfile::tempdir().unwrap();
    let kit = json!({"config": {"mediaType": "kit"}});
    let subject = Digest::of(kit.to_string().as_bytes());
    let about = |kind: &str| {
        json!({"artifactType": kind, "config": {}, "subject": {"digest": subject},
               "annotations": {"k": kind}})
    };
    let manifests = [("v1", kit), ("s", about("x/signature")), ("b", about("x/sbom"))];
    layout(folder.path(), &manifests);
    let served = Served::folder(folder.path()).await;
    let name = served.json("/v2/_catalog").await["repositories"][0].as_str().unwrap().to_owned();
    let path = format!("/v2/{name}/referrers/{subject}");
    let all = served.json(&path).await;
    assert_eq!(all["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(all["manifests"].as_array().unwrap().len(), 2);
    let filtered = served.get(&format!("{path}?artifactType=x%2Fsbom")).await;
    assert_eq!(header(&filtered, "oci-filters-applied"), "artifactType");
    let filtered: Value = serde_json::from_slice(&filtered.bytes().await.unwrap()).unwrap();
    assert_eq!(filtered["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(filtered["manifests"][0]["annotations"], json!({"k": "x/sbom"}));
    let none = served.json(&format!("/v2/{name}/referrers/{}", Digest::of(b"x"))).await;
    assert_eq!(none["manifests"], json!([]));
}

#[tokio::test]
async fn a_tag_that_is_added_shows_up_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path().join("kit");
    layout(&kit, &[("v1", json!({"config": {}}))]);
    let served = Served::folder(folder.path()).await;
    assert_eq!(served.get("/v2/kit/manifests/v2").await.status(), StatusCode::NOT_FOUND);
    layout(&kit, &[("v1", json!({"config": {}})), ("v2", json!({"config": {"a": 1}}))]);
    assert_eq!(served.get("/v2/kit/manifests/v2").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_kit_that_is_added_shows_up_in_the_catalogue() {
    let folder = tempfile::tempdir().unwrap();
    layout(&folder.path().join("one"), &[("v1", json!({"config": {}}))]);
    let served = Served::folder(folder.path()).await;
    layout(&folder.path().join("two"), &[("v1", json!({"config": {}}))]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while served.json("/v2/_catalog").await["repositories"] != json!(["one", "two"]) {
        assert!(Instant::now() < deadline, "a new layout is found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn references_can_be_typed_and_the_registry_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    layout(&folder.path().join("kit"), &[("v1", json!({"config": {}}))]);
    let address = "127.0.0.1:0".parse().unwrap();
    let registry = Registry::bind(folder.path().to_owned(), address).await.unwrap();
    let address = registry.address();
    assert_eq!(registry.references(), [format!("{address}/kit:v1")]);
    let taken = Registry::bind(folder.path().to_owned(), address).await;
    assert!(matches!(taken, Err(ServeError::Listen { .. })));
    registry.run(async {}).await.unwrap();
    let empty = tempfile::tempdir().unwrap();
    let error = Registry::bind(empty.path().to_owned(), address).await.err().unwrap().to_string();
    assert!(error.contains("no OCI layout") && error.contains("skopeo copy"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_a_kit_from_the_registry() {
    let served = Served::golden().await;
    let folder = tempfile::tempdir().unwrap();
    let source = format!("docker://{}/article:v1", served.address);
    let destination = format!("oci:{}:v1", folder.path().join("copy").display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false", &source, &destination]);
    skopeo.env("HOME", folder.path());
    let run = tokio::task::spawn_blocking(move || skopeo.output());
    let output = run.await.unwrap().expect("skopeo is installed: `apt install skopeo`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let copied = std::fs::read(folder.path().join("copy/index.json")).unwrap();
    let copied: Value = serde_json::from_slice(&copied).unwrap();
    let original = served.get("/v2/article/manifests/v1").await;
    assert_eq!(copied["manifests"][0]["digest"], header(&original, "docker-content-digest"));
}

#[tokio::test]
async fn oci_client_pulls_a_kit() {
    use oci_client::client::{ClientConfig, ClientProtocol};
    use oci_client::secrets::RegistryAuth::Anonymous;
    let served = Served::golden().await;
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let client = oci_client::Client::new(config);
    let reference = format!("{}/article:v1", served.address).parse().unwrap();
    let (manifest, digest) = client.pull_image_manifest(&reference, &Anonymous).await.unwrap();
    let expected = served.get("/v2/article/manifests/v1").await;
    assert_eq!(digest, header(&expected, "docker-content-digest"));
    for layer in &manifest.layers {
        let mut content = Vec::new();
        client.pull_blob(&reference, layer, &mut content).await.unwrap();
        assert_eq!(Digest::of(&content).to_string(), layer.digest);
    }
    let tags = client.list_tags(&reference, &Anonymous, None, None).await.unwrap();
    assert_eq!(tags.tags, ["v1"]);
}
