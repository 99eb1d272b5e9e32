//! The failures of packing.

use std::io;
use std::path::PathBuf;

use crate::kit::KitfileError;
use crate::kit::ignore::IgnoreError;
use crate::kit::packing::PlanError;
use crate::source::kit_storage::writing::StorageError;

/// Why a folder could not be packed. Messages name the file and the next step.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// The reason.
        error: io::Error,
    },
    /// The folder has no Kitfile.
    #[error(
        "{} has no Kitfile, which says what belongs into the kit. Write one, or name one with -f. An example:\n\
         \n    manifestVersion: 1.0.0\n    package:\n      name: my-model\n    model:\n      path: model.gguf\n    code:\n      - path: src",
        folder.display()
    )]
    NoKitfile {
        /// The folder.
        folder: PathBuf,
    },
    /// The Kitfile is malformed.
    #[error("{kitfile}: {error}")]
    Kitfile {
        /// The file.
        kitfile: String,
        /// The fault.
        error: KitfileError,
    },
    /// The `.kitignore` is malformed.
    #[error("{}: {error}", folder.display())]
    Ignore {
        /// The folder.
        folder: PathBuf,
        /// The fault.
        error: IgnoreError,
    },
    /// The folder cannot be packed by this Kitfile.
    #[error("{kitfile}: {error}")]
    Plan {
        /// The Kitfile.
        kitfile: String,
        /// The fault.
        error: PlanError,
    },
    /// A file changed while it was packed.
    #[error(
        "{path} {change} while it was packed; nothing was stored under a tag. Pack again when nobody writes there"
    )]
    Changed {
        /// The file.
        path: String,
        /// The event: `shrank`, `was removed`.
        change: &'static str,
    },
    /// A file is too large or has too long a path for a kit.
    #[error("{path} cannot be packed: {reason}")]
    Unsupported {
        /// The file.
        path: String,
        /// The reason.
        reason: String,
    },
    /// The storage could not be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
