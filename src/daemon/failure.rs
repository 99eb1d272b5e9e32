//! What a room's error means to the user of a command.

use super::api::{Failure, FailureKind};
use crate::cache::CacheError;

pub(super) fn cache_failure(error: &CacheError) -> Failure {
    Failure::new(FailureKind::Cache, error.to_string())
}

/// The kind that a daemon's exit code stands for; the inverse of [`FailureKind::exit_code`].
pub(super) fn kind_of_exit_code(_code: Option<i32>) -> FailureKind {
    todo!()
}
