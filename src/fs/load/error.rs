//! The errors of loading a kit.

use super::resolve::Kin;
use crate::fetch::FetchError;
use crate::kit::{KitError, ParentsError, TreeError};
use crate::oci::{ChoiceError, ManifestError, ReferenceError};
use crate::source::SourceError;

/// The failure to load a kit. Messages name the reference of the kit, or of the parent that is at fault.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The source failed.
    #[error("{reference}: {}", error.told_of(reference))]
    Source {
        /// The kit or parent.
        reference: String,
        /// The reason.
        error: Box<SourceError>,
    },
    /// The registry does not answer, and the kit under this tag in kit's storage may be another one.
    #[error("{reference}: {error}; {doubt}")]
    Doubtful {
        /// The kit or parent.
        reference: String,
        /// The registry's failure.
        error: Box<SourceError>,
        /// The doubt about kit's storage, and the advice.
        doubt: String,
    },
    /// A layer failed.
    #[error("{reference}: {layer} cannot be opened: {}", reason(error, reference))]
    Fetch {
        /// The kit or parent.
        reference: String,
        /// The layer's role, Kitfile entry and short digest.
        layer: String,
        /// The reason.
        error: Box<FetchError>,
    },
    /// The manifest is not one of a kit.
    #[error("{reference}: {error}")]
    Manifest {
        /// The kit or parent.
        reference: String,
        /// The reason.
        error: ManifestError,
    },
    /// The reference leads to an index, and the labels choose no kit or several.
    #[error("{reference}: {error}")]
    Choice {
        /// The kit or parent.
        reference: String,
        /// The reason.
        error: ChoiceError,
    },
    /// The kit is malformed, or not a kit.
    #[error("{reference}: {error}")]
    Kit {
        /// The kit or parent.
        reference: String,
        /// The reason.
        error: KitError,
    },
    /// `model.path` looks like a reference and is none.
    #[error("{reference}: its parent cannot be found: {error}")]
    ParentReference {
        /// The kit.
        reference: String,
        /// The reason.
        error: ReferenceError,
    },
    /// The parents make no chain.
    #[error("{reference}: {error}")]
    Parents {
        /// The kit.
        reference: String,
        /// The reason.
        error: ParentsError,
    },
    /// A filter takes nothing.
    #[error(
        "{reference}: {idle} takes nothing; the kit has {offered} (--allow-empty goes on all the same)"
    )]
    TakesNothing {
        /// The kit.
        reference: String,
        /// The filters: `` --filter `docs:x` ``.
        idle: String,
        /// The entries of the kit.
        offered: String,
    },
    /// The layers make no tree.
    #[error("{reference}: {error}")]
    Tree {
        /// The kit.
        reference: String,
        /// The reason.
        error: TreeError,
    },
    /// The cache cannot keep a manifest.
    #[error("{reference}: {error}")]
    Cache {
        /// The kit or parent.
        reference: String,
        /// The reason.
        error: crate::cache::CacheError,
    },
}

/// The failure of a layer, without naming the layer a second time.
fn reason(error: &FetchError, reference: &str) -> String {
    match error {
        FetchError::Source(error) => error.told_of(reference),
        FetchError::Malformed { detail, .. } => {
            format!("{detail}. Pack the kit again, or mount it without the layer (--filter)")
        }
        error => error.to_string(),
    }
}

/// Attaches the reference to an error of another room.
pub(super) trait For<T> {
    fn of(self, kin: &Kin<'_>) -> Result<T, LoadError>;
}

macro_rules! attach {
    ($error:ty, $variant:ident) => {
        impl<T> For<T> for Result<T, $error> {
            fn of(self, kin: &Kin<'_>) -> Result<T, LoadError> {
                self.map_err(|error| LoadError::$variant { reference: kin.to_string(), error })
            }
        }
    };
}

impl<T> For<T> for Result<T, SourceError> {
    fn of(self, kin: &Kin<'_>) -> Result<T, LoadError> {
        let reference = || kin.to_string();
        self.map_err(|error| LoadError::Source { reference: reference(), error: Box::new(error) })
    }
}

attach!(ManifestError, Manifest);
attach!(ChoiceError, Choice);
attach!(KitError, Kit);
attach!(ReferenceError, ParentReference);
attach!(ParentsError, Parents);
attach!(TreeError, Tree);
attach!(crate::cache::CacheError, Cache);
