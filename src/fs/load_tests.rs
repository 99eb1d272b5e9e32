//! Loading against repositories in memory that count what is asked of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::cache::{Cache, CacheConfig};
use crate::fetch::FetchConfig;
use crate::fs::describe;
use crate::kit::Content;
use crate::kit::NodeKind;
use crate::oci::{BlobId, Selector};
use crate::source::{BlobStream, Repository, SourceError, Urgency};

/// A registry in memory.
#[derive(Default)]
struct Registry {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    tags: Mutex<BTreeMap<String, Digest>>,
    is_down: AtomicBool,
    /// What was asked for by name.
    opened: Mutex<Vec<Origin>>,
    manifest_requests: AtomicU64,
    blob_requests: AtomicU64,
}

impl Registry {
    fn put(&self, bytes: &[u8]) -> (Digest, usize) {
        let digest = Digest::of(bytes);
        self.blobs.lock().insert(digest, Bytes::copy_from_slice(bytes));
        (digest, bytes.len())
    }

    /// Pushes a ModelKit of raw layers: role, path and content of each.
    fn push(&self, reference: &str, parent: Option<&str>, layers: &[(&str, &str, &[u8])]) {
        self.push_with(reference, parent, layers, |_| ());
    }

    fn push_with(
        &self,
        reference: &str,
        parent: Option<&str>,
        layers: &[(&str, &str, &[u8])],
        change: impl Fn(&mut Value),
    ) {
        let mut kitfile = json!({"manifestVersion": "1.0.0", "package": {"name": "test"}});
        let mut descriptors = Vec::new();
        if let Some(parent) = parent {
            kitfile["model"] = json!({"path": parent});
        }
        for (role, path, content) in layers {
            let (digest, size) = self.put(content);
            let entry = json!({"path": path, "digest": digest, "diffId": digest});
            match *role {
                "model" => kitfile["model"] = entry,
                "modelpart" => push_to(&mut kitfile["model"]["parts"], entry),
                "dataset" => push_to(&mut kitfile["datasets"], entry),
                role => push_to(&mut kitfile[role], entry),
            }
            descriptors.push(json!({
                "mediaType": format!("application/vnd.kitops.modelkit.{role}.v1.raw"),
                "digest": digest, "size": size,
                "annotations": {"org.cncf.model.filepath": path},
            }));
        }
        let (config, config_bytes) = self.put(kitfile.to_string().as_bytes());
        let mut manifest = json!({
            "schemaVersion": 2, "layers": descriptors,
            "config": {
                "mediaType": "application/vnd.kitops.modelkit.config.v1+json",
                "digest": config, "size": config_bytes,
            },
        });
        change(&mut manifest);
        let (digest, _) = self.put(manifest.to_string().as_bytes());
        self.tags.lock().insert(reference.to_owned(), digest);
    }

    fn unavailable(&self) -> SourceError {
        let (place, detail) = ("registry.test".to_owned(), "no route to host".to_owned());
        SourceError::Unavailable { place, detail }
    }
}

fn push_to(list: &mut Value, entry: Value) {
    match list {
        Value::Array(entries) => entries.push(entry),
        other => *other = json!([entry]),
    }
}

struct InMemory(Arc<Registry>);

impl Repositories for InMemory {
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError> {
        self.0.opened.lock().push(origin.clone());
        Ok(Arc::new(One { registry: self.0.clone(), reference: origin.to_string() }))
    }
}

struct One {
    registry: Arc<Registry>,
    reference: String,
}

impl BlobSource for One {
    fn open(
        &self,
        blob: BlobId,
        range: Range<u64>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let result = if self.registry.is_down.load(Ordering::SeqCst) {
            Err(self.registry.unavailable())
        } else {
            self.registry.blob_requests.fetch_add(1, Ordering::SeqCst);
            let bytes = self.registry.blobs.lock()[&blob.digest].clone();
            let bytes = bytes.slice(range.start as usize..range.end as usize);
            Ok(BlobStream { range, bytes: stream::iter([Ok(bytes)]).boxed() })
        };
        Box::pin(async move { result })
    }
}

impl Repository for One {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        let registry = &self.registry;
        registry.manifest_requests.fetch_add(1, Ordering::SeqCst);
        let digest = match selector {
            Some(Selector::Digest(digest)) => Some(*digest),
            _ => registry.tags.lock().get(&self.reference).copied(),
        };
        let result = match digest {
            _ if registry.is_down.load(Ordering::SeqCst) => Err(registry.unavailable()),
            Some(digest) => Ok((digest, registry.blobs.lock()[&digest].clone())),
            None => Err(SourceError::NotFound {
                what: "the tag".to_owned(),
                place: self.reference.clone(),
                hint: "push it".to_owned(),
            }),
        };
        Box::pin(async move { result })
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn name(&self) -> String {
        self.reference.clone()
    }
}

