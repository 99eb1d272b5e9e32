//! From an origin to a kit's manifest and config, asking the network as little as possible.
//!
//! ```text
//! digest --in the cache?--> document                       (a digest never changes: no request)
//! tag    --registry-------> document, remembered in the cache
//!            '--unreachable--> what the tag was last resolved to, if that is in the cache
//!
//! document = manifest --> config --> Kit
//!          = index    --labels--> one of its entries, the same again
//! ```
//!
//! Only an unreachable registry leads to the remembered digest. A registry that answers "no such
//! tag" or "not authorised" has answered. What was chosen by labels is remembered with them, so
//! that a mount comes back without the network.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::LoadRequest;
use super::error::{For, LoadError};
use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::kit::Kit;
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::oci::{ChoiceError, Digest, Document, Index, LabelSelector, Manifest, Origin, Selector};
use crate::source::{Repositories, Repository, SourceError, read_blob};

/// The largest config that is read: a larger one would be refused when it is decoded.
const CONFIG_LIMIT_BYTES: u64 = KITFILE_LIMIT_BYTES as u64;

/// How long a registry may take to say what a tag stands for, where the cache knows what it stood for.
///
/// 40 s: the time in which a reader's request is answered by a registry that is only slow. A longer
/// wait would hold up the start of a job that has all it needs.
const KNOWN_PATIENCE: Duration = Duration::from_secs(40);

/// The most indexes inside one another. BuildKit and `docker save` nest two; more is a mistake or
/// an attack, since each costs a request.
const MOST_NESTED_INDEXES: usize = 4;

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
    /// Set when the registry did not answer, and what was known before was taken.
    pub warning: Option<String>,
}

/// An index of kits, as it is.
#[derive(Clone, Debug)]
pub struct IndexDescription {
    /// The digest of the index.
    pub digest: Digest,
    /// The index.
    pub index: Index,
    /// Set when the registry did not answer, and what was known before was taken.
    pub warning: Option<String>,
}

/// What lies at an origin.
#[derive(Clone, Debug)]
pub enum Described {
    /// A kit.
    Kit(Box<Description>),
    /// An index to choose a kit from.
    Index(IndexDescription),
}

/// A kit whose layers can be opened.
pub(super) struct Resolved {
    pub(super) description: Description,
    pub(super) repository: Arc<dyn Repository>,
}

/// Which kit is meant, and what it is to the kit that a user asked for, for messages.
#[derive(Clone, Copy)]
pub(super) struct Kin<'a> {
    pub(super) origin: &'a Origin,
    /// What chooses it from an index.
    pub(super) labels: &'a LabelSelector,
    /// What it is to the requested kit.
    pub(super) relation: Relation<'a>,
}

/// What a kit is to the one that a user asked for.
#[derive(Clone, Copy)]
pub(super) enum Relation<'a> {
    /// It is that kit.
    Own,
    /// A parent of it, or a parent's parent.
    ParentOf(&'a Origin),
    /// A kit that one of its data sets names.
    DataOf(&'a Origin),
}

impl fmt::Display for Kin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.relation {
            Relation::Own => self.origin.fmt(f),
            Relation::ParentOf(child) => write!(f, "{} (a parent of {child})", self.origin),
            Relation::DataOf(kit) => write!(f, "{} (data of {kit})", self.origin),
        }
    }
}

impl<'a> Kin<'a> {
    /// The kit that a user asked for.
    pub(super) fn of_request(request: &'a LoadRequest) -> Self {
        Self { origin: &request.origin, labels: &request.labels, relation: Relation::Own }
    }

    /// The name under which the cache remembers what an origin was resolved to.
    fn remembered_as(&self) -> String {
        match self.labels.is_empty() {
            true => self.origin.to_string(),
            false => format!("{} --label {}", self.origin, self.labels),
        }
    }
}

/// Resolves and decodes a kit without a look into its layers. From an index, `labels` choose.
///
/// # Errors
/// When the source fails, what it gives is not a kit, or the labels choose no single kit.
pub async fn describe(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
    labels: &LabelSelector,
) -> Result<Description, LoadError> {
    let kin = Kin { origin, labels, relation: Relation::Own };
    Ok(resolve(fetcher.cache(), repositories, &kin).await?.description)
}

/// Says what lies at an origin: an index as it is where nothing chooses from it, else a kit.
///
/// # Errors
/// As for [`describe`].
pub async fn look(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
    labels: &LabelSelector,
) -> Result<Described, LoadError> {
    let kin = Kin { origin, labels, relation: Relation::Own };
    let cache = fetcher.cache();
    let repository = repositories.open(kin.origin).of(&kin)?;
    let found = find(cache, &*repository, &kin).await?;
    if labels.is_empty()
        && let Document::Index(index) = &found.document
        && (index.is_of_modelkits() || index.candidates().len() != 1)
    {
        let Found { digest, warning, .. } = found;
        return Ok(Described::Index(IndexDescription { digest, index: index.clone(), warning }));
    }
    let description = understand(cache, &*repository, &kin, found).await?;
    Ok(Described::Kit(Box::new(description)))
}

/// Resolves and decodes a kit.
pub(super) async fn resolve(
    cache: &Arc<Cache>,
    repositories: &dyn Repositories,
    kin: &Kin<'_>,
) -> Result<Resolved, LoadError> {
    let repository = repositories.open(kin.origin).of(kin)?;
    let found = find(cache, &*repository, kin).await?;
    let description = understand(cache, &*repository, kin, found).await?;
    Ok(Resolved { description, repository })
}

