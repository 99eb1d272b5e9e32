//! Random operations on random kits, compared with a map from paths to bytes.
//!
//! Lookups, listings and reads go on while bytes are evicted, requests break off, and the whole
//! engine is restarted over the same cache. A read is right, or fails because a request broke off; a
//! read is never wrong. Inode numbers are the same after every restart.

#[path = "reference_model/browsing.rs"]
mod browsing;
mod engine;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use engine::Engine;
use kitfs::fs::{FileKind, FileSystem, FsConfig, Ino, Owner};
use proptest::prelude::*;
use support::kit_builder::{Compression, Kit, Layer};
use support::{Random, golden_reference};

/// The size of the cache: room for the passes over all compressed layers at once.
const CACHE_BYTES: u64 = 24 * 1024 * 1024;

/// The number of requests that break off in a row is below this.
const MOST_BROKEN: u64 = 4;

#[derive(Clone, Debug)]
struct LayerPlan {
    is_raw: bool,
    compression: Compression,
    /// Inode numbers on the way, and the size of the file.
    files: Vec<(Vec<u8>, usize)>,
}

#[derive(Clone, Debug)]
enum Operation {
    /// Walks to a file, and compares its attributes.
    Lookup(prop::sample::Index),
    /// Looks up a name that does not exist.
    LookupMissing(prop::sample::Index),
    /// Lists a directory, and lists it again from every offset.
    List(prop::sample::Index),
    /// Reads inside a file, or beyond its end.
    Read { file: prop::sample::Index, at: prop::sample::Index, bytes: u32 },
    /// Reads a whole file in order.
    ReadAll(prop::sample::Index),
    /// Evicts all layers that can be evicted, while the kit is in use.
    Squeeze,
    /// Closes the kit, drops its layers from the cache, and loads the kit again.
    Evict,
    /// Starts a new engine over the same cache.
    Restart,
    /// Makes the next requests break off.
    Fault(u64),
}

