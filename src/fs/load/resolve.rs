//! From an origin to a kit's manifest and config, with as few requests as possible.
//!
//! ```text
//! origin --documents--> manifest --> config --> Kit
//!                       index    --labels--> one of its entries, the same again
//! ```
//!
//! A choice is remembered together with its labels, so that the mount can be made again without the network.

use std::fmt;
use std::sync::Arc;

use super::LoadRequest;
use super::documents::{Documents, Found, LayerSources};
use super::error::{For, LoadError};
use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::kit::Kit;
use crate::oci::{ChoiceError, Digest, Document, Index, LabelSelector, Manifest, Origin};
use crate::source::Repositories;

/// The most indexes inside one another. BuildKit and `docker save` nest two; more is a mistake or
/// an attack, since each costs a request.
const MOST_NESTED_INDEXES: usize = 4;

/// A kit's manifest and config, without a look into its layers.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its origin.
    pub origin: Origin,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// Manifest and config, understood.
    pub kit: Kit,
    /// Set when the registry did not answer, so that an earlier resolution was used.
    pub warning: Option<String>,
}

/// An index of kits, as it is.
#[derive(Clone, Debug)]
pub struct IndexDescription {
    /// The digest of the index.
    pub digest: Digest,
    /// The index.
    pub index: Index,
    /// Set when the registry did not answer, so that an earlier resolution was used.
    pub warning: Option<String>,
}

/// The document of an origin.
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
    pub(super) sources: LayerSources,
}

/// A kit to resolve, and its relation to the requested kit, for messages.
#[derive(Clone, Copy)]
pub(super) struct Kin<'a> {
    pub(super) origin: &'a Origin,
    /// The labels that choose it from an index.
    pub(super) labels: &'a LabelSelector,
    /// Its relation to the requested kit.
    pub(super) relation: Relation<'a>,
}

/// The relation of a kit to the requested kit.
#[derive(Clone, Copy)]
pub(super) enum Relation<'a> {
    /// The requested kit itself.
    Own,
    /// A parent of the requested kit, or a parent's parent.
    ParentOf(&'a Origin),
    /// A kit that a data set of the requested kit names.
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
    /// The requested kit.
    pub(super) fn of_request(request: &'a LoadRequest) -> Self {
        Self { origin: &request.origin, labels: &request.labels, relation: Relation::Own }
    }

    /// The name under which the cache remembers what an origin was resolved to.
    pub(super) fn remembered_as(&self) -> String {
        match self.labels.is_empty() {
            true => self.origin.to_string(),
            false => format!("{} --label {}", self.origin, self.labels),
        }
    }
}

/// Resolves and decodes a kit without a look into its layers. From an index, `labels` choose.
///
/// # Errors
/// Fails if the source fails, what it gives is not a kit, or the labels choose no single kit.
pub async fn describe(
    fetcher: &Arc<Fetcher>,
    repositories: &dyn Repositories,
    origin: &Origin,
    labels: &LabelSelector,
) -> Result<Description, LoadError> {
    let kin = Kin { origin, labels, relation: Relation::Own };
    Ok(resolve(fetcher.cache(), repositories, &kin).await?.description)
}

/// Finds the document of an origin: an index where no label chooses from it, else a kit.
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
    let documents = Documents::open(cache, repositories, &kin)?;
    let found = documents.find().await?;
    if labels.is_empty()
        && let Document::Index(index) = &found.document
        && (index.is_of_modelkits() || index.candidates().len() != 1)
    {
        let Found { digest, warning, .. } = found;
        return Ok(Described::Index(IndexDescription { digest, index: index.clone(), warning }));
    }
    let description = understand(&documents, &kin, found).await?;
    Ok(Described::Kit(Box::new(description)))
}

/// Resolves and decodes a kit.
pub(super) async fn resolve(
    cache: &Arc<Cache>,
    repositories: &dyn Repositories,
    kin: &Kin<'_>,
) -> Result<Resolved, LoadError> {
    let documents = Documents::open(cache, repositories, kin)?;
    let found = documents.find().await?;
    let description = understand(&documents, kin, found).await?;
    let sources = documents.layer_sources(&description.kit).await;
    Ok(Resolved { description, sources })
}

/// Follows indexes to a manifest, and decodes the kit.
async fn understand(
    documents: &Documents<'_>,
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
        let chosen = &index.choose(labels).of(kin)?.descriptor;
        digest = chosen.digest;
        document = match &chosen.data {
            Some(carried) => documents.keep(digest, carried).await?,
            None => documents.by_digest(digest).await?,
        };
    };
    if !kin.labels.is_empty() {
        if !is_chosen {
            return Err(ChoiceError::NotAnIndex).of(kin);
        }
        documents.remember(kin.remembered_as(), digest).await?;
    }
    let config = documents.config(&manifest).await?;
    let kit = Kit::decode(&manifest, &config).of(kin)?;
    Ok(Description { origin: kin.origin.clone(), digest, manifest, kit, warning })
}
