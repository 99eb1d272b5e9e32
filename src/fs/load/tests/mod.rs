//! Loading against repositories in memory that count requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::cache::{Cache, CacheConfig};
use crate::fetch::FetchConfig;
use crate::fs::StoredFile;
use crate::kit::{Content, GoYaml, NodeKind};
use crate::oci::Digest;
use crate::source::in_memory::*;
use crate::source::{ObjectId, Repository, SourceError};

mod mtimes;
mod pulled;
mod remote;

struct Bench {
    registry: Arc<Registry>,
    store: Arc<Store>,
    fetcher: Arc<Fetcher>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig::new(folder.path());
        let fetcher = Fetcher::new(Cache::open(config).unwrap(), FetchConfig::default());
        Self { registry: Arc::default(), store: Arc::default(), fetcher, _folder: folder }
    }

    fn repositories(&self) -> InMemory {
        InMemory(self.registry.clone(), Stores(self.store.clone()))
    }

    async fn load(&self, reference: &str, filters: &[&str]) -> Result<LoadedKit, LoadError> {
        self.load_as(reference, filters, false).await
    }

    async fn load_empty(&self, reference: &str, filters: &[&str]) -> Result<LoadedKit, LoadError> {
        self.load_as(reference, filters, true).await
    }

    async fn load_as(
        &self,
        reference: &str,
        filters: &[&str],
        allow_empty: bool,
    ) -> Result<LoadedKit, LoadError> {
        let origin = Origin::parse(reference).unwrap();
        let filters = Filters::parse(filters).unwrap();
        let whole = LoadRequest::all_of(origin);
        let request = LoadRequest { filters, allow_empty, umask: 0o022, ..whole };
        load(&self.fetcher, &self.repositories(), &request, &|_, _| ()).await
    }

    async fn load_labelled(
        &self,
        reference: &str,
        labels: &[&str],
    ) -> Result<LoadedKit, LoadError> {
        let origin = Origin::parse(reference).unwrap();
        let labels = LabelSelector::parse(labels).unwrap();
        let request = LoadRequest { labels, ..LoadRequest::all_of(origin) };
        load(&self.fetcher, &self.repositories(), &request, &|_, _| ()).await
    }

    async fn paths(&self, reference: &str, filters: &[&str]) -> Vec<String> {
        paths_of(&self.load(reference, filters).await.unwrap())
    }
}

fn paths_of(kit: &LoadedKit) -> Vec<String> {
    let nodes = (0..kit.tree.len()).map(crate::kit::NodeId);
    let files = nodes.filter(|&node| matches!(kit.tree.kind(node), NodeKind::File(_)));
    let mut paths: Vec<String> =
        files.map(|node| String::from_utf8(kit.tree.path(node)).unwrap()).collect();
    paths.sort();
    paths
}

const KIT_INDEX: &str = "application/vnd.kitops.modelkit.index.v1+json";
const INDEX: &str = "registry.test/org/kit:all";
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
async fn each_filter_must_take_something_unless_it_need_not() {
    let bench = Bench::new();
    family(&bench);
    let refused = |error: LoadError| match error {
        LoadError::TakesNothing { idle, offered, .. } => (idle, offered),
        other => panic!("{other}"),
    };
    for (filters, idle) in [
        (&["docs"][..], "--filter `docs`"),
        (&["model", "datasets:typo"], "--filter `datasets:typo`"),
        (&["code", "docs:a,b"], "--filter `code` and --filter `docs:a,b`"),
    ] {
        let (said, offered) = refused(bench.load(KIT, filters).await.err().unwrap());
        assert_eq!(said, idle);
        assert!(offered.contains("dataset"), "{offered}");
    }
    // The model lies in the parent.
    bench.load(KIT, &["model"]).await.unwrap();
    let empty = bench.load_empty(KIT, &["docs"]).await.unwrap();
    assert_eq!(empty.tree.len(), 1, "the root alone");
    assert!(empty.warnings.iter().any(|it| it.starts_with("--filter `docs` takes nothing")));
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
    assert!(kit.all_warnings().iter().any(|warning| warning.contains("no route to host")));
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

/// Two ModelKits in an index with labels: `size=small|large`, `format=gguf` of both.
fn labelled(bench: &Bench) -> [Digest; 2] {
    let registry = &bench.registry;
    let kits = ["small", "large"].map(|size| {
        let reference = format!("registry.test/org/kit:{size}");
        registry.push(&reference, None, &[("model", size, size.as_bytes())]);
        registry.tagged(&reference)
    });
    registry.push_index(INDEX, Some(KIT_INDEX), &kits, |at, entry| {
        entry["modelMetadata"] = json!({"size": (["small", "large"][at]), "format": "gguf"});
    });
    kits
}

#[tokio::test]
async fn a_single_manifest_of_an_index_is_followed_however_deep_it_lies() {
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("model", "a", b"a")]);
    let kit = bench.registry.tagged(KIT);
    let mut inner = kit;
    for depth in 1..=5 {
        let reference = format!("registry.test/org/index:{depth}");
        inner = bench.registry.push_index(&reference, None, &[inner], |_, _| ());
        let loaded = bench.load(&reference, &[]).await;
        match depth {
            1..=4 => assert_eq!(loaded.unwrap().manifest, kit),
            _ => assert!(matches!(loaded, Err(LoadError::Choice { .. })), "{depth}"),
        }
    }
}

