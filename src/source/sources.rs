//! Which source an origin is read from.

use std::path::PathBuf;
use std::sync::Arc;

use super::kit_storage::KitStorage;
use super::oci_layout::OciLayout;
use super::registry::RegistryClient;
use super::{Repositories, Repository, SourceError};
use crate::oci::Origin;

/// Registries, OCI layout folders and kit's local storage.
pub struct Sources {
    registries: Arc<RegistryClient>,
    kitops_home: Option<PathBuf>,
}

impl Sources {
    /// Sources that share the connections and tokens of `registries`; `localhost/…` references
    /// are looked up in `kitops_home`.
    pub fn new(registries: Arc<RegistryClient>, kitops_home: Option<PathBuf>) -> Self {
        Self { registries, kitops_home }
    }
}

impl Repositories for Sources {
    fn open(&self, origin: &Origin) -> Result<Arc<dyn Repository>, SourceError> {
        match origin {
            Origin::Registry(reference) => Ok(self.registries.repository(reference)?),
            Origin::OciLayout { folder, repository, .. } => {
                Ok(Arc::new(OciLayout::open(folder)?.of_repository(repository.clone())))
            }
            Origin::KitStorage(reference) => {
                let home =
                    self.kitops_home.as_deref().ok_or_else(|| SourceError::Configuration {
                        what: format!("localhost/{}", reference.repository()),
                        detail: "kit's local storage is not known: set KITOPS_HOME or --config"
                            .to_owned(),
                    })?;
                Ok(Arc::new(KitStorage::open(home, reference)?))
            }
        }
    }
}
