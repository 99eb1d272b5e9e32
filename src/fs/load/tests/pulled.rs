//! Kits that kit itself has pulled.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use proptest::prelude::*;

use super::*;
use crate::oci::Reference;
use crate::source::Pulled;
use crate::source::kit_storage::KitStorage;

const PARENT: &str = "registry.test/org/base:v1";
const CONTENT: &[(&str, &str, &[u8])] = &[("code", "main.py", b"code")];

/// A machine on which kit was used, too.
struct Machine {
    bench: Bench,
    home: tempfile::TempDir,
}

struct WithPulled {
    registry: InMemory,
    home: PathBuf,
    is_preferred: bool,
}

impl Repositories for WithPulled {
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError> {
        self.registry.open(origin)
    }

    fn pulled(&self, origin: &Origin) -> Option<Pulled> {
        let Origin::Registry(reference) = origin else { panic!("only registries are asked") };
        let storage = KitStorage::open(&self.home, reference).ok()?;
        Some(Pulled { storage, is_preferred: self.is_preferred })
    }
}

impl Machine {
    fn new() -> Self {
        Self { bench: Bench::new(), home: tempfile::tempdir().unwrap() }
    }

    fn go_offline(&self) {
        self.bench.registry.is_down.store(true, Ordering::SeqCst);
    }

    /// As `kit pull REFERENCE`: parents are filed under the child's repository.
    fn pull(&self, reference: &str) {
        let reference = Reference::parse(reference).unwrap();
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        let storage = self.home.path().join("storage");
        std::fs::create_dir_all(storage.join("blobs/sha256")).unwrap();
        let mut next = Some(reference.to_string());
        while let Some(reference) = next {
            let digest = self.bench.registry.tagged(&reference);
            let tag = Reference::parse(&reference).unwrap().selector().to_string();
            next = self.store(&storage, digest);
            file(&storage, &repository, tag.trim_start_matches(':'), digest);
        }
    }

    /// Copies a kit's blobs; returns its parent.
    fn store(&self, storage: &Path, digest: Digest) -> Option<String> {
        let blobs = self.bench.registry.blobs.lock();
        let write = |digest: &Digest| {
            let path = storage.join("blobs/sha256").join(digest.hex());
            std::fs::write(path, &blobs[digest]).unwrap();
        };
        write(&digest);
        let manifest: Value = serde_json::from_slice(&blobs[&digest]).unwrap();
        let digest_of = |value: &Value| Digest::parse(value["digest"].as_str().unwrap()).unwrap();
        manifest["layers"].as_array().unwrap().iter().for_each(|layer| write(&digest_of(layer)));
        let config = digest_of(&manifest["config"]);
        write(&config);
        let kitfile: Value = serde_json::from_slice(&blobs[&config]).unwrap();
        let parent = kitfile["model"]["path"].as_str().filter(|path| path.contains(':'));
        parent.map(str::to_owned)
    }

    async fn load_with(&self, reference: &str, is_preferred: bool) -> Result<LoadedKit, LoadError> {
        let registry = self.bench.repositories();
        let home = self.home.path().to_owned();
        let repositories = WithPulled { registry, home, is_preferred };
        let request = LoadRequest::all_of(Origin::parse(reference).unwrap());
        load(&self.bench.fetcher, &repositories, &request, &|_, _| ()).await
    }

    fn manifest_requests(&self) -> u64 {
        self.bench.registry.manifest_requests.load(Ordering::SeqCst)
    }

    fn blob_requests(&self) -> u64 {
        self.bench.registry.blob_requests.load(Ordering::SeqCst)
    }
}

