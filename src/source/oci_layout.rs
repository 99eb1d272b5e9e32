//! OCI image layout folders (image-spec, image-layout.md) as a source.
//!
//! `index.json` is read anew for every request for manifests and tags, so a kit that was just copied into the
//! folder is found. Blobs are read by digest and need not be in the index. An index inside the index is returned as
//! it is, and the caller chooses from it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::blob_folder::{BlobFolder, off_the_runtime, read_small};
use super::image_index::{INDEX_LIMIT_BYTES, ImageIndex, RefName, StoredEntry, Unnamed};
use super::{BlobSource, BlobStream, Repository, SourceError, Urgency};
use crate::oci::{BlobId, BlobOffset, Digest, Selector};

/// The largest `oci-layout` file that is read; it holds one version.
const LAYOUT_LIMIT_BYTES: u64 = 4096;

/// An OCI image layout folder.
#[derive(Clone, Debug)]
pub struct OciLayout {
    folder: PathBuf,
    /// The repository whose tags are looked up, if the folder has kits of several.
    repository: Option<String>,
    blobs: BlobFolder,
}

/// The file `oci-layout` as written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireLayout {
    image_layout_version: String,
}

impl OciLayout {
    /// Opens a folder with `oci-layout` and `index.json`.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] where the folder is no layout, [`SourceError::Protocol`] for a
    /// version other than 1.
    pub fn open(folder: &Path) -> Result<Self, SourceError> {
        let place = format!("oci:{}", folder.display());
        let marker = folder.join("oci-layout");
        let missing = |what: &str, hint: &str| SourceError::NotFound {
            what: what.to_owned(),
            place: place.clone(),
            hint: hint.to_owned(),
        };
        if !folder.is_dir() {
            return Err(missing("the folder", "check the path"));
        }
        let marker_hint = "the folder is not an OCI layout; \
                           `skopeo copy docker://HOST/REPO:TAG oci:FOLDER:TAG` makes one";
        let Some(json) = read_small(&marker, LAYOUT_LIMIT_BYTES)? else {
            return Err(missing("the file oci-layout", marker_hint));
        };
        let version =
            serde_json::from_slice(&json).map(|wire: WireLayout| wire.image_layout_version);
        let protocol =
            |detail| SourceError::Protocol { place: marker.display().to_string(), detail };
        match version {
            Ok(version) if version.starts_with("1.") => {}
            Ok(version) => {
                let version: String = version.chars().take(32).collect();
                return Err(protocol(format!("layout version `{version}`, but only 1.x is known")));
            }
            Err(error) => return Err(protocol(format!("not an OCI layout: {error}"))),
        }
        if !folder.join("index.json").is_file() {
            return Err(missing("the file index.json", "the layout is incomplete; copy it again"));
        }
        let blobs = BlobFolder::new(folder, place, "the layout is incomplete; copy it again");
        Ok(Self { folder: folder.to_owned(), repository: None, blobs })
    }

    /// The same folder, with tags looked up in `repository` (`ghcr.io/org/model`) only.
    pub fn of_repository(self, repository: Option<String>) -> Self {
        Self { repository, ..self }
    }

    /// Each name of a manifest, then the manifests without a name. If a repository is set, only its names.
    ///
    /// # Errors
    /// As for [`OciLayout::index`].
    pub async fn listed(&self) -> Result<Vec<(Option<RefName>, Digest)>, SourceError> {
        let layout = self.clone();
        let index = off_the_runtime(move || layout.index()).await?;
        let is_meant = |name: &RefName| match &self.repository {
            Some(repository) => name.repository.as_ref() == Some(repository),
            None => true,
        };
        let named = index
            .entries
            .iter()
            .flat_map(|entry| entry.names.iter().cloned().map(|name| (Some(name), entry.digest)));
        let named: BTreeMap<_, _> =
            named.filter(|(name, _)| name.as_ref().is_some_and(is_meant)).collect();
        let is_unnamed = |entry: &&StoredEntry| entry.names.is_empty() && self.repository.is_none();
        let unnamed = index.entries.iter().filter(is_unnamed).map(|entry| (None, entry.digest));
        let unnamed: BTreeSet<_> = unnamed.collect();
        Ok(named.into_iter().chain(unnamed).collect())
    }