struct Bench {
    registry: Arc<Registry>,
    fetcher: Arc<Fetcher>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            folder: folder.path().to_owned(),
            capacity_bytes: None,
            keep_free_bytes: 0,
        };
        let fetcher = Fetcher::new(Cache::open(config).unwrap(), FetchConfig::default());
        Self { registry: Arc::default(), fetcher, _folder: folder }
    }

    async fn load(&self, reference: &str, filters: &[&str]) -> Result<LoadedKit, LoadError> {
        let origin = Origin::parse(reference).unwrap();
        let filters = Filters::parse(filters).unwrap();
        let request = LoadRequest { origin, filters, umask: 0o022 };
        load(&self.fetcher, &InMemory(self.registry.clone()), &request, &|_, _| ()).await
    }

    async fn paths(&self, reference: &str, filters: &[&str]) -> Vec<String> {
        let kit = self.load(reference, filters).await.unwrap();
        let nodes = (0..kit.tree.len()).map(crate::kit::NodeId);
        let files = nodes.filter(|&node| matches!(kit.tree.kind(node), NodeKind::File(_)));
        let mut paths: Vec<String> =
            files.map(|node| String::from_utf8(kit.tree.path(node)).unwrap()).collect();
        paths.sort();
        paths
    }
}

const KIT: &str = "registry.test/org/kit:v1";
const PARENT: &str = "registry.test/org/parent:v1";
const GRANDPARENT: &str = "registry.test/org/grandparent:v1";

fn family(bench: &Bench) {
    let registry = &bench.registry;
    registry.push(GRANDPARENT, None, &[("model", "base.bin", b"base"), ("code", "g.py", b"g")]);
    let parent: &[(&str, &str, &[u8])] =
        &[("modelpart", "adapter.bin", b"adapter"), ("docs", "p.md", b"p")];
    registry.push(PARENT, Some(GRANDPARENT), parent);
    registry.push(KIT, Some(PARENT), &[("dataset", "train.csv", b"1,2")]);
}

#[tokio::test]
async fn parents_give_their_model_layers_only_and_the_kitfile_is_the_childs() {
    let bench = Bench::new();
    family(&bench);
    let kit = bench.load(KIT, &[]).await.unwrap();
    let paths = bench.paths(KIT, &[]).await;
    assert_eq!(paths, ["Kitfile", "adapter.bin", "base.bin", "train.csv"]);
    let node = kit.tree.resolve(b"Kitfile").unwrap();
    let NodeKind::File(Content::Inline(kitfile)) = kit.tree.kind(node) else { panic!("inline") };
    assert!(String::from_utf8_lossy(kitfile).contains(PARENT));
}

#[tokio::test]
async fn filters_reach_the_parents_model_and_nothing_else_of_it() {
    let bench = Bench::new();
    family(&bench);
    assert_eq!(bench.paths(KIT, &["model"]).await, ["adapter.bin", "base.bin"]);
    assert_eq!(bench.paths(KIT, &["datasets"]).await, ["train.csv"]);
    assert_eq!(bench.paths(KIT, &["kitfile"]).await, ["Kitfile"]);
}

#[tokio::test]
async fn a_filter_without_model_does_not_ask_for_the_parent() {
    let bench = Bench::new();
    bench.registry.push(KIT, Some("gone.test/parent:v1"), &[("dataset", "a", b"a")]);
    assert_eq!(bench.paths(KIT, &["datasets"]).await, ["a"]);
    let error = bench.load(KIT, &[]).await.err().unwrap();
    assert!(error.to_string().contains("gone.test/parent:v1"), "{error}");
}

#[tokio::test]
async fn a_circle_of_parents_is_refused() {
    let bench = Bench::new();
    bench.registry.push(KIT, Some(PARENT), &[]);
    bench.registry.push(PARENT, Some(KIT), &[]);
    assert!(matches!(bench.load(KIT, &[]).await, Err(LoadError::Parents { .. })));
}

#[tokio::test]
async fn a_parent_is_looked_for_in_its_registry_and_never_in_a_folder() {
    let bench = Bench::new();
    // A host called `oci`; to a user who types it, a folder called `5000`.
    let parent = "oci:5000/base:v1";
    bench.registry.push(parent, None, &[("model", "base.bin", b"base")]);
    bench.registry.push(KIT, Some(parent), &[]);
    assert_eq!(bench.paths(KIT, &["model"]).await, ["base.bin"]);
    let opened = bench.registry.opened.lock();
    let is_registry = |origin: &Origin| matches!(origin, Origin::Registry(_));
    assert!(opened.iter().all(is_registry), "{opened:?}");
}

#[tokio::test]
async fn a_kit_loaded_once_is_loaded_again_while_the_registry_is_down() {
    let bench = Bench::new();
    family(&bench);
    bench.load(KIT, &[]).await.unwrap();
    bench.registry.is_down.store(true, Ordering::SeqCst);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(kit.layers.len(), 3);
    assert!(kit.warnings.iter().any(|warning| warning.contains("no route to host")));
    let never = bench.load("registry.test/org/other:v1", &[]).await;
    assert!(matches!(never, Err(LoadError::Source { .. })));
}

