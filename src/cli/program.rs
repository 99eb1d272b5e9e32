//! A program that a command runs for the user.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::error::CliError;
use super::exit_codes::{BY_SIGNAL, NOT_FOUND, NOT_RUNNABLE};
use super::output::say;
use crate::process::signals::{Received, Signals};

/// The signals that are passed on. SIGKILL and SIGSTOP cannot be passed on. The default action of
/// other signals is right for both processes.
pub(super) const PASSED_ON: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

/// The exit code of a program; 128 and the signal's number if a signal ended it, as in shells.
pub(super) fn exit_code_of(status: ExitStatus) -> i32 {
    status.code().or(status.signal().map(|signal| i32::from(BY_SIGNAL) + signal)).unwrap_or(1)
}

/// The exit code of a command that a signal ended.
pub(super) fn exit_code_by(signal: Signal) -> CliError {
    // The numbers of signals are below 65.
    CliError::Passed(BY_SIGNAL + signal.as_raw() as u8)
}

/// Says that a program cannot be run, and gives the exit code of shells for that.
pub(super) fn not_run(program: &OsStr, error: &io::Error) -> CliError {
    say(format_args!("{} cannot be run: {error}", program.display()));
    let is_missing = error.kind() == io::ErrorKind::NotFound;
    CliError::Passed(if is_missing { NOT_FOUND } else { NOT_RUNNABLE })
}

/// Runs a program to its end in this process's group, with its standard streams. Passes signals on, except
/// those that the terminal has sent to the whole group.
///
/// # Errors
/// The exit code of the program, unless it is 0. 127 when there is no such program, 126 when it cannot be run.
pub(super) async fn run(
    command: &[OsString],
    variables: impl IntoIterator<Item = (String, PathBuf)>,
    signals: &mut Signals,
) -> Result<(), CliError> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(CliError::usage("there is no command to run"));
    };
    let spawned = Command::new(program).args(arguments).envs(variables).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            return Err(not_run(program, &error));
        }
    };
    let status = loop {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        tokio::select! {
            status = child.wait() => break status?,
            Received { signal, is_of_terminal } = signals.next() => {
                if let (Some(pid), false) = (pid, is_of_terminal) {
                    // It may have just ended.
                    let _ = kill_process(pid, signal);
                }
            }
        }
    };
    match exit_code_of(status) {
        0 => Ok(()),
        // A parent process sees only the low 8 bits of an exit code.
        code => Err(CliError::Passed(code as u8)),
    }
}
