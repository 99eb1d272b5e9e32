//! kit's own local storage as a source (modelkit-spec 5.4); [`writing`] adds kits to it.
//!
//! ```text
//! KITOPS_HOME/storage/
//!   oci-layout  index.json                  every manifest, without tags
//!   blobs/sha256/HEX                        shared by all repositories
//!   BASE64URL(REGISTRY/REPOSITORY)-index.json   the manifests of one repository
//!   BASE64URL(REGISTRY/REPOSITORY)-tags.json    its tags: a map to descriptors
//!   BASE64URL(REGISTRY/REPOSITORY)-origins.json kitfs's own: places of blobs that are not here
//! ```
//!
//! A digest is looked up among the shared blobs. So `sha256:…` alone is found, and so is a parent that `kit pull`
//! filed under its child's name. A missing blob is requested from its origin, if it has one: `kitfs pack` takes
//! unchanged layers of another kit by digest.

mod completing;
mod origins;
pub mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::blob_folder::{BlobFolder, off_the_runtime, read_small};
use super::image_index::{INDEX_LIMIT_BYTES, ImageIndex};
use super::{BlobSource, BlobStream, Repository, SourceError, Urgency};
use crate::oci::{BlobId, BlobOffset, Digest, Origin, Reference, Selector};

pub use self::completing::complete;
pub use self::origins::Origins;

/// One repository of kit's local storage.
#[derive(Clone, Debug)]
pub struct KitStorage {
    storage: PathBuf,
    repository: String,
    blobs: BlobFolder,
    origins: Arc<Origins>,
    elsewhere: Option<Elsewhere>,
}

/// Opens the repositories that origins name.
#[derive(Clone)]
pub struct Elsewhere(pub Arc<OpenOrigin>);

/// The function behind [`Elsewhere`].
pub type OpenOrigin = dyn Fn(&Origin) -> Result<Arc<dyn Repository>, SourceError> + Send + Sync;

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Elsewhere")
    }
}

impl KitStorage {
    /// Opens the repository of `reference` in the storage below `kitops_home`. The registry part counts, because
    /// kit files a kit under the name of its registry.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] where there is no storage. Also for a reference with a tag, if the storage lacks
    /// its repository.
    pub fn open(kitops_home: &Path, reference: &Reference) -> Result<Self, SourceError> {
        let storage = kitops_home.join("storage");
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        if !storage.is_dir() {
            return Err(SourceError::NotFound {
                what: "kit's local storage".to_owned(),
                place: storage.display().to_string(),
                hint:
                    "pack or pull a kit first, or set KITOPS_HOME or --config to where kit keeps it; a \
                     kit in a registry is HOST/REPOSITORY"
                        .to_owned(),
            });
        }
        let opened = Self::of(&storage, repository);
        let is_absent = !opened.side_file("index").is_file() && !opened.side_file("tags").is_file();
        if is_absent && matches!(reference.selector(), Selector::Tag(_)) {
            return Err(opened.absent());
        }
        let path = opened.side_file("origins");
        let Some(json) = read_small(&path, INDEX_LIMIT_BYTES)? else { return Ok(opened) };
        let origins = Origins::decode(&json).map_err(|detail| SourceError::Protocol {
            place: path.display().to_string(),
            detail,
        })?;
        Ok(Self { origins: Arc::new(origins), ..opened })
    }

    /// Reads missing blobs from their origins.
    pub fn with_elsewhere(self, elsewhere: Elsewhere) -> Self {
        Self { elsewhere: Some(elsewhere), ..self }
    }

    /// The places of all blobs that `kitfs pack` took by digest.
    pub fn all_origins(&self) -> &Origins {
        &self.origins
    }

    /// The places of a blob that `kitfs pack` took by digest; the latest first.
    pub fn origins(&self, digest: Digest) -> &[Origin] {
        self.origins.of(digest)
    }

