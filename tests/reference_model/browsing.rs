//! Random lookups, listings, reads, moves of tags, forgetting and new processes, on kits by path.
//!
//! Every node that the kernel knows has the bytes of the version that it was looked up in, though its tag has moved,
//! its kit has left memory, and another process answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kitfs::fs::browse::{Answer, Browse, BrowseConfig, Entry, Hosts, KitSource, Watcher};
use kitfs::fs::{
    Found, FsConfig, FsError, Ino, KitNodes, LoadedKit, Nodes, Owner, Place, Unopened,
};
use kitfs::oci::{Digest, Origin, Selector};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::engine::Engine;
use super::support::kit_builder::{Kit, Layer};

const HOST: &str = "registry.example";
const REPOSITORIES: [&str; 3] = ["org/a", "org/a/b", "c"];
const TAGS: [&str; 2] = ["v1", "v2"];
const VERSIONS: usize = 4;
const FILES: [&str; 3] = ["data/one", "data/deep/er/two", "Kitfile"];
/// Where the numbers begin in their file.
const BASE: u64 = 4096;

/// The tags of a registry, and the kits that it has.
#[derive(Default)]
struct Registry {
    tags: BTreeMap<(String, String), Digest>,
    /// The references of the layouts with the kits.
    kits: BTreeMap<Digest, String>,
}

struct Source {
    engine: Arc<Engine>,
    registry: Arc<Mutex<Registry>>,
    asked: Arc<AtomicU64>,
}

impl Source {
    fn named(&self, origin: &Origin) -> Result<Digest, FsError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Origin::Registry(reference) = origin else { panic!("{origin}") };
        let registry = self.registry.lock();
        let found = match reference.selector() {
            Selector::Digest(digest) => registry.kits.contains_key(digest).then_some(*digest),
            Selector::Tag(tag) => {
                let key = (reference.repository().to_owned(), tag.clone());
                registry.tags.get(&key).copied()
            }
        };
        found.ok_or_else(|| Unopened::NotThere.error("no such tag".to_owned()))
    }
}

impl KitSource for Source {
    fn resolve(&self, origin: Origin) -> BoxFuture<'static, Result<Digest, FsError>> {
        std::future::ready(self.named(&origin)).boxed()
    }

    fn open(&self, origin: Origin) -> BoxFuture<'static, Result<Arc<LoadedKit>, FsError>> {
        let reference =
            self.named(&origin).map(|digest| self.registry.lock().kits[&digest].clone());
        let engine = self.engine.clone();
        async move {
            let reference = reference?;
            let load = move || Arc::new(engine.load(&reference).unwrap());
            Ok(tokio::task::spawn_blocking(load).await.unwrap())
        }
        .boxed()
    }

    fn tags(&self, origin: Origin) -> BoxFuture<'static, Result<Vec<String>, FsError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let Origin::Registry(reference) = origin else { panic!("{origin}") };
        let registry = self.registry.lock();
        let of_repository = registry.tags.keys().filter(|(name, _)| name == reference.repository());
        let tags: Vec<_> = of_repository.map(|(_, tag)| tag.clone()).collect();
        let there = if tags.is_empty() {
            Err(Unopened::NotThere.error("no such repository".to_owned()))
        } else {
            Ok(tags)
        };
        std::future::ready(there).boxed()
    }
}

#[derive(Clone, Debug)]
enum Operation {
    /// A tag names another version.
    Move {
        repository: usize,
        tag: usize,
        version: usize,
    },
    Remove {
        repository: usize,
        tag: usize,
    },
    /// Looks up a kit or the link to it.
    LookUp {
        repository: usize,
        tag: usize,
        by_link: bool,
    },
    /// Looks up a file of the kit of a tag.
    Enter {
        repository: usize,
        tag: usize,
        file: usize,
    },
    List {
        repository: usize,
    },
    /// Reads a file that the kernel knows.
    Read(prop::sample::Index),
    /// The kernel forgets a node.
    Forget(prop::sample::Index),
    /// Names that cannot be kits.
    Probe(String),
    /// Another process takes the mount over.
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    let repository = || 0..REPOSITORIES.len();
    let tag = || 0..TAGS.len();
    prop_oneof![
        3 => (repository(), tag(), 0..VERSIONS)
            .prop_map(|(repository, tag, version)| Operation::Move { repository, tag, version }),
        1 => (repository(), tag()).prop_map(|(repository, tag)| Operation::Remove { repository, tag }),
        3 => (repository(), tag(), any::<bool>())
            .prop_map(|(repository, tag, by_link)| Operation::LookUp { repository, tag, by_link }),
        6 => (repository(), tag(), 0..FILES.len())
            .prop_map(|(repository, tag, file)| Operation::Enter { repository, tag, file }),
        2 => repository().prop_map(|repository| Operation::List { repository }),
        6 => any::<prop::sample::Index>().prop_map(Operation::Read),
        2 => any::<prop::sample::Index>().prop_map(Operation::Forget),
        1 => "[.A-Z][a-zA-Z.]{0,8}|[a-z]{1,4}:|[a-z]{1,3}@sha256:[0-9a-f]{1,9}".prop_map(Operation::Probe),
        1 => Just(Operation::Restart),
    ]
}

