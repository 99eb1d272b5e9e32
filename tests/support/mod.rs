//! The tools of the integration tests: kits to mount, registries to mount them from, the `kitfs`
//! binary and its daemon, and trees to compare.
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod hostile;
pub mod http_client;
pub mod kit_builder;
pub mod kit_index;
pub mod kit_server;
pub mod kit_storage;
pub mod kitfs;
pub mod registry_double;
pub mod registry_process;
pub mod s3_double;
pub mod tar_stream;
pub mod tree;

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the golden kit `name`, an OCI layout with the tag `v1`.
pub fn golden(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    assert!(folder.exists(), "there is no golden kit {name}");
    folder
}

/// The reference of the golden kit `name` in its OCI layout.
pub fn golden_reference(name: &str) -> String {
    format!("oci:{}:v1", golden(name).display())
}

/// Writes a mapping of the registry `host` to the plain http `address` into `folder`, a folder for
/// `--registries-dir`.
pub fn map_registry(folder: &Path, host: &str, address: &str) {
    let folder = folder.join(host);
    fs::create_dir_all(&folder).expect("the mapping can be written");
    let hosts = format!("[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    fs::write(folder.join("hosts.toml"), hosts).expect("the mapping can be written");
}

/// Pseudo-random numbers that are the same on every run (splitmix64).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers depend on `seed` only.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for eight in bytes.chunks_mut(8) {
            eight.copy_from_slice(&self.next().to_le_bytes()[..eight.len()]);
        }
        bytes
    }
}