    /// Every repository in the storage below `kitops_home`, sorted by name; none where there is no
    /// storage.
    ///
    /// # Errors
    /// Fails if the storage cannot be read.
    pub async fn all(kitops_home: &Path) -> Result<Vec<Self>, SourceError> {
        let storage = kitops_home.join("storage");
        off_the_runtime(move || {
            let unreadable = |error| SourceError::Io {
                path: storage.display().to_string(),
                error: Arc::new(error),
            };
            let entries = match storage.read_dir() {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(unreadable(error)),
            };
            let mut repositories = BTreeSet::new();
            for entry in entries {
                let name = entry.map_err(unreadable)?.file_name();
                repositories.extend(name.to_str().and_then(repository_of));
            }
            Ok(repositories.into_iter().map(|name| Self::of(&storage, name)).collect())
        })
        .await
    }

    fn of(storage: &Path, repository: String) -> Self {
        let hint = "the storage is incomplete; `kit pull` or `kit pack` the kit again";
        let blobs = BlobFolder::new(storage, place(&repository, storage), hint);
        let storage = storage.to_owned();
        Self { storage, repository, blobs, origins: Arc::default(), elsewhere: None }
    }

    /// The repository with its host: `ghcr.io/org/model`, `localhost/model`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Its tags in order, then its manifests without a tag.
    ///
    /// # Errors
    /// Fails if the storage cannot be read.
    pub async fn listed(&self) -> Result<Vec<(Option<String>, Digest)>, SourceError> {
        let all = self.manifests().await?;
        let storage = self.clone();
        let tagged = off_the_runtime(move || storage.tag_index()).await?;
        let tagged = tagged.entries.into_iter().flat_map(|entry| {
            entry.names.into_iter().map(move |name| (Some(name.tag), entry.digest))
        });
        let tagged: BTreeMap<_, _> = tagged.collect();
        let named: BTreeSet<_> = tagged.values().copied().collect();
        let untagged = all.difference(&named).map(|digest| (None, *digest));
        Ok(tagged.clone().into_iter().chain(untagged).collect())
    }

    /// The manifest that a tag names, if the tag is there.
    ///
    /// # Errors
    /// Fails if the storage cannot be read.
    pub async fn tagged(&self, tag: &str) -> Result<Option<Digest>, SourceError> {
        let (storage, tag) = (self.clone(), tag.to_owned());
        off_the_runtime(move || Ok(storage.tag_index()?.tagged(&tag))).await
    }

    /// Every manifest of the repository, with and without a tag.
    ///
    /// # Errors
    /// Fails if the storage cannot be read.
    pub async fn manifests(&self) -> Result<BTreeSet<Digest>, SourceError> {
        let storage = self.clone();
        off_the_runtime(move || {
            let path = storage.side_file("index");
            let index = match read_small(&path, INDEX_LIMIT_BYTES)? {
                Some(json) => ImageIndex::decode(&json, &path.display().to_string())?,
                None => ImageIndex::default(),
            };
            let all = index.entries.into_iter().chain(storage.tag_index()?.entries);
            Ok(all.map(|entry| entry.digest).collect())
        })
        .await
    }

    /// The blobs of these that the storage has.
    pub async fn held(&self, blobs: Vec<BlobId>) -> Vec<BlobId> {
        let storage = self.clone();
        let held = off_the_runtime(move || {
            let is_here = |blob: &BlobId| storage.blobs.has(*blob);
            Ok(blobs.into_iter().filter(is_here).collect())
        });
        held.await.unwrap_or_default()
    }

    /// The tags file as it is now; empty where kit has not written one. Blocks.
    fn tag_index(&self) -> Result<ImageIndex, SourceError> {
        let path = self.side_file("tags");
        match read_small(&path, INDEX_LIMIT_BYTES)? {
            Some(json) => ImageIndex::decode_tags(&json, &path.display().to_string()),
            None => Ok(ImageIndex::default()),
        }
    }

