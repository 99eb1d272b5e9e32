//! `kitfs info REF`.

use super::arguments::NetworkArguments;
use super::error::CliError;
use super::output::{print_json, print_line, print_table, print_warnings, short_digest};
use super::reference::parse_reference;
use super::settings::Settings;
use super::sizes;
use crate::daemon::Backend;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kitfs info ghcr.io/org/model:v1
  kitfs info --json oci:./kits/article:v1")]
pub(super) struct Arguments {
    /// The kit.
    #[arg(value_name = "REF")]
    reference: String,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let request = settings.kit(parse_reference(&arguments.reference)?, &arguments.network)?;
    let info = Backend::open(&settings.daemon()?).await?.info(request).await?;
    if arguments.json {
        return print_json(&info);
    }
    print_warnings(&info.warnings);
    if let Some(kitfile) = &info.kitfile {
        print_line(kitfile)?;
    }
    print_line(format_args!("{}  {}", info.family, info.digest))?;
    print_table(
        &["LAYER", "DIGEST", "SIZE", "TYPE", "PATH"],
        &[2],
        info.layers.into_iter().map(|layer| {
            vec![
                layer.role,
                short_digest(&layer.digest).to_owned(),
                sizes::show(layer.blob_bytes),
                layer.media_type,
                layer.path.unwrap_or_default(),
            ]
        }),
    )
}
