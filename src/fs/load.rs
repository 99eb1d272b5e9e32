//! From a reference to a kit that can be read: resolve, fetch the config, open the layers, merge.
//!
//! ```text
//! origin --manifest--> digest (pinned) --config--> Kitfile + layers --filter--> layers to open
//!    '<-- model.path is a reference: the same again for the parent, its model layers only --'
//! layers --open in parallel--> tables of contents --merge--> Tree
//! ```
//!
//! Manifests and configs are kept in the cache by digest, and a tag's digest is remembered: a kit
//! that was mounted once can be mounted again without the network.
#![allow(unused_variables, dead_code)]

use std::sync::Arc;

use crate::fetch::{FetchError, Fetcher, Layer};
use crate::kit::{Filters, Kit, KitError, ParentsError, Tree, TreeError};
use crate::oci::{Digest, Manifest, ManifestError, Origin};
use crate::source::{Repositories, SourceError};

/// Which kit, and what of it.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// Where it is read from.
    pub origin: Origin,
    /// Which layers.
    pub filters: Filters,
    /// Permission bits that files and directories do not get.
    pub umask: u32,
}

/// A kit that can be read.
pub struct LoadedKit {
    /// Where it was read from.
    pub origin: Origin,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Manifest and config, understood.
    pub kit: Kit,
    /// Its files and directories.
    pub tree: Tree,
    /// The open layers, as [`crate::kit::Content::Extent`] counts them; parents' layers too.
    pub layers: Vec<Arc<Layer>>,
    /// The media type of each layer.
    pub media_types: Vec<String>,
    /// What was passed over, in the kit, its parents and its layers.
    pub warnings: Vec<String>,
}

/// A kit's manifest and config, without a look into its layers.
#[derive(Clone, Debug)]
pub struct Description {
    /// Where it was read from.
    pub origin: Origin,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// Manifest and config, understood.
    pub kit: Kit,
}

/// Why a kit cannot be loaded. Messages name the reference.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source failed.
    #[error("{reference}: {error}")]
    Source { reference: String, error: SourceError },
    /// A layer failed.
    #[error("{reference}: {error}")]
    Fetch { reference: String, error: FetchError },
    /// The manifest is not one of a kit.
    #[error("{reference}: {error}")]
    Manifest { reference: String, error: ManifestError },
    /// The kit is malformed, or not a kit.
    #[error("{reference}: {error}")]
    Kit { reference: String, error: KitError },
    /// The parents make no chain.
    #[error("{reference}: {error}")]
    Parents { reference: String, error: ParentsError },
    /// The layers make no tree.
    #[error("{reference}: {error}")]
    Tree { reference: String, error: TreeError },
    /// The cache cannot keep a manifest.
    #[error("{reference}: {error}")]
    Cache { reference: String, error: crate::cache::CacheError },
}

/// Loads a kit; afterwards its tree can be listed. `progress` hears of compressed bytes passed
/// and their total, while compressed layers take their pass.
pub async fn load(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    request: &LoadRequest,
    progress: &(dyn Fn(u64, u64) + Send + Sync),
) -> Result<LoadedKit, LoadError> {
    todo!()
}

/// Resolves and decodes a kit without a look into its layers.
pub async fn describe(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
) -> Result<Description, LoadError> {
    todo!()
}