/// A file that the kernel knows.
struct Known {
    /// The numbers on the way to it, each with a lookup to forget.
    way: Vec<Ino>,
    version: usize,
    file: &'static str,
}

struct World {
    engine: Arc<Engine>,
    registry: Arc<Mutex<Registry>>,
    asked: Arc<AtomicU64>,
    records: File,
    nodes: Nodes,
    digests: Vec<Digest>,
    /// The expected tags: repository, tag, version.
    tags: BTreeMap<(usize, usize), usize>,
    known: Vec<Known>,
}

/// The content of a file of a version; nothing for the Kitfile, which the builder writes.
fn content(version: usize, file: &str) -> Option<Vec<u8>> {
    (file != "Kitfile")
        .then(|| format!("{file} of {version}\n").into_bytes().repeat(version * 1500 + 1))
}

fn browse(source: Source, records: &File) -> Nodes {
    let runtime = source.engine.runtime.handle().clone();
    let _in_runtime = runtime.enter();
    let config = BrowseConfig {
        hosts: Hosts::new([HOST.to_owned()]),
        tag_ttl: Duration::ZERO,
        most_awake: 1,
        idle_after: Duration::from_millis(60),
        fs: FsConfig { tensor_prefetch: false, ..FsConfig::default() },
        owner: Owner { uid: 7, gid: 8 },
        folder_mode: 0o755,
    };
    let records = records.try_clone().unwrap();
    Browse::new(Box::new(source), config, records, BASE).unwrap().into()
}

impl World {
    fn new(folder: &std::path::Path) -> Self {
        let engine = Arc::new(Engine::new(&folder.join("cache"), None));
        let (registry, asked) = (Arc::<Mutex<Registry>>::default(), Arc::<AtomicU64>::default());
        let mut digests = Vec::new();
        for version in 0..VERSIONS {
            let layer =
                FILES.iter().fold(Layer::tar("dataset", "data"), |layer, file| {
                    match content(version, file) {
                        Some(bytes) => layer.file(file, 0o644, &bytes),
                        None => layer,
                    }
                });
            // Other versions have other positions of the same names.
            let layer = (0..version)
                .fold(layer, |layer, more| layer.file(format!("data/a{more}"), 0o644, b"more"));
            let written =
                Kit::modelkit().with(layer).write(&folder.join(format!("kit{version}")), "v");
            let digest = Digest::parse(&written.digest).unwrap();
            registry.lock().kits.insert(digest, written.reference);
            digests.push(digest);
        }
        let records = tempfile::tempfile().unwrap();
        let source =
            Source { engine: engine.clone(), registry: registry.clone(), asked: asked.clone() };
        let nodes = browse(source, &records);
        let (tags, known) = (BTreeMap::new(), Vec::new());
        Self { engine, registry, asked, records, nodes, digests, tags, known }
    }

    fn browse(&self) -> &Arc<Browse> {
        self.nodes.by_path().unwrap()
    }

    fn wait<T>(&self, answer: Answer<T>) -> Result<T, FsError> {
        match answer {
            Answer::Now(known) => known,
            Answer::Later(later) => self.engine.runtime.block_on(later),
        }
    }

    fn look_up(&self, parent: &Place, name: &str) -> Option<Ino> {
        let entry = self.wait(self.browse().lookup(parent, name.as_bytes()));
        let Entry { attributes, .. } = entry.unwrap();
        attributes.map(|attributes| attributes.ino)
    }

    /// The place with a number.
    fn place(&self, ino: Ino) -> Place {
        match self.nodes.find(ino) {
            Found::Place(place) => place,
            Found::Kit(..) | Found::Asleep { .. } | Found::Gone => panic!("{ino:?} is no place"),
        }
    }

