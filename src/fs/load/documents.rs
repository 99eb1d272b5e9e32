//! The sources of a kit's manifests, indexes and configs, in the order in which they are asked.
//!
//! ```text
//! by digest   cache --> registry --unreachable--> kit's storage
//! by tag      registry --unreachable--> what it said the last time --unknown--> kit's storage
//! ```
//!
//! With --prefer-local, kit's storage comes before the registry. Only an unreachable registry leads to the next
//! source. The answers "no such tag" and "not authorised" are final.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::error::{For, LoadError};
use super::pulled::{self, NotTaken};
use super::resolve::Kin;
use super::waiting::with_cache;
use crate::cache::Cache;
use crate::kit::Kit;
use crate::kit::kitfile::KITFILE_LIMIT_BYTES;
use crate::oci::{BlobId, Digest, Document, Manifest, Selector};
use crate::process::running_time;
use crate::source::admission::UserId;
use crate::source::{BlobSource, Pulled, Repositories, Repository, SourceError, read_blob};

/// The largest config that is read: a larger one would be refused when it is decoded.
const CONFIG_LIMIT_BYTES: u64 = KITFILE_LIMIT_BYTES as u64;

/// The time that a registry has to resolve a tag, where an earlier digest of the tag is known.
///
/// 40 s: a registry that is only slow answers a reader's request within this time. A longer wait would hold up the
/// start of a job that needs no registry.
const KNOWN_PATIENCE: Duration = Duration::from_secs(40);

/// The sources of one kit.
pub(super) struct Documents<'a> {
    cache: &'a Arc<Cache>,
    kin: &'a Kin<'a>,
    repository: Arc<dyn Repository>,
    /// The copy of the repository that kit itself has.
    pulled: Option<Pulled>,
    /// The user who needs the registry's permission for the kit; `None` for the owner of the cache.
    user: Option<UserId>,
    /// Whether the registry did not answer.
    is_unreachable: AtomicBool,
}

/// A document, or the config of a kit, to find by its digest.
#[derive(Clone, Copy)]
pub(super) enum ByDigest {
    Document(Digest),
    Config(BlobId),
}

impl ByDigest {
    pub(super) async fn answer(self, source: &dyn Repository) -> Result<Bytes, SourceError> {
        match self {
            Self::Document(digest) => Ok(source.manifest(Some(&Selector::Digest(digest))).await?.1),
            Self::Config(blob) => {
                let place = source.name();
                let source: &dyn BlobSource = source;
                read_blob(source, blob, CONFIG_LIMIT_BYTES, "the config", &place).await
            }
        }
    }
}

/// A document that lies at an origin.
pub(super) struct Found {
    pub(super) digest: Digest,
    pub(super) document: Document,
    /// Set when the registry did not answer, or when kit's storage was not believed.
    pub(super) warning: Option<String>,
    /// Whether the labels have chosen it already.
    pub(super) is_chosen: bool,
}

/// The sources of the bytes of a kit's layers.
pub(super) struct LayerSources {
    repository: Arc<dyn Repository>,
    pulled: Option<Pulled>,
    /// The layers that kit's storage has.
    held: HashSet<BlobId>,
    /// Whether kit's storage comes before the registry.
    is_storage_first: bool,
}

impl<'a> Documents<'a> {
    pub(super) fn open(
        cache: &'a Arc<Cache>,
        repositories: &dyn Repositories,
        kin: &'a Kin<'a>,
    ) -> Result<Self, LoadError> {
        let repository = repositories.open(kin.origin).of(kin)?;
        let pulled = repositories.pulled(kin.origin);
        let user = repositories.user();
        Ok(Self { cache, kin, repository, pulled, user, is_unreachable: AtomicBool::new(false) })
    }

    /// The document that the origin names.
    pub(super) async fn find(&self) -> Result<Found, LoadError> {
        if let Some(&Selector::Digest(digest)) = self.kin.origin.selector() {
            if self.user.is_some() {
                return self.find_for_user(digest).await;
            }
            let document = self.by_digest(digest).await?;
            return Ok(Found { digest, document, warning: None, is_chosen: false });
        }
        let mut doubt = None;
        if let Some(pulled) = self.preferred() {
            match self.find_pulled(pulled).await? {
                Ok(found) => return Ok(found),
                Err(NotTaken::Absent) => {}
                Err(NotTaken::Doubtful(why)) => doubt = Some(format!("{}: {why}", self.kin)),
            }
        }
        match self.ask_registry().await {
            Ok((digest, bytes)) => {
                let document = self.keep(digest, &bytes).await?;
                self.remember(self.kin.origin.to_string(), digest).await?;
                self.note_right(digest).await?;
                Ok(Found { digest, document, warning: doubt, is_chosen: false })
            }
            Err(error) if error.is_retryable() => self.find_without_registry(error).await,
            Err(error) => Err(error).of(self.kin),
        }
    }

