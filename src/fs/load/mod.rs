//! From a reference to a kit that can be read: resolve, fetch the config, open the layers, merge.
//!
//! ```text
//! origin --resolve--> manifest digest (pinned), Kitfile --gather--> kits and objects to take from
//!        --wanted--> layers --opening (in parallel)--> tables of contents --merge--> Tree
//! ```
//!
//! - [`resolve`]: from an origin to a manifest and config, through indexes. `documents`: the order of their
//!   sources. `pulled`: kits that kit itself has pulled.
//! - `gather`: parents, and the kits and objects that data sets name. `objects`: S3 objects as layers.
//! - `wanted`, `opening`: which layers, and their tables of contents. `unmatched`: filters that take none.
//! - `kitfiles`: files `Kitfile` in layers. `merging`: dates, and the tree.
//!
//! The cache keeps manifests and configs by digest, and remembers the digest of a tag. So a kit that was mounted
//! once can be mounted again without the network.
//!
//! Layers are merged in the order in which `kit unpack` writes them: the oldest parent first, then remote data,
//! then the kit. The layers of a kit have the order of its manifest (modelkit-spec 4).

mod documents;
mod error;
mod gather;
mod kitfiles;
mod merging;
mod objects;
mod opening;
mod pulled;
mod resolve;
mod unmatched;
mod waiting;
mod wanted;

use std::sync::Arc;

use parking_lot::Mutex;

use super::kit::LoadedKit;
use crate::cache::LayerKey;
use crate::fetch::{Fetcher, Opener};
use crate::kit::{Additions, Filters};
use crate::oci::{LabelSelector, Origin};
use crate::source::Repositories;
use crate::source::admission::UserId;

use error::For;
use gather::Site;
use merging::Merging;
use opening::{Progress, open_layers};
use resolve::Kin;
use unmatched::{offered, unmatched};
use waiting::with_cache;
use wanted::Wanted;

pub use error::LoadError;
pub use pulled::doubt_about;
pub use resolve::{Described, Description, IndexDescription, describe, look};

/// The most warnings that are kept; a tar of a million devices is one problem, not a million.
const MOST_WARNINGS: usize = 100;

/// The most entries of a kit in the error for a filter that takes no layer.
const MOST_OFFERED: usize = 20;

/// The kit to load, and the parts to take.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// Its origin.
    pub origin: Origin,
    /// Which kit, where the origin is an index.
    pub labels: LabelSelector,
    /// Which layers.
    pub filters: Filters,
    /// Whether a filter may take nothing.
    pub allow_empty: bool,
    /// Whether data sets that lie in other kits and in S3 stores are taken.
    pub remote: bool,
    /// Permission bits that files and directories do not get.
    pub umask: u32,
    /// The user for whom the kit is loaded and read.
    pub user: UserId,
    /// Whether other users reach the same hosts by the same names; see [`Opener`].
    pub is_vouched: bool,
}

impl LoadRequest {
    /// All of the kit at `origin`, for user 0, with the modes of its layers.
    pub fn all_of(origin: Origin) -> Self {
        let (labels, filters) = <(LabelSelector, Filters)>::default();
        Self {
            origin,
            labels,
            filters,
            allow_empty: false,
            remote: true,
            umask: 0,
            user: UserId::default(),
            is_vouched: true,
        }
    }
}

/// Loads a kit, so that its tree can be listed. `progress` is called with the bytes of unknown layers that were
/// passed, and their total. Missing remote data becomes a warning and a node that fails to open.
///
/// # Errors
/// Fails if the kit or a parent cannot be resolved or is malformed, or if the layers make no tree. Fails if one of
/// their layers cannot be opened, and names the first such layer.
pub async fn load(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    request: &LoadRequest,
    progress: Progress<'_>,
) -> Result<LoadedKit, LoadError> {
    let kin = Kin::of_request(request);
    let (description, mut gathered) =
        gather::gather(Site { fetcher, repositories, request }).await?;
    let wanted = wanted::layers(&mut gathered);
    let idle = unmatched(&request.filters, request.filters.len(), &gathered);
    if !idle.is_empty() {
        let idle = request.filters.shown(&idle);
        let offered = offered(&description.kit, MOST_OFFERED);
        if !request.allow_empty {
            return Err(LoadError::TakesNothing { reference: kin.to_string(), idle, offered });
        }
        gathered.warnings.push(format!("{idle} takes nothing; the kit has {offered}"));
    }
    let manifests = gathered.manifests();
    let opener = Opener { user: request.user, is_vouched: request.is_vouched };
    let opened = open_layers(fetcher, wanted, &mut gathered, opener, progress).await?;

    let kit = description.kit;
    let kitfile = kit.kitfile_yaml.clone().filter(|_| request.filters.takes_kitfile());
    if let Some(kitfile) = &kitfile {
        kitfiles::check_others(kitfile, &opened).await?;
    }
    let merging = Merging {
        cache: fetcher.cache().clone(),
        layers: opened.merged(),
        kit: gathered.layer_keys().chain(opened.wanted.iter().map(Wanted::key)).collect(),
        manifest: description.digest,
        created: kit.created,
        additions: Additions {
            kitfile,
            directories: gathered.directories,
            missing: gathered.missing,
        },
        umask: request.umask,
    };
    let tree = tokio::task::spawn_blocking(move || merging.run());
    let tree = tree.await.expect("merging a tree does not panic").of(&kin)?;

    let keys: Vec<LayerKey> = opened.layers.iter().map(|layer| layer.key()).collect();
    let (origin, manifest) = (request.origin.clone(), description.digest);
    let name = origin.to_string();
    let recorded =
        with_cache(fetcher.cache(), move |cache| cache.record_kit(&name, manifest, &keys));
    recorded.await.of(&kin)?;
    let mut warnings = gathered.warnings;
    warnings.extend(opened.warnings());
    let warnings = bounded(warnings);
    let (layers, media_types, titles) = (opened.layers, opened.media_types, opened.titles);
    let doubt = Mutex::new(description.warning.clone());
    Ok(LoadedKit {
        origin,
        manifest,
        manifests,
        kit,
        tree,
        layers,
        media_types,
        titles,
        warnings,
        doubt,
    })
}

fn bounded(mut warnings: Vec<String>) -> Vec<String> {
    if warnings.len() > MOST_WARNINGS {
        let more = warnings.len() - MOST_WARNINGS;
        warnings.truncate(MOST_WARNINGS);
        warnings.push(format!("and {more} more"));
    }
    warnings
}

#[cfg(test)]
mod tests;