#[tokio::test]
async fn a_kit_is_chosen_from_an_index_by_its_labels() {
    let bench = Bench::new();
    let [small, large] = labelled(&bench);
    for (labels, manifest, path) in
        [(vec!["size=small"], small, "small"), (vec!["size=large", "format=gguf"], large, "large")]
    {
        let kit = bench.load_labelled(INDEX, &labels).await.unwrap();
        assert_eq!(kit.manifest, manifest);
        assert_eq!(paths_of(&kit), ["Kitfile", path]);
    }
    for labels in [vec![], vec!["format=gguf"], vec!["size=tiny"]] {
        let error = bench.load_labelled(INDEX, &labels).await.err().unwrap();
        assert!(matches!(error, LoadError::Choice { .. }), "{error}");
        let words = error.to_string();
        assert!(words.contains(INDEX) && words.contains(&large.to_string()), "{words}");
    }
}

#[tokio::test]
async fn labels_for_a_single_kit_are_refused() {
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("model", "a", b"a")]);
    let error = bench.load_labelled(KIT, &["size=small"]).await.err().unwrap();
    assert!(error.to_string().contains("leave --label out"), "{error}");
}

#[tokio::test]
async fn a_choice_by_labels_is_loaded_again_while_the_registry_is_down() {
    let bench = Bench::new();
    let [small, large] = labelled(&bench);
    bench.load_labelled(INDEX, &["size=small"]).await.unwrap();
    // The index moves on and is seen; what was loaded with the labels stays what it was.
    bench.registry.push_index(INDEX, Some(KIT_INDEX), &[large], |_, entry| {
        entry["modelMetadata"] = json!({"size": "small"});
    });
    assert!(bench.load_labelled(INDEX, &["size=large"]).await.is_err());
    bench.registry.is_down.store(true, Ordering::SeqCst);
    let kit = bench.load_labelled(INDEX, &["size=small"]).await.unwrap();
    assert_eq!(kit.manifest, small);
    assert!(kit.all_warnings().iter().any(|warning| warning.contains("no route to host")));
    // With other labels the index that is known is chosen from.
    let error = bench.load_labelled(INDEX, &["size=tiny"]).await.err().unwrap();
    assert!(matches!(error, LoadError::Choice { .. }), "{error}");
}

#[tokio::test]
async fn an_index_is_shown_as_it_is_unless_something_chooses_from_it() {
    let bench = Bench::new();
    let kits = labelled(&bench);
    let plain = bench.registry.push_index("registry.test/org/kit:one", None, &kits[..1], |_, _| ());
    let repositories = bench.repositories();
    let look = async |reference: &str, labels: &[&str]| {
        let origin = Origin::parse(reference).unwrap();
        let labels = LabelSelector::parse(labels).unwrap();
        look(&bench.fetcher, &repositories, &origin, &labels).await.unwrap()
    };
    let Described::Index(index) = look(INDEX, &[]).await else { panic!("a kit") };
    assert_eq!(index.index.candidates().len(), 2);
    for (reference, labels) in [
        (INDEX, vec!["size=small"]),
        ("registry.test/org/kit:one", vec![]),
        (&format!("registry.test/org/kit@{plain}"), vec![]),
    ] {
        let Described::Kit(kit) = look(reference, &labels).await else { panic!("an index") };
        assert_eq!(kit.digest, kits[0]);
    }
}

