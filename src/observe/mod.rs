//! What kitfs tells of itself: the set-up of its log.
//!
//! The log goes to the standard error, as text for people or one JSON object a line for
//! collectors; a daemon's standard error is `daemon.log` in its cache folder, or the journal.
//! Nothing here reads the environment: the commands do.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object.
    Json,
}

/// A filter that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

/// Starts the log of this process. To be called once, before other threads log.
///
/// `filter` is in `EnvFilter`'s grammar: `warn,kitfs=debug`.
///
/// # Errors
/// When the filter does not parse; warnings are logged then.
pub fn start_log(filter: &str, format: LogFormat) -> Result<(), FilterError> {
    let (filter, outcome) = match EnvFilter::try_new(filter) {
        Ok(filter) => (filter, Ok(())),
        Err(error) => (EnvFilter::new("warn"), Err(FilterError(error.to_string()))),
    };
    // A line that cannot be written (the disk is full, a collector is gone) is lost. To say so on
    // the standard error, as is the default, would panic there.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .log_internal_errors(false);
    // A process that has a log already keeps it.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    outcome
}
