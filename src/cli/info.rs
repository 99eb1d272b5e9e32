//! `kitfs info REF`.

use super::arguments::{KitArguments, LabelArguments, NetworkArguments};
use super::error::CliError;
use super::kept::Sought;
use super::output::{
    print_json, print_line, print_table, print_warnings, say_while_waiting, short_digest,
};
use super::reference::parse_reference;
use super::settings::Settings;
use super::sizes;
use crate::control::api::{IndexEntryInfo, IndexInfo, Info, InfoRequest, KitInfo, RemoteInfo};
use crate::daemon::Backend;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
For an index (several kits under one tag) the command lists the kits and their
labels. With --label it shows the kit with that label.

Examples:
  kitfs info ghcr.io/org/model:v1
  kitfs info ghcr.io/org/model:all --label quantization=q4_0
  kitfs info --json oci:./kits/article:v1")]
pub(super) struct Arguments {
    /// The kit or index.
    #[arg(value_name = "REF")]
    reference: String,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    choice: LabelArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let reference = parse_reference(&arguments.reference)?;
    let kit = KitArguments { choice: arguments.choice, no_remote: false };
    let request = settings.kit(reference, &kit, &arguments.network)?;
    let backend = Backend::open(&settings.daemon()?).await?;
    let sought = Sought::of(&request);
    let info = backend.ask(InfoRequest { kit: request, facts: false });
    let info = match say_while_waiting(&arguments.reference, info).await {
        Ok(info) => info,
        Err(failure) => return Err(sought.explain(failure).await.into()),
    };
    match (info, arguments.json) {
        (Info::Kit(kit), true) => print_json(&kit),
        (Info::Kit(kit), false) => print_kit(kit),
        (Info::Index(index), true) => print_json(&index),
        (Info::Index(index), false) => print_index(index),
    }
}

fn print_kit(kit: KitInfo) -> Result<(), CliError> {
    print_warnings(&kit.warnings);
    if let Some(kitfile) = &kit.kitfile {
        print_line(kitfile)?;
    }
    print_line(format_args!("{}  {}", kit.family, kit.digest))?;
    print_table(
        &["LAYER", "DIGEST", "SIZE", "TYPE", "PATH"],
        &[2],
        kit.layers.into_iter().map(|layer| {
            vec![
                layer.role,
                short_digest(&layer.digest).to_owned(),
                sizes::show(layer.blob_bytes),
                layer.media_type,
                layer.path.unwrap_or_default(),
            ]
        }),
    )?;
    match kit.remote.is_empty() {
        true => Ok(()),
        false => print_remote(kit.remote),
    }
}

fn print_remote(remote: Vec<RemoteInfo>) -> Result<(), CliError> {
    print_line("")?;
    let rows = remote.into_iter().map(|data| {
        let etag = data.etag.unwrap_or_else(|| "-".to_owned());
        vec![data.place, etag, data.path]
    });
    print_table(&["REMOTE DATA SET", "ETAG", "PATH"], &[], rows)
}

/// Digests are not shortened here, so that a user can paste them behind `REPOSITORY@`.
fn print_index(index: IndexInfo) -> Result<(), CliError> {
    print_warnings(&index.warnings);
    print_line(format_args!("{}  {}", index.family, index.digest))?;
    let has_platforms = index.entries.iter().any(|entry| entry.platform.is_some());
    let headings = match has_platforms {
        true => ["PLATFORM", "DIGEST", "LABELS"],
        false => ["ORIGINAL TAG", "DIGEST", "LABELS"],
    };
    let rows = index.entries.into_iter().map(|entry| {
        let labels = labels(&entry);
        let name = if has_platforms { entry.platform } else { entry.original_tag };
        vec![name.unwrap_or_else(|| "-".to_owned()), entry.digest, labels]
    });
    print_table(&headings, &[], rows)
}

/// Labels as `--label` takes them, one behind the other.
fn labels(entry: &IndexEntryInfo) -> String {
    let labels: Vec<_> = entry.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.join("  ")
}
