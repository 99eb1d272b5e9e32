//! `kitfs cache ls|rm|clear|verify`.

use clap::Subcommand;

use super::error::CliError;
use super::output::{count_of, print_json, print_line, print_table, print_warnings, state_name};
use super::reference::parse_reference;
use super::settings::Settings;
use super::sizes;
use crate::control::api::{CacheReport, CacheRequest, CachedLayer, FailureKind};
use crate::daemon::Backend;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
`rm` and `clear` keep the layers of kits that are mounted.

Examples:
  kitfs cache ls
  kitfs cache rm ghcr.io/org/model:v1
  kitfs cache rm sha256:804155620358a24d3bd5118af859ae36e299b13b812a9dd0d59d537a5310522a")]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the layers in the cache.
    Ls {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Remove the layers of a kit, or one layer.
    Rm {
        /// A reference, or the digest of a manifest or layer (sha256: and eight digits are enough).
        #[arg(value_name = "WHAT")]
        what: String,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Remove every layer that no mount uses, and the manifests and configs of kits without layers.
    Clear {
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Check every byte in the cache against its checksum, and drop wrong bytes.
    #[command(after_help = "\
The checksum is from the download. For a confirmed layer it follows from the
layer's digest. The command fails with exit code 6 when bytes are wrong. Later
reads download them again.")]
    Verify {
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let request = match &arguments.command {
        Command::Ls { .. } => CacheRequest::List,
        Command::Rm { what, .. } => CacheRequest::Remove(parse_reference(what)?),
        Command::Clear { .. } => CacheRequest::Clear,
        Command::Verify { .. } => CacheRequest::Verify,
    };
    let report = Backend::open(&settings.daemon()?).await?.ask(request).await?;
    match arguments.command {
        Command::Ls { json: true } => print_json(&report.layers),
        Command::Ls { json: false } => print_layers(&report.layers),
        Command::Rm { json: true, .. } | Command::Clear { json: true } => {
            print_json(&report)?;
            fail_with(&report, "removed")
        }
        Command::Verify { json: true } => {
            print_json(&report)?;
            judge_verified(&report)
        }
        Command::Rm { .. } => {
            let is_all_kept = report.layers.is_empty();
            match report.kept.first() {
                Some(kept) if is_all_kept && report.failed.is_empty() => {
                    Err(CliError::new(FailureKind::Cache, kept))
                }
                _ => print_removed(&report),
            }
        }
        Command::Clear { .. } => print_removed(&report),
        Command::Verify { .. } => print_verified(&report),
    }
}

fn print_layers(layers: &[CachedLayer]) -> Result<(), CliError> {
    print_table(
        &["LAYER", "TYPE", "SIZE", "RESIDENT", "STATE", "REFERENCES"],
        &[2, 3],
        layers.iter().map(|layer| {
            vec![
                layer.digest.clone(),
                layer.encoding.clone(),
                sizes::show(layer.blob_bytes),
                sizes::show_resident(layer.resident_bytes, layer.unchecked_bytes),
                state_name(layer.state).to_owned(),
                layer.references.join(", "),
            ]
        }),
    )
}

fn print_removed(report: &CacheReport) -> Result<(), CliError> {
    print_warnings(&report.kept);
    let documents = match report.removed_documents {
        0 => String::new(),
        count => format!(" and {}", count_of(count, "document", "documents")),
    };
    print_line(format_args!(
        "removed {}{documents}, {}",
        count_of(report.layers.len() as u64, "layer", "layers"),
        sizes::show(report.removed_bytes)
    ))?;
    fail_with(report, "removed")
}

/// Fails when the report has layers that could not be `done`.
fn fail_with(report: &CacheReport, done: &str) -> Result<(), CliError> {
    let Some((last, others)) = report.failed.split_last() else { return Ok(()) };
    print_warnings(others);
    let count = count_of(report.failed.len() as u64, "layer", "layers");
    Err(CliError::new(FailureKind::Cache, format!("{count} could not be {done}: {last}")))
}

fn print_verified(report: &CacheReport) -> Result<(), CliError> {
    print_line(format_args!(
        "checked {} of {}",
        sizes::show(report.checked_bytes),
        count_of(report.layers.len() as u64, "layer", "layers")
    ))?;
    judge_verified(report)
}

/// Fails when bytes were wrong or could not be checked.
fn judge_verified(report: &CacheReport) -> Result<(), CliError> {
    if report.dropped_chunks == 0 {
        return fail_with(report, "checked");
    }
    print_warnings(&report.failed);
    let message = format!(
        "{} wrong bytes and no longer in the cache; reads download them again. Check the disk",
        count_of(report.dropped_chunks, "chunk had", "chunks had")
    );
    Err(CliError::new(FailureKind::BadContent, message))
}