/// Adds a manifest to a repository's side files.
fn file(storage: &Path, repository: &str, tag: &str, digest: Digest) {
    let name = URL_SAFE.encode(repository);
    let read = |path: &Path, empty: Value| {
        std::fs::read(path).map_or(empty, |json| serde_json::from_slice(&json).unwrap())
    };
    let index_path = storage.join(format!("{name}-index.json"));
    let mut index = read(&index_path, json!({"manifests": []}));
    push_to(&mut index["manifests"], json!({"digest": digest}));
    std::fs::write(index_path, index.to_string()).unwrap();
    let tags_path = storage.join(format!("{name}-tags.json"));
    let mut tags = read(&tags_path, json!({}));
    tags[tag] = json!({"digest": digest});
    std::fs::write(tags_path, tags.to_string()).unwrap();
}

async fn text(kit: &LoadedKit, path: &str) -> Bytes {
    let file = StoredFile::of(kit, kit.tree.resolve(path.as_bytes()).unwrap()).unwrap();
    file.read(0..file.extents.bytes()).await.unwrap()
}

#[tokio::test]
async fn a_pulled_kit_is_there_when_the_registry_does_not_answer() {
    let machine = Machine::new();
    machine.bench.registry.push(KIT, None, CONTENT);
    machine.pull(KIT);
    machine.go_offline();
    for reference in [KIT.to_owned(), by_digest(&machine)] {
        let kit = machine.load_with(&reference, false).await.unwrap();
        assert_eq!(text(&kit, "main.py").await, "code");
    }
    let kit = machine.load_with(KIT, false).await.unwrap();
    let warning = &kit.all_warnings()[0];
    assert!(warning.contains("kit's storage") && warning.contains("no route"), "{warning}");
    assert_eq!(machine.blob_requests(), 0);
}

fn by_digest(machine: &Machine) -> String {
    format!("registry.test/org/kit@{}", machine.bench.registry.tagged(KIT))
}

#[tokio::test]
async fn a_registry_that_answers_is_believed() {
    let machine = Machine::new();
    machine.bench.registry.push(KIT, None, CONTENT);
    machine.pull(KIT);
    machine.bench.registry.push(KIT, None, &[("code", "new.py", b"new")]);
    let kit = machine.load_with(KIT, false).await.unwrap();
    assert_eq!(paths_of(&kit), ["Kitfile", "new.py"]);
    assert_eq!(kit.all_warnings(), [""; 0]);
    // The registry's answer goes before the kit that was pulled earlier.
    machine.go_offline();
    assert_eq!(paths_of(&machine.load_with(KIT, false).await.unwrap()), ["Kitfile", "new.py"]);
    machine.bench.registry.is_down.store(false, Ordering::SeqCst);
    machine.bench.registry.tags.lock().clear();
    assert!(matches!(machine.load_with(KIT, false).await, Err(LoadError::Source { .. })));
}

#[tokio::test]
async fn preferred_kits_of_kits_storage_cost_no_request() {
    let machine = Machine::new();
    machine.bench.registry.push(KIT, None, CONTENT);
    machine.pull(KIT);
    for reference in [KIT.to_owned(), by_digest(&machine)] {
        let kit = machine.load_with(&reference, true).await.unwrap();
        assert_eq!(text(&kit, "main.py").await, "code");
        assert_eq!(kit.all_warnings(), [""; 0]);
    }
    assert_eq!((machine.manifest_requests(), machine.blob_requests()), (0, 0));
    // A kit that was not pulled comes from the registry as always.
    let other = "registry.test/org/kit:v2";
    machine.bench.registry.push(other, None, CONTENT);
    machine.load_with(other, true).await.unwrap();
    assert_eq!(machine.manifest_requests(), 1);
}

