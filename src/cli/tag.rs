//! `kitfs tag REF NEW`.

use super::arguments::NetworkArguments;
use super::error::CliError;
use super::reference::parse_reference;
use super::sending::{SendArguments, tag};
use super::settings::Settings;
use crate::control::api::Failure;
use crate::daemon::sources_of_command;
use crate::oci::{Origin, Selector};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The tag is made where the kit is: in the registry, in the OCI layout folder, or
in the local storage of `kit`. Nothing is downloaded but the manifest. In the
local storage NEW may be any name, under which `kitfs push` then sends the kit.

Examples:
  kitfs tag ghcr.io/org/model:v2 production
  kitfs tag --force ghcr.io/org/model:v1 production
  kitfs tag localhost/model:v2 ghcr.io/org/model:v2")]
pub(super) struct Arguments {
    /// The kit or index.
    #[arg(value_name = "REF")]
    from: String,
    /// The new tag, alone or behind the same repository or folder.
    #[arg(value_name = "NEW")]
    new: String,
    #[command(flatten)]
    send: SendArguments,
    #[command(flatten)]
    network: NetworkArguments,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let from = Origin::parse(&parse_reference(&arguments.from)?).map_err(Failure::from)?;
    let to = new_of(&from, &arguments.new)?;
    let sources =
        sources_of_command(&settings.network(&arguments.network)?).map_err(Failure::from)?;
    tag(&sources, &from, &to, &arguments.send).await
}

/// The new name: a tag in the repository or folder of `from`, and any name in kit's storage.
fn new_of(from: &Origin, new: &str) -> Result<Origin, CliError> {
    if let Ok(tag) = Selector::tag(new) {
        return Ok(from.with_selector(tag));
    }
    let to = Origin::parse(&parse_reference(new)?).map_err(Failure::from)?;
    let is_same = |selector: &Selector| to == from.with_selector(selector.clone());
    match (from, to.selector()) {
        (Origin::KitStorage(_), Some(Selector::Tag(_)))
            if !matches!(to, Origin::OciLayout { .. }) =>
        {
            Ok(to)
        }
        (_, Some(selector @ Selector::Tag(_))) if is_same(selector) => Ok(to),
        _ => Err(CliError::usage(format!(
            "`{new}` is no tag of the repository or folder of {from}: write the new tag alone; \
             `kitfs copy` copies a kit elsewhere"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tag_stands_alone_or_behind_the_same_repository() {
        let new = |from: &str, new: &str| {
            new_of(&Origin::parse(from).unwrap(), new).map(|origin| origin.to_string()).ok()
        };
        let v2 = Some("ghcr.io/org/m:v2".to_owned());
        assert_eq!(new("ghcr.io/org/m:v1", "v2"), v2);
        assert_eq!(new("ghcr.io/org/m:v1", "ghcr.io/org/m:v2"), v2);
        for other in ["ghcr.io/org/x:v2", "oci:kits:v2", "a b", "ghcr.io/org/m@sha256:00"] {
            assert_eq!(new("ghcr.io/org/m:v1", other), None, "{other}");
        }
        assert_eq!(new("oci:/kits:v1", "v2").as_deref(), Some("oci:/kits:v2"));
        assert_eq!(new("oci:/kits:v1", "oci:/kits:v2").as_deref(), Some("oci:/kits:v2"));
        // `kit tag` gives kits of its storage the names of registries.
        assert_eq!(new("localhost/m:v1", "ghcr.io/org/m:v2"), v2);
        assert_eq!(new("localhost/m:v1", "other:v2").as_deref(), Some("localhost/other:v2"));
        assert_eq!(new("localhost/m:v1", "oci:/kits:v2"), None);
    }
}