#[tokio::test]
async fn a_tag_that_is_gone_is_not_answered_from_memory() {
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("model", "a", b"a")]);
    bench.load(KIT, &[]).await.unwrap();
    bench.registry.tags.lock().clear();
    let gone = bench.load(KIT, &[]).await.err().unwrap();
    let LoadError::Source { error, .. } = gone else { panic!("{gone}") };
    assert!(matches!(*error, SourceError::NotFound { .. }));
}

#[tokio::test]
async fn a_moved_tag_is_followed_and_a_digest_is_asked_for_once() {
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("model", "old", b"old")]);
    let old = bench.load(KIT, &[]).await.unwrap().manifest;
    bench.registry.push(KIT, None, &[("model", "new", b"new")]);
    assert_eq!(bench.paths(KIT, &["model"]).await, ["new"]);
    let requests = bench.registry.manifest_requests.load(Ordering::SeqCst);
    let by_digest = format!("registry.test/org/kit@{old}");
    assert_eq!(bench.paths(&by_digest, &["model"]).await, ["old"]);
    assert_eq!(bench.registry.manifest_requests.load(Ordering::SeqCst), requests);
}

#[tokio::test]
async fn opening_raw_layers_reads_nothing_of_them() {
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("model", "a", b"a"), ("dataset", "b", b"b")]);
    bench.load(KIT, &[]).await.unwrap();
    // The config.
    assert_eq!(bench.registry.blob_requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_layer_that_is_there_twice_is_opened_once() {
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("dataset", "a", b"same"), ("dataset", "b", b"same")]);
    let kit = bench.load(KIT, &[]).await.unwrap();
    assert_eq!(kit.layers.len(), 1);
    assert_eq!(bench.paths(KIT, &[]).await, ["Kitfile", "a", "b"]);
}

#[tokio::test]
async fn a_kitfile_in_a_layer_must_have_the_bytes_of_the_kits_own() {
    let bench = Bench::new();
    // What is written as YAML has no digests, so the layer can hold it.
    bench.registry.push(KIT, None, &[("docs", "Kitfile", b"?")]);
    let (origin, repositories) = (Origin::parse(KIT).unwrap(), InMemory(bench.registry.clone()));
    let described = describe(&bench.fetcher, &repositories, &origin).await.unwrap();
    let own = described.kit.kitfile.to_yaml();
    for (content, is_fine) in [(own.clone(), true), (vec![b'x'; own.len()], false)] {
        bench.registry.push(KIT, None, &[("docs", "Kitfile", &content)]);
        let loaded = bench.load(KIT, &[]).await;
        match is_fine {
            true => assert!(loaded.is_ok()),
            false => {
                let error = loaded.err().unwrap();
                assert!(matches!(error, LoadError::Tree { .. }), "{error}");
                let words = error.to_string();
                let layer = Digest::of(&content).to_string();
                assert!(words.contains(KIT) && words.contains(&layer), "{words}");
            }
        }
        assert_eq!(bench.paths(KIT, &["docs"]).await, ["Kitfile"], "without the kit's own");
    }
}

#[tokio::test]
async fn a_raw_layer_of_another_size_than_promised_is_refused() {
    let bench = Bench::new();
    bench.registry.push_with(KIT, None, &[("model", "a", b"four")], |manifest| {
        let metadata = json!({"name": "a", "mode": 420, "uid": 0, "gid": 0, "size": 5,
            "mtime": "2024-05-29T16:26:40Z", "typeflag": 48});
        let annotations = &mut manifest["layers"][0]["annotations"];
        annotations["org.cncf.model.file.metadata+json"] = metadata.to_string().into();
    });
    let error = bench.load(KIT, &[]).await.err().unwrap();
    assert!(matches!(error, LoadError::Kit { .. }), "{error}");
    assert!(error.to_string().contains(KIT), "{error}");
}

#[tokio::test]
async fn a_layer_that_cannot_be_opened_is_named_with_its_role() {
    let bench = Bench::new();
    let content = [7; 512];
    bench.registry.push_with(KIT, None, &[("model", "a", &content)], |manifest| {
        manifest["layers"][0]["mediaType"] = "application/vnd.kitops.modelkit.model.v1.tar".into();
    });
    let error = bench.load(KIT, &[]).await.err().unwrap();
    assert!(matches!(error, LoadError::Fetch { .. }), "{error}");
    let name = format!("model layer {}", Digest::of(&content));
    let error = error.to_string();
    assert!(error.contains(&name) && error.contains("--filter"), "{error}");
    assert_eq!(error.matches("sha256:").count(), 1, "it is named once: {error}");
}

#[tokio::test]
async fn describing_a_kit_reads_no_layer() {
    let bench = Bench::new();
    family(&bench);
    let origin = Origin::parse(KIT).unwrap();
    let repositories = InMemory(bench.registry.clone());
    let description = describe(&bench.fetcher, &repositories, &origin).await.unwrap();
    assert_eq!(description.kit.parent.as_deref(), Some(PARENT));
    assert_eq!(bench.registry.manifest_requests.load(Ordering::SeqCst), 1);
    assert_eq!(bench.registry.blob_requests.load(Ordering::SeqCst), 1);
}
