//! A registry that counts the bytes it sends, and a kitfs that mounts from it.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::Random;
use crate::support::kit_builder::{Kit, Layer, Written};
use crate::support::kitfs::Kitfs;
use crate::support::registry_double::{Options, RegistryDouble};

/// A kit in a registry that counts bytes, and a kitfs to mount the kit.
pub struct Counted {
    pub kitfs: Kitfs,
    pub registry: RegistryDouble,
    pub written: Written,
    pub reference: String,
    _runtime: Runtime,
    _layout: TempDir,
}

impl Counted {
    pub fn new(kit: &Kit) -> Self {
        Self::with(kit, Kitfs::new())
    }

    /// As [`Counted::new`], mounted by this kitfs.
    pub fn with(kit: &Kit, kitfs: Kitfs) -> Self {
        let layout = TempDir::new().unwrap();
        let written = kit.write(layout.path(), "v1");
        let runtime = Runtime::new().unwrap();
        let registry = runtime.block_on(RegistryDouble::start(Options::default()));
        registry.push_layout("org/kit", layout.path());
        let reference = registry.reference("org/kit", "v1");
        Self { kitfs, registry, written, reference, _runtime: runtime, _layout: layout }
    }

    pub fn mount(&self) -> PathBuf {
        self.kitfs.mount(&self.reference, &[])
    }

    /// Bytes of blobs that the registry has sent.
    pub fn fetched(&self) -> u64 {
        self.registry.bytes_served()
    }

    /// The bytes of all layers together.
    pub fn everything(&self) -> u64 {
        let config = fs::metadata(self.written.blob(&self.written.config)).unwrap().len();
        self.written.layer_bytes() + config
    }
}

/// Three weight files of 16 MiB in layers of their own, as `kit import` cuts them.
pub fn big_files() -> Kit {
    let mut random = Random::new(7);
    let mut kit = Kit::modelkit();
    for (index, role) in ["model", "modelpart", "modelpart"].into_iter().enumerate() {
        let path = format!("weights/shard-{index}");
        let content = random.bytes(16 << 20);
        let layer = Layer::tar(role, &path).directory("weights", 0o755);
        kit = kit.with(layer.file(&path, 0o644, &content));
    }
    kit
}

/// The content of the file in the layer `index`, taken from the blob.
pub fn expected_content(counted: &Counted, index: usize) -> Vec<u8> {
    let blob = fs::read(counted.written.blob(&counted.written.layers[index].0)).unwrap();
    // The headers of the directory and of the file come first.
    blob[1024..1024 + (16 << 20)].to_vec()
}
