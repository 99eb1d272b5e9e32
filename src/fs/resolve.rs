//! From an origin to a kit's manifest and config, asking the network as little as possible.
//!
//! ```text
//! digest --in the cache?--> manifest                        (a digest never changes: no question)
//! tag    --registry------> manifest, remembered in the cache
//!            '--unreachable--> what the tag was last resolved to, if that is in the cache
//! ```
//!
//! Only an unreachable registry leads to the remembered digest: one that says "no such tag" or
//! "not authorised" has answered.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::load_error::{For, LoadError};
use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::kit::Kit;
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::oci::{Digest, Manifest, Origin, Selector};
use crate::source::{Repositories, Repository, SourceError, read_blob};

/// The largest config that is read: what is larger would be refused once it is there.
const CONFIG_LIMIT_BYTES: u64 = KITFILE_LIMIT_BYTES as u64;

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

/// A kit whose layers can be opened.
pub(super) struct Resolved {
    pub(super) description: Description,
    pub(super) repository: Arc<dyn Repository>,
    /// Set when the registry was not asked because it could not be reached.
    pub(super) warning: Option<String>,
}

/// Which kit of a chain is meant, as messages name it.
pub(super) struct Kin<'a> {
    pub(super) origin: &'a Origin,
    pub(super) child: Option<&'a Origin>,
}

impl fmt::Display for Kin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.child {
            None => self.origin.fmt(f),
            Some(child) => write!(f, "{} (a parent of {child})", self.origin),
        }
    }
}

/// Resolves and decodes a kit without a look into its layers.
///
/// # Errors
/// When the source fails, or what it gives is not a kit.
pub async fn describe(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
) -> Result<Description, LoadError> {
    let kin = Kin { origin, child: None };
    Ok(resolve(fetcher.cache(), repositories, &kin).await?.description)
}

/// Resolves and decodes a kit.
pub(super) async fn resolve(
    cache: &Arc<Cache>,
    repositories: &dyn Repositories,
    kin: &Kin<'_>,
) -> Result<Resolved, LoadError> {
    let repository = repositories.open(kin.origin).of(kin)?;
    let found = find_manifest(cache, &*repository, kin).await?;
    let manifest = Manifest::decode(&found.bytes).of(kin)?;
    let config = config(cache, &*repository, &manifest, kin).await?;
    let kit = Kit::decode(&manifest, &config).of(kin)?;
    let origin = kin.origin.clone();
    let description = Description { origin, digest: found.digest, manifest, kit };
    Ok(Resolved { description, repository, warning: found.warning })
}

struct Found {
    digest: Digest,
    bytes: Bytes,
    warning: Option<String>,
}

async fn find_manifest(
    cache: &Arc<Cache>,
    repository: &dyn Repository,
    kin: &Kin<'_>,
) -> Result<Found, LoadError> {
    let selector = kin.origin.selector();
    if let Some(&Selector::Digest(digest)) = selector
        && let Some(bytes) = cache.document(digest)
    {
        return Ok(Found { digest, bytes, warning: None });
    }
    match repository.manifest(selector).await {
        Ok((digest, bytes)) => {
            cache.put_document(digest, &bytes).of(kin)?;
            cache.remember(&kin.origin.to_string(), digest).of(kin)?;
            Ok(Found { digest, bytes, warning: None })
        }
        Err(error) if error.is_retryable() => match remembered(cache, kin.origin) {
            Some((digest, bytes)) => {
                let warning = Some(stale(kin, digest, &error));
                Ok(Found { digest, bytes, warning })
            }
            None => Err(error).of(kin),
        },
        Err(error) => Err(error).of(kin),
    }
}

fn remembered(cache: &Arc<Cache>, origin: &Origin) -> Option<(Digest, Bytes)> {
    let digest = cache.recall(&origin.to_string())?;
    Some((digest, cache.document(digest)?))
}

fn stale(kin: &Kin<'_>, digest: Digest, error: &SourceError) -> String {
    format!("{kin} is read as it was last resolved, to {digest}, because {error}")
}

async fn config(
    cache: &Arc<Cache>,
    repository: &dyn Repository,
    manifest: &Manifest,
    kin: &Kin<'_>,
) -> Result<Bytes, LoadError> {
    let blob = manifest.config.blob();
    if let Some(bytes) = cache.document(blob.digest) {
        return Ok(bytes);
    }
    let place = repository.name();
    let source: &dyn Repository = repository;
    let bytes = read_blob(source, blob, CONFIG_LIMIT_BYTES, "the config", &place).await.of(kin)?;
    cache.put_document(blob.digest, &bytes).of(kin)?;
    Ok(bytes)
}
