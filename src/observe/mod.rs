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

use std::fmt::Display;
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
    if format == LogFormat::Json {
        // The default hook writes text between the objects.
        std::panic::set_hook(Box::new(|panic| {
            let trace = std::backtrace::Backtrace::capture();
            tracing::error!(backtrace = %trace, "{panic}");
        }));
    }
    // `try_init` fails only when the process has a log already, which stays.
    let _ = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    outcome
}

/// A line of the log for a process without `tracing`: a warning of `source`, with a newline.
pub fn log_line(format: LogFormat, source: &str, message: &dyn Display) -> String {
    match format {
        LogFormat::Text => format!("{source}: {message}\n"),
        LogFormat::Json => {
            let line = serde_json::json!({
                "timestamp": jiff::Timestamp::now().to_string(),
                "level": "WARN",
                "message": message.to_string(),
                "target": format!("kitfs::{source}"),
            });
            format!("{line}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_or_one_object_whatever_the_message_has() {
        let message = "cannot start \"a\nb\\\": \u{1}";
        assert_eq!(log_line(LogFormat::Text, "keeper", &"it died"), "keeper: it died\n");
        let line = log_line(LogFormat::Json, "keeper", &message);
        assert_eq!(line.lines().count(), 1, "{line}");
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["message"], message);
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["target"], "kitfs::keeper");
        let time: jiff::Timestamp = object["timestamp"].as_str().unwrap().parse().unwrap();
        assert!(time <= jiff::Timestamp::now());
    }
}
