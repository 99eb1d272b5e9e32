//! `kitfs umount DIR`.

use std::path::PathBuf;

use super::error::CliError;
use super::settings::{Settings, mountpoint};
use crate::daemon::Backend;
use crate::daemon::api::{Failure, FailureKind};
use crate::fuse::unmount_orphan;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A mount whose daemon is gone is taken out of the tree too.

Examples:
  kitfs umount /models
  kitfs umount --lazy /models")]
pub(super) struct Arguments {
    /// Where the kit is mounted.
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Take it out of the tree at once; programs that use it can go on.
    #[arg(short, long)]
    lazy: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let mountpoint = mountpoint(&arguments.mountpoint)?;
    if let Some(daemon) = Backend::running(&settings.daemon()?).await? {
        match daemon.unmount(mountpoint.clone(), arguments.lazy).await {
            Ok(()) => return Ok(()),
            // Perhaps another cache folder's, or a leftover.
            Err(failure) if failure.kind == FailureKind::NotFound => {}
            // It was killed while it was asked.
            Err(failure) if failure.kind == FailureKind::Daemon && daemon.has_ended().await => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let orphan = tokio::task::spawn_blocking(move || unmount_orphan(&mountpoint, arguments.lazy));
    let ended = orphan.await.map_err(|error| CliError::internal(error.to_string()))?;
    Ok(ended.map_err(Failure::from)?)
}
