//! The digests of a loaded kit's files, as far as they are known without reading them.
//!
//! The lists of packers take memory, and few commands need them. So a loaded kit does not keep them: they
//! are read from the manifests, which the cache keeps.

use std::collections::HashMap;

use super::LoadedKit;
use crate::cache::Cache;
use crate::kit::FileDigests;
use crate::kit::compare::LayerFiles;
use crate::oci::{Digest, Manifest};

/// The facts about the files of each layer, and warnings about lists of digests that are ignored. Blocking.
///
/// Lists of remote data sets are not used: their paths are those in another kit.
pub fn layer_files(cache: &Cache, kit: &LoadedKit) -> (Vec<LayerFiles>, Vec<String>) {
    let mut warnings = Vec::new();
    let mut claims = claims(cache, kit, &mut warnings);
    let layers = kit.layers.iter().map(|layer| {
        let key = layer.key();
        let claims = claims.remove(&key.digest);
        LayerFiles { digest: key.digest, encoding: key.encoding, claims }
    });
    let mut layers: Vec<LayerFiles> = layers.collect();
    for (number, fault) in LayerFiles::check(&mut layers, &kit.tree) {
        let title = &kit.titles[number];
        warnings.push(format!(
            "the packer's list of digests contradicts the layer {title}, and is ignored: {fault}"
        ));
    }
    (layers, warnings)
}

fn claims(
    cache: &Cache,
    kit: &LoadedKit,
    warnings: &mut Vec<String>,
) -> HashMap<Digest, FileDigests> {
    let mut claims = HashMap::new();
    for digest in &kit.manifests {
        // Without the document the digests are unknown, which is no error.
        let Some(bytes) = cache.document(*digest) else { continue };
        let Ok(manifest) = Manifest::decode(&bytes) else { continue };
        for layer in &manifest.layers {
            match FileDigests::of(layer) {
                Ok(Some(files)) => _ = claims.insert(layer.digest, files),
                Ok(None) => {}
                Err(error) => {
                    let layer = layer.digest.short();
                    warnings.push(format!("the digests of files in {layer} are ignored: {error}"));
                }
            }
        }
    }
    claims
}
