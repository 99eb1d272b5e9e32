//! A failed request.

use serde::{Deserialize, Serialize};

/// The kind of a failure, for exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The request itself: a malformed reference or filter, a path that is not in the kit.
    Usage,
    /// No such kit, tag, repository or path.
    NotFound,
    /// Credentials are missing or refused.
    Unauthorized,
    /// The registry or the network.
    Unavailable,
    /// Not a kit, malformed, hostile, or not what its digest says.
    BadContent,
    /// The mountpoint: missing, not empty, busy, not a mount of kitfs.
    Mountpoint,
    /// The cache folder: held, unwritable, full.
    Cache,
    /// The daemon does not run, or does not answer.
    Daemon,
    /// The handle of a kit is of a process that is gone. A command opens the kit again, so no user meets it.
    Stale,
    /// Anything else.
    Internal,
}

/// A failure with its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// The message: the failure, its reference or path, and the next step.
    pub message: String,
}

impl Failure {
    /// A failure of `kind` with these words.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}
