//! `kitfs cat REF/PATH…`.

use std::ffi::OsString;
use std::io::{self, Write};

use futures_util::StreamExt;

use super::arguments::{KitArguments, NetworkArguments};
use super::error::CliError;
use super::output::open_kit;
use super::reference::{KitPath, parse_kit_path};
use super::settings::Settings;
use super::system::{self, Otherwise};
use crate::control::api::RawPath;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command downloads only what it prints: `kitfs cat REF/PATH | head` stops
after the first bytes.

Examples:
  kitfs cat ghcr.io/org/model:v1/config.json
  kitfs cat oci:./kits/article:v1/Kitfile oci:./kits/article:v1/src/train.py")]
pub(super) struct Arguments {
    /// A file of a kit.
    #[arg(value_name = "REF/PATH", required = true)]
    paths: Vec<OsString>,
    #[command(flatten)]
    kit: KitArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let wanted = arguments.paths.iter().map(|path| parse_kit_path(path));
    let wanted = by_kit(wanted.collect::<Result<Vec<_>, _>>()?);
    for (reference, paths) in wanted {
        let mut kit = settings.kit(reference, &arguments.kit, &arguments.network)?;
        let backend = system::backend(settings, &mut kit, false, Otherwise::AnyBackend).await?;
        let kit = open_kit(&backend, kit).await?;
        let mut bytes = kit.read(paths).await?;
        while let Some(piece) = bytes.next().await {
            io::stdout().lock().write_all(&piece?)?;
        }
    }
    Ok(io::stdout().lock().flush()?)
}

/// Groups consecutive paths of the same kit: one request reads them.
fn by_kit(wanted: Vec<KitPath>) -> Vec<(String, Vec<RawPath>)> {
    let mut kits: Vec<(String, Vec<RawPath>)> = Vec::new();
    for KitPath { reference, path } in wanted {
        match kits.last_mut() {
            Some((last, paths)) if *last == reference => paths.push(path),
            _ => kits.push((reference, vec![path])),
        }
    }
    kits
}
