//! Opens the source that an origin names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::admission::UserId;
use super::kit_storage::{Elsewhere, KitStorage, Origins};
use super::oci_layout::OciLayout;
use super::registry::{Probe, RegistryClient, Silence};
use super::s3::{S3, S3Config};
use super::sending::{Destination, KitStorageDestination, OciLayoutWriter, SendError};
use super::{Objects, Pulled, Repositories, Repository, SourceError};
use crate::oci::{Origin, Reference};

/// Registries, OCI layout folders, kit's local storage and an S3 store.
pub struct Sources {
    registries: Arc<RegistryClient>,
    kitops_home: Option<PathBuf>,
    is_pulled_preferred: bool,
    s3: S3,
    user: Option<UserId>,
}

impl Sources {
    /// Sources that share the connections and tokens of `registries`; `localhost/…` references
    /// are looked up in `kitops_home`.
    pub fn new(
        registries: Arc<RegistryClient>,
        kitops_home: Option<PathBuf>,
        s3: S3Config,
    ) -> Self {
        let s3 = S3::new(registries.clone(), s3);
        Self { registries, kitops_home, is_pulled_preferred: false, s3, user: None }
    }

    /// For a user who is not the owner of the cache; see [`Repositories::user`].
    pub fn for_user(self, user: Option<UserId>) -> Self {
        Self { user, ..self }
    }

    /// Sets whether kits that kit itself has pulled come before the registry, or after it.
    pub fn prefer_pulled(self, is_pulled_preferred: bool) -> Self {
        Self { is_pulled_preferred, ..self }
    }
}

impl Sources {
    /// Every repository of a registry, sorted.
    ///
    /// # Errors
    /// Fails also where the registry offers no list, as most public ones.
    pub async fn catalogue(&self, host: &str) -> Result<Vec<String>, SourceError> {
        self.registries.catalogue(host).await
    }

    /// The addresses of a registry, for probes; `repository` may be empty.
    ///
    /// # Errors
    /// As for [`RegistryClient::probes`].
    pub fn probes(&self, host: &str, repository: &str) -> Result<Vec<Probe>, SourceError> {
        self.registries.probes(host, repository)
    }

    /// Every repository of kit's own storage, sorted.
    ///
    /// # Errors
    /// Fails if the storage cannot be read, or its place is unknown.
    pub async fn stored(&self) -> Result<Vec<KitStorage>, SourceError> {
        KitStorage::all(self.kitops_home("kit's local storage")?).await
    }

    fn kitops_home(&self, what: &str) -> Result<&Path, SourceError> {
        self.kitops_home.as_deref().ok_or_else(|| SourceError::Configuration {
            what: what.to_owned(),
            detail: "kit's local storage is not known: set KITOPS_HOME or --config".to_owned(),
        })
    }

    /// Opens the repositories of layers that kit's storage took by digest.
    fn elsewhere(&self) -> Elsewhere {
        let registries = Arc::clone(&self.registries);
        Elsewhere(Arc::new(move |origin| match origin {
            Origin::Registry(reference) => Ok(registries.repository(reference)?),
            Origin::OciLayout { folder, .. } => Ok(Arc::new(OciLayout::open(folder)?)),
            Origin::KitStorage(_) => Err(SourceError::NotFound {
                what: "a missing layer".to_owned(),
                place: origin.to_string(),
                hint: "kit's storage has no other place for it".to_owned(),
            }),
        }))
    }

    /// The hosts that are silent for a while to requests that open or warm a kit.
    pub fn silences(&self) -> Vec<Silence> {
        self.registries.silences()
    }
}

impl Sources {
    /// The destination of an origin. Makes the missing folder of a layout.
    ///
    /// # Errors
    /// Fails where the place cannot be written.
    pub async fn destination(&self, origin: &Origin) -> Result<Arc<dyn Destination>, SendError> {
        match origin {
            Origin::Registry(reference) => Ok(self.registries.destination(reference)?),
            Origin::OciLayout { folder, repository, .. } => {
                Ok(Arc::new(OciLayoutWriter::open(folder.clone(), repository.clone()).await?))
            }
            Origin::KitStorage(reference) => {
                self.storage_destination(reference, Origins::default()).await
            }
        }
    }

    /// The repository of kit's local storage for `reference`, as a destination. `origins` has the places of blobs
    /// that are not in the storage.
    ///
    /// # Errors
    /// Fails where the storage cannot be written, or its place is unknown.
    pub async fn storage_destination(
        &self,
        reference: &Reference,
        origins: Origins,
    ) -> Result<Arc<dyn Destination>, SendError> {
        let home =
            self.kitops_home(&format!("{}/{}", reference.registry(), reference.repository()))?;
        let (home, reference) = (home.to_owned(), reference.clone());
        Ok(Arc::new(KitStorageDestination::open(home, reference, origins).await?))
    }

    /// The repository of kit's local storage with this name, even if a registry has the same name.
    ///
    /// # Errors
    /// Fails where the storage has no such repository, or its place is unknown.
    pub fn kept(&self, reference: &Reference) -> Result<KitStorage, SourceError> {
        let home =
            self.kitops_home(&format!("{}/{}", reference.registry(), reference.repository()))?;
        Ok(KitStorage::open(home, reference)?.with_elsewhere(self.elsewhere()))
    }
}

impl Repositories for Sources {
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError> {
        if self.user.is_some() && !matches!(origin, Origin::Registry(_)) {
            // This refuses a kit that names a folder of this machine as its parent.
            return Err(SourceError::Configuration {
                what: origin.to_string(),
                detail: "the system daemon opens no folder of this machine".to_owned(),
            });
        }
        match origin {
            Origin::Registry(reference) => Ok(self.registries.repository(reference)?),
            Origin::OciLayout { folder, repository, .. } => {
                Ok(Arc::new(OciLayout::open(folder)?.of_repository(repository.clone())))
            }
            Origin::KitStorage(reference) => {
                let home = self.kitops_home(&format!("localhost/{}", reference.repository()))?;
                Ok(Arc::new(KitStorage::open(home, reference)?.with_elsewhere(self.elsewhere())))
            }
        }
    }

    fn pulled(&self, origin: &Origin) -> Option<Pulled> {
        let Origin::Registry(reference) = origin else { return None };
        let storage = KitStorage::open(self.kitops_home.as_deref()?, reference).ok()?;
        let storage = storage.with_elsewhere(self.elsewhere());
        Some(Pulled { storage, is_preferred: self.is_pulled_preferred })
    }

    fn objects(&self) -> Option<&dyn Objects> {
        Some(&self.s3)
    }

    fn user(&self) -> Option<UserId> {
        self.user
    }
}