#[tokio::test]
async fn a_tag_that_may_name_a_parent_is_not_believed() {
    let machine = Machine::new();
    machine.bench.registry.push(PARENT, None, &[("model", "m.bin", b"parent")]);
    machine.bench.registry.push(KIT, Some(PARENT), CONTENT);
    machine.pull(KIT);
    // The registry resolves the tag, and a warning says why kit's storage was not used.
    let kit = machine.load_with(KIT, true).await.unwrap();
    assert_eq!(paths_of(&kit), ["Kitfile", "m.bin", "main.py"]);
    assert!(kit.all_warnings()[0].contains("may name a parent"), "{:?}", kit.all_warnings());

    let offline = Machine { bench: Bench::new(), home: machine.home };
    offline.go_offline();
    for is_preferred in [false, true] {
        let error = offline.load_with(KIT, is_preferred).await.err().unwrap();
        assert!(matches!(error, LoadError::Doubtful { .. }), "{error}");
        let said = error.to_string();
        let wrong = machine.bench.registry.tagged(PARENT);
        assert!(said.contains(PARENT) && said.contains(&wrong.to_string()), "{said}");
        // Its digest is as good as ever; the parent is not in storage under its own name.
        let digest = machine.bench.registry.tagged(PARENT);
        let named = format!("registry.test/org/kit@{digest}");
        let kit = offline.load_with(&named, is_preferred).await.unwrap();
        assert_eq!(paths_of(&kit), ["Kitfile", "m.bin"]);
    }
}

#[tokio::test]
async fn a_layer_is_read_from_kits_storage_once_its_registry_is_gone() {
    let machine = Machine::new();
    machine.bench.registry.push(KIT, None, CONTENT);
    machine.pull(KIT);
    let kit = machine.load_with(KIT, false).await.unwrap();
    machine.go_offline();
    assert_eq!(text(&kit, "main.py").await, "code");
}

#[tokio::test]
async fn damaged_storage_is_passed_over() {
    let machine = Machine::new();
    machine.bench.registry.push(KIT, None, CONTENT);
    machine.pull(KIT);
    let storage = machine.home.path().join("storage");
    let manifest = machine.bench.registry.tagged(KIT);
    std::fs::write(storage.join("blobs/sha256").join(manifest.hex()), "other").unwrap();
    assert!(machine.load_with(KIT, true).await.is_ok(), "the registry has it");
    for file in storage.read_dir().unwrap().map(|file| file.unwrap().path()) {
        if file.is_file() {
            std::fs::write(file, "not json").unwrap();
        }
    }
    assert!(machine.load_with(KIT, true).await.is_ok());
}

const REPOSITORIES: [&str; 3] = ["a", "b", "c"];
const TAGS: [&str; 2] = ["v1", "v2"];

fn name(number: usize) -> String {
    let (repository, tag) = (REPOSITORIES[number % 3], TAGS[number / 3 % 2]);
    format!("registry.test/org/{repository}:{tag}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// For any kits with any parents, pulled in any order: a tag in kit's storage leads to the kit that the
    /// registry has under it, or to an error.
    #[test]
    fn a_pulled_tag_never_leads_to_another_kit(
        parents in proptest::collection::vec(proptest::option::of(0..6usize), 6),
        pulls in proptest::collection::vec(0..6usize, 1..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let machine = Machine::new();
            for (number, parent) in parents.iter().enumerate() {
                // Parents have smaller numbers: there are no circles.
                let parent = parent.filter(|parent| *parent < number).map(name);
                let path = format!("{number}.py");
                let content: &[(&str, &str, &[u8])] = &[("code", &path, b"code")];
                machine.bench.registry.push(&name(number), parent.as_deref(), content);
            }
            pulls.iter().for_each(|number| machine.pull(&name(*number)));
            machine.go_offline();
            let repositories = WithPulled {
                registry: machine.bench.repositories(),
                home: machine.home.path().to_owned(),
                is_preferred: true,
            };
            for number in 0..6 {
                let origin = Origin::parse(&name(number)).unwrap();
                let labels = LabelSelector::default();
                let found =
                    describe(&machine.bench.fetcher, &repositories, &origin, &labels).await;
                if let Ok(description) = found {
                    assert_eq!(description.digest, machine.bench.registry.tagged(&name(number)));
                }
            }
        });
    }
}
