//! Tensor prefetch: the bytes fetched ahead of readers by the headers of model files.

mod engine;
mod support;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Engine;
use kitfs::fs::{FileSystem, FsConfig, Ino, Owner, StoredFile};
use serde_json::json;
use support::Random;
use support::kit_builder::{Kit, Layer};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The time limit for bytes in the background: far more than they need.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kit's folder and cache, an engine over them, and the kit as a file system.
struct World {
    engine: Engine,
    file_system: FileSystem,
    contents: Vec<(String, Vec<u8>)>,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(contents: &[(&str, &[u8])], tensor_prefetch: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut layer = Layer::tar("model", "model");
        for (name, content) in contents {
            layer = layer.file(format!("model/{name}"), 0o644, content);
        }
        let written = Kit::modelkit().with(layer).write(&folder.path().join("kit"), "v1");
        let engine = Engine::new(&folder.path().join("cache"), None);
        let kit = Arc::new(engine.load(&written.reference).unwrap());
        let config = FsConfig { tensor_prefetch, ..FsConfig::default() };
        let runtime = engine.runtime.enter();
        let file_system = FileSystem::new(kit, Owner { uid: 0, gid: 0 }, config);
        drop(runtime);
        let contents = contents.iter().map(|(name, content)| (name.to_string(), content.to_vec()));
        Self { engine, file_system, contents: contents.collect(), _folder: folder }
    }

    fn ino(&self, name: &str) -> Ino {
        let model = self.file_system.lookup(Ino::ROOT, b"model").unwrap().ino;
        self.file_system.lookup(model, name.as_bytes()).unwrap().ino
    }

    /// Reads a range, and compares it with the file's content.
    fn read(&self, name: &str, range: Range<u64>) {
        let bytes = (range.end - range.start) as u32;
        let ino = self.ino(name);
        let got = self.engine.read(&self.file_system, ino, range.start, bytes).unwrap();
        let content = &self.contents.iter().find(|(file, _)| file == name).unwrap().1;
        assert!(got == content[range.start as usize..range.end as usize], "{name} at {range:?}");
    }

    fn is_resident(&self, name: &str, range: Range<u64>) -> bool {
        let kit = self.file_system.kit();
        let node = kit.tree.resolve(format!("model/{name}").as_bytes()).unwrap();
        let file = StoredFile::of(kit, node).expect("a file of a layer");
        file.layer.is_resident(file.extents.stored_of(range))
    }

