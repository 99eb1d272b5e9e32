//! Manifests are decoded or refused, and their sizes can be added up.
#![no_main]

use kitfs::oci::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(manifest) = Manifest::decode(json) {
        let layers: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        assert!(layers + manifest.config.size <= i64::MAX as u64);
    }
});
