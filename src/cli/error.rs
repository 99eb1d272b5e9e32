//! How a command fails: its message and its exit code.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use super::exit_codes::{DIFFERENT, INTERRUPTED, RUNNER_FAILED, TROUBLE};
use super::output::say;
use crate::control::api::{Failure, FailureKind};

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CliError {
    /// A failure with a message. Its kind gives the exit code.
    Failure(Failure),
    /// The reader of the output has closed it, as `head` does. This is no error.
    OutputClosed,
    /// Interrupted from the keyboard.
    Interrupted,
    /// The exit code of a program that the command ran for the user. The program has printed its own
    /// message.
    Passed(u8),
}

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

    /// A file that could not be written.
    pub(super) fn unwritten(path: &Path, error: &io::Error) -> Self {
        Failure::of_write(error, format!("cannot write {}: {error}", path.display())).into()
    }

    /// Ends a command that runs a program for the user. The exit code of a failure of kitfs itself must not look
    /// like one of the program.
    pub(super) fn of_runner(self) -> Self {
        match self {
            failure @ Self::Failure(_) => {
                failure.report();
                Self::Passed(RUNNER_FAILED)
            }
            other => other,
        }
    }

    /// Puts `what`, the subject of the failure, before the message.
    pub(super) fn about(self, what: &str) -> Self {
        match self {
            Self::Failure(failure) => {
                Self::new(failure.kind, format!("{what}: {}", failure.message))
            }
            Self::OutputClosed | Self::Interrupted | Self::Passed(_) => self,
        }
    }

    /// Prints the message and returns the exit code (docs/exit-codes.md).
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

/// Ends a comparison as diff(1) does. `outcome` tells whether both sides are the same.
pub(super) fn end_of_comparison(outcome: Result<bool, CliError>) -> Result<(), CliError> {
    match outcome {
        Ok(true) => Ok(()),
        Ok(false) => Err(CliError::Passed(DIFFERENT)),
        Err(error @ CliError::Failure(_)) => {
            error.report();
            Err(CliError::Passed(TROUBLE))
        }
        Err(error) => Err(error),
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// For errors of the standard output only. Other I/O errors name their file.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::new(of_output(&error), format!("cannot write the output: {error}")),
        }
    }
}

/// The kind of a failure to write to the standard output, which may be a file on a full disk.
fn of_output(error: &io::Error) -> FailureKind {
    match FailureKind::of_write(error) {
        FailureKind::Cache => FailureKind::Cache,
        _ => FailureKind::Internal,
    }
}