    fn wait_for(&self, name: &str, range: Range<u64>) {
        let start = Instant::now();
        while !self.is_resident(name, range.clone()) {
            assert!(start.elapsed() < PATIENCE, "{range:?} of {name} never came");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A file with tensors of these sizes, and the tensors' ranges.
fn safetensors(sizes: &[u64]) -> (Vec<u8>, Vec<Range<u64>>) {
    let (mut header, mut at) = (json!({"__metadata__": {"format": "pt"}}), 0);
    for (number, bytes) in sizes.iter().enumerate() {
        header[format!("t{number}")] =
            json!({"dtype": "U8", "shape": [bytes], "data_offsets": [at, at + bytes]});
        at += bytes;
    }
    let header = header.to_string().into_bytes();
    let start = [&(header.len() as u64).to_le_bytes(), header.as_slice()].concat();
    with_tensors(start, sizes)
}

fn gguf(sizes: &[u64]) -> (Vec<u8>, Vec<Range<u64>>) {
    let mut start = b"GGUF\x03\0\0\0".to_vec();
    start.extend((sizes.len() as u64).to_le_bytes());
    start.extend(1u64.to_le_bytes());
    // A vocabulary that is longer than the first fetch of a header.
    start.extend(6u64.to_le_bytes());
    start.extend(b"tokens\x09\0\0\0\x08\0\0\0");
    start.extend(50_000u64.to_le_bytes());
    for word in 0..50_000u64 {
        start.extend(16u64.to_le_bytes());
        start.extend(format!("word{word:012}").as_bytes());
    }
    let mut at = 0u64;
    for bytes in sizes {
        start.extend(1u64.to_le_bytes());
        start.extend(b"t\x01\0\0\0");
        start.extend(bytes.to_le_bytes());
        start.extend(24u32.to_le_bytes());
        start.extend(at.to_le_bytes());
        at += bytes;
    }
    start.resize(start.len().next_multiple_of(32), 0);
    with_tensors(start, sizes)
}

fn with_tensors(mut file: Vec<u8>, sizes: &[u64]) -> (Vec<u8>, Vec<Range<u64>>) {
    let mut at = file.len() as u64;
    let mut tensors = Vec::new();
    for bytes in sizes {
        tensors.push(at..at + bytes);
        at += bytes;
    }
    let rest = at as usize - file.len();
    file.extend(Random::new(rest as u64).bytes(rest));
    (file, tensors)
}

const SIZES: [u64; 4] = [3 * MIB, 5 * MIB, 4 * MIB, 6 * MIB];

/// A file's name and content, and its tensors' ranges.
type Model = (&'static str, Vec<u8>, Vec<Range<u64>>);

/// A model in each format.
fn models() -> [Model; 2] {
    let (of_safetensors, of_gguf) = (safetensors(&SIZES), gguf(&SIZES));
    [
        ("model.safetensors", of_safetensors.0, of_safetensors.1),
        ("model.gguf", of_gguf.0, of_gguf.1),
    ]
}

/// The middle of a tensor: a read there fetches no chunk that holds another tensor's bytes.
fn middle(tensor: &Range<u64>) -> Range<u64> {
    let middle = (tensor.start + tensor.end) / 2;
    middle..middle + 4 * KIB
}

/// The least that is fetched of a tensor after a read of its start, for any host: less than one
/// predictor's part of the ledger's least head start.
const AHEAD_BYTES: u64 = 512 * KIB;

/// Reads the first bytes of a tensor, and waits for the bytes after them.
fn begin(world: &World, name: &str, tensor: &Range<u64>) {
    world.read(name, tensor.start..tensor.start + KIB);
    world.wait_for(name, tensor.start..tensor.start + AHEAD_BYTES);
}

#[test]
fn reading_the_start_of_a_tensor_brings_more_of_it_and_nothing_of_the_others() {
    for (name, content, tensors) in models() {
        let world = World::new(&[(name, &content)], true);
        world.read(name, 0..tensors[0].start);
        for tensor in [&tensors[1], &tensors[3]] {
            begin(&world, name, tensor);
            // A longer run has a larger window.
            for at in (tensor.start + KIB..tensor.start + MIB).step_by(128 * KIB as usize) {
                world.read(name, at..at + 128 * KIB);
                world.wait_for(name, at..at + 256 * KIB);
            }
        }
        for other in [&tensors[0], &tensors[2]] {
            assert!(!world.is_resident(name, middle(other)), "{name}");
        }
    }
}

#[test]
fn a_lone_read_inside_a_tensor_brings_its_chunk_only() {
    for (name, content, tensors) in models() {
        let world = World::new(&[(name, &content)], true);
        world.read(name, 0..tensors[0].start);
        begin(&world, name, &tensors[0]);
        world.read(name, middle(&tensors[1]));
        world.read(name, middle(&tensors[2]));
        // Earlier requests would have arrived by now.
        begin(&world, name, &tensors[3]);
        for tensor in [&tensors[1], &tensors[2]] {
            let chunk_ahead = middle(tensor).start + 512 * KIB;
            assert!(!world.is_resident(name, chunk_ahead..chunk_ahead + 1), "{name}");
            assert!(!world.is_resident(name, tensor.end - MIB..tensor.end - 512 * KIB), "{name}");
        }
    }
}

#[test]
fn reading_a_header_brings_no_tensor() {
    for (name, content, tensors) in models() {
        let world = World::new(&[(name, &content)], true);
        world.read(name, 0..tensors[0].start + KIB);
        begin(&world, name, &tensors[3]);
        // A stream through the first megabyte may have a window of its own.
        assert!(!world.is_resident(name, middle(&tensors[1])), "{name}");
    }
}

#[test]
fn without_tensor_prefetch_headers_are_not_looked_at() {
    for (name, content, tensors) in models() {
        let world = World::new(&[(name, &content)], false);
        world.read(name, tensors[1].start..tensors[1].start + KIB);
        world.read(name, middle(&tensors[3]));
        world.read(name, middle(&tensors[2]));
        assert!(!world.is_resident(name, middle(&tensors[1])), "{name}");
        assert!(!world.is_resident(name, 0..1), "{name}");
    }
}

#[test]
fn a_header_that_is_damaged_changes_no_read() {
    let (good, tensors) = safetensors(&SIZES);
    let mut cut = good.clone();
    cut[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut noise = good.clone();
    noise[8..40].copy_from_slice(&Random::new(3).bytes(32));
    for content in [cut, noise, vec![], vec![1; 5]] {
        let other = "other.safetensors";
        let name = "model.safetensors";
        let world = World::new(&[(name, &content), (other, &good)], true);
        for at in (0..content.len() as u64).step_by(MIB as usize + 7) {
            world.read(name, at..(at + 4 * KIB).min(content.len() as u64));
        }
        // The header of the next file is parsed all the same.
        begin(&world, other, &tensors[1]);
    }
}

#[test]
fn the_next_shard_begins_to_come_when_most_of_one_was_read() {
    let [one, two, three] = [1, 2, 3].map(|n| format!("model-0000{n}-of-00003.safetensors"));
    let content = safetensors(&SIZES).0;
    let weight_map = json!({"a": one, "b": two, "c": three, "d": one});
    let index = json!({"metadata": {}, "weight_map": weight_map}).to_string();
    let world = World::new(
        &[
            (&one, &content),
            (&two, &content),
            (&three, &content),
            ("model.safetensors.index.json", index.as_bytes()),
        ],
        true,
    );
    let end = content.len() as u64;
    for at in (0..end).step_by(128 * KIB as usize) {
        world.read(&one, at..(at + 128 * KIB).min(end));
    }
    world.wait_for(&two, 0..AHEAD_BYTES);
    assert!(!world.is_resident(&three, 0..1));
}