#[tokio::test]
async fn content_that_the_manifest_carries_is_not_asked_for() {
    use base64::Engine as _;
    let bench = Bench::new();
    let content = b"inline content";
    let text = base64::engine::general_purpose::STANDARD.encode(content);
    let blobs = bench.registry.clone();
    bench.registry.push_with(
        KIT,
        None,
        &[("docs", "a.md", content), ("docs", "b.md", b"other")],
        |manifest| {
            manifest["layers"][0]["data"] = json!(text);
            // Not the layer's: ignored.
            manifest["layers"][1]["data"] = json!(text);
            let config = Digest::parse(manifest["config"]["digest"].as_str().unwrap()).unwrap();
            let config = blobs.blobs.lock()[&config].clone();
            manifest["config"]["data"] =
                json!(base64::engine::general_purpose::STANDARD.encode(&config));
        },
    );
    let kit = bench.load(KIT, &[]).await.unwrap();
    let mut got = Vec::new();
    for path in ["a.md", "b.md"] {
        let node = kit.tree.resolve(path.as_bytes()).unwrap();
        let file = StoredFile::of(&kit, node).unwrap();
        got.push(file.read(0..file.extents.bytes()).await.unwrap());
    }
    assert_eq!(got, [Bytes::from_static(content), Bytes::from_static(b"other")]);
    assert_eq!(bench.registry.blob_requests.load(Ordering::SeqCst), 1, "that for `b.md`");
}

#[tokio::test]
async fn a_manifest_that_an_index_carries_is_not_asked_for() {
    use base64::Engine as _;
    let bench = Bench::new();
    bench.registry.push(KIT, None, &[("docs", "a.md", b"a")]);
    let manifest = bench.registry.tagged(KIT);
    let text =
        base64::engine::general_purpose::STANDARD.encode(&bench.registry.blobs.lock()[&manifest]);
    bench.registry.push_index(INDEX, None, &[manifest], |_, entry| entry["data"] = json!(text));
    bench.registry.blobs.lock().remove(&manifest);
    assert_eq!(bench.paths(INDEX, &[]).await, ["Kitfile", "a.md"]);
    assert_eq!(bench.registry.manifest_requests.load(Ordering::SeqCst), 1, "that for the index");
}

#[tokio::test]
async fn the_empty_config_is_never_asked_for() {
    let bench = Bench::new();
    let layer = bench.registry.put(b"weights");
    let manifest = json!({
        "schemaVersion": 2, "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json",
            "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": layer.0,
            "size": layer.1, "annotations": {"org.cncf.model.filepath": "w.bin", "x": null}}],
    });
    let (digest, _) = bench.registry.put(manifest.to_string().as_bytes());
    bench.registry.tags.lock().insert(KIT.to_owned(), digest);
    assert_eq!(bench.paths(KIT, &[]).await, ["w.bin"]);
    assert_eq!(bench.registry.blob_requests.load(Ordering::SeqCst), 0);
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
    // The YAML has no digests, so the layer can hold it.
    bench.registry.push(KIT, None, &[("docs", "Kitfile", b"?")]);
    let (origin, repositories) = (Origin::parse(KIT).unwrap(), bench.repositories());
    let described =
        describe(&bench.fetcher, &repositories, &origin, &LabelSelector::default()).await.unwrap();
    let own = described.kit.kitfile.to_yaml(GoYaml::default());
    for (content, is_fine) in [(own.clone(), true), (vec![b'x'; own.len()], false)] {
        bench.registry.push(KIT, None, &[("docs", "Kitfile", &content)]);
        let loaded = bench.load(KIT, &[]).await;
        match is_fine {
            true => assert!(loaded.is_ok()),
            false => {
                let error = loaded.err().unwrap();
                assert!(matches!(error, LoadError::Tree { .. }), "{error}");
                let words = error.to_string();
                let layer = Digest::of(&content).short();
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
async fn a_layer_that_cannot_be_opened_is_named_by_its_entry_and_short_digest() {
    let bench = Bench::new();
    let content = [7; 512];
    bench.registry.push_with(KIT, None, &[("model", "a", &content)], |manifest| {
        manifest["layers"][0]["mediaType"] = "application/vnd.kitops.modelkit.model.v1.tar".into();
    });
    let error = bench.load(KIT, &[]).await.err().unwrap();
    assert!(matches!(error, LoadError::Fetch { .. }), "{error}");
    let name = format!("model `a` ({})", Digest::of(&content).short());
    let error = error.to_string();
    assert!(error.contains(&name) && error.contains("--filter"), "{error}");
    assert_eq!(error.matches("sha256:").count(), 1, "it is named once: {error}");
}

#[tokio::test]
async fn describing_a_kit_reads_no_layer() {
    let bench = Bench::new();
    family(&bench);
    let origin = Origin::parse(KIT).unwrap();
    let repositories = bench.repositories();
    let description =
        describe(&bench.fetcher, &repositories, &origin, &LabelSelector::default()).await.unwrap();
    assert_eq!(description.kit.parent.as_deref(), Some(PARENT));
    assert_eq!(bench.registry.manifest_requests.load(Ordering::SeqCst), 1);
    assert_eq!(bench.registry.blob_requests.load(Ordering::SeqCst), 1);
}
