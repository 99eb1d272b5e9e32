//! The set-up of the log, the text form of sizes in messages, metrics, and the redaction of secrets.
//!
//! - [`metrics`]: names, types and help texts of all metrics, and the text form of Prometheus.
//! - [`reads`]: counts and latencies of reads.
//!
//! The log goes to the standard error, as text for people or as one JSON object a line for collectors.
//! The standard error of a daemon is the file `daemon.log` in its cache folder, or the journal. This
//! room reads no environment; `cli` passes the filter.

pub mod metrics;
pub mod reads;
mod redaction;
mod sizes;

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

pub use redaction::{REDACTED, Redactor, is_secret_name, without_user};
pub use sizes::shown_bytes;

/// The format of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// A filter that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FilterError(String);

/// Starts the log of this process. Call it once, before other threads log.
///
/// `filter` has the grammar of `EnvFilter`, such as `warn,kitfs=debug`.
///
/// # Errors
/// When the filter does not parse. The log then has warnings and errors.
pub fn start_log(filter: &str, format: LogFormat) -> Result<(), FilterError> {
    let (filter, outcome) = match EnvFilter::try_new(filter) {
        Ok(filter) => (filter, Ok(())),
        Err(error) => (EnvFilter::new("warn"), Err(FilterError(error.to_string()))),
    };
    // A line that cannot be written is lost (the disk is full, a collector is gone). The default would report the
    // failure on the standard error, and panic if that fails too.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .log_internal_errors(false);
    // `try_init` fails only when the process has a log already, which stays.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    outcome
}
