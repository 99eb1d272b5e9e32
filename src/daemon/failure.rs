//! The meaning of each room's errors to the user of a command: one exhaustive table for each room.
//!
//! The tables have no `_` arm, so a new variant in any room needs an exit code here before it compiles.

use std::io;

use crate::cache::{CacheError, why_poisoned};
use crate::control::api::{Failure, FailureKind};
use crate::fetch::FetchError;
use crate::fs::LoadError;
use crate::fuse::MountError;
use crate::kit::FilterError;
use crate::oci::{ChoiceError, Digest, LabelError, ReferenceError};
use crate::source::SourceError;
use crate::source::sending::SendError;

impl Failure {
    /// The failure of a complete layer without a computed digest. `title` names the layer.
    pub(super) fn unverifiable(title: &str) -> Self {
        let why = "is complete, but its digest could not be computed; see daemon.log in the cache \
                   folder";
        Self::new(FailureKind::Cache, format!("{title} {why}"))
    }

    /// The failure of the layer `digest`, whose bytes have the digest `got`. `title` names the layer.
    pub(super) fn poisoned(title: &str, digest: Digest, got: Digest) -> Self {
        let message = format!(
            "{title} is poisoned: {}, and nothing of it is served. Repair it where it came from, run \
             `kitfs cache rm {digest}`, and try again",
            why_poisoned(digest, got)
        );
        Self::new(FailureKind::BadContent, message)
    }
}

/// The kind that a daemon's exit code stands for; the inverse of [`FailureKind::exit_code`].
pub(super) fn kind_of_exit_code(code: Option<i32>) -> FailureKind {
    let is_it = |kind: &FailureKind| code == Some(i32::from(kind.exit_code()));
    FailureKind::ALL.into_iter().find(is_it).unwrap_or(FailureKind::Internal)
}

/// The failure for a full disk, a held folder or a broken file of the cache.
pub(super) fn cache_failure(error: &CacheError) -> Failure {
    Failure::new(cache_kind(error), error.to_string())
}

fn cache_kind(error: &CacheError) -> FailureKind {
    match error {
        CacheError::Held { .. }
        | CacheError::Io { .. }
        | CacheError::Full { .. }
        | CacheError::DiskFull { .. }
        | CacheError::InUse(_) => FailureKind::Cache,
        CacheError::Poisoned { .. }
        | CacheError::Changed { .. }
        | CacheError::WrongSize { .. }
        | CacheError::Layout(_) => FailureKind::BadContent,
        CacheError::Gap { .. } => FailureKind::Internal,
    }
}

fn source_kind(error: &SourceError) -> FailureKind {
    match error {
        SourceError::NotFound { .. } => FailureKind::NotFound,
        SourceError::Unauthorized { .. } => FailureKind::Unauthorized,
        SourceError::Throttled { .. }
        | SourceError::Unavailable { .. }
        | SourceError::Untrusted { .. }
        | SourceError::Protocol { .. } => FailureKind::Unavailable,
        SourceError::DigestMismatch { .. } | SourceError::Changed { .. } => FailureKind::BadContent,
        SourceError::Io { error, .. } => match error.kind() {
            io::ErrorKind::NotFound => FailureKind::NotFound,
            io::ErrorKind::PermissionDenied => FailureKind::Unauthorized,
            _ => FailureKind::Unavailable,
        },
        SourceError::Configuration { .. } => FailureKind::Usage,
    }
}

fn fetch_kind(error: &FetchError) -> FailureKind {
    match error {
        FetchError::Source(error) => source_kind(error),
        FetchError::Cache(error) => cache_kind(error),
        FetchError::Poisoned { .. } | FetchError::Malformed { .. } => FailureKind::BadContent,
        FetchError::NotKept { .. } | FetchError::LargeWindow(_) | FetchError::Thrashing(_) => {
            FailureKind::Cache
        }
    }
}

fn load_kind(error: &LoadError) -> FailureKind {
    match error {
        LoadError::Source { error, .. } | LoadError::Doubtful { error, .. } => source_kind(error),
        LoadError::Fetch { error, .. } => fetch_kind(error),
        LoadError::Choice { error, .. } => choice_kind(error),
        LoadError::Manifest { .. }
        | LoadError::Kit { .. }
        | LoadError::ParentReference { .. }
        | LoadError::Parents { .. }
        | LoadError::Tree { .. } => FailureKind::BadContent,
        LoadError::TakesNothing { .. } => FailureKind::Usage,
        LoadError::Cache { error, .. } => cache_kind(error),
    }
}

fn choice_kind(error: &ChoiceError) -> FailureKind {
    match error {
        ChoiceError::NoMatch { .. } => FailureKind::NotFound,
        ChoiceError::Several { .. } | ChoiceError::NoLabels(_) | ChoiceError::NotAnIndex => {
            FailureKind::Usage
        }
        ChoiceError::Empty | ChoiceError::TooDeep(_) => FailureKind::BadContent,
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::new(source_kind(&error), error.to_string())
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let kind = match &error {
            SendError::Source(error) => source_kind(error),
            SendError::TagExists { .. } | SendError::TooLarge { .. } => FailureKind::Usage,
            SendError::Manifest { .. } => FailureKind::BadContent,
            SendError::Unwritable { error, .. } => FailureKind::of_write(error),
        };
        Self::new(kind, error.to_string())
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::new(fetch_kind(&error), error.to_string())
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::new(load_kind(&error), error.to_string())
    }
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        cache_failure(&error)
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        let kind = match &error {
            MountError::Mountpoint(_)
            | MountError::Unavailable(_)
            | MountError::Busy(_)
            | MountError::Io(_) => FailureKind::Mountpoint,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Self::new(FailureKind::Usage, error.to_string())
    }
}

impl From<LabelError> for Failure {
    fn from(error: LabelError) -> Self {
        Self::new(FailureKind::Usage, error.to_string())
    }
}

impl From<FilterError> for Failure {
    fn from(error: FilterError) -> Self {
        Self::new(FailureKind::Usage, error.to_string())
    }
}

/// The failure of work that was handed to another thread and panicked there.
pub(super) fn panicked(error: tokio::task::JoinError) -> Failure {
    let message = format!("a fault in kitfs itself ({error}): please report it, with the log");
    Failure::new(FailureKind::Internal, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_lead_back_to_their_kind() {
        for kind in FailureKind::ALL {
            assert_ne!(kind.exit_code(), 0);
            assert_eq!(kind_of_exit_code(Some(kind.exit_code().into())), kind);
        }
        assert_eq!(kind_of_exit_code(None), FailureKind::Internal);
        assert_eq!(kind_of_exit_code(Some(77)), FailureKind::Internal);
    }
}