    /// The size of a blob, in bytes.
    ///
    /// # Errors
    /// [`SourceError::NotFound`] without such a blob.
    pub async fn blob_size(&self, digest: Digest) -> Result<u64, SourceError> {
        self.blobs.size(digest).await
    }

    /// `index.json` as it is now. Blocks.
    pub fn index(&self) -> Result<ImageIndex, SourceError> {
        let path = self.folder.join("index.json");
        match read_small(&path, INDEX_LIMIT_BYTES)? {
            Some(json) => ImageIndex::decode(&json, &path.display().to_string()),
            None => {
                Err(self.not_found("the file index.json", "was the folder removed?".to_owned()))
            }
        }
    }

    /// The bytes of the manifest or image index with this digest, checked against it. Blocks.
    pub fn manifest_bytes(&self, digest: Digest) -> Result<Bytes, SourceError> {
        self.blobs.read_manifest(digest)
    }

    /// Finds and reads the manifest of `selector`. Blocks.
    fn read_manifest(&self, selector: Option<&Selector>) -> Result<(Digest, Bytes), SourceError> {
        let digest = match selector {
            Some(Selector::Digest(digest)) => *digest,
            Some(Selector::Tag(tag)) => self.resolve(tag)?,
            None => self.default_manifest(&self.index()?)?,
        };
        Ok((digest, self.manifest_bytes(digest)?))
    }

    fn resolve(&self, tag: &str) -> Result<Digest, SourceError> {
        self.index()?.named(self.repository.as_deref(), tag).map_err(|unnamed| {
            let what = match &self.repository {
                Some(repository) => format!("`{repository}:{tag}`"),
                None => format!("tag `{tag}`"),
            };
            let hint = match unnamed {
                Unnamed::Absent(names) => names,
                Unnamed::Ambiguous(names) => {
                    let folder = self.folder.display();
                    format!("several kits have it; write one of {names} behind oci:{folder}:")
                }
            };
            self.not_found(&what, hint)
        })
    }

    /// The only manifest, or the one tagged `latest`.
    fn default_manifest(&self, index: &ImageIndex) -> Result<Digest, SourceError> {
        index.only().or_else(|| index.tagged("latest")).ok_or_else(|| match index.entries.len() {
            0 => self.not_found("a manifest", "index.json is empty; copy a kit into it".to_owned()),
            count => self.not_found(
                "the tag `latest`",
                format!("choose one of its {count} manifests; {}", index.names_in_words()),
            ),
        })
    }

    fn not_found(&self, what: &str, hint: String) -> SourceError {
        SourceError::NotFound { what: what.to_owned(), place: self.name(), hint }
    }
}

impl BlobSource for OciLayout {
    fn open(
        &self,
        blob: BlobId,
        range: Range<BlobOffset>,
        _urgency: Urgency,
    ) -> BoxFuture<'_, Result<BlobStream, SourceError>> {
        self.blobs.open(blob, range).boxed()
    }

    fn is_remote(&self) -> bool {
        false
    }
}

impl Repository for OciLayout {
    fn manifest(
        &self,
        selector: Option<&Selector>,
    ) -> BoxFuture<'_, Result<(Digest, Bytes), SourceError>> {
        let (layout, selector) = (self.clone(), selector.cloned());
        off_the_runtime(move || layout.read_manifest(selector.as_ref())).boxed()
    }

    fn tags(&self) -> BoxFuture<'_, Result<Vec<String>, SourceError>> {
        let layout = self.clone();
        off_the_runtime(move || Ok(layout.index()?.tags())).boxed()
    }

    fn name(&self) -> String {
        format!("oci:{}", self.folder.display())
    }
}
