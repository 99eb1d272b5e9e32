//! The errors of sending.

use std::sync::Arc;

use crate::oci::{Digest, ManifestError};
use crate::source::SourceError;

/// The failure of sending a kit. Variants are decisions for the caller.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// A source or a destination failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tag names another kit.
    #[error(
        "{place} has the tag `{tag}` already, for another kit ({}, not {}): choose another tag, or move \
         this one with --force",
        .there.short(), .sent.short()
    )]
    TagExists {
        /// The destination.
        place: String,
        /// The tag.
        tag: String,
        /// The manifest that it names.
        there: Digest,
        /// The manifest that was to be sent.
        sent: Digest,
    },
    /// The manifest to send cannot be understood, so its blobs are not known.
    #[error("{what}: {error}")]
    Manifest {
        /// The manifest and its place.
        what: String,
        /// The fault.
        error: ManifestError,
    },
    /// An index names more than can be sent.
    #[error(
        "{what} names {limit} manifests or more, or has indexes too deep inside one another: send its kits one by one"
    )]
    TooLarge {
        /// The index and its place.
        what: String,
        /// The most.
        limit: usize,
    },
    /// A file of a destination on this machine could not be written.
    #[error("cannot write {path}: {error}")]
    Unwritable {
        /// The file or folder.
        path: String,
        /// The reason.
        error: Arc<std::io::Error>,
    },
}
