//! `kitfs inspect REF|MOUNT`: everything known, as JSON.

use serde::Serialize;
use serde_json::Value;

use super::error::CliError;
use super::output::print_json;
use super::settings::Settings;
use super::subject::{self, SubjectArguments};
use crate::control::api::{
    DaemonStatus, InfoRequest, MountStatus, ResidencyRequest, ResidencyRows, ResidencyTotal,
    Subject,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints a JSON object: of a mount, its status and its daemon; of a kit, its
manifest and Kitfile as `kitfs info --json` does; of both, how much of the files
is in the cache. A path behind the mount or the kit limits the sums to it.

Examples:
  kitfs inspect /models
  kitfs inspect ghcr.io/org/model:v1 | jq .info.layers")]
pub(super) struct Arguments {
    #[command(flatten)]
    subject: SubjectArguments,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Inspected {
    /// The reference of the kit, with the digest of its manifest.
    reference: String,
    /// The path, percent-encoded; empty for the whole kit.
    path: crate::control::api::RawPath,
    /// The sums over the files at the path.
    residency: Option<ResidencyTotal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mount: Option<MountStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<Value>,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let found = subject::find(settings, arguments.subject).await?;
    let request = |subject: Subject| ResidencyRequest {
        subject,
        path: found.path.clone(),
        rows: ResidencyRows::Largest,
        skip: 0,
        most_rows: 0,
        cells: 0,
        most_ranges: 0,
    };
    let residency = found.ask(request).await?;
    let mut inspected = Inspected {
        reference: residency.reference,
        path: residency.path,
        residency: residency.total,
        mount: None,
        daemon: None,
        info: None,
    };
    if let Some(mountpoint) = found.mountpoint() {
        let mut status: DaemonStatus = found.backend().status().await?;
        let is_it = |mount: &MountStatus| mount.mountpoint == mountpoint;
        inspected.mount = status.mounts.iter().find(|mount| is_it(mount)).cloned();
        status.mounts.clear();
        inspected.daemon = Some(plain(&status)?);
    } else if let Some(kit) = found.pinned() {
        let info = found.backend().ask(InfoRequest { kit: kit.clone(), facts: false }).await?;
        let info = plain(&info)?;
        // The answer is wrapped in the kind of the artifact.
        inspected.info = Some(info.get("kit").cloned().unwrap_or(info));
    }
    print_json(&inspected)
}

fn plain(value: &impl Serialize) -> Result<Value, CliError> {
    serde_json::to_value(value).map_err(|error| CliError::internal(error.to_string()))
}