    /// The document of a digest, for a user of a cache with several users. The registry must confirm the user's
    /// right even where the cache has the document, because the bytes may be there for another user only. While the
    /// registry is unreachable, an earlier confirmation counts.
    async fn find_for_user(&self, digest: Digest) -> Result<Found, LoadError> {
        let warning = match ByDigest::Document(digest).answer(&*self.repository).await {
            Ok(bytes) => {
                let document = self.keep(digest, &bytes).await?;
                self.note_right(digest).await?;
                return Ok(Found { digest, document, warning: None, is_chosen: false });
            }
            Err(error) if error.is_retryable() && self.has_right(digest).await => {
                self.is_unreachable.store(true, Ordering::Relaxed);
                format!("{} is read from the cache, because {error}", self.kin)
            }
            Err(error) => return Err(error).of(self.kin),
        };
        let document = self.by_digest(digest).await?;
        Ok(Found { digest, document, warning: Some(warning), is_chosen: false })
    }

    /// Notes that the registry lets the user have a document.
    async fn note_right(&self, digest: Digest) -> Result<(), LoadError> {
        match self.user {
            Some(_) => self.remember(self.pinned(digest), digest).await,
            None => Ok(()),
        }
    }

    async fn has_right(&self, digest: Digest) -> bool {
        let name = self.remembered_name(self.pinned(digest));
        with_cache(self.cache, move |cache| cache.recall(&name)).await == Some(digest)
    }

    /// A document in the cache, if the user may have it. The digest alone proves no right, because a user's own
    /// registry could name any digest.
    async fn kept_for_user(&self, digest: Digest) -> Option<Bytes> {
        if self.user.is_some() && !self.has_right(digest).await {
            return None;
        }
        self.kept(digest).await
    }

    fn pinned(&self, digest: Digest) -> String {
        self.kin.origin.with_selector(Selector::Digest(digest)).to_string()
    }

    /// Remembers the digest to which the registry has resolved a name for this user.
    pub(super) async fn remember(&self, name: String, digest: Digest) -> Result<(), LoadError> {
        let name = self.remembered_name(name);
        let remembered = with_cache(self.cache, move |cache| cache.remember(&name, digest));
        remembered.await.of(self.kin)
    }

    /// The name of an entry. Each user has separate entries, because a registry may answer users differently.
    fn remembered_name(&self, name: String) -> String {
        match self.user {
            Some(UserId(user)) => format!("{name} for user {user}"),
            None => name,
        }
    }

    /// A document that is known by its digest.
    pub(super) async fn by_digest(&self, digest: Digest) -> Result<Document, LoadError> {
        if let Some(bytes) = self.kept_for_user(digest).await {
            return Document::decode(&bytes).of(self.kin);
        }
        let bytes = self.ask(ByDigest::Document(digest)).await?;
        self.note_right(digest).await?;
        self.keep(digest, &bytes).await
    }

    /// The config of a manifest.
    pub(super) async fn config(&self, manifest: &Manifest) -> Result<Bytes, LoadError> {
        let blob = manifest.config.blob();
        if let Some(bytes) = manifest.config.content() {
            return Ok(bytes);
        }
        if let Some(bytes) = self.kept_for_user(blob.digest).await {
            return Ok(bytes);
        }
        let bytes = self.ask(ByDigest::Config(blob)).await?;
        self.note_right(blob.digest).await?;
        self.put(blob.digest, bytes.clone()).await?;
        Ok(bytes)
    }

    /// The sources of the kit's layers, after the search for documents has shown which sources answer.
    pub(super) async fn layer_sources(self, kit: &Kit) -> LayerSources {
        let held = match &self.pulled {
            Some(pulled) => pulled::held(pulled, kit).await.into_iter().collect(),
            None => HashSet::new(),
        };
        let is_storage_first =
            self.preferred().is_some() || self.is_unreachable.load(Ordering::Relaxed);
        let Self { repository, pulled, .. } = self;
        LayerSources { repository, pulled, held, is_storage_first }
    }

    /// Resolves a tag at the registry. Waits for a silent registry as long as the source does, or for
    /// [`KNOWN_PATIENCE`] where an earlier digest of the tag is known.
    async fn ask_registry(&self) -> Result<(Digest, Bytes), SourceError> {
        let answer = self.repository.manifest(self.kin.origin.selector());
        if self.pulled.is_none() && !matches!(self.remembered().await, Ok(Some(_))) {
            return answer.await;
        }
        running_time::timeout(KNOWN_PATIENCE, answer).await.unwrap_or_else(|_| {
            let detail = format!("no answer came within {} s", KNOWN_PATIENCE.as_secs());
            Err(SourceError::Unavailable { place: self.repository.name(), detail })
        })
    }