    /// Finds and reads the manifest of `selector`. Blocks.
    fn read_manifest(&self, selector: Option<&Selector>) -> Result<(Digest, Bytes), SourceError> {
        let digest = match selector {
            Some(Selector::Digest(digest)) => *digest,
            Some(Selector::Tag(tag)) => self.resolve(tag)?,
            None => self.resolve("latest")?,
        };
        Ok((digest, self.blobs.read_manifest(digest)?))
    }

    fn resolve(&self, tag: &str) -> Result<Digest, SourceError> {
        let index = self.tag_index()?;
        index.tagged(tag).ok_or_else(|| SourceError::NotFound {
            what: format!("tag `{tag}`"),
            place: self.name(),
            hint: format!("{}; `kit list` shows what is there", index.names_in_words()),
        })
    }

    /// Opens a missing blob at its origins, one after the other. Without an origin, the error is `missing`.
    async fn open_elsewhere(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
        missing: SourceError,
    ) -> Result<BlobStream, SourceError> {
        let Some(Elsewhere(open)) = &self.elsewhere else { return Err(missing) };
        let mut last = missing;
        for origin in self.origins.of(blob.digest) {
            let opened = match open(origin) {
                Ok(repository) => repository.open(blob, range.clone(), urgency.clone()).await,
                Err(error) => Err(error),
            };
            match opened {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn side_file(&self, kind: &str) -> PathBuf {
        self.storage.join(format!("{}-{kind}.json", URL_SAFE.encode(&self.repository)))
    }

    /// The error for a missing repository. Until July 2024 each repository had a layout of its own; kit moves these
    /// when it starts.
    fn absent(&self) -> SourceError {
        let is_old_layout = self.storage.join(&self.repository).join("index.json").is_file();
        let hint = if is_old_layout {
            "it is in the layout of kit before v0.3: run `kit list` once, which moves it".to_owned()
        } else if let Some(remote) = self.repository.strip_prefix("localhost/") {
            format!(
                "`kit list` shows what is there; for a kit in a registry write HOST/{remote}, \
                 for example docker.io/{remote}"
            )
        } else {
            format!("`kit list` shows what is there, `kit pull {}` fetches it", self.repository)
        };
        SourceError::NotFound {
            what: format!("repository {}", self.repository),
            place: format!("kit's storage {}", self.storage.display()),
            hint,
        }
    }
}

impl BlobSource for KitStorage {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        let open = async move {
            match self.blobs.open(blob, range.clone()).await {
                Err(missing @ SourceError::NotFound { .. }) => {
                    self.open_elsewhere(blob, range, urgency, missing).await
                }
                opened => opened,
            }
        };
        open.boxed()
    }

    fn is_remote(&self) -> bool {
        !self.origins.is_empty()
    }

    fn place(&self) -> Option<String> {
        let storage = self.storage.display();
        // Only this repository knows the origins of its missing blobs.
        Some(match self.origins.is_empty() {
            true => storage.to_string(),
            false => format!("{storage} {}", self.repository),
        })
    }
}

impl Repository for KitStorage {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        let (storage, selector) = (self.clone(), selector.cloned());
        off_the_runtime(move || storage.read_manifest(selector.as_ref())).boxed()
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        let storage = self.clone();
        off_the_runtime(move || Ok(storage.tag_index()?.tags())).boxed()
    }

    fn name(&self) -> String {
        place(&self.repository, &self.storage)
    }
}

/// The repository that a side file belongs to.
fn repository_of(file_name: &str) -> Option<String> {
    let encoded =
        file_name.strip_suffix("-index.json").or_else(|| file_name.strip_suffix("-tags.json"))?;
    let name = String::from_utf8(URL_SAFE.decode(encoded).ok()?).ok()?;
    // The name is printed, and made into references, so it must be the name of a repository.
    Reference::parse(&name)
        .ok()
        .filter(|it| format!("{}/{}", it.registry(), it.repository()) == name)?;
    Some(name)
}

fn place(repository: &str, storage: &Path) -> String {
    format!("{repository} (kit's storage {})", storage.display())
}