    /// Walks to the folder of a repository or of a part of it; returns the numbers on the way.
    fn walk(&self, path: &str) -> Vec<Ino> {
        let mut way = vec![Ino::ROOT];
        for name in [HOST].into_iter().chain(path.split('/').filter(|name| !name.is_empty())) {
            let parent = self.place(*way.last().unwrap());
            way.push(self.look_up(&parent, name).unwrap());
        }
        way
    }

    /// Walks to a kit; `None` where its tag is not there.
    fn walk_to_kit(&self, repository: usize, tag: usize) -> (Vec<Ino>, Option<Ino>) {
        let path = REPOSITORIES[repository];
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let way = self.walk(folder);
        let parent = self.place(*way.last().unwrap());
        let kit = self.look_up(&parent, &format!("{name}:{}", TAGS[tag]));
        (way, kit)
    }

    fn kit_of(&self, ino: Ino) -> (KitNodes, Ino) {
        match self.nodes.find(ino) {
            Found::Kit(kit, ino) => (kit, ino),
            Found::Asleep { wake, ino, .. } => {
                (self.engine.runtime.block_on(wake.finish()).unwrap(), ino)
            }
            Found::Place(_) | Found::Gone => panic!("{ino:?} is no node of a kit"),
        }
    }

    fn forget(&self, way: &[Ino]) {
        let below_root = way.iter().filter(|ino| **ino != Ino::ROOT);
        self.nodes.forget(below_root.map(|ino| (*ino, 1)));
    }

    fn read(&self, known: &Known) {
        let (kit, ino) = self.kit_of(*known.way.last().unwrap());
        let bytes = self.engine.read(kit.file_system(), ino, 0, u32::MAX).unwrap();
        if let Some(expected) = content(known.version, known.file) {
            assert!(bytes == expected, "{} of version {}", known.file, known.version);
        }
        assert_eq!(kit.file_system().kit().manifest, self.digests[known.version]);
    }

    fn enter(&mut self, repository: usize, tag: usize, file: &'static str) {
        let (mut way, kit) = self.walk_to_kit(repository, tag);
        let version = self.tags.get(&(repository, tag)).copied();
        assert_eq!(kit.is_some(), version.is_some());
        let (Some(kit), Some(version)) = (kit, version) else { return self.forget(&way) };
        way.push(kit);
        for name in file.split('/') {
            let (kit, ino) = self.kit_of(*way.last().unwrap());
            let found = kit.lookup(ino, name.as_bytes()).unwrap();
            self.nodes.count(found.ino, 1);
            // The attributes by the number are those of the lookup, and `..` leads back.
            let (again, inner) = self.kit_of(found.ino);
            assert_eq!(again.attributes(inner).unwrap(), found);
            way.push(found.ino);
        }
        let known = Known { way, version, file };
        self.read(&known);
        self.known.push(known);
    }

    fn list(&self, repository: usize) {
        let way = self.walk(REPOSITORIES[repository]);
        let place = self.place(*way.last().unwrap());
        let all = self.wait(self.browse().entries(&place, 0)).unwrap();
        for (at, entry) in all.iter().enumerate() {
            let rest = self.wait(self.browse().entries(&place, entry.next_offset)).unwrap();
            assert_eq!(rest, all[at + 1..], "a listing goes on");
        }
        let names: BTreeSet<_> = all.iter().map(|entry| entry.name.clone()).collect();
        let tags = self.tags.keys().filter(|(of, _)| *of == repository);
        let expected: BTreeSet<_> = tags.map(|(_, tag)| format!(":{}", TAGS[*tag])).collect();
        let listed: BTreeSet<_> =
            names.iter().filter(|name| name.starts_with(':')).cloned().collect();
        assert_eq!(listed, expected);
        assert!(names.contains(".") && names.contains(".."));
        self.forget(&way);
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Move { repository, tag, version } => {
                let key = (REPOSITORIES[*repository].to_owned(), TAGS[*tag].to_owned());
                self.registry.lock().tags.insert(key, self.digests[*version]);
                self.tags.insert((*repository, *tag), *version);
            }
            Operation::Remove { repository, tag } => {
                let key = (REPOSITORIES[*repository].to_owned(), TAGS[*tag].to_owned());
                self.registry.lock().tags.remove(&key);
                self.tags.remove(&(*repository, *tag));
            }
            Operation::LookUp { repository, tag, by_link: false } => {
                let (way, kit) = self.walk_to_kit(*repository, *tag);
                assert_eq!(kit.is_some(), self.tags.contains_key(&(*repository, *tag)));
                self.forget(&way);
                self.forget(&kit.into_iter().collect::<Vec<_>>());
            }
            Operation::LookUp { repository, tag, by_link: true } => {
                let way = self.walk(REPOSITORIES[*repository]);
                let place = self.place(*way.last().unwrap());
                let link = self.look_up(&place, &format!(":{}", TAGS[*tag]));
                assert_eq!(link.is_some(), self.tags.contains_key(&(*repository, *tag)));
                if let Some(link) = link {
                    let name = REPOSITORIES[*repository].rsplit('/').next().unwrap();
                    let target = self.browse().link_target(&self.place(link)).unwrap();
                    assert_eq!(target, format!("../{name}:{}", TAGS[*tag]));
                    self.forget(&[link]);
                }
                self.forget(&way);
            }
            Operation::Enter { repository, tag, file } => {
                self.enter(*repository, *tag, FILES[*file]);
            }
            Operation::List { repository } => self.list(*repository),
            Operation::Read(index) if !self.known.is_empty() => self.read(index.get(&self.known)),
            Operation::Forget(index) if !self.known.is_empty() => {
                let known = self.known.swap_remove(index.index(self.known.len()));
                self.forget(&known.way);
            }
            Operation::Read(_) | Operation::Forget(_) => {}
            Operation::Probe(name) => {
                let before = self.asked.load(Ordering::SeqCst);
                let way = self.walk("org");
                for ino in &way {
                    assert_eq!(self.look_up(&self.place(*ino), name), None, "{name}");
                }
                self.forget(&way);
                assert_eq!(self.asked.load(Ordering::SeqCst), before, "{name} asks nothing");
            }
            Operation::Restart => {
                let source = Source {
                    engine: self.engine.clone(),
                    registry: self.registry.clone(),
                    asked: self.asked.clone(),
                };
                self.nodes = browse(source, &self.records);
            }
        }
    }
}

