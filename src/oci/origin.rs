//! Where a kit is read from.
#![allow(unused_variables, dead_code)]

use std::path::PathBuf;

use super::reference::ReferenceError;
use super::{Reference, Selector};

/// Where a kit is read from: what a user types where the commands say `REF`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`: a registry.
    Registry(Reference),
    /// `oci:FOLDER[:TAG|@DIGEST]`: an OCI image layout; without a selector its only manifest.
    OciLayout {
        /// The folder that holds `oci-layout` and `index.json`.
        folder: PathBuf,
        /// Which manifest, where the folder has several.
        selector: Option<Selector>,
    },
    /// `localhost/REPOSITORY[:TAG|@DIGEST]` or a name without a host: kit's own local storage.
    KitStorage(Reference),
}

impl Origin {
    /// Parses what a user types.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        todo!()
    }

    /// Which manifest is meant; `None` for the only one of a layout.
    pub fn selector(&self) -> Option<&Selector> {
        match self {
            Self::Registry(reference) | Self::KitStorage(reference) => Some(reference.selector()),
            Self::OciLayout { selector, .. } => selector.as_ref(),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}