    fn preferred(&self) -> Option<&Pulled> {
        self.pulled.as_ref().filter(|pulled| pulled.is_preferred)
    }

    /// Finds the document of a digest at the registry, and before or after it in kit's storage.
    async fn ask(&self, wanted: ByDigest) -> Result<Bytes, LoadError> {
        if let Some(pulled) = self.preferred()
            && let Ok(bytes) = wanted.answer(&pulled.storage).await
        {
            return Ok(bytes);
        }
        let error = match wanted.answer(&*self.repository).await {
            Err(error) if error.is_retryable() => error,
            answer => return answer.of(self.kin),
        };
        self.is_unreachable.store(true, Ordering::Relaxed);
        let Some(pulled) = &self.pulled else { return Err(error).of(self.kin) };
        wanted.answer(&pulled.storage).await.map_err(|_| error).of(self.kin)
    }

    async fn find_without_registry(&self, error: SourceError) -> Result<Found, LoadError> {
        self.is_unreachable.store(true, Ordering::Relaxed);
        if let Some(found) = self.remembered().await? {
            let Self { kin, .. } = self;
            let digest = found.digest;
            let warning =
                format!("{kin} is read as it was last resolved, to {digest}, because {error}");
            return Ok(Found { warning: Some(warning), ..found });
        }
        let Some(pulled) = &self.pulled else { return Err(error).of(self.kin) };
        match self.find_pulled(pulled).await? {
            Ok(found) => {
                let (kin, digest) = (self.kin, found.digest);
                let warning = format!(
                    "{kin} is read from kit's storage, as it was pulled ({digest}), because {error}"
                );
                Ok(Found { warning: Some(warning), ..found })
            }
            Err(NotTaken::Absent) => Err(error).of(self.kin),
            Err(NotTaken::Doubtful(doubt)) => {
                let (reference, error) = (self.kin.to_string(), Box::new(error));
                Err(LoadError::Doubtful { reference, error, doubt })
            }
        }
    }

    /// The manifest in kit's storage under the origin's tag.
    async fn find_pulled(&self, pulled: &Pulled) -> Result<Result<Found, NotTaken>, LoadError> {
        let digest = match pulled::resolve(pulled, self.kin).await {
            Ok(digest) => digest,
            Err(not_taken) => return Ok(Err(not_taken)),
        };
        let document = match self.kept(digest).await {
            Some(bytes) => Document::decode(&bytes).of(self.kin)?,
            None => match pulled.storage.manifest(Some(&Selector::Digest(digest))).await {
                Ok((_, bytes)) => self.keep(digest, &bytes).await?,
                Err(_) => return Ok(Err(NotTaken::Absent)),
            },
        };
        Ok(Ok(Found { digest, document, warning: None, is_chosen: false }))
    }

    /// The last resolution of the origin that the cache has: with these labels, or else without labels. From a
    /// known index, the labels can then still choose.
    async fn remembered(&self) -> Result<Option<Found>, LoadError> {
        let kin = self.kin;
        for (name, is_chosen) in
            [(kin.remembered_as(), !kin.labels.is_empty()), (kin.origin.to_string(), false)]
        {
            let name = self.remembered_name(name);
            let recalled = with_cache(self.cache, move |cache| {
                let digest = cache.recall(&name)?;
                Some((digest, cache.document(digest)?))
            });
            let Some((digest, bytes)) = recalled.await else { continue };
            let document = Document::decode(&bytes).of(kin)?;
            return Ok(Some(Found { digest, document, warning: None, is_chosen }));
        }
        Ok(None)
    }

    /// Decodes a document, and keeps it in the cache.
    pub(super) async fn keep(&self, digest: Digest, bytes: &Bytes) -> Result<Document, LoadError> {
        let document = Document::decode(bytes).of(self.kin)?;
        self.put(digest, bytes.clone()).await?;
        Ok(document)
    }

    async fn put(&self, digest: Digest, bytes: Bytes) -> Result<(), LoadError> {
        let put = with_cache(self.cache, move |cache| cache.put_document(digest, &bytes));
        put.await.of(self.kin)
    }

    /// A document that the cache has.
    async fn kept(&self, digest: Digest) -> Option<Bytes> {
        with_cache(self.cache, move |cache| cache.document(digest)).await
    }
}

impl LayerSources {
    /// The source of a layer, and a fallback.
    pub(super) fn of(&self, blob: BlobId) -> (Arc<dyn BlobSource>, Option<Arc<dyn BlobSource>>) {
        let registry = || Arc::clone(&self.repository) as Arc<dyn BlobSource>;
        let Some(pulled) = self.pulled.as_ref().filter(|_| self.held.contains(&blob)) else {
            return (registry(), None);
        };
        let storage = Arc::new(pulled.storage.clone());
        match self.is_storage_first {
            true => (storage, None),
            false => (registry(), Some(storage)),
        }
    }
}