/// A document that lies at an origin.
struct Found {
    digest: Digest,
    document: Document,
    warning: Option<String>,
    /// Whether the labels have led to it already.
    is_chosen: bool,
}

/// Follows indexes to a manifest, and decodes the kit.
async fn understand(
    cache: &Arc<Cache>,
    repository: &dyn Repository,
    kin: &Kin<'_>,
    found: Found,
) -> Result<Description, LoadError> {
    let Found { mut digest, mut document, warning, mut is_chosen } = found;
    let mut nested = 0;
    let manifest = loop {
        let index = match document {
            Document::Manifest(manifest) => break *manifest,
            Document::Index(index) => index,
        };
        nested += 1;
        if nested > MOST_NESTED_INDEXES {
            return Err(ChoiceError::TooDeep(MOST_NESTED_INDEXES)).of(kin);
        }
        let none = LabelSelector::default();
        let labels = if is_chosen { &none } else { kin.labels };
        is_chosen |= index.is_of_modelkits();
        digest = index.choose(labels).of(kin)?.descriptor.digest;
        document = document_of(cache, repository, kin, digest).await?;
    };
    if !kin.labels.is_empty() {
        if !is_chosen {
            return Err(ChoiceError::NotAnIndex).of(kin);
        }
        cache.remember(&kin.remembered_as(), digest).of(kin)?;
    }
    let config = config(cache, repository, &manifest, kin).await?;
    let kit = Kit::decode(&manifest, &config).of(kin)?;
    Ok(Description { origin: kin.origin.clone(), digest, manifest, kit, warning })
}

/// The document that the origin names.
async fn find(
    cache: &Arc<Cache>,
    repository: &dyn Repository,
    kin: &Kin<'_>,
) -> Result<Found, LoadError> {
    let selector = kin.origin.selector();
    if let Some(&Selector::Digest(digest)) = selector {
        let document = document_of(cache, repository, kin, digest).await?;
        return Ok(Found { digest, document, warning: None, is_chosen: false });
    }
    let is_known = matches!(remembered(cache, kin), Ok(Some(_)));
    match ask(repository, selector, is_known).await {
        Ok((digest, bytes)) => {
            let document = Document::decode(&bytes).of(kin)?;
            cache.put_document(digest, &bytes).of(kin)?;
            cache.remember(&kin.origin.to_string(), digest).of(kin)?;
            Ok(Found { digest, document, warning: None, is_chosen: false })
        }
        Err(error) if error.is_retryable() => match remembered(cache, kin)? {
            Some(found) => Ok(Found { warning: Some(stale(kin, found.digest, &error)), ..found }),
            None => Err(error).of(kin),
        },
        Err(error) => Err(error).of(kin),
    }
}

/// Asks what a tag stands for. A registry that is connected and silent is waited for as long as the
/// source does, or for less where the cache knows what the tag stood for.
async fn ask(
    repository: &dyn Repository,
    selector: Option<&Selector>,
    is_known: bool,
) -> Result<(Digest, Bytes), SourceError> {
    let answer = repository.manifest(selector);
    if !is_known {
        return answer.await;
    }
    tokio::time::timeout(KNOWN_PATIENCE, answer).await.unwrap_or_else(|_| {
        let detail = format!("no answer came within {} s", KNOWN_PATIENCE.as_secs());
        Err(SourceError::Unavailable { place: repository.name(), detail })
    })
}

/// What the origin was last resolved to, as far as it is in the cache: with these labels, or else
/// without any, so that an index which is known can still be chosen from.
fn remembered(cache: &Arc<Cache>, kin: &Kin<'_>) -> Result<Option<Found>, LoadError> {
    for (name, is_chosen) in
        [(kin.remembered_as(), !kin.labels.is_empty()), (kin.origin.to_string(), false)]
    {
        let Some(digest) = cache.recall(&name) else { continue };
        let Some(bytes) = cache.document(digest) else { continue };
        let document = Document::decode(&bytes).of(kin)?;
        return Ok(Some(Found { digest, document, warning: None, is_chosen }));
    }
    Ok(None)
}

fn stale(kin: &Kin<'_>, digest: Digest, error: &SourceError) -> String {
    format!("{kin} is read as it was last resolved, to {digest}, because {error}")
}

/// A document that is known by its digest, from the cache where it is there.
async fn document_of(
    cache: &Arc<Cache>,
    repository: &dyn Repository,
    kin: &Kin<'_>,
    digest: Digest,
) -> Result<Document, LoadError> {
    let bytes = match cache.document(digest) {
        Some(bytes) => bytes,
        None => {
            let (_, bytes) = repository.manifest(Some(&Selector::Digest(digest))).await.of(kin)?;
            cache.put_document(digest, &bytes).of(kin)?;
            bytes
        }
    };
    Document::decode(&bytes).of(kin)
}

async fn config(
    cache: &Arc<Cache>,
    repository: &dyn Repository,
    manifest: &Manifest,
    kin: &Kin<'_>,
) -> Result<Bytes, LoadError> {
    let blob = manifest.config.blob();
    if let Some(bytes) = manifest.config.content().or_else(|| cache.document(blob.digest)) {
        return Ok(bytes);
    }
    let place = repository.name();
    let source: &dyn Repository = repository;
    let bytes = read_blob(source, blob, CONFIG_LIMIT_BYTES, "the config", &place).await.of(kin)?;
    cache.put_document(blob.digest, &bytes).of(kin)?;
    Ok(bytes)
}
