//! Where a kit is read from.

use std::path::PathBuf;

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