fn layer_plan() -> impl Strategy<Value = LayerPlan> {
    let compression = prop_oneof![
        2 => Just(Compression::None),
        1 => Just(Compression::Gzip),
        1 => Just(Compression::Zstd),
    ];
    let size = prop_oneof![
        3 => 0usize..5_000,
        2 => 200_000usize..400_000,
        1 => 1_050_000usize..1_100_000,
    ];
    let files = prop::collection::vec((prop::collection::vec(0u8..3, 0..4), size), 1..4);
    (any::<bool>(), compression, files).prop_map(|(is_raw, compression, files)| LayerPlan {
        is_raw,
        compression,
        files,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => index().prop_map(Operation::Lookup),
        1 => index().prop_map(Operation::LookupMissing),
        2 => index().prop_map(Operation::List),
        6 => (index(), index(), 1u32..400_000)
            .prop_map(|(file, at, bytes)| Operation::Read { file, at, bytes }),
        2 => index().prop_map(Operation::ReadAll),
        1 => Just(Operation::Squeeze),
        1 => Just(Operation::Evict),
        1 => Just(Operation::Restart),
        2 => (1..MOST_BROKEN).prop_map(Operation::Fault),
    ]
}

/// The expected content of the kit.
#[derive(Default)]
struct Model {
    files: BTreeMap<Vec<u8>, Vec<u8>>,
    directories: BTreeSet<Vec<u8>>,
}

impl Model {
    fn add(&mut self, path: Vec<u8>, content: Vec<u8>) {
        let mut directory = path.as_slice();
        while let Some(slash) = directory.iter().rposition(|&byte| byte == b'/') {
            directory = &directory[..slash];
            self.directories.insert(directory.to_vec());
        }
        self.files.insert(path, content);
    }

    fn children(&self, directory: &[u8]) -> BTreeSet<Vec<u8>> {
        let prefix = match directory {
            b"" => Vec::new(),
            _ => [directory, b"/"].concat(),
        };
        let paths = self.files.keys().chain(&self.directories);
        let below = paths.filter_map(|path| path.strip_prefix(prefix.as_slice()));
        below.filter(|rest| !rest.is_empty() && !rest.contains(&b'/')).map(<[u8]>::to_vec).collect()
    }
}

fn write_kit(plans: &[LayerPlan], folder: &Path) -> (String, Model) {
    let mut model = Model::default();
    model.directories.insert(Vec::new());
    let mut random = Random::new(plans.len() as u64);
    let mut kit = Kit::modelkit();
    for (number, plan) in plans.iter().enumerate() {
        let mut layer = Layer::tar("dataset", &format!("layer{number}"));
        for (position, (directories, size)) in plan.files.iter().enumerate() {
            let mut path: Vec<u8> =
                directories.iter().flat_map(|d| [b'd', b'0' + d, b'/']).collect();
            path.extend_from_slice(format!("file{number}-{position}").as_bytes());
            let mut content = random.bytes(*size);
            if let Some(length) = content.get_mut(..8) {
                length.copy_from_slice(&100u64.to_le_bytes());
            }
            if plan.is_raw {
                let path = String::from_utf8(path).unwrap() + ".safetensors";
                model.add(path.clone().into_bytes(), content.clone());
                layer = Layer::raw("dataset", &path, 0o644, &content);
                break;
            }
            // Names need not be UTF-8.
            path.push(0xff);
            // Their headers are noise. Tensor prefetch parses them in the background.
            if position % 2 == 0 {
                path.extend_from_slice(b".safetensors");
            }
            if position % 3 == 1 {
                let runs = punch_holes(&mut content);
                layer = layer.sparse_file(&path, 0o644, &content, runs);
            } else {
                layer = layer.file(&path, 0o644, &content);
            }
            model.add(path, content);
        }
        kit = kit.with(layer.compressed(plan.compression));
    }
    let written = kit.write(folder, "v1");
    (written.reference, model)
}

/// Punches holes with lengths that fit no block; returns the ranges of the data that is left.
fn punch_holes(content: &mut [u8]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < content.len() {
        let data_end = content.len().min(at + 7_000 + at % 50_000);
        runs.push(at..data_end);
        at = content.len().min(data_end + 3_001 + at % 300_000);
        content[data_end..at].fill(0);
    }
    runs
}

/// The engine, its loaded kit, and the model to compare with.
struct World {
    engine: Option<Engine>,
    file_system: Option<FileSystem>,
    reference: String,
    model: Model,
    inodes: BTreeMap<Vec<u8>, Ino>,
}

impl World {
    fn new(engine: Engine, reference: String, model: Model) -> Self {
        let (file_system, inodes) = (None, BTreeMap::new());
        let mut world = Self { engine: Some(engine), file_system, reference, model, inodes };
        world.load();
        world
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn fs(&self) -> &FileSystem {
        self.file_system.as_ref().unwrap()
    }

    fn load(&mut self) {
        // Compressed layers take their pass here, and may meet a fault.
        let kit = loop {
            match self.engine().load(&self.reference) {
                Ok(kit) => break kit,
                Err(error) => assert!(self.is_explained(), "without a fault: {error}"),
            }
        };
        let owner = Owner { uid: 1000, gid: 1000 };
        let runtime = self.engine().runtime.enter();
        let file_system = FileSystem::new(Arc::new(kit), owner, FsConfig::default());
        drop(runtime);
        self.file_system = Some(file_system);
        let paths: Vec<_> =
            self.model.files.keys().chain(&self.model.directories).cloned().collect();
        for path in paths {
            let ino = self.walk(&path).unwrap_or_else(|| panic!("{path:?} is lost"));
            let before = *self.inodes.entry(path).or_insert(ino);
            assert_eq!(before, ino, "inode numbers are for ever");
        }
    }

    fn walk(&self, path: &[u8]) -> Option<Ino> {
        let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(Ino::ROOT, |ino, name| {
            self.fs().lookup(ino, name).ok().map(|attributes| attributes.ino)
        })
    }

    /// Ends the faults. Returns `true` if a broken request can explain an error. A broken request may
    /// cause an error long after it was made, when a read waits for prefetched bytes, but only once.
    fn is_explained(&self) -> bool {
        self.engine().faults.break_off(0);
        let take = |left: u64| left.checked_sub(1);
        self.engine().faults.fired.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    fn apply(&mut self, operation: &Operation) {
        let paths: Vec<&Vec<u8>> = self.model.files.keys().collect();
        match operation {
            Operation::Lookup(index) => {
                let path = *index.get(&paths);
                let attributes = self.fs().attributes(self.walk(path).unwrap()).unwrap();
                assert_eq!(attributes.size, self.model.files[path].len() as u64);
                assert_eq!(attributes.kind, FileKind::File);
                assert_eq!(attributes.mode, 0o644);
            }
            Operation::LookupMissing(index) => {
                let directories: Vec<_> = self.model.directories.iter().collect();
                let directory: &&Vec<u8> = index.get(&directories);
                let ino = self.walk(directory).unwrap();
                assert!(self.fs().lookup(ino, b"missing").is_err());
            }
            Operation::List(index) => {
                let directories: Vec<_> = self.model.directories.iter().collect();
                let directory: &&Vec<u8> = index.get(&directories);
                self.list(directory);
            }
            Operation::Read { file, at, bytes } => {
                let path = *file.get(&paths);
                let offset = at.index(self.model.files[path].len() + 10);
                self.read(path, offset, *bytes);
            }
            Operation::ReadAll(index) => {
                let path = *index.get(&paths);
                for offset in (0..self.model.files[path].len()).step_by(128 * 1024) {
                    self.read(path, offset, 128 * 1024);
                }
            }
            // The error says that the cache is full: some layers cannot be evicted now.
            Operation::Squeeze => drop(self.engine().cache().make_room(CACHE_BYTES)),
            Operation::Evict => self.evict(),
            Operation::Restart => {
                self.file_system = None;
                self.engine = Some(self.engine.take().unwrap().restart());
                self.load();
            }
            Operation::Fault(requests) => self.engine().faults.break_off(*requests),
        }
    }

    fn list(&self, directory: &[u8]) {
        let ino = self.walk(directory).unwrap();
        let names = |offset| -> Vec<(Vec<u8>, u64)> {
            let entries = self.fs().entries(ino, offset).unwrap();
            entries.map(|entry| (entry.name.to_vec(), entry.next_offset)).collect()
        };
        let all = names(0);
        for (position, (_, next_offset)) in all.iter().enumerate() {
            assert_eq!(names(*next_offset), all[position + 1..], "offsets stay valid");
        }
        let mut listed: Vec<_> = all.into_iter().map(|(name, _)| name).collect();
        assert_eq!(listed[..2], [b".".to_vec(), b"..".to_vec()]);
        let children: Vec<_> = listed.drain(2..).filter(|name| name != b"Kitfile").collect();
        assert_eq!(children, self.model.children(directory).into_iter().collect::<Vec<_>>());
    }

    fn read(&self, path: &[u8], offset: usize, bytes: u32) {
        let content = &self.model.files[path];
        let expected = &content[offset.min(content.len())..];
        let expected = &expected[..expected.len().min(bytes as usize)];
        let got = loop {
            match self.engine().read(self.fs(), self.inodes[path], offset as u64, bytes) {
                Ok(got) => break got,
                Err(error) => assert!(self.is_explained(), "without a fault: {error}"),
            }
        };
        assert!(got == expected, "{bytes} bytes at {offset} of {path:?} are wrong");
    }

    fn evict(&mut self) {
        let keys: Vec<_> = self.fs().kit().layers.iter().map(|layer| layer.key()).collect();
        self.file_system = None;
        for key in keys {
            // A running transfer may still hold the layer. Then the layer stays.
            let _ = self.engine().cache().remove_layer(key);
        }
        self.load();
    }
}

proptest! {
    // A case takes some 300 ms in a debug build: the whole test a few seconds.
    #![proptest_config(ProptestConfig {
        cases: 24, max_shrink_iters: 200, failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn a_kit_is_what_a_map_says(
        plans in prop::collection::vec(layer_plan(), 1..4),
        operations in prop::collection::vec(operation(), 1..30),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (reference, model) = write_kit(&plans, &folder.path().join("kit"));
        let engine = Engine::new(&folder.path().join("cache"), Some(CACHE_BYTES));
        let mut world = World::new(engine, reference, model);
        for operation in &operations {
            world.apply(operation);
        }
    }
}

#[test]
fn a_golden_kit_has_its_kitfile_at_the_root() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::new(folder.path(), None);
    let kit = Arc::new(engine.load(&golden_reference("yaml")).unwrap());
    let owner = Owner { uid: 0, gid: 0 };
    let file_system = FileSystem::new(kit, owner, FsConfig::default());
    let ino = file_system.lookup(Ino::ROOT, b"Kitfile").unwrap().ino;
    let kitfile = engine.read(&file_system, ino, 0, u32::MAX).unwrap();
    assert_eq!(kitfile, std::fs::read(support::golden("yaml.Kitfile")).unwrap());
}

/// A read that broke off leaves the start of a chunk. The next read fetches the rest of the chunk.
#[test]
fn a_read_goes_on_where_one_broke_off() {
    let folder = tempfile::tempdir().unwrap();
    let content = Random::new(1).bytes(700_000);
    let kit = Kit::modelkit().with(Layer::raw("dataset", "file", 0o644, &content));
    let written = kit.write(&folder.path().join("kit"), "v1");
    let mut engine = Engine::new(&folder.path().join("cache"), None);
    // With more time the reader would not hear of it.
    let hasty = FsConfig { read_deadline: Some(Duration::from_millis(50)), ..FsConfig::default() };
    for is_restarted in [false, true] {
        let kit = Arc::new(engine.load(&written.reference).unwrap());
        let owner = Owner { uid: 0, gid: 0 };
        let file_system = FileSystem::new(kit, owner, hasty);
        let ino = file_system.lookup(Ino::ROOT, b"file").unwrap().ino;
        let offset = if is_restarted { 400_000 } else { 0 };
        engine.faults.break_off(1);
        assert!(engine.read(&file_system, ino, offset, 250_000).is_err());
        drop(file_system);
        if is_restarted {
            engine = engine.restart();
        }
        let kit = Arc::new(engine.load(&written.reference).unwrap());
        let file_system = FileSystem::new(kit, owner, FsConfig::default());
        let got = engine.read(&file_system, ino, offset, 250_000).unwrap();
        assert!(got == content[offset as usize..][..250_000]);
    }
}
