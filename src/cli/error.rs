//! How a command ends when it does not end well.

use std::io;
use std::process::ExitCode;

use super::output::say;
use crate::daemon::api::{Failure, FailureKind};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(super) enum CliError {
    /// With words, and an exit code by its kind.
    Failure(Failure),
    /// Whoever read the output has seen enough (`| head`): no reason to complain.
    OutputClosed,
    /// Interrupted from the keyboard.
    Interrupted,
    /// A command that was run for the user ended with this code, and has said why.
    Passed(u8),
}

/// The exit code of a program that SIGINT ended, as shells write it.
const INTERRUPTED: u8 = 130;

impl CliError {
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self::Failure(Failure::new(kind, message))
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Usage, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Internal, message)
    }

    /// The same, with what it is about in front.
    pub(super) fn about(self, what: &str) -> Self {
        match self {
            Self::Failure(failure) => {
                Self::new(failure.kind, format!("{what}: {}", failure.message))
            }
            Self::OutputClosed | Self::Interrupted | Self::Passed(_) => self,
        }
    }

    /// Says what went wrong, and gives the exit code (docs/operations.md).
    pub(super) fn report(self) -> ExitCode {
        match self {
            Self::Failure(failure) => {
                say(&failure);
                ExitCode::from(failure.kind.exit_code())
            }
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Interrupted => ExitCode::from(INTERRUPTED),
            Self::Passed(code) => ExitCode::from(code),
        }
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Only for the standard output: errors of files name them.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::internal(format!("cannot write the output: {error}")),
        }
    }
}
