//! `kitfs diff REF1 REF2 [PATH]`.
//!
//! The daemon compares; this file prints. The exit code is that of diff(1): 0 without a difference, 1 with
//! one, 2 for trouble.

pub(in crate::cli) mod facts;
mod files;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::{CliError, end_of_comparison};
use super::kept::Sought;
use super::log::FileCounts;
use super::mounted_kit::mounted_kit;
use super::opening::{Opening, show_pass};
use super::output::{byte_bar, print_json, print_warnings, printable};
use super::reference::parse_reference;
use super::settings::Settings;
use super::system::{self, Otherwise};
use crate::control::api::{
    CompareEvent, CompareRequest, Comparison, FailureKind, FileChangeKind, RawPath,
};
use crate::overlay::Overlay;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Compares digests, of layers or as the packer has listed them (marked with *).
Where nothing tells, a file of the same size is `maybe` changed. The exit code is 0 without a difference, 1 with one, and 2 for trouble.

Examples:
  kitfs diff ghcr.io/org/model:v1 ghcr.io/org/model:v2
  kitfs diff --content ghcr.io/org/model:v1 ghcr.io/org/model:v2 tokenizer/
  kitfs diff --kitfile ghcr.io/org/model:v1 ghcr.io/org/model:v2
  kitfs diff --name-only /models ghcr.io/org/model:v2")]
pub(super) struct Arguments {
    /// The earlier version; a mounted directory stands for its kit.
    #[arg(value_name = "REF1")]
    before: String,
    /// The later version.
    #[arg(value_name = "REF2")]
    after: String,
    /// Compare only this file or directory.
    #[arg(value_name = "PATH", conflicts_with = "kitfile")]
    path: Option<OsString>,
    /// Compare the bytes of files that may have changed.
    #[arg(long, conflicts_with = "kitfile")]
    content: bool,
    /// Compare the Kitfiles: parameters, data sets, and so on.
    #[arg(long)]
    kitfile: bool,
    /// With --kitfile, show equal values too.
    #[arg(long, requires = "kitfile")]
    all: bool,
    /// Print only the paths of files that differ.
    #[arg(long, conflicts_with_all = ["json", "kitfile"])]
    name_only: bool,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    end_of_comparison(compare(settings, arguments).await)
}

/// Prints the differences. Returns whether there are none.
async fn compare(settings: &Settings, arguments: Arguments) -> Result<bool, CliError> {
    let request = |text: &str| {
        refuse_view(Path::new(text))?;
        let reference = match mounted_kit(Path::new(text))? {
            Some(origin) => origin.to_string(),
            None => parse_reference(text)?,
        };
        settings.kit(reference, &arguments.kit, &arguments.network)
    };
    let (mut before, mut after) = (request(&arguments.before)?, request(&arguments.after)?);
    let kits = &mut [&mut before, &mut after];
    let backend = system::backend_for_all(settings, kits, false, Otherwise::AnyBackend).await?;
    if arguments.kitfile {
        return facts::compare(&backend, before, after, arguments.all, arguments.json).await;
    }
    let path = RawPath(arguments.path.map(OsString::into_vec).unwrap_or_default());
    let sought = [Sought::of(&before), Sought::of(&after)];
    let request = CompareRequest { before, after, path, content: arguments.content };
    let mut opening = Opening::new();
    let comparing = byte_bar(0, "comparing");
    let mut show = |event| match event {
        CompareEvent::Opening(progress) => opening.show(progress),
        CompareEvent::Comparing(progress) => show_pass(&comparing, progress),
    };
    let compared = tokio::select! {
        compared = backend.call(request, &mut show) => compared,
        _ = tokio::signal::ctrl_c() => return Err(CliError::Interrupted),
    };
    drop(opening);
    comparing.finish_and_clear();
    let comparison = match compared {
        Ok(comparison) => comparison,
        Err(mut failure) => {
            for kit in sought {
                failure = kit.explain_if_named(failure).await;
            }
            return Err(failure.into());
        }
    };
    print_warnings(&comparison.warnings);
    match (arguments.json, arguments.name_only) {
        (true, _) => print_json(&comparison)?,
        (false, true) => files::print_names(&comparison)?,
        (false, false) => files::print(&comparison)?,
    }
    check_all_is_there(&comparison)?;
    Ok(comparison.changes.is_empty())
}

/// Fails when something could not be compared. The warnings have given the reasons.
fn check_all_is_there(comparison: &Comparison) -> Result<(), CliError> {
    let missing: Vec<_> = comparison.missing.iter().map(|path| printable(&path.0)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{} could not be compared: the data could not be had; --no-remote leaves remote data out",
        missing.join(", ")
    );
    Err(CliError::new(FailureKind::Unavailable, message))
}

/// # Errors
/// When a writable view is mounted at a directory: its changes are in no kit.
fn refuse_view(directory: &Path) -> Result<(), CliError> {
    if !directory.is_dir() {
        return Ok(());
    }
    let view = Overlay::at(directory).map_err(|error| CliError::usage(error.to_string()))?;
    let Some(view) = view else { return Ok(()) };
    let place = directory.display();
    Err(CliError::usage(format!(
        "{place} is a writable view of {}: `kitfs overlay diff {place}` lists its changes; name the kit to compare its \
         base",
        view.base.pinned()
    )))
}

/// The number of files of each kind of change.
pub(super) fn count_changes(comparison: &Comparison) -> FileCounts {
    let mut counts = FileCounts { same: comparison.same_files, ..FileCounts::default() };
    for change in &comparison.changes {
        *match change.kind {
            FileChangeKind::Added => &mut counts.added,
            FileChangeKind::Removed => &mut counts.removed,
            FileChangeKind::Changed => &mut counts.changed,
            FileChangeKind::Renamed => &mut counts.renamed,
            FileChangeKind::Mode => &mut counts.mode,
            FileChangeKind::Maybe => &mut counts.maybe,
        } += 1;
    }
    counts
}