proptest! {
    // A case takes some 100 ms in a debug build.
    #![proptest_config(ProptestConfig {
        cases: 24, max_shrink_iters: 200, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn kits_by_path_are_what_a_map_says(operations in prop::collection::vec(operation(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::new(folder.path());
        for operation in &operations {
            world.apply(operation);
        }
        // Every node that the kernel knows is still what it was.
        for known in &world.known {
            world.read(known);
        }
        // No number is left once the kernel has forgotten all.
        for known in std::mem::take(&mut world.known) {
            world.forget(&known.way);
        }
        let left: Vec<_> = world.browse().in_use();
        prop_assert!(left.is_empty(), "{left:?}");
        prop_assert_eq!(world.browse().totals().inodes, 0);
    }
}

/// Collects the files whose pages the kernel is to drop.
#[derive(Default)]
struct Dropped(Mutex<Vec<(Ino, Range<u64>)>>);

impl Watcher for Dropped {
    fn woke(&self, _kit: &LoadedKit) {}

    fn slept(&self, files: Vec<(Ino, Range<u64>)>) {
        self.0.lock().extend(files);
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process before may have read any file, and nobody knows whether its bytes were right.
#[test]
fn a_process_that_takes_over_drops_all_pages_of_a_kit_that_comes_into_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(folder.path());
    world.apply(&Operation::Move { repository: 0, tag: 0, version: 3 });
    for file in &FILES[..2] {
        world.enter(0, 0, file);
    }
    world.apply(&Operation::Restart);
    let dropped = Arc::<Dropped>::default();
    let watcher: Arc<dyn Watcher> = dropped.clone();
    let watcher: Weak<dyn Watcher> = Arc::downgrade(&watcher);
    world.browse().watch(watcher);
    // One of the files is read again.
    world.read(&world.known[0]);
    for known in &world.known {
        let bytes = content(3, known.file).unwrap().len() as u64;
        let all = (*known.way.last().unwrap(), 0..bytes);
        until(known.file, || dropped.0.lock().contains(&all));
    }
}

#[test]
fn a_kit_that_a_request_uses_stays_in_memory_until_the_request_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(folder.path());
    for (tag, version) in [(0, 0), (1, 1)] {
        world.apply(&Operation::Move { repository: 0, tag, version });
    }
    world.enter(0, 0, FILES[0]);
    let (in_use, _) = world.kit_of(*world.known[0].way.last().unwrap());
    // One kit may be in memory, and another one comes.
    world.enter(0, 1, FILES[0]);
    let is_awake = || {
        let kits = world.browse().in_use();
        kits.iter().any(|kit| kit.digest == world.digests[0] && kit.is_awake)
    };
    assert!(is_awake());
    drop(in_use);
    until("it sleeps", || !is_awake());
}
