//! `kitfs status`.

use super::error::CliError;
use super::output::{path_text, print_json, print_table, short_digest, state_name, warn};
use super::settings::Settings;
use super::sizes;
use crate::daemon::Backend;
use crate::daemon::api::{HydrateState, MountStatus, PassthroughState};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
State says how far the bytes can be trusted: `confirmed` when the digest of every layer was
computed over all its bytes, `unconfirmed` before that, `POISONED` when a digest is wrong.

Rest says what becomes of what is not in the cache yet: it `waits` until readers are quiet, is
`coming`, or all of it is `here`; `on demand` with --no-hydrate, `local` for a kit on this machine's
disk, `no room` where it does not fit the cache, `failed` (see --json, or daemon.log).

Passthrough says whether the kernel reads complete, confirmed files from the cache by itself: how
many are open so now, and how often one was; or why it does not.")]
pub(super) struct Arguments {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let mounts = match Backend::running(&settings.daemon()?).await? {
        Some(daemon) => daemon.status().await?.mounts,
        None => Vec::new(),
    };
    match arguments.json {
        true => print_json(&mounts),
        false => print_mounts(&mounts),
    }?;
    for mount in &mounts {
        if let Some(failure) = &mount.last_failure {
            warn(format_args!("{}: a read failed: {failure}", path_text(&mount.mountpoint)));
        }
    }
    Ok(())
}

/// Prints the table of mounts.
pub(super) fn print_mounts(mounts: &[MountStatus]) -> Result<(), CliError> {
    let headings =
        ["MOUNT", "REFERENCE", "DIGEST", "TOTAL", "RESIDENT", "STATE", "REST", "PASSTHROUGH"];
    print_table(
        &headings,
        &[3, 4],
        mounts.iter().map(|mount| {
            vec![
                path_text(&mount.mountpoint),
                mount.reference.clone(),
                short_digest(&mount.digest).to_owned(),
                sizes::show(mount.total_bytes),
                sizes::show(mount.resident_bytes),
                state_name(mount.state).to_owned(),
                hydrate_text(&mount.hydrate).to_owned(),
                passthrough_text(&mount.passthrough),
            ]
        }),
    )
}

/// What becomes of what nobody has read yet.
fn hydrate_text(hydrate: &HydrateState) -> &'static str {
    match hydrate {
        HydrateState::Off => "on demand",
        HydrateState::Local => "local",
        HydrateState::Waiting => "waits",
        HydrateState::Running => "coming",
        HydrateState::Complete => "here",
        HydrateState::NoRoom => "no room",
        HydrateState::Failed { .. } => "failed",
    }
}

fn passthrough_text(passthrough: &PassthroughState) -> String {
    match passthrough {
        PassthroughState::On { open_files, opened_files } => {
            format!("on ({open_files} open, {opened_files} so far)")
        }
        PassthroughState::Off { reason } => format!("off: {reason}"),
    }
}
