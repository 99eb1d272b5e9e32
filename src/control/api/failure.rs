//! A failed request.

use std::io;

use serde::{Deserialize, Serialize};

/// The kind of a failure; each has an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// A disk or folder of this machine, the cache folder or one that a command writes to: full, not writable, held.
    Cache,
    /// The daemon does not run, or does not answer.
    Daemon,
    /// The handle of a kit is of a process that is gone. A command opens the kit again, so no user meets it.
    Stale,
    /// Anything else.
    Internal,
}

impl FailureKind {
    /// Every kind that ends a command.
    pub const ALL: [Self; 9] = [
        Self::Internal,
        Self::Usage,
        Self::NotFound,
        Self::Unauthorized,
        Self::Unavailable,
        Self::BadContent,
        Self::Mountpoint,
        Self::Cache,
        Self::Daemon,
    ];

    /// The exit code of a command that fails like this (docs/exit-codes.md).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Unauthorized => 4,
            Self::Unavailable => 5,
            Self::BadContent => 6,
            Self::Mountpoint => 7,
            Self::Cache => 8,
            Self::Daemon | Self::Stale => 9,
        }
    }

    /// The kind of a failure to write to a file of this machine: of its disk, or of the place that was named.
    pub fn of_write(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::Other => Self::Usage,
            _ => Self::Cache,
        }
    }

    /// The meaning of the exit code, for people.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "kitfs itself, or the system under it",
            Self::Usage => {
                "the command line, a reference, a filter, a destination, a tag that names another kit"
            }
            Self::NotFound => "no such kit, tag, repository, path or file",
            Self::Unauthorized => "credentials are missing or refused",
            Self::Unavailable => "the registry or the network",
            Self::BadContent => {
                "not a kit, malformed, hostile, or another digest than the manifest says"
            }
            Self::Mountpoint => "the mountpoint",
            Self::Cache => {
                "a disk or folder of this machine (the cache, or where a command writes): full, not writable, held"
            }
            Self::Daemon | Self::Stale => "the daemon does not run or does not answer",
        }
    }
}

/// A failure with its words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

    /// A failure to write to a file of this machine.
    pub fn of_write(error: &io::Error, message: impl Into<String>) -> Self {
        Self::new(FailureKind::of_write(error), message)
    }
}
