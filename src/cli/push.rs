//! `kitfs push REF [DEST]`.

use std::sync::Arc;

use super::arguments::NetworkArguments;
use super::error::CliError;
use super::reference::parse_reference;
use super::sending::{SendArguments, destination_of, repository_of, send};
use super::settings::Settings;
use crate::control::api::{Failure, FailureKind};
use crate::daemon::sources_of_command;
use crate::fs::doubt_about;
use crate::oci::Origin;
use crate::source::{Repositories, Repository};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
REF is a kit on this machine: in the local storage of `kit`, where `kitfs pack`
and `kit pack` put it, or in an OCI layout folder. kitfs sends only what the
registry lacks. A push that ends early shows nothing, and the next one goes on.
Parents and other kits that the kit refers to are not sent.

Examples:
  kitfs push ghcr.io/org/model:v2
  kitfs push localhost/model:v2 ghcr.io/org/model:v2
  kitfs push oci:./kits:v2 ghcr.io/org/model:v2")]
pub(super) struct Arguments {
    /// The kit on this machine.
    #[arg(value_name = "REF")]
    from: String,
    // No doc comment: rustdoc would take the brackets for links.
    #[arg(
        value_name = "DEST",
        help = "The registry's repository and tag, or oci:FOLDER[:TAG] [default: REF]"
    )]
    to: Option<String>,
    #[command(flatten)]
    send: SendArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let text = parse_reference(&arguments.from)?;
    let from = Origin::parse(&text).map_err(Failure::from)?;
    let to = match (&arguments.to, &from) {
        (Some(to), _) => destination_of(&parse_reference(to)?, &from)?,
        (None, Origin::Registry(_)) => from.clone(),
        (None, Origin::KitStorage(_) | Origin::OciLayout { .. }) => {
            return Err(CliError::usage(format!(
                "{from} names no registry: say where to push the kit, `kitfs push {from} \
                 HOST/REPOSITORY:TAG`"
            )));
        }
    };
    let sources =
        sources_of_command(&settings.network(&arguments.network)?).map_err(Failure::from)?;
    let other = repository_of(&from);
    let (source, places): (Arc<dyn Repository>, _) = match &from {
        Origin::Registry(reference) | Origin::KitStorage(reference) => {
            let kept = sources.kept(reference).map_err(|error| {
                CliError::from(Failure::from(error)).about(&format!(
                    "{from} is not kept on this machine (`kitfs copy` sends from registry to registry)"
                ))
            });
            let kept = kept?;
            if let (Origin::Registry(_), Some(doubt)) = (&from, doubt_about(&kept, reference).await)
            {
                return Err(CliError::new(FailureKind::BadContent, format!("{from}: {doubt}")));
            }
            (Arc::new(kept.clone()), Some(kept))
        }
        Origin::OciLayout { .. } => (sources.open(&from).map_err(Failure::from)?, None),
    };
    // A registry that has a layer in another repository copies it from there.
    let others = move |digest| {
        let places =
            places.iter().flat_map(|kept| kept.origins(digest).iter().filter_map(repository_of));
        places.chain(other.clone()).collect()
    };
    send(&sources, source, &from, &to, &arguments.send, others, "pushed").await
}
