//! `kitfs copy REF DEST`.

use super::arguments::NetworkArguments;
use super::error::CliError;
use super::reference::parse_reference;
use super::sending::{SendArguments, destination_of, repository_of, send};
use super::settings::Settings;
use crate::control::api::Failure;
use crate::daemon::sources_of_command;
use crate::oci::Origin;
use crate::source::Repositories;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The copy has the same digest. Bytes go from registry to registry, and none is
kept on this machine. Within a registry it takes layers from its other
repository. An index (several kits under one tag) is copied with all its kits.
Other tags and parents are not copied. `kitfs cp` copies files of a kit.

Examples:
  kitfs copy ghcr.io/org/model:v2 registry.example.com/org/model:v2
  kitfs copy ghcr.io/org/model:v2 oci:./kits:v2
  kitfs copy oci:./kits:v2 ghcr.io/org/model:v2")]
pub(super) struct Arguments {
    /// The kit or index.
    #[arg(value_name = "REF")]
    from: String,
    // No doc comment: rustdoc would take the brackets for links.
    #[arg(value_name = "DEST", help = "HOST/REPOSITORY[:TAG] or oci:FOLDER[:TAG]")]
    to: String,
    #[command(flatten)]
    send: SendArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let from = Origin::parse(&parse_reference(&arguments.from)?).map_err(Failure::from)?;
    let to = destination_of(&parse_reference(&arguments.to)?, &from)?;
    let sources =
        sources_of_command(&settings.network(&arguments.network)?).map_err(Failure::from)?;
    let source = sources.open(&from).map_err(Failure::from)?;
    let other = repository_of(&from);
    let others = move |_| other.iter().cloned().collect();
    send(&sources, source, &from, &to, &arguments.send, others, "copied to").await
}
